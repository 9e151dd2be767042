"""Which operations follow each other, which of these compositions are one and the same, and which split each is in.

A composition is a tuple of names whose types fit. One that behaves on the probes as a simpler or an earlier one does is
dropped, and so is one that answers nearly everything alike: what is held out is then new in what it does, not only in
how it is written. Each operation is probed with one parameter; a held-out composition that is one of training with
other parameters (the last of five multiples, a product with five) is on the list `twins.txt`, and in no split. The
split is a hash of the names: it depends on no seed, and no new operation moves it. A pair that is held out is no part
of a longer composition in training either.
"""

import hashlib
import marshal
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from unmask.data.synthetic.catalogue import PRIMITIVES
from unmask.data.synthetic.primitives import Choice, Primitive, Type

Split = Literal["train", "val", "test", "hard-train", "hard-test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Composition = tuple[str, ...]

MAX_DEPTH = 3
HELD_OUT = 0.08
"""Part of the compositions of two, and of the common ones of three, that is `val`; as many are `test`."""
HARD_TEST = 0.2
TWINS = resources.files("unmask.data.synthetic") / "twins.txt"
"""Held-out compositions that do, with some parameters, what one of training does; `twins.py` makes it."""

PROBES: dict[Type, tuple[Any, ...]] = {
    "int": (0, 1, 7, 12, 17, 28, 30, 36, 45, 53, 60, 204, 352, -8, -53, -173),
    "list[int]": (
        [],
        [4],
        [-3, 8],
        [1, 2, 3, 4, 5, 6, 7],
        [9, 7, 7, 2, -4, 0],
        [12, 15, 3, 3, 28, 6],
        [-5, -2, -9, -2],
        [10, 0, 21, -7, 35, 6, 14, 10],
        [5, 11, 8, 2, 5, 17, 1],
        [6, 30, 18, -12, 24, 7],
        [100, 49, 36, 25, 8, 1],
    ),
    "str": (
        "",
        "a",
        "Level",
        "noon",
        "three blind mice",
        "A man of 64 years",
        "oats and tomato soup",
        "Rain 2 snow 10",
        "see the old sea",
        "oN tHe RoaD",
        "east or west nest",
        "one or two owls",
    ),
    "list[str]": (
        [],
        ["sun"],
        ["Tree", "ant"],
        ["stone", "a", "river", "nest", "stone"],
        ["apple", "pear", "fig", "plum"],
        ["oak", "iris", "oak", "Elm", "rose"],
        ["to", "be", "or", "not", "to", "be"],
        ["noon", "level", "radar", "x"],
        ["east", "inner", "snow", "rain", "orbit", "tea"],
        ["window", "is", "open", "after", "nine"],
    ),
    "dict[str, int]": (
        {},
        {"a": 3},
        {"b": 2, "a": 7},
        {"pear": 4, "fig": 0, "apple": 9, "nut": 4},
        {"x": -2, "y": 5, "z": 1},
        {"east": 3, "west": 1, "north": 2, "south": 6},
        {"tea": 12, "rice": 2, "oats": 8},
        {"one": 1, "two": 2, "three": 3, "nine": 9},
        {"noon": 5, "sea": 4, "Anna": 8, "iris": 2, "toast": 4},
        {"river": 6, "a": 4, "orange": 7, "level": 3},
    ),
    "tuple[int, int]": ((0, 0), (1, 2), (5, 3), (-4, 9), (12, -7), (30, 30), (8, 45), (-6, -1)),
}


_WITHOUT_SPACES = frozenset(
    [
        "replace_spaces",
        "remove_spaces",
        "join_words",
        "join_numbers",
        "glue_words",
        "longest_word",
        "last_word",
        "best_key",
        "write_number",
        "write_binary",
        "unique_letters",
        "sort_letters",
        "keep_letters",
        "keep_digits",
    ]
)
"""Behind one of these, "split the text into words" is idle, or could be taken in two ways."""

_SINGLE_LETTERS = frozenset({"list_characters", "first_letter_each"})
_OF_LENGTHS = frozenset(
    [
        "lengths",
        "total_length",
        "lengths_by_word",
        "longest_word",
        "keep_long",
        "keep_short",
        "sort_by_length",
        "reverse_each",
        "first_letter_each",
        "capitalize_each",
    ]
)
"""Idle where each word is one letter."""


def split_of(composition: Composition) -> Split | None:
    """The split that a composition belongs to; None: in none, as it would show in training what is held out.

    >>> split_of(("keep_even",))
    'train'
    """
    return None if composition in _twins() else split_with_twins(composition)


def split_with_twins(composition: Composition) -> Split | None:
    """The split by the names alone: it knows nothing of what other parameters make alike."""
    if len(composition) == 1:
        return "train"
    split = _drawn_split(composition)
    if split.endswith("train") and len(composition) > 2:
        pairs = (composition[:2], composition[1:])
        return None if any(_drawn_split(pair) != "train" for pair in pairs) else split
    return split


@cache
def _drawn_split(composition: Composition) -> Split:
    digest = hashlib.blake2b("/".join(composition).encode(), digest_size=8, key=b"unmask synthetic").digest()
    place = int.from_bytes(digest, "big") / 2**64
    if len(composition) == MAX_DEPTH and any(PRIMITIVES[name].is_rare for name in composition):
        return "hard-test" if place < HARD_TEST else "hard-train"
    if place < 2 * HELD_OUT:
        return "test" if place < HELD_OUT else "val"
    return "train"


@cache
def _twins() -> frozenset[Composition]:
    lines = TWINS.read_text(encoding="utf-8").splitlines()
    return frozenset(tuple(line.split("/")) for line in lines if not line.startswith("#"))


@cache
def compositions() -> tuple[Composition, ...]:
    """All of them, the simplest first: types fit, and no two behave alike on the probes."""
    seen: set[bytes] = set()
    found: list[Composition] = []
    shorter: list[tuple[Composition, tuple[Any, ...]]] = []
    for depth in range(1, MAX_DEPTH + 1):
        longer = []
        for composition, outputs in _candidates(depth, shorter):
            told = answers(outputs)
            behaviour = PRIMITIVES[composition[0]].takes.encode() + b"".join(told)
            if behaviour not in seen and (depth == 1 or _is_telling(told)):
                seen.add(behaviour)
                found.append(composition)
                longer.append((composition, outputs))
        shorter = longer
    return tuple(found)


@cache
def strata(split: Split) -> dict[tuple[int, Type], tuple[Composition, ...]]:
    """The compositions of a split by their depth and the type that they take."""
    kept: dict[tuple[int, Type], list[Composition]] = {}
    for composition in _by_split().get(split, ()):
        kept.setdefault((len(composition), PRIMITIVES[composition[0]].takes), []).append(composition)
    return {stratum: tuple(members) for stratum, members in sorted(kept.items())}


@cache
def _by_split() -> dict[Split | None, list[Composition]]:
    found: dict[Split | None, list[Composition]] = {}
    for composition in compositions():
        found.setdefault(split_of(composition), []).append(composition)
    return found


def follows(after: Primitive, earlier: Composition) -> bool:
    """Whether an operation fits behind a composition, and makes sense there."""
    if PRIMITIVES[earlier[-1]].gives != after.takes or after.is_first:
        return False
    if after.name == "split_words" and not _WITHOUT_SPACES.isdisjoint(earlier):
        return False
    if after.name in _OF_LENGTHS and not _SINGLE_LETTERS.isdisjoint(earlier):
        return False
    families = {PRIMITIVES[name].family for name in earlier}
    return after.name not in earlier and not (after.family and after.family in families)


def answers(outputs: tuple[Any, ...]) -> list[bytes]:
    """What tells two outputs apart; the order of a dictionary does not."""
    if isinstance(outputs[0], dict):
        return [marshal.dumps(sorted(output.items()), 2) for output in outputs]
    return [marshal.dumps(output, 2) for output in outputs]


def probe_choice(primitive: Primitive) -> Choice | None:
    """The parameter that an operation is probed with; two operations rarely share theirs."""
    if primitive.parameter is None:
        return None
    choices = primitive.parameter.choices
    return choices[sum(primitive.name.encode()) % len(choices)]


def _candidates(
    depth: int, shorter: list[tuple[Composition, tuple[Any, ...]]]
) -> Iterator[tuple[Composition, tuple[Any, ...]]]:
    if depth == 1:
        for name, primitive in PRIMITIVES.items():
            yield (name,), _outputs(primitive, PROBES[primitive.takes])
        return
    taking: dict[Type, list[Primitive]] = {}
    for primitive in PRIMITIVES.values():
        taking.setdefault(primitive.takes, []).append(primitive)
    for composition, inputs in shorter:
        for primitive in taking.get(PRIMITIVES[composition[-1]].gives, ()):
            if follows(primitive, composition):
                yield (*composition, primitive.name), _outputs(primitive, inputs)


def _outputs(primitive: Primitive, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    choice, apply = probe_choice(primitive), primitive.apply
    return tuple([apply(value, choice) for value in inputs]) if choice is not None else tuple(map(apply, inputs))


def _is_telling(told: list[bytes]) -> bool:
    """Whether a composition does something: its answers differ, and not only for the odd probe."""
    is_yes_or_no = len(told[0]) == 1
    most = len(told) - 2 if is_yes_or_no else len(told) * 2 // 3
    return max(map(told.count, told)) <= most
