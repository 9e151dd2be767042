"""Several reward functions to one number a sample: the weighted sum of those that judged it, as TRL adds them.

Unlike there, a sample that a function declares `LOST`, or that none judges, gets no number at all and leaves its group:
a sandbox that fails must not look like an answer that fails. What a function returns is checked; a batch that is lost
whole is an error, since training on nothing would look like progress.
"""

import copy
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.errors import SandboxError, SettingsError, UnmaskError
from unmask.reward.function import NO_CODE, RewardFunction, name_of, shown

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """What a batch earned."""

    total_N: list[float | None]
    """Weighted sum for each sample; None: it was lost, or no function judged it, and it leaves its group."""

    by_function: dict[str, list[float | None]]
    """Without weights; None where a function did not judge, or lost, a sample."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How the samples ended in the sandbox: its statuses, and `no_code` where nothing was run."""

    num_lost: int = 0
    """Samples that a function declared lost."""

    extra: dict[str, list[Any]] = field(default_factory=dict)
    """What functions logged of each sample (`log_extra`), e.g. `sandbox` and `verdict`: status and message."""

    metrics: dict[str, float] = field(default_factory=dict)
    """What functions logged of the batch (`log_metric`)."""


def combine(
    functions: Sequence[tuple[RewardFunction, float]],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    *,
    trainer_state: Any = None,
) -> Rewards:
    """The rewards of a batch by `(function, weight)` pairs.

    Raises SettingsError for a function that raises, or returns something else than a number or None for each sample;
    SandboxError when every sample was lost. Errors of our own tree pass through as they are.
    """
    count = len(completions)
    names = _checked_names(functions)
    for column, given in {"prompts": prompts, **columns}.items():
        if len(given) != count:
            raise SettingsError(f"the column {column} has {len(given)} entries for {count} completions; give as many")
    logged = _Logged()
    answers: dict[str, list[float | None]] = {name: [] for name in names}
    for name, (function, _) in zip(names, functions, strict=True) if count else ():
        arguments = {column: list(entries) for column, entries in columns.items()} | {
            # copies: a function that changes its arguments changes nothing for the next one
            "prompts": copy.deepcopy(list(prompts)),
            "completions": copy.deepcopy(list(completions)),
            "trainer_state": trainer_state,
            "log_extra": logged.log_extra,
            "log_metric": logged.log_metric,
        }
        answers[name] = _ask(name, function, arguments, count=count)
    rows = list(zip(*answers.values(), strict=True))
    is_lost = [any(value is not None and math.isnan(value) for value in row) for row in rows]
    _report_losses(is_lost, logged.extra)
    weights = [weight for _, weight in functions]
    return Rewards(
        total_N=[None if lost else _total(row, weights) for lost, row in zip(is_lost, rows, strict=True)],
        by_function={name: [None if v is None or math.isnan(v) else v for v in answers[name]] for name in names},
        outcomes=Counter(str(status) for status in logged.extra.get("sandbox", [])),
        num_lost=sum(is_lost),
        extra=logged.extra,
        metrics=logged.metrics,
    )


def _checked_names(functions: Sequence[tuple[RewardFunction, float]]) -> list[str]:
    names = [name_of(function) for function, _ in functions]
    if not names:
        raise SettingsError("no reward function was given, so no answer would be worth anything; give at least one")
    for name, (_, weight) in zip(names, functions, strict=True):
        if names.count(name) > 1:
            raise SettingsError(
                f"two reward functions are called {name}, and their rewards are logged by name; rename one of them"
            )
        if not math.isfinite(weight):
            raise SettingsError(f"the weight of the reward function {name} is {weight}; it must be a finite number")
    return names


class _Logged:
    """What the functions log on the way."""

    def __init__(self) -> None:
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, float] = {}

    def log_extra(self, name: str, entries: Sequence[Any]) -> None:
        self.extra[name] = list(entries)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics[name] = float(value)


def _ask(name: str, function: RewardFunction, arguments: Mapping[str, Any], *, count: int) -> list[float | None]:
    """What one function returns, checked."""
    try:
        returned: Any = function(**arguments)
        entries = _entries(returned)
    except UnmaskError:
        raise
    except Exception as error:
        raise SettingsError(_raised(name, error, arguments)) from error
    return _checked(name, returned, entries, count)


def _entries(returned: Any) -> list[Any] | None:
    """What a function returned as a list: any iterable, tensors included, but no text and no mapping."""
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        return None
    return list(returned)


def _checked(name: str, returned: Any, entries: list[Any] | None, count: int) -> list[float | None]:
    rule = f"it must return a list with a number, or None, for each of the {count} completions"
    if entries is None:
        raise SettingsError(f"the reward function {name} returned {shown(returned)}; {rule}")
    if len(entries) != count:
        raise SettingsError(
            f"the reward function {name} returned {len(entries)} rewards for {count} completions; {rule} (None for one "
            "that it does not judge)"
        )
    return [_number(name, place, entry, rule) for place, entry in enumerate(entries)]


def _number(name: str, place: int, entry: Any, rule: str) -> float | None:
    if entry is None:
        return None
    try:
        number = None if isinstance(entry, str | bytes) else float(entry)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of more than one number
        number = None
    if number is None or math.isinf(number):
        raise SettingsError(
            f"the reward function {name} returned {shown(entry)} for completion {place}; {rule}, and the numbers finite"
        )
    return number


def _raised(name: str, error: Exception, passed: Iterable[str]) -> str:
    hint = "repair it, or leave it out of the reward's functions"
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        hint = f"a reward function is called with {', '.join(passed)}, all by name: end its arguments with **columns"
    return f"the reward function {name} raised {type(error).__name__}: {str(error)[:300]}; {hint}"


def _total(row: Sequence[float | None], weights: Sequence[float]) -> float | None:
    judged = [weight * value for weight, value in zip(weights, row, strict=True) if value is not None]
    return sum(judged) if judged else None


def _report_losses(is_lost: Sequence[bool], extra: Mapping[str, list[Any]]) -> None:
    """A warning for a few, an error for all; answers without code, which nobody runs, say nothing of the sandbox."""
    if not any(is_lost):
        return
    reasons = extra.get("verdict", [])
    reason = next(
        (str(said) for lost, said in zip(is_lost, reasons, strict=False) if lost and said), "no reason was given"
    )
    statuses = extra.get("sandbox", [])
    is_run = [status != NO_CODE for status in statuses] if len(statuses) == len(is_lost) else [True] * len(is_lost)
    if all(lost for lost, run in zip(is_lost, is_run, strict=True) if run):
        which = "" if all(is_run) else " that have code"
        raise SandboxError(
            f"none of the {sum(is_run)} answers of a batch{which} could be judged ({reason}), and there is nothing to "
            "learn from; see what `unmask doctor` says of the sandbox, then resume the run: no step was lost"
        )
    _log.warning("%d of %d answers could not be judged and leave their groups (%s)", sum(is_lost), len(is_lost), reason)
