"""LoRA adapters: merging here gives what PEFT's own merge gives, and what cannot be merged exactly is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from doubles import tiny_backbone, tiny_config
from unmask.model.adapter import merge_adapter
from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import hf_name, load_folder, save_folder

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
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
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
    "regular_expression": {"target_modules": r"model\.layers\.1\..*(q|k)_proj"},
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
        "rank_pattern": {"embed_tokens": 2},
        "alpha_pattern": {"embed_tokens": 3},
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
