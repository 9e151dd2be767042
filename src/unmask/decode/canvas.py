"""The canvas: a batch of rows being filled.

Letters: B rows, L columns. Rows may have different lengths: each occupies the columns start … end-1, the rest is
padding that nobody sees. A row's *position* is its column less its start, so it does not depend on the batch. Rows are
placed as far right as they go (left padding), starting at a multiple of `align`, which keeps the block boundaries of a
block-attention model on the same columns in every row.

The canvas lives on the CPU; a denoiser takes what it needs to its device. Fixed positions (the prompt, given text,
padding) are never changed by `commit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.errors import CanvasError


@dataclass(frozen=True, slots=True)
class Positions:
    """Chosen places on a canvas, sorted by row and then by column."""

    rows_M: Int[Tensor, " M"]
    columns_M: Int[Tensor, " M"]

    def __len__(self) -> int:
        return len(self.rows_M)

    def where(self, keep_M: Bool[Tensor, " M"]) -> "Positions":
        """The places for which `keep_M` is true."""
        return Positions(self.rows_M[keep_M], self.columns_M[keep_M])


@dataclass(slots=True, kw_only=True)
class Canvas:
    """A batch of rows: ids, what is masked, what is fixed, and in which step each position was committed (-1: given or
    still masked)."""

    ids_BL: Int[Tensor, "B L"]
    is_masked_BL: Bool[Tensor, "B L"]
    is_fixed_BL: Bool[Tensor, "B L"]
    committed_at_BL: Int[Tensor, "B L"]
    start_B: Int[Tensor, " B"]
    end_B: Int[Tensor, " B"]
    stop_B: Int[Tensor, " B"]
    """Columns from which on nothing matters any more; the row's end, until a stop string is found before it."""

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Sequence[int | None]],
        *,
        mask_id: int | None,
        align: int = 1,
        committed_at: Sequence[Sequence[int | None]] | None = None,
    ) -> "Canvas":
        """A canvas of rows in which None is masked.

        `mask_id` is what a masked position holds in `ids_BL`; it may be None for a causal model, which never reads one.
        `committed_at` marks tokens that an earlier run committed (a step) rather than the caller gave (None).

        >>> Canvas.from_rows([[5, None], [1, 2, None]], mask_id=9).ids_BL.tolist()
        [[0, 5, 9], [1, 2, 9]]
        """
        if not rows or not all(len(row) for row in rows):
            raise CanvasError("a canvas needs at least one row, and each row at least one position")
        width = -(-max(len(row) for row in rows) // align) * align
        shape = (len(rows), width)
        canvas = cls(
            ids_BL=torch.zeros(shape, dtype=torch.long),
            is_masked_BL=torch.zeros(shape, dtype=torch.bool),
            is_fixed_BL=torch.ones(shape, dtype=torch.bool),
            committed_at_BL=torch.full(shape, -1),
            start_B=torch.tensor([(width - len(row)) // align * align for row in rows]),
            end_B=torch.zeros(len(rows), dtype=torch.long),
            stop_B=torch.zeros(len(rows), dtype=torch.long),
        )
        canvas.end_B = canvas.start_B + torch.tensor([len(row) for row in rows])
        canvas.stop_B = canvas.end_B.clone()
        for number, row in enumerate(rows):
            here = slice(int(canvas.start_B[number]), int(canvas.end_B[number]))
            is_masked = torch.tensor([token is None for token in row])
            canvas.ids_BL[number, here] = torch.tensor([(mask_id or 0) if token is None else token for token in row])
            canvas.is_masked_BL[number, here] = is_masked
            steps = torch.tensor([-1 if at is None else at for at in committed_at[number]] if committed_at else -1)
            canvas.committed_at_BL[number, here] = steps
            canvas.is_fixed_BL[number, here] = ~is_masked & (steps < 0)
        return canvas

    @property
    def num_rows(self) -> int:
        return self.ids_BL.shape[0]

    @property
    def width(self) -> int:
        return self.ids_BL.shape[1]

    def positions_BL(self) -> Int[Tensor, "B L"]:
        """Each column's position in its row; negative for padding on the left, -1 for padding on the right."""
        columns = torch.arange(self.width)[None]
        return torch.where(columns < self.end_B[:, None], columns - self.start_B[:, None], -1)

    def masked(self) -> Positions:
        """All masked places."""
        return Positions(*self.is_masked_BL.nonzero(as_tuple=True))

    def commit(self, places: Positions, token_M: Int[Tensor, " M"], *, step: int) -> None:
        """Make positions final. They must be masked."""
        assert bool(self.is_masked_BL[places.rows_M, places.columns_M].all()), "only masked positions are committed"
        self.ids_BL[places.rows_M, places.columns_M] = token_M
        self.is_masked_BL[places.rows_M, places.columns_M] = False
        self.committed_at_BL[places.rows_M, places.columns_M] = step

    def row_ids(self, row: int) -> list[int | None]:
        """One row without padding; None is masked."""
        here = slice(int(self.start_B[row]), int(self.end_B[row]))
        return [
            None if is_masked else token
            for token, is_masked in zip(
                self.ids_BL[row, here].tolist(), self.is_masked_BL[row, here].tolist(), strict=True
            )
        ]
