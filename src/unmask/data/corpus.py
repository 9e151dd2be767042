"""Documents from wherever they lie: JSON lines, parquet, text files, source trees, Hugging Face data sets.

A source is written as

    path.jsonl, path.jsonl.gz    objects with `messages`; or tasks (`data/jsonl.py`); or with a `text` or `content`
    path.parquet                 rows with the same fields; needs pyarrow
    path.txt, path.py …          one document
    folder/                      every *.py in it, sorted by path
    stdlib                       the standard library of this Python, without its tests
    installed                    the packages beside this Python under permissive licences (`data/installed.py`)
    hf:OWNER/NAME[/CONFIG][:SPLIT]   streamed, the split `train` if none is named; needs the package `datasets`

A task is a pair of its instruction and its reference in a fence, so a task without a reference is an error. Parquet
files and data sets of the hub are mostly other people's: there a record without a text or an answer is left out and
counted. Everything is read in one pass, in an order that depends on the source alone.
"""

import importlib
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.data import installed
from unmask.data.files import numbered_records
from unmask.data.messages import answer_of, read_messages
from unmask.errors import DataError
from unmask.text.chat import Message

STDLIB, INSTALLED = "stdlib", "installed"
TEXT_SUFFIXES = (".txt", ".py", ".md", ".rst")
_HUB = "hf:"
_TEXT_FIELDS = ("text", "content")
_TASK_TEXTS = ("instruction", "prompt", "canonical_solution", "suffix", "reference")
_LICENCE_FIELDS = ("licence", "license", "licences", "licenses", "max_stars_repo_licenses", "detected_licenses")
_STDLIB_LICENCE = "PSF-2.0"
_NOT_STDLIB = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text, or one conversation."""

    name: str
    """Where it came from: a path, or a file with a line."""

    text: str = ""
    licences: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    """A conversation, in place of `text`."""

    @property
    def contents(self) -> tuple[str, ...]:
        """All that was written in it."""
        return tuple(message.content for message in self.messages) or (self.text,)


def read(source: str | Path, *, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """The documents of a source; `skipped` counts files of a tree that are no text, and records that hold nothing."""
    name = str(source)
    if name == STDLIB:
        return tree(standard_library(), skipped=skipped, leave_out=_NOT_STDLIB, licences=(_STDLIB_LICENCE,))
    if name == INSTALLED:
        return _installed(skipped)
    if name.startswith(_HUB):
        return _usable(_hub(name), name, skipped)
    path = Path(source)
    if path.is_dir():
        return tree(path, skipped=skipped)
    if not path.is_file():
        raise DataError(
            f"there is no source {name}; give a file, a folder of Python files, {STDLIB}, {INSTALLED}, or "
            f"{_HUB}OWNER/NAME[/CONFIG][:SPLIT]"
        )
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".jsonl":
        return _json_lines(path)
    if path.suffix == ".parquet":
        return _usable(_parquet(path), name, skipped)
    if path.suffix in TEXT_SUFFIXES:
        return iter((Document(name=name, text=_text(path)),))
    known = ", ".join((".jsonl", ".jsonl.gz", ".parquet", *TEXT_SUFFIXES))
    raise DataError(f"{name}: documents cannot be read from such a file; known are {known}, and folders")


def standard_library() -> Path:
    """The folder of this Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def tree(
    folder: Path,
    *,
    skipped: Counter[str] | None = None,
    leave_out: frozenset[str] = frozenset(),
    licences: tuple[str, ...] = (),
) -> Iterator[Document]:
    """The Python files below a folder, sorted by path; `leave_out` names folders whose files are no part of it."""
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or not leave_out.isdisjoint(inside.parts):
            continue
        text = _python(path, skipped)
        if text is not None:
            yield Document(name=inside.as_posix(), text=text, licences=licences)


def document_of(record: Mapping[str, Any], where: str) -> Document:
    """The document in one object: a conversation, a task, or a text."""
    licences = tuple(_licences(record))
    if "messages" in record:
        return Document(name=where, messages=read_messages(record["messages"], where), licences=licences)
    if {"task_id", "entry_point"} <= record.keys():
        return Document(name=where, messages=_task_messages(record, where), licences=licences)
    text = next((record[name] for name in _TEXT_FIELDS if record.get(name) is not None), None)
    if not isinstance(text, str):
        given = ", ".join(map(str, record)) or "nothing"
        raise DataError(
            f"{where} has the fields {given}; a document has messages, or a text in one of: {', '.join(_TEXT_FIELDS)}"
        )
    return Document(name=where, text=text, licences=licences)


