"""The share of its task's tests that an answer's code passes, each test apart (DiffuCoder's code reward).

The code is the text's one fenced block (`code_format.fenced_code`), with the task's preamble above it. Text without
such a block, or with one that does not parse, is worth 0 and is not run. All required sets of the task count, test by
test:

* calls: every call, in one run; one that raises, hangs, sleeps or ends the process costs itself only
  (`CallTests.counts_all`), whichever call it is: each has its share of the task's time;
* assertions: each `assert` at the top level of the test code is a run of its own, with the statements that are none
  around it; test code with fewer than two is one test (`sandbox.tests.assertions_apart`);
* unittest-style tests: one test altogether.

A sandbox that failed is no verdict about the program: the sample is `LOST`, and leaves its group. Programs that are the
same, on the same tests, are judged once in a batch; a `VerdictCache` as the judge remembers them beyond it.
"""

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from unmask.data.jsonl import parse
from unmask.data.task import Task
from unmask.errors import SettingsError, TaskError
from unmask.reward.code_format import fenced_code, parses
from unmask.reward.function import LOST, NO_CODE, Judge, LogExtra, text_of
from unmask.sandbox.job import Job
from unmask.sandbox.tests import CallTests, Tests, UnitTests, assertions_apart, num_scored
from unmask.sandbox.verdict import Limits, Verdict

TEST_CPU_SECONDS, TEST_WALL_SECONDS = 2.0, 10.0

_LEAST_WALL_SECONDS = 1.0
"""What a call has at least, however many there are: less would take a busy machine's pauses for sleep."""

_WALL_OF_CPU = 3.0
"""Wall-clock seconds for each second of CPU time that a call may use by limits of its own."""


