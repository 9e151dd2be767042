"""One operation of the synthetic suite: what it takes and gives, how people say it, and how people write it.

Code templates hold `$x` (the value), `$X` (the value, where only a name reads well), `$g` (the value, where a generator
does as well), `$e` (one element), `$k` (the parameter) and `$out` (the variable that a block fills). The expression is
what the operation means: `apply` evaluates it. Blocks say the same in several lines. Every operation is defined on
every value of its type: the empty list, the empty text and 0 included.
"""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Type = Literal["int", "str", "bool", "list[int]", "list[str]", "dict[str, int]", "tuple[int, int]"]
Choice = int | str


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A number, a letter or a separator that is drawn for each task; a task may take it as an argument instead."""

    type: Literal["int", "str"]
    choices: tuple[Choice, ...]
    names: tuple[str, ...]
    """What it may be called as an argument."""


SMALL = Parameter(type="int", choices=(2, 3, 4, 5), names=("k", "count"))
NUMBER = Parameter(type="int", choices=tuple(range(2, 10)), names=("k", "amount"))
DIVISOR = Parameter(type="int", choices=(3, 4, 5, 6, 7), names=("k", "divisor"))
LIMIT = Parameter(type="int", choices=tuple(range(1, 10)), names=("limit", "k", "bound"))
SIZE = Parameter(type="int", choices=(2, 3, 4), names=("size", "k", "limit"))
LETTER = Parameter(type="str", choices=tuple("aeinorst"), names=("letter", "char"))
SEPARATOR = Parameter(type="str", choices=("-", "_", ",", "/", "+", ":"), names=("sep", "mark"))


@dataclass(frozen=True, kw_only=True)
class Primitive:
    """One operation. It has verbs ("sort the numbers"), or nouns ("the sum of the numbers"), or both."""

    name: str
    takes: Type
    gives: Type
    result: str
    """A variable name for what it gives."""

    expression: str = ""
    """Empty where only a block says it well; `meaning` is needed then."""

    meaning: Callable[..., Any] | None = None

    verbs: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    blocks: Mapping[str, str] = field(default_factory=dict)
    """Form → lines that assign `$out`; those of the form `early return` return instead, and only ever come last."""

    parameter: Parameter | None = None
    family: str = ""
    """Two of a family are never composed: the second would undo the first, or the two would merge into one."""

    is_rare: bool = False
    """A composition of three with a rare operation belongs to the hard splits."""

    is_first: bool = False
    """Takes a small number only: never the result of another operation."""

    element: str = ""
    """What a map makes of `$e`."""

    condition: str = ""
    """What a filter asks of `$e`."""

    start: str = ""
    update: str = ""
    """A fold's accumulator: its first value, and the statement that takes in `$e`."""

    @property
    def forms(self) -> tuple[str, ...]:
        """Names of the ways in which it can be written."""
        return ("expression", *self.blocks) if self.expression else tuple(self.blocks)

    @cached_property
    def apply(self) -> Callable[..., Any]:
        """The operation itself: `apply(value)`, or `apply(value, parameter)`."""
        if self.meaning is not None:
            return self.meaning
        code = fill(self.expression, x="x", X="x", g="x", e="e", k="k")
        return eval(f"lambda x, k=None: {code}")  # type: ignore[no-any-return]  # a template of our own table

    @cached_property
    def nests(self) -> bool:
        """Whether the expression can stand inside another one without parentheses."""
        code = fill(self.expression or "[]", x="x", X="x", g="x", e="e", k="k")
        return isinstance(ast.parse(code, mode="eval").body, ast.Call | ast.Subscript)


_SLOT = re.compile(r"\$(out|[xXgek])")


def fill(template: str, **parts: str) -> str:
    """The template with its slots filled; a slot that no part is given for stays.

    >>> fill("[$e * $k for $e in $x]", x="xs", e="n", k="3")
    '[n * 3 for n in xs]'
    """
    return _SLOT.sub(lambda found: parts.get(found[1], found[0]), template)


# How most operations are built: their forms follow from their kind


def each(name: str, takes: Type, element: str, **rest: Any) -> Primitive:
    """A map over the elements of a list, or over the characters of a text."""
    if takes == "str":
        expression = f'"".join({element} for $e in $x)'
        blocks = {"loop": f'$out = ""\nfor $e in $x:\n    $out += {element}'}
    else:
        expression = f"[{element} for $e in $x]"
        blocks = {"loop": f"$out = []\nfor $e in $x:\n    $out.append({element})"}
    given = {"gives": takes, "expression": expression, "blocks": blocks} | rest
    return Primitive(name=name, takes=takes, element=element, **given)


def keep(name: str, takes: Type, condition: str, **rest: Any) -> Primitive:
    """A filter of the elements of a list, or of the characters of a text."""
    if takes == "str":
        expression = f'"".join($e for $e in $x if {condition})'
        blocks = {"loop": f'$out = ""\nfor $e in $x:\n    if {condition}:\n        $out += $e'}
    else:
        expression = f"[$e for $e in $x if {condition}]"
        blocks = {"loop": f"$out = []\nfor $e in $x:\n    if {condition}:\n        $out.append($e)"}
    return Primitive(
        name=name, takes=takes, gives=takes, expression=expression, blocks=blocks, condition=condition, **rest
    )


def count(name: str, takes: Type, condition: str, **rest: Any) -> Primitive:
    """How many elements meet a condition."""
    return Primitive(
        name=name,
        takes=takes,
        gives="int",
        expression=f"sum(1 for $e in $x if {condition})",
        result="count",
        blocks={"accumulator": f"$out = 0\nfor $e in $x:\n    if {condition}:\n        $out += 1"},
        condition=condition,
        start="0",
        update="$out += 1",
        **rest,
    )


def fold(name: str, takes: Type, expression: str, start: str, update: str, **rest: Any) -> Primitive:
    """A list or a text taken in by an accumulator, an element at a time."""
    lines = "\n    ".join(update.splitlines())
    return Primitive(
        name=name,
        takes=takes,
        expression=expression,
        blocks={"accumulator": f"$out = {start}\nfor $e in $x:\n    {lines}"} | rest.pop("blocks", {}),
        start=start,
        update=update,
        **rest,
    )


def whole(name: str, takes: Type, gives: Type, expression: str, **rest: Any) -> Primitive:
    """An operation on a value as a whole."""
    return Primitive(name=name, takes=takes, gives=gives, expression=expression, **rest)
