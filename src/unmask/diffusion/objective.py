"""What a loss is a mean of: a weight per masked token, and what the sum is divided by.

    loss = Σ weight · NLL / Σ denominator        both sums over all ranks and accumulation steps

Dividing by a sum over the whole batch, rather than averaging the averages of micro-batches, is what makes the loss the
same however the batch is shared out. The weights:

    elbo   1/t and its like, from the corruption: the weight of the bound.
    cart   by visible tokens nearby, whatever t is (Dream, 2508.15487): w(n) = ½ Σ p(1-p)^(|n-i|-1) over the visible
           tokens i of n's document. A document that is masked whole weighs nothing.
    none   1.

and the normalisers, whose quotients are, with `elbo`:

    token     ÷ maskable tokens: the bound, per token.
    sequence  each document ÷ its own maskable tokens, then ÷ documents: the mean over documents of the bound per token
              (LLaDA's fine-tuning). With exact-k masks it is the mean NLL of each document's masked tokens.
    pooled    ÷ masked tokens. DiffuLLaMA's released code (2410.17891): about twice the bound on a large batch, and on a
              small one a quotient of two random numbers. With `none`, the mean NLL of what is masked, which weighs high
              noise more.

So `elbo` with `token` is the bound and `elbo` with `sequence` is it for documents drawn one by one; the other seven are
heuristics. With corruption `block` none is the bound (see `corrupt`).

Letters: B batch, L length.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.diffusion.corrupt import Corrupted
from unmask.diffusion.documents import segment_sums
from unmask.diffusion.settings import Objective

_CART_TAIL = 1e-7
"""Share of the geometric weights that is left out: less than the rounding of float32."""


def loss_weights(
    objective: Objective,
    corrupted: Corrupted,
    is_maskable_BL: Bool[Tensor, "B L"],
    document_BL: Int[Tensor, "B L"],
    end_weight_BL: Float[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L"]:
    """What each token's NLL is multiplied with, float32; 0 where nothing is masked."""
    weight_BL = _weights(objective, corrupted, document_BL).double()
    if end_weight_BL is not None:
        weight_BL = weight_BL * end_weight_BL
    if objective.normaliser == "sequence":
        segment_BL = document_BL.clamp(min=0).long()
        counted_BL = _counted(is_maskable_BL & (document_BL >= 0), end_weight_BL)
        size_BL = segment_sums(counted_BL, segment_BL).gather(1, segment_BL)
        weight_BL = weight_BL / size_BL.where(size_BL > 0, 1)
    return weight_BL.float()


def denominator(
    objective: Objective,
    corrupted: Corrupted,
    is_maskable_BL: Bool[Tensor, "B L"],
    document_BL: Int[Tensor, "B L"],
    end_weight_BL: Float[Tensor, "B L"] | None = None,
) -> Float[Tensor, ""]:
    """What these rows add to the loss's denominator, float64. End tokens count as much as they weigh."""
    is_maskable_BL = is_maskable_BL & (document_BL >= 0)
    if objective.normaliser == "sequence":
        return (segment_sums(is_maskable_BL, document_BL.clamp(min=0).long()) > 0).sum().double()
    return _counted(corrupted.is_masked_BL if objective.normaliser == "pooled" else is_maskable_BL, end_weight_BL).sum()


def place_end_weights(
    is_end_BL: Bool[Tensor, "B L"], document_BL: Int[Tensor, "B L"], *, count: int
) -> Float[Tensor, "B L"]:
    """1 on ordinary tokens; a document's E end tokens weigh min(1, count/E) each.

    A run of end tokens counts as much as `count` tokens, however long it is, so that an answer's padding does not
    drown the answer.

    >>> is_end = torch.tensor([[False, True, True, True, True]])
    >>> place_end_weights(is_end, torch.zeros(1, 5, dtype=torch.long), count=2).tolist()
    [[1.0, 0.5, 0.5, 0.5, 0.5]]
    """
    segment_BL = document_BL.clamp(min=0).long()
    is_end_BL = is_end_BL & (document_BL >= 0)
    ends_BL = segment_sums(is_end_BL, segment_BL).gather(1, segment_BL)
    return torch.where(is_end_BL, (count / ends_BL.clamp(min=1)).clamp(max=1), 1).float()


def cart_weights(
    is_masked_BL: Bool[Tensor, "B L"], document_BL: Int[Tensor, "B L"], *, p: float
) -> Float[Tensor, "B L"]:
    """½ Σ p(1-p)^(|n-i|-1) over the visible tokens i of n's document at masked n, 0 elsewhere; float64.

    >>> is_masked = torch.tensor([[False, True, True, False]])
    >>> cart_weights(is_masked, torch.zeros(1, 4, dtype=torch.long), p=0.5).tolist()
    [[0.0, 0.375, 0.375, 0.0]]
    """
    is_visible_BL = ~is_masked_BL & (document_BL >= 0)
    weight_BL = torch.zeros(is_masked_BL.shape, dtype=torch.float64, device=is_masked_BL.device)
    reach = min(is_masked_BL.shape[1] - 1, math.ceil(math.log(_CART_TAIL) / math.log1p(-p)))
    # A loop over distances, some fifty for p = 0.3: a product with an L x L matrix would take more time and memory.
    for distance in range(1, reach + 1):
        share = p * (1 - p) ** (distance - 1) / 2
        is_same_BL = document_BL[:, distance:] == document_BL[:, :-distance]
        weight_BL[:, distance:] += share * (is_visible_BL[:, :-distance] & is_same_BL)
        weight_BL[:, :-distance] += share * (is_visible_BL[:, distance:] & is_same_BL)
    return weight_BL * is_masked_BL


def _weights(objective: Objective, corrupted: Corrupted, document_BL: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    if objective.weight == "elbo":
        return corrupted.loss_weight_BL
    if objective.weight == "cart":
        return cart_weights(corrupted.is_masked_BL, document_BL, p=objective.cart_p)
    return corrupted.is_masked_BL.float()


def _counted(is_counted_BL: Bool[Tensor, "B L"], end_weight_BL: Float[Tensor, "B L"] | None) -> Float[Tensor, "B L"]:
    return is_counted_BL.double() if end_weight_BL is None else is_counted_BL * end_weight_BL.double()
