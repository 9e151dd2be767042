"""Positions and sums in packed rows, against a loop over the tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.diffusion.documents import document_positions, segment_sums


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=3),
    values=st.lists(st.floats(-3, 3, width=32), min_size=25, max_size=25),
)
def test_positions_restart_and_sums_stay_in_each_document(rows: list[list[int]], values: list[float]) -> None:
    width = max(sum(lengths) for lengths in rows) + 1
    table = [[d for d, length in enumerate(lengths) for _ in range(length)] for lengths in rows]
    document_BL = torch.tensor([row + [-1] * (width - len(row)) for row in table])
    value_BL = torch.tensor(values)[: len(rows) * width].repeat(3)[: len(rows) * width].view(len(rows), width)
    positions = document_positions(document_BL)
    sums = segment_sums(value_BL, document_BL + 1)
    for b in range(len(rows)):
        for column, d in enumerate(document_BL[b].tolist()):
            assert int(positions[b, column]) == column - document_BL[b].tolist().index(d)
        for d in range(-1, int(document_BL.max()) + 1):
            expected = sum(
                value for value, other in zip(value_BL[b].tolist(), document_BL[b].tolist(), strict=True) if other == d
            )
            assert abs(float(sums[b, d + 1]) - expected) < 1e-9
