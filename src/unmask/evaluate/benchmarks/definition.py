"""What a benchmark is: a name, versions of its data, and a function that turns data files into tasks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unmask.data.task import Task
from unmask.evaluate.benchmarks.answers import Unanswered

Kind = Literal[
    "complete",  # the prompt is continued
    "instruct",  # the instruction is answered with a program
    "infill",  # text is written between the prompt and the suffix
    "predict",  # the answer is an input or an output, not a program
]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A loaded benchmark: its tasks, and what a result must say of its data."""

    name: str
    version: str
    """As the data set names its version, or the commit of its repository; empty for a user's own file."""

    kind: Kind
    tasks: tuple[Task, ...]
    data_sha256: Mapping[str, str]
    """File → hash, of every file that the tasks come from; or the benchmark's name → hash of its generated tasks."""

    licence: str = ""
    notes: tuple[str, ...] = ()
    """What a reader of a score has to know about this version."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of the tasks."""

    files: tuple[str, ...]
    """Its data files, by their paths in the table (`data/files.toml`); none for a benchmark that is generated."""

    notes: tuple[str, ...] = ()
    licence: str = ""
    """Of what is generated; data files have theirs in the table."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One benchmark that can be loaded."""

    kind: Kind
    build: Callable[[tuple[Path, ...]], Iterable[Task | Unanswered]]
    """The tasks, in the benchmark's own order, from the version's files."""

    versions: Mapping[str, Version] = field(default_factory=dict)
    """The first one is the default."""
