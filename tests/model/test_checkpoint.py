"""Checkpoint folders: what is written reads back, what is damaged is refused, and loading holds no second copy."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import SafetensorsFile, load_folder, read_config, save_folder
from unmask.model.config import Override

from doubles import tiny_backbone, tiny_config

CPU = torch.device("cpu")
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    return load_folder(folder, dtype=dtype, device=CPU)


def saved(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Save a tiny network; its tensors as they lie on the disk."""
    save_folder(tiny_backbone(tiny_config(**changes)), folder)
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def refuses(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)


def same_weights(one: Backbone, two: Backbone) -> bool:
    mine, yours = dict(one.named_parameters()), dict(two.named_parameters())
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


# --- there and back ---------------------------------------------------------------------------------------------------

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "tied": {"tie_embeddings": True},
    "llama": {"family": "llama", "qkv_bias": False, "num_kv_heads": 4},
    "dream": {"family": "dream", "attention": "full"},
    "block": {"attention": "block", "block_length": 4},
    "llada": {"family": "llada", "attention": "full", "shift_logits": False, "qkv_bias": False},
    "llada_tied": {"family": "llada", "attention": "full", "shift_logits": False, "tie_embeddings": True},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("shard_bytes", [5 * 1000**3, 20_000, 1])
def test_a_saved_network_loads_back_bit_for_bit(changes: dict[str, Any], shard_bytes: int, tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config(**changes))
    save_folder(backbone, tmp_path, shard_bytes=shard_bytes)
    loaded = load(tmp_path)
    assert loaded.config == backbone.config
    assert same_weights(loaded, backbone)
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == backbone.config.tie_embeddings
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_shards_are_as_large_as_asked_for_and_the_index_names_every_tensor(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config())
    save_folder(backbone, tmp_path, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = {path.name: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert len(shards) > 2
    assert {name: file for file, tensors in shards.items() for name in tensors} == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in shards.values()]
    assert max(sizes) <= 20_000
    assert sum(sizes) == index["metadata"]["total_size"] == sum(p.nbytes for p in backbone.parameters())


def test_a_llada_folder_carries_lladas_names(tmp_path: Path) -> None:
    tensors = saved(tmp_path, **CONFIGS["llada"], num_layers=1)
    block = "model.transformer.blocks.0"
    assert {"model.transformer.wte.weight", "model.transformer.ff_out.weight", f"{block}.ff_out.weight"} <= set(tensors)
    assert tensors[f"{block}.ff_proj.weight"].shape == (48, 32)
    assert all(name.startswith("model.transformer.") for name in tensors)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_is_converted_as_torch_does(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in saved(tmp_path).items()}
    rewrite(tmp_path, tensors)
    backbone = load(tmp_path, wanted)
    assert backbone.dtype is wanted
    assert torch.equal(backbone.layers[0].self_attn.q_proj.weight, tensors[Q_PROJ].to(wanted))  # type: ignore[union-attr]


def test_a_head_that_is_stored_beside_a_tied_embedding_is_not_needed(tmp_path: Path) -> None:
    tensors = saved(tmp_path, tie_embeddings=True)
    assert "lm_head.weight" not in tensors
    rewrite(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    backbone = load(tmp_path)
    assert backbone.lm_head.weight is backbone.embed_tokens.weight


def test_rotary_frequencies_in_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    rewrite(tmp_path, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    load(tmp_path)


def test_loading_reads_each_tensor_from_its_own_place(tmp_path: Path) -> None:
    """A file whose data lies in another order than its header, as other writers may leave it."""
    first, second = torch.arange(3.0), torch.arange(10.0, 14.0)
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [12, 28]},
        "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
    }
    text = json.dumps(header).encode()
    data = first.numpy().tobytes() + second.numpy().tobytes()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    a, b = torch.empty(3), torch.empty(2, 2)
    file.read("b", b)
    file.read("a", a)
    file.read("b", b)  # its pages were given back, and come again
    assert torch.equal(a, first)
    assert torch.equal(b, second.view(2, 2))


def test_what_the_caller_states_reaches_the_network(tmp_path: Path) -> None:
    saved(tmp_path)
    override = Override(attention="full", mask_id=3, shift_logits=False)
    config = load_folder(tmp_path, dtype=torch.float32, device=CPU, override=override).config
    assert (config.attention, config.mask_id, config.shift_logits) == ("full", 3, False)


def test_end_ids_come_from_the_generation_config_too(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert read_config(tmp_path).end_ids == (2, 7)


# --- saving is all or nothing -----------------------------------------------------------------------------------------


def test_saving_over_a_checkpoint_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    save_folder(tiny_backbone(tiny_config(num_layers=3)), tmp_path, shard_bytes=20_000)
    (tmp_path / "tokenizer.json").write_text("{}")
    new = tiny_backbone(tiny_config(), seed=1)
    save_folder(new, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert same_weights(load(tmp_path), new)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 10_000, 21_000])
def test_a_save_that_finds_no_room_says_so_and_leaves_nothing_behind(room: int, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with disk_of(room), pytest.raises(CheckpointError, match=r"could not be written .*; free some space there"):
        save_folder(tiny_backbone(tiny_config(vocab_size=200)), folder, shard_bytes=20_000)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_keeps_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    folder, old = tmp_path / "old", tiny_backbone(tiny_config())
    save_folder(old, folder)
    with disk_of(10_000), pytest.raises(CheckpointError, match="could not be written"):
        save_folder(tiny_backbone(tiny_config(), seed=1), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert same_weights(load(folder), old)


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_save_that_is_cut_off_while_moving_never_looks_complete(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    save_folder(tiny_backbone(tiny_config()), folder, shard_bytes=20_000)
    replace, calls = Path.replace, 0

    def cut_off(source: Path, target: Path) -> Path:
        nonlocal calls
        if calls == moves:
            raise KeyboardInterrupt
        calls += 1
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_folder(tiny_backbone(tiny_config(), seed=1), folder, shard_bytes=20_000)
    monkeypatch.undo()
    assert not (folder / "config.json").exists()
    refuses(folder, "holds no config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(CheckpointError, match="model could not be written"):
        save_folder(tiny_backbone(tiny_config()), tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


# --- refusals: the folder ---------------------------------------------------------------------------------------------


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    refuses(tmp_path, "holds no config.json, so it is not a checkpoint folder", "or a .gguf file")


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b""])
def test_a_config_that_is_not_json_is_refused(text: bytes, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    refuses(tmp_path, "config.json is not readable JSON", "download it again")


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    refuses(tmp_path, "config.json must hold a JSON object")


def test_a_diffusion_folder_without_a_mask_id_asks_for_the_flag(tmp_path: Path) -> None:
    saved(tmp_path, family="dream", attention="full")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["mask_token_id"], config["unmask"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    refuses(tmp_path, "attends 'full'", "names no mask id; give it with `--mask-id ID`")


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refuses(tmp_path, "holds no model.safetensors and no model.safetensors.index.json", "convert other formats first")


def test_shards_that_the_index_names_and_that_are_absent_are_named(tmp_path: Path) -> None:
    save_folder(tiny_backbone(tiny_config()), tmp_path, shard_bytes=20_000)
    gone = sorted(tmp_path.glob("*.safetensors"))[1:]
    for path in gone:
        path.unlink()
    refuses(tmp_path, "is incomplete: its index names", *(path.name for path in gone), "download the rest")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}']
)
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    save_folder(tiny_backbone(tiny_config()), tmp_path, shard_bytes=20_000)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refuses(tmp_path, "index", "download")


# --- refusals: the tensors --------------------------------------------------------------------------------------------


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    del tensors[Q_PROJ], tensors["model.norm.weight"]
    rewrite(tmp_path, tensors)
    refuses(tmp_path, str(tmp_path), f"missing: {Q_PROJ}, model.norm.weight. The weights and the config belong to")


def test_an_untied_network_misses_its_head(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    del tensors["lm_head.weight"]
    rewrite(tmp_path, tensors)
    refuses(tmp_path, "missing: lm_head.weight")


def test_of_many_missing_tensors_the_first_four_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    rewrite(tmp_path, {name: tensor for name, tensor in tensors.items() if ".1." not in name})
    refuses(tmp_path, "missing: model.layers.1.input_layernorm.weight,", "k_proj.weight and 8 more.")


def test_unexpected_tensors_are_named(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    rewrite(tmp_path, tensors | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)})
    refuses(tmp_path, "unexpected: model.layers.0.self_attn.q_norm.weight")


def test_a_checkpoint_with_more_layers_than_its_config_is_refused(tmp_path: Path) -> None:
    tensors = saved(tmp_path, num_layers=3)
    saved(tmp_path, num_layers=2)
    rewrite(tmp_path, tensors)
    refuses(tmp_path, "unexpected: model.layers.2.", "and 8 more")


def test_mis_shaped_tensors_are_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    rewrite(tmp_path, tensors | {Q_PROJ: torch.ones(32, 31), "model.norm.weight": torch.ones(3)})
    refuses(tmp_path, f"mis-shaped: {Q_PROJ} is 32×31 instead of 32×32, model.norm.weight is 3 instead of 32")


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    del tensors["model.norm.weight"]
    rewrite(tmp_path, tensors | {Q_PROJ: torch.ones(2, 2), "extra": torch.ones(1)})
    refuses(tmp_path, f"missing: model.norm.weight; unexpected: extra; mis-shaped: {Q_PROJ} is 2×2")


def test_a_tensor_of_a_dtype_that_holds_no_weights_is_named(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    rewrite(tmp_path, tensors | {Q_PROJ: torch.ones(32, 32, dtype=torch.int8)})
    refuses(tmp_path, f"stores {Q_PROJ} as I8; weights are read from F64, F32, F16, BF16")


# --- refusals: the file -----------------------------------------------------------------------------------------------


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for size in [0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        refuses(tmp_path, "model.safetensors is cut short", f"{size}", "download the file again")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    refuses(tmp_path, "its 37 bytes do not hold a safetensors header")


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b"\xff\xff",
        b"[1, 2]",
        b'"text"',
        b'{"x": 1}',
        b'{"x": {}}',
        json.dumps(entry(data_offsets=[0, 4])).encode(),
        json.dumps(entry(data_offsets=[8, 0])).encode(),
        json.dumps(entry(data_offsets=[-8, 0])).encode(),
        json.dumps(entry(data_offsets=[0])).encode(),
        json.dumps(entry(data_offsets=["0", "8"])).encode(),
        json.dumps(entry(shape=[3])).encode(),
        json.dumps(entry(shape=[-2], data_offsets=[8, 0])).encode(),
        json.dumps(entry(shape=[-1, -2])).encode(),
        json.dumps(entry(shape="2")).encode(),
        json.dumps(entry(dtype=None, data_offsets=[8, 0])).encode(),
    ],
)
def test_a_damaged_header_is_refused(header: bytes, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    refuses(tmp_path, "model.safetensors has a damaged safetensors header; download the file again")


def test_a_sound_header_by_hand_passes(tmp_path: Path) -> None:
    """So that the test above fails for the damage it names, and not for a slip in every one of its headers."""
    text = json.dumps(entry()).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1.5, -2.0))
    out = torch.empty(2)
    SafetensorsFile(tmp_path / "x").read("x", out)
    assert out.tolist() == [1.5, -2.0]


# --- memory -----------------------------------------------------------------------------------------------------------

LOAD = """
import sys, torch
from pathlib import Path
from unmask.model.checkpoint import load_folder
backbone = load_folder(Path(sys.argv[1]), dtype=torch.bfloat16, device=torch.device("cpu"))
assert backbone.dtype is torch.bfloat16
total = sum(float(parameter.double().mean()) for parameter in backbone.parameters() if parameter.ndim == 1)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
def test_loading_peaks_below_the_checkpoint_and_a_constant(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=1024, intermediate_size=4096, vocab_size=16_384, num_layers=8, head_dim=64)
    with torch.device("meta"):
        backbone = Backbone(config)
    backbone = backbone.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in backbone.parameters():
        parameter.data.fill_(0.5)
    save_folder(backbone, tmp_path, shard_bytes=64_000_000)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size > 250_000_000
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    run = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=True)
    peak, total = run.stdout.split()
    assert float(total) > 0
    assert int(peak) < 1.15 * size + 400_000_000, f"{int(peak) / size:.2f} times the checkpoint"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_whoever_may_read_new_files_may_read_weights(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_folder(tiny_backbone(tiny_config()), tmp_path / "whole")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "whole").iterdir()} == {0o666 & ~mask}
