"""Low-rank adaptation for training (LoRA; Hu et al., 2021): a frozen matrix W [O, I] and a trained change of rank r,

    y = W x + scale · B A x        A [r, I], B [O, r]        scale = alpha / r, or alpha / √r with use_rslora
                                                                      (Kalajdzievski, 2023)

A starts as `nn.Linear` starts (Kaiming uniform, bound 1/√I), B at zero, so training begins at the given network. A and
B are float32 whatever the network is, because they are what the optimiser moves. There is no dropout: it would be the
one random choice that depends on the order of the batch.

`LoraLinear` is an `nn.Linear` with two children, so a parameter of the network keeps its name and the new ones stand
beside it: `layers.0.self_attn.q_proj.weight`, `…q_proj.lora_A.weight`, `…q_proj.lora_B.weight`. Folders are PEFT's:
`peft` loads what is saved here, `merge_adapter` merges it, and training goes on from an adapter that `peft` saved.

Letters: O outputs, I inputs, r rank.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F

from unmask.errors import CheckpointError, SettingsError, did_you_mean
from unmask.model.adapter import read_settings
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import SafetensorsFile, hf_name, hf_to_llada_name, mismatches, write_tensors
from unmask.seeds import derive_seed

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block. The vocabulary head is none of them: the chunked loss reads its weight directly."""

