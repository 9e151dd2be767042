"""The prefix cache: a full-attention model that does not compute the beginning of its rows at every step.

Under full attention nothing stays exact after a commit: every position sees every other. But the keys and values of a
prompt move little while its answer is filled in, so Fast-dLLM (arXiv 2505.22618, section 3.2) keeps them for a while
and computes what stands behind them alone. That changes the output. How much is measured in docs/log.md, and the
cacheless denoiser stays the oracle.

A row is computed whole at its first call and at every `refresh`-th after it. What lies before the first place asked
about at that call is the prefix: its keys and values stay as they are until the next refresh. With `shift_logits` the
position before that place is computed too, since its hidden state predicts it (Fast-dLLM for Dream takes that from the
refresh alone, and commits the first token of a block at once).

Letters: A rows asked for, T columns computed, S key columns, M places, C places in one chunk, V vocabulary.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import check_fit, forward_window, project, source_columns, window_of
from unmask.errors import SettingsError
from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone
from unmask.model.cache import KVCache, Ragged, Span

DEFAULT_REFRESH = 16


class PrefixDenoiser:
    """Keys and values of prefixes from the cache, what stands behind them from the network.

    Rows are counted one by one, so a row's logits do not depend on its neighbours. Rows that are no longer asked about
    are dropped; one that comes back starts the cache anew, and so does another canvas. Raises SettingsError for a model
    whose attention is not full: its own cache is exact.
    """

    def __init__(self, backbone: Backbone, *, refresh: int = DEFAULT_REFRESH) -> None:
        if backbone.config.attention != "full":
            raise SettingsError(
                f"--cache prefix is for models with full attention; this one has {backbone.config.attention} "
                "attention, whose own cache is exact and always on: leave --cache out"
            )
        self.backbone = backbone
        self.config = backbone.config
        self.device = backbone.device
        self.refresh = refresh
        self.num_forwards = 0
        self.positions_computed = 0
        self._cache: KVCache | None = None
        self._canvas: Canvas | None = None  # what the cache was made for
        self._rows: list[int] = []  # the canvas rows in the cache, in its order
        self._age_A = torch.zeros(0, dtype=torch.long)  # calls since the row was computed whole
        self._prefix_A = torch.zeros(0, dtype=torch.long)  # the column its window begins at

    def logits(self, canvas: Canvas, places: Positions) -> Iterator[Float[Tensor, "C V"]]:
        check_fit(self.config, canvas)
        rows, row_of_place_M = places.rows_M.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        cache = self._cache_for(canvas, rows.tolist())
        sources_M = source_columns(self.config, canvas, places)
        first_source_A = torch.zeros_like(rows).scatter_reduce(0, row_of_place_M, sources_M, "amin", include_self=False)
        is_due_A = (self._age_A >= self.refresh) | (first_source_A < self._prefix_A)
        self._prefix_A = torch.where(is_due_A, first_source_A, self._prefix_A)
        self._age_A = torch.where(is_due_A, 0, self._age_A) + 1
        window, columns_AT = self._window(canvas, rows, is_due_A, cache.scratch_column)
        with torch.inference_mode():
            hidden_ATD = forward_window(self.backbone, canvas, rows, cache, window, columns_AT, _visible)
        self.num_forwards += 1
        first_A = torch.where(is_due_A, canvas.start_B[rows], self._prefix_A)
        self.positions_computed += int((canvas.end_B[rows] - first_A).sum())
        yield from project(self.backbone, hidden_ATD, row_of_place_M, sources_M - columns_AT[row_of_place_M, 0])

    def _window(
        self, canvas: Canvas, rows: Int[Tensor, " A"], is_due_A: Bool[Tensor, " A"], scratch_column: int
    ) -> tuple[Span | Ragged, Int[Tensor, "A T"]]:
        """Where all rows are due they begin at one column, though for some it is padding: one span is faster."""
        start_A = canvas.start_B[rows]
        whole_A = start_A.min().expand_as(start_A) if bool(is_due_A.all()) else start_A
        return window_of(torch.where(is_due_A, whole_A, self._prefix_A), canvas.end_B[rows], scratch_column)

    def _cache_for(self, canvas: Canvas, rows: list[int]) -> KVCache:
        if self._cache is None or canvas is not self._canvas or not set(rows) <= set(self._rows):
            backbone = self.backbone
            self._cache = KVCache(
                self.config, rows=len(rows), length=canvas.width, dtype=backbone.dtype, device=backbone.device
            )
            self._canvas = canvas
            self._age_A = torch.full((len(rows),), self.refresh)
            self._prefix_A = torch.zeros(len(rows), dtype=torch.long)
        elif rows != self._rows:
            kept = [self._rows.index(row) for row in rows]
            self._cache.keep_rows(kept)
            self._age_A, self._prefix_A = self._age_A[kept], self._prefix_A[kept]
        self._rows = rows
        return self._cache


def _visible(query_AT: Int[Tensor, "A T"], key_AS: Int[Tensor, "A S"]) -> Bool[Tensor, "A 1 T S"] | None:
    return None if bool((key_AS >= 0).all()) else attention_mask("full", query_AT, key_AS)
