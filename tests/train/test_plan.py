"""The plan: counts, FLOPs and bytes against numbers worked out by hand, by PyTorch's counter, and by the paper."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import FullDenoiser
from unmask.decode.prefix import PrefixDenoiser
from unmask.model.attention import attention_mask
from unmask.model.config import ModelConfig
from unmask.model.lora import LoraSettings, add_lora
from unmask.train.plan import (
    PEAKS,
    activation_bytes,
    count_parameters,
    make_grpo_plan,
    make_plan,
    memory_per_device,
    model_flops,
    render,
)

from doubles import tiny_backbone, tiny_config

QWEN_7B = ModelConfig(
    family="qwen2",
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    qkv_bias=True,
    max_positions=32_768,
)
STAGE_1: dict[str, Any] = {"length": 4096, "rows": 160, "micro_rows": 2, "steps": 100_000, "devices": 80}


def test_qwen_7b_has_the_parameters_of_its_checkpoint() -> None:
    counted = count_parameters(QWEN_7B)
    layer = 3584 * 3584 * 2 + 2 * 3584 * 512 + 3 * 3584 * 18_944  # q and o, k and v, the feed-forward
    assert counted.layers == 28 * layer
    assert counted.total == 28 * (layer + 3584 + 2 * 512 + 2 * 3584) + 3584 + 2 * 152_064 * 3584
    assert round(counted.total / 1e9, 2) == 7.62  # 15.2 GB of bfloat16, as on the hub
    assert counted.trainable == counted.total


def test_lora_trains_r_times_the_sides_of_each_matrix() -> None:
    counted = count_parameters(tiny_config(), lora=LoraSettings(rank=3, targets=("q_proj", "down_proj")))
    assert counted.trainable == 2 * 3 * ((32 + 32) + (48 + 32))
    assert counted.total == count_parameters(tiny_config()).total + counted.trainable


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
def test_flops_are_those_that_pytorch_counts(lora: LoraSettings | None) -> None:
    config = tiny_config(num_kv_heads=4)
    backbone = tiny_backbone(config).requires_grad_(True)
    if lora is not None:
        add_lora(backbone, lora, seed=0)
    ids = torch.arange(40)[None]
    # The counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        hidden = backbone(ids, ids)
        loss = backbone.logits(hidden[:, :10]).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()  # type: ignore[no-untyped-call]
    flops = model_flops(config, 40, masked_share=0.25, lora=lora)
    assert forward.get_total_flops() == pytest.approx(40 * flops.forward)
    # With LoRA nothing below the first pair needs a gradient, which the model leaves out of account.
    assert backward.get_total_flops() == pytest.approx(40 * flops.backward, rel=1e-6 if lora is None else 0.2)


@pytest.mark.parametrize("refresh", [None, 1, 3])
def test_the_flops_of_writing_answers_are_those_that_pytorch_counts(refresh: int | None) -> None:
    config = tiny_config(family="dream", attention="full", mask_id=60, num_kv_heads=4)
    backbone = tiny_backbone(config)
    denoiser = FullDenoiser(backbone) if refresh is None else PrefixDenoiser(backbone, refresh=refresh)
    canvas = Canvas.from_rows([[7] * 11 + [None] * 9] * 2, mask_id=60)
    places = Positions(*canvas.is_masked_BL.nonzero().unbind(1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        for _ in range(6):
            list(denoiser.logits(canvas, places))
    plan = make_grpo_plan(
        config,
        prompt_tokens=11,
        max_new_tokens=9,
        forwards=6,
        answers=2,
        micro_answers=2,
        views=3,
        iterations=2,
        steps=2,
        has_reference=False,
        cache_refresh=refresh,
    )
    assert plan.decoding_flops == pytest.approx(counted.get_total_flops())
    assert dict(line.split("  ", 1) for line in render(plan).splitlines())["time"].strip().startswith("at most ")


def test_block_training_runs_each_row_twice_over() -> None:
    full, block = (
        model_flops(tiny_config(attention=kind, block_length=length), 64, masked_share=0.0).forward
        for kind, length in (("full", None), ("block", 8))
    )
    matrices = 2 * count_parameters(tiny_config()).layers
    assert block == 2 * matrices + 4 * (full - matrices)


def test_diffucoders_stage_1_took_a_plausible_share_of_its_80_h100() -> None:
    """65 B tokens in about 40 hours on 10 x 8 H100 (section 3, appendix B): a check on the paper's numbers."""
    tokens, seconds = 65e9, 40 * 3600
    share = tokens * model_flops(QWEN_7B, 4096).total / (80 * PEAKS["h100"] * seconds)
    assert 0.25 < share < 0.27
    plan = make_plan(QWEN_7B, **STAGE_1, mfu=share)
    assert plan.tokens == pytest.approx(tokens, rel=0.01)  # 100,000 steps of 80 devices with 2 rows of 4096
    assert plan.seconds == pytest.approx(seconds, rel=0.01)


