"""LoRA adapters: merging here gives what PEFT's own merge gives, and what cannot be merged exactly is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.model.adapter import merge_adapter
from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import hf_name, load_folder, save_folder
from unmask.model.packed import can_pack, pack

from doubles import tiny_backbone, tiny_config

CPU = torch.device("cpu")
RANK, ALPHA = 3, 7
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def state_of(backbone: Backbone) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}


def write_adapter(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """An adapter folder by hand; settings that are not given are those of a plain LoRA on q_proj."""
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], "bias": "none"}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def lora_pairs(*, rank: int = RANK, rows: int = 32, columns: int = 32, layers: int = 2) -> dict[str, Tensor]:
    """Seeded A and B for q_proj of every layer of the tiny network."""
    generator = torch.Generator().manual_seed(1)
    pairs: dict[str, Tensor] = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        pairs[f"{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        pairs[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return pairs


def expected_q_proj(backbone: Backbone, pairs: dict[str, Tensor], layer: int, scale: float) -> Tensor:
    name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
    weight = backbone.layers[layer].self_attn.q_proj.weight  # type: ignore[union-attr]
    change = scale * (pairs[f"{name}.lora_B.weight"].double() @ pairs[f"{name}.lora_A.weight"].double())
    return (weight.double() + change).float()  # type: ignore[operator]


def causal_logits(backbone: Backbone, ids_BT: Tensor) -> Tensor:
    positions_BT = torch.arange(ids_BT.shape[1]).expand(ids_BT.shape)
    with torch.no_grad():
        hidden = backbone(ids_BT, positions_BT, attn_mask=attention_mask("causal", positions_BT, positions_BT))
        return backbone.logits(hidden)


def shake(wrapped: Any) -> None:
    """Move the modules that are trained whole away from the base; a module that stands under two names moves once."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


# --- against PEFT -----------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "two_targets": {"target_modules": ["q_proj", "down_proj"]},
    "all_linear": {"target_modules": "all-linear"},
    "regular_expression": {"target_modules": r"model\.layers\.1\..*(q|k)_proj|model\.layers\.0\.self_attn\.q"},
    "one_layer": {"target_modules": ["v_proj", "up_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.0.self_attn.o_proj"]},
    "rslora": {"target_modules": ["q_proj", "gate_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 5, "up_proj": 2},
        "alpha_pattern": {"v_proj": 11, "^model.layers.0.mlp.up_proj": 1},
    },
    "rslora_patterns": {"target_modules": ["q_proj", "up_proj"], "use_rslora": True, "rank_pattern": {"up_proj": 9}},
    "head": {"target_modules": ["lm_head", "k_proj"]},
    "embedding_and_head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "saved_head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved_vocabulary_and_norms": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "embed_tokens", "norm"],
    },
    "saved_whole_mlp": {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["mlp"]},
}
TIED_VARIANTS = {
    "two_targets": {"target_modules": ["q_proj", "down_proj"]},
    "tied_embedding": {
        "target_modules": ["embed_tokens", "q_proj"],
        "rank_pattern": {"q_proj": 2},
        "ensure_weight_tying": True,
    },
    "tied_head": {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    "tied_and_saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("tie", "variant"), [(False, name) for name in VARIANTS] + [(True, name) for name in TIED_VARIANTS]
)
def test_a_merged_network_computes_what_peft_computes_unmerged(tie: bool, variant: str, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = tiny_backbone(tiny_config(tie_embeddings=tie))
    save_folder(base, tmp_path / "base")
    settings = (TIED_VARIANTS if tie else VARIANTS)[variant]
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), lora).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_folder(tmp_path / "base", dtype=torch.float32, device=CPU)

    merge_adapter(ours, tmp_path / "adapter")

    assert (ours.lm_head.weight is ours.embed_tokens.weight) == tie
    ids = torch.arange(22).view(2, 11)
    with torch.no_grad():
        wanted, plain = theirs(ids).logits, causal_logits(base, ids)
    assert (wanted - plain).abs().max() > 0.5, "the adapter must do something, or this test shows nothing"
    torch.testing.assert_close(causal_logits(ours, ids), wanted, rtol=1e-4, atol=1e-4)
    if tie and settings.get("ensure_weight_tying"):
        return  # PEFT's own merge adds the change of a shared matrix once for each of its two names
    merged = theirs.merge_and_unload().state_dict()
    for name, parameter in ours.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(parameter.detach(), merged[hf_name(name)], rtol=1e-6, atol=1e-6)


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / RANK**0.5),
        ({"alpha_pattern": {"other": 1, "self_attn.q_proj": 2, "q_proj": 4}}, 2 / RANK),
        ({"lora_alpha": 0.5}, 0.5 / RANK),
    ],
)
def test_the_change_is_scale_times_b_a(settings: dict[str, Any], scale: float, tmp_path: Path) -> None:
    backbone, pairs = tiny_backbone(tiny_config()), lora_pairs()
    wanted = [expected_q_proj(backbone, pairs, layer, scale) for layer in (0, 1)]
    before = state_of(backbone)

    merge_adapter(backbone, write_adapter(tmp_path, pairs, **settings))

    after = state_of(backbone)
    for layer in (0, 1):
        name = f"layers.{layer}.self_attn.q_proj.weight"
        torch.testing.assert_close(after.pop(name), wanted[layer], rtol=1e-6, atol=1e-6)
        before.pop(name)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_bfloat16_network_is_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    backbone, pairs = tiny_backbone(tiny_config()).to(torch.bfloat16), lora_pairs()
    wanted = [expected_q_proj(backbone, pairs, layer, ALPHA / RANK).to(torch.bfloat16) for layer in (0, 1)]
    merge_adapter(backbone, write_adapter(tmp_path, pairs))
    for layer in (0, 1):
        assert torch.equal(state_of(backbone)[f"layers.{layer}.self_attn.q_proj.weight"], wanted[layer])


