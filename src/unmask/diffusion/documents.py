"""Packed rows: several documents side by side, each a world of its own.

`document_BL` numbers the documents of a row 0, 1, 2, … from left to right; padding is -1 and comes last.

Letters: B batch, L length, S segments (documents or blocks) of a row.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def document_positions(document_BL: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Positions counted from each document's first token, as the rotary embedding and the blocks want them.

    >>> document_positions(torch.tensor([[0, 0, 0, 1, 1, -1]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    column_L = torch.arange(document_BL.shape[1], device=document_BL.device)
    is_first_BL = torch.ones_like(document_BL, dtype=torch.bool)
    is_first_BL[:, 1:] = document_BL[:, 1:] != document_BL[:, :-1]
    return column_L - (column_L * is_first_BL).cummax(1).values


def segment_sums(
    value_BL: Float[Tensor, "B L"] | Bool[Tensor, "B L"], segment_BL: Int[Tensor, "B L"]
) -> Float[Tensor, "B S"]:
    """Sums over the positions of each segment, in float64; segments are numbered from 0 in every row.

    >>> segment_sums(torch.tensor([[True, True, False, True]]), torch.tensor([[0, 0, 1, 2]])).tolist()
    [[2.0, 0.0, 1.0]]
    """
    num_segments = int(segment_BL.max()) + 1 if segment_BL.numel() else 0
    sums_BS = torch.zeros(len(segment_BL), num_segments, dtype=torch.float64, device=value_BL.device)
    return sums_BS.scatter_add_(1, segment_BL.long(), value_BL.double())