_PREFIX = "base_model.model."  # of every name in PEFT's files


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Which layers are adapted, and how."""

    rank: int = 16
    """Inner size r of each change; at least 1."""
    alpha: float = 32.0
    """Numerator of the scale."""
    targets: tuple[str, ...] = LINEARS
    """The linear layers that are adapted, in every block."""
    use_rslora: bool = False
    """Divide alpha by √r instead of r, so that a larger rank does not shrink the change."""
    train_embeddings: bool = False
    """Train the embedding matrix whole (and with it a tied head), as a mask token that was never seen needs."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingsError(f"the LoRA rank is {self.rank}; it must be at least 1 (8 to 64 are usual)")
        if not self.alpha > 0:
            raise SettingsError(f"the LoRA alpha is {self.alpha}; it must be above 0 (twice the rank is usual)")
        for target in self.targets:
            if target not in LINEARS:
                raise SettingsError(f"the LoRA target {target!r} is no linear layer; {did_you_mean(target, LINEARS)}")
        if not self.targets:
            raise SettingsError(f"LoRA needs a layer to adapt and targets is empty; known: {', '.join(LINEARS)}")

    @property
    def scale(self) -> float:
        """What B A is multiplied by.

        >>> LoraSettings(rank=16, alpha=32).scale, LoraSettings(rank=16, alpha=32, use_rslora=True).scale
        (2.0, 8.0)
        """
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class LoraLinear(nn.Linear):
    """A frozen linear layer and its low-rank change."""

    def __init__(self, base: nn.Linear, settings: LoraSettings, *, seed: int) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = settings.scale
        self.is_on = True
        device = base.weight.device
        self.lora_A = nn.Linear(base.in_features, settings.rank, bias=False, device=device, dtype=torch.float32)
        self.lora_B = nn.Linear(settings.rank, base.out_features, bias=False, device=device, dtype=torch.float32)
        with torch.no_grad():
            self.lora_A.weight.copy_(_start(settings.rank, base.in_features, seed=seed))
            self.lora_B.weight.zero_()

    def forward(self, input: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        if not self.is_on:
            return super().forward(input)
        # Outside autocast the pair follows the input's dtype; inside, `F.linear` casts both again.
        A, B = self.lora_A.weight.to(input.dtype), self.lora_B.weight.to(input.dtype)
        out, inner = super().forward(input), F.linear(input, A)
        rows, inner = out.reshape(-1, out.shape[-1]), inner.reshape(-1, inner.shape[-1])
        return torch.addmm(rows, inner, (self.scale * B).t()).view(out.shape)  # one pass over the output

    def merged_weight(self) -> Float[Tensor, "O I"]:
        """W + scale · B A, computed in float32 and rounded once to the dtype of W."""
        weight = self.weight.detach()
        change = self.lora_B.weight.detach() @ self.lora_A.weight.detach()
        return torch.add(weight.float(), change, alpha=self.scale).to(weight.dtype)


def add_lora(backbone: Backbone, settings: LoraSettings, *, seed: int) -> None:
    """Freeze the network and put a trainable change beside each targeted matrix, in place and before any sharding.

    A matrix's start depends on the seed and its name alone, so adapting more layers does not move the others.
    """
    if next(lora_layers(backbone), None) is not None:
        raise SettingsError("the network already has LoRA layers; merge them first, or train the ones that it has")
    backbone.requires_grad_(False)
    for name, linear in list(backbone.named_modules()):
        owner, _, last = name.rpartition(".")
        if last in settings.targets and isinstance(linear, nn.Linear):
            setattr(
                backbone.get_submodule(owner),
                last,
                LoraLinear(linear, settings, seed=derive_seed(seed, f"lora {name}")),
            )
    if settings.train_embeddings:
        with torch.no_grad():
            backbone.embed_tokens.float()  # in place, so a tied head follows
        backbone.embed_tokens.weight.requires_grad_(True)


@contextmanager
def without_lora(backbone: Backbone) -> Iterator[None]:
    """The parent's products alone: what a drafter's clean pass and its teacher are."""
    layers = [lora for _, lora in lora_layers(backbone)]
    for lora in layers:
        lora.is_on = False
    try:
        yield
    finally:
        for lora in layers:
            lora.is_on = True


def merge_lora(backbone: Backbone) -> None:
    """Fold every change into its matrix and leave plain linear layers, in place: what an export needs."""
    for name, lora in list(lora_layers(backbone)):
        plain = nn.Linear(lora.in_features, lora.out_features, bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(lora.merged_weight(), requires_grad=False), lora.bias
        owner, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(owner), last, plain)


def lora_layers(backbone: Backbone) -> Iterator[tuple[str, LoraLinear]]:
    """Every adapted layer and its name."""
    for name, module in backbone.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def save_adapter(
    backbone: Backbone, folder: Path, settings: LoraSettings, *, base_name: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write the changes as a PEFT folder. `base_name` is the checkpoint or hub id of the network they belong to.

    Both files are written into a folder beside `folder` and then moved into it, the config last. With sharded
    parameters every rank calls this, since their parts are gathered; only rank 0 writes.
    """
    tensors = {name: whole(parameter).to(dtype) for name, parameter in _stored_parameters(backbone, settings)}
    if distributed.is_initialized() and distributed.get_rank() != 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            write_tensors(tensors, temporary / "adapter_model.safetensors")
            _write_config(temporary / "adapter_config.json", _peft_config(backbone, settings, base_name))
            (folder / "adapter_config.json").unlink(missing_ok=True)
            for file in ("adapter_model.safetensors", "adapter_config.json"):
                (temporary / file).replace(folder / file)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter could not be written to {folder} ({error}); free some space there or name another folder"
        ) from error


def load_adapter_weights(backbone: Backbone, folder: Path, settings: LoraSettings) -> None:
    """Put a saved adapter's values into the changes that `add_lora` made with the same settings, to train them on.

    Raises CheckpointError, and leaves the network unchanged, for an adapter of other settings or of another network.
    """
    _compare_settings(folder, settings)
    wanted = dict(_stored_parameters(backbone, settings))
    file = SafetensorsFile(folder / "adapter_model.safetensors")
    shapes = {name: tuple(parameter.shape) for name, parameter in wanted.items()}
    found = {name: tuple(entry["shape"]) for name, entry in file.header.items()}
    problems = mismatches(shapes, found, optional={})
    if problems:
        raise CheckpointError(
            f"{folder} does not hold the changes of this network's adapted layers; {problems}. "
            "The adapter belongs to another model or to other settings"
        )
    values = {name: torch.empty(shape, dtype=torch.float32) for name, shape in shapes.items()}
    for name, value in values.items():
        file.read(name, value)
    with torch.no_grad():
        for name, parameter in wanted.items():
            _fill(parameter, values[name])


def _start(rank: int, inputs: int, *, seed: int) -> Float[Tensor, "r I"]:
    """Uniform in ±1/√I: Kaiming's rule with a = √5. Drawn on the CPU, so a GPU starts from the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(rank, inputs, generator=generator, device="cpu") - 1) / math.sqrt(inputs)


def whole(parameter: Tensor) -> Tensor:
    """A parameter's values on the CPU, its shards gathered."""
    values = parameter.detach()
    return (values.full_tensor() if isinstance(values, DTensor) else values).cpu().clone()


def _fill(parameter: Tensor, values: Tensor) -> None:
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        values = distribute_tensor(values.to(parameter.device), mesh, placements)
    parameter.copy_(values)


def _stored_parameters(backbone: Backbone, settings: LoraSettings) -> Iterator[tuple[str, Tensor]]:
    """Every trained parameter under its name in PEFT's file."""
    for name, lora in lora_layers(backbone):
        stored = _PREFIX + _stored_name(backbone, f"{name}.weight").removesuffix("weight")
        yield f"{stored}lora_A.weight", lora.lora_A.weight
        yield f"{stored}lora_B.weight", lora.lora_B.weight
    if settings.train_embeddings:
        yield _PREFIX + _stored_name(backbone, "embed_tokens.weight"), backbone.embed_tokens.weight
        if backbone.config.tie_embeddings:  # PEFT stores a tied matrix under both its names
            yield _PREFIX + _stored_name(backbone, "lm_head.weight"), backbone.embed_tokens.weight


def _stored_name(backbone: Backbone, name: str) -> str:
    return hf_to_llada_name(hf_name(name)) if backbone.config.family == "llada" else hf_name(name)


def _peft_config(backbone: Backbone, settings: LoraSettings, base_name: str) -> dict[str, Any]:
    tied = settings.train_embeddings and backbone.config.tie_embeddings
    embedding = _stored_name(backbone, "embed_tokens.weight").split(".")[-2]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "use_rslora": settings.use_rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _peft_targets(backbone, settings),
        "modules_to_save": [embedding] if settings.train_embeddings else None,
        **({"ensure_weight_tying": True} if tied else {}),
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _peft_targets(backbone: Backbone, settings: LoraSettings) -> str | list[str]:
    """Names, or for LLaDA a regular expression: its feed-forward output and its vocabulary head are both `ff_out`."""
    if backbone.config.family != "llada":
        return list(settings.targets)
    names = {name.rpartition(".")[2]: _stored_name(backbone, f"{name}.weight") for name, _ in lora_layers(backbone)}
    endings = (names[target].split(".")[-2] for target in settings.targets)
    return rf".*\.blocks\.\d+\.({'|'.join(endings)})"


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _compare_settings(folder: Path, settings: LoraSettings) -> None:
    """Refuse an adapter that computes something else from the same numbers."""
    saved = read_settings(folder)
    given: dict[str, Any] = {"r": saved.rank, "lora_alpha": saved.alpha, "use_rslora": saved.use_rslora}
    wanted = {"r": settings.rank, "lora_alpha": settings.alpha, "use_rslora": settings.use_rslora}
    differing = [f"{key} is {given[key]} and not {wanted[key]}" for key in given if given[key] != wanted[key]]
    if saved.alpha_pattern or saved.rank_pattern:
        differing.append("ranks or alphas differ between layers (rank_pattern, alpha_pattern)")
    if differing:
        raise CheckpointError(
            f"{folder} was made with other settings: {'; '.join(differing)}. Train on with the adapter's own settings, "
            "or merge it into the network and start a new one"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds no adapter_model.safetensors; save the adapter as safetensors")
