"""What training a drafter costs: FLOPs by PyTorch's counter, bytes by what autograd holds on to."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unmask.diffusion.draft_blocks import block_mask, tile_blocks
from unmask.model.cache import Behind, Kept, Span
from unmask.model.config import ModelConfig
from unmask.model.drafter import DraftHead
from unmask.model.lora import LoraSettings, add_lora, without_lora
from unmask.recipes.qwen_0_5b import SHAPE
from unmask.train.drafter_plan import (
    count_draft_parameters,
    draft_activation_bytes,
    draft_flops,
    make_draft_plan,
)
from unmask.train.drafting import DraftTrainee
from unmask.train.plan import Plan, count_parameters, render

from doubles import tiny_backbone, tiny_config

LORA = LoraSettings(rank=4, alpha=8.0)
WORDS, INNER, LENGTH = 50, 16, 40


def trainee(config: ModelConfig, *, words: int = WORDS) -> DraftTrainee:
    backbone = tiny_backbone(config)
    add_lora(backbone, LORA, seed=0)
    backbone.mask_row = torch.nn.Parameter(torch.ones(config.hidden_size))
    return DraftTrainee(backbone, DraftHead(config.hidden_size, INNER), torch.arange(words))


def test_flops_are_those_that_pytorch_counts() -> None:
    config = tiny_config(num_kv_heads=4, mask_id=60)
    model = trainee(config)
    ids_BL = torch.arange(LENGTH)[None]
    is_answer_BL, document_BL = ids_BL > 0, torch.zeros_like(ids_BL)
    blocks = tile_blocks(is_answer_BL, document_BL, torch.tensor([0]), block_length=3, seed=0)
    # The counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        found = model(ids_BL, document_BL, blocks)
        loss = (found.hard_M + found.soft_M + found.blind_M).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    masks = int(blocks.is_real_BN.sum())
    flops = draft_flops(config, length=LENGTH, masks=masks, words=WORDS, inner=INNER, lora=LORA)
    assert forward.get_total_flops() == pytest.approx(LENGTH * flops.forward)
    assert backward.get_total_flops() == pytest.approx(LENGTH * flops.backward)


def test_what_is_trained_is_what_learns() -> None:
    config = tiny_config(mask_id=60)
    model = trainee(config)
    counted = count_draft_parameters(config, inner=INNER, lora=LORA)
    assert counted.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.layers == count_parameters(config).layers


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize(
    "shape",
    [{}, {"hidden_size": 64}, {"intermediate_size": 96}, {"num_heads": 8}, {"head_dim": 16}, {"num_kv_heads": 4}],
)
def test_a_layer_keeps_the_bytes_that_autograd_saves(shape: dict[str, int], bfloat16: bool) -> None:
    """126 masks behind 128 tokens, of which the keys and values lie once more before those of the masks."""
    saved = {layers: _saved(tiny_config(num_layers=layers, mask_id=60, **shape), bfloat16) for layers in (1, 2)}
    config = tiny_config(num_layers=1, **shape)
    size = 2 if bfloat16 else 4
    clean = 128 * 2 * size * config.num_kv_heads * config.head_dim
    copies = size * count_parameters(config, lora=LORA).trainable * bfloat16  # the plan counts them elsewhere
    per_mask = (saved[2] - saved[1] - clean - copies) / 126
    found = draft_activation_bytes(config, keys=254, lora=LORA, bfloat16=bfloat16)
    assert found == pytest.approx(per_mask, rel=0.06)


def _saved(config: ModelConfig, bfloat16: bool) -> int:
    """Bytes that the backward pass holds on to, the weights and what was kept of the clean pass aside."""
    backbone = trainee(config).backbone
    for parameter in backbone.parameters():
        if not parameter.requires_grad and bfloat16:
            parameter.data = parameter.data.bfloat16()
    position = torch.arange(128)[None]
    blocks = tile_blocks(position > 0, torch.zeros_like(position), torch.tensor([0]), block_length=1, seed=0)
    kept, nowhere = Kept(), Span(0, 0)
    with torch.no_grad(), without_lora(backbone):
        backbone(position % 60, position, cache=kept, window=nowhere)
    known = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    held: dict[int, torch.Tensor] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    mask = block_mask(blocks, torch.zeros_like(position))
    column_BN = blocks.column_BN
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        backbone(torch.full_like(column_BN, 60), column_BN, attn_mask=mask, cache=Behind(kept), window=nowhere, gate=0)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in known)


def plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "length": 512,
        "rows": 8,
        "micro_rows": 2,
        "block_length": 8,
        "stride": None,
        "words": 24_000,
        "inner": 512,
        "steps": 1500,
        "lora": LoraSettings(rank=32, alpha=64.0),
    }
    return make_draft_plan(SHAPE, **{**settings, **changes})


def test_the_parent_lies_in_the_precision_of_its_products_and_has_no_gradient() -> None:
    found = plan()
    trained, frozen = found.parameters.trainable, 494_032_768
    assert found.parameters.total == frozen + trained
    assert found.memory.weights == 2 * frozen + 4 * trained
    assert (found.memory.gradients, found.memory.optimiser) == (4 * trained, 8 * trained)
    assert plan(bfloat16=False).memory.weights == 4 * (frozen + trained)
    shared = plan(devices=4)
    assert shared.memory.weights == frozen + trained, "float32, a quarter on each"
    assert shared.memory.working_weights > found.memory.working_weights, "and gathered while it is used"


def test_a_wider_stride_and_fewer_words_cost_less() -> None:
    whole = plan()
    for less in (plan(stride=16), plan(words=8000)):
        assert less.flops < whole.flops
        assert less.memory.logits < whole.memory.logits
    assert plan(words=0).flops > whole.flops
    assert plan(checkpoint_layers=True).memory.activations < whole.memory.activations / 4


def test_the_table_says_what_is_trained() -> None:
    shown = render(plan(mfu=0.5, peak=2e12))
    assert "parameters        513 M, of which trained 19 M" in shown
    assert "steps             1,500 of 4.1 k tokens" in shown
