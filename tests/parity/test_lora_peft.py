"""LoRA training against PEFT: it computes what is saved here, and what it saves is trained on here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import save_folder
from unmask.model.lora import LoraSettings, add_lora, load_adapter_weights, save_adapter

from doubles import tiny_backbone, tiny_config

VARIANTS = {
    "all_linears": (LoraSettings(rank=3, alpha=7.0), False),
    "rslora": (LoraSettings(rank=3, alpha=7.0, targets=("q_proj", "down_proj"), use_rslora=True), False),
    "embeddings": (LoraSettings(rank=3, alpha=7.0, train_embeddings=True), False),
    "tied_embeddings": (LoraSettings(rank=3, alpha=7.0, train_embeddings=True), True),
}
IDS = torch.arange(22).view(2, 11)


def moved(settings: LoraSettings, *, tie: bool) -> Backbone:
    """The tiny network with pairs that are not at their start."""
    backbone = tiny_backbone(tiny_config(tie_embeddings=tie))
    add_lora(backbone, settings, seed=0)
    generator = torch.Generator().manual_seed(5)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return backbone


def causal_logits(backbone: Backbone) -> Tensor:
    positions = torch.arange(IDS.shape[1]).expand(IDS.shape)
    with torch.no_grad():
        return backbone.logits(backbone(IDS, positions, attn_mask=attention_mask("causal", positions, positions)))


def their_base(folder: Path, *, tie: bool) -> Any:
    transformers = pytest.importorskip("transformers")
    save_folder(tiny_backbone(tiny_config(tie_embeddings=tie)), folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_computes_from_our_folder_what_we_compute(variant: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings, tie = VARIANTS[variant]
    ours = moved(settings, tie=tie)
    save_adapter(ours, tmp_path / "adapter", settings, base_name=str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(their_base(tmp_path / "base", tie=tie), tmp_path / "adapter").eval()
    with torch.no_grad():
        wanted = theirs(IDS).logits
    torch.testing.assert_close(causal_logits(ours), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - causal_logits(tiny_backbone(tiny_config(tie_embeddings=tie)))).abs().max() > 0.5


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_goes_on_from_what_peft_saved(variant: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings, tie = VARIANTS[variant]
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        use_rslora=settings.use_rslora,
        modules_to_save=["embed_tokens"] if settings.train_embeddings else None,
        ensure_weight_tying=settings.train_embeddings and tie,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(their_base(tmp_path / "base", tie=tie), config)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = tiny_backbone(tiny_config(tie_embeddings=tie))
    add_lora(ours, settings, seed=0)
    load_adapter_weights(ours, tmp_path / "adapter", settings)
    with torch.no_grad():
        wanted = theirs.eval()(IDS).logits
    torch.testing.assert_close(causal_logits(ours), wanted, rtol=1e-4, atol=1e-4)
