"""What a run will cost, before it is started: parameters, tokens, FLOPs, memory per device, time.

Arithmetic on the network's shape. Parameters are counted on a network without memory (PyTorch's meta device).

FLOPs per token (Chowdhery et al., 2022, appendix B), two for each multiply-add, N the matrices of the layers:

    forward    2 N  +  4 · layers · length · heads · head size  +  2 · masked share · vocabulary · width
    backward   twice that; with LoRA once, because frozen matrices need no gradient of their own

The vocabulary product counts at masked positions alone, since only they are predicted. Attention counts every pair,
because a dense mask saves no work. Block training runs each row twice over, noisy and clean. What checkpointing
recomputes is work but not progress: it is no part of these FLOPs, so an MFU is comparable with and without it.

Memory is what weights, gradients, optimiser, activations and logits hold at the peak; allocator, kernels' workspaces
and messages between devices come on top (10 to 20 % in practice).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from unmask.model.backbone import Backbone
from unmask.model.config import ModelConfig
from unmask.model.lora import LoraSettings, add_lora

PEAKS = {"a100": 312e12, "h100": 989e12}
"""FLOP/s of one device for dense bfloat16 products, from the makers' data sheets."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Counts of parameters; a tied matrix counts once."""

    total: int
    trainable: int
    layers: int
    """In the matrices of the blocks: those that every token is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations per token of a row."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes per device at the peak."""

    weights: int
    gradients: int
    optimiser: int
    ema: int
    """The moving average, and the reference policy of reinforcement learning."""
    working_weights: int
    """Gathered from the other devices, or cast to bfloat16, while they are used; the copy that writes answers."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        held = self.weights + self.gradients + self.optimiser + self.ema
        return held + self.working_weights + self.activations + self.logits


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of one stage of training."""

    parameters: Parameters
    steps: int
    tokens: int
    flops_per_token: Flops
    memory: Memory
    devices: int
    mfu: float
    peak: float
    """FLOP/s of one device."""

    decoding_flops: float = 0.0
    """Of writing the answers, in reinforcement learning: the most that it can be."""

    scoring_flops: float = 0.0
    """Of scoring them under the old policy and the reference, forward only."""

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.tokens * self.flops_per_token.total + self.decoding_flops + self.scoring_flops

    @property
    def seconds(self) -> float:
        """At the stated share of the peak."""
        return self.flops / (self.devices * self.peak * self.mfu)