def _task_messages(record: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    name = f"{where}: the task {record['task_id']!r}"
    texts = {key: record.get(key) or "" for key in _TASK_TEXTS}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{name} has a {type(text).__name__} as its {key!r}; it has to be a text")
    prompt, completion = texts["prompt"], texts["canonical_solution"]
    reference = texts["reference"] or (completion and f"{prompt}{completion}{texts['suffix']}")
    if not reference:
        raise DataError(
            f"{name} has tests and no solution, so there is no answer to learn; add a 'reference' to it, or leave it "
            "out"
        )
    question = texts["instruction"] or prompt
    if not question.strip():
        raise DataError(f"{name} has neither an 'instruction' nor a 'prompt', so nothing is asked; add one of them")
    return Message("user", question), Message("assistant", f"```python\n{reference.strip()}\n```")


def _licences(record: Mapping[str, Any]) -> Iterator[str]:
    for name in _LICENCE_FIELDS:
        given = record.get(name)
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str) and value.strip():
                yield value.strip()


def _json_lines(path: Path) -> Iterator[Document]:
    for number, record in numbered_records(path):
        yield document_of(record, f"{path}, line {number}")


def _installed(skipped: Counter[str] | None) -> Iterator[Document]:
    for package in installed.packages(skipped=skipped):
        for name, path in package.files:
            text = _python(path, skipped) if path.is_file() else None
            if text is not None:
                yield Document(name=name, text=text, licences=package.licences)


def _python(path: Path, skipped: Counter[str] | None) -> str | None:
    """The text of one file of many; None, and counted, where it is no UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        if skipped is not None:
            skipped["not UTF-8"] += 1
        return None


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); convert the file to UTF-8") from error


def _usable(records: Iterable[Mapping[str, Any]], source: str, skipped: Counter[str] | None) -> Iterator[Document]:
    """The documents in records of others, without those that nothing can be learned from."""
    for number, record in enumerate(records, 1):
        where = f"{source}, row {number}"
        try:
            document = document_of(record, where)
            if document.messages:
                answer_of(document.messages, where)
        except DataError:
            reason = _lacking(record)
            if reason is None:
                raise
            if skipped is not None:
                skipped[reason] += 1
            continue
        yield document


def _lacking(record: Mapping[str, Any]) -> str | None:
    """What a record that is no document lacks; None: it has none of the fields, and so have all the others."""
    if "messages" in record or {"task_id", "entry_point"} <= record.keys():
        return "no answer"
    return "no text" if any(name in record for name in _TEXT_FIELDS) else None


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    parquet = _needed("pyarrow.parquet", "pyarrow", f"{path} is a parquet file")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are such, at the start or far into the file
        raise DataError(f"{path} cannot be read as parquet ({error}); get the file again") from error


def _hub(source: str) -> Iterator[Mapping[str, Any]]:
    name, _, split = source.removeprefix(_HUB).partition(":")
    owner, _, rest = name.partition("/")
    repository, _, config = rest.partition("/")
    wanted = [f"{owner}/{repository}" if repository else owner, *([config] if config else [])]
    datasets = _needed("datasets", "datasets", f"{source} is a data set of the Hugging Face hub")
    try:
        rows = datasets.load_dataset(*wanted, split=split or "train", streaming=True)
    except (OSError, ValueError) as error:  # no such data set, configuration or split, no network
        raise DataError(
            f"{source} cannot be opened ({error}); check its name, its configuration (hf:OWNER/NAME/CONFIG), its "
            "split, and the network"
        ) from error
    come = 0
    try:
        for record in rows:
            come += 1
            yield record
    except Exception as error:  # whatever the network, the hub and the decoders of its files raise
        raise DataError(
            f"{source} broke off after {come:,} documents ({type(error).__name__}: {error}); nothing of it is kept: "
            "start again when the network is back"
        ) from error


def _needed(module: str, package: str, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{why}, and reading it needs the package {package}: pip install {package}") from error
