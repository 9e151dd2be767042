"""The stopwatch of a run."""

import pytest

from unmask.train.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_the_seconds_of_steps_count() -> None:
    clock = Clock()
    pace = Pace(total_steps=10, tokens_per_step=600, flops_per_token=50.0, peak=1000.0, clock=clock)
    for _ in range(2):
        clock.now += 3.0
        pace.step_done()
        clock.now += 1000.0  # an evaluation, a checkpoint
        pace.go_on()
    assert pace.read(2) == pytest.approx({"tokens_per_second": 200.0, "mfu": 10.0, "eta_seconds": 24.0})


def test_a_reading_covers_the_steps_since_the_last_one() -> None:
    clock = Clock()
    pace = Pace(total_steps=4, tokens_per_step=100, flops_per_token=1.0, peak=1.0, clock=clock)
    for seconds, rate in ((4.0, 25.0), (2.0, 50.0)):
        clock.now += seconds
        pace.step_done()
        assert pace.read(1)["tokens_per_second"] == rate
        pace.go_on()


def test_the_last_step_leaves_no_time_and_no_step_divides_by_nothing() -> None:
    pace = Pace(total_steps=4, tokens_per_step=100, flops_per_token=1.0, peak=1.0, clock=Clock())
    assert pace.read(4)["eta_seconds"] == 0


def test_without_a_peak_no_share_of_it_is_told() -> None:
    pace = Pace(total_steps=4, tokens_per_step=100, clock=Clock())
    assert pace.read(4).keys() == {"tokens_per_second", "eta_seconds"}
