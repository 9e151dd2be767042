"""The result of an evaluation: what was asked, what came out, how sure that is, and what it cost.

A `Result` is everything that `result.json` holds. Its top figures are those of one cell: the one that was registered
before the run, else the first. The best cell of a grid is named beside it and marked as what it is, a selection on the
data that it is judged by. What time it took stands apart under `timing`: two runs with the same protocol give results
that differ there, and in what the protocol notes without comparing it (`folder.NOTED`), and nowhere else.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unmask.atomic import beside
from unmask.errors import SandboxError, SettingsError, TaskError
from unmask.evaluate.intervals import bootstrap_interval
from unmask.evaluate.pass_at_k import task_estimates
from unmask.evaluate.samples import Sample
from unmask.evaluate.score import Outcome

FORMAT = 1
FILE_NAME = "result.json"
USUAL_K = (1, 10, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a sample took on average, and how the answers ended. None where the samples do not say."""

    num_forwards: float | None = None
    """Network calls per sample."""
    tokens_per_forward: float | None = None
    num_tokens: float | None = None
    """Tokens per answer."""
    wasted_tokens: float | None = None
    """Tokens settled behind the answer's end, per sample."""
    empty_share: float = 0.0
    """Answers without any text."""
    truncated_share: float | None = None
    """Answers that used up their room."""
    ended_share: float | None = None
    """Answers that the model ended itself."""
    cut_share: float | None = None
    """Answers that were ended at a stop string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """One cell of the grid. Scores lie between 0 and 1; their keys are k."""

    name: str
    settings: Mapping[str, Any]
    num_samples: int
    num_tasks_judged: int
    pass_at_k: Mapping[str, float]
    """All required test sets passed."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % bootstrap over tasks."""
    sets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Each test set on its own."""
    raw_pass_at_k: Mapping[str, float | None] | None = None
    """The same with the model's text as it stands, no extraction; None for a k for which too few were judged."""
    raw_not_judged: int = 0
    """Samples whose text as it stands the sandbox lost."""
    statuses: Mapping[str, int] = field(default_factory=dict)
    """How many samples ended how."""
    cost: Cost = Cost()
    tasks: Mapping[str, tuple[Outcome, ...]] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """pass@k for the smallest k."""
        return next(iter(self.pass_at_k.values()))

    @property
    def interval(self) -> tuple[float, float]:
        """That of `score`."""
        return next(iter(self.intervals.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run on one benchmark."""

    benchmark: str
    version: str
    model: str
    num_tasks: int
    n: int
    """Samples per task."""
    seed: int
    cells: tuple[CellResult, ...]
    registered: str | None = None
    """Name of the cell that was registered before the run."""
    sandbox: Mapping[str, Any] = field(default_factory=dict)
    """Back end, guarantees, interpreter."""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Everything that the samples depend on, as `run.json` has it."""
    notes: tuple[str, ...] = ()
    first_prompt: str = ""
    first_outputs: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of unmask and of torch."""
    timing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Per cell: seconds, tokens_per_second."""

    @property
    def main(self) -> CellResult:
        """The cell to quote: the registered one, else the first."""
        return next((cell for cell in self.cells if cell.name == self.registered), self.cells[0])

    @property
    def best(self) -> CellResult:
        """The highest score; of equal ones the quoted cell's."""
        return max(self.cells, key=lambda cell: (cell.score, cell is self.main))

    @property
    def not_judged(self) -> list[tuple[str, str, Outcome]]:
        """(cell, task, outcome) of the samples that the sandbox lost."""
        return [
            (cell.name, task_id, outcome)
            for cell in self.cells
            for task_id, outcomes in cell.tasks.items()
            for outcome in outcomes
            if not outcome.is_judged
        ]

    def to_json(self, *, tasks: bool = True) -> dict[str, Any]:
        """One object; `tasks` False leaves out the outcome of every sample."""
        main = self.main
        record: dict[str, Any] = {
            "unmask_result": FORMAT,
            "benchmark": self.benchmark,
            "version": self.version,
            "model": self.model,
            "num_tasks": self.num_tasks,
            "n": self.n,
            "cell": main.name,
            "pass_at_k": dict(main.pass_at_k),
            "interval": list(main.interval),
            "settings": dict(main.settings),
            "registered": self.registered,
        }
        if len(self.cells) > 1:
            record["best"] = {
                "cell": self.best.name,
                "pass_at_k": dict(self.best.pass_at_k),
                "note": selection_note(self),
            }
        record |= {
            "seed": self.seed,
            "sandbox": dict(self.sandbox),
            "data_sha256": dict(self.data_sha256),
            "preset": dict(self.preset),
            "protocol": dict(self.protocol),
            "notes": list(self.notes),
            "cells": [_cell_to_json(cell, tasks=tasks) for cell in self.cells],
            "not_judged": [
                {"cell": cell, "task_id": task_id, "sample": outcome.sample, "message": outcome.message}
                for cell, task_id, outcome in self.not_judged
            ],
            "first_prompt": self.first_prompt,
            "first_outputs": list(self.first_outputs),
            "versions": dict(self.versions),
            "timing": {name: dict(times) for name, times in self.timing.items()},
        }
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Result":
        """The inverse of `to_json`; figures that follow from others are not read."""
        derived = {"unmask_result", "cell", "pass_at_k", "interval", "settings", "best", "not_judged", "cells"}
        fields = {name: value for name, value in record.items() if name not in derived}
        for name in ("notes", "first_outputs"):
            fields[name] = tuple(fields[name])
        return cls(**fields, cells=tuple(_cell_from_json(cell) for cell in record["cells"]))


def selection_note(result: Result) -> str:
    """What must stand beside the best cell of a grid.

    "best of 6 cells, selected on this data"
    """
    return f"best of {len(result.cells)} cells, selected on this data"


def summarise_cell(
    name: str,
    settings: Mapping[str, Any],
    samples: Sequence[Sample],
    outcomes: Sequence[Outcome],
    *,
    ks: Sequence[int],
    seed: int,
    raw_outcomes: Sequence[Outcome] | None = None,
) -> CellResult:
    """The figures of one cell. Samples that were not judged are left out of every score, and a task with fewer than k
    judged ones out of pass@k. Raises SandboxError where nothing is left."""
    tasks = _by_task(samples, outcomes)
    values = {k: _task_values(tasks, k) for k in ks}
    if not all(values.values()):
        lost = next((outcome.message for outcome in outcomes if not outcome.is_judged), "")
        raise SandboxError(
            f"no task has {max(k for k in ks if not values[k])} samples that the sandbox could judge, so there is no "
            f"score: {lost}; mend the sandbox (`unmask doctor`) and run the command again, the samples are kept"
        )
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.sets))
    raw = None
    if raw_outcomes is not None:
        raw_tasks = _by_task(samples, raw_outcomes)
        raw = {str(k): _mean(found) if (found := _task_values(raw_tasks, k)) else None for k in ks}
    statuses: dict[str, int] = {}
    for outcome in outcomes:
        statuses[outcome.status] = statuses.get(outcome.status, 0) + 1
    return CellResult(
        name=name,
        settings=settings,
        num_samples=len(samples),
        num_tasks_judged=len(values[min(ks)]),
        pass_at_k={str(k): _mean(values[k]) for k in ks},
        intervals={str(k): _interval(values[k], seed) for k in ks},
        sets={name: {str(k): _mean(_task_values(tasks, k, of=name)) for k in ks} for name in names},
        raw_pass_at_k=raw,
        raw_not_judged=sum(not outcome.is_judged for outcome in raw_outcomes or ()),
        statuses=dict(sorted(statuses.items(), key=lambda item: (item[0] != "pass", -item[1], item[0]))),
        cost=_cost(samples),
        tasks={task_id: tuple(found) for task_id, found in tasks.items()},
    )


