"""Which reward functions a run uses, with their weights; and how they are found by name.

Weights are written behind the name, so that the whole is one setting: `pass_fraction*2.0,code_format*0.5` is the
paper's r = 2.0 r_code + 0.5 r_fmt (DiffuCoder, `rewards.py`). A user's own function is `file.py:function`, or
`package.module:function`, with a weight or without (1). Its signature is in `function.py`. What is named may also be an
object with state, such as a reward model: see `model.py`.

A file is loaded once for all functions that are named in it. A resume compares the file, not what the file reads (a
reward model's weights): that is the user's to keep.
"""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from unmask.errors import SettingsError, did_you_mean
from unmask.reward.code_format import CodeFormat
from unmask.reward.function import Judge, RewardFunction
from unmask.reward.length import Length
from unmask.reward.pass_fraction import TEST_CPU_SECONDS, TEST_WALL_SECONDS, PassFraction

BUILT_IN = ("pass_fraction", "code_format", "length")


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """What an answer earns."""

    functions: tuple[str, ...] = ("pass_fraction*2.0", "code_format*0.5")
    """Names with weights: `pass_fraction`, `code_format`, `length`, `file.py:function`, `module:function`; a function,
    or a callable object (a reward model)."""

    all_or_nothing: bool = False
    """pass_fraction: 1 for an answer that passes every test, 0 for any other."""

    test_cpu_seconds: float = TEST_CPU_SECONDS
    """pass_fraction: CPU time of one test, within the task's own limits (of n calls each has an n-th of those)."""

    test_wall_seconds: float = TEST_WALL_SECONDS
    """pass_fraction: wall-clock time of one test, for answers that sleep; within the task's limits likewise."""

    length_limit: int | None = None
    """length: tokens from which on the penalty is -1."""

    length_window: int | None = None
    """length: tokens before the limit over which the penalty grows; None: a quarter of the limit."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weighted]
        if not names:
            raise SettingsError(
                "reward.functions is empty, so no answer would be worth anything; name one, as in pass_fraction*2.0"
            )
        for name in names:
            _check_name(name)
            if names.count(name) > 1:
                raise SettingsError(f"reward.functions names {name} twice; name it once, with the sum of the weights")
        uses_tests = "pass_fraction" in names
        of_tests = (self.all_or_nothing, self.test_cpu_seconds, self.test_wall_seconds)
        if not uses_tests and of_tests != (False, TEST_CPU_SECONDS, TEST_WALL_SECONDS):
            raise SettingsError(
                "reward.all_or_nothing, reward.test_cpu_seconds and reward.test_wall_seconds are of the function "
                f"pass_fraction, which is not among {', '.join(names)}; add it, or leave them as they are"
            )
        for name in ("test_cpu_seconds", "test_wall_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"reward.{name}={getattr(self, name)} must be a positive, finite number")
        if "length" not in names:
            if self.length_limit is not None or self.length_window is not None:
                raise SettingsError(
                    "reward.length_limit and reward.length_window are of the function length, which is not among "
                    f"{', '.join(names)}; add it, as in length*0.5, or leave them out"
                )
        elif self.length_limit is None:
            raise SettingsError(
                "the reward function length needs a limit; set reward.length_limit to the tokens from which on an "
                "answer is too long, as in reward.length_limit=256"
            )
        else:
            self._length(self.length_limit)

    @property
    def weighted(self) -> tuple[tuple[str, float], ...]:
        """The names and their weights.

        >>> RewardSettings().weighted
        (('pass_fraction', 2.0), ('code_format', 0.5))
        """
        return tuple(_split(entry) for entry in self.functions)

    def _length(self, limit: int) -> Length:
        return Length(limit=limit, window=max(limit // 4, 1) if self.length_window is None else self.length_window)


def open_rewards(settings: RewardSettings, judge: Judge | None = None) -> list[tuple[RewardFunction, float]]:
    """The functions with their weights, for `combine`. `judge` is what pass_fraction runs programs on."""
    load = cache(_module)  # a file that builds a reward model builds it once, though two functions are named in it
    return [
        (find_reward(name, settings=settings, judge=judge, load=load), weight) for name, weight in settings.weighted
    ]


def find_reward(
    name: str,
    *,
    settings: RewardSettings | None = None,
    judge: Judge | None = None,
    load: Callable[[str], ModuleType] | None = None,
) -> RewardFunction:
    """A built-in function, or a user's own: `file.py:function` or `package.module:function`, found in what `load` gives
    for the part before the colon; None loads it.

    Raises SettingsError for a name that is neither, with the nearest one.
    """
    settings = settings or RewardSettings()
    _check_name(name)
    if name == "code_format":
        return CodeFormat()
    if name == "length":
        if settings.length_limit is None:
            raise SettingsError("the reward function length needs a limit; set length_limit, as in length_limit=256")
        return settings._length(settings.length_limit)
    if name == "pass_fraction":
        if judge is None:
            raise SettingsError(
                "the reward function pass_fraction runs programs and was given no sandbox; pass an executor, as in "
                "find_reward(name, judge=open_executor())"
            )
        return PassFraction(
            judge,
            all_or_nothing=settings.all_or_nothing,
            test_cpu_seconds=settings.test_cpu_seconds,
            test_wall_seconds=settings.test_wall_seconds,
        )
    place, _, function = name.rpartition(":")
    return _function_of((load or _module)(place), function, name)


def _split(entry: str) -> tuple[str, float]:
    name, star, weight = entry.strip().rpartition("*")
    if not star:
        return entry.strip(), 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SettingsError(
            f"the reward {entry!r} has the weight {weight.strip()!r}, which is no finite number; write name*weight, as "
            "in pass_fraction*2.0"
        )
    return name.strip(), number


def _check_name(name: str) -> None:
    place, colon, function = name.rpartition(":")
    if name in BUILT_IN or (colon and place and function.isidentifier()):
        return
    raise SettingsError(
        f"{name!r} is no reward function; {did_you_mean(name, BUILT_IN)}; your own is file.py:function or "
        "package.module:function"
    )


def _module(place: str) -> ModuleType:
    try:
        return _loaded(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except SettingsError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise SettingsError(
                f"there is no module {place} to take a reward function from; install it, or name a file, as in "
                "rewards.py:function"
            ) from None
        raise SettingsError(_broken(place, error)) from error
    except Exception as error:
        raise SettingsError(_broken(place, error)) from error


def _loaded(path: Path) -> ModuleType:
    """A module from a file, under a name that hides no other module."""
    if not path.is_file():
        near = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.py")))
        raise SettingsError(
            f"there is no file {path} to take a reward function from; in {path.parent.absolute()}: {near}"
        )
    name = f"unmask_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _function_of(module: ModuleType, function: str, name: str) -> RewardFunction:
    if not hasattr(module, function):
        known = _functions_in(module)
        raise SettingsError(f"{name} names no function: {did_you_mean(function, known) if known else 'there is none'}")
    found: Any = getattr(module, function)
    if inspect.isclass(found):
        raise SettingsError(
            f"{name} is a class, and what judges has to be built once; write `reward = {function}(...)` in the file, "
            f"and name that: {name.rpartition(':')[0]}:reward"
        )
    if not callable(found):
        raise SettingsError(f"{name} is a {type(found).__name__}, and a reward function has to be callable; name one")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
        raise SettingsError(
            f"{name} is an async function, which is not awaited here; wrap it in one that runs it, with asyncio.run"
        )
    if inspect.isroutine(found) or isinstance(found, partial):
        return found
    from unmask.reward.model import RewardModel  # which imports torch

    return RewardModel(found, function)


def _functions_in(module: ModuleType) -> Sequence[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]


def _broken(place: str, error: Exception) -> str:
    return f"loading reward functions from {place} raised {type(error).__name__}: {str(error)[:300]}; repair it"
