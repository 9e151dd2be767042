"""From a composition to the body of a function, in one of four styles.

    steps     a helper variable for each step
    nested    calls inside calls, where that still reads well
    fused     filters, a map and a fold in one comprehension
    loop      the same in one loop with an accumulator

Whatever the style, a step may be written in any of its forms; what cannot be nested or fused gets a variable.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unmask.data.synthetic.primitives import Choice, Primitive, Type, fill

Style = Literal["steps", "nested", "fused", "loop"]
STYLES: tuple[Style, ...] = ("steps", "steps", "nested", "fused", "loop")

_BLOCK_RATE = 0.25
"""How often a step is written as a block where the style would have an expression."""

_ELEMENTS: dict[Type, tuple[str, ...]] = {
    "list[int]": ("x", "n", "num"),
    "list[str]": ("word", "w"),
    "str": ("c", "ch"),
}
_VARIABLES: dict[Type, str] = {
    "int": "number",
    "bool": "answer",
    "list[int]": "values",
    "list[str]": "words",
    "str": "text",
    "dict[str, int]": "table",
    "tuple[int, int]": "pair",
}
_SPARE = ("result", "output")


@dataclass(frozen=True, kw_only=True)
class Step:
    """An operation with its parameter: a value, or the name of the argument that brings it."""

    primitive: Primitive
    choice: Choice | None = None
    argument: str = ""

    @property
    def code(self) -> str:
        """The parameter as code."""
        if self.argument or self.choice is None:
            return self.argument
        return f'"{self.choice}"' if isinstance(self.choice, str) else str(self.choice)

    @property
    def words(self) -> str:
        """The parameter as a sentence has it."""
        return f"`{self.argument}`" if self.argument else repr(self.choice)


def write_body(rng: random.Random, steps: Sequence[Step], *, argument: str, style: Style) -> list[str]:
    """The lines of the body, not indented; the last one returns.

    >>> from unmask.data.synthetic.catalogue import PRIMITIVES
    >>> steps = [Step(primitive=PRIMITIVES["keep_even"]), Step(primitive=PRIMITIVES["add_up"])]
    >>> print("\\n".join(write_body(random.Random(0), steps, argument="xs", style="fused")))
    return sum(n for n in xs if n % 2 == 0)
    """
    body = _Body(rng, steps, argument, style)
    at = 0
    while at < len(steps):
        group = _run(steps[at:], style)
        is_last = at + len(group) == len(steps)
        if len(group) > 1:
            body.fuse(group, is_last=is_last)
        else:
            body.write(steps[at], is_last=is_last)
        at += len(group)
    return body.lines


def _run(steps: Sequence[Step], style: Style) -> Sequence[Step]:
    """The steps from the first one on that fuse: filters, then at most one map, then at most one fold."""
    if style not in ("fused", "loop"):
        return steps[:1]
    at, has_map = 0, False
    for step in steps:
        primitive = step.primitive
        if primitive.start:
            if primitive.condition and (has_map or style == "fused"):
                break
            return steps[: at + 1]
        if has_map or not (primitive.condition or primitive.element):
            break
        has_map = bool(primitive.element)
        at += 1
        if has_map and primitive.takes == "str":
            break  # a character may become several: what follows has to see them one by one
    return steps[: max(at, 1)]


class _Body:
    """Lines so far, and the expression that holds the value."""

    def __init__(self, rng: random.Random, steps: Sequence[Step], argument: str, style: Style) -> None:
        self.rng, self.style, self.lines = rng, style, list[str]()
        self.value = argument
        self.type, self.result = steps[0].primitive.takes, ""
        self.taken = {argument, *(step.argument for step in steps)}
        self.arguments = {self.type: argument}
        self.is_plain = rng.random() < 0.4
        """Whether variables are named by their type, not by what they hold."""

    @property
    def is_name(self) -> bool:
        return self.value.isidentifier()

    def write(self, step: Step, *, is_last: bool) -> None:
        """One step in one of its forms."""
        form = self._form(step.primitive, is_last=is_last)
        template = step.primitive.expression if form == "expression" else step.primitive.blocks[form]
        self._make_fit(template)
        parts = {"x": self.value, "X": self.value, "g": self.value, "e": self._element(), "k": step.code}
        if "$g" in template and self.value.startswith("[") and self.value.endswith("]"):
            parts["g"] = self.value[1:-1]
        if form == "expression":
            self._hold(fill(template, **parts), step.primitive, is_last=is_last)
            return
        out = self._variable(step.primitive, apart=True)
        self.lines += fill(template, **parts, out=out).splitlines()
        self._end_block(out, step.primitive, is_last=is_last and "$out" in template)

    def fuse(self, group: Sequence[Step], *, is_last: bool) -> None:
        """Several steps in one comprehension or loop."""
        self._make_fit("$e for $e in $x")
        element, last = self._element(), group[-1].primitive
        fold = group[-1] if last.start else None
        conditions = [
            fill(step.primitive.condition, e=element, k=step.code) for step in group if step.primitive.condition
        ]
        maps = [step for step in group if step.primitive.element]
        head = fill(maps[0].primitive.element, e=element, k=maps[0].code) if maps else element
        condition = " and ".join(conditions)
        is_text = (maps[0].primitive.gives if maps else group[0].primitive.takes) == "str"
        if self.style == "fused":
            inner = f"{head} for {element} in {self.value}" + (f" if {condition}" if condition else "")
            whole = f'"".join({inner})' if is_text else f"[{inner}]"
            if fold is not None and last.expression:
                whole = fill(last.expression, x=whole, g=inner)
            elif fold is not None:
                self._hold(whole, group[-2].primitive, is_last=False)
                self.write(fold, is_last=is_last)
                return
            self._hold(whole, last, is_last=is_last)
            return
        out = self._variable(last, apart=True)
        if fold is not None:
            start, update = last.start, fill(last.update, out=out, e=head)
        elif is_text:
            start, update = '""', f"{out} += {head}"
        else:
            start, update = "[]", f"{out}.append({head})"
        inside = [f"if {condition}:", f"    {update}"] if condition else [update]
        self.lines += [f"{out} = {start}", f"for {element} in {self.value}:", *(f"    {line}" for line in inside)]
        self._end_block(out, last, is_last=is_last)

    def _form(self, primitive: Primitive, *, is_last: bool) -> str:
        blocks = [form for form in primitive.blocks if is_last or form != "early return"]
        if blocks and (not primitive.expression or self.style == "loop" or self.rng.random() < _BLOCK_RATE):
            return self.rng.choice(blocks)
        return "expression"

    def _make_fit(self, template: str) -> None:
        """Give the value a name where the template needs one, or would read badly without."""
        if self.is_name:
            return
        loops = self.value.startswith("[") and "$g" not in template and re.search(r"\bfor\b", template)
        if "$X" in template or loops:
            name = self._variable_for(self.type, self.result)
            self.lines.append(f"{name} = {self.value}")
            self.value = name

    def _hold(self, expression: str, primitive: Primitive, *, is_last: bool) -> None:
        self.type, self.result = primitive.gives, primitive.result
        if is_last:
            self.lines.append(f"return {expression}")
            return
        nests = primitive.nests or expression.startswith("[")
        if self.style == "nested" and nests:
            self.value = expression
            return
        name = self._variable_for(primitive.gives, primitive.result)
        self.lines.append(f"{name} = {expression}")
        self.value = name

    def _end_block(self, out: str, primitive: Primitive, *, is_last: bool) -> None:
        self.type, self.result, self.value = primitive.gives, primitive.result, out
        if is_last:
            self.lines.append(f"return {out}")

    def _element(self) -> str:
        free = [name for name in _ELEMENTS.get(self.type, ("x",)) if name not in self.taken]
        return self.rng.choice(free or ["item"])

    def _variable(self, primitive: Primitive, *, apart: bool) -> str:
        """A name for what an operation gives; `apart` from the names in the value, which a block still reads."""
        name = self._variable_for(primitive.gives, primitive.result)
        read = set(re.findall(r"[a-z_]\w*", self.value)) if apart else set()
        return next(
            spare for spare in (name, *_SPARE) if spare not in read and (spare == name or spare not in self.taken)
        )

    def _variable_for(self, gives: Type, result: str) -> str:
        name = self.arguments.get(gives, _VARIABLES[gives]) if self.is_plain else result
        if name in self.taken and name != self.arguments.get(gives):
            return next(spare for spare in _SPARE if spare not in self.taken)
        return name
