"""GGUF files, against the `gguf` package's own writer and arithmetic and llama.cpp's rule for the order of q and k."""

import contextlib
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.model import gguf as reader
from unmask.model.backbone import Backbone
from unmask.model.config import ModelConfig, Override
from unmask.model.gguf import GGUFFile, gguf_config, load_gguf

from doubles import tiny_backbone, tiny_config

CPU = torch.device("cpu")
PERMUTED = ("llama", "llada")
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {"family": "llama", "qkv_bias": False},
    "dream": {"family": "dream", "attention": "full"},
    "llada": {"family": "llada", "attention": "full", "shift_logits": False, "qkv_bias": False},
}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Edit = Callable[[gguf.GGUFWriter], None]
Tensors = dict[str, tuple[np.ndarray, Kind]]  # stored bytes or numbers, and their type


def stored_name(name: str) -> str:
    """Our parameter name as llama.cpp spells it."""
    whole = {
        "embed_tokens.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def pairs_from_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order, a row at a time: rotary pair p of a head takes its two halves to rows 2p and 2p + 1."""
    size = rows.shape[0] // heads
    out = np.empty_like(rows)
    for head in range(heads):
        for pair in range(size // 2):
            for half in range(2):
                out[head * size + 2 * pair + half] = rows[head * size + half * size // 2 + pair]
    return out


def plain_tensors(backbone: Backbone) -> Tensors:
    """The network's tensors as llama.cpp's converter stores them, in float32."""
    config, out = backbone.config, {}
    for name, parameter in backbone.named_parameters():
        values = parameter.detach().float().numpy()
        if config.family in PERMUTED and re.search(r"[qk]_proj", name):
            values = pairs_from_halves(values, config.num_heads if "q_proj" in name else config.num_kv_heads)
        out[stored_name(name)] = (values, Kind.F32)
    return out


def quantised(tensors: Tensors, kind: Kind) -> Tensors:
    """The matrices in another type; vectors stay float32, as llama.cpp keeps them."""
    return {
        name: (gguf.quants.quantize(values, kind), kind) if values.ndim == 2 else (values, old)
        for name, (values, old) in tensors.items()
    }


def write(path: Path, config: ModelConfig, tensors: Tensors, edit: Edit | None = None) -> Path:
    """A GGUF file of `tensors` with the metadata that llama.cpp's converter gives `config`."""
    writer = gguf.GGUFWriter(path, config.family)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_eos_token_id(2)
    writer.add_token_list([f"word {number}" for number in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    if config.family in ("dream", "llada"):
        writer.add_causal_attention(False)
        writer.add_diffusion_shift_logits(config.shift_logits)
        writer.add_mask_token_id(60)
    if edit is not None:
        edit(writer)
    for name, (values, kind) in tensors.items():
        if kind in (Kind.F32, Kind.F16):
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def written(path: Path, edit: Edit | None = None, **changes: Any) -> tuple[Path, Backbone]:
    backbone = tiny_backbone(tiny_config(**changes))
    return write(path, backbone.config, plain_tensors(backbone), edit), backbone


def load(path: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    return load_gguf(GGUFFile(path), dtype=dtype, device=CPU)


def state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in backbone.named_parameters()}


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    for word in words:
        assert word in str(caught.value)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("sharing", [{}, {"num_kv_heads": 4}, {"tie_embeddings": True}], ids=["gqa", "mha", "tied"])
def test_a_float32_file_gives_the_network_back(
    changes: dict[str, Any], sharing: dict[str, Any], tmp_path: Path
) -> None:
    path, backbone = written(tmp_path / "x.gguf", **(changes | sharing))
    loaded = load(path)
    assert state(loaded).keys() == state(backbone).keys()
    for name, tensor in state(backbone).items():
        assert torch.equal(state(loaded)[name], tensor), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_biases_of_a_permuted_family_are_put_back_too(tmp_path: Path) -> None:
    path, backbone = written(tmp_path / "x.gguf", **(FAMILIES["llada"] | {"qkv_bias": True}))
    for name, tensor in state(backbone).items():
        assert torch.equal(state(load(path))[name], tensor), name


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_order_of_q_and_k_is_llama_cpps(heads: int) -> None:
    """The converter's formula, written with numpy's axes, is the row-by-row rule above, and the reader undoes it."""
    rows = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    converted = np.swapaxes(rows.reshape(heads, 2, 16 // heads // 2, 5), 1, 2).reshape(16, 5)
    assert np.array_equal(converted, pairs_from_halves(rows, heads))
    assert np.array_equal(reader._halves_from_pairs(torch.from_numpy(converted), heads).numpy(), rows)


QUANTISABLE = [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]


@pytest.mark.parametrize("kind", QUANTISABLE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_the_gguf_package_dequantises(kind: Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config(intermediate_size=64))
    tensors = quantised(plain_tensors(backbone), kind)
    loaded = state(load(write(tmp_path / "x.gguf", backbone.config, tensors), dtype))
    assert len(loaded) == len(tensors)
    for name, tensor in loaded.items():
        values, stored_as = tensors[stored_name(name)]
        wanted = torch.from_numpy(gguf.quants.dequantize(values, stored_as).astype(np.float32)).to(dtype)
        assert tensor.dtype is dtype
        assert torch.equal(tensor, wanted), name
        assert (tensor.float() - state(backbone)[name]).abs().max() < 0.2, "and it is near what was quantised"


# Byte offsets of the 16-bit scales inside a block; every other byte may be anything.
SCALES = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}


def random_blocks(rng: np.random.Generator, kind: Kind, shape: tuple[int, int]) -> np.ndarray:
    """Bytes of a quantised matrix: random, but for scales of a sensible size."""
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // per_block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = rng.uniform(-0.01, 0.01, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", SCALES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_k_quants_are_read_as_the_gguf_package_dequantises_them(kind: Kind, family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_layers": 1}
    backbone = tiny_backbone(tiny_config(**(FAMILIES[family] | sizes)))
    rng = np.random.default_rng(int(kind))
    tensors = {
        name: (random_blocks(rng, kind, values.shape), kind) if values.ndim == 2 else (values, old)
        for name, (values, old) in plain_tensors(backbone).items()
    }
    path = write(tmp_path / "x.gguf", backbone.config, tensors)
    loaded, rounded = state(load(path)), state(load(path, torch.bfloat16))
    for name, tensor in loaded.items():
        values, stored_as = tensors[stored_name(name)]
        wanted = gguf.quants.dequantize(values, stored_as).astype(np.float32)
        assert np.isfinite(wanted).all()
        got = tensor.numpy()
        if family in PERMUTED and re.search(r"[qk]_proj", name):
            got = pairs_from_halves(got, 4 if "q_proj" in name else 2)
        assert np.array_equal(got, wanted), name
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name


@pytest.mark.parametrize("elements", [1, 33, 100, 1000])
def test_a_matrix_read_in_slices_is_the_same_matrix(
    elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone(tiny_config(**FAMILIES["llama"], intermediate_size=64))
    path = write(tmp_path / "x.gguf", backbone.config, quantised(plain_tensors(backbone), Kind.Q5_1))
    whole = state(load(path))
    monkeypatch.setattr(reader, "_ELEMENTS_AT_ONCE", elements)
    for name, tensor in state(load(path)).items():
        assert torch.equal(tensor, whole[name]), name


def test_bfloat16_is_rounded_to_nearest_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000, 0x7F7FFFFF, 0], dtype=np.uint32)
    values = bits.view(np.float32)
    out = torch.empty(len(bits), dtype=torch.bfloat16)
    reader._store(values, reader._as_numpy(out), torch.bfloat16)
    assert torch.equal(out, torch.from_numpy(values).to(torch.bfloat16))


# --- a tied head ------------------------------------------------------------------------------------------------------


def two_copies(path: Path, *, embedding: Kind, head: Kind) -> Tensors:
    backbone = tiny_backbone(tiny_config(tie_embeddings=True))
    tensors = plain_tensors(backbone)
    values, _ = tensors["token_embd.weight"]
    tensors["token_embd.weight"] = (gguf.quants.quantize(values, embedding), embedding)
    tensors["output.weight"] = (gguf.quants.quantize(values, head), head)
    write(path, backbone.config, tensors)
    return tensors


@pytest.mark.parametrize(
    ("embedding", "head", "better"),
    [
        (Kind.Q4_0, Kind.Q8_0, "output.weight"),
        (Kind.Q8_0, Kind.Q4_0, "token_embd.weight"),
        (Kind.Q5_0, Kind.F16, "output.weight"),
        (Kind.Q8_0, Kind.Q8_0, "token_embd.weight"),
    ],
)
def test_a_matrix_stored_twice_is_tied_and_read_from_the_better_copy(
    embedding: Kind, head: Kind, better: str, tmp_path: Path
) -> None:
    tensors = two_copies(tmp_path / "x.gguf", embedding=embedding, head=head)
    backbone = load(tmp_path / "x.gguf")
    values, kind = tensors[better]
    assert backbone.config.tie_embeddings
    assert backbone.lm_head.weight is backbone.embed_tokens.weight
    assert np.array_equal(backbone.embed_tokens.weight.numpy(), gguf.quants.dequantize(values, kind).astype(np.float32))


def test_two_different_matrices_are_not_tied(tmp_path: Path) -> None:
    path, backbone = written(tmp_path / "x.gguf")
    loaded = load(path)
    assert not loaded.config.tie_embeddings
    assert torch.equal(loaded.lm_head.weight, backbone.lm_head.weight)
    assert torch.equal(loaded.embed_tokens.weight, backbone.embed_tokens.weight)


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_the_config_is_the_one_that_was_written(changes: dict[str, Any], tmp_path: Path) -> None:
    path, backbone = written(tmp_path / "x.gguf", **changes, rope_theta=1e6, num_kv_heads=1, rms_norm_eps=2.0**-20)
    assert gguf_config(GGUFFile(path)) == backbone.config


def test_all_ids_are_read(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(5)
        writer.add_bos_token_id(1)
        writer.add_pad_token_id(0)

    config = gguf_config(GGUFFile(written(tmp_path / "x.gguf", edit)[0]))
    assert (config.end_ids, config.bos_id, config.pad_id) == ((2, 5), 1, 0)


def test_a_head_size_other_than_width_by_heads_is_read(tmp_path: Path) -> None:
    path, backbone = written(
        tmp_path / "x.gguf", lambda writer: writer.add_key_length(16), head_dim=16, rms_norm_eps=2.0**-20
    )
    assert gguf_config(GGUFFile(path)) == backbone.config


def test_metadata_of_every_type_is_read(tmp_path: Path) -> None:
    values: dict[str, tuple[str, Any]] = {
        "u8": ("uint8", 255),
        "i8": ("int8", -128),
        "u16": ("uint16", 65_535),
        "i16": ("int16", -1),
        "u32": ("uint32", 2**32 - 1),
        "i32": ("int32", -(2**31)),
        "u64": ("uint64", 2**64 - 1),
        "i64": ("int64", -(2**63)),
        "f32": ("float32", 0.5),
        "f64": ("float64", 0.1),
        "yes": ("bool", True),
        "text": ("string", "masked – ▮"),
        "numbers": ("array", [1, 2, 3]),
        "words": ("array", ["a", "", "é"]),
    }

    def edit(writer: gguf.GGUFWriter) -> None:
        for key, (kind, value) in values.items():
            getattr(writer, f"add_{kind}")(f"test.{key}", value)

    metadata = GGUFFile(written(tmp_path / "x.gguf", edit)[0]).metadata
    assert {key: metadata[f"test.{key}"] for key in values} == {key: value for key, (_, value) in values.items()}
    assert len(metadata["tokenizer.ggml.tokens"]) == 61


def test_an_alignment_of_its_own_is_honoured(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(256)

    path, backbone = written(tmp_path / "x.gguf", edit)
    assert torch.equal(load(path).norm.weight, backbone.norm.weight)


def test_a_file_that_does_not_say_whether_it_shifts_follows_its_family(tmp_path: Path) -> None:
    def forget(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop("diffusion.shift_logits")

    for family, shift in (("dream", True), ("llada", False)):
        path, _ = written(tmp_path / f"{family}.gguf", forget, **FAMILIES[family])
        assert gguf_config(GGUFFile(path)).shift_logits is shift


def test_what_the_caller_states_stands_above_the_file(tmp_path: Path) -> None:
    file = GGUFFile(written(tmp_path / "x.gguf", **FAMILIES["dream"])[0])
    override = Override(attention="block", block_length=4, mask_id=7, shift_logits=False)
    config = gguf_config(file, override=override)
    assert (config.attention, config.block_length, config.mask_id, config.shift_logits) == ("block", 4, 7, False)
    assert load_gguf(file, dtype=torch.float32, device=CPU, override=override).config == config


def test_a_file_that_says_it_is_not_causal_attends_fully(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_causal_attention(False)
        writer.add_mask_token_id(7)

    config = gguf_config(GGUFFile(written(tmp_path / "x.gguf", edit)[0]))
    assert (config.attention, config.mask_id) == ("full", 7)


def test_an_autoregressive_file_with_a_mask_id_asks_how_it_attends(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf", lambda writer: writer.add_mask_token_id(7))
    refuses(path, "autoregressive architecture 'qwen2'", "names the mask id 7", "give `--attention full`")
    assert gguf_config(GGUFFile(path), override=Override(attention="causal")).attention == "causal"


def test_a_diffusion_file_without_a_mask_id_asks_for_the_flag(tmp_path: Path) -> None:
    def forget(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop("tokenizer.ggml.mask_token_id")

    path, _ = written(tmp_path / "x.gguf", forget, **FAMILIES["dream"])
    refuses(path, "names no mask id; give it with `--mask-id ID`")
    assert gguf_config(GGUFFile(path), override=Override(mask_id=9)).mask_id == 9


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    refuses(tmp_path / "x.gguf", "x.gguf is empty; download it again")


@pytest.mark.parametrize("data", [b"PK\x03\x04 a zip file", b"<html></html>", b"GGML" + bytes(64)])
def test_a_file_of_something_else_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    refuses(tmp_path / "x.gguf", "is not a GGUF file: it does not begin with the letters GGUF")


def test_another_version_is_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf")
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + path.read_bytes()[8:])
    refuses(path, "is GGUF version 1; versions 2 and 3 are read here")


def test_version_two_is_read(tmp_path: Path) -> None:
    path, backbone = written(tmp_path / "x.gguf")
    path.write_bytes(b"GGUF" + struct.pack("<I", 2) + path.read_bytes()[8:])
    assert torch.equal(load(path).norm.weight, backbone.norm.weight)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf", num_layers=1)
    whole = path.read_bytes()
    data = min(tensor.start for tensor in GGUFFile(path).tensors.values())
    last = max(tensor.stop for tensor in GGUFFile(path).tensors.values())
    for size in [*range(1, data, 7), data, data + 1, (data + last) // 2, last - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut short|is not a GGUF file"):
            GGUFFile(path)
    path.write_bytes(whole[: last - 1])
    refuses(path, "is cut short: ", f"should end at byte {last} of {last - 1}; download it again")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_header_is_refused_or_harmless(where: float, byte: int, tmp_path: Path) -> None:
    """One byte of the header is another one: the file opens, or the error is ours."""
    path = tmp_path / "x.gguf"
    if not path.exists():
        written(path, num_layers=1)
    whole = path.read_bytes()
    header = min(tensor.start for tensor in GGUFFile(path).tensors.values())
    damaged = bytearray(whole)
    damaged[int(where * header)] = byte
    (tmp_path / "damaged.gguf").write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        GGUFFile(tmp_path / "damaged.gguf")


def test_an_alignment_of_nothing_is_damage(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf", lambda writer: writer.add_uint32("general.alignmenT", 0))
    path.write_bytes(path.read_bytes().replace(b"general.alignmenT", b"general.alignment"))
    refuses(path, "cut short or damaged inside its header")


def test_an_unknown_architecture_names_the_known_ones(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0qwen9"))
    known = "which is not read here; qwen2, llama, dream, llada are, so this checkpoint cannot be used"
    refuses(path, f"has the architecture 'qwen9', {known}: take another one")


@pytest.mark.parametrize(("kind", "spoken"), [(Kind.I8, "I8"), (Kind.F64, "F64")])
def test_a_type_that_cannot_be_dequantised_is_named(kind: Kind, spoken: str, tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config())
    tensors = plain_tensors(backbone)
    numbers = np.ones(tensors["blk.1.ffn_up.weight"][0].shape, np.int8 if kind is Kind.I8 else np.float64)
    tensors["blk.1.ffn_up.weight"] = (numbers, kind)
    path = write(tmp_path / "x.gguf", backbone.config, tensors)
    refuses(
        path, f"stores blk.1.ffn_up.weight as {spoken}, which cannot be dequantised here", "Q4_0 to Q8_0 or a K-quant"
    )


def test_a_type_of_tomorrow_is_named_by_its_number(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf")
    entry = b"output_norm.weight" + struct.pack("<IQ", 1, 32)
    whole = path.read_bytes()
    assert whole.count(entry + struct.pack("<I", 0)) == 1
    path.write_bytes(whole.replace(entry + struct.pack("<I", 0), entry + struct.pack("<I", 999)))
    refuses(path, "stores output_norm.weight as type 999, which cannot be dequantised")


def test_rows_that_do_not_fill_their_blocks_are_damage(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf")
    entry = b"blk.0.ffn_down.weight" + struct.pack("<IQQ", 2, 48, 32)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(entry + struct.pack("<I", 0), entry + struct.pack("<I", int(Kind.Q8_0))))
    refuses(path, "is damaged: blk.0.ffn_down.weight has rows of 48 weights in blocks of 32")


@pytest.mark.parametrize(
    "key",
    [
        "attention.head_count",
        "embedding_length",
        "feed_forward_length",
        "block_count",
        "context_length",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_absent_metadata_is_named(key: str, tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf", lambda writer: writer.kv_data[0].pop(f"qwen2.{key}"))
    refuses(path, f"lacks the metadata qwen2.{key}; convert the model again")


def test_metadata_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop("qwen2.attention.head_count")
        writer.add_array("qwen2.attention.head_count", [4, 4])

    refuses(written(tmp_path / "x.gguf", edit)[0], "holds metadata of the wrong kind", "download it again")


def test_scaled_rotary_positions_are_refused(tmp_path: Path) -> None:
    scaling, _ = written(
        tmp_path / "a.gguf", lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN), **FAMILIES["llama"]
    )
    refuses(scaling, "scales its rotary positions, which is not read from GGUF; use the HF folder", "Llama 3's scaling")
    backbone = tiny_backbone(tiny_config(**FAMILIES["llama"]))
    tensors = plain_tensors(backbone) | {"rope_freqs.weight": (np.ones(4, np.float32), Kind.F32)}
    refuses(write(tmp_path / "b.gguf", backbone.config, tensors), "scales its rotary positions")


def test_rotary_positions_that_are_said_to_be_unscaled_are_read(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x.gguf", lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.NONE))
    load(path)


def test_missing_unexpected_and_mis_shaped_tensors_are_named(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config())
    tensors = plain_tensors(backbone)
    del tensors["blk.1.ffn_up.weight"]
    tensors["blk.0.attn_q_norm.weight"] = (np.ones(8, np.float32), Kind.F32)
    tensors["output_norm.weight"] = (np.ones(31, np.float32), Kind.F32)
    refuses(
        write(tmp_path / "x.gguf", backbone.config, tensors),
        str(tmp_path / "x.gguf"),
        "missing: model.layers.1.mlp.up_proj.weight",
        "unexpected: blk.0.attn_q_norm.weight",
        "mis-shaped: model.norm.weight is 31 instead of 32",
    )
