"""The network of a stage: from a checkpoint or from nothing, with its attention, its mask token and its adapters.

Weights are float32 whatever the checkpoint stores: bfloat16 has 8 bits, and an update of 1e-5 of a weight is lost in
them. Everything drawn here is a function of (seed, parameter name), so every rank and every resume draws the same.
"""

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.errors import CheckpointError, SettingsError
from unmask.model import hub
from unmask.model.adapter import merge_adapter
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import load_folder, read_config
from unmask.model.config import ModelConfig
from unmask.model.gguf import GGUFFile, load_gguf
from unmask.model.lora import LoraSettings, add_lora, load_adapter_weights
from unmask.model.table import Defaults
from unmask.seeds import derive_seed
from unmask.text.gguf_tokenizer import tokenizer_from_gguf
from unmask.text.tokenizer import Tokenizer
from unmask.train.settings import Kind, ModelSettings

_log = logging.getLogger(__name__)

INIT_STD = 0.02  # GPT-2's, and that of every family read here


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network ready to be trained, and the tokenizer it belongs to."""

    backbone: Backbone
    tokenizer: Tokenizer
    source: str
    defaults: Defaults = field(default_factory=Defaults)
    """What the model table says that the source is best used with."""


NetworkKind = Literal[Kind, "drafter"]
"""What a network is built for: to be trained on one of the losses, or to be the parent of a drafter."""


def build_network(settings: ModelSettings, *, kind: NetworkKind, lora: LoraSettings | None, seed: int) -> Network:
    """Build or load the network, turn its attention, and install mask token and adapters.

    Raises SettingsError where the settings leave something open, and what loading a checkpoint raises.
    """
    if not settings.source and settings.config is None:
        raise SettingsError(
            "the stage says neither which checkpoint it starts from (model.source) nor the shape of a network to start "
            "from nothing (model.config); give one"
        )
    if not settings.source:
        assert settings.config is not None
        tokenizer = _tokenizer(settings.tokenizer)
        backbone = fresh_backbone(_turned(settings.config, settings, tokenizer, kind), seed=seed)
        source, defaults = "from nothing", Defaults()
    else:
        found = hub.resolve(settings.source)
        source, defaults = found.name, found.defaults
        if found.path.is_dir():
            backbone = load_folder(found.path, dtype=torch.float32, device=torch.device("cpu"))
            tokenizer = _tokenizer(settings.tokenizer or str(found.path))
        else:
            file = GGUFFile(found.path)
            backbone = load_gguf(file, dtype=torch.float32, device=torch.device("cpu"))
            tokenizer = _tokenizer(settings.tokenizer) if settings.tokenizer else tokenizer_from_gguf(file.metadata)
        backbone.config = _turned(backbone.config, settings, tokenizer, kind)
    if tokenizer.vocab_size > backbone.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the network scores {backbone.config.vocab_size}; "
            "take the tokenizer of the same checkpoint, or a network with a larger vocab_size"
        )
    if settings.adapter and lora is None:
        merge_adapter(backbone, Path(settings.adapter))
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)
    if settings.init_mask_row:
        if backbone.config.mask_id is None:
            raise SettingsError(
                "model.init_mask_row is true, and an autoregressive stage gives the network no mask token; set it to "
                "false here and to true in the first diffusion stage"
            )
        init_row(backbone, backbone.config.mask_id, seed=seed)
    if lora is not None:
        if settings.init_mask_row and not lora.train_embeddings:
            raise SettingsError(
                "model.init_mask_row gives the mask token a new row, which an adapter without the embeddings does not "
                "hold: base and adapter would miss it; set lora.train_embeddings=true"
            )
        add_lora(backbone, lora, seed=seed)
        if settings.adapter:
            load_adapter_weights(backbone, Path(settings.adapter), lora)
    return Network(backbone=backbone.train(), tokenizer=tokenizer, source=source, defaults=defaults)


def planned_config(settings: ModelSettings, *, before: ModelConfig | None) -> ModelConfig:
    """The shape of a stage's network, for a plan: no weights are read.

    It is what the settings say, or the config of a source that is here, or else what the stage `before` left.
    """
    folder = Path(settings.source)
    config = settings.config or (read_config(folder) if (folder / "config.json").is_file() else before)
    if config is None:
        raise SettingsError(
            f"the plan needs the shape of {settings.source}: give its folder as model.source, or its shape as "
            "model.config in the recipe"
        )
    attention = settings.attention or config.attention
    block_length = settings.block_length if settings.attention else config.block_length
    mask_id = 0 if config.mask_id is None and attention != "causal" else config.mask_id  # any: there are no weights
    return replace(config, attention=attention, block_length=block_length, mask_id=mask_id)


def fresh_backbone(config: ModelConfig, *, seed: int) -> Backbone:
    """A network with normal weights of standard deviation 0.02; those that write to the residual stream are smaller by
    √(2 · layers), so that its variance does not grow with depth (GPT-2). Biases 0, norms 1."""
    backbone = Backbone(config)
    residual = INIT_STD / math.sqrt(2 * config.num_layers)
    for name, parameter in backbone.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else INIT_STD
                parameter.copy_(std * _normal(parameter.shape, seed, f"init {name}"))
    return backbone


def init_row(backbone: Backbone, token: int, *, seed: int) -> None:
    """Give one token's embedding row (and head row, where they are apart) a usual start.

    The mean of all rows plus noise with their spread, scaled to the median norm of a row. A row that was never trained
    has decayed towards zero or is noise of its initialisation; with a norm far below the others', gradients explode
    where most of the input is masked (LLaDA2.0, section on continual pre-training).
    """
    weights = [backbone.embed_tokens.weight]
    if backbone.lm_head.weight is not backbone.embed_tokens.weight:
        weights.append(backbone.lm_head.weight)
    for number, weight_VD in enumerate(weights):
        with torch.no_grad():
            weight_VD[token] = usual_row(weight_VD, seed=seed, number=number)


def usual_row(weight_VD: Float[Tensor, "V D"], *, seed: int, number: int = 0) -> Float[Tensor, " D"]:
    """The start that `init_row` gives, of one matrix."""
    noise_D = _normal(weight_VD.shape[1:], seed, "mask row", number)
    row_D: Tensor = weight_VD.mean(0) + weight_VD.std(0) * noise_D.to(weight_VD)
    scaled_D: Tensor = row_D * weight_VD.norm(dim=-1).median() / row_D.norm().clamp(min=1e-12)
    return scaled_D


def _turned(config: ModelConfig, settings: ModelSettings, tokenizer: Tokenizer, kind: NetworkKind) -> ModelConfig:
    """The config with the attention and the mask id that the stage asks for."""
    attention = settings.attention or config.attention
    if kind == "autoregressive" and attention != "causal":
        raise SettingsError(
            f"the stage is autoregressive and the network would attend {attention!r}: it would see what it predicts; "
            "set model.attention=causal, or loss.kind=diffusion"
        )
    if kind == "drafter" and attention != "causal":
        raise SettingsError(
            f"a drafter writes ahead of a causal parent, and this network attends {attention!r}; take an "
            "autoregressive model as model.source"
        )
    if kind == "diffusion" and attention == "causal":
        raise SettingsError(
            "the stage is a diffusion and the network would attend 'causal', so that a masked token sees nothing "
            "behind it; set model.attention=full, or model.attention=block with a model.block_length"
        )
    if kind == "diffusion" and settings.init_mask_row is False and config.mask_id is None and settings.source:
        _log.warning(
            "%s has no mask token yet, and model.init_mask_row is false: the row it gets was never trained",
            settings.source,
        )
    mask_id = config.mask_id
    if mask_id is None and kind != "autoregressive":
        mask_id = _mask_id(settings.mask_token, tokenizer, config)
    block_length = settings.block_length if settings.attention else config.block_length
    return replace(config, attention=attention, block_length=block_length, mask_id=mask_id)


def _mask_id(token: str, tokenizer: Tokenizer, config: ModelConfig) -> int:
    if token.startswith("#") and token[1:].isdecimal():
        return int(token[1:])
    found = tokenizer.token_to_id(token)
    if found is None:
        spare = f"#{tokenizer.vocab_size}" if tokenizer.vocab_size < config.vocab_size else "#ID"
        raise SettingsError(
            f"the checkpoint names no mask id, and its tokenizer has no token {token!r}; give the token that stands "
            f"for a mask, or a row of the vocabulary, as in --set model.mask_token={spare}"
        )
    return found


def _tokenizer(folder: str) -> Tokenizer:
    if not folder:
        raise SettingsError(
            "a network that starts from nothing needs a tokenizer; make one with `unmask data tokenizer` and give its "
            "folder as model.tokenizer"
        )
    return Tokenizer.from_folder(folder)


def _normal(shape: torch.Size, seed: int, *purpose: str | int) -> Tensor:
    name = " ".join(str(part) for part in purpose)
    return torch.randn(shape, generator=torch.Generator().manual_seed(derive_seed(seed, name)))
