"""How likely a model finds a given answer, in nats.

A causal model says it exactly: the chain rule, in one forward. A masked diffusion model has a lower bound (LLaDA, arXiv
2502.09992, section 2.4, the form with a whole number of masks; L is the length of the answer r, p the prompt):

    log P(r | p)  ≥  E[ L/l · Σ_{i masked} log P(r_i | p, r with l of its tokens masked) ],   l uniform in 1 … L

and l positions drawn without replacement; the prompt is never masked. For one token it is no bound but the value. A
model with block attention never sees a half-masked block before a block that it fills, so there the chain rule runs
over the blocks, and each block has the bound, given the finished ones.

The expectation runs over 2^L - 1 sets of masks. Where `num_samples` pays for all of them they are all computed, and
nothing is random. Else they are drawn, l from strata: sample n of N draws it from the n-th of N equal parts of 1 … L.
The masks depend on the seed, the length and the place of the answer alone, so answers of one length are compared under
the same masks.

Letters: N samples, L answer length, M masked places of a batch of samples, C places in one chunk, V vocabulary.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import Denoiser, FullDenoiser
from unmask.decode.loop import suppression_mask
from unmask.decode.numerics import check_numbers
from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.errors import CanvasError, SettingsError
from unmask.model.config import ModelConfig
from unmask.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLikelihood:
    """A log-likelihood, and how well it is known."""

    value: float
    """Nats, summed over the answer."""

    standard_error: float
    """Of the sampling; 0 where nothing was drawn, infinite for a single sample. It leans to the large side."""

    num_samples: int
    """Masked copies of the answer that went through the network, those of all blocks together; 1 for a causal model."""

    is_exact: bool
    """`value` is the log-likelihood itself, not a bound on it."""

    is_greedy: bool
    """The model's greedy answer of this length is this answer. A diffusion model decodes it with one commit a step,
    the surest first."""


def answer_log_likelihood(
    model: Model,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    *,
    num_samples: int = 128,
    seed: int = 0,
    batch_size: int = 16,
) -> LogLikelihood:
    """The log-likelihood of an answer to a prompt: exact for causal models, else a lower bound.

    `num_samples` masked copies of the answer (of each of its blocks, for block attention) go through the network,
    `batch_size` at a time, which moves no more than rounding. A diffusion model may have an empty prompt. Raises
    CanvasError for an empty answer, one that does not fit the context, and a causal model without a prompt.
    """
    for name, given in (("num_samples", num_samples), ("batch_size", batch_size)):
        if given < 1:
            raise SettingsError(f"{name}={given} is not a count; it must be at least 1")
    _check_lengths(model.backbone.config, len(prompt_ids), len(answer_ids))
    if model.backbone.config.attention == "causal":
        return _chain_rule(model, prompt_ids, answer_ids)
    parts = [
        _bound(
            model,
            [*prompt_ids, *answer_ids[:start]],
            answer_ids[start:stop],
            num_samples=num_samples,
            seed=derive_seed(seed, "masks of a likelihood", start),
            batch_size=batch_size,
        )
        for start, stop in _blocks(model.backbone.config, len(prompt_ids), len(answer_ids))
    ]
    return LogLikelihood(
        value=math.fsum(part.value for part in parts),
        standard_error=math.hypot(*(part.standard_error for part in parts)),
        num_samples=sum(part.num_samples for part in parts),
        is_exact=all(part.is_exact for part in parts),
        is_greedy=_is_greedy(model, prompt_ids, answer_ids),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """The bound of one block; of the whole answer under full attention."""

    value: float
    standard_error: float
    num_samples: int
    is_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """Sets of masked positions of an answer, and the weight of each one's sum of log-probabilities in the bound."""

    is_masked_NL: Bool[Tensor, "N L"]
    weight_N: Float[Tensor, " N"]
    are_all: bool
    """Every set is there, so the weighted sum is the bound and not an estimate of it."""


def all_masks(length: int) -> Masks:
    """Every non-empty set of positions.

    A set of l is drawn with probability 1/L · 1/C(L, l) and its sum counts L/l times.

    >>> masks = all_masks(2)
    >>> masks.is_masked_NL.int().tolist(), masks.weight_N.tolist()
    ([[1, 0], [0, 1], [1, 1]], [0.5, 0.5, 0.5])
    """
    sets_N1 = torch.arange(1, 2**length)[:, None]
    is_masked_NL = sets_N1 >> torch.arange(length) & 1 == 1
    weights = [1 / (count * math.comb(length, count)) for count in is_masked_NL.sum(-1).tolist()]
    return Masks(is_masked_NL=is_masked_NL, weight_N=torch.tensor(weights, dtype=torch.float64), are_all=True)


def draw_masks(length: int, num_samples: int, seed: int) -> Masks:
    """`num_samples` sets, their sizes from strata, in the order of the strata."""
    generator = torch.Generator().manual_seed(seed)
    place_N = torch.arange(num_samples) + torch.rand(num_samples, generator=generator, dtype=torch.float64)
    count_N = (place_N / num_samples * length).long().clamp(max=length - 1) + 1
    order_NL = torch.rand(num_samples, length, generator=generator, dtype=torch.float64).argsort(-1).argsort(-1)
    return Masks(
        is_masked_NL=order_NL < count_N[:, None],
        weight_N=length / count_N.double() / num_samples,
        are_all=False,
    )


