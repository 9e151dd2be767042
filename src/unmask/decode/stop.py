"""When a row is done.

A row's answer ends at its first end token, once every position before it is settled; what would come behind is neither
decoded nor part of the text. A row without an end token is done when nothing in it is masked.
"""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.decode.canvas import Canvas


def answer_end(canvas: Canvas, end_ids: Collection[int]) -> Int[Tensor, " B"]:
    """Per row, the column of the first committed end token, or the row's end where there is none.

    Only positions that a run committed count: an end token inside a prompt ends nothing.
    """
    is_end_BL = torch.isin(canvas.ids_BL, torch.tensor(sorted(end_ids), dtype=torch.long))
    is_end_BL &= ~canvas.is_masked_BL & ~canvas.is_fixed_BL
    first_B = is_end_BL.int().argmax(-1)
    return torch.where(is_end_BL.any(-1), first_B, canvas.end_B)


def open_places_BL(canvas: Canvas, end_B: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
    """Masked positions that still matter: those before the row's answer end."""
    return canvas.is_masked_BL & (torch.arange(canvas.width)[None] < end_B[:, None])
