"""GGUF files: their metadata, and their weights dequantised into the network.

The header is read here because the `gguf` package's reader needs 8 to 15 s for a vocabulary of 150,000 strings and this
one needs a fraction of a second; the arithmetic of every quantised type is the package's (`gguf.quants.dequantize`),
applied to slices of rows so that no float32 copy of a whole tensor exists.

The format (version 2 and 3, little-endian): magic, version, tensor count, pair count, the key-value pairs, the tensor
table (name, sizes with the fastest first, type, offset), then the data, aligned.

llama.cpp turns interleaved rotary pairs where `transformers` turns halves, so the q and k rows of `llama` and `llada`
files are stored permuted; they are put back here. `qwen2` and `dream` files are stored as they are.
"""

import math
import mmap
import re
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import fill
from unmask.model.config import CANNOT_BE_USED, Attention, Family, ModelConfig, Override

_ARCHITECTURES: dict[str, Family] = {"qwen2": "qwen2", "llama": "llama", "dream": "dream", "llada": "llada"}
_PERMUTED = ("llama", "llada")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ELEMENTS_AT_ONCE = 1 << 16  # fits the second-level cache; the fastest of 2^14 … 2^21
_SAME_MATRIX = 0.5  # relative difference: quantised copies of one matrix stay below it, unrelated ones are at 1.4

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: shape in torch's order, ggml type number, byte range in the file."""

    shape: tuple[int, ...]
    type_number: int
    start: int
    stop: int


class GGUFFile:
    """A mapped GGUF file: `metadata` as plain Python values, `tensors` by their GGUF name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except ValueError:
                raise CheckpointError(f"{path} is empty; download it again") from None
        reader = _Reader(self._map)
        try:
            if reader.take(4) != b"GGUF":
                raise CheckpointError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
            version = reader.number("I")
            if version not in (2, 3):
                raise CheckpointError(
                    f"{path} is GGUF version {version}; versions 2 and 3 are read here, so convert it again"
                )
            num_tensors, num_pairs = reader.number("Q"), reader.number("Q")
            self.metadata: dict[str, Any] = {reader.string(): reader.value() for _ in range(num_pairs)}
            table = [reader.tensor() for _ in range(num_tensors)]
            alignment = int(self.metadata.get("general.alignment", 32))
            base = -(-reader.at // alignment) * alignment
        except (struct.error, OverflowError, ValueError, TypeError, KeyError, ZeroDivisionError):
            raise CheckpointError(f"{path} is cut short or damaged inside its header; download it again") from None
        self.tensors = {name: self._info(name, shape, kind, base + offset) for name, shape, kind, offset in table}

    def _info(self, name: str, shape: tuple[int, ...], type_number: int, start: int) -> TensorInfo:
        block, block_bytes = _block(type_number, name, self.path)
        if shape and shape[-1] % block:
            raise CheckpointError(
                f"{self.path} is damaged: {name} has rows of {shape[-1]} weights in blocks of {block}; download again"
            )
        size = math.prod(shape) // block * block_bytes
        if start + size > len(self._map):
            raise CheckpointError(
                f"{self.path} is cut short: {name} should end at byte {start + size} of {len(self._map)}; "
                "download it again"
            )
        return TensorInfo(shape, type_number, start, start + size)

    def dequantise(self, name: str, out: Tensor) -> None:
        """Copy a tensor into `out` (its shape), slices of rows at a time, two slices at once."""
        info = self.tensors[name]
        target = out if out.device.type == "cpu" else torch.empty(out.shape, dtype=out.dtype)
        rows = info.shape[0] if len(info.shape) > 1 else 1
        words = _as_numpy(target.view(rows, -1))
        step = max(1, _ELEMENTS_AT_ONCE // max(words.shape[1], 1))

        def convert(first: int) -> None:
            count = min(step, rows - first)
            _store(self.rows(info, first, count), words[first : first + count], out.dtype)

        # numpy lets go of the interpreter lock; torch's own threads would wait for each other at every slice.
        with ThreadPoolExecutor(max_workers=2) as pool:
            for _ in pool.map(convert, range(0, rows, step)):
                pass
        if target is not out:
            out.copy_(target)
        self._release(info)

    def rows(self, info: TensorInfo, first: int, count: int) -> npt.NDArray[np.float32]:
        """`count` rows as float32, from row `first` on."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType(info.type_number)
        row_bytes = (info.stop - info.start) // (info.shape[0] if len(info.shape) > 1 else 1)
        start = info.start + first * row_bytes
        raw = np.frombuffer(self._map, np.uint8, count=count * row_bytes, offset=start).reshape(count, row_bytes)
        if kind.name in _PLAIN:
            return raw.view(_PLAIN[kind.name]).astype(np.float32, copy=False)
        # As one long row: the package works through 16 rows at a time, and its calls would cost more than its sums.
        return np.asarray(dequantize(raw.reshape(1, -1), kind), dtype=np.float32).reshape(count, -1)

    def _release(self, info: TensorInfo) -> None:
        if hasattr(self._map, "madvise"):
            first = info.start - info.start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, info.stop - first)


