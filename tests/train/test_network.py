"""The network of a stage: how it starts, what it is turned into, and what is refused."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.errors import CheckpointError, SettingsError
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import save_folder
from unmask.model.config import ModelConfig
from unmask.model.lora import LoraSettings, lora_layers
from unmask.text.tokenizer import Tokenizer
from unmask.train.network import INIT_STD, build_network, fresh_backbone, init_row, planned_config
from unmask.train.settings import Kind, ModelSettings

from checkpoints import MASK_ID, write_checkpoint, write_gguf
from doubles import tiny_backbone, tiny_config
from training_runs import SHAPE

WIDE = replace(SHAPE, hidden_size=64, intermediate_size=96, num_layers=4, tie_embeddings=False)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    Tokenizer.byte_level().save(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def build(settings: ModelSettings, *, kind: Kind = "diffusion", lora: LoraSettings | None = None) -> Backbone:
    return build_network(settings, kind=kind, lora=lora, seed=5).backbone


def refused(settings: ModelSettings, message: str, *, kind: Kind = "diffusion", error: Any = SettingsError) -> None:
    with pytest.raises(error, match=message):
        build(settings, kind=kind)


# From nothing


def test_fresh_weights_have_the_spread_of_their_kind() -> None:
    for name, parameter in fresh_backbone(WIDE, seed=0).state_dict().items():
        if "norm" in name:
            assert bool((parameter == 1).all()), name
        elif name.endswith("bias"):
            assert bool((parameter == 0).all()), name
        else:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            wanted = INIT_STD / (2 * WIDE.num_layers) ** 0.5 if writes else INIT_STD
            assert float(parameter.std()) == pytest.approx(wanted, rel=0.06), name
            assert abs(float(parameter.mean())) < wanted / 10, name


def test_fresh_weights_depend_on_the_seed_and_the_name_alone() -> None:
    one, again, other = (fresh_backbone(WIDE, seed=seed).state_dict() for seed in (0, 0, 1))
    deeper = fresh_backbone(replace(WIDE, num_layers=6), seed=0).state_dict()
    matrices = [name for name in one if name.endswith("proj.weight") or "embed" in name]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(not torch.equal(one[name], other[name]) for name in matrices)
    assert all(
        torch.equal(one[name], deeper[name])
        for name in matrices
        if not name.endswith(("o_proj.weight", "down_proj.weight"))
    )
    first = one["layers.0.mlp.up_proj.weight"]
    assert not torch.equal(first, one["layers.1.mlp.up_proj.weight"])
    assert not torch.equal(first, one["layers.0.mlp.gate_proj.weight"])


def test_a_network_from_nothing_is_the_same_on_every_call(tokenizer: str) -> None:
    settings = ModelSettings(config=SHAPE, tokenizer=tokenizer, attention="full", init_mask_row=True)
    one, two = (build(settings, lora=LoraSettings(rank=2, train_embeddings=True)).state_dict() for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("tie", [True, False])
def test_tied_embeddings_stay_one_matrix(tie: bool) -> None:
    backbone = fresh_backbone(replace(SHAPE, tie_embeddings=tie), seed=0)
    assert (backbone.lm_head.weight is backbone.embed_tokens.weight) is tie


# The mask token's row


@pytest.mark.parametrize("tie", [True, False])
def test_the_mask_row_gets_a_norm_among_those_of_the_others(tie: bool) -> None:
    backbone = tiny_backbone(tiny_config(attention="full", hidden_size=64, tie_embeddings=tie))
    with torch.no_grad():
        for weight in (backbone.embed_tokens.weight, backbone.lm_head.weight):
            weight[60] = 1e-6
    before = backbone.embed_tokens.weight.clone()
    init_row(backbone, 60, seed=0)
    for weight in (backbone.embed_tokens.weight, backbone.lm_head.weight):
        norms = weight.detach().norm(dim=-1)
        low, high = norms[:60].quantile(torch.tensor([0.05, 0.95]))
        assert low < norms[60] < high
    assert torch.equal(before[:60], backbone.embed_tokens.weight[:60]), "the others stay"


def test_the_mask_row_is_no_copy_of_another_and_follows_the_seed() -> None:
    rows = []
    for seed in (0, 0, 1):
        backbone = tiny_backbone(tiny_config(attention="full", hidden_size=64))
        init_row(backbone, 60, seed=seed)
        rows.append(backbone.embed_tokens.weight[60].clone())
        alike = torch.nn.functional.cosine_similarity(rows[-1], backbone.embed_tokens.weight[:60])
        assert float(alike.abs().max()) < 0.7
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_the_mask_row_is_left_alone_unless_asked_for(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", "full")
    kept = build(ModelSettings(source=str(folder))).embed_tokens.weight
    changed = build(ModelSettings(source=str(folder), init_mask_row=True)).embed_tokens.weight
    different = (kept != changed).any(-1).nonzero()[:, 0].tolist()
    assert different == [MASK_ID]


# From a checkpoint


def test_a_causal_checkpoint_is_turned_into_a_diffusion_network(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", "causal")
    network = build_network(
        ModelSettings(source=str(folder), attention="full", init_mask_row=True), kind="diffusion", lora=None, seed=0
    )
    config = network.backbone.config
    assert (config.attention, config.mask_id, config.shift_logits) == ("full", MASK_ID, True)
    assert network.source == str(folder)
    assert network.tokenizer.encode("ab") == [97, 98]
    assert all(p.dtype is torch.float32 and p.requires_grad for p in network.backbone.parameters())
    block = build(ModelSettings(source=str(folder), attention="block", block_length=8, init_mask_row=True)).config
    assert (block.attention, block.block_length) == ("block", 8)


def test_a_checkpoint_keeps_its_attention_unless_told(tmp_path: Path) -> None:
    for kind in ("full", "block"):
        config = build(ModelSettings(source=str(write_checkpoint(tmp_path / kind, kind)))).config
        assert config.attention == kind
        assert config.block_length == (8 if kind == "block" else None)


def test_a_reserved_row_can_be_the_mask(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", "causal")
    found = build(ModelSettings(source=str(folder), attention="full", mask_token="#270", init_mask_row=True))
    assert found.config.mask_id == 270


def test_a_gguf_file_is_a_source_in_float32(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", "causal")
    network = build_network(
        ModelSettings(source=str(file), attention="full", init_mask_row=True), kind="diffusion", lora=None, seed=0
    )
    assert network.backbone.config.mask_id == MASK_ID
    assert {parameter.dtype for parameter in network.backbone.parameters()} == {torch.float32}
    assert network.tokenizer.encode("ab") == [97, 98]


def test_a_tokenizer_of_its_own_counts_for_every_source(tmp_path: Path) -> None:
    folder, file = write_checkpoint(tmp_path / "source", "full"), write_gguf(tmp_path / "tiny.gguf", "causal")
    Tokenizer.byte_level(("<|mask|>", "<|hello|>")).save(tmp_path / "own")
    for source in (folder, file):
        settings = ModelSettings(source=str(source), attention="full", tokenizer=str(tmp_path / "own"))
        network = build_network(settings, kind="diffusion", lora=None, seed=0)
        assert network.tokenizer.token_to_id("<|hello|>") == 257


def test_a_source_in_bfloat16_is_trained_in_float32(tmp_path: Path) -> None:
    save_folder(tiny_backbone(tiny_config(attention="full", vocab_size=258)).bfloat16(), tmp_path / "source")
    Tokenizer.byte_level().save(tmp_path / "source")
    assert build(ModelSettings(source=str(tmp_path / "source"))).dtype is torch.float32


def test_lora_freezes_everything_else(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", "full")
    backbone = build(ModelSettings(source=str(folder)), lora=LoraSettings(rank=2))
    assert len(list(lora_layers(backbone))) > 0
    assert all(".lora_" in name for name, parameter in backbone.named_parameters() if parameter.requires_grad)


def test_a_mask_row_that_was_never_trained_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_checkpoint(tmp_path / "source", "causal")
    with caplog.at_level(logging.WARNING, logger="unmask"):
        build(ModelSettings(source=str(folder), attention="full"))
    assert "has no mask token yet, and model.init_mask_row is false: the row it gets was never trained" in caplog.text


# What is refused


def test_a_network_needs_a_source_or_a_shape() -> None:
    refused(ModelSettings(), r"neither which checkpoint it starts from \(model.source\) nor the shape .* give one")


def test_a_network_from_nothing_needs_a_tokenizer() -> None:
    refused(ModelSettings(config=SHAPE), r"from nothing needs a tokenizer; make one with `unmask data tokenizer`")


def test_a_diffusion_with_causal_attention_is_refused(tokenizer: str) -> None:
    refused(
        ModelSettings(config=SHAPE, tokenizer=tokenizer),
        r"the stage is a diffusion and the network would attend 'causal', so that a masked token sees nothing behind "
        r"it; set model.attention=full, or model.attention=block with a model.block_length",
    )


def test_autoregression_with_full_attention_is_refused(tokenizer: str) -> None:
    refused(
        ModelSettings(config=SHAPE, tokenizer=tokenizer, attention="full"),
        r"the stage is autoregressive and the network would attend 'full': it would see what it predicts; set "
        r"model.attention=causal, or loss.kind=diffusion",
        kind="autoregressive",
    )


def test_a_mask_row_without_a_mask_token_is_refused(tokenizer: str) -> None:
    refused(
        ModelSettings(config=SHAPE, tokenizer=tokenizer, init_mask_row=True),
        r"model.init_mask_row is true, and an autoregressive stage gives the network no mask token; set it to false",
        kind="autoregressive",
    )


def test_a_tokenizer_without_a_mask_token_is_refused_with_a_spare_row(tmp_path: Path) -> None:
    Tokenizer.byte_level(("<|endoftext|>",)).save(tmp_path)
    settings = ModelSettings(config=SHAPE, tokenizer=str(tmp_path), attention="full")
    refused(
        settings,
        r"names no mask id, and its tokenizer has no token '<\|mask\|>'; give the token that stands for a mask, or a "
        r"row of the vocabulary, as in --set model.mask_token=#257",
    )
    assert build(replace(settings, mask_token="#257")).config.mask_id == 257
    refused(
        replace(settings, mask_token="#999"), r"mask id 999 lies outside the vocabulary of 261", error=CheckpointError
    )


def test_a_tokenizer_with_more_ids_than_the_network_scores_is_refused(tokenizer: str) -> None:
    refused(
        ModelSettings(config=replace(SHAPE, vocab_size=100), tokenizer=tokenizer, attention="full", mask_token="#5"),
        r"the tokenizer has 258 ids and the network scores 100; take the tokenizer of the same checkpoint",
        error=CheckpointError,
    )


# For a plan


def test_a_plan_takes_the_shape_from_settings_source_or_the_stage_before(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "source", "causal"))
    assert planned_config(ModelSettings(config=SHAPE), before=None).hidden_size == 32
    found: ModelConfig = planned_config(ModelSettings(source=folder, attention="full"), before=None)
    assert (found.vocab_size, found.attention) == (280, "full")
    after = planned_config(ModelSettings(source="runs/before/final"), before=found)
    assert after == found
    block = planned_config(ModelSettings(source="x", attention="block", block_length=4), before=found)
    assert block.block_length == 4
    with pytest.raises(SettingsError, match=r"the plan needs the shape of runs/before/final: give its folder as"):
        planned_config(ModelSettings(source="runs/before/final"), before=None)


def test_an_adapter_that_would_miss_the_new_mask_row_is_refused(tokenizer: str) -> None:
    settings = ModelSettings(config=SHAPE, tokenizer=tokenizer, attention="full", init_mask_row=True)
    with pytest.raises(SettingsError, match=r"base and adapter would miss it; set lora.train_embeddings=true"):
        build(settings, lora=LoraSettings(rank=2))
