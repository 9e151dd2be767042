"""Token shards: a data set as ids on disk, read through the page cache and never loaded.

A folder holds

    tokens-00000.bin …    the ids of all documents one behind the other, uint16 or uint32, little-endian
    offsets.npy           int64 [N + 1]: document i is tokens offsets[i] to offsets[i + 1]
    prompt_lengths.npy    int32 [N]: how many of a document's first tokens are given, not learned; 0 for plain text
    meta.json             `ShardMeta`: which tokenizer, from what, what was dropped, and the hash of each file

A document lies in one token file, as a rule of the writer that no reader depends on. The writer fills a folder beside
the one that was asked for and renames it at the end, so a folder with this name is whole. A folder that a killed
writer left is removed by the next one for the same place.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from unmask.errors import DataError

if TYPE_CHECKING:
    from unmask.text.tokenizer import Tokenizer

FORMAT = 1
FILE_BYTES = 1 << 30
_META, _OFFSETS, _PROMPTS = "meta.json", "offsets.npy", "prompt_lengths.npy"

Ids = npt.NDArray[np.int64]


def fingerprint(tokenizer: "Tokenizer") -> str:
    """A hash of everything that decides which ids a text gets: vocabulary, merges, whole tokens, how text is cut.

    Taken over these parts of `tokenizer.json` alone and in one order, so that it outlives saving, loading, and newer
    versions of the library that writes the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        saved = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    model = saved["model"]
    deciding = {
        "vocab": model["vocab"],
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        "whole_words": bool(model.get("ignore_merges")),
        "added": [[token["id"], token["content"], token["special"]] for token in saved["added_tokens"]],
        "cut": [saved["normalizer"], saved["pre_tokenizer"]],
    }
    text = json.dumps(deciding, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of a folder, as it was when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardMeta:
    """What a folder of shards says about itself."""

    format: int = FORMAT
    vocab_size: int
    tokenizer: str
    """`fingerprint` of the tokenizer that made the ids."""

    num_documents: int
    num_tokens: int
    sources: tuple[str, ...] = ()
    """Where the documents came from, as the builder was told."""

    licences: Mapping[str, int] = field(default_factory=dict)
    """Documents by licence; the key "none" counts those that state none."""

    dropped: Mapping[str, int] = field(default_factory=dict)
    """Documents that are not here, by the filter that dropped them."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was built: filters, seed, template."""

    files: Mapping[str, ShardFile] = field(default_factory=dict)

    @property
    def dtype(self) -> "np.dtype[Any]":
        """How an id is stored."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Writes one folder of shards, whole or not at all.

        with ShardWriter(folder, vocab_size=4096, tokenizer=fingerprint(tokenizer)) as writer:
            writer.add(ids)
            writer.add(prompt + answer, prompt_length=len(prompt))
        writer.meta

    Leaving the block by an exception (Ctrl-C too) removes everything that was written.
    """

    meta: ShardMeta

    def __init__(self, folder: str | Path, *, vocab_size: int, tokenizer: str, file_bytes: int = FILE_BYTES) -> None:
        self.folder = Path(folder)
        if self.folder.exists():
            raise DataError(
                f"{self.folder} is there already, and shards are never written over; delete it or choose another folder"
            )
        self._facts: dict[str, Any] = {"vocab_size": vocab_size, "tokenizer": tokenizer}
        self._dtype = ShardMeta(vocab_size=vocab_size, tokenizer="", num_documents=0, num_tokens=0).dtype
        self._tokens_per_file = max(1, file_bytes // self._dtype.itemsize)
        self._offsets = array("q", [0])
        self._prompt_lengths = array("i")
        self._file: BinaryIO | None = None
        self._in_file = 0
        self._num_files = 0

    def __enter__(self) -> Self:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        prefix, suffix = f".{self.folder.name}.", ".partial"
        with _held(self.folder.parent, wait=True):  # whoever begins here sees the folders of others held
            for left in self.folder.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
                with _held(left) as is_ours:
                    if is_ours:
                        shutil.rmtree(left, ignore_errors=True)
            self._partial = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=self.folder.parent))
            self._hold = contextlib.ExitStack()
            self._hold.enter_context(_held(self._partial))
        return self

    def add(self, ids: Sequence[int] | Ids, *, prompt_length: int = 0) -> None:
        """Append one document."""
        tokens = np.asarray(ids, dtype=np.int64)
        vocab_size = self._facts["vocab_size"]
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise DataError(
                f"a document holds the id {int(tokens.max() if tokens.min() >= 0 else tokens.min())}, and the "
                f"vocabulary has ids 0 to {vocab_size - 1}; give the vocab_size of the tokenizer that made the ids"
            )
        if not tokens.size or not 0 <= prompt_length <= tokens.size:
            raise DataError(
                f"a document of {tokens.size} tokens with a prompt of {prompt_length}; a document has at least one "
                "token, and its prompt at most all of them"
            )
        if self._file is None or (self._in_file and self._in_file + tokens.size > self._tokens_per_file):
            self._next_file()
        assert self._file is not None
        self._file.write(tokens.astype(self._dtype).tobytes())
        self._in_file += tokens.size
        self._offsets.append(self._offsets[-1] + int(tokens.size))
        self._prompt_lengths.append(prompt_length)

    def note(
        self,
        *,
        sources: Sequence[str] = (),
        licences: Mapping[str, int] | None = None,
        dropped: Mapping[str, int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """What `meta.json` shall say beside the counts."""
        self._facts |= {
            "sources": tuple(sources),
            "licences": dict(licences or {}),
            "dropped": dict(dropped or {}),
            "settings": dict(settings or {}),
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            try:
                if self._file is not None:
                    self._file.close()  # writes what is buffered, which a full disk refuses again
            finally:
                shutil.rmtree(self._partial, ignore_errors=True)
                self._hold.close()

    def _next_file(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = (self._partial / f"tokens-{self._num_files:05d}.bin").open("wb")
        self._num_files += 1
        self._in_file = 0

    def _finish(self) -> None:
        if not self._prompt_lengths:
            dropped = self._facts.get("dropped")
            why = f"; dropped: {_counted(dropped)}" if dropped else ""
            raise DataError(
                f"there are no documents to write to {self.folder}{why}; give sources with text, or ease the filters"
            )
        assert self._file is not None
        self._file.close()
        np.save(self._partial / _OFFSETS, np.asarray(self._offsets, dtype=np.int64))
        np.save(self._partial / _PROMPTS, np.asarray(self._prompt_lengths, dtype=np.int32))
        self.meta = ShardMeta(
            num_documents=len(self._prompt_lengths),
            num_tokens=self._offsets[-1],
            files={path.name: _file_record(path) for path in sorted(self._partial.iterdir())},
            **self._facts,
        )
        text = json.dumps(asdict(self.meta), ensure_ascii=False, indent=2) + "\n"
        (self._partial / _META).write_text(text, encoding="utf-8")
        self._partial.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        for path in self._partial.iterdir():
            _flush(path)
        self._partial.rename(self.folder)
        _flush(self.folder.parent)


class Shards:
    """A folder of shards, opened: `document(i)`, `tokens(start, stop)`, and what `meta` says."""

    def __init__(self, folder: Path, meta: ShardMeta) -> None:
        self.folder, self.meta = folder, meta
        self.num_documents, self.num_tokens = meta.num_documents, meta.num_tokens
        self.offsets: Ids = self._array(_OFFSETS, np.int64, meta.num_documents + 1)
        self.prompt_lengths: npt.NDArray[np.int32] = self._array(_PROMPTS, np.int32, meta.num_documents)
        names = sorted(name for name in meta.files if name.startswith("tokens-"))
        self._files = [np.memmap(folder / name, dtype=meta.dtype, mode="r") for name in names]
        self._starts = np.cumsum([0, *(len(file) for file in self._files)])
        if self._starts[-1] != meta.num_tokens or self.offsets[0] != 0 or self.offsets[-1] != meta.num_tokens:
            raise _damaged(folder, f"its files hold {self._starts[-1]} tokens, and {_META} says {meta.num_tokens}")

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a folder; the sizes of all files are checked, their hashes only by `verify`."""
        folder = Path(folder)
        meta = _read_meta(folder)
        for name, record in meta.files.items():
            path = folder / name
            if not path.is_file():
                raise _damaged(folder, f"{name} is missing")
            if path.stat().st_size != record.bytes:
                raise _damaged(folder, f"{name} has {path.stat().st_size} bytes instead of {record.bytes}")
        if not meta.num_documents or not meta.num_tokens:
            raise DataError(f"{folder} holds no documents; build it again from sources with text")
        return cls(folder, meta)

    def __reduce__(self) -> tuple[Callable[[Path], "Shards"], tuple[Path]]:
        return Shards.open, (self.folder,)  # a worker maps the files itself: pickle would copy them

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}, {self.num_documents:,} documents, {self.num_tokens:,} tokens)"

    def document(self, i: int) -> tuple[Ids, int]:
        """The ids of document i, and how many of the first ones are its prompt."""
        if not 0 <= i < self.num_documents:
            raise IndexError(f"document {i} of {self.num_documents}")
        return self.tokens(int(self.offsets[i]), int(self.offsets[i + 1])), int(self.prompt_lengths[i])

    def tokens(self, start: int, stop: int) -> Ids:
        """Tokens start to stop of the whole stream, as a fresh array; `stop` may lie behind the end."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        for file, begin in zip(self._files[first:], self._starts[first:], strict=False):
            if begin >= stop:
                break
            parts.append(file[max(0, start - begin) : stop - begin])
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def verify(self) -> None:
        """Read every byte and compare the hashes; DataError names the first file that differs."""
        for name, record in self.meta.files.items():
            if _file_record(self.folder / name).sha256 != record.sha256:
                raise _damaged(self.folder, f"{name} has another sha256 than when it was written")

    def check_tokenizer(self, other: str) -> None:
        """DataError unless the ids were made by the tokenizer with this fingerprint."""
        if other != self.meta.tokenizer:
            raise DataError(
                f"{self.folder} holds ids of the tokenizer {self.meta.tokenizer[:12]}, and the model's tokenizer is "
                f"{other[:12]}: the same ids are other words there; build the shards again with "
                "`unmask data build … --tokenizer` and the model's folder"
            )

    def _array(self, name: str, dtype: Any, length: int) -> npt.NDArray[Any]:
        try:
            array: npt.NDArray[Any] = np.load(self.folder / name, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise _damaged(self.folder, f"{name} is no array ({error})") from error
        if array.dtype != dtype or array.shape != (length,):
            raise _damaged(self.folder, f"{name} is {array.dtype}{list(array.shape)} instead of {length} numbers")
        return array


def _read_meta(folder: Path) -> ShardMeta:
    path = folder / _META
    if not path.is_file():
        raise DataError(
            f"{folder} is no folder of shards: it has no {_META}; make one with `unmask data build SOURCE --tokenizer "
            f"MODEL --output {folder}`"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(folder, f"{_META} is no JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise _damaged(folder, f"{_META} states no format")
    if record["format"] != FORMAT:
        raise DataError(
            f"{folder} has format {record['format']}, and this version reads format {FORMAT}; build the shards again, "
            "or use the version of unmask that wrote them"
        )
    try:
        files = {name: ShardFile(**values) for name, values in record.pop("files").items()}
        known = {name: record[name] for name in (f.name for f in fields(ShardMeta)) if name in record}
        return ShardMeta(**{**known, "sources": tuple(record.get("sources", ())), "files": files})
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{_META} lacks something or has it in another form ({error})") from error


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(f"{folder} is damaged: {what}; copy the folder again from where it was built, or build it again")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _file_record(path: Path) -> ShardFile:
    with path.open("rb") as file:
        return ShardFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _flush(path: Path) -> None:
    """To the disk, so that a rename is never on it before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)  # some file systems flush no folders
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a folder until the block, or the process, ends; whether it could be had. Some systems lock no folders."""
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        is_held = True
    except OSError:
        is_held = False
    try:
        yield is_held
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
