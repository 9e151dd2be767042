"""The entropy sink: how sure a model is in its first step, by distance from the prompt (DiffuCoder, section 4.2).

With everything masked, confidence is very high right behind the prompt and falls to a flat floor: an L. The numbers are
those of `Step.seen` of a run's first step, taken before anything was committed.

The distance of a place is counted from the nearest given token left of it: the first open place behind a prompt has 1,
and so has the first of each hole of an infill. Where nothing is given on the left, it is counted from the row's start.
A distance that a run has several times (an infill's holes) is averaged within the run first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmask.analyze.bootstrap import Mean, means, task_of
from unmask.errors import TrajectoryError
from unmask.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkPoint:
    """What the runs had at one distance, with 95 % bootstrap intervals over tasks; entropy in nats."""

    distance: int
    confidence: Mean
    entropy: Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """The curve, by rising distance, of `num_runs` runs; `num_without` more did not record their first step's view."""

    points: tuple[SinkPoint, ...]
    num_runs: int
    num_without: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; null where there is none."""
        return {
            "num_runs": self.num_runs,
            "num_without": self.num_without,
            "points": [
                {
                    "distance": point.distance,
                    "confidence": point.confidence.to_json(),
                    "entropy": point.entropy.to_json(),
                }
                for point in self.points
            ],
        }


def sink(runs: Sequence[Trajectory], *, seed: int = 0) -> Sink:
    """Confidence and entropy of the first step by distance, averaged over runs, with intervals over tasks.

    >>> from unmask.trajectory import Step
    >>> run = Trajectory(initial_ids=[5, None, None], steps=[Step(seen=[(1, 0.9, 0.1), (2, 0.2, 2.0)])])
    >>> [(point.distance, point.confidence.value) for point in sink([run]).points]
    [(1, 0.9), (2, 0.2)]
    """
    seen = [by_distance(run) for run in runs]
    known = [look for look in seen if look]
    tasks = [task_of(run) for run, look in zip(runs, seen, strict=True) if look]
    if not known:
        raise TrajectoryError(
            f"none of the {len(runs)} runs says what the network had for each place in its first step, and the entropy "
            "sink is about nothing else; generate them again with `--trajectory`: newer files say it"
        )
    nan = float("nan")
    distances = sorted({distance for run in known for distance in run})
    columns = {
        (distance, which): [run[distance][which] if distance in run else nan for run in known]
        for distance in distances
        for which in (0, 1)
    }
    found = means(columns, clusters=tasks, seed=seed)
    points = [SinkPoint(distance=d, confidence=found[d, 0], entropy=found[d, 1]) for d in distances]
    return Sink(points=tuple(points), num_runs=len(known), num_without=len(runs) - len(known))


def by_distance(t: Trajectory) -> Mapping[int, tuple[float, float]]:
    """One run's (confidence, entropy) at each distance; empty where the run did not record it."""
    if not t.steps or not t.steps[0].seen:
        return {}
    ids = list(t.initial_ids)
    for position, delta in t.steps[0].resized:  # done before the network is asked
        ids[position : position + max(-delta, 0)] = [None] * max(delta, 0)
    last_given, distances = -1, []
    for position, token in enumerate(ids):
        last_given = last_given if token is None else position
        distances.append(position - last_given)
    sums: dict[int, tuple[float, float, int]] = {}
    for position, confidence, entropy in t.steps[0].seen:
        c, h, count = sums.get(distances[position], (0.0, 0.0, 0))
        sums[distances[position]] = c + confidence, h + entropy, count + 1
    return {distance: (min(c / count, 1.0), h / count) for distance, (c, h, count) in sums.items()}  # rounded sums
