"""A grid of decoding settings: temperatures × steps × lengths × policies, one cell for each combination.

A cell that was named before the run (`--registered`) is the one to quote. The best of a grid is chosen on the data that
it is then judged by, so it flatters: whoever shows it says so.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmask.decode.settings import ADAPTIVE_POLICIES, DecodeSettings
from unmask.errors import SettingsError, did_you_mean

ONLY = "only"
"""Name of the cell of a run without a grid."""

_TYPES: dict[str, type] = {"temperature": float, "steps": int, "max_new_tokens": int, "policy": str}
AXES: tuple[str, ...] = tuple(_TYPES)
"""The settings that may be lists."""

_OF_POLICY = (*ADAPTIVE_POLICIES, "policy_temperature")  # settings that only some policies have


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination; `name` says what sets it apart from the others, as in `temperature=0.2,steps=128`."""

    name: str
    settings: DecodeSettings


def parse_axis(name: str, text: str, *, option: str | None = None) -> list[Any]:
    """The values of one comma list; `option` is what the command calls it, where that is not the setting's name.

    >>> parse_axis("temperature", "0,0.2")
    [0.0, 0.2]
    """
    flag = option or _flag(name)
    values = [_parse(name, item.strip(), flag) for item in text.split(",")]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise SettingsError(f"{flag} {text} has {twice} twice; each cell of a grid is run once: leave one out")
    return values


def make_grid(axes: Mapping[str, Sequence[Any]], others: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Every combination of the lists, the last axis running fastest; lists of one value are no axis.

    Settings that belong to one policy (`threshold`) or to temperatures above 0 (`temperature_role`) go to the cells
    that have it, where at least one has.

    >>> [cell.name for cell in make_grid({"temperature": [0.0, 0.2], "steps": [64]}, {})]
    ['temperature=0.0', 'temperature=0.2']
    """
    names = [name for name in AXES if name in axes]
    listed = [name for name in names if len(axes[name]) > 1]
    cells = []
    for values in itertools.product(*(axes[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        label = ",".join(f"{name}={chosen[name]}" for name in listed) or ONLY
        try:
            settings = DecodeSettings(**chosen, **_fitting(chosen, others, axes))
        except SettingsError as error:
            raise SettingsError(f"the cell {label} of the grid: {error}" if listed else str(error)) from None
        cells.append(Cell(name=label, settings=settings))
    return tuple(cells)


def find_cell(cells: Sequence[Cell], text: str) -> Cell:
    """The one cell that `text` names, as in `temperature=0.2,steps=128`. Raises SettingsError where it is not one."""
    wanted = {}
    for item in text.split(","):
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if name not in _TYPES or not equals:
            raise SettingsError(
                f"--registered {text}: {item!r} is not NAME=VALUE of a grid; {did_you_mean(name, _TYPES)}"
            )
        wanted[name] = _parse(name, value.strip(), _flag(name))
    found = [cell for cell in cells if all(getattr(cell.settings, name) == value for name, value in wanted.items())]
    if len(found) != 1:
        listing = "; ".join(cell.name for cell in cells)
        if found:
            raise SettingsError(
                f"--registered {text} names {len(found)} cells of the grid, and one is wanted; say all that sets it "
                f"apart. The cells are: {listing}"
            )
        raise SettingsError(f"--registered {text} is not in the grid; name one of its cells: {listing}")
    return found[0]


def _parse(name: str, text: str, flag: str) -> Any:
    try:
        if not text:
            raise ValueError
        return _TYPES[name](text)
    except ValueError:
        what = {float: "a number", int: "a whole number", str: "a name"}[_TYPES[name]]
        example = {"temperature": "0,0.2,0.4", "steps": "128,256", "max_new_tokens": "256,512"}
        raise SettingsError(
            f"{flag}: {text!r} is not {what}; give one, or several with commas between, as in "
            f"`{flag} {example.get(name, 'entropy,maskgit_plus')}`"
        ) from None


def _fitting(chosen: Mapping[str, Any], others: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """`others` less what has no effect in this cell but has one in another cell of the grid."""
    left_out = set()
    policies, temperatures = axes.get("policy", ()), axes.get("temperature", ())
    for name in _OF_POLICY:
        if name in others and any(_has(policy, name) for policy in policies) and not _has(chosen["policy"], name):
            left_out.add(name)
    if "temperature_role" in others and chosen.get("temperature") == 0 and any(temperatures):
        left_out.add("temperature_role")
    return {name: value for name, value in others.items() if name not in left_out}


def _has(policy: str, setting: str) -> bool:
    if setting == "policy_temperature":
        return policy in ("maskgit_plus", "topk_margin", "entropy")
    return policy == setting


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
