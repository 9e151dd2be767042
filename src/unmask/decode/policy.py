"""Policies: which of the proposed tokens a step commits.

A proposal is made for every place that was asked about; places are sorted by row and column. A policy ranks them within
their row and takes some. Ranking is by score, highest first; equal scores are ordered by the raw confidence of the
token (before temperature and nucleus, so that the many exact ties of a cold distribution do not fall back on reading
order), and what is still equal by position, leftmost first.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.decode.observe import Runners, best_others, join_runners
from unmask.decode.settings import DecodeSettings
from unmask.diffusion.confidence import entropy, token_confidence, top_margin
from unmask.diffusion.logits import draw, shape_logits

PIECE = 1 << 16
"""Scores that a thread of a CPU works on at a time. A dozen passes are made over them, which its cache then serves: two
to five times as fast from 8 places of 152,000 tokens on (docs/log.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """For each place: the token it would get, how sure the model is, the score that ranks it, and the runners-up if
    they are observed."""

    token_M: Int[Tensor, " M"]
    confidence_M: Float[Tensor, " M"]
    entropy_M: Float[Tensor, " M"]
    score_M: Float[Tensor, " M"]
    tie_M: Float[Tensor, " M"]
    runners: Runners | None = None


def propose(
    logits_CV: Float[Tensor, "C V"],
    settings: DecodeSettings,
    *,
    uniform_C: Float[Tensor, " C"] | None,
    runners_up: int = 0,
    token_C: Int[Tensor, " C"] | None = None,
) -> Proposal:
    """Draw a token for each place and measure how sure the model is of it, in float32.

    `uniform_C` drives the draw; it is needed when the temperature acts on content. `token_C` are the tokens, where they
    are chosen already. `confidence_M`, `entropy_M` and the `runners_up` best other tokens are those of the distribution
    that orders the places.
    """
    count, size = logits_CV.shape
    rows = max(1, PIECE // size) * torch.get_num_threads() if logits_CV.device.type == "cpu" else count
    pieces = [
        _propose(
            logits_CV[at : at + rows],
            settings,
            uniform_C=None if uniform_C is None else uniform_C[at : at + rows],
            runners_up=runners_up,
            token_C=None if token_C is None else token_C[at : at + rows],
        )
        for at in range(0, max(count, 1), rows)
    ]
    return pieces[0] if len(pieces) == 1 else join(pieces)


def _propose(
    logits_CV: Float[Tensor, "C V"],
    settings: DecodeSettings,
    *,
    uniform_C: Float[Tensor, " C"] | None,
    runners_up: int,
    token_C: Int[Tensor, " C"] | None,
) -> Proposal:
    """The proposal of some places, which depends on no others."""
    raw = logits_CV.float().log_softmax(-1)
    is_shaped = (
        settings.temperature not in (0.0, 1.0) or settings.top_p not in (None, 1.0) or settings.top_k is not None
    )
    shaped = raw
    if is_shaped:
        shaped = shape_logits(
            raw, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k
        ).log_softmax(-1)
    if token_C is not None:
        token = token_C
    elif settings.temperature > 0 and settings.temperature_role != "order":
        assert uniform_C is not None
        token = draw(shaped, uniform_C)
    else:
        token = raw.argmax(-1)
    ordering = raw if settings.temperature_role == "content" else shaped
    confidence, spread = token_confidence(ordering, token), entropy(ordering)
    if settings.policy in ("entropy", "entropy_bound"):
        score = -spread
    elif settings.policy == "topk_margin":
        score = top_margin(ordering)
    else:
        score = confidence
    tie = confidence if ordering is raw else token_confidence(raw, token)
    runners = None
    if runners_up:
        logp_CK, others_CK = best_others(ordering, token, runners_up)
        runners = Runners(token_MK=others_CK, probability_MK=logp_CK.exp())
    return Proposal(token_M=token, confidence_M=confidence, entropy_M=spread, score_M=score, tie_M=tie, runners=runners)


def join(parts: list[Proposal]) -> Proposal:
    """The proposals of several chunks as one, on the CPU."""
    observed = [part.runners for part in parts if part.runners is not None]
    return Proposal(
        token_M=torch.cat([part.token_M for part in parts]).cpu(),
        confidence_M=torch.cat([part.confidence_M for part in parts]).cpu(),
        entropy_M=torch.cat([part.entropy_M for part in parts]).cpu(),
        score_M=torch.cat([part.score_M for part in parts]).cpu(),
        tie_M=torch.cat([part.tie_M for part in parts]).cpu(),
        runners=join_runners(observed) if observed else None,
    )


def rank_within_rows(
    rows_M: Int[Tensor, " M"], score_M: Float[Tensor, " M"], tie_M: Float[Tensor, " M"]
) -> Int[Tensor, " M"]:
    """Each place's rank among those of its row: 0 for the best score, ties by `tie_M`, then by position.

    >>> rank_within_rows(torch.tensor([0, 0, 0, 1]), torch.tensor([0.1, 0.9, 0.9, 0.5]), torch.tensor([0., 0., 1., 0.]))
    tensor([2, 1, 0, 0])
    """
    order = torch.arange(len(rows_M))
    for key, descending in ((tie_M, True), (score_M, True), (rows_M, False)):
        order = order[key[order].sort(stable=True, descending=descending).indices]
    first_of_row = torch.searchsorted(rows_M[order], rows_M[order])
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - first_of_row
    return rank


def take_best(rank_M: Int[Tensor, " M"], budget_M: Int[Tensor, " M"]) -> Bool[Tensor, " M"]:
    """The `budget` best places of each row."""
    return rank_M < budget_M


def take_above(
    rank_M: Int[Tensor, " M"],
    confidence_M: Float[Tensor, " M"],
    *,
    threshold: float,
    at_least_M: Int[Tensor, " M"],
) -> Bool[Tensor, " M"]:
    """All places at least as sure as `threshold`, and in any case the `at_least` best (Fast-dLLM, arXiv 2505.22618)."""
    return (confidence_M >= threshold) | (rank_M < at_least_M)


def take_factor(
    rank_M: Int[Tensor, " M"],
    confidence_M: Float[Tensor, " M"],
    *,
    factor: float,
    at_least_M: Int[Tensor, " M"],
) -> Bool[Tensor, " M"]:
    """The largest n with (n + 1)(1 - c_n) < factor, c_n the n-th best confidence (Fast-dLLM, arXiv 2505.22618).

    With factor 1 the product of the marginals and the joint distribution have the same best answer. (n + 1)(1 - c_n)
    grows with n, so the places that satisfy it are the n best. Ranks must be by confidence.
    """
    n = rank_M + 1
    return ((n + 1) * (1 - confidence_M) < factor) | (rank_M < at_least_M)


def take_frechet(
    rank_M: Int[Tensor, " M"],
    rows_M: Int[Tensor, " M"],
    confidence_M: Float[Tensor, " M"],
    *,
    delta: float,
    at_least_M: Int[Tensor, " M"],
) -> Bool[Tensor, " M"]:
    """The largest n with L_n - U_n > delta (Fast-dLLM++, arXiv 2606.02955), ranks being by confidence.

    L_n = c_1 + … + c_n - (n - 1) is the least probability that the n best tokens can have together (Fréchet), and
    U_n = 1 - c_n the most that any other choice of them can have. With equal confidences this is `factor` 1 - delta.
    """
    lower_M = _sum_up_to(rank_M, rows_M, confidence_M) - rank_M
    is_trusted_M = lower_M - (1 - confidence_M.double()) > delta  # falls with the rank, so the trusted are the best
    return is_trusted_M | (rank_M < at_least_M)


def take_bounded(
    rank_M: Int[Tensor, " M"],
    rows_M: Int[Tensor, " M"],
    entropy_M: Float[Tensor, " M"],
    *,
    bound: float,
    at_least_M: Int[Tensor, " M"],
) -> Bool[Tensor, " M"]:
    """The best places as long as the entropies of those before sum to at most `bound` nats (EB-sampler, arXiv
    2505.24857), ranks being by entropy, least first. The sum bounds the mutual information of what is committed
    together, which is what a product of marginals misses."""
    before_M = _sum_up_to(rank_M, rows_M, entropy_M) - entropy_M.double()
    return (before_M <= bound) | (rank_M < at_least_M)


def _sum_up_to(
    rank_M: Int[Tensor, " M"], rows_M: Int[Tensor, " M"], value_M: Float[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """For each place, the sum of a value over the places of its row up to its rank, in float64 and row by row, so that
    no row moves another's."""
    _, row_M = rows_M.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    if not len(row_M):
        return value_M.double()
    value_AN = torch.zeros(int(row_M.max()) + 1, int(rank_M.max()) + 1, dtype=torch.float64)
    value_AN[row_M, rank_M] = value_M.double()
    return value_AN.cumsum(-1)[row_M, rank_M]


def gumbel(uniform_M: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Standard Gumbel noise. The n best of score / temperature + noise are n draws without replacement from
    softmax(score / temperature) (Kool et al., 2019)."""
    tiny = math.ulp(0.5)
    return -(-(uniform_M.double().clamp(tiny, 1 - tiny)).log()).log()
