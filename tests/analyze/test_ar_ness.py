"""AR-ness against its definition, on the worked example of the reference, closed forms, and random orders."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise, permutations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.analyze.ar_ness import (
    ArNessMeter,
    Over,
    Reading,
    global_ar_ness,
    global_curve,
    local_ar_ness,
    local_curve,
    pairwise_ar_ness,
)
from unmask.analyze.measure import measure
from unmask.errors import SettingsError, TrajectoryError
from unmask.trajectory import Commit, Step, Trajectory

EXAMPLE = [1, 2, 5, 6, 7, 3, 8, 4]
ORDERS = st.integers(1, 9).flatmap(lambda n: st.permutations(range(n)))


STEPS = ORDERS.flatmap(
    lambda order: st.lists(st.integers(1, 4), min_size=len(order), max_size=len(order)).map(
        lambda sizes: [step for step in cut(order, sizes) if step]
    )
)
"""Runs that fill several positions per step."""


def cut(order: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    starts = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    return [list(order[low:high]) for low, high in pairwise(starts)]


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
    assert local_ar_ness(EXAMPLE, k, over="all") == pytest.approx(local_hits / 8)
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
@pytest.mark.parametrize("reading", ["sequence", "set"])
def test_left_to_right_has_one_and_right_to_left_has_none_of_its_steps_continue(k: int, reading: Reading) -> None:
    assert local_ar_ness(range(4, 20), k, reading=reading) == 1
    assert local_ar_ness(range(4, 20), k, reading=reading, over="all") == (16 - k) / 16
    assert global_ar_ness(range(4, 20), k) == 1
    assert local_ar_ness(range(20, 4, -1), k, reading=reading) == 0
    assert global_ar_ness(range(20, 4, -1), k) == k / 16


def local_of_a_random_order(n: int, k: int, reading: Reading) -> Fraction:
    """n - k of the n! / (n - k - 1)! sequences of k + 1 positions continue; as sets, k! times as many."""
    favourable = (n - k) * (math.factorial(k) if reading == "set" else 1)
    return Fraction(favourable, math.perm(n, k + 1))


def global_of_a_random_order(n: int, k: int) -> Fraction:
    """With m positions open, one of the k leftmost is taken with probability min(k, m) / m."""
    return sum((Fraction(min(k, m), m) for m in range(1, n + 1)), Fraction()) / n


@pytest.mark.parametrize("k", [1, 2, 3])
def test_all_orders_of_five_have_the_mean_of_the_closed_form(k: int) -> None:
    orders = list(permutations(range(5)))
    for reading in ("sequence", "set"):
        found = fmean(local_ar_ness(order, k, reading=reading) for order in orders)
        assert found == pytest.approx(float(local_of_a_random_order(5, k, reading)))
    assert fmean(global_ar_ness(order, k) for order in orders) == pytest.approx(float(global_of_a_random_order(5, k)))


def test_random_orders_come_near_the_closed_form() -> None:
    generator = random.Random(0)
    orders = [generator.sample(range(64), 64) for _ in range(400)]
    assert fmean(local_ar_ness(order) for order in orders) == pytest.approx(1 / 64, abs=0.003)
    assert fmean(local_ar_ness(order, 2, reading="set") for order in orders) == pytest.approx(
        float(local_of_a_random_order(64, 2, "set")), abs=5e-4
    )
    for k in (1, 4):
        expected = float(global_of_a_random_order(64, k))
        assert fmean(global_ar_ness(order, k) for order in orders) == pytest.approx(expected, abs=0.01)


@given(ORDERS, st.sampled_from(["sequence", "set"]), st.sampled_from(["defined", "all"]))
def test_curves_are_the_single_numbers_and_stay_between_0_and_1(order: list[int], reading: Reading, over: Over) -> None:
    ks = range(1, 11)
    local, global_ = local_curve(order, ks, reading=reading, over=over), global_curve(order, ks)
    for k in ks:
        assert local[k] == pytest.approx(local_ar_ness(order, k, reading=reading, over=over), nan_ok=True)
        assert global_[k] == global_ar_ness(order, k)
        assert math.isnan(local[k]) == (len(order) <= k)
    assert all(0 <= value <= 1 for value in (*local.values(), *global_.values()) if not math.isnan(value))


@given(ORDERS)
def test_local_hits_do_not_rise_and_global_does_not_fall_with_k(order: list[int]) -> None:
    local = [local_ar_ness(order, k, over="all") for k in range(1, len(order))]
    global_ = [global_ar_ness(order, k) for k in range(1, len(order) + 1)]
    assert local == sorted(local, reverse=True)
    assert global_ == sorted(global_)
    assert global_[-1] == 1


@given(st.lists(ORDERS, min_size=1, max_size=4), st.integers(1, 4), st.sampled_from(["sequence", "set"]))
def test_local_hits_of_runs_far_from_each_other_add_up(orders: list[list[int]], k: int, reading: Reading) -> None:
    far = [1000 * number + position for number, order in enumerate(orders) for position in order]
    apart = [local_ar_ness(order, k, reading=reading, over="all") * len(order) for order in orders]
    together = local_ar_ness(far, k, reading=reading, over="all") * len(far)
    assert math.isnan(together) == (len(far) <= k)
    if not math.isnan(together):
        assert together == pytest.approx(sum(hits for hits in apart if not math.isnan(hits)))


@given(ORDERS, st.integers(1, 4), st.integers(0, 50), st.lists(st.integers(1, 9), min_size=9, max_size=9))
def test_global_depends_on_the_ranks_of_positions_and_local_on_their_distances(
    order: list[int], k: int, shift: int, gaps: list[int]
) -> None:
    shifted = [position + shift for position in order]
    spread = [sum(gaps[: position + 1]) for position in order]
    assert global_ar_ness(spread, k) == global_ar_ness(shifted, k) == global_ar_ness(order, k)
    assert local_ar_ness(shifted, k) == pytest.approx(local_ar_ness(order, k), nan_ok=True)


@given(ORDERS, ORDERS, st.integers(1, 4))
def test_one_run_behind_another_has_the_weighted_mean_of_their_global_ar_ness(
    first: list[int], second: list[int], k: int
) -> None:
    both = first + [position + len(first) for position in second]
    parts = len(first) * global_ar_ness(first, k) + len(second) * global_ar_ness(second, k)
    assert global_ar_ness(both, k) == pytest.approx(parts / len(both))


# Several positions per step


@given(STEPS)
def test_pairs_are_counted_as_written_out(steps: list[list[int]]) -> None:
    at = {position: number for number, step in enumerate(steps) for position in step}
    pairs = [(low, high) for low, high in combinations(sorted(at), 2) if at[low] != at[high]]
    near = [(low, high) for low, high in pairs if high == low + 1]
    for found, counted in zip(pairwise_ar_ness(steps), (near, pairs), strict=True):
        expected = fmean(at[low] < at[high] for low, high in counted) if counted else math.nan
        assert found == pytest.approx(expected, nan_ok=True)


def test_pairs_of_one_step_say_nothing() -> None:
    assert all(map(math.isnan, pairwise_ar_ness([[1, 2, 3]])))
    assert pairwise_ar_ness([[1], [2], [3]]) == (1, 1)
    assert pairwise_ar_ness([[3], [2], [1]]) == (0, 0)
    assert pairwise_ar_ness([[1, 5], [2]]) == (1, 0.5)


@given(STEPS.filter(lambda steps: sum(map(len, steps)) <= 6))
def test_left_to_right_within_a_step_bounds_global_and_nearly_local(steps: list[list[int]]) -> None:
    bound = [position for step in steps for position in sorted(step)]
    given_order = [position for step in steps for position in step]
    assert global_ar_ness(given_order) <= global_ar_ness(bound)
    if len(bound) > 1:
        lost = (len(steps) - 1) / (len(bound) - 1)
        assert local_ar_ness(given_order) <= local_ar_ness(bound) + lost + 1e-12


@given(STEPS, st.integers(1, 4))
def test_the_meter_has_the_shares_of_every_beginning_of_a_run(steps: list[list[int]], k: int) -> None:
    order = [position for step in steps for position in sorted(step)]
    is_global = [position in sorted(order[t:])[:k] for t, position in enumerate(order)]
    meter = ArNessMeter(order)
    assert math.isnan(meter.local(k))
    assert math.isnan(meter.global_(k))
    for step in steps:
        meter.add(step)
        filled = order[: meter.num_filled]
        assert meter.local(k) == pytest.approx(local_ar_ness(filled, k), nan_ok=True)
        assert meter.global_(k) == pytest.approx(fmean(is_global[: len(filled)]))
    assert meter.global_(k) == pytest.approx(global_ar_ness(order, k))


def test_a_position_masked_again_is_open_again_for_the_meter() -> None:
    meter = ArNessMeter(range(3))
    meter.add([0])
    meter.add([2], remasked=[0])  # 0 and 1 are open left of it
    assert meter.global_(1) == 1 / 2
    meter.add([0])
    assert (meter.num_filled, meter.global_(1)) == (3, 2 / 3)


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


@given(STEPS, st.integers(0, 3))
def test_the_meter_has_what_an_unfinished_run_is_measured_to_have(steps: list[list[int]], done: int) -> None:
    places = [3 * place for step in steps for place in step]  # each a hole of its own
    meter = ArNessMeter(places)
    for step in steps[:done]:
        meter.add(3 * place for place in step)
    row = [None if place in places else 5 for place in range(max(places) + 1)]
    recorded = [Step(commits=[Commit(0, 3 * place, 7, 0.5, 0.1) for place in step]) for step in steps[:done]]
    found = measure(Trajectory(initial_ids=row, steps=recorded))
    for k in (1, 2):
        assert meter.local(k) == pytest.approx(found.local[k], nan_ok=True)
        assert meter.global_(k) == pytest.approx(found.global_[k], nan_ok=True)


def test_a_given_place_that_is_masked_again_is_a_place_for_the_meter() -> None:
    meter = ArNessMeter([1, 3])
    meter.add([1], remasked=[2])
    meter.add([3])
    assert (meter.local(), meter.global_()) == (0, 1 / 2)
    meter.add([2])
    assert (meter.local(), meter.global_()) == (0, 2 / 3)


def test_questions_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"AR-ness@0 was asked for; k counts positions, so it must be at least 1"):
        local_ar_ness(EXAMPLE, 0)
    with pytest.raises(SettingsError, match=r"'sets' is no reading of local AR-ness; did you mean set\?"):
        local_ar_ness(EXAMPLE, reading="sets")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"'T' is no denominator of local AR-ness; known: defined, all"):
        local_ar_ness(EXAMPLE, over="T")  # type: ignore[arg-type]
    with pytest.raises(TrajectoryError, match=r"position 4 was filled but is not open; .*masked at the start"):
        ArNessMeter([1, 2]).add([4])
    with pytest.raises(TrajectoryError, match=r"position 1 is filled twice"):
        pairwise_ar_ness([[1], [1]])
    with pytest.raises(TrajectoryError, match=r"position 2 is filled twice; .*leave out what was masked again"):
        global_ar_ness([1, 2, 3, 2])
    with pytest.raises(TrajectoryError, match=r"position 2 is filled and still open; .*masked in the end"):
        global_ar_ness([3, 2], still_open=[1, 2])