def make_plan(
    config: ModelConfig,
    *,
    length: int,
    rows: int,
    micro_rows: int,
    steps: int,
    devices: int = 1,
    is_sharded: bool = True,
    lora: LoraSettings | None = None,
    optimiser: Literal["adamw", "muon"] = "adamw",
    ema: bool = False,
    bfloat16: bool = True,
    checkpoint_layers: bool = False,
    chunk: int = 2048,
    masked_share: float = 0.5,
    mfu: float = 0.4,
    peak: float = PEAKS["h100"],
) -> Plan:
    """The plan of a stage: `rows` rows of `length` tokens per step over all devices, `micro_rows` per forward of one.

    `masked_share` is the mean share of predicted positions: half with noise levels uniform in [0, 1], 1 for an
    autoregressive loss. `chunk` is how many words are scored at a time.
    """
    parameters = count_parameters(config, lora=lora)
    memory = memory_per_device(
        config,
        parameters,
        rows=min(micro_rows, -(-rows // devices)),
        length=length,
        shards=devices if is_sharded else 1,
        optimiser=optimiser,
        ema=ema,
        bfloat16=bfloat16,
        checkpoint_layers=checkpoint_layers,
        chunk=chunk,
    )
    return Plan(
        parameters=parameters,
        steps=steps,
        tokens=steps * rows * length,
        flops_per_token=model_flops(config, length, masked_share=masked_share, lora=lora),
        memory=memory,
        devices=devices,
        mfu=mfu,
        peak=peak,
    )


def make_grpo_plan(
    config: ModelConfig,
    *,
    prompt_tokens: int,
    max_new_tokens: int,
    forwards: int,
    answers: int,
    micro_answers: int,
    views: int,
    iterations: int,
    steps: int,
    has_reference: bool,
    cache_refresh: int | None = None,
    devices: int = 1,
    is_sharded: bool = True,
    lora: LoraSettings | None = None,
    optimiser: Literal["adamw", "muon"] = "adamw",
    ema: bool = False,
    bfloat16: bool = True,
    checkpoint_layers: bool = False,
    mfu: float = 0.4,
    peak: float = PEAKS["h100"],
) -> Plan:
    """The plan of a stage of reinforcement learning, with prompts of `prompt_tokens` and answers that fill their room.

    A phase writes `answers` answers in `forwards` forwards each, and learns from them in `iterations` steps of `views`
    rows per answer. A forward computes the whole row, or with a prefix cache one of `cache_refresh` does, and the
    others the answer's columns and the one before. It is the most that a stage can cost: shorter prompts, answers that
    end early, steps that settle several tokens, and groups without spread make it cheaper.
    """
    length = prompt_tokens + max_new_tokens
    share = max_new_tokens / length
    plan = make_plan(
        config,
        length=length,
        rows=answers * views,
        micro_rows=micro_answers * views,
        steps=steps,
        devices=devices,
        is_sharded=is_sharded,
        lora=lora,
        optimiser=optimiser,
        ema=ema or has_reference,
        bfloat16=bfloat16,
        checkpoint_layers=checkpoint_layers,
        masked_share=share,
        mfu=mfu,
        peak=peak,
    )
    phases = -(-steps // iterations)
    only_forward = (1 - 1 / iterations) + has_reference  # the old policy in all iterations but the first
    whole = replace(config, attention="full", block_length=None)  # decoding has no clean copy beside the canvas
    head = max_new_tokens * 2 * config.vocab_size * config.hidden_size
    each = length * model_flops(whole, length, masked_share=share, lora=None).forward
    if cache_refresh is not None:
        window = (max_new_tokens + 1) / length * (each - head) + head
        each = (each + (cache_refresh - 1) * window) / cache_refresh
    copy = (2 if bfloat16 else 4) * plan.parameters.total
    average = plan.memory.ema * (2 if ema and has_reference else 1)
    return replace(
        plan,
        decoding_flops=phases * answers * forwards * each,
        scoring_flops=plan.tokens * only_forward * plan.flops_per_token.forward,
        memory=replace(plan.memory, ema=average, working_weights=plan.memory.working_weights + copy),
    )


def count_parameters(config: ModelConfig, *, lora: LoraSettings | None = None) -> Parameters:
    """Parameters of the network, and those that are trained: all of them, or LoRA's."""
    with torch.device("meta"):
        backbone = Backbone(config)
    layers = sum(p.numel() for p in backbone.layers.parameters() if p.ndim == 2)
    if lora is not None:
        add_lora(backbone, lora, seed=0)
    parameters = list(backbone.parameters())
    return Parameters(
        total=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        layers=layers,
    )


def model_flops(
    config: ModelConfig, length: int, *, masked_share: float = 0.5, lora: LoraSettings | None = None
) -> Flops:
    """FLOPs per token of a row of `length` tokens, forward and backward."""
    copies = _copies(config)
    matrices = copies * 2 * count_parameters(config).layers
    attention = copies**2 * 4 * config.num_layers * length * config.num_heads * config.head_dim
    head = 2 * masked_share * config.vocab_size * config.hidden_size
    forward = matrices + attention + head
    if lora is None:
        return Flops(forward=forward, backward=2 * forward)
    counted = count_parameters(config, lora=lora)
    embeddings = config.vocab_size * config.hidden_size if lora.train_embeddings else 0
    pairs = copies * 2 * (counted.trainable - embeddings)
    # A frozen matrix passes the gradient on and has none of its own; attention has two operands and so two gradients.
    trains_head = lora.train_embeddings and config.tie_embeddings
    backward = matrices + 2 * attention + (2 if trains_head else 1) * head + 2 * pairs
    return Flops(forward=forward + pairs, backward=backward)


def memory_per_device(
    config: ModelConfig,
    parameters: Parameters,
    *,
    rows: int,
    length: int,
    shards: int = 1,
    optimiser: Literal["adamw", "muon"] = "adamw",
    ema: bool = False,
    bfloat16: bool = True,
    checkpoint_layers: bool = False,
    chunk: int = 2048,
) -> Memory:
    """Bytes on one device that sends `rows` rows of `length` tokens through the network at a time.

    Weights, gradients and what the optimiser keeps are float32. AdamW keeps two numbers per trained parameter; Muon
    keeps one for a hidden matrix and two for the rest.
    """
    keys = length * _copies(config)
    positions = rows * keys
    one_layer = parameters.layers // config.num_layers
    trained = parameters.trainable
    hidden = min(parameters.layers, trained) if optimiser == "muon" else 0
    outside = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    gathered = 4 * (2 * one_layer + outside) if shards > 1 else 0  # this layer and the next; the rest throughout
    cast = 2 * parameters.layers if bfloat16 else 0  # autocast keeps its copies until the forward pass is over
    per_layer = activation_bytes(config, keys=keys, bfloat16=bfloat16)
    residual = 4 * config.hidden_size
    kept = config.num_layers * residual + per_layer if checkpoint_layers else config.num_layers * per_layer
    return Memory(
        weights=4 * parameters.total // shards,
        gradients=4 * trained // shards,
        optimiser=4 * (2 * trained - hidden) // shards,
        ema=4 * trained // shards if ema else 0,
        working_weights=gathered + cast,
        activations=positions * (kept + 2 * residual),
        logits=2 * 4 * rows * length * min(chunk, config.vocab_size),  # and their gradient
    )


def activation_bytes(config: ModelConfig, *, keys: int, bfloat16: bool = True) -> int:
    """Bytes per position that one layer keeps for its backward pass, with `keys` positions to attend to.

    Counted from the tensors that autograd saves (a test counts them again). The residual stream and the norms are
    float32 under autocast; each of the seven products keeps its own input, and the dense mask is kept as numbers of the
    queries' dtype, once for each query head of a group.
    """
    size = 2 if bfloat16 else 4
    widths = (26 if bfloat16 else 24) * config.hidden_size + 4 * size * config.intermediate_size
    heads = size * config.head_dim * (3 * config.num_heads + 2 * config.num_kv_heads)
    mask = size * keys * (config.num_heads // config.num_kv_heads)
    return widths + heads + mask + 4 * (config.num_heads + 2)


def render(plan: Plan) -> str:
    """The plan as a table of two columns, for `--plan`; what takes no memory is left out."""
    counted, memory = plan.parameters, plan.memory
    is_shared = f", each of {plan.devices} devices" if plan.devices > 1 else ""
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "averages": memory.ema,
        "weights in use": memory.working_weights,
        "activations": memory.activations,
        "logits": memory.logits,
    }
    shares = {"writing answers": plan.decoding_flops, "other scoring": plan.scoring_flops}
    rows = [
        ("parameters", f"{_scaled(counted.total)}, of which trained {_scaled(counted.trainable)}"),
        ("steps", f"{plan.steps:,} of {_scaled(plan.tokens / plan.steps)} tokens"),
        ("tokens", _scaled(plan.tokens)),
        ("FLOPs", f"{plan.flops:.2e}, or {_scaled(plan.flops_per_token.total)} per token"),
        *((f"  {name}", f"{flops / plan.flops:.0%} of them") for name, flops in shares.items() if flops),
        ("memory", f"{_bytes(memory.total)}{is_shared}"),
        *((f"  {name}", _bytes(size)) for name, size in parts.items() if size),
        ("time", f"{'at most ' if plan.decoding_flops else ''}{_duration(plan.seconds)} at {_pace(plan)}"),
    ]
    return _table(rows)


def render_sum(plans: Sequence[Plan]) -> str:
    """What the stages of a run cost together; they are planned for the same devices."""
    seconds = sum(plan.seconds for plan in plans)
    rows = [
        ("all stages", f"{sum(plan.steps for plan in plans):,} steps"),
        ("tokens", _scaled(sum(plan.tokens for plan in plans))),
        ("FLOPs", f"{sum(plan.flops for plan in plans):.2e}"),
        ("time", f"{_duration(seconds)} at {_pace(plans[0])}"),
    ]
    return _table(rows)


def _pace(plan: Plan) -> str:
    is_large = plan.peak >= 1e12
    speed = f"{plan.peak / 1e12:,.3g} TFLOP/s" if is_large else f"{plan.peak / 1e9:,.3g} GFLOP/s"
    return f"an MFU of {plan.mfu:.0%} of {speed} a device"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<18}{value}" for name, value in rows)


def _copies(config: ModelConfig) -> int:
    return 2 if config.attention == "block" else 1


def _scaled(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
