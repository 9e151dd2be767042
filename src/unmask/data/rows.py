"""Rows of training: what position is which token, which document it belongs to, and whether it may be masked.

A `RowSource` is a fixed list of rows of one length, made from shards without state: row i is always the same. Two
kinds: `WindowRows` cuts the stream of tokens into windows (pre-training), `PackedRows` puts whole documents side by
side (prompts with answers). A `Mixture` says which row sample s of a run is. All of it is index arithmetic, so the
state of the data in a training run is one integer, and neither workers nor ranks nor a resume change a sample.

Shapes: B batch, L length.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from unmask.data.permutation import permute
from unmask.data.shards import Shards
from unmask.errors import DataError, SettingsError
from unmask.seeds import derive_seed

PADDING = -1
"""The `document` of positions that hold nothing."""

OnLong = Literal["refuse", "drop", "cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of L positions."""

    ids: npt.NDArray[np.int64]
    document: npt.NDArray[np.int32]
    """0, 1, 2 … for the documents in this row, in order; `PADDING` where there is none."""

    is_maskable: npt.NDArray[np.bool_]
    """May be corrupted and is predicted. Never padding, a prompt, or the first token of a document: with shifted
    logits the position before predicts a token, and there is none in that document."""

    is_end: npt.NDArray[np.bool_]
    """End tokens behind an answer, maskable too; their loss is reported apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows stacked into a batch, with the sample index of each."""

    ids_BL: npt.NDArray[np.int64]
    document_BL: npt.NDArray[np.int32]
    is_maskable_BL: npt.NDArray[np.bool_]
    is_end_BL: npt.NDArray[np.bool_]
    index_B: npt.NDArray[np.int64]