def _check_lengths(config: ModelConfig, prompt: int, answer: int) -> None:
    if not answer:
        raise CanvasError("the answer is empty, so it has no likelihood to speak of; give at least one token")
    if not prompt and config.attention == "causal":
        raise CanvasError(
            "the prompt is empty, and a causal model predicts each token from those before it; begin with the "
            "beginning-of-text token or the end token"
        )
    if prompt + answer > config.max_positions:
        raise CanvasError(
            f"the prompt has {prompt} tokens and the answer {answer}, but the model's context holds "
            f"{config.max_positions}; leave out the beginning of the prompt, or score the answer in pieces"
        )


def _chain_rule(model: Model, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> LogLikelihood:
    """The cached denoiser asks about one position per row at a time; here all are asked about at once."""
    canvas = model.canvas([[*prompt_ids, *answer_ids]])
    column_L = int(canvas.start_B[0]) + len(prompt_ids) + torch.arange(len(answer_ids))
    places = Positions(torch.zeros_like(column_L), column_L)
    denoiser = FullDenoiser(model.backbone)
    is_suppressed_V = suppression_mask(denoiser, model.undefined_ids)
    logp_L, is_best_L = _score(denoiser, canvas, places, torch.tensor(answer_ids), is_suppressed_V)
    return LogLikelihood(
        value=float(logp_L.sum()),
        standard_error=0.0,
        num_samples=1,
        is_exact=True,
        is_greedy=bool(is_best_L.all()),
    )


def _blocks(config: ModelConfig, prompt: int, answer: int) -> list[tuple[int, int]]:
    """The answer's blocks as ranges in it; the first may have begun in the prompt."""
    if config.attention == "full":
        return [(0, answer)]
    assert config.block_length is not None
    length = config.block_length
    first = length - prompt % length
    cuts = [0, *range(first, answer, length), answer]
    return list(itertools.pairwise(cuts))


def _bound(
    model: Model, given: Sequence[int], block: Sequence[int], *, num_samples: int, seed: int, batch_size: int
) -> _Bound:
    length = len(block)
    masks = all_masks(length) if 2**length - 1 <= num_samples else draw_masks(length, num_samples, seed)
    sums = []
    for is_masked_NL in masks.is_masked_NL.split(batch_size):  # type: ignore[no-untyped-call]
        rows = [
            [*given, *(None if is_masked else token for token, is_masked in zip(block, row, strict=True))]
            for row in is_masked_NL.tolist()
        ]
        canvas = model.canvas(rows)
        places = canvas.masked()
        target_M = torch.tensor(block).expand(is_masked_NL.shape)[is_masked_NL]
        logp_M, _ = _score(model.exact_denoiser(), canvas, places, target_M, None)
        sums.append(torch.zeros(len(rows), dtype=torch.float64).index_add(0, places.rows_M, logp_M))
    term_N = masks.weight_N * torch.cat(sums)
    return _Bound(
        value=float(term_N.sum()),
        standard_error=0.0 if masks.are_all else _standard_error(term_N),
        num_samples=len(term_N),
        is_exact=length == 1,
    )


def _standard_error(term_N: Float[Tensor, " N"]) -> float:
    """Of the sum of independent terms from neighbouring strata.

    Half the squared difference of neighbours estimates a term's variance; what their strata differ by comes on top.
    """
    count = len(term_N)
    if count == 1:
        return math.inf
    return math.sqrt(float(term_N.diff().square().mean()) / 2 * count)


def _score(
    denoiser: Denoiser,
    canvas: Canvas,
    places: Positions,
    target_M: Int[Tensor, " M"],
    is_suppressed_V: Bool[Tensor, " V"] | None,
) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """The targets' log-probabilities in float64, and which of them have the best score of those a run may commit."""
    logps, bests = [], []
    at = 0
    for logits_CV in denoiser.logits(canvas, places):
        target_C = target_M[at : at + len(logits_CV)].to(logits_CV.device)
        logp_CV = logits_CV.float().log_softmax(-1)
        logps.append(logp_CV.gather(1, target_C[:, None])[:, 0].double().cpu())
        if is_suppressed_V is not None:
            logp_CV = logp_CV.masked_fill(is_suppressed_V, -math.inf)
        bests.append((logp_CV.argmax(-1) == target_C).cpu())
        at += len(logits_CV)
    logp_M = torch.cat(logps)
    check_numbers(logp_M, canvas, places, 0)
    return logp_M, torch.cat(bests)


def _is_greedy(model: Model, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> bool:
    """Decode greedily until a token differs, which is mostly soon."""
    run = model.run_rows(
        [[*prompt_ids, *[None] * len(answer_ids)]],
        DecodeSettings(max_new_tokens=len(answer_ids), policy="maskgit_plus"),
        samples=[0],
        end_ids=(),  # the length is given; an end token is a token as others are
    )
    return all(
        commit.token_id == answer_ids[commit.position - len(prompt_ids)] for event in run for commit in event.commits
    )
