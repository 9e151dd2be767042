"""Denoisers: the one door between a canvas and a network.

A denoiser answers one question, the logits of chosen places on a canvas, and hides how: the shift by one (the hidden
state at i predicts token i + 1), padding and rotary positions, who sees whom, and what is cached.

    FullDenoiser    no cache: the whole canvas goes through the network. Any attention kind; the oracle of the other.
    CachedDenoiser  causal and block attention: keys and values of finished blocks are kept, and they are exact, since
                    nothing that comes later can change them. Only the block being filled is computed.
    DraftedDenoiser  causal attention with a drafter: the first open position from the parent, some behind it from the
                    drafter (`drafted`).
    PrefixDenoiser  full attention, not exact: keys and values of a row's beginning are kept for some calls although
                    commits behind it would change them (`prefix`).

Letters: B rows, L columns, A rows asked for, T columns computed, S key columns, M places, C places in one chunk,
V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.errors import CanvasError, CheckpointError
from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone
from unmask.model.cache import KVCache, Packed, Ragged, Span
from unmask.model.config import ModelConfig

PREFILL = 512  # prompt columns per forward: a mask of 512 x 32,768 for 7 heads of a group is 117 MB
CHUNK = 128  # places per chunk: 128 x 152,000 float32 scores are 78 MB


@runtime_checkable
class Denoiser(Protocol):
    """What the loop needs of a network."""

    @property
    def config(self) -> ModelConfig:
        """The conventions of the network behind the door."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the logits come out."""
        ...

    @property
    def num_forwards(self) -> int:
        """Network calls so far."""
        ...

    @property
    def positions_computed(self) -> int:
        """Token positions that went through the network so far, all rows together."""
        ...

    def logits(self, canvas: Canvas, places: Positions) -> Iterator[Float[Tensor, "C V"]]:
        """Scores of the tokens at `places`, in their order, in chunks that together cover them all."""
        ...


