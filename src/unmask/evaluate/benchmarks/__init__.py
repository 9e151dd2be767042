"""The field's benchmarks as lists of tasks, by name; and any file of tasks, by its path.

`DEFINITIONS` is the registry: a benchmark is an entry there, and nothing else knows their names.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from unmask.data import files
from unmask.data.jsonl import read_tasks
from unmask.data.task import Task
from unmask.errors import TaskError, did_you_mean
from unmask.evaluate.benchmarks import answers as reference_answers
from unmask.evaluate.benchmarks import bigcodebench, cruxeval, humaneval, infilling, mbpp, synthetic
from unmask.evaluate.benchmarks.answers import Executor, Unanswered
from unmask.evaluate.benchmarks.definition import Benchmark, Definition, Kind, Version
from unmask.model.progress import Report

__all__ = ["DEFINITIONS", "NAMES", "Benchmark", "Definition", "Kind", "Version", "is_file", "load", "needed_files"]

DEFINITIONS: dict[str, Definition] = {
    **humaneval.DEFINITIONS,
    **mbpp.DEFINITIONS,
    **bigcodebench.DEFINITIONS,
    **infilling.DEFINITIONS,
    **cruxeval.DEFINITIONS,
    **synthetic.DEFINITIONS,
}
NAMES: tuple[str, ...] = tuple(DEFINITIONS)


def load(
    name: str,
    *,
    version: str | None = None,
    limit: int | None = None,
    answers: bool = True,
    executor: Executor | None = None,
    offline: bool = False,
    report_download: Report | None = None,
    report_answers: reference_answers.Report | None = None,
) -> Benchmark:
    """A benchmark by its name, or a file of tasks by its path (`data/jsonl.py` has the format).

    `limit` takes the first tasks only. HumanEval+ and MBPP+ compare with what their references return: the first time
    the references are run, by `executor`, or by one that is opened. `answers=False` leaves that out, and these tasks
    have no tests: enough to generate, or to look for overlap.
    """
    if limit is not None and limit < 1:
        raise TaskError(f"limit is {limit}, but a benchmark needs at least one task; give 1 or more, or no limit")
    if is_file(name):
        return _load_file(Path(name), version=version, limit=limit)
    definition, chosen = _find(name, version)
    of_version = definition.versions[chosen]
    paths = of_version.files
    places = tuple(files.locate(path, offline=offline, report=report_download) for path in paths)
    whole = tuple(itertools.islice(definition.build(places), limit if paths else None))
    sha256 = {path: files.known(path).sha256 for path in paths} or {name: _sha256_of_generated(whole)}
    built = whole[:limit]
    needing = [task for task in built if isinstance(task, Unanswered)]
    answered: Iterable[Task] = (need.task for need in needing)
    if answers and needing:
        answered = reference_answers.with_answers(
            needing, name=f"{name}-{chosen}", data_sha256=sha256, executor=executor, report=report_answers
        )
    ready = iter(answered)
    return Benchmark(
        name=name,
        version=chosen,
        kind=definition.kind,
        tasks=tuple(next(ready) if isinstance(task, Unanswered) else task for task in built),
        data_sha256=sha256,
        licence="; ".join(dict.fromkeys(files.known(path).licence for path in paths)) or of_version.licence,
        notes=of_version.notes,
    )


def needed_files(name: str, *, version: str | None = None) -> tuple[str, ...]:
    """The data files of a benchmark, by their paths in the table (`data/files.py`)."""
    definition, chosen = _find(name, version)
    return definition.versions[chosen].files


def _sha256_of_generated(tasks: Sequence[Task | Unanswered]) -> str:
    """Of all that decides a score: prompts, references and inputs. A generator that has changed makes another one."""
    digest = hashlib.sha256()
    for task in tasks:
        stub, calls = (task.task, task.calls) if isinstance(task, Unanswered) else (task, {})
        parts = (stub.task_id, stub.prompt, stub.instruction, stub.reference, [(k, v.inputs) for k, v in calls.items()])
        digest.update(repr(parts).encode())
    return digest.hexdigest()


def is_file(name: str) -> bool:
    """Whether a name is the path of a file of tasks."""
    return name.endswith((".jsonl", ".jsonl.gz"))


def _find(name: str, version: str | None) -> tuple[Definition, str]:
    if name not in DEFINITIONS:
        raise TaskError(
            f"{name!r} is not a benchmark; {did_you_mean(name, DEFINITIONS)}. A file of tasks is given by its path, "
            "which ends in .jsonl or .jsonl.gz"
        )
    versions = DEFINITIONS[name].versions
    chosen = version or next(iter(versions))
    if chosen not in versions:
        raise TaskError(f"{name} has no version {chosen!r}; {did_you_mean(chosen, versions)}")
    return DEFINITIONS[name], chosen


def _load_file(path: Path, *, version: str | None, limit: int | None) -> Benchmark:
    if version is not None:
        raise TaskError(f"version {version!r} was given for the file {path}, which has none; leave it out")
    tasks = read_tasks(path)[:limit]
    return Benchmark(
        name=path.name.partition(".jsonl")[0],
        version="",
        kind="infill" if any(task.suffix for task in tasks) else "complete",
        tasks=tasks,
        data_sha256={path.name: files.sha256_of(path)},
    )
