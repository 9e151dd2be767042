"""`unmask data list|fetch|setup|overlap`: what the benchmarks need."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.data_terminal import AsJson, print_json, print_line, print_table, say

if TYPE_CHECKING:
    from unmask.data.files import DataFile
    from unmask.data.overlap import Overlap
    from unmask.evaluate.environment import Environment

_EXAMPLES_SHOWN = 3


def list_(as_json: AsJson = False) -> None:
    """List the data files of the benchmarks: which are here, and whether each is the right one.

    Into a pipe each line is: file, version, licence, state, path; the state is "ok", "wrong" (another sha256) or
    "absent", and the path of an absent file is a "-".

    Example: unmask data list
    """
    from unmask.data import files

    records = [_file_record(file) for file in files.table().values()]
    if as_json:
        print_json(records)
    elif sys.stdout.isatty():
        print_table(["file", "version", "licence", "state", "path"], [_cells(record) for record in records])
    else:
        for record in records:
            print_line(_cells(record))


def fetch(
    name: Annotated[str, typer.Argument(help="A benchmark.", show_default=False)],
    version: Annotated[
        str | None, typer.Option("--version", help="Version of its data; the newest if not given.", metavar="V")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download the data that a benchmark needs, check it, and print its paths.

    Example: unmask data fetch humaneval+
    """
    from unmask.cli.models import progress
    from unmask.data import files
    from unmask.evaluate import benchmarks

    needed = benchmarks.needed_files(name, version=version)
    if not needed:
        say(f"{name} needs no data: its tasks are generated")
    with progress() as report:
        places = {path: files.locate(path, report=report) for path in needed}
    if as_json:
        print_json({path: str(place) for path, place in places.items()})
        return
    for place in places.values():
        print_line([place])


def setup(
    name: Annotated[str, typer.Argument(help="A benchmark with libraries of its own: bigcodebench.", metavar="NAME")],
    python: Annotated[
        Path | None,
        typer.Option("--python", help="Interpreter to make it for; otherwise a Python 3.10 is looked for."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make it anew, even if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the Python environment that a benchmark's tests need, and print where its libraries are.

    Example: unmask data setup bigcodebench
    """
    from unmask.evaluate import environment

    try:
        made = environment.setup(name, python=python, again=again, report=say)
    except KeyboardInterrupt:
        say(f"stopped; `unmask data setup {name}` begins it again")
        raise typer.Exit(130) from None
    if made.warning:
        say(f"warning: {made.warning}")
    if as_json:
        print_json(_environment_record(made))
        return
    for place in made.site_packages:
        print_line([place])


def overlap(
    training_file: Annotated[Path, typer.Argument(help="JSON lines, a JSON array or text, each also gzipped.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="Benchmark to compare with, again for more; otherwise all that are here."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Words in a run that counts as shared.")] = 10,
    with_tests: Annotated[bool, typer.Option("--with-tests", help="Compare with the test code too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell which benchmark tasks a training file has seen: by their ids, and by runs of words that it shares.

    Into a pipe each line is: benchmark, its tasks, tasks named by id, tasks that share a run, documents that overlap.

    Example: unmask data overlap train.jsonl --benchmark humaneval+ --benchmark mbpp+
    """
    from unmask.data.overlap import find_overlap
    from unmask.evaluate import benchmarks

    names = benchmark or _here()
    tasks = {name: benchmarks.load(name, answers=False).tasks for name in names}
    found = find_overlap(training_file, tasks, n=n, with_tests=with_tests)
    if as_json:
        print_json(asdict(found))
        return
    rows = _overlap_rows(found)
    if sys.stdout.isatty():
        print_table(["benchmark", "tasks", "by id", f"by {n} words", "documents"], rows)
    else:
        for row in rows:
            print_line(row)
    _tell_examples(found)


def _here() -> list[str]:
    """The benchmarks whose data is on this machine; TaskError when there are none."""
    from unmask.data import files
    from unmask.errors import TaskError
    from unmask.evaluate import benchmarks

    of_files = [name for name in benchmarks.NAMES if benchmarks.needed_files(name)]
    here = [name for name in of_files if all(files.find(path) for path in benchmarks.needed_files(name))]
    if not here:
        raise TaskError(
            "no benchmark's data is on this machine, so there is nothing to compare with: name a benchmark "
            "(--benchmark humaneval+) to have it downloaded, or set UNMASK_DATA to the folder that holds the data"
        )
    absent = [name for name in of_files if name not in here]
    if absent:
        say(f"not compared, since their data is not here: {', '.join(absent)}; `unmask data fetch NAME` gets it")
    return here


def _file_record(file: "DataFile") -> dict[str, Any]:
    from unmask.data import files

    place = files.find(file.path)
    state = "absent" if place is None else "ok" if files.sha256_of(place) == file.sha256 else "wrong"
    return {**asdict(file), "state": state, "place": None if place is None else str(place)}


def _cells(record: dict[str, Any]) -> list[str]:
    return [record["path"], record["version"], record["licence"], record["state"], record["place"] or "-"]


def _environment_record(made: "Environment") -> dict[str, Any]:
    return {**json.loads(json.dumps(asdict(made), default=str)), "warning": made.warning}


def _overlap_rows(found: "Overlap") -> list[list[str]]:
    return [
        [name, *(str(n) for n in (b.num_tasks, len(b.tasks_by_id), len(b.tasks_by_ngram), b.num_documents))]
        for name, b in found.benchmarks.items()
    ]


def _tell_examples(found: "Overlap") -> None:
    say(f"{found.num_documents:,} documents of {found.path} were read")
    for name, benchmark in found.benchmarks.items():
        for example in benchmark.examples[:_EXAMPLES_SHOWN]:
            what = "names" if example.kind == "id" else "shares"
            say(f"{name}: document {example.document} {what} {example.task_id}: {example.shared}")
        if benchmark.num_too_short:
            say(f"{name}: tasks of fewer than {found.n} words, found by id alone: {benchmark.num_too_short}")
