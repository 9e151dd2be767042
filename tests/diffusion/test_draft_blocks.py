"""Blocks of masks over answers: each token is predicted where it should be, and nobody sees what is to come."""

import pytest
import torch

from unmask.diffusion.draft_blocks import block_mask, tile_blocks
from unmask.errors import SettingsError

# Two documents in the first row, one in the second, padding behind.
ANSWER = torch.tensor(
    [
        [0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
    ]
).bool()
DOCUMENT = torch.tensor([[0] * 8 + [1] * 4 + [-1, -1], [0] * 13 + [-1]])


def tiled(block_length, stride=None, *, seed=0, first=0):
    return tile_blocks(ANSWER, DOCUMENT, torch.arange(2) + first, block_length=block_length, stride=stride, seed=seed)


def places(blocks, row):
    return [
        (int(column), int(anchor))
        for column, anchor, real in zip(
            blocks.column_BN[row], blocks.anchor_BN[row], blocks.is_real_BN[row], strict=True
        )
        if real
    ]


@pytest.mark.parametrize("block_length", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_every_place_predicts_a_token_of_its_answer_and_follows_its_block(block_length, seed):
    blocks = tiled(block_length, seed=seed)
    for row in range(2):
        found = places(blocks, row)
        assert len({column for column, _ in found}) == len(found)
        for column, anchor in found:
            assert ANSWER[row, column]
            assert ANSWER[row, column + 1]
            assert DOCUMENT[row, anchor] == DOCUMENT[row, column] == DOCUMENT[row, column + 1]
            assert 1 <= column - anchor <= block_length
            between = [(c, anchor) for c in range(anchor + 1, column)]
            assert set(between) <= set(found)  # the masks before it in its block


def test_over_many_rows_each_token_is_predicted_at_each_distance():
    seen = set()
    for first in range(0, 60, 2):
        blocks = tiled(3, first=first)
        seen |= {(column, column - anchor) for column, anchor in places(blocks, 1)}
    assert {(column, d) for column in range(3, 12) for d in (1, 2, 3)} <= seen


def test_a_wider_stride_leaves_columns_out():
    blocks = tiled(2, 4)
    assert 0 < int(blocks.is_real_BN.sum()) < int(tiled(2).is_real_BN.sum())
    with pytest.raises(SettingsError, match="over each other"):
        tiled(4, 2)


def test_the_mask_by_hand():
    blocks = tiled(3, seed=2)
    mask = block_mask(blocks, DOCUMENT)
    B, N = blocks.column_BN.shape
    L = DOCUMENT.shape[1]
    assert mask.shape == (B, 1, N, L + N)
    for row in range(B):
        for n in range(N):
            if not blocks.is_real_BN[row, n]:
                assert mask[row, 0, n].nonzero().flatten().tolist() == [L + n]
                continue
            anchor, column = int(blocks.anchor_BN[row, n]), int(blocks.column_BN[row, n])
            clean = [c for c in range(anchor + 1) if DOCUMENT[row, c] == DOCUMENT[row, column]]
            own = [m for m in range(N) if blocks.is_real_BN[row, m] and int(blocks.anchor_BN[row, m]) == anchor]
            assert mask[row, 0, n].nonzero().flatten().tolist() == [*clean, *(L + m for m in own)]


def revealed(share, *, block_length=4, seed=0, first=0, rows=2):
    return tile_blocks(
        ANSWER[:rows], DOCUMENT[:rows], torch.arange(rows) + first, block_length=block_length, revealed=share, seed=seed
    )


def grouped(blocks, row):
    """The blocks of a row by their anchors: columns, and those of them that show their token."""
    found = {}
    for n in range(blocks.column_BN.shape[1]):
        if blocks.is_real_BN[row, n]:
            columns, shown = found.setdefault(int(blocks.anchor_BN[row, n]), ([], []))
            columns.append(int(blocks.column_BN[row, n]))
            shown += [int(blocks.column_BN[row, n])] if blocks.is_shown_BN[row, n] else []
        else:
            assert not blocks.is_shown_BN[row, n]
    return list(found.values())


def test_nothing_is_shown_unless_it_is_asked_for():
    plain = tiled(4)
    assert not plain.is_shown_BN.any()
    assert torch.equal(plain.is_asked_BN(), plain.is_real_BN)
    assert bool(plain.is_closed_BN().all())
    shown = revealed(0.99)
    for name in ("column_BN", "anchor_BN", "is_real_BN"):
        assert torch.equal(getattr(plain, name), getattr(shown, name))


@pytest.mark.parametrize("block_length", [1, 2, 3, 4])
def test_a_block_shows_some_of_its_tokens_and_asks_for_those_it_does_not_show(block_length):
    for seed in range(20):
        blocks = revealed(0.5, block_length=block_length, seed=seed)
        asked, closed = blocks.is_asked_BN(), blocks.is_closed_BN()
        for row in range(2):
            by_column = {
                int(column): n for n, column in enumerate(blocks.column_BN[row]) if bool(blocks.is_real_BN[row, n])
            }
            for columns, shown in grouped(blocks, row):
                assert len(shown) < len(columns)
                for column in columns:
                    assert bool(asked[row, by_column[column]]) == (column + 1 not in shown)
                    assert bool(closed[row, by_column[column]]) == (not shown)


def test_how_many_tokens_are_shown_and_which_is_drawn_evenly():
    counts, places, blocks_of_four, opened = [0] * 5, [0] * 4, 0, 0
    for first in range(0, 4000, 2):
        for row in range(2):
            for columns, shown in grouped(revealed(0.25, first=first), row):
                if len(columns) == 4:
                    blocks_of_four += 1
                    opened += bool(shown)
                    counts[len(shown)] += 1
                    for column in shown:
                        places[column - columns[0]] += 1
    assert opened / blocks_of_four == pytest.approx(0.25, abs=0.02)
    assert counts[4] == 0
    for count in counts[1:4]:
        assert count / opened == pytest.approx(1 / 3, abs=0.05)
    for count in places:
        assert count / sum(places) == pytest.approx(1 / 4, abs=0.03)


def test_what_a_row_shows_does_not_depend_on_its_neighbours():
    both = revealed(0.5, first=6)
    second = tile_blocks(ANSWER[1:], DOCUMENT[1:], torch.tensor([7]), block_length=4, revealed=0.5, seed=0)
    assert grouped(both, 1) == grouped(second, 0)


def test_rows_do_not_depend_on_their_neighbours():
    both, second = tiled(3), tile_blocks(ANSWER[1:], DOCUMENT[1:], torch.tensor([1]), block_length=3, seed=0)
    assert places(both, 1) == places(second, 0)
