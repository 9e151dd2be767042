"""Means over runs, with their percentile bootstrap intervals over tasks.

The tasks are taken as a sample of such tasks: drawn anew with replacement, thousands of times, each with all its runs,
each draw gives a mean over runs, and the interval holds the middle 95 % of those means. Runs of one task are alike, so
that drawing them one by one would make intervals far too short. All columns of a table are drawn together: a task is in
all its means or in none. With few tasks such intervals are a little short; with one task there is none (NaN), and where
all tasks agree it has no width.
"""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, TypeVar

from unmask.errors import SettingsError
from unmask.seeds import derive_seed
from unmask.trajectory import Trajectory

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000
_CHUNK = 1 << 22
"""Numbers drawn at once, so that memory stays small."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean over `count` runs, those that had a value; `low` and `high` are its interval.

    `num_tasks` are the tasks of those runs; None where each run is of a task of its own.
    """

    value: float
    low: float
    high: float
    count: int
    num_tasks: int | None = None

    @property
    def tasks(self) -> int:
        """What the interval is over."""
        return self.count if self.num_tasks is None else self.num_tasks

    def to_json(self) -> dict[str, float | int | None]:
        """Its fields under the names `mean`, `low`, `high`, `runs` and `tasks`; null for NaN.

        >>> Mean(value=0.5, low=float("nan"), high=float("nan"), count=1).to_json()
        {'mean': 0.5, 'low': None, 'high': None, 'runs': 1, 'tasks': 1}
        """
        names = {"mean": self.value, "low": self.low, "high": self.high}
        numbers = {name: None if isnan(value) else value for name, value in names.items()}
        return {**numbers, "runs": self.count, "tasks": self.tasks}


def task_of(t: Trajectory) -> str:
    """The task that a run answers: its label, or else a digest of the row it began with.

    >>> task_of(Trajectory(initial_ids=[5, None], label="HumanEval/0"))
    'HumanEval/0'
    >>> task_of(Trajectory(initial_ids=[5, None]))
    'row:ba3e84a7ba76'
    """
    return t.label or "row:" + hashlib.sha256(json.dumps(t.initial_ids).encode()).hexdigest()[:12]


def means(
    columns: Mapping[K, Sequence[float]],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> dict[K, Mean]:
    """The mean of each column over its runs. A column has one number per run, NaN where that run has none.

    `clusters` says which task each run is of; without it, each is of its own.

    >>> means({"a": [0.0, 1.0, float("nan")], "b": [0.5, 0.5, 0.5]}, seed=1)["b"]
    Mean(value=0.5, low=0.5, high=0.5, count=3, num_tasks=None)
    >>> means({"b": [0.5, 0.5, 0.5]}, clusters=["x", "x", "x"])["b"]
    Mean(value=0.5, low=nan, high=nan, count=3, num_tasks=1)
    """
    if not 0 < level < 1:
        raise SettingsError(f"level={level} is no probability strictly between 0 and 1; 0.95 is usual")
    if resamples < 1:
        raise SettingsError(f"resamples={resamples}: the bootstrap draws at least once; {RESAMPLES} is usual")
    if not columns:
        return {}
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise SettingsError("the columns have different numbers of runs; give NaN where a run has no value")
    (num_runs,) = lengths
    if clusters is not None and len(clusters) != num_runs:
        raise SettingsError(f"{len(clusters)} tasks were named for {num_runs} runs; name one for each run")
    import numpy

    values_CN = numpy.array(list(columns.values()), dtype=numpy.float64)
    is_known_CN = ~numpy.isnan(values_CN)
    values_CN[~is_known_CN] = 0.0
    counts_C = is_known_CN.sum(axis=1)
    with numpy.errstate(invalid="ignore"):
        value_C = values_CN.sum(axis=1) / counts_C
    sums_TC, known_TC = _by_task(values_CN, clusters), _by_task(is_known_CN, clusters)
    tasks_C = (known_TC > 0).sum(axis=0)
    interval_C2 = numpy.full((len(columns), 2), float("nan"))
    if (has_many_C := tasks_C > 1).any():
        interval_C2[has_many_C] = _intervals(
            sums_TC[:, has_many_C], known_TC[:, has_many_C], seed=seed, level=level, resamples=resamples
        )
    return {
        key: Mean(
            value=float(value_C[c]),
            low=float(interval_C2[c, 0]),
            high=float(interval_C2[c, 1]),
            count=int(counts_C[c]),
            num_tasks=None if clusters is None else int(tasks_C[c]),
        )
        for c, key in enumerate(columns)
    }


def _by_task(values_CN: "NDArray[Any]", clusters: Sequence[Hashable] | None) -> "NDArray[Any]":
    """Sums over the runs of each task, `[T, C]`; tasks in the order in which they come."""
    import numpy

    if clusters is None:
        return numpy.asarray(values_CN.T, dtype=numpy.float64)
    numbers = {task: number for number, task in enumerate(dict.fromkeys(clusters))}
    sums_TC = numpy.zeros((len(numbers), len(values_CN)))
    numpy.add.at(sums_TC, [numbers[task] for task in clusters], values_CN.T)
    return sums_TC


def _intervals(
    sums_TC: "NDArray[Any]", known_TC: "NDArray[Any]", *, seed: int, level: float, resamples: int
) -> "NDArray[Any]":
    """(low, high) of each column, `[C, 2]`."""
    import numpy

    generator = numpy.random.default_rng(derive_seed(seed, "bootstrap over tasks"))
    num_tasks = len(sums_TC)
    kinds_TK, kind_C = numpy.unique(known_TC, axis=1, return_inverse=True)  # most columns miss the same runs
    rows = max(1, _CHUNK // num_tasks)
    chunks = []
    for done in range(0, resamples, rows):
        size = min(rows, resamples - done)
        chances = numpy.full(num_tasks, 1 / num_tasks)
        weights_RT = generator.multinomial(num_tasks, chances, size=size).astype(numpy.float64)
        with numpy.errstate(invalid="ignore"):  # a draw without any run that has a value: NaN, not counted below
            chunks.append((weights_RT @ sums_TC) / (weights_RT @ kinds_TK)[:, kind_C.reshape(-1)])
    means_RC = numpy.concatenate(chunks)
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    quantile = numpy.nanquantile if numpy.isnan(means_RC).any() else numpy.quantile  # the first is far slower
    return numpy.asarray(quantile(means_RC, quantiles, axis=0)).T
