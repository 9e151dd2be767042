"""What the verbs of `unmask data` share: how they tell what goes on, print results, and read lists of names."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from unmask.data.task import Task

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# What is read


def names_in(text: str | None) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(filter(None, (name.strip() for name in (text or "").split(","))))


def tasks_of(benchmark_names: Sequence[str]) -> "list[Task]":
    """The tasks of some benchmarks, without their answers."""
    if not benchmark_names:
        return []
    from unmask.evaluate import benchmarks

    return [task for name in benchmark_names for task in benchmarks.load(name, answers=False).tasks]


def check_new(output: Path) -> None:
    """Refuse an output that is there, or could not be written: before the work, which takes minutes."""
    from unmask.data.jsonl import check_output
    from unmask.errors import TaskError

    if output.exists():
        raise TaskError(f"{output} is there already, and is never written over; delete it or choose another file")
    check_output(output)


# What is told


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def counting() -> Iterator[Callable[[str, int, int | None], None]]:
    """Tells (what, how many are done, of how many): a bar on stderr; a line for each what where that is no terminal."""
    if not sys.stderr.isatty():
        told: set[str] = set()

        def tell_once(label: str, done: int, total: int | None) -> None:
            if label not in told:
                told.add(label)
                say(label)

        yield tell_once
        return
    from rich import progress as rich
    from rich.console import Console

    columns = [rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.MofNCompleteColumn()]
    times = [rich.TimeElapsedColumn(), rich.TimeRemainingColumn()]
    with rich.Progress(*columns, *times, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def tell(label: str, done: int, total: int | None) -> None:
            bars.update(task, description=label, completed=done, total=total)

        yield tell


def dropped(counts: Mapping[str, int]) -> str:
    """How many were left out, and how many for each reason."""
    parts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
    return f"{sum(counts.values()):,} dropped" + (f": {parts}" if parts else "")


# What is printed


def print_json(value: object) -> None:
    """A value as JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_line(fields: Sequence[object]) -> None:
    """A tab-separated line on stdout."""
    print(*fields, sep="\t")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; cells are printed as they are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
