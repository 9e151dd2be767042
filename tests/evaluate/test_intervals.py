"""Intervals cover the truth as often as they say, and tests find differences no more often than they say."""

import itertools
import random

import pytest

from unmask.errors import SettingsError
from unmask.evaluate.intervals import Interval, bootstrap_interval, compare_paired, mcnemar


def outcomes(rng: random.Random, chances: list[float], n: int = 1) -> dict[str, list[bool]]:
    return {f"t{i}": [rng.random() < chance for _ in range(n)] for i, chance in enumerate(chances)}


def test_the_interval_covers_the_true_score_about_as_often_as_it_says() -> None:
    rng = random.Random(1)
    covered = 0
    for run in range(300):
        values = [float(rng.random() < 0.6) for _ in range(164)]
        interval = bootstrap_interval(values, seed=run, resamples=500)
        covered += interval.low <= 0.6 <= interval.high
    assert 270 <= covered <= 297  # 285 expected; percentile intervals are a little short


def test_the_interval_of_one_sample_on_164_tasks_is_seven_points_wide_each_way() -> None:
    interval = bootstrap_interval([1.0] * 110 + [0.0] * 54)
    assert interval.low == pytest.approx(110 / 164 - 0.072, abs=0.012)
    assert interval.high == pytest.approx(110 / 164 + 0.072, abs=0.012)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = [i / 50 for i in range(50)]
    narrow, wide = bootstrap_interval(values, level=0.8), bootstrap_interval(values, level=0.99)
    assert wide.low < narrow.low < 0.49 < narrow.high < wide.high
    assert narrow.level == 0.8


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [i / 50 for i in range(50)]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_many_tasks_are_resampled_in_pieces_of_memory() -> None:
    values = [float(i % 2) for i in range(9000)]
    interval = bootstrap_interval(values, resamples=1000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / 9000**0.5, rel=0.15)


def test_scores_of_nothing_and_of_everything_have_an_interval_too() -> None:
    none, all_ = bootstrap_interval([0.0] * 164), bootstrap_interval([1.0] * 164)
    assert none == Interval(low=0.0, high=pytest.approx(0.0222, abs=1e-4))
    assert all_ == Interval(low=pytest.approx(1 - 0.0222, abs=1e-4), high=1.0)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 8), (8, 3), (5, 5), (0, 12)])
def test_mcnemar_counts_all_outcomes_at_least_as_uneven(only_first: int, only_second: int) -> None:
    total = only_first + only_second
    uneven = abs(only_first - only_second)
    as_uneven = sum(abs(2 * bits.bit_count() - total) >= uneven for bits in range(2**total))
    assert mcnemar(only_first, only_second) == pytest.approx(as_uneven / 2**total)


def test_one_sample_per_task_is_compared_by_mcnemar() -> None:
    first = {"a": [True], "b": [False], "c": [True], "d": [False], "e": [False]}
    second = {"e": [True], "d": [True], "c": [False], "b": [True], "a": [True]}
    result = compare_paired(first, second)
    assert result.method == "mcnemar"
    assert result.difference == pytest.approx(0.4)
    assert (result.only_first, result.only_second, result.num_tasks) == (("c",), ("b", "d", "e"), 5)
    assert result.p_value == mcnemar(1, 3)
    assert result.interval.low <= result.difference <= result.interval.high


def test_several_samples_per_task_are_compared_by_flipping_signs() -> None:
    rng = random.Random(2)
    chances = [rng.random() for _ in range(164)]
    first = outcomes(rng, [0.7 * chance for chance in chances], n=8)
    second = outcomes(rng, chances, n=8)
    better = compare_paired(first, second, resamples=2000)
    assert better.method == "permutation"
    assert better.p_value < 0.01
    assert 0 < better.interval.low < better.difference < better.interval.high
    back = compare_paired(second, first, resamples=2000)
    assert back.difference == -better.difference
    assert back.only_first == better.only_second
    higher_k = compare_paired(first, second, k=4, resamples=2000)
    assert higher_k.difference != better.difference


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_few_tasks_never_show_a_sure_difference(num_tasks: int) -> None:
    first = {f"t{i}": [False] * 4 for i in range(num_tasks)}
    second = {f"t{i}": [True] * 4 for i in range(num_tasks)}
    assert compare_paired(first, second).p_value == 2.0 ** (1 - num_tasks)


def test_a_few_tasks_are_compared_by_all_flips_of_their_signs() -> None:
    rng = random.Random(5)
    for num_tasks in (3, 6, 9):
        first, second = ({f"t{i}": [rng.random() < 0.5 for _ in range(3)] for i in range(num_tasks)} for _ in "ab")
        gains = [sum(second[task]) - sum(first[task]) for task in first]  # in thirds
        as_large = sum(
            abs(sum(sign * gain for sign, gain in zip(signs, gains, strict=True))) >= abs(sum(gains))
            for signs in itertools.product((-1, 1), repeat=num_tasks)
        )
        assert compare_paired(first, second).p_value == pytest.approx(as_large / 2**num_tasks, rel=1e-12)


def test_flipping_signs_is_mcnemars_test_where_the_samples_of_a_task_agree() -> None:
    for copies in (16, 30):  # all flips, and drawn ones
        result = compare_paired(
            {f"t{i}": [i >= 11] * 2 for i in range(copies)},
            {f"t{i}": [i < 11] * 2 for i in range(copies)},
            resamples=40_000,
        )
        exact = mcnemar(copies - 11, 11)
        assert result.p_value == pytest.approx(exact, rel=1e-12 if copies == 16 else 0.05)


def test_tasks_that_do_not_differ_leave_the_test_exact() -> None:
    differ = {f"t{i}": [False] * 2 for i in range(6)}
    same = {f"s{i}": [True, False] for i in range(200)}
    second = {f"t{i}": [True] * 2 for i in range(6)}
    assert compare_paired(differ | same, second | same).p_value == 2.0**-5


def test_drawn_flips_depend_on_the_seed_alone() -> None:
    rng = random.Random(6)
    first, second = outcomes(rng, [0.4] * 60, 2), outcomes(rng, [0.5] * 60, 2)
    chances = [compare_paired(first, second, seed=seed, resamples=500).p_value for seed in (1, 1, 2)]
    assert chances[0] == chances[1] != chances[2]
    assert all(0.001 < chance < 1 for chance in chances)


@pytest.mark.parametrize("n", [1, 4])
def test_equal_models_are_told_apart_no_more_often_than_the_level_says(n: int) -> None:
    rng = random.Random(3)
    chances = [rng.random() for _ in range(100)]
    found = 0
    for run in range(200):
        result = compare_paired(outcomes(rng, chances, n), outcomes(rng, chances, n), seed=run, resamples=300)
        found += result.p_value < 0.05
    assert found <= 20  # 10 expected at most


def test_a_run_does_not_differ_from_itself() -> None:
    for n in (1, 3):
        run = outcomes(random.Random(4), [0.5] * 30, n)
        result = compare_paired(run, run)
        assert (result.difference, result.p_value) == (0.0, 1.0)


def test_runs_on_different_tasks_are_refused() -> None:
    with pytest.raises(SettingsError, match="the runs are on different tasks: 2 are in only one of them, such as a, c"):
        compare_paired({"a": [True], "b": [True]}, {"b": [True], "c": [True]})


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least one task"):
        bootstrap_interval([])
    with pytest.raises(SettingsError, match=r"level=95 is no probability"):
        bootstrap_interval([1.0, 0.0], level=95)
    with pytest.raises(SettingsError, match="resamples=0: the bootstrap draws at least once"):
        bootstrap_interval([1.0, 0.0], resamples=0)
