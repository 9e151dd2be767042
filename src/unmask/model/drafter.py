"""What drafts a block for a causal model: a gated adapter, a row for the mask, and a small head that joins a draft.

The parent is never changed. Behind its clean tokens stands a block of masks, on which alone the adapter acts; the
hidden state of the j-th mask says what comes j + 1 tokens after the last clean one, without knowing the tokens between.
Those are known when the draft is read: the parent's own next token, then what was drafted so far. The head puts each
into the next prediction (the sampler head of Samragh et al., 2507.11851),

    z_j = h_j + U silu(D [h_j ; e(previous token)])        draft token = argmax over `words` of  W z_j

Only the most frequent words are drafted (Zhao et al., FR-Spec, 2502.14856): a draft needs no rare word, and the matrix
of all of them is a quarter of a small network's weights. That matrix is read once for a block: W h_j, the scores before
anything is told, name the candidates of each place, and only those are scored again with what is told.

Letters: A rows, J masks of a block, D width, R inner size, W words that are drafted, C candidates, V vocabulary,
M places.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.seeds import derive_seed

CANDIDATES = 128
"""Words of a place that are scored again when it is told the token before it (docs/log.md)."""


class DraftHead(nn.Module):
    """Reads a block of hidden states as tokens, from left to right."""

    def __init__(self, width: int, inner: int, *, seed: int = 0) -> None:
        super().__init__()
        self.down = nn.Linear(2 * width, inner, bias=False)
        self.up = nn.Linear(inner, width, bias=False)
        generator = torch.Generator().manual_seed(derive_seed(seed, "draft head"))
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(inner, 2 * width, generator=generator) / (2 * width) ** 0.5)
            self.up.weight.zero_()  # training begins at the hidden states as they are

    def forward(self, hidden_MD: Float[Tensor, "M D"], previous_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """The hidden states, each told the embedding of the token before the one that it predicts."""
        down, up = self.down.weight.to(hidden_MD.dtype), self.up.weight.to(hidden_MD.dtype)
        told_MD = F.linear(F.silu(F.linear(torch.cat((hidden_MD, previous_MD), -1), down)), up)
        return hidden_MD + told_MD


class Drafter(nn.Module):
    """A draft head with the words that it may draft. The adapter and the row of the mask are in the backbone."""

    def __init__(
        self,
        head: DraftHead,
        embedding_VD: Float[Tensor, "V D"],
        rows_WD: Float[Tensor, "W D"],
        words_W: Int[Tensor, " W"],
        *,
        block_length: int,
    ) -> None:
        super().__init__()
        self.head = head
        self.block_length = block_length
        self.embedding_VD = embedding_VD  # of the parent, which owns it
        self.rows_WD = rows_WD  # of the parent's vocabulary head
        self.words_W = words_W

    def scores(self, hidden_AD: Float[Tensor, "A D"], previous_A: Int[Tensor, " A"]) -> Float[Tensor, "A W"]:
        """Logits of the words, in float32, behind the token `previous_A`."""
        z_AD = self.head(hidden_AD, self.embedding_VD[previous_A].to(hidden_AD.dtype))
        return F.linear(z_AD, self.rows_WD).float()

    def read(
        self, hidden_AJD: Float[Tensor, "A J D"], known_A: Int[Tensor, " A"]
    ) -> tuple[Int[Tensor, "A J"], Float[Tensor, "A J"]]:
        """The drafted tokens, and the probability of each among its candidates, after the token `known_A`."""
        tokens, sureties = [], []
        previous_A = known_A
        candidates = min(CANDIDATES, len(self.words_W))
        near_AJC = F.linear(hidden_AJD, self.rows_WD).topk(candidates, -1, sorted=False).indices
        for j in range(hidden_AJD.shape[1]):
            near_AC = near_AJC[:, j]
            z_AD = self.head(hidden_AJD[:, j], self.embedding_VD[previous_A].to(hidden_AJD.dtype))
            logits_AC = (self.rows_WD[near_AC] @ z_AD[:, :, None]).squeeze(-1)
            chance_A, best_A = logits_AC.float().softmax(-1).max(-1)
            previous_A = self.words_W[near_AC.gather(1, best_A[:, None]).squeeze(1)]
            tokens.append(previous_A)
            sureties.append(chance_A)
        if not tokens:
            empty_A0 = known_A[:, None][:, :0]
            return empty_A0, empty_A0.float()
        return torch.stack(tokens, 1), torch.stack(sureties, 1)
