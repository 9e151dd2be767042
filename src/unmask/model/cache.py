"""Keys and values of every layer, addressed by canvas column.

A column keeps its place for the whole run, so appending and replacing are one operation: `write` puts the keys and
values of some columns where they belong. The cache knows nothing of masks or blocks; what is stale is the denoiser's
business. Keys are stored after the rotary embedding, since a position never moves.

Letters: B rows, S columns (plus one scratch column that padding writes to), T columns of a window, M slots of a packed
one, N query heads, K key-value heads, H head size.
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


@dataclass(frozen=True, slots=True)
class Packed:
    """Columns of several rows one behind the other, as a single row of M slots without padding.

    Slot m is column `column_M[m]` of row `row_M[m]`, and among the T slots of its row the one at `place_M[m]`. All but
    attention works on the slots as they are; there they are spread over the rows.
    """

    row_M: Int[Tensor, " M"]
    column_M: Int[Tensor, " M"]
    place_M: Int[Tensor, " M"]
    shape: tuple[int, int]
    """Rows B and most slots T of one."""

    stop: int

    def spread(self, x_1NMH: Float[Tensor, "1 N M H"]) -> Float[Tensor, "B N T H"]:
        """The slots at their places in their rows; zeros where a row has none."""
        _, N, _, H = x_1NMH.shape
        out = x_1NMH.new_zeros(self.shape[0], N, self.shape[1], H)
        out[self.row_M, :, self.place_M] = x_1NMH[0].transpose(0, 1)
        return out

    def collect(self, x_BNTH: Float[Tensor, "B N T H"]) -> Float[Tensor, "1 N M H"]:
        """The slots one behind the other again."""
        return x_BNTH[self.row_M, :, self.place_M].transpose(0, 1)[None]


Window = Span | Ragged | Packed


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
        elif isinstance(window, Packed):
            keys[window.row_M, :, window.column_M] = key_BKTH[0].transpose(0, 1)
            values[window.row_M, :, window.column_M] = value_BKTH[0].transpose(0, 1)
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
