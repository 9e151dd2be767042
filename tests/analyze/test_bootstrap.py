"""Means over runs and their intervals."""

import math
import random
from statistics import NormalDist, fmean, stdev

import pytest

from unmask.analyze.bootstrap import means
from unmask.errors import SettingsError

NAN = math.nan


def test_an_interval_is_near_the_normal_one_for_many_runs() -> None:
    generator = random.Random(0)
    values = [generator.random() for _ in range(400)]
    found = means({"x": values}, seed=3)["x"]
    half = NormalDist().inv_cdf(0.975) * stdev(values) / math.sqrt(400)
    assert found.value == pytest.approx(fmean(values))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=half / 8)


def test_runs_without_a_value_are_left_out_and_counted() -> None:
    found = means({"x": [1.0, NAN, 0.0], "y": [NAN, NAN, 0.5], "z": [NAN, NAN, NAN]})
    assert (found["x"].value, found["x"].count) == (0.5, 2)
    assert (found["x"].low, found["x"].high) == (0, 1)
    assert (found["y"].value, found["y"].count, math.isnan(found["y"].low)) == (0.5, 1, True)
    assert (math.isnan(found["z"].value), found["z"].count) == (True, 0)


def test_columns_are_drawn_together() -> None:
    values = [random.Random(1).random() for _ in range(20)]
    found = means({"x": values, "less": [1 - value for value in values]})
    assert found["less"].low == pytest.approx(1 - found["x"].high)


def test_the_seed_alone_decides_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"x": [float(n % 7) for n in range(30)]}
    once = means(columns, seed=1)
    assert means(columns, seed=1) == once != means(columns, seed=2)
    monkeypatch.setattr("unmask.analyze.bootstrap._CHUNK", 100)
    assert means(columns, seed=1) == once


def test_intervals_hold_the_truth_as_often_as_they_say_where_runs_of_a_task_are_alike() -> None:
    """Twenty tasks of ten runs; a task's effect is three times as wide as that of a run. Truth is zero."""
    generator = random.Random(0)
    tasks = [task for task in range(20) for _ in range(10)]
    columns = {}
    for trial in range(400):
        effects = [generator.gauss(0, 3) for _ in range(20)]
        columns[trial] = [effects[task] + generator.gauss(0, 1) for task in tasks]
    held = [mean.low <= 0 <= mean.high for mean in means(columns, clusters=tasks, resamples=500).values()]
    assert 0.88 < fmean(held) < 0.97, "a percentile bootstrap over 20 is a little short of 95 %"
    alone = [mean.low <= 0 <= mean.high for mean in means(columns, resamples=500).values()]
    assert fmean(alone) < 0.6, "runs taken for independent"


def test_a_task_is_drawn_with_all_its_runs_and_the_mean_is_over_runs() -> None:
    found = means({"x": [1.0, 1.0, 1.0, 0.0], "y": [NAN, 1.0, NAN, 0.0]}, clusters=["a", "a", "a", "b"])
    assert (found["x"].value, found["x"].count, found["x"].tasks) == (0.75, 4, 2)
    assert (found["x"].low, found["x"].high) == (0, 1)
    assert (found["y"].value, found["y"].count, found["y"].tasks) == (0.5, 2, 2)


def test_every_run_of_its_own_task_is_as_without_tasks() -> None:
    columns = {"x": [1.0, 0.0, 0.5, NAN], "y": [0.1, NAN, 0.3, 0.9]}
    ours, theirs = means(columns, clusters="abcd"), means(columns)
    for name in columns:
        assert (ours[name].low, ours[name].high) == (theirs[name].low, theirs[name].high)


def test_runs_of_one_task_have_no_interval_even_if_they_agree() -> None:
    found = means({"x": [0.5, 0.5, 0.5], "y": [0.5, 0.25, NAN]}, clusters=["a", "a", "b"])
    assert (found["x"].low, found["x"].high, found["x"].tasks) == (0.5, 0.5, 2)
    assert (math.isnan(found["y"].low), math.isnan(found["y"].high), found["y"].tasks) == (True, True, 1)
    assert found["y"].to_json() == {"mean": 0.375, "low": None, "high": None, "runs": 2, "tasks": 1}


def test_tasks_of_other_runs_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"1 tasks were named for 2 runs; name one for each run"):
        means({"x": [0.0, 1.0]}, clusters=["a"])


def test_settings_that_make_no_interval_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"level=95 is no probability strictly between 0 and 1; 0.95 is usual"):
        means({"x": [0.0, 1.0]}, level=95)
    with pytest.raises(SettingsError, match=r"resamples=0: the bootstrap draws at least once; 2000 is usual"):
        means({"x": [0.0, 1.0]}, resamples=0)
    with pytest.raises(SettingsError, match=r"different numbers of runs; give NaN where a run has no value"):
        means({"x": [0.0], "y": [0.0, 1.0]})
