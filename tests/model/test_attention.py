"""Who sees whom, against one question per (row, query, key); and attention, against the textbook formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.model.attention import attend, attention_mask
from unmask.model.config import Attention


def may_see(kind: str, query: int, key: int, block_length: int) -> bool:
    """The rule in words: padding is seen by nobody; causal looks back; a block looks back and at itself."""
    if key < 0:
        return False
    if kind == "full":
        return True
    if kind == "causal":
        return key <= query
    last_of_block = next(
        position for position in range(query, query + block_length) if (position + 1) % block_length == 0
    )
    return key <= last_of_block


@st.composite
def positions(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Query and key positions of a batch; keys may be padding, queries too, in any order."""
    rows = draw(st.integers(1, 3))
    queries, keys = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    places = st.integers(-3, 12)
    return (
        draw(st.lists(st.lists(places, min_size=queries, max_size=queries), min_size=rows, max_size=rows)),
        draw(st.lists(st.lists(places, min_size=keys, max_size=keys), min_size=rows, max_size=rows)),
    )


@settings(deadline=None)
@given(kind=st.sampled_from(["full", "causal", "block"]), places=positions(), block_length=st.integers(1, 5))
def test_a_mask_answers_one_question_per_row_query_and_key(
    kind: Attention, places: tuple[list[list[int]], list[list[int]]], block_length: int
) -> None:
    queries, keys = places
    attn_mask = attention_mask(kind, torch.tensor(queries), torch.tensor(keys), block_length=block_length)
    assert attn_mask.shape == (len(queries), 1, len(queries[0]), len(keys[0]))
    for row in range(len(queries)):
        for column, query in enumerate(queries[row]):
            for place, key in enumerate(keys[row]):
                if query >= 0:  # what a padding query sees is nobody's business, as long as it sees no padding
                    assert bool(attn_mask[row, 0, column, place]) == may_see(kind, query, key, block_length)
                elif key < 0:
                    assert not attn_mask[row, 0, column, place]


@settings(deadline=None)
@given(length=st.integers(1, 20))
def test_blocks_of_one_are_causal_and_one_block_is_full(length: int) -> None:
    places = torch.arange(length)[None]
    causal, full = (attention_mask(kind, places, places) for kind in ("causal", "full"))  # type: ignore[arg-type]
    assert torch.equal(attention_mask("block", places, places, block_length=1), causal)
    assert torch.equal(attention_mask("block", places, places, block_length=length), full)


def test_a_full_mask_costs_no_memory_per_query() -> None:
    places = torch.arange(512)[None]
    assert attention_mask("full", places, places).stride()[2] == 0


def slow_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
    """softmax(q·k / √H) v for one row, head and query at a time; head n uses key-value head n // group."""
    B, N, T, H = query.shape
    group = N // key.shape[1]
    out = torch.zeros_like(query)
    for row in range(B):
        for head in range(N):
            for place in range(T):
                scores = (key[row, head // group] @ query[row, head, place]) / math.sqrt(H)
                if attn_mask is not None:
                    scores = scores.masked_fill(~attn_mask[row, 0, place], float("-inf"))
                out[row, head, place] = scores.softmax(-1) @ value[row, head // group]
    return out


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_is_the_textbook_formula(heads: tuple[int, int], queries: int, is_masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    B, (N, K), T, S, H = 3, heads, queries, 7, 8
    query = torch.randn(B, N, T, H, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(B, K, S, H, generator=generator, dtype=torch.float64) for _ in range(2))
    attn_mask = None
    if is_masked:  # every query and every row sees other keys
        attn_mask = torch.rand(B, 1, T, S, generator=generator) < 0.5
        attn_mask[..., 3] = True
    torch.testing.assert_close(attend(query, key, value, attn_mask), slow_attention(query, key, value, attn_mask))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [3, 70])
def test_a_query_that_sees_nothing_gives_numbers_all_the_same(
    heads: tuple[int, int], dtype: torch.dtype, length: int
) -> None:
    """Padding queries see nothing; were their output not a number, it would spoil the keys of the next layer."""
    N, K = heads
    query = torch.ones(1, N, length, 8, dtype=dtype)
    key = value = torch.ones(1, K, length, 8, dtype=dtype)
    attn_mask = torch.ones(1, 1, length, length, dtype=torch.bool)
    attn_mask[:, :, 0] = False
    assert attend(query, key, value, attn_mask).isfinite().all()