class FullDenoiser:
    """Every column of every row asked for goes through the network at each call."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.config = backbone.config
        self.device = backbone.device
        self.num_forwards = 0
        self.positions_computed = 0

    def logits(self, canvas: Canvas, places: Positions) -> Iterator[Float[Tensor, "C V"]]:
        check_fit(self.config, canvas)
        rows, row_of_place_M = places.rows_M.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        positions_AL = canvas.positions_BL()[rows].to(self.backbone.device)
        is_padded = bool((positions_AL < 0).any())
        attn_mask = None
        if is_padded or self.config.attention != "full":
            attn_mask = attention_mask(
                self.config.attention, positions_AL, positions_AL, block_length=self.config.block_length
            )
        with torch.inference_mode():
            hidden_ALD = self.backbone(
                canvas.ids_BL[rows].to(self.backbone.device), positions_AL.clamp(min=0), attn_mask=attn_mask
            )
        self.num_forwards += 1
        self.positions_computed += int((canvas.end_B - canvas.start_B)[rows].sum())
        sources_M = source_columns(self.config, canvas, places)
        yield from project(self.backbone, hidden_ALD, row_of_place_M, sources_M)


class CachedDenoiser:
    """Finished blocks from the cache, the block being filled from the network.

    A call computes, for each row, the columns from the first one that is not cached to the end of the block that is
    asked about (for a causal model, to the column before it). Columns before that block are final by then, so their
    keys and values are exact and stay. Rows may stand at different blocks. Rows that are no longer asked about are
    dropped from the cache; one that comes back (`origin` passes over rows in some steps) starts the cache anew, and so
    does another canvas.
    """

    def __init__(self, backbone: Backbone) -> None:
        if backbone.config.attention == "full":
            raise CheckpointError(
                "the model attends to the whole canvas, so nothing it computes stays exact after a commit; "
                "decode it without a cache"
            )
        self.backbone = backbone
        self.config = backbone.config
        self.device = backbone.device
        self.num_forwards = 0
        self.positions_computed = 0
        self._block = self.config.block_length or 1
        self._cache: KVCache | None = None
        self._canvas: Canvas | None = None  # what the cache was made for
        self._held: list[int] = []  # the canvas rows in the cache, in its order
        self._clean: dict[int, int] = {}  # row -> first column without final keys and values

    def logits(self, canvas: Canvas, places: Positions) -> Iterator[Float[Tensor, "C V"]]:
        check_fit(self.config, canvas)
        rows, row_of_place_M = places.rows_M.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        cache = self._cache_for(canvas, rows.tolist())
        sources_M = source_columns(self.config, canvas, places)
        self._prefill(canvas, rows, cache, sources_M, row_of_place_M)
        first_A, stop_A, block_A = self._bounds(canvas, places, sources_M, rows, row_of_place_M)
        window, columns_AT = window_of(first_A, stop_A, cache.scratch_column)
        with torch.inference_mode():
            hidden_ATD = self._forward(canvas, rows, cache, window, columns_AT)
        for row, block in zip(rows.tolist(), block_A.tolist(), strict=True):
            self._clean[row] = block
        self.num_forwards += 1
        self.positions_computed += int((stop_A - first_A).sum())
        yield from project(self.backbone, hidden_ATD, row_of_place_M, sources_M - first_A[row_of_place_M])

    def _prefill(
        self,
        canvas: Canvas,
        rows: Int[Tensor, " A"],
        cache: KVCache,
        sources_M: Int[Tensor, " M"],
        row_of_place_M: Int[Tensor, " M"],
    ) -> None:
        """Compute a long prompt in pieces of whole blocks, so that no attention mask is taller than a piece.

        It stops before the block of the first source, whose hidden state is wanted.
        """
        piece = max(PREFILL // self._block, 1) * self._block
        start_A = canvas.start_B[rows]
        source_A = torch.zeros_like(rows).scatter_reduce(0, row_of_place_M, sources_M, "amin", include_self=False)
        limit_A = (source_A - start_A) // self._block * self._block + start_A
        while True:
            first_A = torch.tensor([self._clean[row] for row in rows.tolist()])
            if int((limit_A - first_A).max()) <= piece:
                return
            stop_A = (first_A + piece).minimum(limit_A).maximum(first_A)
            window, columns_AT = window_of(first_A, stop_A, cache.scratch_column)
            with torch.inference_mode():
                self._forward(canvas, rows, cache, window, columns_AT)
            self._clean |= dict(zip(rows.tolist(), stop_A.tolist(), strict=True))
            self.num_forwards += 1
            self.positions_computed += int((stop_A - first_A).sum())

    def _cache_for(self, canvas: Canvas, rows: list[int]) -> KVCache:
        if self._cache is None or canvas is not self._canvas or not set(rows) <= set(self._held):
            backbone = self.backbone
            self._cache = KVCache(
                self.config, rows=len(rows), length=canvas.width, dtype=backbone.dtype, device=backbone.device
            )
            self._canvas = canvas
            self._clean = {row: int(canvas.start_B[row]) for row in rows}
        elif rows != self._held:
            self._cache.keep_rows([self._held.index(row) for row in rows])
        self._held = rows
        return self._cache

    def _bounds(
        self,
        canvas: Canvas,
        places: Positions,
        sources_M: Int[Tensor, " M"],
        rows: Int[Tensor, " A"],
        row_of_place_M: Int[Tensor, " M"],
    ) -> tuple[Int[Tensor, " A"], Int[Tensor, " A"], Int[Tensor, " A"]]:
        """Per row: the first column to compute, one past the last, and the start of the block asked about."""
        start_A, end_A = canvas.start_B[rows], canvas.end_B[rows]
        zeros = torch.zeros_like(rows)
        last_A = zeros.scatter_reduce(0, row_of_place_M, places.columns_M, "amax", include_self=False)
        block_A = (last_A - start_A) // self._block * self._block + start_A
        first_place_A = zeros.scatter_reduce(0, row_of_place_M, places.columns_M, "amin", include_self=False)
        assert bool((first_place_A >= block_A).all()), "a cached call asks about one block per row"
        last_source_A = zeros.scatter_reduce(0, row_of_place_M, sources_M, "amax", include_self=False)
        stop_A = torch.where(last_source_A >= block_A, (block_A + self._block).minimum(end_A), block_A)
        clean_A = torch.tensor([self._clean[row] for row in rows.tolist()])
        first_source_A = zeros.scatter_reduce(0, row_of_place_M, sources_M, "amin", include_self=False)
        return clean_A.minimum(first_source_A), stop_A, block_A

    def _forward(
        self, canvas: Canvas, rows: Tensor, cache: KVCache, window: Span | Ragged, columns_AT: Int[Tensor, "A T"]
    ) -> Float[Tensor, "A T D"]:
        return forward_window(self.backbone, canvas, rows, cache, window, columns_AT, self._visible)

    def _visible(self, query_AT: Tensor, key_AS: Tensor) -> Bool[Tensor, "A 1 T S"] | None:
        if self._block == 1 and bool((key_AS >= 0).all()) and torch.equal(query_AT, key_AS[:, -1:]):
            return None  # one new column behind everything else, in every row, sees all of it
        return attention_mask(self.config.attention, query_AT, key_AS, block_length=self.config.block_length)


def check_fit(config: ModelConfig, canvas: Canvas) -> None:
    if config.is_diffusion and config.mask_id is None:
        raise CheckpointError("the model has no mask id, so masked positions cannot be fed to it; give `--mask-id ID`")
    longest = int((canvas.end_B - canvas.start_B).max())
    if longest > config.max_positions:
        raise CanvasError(
            f"the canvas has {longest} positions and the model has {config.max_positions}; "
            "shorten the prompt or ask for fewer new tokens"
        )


def source_columns(config: ModelConfig, canvas: Canvas, places: Positions) -> Int[Tensor, " M"]:
    """The columns whose hidden states predict the places; a row's first position predicts itself, as in Dream."""
    shift = 1 if config.shift_logits else 0
    return (places.columns_M - shift).maximum(canvas.start_B[places.rows_M])


