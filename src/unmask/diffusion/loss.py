"""The negative log-likelihood of tokens, without ever holding their logits.

At 150,000 words the logits of a batch outweigh the network. The projection onto the vocabulary and the cross-entropy
are therefore computed together, a slice of the vocabulary at a time: the forward pass keeps one normaliser per token,
and the backward pass recomputes each slice of logits. Slices of the vocabulary rather than of the tokens, because then
each slice of the head's gradient is one product, written once, and what is summed up over slices is no larger than the
hidden states.

The forbidden id (the mask token) gets probability 0 and no gradient: a masked position is a word, never a mask.

Letters: M tokens, D width, V vocabulary, C words of a slice.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unmask.errors import SettingsError

Implementation = Literal["auto", "fused", "loop"]

CHUNK = 2048
"""Words per slice. On a CPU, wider slices are slower as well as larger."""


def linear_cross_entropy(
    hidden_MD: Float[Tensor, "M D"],
    head_VD: Float[Tensor, "V D"],
    target_M: Int[Tensor, " M"],
    *,
    forbidden_id: int | None,
    chunk: int = CHUNK,
    implementation: Implementation = "auto",
) -> Float[Tensor, " M"]:
    """-log softmax(hidden · headᵀ)[target] of each token, in float32.

    `chunk` words of the vocabulary are scored at a time, so M · chunk logits exist. The products run in the dtype of
    autocast where it is on, else in that of the hidden states; everything behind them is float32, and so is the head's
    gradient for a float32 head. A target that is the forbidden id has an infinite loss. No targets give an empty result
    that still back-propagates zeros.

    `fused` is PyTorch's own (2.13 and later), whose values are rounded to the dtype of the products; `auto` is `loop`,
    which a CPU runs faster and in less memory (`docs/log.md`).

    >>> hidden, head = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    >>> round(float(linear_cross_entropy(hidden, head, torch.tensor([0]), forbidden_id=2)), 4)
    0.6931
    """
    if chunk < 1:
        raise SettingsError(f"chunk={chunk} holds no word; it must be at least 1, and {CHUNK} is usual")
    device = hidden_MD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_MD.dtype
    if implementation == "fused" and len(target_M):
        return _fused(hidden_MD.to(dtype), head_VD.to(dtype), target_M, forbidden_id, chunk)
    nll_M: Tensor = _SlicedCrossEntropy.apply(hidden_MD, head_VD, target_M, forbidden_id, chunk, dtype)  # type: ignore[no-untyped-call]
    return nll_M


class _SlicedCrossEntropy(torch.autograd.Function):
    """The loss over slices of the vocabulary, each slice of logits computed once in each direction."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        head_VD: Tensor,
        target_M: Tensor,
        forbidden_id: int | None,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.forbidden_id, ctx.width, ctx.dtype = forbidden_id, chunk, dtype
        total_M = torch.full(target_M.shape, -torch.inf, device=hidden_MD.device)
        chosen_M = torch.zeros_like(total_M)
        cast_MD = hidden_MD.to(dtype)
        for start in range(0, len(head_VD), ctx.width):
            logits_MC = _logits(cast_MD, head_VD, start, ctx)
            total_M = torch.logaddexp(total_M, logits_MC.logsumexp(1))
            place_M, is_here_M = _place(target_M, start, logits_MC)
            chosen_M = torch.where(is_here_M, logits_MC.gather(1, place_M[:, None])[:, 0], chosen_M)
        ctx.save_for_backward(hidden_MD, head_VD, target_M, total_M)
        return total_M - chosen_M

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, head_VD, target_M, total_M = ctx.saved_tensors
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        grad_MD = torch.zeros_like(hidden_MD, dtype=torch.float32) if needs_hidden else None
        grad_VD = torch.empty_like(head_VD) if needs_head else None
        cast_MD = hidden_MD.to(ctx.dtype)
        for start in range(0, len(head_VD), ctx.width):
            logits_MC = _logits(cast_MD, head_VD, start, ctx)
            slope_MC = logits_MC.sub_(total_M[:, None]).exp_()
            place_M, is_here_M = _place(target_M, start, slope_MC)
            slope_MC.scatter_add_(1, place_M[:, None], -is_here_M.to(slope_MC.dtype)[:, None])
            slope_MC = slope_MC.mul_(grad_M[:, None]).to(ctx.dtype)
            head_CD = head_VD[start : start + ctx.width].to(ctx.dtype)
            if grad_MD is not None:
                grad_MD += slope_MC @ head_CD
            if grad_VD is not None:
                grad_VD[start : start + ctx.width] = slope_MC.T @ cast_MD
        return (None if grad_MD is None else grad_MD.to(hidden_MD.dtype)), grad_VD, None, None, None, None


def _logits(hidden_MD: Tensor, head_VD: Tensor, start: int, ctx: Any) -> Tensor:
    """The float32 logits of one slice of the vocabulary."""
    logits_MC = (hidden_MD @ head_VD[start : start + ctx.width].to(ctx.dtype).T).float()
    if ctx.forbidden_id is not None and start <= ctx.forbidden_id < start + ctx.width:
        logits_MC[:, ctx.forbidden_id - start] = -torch.inf
    return logits_MC


def _place(target_M: Tensor, start: int, logits_MC: Tensor) -> tuple[Tensor, Tensor]:
    """The targets' columns in this slice (0 where they have none), and which of them it holds."""
    is_here_M = (target_M >= start) & (target_M < start + logits_MC.shape[1])
    return torch.where(is_here_M, target_M - start, 0), is_here_M


def _fused(
    hidden_MD: Tensor, head_VD: Tensor, target_M: Tensor, forbidden_id: int | None, chunk: int
) -> Float[Tensor, " M"]:
    """PyTorch's chunked loss; the forbidden column is closed by a bias."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise SettingsError(
            f"implementation='fused' needs torch 2.13 or later, and this is {torch.__version__}; leave it at 'auto'"
        )
    options = torch.nn.LinearCrossEntropyOptions(
        chunking_method=None, batch_chunk_size=max(1, len(target_M) * chunk // len(head_VD))
    )
    bias_V = None
    if forbidden_id is not None:
        bias_V = torch.zeros(len(head_VD), dtype=head_VD.dtype, device=head_VD.device)
        bias_V[forbidden_id] = torch.finfo(head_VD.dtype).min
    return F.linear_cross_entropy(
        hidden_MD, head_VD, target_M, linear_bias=bias_V, reduction="none", options=options
    ).float()
