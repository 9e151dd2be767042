"""What a stage reads: its sources opened, checked against the tokenizer, and mixed."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from unmask.errors import CheckpointError, DataError, SettingsError
from unmask.seeds import derive_seed
from unmask.text.tokenizer import Tokenizer
from unmask.train.settings import DataSettings, SourceSettings, StageSettings

if TYPE_CHECKING:
    from unmask.data.rows import Mixture, RowSource

_log = logging.getLogger(__name__)

_COUNTED, _AT_ONCE = 20_000_000, 1_000_000  # tokens that are counted for frequencies


class ReadsRows(Protocol):
    """What opening sources needs of a stage."""

    @property
    def data(self) -> DataSettings: ...

    @property
    def seed(self) -> int: ...


def open_mixture(sources: tuple[SourceSettings, ...], stage: ReadsRows, tokenizer: Tokenizer) -> "Mixture":
    """The rows of some sources, checked against the tokenizer."""
    from unmask.data.rows import Mixture, PackedRows, WindowRows
    from unmask.data.shards import Shards, fingerprint

    if not sources:
        raise SettingsError(
            "the stage has nothing to train on: build shards with `unmask data build` and give their folder, as in "
            "--set data.train.0.path=FOLDER in a recipe that names a source"
        )
    opened: list[RowSource] = []
    own = fingerprint(tokenizer)
    for number, source in enumerate(sources):
        shards = Shards.open(Path(source.path))
        shards.check_tokenizer(own)
        if source.rows == "windows":
            opened.append(WindowRows(shards, stage.data.length))
            continue
        packed = PackedRows(
            shards,
            stage.data.length,
            end_tokens=source.end_tokens,
            canvas=source.canvas,
            pad_id=_pad_id(tokenizer),
            seed=derive_seed(stage.seed, "canvas", number),
            on_long=source.on_long,
        )
        for count, what in ((packed.num_dropped, "left out"), (packed.num_cut, "cut")):
            if count:
                _log.warning(
                    "%s of %s documents of %s are longer than %s tokens and %s",
                    f"{count:,}",
                    f"{shards.meta.num_documents:,}",
                    source.path,
                    f"{stage.data.length:,}",
                    what,
                )
        opened.append(packed)
    for source, rows in zip(sources, opened, strict=True):
        _check_predicts(source, rows)
    return Mixture(opened, tuple(source.parts for source in sources), seed=derive_seed(stage.seed, "rows"))


def _check_predicts(source: SourceSettings, rows: "RowSource") -> None:
    """A first token is never predicted, so a data set of single tokens would train nothing, at a loss of 0."""
    if not any(rows.row(i).is_maskable.any() for i in range(min(rows.num_rows, 64))):
        raise DataError(
            f"the rows of {source.path} hold nothing to predict: each document has one token, or is all prompt; build "
            "it again from longer texts, or with answers"
        )


def end_tokens(stage: StageSettings) -> int:
    """How much a run of end tokens may weigh; text has none, so what its sources say of them counts for nothing."""
    found = {source.end_tokens for source in stage.data.train if source.rows == "pairs"}
    if len(found) > 1:
        raise SettingsError(
            f"the sources of {stage.name} have end_tokens {sorted(found)}; a run of them weighs the same everywhere: "
            "give all the same"
        )
    return next(iter(found), 0)


def frequent_tokens(sources: Sequence[SourceSettings], count: int) -> "list[int] | None":
    """The most frequent ids of some sources, in rising order, by the first 20 M tokens of each; None for a count of 0,
    or of as many as there are."""
    import numpy as np

    from unmask.data.shards import Shards

    opened = [Shards.open(Path(source.path)) for source in sources]
    size = max((shards.meta.vocab_size for shards in opened), default=0)
    if not 0 < count < size:
        return None
    seen = np.zeros(size, dtype=np.int64)
    for shards in opened:
        for start in range(0, min(shards.num_tokens, _COUNTED), _AT_ONCE):
            ids = shards.tokens(start, min(start + _AT_ONCE, shards.num_tokens))
            seen += np.bincount(ids, minlength=size)
    best = np.argsort(-seen, kind="stable")[:count]
    return sorted(int(token) for token in best)


def _pad_id(tokenizer: Tokenizer) -> int:
    pad = tokenizer.token_to_id("<|dlm_pad|>")
    pad = tokenizer.pad_id if pad is None else pad
    pad = tokenizer.eos_id if pad is None else pad
    if pad is None:
        raise CheckpointError(
            "the tokenizer has neither a pad token nor an end token to put behind answers; take a checkpoint's own "
            "tokenizer, or make one with `unmask data tokenizer`"
        )
    return pad


def identity(sources: Sequence[SourceSettings]) -> Mapping[str, str]:
    """A hash of the files of each source, from what its `meta.json` says of them: other rows, another hash."""
    from unmask.data.shards import Shards

    found = {}
    for source in sources:
        files = {name: file.sha256 for name, file in Shards.open(Path(source.path)).meta.files.items()}
        found[source.path] = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return found
