"""The network alone: names, shapes, who influences whom, and that a cache or padding changes no answer."""

import pytest
import torch
from torch import Tensor

from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone, rotary_tables, rotate
from unmask.model.cache import KVCache, Ragged, Span
from unmask.model.checkpoint import hf_name, hf_to_llada_name, llada_to_hf_name
from unmask.model.config import Attention, RopeScaling

from doubles import tiny_backbone, tiny_config

CPU = torch.device("cpu")


def random_ids(rows: int, length: int, *, seed: int = 0) -> Tensor:
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(seed))


def places(ids_BL: Tensor) -> Tensor:
    return torch.arange(ids_BL.shape[1]).expand(ids_BL.shape)


def logits(backbone: Backbone, ids_BL: Tensor, kind: Attention, block_length: int | None = None) -> Tensor:
    """Logits of every position, no cache."""
    positions_BL = places(ids_BL)
    attn_mask = attention_mask(kind, positions_BL, positions_BL, block_length=block_length)
    with torch.inference_mode():
        return backbone.logits(backbone(ids_BL, positions_BL, attn_mask=attn_mask))


# --- names ------------------------------------------------------------------------------------------------------------


def test_parameters_carry_the_names_of_transformers() -> None:
    names = {hf_name(name) for name, _ in tiny_backbone(tiny_config(num_layers=1)).named_parameters()}
    layer = "model.layers.0"
    assert names == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        *(f"{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")),
        *(f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
        f"{layer}.self_attn.o_proj.weight",
        *(f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }


def test_lladas_names_are_translated_there_and_back() -> None:
    block = "model.transformer.blocks.11"
    table = {
        "model.transformer.wte.weight": "model.embed_tokens.weight",
        "model.transformer.ln_f.weight": "model.norm.weight",
        "model.transformer.ff_out.weight": "lm_head.weight",
        f"{block}.attn_norm.weight": "model.layers.11.input_layernorm.weight",
        f"{block}.ff_norm.weight": "model.layers.11.post_attention_layernorm.weight",
        f"{block}.q_proj.weight": "model.layers.11.self_attn.q_proj.weight",
        f"{block}.k_proj.bias": "model.layers.11.self_attn.k_proj.bias",
        f"{block}.v_proj.weight": "model.layers.11.self_attn.v_proj.weight",
        f"{block}.attn_out.weight": "model.layers.11.self_attn.o_proj.weight",
        f"{block}.ff_proj.weight": "model.layers.11.mlp.gate_proj.weight",
        f"{block}.up_proj.weight": "model.layers.11.mlp.up_proj.weight",
        f"{block}.ff_out.weight": "model.layers.11.mlp.down_proj.weight",
    }
    for theirs, ours in table.items():
        assert llada_to_hf_name(theirs) == ours
        assert hf_to_llada_name(ours) == theirs


def test_every_parameter_has_one_name_in_llada() -> None:
    config = tiny_config(family="llada", attention="full", shift_logits=False)
    names = [hf_name(name) for name, _ in tiny_backbone(config).named_parameters()]
    theirs = [hf_to_llada_name(name) for name in names]
    assert len(set(theirs)) == len(names)
    assert [llada_to_hf_name(name) for name in theirs] == names


@pytest.mark.parametrize("name", ["model.transformer.wpe.weight", "model.transformer.blocks.0.q_norm.weight", "x"])
def test_a_name_that_llada_does_not_have_stays_as_it_is(name: str) -> None:
    assert llada_to_hf_name(name) == name


def test_a_tied_head_is_one_parameter() -> None:
    backbone = Backbone(tiny_config(tie_embeddings=True))
    assert backbone.lm_head.weight is backbone.embed_tokens.weight
    assert "lm_head.weight" not in dict(backbone.named_parameters())


# --- attention kinds --------------------------------------------------------------------------------------------------


def influenced(kind: Attention, changed: int, *, length: int, block_length: int | None = None) -> list[int]:
    """The positions whose logits change when the token at `changed` does."""
    backbone, ids = tiny_backbone(tiny_config()), random_ids(1, length)
    other = ids.clone()
    other[0, changed] = (other[0, changed] + 1) % 61
    moved = (logits(backbone, ids, kind, block_length) - logits(backbone, other, kind, block_length)).abs().amax(-1)[0]
    return [position for position in range(length) if moved[position] > 1e-4]


@pytest.mark.parametrize(
    ("kind", "block_length", "changed", "wanted"),
    [
        ("causal", None, 3, [3, 4, 5, 6, 7]),
        ("full", None, 3, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("full", None, 7, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("block", 3, 4, [3, 4, 5, 6, 7]),
        ("block", 3, 0, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("block", 3, 7, [6, 7]),
    ],
)
def test_a_token_reaches_exactly_those_who_may_see_it(
    kind: Attention, block_length: int | None, changed: int, wanted: list[int]
) -> None:
    assert influenced(kind, changed, length=8, block_length=block_length) == wanted


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_blocks_of_one_compute_what_causal_does_and_one_block_what_full_does(kv_heads: int) -> None:
    backbone, ids = tiny_backbone(tiny_config(num_kv_heads=kv_heads)), random_ids(2, 9)
    assert torch.equal(logits(backbone, ids, "block", 1), logits(backbone, ids, "causal"))
    assert torch.equal(logits(backbone, ids, "block", 9), logits(backbone, ids, "full"))
    assert (logits(backbone, ids, "full") - logits(backbone, ids, "causal")).abs().max() > 0.1


def test_no_mask_and_an_all_visible_mask_are_the_same() -> None:
    backbone, ids = tiny_backbone(tiny_config()), random_ids(2, 9)
    with torch.inference_mode():
        unmasked = backbone.logits(backbone(ids, places(ids)))
    torch.testing.assert_close(unmasked, logits(backbone, ids, "full"), rtol=1e-5, atol=1e-5)


# --- positions and padding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "block_length"), [("causal", None), ("full", None), ("block", 3)])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_left_padding_changes_no_logit(kind: Attention, block_length: int | None, kv_heads: int) -> None:
    backbone = tiny_backbone(tiny_config(num_kv_heads=kv_heads))
    rows = [random_ids(1, length, seed=length) for length in (3, 8, 5)]
    width = max(row.shape[1] for row in rows)
    ids_BL = torch.full((3, width), 17)
    positions_BL = torch.arange(width)[None] - torch.tensor([[width - row.shape[1]] for row in rows])
    for number, row in enumerate(rows):
        ids_BL[number, width - row.shape[1] :] = row[0]
    attn_mask = attention_mask(kind, positions_BL, positions_BL, block_length=block_length)
    with torch.inference_mode():
        batch = backbone.logits(backbone(ids_BL, positions_BL.clamp(min=0), attn_mask=attn_mask))
    assert batch.isfinite().all(), "padding that is not a number would spoil the keys of its row"
    for number, row in enumerate(rows):
        alone = logits(backbone, row, kind, block_length)
        torch.testing.assert_close(batch[number, width - row.shape[1] :], alone[0], rtol=1e-4, atol=1e-4)


def test_only_the_distance_between_positions_matters() -> None:
    backbone, ids = tiny_backbone(tiny_config()), random_ids(1, 7)
    with torch.inference_mode():
        here, there = (backbone(ids, places(ids) + start) for start in (0, 40))
        other = backbone(ids, places(ids) * 2)
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)
    assert (here - other).abs().max() > 0.05


def slow_rotation(x: Tensor, position: int, theta: float) -> Tensor:
    """Each pair (i, i + H/2) turned by position · theta^(-2i/H), one pair at a time."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for pair in range(half):
        angle = torch.tensor(position * theta ** (-2 * pair / len(x)))
        out[pair] = x[pair] * angle.cos() - x[pair + half] * angle.sin()
        out[pair + half] = x[pair + half] * angle.cos() + x[pair] * angle.sin()
    return out


def test_rotation_turns_each_pair_by_its_angle() -> None:
    config = tiny_config(rope_theta=500.0)
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    positions_BT = torch.tensor([[0, 1, 5, 130], [7, 2, 2, 0]])
    turned = rotate(x, rotary_tables(config, positions_BT, dtype=torch.float32))
    for row in range(2):
        for head in range(3):
            for place in range(4):
                wanted = slow_rotation(x[row, head, place], int(positions_BT[row, place]), 500.0)
                torch.testing.assert_close(turned[row, head, place], wanted, rtol=1e-4, atol=1e-4)


def test_llama3_scaling_keeps_short_waves_stretches_long_ones_and_blends_between() -> None:
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64)
    one = torch.tensor([[1]])
    scaled, plain = (
        rotary_tables(tiny_config(rope_theta=1e3, head_dim=16, rope_scaling=how), one, dtype=torch.float32)[1][
            0, 0, 0, 8:
        ]
        for how in (scaling, None)
    )
    shrunk = plain.asin() / scaled.asin()
    frequency = 1e3 ** (-torch.arange(8) / 8)
    turns = 64 * frequency / (2 * torch.pi)
    assert torch.allclose(shrunk[turns > 4], torch.ones(1), rtol=1e-4)
    assert torch.allclose(shrunk[turns < 1], torch.full((1,), 8.0), rtol=1e-4)
    between = shrunk[(turns > 1) & (turns < 4)]
    assert len(between) > 0
    assert ((between > 1) & (between < 8)).all()


# --- logits where they are asked for ----------------------------------------------------------------------------------


def test_logits_at_chosen_positions_are_those_of_the_whole_canvas() -> None:
    backbone, ids = tiny_backbone(tiny_config()), random_ids(3, 6)
    rows_M, columns_M = torch.tensor([0, 0, 2]), torch.tensor([1, 5, 0])
    with torch.inference_mode():
        hidden_BLD = backbone(ids, places(ids))
        chosen_MV = backbone.logits(hidden_BLD[rows_M, columns_M])
        whole_BLV = backbone.logits(hidden_BLD)
    assert hidden_BLD.shape == (3, 6, 32)
    assert chosen_MV.shape == (3, 61)
    torch.testing.assert_close(chosen_MV, whole_BLV[rows_M, columns_M])


def test_the_vocabulary_product_runs_only_over_what_is_asked_for() -> None:
    backbone, ids = tiny_backbone(tiny_config()), random_ids(3, 6)
    shapes: list[tuple[int, ...]] = []
    backbone.lm_head.register_forward_hook(lambda _module, inputs, _out: shapes.append(tuple(inputs[0].shape)))
    with torch.inference_mode():
        hidden = backbone(ids, places(ids))
        assert shapes == []
        backbone.logits(hidden[0, 2:4])
    assert shapes == [(2, 32)]


# --- cache ------------------------------------------------------------------------------------------------------------


def cached_logits(backbone: Backbone, ids_BL: Tensor, spans: list[tuple[int, int]], block_length: int) -> Tensor:
    """Logits of every position, computed span by span over one cache."""
    config, (rows, width) = backbone.config, ids_BL.shape
    cache = KVCache(config, rows=rows, length=width, dtype=torch.float32, device=CPU)
    positions_BL, out = places(ids_BL), []
    for start, stop in spans:
        query, key = positions_BL[:, start:stop], positions_BL[:, :stop]
        attn_mask = attention_mask("block", query, key, block_length=block_length)
        with torch.inference_mode():
            hidden = backbone(ids_BL[:, start:stop], query, attn_mask=attn_mask, cache=cache, window=Span(start, stop))
            out.append(backbone.logits(hidden))
    return torch.cat(out, 1)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize(
    ("block_length", "spans"),
    [
        (1, [(0, 4), (4, 5), (5, 6), (6, 9)]),
        (1, [(0, 1), (1, 9)]),
        (3, [(0, 3), (3, 6), (6, 9)]),
        (3, [(0, 6), (6, 9)]),
        (4, [(0, 4), (4, 8), (8, 9)]),
    ],
)
def test_cached_windows_compute_what_the_whole_canvas_does(
    kv_heads: int, block_length: int, spans: list[tuple[int, int]]
) -> None:
    backbone, ids = tiny_backbone(tiny_config(num_kv_heads=kv_heads)), random_ids(2, 9)
    wanted = logits(backbone, ids, "block", block_length)
    torch.testing.assert_close(cached_logits(backbone, ids, spans, block_length), wanted, rtol=1e-4, atol=1e-4)


def test_a_block_that_is_written_again_replaces_its_stale_keys() -> None:
    backbone, ids, draft = tiny_backbone(tiny_config()), random_ids(2, 9), random_ids(2, 9, seed=1)
    positions_BL = places(ids)
    cache = KVCache(backbone.config, rows=2, length=9, dtype=torch.float32, device=CPU)

    def run(source: Tensor, start: int, stop: int) -> Tensor:
        query, key = positions_BL[:, start:stop], positions_BL[:, :stop]
        attn_mask = attention_mask("block", query, key, block_length=3)
        with torch.inference_mode():
            return backbone(source[:, start:stop], query, attn_mask=attn_mask, cache=cache, window=Span(start, stop))

    run(ids, 0, 3)
    run(draft, 3, 6)
    run(ids, 3, 6)
    with torch.inference_mode():
        final = backbone.logits(run(ids, 6, 9))
    torch.testing.assert_close(final, logits(backbone, ids, "block", 3)[:, 6:], rtol=1e-4, atol=1e-4)


def test_rows_that_stand_at_different_columns_share_one_ragged_window() -> None:
    """Six columns are cached, row 0's last three from a draft: it computes those again while row 1 goes on by two."""
    backbone, ids, draft = tiny_backbone(tiny_config()), random_ids(2, 9), random_ids(2, 9, seed=1)
    positions_BL, wanted = places(ids), logits(backbone, ids, "causal")
    cache = KVCache(backbone.config, rows=2, length=9, dtype=torch.float32, device=CPU)
    first = torch.where(torch.tensor([[False] * 3 + [True] * 3, [False] * 6]), draft[:, :6], ids[:, :6])
    columns_BT = torch.tensor([[3, 4, 5], [6, 7, cache.scratch_column]])
    query_BT = torch.nn.functional.pad(positions_BL, (0, 1), value=-1).gather(1, columns_BT)
    with torch.inference_mode():
        backbone(
            first,
            positions_BL[:, :6],
            attn_mask=attention_mask("causal", positions_BL[:, :6], positions_BL[:, :6]),
            cache=cache,
            window=Span(0, 6),
        )
        hidden_BTD = backbone(
            torch.nn.functional.pad(ids, (0, 1)).gather(1, columns_BT),
            query_BT.clamp(min=0),
            attn_mask=attention_mask("causal", query_BT, positions_BL[:, :8]),
            cache=cache,
            window=Ragged(columns_BT, 8),
        )
        got = backbone.logits(hidden_BTD)
    torch.testing.assert_close(got[0], wanted[0, 3:6], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1, :2], wanted[1, 6:8], rtol=1e-4, atol=1e-4)


def test_a_cache_that_lost_its_first_row_serves_the_others() -> None:
    backbone, ids = tiny_backbone(tiny_config()), random_ids(3, 6)
    positions_BL, wanted = places(ids), logits(backbone, ids, "causal")
    cache = KVCache(backbone.config, rows=3, length=6, dtype=torch.float32, device=CPU)
    early, late = positions_BL[:, :5], positions_BL[1:, 5:]
    with torch.inference_mode():
        backbone(ids[:, :5], early, attn_mask=attention_mask("causal", early, early), cache=cache, window=Span(0, 5))
        cache.keep_rows([2, 1])
        hidden = backbone(ids[[2, 1], 5:], late, cache=cache, window=Span(5, 6))
        got = backbone.logits(hidden[:, 0])
    torch.testing.assert_close(got, wanted[[2, 1], 5], rtol=1e-4, atol=1e-4)


# --- training and decoding --------------------------------------------------------------------------------------------


def test_a_pass_with_gradients_computes_the_same_as_one_without() -> None:
    backbone, ids = tiny_backbone(tiny_config()).requires_grad_(), random_ids(2, 5)
    with_gradients = backbone(ids, places(ids))
    with torch.no_grad():
        without = backbone(ids, places(ids))
    torch.testing.assert_close(with_gradients.detach(), without, rtol=1e-5, atol=1e-5)
    with_gradients.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in backbone.named_parameters() if n[:2] != "lm")


def test_dtype_and_device_are_those_of_the_weights() -> None:
    backbone = tiny_backbone(tiny_config()).to(torch.bfloat16)
    assert (backbone.dtype, backbone.device) == (torch.bfloat16, CPU)
    ids = random_ids(1, 4)
    with torch.inference_mode():
        assert backbone.logits(backbone(ids, places(ids))).dtype is torch.bfloat16
