"""Blocks of masks tiled over answers, as a drafter learns from them.

A drafter meets a block of J masks behind clean text: the mask at column p stands where token p will be, and says what
comes at p + 1. Tiled with a stride of J over an answer, each token but the first ones is predicted once; where the
first block begins is drawn, so that over time every token is predicted at every distance from its clean text.

    answer   f  f+1 f+2 f+3 f+4 f+5 f+6        offset 1, J = 3, stride 3: the first block is behind column f,
    masks       [1   2   3] [1   2]            its masks say f+2, f+3, f+4, and the next one's f+5 and f+6

Some blocks may show a few of their tokens, as a block does that is filled in any order. What is shown is not asked:
a block behind f that shows f+2 says f+3 and f+4, and f+1 says nothing, for f+2 is what it would say.

Letters: B rows, L columns, N places of masks in a row.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.errors import SettingsError
from unmask.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Where the masks stand, row by row from left to right, padded at the end."""

    column_BN: Int[Tensor, "B N"]
    """The column that a mask stands for; it predicts the one behind. 0 in padding."""

    anchor_BN: Int[Tensor, "B N"]
    """The last clean column that it sees."""

    is_real_BN: Bool[Tensor, "B N"]

    is_shown_BN: Bool[Tensor, "B N"]
    """The token of the column stands there and no mask. False in padding."""

    def to(self, device: torch.device) -> "Blocks":
        """The same places on a device."""
        return Blocks(
            column_BN=self.column_BN.to(device),
            anchor_BN=self.anchor_BN.to(device),
            is_real_BN=self.is_real_BN.to(device),
            is_shown_BN=self.is_shown_BN.to(device),
        )

    def distance_BN(self) -> Int[Tensor, "B N"]:
        """Which mask of its block each is, from 1."""
        return self.column_BN - self.anchor_BN

    def is_asked_BN(self) -> Bool[Tensor, "B N"]:
        """Whether the token behind is to be said: nothing in the block shows it."""
        is_shown_next_BN = self.is_shown_BN.roll(-1, 1) & (self.anchor_BN.roll(-1, 1) == self.anchor_BN)
        is_shown_next_BN[:, -1:] = False  # nothing is behind the last place
        return self.is_real_BN & ~is_shown_next_BN

    def is_closed_BN(self) -> Bool[Tensor, "B N"]:
        """Whether the block shows nothing, as one that is drafted from. Padding counts as closed."""
        is_padding_BN = ~self.is_real_BN
        key_BN = self.anchor_BN.masked_fill(is_padding_BN, 0)
        shown_BN = self.is_shown_BN.long().masked_fill(is_padding_BN, 0)
        width = int(key_BN.max()) + 1 if key_BN.numel() else 1
        count_BW = shown_BN.new_zeros(len(key_BN), width).scatter_add_(1, key_BN, shown_BN)
        return is_padding_BN | (count_BW.gather(1, key_BN) == 0)


def tile_blocks(
    is_answer_BL: Bool[Tensor, "B L"],
    document_BL: Int[Tensor, "B L"],
    index_B: Int[Tensor, " B"],
    *,
    block_length: int,
    stride: int | None = None,
    revealed: float = 0.0,
    seed: int,
) -> Blocks:
    """The blocks of some rows, a function of (seed, global sample index) alone. Of the blocks of two columns and more,
    the share `revealed` shows some tokens: how many, all but one at most, and which, is drawn evenly. Raises
    SettingsError for blocks that would lie over each other.

    >>> answer = torch.tensor([[False, True, True, True, True, True]])
    >>> blocks = tile_blocks(answer, torch.zeros(1, 6).long(), torch.tensor([0]), block_length=2, seed=1)
    >>> blocks.column_BN.tolist(), blocks.anchor_BN.tolist()
    ([[1, 2, 3, 4]], [[0, 0, 2, 2]])
    """
    stride = block_length if stride is None else stride
    if not 1 <= block_length <= stride:
        raise SettingsError(f"blocks of {block_length} every {stride} columns would lie over each other")
    B, L = is_answer_BL.shape
    column_BL = torch.arange(L).expand(B, L)
    is_first_BL = is_answer_BL.clone()
    is_first_BL[:, 1:] &= ~is_answer_BL[:, :-1] | (document_BL[:, 1:] != document_BL[:, :-1])
    first_BL = torch.where(is_first_BL, column_BL, -1).cummax(1).values
    offset_B1 = torch.tensor([_offset(seed, int(index), stride) for index in index_B])[:, None]
    since_BL = column_BL - first_BL - offset_B1
    distance_BL = since_BL.remainder(stride)
    is_place_BL = is_answer_BL & (first_BL >= 0) & (since_BL >= 0) & (distance_BL < block_length)
    is_place_BL &= torch.nn.functional.pad(is_answer_BL[:, 1:] & ~is_first_BL[:, 1:], (0, 1))  # something comes next
    N = int(is_place_BL.sum(1).max())
    order_BN = torch.sort(is_place_BL.int(), dim=1, descending=True, stable=True).indices[:, :N]
    is_real_BN = is_place_BL.gather(1, order_BN)
    blocks = Blocks(
        column_BN=torch.where(is_real_BN, order_BN, 0),
        anchor_BN=torch.where(is_real_BN, order_BN - distance_BL.gather(1, order_BN) - 1, 0),
        is_real_BN=is_real_BN,
        is_shown_BN=torch.zeros_like(is_real_BN),
    )
    if revealed == 0:
        return blocks
    draws_B3L = torch.stack([_draws(seed, int(index), L) for index in index_B])
    return replace(blocks, is_shown_BN=_shown(blocks, draws_B3L, revealed=revealed))


