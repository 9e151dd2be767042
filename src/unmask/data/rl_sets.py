"""Sets of tasks to train on by reinforcement learning, none of which a benchmark asks.

    mbpp-rl          MBPP's rows that are in no version of MBPP+, from its sanitized file where that has the row. The
                     prompt shows the first assert, where the function's name stands, and the others are the tests.
                     MBPP+ draws on all of MBPP's splits (108 of its tasks are of the one for training), so a split
                     says nothing; and mbpp-rl has rows of MBPP's own test split, so do not score it on `mbpp`.
    p3               Python Programming Puzzles without HumanEval's (`data/puzzles.py`)
    synthetic-hard   the suite's split `hard-train`, as many tasks as are asked for
    FILE.jsonl       anyone's tasks, as `data/jsonl.py` reads them, AceCode's rows too

A task gets in when it shares no ten words in a row with the benchmarks named, when no one constant passes all its
tests (to answer it would earn all there is), and when its own solution passes them in a fifth of the time that an
answer has. Whatever does not is counted.
"""

import contextlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmask.data import files, jsonl, puzzles
from unmask.data.corpus import Document
from unmask.data.filters import Filters, FilterSettings
from unmask.data.leaks import claims
from unmask.data.synthetic.write import write as write_synthetic
from unmask.data.task import Task
from unmask.errors import SandboxError, SettingsError, TaskError, did_you_mean
from unmask.sandbox.job import Executor, Job
from unmask.sandbox.tests import UnitTests
from unmask.sandbox.verdict import Verdict
from unmask.text.chat import Message

NAMES = ("mbpp-rl", "p3", "synthetic-hard")
BENCHMARKS = ("humaneval+", "mbpp+")
"""What a set is kept apart from, unless others are named."""

SOLUTION_LIMITS = replace(jsonl.LIMITS, cpu_seconds=jsonl.LIMITS.cpu_seconds / 5)
"""For the solution that a task comes with: answers may be slower, and their machine busier."""

_MBPP_PLUS = ("mbppplus/MbppPlus.jsonl.gz", "mbppplus/v0.1.0/MbppPlus.jsonl.gz")
_TEXTS = ("prompt", "instruction", "suffix", "reference", "canonical_solution")

Report = Callable[[int, int], None]
"""Told (solutions run, solutions in all)."""


@dataclass(frozen=True, kw_only=True)
class RlSet:
    """Tasks that may be trained on."""

    records: tuple[dict[str, Any], ...]
    """As `data/jsonl.py` reads them."""

    dropped: Counter[str]
    """What was left out, by the reason: tasks; for `p3` puzzles and tests too, for AceCode's rows tests too. With a
    count, solutions behind the last task that was kept are not run, and so not in it."""

    num_unchecked: int
    """Tasks without a solution: nothing says that their tests can be passed."""


def make(
    name: str,
    *,
    executor: Executor,
    without: Iterable[Task] = (),
    count: int | None = None,
    seed: int | None = None,
    report: Report | None = None,
) -> RlSet:
    """The set of this name, or of the tasks in a file.

    `count` keeps the first ones; `synthetic-hard` draws as many as that. Raises TaskError when nothing is left.
    """
    check(name, count=count, seed=seed)
    dropped: Counter[str] = Counter()
    drawn = list(_records(name, executor=executor, count=count, seed=seed or 0, dropped=dropped))
    apart = list(_varied(_apart(drawn, without, dropped), dropped))
    with contextlib.closing(_solvable(apart, executor, dropped, by_test=name == "p3", report=report)) as solvable:
        chosen = tuple(itertools.islice(solvable, count))
    if not chosen:
        drew = "1 task" if len(drawn) == 1 else f"{len(drawn)} tasks"
        raise TaskError(
            f"{name}: nothing is left of {drew} ({_listed(dropped)}); give other tasks, or fewer benchmarks to keep "
            "them apart from"
        )
    return RlSet(records=chosen, dropped=+dropped, num_unchecked=sum(not _has_solution(record) for record in chosen))


def check(name: str, *, count: int | None = None, seed: int | None = None) -> None:
    """Refuse, before anything is opened, a name that is not known, and options that the set has no use for."""
    if name not in NAMES and not name.endswith((".jsonl", ".jsonl.gz")):
        raise TaskError(
            f"{name!r} is no RL set; {did_you_mean(name, NAMES)}. A file of tasks is given by its path, which ends in "
            ".jsonl or .jsonl.gz"
        )
    if count is not None and count < 1:
        raise SettingsError(f"count={count}: ask for at least one task, or leave it out for all")
    if name == "synthetic-hard" and count is None:
        raise SettingsError("synthetic-hard has as many tasks as are asked for: give a count, such as 2000")
    if name != "synthetic-hard" and seed is not None:
        raise SettingsError(f"seed={seed} has no effect on {name}, whose tasks are not drawn by chance; leave it out")


def mbpp(*, dropped: Counter[str], offline: bool = False) -> Iterator[dict[str, Any]]:
    """MBPP's rows outside MBPP+, in the order of their numbers."""
    in_plus = {row["task_id"] for path in _MBPP_PLUS for row in files.read_jsonl(files.locate(path, offline=offline))}
    places = [files.locate(path, offline=offline) for path in ("mbpp/mbpp.jsonl", "mbpp/sanitized-mbpp.json")]
    sanitized = {row["task_id"]: row for row in files.read_json(places[1])}
    for row in files.read_jsonl(places[0]):
        if f"Mbpp/{row['task_id']}" in in_plus:
            dropped["in MBPP+"] += 1
        elif row["test_setup_code"].strip():
            dropped["needs a class that its prompt does not name"] += 1
        elif (record := _mbpp_record(sanitized.get(row["task_id"], row), row["challenge_test_list"])) is None:
            dropped["fewer than two different tests"] += 1
        else:
            yield record


