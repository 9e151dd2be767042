"""A drafter as a folder: the adapter in PEFT's layout, and beside it what PEFT has no place for.

    adapter_config.json         PEFT's settings, and "unmask_drafter": block length, mask id, the parent's mark
    adapter_model.safetensors   the pairs A and B of every adapted layer
    drafter.safetensors         the row of the mask, the draft head, the words that may be drafted

PEFT would apply the adapter to every token; here it is gated. The parent's mark is a hash of its norms, which are never
quantised: the official weights and a 4-bit file of them have the same one, and another fine-tuning has not.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.atomic import beside
from unmask.errors import CheckpointError
from unmask.model.adapter import read_settings
from unmask.model.backbone import Backbone, RMSNorm
from unmask.model.checkpoint import SafetensorsFile, hf_name, mismatches, read_json, write_tensors
from unmask.model.drafter import Drafter, DraftHead
from unmask.model.gate import GatedLinear
from unmask.model.lora import LINEARS, LoraSettings, save_adapter, whole
from unmask.model.packed import PackedLinear

_CONFIG, _WEIGHTS, _OTHERS = "adapter_config.json", "adapter_model.safetensors", "drafter.safetensors"
_KEY = "unmask_drafter"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterInfo:
    """What the folder says of the drafter."""

    block_length: int
    mask_id: int
    parent: str
    """Name of the parent, for readers."""

    parent_mark: str


def mark_of(backbone: Backbone) -> str:
    """A hash of the norms, in bfloat16: the same for all precisions of one network."""
    digest = hashlib.sha256()
    for module in backbone.modules():
        if isinstance(module, RMSNorm):
            digest.update(whole(module.weight).to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_drafter(
    backbone: Backbone,
    head: DraftHead,
    words_W: Tensor,
    folder: Path,
    settings: LoraSettings,
    *,
    block_length: int,
    parent: str,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a trained drafter; `backbone` has LoRA layers and a row for the mask. The tensors are stored in `dtype`.

    With sharded parameters every rank calls this, since their parts are gathered; only rank 0 writes. Raises
    CheckpointError where that fails.
    """
    assert backbone.mask_row is not None
    assert backbone.config.mask_id is not None
    mark = mark_of(backbone)
    learnt = {
        "mask_row": backbone.mask_row,
        "head.down.weight": head.down.weight,
        "head.up.weight": head.up.weight,
    }
    others = {name: whole(parameter).to(dtype).contiguous() for name, parameter in learnt.items()}
    others["words"] = words_W.to(torch.int32).cpu().contiguous()
    save_adapter(backbone, folder, settings, base_name=parent, dtype=dtype)
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return
    about = {
        "block_length": block_length,
        "mask_id": backbone.config.mask_id,
        "parent": parent,
        "parent_mark": mark,
        "gate": "the block of masks",
    }
    try:
        with beside(folder / _OTHERS) as part:
            write_tensors(others, part)
        config = read_json(folder / _CONFIG) | {_KEY: about}
        with beside(folder / _CONFIG) as part:
            part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the drafter could not be written to {folder} ({error}); free some space there or name another folder"
        ) from error


def holds_drafter(folder: Path) -> bool:
    """Whether a whole drafter was written there: what makes an adapter one is written last."""
    return all((folder / name).is_file() for name in (_CONFIG, _WEIGHTS, _OTHERS)) and isinstance(
        read_json(folder / _CONFIG).get(_KEY), dict
    )


def read_info(folder: Path) -> DrafterInfo:
    """What the folder says of the drafter. Raises CheckpointError for one that holds none."""
    path = folder / _CONFIG
    found: Any = read_json(path).get(_KEY) if path.is_file() else None
    if not isinstance(found, dict):
        what = "an adapter without a gate; merge it with `--adapter`" if path.is_file() else "no adapter"
        raise CheckpointError(f"{folder} holds {what}, and a drafter is wanted")
    try:
        return DrafterInfo(**{name: found[name] for name in DrafterInfo.__dataclass_fields__})
    except KeyError as error:
        raise CheckpointError(f"{path} does not say the drafter's {error.args[0]}; download it again") from None