def window_of(first_A: Tensor, stop_A: Tensor, scratch_column: int) -> tuple[Span | Ragged, Int[Tensor, "A T"]]:
    """The columns to compute: one span where all rows agree, else each row's own, padded with the scratch column."""
    first, stop = int(first_A.min()), int(stop_A.max())
    T = int((stop_A - first_A).max())
    columns_AT = first_A[:, None] + torch.arange(T)[None]
    if bool((first_A == first).all()) and bool((stop_A == stop).all()):
        return Span(first, stop), columns_AT
    columns_AT = torch.where(columns_AT < stop_A[:, None], columns_AT, scratch_column)
    return Ragged(columns_AT, stop), columns_AT


def window_through(column_AT: Int[Tensor, "A T"], scratch_column: int) -> tuple[Span | Ragged, int]:
    """The window of given columns, and one past the last real one; a span where all rows have the same, side by
    side."""
    first, T = int(column_AT[0, 0]), column_AT.shape[1]
    if bool((column_AT == first + torch.arange(T)).all()):
        return Span(first, first + T), first + T
    stop = int(torch.where(column_AT == scratch_column, 0, column_AT).max()) + 1
    return Ragged(column_AT, stop), stop


def run_window(
    backbone: Backbone,
    ids_AT: Int[Tensor, "A T"],
    position_AT: Int[Tensor, "A T"],
    *,
    attn_mask: Bool[Tensor, "A 1 T S"] | None,
    cache: KVCache,
    window: Span | Ragged,
    gate: int | None = None,
) -> Float[Tensor, "A T D"]:
    """Hidden states of a window that lies on the CPU. Where rows are padded, their slots are packed, those before
    `gate` first, and padding costs nothing but zeros in the result."""
    device = backbone.device
    mask = None if attn_mask is None else attn_mask.to(device)
    is_real_AT = None if isinstance(window, Span) else window.columns_BT < cache.scratch_column
    if isinstance(window, Span) or is_real_AT is None or bool(is_real_AT.all()):
        placed = window if isinstance(window, Span) else Ragged(window.columns_BT.to(device), window.stop)
        out: Tensor = backbone(
            ids_AT.to(device), position_AT.to(device), attn_mask=mask, cache=cache, window=placed, gate=gate
        )
        return out
    A, T = ids_AT.shape
    clean = T if gate is None else gate
    slots = [is_real_AT[:, :clean].nonzero(), is_real_AT[:, clean:].nonzero() + torch.tensor([0, clean])]
    row_M, place_M = torch.cat(slots).unbind(1)
    packed = Packed(
        row_M.to(device), window.columns_BT[row_M, place_M].to(device), place_M.to(device), (A, T), window.stop
    )
    hidden_1MD = backbone(
        ids_AT[row_M, place_M][None].to(device),
        position_AT[row_M, place_M][None].to(device),
        attn_mask=mask,
        cache=cache,
        window=packed,
        gate=None if gate is None else len(slots[0]),
    )
    hidden_ATD: Tensor = hidden_1MD.new_zeros(A, T, hidden_1MD.shape[-1])
    hidden_ATD[packed.row_M, packed.place_M] = hidden_1MD[0]
    return hidden_ATD


def forward_window(
    backbone: Backbone,
    canvas: Canvas,
    rows: Int[Tensor, " A"],
    cache: KVCache,
    window: Span | Ragged,
    columns_AT: Int[Tensor, "A T"],
    visible: Callable[[Tensor, Tensor], Tensor | None],
) -> Float[Tensor, "A T D"]:
    """Hidden states of a window of some rows, which goes into the cache.

    `visible` makes the mask of the positions of queries [A, T] and keys [A, S], on the CPU; None: all are visible.
    """
    # The scratch column is read as padding: position -1, id 0.
    positions_AL = torch.nn.functional.pad(canvas.positions_BL()[rows], (0, 1), value=-1)
    ids_AL = torch.nn.functional.pad(canvas.ids_BL[rows], (0, 1))
    query_AT = positions_AL.gather(1, columns_AT)
    attn_mask = visible(query_AT, positions_AL[:, : window.stop])
    return run_window(
        backbone,
        ids_AL.gather(1, columns_AT),
        query_AT.clamp(min=0),
        attn_mask=attn_mask,
        cache=cache,
        window=window,
    )


def project(
    backbone: Backbone, hidden_ATD: Tensor, row_M: Int[Tensor, " M"], column_M: Int[Tensor, " M"]
) -> Iterator[Float[Tensor, "C V"]]:
    """Logits of the chosen hidden states, a chunk at a time."""
    device = hidden_ATD.device
    hidden_MD = hidden_ATD[row_M.to(device), column_M.to(device)]
    for chunk_CD in hidden_MD.split(CHUNK):  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            logits_CV = backbone.logits(chunk_CD)
        yield logits_CV
