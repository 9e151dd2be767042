"""What a drafter learns from one batch: blocks of masks behind clean text, and what the parent says there itself.

    clean pass    the rows as they are, causal, adapter off, no gradient: keys and values, and the parent's distribution
    noisy pass    the blocks (`diffusion/draft_blocks.py`), adapter on, behind the clean keys and values
    head          each mask's hidden state, told the token that stands at its column, scores the one behind

A draft is checked by the parent, so the parent is the teacher: the loss of a mask is the cross-entropy with the text's
next token and with the parent's distribution for it, given the whole text before. The words that may be drafted share
the probability; a token that is none of them teaches through the parent's distribution alone.

Where a block shows some of its tokens, as in decoding that fills it in any order, these are read by the adapted network
as themselves, and each place learns unless what it would say is shown. Such a block says nothing of drafts.

Letters: B rows, L columns, N places of a row, M of them in all that learn, D width, W words, J distances in a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.diffusion.documents import document_positions
from unmask.diffusion.draft_blocks import Blocks, block_mask
from unmask.model.attention import as_bias, causal_document_mask
from unmask.model.backbone import Backbone
from unmask.model.cache import Behind, Kept, Span
from unmask.model.drafter import DraftHead
from unmask.model.lora import without_lora

_NOWHERE = Span(0, 0)  # a kept forward has its columns in order, and needs no window


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """What came of the places of a batch that learn, one after the other, row by row."""

    hard_M: Float[Tensor, " M"]
    """Cross-entropy with the text's token, nats; 0 where it is no word that may be drafted."""

    soft_M: Float[Tensor, " M"]
    """Cross-entropy with the parent's distribution over the words, nats."""

    blind_M: Float[Tensor, " M"]
    """As `soft_M`, of the hidden states before the head told them anything."""

    is_word_M: Bool[Tensor, " M"]
    agrees_M: Bool[Tensor, " M"]
    """Whether the best word is the parent's best token: a greedy draft would be accepted. Where gradients
    are taken it is the parent's best word, which spares the scores of all others: on a small network a tenth of all."""

    distance_M: Int[Tensor, " M"]
    """Which place of its block each is, from 1."""

    is_closed_M: Bool[Tensor, " M"]
    """Whether its block shows nothing, as the one that a draft comes from."""


class DraftTrainee(nn.Module):
    """The adapted network with its draft head, as training sees it: one forward, the parent's included."""

    def __init__(self, backbone: Backbone, head: DraftHead, words_W: Int[Tensor, " W"]) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        place_V = torch.full((backbone.config.vocab_size,), -1)
        place_V[words_W] = torch.arange(len(words_W))
        self.words_W: Tensor
        self.place_V: Tensor
        self.register_buffer("words_W", words_W, persistent=False)
        self.register_buffer("place_V", place_V, persistent=False)

    def forward(self, ids_BL: Int[Tensor, "B L"], document_BL: Int[Tensor, "B L"], blocks: Blocks) -> Drafted:
        teacher_MD, hidden_MD = self.hidden(ids_BL, document_BL, blocks)
        is_asked_BN, column_BN = blocks.is_asked_BN(), blocks.column_BN
        before_M, next_M = ids_BL.gather(1, column_BN)[is_asked_BN], ids_BL.gather(1, column_BN + 1)[is_asked_BN]
        told_MD = self.head(hidden_MD, self.backbone.embed_tokens(before_M).to(hidden_MD.dtype))
        rows_WD = self.backbone.lm_head.weight.detach()[self.words_W]
        with torch.no_grad():
            teacher_MW = F.linear(teacher_MD, rows_WD.to(teacher_MD.dtype)).float().softmax(-1)
            best_M = self.words_W[teacher_MW.argmax(-1)]
        if not torch.is_grad_enabled():
            best_M = self.backbone.logits(teacher_MD).argmax(-1)
        logq_MW = F.linear(told_MD, rows_WD.to(told_MD.dtype)).float().log_softmax(-1)
        blind_MW = F.linear(hidden_MD, rows_WD.to(hidden_MD.dtype)).float().log_softmax(-1)
        place_M = self.place_V[next_M]
        is_word_M = place_M >= 0
        hard_M = -logq_MW.gather(1, place_M.clamp(min=0)[:, None])[:, 0]
        return Drafted(
            hard_M=torch.where(is_word_M, hard_M, 0),
            soft_M=-(teacher_MW * logq_MW).sum(-1),
            blind_M=-(teacher_MW * blind_MW).sum(-1),
            is_word_M=is_word_M,
            agrees_M=self.words_W[logq_MW.argmax(-1)] == best_M,
            distance_M=blocks.distance_BN()[is_asked_BN],
            is_closed_M=blocks.is_closed_BN()[is_asked_BN],
        )

    def hidden(
        self, ids_BL: Int[Tensor, "B L"], document_BL: Int[Tensor, "B L"], blocks: Blocks
    ) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:
        """The parent's hidden states at the columns of the places that learn, and those of the places."""
        mask_id = self.backbone.config.mask_id
        assert mask_id is not None
        kept = Kept()
        position_BL = document_positions(document_BL)
        column_BN, is_asked_BN = blocks.column_BN, blocks.is_asked_BN()
        with torch.no_grad(), without_lora(self.backbone):
            clean_BLD = self.backbone(
                ids_BL, position_BL, attn_mask=causal_document_mask(document_BL), cache=kept, window=_NOWHERE
            )
        mask: Tensor | None = block_mask(blocks, document_BL)
        if torch.is_grad_enabled():
            mask = as_bias(mask, self.backbone.dtype)  # a CPU's backward is twice as fast with numbers (docs/log.md)
        noisy_BND = self.backbone(
            torch.where(blocks.is_shown_BN, ids_BL.gather(1, column_BN), mask_id),
            position_BL.gather(1, column_BN),
            attn_mask=mask,
            cache=Behind(kept),
            window=_NOWHERE,
            gate=0,
        )
        row_BN = torch.arange(len(ids_BL), device=ids_BL.device)[:, None].expand_as(column_BN)
        return clean_BLD[row_BN, column_BN][is_asked_BN], noisy_BND[is_asked_BN]


def chain(shares: Sequence[float | None]) -> float:
    """The tokens that a round settles if a token is accepted with the chance of its distance, one after the other:
    1 + a_1 + a_1 a_2 + …, up to the first distance that is unknown.

    >>> chain([0.5, 1.0]), chain([0.5, None])
    (2.0, 1.5)
    """
    reached, total = 1.0, 1.0
    for share in shares:
        reached *= share or 0.0
        total += reached
    return total
