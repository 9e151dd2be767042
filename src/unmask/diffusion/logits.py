"""From scores to a distribution: suppressed ids, temperature, top-k, nucleus, and drawing from the result.

Letters: M positions, V vocabulary. A forbidden token gets the lowest finite score of its dtype rather than minus
infinity, so that no later product is 0 · ∞.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_NUCLEUS_CANDIDATES = 1024


def suppress_(logits_MV: Float[Tensor, "M V"], is_suppressed_V: Bool[Tensor, " V"]) -> Float[Tensor, "M V"]:
    """Forbid ids in place: the mask id and ids without a token are never an answer."""
    return logits_MV.masked_fill_(is_suppressed_V, torch.finfo(logits_MV.dtype).min)


def keep_top_k(logits_MV: Float[Tensor, "M V"], k: int) -> Float[Tensor, "M V"]:
    """Forbid all but the k best tokens of each row (all that tie with the k-th are kept).

    >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2).argmin().item()
    0
    """
    kth = logits_MV.topk(min(k, logits_MV.shape[-1]), dim=-1).values[:, -1:]
    return logits_MV.masked_fill(logits_MV < kth, torch.finfo(logits_MV.dtype).min)


def keep_nucleus(logits_MV: Float[Tensor, "M V"], top_p: float) -> Float[Tensor, "M V"]:
    """Forbid all but the smallest set of best tokens that together reach probability `top_p` (Holtzman et al., 2020).

    The token that crosses `top_p` is kept, as is every token that ties with the last one kept. The best 1,024 tokens
    are sorted first, and the whole row only where they do not reach `top_p`.

    >>> logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    >>> (keep_nucleus(logits, 0.7).softmax(-1) > 0).tolist()
    [[True, True, False]]
    """
    total = logits_MV.logsumexp(-1, keepdim=True)
    some = logits_MV.topk(min(_NUCLEUS_CANDIDATES, logits_MV.shape[-1]), dim=-1).values
    cutoff = _cutoff(some, total, top_p)
    is_short = (some - total).exp().sum(-1) < top_p
    if some.shape[-1] < logits_MV.shape[-1] and bool(is_short.any()):
        cutoff[is_short] = _cutoff(logits_MV[is_short].sort(-1, descending=True).values, total[is_short], top_p)
    return logits_MV.masked_fill(logits_MV < cutoff, torch.finfo(logits_MV.dtype).min)


def _cutoff(falling_MK: Float[Tensor, "M K"], total_M1: Float[Tensor, "M 1"], top_p: float) -> Float[Tensor, "M 1"]:
    """The score of the last token inside the nucleus; NaN for a row that holds NaN."""
    mass_before = (falling_MK - total_M1).exp().cumsum(-1) - (falling_MK - total_M1).exp()
    last = (mass_before < top_p).sum(-1, keepdim=True).clamp_(min=1) - 1
    return falling_MK.gather(-1, last)


def shape_logits(
    logits_MV: Float[Tensor, "M V"], *, temperature: float, top_p: float | None, top_k: int | None
) -> Float[Tensor, "M V"]:
    """Temperature, then nucleus, then top-k; temperature 0 leaves the scores untempered."""
    if temperature > 0 and temperature != 1:
        logits_MV = logits_MV / temperature
    if top_p is not None and top_p < 1:
        logits_MV = keep_nucleus(logits_MV, top_p)
    if top_k is not None:
        logits_MV = keep_top_k(logits_MV, top_k)
    return logits_MV


def draw(logp_MV: Float[Tensor, "M V"], uniform_M: Float[Tensor, " M"]) -> Int[Tensor, " M"]:
    """One token per row by inverting the cumulative distribution at a uniform number in [0, 1).

    One number per row, whatever V is, so a position's draw depends on its own number alone. The sum runs in float64:
    in float32 the last of 150,000 terms would fall below its rounding.
    """
    cumulative = logp_MV.exp().cumsum(-1, dtype=torch.float64)
    target = uniform_M.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_(max=logp_MV.shape[-1] - 1)
