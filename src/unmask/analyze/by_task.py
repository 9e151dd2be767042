"""The measures of a setting, task by task: what two settings are compared by, since they were run on the same tasks.

A task's value is the mean over its runs; a run that has no value (an empty answer has no order) is in no mean, and a
task without any such run has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from statistics import fmean

from unmask.analyze.measure import Conventions, measure
from unmask.analyze.random_order import random_global, random_local
from unmask.analyze.sink import by_distance
from unmask.trajectory import Trajectory

Values = Mapping[str, float]
"""Task → value."""

NEAR, BETWEEN, FAR = "near", "between", "far"
ZONES = {NEAR: (1, 4), BETWEEN: (5, 16), FAR: (17, None)}
"""Distances from the prompt over which first-step confidence is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByTask:
    """What the runs of one setting gave on each task. AR-ness is @1, of the answer, ties from left to right."""

    local: Values = field(default_factory=dict)
    global_: Values = field(default_factory=dict)
    random_local: Values = field(default_factory=dict)
    """What a random order in steps of the same sizes has on average."""

    random_global: Values = field(default_factory=dict)
    confidence: Mapping[str, Values] = field(default_factory=dict)
    """In the first step, by zone (`ZONES`)."""

    passed: Mapping[int, Values] = field(default_factory=dict)
    """pass@k by k."""


def by_task(runs: Mapping[str, Sequence[Trajectory]], *, passed: Mapping[int, Values] | None = None) -> ByTask:
    """Measure the runs of each task; `passed` comes from the evaluation that drew them.

    >>> from unmask.trajectory import Commit, Step
    >>> steps = [Step(commits=[Commit(0, place, 7, 0.9, 0.1)], seen=[(1, 0.8, 0.1)]) for place in (1, 2, 3)]
    >>> found = by_task({"a": [Trajectory(initial_ids=[5, None, None, None], steps=steps)]})
    >>> found.local, found.random_local, found.confidence["near"]
    ({'a': 1.0}, {'a': 0.3333333333333333}, {'a': 0.8})
    """
    columns: dict[str, dict[str, float]] = {name: {} for name in ("local", "global_", "random_local", "random_global")}
    zones: dict[str, dict[str, float]] = {zone: {} for zone in ZONES}
    for task, some in runs.items():
        found = [measure(run, local_ks=(1,), global_ks=(1,), conventions=Conventions()) for run in some]
        shapes = [[one.shape] for one in found]
        for name, values in (
            ("local", [one.local[1] for one in found]),
            ("global_", [one.global_[1] for one in found]),
            ("random_local", [random_local(shape, 1) for shape in shapes]),
            ("random_global", [random_global(shape, 1) for shape in shapes]),
        ):
            _keep(columns[name], task, values)
        looks = [by_distance(run) for run in some]
        for zone, (first, last) in ZONES.items():
            shown = [
                [sure for distance, (sure, _) in look.items() if distance >= first and distance <= (last or distance)]
                for look in looks
            ]
            _keep(zones[zone], task, [fmean(values) if values else nan for values in shown])
    return ByTask(**columns, confidence=zones, passed=passed or {})


def _keep(column: dict[str, float], task: str, values: Sequence[float]) -> None:
    known = [value for value in values if not isnan(value)]
    if known:
        column[task] = fmean(known)
