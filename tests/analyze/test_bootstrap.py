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


def test_settings_that_make_no_interval_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"level=95 is no probability strictly between 0 and 1; 0.95 is usual"):
        means({"x": [0.0, 1.0]}, level=95)
    with pytest.raises(SettingsError, match=r"resamples=0: the bootstrap draws at least once; 2000 is usual"):
        means({"x": [0.0, 1.0]}, resamples=0)
    with pytest.raises(SettingsError, match=r"different numbers of runs; give NaN where a run has no value"):
        means({"x": [0.0], "y": [0.0, 1.0]})