class RowSource(Protocol):
    """A fixed list of rows of one length."""

    @property
    def num_rows(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer that made the ids."""
        ...

    def row(self, i: int) -> Row: ...


class WindowRows:
    """The stream of tokens cut every `length` tokens; the last row is filled up with padding.

    A document that is cut goes on in the next row as a document of its own. Prompts are learned like any text.
    """

    def __init__(self, shards: Shards, length: int, *, pad_id: int = 0) -> None:
        _check_length(length)
        self.shards, self.length, self.pad_id = shards, length, pad_id
        self.tokenizer = shards.meta.tokenizer
        self.num_rows = -(-shards.num_tokens // length)

    def row(self, i: int) -> Row:
        _check_row(i, self.num_rows)
        start = i * self.length
        ids = self.shards.tokens(start, start + self.length)
        offsets = self.shards.offsets
        first, last = np.searchsorted(offsets, [start, start + len(ids) - 1], side="right") - 1
        begins = np.maximum(offsets[first : last + 1] - start, 0)
        document = np.repeat(np.arange(len(begins), dtype=np.int32), np.diff([*begins, len(ids)]))
        is_maskable = np.ones(len(ids), dtype=np.bool_)
        is_maskable[begins] = False
        return _padded(ids, document, is_maskable, np.zeros_like(is_maskable), length=self.length, pad_id=self.pad_id)


class PackedRows:
    """Whole documents side by side in rows of `length`, in the order of the shards; the rest of a row is padding.

    Behind each document come end tokens (`pad_id`), which the model learns to write where an answer is over:
    `end_tokens` of them, or with `canvas=(low, high)` as many as give the answer with its end tokens a length drawn
    evenly from [max(low, answer + end_tokens), high]. That makes an answer right on a canvas longer than itself, as
    it is met in decoding, where the length is not known beforehand. An answer too long for the canvas keeps
    `end_tokens`.

    A document that does not fit into a row with its `end_tokens` is refused, dropped, or cut at the end of the row;
    a cut answer has no end tokens, since it does not end, and one whose prompt fills the row is dropped. Where the
    document itself fits, only end tokens are cut.
    """

    def __init__(
        self,
        shards: Shards,
        length: int,
        *,
        pad_id: int,
        end_tokens: int = 1,
        canvas: tuple[int, int] | None = None,
        seed: int = 0,
        on_long: OnLong = "refuse",
    ) -> None:
        _check_length(length)
        _check_packing(pad_id, end_tokens, canvas, shards.meta.vocab_size)
        self.shards, self.length, self.pad_id = shards, length, pad_id
        self.tokenizer = shards.meta.tokenizer
        sizes = np.diff(shards.offsets)
        prompts = np.asarray(shards.prompt_lengths, dtype=np.int64)
        is_long = sizes + end_tokens > length
        if on_long == "refuse" and is_long.any():
            raise _too_long(shards, int(np.argmax(is_long)), length, end_tokens)
        is_kept = ~is_long if on_long != "cut" else ~(is_long & (prompts >= length))
        self.num_dropped = int((~is_kept).sum())
        self.num_cut = int(((sizes > length) & is_kept).sum())
        if not is_kept.any():
            raise DataError(
                f"none of the {len(sizes):,} documents of {shards.folder} fits into rows of {length} tokens; give a "
                "greater length"
            )
        ends = _end_counts(sizes, prompts, length, end_tokens, canvas, seed)
        kept = np.flatnonzero(is_kept)
        self._documents = kept
        self._sizes = np.minimum(sizes[kept], length)
        self._ends = np.where(is_long[kept], length - self._sizes, ends[kept])
        self._first = _pack((self._sizes + self._ends).tolist(), length)
        self.num_rows = len(self._first) - 1

    def row(self, i: int) -> Row:
        _check_row(i, self.num_rows)
        parts = []
        for number, place in enumerate(range(self._first[i], self._first[i + 1])):
            stored, prompt_length = self.shards.document(int(self._documents[place]))
            stored, num_ends = stored[: self._sizes[place]], int(self._ends[place])
            ids = np.concatenate([stored, np.full(num_ends, self.pad_id, dtype=np.int64)])
            at = np.arange(len(ids))
            document = np.full(len(ids), number, dtype=np.int32)
            parts.append((ids, document, at >= max(1, prompt_length), at >= len(stored)))
        ids, document, is_maskable, is_end = (np.concatenate(part) for part in zip(*parts, strict=True))
        return _padded(ids, document, is_maskable, is_end, length=self.length, pad_id=self.pad_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which row a sample is."""

    source: int
    epoch: int
    row: int


class Mixture:
    """Which row sample s of a run is, when sources are mixed in whole-numbered parts.

    Of every sum(parts) samples, `parts[k]` come from source k, spread evenly in an order of the seed's. Each source
    goes through all its rows once an epoch, each epoch in another order. Sample s of a run that takes
    `global_batch` samples a step is s = step * global_batch + place.

    >>> from types import SimpleNamespace
    >>> texts, pairs = (SimpleNamespace(num_rows=n, length=8, tokenizer="t") for n in (6, 2))
    >>> places = [Mixture([texts, pairs], (3, 1)).place(s) for s in range(8)]
    >>> [place.source for place in places].count(1), {place.row for place in places if place.source == 0}
    (2, {0, 1, 2, 3, 4, 5})
    """

    def __init__(self, sources: Sequence[RowSource], parts: Sequence[int] | None = None, seed: int = 0) -> None:
        parts = (1,) * len(sources) if parts is None else tuple(parts)
        _check_mixture(sources, parts)
        self.sources, self.parts, self.seed = tuple(sources), parts, seed
        self.length, self.tokenizer = sources[0].length, sources[0].tokenizer
        self._pattern = _interleaved(parts, seed)
        # For each slot, how many slots before it have its source
        self._rank = [self._pattern[:slot].count(source) for slot, source in enumerate(self._pattern)]

    def place(self, index: int) -> Place:
        """Where sample `index` comes from."""
        if index < 0:
            raise IndexError(f"sample {index}")
        turn, slot = divmod(index, len(self._pattern))
        source = self._pattern[slot]
        num_rows = self.sources[source].num_rows
        epoch, i = divmod(turn * self.parts[source] + self._rank[slot], num_rows)
        return Place(
            source=source, epoch=epoch, row=permute(i, num_rows, derive_seed(self.seed, "row order", source, epoch))
        )

    def row(self, index: int) -> Row:
        """Sample `index`."""
        place = self.place(index)
        return self.sources[place.source].row(place.row)

    def rows(self, indices: Sequence[int]) -> Rows:
        """These samples as a batch."""
        rows = [self.row(index) for index in indices]
        stacked = {f"{f.name}_BL": np.stack([getattr(row, f.name) for row in rows]) for f in fields(Row)}
        return Rows(**stacked, index_B=np.asarray(indices, dtype=np.int64))

    def epochs_at(self, index: int) -> tuple[float, ...]:
        """How often each source has been gone through before sample `index`."""
        turn, slot = divmod(index, len(self._pattern))
        begun = self._pattern[:slot]
        return tuple(
            (turn * part + begun.count(k)) / source.num_rows
            for k, (part, source) in enumerate(zip(self.parts, self.sources, strict=True))
        )


# Rows


def _padded(
    ids: npt.NDArray[np.int64],
    document: npt.NDArray[np.int32],
    is_maskable: npt.NDArray[np.bool_],
    is_end: npt.NDArray[np.bool_],
    *,
    length: int,
    pad_id: int,
) -> Row:
    behind = (0, length - len(ids))
    return Row(
        ids=np.pad(ids, behind, constant_values=pad_id),
        document=np.pad(document, behind, constant_values=PADDING),
        is_maskable=np.pad(is_maskable, behind),
        is_end=np.pad(is_end, behind),
    )


# Packing


def _end_counts(
    sizes: npt.NDArray[np.int64],
    prompts: npt.NDArray[np.int64],
    length: int,
    end_tokens: int,
    canvas: tuple[int, int] | None,
    seed: int,
) -> npt.NDArray[np.int64]:
    """How many end tokens each document gets."""
    fewest = np.full(len(sizes), end_tokens, dtype=np.int64)
    if canvas is None:
        return fewest
    answers = sizes - prompts
    low = np.maximum(canvas[0], answers + end_tokens)
    high = np.minimum(canvas[1], length - prompts)
    low = np.minimum(low, high)  # a row that is short of the lower bound: as long as it can be
    draws = np.array([derive_seed(seed, "canvas", document) for document in range(len(sizes))], dtype=np.int64)
    drawn: npt.NDArray[np.int64] = low + draws % (high - low + 1)
    return np.maximum(drawn - answers, fewest)


def _pack(sizes: Sequence[int], length: int) -> list[int]:
    """Where each row begins when documents are put in one after the other: [0, …, number of documents]."""
    first, room = [0], length
    for number, size in enumerate(sizes):
        if size > room:
            first.append(number)
            room = length
        room -= size
    return [*first, len(sizes)]


def _interleaved(parts: Sequence[int], seed: int) -> list[int]:
    """The sources of one turn, each spread evenly over it; the seed says how they are shifted against each other."""
    shift = [derive_seed(seed, "mixture", source) / (1 << 63) for source in range(len(parts))]
    slots = [((j + shift[source]) / part, source) for source, part in enumerate(parts) for j in range(part)]
    return [source for _, source in sorted(slots)]


# What is refused


def _check_length(length: int) -> None:
    if length < 2:
        raise SettingsError(f"length={length}: a row has at least 2 tokens, one to see and one to predict")


def _check_row(i: int, num_rows: int) -> None:
    if not 0 <= i < num_rows:
        raise IndexError(f"row {i} of {num_rows}")


def _check_packing(pad_id: int, end_tokens: int, canvas: tuple[int, int] | None, vocab_size: int) -> None:
    if not 0 <= pad_id < vocab_size:
        raise SettingsError(f"pad_id={pad_id}: the vocabulary of the shards has ids 0 to {vocab_size - 1}")
    if end_tokens < 0:
        raise SettingsError(f"end_tokens={end_tokens}: how many end tokens follow an answer; give 0 or more")
    if canvas is not None and not 1 <= canvas[0] <= canvas[1]:
        raise SettingsError(
            f"canvas={canvas}: the shortest and the longest answer with its end tokens; give 1 ≤ low ≤ high"
        )


def _too_long(shards: Shards, document: int, length: int, end_tokens: int) -> DataError:
    size = int(shards.offsets[document + 1] - shards.offsets[document])
    return DataError(
        f"document {document} of {shards.folder} has {size} tokens and {end_tokens} for its end; a row has {length}: "
        f'give a length of at least {size + end_tokens}, or on_long="drop" or "cut"'
    )


def _check_mixture(sources: Sequence[RowSource], parts: tuple[int, ...]) -> None:
    if not sources:
        raise SettingsError("a mixture of no sources; give at least one")
    if len(parts) != len(sources):
        raise SettingsError(f"parts={parts} for {len(sources)} sources; give one part for each source")
    for part in parts:
        if operator.index(part) < 1:
            raise SettingsError(f"parts={parts}: how many samples of a turn come from each source; give at least 1")
    for number, source in enumerate(sources):
        if source.num_rows < 1:
            raise DataError(f"source {number} of the mixture has no rows; leave it out, or give it documents")
        if source.length != sources[0].length:
            raise SettingsError(
                f"source 0 has rows of {sources[0].length} tokens and source {number} of {source.length}; a batch has "
                "one length: give both the same"
            )
        if source.tokenizer != sources[0].tokenizer:
            raise DataError(
                f"source 0 has ids of the tokenizer {sources[0].tokenizer[:12]} and source {number} of "
                f"{source.tokenizer[:12]}; build both with the same tokenizer"
            )
