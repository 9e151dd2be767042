"""LoRA adapters in PEFT's folder format, merged into the network's plain weights (Hu et al., 2021, section 4.1).

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`. For each adapted matrix W [O, I] it
stores A [r, I] and B [O, r], and the merged matrix is

    W + scale · B A        scale = lora_alpha / r, or lora_alpha / √r with use_rslora

computed in float32, a slice of rows at a time, and rounded once to the dtype of W. An embedding's pair is stored
transposed, A [r, V] and B [D, r], and adds scale · (B A)ᵀ. Modules that were trained whole (`modules_to_save`) replace
the network's own.

Only what a merge reproduces exactly is read. DoRA, biases and the other variants are refused by name, because a merge
that leaves a part of an adapter out gives a network that nobody trained. Everything is read and checked before the
first weight changes.

Letters: O outputs, I inputs, r rank, V vocabulary, D width.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import SafetensorsFile, hf_name, hf_to_llada_name, mismatches, read_json
from unmask.model.packed import PackedLinear

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ROWS_AT_ONCE = 2048  # rows of a matrix that are held in float32 at a time

# Settings that change what an adapter computes; each is refused unless it is off.
_VARIANTS = {
    "use_dora": "DoRA",
    "lora_bias": "biases on the LoRA matrices",
    "fan_in_fan_out": "transposed weights",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "adapted parameters outside linear layers",
    "trainable_token_indices": "single trained embedding rows",
}
# The other starting points (PiSSA, OLoRA, CorDA, LoftQ and their like) change W itself before training begins.
_STARTS_THAT_KEEP_THE_WEIGHT = (True, False, None, "gaussian", "eva", "orthogonal")


def merge_adapter(backbone: Backbone, folder: Path) -> None:
    """Merge a PEFT LoRA folder into the network's weights, in place and before packing.

    Raises CheckpointError, and leaves the network unchanged, for a folder that is no adapter, for an adapter that does
    not fit the network, and for one whose effect is more than a change of plain matrices.
    """
    if any(isinstance(module, PackedLinear) for module in backbone.modules()):
        raise CheckpointError("the network is packed, and packed matrices cannot be changed; merge first, then `pack`")
    settings = read_settings(folder)
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no {_WEIGHTS}; save the adapter as safetensors")
    file = SafetensorsFile(folder / _WEIGHTS)
    parameters = _parameters(backbone)
    embedding, head = (_stored_name(backbone, name) for name in ("embed_tokens.weight", "lm_head.weight"))
    if backbone.config.tie_embeddings and settings.ensure_weight_tying:
        settings = replace(settings, follows={_module(head): _module(embedding)})
    _compare(file, parameters, settings, where=folder)
    changes = {name: _read_change(file, name, parameter, settings) for name, parameter in parameters.items()}
    if backbone.config.tie_embeddings:
        _check_tie(parameters[embedding], changes[embedding], changes[head], where=folder)
        del changes[head]  # one matrix, which changes once
    with torch.no_grad():
        for name, change in changes.items():
            if not change.is_empty:
                for rows, merged in _merged_rows(parameters[name], change):
                    rows.copy_(merged)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """The part of `adapter_config.json` that decides what is merged where. A str of names is a regular expression."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    target_modules: str | Sequence[str]
    exclude_modules: str | Sequence[str]
    modules_to_save: Sequence[str]
    layers_to_transform: Sequence[int]
    ensure_weight_tying: bool
    follows: Mapping[str, str] = field(default_factory=dict)  # a tied head has its embedding's matrices

    def is_saved(self, module: str) -> bool:
        """True for a module that was trained whole, by itself or within another; PEFT compares bare endings here."""
        return any(re.search(rf"{re.escape(name)}(\.|$)", module) for name in self.modules_to_save)

    def is_target(self, module: str) -> bool:
        """True for a module that has a pair A, B, unless it is saved whole."""
        if _is_among(module, self.exclude_modules):
            return False
        if isinstance(self.target_modules, str) or module in self.target_modules or not self.layers_to_transform:
            return _is_among(module, self.target_modules)
        layer = re.search(r"\.(\d+)\.", module)
        return (
            layer is not None and int(layer[1]) in self.layers_to_transform and _is_among(module, self.target_modules)
        )

    def rank_of(self, module: str) -> int:
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What happens to one parameter: it is replaced, or scale · left · right is added to it, or both, or nothing."""

    replacement: Tensor | None = None
    left: Float[Tensor, "O r"] | None = None
    right: Float[Tensor, "r I"] | None = None
    scale: float = 1.0

    @property
    def is_empty(self) -> bool:
        return self.replacement is None and self.left is None


def read_settings(folder: Path) -> _Settings:
    path = folder / _CONFIG
    if not path.is_file():
        kind = "is a checkpoint and not an adapter" if (folder / "config.json").is_file() else "is not an adapter"
        raise CheckpointError(f"{folder} {kind}: it holds no {_CONFIG}; give the folder that PEFT saved the adapter in")
    config = read_json(path)
    _refuse_variants(config, where=folder)
    try:
        return _parse(config)
    except (TypeError, ValueError, AttributeError, KeyError, re.error) as error:
        raise CheckpointError(
            f"{path} is damaged: a setting is missing or of the wrong kind ({type(error).__name__}: {error}); "
            "download it again"
        ) from None


def _refuse_variants(config: Mapping[str, Any], *, where: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{where} is an adapter of the type {kind!r}; only 'LORA' is merged here: merge it with peft first"
        )
    variants = [f"{spoken} ({key})" for key, spoken in _VARIANTS.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        variants.append(f"trained biases (bias {config['bias']!r})")
    start = config.get("init_lora_weights")
    if start not in _STARTS_THAT_KEEP_THE_WEIGHT:
        variants.append(f"a start that changes the weights themselves (init_lora_weights {start!r})")
    if variants:
        raise CheckpointError(
            f"{where} uses {', '.join(variants)}; only plain LoRA is merged here: merge it with peft first"
        )


def _parse(config: Mapping[str, Any]) -> _Settings:
    layers = config.get("layers_to_transform")
    settings = _Settings(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        use_rslora=bool(config.get("use_rslora")),
        rank_pattern={key: int(rank) for key, rank in (config.get("rank_pattern") or {}).items()},
        alpha_pattern={key: float(alpha) for key, alpha in (config.get("alpha_pattern") or {}).items()},
        target_modules=_names(config["target_modules"]),
        exclude_modules=_names(config.get("exclude_modules") or ()),
        modules_to_save=[str(name) for name in config.get("modules_to_save") or ()],
        layers_to_transform=[layers] if isinstance(layers, int) else [int(layer) for layer in layers or ()],
        ensure_weight_tying=bool(config.get("ensure_weight_tying")),
    )
    if min([settings.rank, *settings.rank_pattern.values()]) < 1:
        raise ValueError("a rank must be at least 1")
    for pattern in (*settings.rank_pattern, *settings.alpha_pattern):
        re.compile(pattern)
    return settings


def _names(value: Any) -> str | Sequence[str]:
    return re.compile(value).pattern if isinstance(value, str) else [str(name) for name in value]


def _is_among(module: str, names: str | Sequence[str]) -> bool:
    """PEFT's rule: a regular expression must match the whole name, a listed name its end."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches the end of the name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Every parameter under the name that adapters know it by; a tied head stands under both its names."""
    named = backbone.named_parameters(remove_duplicate=False)
    return {_stored_name(backbone, name): parameter for name, parameter in named}


