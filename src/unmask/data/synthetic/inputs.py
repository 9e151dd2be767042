"""Values that functions are called with: small, ordinary, and with the edges that mistakes live on."""

import random
from typing import Any

from unmask.data.synthetic.primitives import Type

EDGES: dict[Type, tuple[Any, ...]] = {
    "int": (0,),
    "list[int]": ([],),
    "str": ("",),
    "list[str]": ([],),
    "dict[str, int]": ({},),
    "tuple[int, int]": ((0, 0),),
}
"""What every task is called with, whatever else it is called with."""

_VOCABULARY = """
a ant apple arm art bean bee bird blue boat book cat civic coat corn dog door ear east egg fig fish four green hat hen
ink inn iron jam kite lake leaf level lion map milk moon nest noon nut oak one orange owl pan pear pin radar rain red
rice river road rose salt sea seven sky snow star stone sun tea ten tin toast tree two west window
Anna Bob Eve Iris Nile Otto Rio Tom
"""
_WORDS = tuple(_VOCABULARY.split())


def draw_value(rng: random.Random, takes: Type, *, is_small: bool = False, is_short: bool = False) -> Any:
    """A value of the type. `is_small`: a number that a loop can run to. `is_short`: one to show in a docstring."""
    if takes == "int":
        return rng.randint(1, 12 if is_short else 30) if is_small else _number(rng, wide=True)
    if takes == "list[int]":
        return _numbers(rng, rng.randint(3, 5) if is_short else rng.randint(1, 8))
    if takes == "str":
        return _text(rng, 2 if is_short else 4)
    if takes == "list[str]":
        return _with_repeats(
            rng, [rng.choice(_WORDS) for _ in range(rng.randint(3, 4) if is_short else rng.randint(1, 7))]
        )
    if takes == "dict[str, int]":
        names = [rng.choice(_WORDS) for _ in range(rng.randint(2, 3) if is_short else rng.randint(1, 5))]
        return {name: rng.randint(-2, 9) for name in names}
    return (_number(rng), _number(rng))


def _number(rng: random.Random, *, wide: bool = False) -> int:
    kind = rng.random()
    if kind < 0.2:
        return -rng.randint(1, 12)
    if wide and kind < 0.6:
        return rng.randint(100, 9999)
    return rng.randint(0, 30 if kind < 0.5 else 12)


def _numbers(rng: random.Random, length: int) -> list[int]:
    return _with_repeats(rng, [_number(rng) for _ in range(length)])


def _with_repeats(rng: random.Random, items: list[Any]) -> list[Any]:
    """Every second list has one of its elements twice."""
    if len(items) > 1 and rng.random() < 0.5:
        items[rng.randrange(1, len(items))] = items[0]
    return items


def _text(rng: random.Random, most: int) -> str:
    words = [rng.choice(_WORDS) for _ in range(rng.randint(1, most))]
    if rng.random() < 0.25:
        words.append(str(rng.randint(1, 99)))
    text = " ".join(words)
    return text.upper() if rng.random() < 0.1 else text