def test_memory_is_sixteen_bytes_a_parameter_shared_among_the_devices() -> None:
    counted = count_parameters(QWEN_7B)
    alone, shared = (memory_per_device(QWEN_7B, counted, rows=1, length=512, shards=n) for n in (1, 64))
    assert alone.weights + alone.gradients + alone.optimiser == 16 * counted.total
    assert shared.weights + shared.gradients + shared.optimiser == pytest.approx(16 * counted.total / 64, rel=1e-6)
    assert shared.activations == alone.activations
    assert shared.working_weights > alone.working_weights, "what is gathered is held whole for a while"


def test_an_average_adds_four_bytes_and_muon_saves_four_for_each_hidden_weight() -> None:
    counted = count_parameters(QWEN_7B)
    plain = memory_per_device(QWEN_7B, counted, rows=1, length=512)
    with_average = memory_per_device(QWEN_7B, counted, rows=1, length=512, ema=True)
    muon = memory_per_device(QWEN_7B, counted, rows=1, length=512, optimiser="muon")
    assert with_average.total - plain.total == 4 * counted.total
    assert plain.total - muon.total == 4 * counted.layers


def test_checkpointing_keeps_one_layer_and_every_layers_input() -> None:
    counted = count_parameters(QWEN_7B)
    plain, less = (
        memory_per_device(QWEN_7B, counted, rows=2, length=4096, checkpoint_layers=on) for on in (False, True)
    )
    a_layer = 8192 * activation_bytes(QWEN_7B, keys=4096)
    assert plain.activations - less.activations == 27 * a_layer - 28 * 8192 * 4 * 3584


def test_logits_are_held_for_one_slice_of_the_vocabulary() -> None:
    counted = count_parameters(QWEN_7B)
    small, large = (memory_per_device(QWEN_7B, counted, rows=8, length=512, chunk=n).logits for n in (1024, 10**9))
    assert (small, large) == (8 * 4096 * 1024, 8 * 4096 * 152_064)


def test_a_device_sends_no_more_rows_through_than_its_share_of_a_step() -> None:
    def activations(devices: int, micro_rows: int) -> int:
        return make_plan(
            QWEN_7B, length=512, rows=32, micro_rows=micro_rows, steps=1, devices=devices
        ).memory.activations

    assert activations(4, 32) == activations(4, 8) < activations(1, 32)
    assert activations(4, 2) == activations(1, 2)


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize(
    "shape",
    [{}, {"hidden_size": 64}, {"intermediate_size": 96}, {"num_heads": 8}, {"head_dim": 16}, {"num_kv_heads": 4}],
)
def test_a_layer_keeps_the_bytes_that_autograd_saves(shape: dict[str, int], bfloat16: bool) -> None:
    length = 256
    saved = {layers: _saved(tiny_config(num_layers=layers, **shape), length, bfloat16) for layers in (1, 2)}
    config = tiny_config(num_layers=1, **shape)
    copies = 2 * count_parameters(config).layers * bfloat16  # autocast's; the plan counts them elsewhere
    per_position = (saved[2] - saved[1] - copies) / length
    assert activation_bytes(config, keys=length, bfloat16=bfloat16) == pytest.approx(per_position, rel=0.06)


def _saved(config: ModelConfig, length: int, bfloat16: bool) -> int:
    """Bytes of every buffer that the backward pass holds on to, weights aside."""
    backbone = tiny_backbone(config).requires_grad_(True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    held: dict[int, torch.Tensor] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    positions = torch.arange(length)[None]
    mask = attention_mask("causal", positions, positions)
    hooks = torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        backbone(positions % config.vocab_size, positions, attn_mask=mask)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in weights)


def test_the_table_says_what_a_reader_decides_by() -> None:
    lines = dict(line.split("  ", 1) for line in render(make_plan(QWEN_7B, **STAGE_1, mfu=0.26)).splitlines())
    found = {name.strip(): value.strip() for name, value in lines.items() if name}
    assert found["parameters"] == "7.62 B, of which trained 7.62 B"
    assert found["tokens"] == "65.5 B"
    assert found["time"] == "40.5 hours at an MFU of 26% of 989 TFLOP/s a device"
