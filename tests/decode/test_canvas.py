"""The canvas: where rows stand, what is fixed, and what a commit changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.stop import answer_end, open_places_BL
from unmask.errors import CanvasError

MASK = 99
ROW = st.lists(st.none() | st.integers(0, 50), min_size=1, max_size=12)
ROWS = st.lists(ROW, min_size=1, max_size=5)


@given(ROWS, st.integers(1, 8))
def test_every_row_comes_back_as_it_was_laid_out(rows, align):
    canvas = Canvas.from_rows(rows, mask_id=MASK, align=align)
    assert [canvas.row_ids(row) for row in range(canvas.num_rows)] == rows


@given(ROWS, st.integers(1, 8))
def test_rows_stand_as_far_right_as_whole_blocks_allow(rows, align):
    canvas = Canvas.from_rows(rows, mask_id=MASK, align=align)
    longest = max(len(row) for row in rows)
    assert canvas.width % align == 0
    assert 0 <= canvas.width - longest < align
    for row, start, end in zip(rows, canvas.start_B.tolist(), canvas.end_B.tolist(), strict=True):
        assert end - start == len(row)
        assert start % align == 0
        assert start + align > canvas.width - len(row), "one block further right it would not fit"


@given(ROWS, st.integers(1, 8))
def test_positions_count_from_the_rows_first_token_and_are_negative_on_padding(rows, align):
    canvas = Canvas.from_rows(rows, mask_id=MASK, align=align)
    for row, positions in enumerate(canvas.positions_BL().tolist()):
        start, end = int(canvas.start_B[row]), int(canvas.end_B[row])
        assert positions[start:end] == list(range(len(rows[row])))
        assert all(position < 0 for position in positions[:start] + positions[end:])


@given(ROWS, st.integers(1, 8))
def test_what_is_none_is_masked_and_all_else_is_fixed(rows, align):
    canvas = Canvas.from_rows(rows, mask_id=MASK, align=align)
    expected = [
        (number, int(canvas.start_B[number]) + position)
        for number, row in enumerate(rows)
        for position, token in enumerate(row)
        if token is None
    ]
    masked = canvas.masked()
    assert list(zip(masked.rows_M.tolist(), masked.columns_M.tolist(), strict=True)) == expected
    assert torch.equal(canvas.is_fixed_BL, ~canvas.is_masked_BL), "padding is fixed too"
    assert bool((canvas.ids_BL[canvas.is_masked_BL] == MASK).all())
    assert bool((canvas.committed_at_BL == -1).all())


@given(ROWS.filter(lambda rows: any(None in row for row in rows)), st.integers(1, 5), st.data())
def test_a_commit_changes_its_positions_and_no_other(rows, align, data):
    canvas = Canvas.from_rows(rows, mask_id=MASK, align=align)
    before = [canvas.row_ids(row) for row in range(len(rows))]
    masked = canvas.masked()
    chosen = data.draw(st.lists(st.booleans(), min_size=len(masked), max_size=len(masked)))
    places = masked.where(torch.tensor(chosen))
    canvas.commit(places, torch.full((len(places),), 77), step=4)
    for row, column in zip(places.rows_M.tolist(), places.columns_M.tolist(), strict=True):
        before[row][column - int(canvas.start_B[row])] = 77
        assert canvas.committed_at_BL[row, column] == 4
        assert not canvas.is_fixed_BL[row, column]
    assert [canvas.row_ids(row) for row in range(len(rows))] == before
    assert int((canvas.committed_at_BL >= 0).sum()) == len(places)


@pytest.mark.parametrize("place", [0, 2])
def test_given_and_committed_positions_cannot_be_committed(place):
    canvas = Canvas.from_rows([[1, None, None]], mask_id=MASK)
    canvas.commit(Positions(torch.tensor([0]), torch.tensor([2])), torch.tensor([5]), step=0)
    with pytest.raises(AssertionError, match="only masked positions"):
        canvas.commit(Positions(torch.tensor([0]), torch.tensor([place])), torch.tensor([6]), step=1)
    assert canvas.row_ids(0) == [1, None, 5]


def test_padding_cannot_be_committed():
    canvas = Canvas.from_rows([[None, None, None], [None]], mask_id=MASK)
    with pytest.raises(AssertionError, match="only masked positions"):
        canvas.commit(Positions(torch.tensor([1]), torch.tensor([0])), torch.tensor([6]), step=1)


def test_an_interrupted_run_is_laid_out_with_its_steps():
    """Token 7 was committed in step 3, token 5 was given; the padded row stands at the right."""
    canvas = Canvas.from_rows([[5, 7, None], [5, None]], mask_id=MASK, committed_at=[[None, 3, None], [None, None]])
    assert canvas.committed_at_BL.tolist() == [[-1, 3, -1], [-1, -1, -1]]
    assert canvas.is_fixed_BL.tolist() == [[True, False, False], [True, True, False]]
    assert canvas.is_masked_BL.tolist() == [[False, False, True], [False, False, True]]


def test_a_causal_model_needs_no_mask_id():
    assert Canvas.from_rows([[4, None]], mask_id=None).ids_BL.tolist() == [[4, 0]]


@pytest.mark.parametrize("rows", [[], [[]], [[1, None], []]])
def test_a_canvas_without_rows_or_positions_is_refused(rows):
    with pytest.raises(CanvasError, match="needs at least one row, and each row at least one position"):
        Canvas.from_rows(rows, mask_id=MASK)


class TestAnswerEnd:
    def canvas(self, rows, committed):
        """A canvas with tokens committed at (row, position)."""
        canvas = Canvas.from_rows(rows, mask_id=MASK)
        for (row, position), token in committed.items():
            place = Positions(torch.tensor([row]), canvas.start_B[row : row + 1] + position)
            canvas.commit(place, torch.tensor([token]), step=0)
        return canvas

    def test_is_the_first_committed_end_token_whichever_of_several_it_is(self):
        canvas = self.canvas([[1, None, None, None, None]], {(0, 4): 2, (0, 2): 3, (0, 1): 7})
        assert answer_end(canvas, [2, 3]).tolist() == [2]
        assert answer_end(canvas, [2]).tolist() == [4]

    def test_is_the_rows_end_where_there_is_none(self):
        canvas = self.canvas([[1, None, None], [1, None]], {(0, 1): 7})
        assert answer_end(canvas, [2]).tolist() == canvas.end_B.tolist()
        assert answer_end(canvas, []).tolist() == canvas.end_B.tolist()

    def test_leaves_out_given_tokens_padding_and_masks(self):
        """An end token in the prompt, padding of id 0, and a mask id that is an end id too."""
        canvas = self.canvas([[2, None, 2, None], [2, None]], {})
        assert answer_end(canvas, [2, 0, MASK]).tolist() == canvas.end_B.tolist()

    def test_closes_what_lies_behind_it(self):
        canvas = self.canvas([[1, None, None, None], [None, None, None, None]], {(0, 2): 2})
        is_open_BL = open_places_BL(canvas, answer_end(canvas, [2]))
        assert is_open_BL.tolist() == [[False, True, False, False], [True] * 4]
