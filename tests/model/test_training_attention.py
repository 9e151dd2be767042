"""The masks of training: one question per query and key, and what a network makes of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.diffusion.documents import document_positions
from unmask.diffusion.loss import linear_cross_entropy
from unmask.model.attention import (
    annealed_mask,
    as_bias,
    attend,
    attention_mask,
    block_training_mask,
    causal_document_mask,
    document_mask,
)

from checkpoints import MASK_ID, tiny_model

PACKED = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, -1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])


@st.composite
def packed_rows(draw: st.DrawFn) -> Tensor:
    """Rows of one length with documents of any lengths, and padding behind them."""
    length = draw(st.integers(1, 12))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row: list[int] = []
        while len(row) < length and draw(st.integers(0, 4)):
            row += [max(row, default=-1) + 1] * draw(st.integers(1, 5))
        rows.append((row + [-1] * length)[:length])
    return torch.tensor(rows)


@settings(deadline=None)
@given(document_BT=packed_rows())
def test_everyone_sees_his_own_document_and_causally_what_came_before(document_BT: Tensor) -> None:
    full, causal = document_mask(document_BT), causal_document_mask(document_BT)
    B, T = document_BT.shape
    assert full.shape == causal.shape == (B, 1, T, T)
    for row in range(B):
        for query in range(T):
            for key in range(T):
                is_same = bool(document_BT[row, query] == document_BT[row, key])
                assert bool(full[row, 0, query, key]) == is_same
                assert bool(causal[row, 0, query, key]) == (is_same and key <= query)
    assert bool(causal.any(-1).all())  # no query sees nothing


@settings(deadline=None)
@given(document_BT=packed_rows(), block_length=st.integers(1, 5))
def test_noisy_blocks_see_themselves_and_finished_ones_before(document_BT: Tensor, block_length: int) -> None:
    position_BT = document_positions(document_BT)
    attn_mask = block_training_mask(document_BT, position_BT, block_length=block_length)
    B, T = document_BT.shape
    assert attn_mask.shape == (B, 1, 2 * T, 2 * T)
    for row in range(B):
        for query in range(2 * T):
            for key in range(2 * T):
                own, other = (int(position_BT[row, place % T]) // block_length for place in (query, key))
                if document_BT[row, query % T] != document_BT[row, key % T]:
                    allowed = False
                elif query < T:
                    allowed = own == other if key < T else own > other
                else:
                    allowed = key >= T and own >= other
                assert bool(attn_mask[row, 0, query, key]) == allowed
    assert bool(attn_mask.any(-1).all())


def test_annealing_is_causal_at_share_0_and_full_at_share_1() -> None:
    assert torch.equal(annealed_mask(PACKED, share=0.0, seed=0, step=5), causal_document_mask(PACKED))
    assert torch.equal(annealed_mask(PACKED, share=1.0, seed=0, step=5), document_mask(PACKED))


def test_annealing_opens_the_stated_share_of_the_future_and_all_rows_alike() -> None:
    document_BT = torch.zeros(2, 200, dtype=torch.long)
    attn_mask = annealed_mask(document_BT, share=0.3, seed=0, step=5)
    assert torch.equal(attn_mask[0], attn_mask[1])
    future = attn_mask[0, 0][torch.ones(200, 200, dtype=torch.bool).triu(1)]
    assert float(future.double().mean()) == pytest.approx(0.3, abs=0.02)
    assert bool(attn_mask[0, 0].tril().sum() == 200 * 201 / 2)
    assert torch.equal(attn_mask, annealed_mask(document_BT, share=0.3, seed=0, step=5))
    assert torch.equal(attn_mask[:1], annealed_mask(document_BT[:1], share=0.3, seed=0, step=5))
    for seed, step in ((0, 6), (1, 5)):
        assert not torch.equal(attn_mask, annealed_mask(document_BT, share=0.3, seed=seed, step=step))


def test_more_annealing_never_closes_what_was_open_in_the_same_step() -> None:
    document_BT = torch.zeros(1, 50, dtype=torch.long)
    less, more = (annealed_mask(document_BT, share=share, seed=0, step=1) for share in (0.2, 0.6))
    assert bool((more | ~less).all())


def ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["full", "causal", "annealed", "block"])
def test_another_document_never_changes_the_hidden_states_of_this_one(kind: str) -> None:
    backbone = tiny_model("full").backbone
    document_BT = torch.tensor([[0] * 6 + [1] * 7 + [-1] * 3])
    position_BT = document_positions(document_BT)
    one, other = ids(16), ids(16, seed=1)
    changed = torch.where(document_BT == 1, one, other)  # document 0 and the padding differ
    attn_mask = {
        "full": document_mask(document_BT),
        "causal": causal_document_mask(document_BT),
        "annealed": annealed_mask(document_BT, share=0.5, seed=0, step=0),
        "block": block_training_mask(document_BT, position_BT, block_length=3),
    }[kind]
    if kind == "block":
        one, changed, position_BT, document_BT = (
            torch.cat((row, row), 1) for row in (one, changed, position_BT, document_BT)
        )
    before = backbone(one, position_BT, attn_mask=attn_mask)
    after = backbone(changed, position_BT, attn_mask=attn_mask)
    assert torch.equal(before[document_BT == 1], after[document_BT == 1])
    assert not torch.allclose(before[document_BT == 0], after[document_BT == 0])
    assert bool(before.isfinite().all())


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_a_document_in_a_packed_row_is_what_it_is_alone(kind: str) -> None:
    backbone = tiny_model("full").backbone
    document_BT = torch.tensor([[0] * 6 + [1] * 7 + [-1] * 3])
    mask = document_mask if kind == "full" else causal_document_mask
    packed = backbone(ids(16), document_positions(document_BT), attn_mask=mask(document_BT))[:, 6:13]
    alone_BT = torch.zeros(1, 7, dtype=torch.long)
    alone = backbone(ids(16)[:, 6:13], torch.arange(7)[None], attn_mask=mask(alone_BT))
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


def test_a_causal_mask_and_the_shift_give_the_autoregressive_perplexity() -> None:
    """The training path (document mask, hidden at l - 1 for the token at l, loss without logits) against the chain rule
    with one forward pass per prefix."""
    backbone = tiny_model("causal").backbone
    text = ids(9)
    hidden = backbone(text, torch.arange(9)[None], attn_mask=causal_document_mask(torch.zeros(1, 9, dtype=torch.long)))
    nll_M = linear_cross_entropy(hidden[0, :-1], backbone.lm_head.weight, text[0, 1:], forbidden_id=None)
    chain = []
    for length in range(1, 9):
        prefix = text[:, :length]
        attn_mask = attention_mask("causal", *[torch.arange(length)[None]] * 2)
        last = backbone(prefix, torch.arange(length)[None], attn_mask=attn_mask)[0, -1]
        chain.append(-backbone.logits(last[None])[0].log_softmax(-1)[text[0, length]])
    torch.testing.assert_close(nll_M, torch.stack(chain), atol=1e-5, rtol=1e-5)


def test_with_blocks_of_one_the_clean_half_is_teacher_forcing_and_the_noisy_sees_the_past_alone() -> None:
    backbone = tiny_model("causal").backbone
    text, T = ids(8), 8
    position_BT, document_BT = torch.arange(T)[None], torch.zeros(1, T, dtype=torch.long)
    attn_mask = block_training_mask(document_BT, position_BT, block_length=1)
    both = backbone(torch.cat((torch.full_like(text, MASK_ID), text), 1), position_BT.repeat(1, 2), attn_mask=attn_mask)
    causal = backbone(text, position_BT, attn_mask=causal_document_mask(document_BT))
    torch.testing.assert_close(both[:, T:], causal, atol=2e-5, rtol=1e-4)
    # Each noisy token is what a mask behind the true text before it would be.
    for place in range(T):
        row = torch.cat((text[:, :place], torch.tensor([[MASK_ID]])), 1)
        alone = backbone(
            row,
            torch.arange(place + 1)[None],
            attn_mask=causal_document_mask(torch.zeros(1, place + 1, dtype=torch.long)),
        )
        torch.testing.assert_close(both[:, place], alone[:, -1], atol=2e-5, rtol=1e-4)


def test_with_one_block_the_noisy_half_is_full_attention() -> None:
    backbone = tiny_model("full").backbone
    T = 8
    noisy = ids(T).masked_fill(torch.arange(T) % 2 == 0, MASK_ID)
    position_BT, document_BT = torch.arange(T)[None], torch.zeros(1, T, dtype=torch.long)
    attn_mask = block_training_mask(document_BT, position_BT, block_length=T)
    both = backbone(torch.cat((noisy, ids(T)), 1), position_BT.repeat(1, 2), attn_mask=attn_mask)
    full = backbone(noisy, position_BT, attn_mask=document_mask(document_BT))
    torch.testing.assert_close(both[:, :T], full, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("is_masked", [True, False])
def test_training_in_bfloat16_attends_by_products_and_agrees_with_the_fused_attention(
    heads: int, is_masked: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = {"query": (2, heads, 24, 16), "key": (2, 2, 24, 16), "value": (2, 2, 24, 16)}
    given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    document = (torch.arange(24) // 10).expand(2, -1)
    mask = document_mask(document) if is_masked else None

    def outputs(dtype: torch.dtype, mask: Tensor | None) -> list[Tensor]:
        inputs = [value.clone().to(dtype).requires_grad_() for value in given.values()]
        out = attend(*inputs, mask)
        out.float().square().sum().backward()  # type: ignore[no-untyped-call]
        return [out.detach().float(), *(value.grad.float() for value in inputs if value.grad is not None)]

    exact = outputs(torch.float32, mask)
    for found, wanted in zip(outputs(torch.bfloat16, as_bias(mask, torch.bfloat16)), exact, strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 0.02
