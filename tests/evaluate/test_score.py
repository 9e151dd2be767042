"""Scoring: which verdicts make an outcome, what is judged again, and what is never a score."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from unmask.data.task import Task
from unmask.errors import TaskError
from unmask.evaluate.samples import Sample
from unmask.evaluate.score import Outcome, score
from unmask.sandbox.executor import Job
from unmask.sandbox.tests import CallTests
from unmask.sandbox.verdict import Status, Verdict

SETS = {"base": CallTests.of("f", [(1,)], [1]), "plus": CallTests.of("f", [(2,)], [2])}
TASK = Task(task_id="t", prompt="", entry_point="f", tests=SETS)


class Judge:
    """Says of each program what its text says: "base=fail plus=pass"; keeps what it was asked."""

    def __init__(self, **later: Status) -> None:
        self.later = later  # what it says in later calls instead
        self.calls: list[list[str]] = []

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        self.calls.append([])
        for job in jobs:
            name = next(name for name, tests in SETS.items() if tests == job.tests)
            self.calls[-1].append(f"{job.code}: {name}")
            status: Any = dict(pair.split("=") for pair in job.code.split())[name]
            status = self.later.get(status, status) if len(self.calls) > 1 else status
            yield Verdict(status=status, message="" if status == "pass" else f"{status} it was")


def sample(program: str, number: int = 0, **given: Any) -> Sample:
    return Sample(task_id="t", sample=number, program=program, **given)


def outcome_of(program: str, task: Task = TASK) -> Outcome:
    (outcome,) = score([sample(program)], [task], Judge())
    return outcome


def test_a_sample_passes_when_all_required_sets_pass() -> None:
    assert outcome_of("base=pass plus=pass").passed
    assert not outcome_of("base=pass plus=fail").passed
    assert not outcome_of("base=fail plus=pass").passed


def test_a_set_that_is_not_required_is_not_run() -> None:
    task = Task(task_id="t", prompt="", tests=SETS, required=("base",))
    assert outcome_of("base=pass", task) == Outcome(sample=0, status="pass", sets={"base": "pass"})


def test_the_first_set_that_fails_is_told_by_name() -> None:
    outcome = outcome_of("base=timeout plus=crash")
    assert (outcome.status, outcome.message) == ("timeout", "base: timeout it was")
    assert outcome.sets == {"base": "timeout", "plus": "crash"}


def test_a_sandbox_error_is_no_score_whatever_the_other_set_says() -> None:
    for program in ("base=fail plus=sandbox_error", "base=sandbox_error plus=pass"):
        outcome = outcome_of(program)
        assert not outcome.is_judged
        assert not outcome.passed
        assert "sandbox_error it was" in outcome.message


def test_what_ran_out_of_time_is_judged_again_alone_at_the_end() -> None:
    programs = ["base=timeout plus=pass", "base=pass plus=pass", "base=pass plus=timeout"]
    judge = Judge(timeout="pass")
    outcomes = score([sample(text, i) for i, text in enumerate(programs)], [TASK], judge)
    assert [outcome.passed for outcome in outcomes] == [True, True, True]
    assert len(judge.calls[0]) == 6
    assert judge.calls[1:] == [["base=timeout plus=pass: base"], ["base=pass plus=timeout: plus"]]


def test_a_second_timeout_stands() -> None:
    judge = Judge()
    (outcome,) = score([sample("base=timeout plus=pass")], [TASK], judge)
    assert outcome.status == "timeout"
    assert len(judge.calls) == 2


def test_the_raw_text_is_judged_when_asked_for() -> None:
    given = [sample("base=pass plus=pass", raw_program="base=syntax_error plus=syntax_error")]
    (outcome,) = score(given, [TASK], Judge(), text="raw_program")
    assert outcome.status == "syntax_error"


def test_a_task_without_tests_is_refused_before_anything_is_judged() -> None:
    untested, judge = Task(task_id="empty", prompt=""), Judge()
    given = [sample("base=pass plus=pass"), Sample(task_id="empty", sample=0, program="")]
    with pytest.raises(TaskError, match=r"the task empty has no tests, .* load the benchmark with its answers"):
        score(given, [TASK, untested], judge)
    assert judge.calls == []
    assert [outcome.passed for outcome in score(given[:1], [TASK, untested], judge)] == [True]


def test_progress_counts_every_sample_once() -> None:
    told: list[int] = []
    score([sample("base=pass plus=fail", i) for i in range(3)], [TASK], Judge(), report=told.append)
    assert told == [1, 1, 1]


def test_jobs_are_made_as_they_are_taken() -> None:
    class Stops:
        def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
            taken.append(next(iter(jobs)))
            raise KeyboardInterrupt
            yield

    taken: list[Job] = []
    with pytest.raises(KeyboardInterrupt):
        score([sample("base=pass plus=pass", i) for i in range(100)], [TASK], Stops())
    assert len(taken) == 1


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(sample=0, status="pass", sets={"base": "pass"}),
        Outcome(sample=3, status="fail", message="base: no", sets={"base": "fail"}, is_in_process=True, tampering="x"),
    ],
)
def test_an_outcome_survives_json(outcome: Outcome) -> None:
    record = outcome.to_json()
    assert record["passed"] is outcome.passed
    assert Outcome.from_json(record) == outcome


def test_a_weaker_verdict_and_tampering_are_kept() -> None:
    class InProcess:
        def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
            for _ in jobs:
                yield Verdict(status="fail", is_in_process=True, tampering="unittest was patched")

    (outcome,) = score([sample("x")], [TASK], InProcess())
    assert outcome.is_in_process
    assert outcome.tampering == "unittest was patched"
    assert outcome.message == "base: unittest was patched"