def _stored_name(backbone: Backbone, name: str) -> str:
    return hf_to_llada_name(hf_name(name)) if backbone.config.family == "llada" else hf_name(name)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _compare(
    file: SafetensorsFile, parameters: Mapping[str, nn.Parameter], settings: _Settings, *, where: Path
) -> None:
    """Refuse an adapter whose tensors are not those that its config and the network call for."""
    wanted: dict[str, tuple[int, ...]] = {}
    optional: dict[str, tuple[int, ...]] = {}  # PEFT saves embedding and head beside their pairs, or when resized
    for name, parameter in parameters.items():
        shape, module = tuple(parameter.shape), settings.follows.get(_module(name), _module(name))
        if settings.is_saved(module):
            wanted[_PREFIX + name] = shape
        elif parameter.ndim == 2 and settings.is_target(module):
            (one, two), (outputs, inputs), rank = _pair(name), shape, settings.rank_of(module)
            wanted[one] = (rank, outputs if _is_embedding(name) else inputs)
            wanted[two] = (inputs if _is_embedding(name) else outputs, rank)
        if _is_embedding(name) or _is_head(name):
            optional |= {_PREFIX + name: shape, f"{_PREFIX}{_module(name)}.base_layer.weight": shape}
    if not wanted:
        raise CheckpointError(
            f"{where} adapts {settings.target_modules!r}, and this network has no such layer; "
            "the adapter belongs to another model"
        )
    problems = mismatches(wanted, {name: tuple(e["shape"]) for name, e in file.header.items()}, optional=optional)
    if problems:
        raise CheckpointError(
            f"{where} does not hold the tensors that its config describes for this network; {problems}. "
            "The adapter belongs to another model, or its file is incomplete"
        )


