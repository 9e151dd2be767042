"""What a checkpoint is: `ModelConfig`, read from the checkpoint's own files and never guessed from a name.

A Hugging Face `config.json` says the family by its `model_type`. The family fixes two things by definition of its
architecture: how far a position sees and whether logits are shifted.

    model_type   attention   shift_logits   source
    qwen2        causal      yes            autoregressive: hidden state i predicts token i+1
    llama        causal      yes            the same
    Dream        full        yes            Qwen2 without the causal mask (Dream, DiffuCoder)
    llada        full        no             LLaDA-8B, its own key names

A checkpoint that departs from its family (a Qwen2 adapted to full or block attention) says so in an `unmask` section,
which `to_hf` writes: `{"attention": "block", "block_length": 8, "shift_logits": true, "mask_token_id": 151666}`.
One that gives a mask id without saying how it attends is refused, and so is a diffusion checkpoint without a mask id:
the message names the flag that fills the gap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from unmask.errors import CheckpointError, SettingsError, did_you_mean

Attention = Literal["full", "causal", "block"]
Family = Literal["qwen2", "llama", "dream", "llada"]

_FAMILY_OF_TYPE: dict[str, Family] = {"qwen2": "qwen2", "llama": "llama", "dream": "dream", "llada": "llada"}
_TYPE_OF_FAMILY = {"qwen2": "qwen2", "llama": "llama", "dream": "Dream", "llada": "llada"}
_CLASS_OF_FAMILY = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "dream": "DreamModel",
    "llada": "LLaDAModelLM",
}
_READ_HERE = f"{', '.join(_TYPE_OF_FAMILY.values())} are read here"
CANNOT_BE_USED = "this checkpoint cannot be used: take another one (`unmask models list` names some)"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretching of the low rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and conventions of one checkpoint. Sizes are counts; ids index the vocabulary."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    max_positions: int = 2048
    tie_embeddings: bool = False
    qkv_bias: bool = False
    attention: Attention = "causal"
    block_length: int | None = None
    shift_logits: bool = True
    mask_id: int | None = None
    end_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly; "
                "the config is damaged: download it again"
            )
        if self.attention not in get_args(Attention):
            known = did_you_mean(str(self.attention), get_args(Attention))
            raise CheckpointError(f"attention {self.attention!r} is not a kind of attention; {known}")
        if (self.attention == "block") != (self.block_length is not None):
            raise CheckpointError(
                f"attention is {self.attention!r} and block_length is {self.block_length}: block attention, and only "
                "it, has a block length; give `--attention block:LENGTH`"
            )
        if self.block_length is not None and self.block_length < 1:
            raise CheckpointError(f"block_length {self.block_length} is not a length; it must be at least 1")
        if self.attention == "causal" and not self.shift_logits:
            raise CheckpointError(
                "the model attends 'causal' and its logits are not shifted: a position would be predicted from itself, "
                "which no autoregressive model does; leave `--no-shift-logits` out, or give `--attention full`"
            )
        if self.mask_id is None and self.attention != "causal":
            raise CheckpointError(
                f"the checkpoint attends {self.attention!r}, so masked positions are fed to it, but it names no mask "
                "id; give it with `--mask-id ID`"
            )
        if self.mask_id is not None and not 0 <= self.mask_id < self.vocab_size:
            raise CheckpointError(
                f"mask id {self.mask_id} lies outside the vocabulary of {self.vocab_size}; give another `--mask-id ID`"
            )

    @property
    def is_diffusion(self) -> bool:
        """True when masked positions are fed to the network (full or block attention)."""
        return self.attention != "causal"

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        *,
        generation: Mapping[str, Any] | None = None,
        override: "Override | None" = None,
    ) -> "ModelConfig":
        """Read a Hugging Face `config.json` (and `generation_config.json`, for its end ids)."""
        try:
            return cls._from_hf(config, generation or {}, override or Override())
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise CheckpointError(f"the config holds a value of the wrong kind ({error}); download it again") from error

    @classmethod
    def _from_hf(cls, config: Mapping[str, Any], generation: Mapping[str, Any], override: "Override") -> "ModelConfig":
        family = _family(config)
        shape = _llada_shape(config) if family == "llada" else _hf_shape(config, family)
        attention = _attention(config, family, override)
        mask_id = override.mask_id
        if mask_id is None:
            mask_id = _own(config).get("mask_token_id", config.get("mask_token_id"))
        shift = override.shift_logits
        if shift is None:
            shift = bool(_own(config).get("shift_logits", family != "llada"))
        ends = _ids(config.get("eos_token_id")) + _ids(generation.get("eos_token_id"))
        return cls(
            family=family,
            **shape,
            **attention,
            shift_logits=shift,
            mask_id=mask_id,
            end_ids=tuple(dict.fromkeys(ends)),
            bos_id=config.get("bos_token_id"),
            pad_id=config.get("pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `from_hf` reads back, and that `transformers` reads for its own families."""
        shape = _llada_to_hf(self) if self.family == "llada" else _shape_to_hf(self)
        own = {
            "attention": self.attention,
            "block_length": self.block_length,
            "shift_logits": self.shift_logits,
            "mask_token_id": self.mask_id,
        }
        return {
            "architectures": [_CLASS_OF_FAMILY[self.family]],
            "model_type": _TYPE_OF_FAMILY[self.family],
            **shape,
            "vocab_size": self.vocab_size,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "bos_token_id": self.bos_id,
            "pad_token_id": self.pad_id,
            "eos_token_id": list(self.end_ids) if len(self.end_ids) > 1 else next(iter(self.end_ids), None),
            **({"mask_token_id": self.mask_id} if self.mask_id is not None else {}),
            "unmask": {key: value for key, value in own.items() if value is not None},
        }

    def with_override(self, override: "Override") -> "ModelConfig":
        """This config with what the caller states in place of what the checkpoint says."""
        changes: dict[str, Any] = {}
        if override.attention is not None:
            changes |= {"attention": override.attention, "block_length": override.block_length}
        if override.shift_logits is not None:
            changes["shift_logits"] = override.shift_logits
        if override.mask_id is not None:
            changes["mask_id"] = override.mask_id
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What the caller states about a checkpoint that does not say it, or says it wrongly."""

    attention: Attention | None = None
    block_length: int | None = None
    shift_logits: bool | None = None
    mask_id: int | None = None

    @classmethod
    def parse_attention(cls, text: str | None) -> tuple[Attention | None, int | None]:
        """`full`, `causal` or `block:8` as (kind, block length).

        >>> Override.parse_attention("block:8")
        ('block', 8)
        """
        if text is None:
            return None, None
        kind, _, length = text.partition(":")
        if kind in ("full", "causal") and not length:
            return ("full" if kind == "full" else "causal"), None
        if kind == "block" and length.isdecimal() and int(length) > 0:
            return "block", int(length)
        raise SettingsError(
            f"`--attention {text}` is not a kind of attention; give full, causal, or block:LENGTH (as in block:8)"
        )


def _family(config: Mapping[str, Any]) -> Family:
    given = _need(config, "model_type")
    family = _FAMILY_OF_TYPE.get(str(given).lower())
    if family is None:
        raise CheckpointError(
            f"the config is of the architecture {given!r} (its model_type); {_READ_HERE}, so {CANNOT_BE_USED}"
        )
    return family


def _own(config: Mapping[str, Any]) -> Mapping[str, Any]:
    section = config.get("unmask") or {}
    known = {"attention", "block_length", "shift_logits", "mask_token_id"}
    for key in section:
        if key not in known:
            raise CheckpointError(
                f"the config's unmask section has the unknown key {key!r}; {did_you_mean(key, known)}"
            )
    return dict(section)


def _attention(config: Mapping[str, Any], family: Family, override: Override) -> dict[str, Any]:
    own = _own(config)
    if override.attention is not None:
        return {"attention": override.attention, "block_length": override.block_length}
    if "attention" in own:
        return {"attention": own["attention"], "block_length": own.get("block_length")}
    if family in ("dream", "llada"):
        return {"attention": "full"}
    if config.get("mask_token_id") is not None:
        raise CheckpointError(
            f"the config is of the autoregressive type {config.get('model_type')!r} and yet names the mask id "
            f"{config['mask_token_id']}, and it does not say how its positions attend; "
            "give `--attention full`, `--attention block:LENGTH` or `--attention causal`"
        )
    return {"attention": "causal"}


def _ids(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else [int(token) for token in value]


def _need(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(
            f"the config does not give {key!r}, without which the network cannot be built; download the config again"
        )
    return config[key]


def _hf_shape(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    heads = int(_need(config, "num_attention_heads"))
    width = int(_need(config, "hidden_size"))
    if config.get("use_sliding_window"):
        raise CheckpointError(
            "the config turns sliding-window attention on (use_sliding_window), which is not read here, so "
            f"{CANNOT_BE_USED}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(
            f"the config asks for the activation {config['hidden_act']!r}; only silu is read here, so {CANNOT_BE_USED}"
        )
    if config.get("mlp_bias") or (family == "llama" and config.get("attention_bias")):
        raise CheckpointError(
            "the config asks for biases (mlp_bias or attention_bias) that this network does not have, so "
            f"{CANNOT_BE_USED}"
        )
    rope = config.get("rope_parameters") or {}  # transformers 5 keeps theta and scaling together
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    return {
        "vocab_size": int(_need(config, "vocab_size")),
        "hidden_size": width,
        "intermediate_size": int(_need(config, "intermediate_size")),
        "num_layers": int(_need(config, "num_hidden_layers")),
        "num_heads": heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or width // heads),
        "rope_theta": float(theta),
        "rope_scaling": _rope_scaling(config.get("rope_scaling") or rope),
        "rms_norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "max_positions": int(config.get("max_position_embeddings", 2048)),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": family in ("qwen2", "dream"),
    }


def _rope_scaling(scaling: Mapping[str, Any]) -> RopeScaling | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(
            f"the config scales rotary positions by {kind!r}; only 'llama3' scaling is read here, so {CANNOT_BE_USED}"
        )
    return RopeScaling(
        factor=float(_need(scaling, "factor")),
        low_freq_factor=float(_need(scaling, "low_freq_factor")),
        high_freq_factor=float(_need(scaling, "high_freq_factor")),
        original_max_positions=int(_need(scaling, "original_max_position_embeddings")),
    )


def _shape_to_hf(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        },
    }


def _llada_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = int(_need(config, "n_heads"))
    width = int(_need(config, "d_model"))
    for key, wanted in (("activation_type", "silu"), ("layer_norm_type", "rms"), ("block_type", "llama")):
        if config.get(key, wanted) != wanted:
            raise CheckpointError(
                f"the LLaDA config says {key} {config[key]!r}; only {wanted!r} is read here, so {CANNOT_BE_USED}"
            )
    if config.get("include_bias"):
        raise CheckpointError(
            f"the LLaDA config asks for biases (include_bias), which this network does not have, so {CANNOT_BE_USED}"
        )
    return {
        "vocab_size": int(config.get("embedding_size") or _need(config, "vocab_size")),
        "hidden_size": width,
        "intermediate_size": int(config.get("mlp_hidden_size") or 4 * width),
        "num_layers": int(_need(config, "n_layers")),
        "num_heads": heads,
        "num_kv_heads": int(config.get("n_kv_heads") or heads),
        "head_dim": width // heads,
        "rope_theta": float(config.get("rope_theta", 10_000.0)),
        "rms_norm_eps": float(config.get("rms_norm_eps", 1e-5)),
        "max_positions": int(config.get("max_sequence_length", 4096)),
        "tie_embeddings": bool(config.get("weight_tying", False)),
        "qkv_bias": bool(config.get("include_qkv_bias", False)),
    }


def _llada_to_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        "d_model": config.hidden_size,
        "mlp_hidden_size": config.intermediate_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_positions,
        "weight_tying": config.tie_embeddings,
        "include_qkv_bias": config.qkv_bias,
        "include_bias": False,
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "block_type": "llama",
        "rope": True,
    }
