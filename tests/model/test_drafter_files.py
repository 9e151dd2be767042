"""A drafter as a folder: it comes back as it was, fits its own parent alone, and is an adapter that PEFT can read."""

import copy
import json

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from unmask.decode.session import load
from unmask.errors import CheckpointError
from unmask.model import hub
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import save_folder
from unmask.model.drafter import DraftHead
from unmask.model.drafter_files import attach_drafter, holds_drafter, mark_of, read_info, save_drafter
from unmask.model.gate import GatedLinear
from unmask.model.lora import LINEARS, LoraSettings, add_lora, lora_layers
from unmask.model.packed import can_pack, pack
from unmask.model.table import find
from unmask.recipes.qwen_0_5b import SHAPE

from doubles import tiny_backbone, tiny_config

SETTINGS = LoraSettings(rank=2, alpha=6.0)
WORDS = torch.tensor([3, 1, 40, 7])


def trained() -> tuple[Backbone, DraftHead]:
    backbone = tiny_backbone(tiny_config(mask_id=60))
    add_lora(backbone, SETTINGS, seed=0)
    generator = torch.Generator().manual_seed(1)
    for _, lora in lora_layers(backbone):
        lora.lora_B.weight.data = torch.randn(lora.lora_B.weight.shape, generator=generator)
    backbone.mask_row = torch.nn.Parameter(torch.randn(32, generator=generator))
    head = DraftHead(32, 8)
    head.up.weight.data = torch.randn(head.up.weight.shape, generator=generator)
    return backbone, head


@pytest.fixture
def folder(tmp_path):
    backbone, head = trained()
    out = tmp_path / "drafter"
    save_drafter(backbone, head, WORDS, out, SETTINGS, block_length=5, parent="parent", dtype=torch.float32)
    return out


def hidden(backbone, gate):
    ids = torch.tensor([[5, 6, 7, 60, 60]])
    return backbone(ids, torch.arange(5)[None], gate=gate)


@torch.no_grad()
def test_it_comes_back_as_it_was(folder):
    backbone, head = trained()
    parent = tiny_backbone(tiny_config())
    drafter = attach_drafter(parent, folder)
    assert (drafter.block_length, parent.config.mask_id) == (5, 60)
    assert torch.equal(drafter.words_W, WORDS)
    assert torch.equal(drafter.rows_WD, parent.lm_head.weight[WORDS])
    torch.testing.assert_close(hidden(parent, 0), hidden(backbone, 0))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(drafter.head(x[:, :32], x[:, 32:]), head(x[:, :32], x[:, 32:]))


@torch.no_grad()
def test_the_parent_says_what_it_said(folder):
    parent = tiny_backbone(tiny_config())
    plain = copy.deepcopy(parent)
    attach_drafter(parent, folder)
    assert torch.equal(hidden(parent, None), hidden(plain, None))
    assert sum(isinstance(module, GatedLinear) for module in parent.modules()) == 14


@torch.no_grad()
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_parent_with_its_drafter_is_saved_as_the_parent(folder, tmp_path, is_packed):
    parent = tiny_backbone(tiny_config())
    save_folder(parent, tmp_path / "plain")
    dtype = torch.bfloat16 if is_packed else torch.float32
    gated = tiny_backbone(tiny_config())
    attach_drafter(gated, folder)
    gated.to(dtype)
    if is_packed:
        if not can_pack(gated):
            pytest.skip("needs a processor with bfloat16 products")
        pack(gated)
    save_folder(gated, tmp_path / "gated")
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("gated", "plain"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].to(dtype)) for name in wanted)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("gated", "plain")]
    assert configs[0] == {**configs[1], "torch_dtype": str(dtype).removeprefix("torch.")}


@torch.no_grad()
def test_a_gate_leaves_the_columns_before_it_to_the_parent():
    """By causal attention, so that the clean columns do not look at the others."""
    backbone = tiny_backbone(tiny_config(mask_id=60))
    plain = copy.deepcopy(backbone)
    generator = torch.Generator().manual_seed(1)
    for name, module in list(backbone.named_modules()):
        if isinstance(module, torch.nn.Linear) and name.startswith("layers"):
            owner, _, last = name.rpartition(".")
            A = torch.randn(2, module.in_features, generator=generator)
            B = torch.randn(module.out_features, 2, generator=generator)
            setattr(backbone.get_submodule(owner), last, GatedLinear(module, A, B))
    ids, positions = torch.tensor([[5, 6, 7, 60, 60]]), torch.arange(5)[None]
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    gated = backbone(ids, positions, attn_mask=mask, gate=3)
    wanted = plain(ids, positions, attn_mask=mask)
    assert torch.equal(gated[:, :3], wanted[:, :3])
    assert not torch.allclose(gated[:, 3:], wanted[:, 3:])
    assert torch.equal(backbone(ids, positions, attn_mask=mask, gate=5), wanted)


