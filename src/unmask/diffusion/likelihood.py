"""How likely a policy finds an answer: a score from views of the answer with some of its tokens masked.

A masked diffusion model has no likelihood at hand. What stands in for it is a sum of weighted log-probabilities of the
answer's N tokens, each seen in a view that masks it. With ℓ_k(M) = log p(token k | everything outside of M):

    mean_field          ℓ_k(all): the whole answer masked, one view (d1, 2504.12216). With a prompt mask, also tokens of
                        the prompt, others in each of `samples` draws.
    coupled             (ℓ_k(all) + Σ_pairs [k ∈ M ? ℓ_k(M)/t : ℓ_k(M̄)/(1-t)]) / (pairs + 1), M̄ the rest of the answer
                        beside M (DiffuCoder, 2506.20639, equation 13, with the sign of a log-probability). No
                        log-probability: with one pair the weights sum to 1.5 on average, and to 1.125 … 3 for t in
                        0.2 … 0.8.
    coupled_normalised  the same views, each token's mean over those that score it: weights sum to 1 in every draw.
    decoupled           the paper's ablation: M at t and M̄ at 1-t are drawn apart, so a pair scores a token twice, once
                        or not at all. The mean is that of `coupled`.
    elbo                1/samples · Σ_j [k ∈ M_j] ℓ_k(M_j)/t_j: the bound by Bernoulli masks (VRPO, 2505.19223), one
                        mask at each of `samples` values of t.
    espo                exactly m of N masked, m uniform in 0 … N: ½(N+1)/m on M and ½(N+1)/(N-m) on the rest, the mean
                        of `samples` such draws (ESPO, 2512.03759). The bound, too.
    left_to_right       ℓ_k(k … N): the chain rule from left to right, exact, one view per token (JustGRPO, 2601.15165).
    trajectory          ℓ_k(all that k's step found masked): one view per step of the rollout, or per `shrink`
                        neighbouring steps (TraceRL, 2509.06949). A step that committed no token of the answer has none.

For the two bounds a ratio is made of sums over the answer, for the others of tokens' scores, unless `level` says so.

The bounds and pairs draw t uniformly from t_min … t_max. Those of one answer are spread evenly, and answers with
consecutive sample numbers are, too: t = t_min + (t_max - t_min)·((u + sample·φ + j/n) mod 1), with one uniform u per
step and iteration, and φ the golden ratio. So each is uniform, and depends on no other answer of the batch. `elbo`
begins at t_min = 0.001, because its variance grows without bound towards 0; it is the bound but for a thousandth of its
range.

Views are a pure function of (seed, step, iteration, sample) and of the answer's length: the policy, the old policy
and the reference are scored under the same ones, whatever the batch. What is behind the answer's end is masked in every
view, for a visible end would give its length away; the prompt is visible (but for a prompt mask).

Letters: K views, B batch, L length, N answer tokens, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.diffusion.rl_settings import Estimator
from unmask.errors import TrajectoryError
from unmask.seeds import derive_seed

_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Which tokens each view hides, and what the log-probability of each hidden one weighs."""

    is_masked_KBL: Bool[Tensor, "K B L"]
    """Hidden in the view: part of the answer, all that lies behind it, padding."""

    weight_KBL: Float[Tensor, "K B L"]
    """Factor of log p of the true token, float32; above 0 only where the view scores, which is where it masks."""

    draw_K: Int[Tensor, " K"]
    """The draw that a view belongs to, from 0; its views together score every token, if only on average."""

    rescale_K: Float[Tensor, " K"]
    """What makes a draw's part of the score a whole score, float32: its mean weights then sum to the score's."""


