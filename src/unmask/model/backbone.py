"""The network: one decoder-only transformer for Qwen2, Dream and DiffuCoder, Llama and SmolLM2, and LLaDA.

Pre-norm RMSNorm, rotary positions (rotate-half), grouped-query attention with optional biases on q, k and v, SwiGLU.
What differs between the families is in `ModelConfig`; who sees whom comes in as a mask, so the same weights run with
full, causal or block attention. `forward` gives hidden states and `logits` turns chosen ones into scores: the
vocabulary projection is a third of a forward pass at 512 positions, and most positions never need it.

Letters: B batch, T positions, D width, N query heads, K key-value heads, H head size, V vocabulary, M chosen positions.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unmask.model.attention import attend
from unmask.model.cache import KeyValues, Packed, Window
from unmask.model.config import ModelConfig
from unmask.model.gate import through


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in float32 whatever the input (Zhang & Sennrich, 2019)."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SelfAttention(nn.Module):
    """Grouped-query attention over the window itself, or over a cache that holds the window and what came before."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self.head_dim = head
        self.q_proj = nn.Linear(width, config.num_heads * head, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, config.num_kv_heads * head, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, config.num_kv_heads * head, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * head, width, bias=False)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor],
        attn_mask: Bool[Tensor, "B 1 T S"] | Float[Tensor, "B 1 T S"] | None,
        cache: KeyValues | None,
        window: Window | None,
        layer: int,
        gate: int | None,
    ) -> Float[Tensor, "B T D"]:
        B, T, _ = x_BTD.shape
        query = rotate(
            through(self.q_proj, x_BTD, gate).view(B, T, -1, self.head_dim).transpose(1, 2), rotary
        )  # B N T H
        key = rotate(through(self.k_proj, x_BTD, gate).view(B, T, -1, self.head_dim).transpose(1, 2), rotary)  # B K T H
        value = through(self.v_proj, x_BTD, gate).view(B, T, -1, self.head_dim).transpose(1, 2)
        if cache is not None:
            assert window is not None
            key, value = cache.write(layer, window, key, value)  # B K S H
        if isinstance(window, Packed):
            out = window.collect(attend(window.spread(query), key, value, attn_mask))
        else:
            out = attend(query, key, value, attn_mask)
        return through(self.o_proj, out.transpose(1, 2).reshape(B, T, -1), gate)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Float[Tensor, "B T D"], gate: int | None) -> Float[Tensor, "B T D"]:
        opened, up = F.silu(through(self.gate_proj, x_BTD, gate)), through(self.up_proj, x_BTD, gate)
        # In place where no gradient is asked for: at 8 x 384 positions a fresh buffer costs more than the product.
        product = opened * up if torch.is_grad_enabled() else opened.mul_(up)
        return through(self.down_proj, product, gate)


class Layer(nn.Module):
    """One residual block: attention, then feed-forward, each on a normalised input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor],
        attn_mask: Bool[Tensor, "B 1 T S"] | Float[Tensor, "B 1 T S"] | None,
        cache: KeyValues | None,
        window: Window | None,
        layer: int,
        gate: int | None,
    ) -> Float[Tensor, "B T D"]:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, attn_mask, cache, window, layer, gate)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD), gate)  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """Token ids to hidden states, and hidden states to logits. Parameters are named as in `transformers`' Qwen2, less
    the `model.` prefix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_layers = False
        """Recompute each layer's activations in the backward pass rather than keep them."""

        self.mask_row: nn.Parameter | None = None
        """What a gated adapter reads the mask id as (`gated`), where it acts."""

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def forward(
        self,
        ids_BT: Int[Tensor, "B T"],
        positions_BT: Int[Tensor, "B T"],
        *,
        attn_mask: Bool[Tensor, "B 1 T S"] | Float[Tensor, "B 1 T S"] | None = None,
        cache: KeyValues | None = None,
        window: Window | None = None,
        gate: int | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the last norm.

        `positions_BT` are rotary positions, counted per row from its first token (padding may have any value).
        `attn_mask` None lets every query see every key; numbers are added to the scores. With a `cache`, `window` names
        the columns that ids_BT fill, and keys S are all columns before `window.stop`; without one S = T. With a packed
        window ids_BT is one row of slots, and the mask is that of the rows which they are spread over. From column
        `gate` of ids_BT on a gated adapter acts, if there is one; None: nowhere.
        """
        # Under autocast the products come out in its dtype, and what is multiplied with them should not widen them
        device = self.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype
        rotary = rotary_tables(self.config, positions_BT, dtype=dtype)
        x_BTD = self._embed(ids_BT, gate)
        for number, layer in enumerate(self.layers):
            if self.checkpoint_layers and torch.is_grad_enabled():
                x_BTD = checkpoint(layer, x_BTD, rotary, attn_mask, cache, window, number, gate, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, rotary, attn_mask, cache, window, number, gate)
        return self.norm(x_BTD)  # type: ignore[no-any-return]

    def _embed(self, ids_BT: Int[Tensor, "B T"], gate: int | None) -> Float[Tensor, "B T D"]:
        x_BTD: Tensor = self.embed_tokens(ids_BT)
        if gate is None or self.mask_row is None:
            return x_BTD
        assert self.config.mask_id is not None, "who has a row for the mask has a mask"
        is_mask_BT1 = ids_BT.eq(self.config.mask_id)[..., None]
        is_mask_BT1[:, :gate] = False
        return torch.where(is_mask_BT1, self.mask_row.to(x_BTD.dtype), x_BTD)

    def logits(self, hidden_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Vocabulary scores of chosen hidden states, in the network's dtype."""
        return self.lm_head(hidden_MD)  # type: ignore[no-any-return]


def rotary_tables(
    config: ModelConfig, positions_BT: Int[Tensor, "B T"], *, dtype: torch.dtype
) -> tuple[Float[Tensor, "B 1 T H"], Float[Tensor, "B 1 T H"]]:
    """cos and sin of the rotary angles (Su et al., 2021), computed in float32 and then cast.

    The sine's first half carries the minus sign of rotate-half, so that `rotate` needs one roll and no negation.
    """
    half = config.head_dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=positions_BT.device) / half
    frequency = config.rope_theta**-exponent
    if config.rope_scaling is not None:
        frequency = _llama3_frequencies(config, frequency)
    angle = positions_BT[:, None, :, None].float() * frequency  # B 1 T H/2
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x_BNTH: Float[Tensor, "B N T H"], rotary: tuple[Tensor, Tensor]) -> Float[Tensor, "B N T H"]:
    """x · cos + rotate_half(x) · sin, where rotate_half swaps the halves and negates the first."""
    cos, sin = rotary
    return torch.addcmul(x_BNTH * cos, x_BNTH.roll(x_BNTH.shape[-1] // 2, -1), sin)


def _llama3_frequencies(config: ModelConfig, frequency: Tensor) -> Tensor:
    """Llama 3.1's rule: long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    scaling = config.rope_scaling
    assert scaling is not None
    turns = scaling.original_max_positions * frequency / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)
    return frequency * (blend + (1 - blend) / scaling.factor)
