"""When a row is done.

A row's answer ends at its first end token, once every position before it is settled; what would come behind is neither
decoded nor part of the text. A row without an end token is done when nothing in it is masked, or when its settled
beginning holds a stop string (`StopFinder`): the text behind that would be cut off afterwards in any case.
"""

from collections.abc import Callable, Collection, Sequence

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
    return torch.where(is_end_BL.any(-1), first_B, canvas.end_B).minimum(canvas.stop_B)


def open_places_BL(canvas: Canvas, end_B: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
    """Masked positions that still matter: those before the row's answer end."""
    return canvas.is_masked_BL & (torch.arange(canvas.width)[None] < end_B[:, None])


class StopFinder:
    """Watches the settled beginnings of answers for stop strings.

    A row is stopped behind the first token that completes a string, so everything that a cut at the string would keep
    has settled already, and settled tokens never change: the cut text is what it would have been, and the end is the
    same however many tokens a step settles. Only the last tokens are looked at again when more have settled.
    """

    _TOKENS_BEFORE = 32
    """Settled tokens that are read again, so that a string across two looks is seen."""

    def __init__(self, canvas: Canvas, strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._strings = tuple(strings)
        self._decode = decode
        is_answer_BL = ~canvas.is_fixed_BL
        self._first_B = torch.where(is_answer_BL.any(-1), is_answer_BL.int().argmax(-1), canvas.end_B).tolist()
        self._seen_B = list(self._first_B)

    def look(self, canvas: Canvas) -> None:
        """Set `canvas.stop_B` of the rows whose settled beginning holds a stop string."""
        is_masked_BL = canvas.is_masked_BL
        settled_B = torch.where(is_masked_BL.any(-1), is_masked_BL.int().argmax(-1), canvas.end_B).tolist()
        for row, settled in enumerate(settled_B):
            if settled <= self._seen_B[row] or int(canvas.stop_B[row]) < int(canvas.end_B[row]):
                continue
            begin = max(self._first_B[row], self._seen_B[row] - self._TOKENS_BEFORE)
            ids = canvas.ids_BL[row, begin:settled].tolist()
            seen, self._seen_B[row] = self._seen_B[row], settled
            if self._has_stop(ids):
                canvas.stop_B[row] = next(
                    stop for stop in range(seen + 1, settled + 1) if self._has_stop(ids[: stop - begin])
                )

    def _has_stop(self, ids: Sequence[int]) -> bool:
        text = self._decode(ids)
        return any(string in text for string in self._strings)
