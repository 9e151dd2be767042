"""Keys and values of every layer, addressed by canvas column.

A column keeps its place for the whole run, so appending and replacing are one operation: `write` puts the keys and
values of some columns where they belong. The cache knows nothing of masks or blocks; what is stale is the denoiser's
business. Keys are stored after the rotary embedding, since a position never moves.

Letters: B rows, S columns (plus one scratch column that padding writes to), K key-value heads, H head size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Span:
    """The columns start … stop-1, the same in every row."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Ragged:
    """Each row's own columns [B, T]; `stop` is one past the last column that any row may look at."""

    columns_BT: Int[Tensor, "B T"]
    stop: int


Window = Span | Ragged


class KeyValues(Protocol):
    """What attention asks of a cache: take a window's keys and values, give all that the window may look at."""

    def write(
        self,
        layer: int,
        window: Window,
        key_BKTH: Float[Tensor, "B K T H"],
        value_BKTH: Float[Tensor, "B K T H"],
    ) -> tuple[Float[Tensor, "B K S H"], Float[Tensor, "B K S H"]]: ...


class Kept:
    """Keys and values of one forward, in the order of its columns, and then of nothing else."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def write(self, layer: int, window: Window, key_BKTH: Tensor, value_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's; the forward sees itself."""
        assert layer == len(self.layers), "layers come in their order, once"
        self.layers.append((key_BKTH, value_BKTH))
        return key_BKTH, value_BKTH


class Behind:
    """A forward that stands behind a kept one: it sees that one's columns and then its own. Gradients flow through its
    own alone, if the kept forward had none."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def write(self, layer: int, window: Window, key_BKTH: Tensor, value_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """The kept columns and the new ones."""
        keys, values = self._kept.layers[layer]
        return torch.cat((keys, key_BKTH), 2), torch.cat((values, value_BKTH), 2)


class KVCache:
    """Preallocated keys and values, two tensors of [B, K, S + 1, H] per layer."""

    def __init__(
        self, config: ModelConfig, *, rows: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (rows, config.num_kv_heads, length + 1, config.head_dim)
        self.scratch_column = length
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    def write(
        self,
        layer: int,
        window: Window,
        key_BKTH: Float[Tensor, "B K T H"],
        value_BKTH: Float[Tensor, "B K T H"],
    ) -> tuple[Float[Tensor, "B K S H"], Float[Tensor, "B K S H"]]:
        """Store a window's keys and values; return all columns before `window.stop`."""
        keys, values = self._keys[layer], self._values[layer]
        if isinstance(window, Span):
            keys[:, :, window.start : window.stop] = key_BKTH
            values[:, :, window.start : window.stop] = value_BKTH
        else:
            index = window.columns_BT[:, None, :, None].expand_as(key_BKTH)
            keys.scatter_(2, index, key_BKTH)
            values.scatter_(2, index, value_BKTH)
        return keys[:, :, : window.stop], values[:, :, : window.stop]

    def keep_rows(self, rows: list[int]) -> None:
        """Forget every row but `rows`, which become rows 0, 1, …"""
        for layer in range(len(self._keys)):
            self._keys[layer] = self._keys[layer][rows]
            self._values[layer] = self._values[layer][rows]
