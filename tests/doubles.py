"""Stand-ins for the tests: tiny seeded networks, and networks whose logits are a formula."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.model.backbone import Backbone
from unmask.model.config import ModelConfig


def tiny_config(**changes: Any) -> ModelConfig:
    """A Qwen2-shaped config with two layers, four heads that share two key-value heads, and 61 tokens."""
    settings: dict[str, Any] = {
        "family": "qwen2",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "rope_theta": 10_000.0,
        "max_positions": 256,
        "qkv_bias": True,
        "end_ids": (2,),
    }
    settings |= changes
    if settings.get("attention", "causal") != "causal":
        settings.setdefault("mask_id", 60)
    return ModelConfig(**settings)


def tiny_backbone(config: ModelConfig, *, seed: int = 0, spread: float = 0.3) -> Backbone:
    """A network with seeded normal weights, large enough that its answers depend on everything it sees."""
    generator = torch.Generator().manual_seed(seed)
    backbone = Backbone(config).eval()
    for name, parameter in backbone.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if "norm" in name else spread * noise
        parameter.requires_grad_(False)
    if config.tie_embeddings:
        backbone.lm_head.weight = backbone.embed_tokens.weight
    return backbone


class FormulaDenoiser:
    """Logits as a fixed function of the canvas ids: no network, the same bits for every caller.

    `full(ids_BL)` are the unshifted logits of the whole canvas, as a network would give them.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 3.0):
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.device = torch.device("cpu")
        self.num_forwards = 0
        self.positions_computed = 0
        self._of_token = scale * torch.randn(config.vocab_size, config.vocab_size, generator=generator)
        self._of_place = scale * torch.randn(config.max_positions, config.vocab_size, generator=generator)
        self._dtype = dtype

    def forbid(self, token: int) -> None:
        """Make one token never the best."""
        self._of_token[:, token] = self._of_place[:, token] = -100.0

    def full(self, ids_BL: Tensor) -> Tensor:
        context_B1V = self._of_token[ids_BL].mean(1, keepdim=True)
        return (self._of_token[ids_BL] + self._of_place[: ids_BL.shape[1]] + context_B1V).to(self._dtype)

    def logits(self, canvas: Canvas, places: Positions) -> Iterator[Tensor]:
        self.num_forwards += 1
        self.positions_computed += canvas.ids_BL.numel()
        shift = 1 if self.config.shift_logits else 0
        columns_M = (places.columns_M - shift).clamp(min=0)
        logits_MV = self.full(canvas.ids_BL)[places.rows_M, columns_M]
        yield from logits_MV.split(7)


Scores = Callable[[list[int], int], Tensor]
"""The ids of one row and a position in it to the scores [V] of the tokens there."""


class RowDenoiser:
    """Logits of a place as a function of its own row: the same bits in every batch and under any padding.

    `asked` holds, for every call, the (row, position) pairs that it asked about.
    """

    def __init__(self, config: ModelConfig, scores: Scores, *, chunk: int = 16) -> None:
        self.config = config
        self.device = torch.device("cpu")
        self.num_forwards = 0
        self.positions_computed = 0
        self.scores = scores
        self.asked: list[list[tuple[int, int]]] = []
        self._chunk = chunk

    def logits(self, canvas: Canvas, places: Positions) -> Iterator[Tensor]:
        self.num_forwards += 1
        positions_M = places.columns_M - canvas.start_B[places.rows_M]
        asked = list(zip(places.rows_M.tolist(), positions_M.tolist(), strict=True))
        self.asked.append(asked)
        self.positions_computed += len(asked)
        rows = {row: [self.blank if token is None else token for token in canvas.row_ids(row)] for row, _ in asked}
        yield from torch.stack([self.scores(rows[row], position) for row, position in asked]).split(self._chunk)

    @property
    def blank(self) -> int:
        """What a masked position holds."""
        return self.config.mask_id or 0


def mixed_scores(vocabulary: int, *, seed: int = 0, scale: float = 1.0, length: int = 64) -> Scores:
    """Scores that depend on the place, on its left neighbour, and on everything else in the row."""
    generator = torch.Generator().manual_seed(seed)
    of_place = scale * torch.randn(length, vocabulary, generator=generator)
    of_token = scale * torch.randn(vocabulary, vocabulary, generator=generator)

    def scores(ids: list[int], position: int) -> Tensor:
        return of_place[position] + of_token[ids[position - 1]] + of_token[torch.tensor(ids)].mean(0)

    return scores


def fixed_scores(table_LV: Tensor) -> Scores:
    """The same scores at a position whatever the row holds."""
    return lambda _ids, position: table_LV[position].clone()
