"""AR-ness against its definition, on the worked example of the reference and on random orders."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.ar_ness import Reading, global_ar_ness, local_ar_ness
from unmask.errors import SettingsError, TrajectoryError
from unmask.trajectory import Commit, Step, Trajectory

EXAMPLE = [1, 2, 5, 6, 7, 3, 8, 4]
ORDERS = st.integers(1, 9).flatmap(lambda n: st.permutations(range(n)))


def slow_local(order: Sequence[int], k: int, reading: Reading) -> float:
    hits = 0
    for t in range(k, len(order)):
        before = [order[t - back] for back in range(1, k + 1)]
        wanted = [order[t] - back for back in range(1, k + 1)]
        hits += before == wanted if reading == "sequence" else set(before) == set(wanted)
    return hits / (len(order) - k)


def slow_global(order: Sequence[int], k: int) -> float:
    return sum(position in sorted(order[t:])[:k] for t, position in enumerate(order)) / len(order)


@pytest.mark.parametrize(("k", "local_hits", "global_hits"), [(1, 3, 4), (2, 1, 5), (3, 0, 8), (4, 0, 8)])
def test_the_worked_example_of_the_definition(k: int, local_hits: int, global_hits: int) -> None:
    assert local_ar_ness(EXAMPLE, k) == pytest.approx(local_hits / (8 - k))
    assert local_ar_ness(EXAMPLE, k, reading="set") == pytest.approx(local_hits / (8 - k))
    assert global_ar_ness(EXAMPLE, k) == pytest.approx(global_hits / 8)


def test_the_two_readings_differ_where_the_predecessors_were_filled_out_of_order() -> None:
    assert local_ar_ness([2, 1, 3, 4], 2) == 0
    assert local_ar_ness([2, 1, 3, 4], 2, reading="set") == 1 / 2


@given(ORDERS, st.integers(1, 5), st.sampled_from(["sequence", "set"]))
def test_both_equal_the_definition_written_out(order: list[int], k: int, reading: Reading) -> None:
    if len(order) > k:
        assert local_ar_ness(order, k, reading=reading) == pytest.approx(slow_local(order, k, reading))
    assert global_ar_ness(order, k) == pytest.approx(slow_global(order, k))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_left_to_right_has_one_and_right_to_left_has_none_of_its_steps_continue(k: int) -> None:
    assert local_ar_ness(range(4, 20), k) == local_ar_ness(range(4, 20), k, reading="set") == 1
    assert global_ar_ness(range(4, 20), k) == 1
    assert local_ar_ness(range(20, 4, -1), k) == 0
    assert global_ar_ness(range(20, 4, -1), k) == k / 16


def test_a_run_too_short_for_the_question_has_no_answer() -> None:
    assert math.isnan(local_ar_ness([3, 4], 2))
    assert math.isnan(local_ar_ness([], 1))
    assert math.isnan(global_ar_ness([], 1))
    assert global_ar_ness([7]) == 1


def test_tokens_of_one_step_count_as_filled_from_left_to_right() -> None:
    steps = [Step(commits=[Commit(0, place, 5, 1.0, 0.0) for place in places]) for places in ([3, 1], [2, 4])]
    order = Trajectory(initial_ids=[None] * 5, steps=steps).order()
    assert order == [1, 3, 2, 4]
    assert global_ar_ness(order) == 3 / 4


def test_questions_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"AR-ness@0 was asked for; k counts positions, so it must be at least 1"):
        local_ar_ness(EXAMPLE, 0)
    with pytest.raises(SettingsError, match=r"'sets' is no reading of local AR-ness; did you mean set\?"):
        local_ar_ness(EXAMPLE, reading="sets")  # type: ignore[arg-type]
    with pytest.raises(TrajectoryError, match=r"position 2 is filled twice; .*leave out what was masked again"):
        global_ar_ness([1, 2, 3, 2])
