"""What training a drafter will cost: the plan (`train/plan.py`) of two passes over a row, of which one learns.

FLOPs of a row of L columns with N masks behind them, two for each multiply-add, P the matrices of the parent's layers,
A those of the adapter, W the words, D the width, R the draft head's inner size:

    clean pass    2 P L  +  4 · layers · L · L · heads · head size                no gradient
    noisy pass    2 (P + A) N  +  4 · layers · N · (L + N) · heads · head size    backward: P once, the rest twice
    head          2 · 3 D R N                                                     backward twice
    words         3 · 2 W D N                                                     backward once, of two products

A frozen matrix passes the gradient on and has none of its own. Every column counts as one with a mask, so prompts,
which have none, make it cheaper.

Memory: the parent lies in the precision of its products, or in float32 and shared among the devices where these are
sharded. What learns lies in float32.
"""

from dataclasses import replace
from typing import Literal

from unmask.model.config import ModelConfig
from unmask.model.lora import LoraSettings
from unmask.train.plan import PEAKS, Flops, Memory, Parameters, Plan, count_parameters

_MATRICES_OF_WORDS = 6
"""Float32 numbers per mask and word at the peak: the teacher's chances, both predictions, and what their gradients
pass through."""


def make_draft_plan(
    config: ModelConfig,
    *,
    length: int,
    rows: int,
    micro_rows: int,
    block_length: int,
    stride: int | None,
    words: int,
    inner: int,
    steps: int,
    lora: LoraSettings,
    devices: int = 1,
    is_sharded: bool = True,
    optimiser: Literal["adamw", "muon"] = "adamw",
    bfloat16: bool = True,
    checkpoint_layers: bool = False,
    mfu: float = 0.4,
    peak: float = PEAKS["h100"],
) -> Plan:
    """The plan of a stage: `rows` rows of `length` tokens per step over all devices, `micro_rows` per forward of one.

    `words` of 0 are all of the vocabulary; a `stride` of None is the block length.
    """
    words = min(words or config.vocab_size, config.vocab_size)
    masks = length * block_length // (stride or block_length)
    return Plan(
        parameters=count_draft_parameters(config, inner=inner, lora=lora),
        steps=steps,
        tokens=steps * rows * length,
        flops_per_token=draft_flops(config, length=length, masks=masks, words=words, inner=inner, lora=lora),
        memory=draft_memory(
            config,
            rows=min(micro_rows, -(-rows // devices)),
            length=length,
            masks=masks,
            words=words,
            inner=inner,
            lora=lora,
            shards=devices if is_sharded else 1,
            optimiser=optimiser,
            bfloat16=bfloat16,
            checkpoint_layers=checkpoint_layers,
        ),
        devices=devices,
        mfu=mfu,
        peak=peak,
    )


def count_draft_parameters(config: ModelConfig, *, inner: int, lora: LoraSettings) -> Parameters:
    """Parameters of parent and drafter, and those that are trained: adapter, row of the mask, draft head."""
    counted = count_parameters(config, lora=lora)
    new = config.hidden_size + 3 * config.hidden_size * inner
    return replace(counted, total=counted.total + new, trainable=counted.trainable + new)


def draft_flops(config: ModelConfig, *, length: int, masks: int, words: int, inner: int, lora: LoraSettings) -> Flops:
    """FLOPs per token of a row of `length` tokens with `masks` masks, forward and backward."""
    counted = count_parameters(config, lora=lora)
    L, N, D = length, masks, config.hidden_size
    each_pair = 4 * config.num_layers * config.num_heads * config.head_dim
    clean = 2 * counted.layers * L + each_pair * L * L
    matrices, pairs, attention = 2 * counted.layers * N, 2 * counted.trainable * N, each_pair * N * (L + N)
    head, by_words = 2 * 3 * D * inner * N, 2 * words * D * N
    return Flops(
        forward=(clean + matrices + pairs + attention + head + 3 * by_words) / L,
        backward=(matrices + 2 * (pairs + attention + head) + 2 * by_words) / L,
    )


def draft_memory(
    config: ModelConfig,
    *,
    rows: int,
    length: int,
    masks: int,
    words: int,
    inner: int,
    lora: LoraSettings,
    shards: int = 1,
    optimiser: Literal["adamw", "muon"] = "adamw",
    bfloat16: bool = True,
    checkpoint_layers: bool = False,
) -> Memory:
    """Bytes on one device that sends `rows` rows of `length` tokens through the network at a time."""
    counted = count_draft_parameters(config, inner=inner, lora=lora)
    size = 2 if bfloat16 else 4
    trained, frozen = counted.trainable, counted.total - counted.trainable
    matrices = trained - config.hidden_size
    outside = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    gathered = 4 * (2 * counted.layers // config.num_layers + outside) if shards > 1 else 0
    cast = 2 * (trained + (counted.layers if shards > 1 else 0)) if bfloat16 else 0
    keys_and_values = 2 * size * config.num_kv_heads * config.head_dim
    per_mask = draft_activation_bytes(config, keys=length + masks, lora=lora, bfloat16=bfloat16)
    per_layer = masks * per_mask + length * keys_and_values  # of the clean columns too, laid before the masks' own
    residual = size * config.hidden_size
    layers = config.num_layers
    kept = layers * masks * residual + per_layer if checkpoint_layers else layers * per_layer
    return Memory(
        weights=(4 if shards > 1 else size) * frozen // shards + 4 * trained // shards,
        gradients=4 * trained // shards,
        optimiser=4 * (2 * trained - (matrices if optimiser == "muon" else 0)) // shards,
        ema=0,
        working_weights=gathered + cast + size * words * config.hidden_size,
        activations=rows * (kept + layers * length * keys_and_values + 2 * masks * residual),
        # The other is an evaluation's, which scores the whole vocabulary
        logits=rows * masks * max(4 * _MATRICES_OF_WORDS * words, 4 * words + size * config.vocab_size),
    )


def draft_activation_bytes(config: ModelConfig, *, keys: int, lora: LoraSettings, bfloat16: bool = True) -> int:
    """Bytes per mask that one layer keeps for its backward pass, with `keys` columns to attend to.

    Counted from the tensors that autograd saves (a test counts them again), as `activation_bytes` is. A norm that is
    frozen keeps its input alone, widened to float32; the adapters of q, k and v share theirs; and each keeps what lies
    between its two matrices.
    """
    size = 2 if bfloat16 else 4
    widths = (12 if bfloat16 else 16) * config.hidden_size + 4 * size * config.intermediate_size
    heads = size * config.head_dim * (3 * config.num_heads + 2 * config.num_kv_heads)
    mask = size * keys * (config.num_heads // config.num_kv_heads)
    return widths + heads + mask + 4 * (config.num_heads + 2) + size * lora.rank * len(lora.targets)
