"""LoRA for training: it starts at the given network, moves nothing but its own pairs, merges, saves and goes on."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unmask.errors import CheckpointError, SettingsError
from unmask.model.adapter import merge_adapter
from unmask.model.backbone import Backbone
from unmask.model.lora import (
    LINEARS,
    LoraLinear,
    LoraSettings,
    add_lora,
    load_adapter_weights,
    lora_layers,
    merge_lora,
    save_adapter,
)

from doubles import tiny_backbone, tiny_config

SETTINGS = LoraSettings(rank=3, alpha=7.0)
LLADA = {"family": "llada", "attention": "full", "shift_logits": False, "qkv_bias": False, "num_kv_heads": 4}


def logits_of(backbone: Backbone) -> Tensor:
    ids = torch.arange(22).view(2, 11)
    return backbone.logits(backbone(ids, torch.arange(11).expand(2, 11)))


def adapted(settings: LoraSettings = SETTINGS, *, seed: int = 0, move: bool = True, **config: Any) -> Backbone:
    """The tiny network with pairs; `move` gives them random values, as training would."""
    backbone = tiny_backbone(tiny_config(**config)).requires_grad_(True)
    add_lora(backbone, settings, seed=seed)
    if move:
        generator = torch.Generator().manual_seed(5)
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return backbone


def test_training_starts_at_the_given_network() -> None:
    plain = tiny_backbone(tiny_config())
    assert torch.equal(logits_of(adapted(move=False)), logits_of(plain))


def test_the_base_keeps_its_names_and_the_pairs_stand_beside_it() -> None:
    base, backbone = tiny_backbone(tiny_config()), adapted()
    names = set(backbone.state_dict())
    pairs = {name for name in names if "lora" in name}
    assert names - pairs == set(base.state_dict())
    assert "layers.0.self_attn.q_proj.lora_A.weight" in pairs
    assert len(pairs) == 2 * 7 * 2
    assert {name for name, p in backbone.named_parameters() if p.requires_grad} == pairs


def test_a_layer_adds_scale_b_a_x() -> None:
    backbone = adapted(LoraSettings(rank=4, alpha=6.0, use_rslora=True))
    layer = backbone.layers[1].mlp.up_proj  # type: ignore[union-attr]
    assert isinstance(layer, LoraLinear)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    B, A = layer.lora_B.weight, layer.lora_A.weight
    wanted = x @ (layer.weight + 6.0 / math.sqrt(4) * B @ A).T
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


def test_only_the_targets_are_adapted() -> None:
    backbone = adapted(LoraSettings(targets=("q_proj", "down_proj")))
    assert {name.rpartition(".")[2] for name, _ in lora_layers(backbone)} == {"q_proj", "down_proj"}


def test_a_start_depends_on_the_seed_and_the_layers_name_alone() -> None:
    few, all_of_them = adapted(LoraSettings(targets=("v_proj",)), move=False), adapted(LoraSettings(), move=False)
    name = "layers.1.self_attn.v_proj.lora_A.weight"
    start = few.state_dict()[name]
    assert torch.equal(start, all_of_them.state_dict()[name])
    assert not torch.equal(start, few.state_dict()["layers.0.self_attn.v_proj.lora_A.weight"])
    assert not torch.equal(start, adapted(LoraSettings(), seed=1, move=False).state_dict()[name])
    assert start.abs().max() <= 1 / math.sqrt(32)
    assert start.std() == pytest.approx(1 / math.sqrt(3 * 32), rel=0.1)


def test_gradients_reach_the_pairs_and_nothing_else() -> None:
    backbone = adapted()
    logits_of(backbone).square().mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == ("lora" in name)
        assert parameter.grad is None or parameter.grad.abs().sum() > 0


def test_a_bfloat16_base_has_float32_pairs_and_runs_with_and_without_autocast() -> None:
    backbone = tiny_backbone(tiny_config()).to(torch.bfloat16)
    add_lora(backbone, SETTINGS, seed=0)
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
    plain = logits_of(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = logits_of(backbone)
    assert plain.dtype is under_autocast.dtype is torch.bfloat16
    torch.testing.assert_close(plain, under_autocast, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_are_trained_whole_on_request_and_in_float32(tie: bool) -> None:
    backbone = tiny_backbone(tiny_config(tie_embeddings=tie)).to(torch.bfloat16)
    add_lora(backbone, LoraSettings(train_embeddings=True), seed=0)
    assert backbone.embed_tokens.weight.requires_grad
    assert backbone.embed_tokens.weight.dtype is torch.float32
    assert (backbone.lm_head.weight is backbone.embed_tokens.weight) == tie
    assert backbone.lm_head.weight.requires_grad == tie


def test_a_merged_network_is_plain_and_computes_the_same() -> None:
    backbone = adapted()
    wanted = logits_of(backbone)
    merge_lora(backbone)
    assert backbone.state_dict().keys() == tiny_backbone(tiny_config()).state_dict().keys()
    assert not any(isinstance(module, LoraLinear) for module in backbone.modules())
    torch.testing.assert_close(logits_of(backbone), wanted, rtol=1e-4, atol=1e-4)


VARIANTS: dict[str, tuple[LoraSettings, dict[str, Any]]] = {
    "all": (SETTINGS, {}),
    "some": (LoraSettings(rank=2, alpha=5.0, targets=("o_proj", "gate_proj"), use_rslora=True), {}),
    "embeddings": (LoraSettings(rank=3, train_embeddings=True), {}),
    "tied_embeddings": (LoraSettings(rank=3, train_embeddings=True), {"tie_embeddings": True}),
    "dream": (SETTINGS, {"family": "dream", "attention": "full"}),
    "llada": (SETTINGS, LLADA),
    "llada_embeddings": (LoraSettings(rank=3, train_embeddings=True), LLADA),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_adapter_merges_into_the_plain_network_as_here(variant: str, tmp_path: Path) -> None:
    settings, config = VARIANTS[variant]
    backbone = adapted(settings, **config)
    save_adapter(backbone, tmp_path / "adapter", settings, base_name="tiny")
    plain = tiny_backbone(tiny_config(**config))
    merge_adapter(plain, tmp_path / "adapter")
    merge_lora(backbone)
    wanted = backbone.state_dict()
    assert plain.state_dict().keys() == wanted.keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-6, msg=name)
    assert not torch.equal(logits_of(plain), logits_of(tiny_backbone(tiny_config(**config))))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_goes_on_from_a_saved_adapter_bit_for_bit(variant: str, tmp_path: Path) -> None:
    settings, config = VARIANTS[variant]
    backbone = adapted(settings, **config)
    save_adapter(backbone, tmp_path, settings, base_name="tiny")
    again = adapted(settings, seed=9, move=False, **config)
    load_adapter_weights(again, tmp_path, settings)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in backbone.state_dict().items())


def test_saving_again_replaces_the_adapter_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    first, second = adapted(), adapted(seed=3)
    for backbone in (first, second):
        save_adapter(backbone, tmp_path / "adapter", SETTINGS, base_name="tiny")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "adapter",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(stored[f"base_model.model.model.{name}"], second.state_dict()[name])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"the adapter could not be written to .*; free some space there or name"):
        save_adapter(adapted(), tmp_path / "file" / "adapter", SETTINGS, base_name="tiny")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (LoraSettings(rank=4, alpha=7.0), "r is 3 and not 4"),
        (LoraSettings(rank=3, alpha=8.0), "lora_alpha is 7.0 and not 8.0"),
        (LoraSettings(rank=3, alpha=7.0, use_rslora=True), "use_rslora is False and not True"),
        (LoraSettings(rank=3, alpha=7.0, targets=("q_proj",)), "unexpected: base_model.model.model.layers.0"),
        (LoraSettings(rank=3, alpha=7.0, train_embeddings=True), "missing: base_model.model.model.embed_tokens.weight"),
    ],
)
def test_an_adapter_of_other_settings_is_refused_and_nothing_moves(
    other: LoraSettings, words: str, tmp_path: Path
) -> None:
    save_adapter(adapted(), tmp_path, SETTINGS, base_name="tiny")
    backbone = adapted(other)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_adapter_weights(backbone, tmp_path, other)
    assert words in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_an_adapter_whose_layers_differ_in_rank_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path, SETTINGS, base_name="tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"q_proj": 1}}))
    with pytest.raises(CheckpointError, match=r"ranks or alphas differ between layers.*merge it into the network"):
        load_adapter_weights(adapted(), tmp_path, SETTINGS)


def test_an_adapter_without_weights_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path, SETTINGS, base_name="tiny")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter_model.safetensors; save the adapter as safetensors"):
        load_adapter_weights(adapted(), tmp_path, SETTINGS)


def test_a_network_is_adapted_once() -> None:
    with pytest.raises(SettingsError, match="the network already has LoRA layers; merge them first"):
        add_lora(adapted(), SETTINGS, seed=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "the LoRA rank is 0; it must be at least 1"),
        ({"alpha": 0.0}, "the LoRA alpha is 0.0; it must be above 0"),
        ({"targets": ("q_prj",)}, "the LoRA target 'q_prj' is no linear layer; did you mean q_proj"),
        ({"targets": ()}, f"targets is empty; known: {', '.join(LINEARS)}"),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        LoraSettings(**settings)
    assert words in str(caught.value)
