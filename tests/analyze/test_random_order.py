"""The average AR-ness of a random order, against all orders written out."""

import math
import random
from collections.abc import Iterator
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.analyze.ar_ness import Over, Reading, global_ar_ness, local_ar_ness
from unmask.analyze.measure import measure
from unmask.analyze.random_order import Shape, random_global, random_local
from unmask.trajectory import Commit, Step, Trajectory

SHAPES = st.builds(
    lambda sizes, more: Shape(sizes=tuple(sizes), num_open=sum(sizes) + more),
    st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) <= 5),
    st.integers(0, 2),
)


def orders(places: frozenset[int], sizes: tuple[int, ...]) -> Iterator[tuple[list[int], frozenset[int]]]:
    """All (order, what is still open): each step takes any of the places left, and fills them from left to right."""
    if not sizes:
        yield [], places
        return
    for taken in combinations(sorted(places), sizes[0]):
        for later, still_open in orders(places - set(taken), sizes[1:]):
            yield [*taken, *later], still_open


@given(SHAPES, st.integers(1, 4), st.sampled_from(["sequence", "set"]), st.sampled_from(["defined", "all"]))
def test_the_average_is_that_over_all_orders_of_the_shape(shape: Shape, k: int, reading: Reading, over: Over) -> None:
    every = list(orders(frozenset(range(shape.num_open)), shape.sizes))
    expected = fmean(local_ar_ness(order, k, reading=reading, over=over) for order, _ in every)
    assert random_local([shape], k, reading=reading, over=over) == pytest.approx(expected, nan_ok=True)
    expected = fmean(global_ar_ness(order, k, still_open=still_open) for order, still_open in every)
    assert random_global([shape], k) == pytest.approx(expected)


@given(st.integers(1, 40), st.integers(1, 5))
def test_a_number_is_a_run_of_single_steps(n: int, k: int) -> None:
    shape = Shape(sizes=(1,) * n, num_open=n)
    assert random_local([n], k) == pytest.approx(random_local([shape], k), nan_ok=True)
    assert random_local([n], k) == pytest.approx(1 / math.perm(n, k) if n > k else math.nan, nan_ok=True)
    assert random_local([n], k, reading="set") == pytest.approx(1 / math.comb(n, k) if n > k else math.nan, nan_ok=True)
    assert random_global([n], k) == pytest.approx(sum(min(1, k / m) for m in range(1, n + 1)) / n)


def test_a_random_run_of_several_tokens_per_step_is_no_nearer_to_left_to_right_than_its_reference() -> None:
    chance = random.Random(0)
    found = []
    for _ in range(200):
        order = chance.sample(range(64), 64)
        steps = [Step(commits=[Commit(0, p, 7, 0.5, 0.1) for p in order[at : at + 16]]) for at in range(0, 64, 16)]
        found.append(measure(Trajectory(initial_ids=[None] * 64, steps=steps)))
    shape = Shape(sizes=(16,) * 4, num_open=64)
    assert {one.shape for one in found} == {shape}
    assert fmean(one.local[1] for one in found) == pytest.approx(random_local([shape], 1), abs=0.01)
    assert fmean(one.global_[1] for one in found) == pytest.approx(random_global([shape], 1), abs=0.01)
    assert random_local([shape], 1) > 10 * random_local([64], 1), "one token per step is another matter"


def test_runs_that_are_too_short_are_in_no_mean() -> None:
    assert random_local([2, Shape(sizes=(4,), num_open=4)], 2) == 1
    assert math.isnan(random_local([2], 5))
    assert math.isnan(random_global([Shape(sizes=(), num_open=3)], 1))