def _mbpp_record(row: Mapping[str, Any], challenge_tests: Sequence[str]) -> dict[str, Any] | None:
    code = row["code"].replace("\r\n", "\n")
    shown, *others = (test.strip() for test in (*row["test_list"], *challenge_tests))
    tests = [test for test in dict.fromkeys(others) if not jsonl.same_code(test, shown)]
    if not tests:
        return None
    text = row.get("text") or row["prompt"]
    imports = dict.fromkeys([*row.get("test_imports", ()), *jsonl.imports_of_tests(code, tests)])
    return {
        "task_id": f"Mbpp/{row['task_id']}",
        "prompt": jsonl.docstring_of(f"{text}\n{shown}"),
        "instruction": f"{text}\n\n```python\n{shown}\n```",
        "entry_point": jsonl.called_function(row["test_list"], code),
        "reference": code,
        "setup": "".join(f"{line}\n" for line in imports),
        "test_list": tests,
    }


# Drawing


def _records(
    name: str, *, executor: Executor, count: int | None, seed: int, dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    if name == "mbpp-rl":
        yield from mbpp(dropped=dropped)
    elif name == "p3":
        yield from puzzles.records(files.read_json(files.locate("p3/puzzles.json")), dropped=dropped)
    elif name == "synthetic-hard":
        assert count is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tasks.jsonl"
            write_synthetic("hard-train", count, seed=seed, path=path, format="tasks", executor=executor)
            yield from files.read_jsonl(path)
    else:
        jsonl.read_tasks(Path(name))  # all of it is looked at before anything is run
        for number, row in files.numbered_records(Path(name)):
            if jsonl.is_acecode(row):
                record = jsonl.from_acecode(row, f"{name}, line {number}")
                dropped["a test that needs more than the function"] += len(row["test_cases"]) - len(record["test_list"])
                yield record
            else:
                yield row


# Checking


def _apart(
    records: Iterable[dict[str, Any]], without: Iterable[Task], dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    filters = Filters(FilterSettings(min_chars=0, max_chars=1 << 62, dedup="none"), without=without)
    for record in records:
        texts = (record[key] for key in _TEXTS if record.get(key))
        # as a conversation: the rules about lines are about files of code
        if filters.keeps(Document(name="", messages=tuple(Message("user", text) for text in texts))):
            yield record
        else:
            dropped["overlaps a benchmark"] += 1


def _varied(records: Iterable[dict[str, Any]], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    for record in records:
        if is_constant(jsonl.task_of(record, record["task_id"])):
            dropped["one constant passes all its tests"] += 1
        else:
            yield record


def is_constant(task: Task) -> bool:
    """Whether all tests that decide over a task expect one value, so that an answer which returns it passes them.

    A test that says something else than the value of one call is taken to want more than that.

    >>> from unmask.sandbox.tests import CallTests
    >>> tests = {"base": CallTests.of("f", [(1,), (2,)], [True, True])}
    >>> is_constant(Task(task_id="t", prompt="", tests=tests))
    True
    """
    sets = [task.tests[name] for name in task.required_tests]
    said = [claim for tests in sets for claim in ([None] if isinstance(tests, UnitTests) else claims(tests))]
    first = said[0] if said else None
    return first is not None and all(claim is not None and claim[1] == first[1] for claim in said)


def _solvable(
    records: Sequence[dict[str, Any]],
    executor: Executor,
    dropped: Counter[str],
    *,
    by_test: bool,
    report: Report | None,
) -> Generator[dict[str, Any], None, None]:
    """Records whose solution passes; `by_test` runs each test on its own, and leaves out the tests that fail.

    They are run as they are asked for, a few ahead.
    """
    parts = [_split(record) if by_test else [record] for record in records]
    solved = [part for part in itertools.chain(*parts) if _has_solution(part)]
    with contextlib.closing(_judge(solved, executor, report)) as verdicts:
        for record, apart in zip(records, parts, strict=True):
            passing = [part for part in apart if not _has_solution(part) or _passes(next(verdicts), dropped)]
            if passing:
                yield _joined(record, passing) if by_test else record


def _split(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**record, "test_list": [test]} for test in record["test_list"]]


def _joined(record: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {**record, "test_list": [test for part in parts for test in part["test_list"]]}


def _has_solution(record: Mapping[str, Any]) -> bool:
    return bool(record.get("reference") or record.get("canonical_solution"))


def _job(record: Mapping[str, Any]) -> Job:
    task = jsonl.task_of(record, record["task_id"])
    return Job(code=task.reference, tests=task.tests["base"], limits=SOLUTION_LIMITS)


def _judge(
    records: Sequence[Mapping[str, Any]], executor: Executor, report: Report | None
) -> Generator[Verdict, None, None]:
    for done, verdict in enumerate(executor.judge(map(_job, records)), 1):
        if verdict.status == "sandbox_error":
            raise SandboxError(
                f"the sandbox failed at solution {done} of {len(records)} ({verdict.message}), so nothing is known of "
                "it; mend the sandbox (`unmask doctor`) and run the command again"
            )
        if report is not None:
            report(done, len(records))
        yield verdict


def _passes(verdict: Verdict, dropped: Counter[str]) -> bool:
    if not verdict.passed:
        slow = verdict.status in ("timeout", "memory")
        dropped["its solution takes too long" if slow else "its solution fails"] += 1
    return verdict.passed


def _listed(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()) if count) or "there were none"