def usual_ks(n: int) -> list[int]:
    """The k that the field reports, as far as `n` samples allow.

    >>> usual_ks(20)
    [1, 10]
    """
    return [k for k in USUAL_K if k <= n]


def parse_ks(text: str) -> list[int]:
    """`1,10` as numbers, in order. Raises SettingsError for what is no count."""
    try:
        ks = sorted({int(item) for item in text.split(",")})
    except ValueError:
        ks = [0]
    if ks[0] < 1:
        raise SettingsError(f"--k {text} is not a list of counts from 1 up; give one or more, as in `--k 1,10`")
    return ks


def check_ks(ks: Sequence[int], n: int) -> None:
    """Raise SettingsError for a k that is larger than the number of samples per task."""
    if max(ks) > n:
        raise SettingsError(
            f"--k {max(ks)} needs {max(ks)} samples of each task, and there are {n}; draw more (`-n {max(ks)}`), or "
            "give a smaller --k"
        )


def save_result(result: Result, folder: Path) -> Path:
    """Write `result.json` into a folder, in one step, and return its path."""
    path = folder / FILE_NAME
    with beside(path) as part:
        part.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    return path


def load_result(path: Path) -> Result:
    """Read a result file, or the one in a run's folder. Raises TaskError for anything else."""
    file = path / FILE_NAME if path.is_dir() else path
    advice = "give the folder of a finished `unmask evaluate` run, or its result.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"{file} cannot be read ({error.strerror}); {advice}") from None
    except ValueError as error:
        raise TaskError(f"{file} is not JSON ({error}); {advice}") from None
    if not isinstance(record, dict) or "unmask_result" not in record:
        raise TaskError(f"{file} is JSON, but not a result of `unmask evaluate`; {advice}")
    if record["unmask_result"] != FORMAT:
        raise TaskError(
            f"{file} has the result format {record['unmask_result']}, and this version reads {FORMAT}; run the "
            "evaluation again, or read it with the version that wrote it"
        )
    try:
        return Result.from_json(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise TaskError(f"{file} is damaged: {error}; {advice}") from None


def _by_task(samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    tasks: dict[str, list[Outcome]] = {}
    for sample, outcome in zip(samples, outcomes, strict=True):
        tasks.setdefault(sample.task_id, []).append(outcome)
    return tasks


def _task_values(tasks: Mapping[str, Sequence[Outcome]], k: int, *, of: str | None = None) -> list[float]:
    """pass@k of each task that has k judged samples; `of` one test set, or of all that are required."""
    passed = {
        task_id: [o.passed if of is None else o.sets.get(of) == "pass" for o in found if o.is_judged]
        for task_id, found in tasks.items()
    }
    enough = {task_id: found for task_id, found in passed.items() if len(found) >= k}
    return list(task_estimates(enough, k).values()) if enough else []


def _interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    interval = bootstrap_interval(values, seed=seed)
    return interval.low, interval.high


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _cost(samples: Sequence[Sample]) -> Cost:
    empty = sum(not sample.completion.strip() for sample in samples) / len(samples)
    told = [sample for sample in samples if sample.num_forwards]
    if not told:
        return Cost(empty_share=empty)
    forwards = sum(sample.num_forwards for sample in told)
    tokens = sum(sample.num_tokens for sample in told)
    reasons = [sample.finish_reason for sample in told if sample.finish_reason]

    def share(reason: str) -> float | None:
        return reasons.count(reason) / len(reasons) if reasons else None

    return Cost(
        num_forwards=forwards / len(told),
        tokens_per_forward=tokens / forwards,
        num_tokens=tokens / len(told),
        wasted_tokens=sum(sample.wasted_tokens for sample in told) / len(told),
        empty_share=empty,
        truncated_share=share("length"),
        ended_share=share("stop"),
        cut_share=share("stop_string"),
    )


def _cell_to_json(cell: CellResult, *, tasks: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": cell.name,
        "settings": dict(cell.settings),
        "num_samples": cell.num_samples,
        "num_tasks_judged": cell.num_tasks_judged,
        "pass_at_k": dict(cell.pass_at_k),
        "intervals": {k: list(interval) for k, interval in cell.intervals.items()},
        "sets": {name: dict(scores) for name, scores in cell.sets.items()},
        "raw_pass_at_k": None if cell.raw_pass_at_k is None else dict(cell.raw_pass_at_k),
        "raw_not_judged": cell.raw_not_judged,
        "statuses": dict(cell.statuses),
        "cost": asdict(cell.cost),
    }
    if tasks:
        record["tasks"] = {task_id: [outcome.to_json() for outcome in found] for task_id, found in cell.tasks.items()}
    return record


def _cell_from_json(record: Mapping[str, Any]) -> CellResult:
    tasks = {
        task_id: tuple(Outcome.from_json(outcome) for outcome in found)
        for task_id, found in record.get("tasks", {}).items()
    }
    intervals = {k: (low, high) for k, (low, high) in record["intervals"].items()}
    return CellResult(**{**record, "cost": Cost(**record["cost"]), "tasks": tasks, "intervals": intervals})
