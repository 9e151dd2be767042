"""Expected results that a data set does not hold: its reference programs are run on the inputs, in the sandbox, once.

EvalPlus gives inputs and a reference; what the reference returns is what is expected, and four times its time, but at
least a second, is what a call may take (evalplus 0.3.1, `gen/util` and `eval/__init__.py`). Seconds are of CPU time.

The answers are kept in `<cache home>/answers`, one file for each benchmark version and interpreter: gzipped JSON, with
values in the wire format of the sandbox, as base64. Other data, another interpreter or format make another file.
"""

import base64
import gzip
import hashlib
import json
import logging
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from unmask.data.task import Task
from unmask.errors import TaskError
from unmask.model.store import cache_home
from unmask.sandbox.inside import values
from unmask.sandbox.tests import CallTests, Oracle
from unmask.sandbox.verdict import Limits

REFERENCE_LIMITS = Limits(cpu_seconds=240.0, wall_seconds=900.0, memory_bytes=8 << 30, output_bytes=4 << 30)
Report = Callable[[int, int], None]
"""Told (tasks done, tasks in all) while references run."""

_FORMAT = f"2,{values.DIGEST_OVER}"  # of the cache file, and the size from which on an answer is a digest
_log = logging.getLogger(__name__)


class CallRun(Protocol):
    """What came of running a program's function on inputs."""

    @property
    def answers(self) -> tuple[bytes, ...]:
        """Encoded results, compacted (`values.compact`)."""

    @property
    def cpu_seconds(self) -> tuple[float, ...]:
        """Of each call."""

    @property
    def error(self) -> str:
        """Why not every call returned; empty when they did."""


