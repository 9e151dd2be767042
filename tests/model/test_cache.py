"""The cache puts keys and values where they belong, and nowhere else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.model.cache import KVCache, Packed, Ragged, Span

from doubles import tiny_config

K, H, LAYERS = 2, 8, 2


def make_cache(rows: int, length: int) -> KVCache:
    return KVCache(tiny_config(), rows=rows, length=length, dtype=torch.float32, device=torch.device("cpu"))


def tagged(rows: int, count: int, *, tag: float) -> Tensor:
    """[rows, K, count, H] in which every number is another one."""
    return tag + torch.arange(rows * K * count * H, dtype=torch.float32).view(rows, K, count, H)


def test_an_appended_span_comes_back_behind_what_was_there() -> None:
    cache = make_cache(2, 6)
    first, second = tagged(2, 4, tag=1e3), tagged(2, 1, tag=2e3)
    keys, values = cache.write(0, Span(0, 4), first, -first)
    assert torch.equal(keys, first)
    assert torch.equal(values, -first)
    keys, values = cache.write(0, Span(4, 5), second, -second)
    assert torch.equal(keys, torch.cat((first, second), 2))
    assert torch.equal(values, -torch.cat((first, second), 2))


def test_a_span_in_the_middle_is_replaced_in_place() -> None:
    cache = make_cache(2, 6)
    whole, middle = tagged(2, 6, tag=1e3), tagged(2, 2, tag=2e3)
    cache.write(0, Span(0, 6), whole, -whole)
    keys, values = cache.write(0, Span(2, 4), middle, -middle)
    assert torch.equal(keys, torch.cat((whole[:, :, :2], middle), 2))  # columns from `stop` on stay out of sight
    assert torch.equal(values, -keys)
    again, _ = cache.write(0, Span(0, 0), whole[:, :, :0], whole[:, :, :0])
    assert again.shape[2] == 0
    keys, _ = cache.write(0, Span(5, 6), whole[:, :, 5:], -whole[:, :, 5:])
    assert torch.equal(keys, torch.cat((whole[:, :, :2], middle, whole[:, :, 4:]), 2))


def test_layers_keep_their_own_keys() -> None:
    cache = make_cache(1, 3)
    one, two = tagged(1, 3, tag=1e3), tagged(1, 3, tag=2e3)
    cache.write(0, Span(0, 3), one, one)
    cache.write(1, Span(0, 3), two, two)
    nothing = one[:, :, :0]
    assert torch.equal(cache.write(0, Span(3, 3), nothing, nothing)[0], one)
    assert torch.equal(cache.write(1, Span(3, 3), nothing, nothing)[1], two)


def test_packed_slots_go_to_their_rows_and_come_back() -> None:
    """Row 0 has the columns 4, 1 and row 1 the column 2, whose slot stands between them."""
    cache, other = make_cache(2, 6), make_cache(2, 6)
    window = Packed(
        row_M=torch.tensor([0, 1, 0]), column_M=torch.tensor([4, 2, 1]), place_M=torch.tensor([0, 0, 1]),
        shape=(2, 2), stop=5,
    )  # fmt: skip
    packed = tagged(1, 3, tag=1e3)
    spread = window.spread(packed)
    assert torch.equal(spread[0, :, 0], packed[0, :, 0])
    assert torch.equal(spread[0, :, 1], packed[0, :, 2])
    assert torch.equal(spread[1, :, 0], packed[0, :, 1])
    assert not spread[1, :, 1].any()
    assert torch.equal(window.collect(spread), packed)
    ragged = Ragged(torch.tensor([[4, 1], [2, other.scratch_column]]), 5)
    for found, wanted in zip(
        cache.write(0, window, packed, -packed), other.write(0, ragged, spread, -spread), strict=True
    ):
        assert torch.equal(found, wanted)


@st.composite
def ragged_writes(draw: st.DrawFn) -> tuple[int, int, list[list[list[int]]]]:
    """Several writes of each row's own columns; -1 is a place that the row does not need."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    writes = []
    for _ in range(draw(st.integers(1, 4))):
        width = draw(st.integers(1, length))
        row = st.lists(st.integers(0, length - 1), max_size=width, unique=True)
        writes.append([columns + [-1] * (width - len(columns)) for columns in (draw(row) for _ in range(rows))])
    return rows, length, writes


@settings(deadline=None)
@given(ragged_writes())
def test_ragged_writes_equal_one_assignment_per_row_and_column(case: tuple[int, int, list[list[list[int]]]]) -> None:
    rows, length, writes = case
    cache = make_cache(rows, length)
    expected_keys, expected_values = (torch.zeros(rows, K, length, H) for _ in range(2))
    keys, values = expected_keys, expected_values
    for number, columns in enumerate(writes, 1):
        new = tagged(rows, len(columns[0]), tag=1e4 * number)
        for row in range(rows):
            for place, column in enumerate(columns[row]):
                if column >= 0:
                    expected_keys[row, :, column] = new[row, :, place]
                    expected_values[row, :, column] = -new[row, :, place]
        columns_BT = torch.tensor(columns)
        columns_BT = torch.where(columns_BT < 0, cache.scratch_column, columns_BT)
        keys, values = cache.write(1, Ragged(columns_BT, length), new, -new)
    assert torch.equal(keys, expected_keys)
    assert torch.equal(values, expected_values)


def test_a_ragged_write_shows_only_columns_before_its_stop() -> None:
    cache = make_cache(2, 9)
    new = tagged(2, 1, tag=1e3)
    keys, values = cache.write(0, Ragged(torch.tensor([[0], [3]]), 4), new, new)
    assert keys.shape == values.shape == (2, K, 4, H)


def test_the_scratch_column_lies_behind_every_column_of_the_canvas() -> None:
    cache = make_cache(1, 5)
    whole, rubbish = tagged(1, 5, tag=1e3), tagged(1, 2, tag=9e3)
    cache.write(0, Span(0, 5), whole, whole)
    scratch = torch.full((1, 2), cache.scratch_column)
    keys, values = cache.write(0, Ragged(scratch, 5), rubbish, rubbish)
    assert torch.equal(keys, whole)
    assert torch.equal(values, whole)


@settings(deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4))
def test_the_rows_that_are_kept_are_renumbered_in_the_order_given(order: list[int], count: int) -> None:
    cache, kept = make_cache(4, 3), order[:count]
    contents = [tagged(4, 3, tag=1e4 * layer) for layer in range(LAYERS)]
    for layer, content in enumerate(contents):
        cache.write(layer, Span(0, 3), content, -content)
    cache.keep_rows(kept)
    for layer, content in enumerate(contents):
        nothing = content[kept][:, :, :0]
        keys, values = cache.write(layer, Span(3, 3), nothing, nothing)
        assert torch.equal(keys, content[kept])
        assert torch.equal(values, -content[kept])
