"""Certainty of the first step by distance from the given text."""

import json
import math

import pytest

from unmask.analyze.sink import by_distance, sink
from unmask.errors import TrajectoryError
from unmask.trajectory import Step, Trajectory


def run(initial_ids: list[int | None], confidences: dict[int, float], **step: list[tuple[int, int]]) -> Trajectory:
    seen = [(position, confidence, 10 * confidence) for position, confidence in confidences.items()]
    return Trajectory(initial_ids=initial_ids, steps=[Step(seen=seen, **step), Step()])  # type: ignore[arg-type]


def test_the_first_place_behind_the_prompt_has_distance_one() -> None:
    assert by_distance(run([5, 6, None, None], {2: 0.9, 3: 0.2})) == {1: (0.9, 9.0), 2: (0.2, 2.0)}


def test_the_holes_of_an_infill_count_from_the_text_left_of_each_and_are_averaged() -> None:
    t = run([None, 5, None, None, 6, None], {0: 0.1, 2: 0.5, 3: 0.2, 5: 0.9})
    assert by_distance(t) == {1: (pytest.approx(0.5), pytest.approx(5.0)), 2: (0.2, 2.0)}


def test_places_count_in_the_row_as_the_first_step_resized_it() -> None:
    assert by_distance(run([5, None], {1: 0.9, 2: 0.2}, resized=[(1, 1)])) == {1: (0.9, 9.0), 2: (0.2, 2.0)}


def test_the_curve_is_a_mean_over_runs_that_says_how_many_had_each_distance() -> None:
    runs = [run([5, None], {1: 0.9}), run([5, None, None], {1: 0.7, 2: 0.2}), Trajectory(initial_ids=[5, None])]
    found = sink(runs)
    assert [(point.distance, point.confidence.count) for point in found.points] == [(1, 2), (2, 1)]
    assert found.points[0].confidence.value == pytest.approx(0.8)
    assert (found.points[0].confidence.low, found.points[0].confidence.high) == pytest.approx((0.7, 0.9))
    assert math.isnan(found.points[1].entropy.low)
    assert (found.num_runs, found.num_without) == (2, 1)
    line = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert line["points"][1] == {
        "distance": 2,
        "confidence": {"mean": 0.2, "low": None, "high": None, "runs": 1, "tasks": 1},
        "entropy": {"mean": 2.0, "low": None, "high": None, "runs": 1, "tasks": 1},
    }


def test_runs_of_one_task_alone_have_no_interval_and_two_tasks_do() -> None:
    same = [run([5, None], {1: confidence}) for confidence in (0.9, 0.1, 0.5)]
    (point,) = sink(same).points
    assert (point.confidence.count, point.confidence.tasks, math.isnan(point.confidence.low)) == (3, 1, True)
    (point,) = sink([*same, run([6, None], {1: 0.7})]).points
    assert (point.confidence.count, point.confidence.tasks) == (4, 2)
    assert (point.confidence.low, point.confidence.high) == pytest.approx((0.5, 0.7))


def test_runs_that_did_not_record_their_first_look_are_refused() -> None:
    with pytest.raises(TrajectoryError, match=r"none of the 1 runs says .* generate them again with `--trajectory`"):
        sink([Trajectory(initial_ids=[5, None], steps=[Step()])])
