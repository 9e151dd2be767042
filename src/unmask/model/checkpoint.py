"""Hugging Face checkpoint folders, in and out.

Reading maps each safetensors file, copies every tensor once into its place in the network, and gives the mapped pages
back as it goes: peak memory is the network and one tensor. Before the first byte is copied the headers alone are
compared with the network, so a checkpoint with missing, unexpected or mis-shaped tensors is refused at once and whole.

Parameters carry `transformers`' Qwen2 names (`model.layers.0.self_attn.q_proj.weight`); LLaDA's are translated here.
"""

import json
import math
import mmap
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.model.backbone import Backbone
from unmask.model.config import Family, ModelConfig, Override
from unmask.model.gate import GatedLinear
from unmask.model.packed import PackedLinear

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_SHARD_BYTES = 5 * 1000**3
_LISTED = 4  # tensors named in full in an error message


class TensorSource(Protocol):
    """Named tensors somewhere on disk, under the names of `transformers`' Qwen2."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's name and shape, without reading data."""
        ...

    def read(self, name: str, out: Tensor) -> None:
        """Copy one tensor into `out`, converting its dtype."""
        ...


def load_folder(
    folder: Path, *, dtype: torch.dtype, device: torch.device, override: Override | None = None
) -> Backbone:
    """The network of a Hugging Face folder. Raises CheckpointError for one that is incomplete or damaged."""
    config = read_config(folder, override=override)
    return fill(
        Backbone, config, SafetensorsFolder(folder, config.family), dtype=dtype, device=device, where=str(folder)
    )


def read_config(folder: Path, *, override: Override | None = None) -> ModelConfig:
    """The `ModelConfig` of a folder with a `config.json`."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no config.json, so it is not a checkpoint folder; give the folder "
            "that has it, or a .gguf file"
        )
    generation = folder / "generation_config.json"
    return ModelConfig.from_hf(
        read_json(folder / "config.json"),
        generation=read_json(generation) if generation.is_file() else None,
        override=override,
    )


def fill(
    build: Callable[[ModelConfig], Backbone],
    config: ModelConfig,
    source: TensorSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    where: str,
) -> Backbone:
    """Build the network without memory, then give each parameter its storage and its values, one at a time."""
    with torch.device("meta"):
        backbone = build(config)
    wanted = {hf_name(name): tuple(parameter.shape) for name, parameter in backbone.named_parameters()}
    _compare(wanted, source.shapes(), tied=config.tie_embeddings, where=where)
    for name, parameter in list(backbone.named_parameters()):
        values = torch.empty(parameter.shape, dtype=dtype, device=device)
        source.read(hf_name(name), values)
        owner = backbone.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(values, requires_grad=False))
    if config.tie_embeddings:
        backbone.lm_head.weight = backbone.embed_tokens.weight
    return backbone.eval()


def save_folder(backbone: Backbone, folder: Path, *, shard_bytes: int = _SHARD_BYTES) -> None:
    """Write config.json and sharded safetensors that `transformers` and `load_folder` read.

    A drafter inside is left out: what is written is its parent. The files go into a folder beside `folder` and are then
    moved into it, config last, so that neither a crash nor a full disk leaves a folder that looks complete and is not.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _write_files(backbone, temporary, shard_bytes=shard_bytes)
            folder.mkdir(exist_ok=True)
            for stale in ("config.json", "model.safetensors.index.json", "model*.safetensors"):
                for path in folder.glob(stale):
                    path.unlink()
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} could not be written ({error}); free some space there or name another folder"
        ) from error


def _write_files(backbone: Backbone, folder: Path, *, shard_bytes: int) -> None:
    """One shard in memory at a time; a shard gets its name when their number is known."""
    held: list[list[str]] = []
    total = 0
    for shard in _shards(_plain_parameters(backbone), backbone.config.family, shard_bytes):
        unnamed = folder / f"shard-{len(held)}"
        write_tensors(shard, unnamed)
        held.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    index: dict[str, str] = {}
    for number, names in enumerate(held):
        file = "model.safetensors" if len(held) == 1 else f"model-{number + 1:05d}-of-{len(held):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        index |= dict.fromkeys(names, file)
    if len(held) > 1:
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    dtype = str(backbone.dtype).removeprefix("torch.")
    config = backbone.config if backbone.mask_row is None else replace(backbone.config, mask_id=None)  # the drafter's
    _write_json(folder / "config.json", {**config.to_hf(), "torch_dtype": dtype})


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file. Raises OSError and SafetensorError.

    The library leaves one that its owner alone may read; this may be read by whoever may read other new files.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    path.chmod(mode)


