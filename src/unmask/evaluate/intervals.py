"""How sure a score is, and whether two runs on the same tasks differ.

A benchmark's tasks are taken as a sample of such tasks: the interval is the percentile bootstrap over tasks of the mean
of their pass@k (Efron 1979). With 164 tasks and one sample each it spans about ±7 points, so most published differences
lie inside it; two runs on the same tasks are compared in pairs, which sees smaller ones. Samples of one task are not
drawn anew: with n samples the interval is about these n.

Chance, in the paired tests: were the runs alike, either could have had the other's outcome on any task, so the sign of
each task's difference is a fair coin (Fisher 1935). For one sample per task this is McNemar's exact test. N tasks that
differ give no p-value below 2^(1-N), however clear the difference looks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unmask.errors import SettingsError
from unmask.evaluate.pass_at_k import task_estimates
from unmask.seeds import derive_seed

if TYPE_CHECKING:
    import numpy

RESAMPLES = 10_000
LEVEL = 0.95
MAX_EXACT = 16
"""With up to so many tasks that differ, all flips of their signs are counted; with more, `resamples` are drawn."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval: of ranges found like this one, about a share `level` hold the true value.

    The bootstrap's are a little short of that with few tasks.
    """

    low: float
    high: float
    level: float = LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """Whether a second run scores otherwise than a first on the same tasks."""

    difference: float
    """pass@k of the second run minus that of the first."""

    interval: Interval
    """Bootstrap interval of the difference."""

    p_value: float
    """Two-sided: how often chance alone gives a difference as large."""

    method: Literal["mcnemar", "permutation"]
    num_tasks: int
    only_first: tuple[str, ...]
    """Tasks on which the first run scores higher."""

    only_second: tuple[str, ...]
    """Tasks on which the second run scores higher."""


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """The interval of the mean of the tasks' values (each a task's pass@k).

    Where all values are 0, or all are 1, resampling sees no spread; there the exact binomial limit for as many
    failures, or passes, in a row is given: 1 - a^(1/N) with a = (1 - level) / 2.

    >>> bootstrap_interval([0.0] * 4 + [1.0] * 4, seed=1)
    Interval(low=0.125, high=0.875, level=0.95)
    """
    if not values:
        raise SettingsError("an interval needs the values of at least one task; none were given")
    _check(level, resamples)
    tail = (1 - level) / 2
    edge = 1 - tail ** (1 / len(values))
    if all(value == 0 for value in values):
        return Interval(low=0.0, high=edge, level=level)
    if all(value == 1 for value in values):
        return Interval(low=1 - edge, high=1.0, level=level)
    return _percentiles(_resampled_means(values, seed=seed, resamples=resamples), level)


def compare_paired(
    first: Mapping[str, Sequence[bool]],
    second: Mapping[str, Sequence[bool]],
    *,
    k: int = 1,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Compare two runs task by task; outcomes say for each task which of its samples passed.

    With one sample per task: McNemar's exact test on the tasks that only one of them passes. With more: the difference
    seen against those with the tasks' signs flipped, all of them or, with more than 16 tasks that differ, drawn ones.

    >>> first = {"a": [True], "b": [False], "c": [False], "d": [True]}
    >>> second = {"a": [True], "b": [True], "c": [True], "d": [True]}
    >>> test = compare_paired(first, second)
    >>> test.difference, test.p_value, test.only_second
    (0.5, 0.5, ('b', 'c'))
    """
    _check(level, resamples)
    if set(first) != set(second):
        alone = sorted(set(first) ^ set(second))
        raise SettingsError(
            f"the runs are on different tasks: {len(alone)} are in only one of them, such as "
            f"{', '.join(alone[:3])}; compare runs on the same benchmark, version and limit"
        )
    before, after = task_estimates(first, k), task_estimates(second, k)
    differences = {task_id: after[task_id] - before[task_id] for task_id in before}
    means = _resampled_means(list(differences.values()), seed=seed, resamples=resamples)
    difference = math.fsum(differences.values()) / len(differences)
    only_first = tuple(task_id for task_id, value in differences.items() if value < 0)
    only_second = tuple(task_id for task_id, value in differences.items() if value > 0)
    is_single = all(len(passed) == 1 for run in (first, second) for passed in run.values())
    if is_single:
        p_value = mcnemar(len(only_first), len(only_second))
    else:
        p_value = sign_flips(list(differences.values()), seed=seed, resamples=resamples)
    return PairedTest(
        difference=difference,
        interval=_percentiles(means, level),
        p_value=p_value,
        method="mcnemar" if is_single else "permutation",
        num_tasks=len(differences),
        only_first=only_first,
        only_second=only_second,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value for tasks that only one of two runs passes: a fair coin for each of them.

    >>> mcnemar(0, 5)
    0.0625
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    return 2 * sum(math.comb(total, i) for i in range(fewer + 1)) / (1 << total)


def sign_flips(differences: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """The two-sided p-value of the tasks' differences: how often flipped signs give a sum as far from zero.

    Exact for up to 16 differences that are not zero. With more, signs are drawn, and the seen ones count as one draw.

    >>> sign_flips([0.5, 0.25, 1.0, 0.0])
    0.25
    """
    import numpy

    given = numpy.asarray([value for value in differences if value], dtype=numpy.float64)
    least = abs(float(given.sum())) - 1e-9  # as large counts, also where rounding makes it a hair smaller
    if len(given) <= MAX_EXACT:
        bits = numpy.arange(1 << len(given))[:, None] >> numpy.arange(len(given)) & 1
        return float((abs((1.0 - 2.0 * bits) @ given) >= least).mean())
    generator = numpy.random.default_rng(derive_seed(seed, "sign flips"))
    rows, as_large = max(1, _CHUNK // len(given)), 0
    for done in range(0, resamples, rows):
        flips = generator.integers(2, size=(min(rows, resamples - done), len(given)))
        as_large += int((abs((1.0 - 2.0 * flips) @ given) >= least).sum())
    return (1 + as_large) / (1 + resamples)


def _resampled_means(
    values: Sequence[float], *, seed: int, resamples: int
) -> "numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]":
    """Means of `resamples` draws with replacement, a chunk at a time so that memory stays small."""
    import numpy

    generator = numpy.random.default_rng(derive_seed(seed, "bootstrap"))
    given = numpy.asarray(values, dtype=numpy.float64)
    rows = max(1, _CHUNK // len(given))
    means = [
        given[generator.integers(len(given), size=(min(rows, resamples - done), len(given)))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    return numpy.concatenate(means)


def _percentiles(means: "numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]", level: float) -> Interval:
    import numpy

    low, high = numpy.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level)


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise SettingsError(f"level={level} is no probability strictly between 0 and 1; 0.95 is usual")
    if resamples < 1:
        raise SettingsError(f"resamples={resamples}: the bootstrap draws at least once; {RESAMPLES} is usual")
