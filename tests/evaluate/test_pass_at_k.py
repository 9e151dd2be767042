"""The estimate of pass@k against its definition: all ways to draw k of n samples."""

import itertools
import math
import random

import pytest

from unmask.errors import SettingsError
from unmask.evaluate.pass_at_k import estimate, pass_at_k, task_estimates


@pytest.mark.parametrize("n", range(1, 9))
def test_the_estimate_is_the_share_of_draws_with_a_pass(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations([i < c for i in range(n)], k))
        assert estimate(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_the_product_is_exact_for_many_samples() -> None:
    for n, c, k in [(1000, 3, 100), (1000, 999, 2), (5000, 1, 1), (200, 150, 10)]:
        exact = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert estimate(n, c, k) == pytest.approx(exact, abs=1e-12)


def test_the_estimates_equal_evalplus() -> None:
    evalplus = pytest.importorskip("evalplus.eval", reason="evalplus is not installed")
    for n in (1, 2, 7, 20, 200):
        for k in {1, min(n, 10), n}:
            theirs = evalplus.estimate_pass_at_k(n, list(range(n + 1)), k)
            assert [estimate(n, c, k) for c in range(n + 1)] == pytest.approx(list(theirs), abs=1e-12)


def test_the_score_is_the_mean_over_tasks_with_any_number_of_samples() -> None:
    outcomes = {"a": [True], "b": [True, False, False, False], "c": [False, False]}
    assert task_estimates(outcomes, 1) == {"a": 1.0, "b": 0.25, "c": 0.0}
    assert pass_at_k(outcomes, 1) == pytest.approx(1.25 / 3)


def test_the_order_of_samples_does_not_matter() -> None:
    outcomes = [True] * 3 + [False] * 7
    shuffled = random.Random(0).sample(outcomes, 10)
    assert pass_at_k({"a": outcomes}, 4) == pass_at_k({"a": shuffled}, 4)


def test_k_above_n_names_the_task_and_both_numbers() -> None:
    with pytest.raises(SettingsError, match=r"pass@10 needs 10 samples of each task, and b has 2; .* k up to 2"):
        pass_at_k({"a": [True] * 10, "b": [True] * 2}, 10)
    with pytest.raises(SettingsError, match=r"and b has 0; generate or judge"):
        pass_at_k({"a": [True], "b": []}, 1)
    with pytest.raises(SettingsError, match="pass@3 needs 3 samples of a task, and there are 2"):
        estimate(2, 1, 3)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [(3, 4, 1, "4 of 3 samples cannot pass"), (3, -1, 1, "-1 of 3"), (3, 1, 0, "pass@0 does not exist")],
)
def test_numbers_that_make_no_sense_are_refused(n: int, c: int, k: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        estimate(n, c, k)


def test_no_tasks_have_no_score() -> None:
    with pytest.raises(SettingsError, match="pass@1 of no tasks does not exist"):
        pass_at_k({}, 1)
