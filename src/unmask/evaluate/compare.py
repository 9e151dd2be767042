"""Two results on the same tasks: which tasks only one of them solves, and whether the difference could be chance.

With one sample per task the test is McNemar's, exact: only tasks that one run passes and the other fails count. With
several it is a permutation test that flips the signs of the tasks' differences in pass@1. Compared are the cells that
the results quote.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from unmask.errors import TaskError
from unmask.evaluate.intervals import compare_paired
from unmask.evaluate.pass_at_k import pass_at_k
from unmask.evaluate.result import CellResult, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """B against A. `difference` is pass@1 of B less that of A, `interval` its 95 % bootstrap interval over tasks.

    `better_a` and `better_b` are the tasks on which that run passes more of its samples: with one sample each, those
    that only it solves.
    """

    benchmark: str
    model_a: str
    model_b: str
    cell_a: str
    cell_b: str
    pass_at_1_a: float
    pass_at_1_b: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    test: Literal["McNemar, exact", "sign-flip permutation"]
    num_tasks: int
    both: int
    """Tasks of which all samples of both runs pass."""
    neither: int
    """Tasks of which none does."""
    better_a: tuple[str, ...]
    better_b: tuple[str, ...]
    not_compared: tuple[str, ...] = ()
    """Tasks that one of them has no judged sample of."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def compare(a: Result, b: Result, *, seed: int = 0) -> Comparison:
    """Raises TaskError for results that were not made on the same tasks."""
    _check(a, b)
    first, second = _passed(a.main), _passed(b.main)
    shared = [task_id for task_id in first if task_id in second]
    if not shared:
        raise TaskError("the two results have no judged task in common; score both whole, then compare them")
    first, second = {task_id: first[task_id] for task_id in shared}, {task_id: second[task_id] for task_id in shared}
    test = compare_paired(first, second, seed=seed)
    return Comparison(
        benchmark=a.benchmark,
        model_a=a.model,
        model_b=b.model,
        cell_a=a.main.name,
        cell_b=b.main.name,
        pass_at_1_a=pass_at_k(first, 1),
        pass_at_1_b=pass_at_k(second, 1),
        difference=test.difference,
        interval=(test.interval.low, test.interval.high),
        p_value=test.p_value,
        test="McNemar, exact" if test.method == "mcnemar" else "sign-flip permutation",
        num_tasks=test.num_tasks,
        both=sum(all(first[task_id]) and all(second[task_id]) for task_id in shared),
        neither=sum(not any(first[task_id]) and not any(second[task_id]) for task_id in shared),
        better_a=test.only_first,
        better_b=test.only_second,
        not_compared=tuple(dict.fromkeys(t for t in [*a.main.tasks, *b.main.tasks] if t not in first)),
    )


def _check(a: Result, b: Result) -> None:
    if a.benchmark != b.benchmark:
        raise TaskError(
            f"the first result is of {a.benchmark}, the second of {b.benchmark}; only results on the same tasks can be "
            "compared"
        )
    if dict(a.data_sha256) != dict(b.data_sha256):
        raise TaskError(
            f"the results were made with different data of {a.benchmark} (version {a.version or 'unknown'} and "
            f"{b.version or 'unknown'}); score both with the same `--version`"
        )


def _passed(cell: CellResult) -> dict[str, list[bool]]:
    """Whether each judged sample passed, of each task that has any."""
    judged = {task_id: [o.passed for o in outcomes if o.is_judged] for task_id, outcomes in cell.tasks.items()}
    return {task_id: passed for task_id, passed in judged.items() if passed}