class PassFraction:
    """Between 0 and 1: tests passed / tests. Needs the column `task`."""

    __name__ = "pass_fraction"

    def __init__(
        self,
        judge: Judge,
        *,
        all_or_nothing: bool = False,
        test_cpu_seconds: float = TEST_CPU_SECONDS,
        test_wall_seconds: float = TEST_WALL_SECONDS,
    ) -> None:
        """`all_or_nothing`: 1 for all tests, else 0.

        `test_cpu_seconds` and `test_wall_seconds` are those of one call or one assertion, within the task's own limits.
        Of n calls none gets more than an n-th of those, so that those that never return leave the others theirs. Tests
        that cannot be told apart have the task's own limits. Calls that bring limits of CPU time keep those, and share
        the task's: there many that never return may end the run.
        """
        for name, seconds in {"test_cpu_seconds": test_cpu_seconds, "test_wall_seconds": test_wall_seconds}.items():
            if not 0 < seconds < math.inf:
                raise SettingsError(f"{name}={seconds} leaves no time for a test; it must be a positive, finite number")
        self._judge = judge
        self._all_or_nothing = all_or_nothing
        self._test_cpu_seconds = test_cpu_seconds
        self._test_wall_seconds = test_wall_seconds
        self._prepared: dict[Tests, list[_Run]] = {}

    def __call__(
        self,
        *,
        prompts: Any = None,
        completions: Any,
        task: Sequence[Task] | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if task is None:
            raise SettingsError(
                "the reward function pass_fraction was called without `task`; it runs a task's tests, so pass the "
                "column of tasks, one for each completion"
            )
        runs = [self.runs(each) for each in task]  # refuses tasks without tests before anything is run
        jobs: list[list[Job]] = []
        for completion, each, mine in zip(completions, task, runs, strict=True):
            code = fenced_code(text_of(completion))
            if code is None or not parses(code):
                jobs.append([])
                continue
            program = f"{each.preamble}\n{code}" if each.preamble else code
            jobs.append([Job(code=program, tests=run.tests, limits=run.limits) for run in mine])
        unique = list(dict.fromkeys(job for mine in jobs for job in mine))
        verdicts = dict(zip(unique, self._judge.judge(unique), strict=True)) if unique else {}
        found = [[verdicts[job] for job in mine] for mine in jobs]
        if log_extra is not None:
            decisive = [_decisive(each) for each in found]
            log_extra("sandbox", [verdict.status if verdict else NO_CODE for verdict in decisive])
            log_extra("verdict", [verdict.message if verdict else "no code to run" for verdict in decisive])
        return [self._reward(verdicts, mine) for verdicts, mine in zip(found, runs, strict=True)]

    def runs(self, task: Task) -> list["_Run"]:
        """The task's required tests as runs, each with the number of tests in it.

        Raises TaskError for a task without tests: every program would pass it.
        """
        if not task.required_tests:
            raise TaskError(
                f"the task {task.task_id} has no tests, so any answer would earn the same; leave it out, or give it "
                "tests (`unmask data` lists the task sets that have them)"
            )
        return [run for name in task.required_tests for run in self._of_set(task, name)]

    def _of_set(self, task: Task, name: str) -> list["_Run"]:
        tests = task.tests[name]
        if tests not in self._prepared:
            self._prepared[tests] = _prepare(tests)
        if not self._prepared[tests]:
            raise TaskError(
                f"the tests {name!r} of the task {task.task_id} are empty, so every program would pass them; leave the "
                "task out, or give it at least one call or assertion"
            )
        return [
            run.within(task.limits, cpu_seconds=self._test_cpu_seconds, wall_seconds=self._test_wall_seconds)
            for run in self._prepared[tests]
        ]

    def _reward(self, verdicts: Sequence[Verdict], runs: Sequence["_Run"]) -> float:
        if not verdicts:
            return 0.0
        if any(verdict.status == "sandbox_error" for verdict in verdicts):
            return LOST
        passed = sum(run.num_passed(verdict) for run, verdict in zip(runs, verdicts, strict=True))
        total = sum(run.num_tests for run in runs)
        return float(passed == total) if self._all_or_nothing else passed / total


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Tests that are run at once, and how many they count for."""

    tests: Tests
    num_tests: int = 1
    is_one_test: bool = False
    """Whether it is a single assertion, which has the limits of a test."""

    limits: Limits = Limits()

    def within(self, limits: Limits, *, cpu_seconds: float, wall_seconds: float) -> "_Run":
        """With a task's limits, and those of one test."""
        if isinstance(self.tests, CallTests):
            return self._of_calls(self.tests, limits, cpu_seconds=cpu_seconds, wall_seconds=wall_seconds)
        if self.is_one_test:
            cpu_seconds, wall_seconds = min(cpu_seconds, limits.cpu_seconds), min(wall_seconds, limits.wall_seconds)
            limits = replace(limits, cpu_seconds=cpu_seconds, wall_seconds=wall_seconds)
        return replace(self, limits=limits)

    def _of_calls(self, tests: CallTests, limits: Limits, *, cpu_seconds: float, wall_seconds: float) -> "_Run":
        """Each call's limits, and a run that is long enough for calls that all reach theirs.

        What the task allows is then left for loading, which happens again behind each call that ended the process.
        Calls with limits of their own (EvalPlus's, a second and more) keep them, and the task's limits of the run.
        """
        if tests.call_cpu_seconds:
            wall_seconds = max(wall_seconds, _WALL_OF_CPU * max(tests.call_cpu_seconds))
            return replace(self, tests=replace(tests, call_wall_seconds=wall_seconds), limits=limits)
        count = self.num_tests
        cpu_seconds = min(cpu_seconds, limits.cpu_seconds / count)
        wall_seconds = min(wall_seconds, max(limits.wall_seconds / count, _LEAST_WALL_SECONDS), limits.wall_seconds)
        longer = replace(
            limits,
            cpu_seconds=limits.cpu_seconds + count * cpu_seconds,
            wall_seconds=limits.wall_seconds + count * wall_seconds,
        )
        calls = replace(tests, call_cpu_seconds=(cpu_seconds,) * count, call_wall_seconds=wall_seconds)
        return replace(self, tests=calls, limits=longer)

    def num_passed(self, verdict: Verdict) -> int:
        """Only calls tell how many of them passed; everything else is one test."""
        if verdict.passed:
            return self.num_tests
        return verdict.num_tests if isinstance(self.tests, CallTests) else 0


def _prepare(tests: Tests) -> list[_Run]:
    """The runs that tell the tests of a set apart; none where it has no tests."""
    count = num_scored(tests)
    if isinstance(tests, CallTests):
        return [_Run(tests=replace(tests, counts_all=True), num_tests=count)] if count else []
    if isinstance(tests, UnitTests):
        return [_Run(tests=tests)] if count else []
    codes = assertions_apart(tests.code)
    return [_Run(tests=replace(tests, code=code), is_one_test=count > 1 or _is_one_assertion(code)) for code in codes]


def _is_one_assertion(code: str) -> bool:
    """Whether test code that is not parted is a single assertion, and not a `check(candidate)` of many."""
    return parses(code) and sum(isinstance(node, ast.Assert) for node in ast.walk(parse(code))) == 1


def _decisive(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that stands for all: a failure of ours first, then the first that did not pass."""
    lost = next((verdict for verdict in verdicts if verdict.status == "sandbox_error"), None)
    failed = next((verdict for verdict in verdicts if not verdict.passed), None)
    return lost or failed or (verdicts[0] if verdicts else None)
