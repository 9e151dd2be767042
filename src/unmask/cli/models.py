"""`unmask models list|pull|show|rm`: the model table, and which of its checkpoints are on this machine.

Results go to stdout: a table on a terminal, tab-separated lines otherwise, JSON with `--json`. Progress and what was
done go to stderr. No model is loaded, so torch is never imported, and `list` and `show` ask no network.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.errors import UnknownModelError, did_you_mean

if TYPE_CHECKING:
    from unmask.model.hub import Progress, Report
    from unmask.model.table import ModelEntry

app = typer.Typer(help="The model table: list, pull, show, rm.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name of the table, or a hub id: owner/name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the models that have a short name.

    Into a pipe each line is: name, family, parameters, bytes to download, licence, path on this machine, description;
    what is unknown or absent is a "-".
    """
    from unmask.model.table import models

    if as_json:
        _print_json([_record(entry) for entry in models()])
    elif sys.stdout.isatty():
        _print_table(models())
    else:
        for entry in models():
            _print_line(_plain_row(entry))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A name of the table.", show_default=False)], as_json: AsJson = False
) -> None:
    """Show one model of the table: its terms, its sources in order of preference, and where it is.

    Example: unmask models show diffucoder-7b-cpgrpo
    """
    from unmask.model.table import find, models

    entry = find(name)
    if entry is None:
        known = [entry.name for entry in models()]
        raise UnknownModelError(f"{name!r} is not a model of the table: {did_you_mean(name, known)}")
    record = _record(entry)
    if as_json:
        _print_json(record)
        return
    for key in ("name", "description", "family", "parameters", "licence"):
        _print_line([key, record[key]])
    _print_line(["download", _size(entry)])
    for number, source in enumerate(entry.sources, start=1):
        _print_line([f"source {number}", source])
    for key, value in record["defaults"].items():
        if value is not None:
            _print_line([key, value])
    if entry.package is None:
        _print_line(["in cache", record["cached"] or "no"])
        return
    _print_line(["in package", record["cached"] or "no"])
    if record["cached"]:
        _print_line(["card", Path(record["cached"]) / "README.md"])


@app.command()
def pull(
    name: Name,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of the hub repository.", metavar="REV")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a model and print its path; what is already here, or part of unmask, is not fetched.

    Example: unmask models pull qwen2.5-coder-0.5b-instruct
    """
    from unmask.model.hub import resolve

    start = time.monotonic()
    try:
        with progress() as report:
            found = resolve(name, revision=revision, report=report)
    except KeyboardInterrupt:
        print(f"stopped; `unmask models pull {name}` goes on from the last whole piece", file=sys.stderr)
        raise typer.Exit(130) from None
    size = _bytes_of(found.path)
    seconds = time.monotonic() - start
    print(f"{name}: {_human(size)} in {seconds:.1f} s; source: {found.source}", file=sys.stderr)
    if as_json:
        _print_json({"name": name, "path": str(found.path), "source": found.source, "bytes": size})
    else:
        _print_line([found.path])


@app.command()
def rm(name: Name, as_json: AsJson = False) -> None:
    """Delete a model's files from unmask's cache and from the cache of the Hugging Face hub.

    Example: unmask models rm smollm2-135m-instruct
    """
    from unmask.model.hub import remove

    freed = remove(name)
    if as_json:
        _print_json({"name": name, "bytes_freed": freed})
    else:
        _print_line([f"{_human(freed)} freed" if freed else f"{name} is not in the cache; nothing was deleted"])


# What is printed


def _record(entry: "ModelEntry") -> dict[str, Any]:
    from dataclasses import asdict

    from unmask.model.hub import cached

    path = cached(entry.name)
    return {
        **asdict(entry),
        "sources": [{"kind": source.kind, **asdict(source)} for source in entry.sources],
        "download_bytes": entry.download_bytes,
        "download_bytes_exact": entry.is_exact,
        "cached": None if path is None else str(path),
    }


def _plain_row(entry: "ModelEntry") -> list[object]:
    from unmask.model.hub import cached

    size = "-" if entry.download_bytes is None else entry.download_bytes
    path = cached(entry.name) or "-"
    return [entry.name, entry.family, entry.parameters, size, entry.licence, path, entry.description]


def _print_table(entries: "Sequence[ModelEntry]") -> None:
    from rich.console import Console
    from rich.table import Table

    from unmask.model.hub import cached

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "parameters", "download", "here", "licence"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("parameters", "download") else "left")
    roomy = console.width >= 120
    if roomy:
        table.add_column("description", no_wrap=True, overflow="ellipsis")
    for entry in entries:
        here = "yes" if cached(entry.name) else ""
        cells = [entry.name, _scaled(entry.parameters, "B", "M", "K", ""), _size(entry), here, entry.licence]
        table.add_row(*cells, *([entry.description] if roomy else []), style="bold" if here else None)
    console.print(table)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _print_line(fields: Sequence[object]) -> None:
    print(*fields, sep="\t")


def _size(entry: "ModelEntry") -> str:
    if entry.package is not None:
        return "none"
    if entry.download_bytes is None:
        return "unknown"
    return _human(entry.download_bytes) if entry.is_exact else f"about {_human(entry.download_bytes)}"


def _human(size: int) -> str:
    """Decimal units, as hubs and disks count them."""
    return _scaled(size, "GB", "MB", "kB", "bytes")


def _scaled(number: int, *units: str) -> str:
    for scale, unit in zip((1e9, 1e6, 1e3), units, strict=False):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} {units[-1]}"


def _bytes_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


# Progress


@contextlib.contextmanager
def progress() -> "Iterator[Report]":
    """A bar on stderr; where stderr is no terminal, one line for each thing that is fetched."""
    if not sys.stderr.isatty():
        yield _LinePerLabel()
        return
    from rich import progress as rich
    from rich.console import Console

    columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.DownloadColumn()]
    speed = [rich.TransferSpeedColumn(), rich.TimeRemainingColumn()]
    with rich.Progress(*columns, *speed, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("looking for it", total=None)

        def report(progress: "Progress") -> None:
            bars.update(task, description=progress.label, completed=progress.done, total=progress.total)

        yield report


class _LinePerLabel:
    """A `Report` for logs: it prints a label when it is new."""

    def __init__(self) -> None:
        self.label = ""

    def __call__(self, progress: "Progress") -> None:
        if progress.label != self.label:
            self.label = progress.label
            print(self.label, file=sys.stderr, flush=True)
