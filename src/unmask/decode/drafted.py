"""Diffusion decoding of a causal model with a drafter: what the drafter says is taken, not checked.

    columns   settled since the last call     the window behind them: masks, and tokens committed out of order
    adapter   off                             on
    sees      what is left of it, as a        all that is settled before the window, and the window
              causal model sees it

The first open position of a row is scored by the parent itself, from the last settled token; the ones behind it by the
drafter, which is told the token before each: the committed one, or the best one that may stand there. A token is no
surer than all that it was told: its probability is the product of theirs (docs/log.md has what is lost without that). A
policy says which of them to commit. Whatever is settled up to the first open position becomes clean text in the next
call, with the parent's own keys and values, so the cache is exact and a wrong draft spoils nothing but what follows.

The window is `block_length` positions from the first open one on, and moves with it.

Letters: A rows asked for, T columns computed, S key columns, N places of a window, M places, C places in one chunk,
W words that are drafted, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import CHUNK, CachedDenoiser, check_fit, run_window, window_through
from unmask.errors import CanvasError
from unmask.model.backbone import Backbone
from unmask.model.cache import KVCache
from unmask.model.drafter import Drafter


class DraftedDenoiser(CachedDenoiser):
    """The parent's scores for the first open position of a row, the drafter's for the window behind it.

    Words that the drafter does not know score minus infinity there. `block_length` is the positions of a window; None:
    those that the drafter was trained for and the parent's own.
    """

    def __init__(self, backbone: Backbone, drafter: Drafter, *, block_length: int | None = None) -> None:
        super().__init__(backbone)
        self.drafter = drafter
        self.window_length = drafter.block_length + 1 if block_length is None else block_length
        self._hidden: dict[int, tuple[int, Tensor]] = {}  # row -> its last clean column and the hidden state there
        self._is_suppressed_V: Tensor | None = None

    def suppress(self, is_suppressed_V: Bool[Tensor, " V"]) -> None:
        """Ids that are never committed, and so are never the token before another."""
        self._is_suppressed_V = is_suppressed_V

    def logits(self, canvas: Canvas, places: Positions) -> Iterator[Float[Tensor, "C V"]]:
        check_fit(self.config, canvas)
        rows, row_of_place_M = places.rows_M.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        first_A = self._first_open(canvas, rows)
        if bool((first_A <= canvas.start_B[rows]).any()):
            raise CanvasError("a causal model continues a text, and here is none before the first mask; give a prompt")
        cache = self._cache_for(canvas, rows.tolist())
        self._prefill(canvas, rows, cache, first_A - 1, torch.arange(len(rows)))
        offset_M = places.columns_M - first_A[row_of_place_M]
        assert int(offset_M.max()) < self.window_length, "a call asks about one window of a row"
        stop_A = (first_A + self.window_length - 1).minimum(canvas.end_B[rows] - 1)
        with torch.inference_mode():
            hidden_AND = self._window_states(canvas, rows, cache, first_A, stop_A)
            yield from self._scores(canvas, rows, first_A, hidden_AND, row_of_place_M, offset_M)

    def _first_open(self, canvas: Canvas, rows: Int[Tensor, " A"]) -> Int[Tensor, " A"]:
        return canvas.is_masked_BL[rows].int().argmax(-1)

    def _cache_for(self, canvas: Canvas, rows: list[int]) -> KVCache:
        before = self._cache
        cache = super()._cache_for(canvas, rows)
        if cache is not before:
            self._hidden = {}
        return cache

    def _window_states(
        self,
        canvas: Canvas,
        rows: Int[Tensor, " A"],
        cache: KVCache,
        first_A: Int[Tensor, " A"],
        stop_A: Int[Tensor, " A"],
    ) -> Float[Tensor, "A N D"]:
        """The hidden states that score the windows: of the last clean column, then of the columns from `first_A` to
        `stop_A`."""
        clean_A = torch.tensor([self._clean[row] for row in rows.tolist()])
        clean, noisy = int((first_A - clean_A).max()), int((stop_A - first_A).max())
        scratch = cache.scratch_column
        column_AT = torch.cat(
            (_columns(clean_A, first_A, clean, scratch), _columns(first_A, stop_A, noisy, scratch)), -1
        )
        hidden_ATD = None
        if column_AT.shape[1]:
            hidden_ATD = self._gated_forward(canvas, rows, cache, column_AT, first_A, stop_A, clean)
        last = []
        for a, row in enumerate(rows.tolist()):
            column = int(first_A[a]) - 1
            fresh = column - int(clean_A[a])  # the slot of the last clean column, below 0 where it is not new
            if fresh >= 0:
                assert hidden_ATD is not None
                self._hidden[row] = (column, hidden_ATD[a, fresh].clone())
            at, hidden_D = self._hidden[row]
            assert at == column, "the last clean column of a row has no hidden state"
            last.append(hidden_D)
            self._clean[row] = column + 1
        last_A1D = torch.stack(last)[:, None]
        return last_A1D if hidden_ATD is None else torch.cat((last_A1D, hidden_ATD[:, clean:]), 1)

    def _gated_forward(
        self,
        canvas: Canvas,
        rows: Int[Tensor, " A"],
        cache: KVCache,
        column_AT: Int[Tensor, "A T"],
        first_A: Int[Tensor, " A"],
        stop_A: Int[Tensor, " A"],
        clean: int,
    ) -> Float[Tensor, "A T D"]:
        """One forward; the adapter acts on the slots from `clean` on."""
        window, stop = window_through(column_AT, cache.scratch_column)
        start_A = canvas.start_B[rows]
        is_real_AT = column_AT < cache.scratch_column
        inside_AT = column_AT.clamp(max=canvas.width - 1)
        ids_AT = torch.where(is_real_AT, canvas.ids_BL[rows].gather(1, inside_AT), 0)
        position_AT = torch.where(is_real_AT, column_AT - start_A[:, None], 0)
        # A clean slot sees up to itself; one of the window up to the window's end; padding sees its row's first column
        sees_AT = column_AT.clone()
        sees_AT[:, clean:] = stop_A[:, None] - 1
        sees_AT = torch.where(is_real_AT, sees_AT, start_A[:, None])
        key_S = torch.arange(stop)
        mask_ATS = (key_S >= start_A[:, None, None]) & (key_S <= sees_AT[..., None])
        hidden_ATD = run_window(
            self.backbone,
            ids_AT,
            position_AT,
            attn_mask=mask_ATS[:, None],
            cache=cache,
            window=window,
            gate=clean,
        )
        self.num_forwards += 1
        self.positions_computed += int(is_real_AT.sum())
        return hidden_ATD

    def _scores(
        self,
        canvas: Canvas,
        rows: Int[Tensor, " A"],
        first_A: Int[Tensor, " A"],
        hidden_AND: Float[Tensor, "A N D"],
        row_M: Int[Tensor, " M"],
        offset_M: Int[Tensor, " M"],
    ) -> Iterator[Float[Tensor, "C V"]]:
        """Read the windows from left to right, each position told the token before it.

        What a position scores holds if the tokens before it are the ones that it was told. `chain_A` is the probability
        of that, and the rest is spread over all words: q = chain · softmax(z) + (1 - chain) / W.
        """
        parent_AV = self.backbone.logits(hidden_AND[:, 0])
        words_W = self.drafter.words_W
        best_A, drafted = self._best(parent_AV, None), []
        chain_A = parent_AV.float().softmax(-1).gather(1, best_A[:, None]).squeeze(1)
        for n in range(1, int(offset_M.max()) + 1):
            column_A = (first_A + n - 1).clamp(max=canvas.width - 1)
            settled_A = canvas.ids_BL[rows, column_A].to(self.device)
            previous_A = torch.where(canvas.is_masked_BL[rows, column_A].to(self.device), best_A, settled_A)
            logp_AW = self.drafter.scores(hidden_AND[:, n], previous_A).log_softmax(-1)
            known_AW, unknown_A1 = logp_AW + chain_A.log()[:, None], torch.log1p(-chain_A)[:, None]
            drafted.append(torch.logaddexp(known_AW, unknown_A1 - math.log(len(words_W))))
            word_A = self._best(logp_AW, words_W)
            best_A = words_W[word_A]
            is_open_A = canvas.is_masked_BL[rows, (first_A + n).clamp(max=canvas.width - 1)].to(self.device)
            surety_A = logp_AW.gather(1, word_A[:, None]).squeeze(1).exp()
            chain_A = torch.where(is_open_A, chain_A * surety_A, chain_A)
        drafted_ANW = torch.stack(drafted, 1) if drafted else None
        chunks = zip(row_M.to(self.device).split(CHUNK), offset_M.to(self.device).split(CHUNK), strict=True)  # type: ignore[no-untyped-call]
        for row_C, offset_C in chunks:
            logits_CV = parent_AV.new_full((len(row_C), parent_AV.shape[1]), -torch.inf, dtype=torch.float32)
            is_first_C = offset_C == 0
            logits_CV[is_first_C] = parent_AV[row_C[is_first_C]].float()
            if drafted_ANW is not None:
                behind = (~is_first_C).nonzero()
                logits_CV[behind, words_W] = drafted_ANW[row_C[~is_first_C], offset_C[~is_first_C] - 1]
            yield logits_CV

    def _best(self, scores: Float[Tensor, "A X"], ids_X: Int[Tensor, " X"] | None) -> Int[Tensor, " A"]:
        """The place of the best score among those of ids that may be committed; None: the ids are the places."""
        if self._is_suppressed_V is None:
            return scores.argmax(-1)
        is_suppressed_X = self._is_suppressed_V if ids_X is None else self._is_suppressed_V[ids_X]
        return scores.masked_fill(is_suppressed_X, -torch.inf).argmax(-1)


def _columns(
    first_A: Int[Tensor, " A"], stop_A: Int[Tensor, " A"], count: int, scratch_column: int
) -> Int[Tensor, "A count"]:
    """`count` columns of each row from its first on; the scratch column behind its last."""
    column_AT = first_A[:, None] + torch.arange(count)
    return torch.where(column_AT < stop_A[:, None], column_AT, scratch_column)
