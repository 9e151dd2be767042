"""The same weights in `unmask` and in `transformers`: from the model table, or random ones of the 0.5B shape."""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from unmask.decode.session import load
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import load_folder, save_folder
from unmask.model.packed import can_pack, pack
from unmask.recipes.qwen_0_5b import SHAPE


def both(*, random: bool, dtype: torch.dtype) -> tuple[Backbone, PreTrainedModel]:
    """The network, packed as `load` packs it, and its twin."""
    with tempfile.TemporaryDirectory() as folder:
        save_folder(_random(dtype) if random else _real(dtype), Path(folder))
        twin = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        ours = load_folder(Path(folder), dtype=dtype, device=torch.device("cpu"))
    return (pack(ours) if can_pack(ours) else ours), twin


def _real(dtype: torch.dtype) -> Backbone:
    return load("qwen2.5-coder-0.5b-instruct", dtype=str(dtype).removeprefix("torch."), drafter="none").backbone


def _random(dtype: torch.dtype) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(SHAPE).to(dtype)
    for parameter in backbone.parameters():
        parameter.data.normal_(std=0.02)
    return backbone