def hf_name(name: str) -> str:
    """Our parameter name as `transformers` spells it."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object; download it again")
    return data


class SafetensorsFolder:
    """The tensors of a folder: one `model.safetensors`, or the shards that its index names."""

    def __init__(self, folder: Path, family: Family) -> None:
        self._files = [SafetensorsFile(path) for path in _shard_paths(folder)]
        self._where: dict[str, tuple[SafetensorsFile, str]] = {}
        for file in self._files:
            for stored in file.header:
                name = llada_to_hf_name(stored) if family == "llada" else stored
                self._where[name] = (file, stored)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(file.header[stored]["shape"]) for name, (file, stored) in self._where.items()}

    def read(self, name: str, out: Tensor) -> None:
        file, stored = self._where[name]
        file.read(stored, out)


class SafetensorsFile:
    """One safetensors file: an 8-byte length, a JSON header, then the data. Mapped, never loaded as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < length <= size - 8:
                raise _truncated(path, f"its {size} bytes do not hold a safetensors header")
            self.header = _tensor_table(path, file.read(length))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._data = 8 + length
        end = max((entry["data_offsets"][1] for entry in self.header.values()), default=0)
        if self._data + end > size:
            raise _truncated(path, f"its header promises {self._data + end} bytes and it has {size}")

    def read(self, name: str, out: Tensor) -> None:
        entry = self.header[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"{self.path} stores {name} as {entry['dtype']}; weights are read from {', '.join(_DTYPES)}"
            )
        start, stop = (self._data + offset for offset in entry["data_offsets"])
        if stop > start:
            count = (stop - start) // dtype.itemsize
            out.copy_(torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).view(entry["shape"]))
            self._release(start, stop)

    def _release(self, start: int, stop: int) -> None:
        """Give the pages behind us back; they are unchanged file pages and can be read again."""
        if hasattr(self._map, "madvise"):
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)


def _tensor_table(path: Path, header: bytes) -> dict[str, dict[str, Any]]:
    """Each tensor's dtype, shape and place, with sizes that agree with each other."""
    try:
        table: dict[str, dict[str, Any]] = json.loads(header)
        table.pop("__metadata__", None)
        for entry in table.values():
            (start, stop), dtype = entry["data_offsets"], _DTYPES.get(entry["dtype"])
            size = stop - start if dtype is None else math.prod(entry["shape"]) * dtype.itemsize
            if min(start, *entry["shape"], 0) < 0 or not 0 <= size == stop - start:
                raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{path} has a damaged safetensors header; download the file again") from None
    return table


_LLADA_NAMES = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "transformer.ff_out.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_LLADA_FROM_HF = {ours: theirs for theirs, ours in _LLADA_NAMES.items()}


def llada_to_hf_name(name: str) -> str:
    """LLaDA's parameter name as Qwen2's; a name that LLaDA does not have comes back unchanged.

    >>> llada_to_hf_name("model.transformer.blocks.3.ff_proj.weight")
    'model.layers.3.mlp.gate_proj.weight'
    """
    whole = _LLADA_NAMES.get(name.removeprefix("model."))
    if whole is not None:
        return whole
    match = re.fullmatch(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in _LLADA_NAMES:
        return f"model.layers.{match[1]}.{_LLADA_NAMES[match[2]]}.{match[3]}"
    return name


def hf_to_llada_name(name: str) -> str:
    """The inverse of `llada_to_hf_name`."""
    if name in _LLADA_FROM_HF:
        return f"model.{_LLADA_FROM_HF[name]}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        raise AssertionError(f"{name} is no parameter of the network")
    return f"model.transformer.blocks.{match[1]}.{_LLADA_FROM_HF[match[2]]}.{match[3]}"


def _shard_paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
            raise CheckpointError(f"{index} does not say which file holds which tensor; download it again")
        names = sorted(set(table.values()))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{folder} is incomplete: its index names {_some(absent)}, not in the folder; download the rest"
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise CheckpointError(
            f"{folder} holds no model.safetensors and no model.safetensors.index.json; weights are read from "
            "safetensors, so convert other formats first"
        )
    return [single]


def _compare(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, tied: bool, where: str
) -> None:
    weights = {name: shape for name, shape in found.items() if not name.endswith("rotary_emb.inv_freq")}
    optional = {"lm_head.weight": wanted["model.embed_tokens.weight"]} if tied else {}
    problems = mismatches(wanted, weights, optional=optional)
    if problems:
        raise CheckpointError(
            f"{where} does not hold the tensors that its config describes; {problems}. "
            "The weights and the config belong to different models, or a file is missing"
        )


def mismatches(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    optional: Mapping[str, tuple[int, ...]],
) -> str:
    """The missing, unexpected and mis-shaped tensors by name; empty when there are none.

    >>> mismatches({"a": (2, 3), "b": (4,)}, {"a": (3, 2), "c": (1,)}, optional={})
    'missing: b; unexpected: c; mis-shaped: a is 3×2 instead of 2×3'
    """
    known = {**optional, **wanted}
    wrong = [
        f"{name} is {_dims(shape)} instead of {_dims(known[name])}"
        for name, shape in found.items()
        if name in known and known[name] != shape
    ]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in known],
        "mis-shaped": wrong,
    }
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names)


def _dims(shape: Iterable[int]) -> str:
    return "×".join(str(size) for size in shape)


def _some(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _truncated(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is cut short: {why}; download the file again")


def _plain_parameters(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its HF name, packed layers unpacked, a tied head and a drafter left out."""
    gated = {name for name, module in backbone.named_modules() if isinstance(module, GatedLinear)}
    for name, parameter in backbone.named_parameters():
        owner, _, last = name.rpartition(".")
        if name != "mask_row" and owner not in gated:
            yield hf_name(f"{_ungated(owner, gated)}.{last}"), parameter.detach()
    for name, module in backbone.named_modules():
        if isinstance(module, PackedLinear) and not (name == "lm_head" and backbone.config.tie_embeddings):
            yield hf_name(f"{_ungated(name, gated)}.weight"), module.plain_weight()


def _ungated(name: str, gated: Collection[str]) -> str:
    """A layer's name without the gate around it."""
    owner = name.removesuffix(".base")
    return owner if owner in gated else name


def _shards(parameters: Iterator[tuple[str, Tensor]], family: Family, shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in parameters:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[hf_to_llada_name(name) if family == "llada" else name] = tensor
        size += tensor.nbytes
    yield shard


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
