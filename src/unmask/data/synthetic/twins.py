"""Which held-out compositions a model might have seen in training under other names: the maker of `twins.txt`.

`compositions()` tells compositions apart with one parameter each. With others two may be the same: the last of
`list_multiples` with 5 is `multiply` with 5. So each held-out composition is compared here, at every choice of its
parameters, with every composition of training at every choice of its own, on values drawn as for tasks: what no task
shows makes no difference. One choice alike is enough to leave it out; a choice that answers all values alike shows
nothing and is passed over. An operation that takes small numbers only is compared on these.

    python -m unmask.data.synthetic.twins    writes the file again: after any change to the table of operations

That takes half a minute, which is why the answer is a file.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unmask.data.synthetic import inputs
from unmask.data.synthetic.catalogue import PRIMITIVES
from unmask.data.synthetic.compositions import (
    PROBES,
    TWINS,
    Composition,
    Split,
    answers,
    compositions,
    split_with_twins,
)
from unmask.data.synthetic.primitives import Type

_COMPARED: dict[Split, tuple[Split, ...]] = {
    "val": ("train",),
    "test": ("train",),
    "hard-test": ("train", "hard-train"),
}
"""Held-out split → the training splits that it may not repeat."""

_DRAWN = 24
_SMALL = (0, *range(1, 31))
_HEADER = """\
# Held-out compositions that are in no split: with some parameters each does what a composition of training does.
# Made by `python -m unmask.data.synthetic.twins`.
"""

_Trie = dict[str, "_Trie"]
_END = ""


def find_twins() -> list[Composition]:
    """The held-out compositions that behave, with some parameters, as one of training does with some; sorted."""
    of_split: dict[Split | None, list[Composition]] = {}
    for composition in compositions():
        of_split.setdefault(split_with_twins(composition), []).append(composition)
    found: set[Composition] = set()
    for takes in PROBES:
        for is_small in (False, True) if takes == "int" else (False,):
            probes = _SMALL if is_small else _probes(takes)
            seen = {
                split: _behaviours(_taking(of_split.get(split, ()), takes), probes) for split in ("train", "hard-train")
            }
            for split, trained in _COMPARED.items():
                held_out = [
                    composition
                    for composition in _taking(of_split.get(split, ()), takes)
                    if PRIMITIVES[composition[0]].is_first == is_small
                ]
                for composition, behaviour in _instances(_trie(held_out), (), probes):
                    if any(behaviour in seen[name] for name in trained):
                        found.add(composition)
    return sorted(found)


def main() -> None:
    """Write the file."""
    Path(str(TWINS)).write_text(as_text(find_twins()), encoding="utf-8")


def as_text(twins: Iterable[Composition]) -> str:
    """The file: a composition a line."""
    return _HEADER + "".join("/".join(composition) + "\n" for composition in twins)


def _probes(takes: Type) -> tuple[Any, ...]:
    rng = random.Random(f"twins of {takes}")
    if takes == "int":  # some operations make a list as long as the number, so no number is drawn up to 9999
        return (*PROBES[takes], *(rng.randint(-60, 400) for _ in range(_DRAWN)))
    return (*inputs.EDGES[takes], *(inputs.draw_value(rng, takes) for _ in range(_DRAWN)))


def _taking(members: Iterable[Composition], takes: Type) -> list[Composition]:
    return [composition for composition in members if PRIMITIVES[composition[0]].takes == takes]


def _behaviours(members: Iterable[Composition], probes: tuple[Any, ...]) -> set[bytes]:
    return {behaviour for _, behaviour in _instances(_trie(members), (), probes)}


def _trie(members: Iterable[Composition]) -> _Trie:
    root: _Trie = {}
    for composition in members:
        node = root
        for name in composition:
            node = node.setdefault(name, {})
        node[_END] = {}
    return root


def _instances(node: _Trie, before: Composition, values: tuple[Any, ...]) -> Iterator[tuple[Composition, bytes]]:
    """Each composition below a node with what it does, at every choice of its parameters; constants are left out."""
    if _END in node:
        told = answers(values)
        if told.count(told[0]) < len(told):
            yield before, hashlib.blake2b(b"".join(told), digest_size=12).digest()
    for name, below in node.items():
        if name == _END:
            continue
        primitive = PRIMITIVES[name]
        if primitive.parameter is None:
            yield from _instances(below, (*before, name), tuple(map(primitive.apply, values)))
            continue
        for choice in primitive.parameter.choices:
            yield from _instances(below, (*before, name), tuple(primitive.apply(value, choice) for value in values))


if __name__ == "__main__":
    main()