def block_mask(blocks: Blocks, document_BL: Int[Tensor, "B L"]) -> Bool[Tensor, "B 1 N L+N"]:
    """What a mask sees: the clean text of its document up to its anchor, and its own block.

    The clean columns come first. Padding sees itself, so that no query sees nothing.
    """
    column_L = torch.arange(document_BL.shape[1], device=document_BL.device)
    own_BN1 = document_BL.gather(1, blocks.column_BN)[..., None]
    is_clean_BNL = (column_L <= blocks.anchor_BN[..., None]) & (document_BL[:, None] == own_BN1)
    is_clean_BNL &= blocks.is_real_BN[..., None]
    is_own_BNN = _is_own(blocks)
    N = is_own_BNN.shape[1]
    is_own_BNN |= torch.eye(N, dtype=torch.bool, device=document_BL.device)
    return torch.cat((is_clean_BNL, is_own_BNN), -1)[:, None]


def _is_own(blocks: Blocks) -> Bool[Tensor, "B N N"]:
    """Which places are of one block."""
    is_own_BNN = blocks.anchor_BN[:, :, None] == blocks.anchor_BN[:, None]
    return is_own_BNN & blocks.is_real_BN[:, :, None] & blocks.is_real_BN[:, None]


def _shown(blocks: Blocks, draws_B3L: Float[Tensor, "B 3 L"], *, revealed: float) -> Bool[Tensor, "B N"]:
    """Where tokens are shown, by numbers from [0, 1): at each anchor whether its block shows any and how many, at each
    column its turn."""
    chance_BN, amount_BN = (draws_B3L[:, k].gather(1, blocks.anchor_BN) for k in (0, 1))
    turn_BN = draws_B3L[:, 2].gather(1, blocks.column_BN)
    # Sorted by block, and inside of a block by turn: how many of its block are before a place, and how many there are
    block_BN = torch.where(blocks.is_real_BN, blocks.anchor_BN, draws_B3L.shape[-1])
    order_BN = turn_BN.argsort(stable=True, dim=1)
    order_BN = order_BN.gather(1, block_BN.gather(1, order_BN).argsort(stable=True, dim=1))
    sorted_BN = block_BN.gather(1, order_BN)
    first_BN = torch.searchsorted(sorted_BN, sorted_BN)
    size_BN = torch.searchsorted(sorted_BN, sorted_BN, right=True) - first_BN
    before_BN = torch.arange(block_BN.shape[1]) - first_BN
    back_BN = order_BN.argsort(1)
    size_BN, before_BN = size_BN.gather(1, back_BN), before_BN.gather(1, back_BN)
    count_BN = 1 + (amount_BN * (size_BN - 1)).long()  # 1 … size - 1
    return blocks.is_real_BN & (size_BN > 1) & (chance_BN < revealed) & (before_BN < count_BN)


def _draws(seed: int, index: int, length: int) -> Float[Tensor, "3 L"]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "draft reveals", index))
    return torch.rand(3, length, generator=generator, dtype=torch.float64)


def _offset(seed: int, index: int, stride: int) -> int:
    return derive_seed(seed, "draft blocks", index) % stride