def test_the_mark_is_that_of_every_precision_and_of_no_other_network():
    parent = tiny_backbone(tiny_config())
    assert mark_of(parent) == mark_of(copy.deepcopy(parent).bfloat16())
    assert mark_of(parent) != mark_of(tiny_backbone(tiny_config(), seed=1))


def test_another_parent_is_refused(folder):
    with pytest.raises(CheckpointError, match="belongs to parent"):
        attach_drafter(tiny_backbone(tiny_config(), seed=1), folder)


def test_folders_without_a_drafter_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds no adapter"):
        attach_drafter(tiny_backbone(tiny_config()), tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["unmask_drafter"]["block_length"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not say the drafter's block_length"):
        read_info(folder)
    del config["unmask_drafter"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="an adapter without a gate"):
        read_info(folder)


def test_a_damaged_folder_changes_nothing(folder):
    (folder / "drafter.safetensors").write_bytes(b"")
    parent = tiny_backbone(tiny_config())
    plain = copy.deepcopy(parent)
    with pytest.raises(CheckpointError):
        attach_drafter(parent, folder)
    assert not any(isinstance(module, GatedLinear) for module in parent.modules())
    assert parent.config == plain.config


def test_it_is_stored_in_bfloat16_unless_told_otherwise(tmp_path):
    backbone, head = trained()
    save_drafter(backbone, head, WORDS, tmp_path, SETTINGS, block_length=5, parent="parent")
    tensors = load_file(tmp_path / "adapter_model.safetensors") | load_file(tmp_path / "drafter.safetensors")
    assert {t.dtype for name, t in tensors.items() if name != "words"} == {torch.bfloat16}


def test_peft_reads_the_adapter(folder):
    with pytest.warns(UserWarning, match="unmask_drafter"):
        config = peft.LoraConfig.from_pretrained(str(folder))
    assert (config.r, config.lora_alpha) == (2, 6.0)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "drafter.safetensors"])
def test_a_folder_that_lacks_a_file_is_no_drafter(folder, name):
    assert holds_drafter(folder)
    (folder / name).unlink()
    assert not holds_drafter(folder)
    with pytest.raises(CheckpointError, match="the drafter is incomplete: download it again"):
        attach_drafter(tiny_backbone(tiny_config()), folder)


def test_the_drafter_in_the_package_is_whole():
    entry = find("qwen2.5-coder-0.5b-instruct")
    folder = hub.PACKAGE / entry.defaults.drafter
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 40_000_000
    info = read_info(folder)
    assert (info.parent, info.block_length) == (entry.name, 8)
    with torch.device("meta"):
        network = Backbone(SHAPE)
    layers = {name: module for name, module in network.named_modules() if name.rpartition(".")[2] in LINEARS}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert stored == {
        f"base_model.model.model.{name}.lora_{side}.weight": shape
        for name, layer in layers.items()
        for side, shape in (("A", (32, layer.in_features)), ("B", (layer.out_features, 32)))
    }
    others = load_file(folder / "drafter.safetensors")
    words, width = others["words"], SHAPE.hidden_size
    assert words.unique().shape == words.shape == (24_000,)
    assert words.max() < SHAPE.vocab_size
    assert {name: tuple(value.shape) for name, value in others.items() if name != "words"} == {
        "mask_row": (width,),
        "head.down.weight": (512, 2 * width),
        "head.up.weight": (width, 512),
    }


@pytest.mark.weights
def test_with_real_weights_it_drafts_what_the_parent_says():
    model = load("qwen2.5-coder-0.5b-instruct", dtype="float32")
    prompt = "Write a Python function that checks whether a string is a palindrome."
    plain, drafted = (
        model.generate(prompt, max_new_tokens=40, decoder=name) for name in ("autoregressive", "speculative")
    )
    assert drafted.text == plain.text
    assert drafted.num_tokens / len(drafted.trajectory.steps) > 2