def attach_drafter(backbone: Backbone, folder: Path) -> Drafter:
    """Put a drafter into its parent, in place and before packing. What the parent says is unchanged.

    Raises CheckpointError for a folder that holds no drafter, one that belongs to another parent, and a network that is
    not causal.
    """
    if any(isinstance(module, PackedLinear) for module in backbone.modules()):
        raise CheckpointError("the network is packed, and its layers cannot be gated any more; attach first, then pack")
    if backbone.config.attention != "causal":
        raise CheckpointError(
            f"a drafter is for a causal model, and this one has {backbone.config.attention} attention, so that it "
            "settles several tokens in a forward without one; leave `--drafter` out"
        )
    info, settings = read_info(folder), read_settings(folder)
    mark = mark_of(backbone)
    if info.parent_mark != mark:
        raise CheckpointError(
            f"the drafter in {folder} belongs to {info.parent} (mark {info.parent_mark}), and this network has the "
            f"mark {mark}: it would draft what another model says; load its own parent, or leave the drafter out"
        )
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no {_WEIGHTS}; the drafter is incomplete: download it again")
    pairs, others = SafetensorsFile(folder / _WEIGHTS), _others(folder / _OTHERS)
    adapted = [
        (name, module)
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in LINEARS and settings.is_target(_stored(name))
    ]
    wanted: dict[str, tuple[int, ...]] = {}
    for name, module in adapted:
        rank = settings.rank_of(_stored(name))
        wanted[f"{_prefixed(name)}.lora_A.weight"] = (rank, module.in_features)
        wanted[f"{_prefixed(name)}.lora_B.weight"] = (module.out_features, rank)
    problems = mismatches(wanted, {name: tuple(e["shape"]) for name, e in pairs.header.items()}, optional={})
    if problems:
        raise CheckpointError(f"{folder} does not hold the pairs of this network's layers; {problems}")
    inner, width = others["head.down.weight"].shape[0], backbone.config.hidden_size
    head = DraftHead(width, inner).to(backbone.device, backbone.dtype).requires_grad_(False)
    with torch.no_grad():
        head.down.weight.copy_(others["head.down.weight"])
        head.up.weight.copy_(others["head.up.weight"])
    words_W = others["words"].long().to(backbone.device)
    rows_VD = backbone.lm_head.weight.detach()
    drafter = Drafter(
        head,
        backbone.embed_tokens.weight.detach(),
        rows_VD[words_W].contiguous(),
        words_W,
        block_length=info.block_length,
    )
    for name, module in adapted:
        A = _read(pairs, f"{_prefixed(name)}.lora_A.weight", backbone)
        B = _read(pairs, f"{_prefixed(name)}.lora_B.weight", backbone) * settings.scale_of(_stored(name))
        owner, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(owner), last, GatedLinear(module, A, B))
    backbone.mask_row = nn.Parameter(others["mask_row"].to(backbone.device, backbone.dtype), requires_grad=False)
    backbone.config = replace(backbone.config, mask_id=info.mask_id)
    return drafter


def _stored(name: str) -> str:
    return hf_name(f"{name}.weight").removesuffix(".weight")


def _prefixed(name: str) -> str:
    return "base_model.model." + _stored(name)


def _others(path: Path) -> dict[str, Tensor]:
    names = {"mask_row", "head.down.weight", "head.up.weight", "words"}
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); the drafter is incomplete: download it again"
        ) from None
    if missing := sorted(names - found.keys()):
        raise CheckpointError(f"{path} holds no {missing[0]}; the drafter is incomplete: download it again")
    return found


def _read(file: SafetensorsFile, name: str, backbone: Backbone) -> Tensor:
    out = torch.empty(file.header[name]["shape"], dtype=torch.float32)
    file.read(name, out)
    return out.to(backbone.device, backbone.dtype)