_PLAIN: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16}


def _as_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """The tensor's memory as numpy sees it; bfloat16, which numpy lacks, as 16-bit words."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _store(values: npt.NDArray[np.float32], words: npt.NDArray[Any], dtype: torch.dtype) -> None:
    """Write float32 values in `dtype`; bfloat16 by rounding the upper half of the bits to nearest, ties to even."""
    if dtype is torch.bfloat16:
        bits = values.view(np.uint32)
        words[:] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)
    else:
        words[:] = values


def load_gguf(
    file: GGUFFile, *, dtype: torch.dtype, device: torch.device, override: Override | None = None
) -> Backbone:
    """The network of a GGUF file, dequantised to `dtype`."""
    config = gguf_config(file, override=override)
    return fill(Backbone, config, GGUFWeights(file, config), dtype=dtype, device=device, where=str(file.path))


def gguf_config(file: GGUFFile, *, override: Override | None = None) -> ModelConfig:
    """The `ModelConfig` that a GGUF file's metadata describes."""
    try:
        return _config(file, override or Override())
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{file.path} holds metadata of the wrong kind ({error}); download it again") from error


def _config(file: GGUFFile, override: Override) -> ModelConfig:
    data = file.metadata
    architecture = str(data.get("general.architecture"))
    family = _ARCHITECTURES.get(architecture)
    if family is None:
        raise CheckpointError(
            f"{file.path} has the architecture {architecture!r}, which is not read here; "
            f"{', '.join(_ARCHITECTURES)} are, so {CANNOT_BE_USED}"
        )
    if "rope_freqs.weight" in file.tensors or data.get(f"{architecture}.rope.scaling.type", "none") != "none":
        raise CheckpointError(
            f"{file.path} scales its rotary positions, which is not read from GGUF; use the HF folder of this model "
            "(config.json, tokenizer, safetensors), where Llama 3's scaling is read"
        )

    def need(key: str) -> Any:
        if f"{architecture}.{key}" not in data:
            raise CheckpointError(f"{file.path} lacks the metadata {architecture}.{key}; convert the model again")
        return data[f"{architecture}.{key}"]

    heads, width = int(need("attention.head_count")), int(need("embedding_length"))
    mask_id = data.get("tokenizer.ggml.mask_token_id") if override.mask_id is None else override.mask_id
    shift = override.shift_logits
    if shift is None:
        shift = bool(data.get("diffusion.shift_logits", family != "llada"))
    ends = [data.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return ModelConfig(
        family=family,
        vocab_size=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        hidden_size=width,
        intermediate_size=int(need("feed_forward_length")),
        num_layers=int(need("block_count")),
        num_heads=heads,
        num_kv_heads=int(data.get(f"{architecture}.attention.head_count_kv", heads)),
        head_dim=int(data.get(f"{architecture}.attention.key_length", width // heads)),
        rope_theta=float(data.get(f"{architecture}.rope.freq_base", 10_000.0)),
        rms_norm_eps=float(need("attention.layer_norm_rms_epsilon")),
        max_positions=int(need("context_length")),
        tie_embeddings=_is_tied(file),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        attention=_attention(file, family, architecture, override),
        block_length=override.block_length,
        shift_logits=shift,
        mask_id=None if mask_id is None else int(mask_id),
        end_ids=tuple(dict.fromkeys(int(end) for end in ends if end is not None)),
        bos_id=data.get("tokenizer.ggml.bos_token_id"),
        pad_id=data.get("tokenizer.ggml.padding_token_id"),
    )


def _attention(file: GGUFFile, family: Family, architecture: str, override: Override) -> Attention:
    """What the caller states, else what the file says, else what its architecture means."""
    is_causal = file.metadata.get(f"{architecture}.attention.causal", family not in ("dream", "llada"))
    if override.attention is not None or not is_causal:
        return override.attention or "full"
    mask_id = file.metadata.get("tokenizer.ggml.mask_token_id")
    if mask_id is not None and f"{architecture}.attention.causal" not in file.metadata:
        raise CheckpointError(
            f"{file.path} is of the autoregressive architecture {architecture!r} and yet names the mask id {mask_id}, "
            "and it does not say how its positions attend; "
            "give `--attention full`, `--attention block:LENGTH` or `--attention causal`"
        )
    return "causal"


class GGUFWeights:
    """A GGUF file's tensors under `transformers`' names, in `transformers`' row order."""

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._file, self._config = file, config
        self._where = {_hf_name(name): name for name in file.tensors}
        if config.tie_embeddings and "lm_head.weight" in self._where:
            head = self._where.pop("lm_head.weight")
            self._where["model.embed_tokens.weight"] = _finer(file, self._where["model.embed_tokens.weight"], head)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: self._file.tensors[stored].shape for name, stored in self._where.items()}

    def read(self, name: str, out: Tensor) -> None:
        permuted = self._config.family in _PERMUTED and re.search(r"self_attn\.[qk]_proj", name)
        if not permuted:
            self._file.dequantise(self._where[name], out)
            return
        stored = torch.empty(out.shape, dtype=out.dtype)
        self._file.dequantise(self._where[name], stored)
        heads = self._config.num_heads if ".q_proj" in name else self._config.num_kv_heads
        out.copy_(_halves_from_pairs(stored, heads))


def _halves_from_pairs(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head from (pair, part) order to (part, pair) order."""
    split = rows.view(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def _hf_name(name: str) -> str:
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in _NAMES:
        return f"model.layers.{match[1]}.{_NAMES[match[2]]}.{match[3]}"
    return name


def _is_tied(file: GGUFFile) -> bool:
    """True when input embedding and head are one matrix: the head is left out, or is another quantisation of it."""
    if "output.weight" not in file.tensors:
        return True
    embedding, head = file.tensors.get("token_embd.weight"), file.tensors["output.weight"]
    if embedding is None or embedding.shape != head.shape:
        return False
    one, two = (file.rows(info, 0, min(64, info.shape[0])) for info in (embedding, head))
    return bool(np.linalg.norm(one - two) < _SAME_MATRIX * np.linalg.norm(one))


def _finer(file: GGUFFile, one: str, two: str) -> str:
    """The name of the tensor that spends more bytes per weight."""
    return max((one, two), key=lambda name: file.tensors[name].stop - file.tensors[name].start)


def _block(type_number: int, name: str, path: Path) -> tuple[int, int]:
    """(elements, bytes) of one block of a ggml type; CheckpointError for a type that cannot be dequantised."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import _type_traits

    try:
        kind = GGMLQuantizationType(type_number)
    except ValueError:
        kind = None
    if kind is None or (kind.name not in _PLAIN and kind not in _type_traits):
        spoken = f"type {type_number}" if kind is None else kind.name
        raise CheckpointError(
            f"{path} stores {name} as {spoken}, which cannot be dequantised here; "
            "take a file in F32, F16, BF16, Q4_0 to Q8_0 or a K-quant"
        )
    block, size = GGML_QUANT_SIZES[kind]
    return int(block), int(size)


class _Reader:
    """A cursor over the header bytes that moves on with every value read."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """The loop that runs 300,000 times: everything it touches is local."""
        length_at, data, at = struct.Struct("<Q").unpack_from, self._data, self.at
        found = []
        for _ in range(count):
            start = at + 8
            at = start + length_at(data, at)[0]
            found.append(data[start:at].decode())
        if at > len(data):
            raise struct.error("it ends inside a string")
        self.at = at
        return found

    def value(self, kind: int | None = None) -> Any:
        kind = self.number("I") if kind is None else kind
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        element, count = self.number("I"), self.number("Q")
        if element == _STRING:
            return self.strings(count)
        if element == _ARRAY:
            return [self.value(_ARRAY) for _ in range(count)]
        layout = struct.Struct(f"<{count}{_SCALARS[element]}")
        values = layout.unpack_from(self._data, self.at)
        self.at += layout.size
        return list(values)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        sizes = [self.number("Q") for _ in range(self.number("I"))]
        return name, tuple(reversed(sizes)), self.number("I"), self.number("Q")
