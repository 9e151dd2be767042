"""Samples to outcomes: every program against every test set that its task requires, in the sandbox.

A sample passes when all required sets pass. A `sandbox_error` is no outcome of a program: the sample is *not judged*,
and whoever sums up leaves it out and says so. Programs that ran out of time are judged again at the end, one at a time,
so that a busy machine is not held against them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from unmask.data.task import Task
from unmask.errors import TaskError
from unmask.evaluate.samples import Sample
from unmask.sandbox.executor import Job
from unmask.sandbox.verdict import Status, Verdict

NOT_JUDGED: Status = "sandbox_error"


class Judge(Protocol):
    """What scoring needs of the sandbox (`Executor`, `VerdictCache`)."""

    def judge(self, jobs: Iterable[Job], /) -> Iterator[Verdict]:
        """The verdicts, in the order of the jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one sample fared: the status of each test set, and the first one that did not pass in words."""

    sample: int
    status: Status
    message: str = ""
    sets: Mapping[str, Status] = field(default_factory=dict)
    is_in_process: bool = False
    """Judged in the program's own process: a weaker verdict."""
    tampering: str = ""

    @property
    def passed(self) -> bool:
        """Whether all required test sets passed."""
        return self.status == "pass"

    @property
    def is_judged(self) -> bool:
        """Whether the sandbox could run it: otherwise it counts neither for nor against the program."""
        return self.status != NOT_JUDGED

    def to_json(self) -> dict[str, Any]:
        """`passed` beside the fields, for readers who want that alone; empty fields are left out."""
        record: dict[str, Any] = {
            "sample": self.sample,
            "passed": self.passed,
            "status": self.status,
            "message": self.message,
        }
        record |= {"sets": dict(self.sets), "is_in_process": self.is_in_process, "tampering": self.tampering}
        return {name: value for name, value in record.items() if value or name in ("sample", "passed")}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Outcome":
        """The inverse of `to_json`."""
        return cls(**{name: value for name, value in record.items() if name != "passed"})


def score(
    samples: Sequence[Sample],
    tasks: Iterable[Task],
    judge: Judge,
    *,
    text: Literal["program", "raw_program"] = "program",
    report: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """The outcome of each sample, in order.

    `text` says which of a sample's texts is run: the extracted program, or what the model wrote as it stands. `report`
    is called with how many samples were finished since the last call. Raises TaskError for a sample of a task without
    tests, which any program would pass.
    """
    by_id = {task.task_id: task for task in tasks}
    untested = next((s.task_id for s in samples if not by_id[s.task_id].required_tests), None)
    if untested is not None:
        raise TaskError(
            f"the task {untested} has no tests, so every program would pass it; load the benchmark with its answers, "
            "or give the task tests of its own"
        )
    plan = [(index, name) for index, s in enumerate(samples) for name in by_id[s.task_id].required_tests]

    def job(index: int, name: str) -> Job:
        task = by_id[samples[index].task_id]
        return Job(code=getattr(samples[index], text), tests=task.tests[name], limits=task.limits)

    verdicts: list[dict[str, Verdict]] = [{} for _ in samples]
    for (index, name), verdict in zip(plan, judge.judge(job(*place) for place in plan), strict=True):
        verdicts[index][name] = verdict
        if report is not None and len(verdicts[index]) == len(by_id[samples[index].task_id].required_tests):
            report(1)
    for index, name in plan:
        if verdicts[index][name].status == "timeout":
            (verdicts[index][name],) = judge.judge([job(index, name)])
    return [_outcome(sample, given) for sample, given in zip(samples, verdicts, strict=True)]


def _outcome(sample: Sample, verdicts: Mapping[str, Verdict]) -> Outcome:
    """A sample that could not be judged on one set is not judged at all: its task would count half."""
    failed = [(name, verdict) for name, verdict in verdicts.items() if not verdict.passed]
    lost = [(name, verdict) for name, verdict in failed if verdict.status == NOT_JUDGED]
    name, decisive = (lost or failed or [("", Verdict(status="pass"))])[0]
    where = f"{name}: " if len(verdicts) > 1 and name else ""
    return Outcome(
        sample=sample.sample,
        status=decisive.status,
        message=where + (decisive.message or decisive.tampering) if failed else "",
        sets={name: verdict.status for name, verdict in verdicts.items()},
        is_in_process=any(verdict.is_in_process for verdict in verdicts.values()),
        tampering=next((verdict.tampering for verdict in verdicts.values() if verdict.tampering), ""),
    )
