"""The learning rate's factor over a run, against the formulas written out."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import SettingsError
from unmask.train.schedule import Schedule, lr_factor, ramp


def test_cosine_is_half_a_cosine_after_the_warm_up() -> None:
    run = Schedule(kind="cosine", total_steps=100, warmup_steps=20, final_share=0.1)
    for step in range(20):
        assert lr_factor(run, step) == (step + 1) / 20
    for step in range(20, 100):
        progress = (step + 1 - 20) / 80
        assert lr_factor(run, step) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def test_wsd_holds_the_peak_and_decays_over_its_last_share() -> None:
    run = Schedule(kind="wsd", total_steps=100, warmup_steps=10, final_share=0.0, decay_share=0.2)
    factors = [lr_factor(run, step) for step in range(100)]
    assert factors[9:80] == [1.0] * 71
    assert factors[80:] == pytest.approx([1 - number / 20 for number in range(1, 21)])


@given(
    st.sampled_from(["constant", "cosine", "wsd"]),
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_every_schedule_learns_from_the_first_step_reaches_its_peak_and_ends_at_its_share(
    kind: str, total: int, final: float, decay: float, warm: float
) -> None:
    warmup = int(warm * (total - 1))
    run = Schedule(kind=kind, total_steps=total, warmup_steps=warmup, final_share=final, decay_share=decay)  # type: ignore[arg-type]
    factors = [lr_factor(run, step) for step in range(total)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
    assert factors[0] > 0 or final == 0
    assert all(one <= other for one, other in itertools.pairwise(factors[:warmup]))
    assert all(one >= other - 1e-12 for one, other in itertools.pairwise(factors[warmup:]))
    assert factors[-1] == pytest.approx(1.0 if kind == "constant" else final)
    assert lr_factor(run, total + 7) == factors[-1]


def test_annealing_opens_at_its_last_step() -> None:
    assert [ramp(step, 10_000) for step in (0, 4_999, 9_999, 20_000)] == [1e-4, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "cosin"}, "the schedule 'cosin' is not one; did you mean cosine?"),
        ({"total_steps": 0}, "total_steps is 0; a run has at least 1 step"),
        ({"total_steps": 5, "warmup_steps": 6}, "warmup_steps is 6 in a run of 5 steps; give 0 to 5"),
        ({"final_share": 1.5}, "final_share is 1.5; it is a share of the peak"),
        ({"decay_share": 0}, "decay_share is 0; it is a share of the run"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Schedule(**settings)  # type: ignore[arg-type]
    assert words in str(caught.value)
