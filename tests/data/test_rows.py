"""Rows: each position is the token it should be, in the document it should be in, maskable or not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.rows import PADDING, Mixture, PackedRows, Row, RowSource, WindowRows
from unmask.data.shards import Shards, ShardWriter
from unmask.errors import DataError, SettingsError

PAD = 99
Pair = tuple[list[int], int]


def shards_of(folder: Path, pairs: Sequence[Pair]) -> Shards:
    with ShardWriter(folder / "s", vocab_size=100, tokenizer="t") as writer:
        for ids, prompt_length in pairs:
            writer.add(ids, prompt_length=prompt_length)
    return Shards.open(folder / "s")


def lists(row: Row) -> dict[str, list[Any]]:
    return {
        "ids": row.ids.tolist(),
        "document": row.document.tolist(),
        "is_maskable": row.is_maskable.astype(int).tolist(),
        "is_end": row.is_end.astype(int).tolist(),
    }


documents = st.lists(st.lists(st.integers(0, 98), min_size=1, max_size=12), min_size=1, max_size=12)


# Windows


def test_a_cut_document_goes_on_as_one_of_its_own(tmp_path: Path) -> None:
    rows = WindowRows(shards_of(tmp_path, [([1, 2, 3], 0), ([4, 5, 6, 7], 2)]), 5, pad_id=PAD)
    assert rows.num_rows == 2
    assert lists(rows.row(0)) == {
        "ids": [1, 2, 3, 4, 5],
        "document": [0, 0, 0, 1, 1],
        "is_maskable": [0, 1, 1, 0, 1],
        "is_end": [0, 0, 0, 0, 0],
    }
    assert lists(rows.row(1)) == {
        "ids": [6, 7, PAD, PAD, PAD],
        "document": [0, 0, PADDING, PADDING, PADDING],
        "is_maskable": [0, 1, 0, 0, 0],
        "is_end": [0, 0, 0, 0, 0],
    }


@settings(max_examples=25, deadline=None)
@given(texts=documents, length=st.integers(2, 20))
def test_windows_agree_with_the_slow_way(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], length: int
) -> None:
    rows = WindowRows(shards_of(tmp_path_factory.mktemp("x"), [(ids, 0) for ids in texts]), length, pad_id=PAD)
    stream = [(token, number) for number, ids in enumerate(texts) for token in ids]
    assert rows.num_rows == -(-len(stream) // length)
    for i in range(rows.num_rows):
        window = stream[i * length : (i + 1) * length]
        row = rows.row(i)
        for at in range(length):
            if at >= len(window):
                assert (row.ids[at], row.document[at], row.is_maskable[at]) == (PAD, PADDING, False)
                continue
            token, number = window[at]
            is_first = at == 0 or window[at - 1][1] != number
            assert (row.ids[at], row.document[at]) == (token, number - window[0][1])
            assert row.is_maskable[at] == (not is_first)


# Packing


def test_a_prompt_is_never_maskable_and_end_tokens_are(tmp_path: Path) -> None:
    rows = PackedRows(shards_of(tmp_path, [([1, 2, 3, 4], 2), ([5, 6], 0)]), 10, pad_id=PAD, end_tokens=1)
    assert rows.num_rows == 1
    assert lists(rows.row(0)) == {
        "ids": [1, 2, 3, 4, PAD, 5, 6, PAD, PAD, PAD],
        "document": [0, 0, 0, 0, 0, 1, 1, 1, PADDING, PADDING],
        "is_maskable": [0, 0, 1, 1, 1, 0, 1, 1, 0, 0],
        "is_end": [0, 0, 0, 0, 1, 0, 0, 1, 0, 0],
    }


@settings(max_examples=25, deadline=None)
@given(
    texts=documents,
    length=st.integers(8, 24),
    end_tokens=st.integers(0, 3),
    canvas=st.none() | st.tuples(st.integers(1, 8), st.integers(8, 16)),
    seed=st.integers(0, 3),
)
def test_every_document_that_fits_is_whole_in_one_row_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[list[int]],
    length: int,
    end_tokens: int,
    canvas: tuple[int, int] | None,
    seed: int,
) -> None:
    pairs = [(ids, len(ids) // 2) for ids in texts]
    fitting = [(ids, prompt) for ids, prompt in pairs if len(ids) + end_tokens <= length]
    shards = shards_of(tmp_path_factory.mktemp("x"), pairs)
    options: dict[str, Any] = {"pad_id": PAD, "end_tokens": end_tokens, "canvas": canvas, "seed": seed}
    if not fitting:
        with pytest.raises(DataError, match=f"none of the {len(pairs)} documents of .* fits into rows of {length}"):
            PackedRows(shards, length, **options, on_long="drop")
        return
    rows = PackedRows(shards, length, **options, on_long="drop")
    assert rows.num_dropped == len(pairs) - len(fitting)
    found = []
    for i in range(rows.num_rows):
        row = rows.row(i)
        assert len(row.ids) == length
        assert not (row.is_maskable & (row.document == PADDING)).any()
        for number in range(row.document.max() + 1):
            part = row.document == number
            ids, ends = row.ids[part & ~row.is_end].tolist(), int((part & row.is_end).sum())
            prompt = len(ids) // 2
            assert row.is_maskable[part].tolist() == [at >= max(1, prompt) for at in range(part.sum())]
            assert (row.ids[part & row.is_end] == PAD).all()
            answer = len(ids) - prompt + ends
            assert ends >= end_tokens
            if canvas is None:
                assert ends == end_tokens
            elif ends > end_tokens:
                assert answer <= canvas[1]
                assert answer >= canvas[0] or prompt + answer == length
            found.append((ids, prompt))
    assert found == fitting


def test_canvas_lengths_are_drawn_evenly_between_their_bounds(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [([1, 2, 3, 4], 2)] * 2000)
    rows = PackedRows(shards, 20, pad_id=PAD, end_tokens=1, canvas=(5, 9), seed=1)
    lengths: Counter[int] = Counter()
    for i in range(rows.num_rows):
        row = rows.row(i)
        lengths.update((np.bincount(row.document[row.document >= 0]) - 2).tolist())
    assert set(lengths) == {5, 6, 7, 8, 9}
    assert all(abs(count - 400) < 5 * 18 for count in lengths.values())
    again = PackedRows(shards, 20, pad_id=PAD, end_tokens=1, canvas=(5, 9), seed=1)
    assert all(lists(rows.row(i)) == lists(again.row(i)) for i in range(rows.num_rows))
    other = PackedRows(shards, 20, pad_id=PAD, end_tokens=1, canvas=(5, 9), seed=2)
    assert any(lists(rows.row(i)) != lists(other.row(i)) for i in range(min(rows.num_rows, other.num_rows)))


def test_a_row_longer_than_the_context_is_refused_with_the_length_it_needs(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [([1, 2], 1), ([1] * 9, 3)])
    PackedRows(shards, 11, pad_id=PAD, end_tokens=2)
    with pytest.raises(DataError) as caught:
        PackedRows(shards, 10, pad_id=PAD, end_tokens=2)
    assert str(caught.value) == (
        f"document 1 of {shards.folder} has 9 tokens and 2 for its end; a row has 10: give a length of at least 11, or "
        'on_long="drop" or "cut"'
    )


def test_a_cut_answer_has_no_end_and_a_prompt_that_fills_a_row_is_dropped(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [([1] * 9, 3), ([2] * 9, 6), ([3, 4], 1)])
    rows = PackedRows(shards, 6, pad_id=PAD, end_tokens=2, on_long="cut")
    assert (rows.num_rows, rows.num_cut, rows.num_dropped) == (2, 1, 1)
    assert lists(rows.row(0)) == {
        "ids": [1] * 6,
        "document": [0] * 6,
        "is_maskable": [0, 0, 0, 1, 1, 1],
        "is_end": [0] * 6,
    }
    assert rows.row(1).ids.tolist() == [3, 4, PAD, PAD, PAD, PAD]


def test_an_answer_that_fits_without_all_of_its_end_tokens_is_whole_and_keeps_the_rest(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [([1] * 4, 1), ([2] * 6, 1)])
    rows = PackedRows(shards, 6, pad_id=PAD, end_tokens=3, on_long="cut")
    assert (rows.num_rows, rows.num_cut, rows.num_dropped) == (2, 0, 0)
    assert [rows.row(i).ids.tolist() for i in range(2)] == [[1, 1, 1, 1, PAD, PAD], [2] * 6]
    assert [rows.row(i).is_end.sum() for i in range(2)] == [2, 0]


def test_settings_that_break_a_rule_are_refused(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [([1, 2], 1)])
    with pytest.raises(SettingsError, match="length=1: a row has at least 2 tokens"):
        WindowRows(shards, 1)
    with pytest.raises(SettingsError, match="pad_id=100: the vocabulary of the shards has ids 0 to 99"):
        PackedRows(shards, 8, pad_id=100)
    with pytest.raises(SettingsError, match="end_tokens=-1: how many end tokens follow an answer; give 0 or more"):
        PackedRows(shards, 8, pad_id=PAD, end_tokens=-1)
    with pytest.raises(SettingsError, match=r"canvas=\(9, 8\): .* give 1 ≤ low ≤ high"):
        PackedRows(shards, 8, pad_id=PAD, canvas=(9, 8))
    with pytest.raises(IndexError, match="row 1 of 1"):
        WindowRows(shards, 8).row(1)


# Mixtures


@dataclass(frozen=True)
class Source:
    """Rows that say where they are from."""

    name: int
    num_rows: int
    length: int = 4
    tokenizer: str = "t"

    def row(self, i: int) -> Row:
        assert 0 <= i < self.num_rows
        flags = np.ones(self.length, dtype=np.bool_)
        return Row(
            ids=np.array([self.name, i, 0, 0]),
            document=np.zeros(self.length, dtype=np.int32),
            is_maskable=flags,
            is_end=~flags,
        )


def places(mixture: Mixture, stop: int) -> list[tuple[int, int]]:
    rows = mixture.rows(range(stop))
    return [(source, i) for source, i, *_ in rows.ids_BL.tolist()]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=4),
    seed=st.integers(0, 2**62),
)
def test_each_source_goes_through_all_its_rows_once_an_epoch(sizes: list[tuple[int, int]], seed: int) -> None:
    sources: list[RowSource] = [Source(name, num_rows) for name, (num_rows, _) in enumerate(sizes)]
    parts = [part for _, part in sizes]
    mixture = Mixture(sources, parts, seed)
    turns = 2 * max(num_rows for num_rows, _ in sizes)
    drawn = places(mixture, turns * sum(parts))
    for start in range(0, len(drawn), sum(parts)):
        counts = Counter(source for source, _ in drawn[start : start + sum(parts)])
        assert [counts[name] for name in range(len(parts))] == parts
    for name, (num_rows, part) in enumerate(sizes):
        mine = [i for source, i in drawn if source == name]
        assert len(mine) == turns * part
        for start in range(0, len(mine) - num_rows + 1, num_rows):
            assert sorted(mine[start : start + num_rows]) == list(range(num_rows))
    for index in range(len(drawn)):
        before = Counter(source for source, _ in drawn[:index])
        assert mixture.epochs_at(index) == tuple(before[name] / n for name, (n, _) in enumerate(sizes))


def test_a_sample_is_the_same_however_it_is_reached() -> None:
    def fresh() -> Mixture:
        return Mixture([Source(0, 7), Source(1, 1000)], (2, 3), seed=5)

    whole = fresh().rows(range(60))
    resumed = fresh().rows(range(40, 60))
    assert (whole.ids_BL[40:] == resumed.ids_BL).all()
    assert resumed.index_B.tolist() == list(range(40, 60))
    ranks = [fresh().rows(range(rank, 60, 3)) for rank in range(3)]
    assert (whole.ids_BL[1::3] == ranks[1].ids_BL).all()


def test_epochs_and_seeds_have_other_orders() -> None:
    drawn = places(Mixture([Source(0, 50)], seed=1), 100)
    assert drawn[:50] != drawn[50:]
    assert drawn[:50] != places(Mixture([Source(0, 50)], seed=2), 50)


def test_parts_are_spread_over_a_turn() -> None:
    mixture = Mixture([Source(0, 9), Source(1, 9)], (30, 10), seed=3)
    drawn = [source for source, _ in places(mixture, 40)]
    for start in range(36):
        assert 2 <= drawn[start : start + 4].count(0) <= 4


def test_a_data_set_of_one_document_works(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [([1, 2, 3], 1)])
    for source in (WindowRows(shards, 8), PackedRows(shards, 8, pad_id=PAD)):
        rows = Mixture([source]).rows([0, 1, 10**12])
        assert (rows.ids_BL == rows.ids_BL[0]).all()
        assert (
            rows.ids_BL.shape == rows.document_BL.shape == rows.is_maskable_BL.shape == rows.is_end_BL.shape == (3, 8)
        )


def test_sources_that_do_not_fit_together_are_both_named() -> None:
    with pytest.raises(DataError, match="source 0 has ids of the tokenizer t and source 1 of other; build both with"):
        Mixture([Source(0, 1), Source(1, 1, tokenizer="other")])
    with pytest.raises(SettingsError, match="source 0 has rows of 4 tokens and source 1 of 8; a batch has one length"):
        Mixture([Source(0, 1), Source(1, 1, length=8)])
    with pytest.raises(DataError, match="source 1 of the mixture has no rows; leave it out"):
        Mixture([Source(0, 1), Source(1, 0)])
    with pytest.raises(SettingsError, match="a mixture of no sources; give at least one"):
        Mixture([])
    with pytest.raises(SettingsError, match=r"parts=\(1, 0\): how many samples of a turn .*; give at least 1"):
        Mixture([Source(0, 1), Source(1, 1)], (1, 0))
    with pytest.raises(SettingsError, match=r"parts=\(1,\) for 2 sources; give one part for each source"):
        Mixture([Source(0, 1), Source(1, 1)], (1,))
