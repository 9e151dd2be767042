"""Two results beside each other: which tasks only one solves, the paired test, and what cannot be compared."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from unmask.errors import TaskError
from unmask.evaluate.compare import compare
from unmask.evaluate.intervals import mcnemar
from unmask.evaluate.result import Result, summarise_cell
from unmask.evaluate.samples import Sample
from unmask.evaluate.score import Outcome


def result(passed: dict[str, Sequence[bool | None]], *, name: str = "only") -> Result:
    """None is a sample that was not judged."""
    pairs = [(task_id, i, ok) for task_id, found in passed.items() for i, ok in enumerate(found)]
    samples = [Sample(task_id=task_id, sample=i) for task_id, i, _ in pairs]
    status = {True: "pass", False: "fail", None: "sandbox_error"}
    outcomes = [Outcome(sample=i, status=status[ok]) for _, i, ok in pairs]  # type: ignore[arg-type]
    cell = summarise_cell(name, {}, samples, outcomes, ks=[1], seed=0)
    return Result(
        benchmark="toy",
        version="1",
        model="m",
        num_tasks=len(passed),
        n=len(next(iter(passed.values()))),
        seed=0,
        cells=(cell,),
        data_sha256={"toy": "ab"},
    )


A = result({"a": [True], "b": [True], "c": [False], "d": [False], "e": [True]})
B = result({"a": [True], "b": [False], "c": [True], "d": [False], "e": [False]})


def test_the_tasks_that_only_one_solves_are_named() -> None:
    comparison = compare(A, B)
    assert (comparison.better_a, comparison.better_b) == (("b", "e"), ("c",))
    assert (comparison.both, comparison.neither, comparison.num_tasks) == (1, 1, 5)
    assert comparison.difference == pytest.approx(-0.2)
    assert (comparison.pass_at_1_a, comparison.pass_at_1_b) == (0.6, 0.4)


def test_one_sample_per_task_is_mcnemars_test() -> None:
    comparison = compare(A, B)
    assert comparison.test == "McNemar, exact"
    assert comparison.p_value == mcnemar(2, 1)


def test_several_samples_are_a_permutation_test() -> None:
    first = result({"a": [True, True], "b": [True, False]})
    second = result({"a": [False, True], "b": [False, False]})
    comparison = compare(first, second)
    assert comparison.test == "sign-flip permutation"
    assert comparison.p_value == 0.5  # the least that two tasks allow
    assert comparison.difference == -0.5
    assert (comparison.both, comparison.neither) == (0, 0)
    assert comparison.better_a == ("a", "b")


def test_a_result_beside_itself_does_not_differ() -> None:
    comparison = compare(A, A)
    assert (comparison.difference, comparison.p_value, comparison.better_a, comparison.better_b) == (0.0, 1.0, (), ())
    assert comparison.interval == (0.0, 0.0)


def test_tasks_that_one_of_them_lacks_are_left_out_and_named() -> None:
    shorter = result({"a": [True], "b": [None], "c": [True]})
    comparison = compare(A, shorter)
    assert comparison.num_tasks == 2
    assert comparison.not_compared == ("b", "d", "e")


def test_the_cells_that_are_compared_are_those_that_are_quoted() -> None:
    second = result({"a": [False], "b": [False], "c": [False], "d": [False], "e": [False]}, name="other").cells[0]
    both = replace(A, cells=(second, *A.cells), registered="only")
    assert compare(both, B).cell_a == "only"
    assert compare(both, B).better_a == compare(A, B).better_a


def test_results_of_different_tasks_are_refused() -> None:
    with pytest.raises(TaskError, match="the first result is of toy, the second of other"):
        compare(A, replace(B, benchmark="other"))
    with pytest.raises(TaskError, match=r"made with different data of toy .version 1 and 2.; score both with the same"):
        compare(A, replace(B, version="2", data_sha256={"toy": "cd"}))
    with pytest.raises(TaskError, match="no judged task in common"):
        compare(A, result({"z": [True]}))