def _is_embedding(name: str) -> bool:
    return name in ("model.embed_tokens.weight", "model.transformer.wte.weight")


def _is_head(name: str) -> bool:
    return name in ("lm_head.weight", "model.transformer.ff_out.weight")


def _pair(name: str) -> tuple[str, str]:
    """The names of A and B for a weight."""
    module = _PREFIX + _module(name)
    if _is_embedding(name):
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _read_change(file: SafetensorsFile, name: str, parameter: nn.Parameter, settings: _Settings) -> _Change:
    replacement = None
    for stored in (_PREFIX + name, f"{_PREFIX}{_module(name)}.base_layer.weight"):
        if stored in file.header:
            replacement = _read(file, stored, like=parameter, dtype=parameter.dtype)
    one, two = _pair(name)
    if parameter.ndim != 2 or one not in file.header:
        return _Change(replacement=replacement)
    A, B = (_read(file, stored, like=parameter, dtype=torch.float32) for stored in (one, two))
    left, right = (A.T, B.T) if _is_embedding(name) else (B, A)
    return _Change(replacement=replacement, left=left, right=right, scale=settings.scale_of(_module(name)))


def _read(file: SafetensorsFile, name: str, *, like: Tensor, dtype: torch.dtype) -> Tensor:
    values = torch.empty(file.header[name]["shape"], dtype=dtype, device=like.device)
    file.read(name, values)
    return values


def _check_tie(weight: Tensor, embedding: _Change, head: _Change, *, where: Path) -> None:
    """Embedding and head are one matrix, so the adapter must want the same of both."""
    pairs = zip(_merged_rows(weight, embedding), _merged_rows(weight, head), strict=True)
    if all(torch.allclose(one, two, rtol=1e-4, atol=1e-7) for (_, one), (_, two) in pairs):
        return
    changed = "the embedding alone" if head.is_empty else "the head alone" if embedding.is_empty else "them differently"
    raise CheckpointError(
        f"the network uses one matrix as input embedding and as head, and {where} changes {changed}; merged into that "
        "matrix it would change both alike. Train it with ensure_weight_tying, or give the network a head of its own"
    )


def _merged_rows(weight: Tensor, change: _Change) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of the parameter, each with the float32 values it has after the change."""
    source = weight if change.replacement is None else change.replacement
    for first in range(0, weight.shape[0], _ROWS_AT_ONCE):
        here = slice(first, first + _ROWS_AT_ONCE)
        merged = source.detach()[here].float()
        if change.left is not None and change.right is not None:
            merged = torch.addmm(merged, change.left[here], change.right, alpha=change.scale)
        yield weight.detach()[here], merged