class Executor(Protocol):
    """The part of a sandbox that is needed here."""

    @property
    def interpreter(self) -> str:
        """E.g. `Python 3.11.7`."""

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        """Run `code`, then call its function with each of the encoded argument tuples."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A set of calls whose results are not known yet."""

    inputs: bytes
    """Encoded list of argument tuples."""

    num_calls: int
    oracle: Oracle = "equal"
    atol: float = 0.0

    @classmethod
    def of(cls, inputs: Iterable[Sequence[Any]], *, oracle: Oracle = "equal", atol: float = 0.0) -> "Calls":
        """From plain argument lists."""
        calls = [tuple(arguments) for arguments in inputs]
        return cls(inputs=values.encode(calls), num_calls=len(calls), oracle=oracle, atol=atol)


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """A task without tests, and the calls that become its tests once its reference has answered them."""

    task: Task
    calls: Mapping[str, Calls]


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What a reference returned for one set of calls."""

    answers: tuple[bytes, ...]
    cpu_seconds: tuple[float, ...]


_Found = dict[str, dict[str, _Answers]]  # task id → name of the set → answers


def with_answers(
    needing: Sequence[Unanswered],
    *,
    name: str,
    data_sha256: Mapping[str, str],
    executor: Executor | None = None,
    report: Report | None = None,
) -> tuple[Task, ...]:
    """The tasks with their tests. What is not in the cache is computed, by an executor that is opened if none is given.

    `name` is the benchmark's with its version. An interruption keeps what has been computed.
    """
    interpreter = executor.interpreter if executor is not None else f"Python {platform.python_version()}"
    key = json.dumps([_FORMAT, interpreter, sorted(data_sha256.items())])
    place = cache_home() / "answers" / f"{name}-{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}.json.gz"
    found = _read(place, key)
    missing = [need for need in needing if not _is_answered(need, found)]
    if missing:
        try:
            with _opened(executor) as opened:
                for done, need in enumerate(missing, len(needing) - len(missing) + 1):
                    found[need.task.task_id] = {which: _ask(opened, need, which) for which in need.calls}
                    if report is not None:
                        report(done, len(needing))
        finally:
            if any(seconds > 0 for sets in found.values() for kept in sets.values() for seconds in kept.cpu_seconds):
                _write(place, key, found)  # a sandbox behind HTTP tells no times, and limits follow from them
    return tuple(_answered(need, found[need.task.task_id]) for need in needing)


def _opened(executor: Executor | None) -> AbstractContextManager[Executor]:
    if executor is not None:
        return nullcontext(executor)
    from unmask.sandbox.executor import open_executor

    return open_executor()


def _is_answered(need: Unanswered, found: _Found) -> bool:
    kept = found.get(need.task.task_id, {})
    return all(which in kept and len(kept[which].answers) == calls.num_calls for which, calls in need.calls.items())


def _ask(executor: Executor, need: Unanswered, which: str) -> _Answers:
    task, calls = need.task, need.calls[which]
    run = executor.call(task.reference, task.entry_point, calls.inputs, REFERENCE_LIMITS)
    if run.error or len(run.answers) != calls.num_calls:
        raise TaskError(
            f"the reference of {task.task_id} answered {len(run.answers)} of its {calls.num_calls} {which} inputs "
            f"({run.error or 'no reason was given'}), so there is nothing to compare with; "
            "run it again, with more free memory or another sandbox back end (`unmask doctor` lists them)"
        )
    return _Answers(answers=run.answers, cpu_seconds=run.cpu_seconds)


def _answered(need: Unanswered, found: dict[str, _Answers]) -> Task:
    """The task, with EvalPlus's limits: the sum of what its calls may take, at most 60 seconds, and one second."""
    tests: dict[str, CallTests] = {}
    for which, calls in need.calls.items():
        answers, none = found[which].answers, values.encode(None)
        if calls.oracle == "not_none":
            answers = tuple(values.encode(answer != none) for answer in answers)
        tests[which] = CallTests(
            entry_point=need.task.entry_point,
            inputs=calls.inputs,
            expected=answers,
            oracle=calls.oracle,
            atol=calls.atol,
            call_cpu_seconds=tuple(max(1.0, 4.0 * seconds) for seconds in found[which].cpu_seconds),
        )
    cpu_seconds = 1.0 + min(60.0, max(sum(test.call_cpu_seconds) for test in tests.values()))
    returned = max(sum(map(len, found[which].answers)) for which in tests)
    default = Limits()
    limits = replace(
        default,
        cpu_seconds=cpu_seconds,
        wall_seconds=max(default.wall_seconds, 3.0 * cpu_seconds),
        output_bytes=max(default.output_bytes, 2 * returned),
    )
    return replace(need.task, tests=tests, required=tuple(tests), limits=limits)


# The cache file


def _read(place: Path, key: str) -> _Found:
    if not place.is_file():
        return {}
    try:
        with gzip.open(place, "rt", encoding="utf-8") as file:
            record = json.load(file)
        if record["key"] != key:
            raise ValueError("it was made from other data")
        return {task_id: {k: _from_json(v) for k, v in sets.items()} for task_id, sets in record["tasks"].items()}
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s cannot be used (%s): the answers are computed again", place, error)
        return {}


def _from_json(record: dict[str, Any]) -> _Answers:
    answers = tuple(base64.b64decode(answer, validate=True) for answer in record["answers"])
    return _Answers(answers=answers, cpu_seconds=tuple(map(float, record["cpu_seconds"])))


def _write(place: Path, key: str, found: _Found) -> None:
    """Beside, then renamed: a reader sees the old file or the new one."""
    tasks = {
        task_id: {
            which: {
                "answers": [base64.b64encode(answer).decode() for answer in kept.answers],
                "cpu_seconds": [round(seconds, 6) for seconds in kept.cpu_seconds],
            }
            for which, kept in sets.items()
        }
        for task_id, sets in found.items()
    }
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(part, "wt", encoding="utf-8", compresslevel=3) as file:
            json.dump({"key": key, "tasks": tasks}, file)
        part.replace(place)
    except OSError as error:
        _log.warning("%s cannot be written (%s): the answers are computed again next time", place, error)
    finally:
        part.unlink(missing_ok=True)
