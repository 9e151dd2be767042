"""The measures of one run, and their means over the runs of one model, with intervals over tasks.

Every number here depends on choices that papers make differently; they are fields of `Conventions` and stand in every
output. A run in which the asked part has no position (nothing was committed, or an end token came first) is *empty*: it
has no order, is counted apart and is in no mean. A k larger than a run allows has no value for that run (NaN).

Neighbouring positions are neighbours among the places that the run had to fill: what is given between the holes of an
infill does not part them. An unfinished run's masked places count as open.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan
from typing import Any, Protocol, TypeVar

from unmask.analyze.ar_ness import OVERS, Over, global_curve, local_curve, pairwise_ar_ness, require_known
from unmask.analyze.bootstrap import Mean, means, task_of
from unmask.analyze.order import PARTS, TIES, Part, Ties, end_position, ranked, settled, steps_of, still_open
from unmask.analyze.random_order import Shape
from unmask.errors import TrajectoryError
from unmask.trajectory import Trajectory

LOCAL_KS = tuple(range(1, 10))
GLOBAL_KS = tuple(range(1, 5))
"""The k that the paper plots."""


class MixedModels(TrajectoryError):
    """Runs of several models were given where one is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conventions:
    """What AR-ness was taken to mean. The defaults give a left-to-right run 1."""

    over: Over = "defined"
    """Local AR-ness is a share of the T - k steps that have k before them (`defined`) or of all T (`all`)."""

    ties: Ties = "position"
    """The order within a step: from left to right (`position`), or the surest first (`confidence`)."""

    part: Part = "answer"
    """Positions before the end token (`answer`), from it on (`end`), or both (`all`)."""

    def __post_init__(self) -> None:
        require_known("denominator of local AR-ness", self.over, OVERS)
        require_known("order within a step", self.ties, TIES)
        require_known("part of a run", self.part, PARTS)

    def to_json(self) -> dict[str, str]:
        """The choices in words that need no key.

        >>> Conventions().to_json()
        {'reading': 'sequence', 'denominator': 'T-k', 'ties': 'position', 'part': 'answer'}
        """
        denominator = "T-k" if self.over == "defined" else "T"
        return {"reading": "sequence", "denominator": denominator, "ties": self.ties, "part": self.part}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The measures of one run. NaN is "no value"."""

    model: str
    task: str
    """What the run answers: its label, or else a digest of the row it began with."""

    seed: int
    sample: int
    temperature: float | None
    """None where the settings do not say it."""

    conventions: Conventions
    num_tokens: int
    """Settled tokens of the answer, without its end token."""

    num_end: int
    """Settled tokens from the end token on."""

    num_measured: int
    """Settled tokens of the part that the conventions name: those that AR-ness is of."""

    shape: Shape
    """How many of them each step settled, of how many open places: what a random order is drawn for."""

    num_steps: int
    num_forwards: int
    tokens_per_forward: float
    """Answer tokens per forward pass."""

    local: Mapping[int, float]
    """Local AR-ness@k, the k positions before one being in sequence."""

    local_set: Mapping[int, float]
    """The same with the k positions in any order."""

    global_: Mapping[int, float]
    pairwise_local: float
    """Share of neighbouring positions filled from left to right, those of one step left out."""

    pairwise_global: float
    """The same of all pairs of positions."""

    end_share: float
    """Share of all settled tokens that stand from the end token on."""

    end_settled_at: float
    """Share of the run's steps that were done once its end token had settled; NaN where it has none."""

    @property
    def is_empty(self) -> bool:
        return not self.num_measured

    def to_json(self) -> dict[str, Any]:
        """One object; each measure keyed by k, as a string; null for NaN."""
        return {
            "model": self.model,
            "task": self.task,
            "seed": self.seed,
            "sample": self.sample,
            "temperature": self.temperature,
            "conventions": self.conventions.to_json(),
            "num_tokens": self.num_tokens,
            "num_end": self.num_end,
            "num_steps": self.num_steps,
            "num_forwards": self.num_forwards,
            "tokens_per_forward": _number(self.tokens_per_forward),
            "local_ar_ness": _by_k(self.local),
            "local_ar_ness_set": _by_k(self.local_set),
            "global_ar_ness": _by_k(self.global_),
            "pairwise_local_ar_ness": _number(self.pairwise_local),
            "pairwise_global_ar_ness": _number(self.pairwise_global),
            "end_share": _number(self.end_share),
            "end_settled_at": _number(self.end_settled_at),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Means over the runs of one model, with 95 % bootstrap intervals over tasks; empty runs are in none of them."""

    model: str
    temperatures: tuple[float | None, ...]
    """All that occur, rising; None where the settings do not say it."""

    conventions: Conventions
    num_runs: int
    """Runs that are not empty."""

    num_tasks: int
    """Tasks that these runs answer."""

    num_empty: int
    local: Mapping[int, Mean]
    local_set: Mapping[int, Mean]
    global_: Mapping[int, Mean]
    pairwise_local: Mean
    pairwise_global: Mean
    num_tokens: Mean
    num_forwards: Mean
    tokens_per_forward: Mean
    end_share: Mean
    end_settled_at: Mean

    def to_json(self) -> dict[str, Any]:
        """The means as plain numbers, null where no run has a value; intervals, counts of runs and of tasks beside."""
        curves = {"local_ar_ness": self.local, "local_ar_ness_set": self.local_set, "global_ar_ness": self.global_}
        numbers = {
            "pairwise_local_ar_ness": self.pairwise_local,
            "pairwise_global_ar_ness": self.pairwise_global,
            "num_tokens": self.num_tokens,
            "num_forwards": self.num_forwards,
            "tokens_per_forward": self.tokens_per_forward,
            "end_share": self.end_share,
            "end_settled_at": self.end_settled_at,
        }
        out: dict[str, Any] = {
            "model": self.model,
            "temperatures": list(self.temperatures),
            "conventions": self.conventions.to_json(),
            "num_runs": self.num_runs,
            "num_tasks": self.num_tasks,
            "num_empty": self.num_empty,
        }
        intervals: dict[str, Any] = {}
        runs: dict[str, Any] = {}
        tasks: dict[str, Any] = {}
        for name, curve in curves.items():
            out[name] = {str(k): _number(mean.value) for k, mean in curve.items()}
            intervals[name] = {str(k): [_number(mean.low), _number(mean.high)] for k, mean in curve.items()}
            runs[name] = {str(k): mean.count for k, mean in curve.items()}
            tasks[name] = {str(k): mean.tasks for k, mean in curve.items()}
        for name, mean in numbers.items():
            out[name] = _number(mean.value)
            intervals[name] = [_number(mean.low), _number(mean.high)]
            runs[name] = mean.count
            tasks[name] = mean.tasks
        return {**out, "intervals": intervals, "runs": runs, "tasks": tasks}


def measure(
    t: Trajectory,
    *,
    local_ks: Sequence[int] = LOCAL_KS,
    global_ks: Sequence[int] = GLOBAL_KS,
    conventions: Conventions = Conventions(),
) -> Measures:
    """All measures of one run, in one pass over its order for each kind of AR-ness.

    >>> from unmask.trajectory import Commit, Step
    >>> steps = [Step(commits=[Commit(0, position, 7, 0.9, 0.1)]) for position in (1, 2, 4, 3)]
    >>> found = measure(Trajectory(initial_ids=[5, None, None, None, None], steps=steps, num_forwards=4))
    >>> round(found.local[1], 3), found.global_[1], found.tokens_per_forward
    (0.333, 0.75, 1.0)
    """
    found = settled(t)
    end = end_position(found, t)
    steps = steps_of(found, t, part=conventions.part, ties=conventions.ties)
    steps, masked = ranked(steps, still_open(found, t, part=conventions.part))
    order = list(chain.from_iterable(steps))
    sizes = map(len, steps) if conventions.ties == "position" else [1] * len(order)  # the surest first is an order too
    num_end = 0 if end is None else sum(position >= end for position in found)
    num_tokens = len(found) - num_end
    nan = float("nan")
    pairwise_local, pairwise_global = pairwise_ar_ness(steps)
    return Measures(
        model=t.model,
        task=task_of(t),
        seed=t.seed,
        sample=t.sample,
        temperature=_temperature(t),
        conventions=conventions,
        num_tokens=num_tokens,
        num_end=num_end,
        num_measured=len(order),
        shape=Shape(sizes=tuple(size for size in sizes if size), num_open=len(order) + len(masked)),
        num_steps=len(t.steps),
        num_forwards=t.num_forwards,
        tokens_per_forward=num_tokens / t.num_forwards if t.num_forwards else nan,
        local=local_curve(order, local_ks, over=conventions.over),
        local_set=local_curve(order, local_ks, reading="set", over=conventions.over),
        global_=global_curve(order, global_ks, still_open=masked),
        pairwise_local=pairwise_local,
        pairwise_global=pairwise_global,
        end_share=num_end / len(found) if found else nan,
        end_settled_at=nan if end is None else (found[end][0] + 1) / len(t.steps),
    )


def summary(runs: Sequence[Measures], *, seed: int = 0) -> Summary:
    """The means over measured runs of one model, with intervals over tasks (`bootstrap.means`).

    Raises MixedModels for runs of several models, TrajectoryError where no run has anything to measure.
    """
    models = by_model(runs)
    if len(models) > 1:
        raise MixedModels(
            f"the runs are of {len(models)} models ({', '.join(sorted(map(repr, models)))}), and a mean over all is "
            "a measure of none; take the models one by one (`by_model` groups runs)"
        )
    if len({(run.conventions, tuple(run.local), tuple(run.global_)) for run in runs}) > 1:
        raise TrajectoryError("the runs were measured by different conventions or k; measure all of them alike")
    measured = [run for run in runs if not run.is_empty]
    if not measured:
        raise TrajectoryError(_nothing(runs))
    first = measured[0]
    columns: dict[tuple[str, int], list[float]] = {}
    for name in ("local", "local_set", "global_"):
        for k in getattr(first, name):
            columns[name, k] = [getattr(run, name)[k] for run in measured]
    for name in _NUMBERS:
        columns[name, 0] = [float(getattr(run, name)) for run in measured]
    tasks = [run.task for run in measured]
    found = means(columns, clusters=tasks, seed=seed)
    return Summary(
        model=first.model,
        temperatures=tuple(sorted({run.temperature for run in measured}, key=lambda t: (t is None, t or 0.0))),
        conventions=first.conventions,
        num_runs=len(measured),
        num_tasks=len(set(tasks)),
        num_empty=len(runs) - len(measured),
        local={k: found["local", k] for k in first.local},
        local_set={k: found["local_set", k] for k in first.local_set},
        global_={k: found["global_", k] for k in first.global_},
        **{name: found[name, 0] for name in _NUMBERS},
    )


class HasModel(Protocol):
    """A trajectory, its measures, or what else knows its model."""

    @property
    def model(self) -> str: ...


R = TypeVar("R", bound=HasModel)


def by_model(runs: Iterable[R]) -> dict[str, list[R]]:
    """The runs of each model, in the order in which models and runs come."""
    found: dict[str, list[R]] = {}
    for run in runs:
        found.setdefault(run.model, []).append(run)
    return found


_NUMBERS = (
    "pairwise_local",
    "pairwise_global",
    "num_tokens",
    "num_forwards",
    "tokens_per_forward",
    "end_share",
    "end_settled_at",
)


def _temperature(t: Trajectory) -> float | None:
    given = t.settings.get("temperature")
    return float(given) if isinstance(given, int | float) else None


def _nothing(runs: Sequence[Measures]) -> str:
    if not runs:
        return "no run was given; measures are of at least one"
    part = runs[0].conventions.part
    has_committed = any(run.num_tokens + run.num_end for run in runs)
    if part == "answer" and has_committed:
        why = "before an end token; the answers are empty: raise --max-new-tokens, or look at part `end`"
    elif part == "end" and has_committed:
        why = "from an end token on, since no run came to one; look at part `answer`"
    else:
        why = "; they were stopped before their first step was done: run them again"
    which = "the run" if len(runs) == 1 else f"any of the {len(runs)} runs"
    return f"nothing was settled in {which}{why if why[0] == ';' else ' ' + why}"


def _by_k(curve: Mapping[int, float]) -> dict[str, float | None]:
    return {str(k): _number(value) for k, value in curve.items()}


def _number(value: float) -> float | None:
    return None if isnan(value) else value
