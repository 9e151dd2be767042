"""Means over runs, with their percentile bootstrap intervals.

The runs are taken as a sample of such runs: drawn anew with replacement, thousands of times, each draw gives a mean,
and the interval holds the middle 95 % of those means. All columns of a table are drawn together, so that a run is in
all its means or in none. With few runs such intervals are a little short; with one run there is none (NaN), and where
all runs agree it has no width.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TypeVar

from unmask.errors import SettingsError
from unmask.seeds import derive_seed

LEVEL = 0.95
RESAMPLES = 2000
_CHUNK = 1 << 22
"""Numbers drawn at once, so that memory stays small."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean over `count` runs, those that had a value; `low` and `high` are its interval."""

    value: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, float | int | None]:
        """Its fields under the names `mean`, `low`, `high` and `runs`; null for NaN.

        >>> Mean(value=0.5, low=float("nan"), high=float("nan"), count=1).to_json()
        {'mean': 0.5, 'low': None, 'high': None, 'runs': 1}
        """
        names = {"mean": self.value, "low": self.low, "high": self.high}
        return {**{name: None if isnan(value) else value for name, value in names.items()}, "runs": self.count}


def means(
    columns: Mapping[K, Sequence[float]], *, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> dict[K, Mean]:
    """The mean of each column over its runs. A column has one number per run, NaN where that run has none.

    >>> means({"a": [0.0, 1.0, float("nan")], "b": [0.5, 0.5, 0.5]}, seed=1)["b"]
    Mean(value=0.5, low=0.5, high=0.5, count=3)
    """
    if not 0 < level < 1:
        raise SettingsError(f"level={level} is no probability strictly between 0 and 1; 0.95 is usual")
    if resamples < 1:
        raise SettingsError(f"resamples={resamples}: the bootstrap draws at least once; {RESAMPLES} is usual")
    if len({len(values) for values in columns.values()}) > 1:
        raise SettingsError("the columns have different numbers of runs; give NaN where a run has no value")
    counts = {key: sum(not isnan(value) for value in values) for key, values in columns.items()}
    many = {key: values for key, values in columns.items() if counts[key] > 1}
    intervals = dict(zip(many, _intervals(list(many.values()), seed, level, resamples), strict=True))
    nan = float("nan")
    out = {}
    for key, values in columns.items():
        low, high = intervals.get(key, (nan, nan))
        total = sum(value for value in values if not isnan(value))
        value = total / counts[key] if counts[key] else nan
        out[key] = Mean(value=value, low=low, high=high, count=counts[key])
    return out


def _intervals(
    columns: Sequence[Sequence[float]], seed: int, level: float, resamples: int
) -> list[tuple[float, float]]:
    if not columns:
        return []
    import numpy

    values_NC = numpy.asarray(columns, dtype=numpy.float64).T
    is_known_NC = ~numpy.isnan(values_NC)
    values_NC = numpy.where(is_known_NC, values_NC, 0.0)
    generator = numpy.random.default_rng(derive_seed(seed, "bootstrap over runs"))
    num_runs = len(values_NC)
    rows = max(1, _CHUNK // num_runs)
    chunks = []
    for done in range(0, resamples, rows):
        size = min(rows, resamples - done)
        weights_RN = generator.multinomial(num_runs, numpy.full(num_runs, 1 / num_runs), size=size).astype(
            numpy.float64
        )
        with numpy.errstate(invalid="ignore"):  # a draw without any run that has a value: NaN, not counted below
            chunks.append((weights_RN @ values_NC) / (weights_RN @ is_known_NC.astype(float)))
    means_RC = numpy.concatenate(chunks)
    low_C, high_C = numpy.nanquantile(means_RC, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(low), float(high)) for low, high in zip(low_C, high_C, strict=True)]