def draw_views(
    estimator: Estimator,
    is_answer_BL: Bool[Tensor, "B L"],
    is_prompt_BL: Bool[Tensor, "B L"],
    sample_B: Int[Tensor, " B"],
    *,
    seed: int,
    step: int,
    iteration: int,
    committed_at_BL: Int[Tensor, "B L"] | None = None,
) -> Views:
    """The views of a batch of answers.

    `is_answer_BL` reaches up to and including the end token; `sample_B` numbers the answers over all ranks;
    `committed_at_BL` holds the step that committed each token of the answer, for `trajectory`.

    >>> is_answer = torch.tensor([[False, True, True, False]])
    >>> is_prompt = torch.tensor([[True, False, False, False]])
    >>> views = draw_views(Estimator(name="left_to_right"), is_answer, is_prompt, torch.tensor([0]), seed=0, step=0,
    ...                    iteration=0)
    >>> views.is_masked_KBL[:, 0].int().tolist()
    [[0, 1, 1, 1], [0, 0, 1, 1]]
    >>> views.weight_KBL[:, 0].int().tolist()
    [[0, 1, 0, 0], [0, 0, 1, 0]]
    """
    assert not (is_answer_BL & is_prompt_BL).any()
    chance = _Chance(seed=seed, step=step, iteration=iteration, sample_B=sample_B)
    match estimator.name:
        case "mean_field":
            views = _mean_field(estimator, is_answer_BL, is_prompt_BL, chance)
        case "coupled" | "coupled_normalised" | "decoupled":
            views = _pairs(estimator, is_answer_BL, chance)
        case "elbo":
            views = _elbo(estimator, is_answer_BL, chance)
        case "espo":
            views = _espo(estimator, is_answer_BL, chance)
        case "left_to_right":
            views = _ordered(_rank(is_answer_BL), is_answer_BL)
        case "trajectory":
            views = _ordered(_groups(estimator, is_answer_BL, committed_at_BL, sample_B), is_answer_BL)
    return replace(views, is_masked_KBL=views.is_masked_KBL | ~(is_answer_BL | is_prompt_BL))


def num_views(
    estimator: Estimator,
    is_answer_BL: Bool[Tensor, "B L"],
    *,
    committed_at_BL: Int[Tensor, "B L"] | None = None,
) -> int:
    """How many views, and so forward passes per answer, a batch takes.

    It depends on the batch only for the estimators that follow an order, which take those of the longest answer.

    >>> num_views(Estimator(pairs=2), torch.ones(1, 9, dtype=torch.bool))
    5
    """
    match estimator.name:
        case "mean_field" | "elbo":
            return estimator.samples
        case "espo":
            return 2 * estimator.samples
        case "coupled" | "coupled_normalised" | "decoupled":
            return 1 + 2 * estimator.pairs
        case "left_to_right":
            return _count(_rank(is_answer_BL))
        case "trajectory":
            sample_B = torch.arange(len(is_answer_BL))
            return _count(_groups(estimator, is_answer_BL, committed_at_BL, sample_B))


def token_scores(views: Views, logp_KBL: Float[Tensor, "K B L"]) -> Float[Tensor, "B L"]:
    """Each token's score; 0 outside of the answer. What no view scores is never read, be it infinite or no number."""
    return (views.weight_KBL * logp_KBL.masked_fill(views.weight_KBL == 0, 0)).sum(0)