def test_a_matrix_of_more_rows_than_one_slice_is_merged_whole(tmp_path: Path) -> None:
    config = tiny_config(vocab_size=5000)  # the head is merged 2048 rows at a time
    backbone = tiny_backbone(config)
    generator = torch.Generator().manual_seed(5)
    A, B = torch.randn(RANK, 32, generator=generator), torch.randn(5000, RANK, generator=generator)
    wanted = backbone.lm_head.weight + ALPHA / RANK * (B @ A)
    tensors = {"base_model.model.lm_head.lora_A.weight": A, "base_model.model.lm_head.lora_B.weight": B}
    merge_adapter(backbone, write_adapter(tmp_path, tensors, target_modules=["lm_head"]))
    torch.testing.assert_close(backbone.lm_head.weight.detach(), wanted, rtol=1e-6, atol=1e-6)


def test_an_adapter_of_llada_carries_lladas_names(tmp_path: Path) -> None:
    config = tiny_config(family="llada", attention="full", shift_logits=False, qkv_bias=False, num_kv_heads=4)
    backbone = tiny_backbone(config)
    generator = torch.Generator().manual_seed(6)
    A, B = torch.randn(RANK, 32, generator=generator), torch.randn(48, RANK, generator=generator)
    embedding = torch.randn(61, 32, generator=generator)
    block = "base_model.model.model.transformer.blocks"
    tensors = {f"{block}.{layer}.ff_proj.lora_{side}.weight": m for layer in (0, 1) for side, m in (("A", A), ("B", B))}
    tensors["base_model.model.model.transformer.wte.weight"] = embedding
    wanted = backbone.layers[1].mlp.gate_proj.weight + ALPHA / RANK * (B @ A)  # type: ignore[union-attr,operator]

    merge_adapter(
        backbone, write_adapter(tmp_path, tensors, target_modules=["ff_proj"], modules_to_save=["transformer.wte"])
    )

    torch.testing.assert_close(state_of(backbone)["layers.1.mlp.gate_proj.weight"], wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(state_of(backbone)["embed_tokens.weight"], embedding)


def test_a_merged_network_can_be_packed_and_saved(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config()).to(torch.bfloat16)
    if not can_pack(backbone):
        pytest.skip("this processor has no native bfloat16 product, so nothing is packed")
    merge_adapter(backbone, write_adapter(tmp_path / "adapter", lora_pairs()))
    merged = state_of(backbone)["layers.1.self_attn.q_proj.weight"]
    save_folder(pack(backbone), tmp_path / "saved")
    assert torch.equal(
        load_file(tmp_path / "saved" / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"], merged
    )


# --- a tied head ------------------------------------------------------------------------------------------------------


def head_pair(seed: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "base_model.model.lm_head.lora_A.weight": torch.randn(RANK, 32, generator=generator),
        "base_model.model.lm_head.lora_B.weight": torch.randn(61, RANK, generator=generator),
    }


def embedding_pair(seed: int = 7) -> dict[str, Tensor]:
    """The embedding's pair whose change is that of `head_pair(seed)`."""
    A, B = head_pair(seed).values()
    name = "base_model.model.model.embed_tokens"
    return {f"{name}.lora_embedding_A": B.T, f"{name}.lora_embedding_B": A.T}


def test_a_tied_matrix_is_merged_once_when_both_names_carry_the_same_change(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config(tie_embeddings=True))
    A, B = head_pair().values()
    wanted = backbone.embed_tokens.weight + ALPHA / RANK * (B @ A)
    tensors = head_pair() | embedding_pair()
    merge_adapter(backbone, write_adapter(tmp_path, tensors, target_modules=["lm_head", "embed_tokens"]))
    assert backbone.lm_head.weight is backbone.embed_tokens.weight
    torch.testing.assert_close(backbone.embed_tokens.weight.detach(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        (head_pair(), {"target_modules": ["lm_head"]}, "changes the head alone"),
        (embedding_pair(), {"target_modules": ["embed_tokens"]}, "changes the embedding alone"),
        (head_pair() | embedding_pair(8), {"target_modules": ["embed_tokens", "lm_head"]}, "changes them differently"),
        (
            head_pair() | embedding_pair(),
            {
                "target_modules": ["embed_tokens", "lm_head"],
                "ensure_weight_tying": True,
                "alpha_pattern": {"lm_head": 1},
            },
            "changes them differently",
        ),
        (
            lora_pairs() | {"base_model.model.lm_head.weight": torch.ones(61, 32)},
            {"modules_to_save": ["lm_head"]},
            "changes the head alone",
        ),
    ],
)
def test_a_change_that_a_tied_matrix_cannot_carry_is_refused(
    tensors: dict[str, Tensor], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path, tensors, **settings)
    refuses(folder, words, "one matrix as input embedding and as head", "ensure_weight_tying", tie_embeddings=True)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refuses(folder: Path, *words: str, **config: Any) -> None:
    """The merge is refused with these words in the message, and no weight has moved."""
    backbone = tiny_backbone(tiny_config(**config))
    before = state_of(backbone)
    with pytest.raises(CheckpointError) as caught:
        merge_adapter(backbone, folder)
    for word in words:
        assert word in str(caught.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in backbone.named_parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "LOHA"}, "of the type 'LOHA'; only 'LORA' is merged here"),
        ({"peft_type": None}, "of the type None"),
        ({"use_dora": True}, "DoRA (use_dora)"),
        ({"bias": "lora_only"}, "trained biases (bias 'lora_only')"),
        ({"fan_in_fan_out": True}, "transposed weights (fan_in_fan_out)"),
        ({"lora_bias": True}, "biases on the LoRA matrices (lora_bias)"),
        ({"trainable_token_indices": [1, 2]}, "single trained embedding rows (trainable_token_indices)"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"use_dora": True, "bias": "all"}, "uses DoRA (use_dora), trained biases (bias 'all')"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    refuses(write_adapter(tmp_path, lora_pairs(), **settings), words, "merge it with peft first")


def test_the_settings_of_every_peft_version_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    settings = {"init_lora_weights": True, "lora_dropout": 0.1, "inference_mode": True, "a_setting_of_tomorrow": None}
    merge_adapter(tiny_backbone(tiny_config()), write_adapter(tmp_path, lora_pairs(), **settings))


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    pairs = lora_pairs()
    del pairs[f"{Q_PROJ}.lora_B.weight"]
    refuses(write_adapter(tmp_path, pairs), f"missing: {Q_PROJ}.lora_B.weight")


def test_an_adapter_that_lacks_a_layer_its_config_targets_is_refused(tmp_path: Path) -> None:
    refuses(write_adapter(tmp_path, lora_pairs(layers=1)), "missing: base_model.model.model.layers.1.self_attn.q_proj")


def test_unexpected_tensors_are_named(tmp_path: Path) -> None:
    pairs = lora_pairs() | {f"{Q_PROJ}.lora_magnitude_vector": torch.ones(32)}
    refuses(write_adapter(tmp_path, pairs), f"unexpected: {Q_PROJ}.lora_magnitude_vector")


def test_an_adapter_of_a_deeper_network_is_refused(tmp_path: Path) -> None:
    refuses(write_adapter(tmp_path, lora_pairs(layers=3)), "unexpected: base_model.model.model.layers.2")


def test_mis_shaped_tensors_are_named(tmp_path: Path) -> None:
    pairs = lora_pairs(columns=31)
    refuses(write_adapter(tmp_path, pairs), f"mis-shaped: {Q_PROJ}.lora_A.weight is 3×31 instead of 3×32")


def test_a_rank_other_than_the_configs_is_mis_shaped(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, lora_pairs(rank=4))
    refuses(
        folder, f"{Q_PROJ}.lora_A.weight is 4×32 instead of 3×32", f"{Q_PROJ}.lora_B.weight is 32×4 instead of 32×3"
    )


def test_an_adapter_that_touches_no_layer_of_the_network_is_refused(tmp_path: Path) -> None:
    refuses(write_adapter(tmp_path, {}, target_modules=["c_attn"]), "adapts ['c_attn']", "no such layer")


def test_a_weight_of_an_unknown_dtype_is_refused_before_anything_changes(tmp_path: Path) -> None:
    pairs = lora_pairs()
    pairs["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"] = torch.ones(32, RANK, dtype=torch.int8)
    refuses(write_adapter(tmp_path, pairs), "lora_B.weight as I8")


def test_a_folder_without_a_config_is_no_adapter(tmp_path: Path) -> None:
    refuses(tmp_path, "is not an adapter", "no adapter_config.json", "give the folder that PEFT saved the adapter in")
    refuses(tmp_path / "nowhere", "is not an adapter")


def test_a_checkpoint_given_as_adapter_is_told_apart(tmp_path: Path) -> None:
    save_folder(tiny_backbone(tiny_config()), tmp_path)
    refuses(tmp_path, "is a checkpoint and not an adapter")


def test_an_adapter_without_safetensors_is_refused(tmp_path: Path) -> None:
    (write_adapter(tmp_path, lora_pairs()) / "adapter_model.safetensors").unlink()
    refuses(tmp_path, "holds no adapter_model.safetensors; save the adapter as safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"peft_type": "LORA"}',
        '{"peft_type": "LORA", "r": 0, "lora_alpha": 1, "target_modules": ["q_proj"]}',
        '{"peft_type": "LORA", "r": "many", "lora_alpha": 1, "target_modules": ["q_proj"]}',
        '{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "target_modules": null}',
        '{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "target_modules": "(q"}',
        '{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "target_modules": ["q_proj"], "rank_pattern": [1]}',
        '{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "target_modules": ["q_proj"], "rank_pattern": {"(": 1}}',
    ],
)
def test_a_damaged_adapter_config_is_refused(text: str, tmp_path: Path) -> None:
    (write_adapter(tmp_path, lora_pairs()) / "adapter_config.json").write_text(text)
    refuses(tmp_path, "adapter_config.json", "download it again")


def test_a_packed_network_is_refused(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config()).to(torch.bfloat16)
    if not can_pack(backbone):
        pytest.skip("this processor has no native bfloat16 product, so nothing is packed")
    with pytest.raises(CheckpointError, match="the network is packed"):
        merge_adapter(pack(backbone), write_adapter(tmp_path, lora_pairs()))
