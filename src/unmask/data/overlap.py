"""What a training file shares with a benchmark: ids of tasks, and runs of n words.

Words are runs of letters and digits in lower case; everything else only parts them, so layout and punctuation hide
nothing. A document (a row of JSON lines, or a whole text file) overlaps a task when they share one run of n words, 10
by default, or when the document names the task's id. This finds copies, not paraphrases; and common phrases ("write a
function to find the …") are found as well, so the report shows what was shared.

The training file is streamed: memory is that of the benchmarks' n-grams.
"""

import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unmask.data.task import Task
from unmask.errors import SettingsError, TaskError, did_you_mean
from unmask.sandbox.tests import AssertTests, UnitTests

NGRAM = 10
MAX_EXAMPLES = 5
_LINES = (".jsonl",)
_TEXTS = (".txt", ".py", ".md", ".rst")
SUFFIXES = (*_LINES, ".json", *_TEXTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One place where a training file and a task meet."""

    task_id: str
    document: int
    """Number of the document: its line in JSON lines, its place in a JSON array, 1 for a text file."""

    kind: Literal["id", "ngram"]
    shared: str
    """The id, or the words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOverlap:
    """What the file shares with one benchmark."""

    num_tasks: int
    num_documents: int
    """Documents that overlap any of its tasks."""

    tasks_by_id: tuple[str, ...]
    """Tasks whose id is named, in the benchmark's order."""

    tasks_by_ngram: tuple[str, ...]
    """Tasks that share a run of words, in the benchmark's order."""

    num_too_short: int
    """Tasks with fewer than n words, which only an id can find."""

    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What one training file shares with some benchmarks."""

    path: str
    n: int
    num_documents: int
    benchmarks: Mapping[str, BenchmarkOverlap]


def find_overlap(
    path: str | Path, benchmarks: Mapping[str, Iterable[Task]], *, n: int = NGRAM, with_tests: bool = False
) -> Overlap:
    """Look for each benchmark's tasks (prompt, instruction, reference; with `with_tests` the test code) in a file.

    Reads `.jsonl`, `.json` (one array), and `.txt`, `.py`, `.md`, `.rst`, each also with `.gz`. Raises TaskError.
    """
    path = Path(path)
    if n < 1:
        raise SettingsError(f"n={n}: a run has at least one word; {NGRAM} is usual")
    if not benchmarks:
        raise SettingsError("no benchmark was named, so there is nothing to compare with; name at least one")
    indexes = {name: _Index(tasks, n=n, with_tests=with_tests) for name, tasks in benchmarks.items()}
    num_documents = 0
    for number, document in _documents(path):
        num_documents += 1
        for index in indexes.values():
            index.look_at_ids(number, document)
        _look_at_words(indexes.values(), number, document, n)
    if not num_documents:
        raise TaskError(f"{path} holds no documents; give a training file with text in it")
    return Overlap(
        path=str(path),
        n=n,
        num_documents=num_documents,
        benchmarks={name: index.found() for name, index in indexes.items()},
    )


_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> Iterator[str]:
    """The words that overlap is measured in.

    >>> list(words("def has_close(numbers: List[float]):"))
    ['def', 'has', 'close', 'numbers', 'list', 'float']
    """
    return (match[0].lower() for match in _WORD.finditer(text))


def ngrams(tokens: Iterable[str], n: int) -> Iterator[str]:
    """All runs of n words, each joined by spaces.

    >>> list(ngrams(["a", "b", "c"], 2))
    ['a b', 'b c']
    """
    window: deque[str] = deque(maxlen=n)
    for token in tokens:
        window.append(token)
        if len(window) == n:
            yield " ".join(window)


@dataclass(slots=True)
class _Document:
    """Texts that are matched apart (no run goes from one into the next), and ids that the row bears."""

    texts: Iterable[Iterable[str]]
    """Each text as pieces that end between words."""

    ids: frozenset[str] = field(default_factory=frozenset)


class _Index:
    """One benchmark's ids and n-grams, and what was found of them so far."""

    def __init__(self, tasks: Iterable[Task], *, n: int, with_tests: bool) -> None:
        self.task_ids: list[str] = []
        self.by_id: dict[str, int] = {}
        self.by_ngram: dict[str, list[int]] = {}
        self.num_too_short = 0
        for number, task in enumerate(tasks):
            self.task_ids.append(task.task_id)
            self.by_id[task.task_id.lower()] = number
            grams = {gram for text in _texts_of(task, with_tests=with_tests) for gram in ngrams(words(text), n)}
            self.num_too_short += not grams
            for gram in grams:
                self.by_ngram.setdefault(gram, []).append(number)
        self.documents: set[int] = set()
        self.hits: dict[Literal["id", "ngram"], set[int]] = {"id": set(), "ngram": set()}
        self.examples: list[Example] = []

    def look_at_ids(self, number: int, document: _Document) -> None:
        for name in document.ids:
            if name in self.by_id:
                self.hit("id", self.by_id[name], number, name)

    def hit(self, kind: Literal["id", "ngram"], task: int, document: int, shared: str) -> None:
        is_new = task not in self.hits[kind]
        self.hits[kind].add(task)
        self.documents.add(document)
        if is_new and sum(example.kind == kind for example in self.examples) < MAX_EXAMPLES:
            shared = self.task_ids[task] if kind == "id" else shared
            self.examples.append(Example(task_id=self.task_ids[task], document=document, kind=kind, shared=shared))

    def found(self) -> BenchmarkOverlap:
        return BenchmarkOverlap(
            num_tasks=len(self.task_ids),
            num_documents=len(self.documents),
            tasks_by_id=tuple(self.task_ids[task] for task in sorted(self.hits["id"])),
            tasks_by_ngram=tuple(self.task_ids[task] for task in sorted(self.hits["ngram"])),
            num_too_short=self.num_too_short,
            examples=tuple(self.examples),
        )


def _texts_of(task: Task, *, with_tests: bool) -> Iterator[str]:
    yield from (task.prompt, task.instruction, task.suffix, task.reference, task.reference_completion)
    if with_tests:
        yield from (tests.code for tests in task.tests.values() if isinstance(tests, AssertTests | UnitTests))


# Other words are matched too, each whole: a search that began anew at every letter of one is quadratic in its length.
_NAMED_ID_OR_WORD = re.compile(r"-*+(\w[\w-]*+/\d+)|[\w-]++")


def _look_at_words(indexes: Iterable[_Index], number: int, document: _Document, n: int) -> None:
    """One pass over the texts: runs of words, and ids that are written out, such as HumanEval/12."""
    for text in document.texts:
        window: deque[str] = deque(maxlen=n)
        for piece in text:
            for name in filter(None, _NAMED_ID_OR_WORD.findall(piece)):
                for index in indexes:
                    if (task := index.by_id.get(name.lower())) is not None:
                        index.hit("id", task, number, name)
            for word in words(piece):
                window.append(word)
                if len(window) == n:
                    gram = " ".join(window)
                    for index in indexes:
                        for task in index.by_ngram.get(gram, ()):
                            index.hit("ngram", task, number, gram)


# --- Reading training files ---


def _documents(path: Path) -> Iterator[tuple[int, _Document]]:
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in SUFFIXES:
        raise TaskError(
            f"{path} ends in {suffix or 'nothing'}, and overlap reads text; {did_you_mean(suffix, SUFFIXES)}; write "
            "other formats as JSON lines first"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if suffix in _LINES:
                yield from _rows_of_lines(path, file)
            elif suffix == ".json":
                yield from _rows_of_array(path, file)
            elif file.peek(1):
                yield 1, _Document(texts=[(line for _, line in _decoded(path, file))])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TaskError(f"{path} is no whole gzip file ({error}); copy it again") from error
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}; give a training file") from error


def _decoded(path: Path, file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{path}, line {number}: byte {error.start} (0x{line[error.start]:02x}) is not UTF-8; save the file in "
                "that encoding"
            ) from error


def _rows_of_lines(path: Path, file: Iterable[bytes]) -> Iterator[tuple[int, _Document]]:
    for number, line in _decoded(path, file):
        if line.strip():
            yield number, _row(_json(line, f"{path}, line {number}"))


def _rows_of_array(path: Path, file: Iterable[bytes]) -> Iterator[tuple[int, _Document]]:
    rows = _json("".join(line for _, line in _decoded(path, file)), str(path))
    if not isinstance(rows, list):
        raise TaskError(f"{path} is a JSON {type(rows).__name__}; give an array of rows, or JSON lines")
    for number, row in enumerate(rows, 1):
        yield number, _row(row)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where} is no JSON: {error}; each line has to be one whole JSON value") from error


_ID_KEYS = ("task_id", "id", "question_id", "problem_id", "name")


def _row(row: Any) -> _Document:
    """A row's texts, and its ids: as they are written, and "mbpp/7" for row 7 of a file with MBPP's columns."""
    ids: set[str] = set()
    if isinstance(row, dict):
        ids = {str(row[key]).lower() for key in _ID_KEYS if isinstance(row.get(key), str | int)}
        if {"task_id", "code", "test_list"} <= set(row):
            ids.add(f"mbpp/{row['task_id']}".lower())
    return _Document(texts=[[text] for text in _strings(row)], ids=frozenset(ids))


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            waiting += reversed(part.values())
        elif isinstance(part, list):
            waiting += reversed(part)