def sequence_scores(
    views: Views, logp_KBL: Float[Tensor, "K B L"], is_answer_BL: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """Each answer's score: the sum of its tokens'."""
    return token_scores(views, logp_KBL).masked_fill(~is_answer_BL, 0).sum(1)


def spread(views: Views, logp_KBL: Float[Tensor, "K B L"], is_answer_BL: Bool[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """How far the draws of each answer's score lie apart, per token: their standard deviation in nats.

    Each draw is rescaled to a whole score. The fully masked view of the paired estimators is a draw like each pair, so
    theirs holds what context is worth besides chance. NaN where there is one draw only, and for an empty answer.
    """
    part_KBL = views.weight_KBL * logp_KBL.masked_fill(views.weight_KBL == 0, 0)
    part_KB = part_KBL.masked_fill(~is_answer_BL, 0).sum(2) * views.rescale_K[:, None]
    whole_RB = part_KB.new_zeros(int(views.draw_K.max()) + 1, part_KB.shape[1]).index_add(0, views.draw_K, part_KB)
    if len(whole_RB) == 1:
        return torch.full_like(whole_RB[0], torch.nan)
    return (whole_RB / is_answer_BL.sum(1)).std(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chance:
    """The random numbers of each answer at one iteration."""

    seed: int
    step: int
    iteration: int
    sample_B: Int[Tensor, " B"]

    def levels(self, count: int) -> Float[Tensor, "R B"]:
        """Numbers in [0, 1), each uniform, evenly spread over an answer's draws and over consecutive answers."""
        seed = derive_seed(self.seed, "levels of a likelihood", self.step, self.iteration)
        first = torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        draw_R1 = torch.arange(count, dtype=torch.float64)[:, None]
        return (first + self.sample_B.cpu().double() * _GOLDEN_RATIO + draw_R1 / count) % 1

    def uniforms(self, purpose: str, is_drawn_BL: Bool[Tensor, "B L"], count: int) -> Float[Tensor, "R B L"]:
        """Uniform numbers for some tokens of each row, drawn for them alone, so that nothing beside them counts."""
        out_RBL = torch.ones(count, *is_drawn_BL.shape, dtype=torch.float64)
        for row, (sample, is_drawn_L) in enumerate(zip(self.sample_B.tolist(), is_drawn_BL.cpu(), strict=True)):
            seed = derive_seed(self.seed, purpose, self.step, self.iteration, sample)
            generator = torch.Generator().manual_seed(seed)
            shape = (count, int(is_drawn_L.sum()))
            out_RBL[:, row, is_drawn_L] = torch.rand(shape, generator=generator, dtype=torch.float64)
        return out_RBL.to(is_drawn_BL.device)


_MASKS = "masks of a likelihood"
_PROMPT_MASKS = "prompt masks of a likelihood"


def _mean_field(
    estimator: Estimator, is_answer_BL: Bool[Tensor, "B L"], is_prompt_BL: Bool[Tensor, "B L"], chance: _Chance
) -> Views:
    count = estimator.samples
    is_hidden_KBL = chance.uniforms(_PROMPT_MASKS, is_prompt_BL, count) < estimator.prompt_mask
    weight_KBL = (is_answer_BL / count).expand(count, *is_answer_BL.shape)
    return _views(is_hidden_KBL | is_answer_BL, weight_KBL, draws=range(count), rescales=[count] * count)


def _pairs(estimator: Estimator, is_answer_BL: Bool[Tensor, "B L"], chance: _Chance) -> Views:
    """The fully masked view, then two views of each pair."""
    pairs = estimator.pairs
    t_min, t_max = estimator.t_range
    t_RB1 = t_min + (t_max - t_min) * chance.levels(pairs)[..., None].to(is_answer_BL.device)
    if estimator.name == "decoupled":
        first_RBL, second_RBL = chance.uniforms(_MASKS, is_answer_BL, 2 * pairs).chunk(2)
        is_first_RBL, is_second_RBL = first_RBL < t_RB1, second_RBL < 1 - t_RB1
    else:
        is_first_RBL = chance.uniforms(_MASKS, is_answer_BL, pairs) < t_RB1
        is_second_RBL = ~is_first_RBL
    chance_KB1 = torch.stack([t_RB1, 1 - t_RB1], 1).flatten(0, 1)
    is_masked_KBL = torch.stack([is_first_RBL, is_second_RBL], 1).flatten(0, 1) & is_answer_BL
    is_normalised = estimator.name == "coupled_normalised"
    inverse_KB1 = torch.ones_like(chance_KB1) if is_normalised else 1 / chance_KB1
    weight_KBL = torch.cat([is_answer_BL[None].double(), is_masked_KBL * inverse_KB1]) / (pairs + 1)
    # The mean weight of a token: 1 in the full view; in a pair 1 where it is normalised, else 1 in each of two views.
    pair = 1 if is_normalised else 2
    whole = 1 + pair * pairs
    return _views(
        torch.cat([is_answer_BL[None], is_masked_KBL]),
        weight_KBL,
        draws=[0, *(1 + view // 2 for view in range(2 * pairs))],
        rescales=[whole, *[whole / pair] * (2 * pairs)],
    )


def _elbo(estimator: Estimator, is_answer_BL: Bool[Tensor, "B L"], chance: _Chance) -> Views:
    count = estimator.samples
    t_min, t_max = estimator.t_range
    t_KB1 = t_min + (t_max - t_min) * chance.levels(count)[..., None].to(is_answer_BL.device)
    is_masked_KBL = (chance.uniforms(_MASKS, is_answer_BL, count) < t_KB1) & is_answer_BL
    return _views(is_masked_KBL, is_masked_KBL / t_KB1 / count, draws=range(count), rescales=[count] * count)


def _espo(estimator: Estimator, is_answer_BL: Bool[Tensor, "B L"], chance: _Chance) -> Views:
    """Two views of each draw. One that masks none leaves the whole answer, with weight (N+1)/N, to its complement."""
    count = estimator.samples
    size_B1 = is_answer_BL.sum(1, keepdim=True)
    level_RB1 = chance.levels(count)[..., None].to(is_answer_BL.device)
    masked_RB1 = (level_RB1 * (size_B1 + 1)).long().minimum(size_B1)  # uniform in 0 … N
    place_RBL = chance.uniforms(_MASKS, is_answer_BL, count).argsort(2).argsort(2)  # 0 … N-1 in the answer
    is_first_RBL = place_RBL < masked_RB1
    is_masked_KBL = torch.stack([is_first_RBL, ~is_first_RBL], 1).flatten(0, 1) & is_answer_BL
    masked_KB1 = torch.stack([masked_RB1, size_B1 - masked_RB1], 1).flatten(0, 1)
    weight_KBL = is_masked_KBL * (size_B1 + 1) / masked_KB1.clamp(min=1).double() / (2 * count)
    return _views(
        is_masked_KBL, weight_KBL, draws=[view // 2 for view in range(2 * count)], rescales=[count] * (2 * count)
    )


def _ordered(turn_BL: Int[Tensor, "B L"], is_answer_BL: Bool[Tensor, "B L"]) -> Views:
    """View k scores the tokens whose turn is k, and shows those whose turn was before. Rows may have fewer turns than
    others; they score nothing in the views that are left over."""
    view_K11 = torch.arange(_count(turn_BL), device=turn_BL.device)[:, None, None]
    is_masked_KBL = is_answer_BL & ((turn_BL >= view_K11) | (turn_BL.amax(1, keepdim=True) < view_K11))
    weight_KBL = (is_answer_BL & (turn_BL == view_K11)).double()
    return _views(is_masked_KBL, weight_KBL, draws=[0] * len(view_K11), rescales=[1] * len(view_K11))


def _rank(is_answer_BL: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The place of each token in its answer; -1 outside."""
    return (is_answer_BL.cumsum(1) - 1).masked_fill(~is_answer_BL, -1)


def _groups(
    estimator: Estimator,
    is_answer_BL: Bool[Tensor, "B L"],
    committed_at_BL: Int[Tensor, "B L"] | None,
    sample_B: Int[Tensor, " B"],
) -> Int[Tensor, "B L"]:
    """The view that scores each token of the answer; -1 outside."""
    if committed_at_BL is None:
        raise TrajectoryError(
            "the estimator 'trajectory' scores each token at the step that committed it, and no steps were given; keep "
            "the rollouts' trajectories, or choose left_to_right or coupled"
        )
    is_lost_BL = is_answer_BL & (committed_at_BL < 0)
    if is_lost_BL.any():
        row = int(is_lost_BL.any(1).nonzero()[0, 0])
        raise TrajectoryError(
            f"{int(is_lost_BL[row].sum())} of the {int(is_answer_BL[row].sum())} tokens of answer "
            f"{int(sample_B[row])} were committed by no step, and the estimator 'trajectory' scores each at its own; "
            "count tokens that were given to the prompt, or choose left_to_right or coupled"
        )
    step_BL = committed_at_BL.masked_fill(~is_answer_BL, -1)
    rows = [step_L.unique(return_inverse=True)[1] - int((step_L < 0).any()) for step_L in step_BL]
    group_BL = torch.stack(rows) if rows else step_BL
    return (group_BL // estimator.shrink).masked_fill(~is_answer_BL, -1)


def _count(turn_BL: Int[Tensor, "B L"]) -> int:
    """At least one view, so that a batch of empty answers has a score, which is 0."""
    return max(1, int(turn_BL.max()) + 1) if turn_BL.numel() else 1


def _views(
    is_masked_KBL: Bool[Tensor, "K B L"],
    weight_KBL: Float[Tensor, "K B L"],
    *,
    draws: Sequence[int],
    rescales: Sequence[int | float],
) -> Views:
    device = is_masked_KBL.device
    return Views(
        is_masked_KBL=is_masked_KBL,
        weight_KBL=weight_KBL.float(),
        draw_K=torch.tensor(draws, device=device),
        rescale_K=torch.tensor(rescales, dtype=torch.float32, device=device),
    )
