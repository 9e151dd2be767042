"""One task of the suite, drawn: its words, its reference, and the inputs that it will be tested on.

A draw depends on (split, index, seed) alone, so any part of the suite can be made anywhere, in any order. The splits
that are held out never repeat a composition, and so have an end; the training splits have none.
"""

import builtins
import keyword
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from unmask.data.synthetic import inputs, wording
from unmask.data.synthetic.catalogue import PRIMITIVES
from unmask.data.synthetic.code import STYLES, Step, write_body
from unmask.data.synthetic.compositions import SPLITS, Composition, Split, strata
from unmask.data.synthetic.primitives import Choice, Primitive, Type
from unmask.data.task import Task
from unmask.errors import TaskError, did_you_mean
from unmask.sandbox.verdict import Limits
from unmask.seeds import derive_seed

LIMITS = Limits(cpu_seconds=3.0)
NUM_TESTS = 8
LONGEST_PROMPT = 420
LONGEST_PROGRAM = {"easy": 330, "hard": 420}
"""In characters: about four to a token."""

_DEPTH_WEIGHTS = {1: 0.15, 2: 0.4, 3: 0.45}
_TYPE_WEIGHTS: dict[Type, float] = {
    "list[int]": 0.36,
    "list[str]": 0.2,
    "str": 0.2,
    "int": 0.12,
    "dict[str, int]": 0.07,
    "tuple[int, int]": 0.05,
}
_ARGUMENTS: dict[Type, tuple[str, ...]] = {
    "int": ("n", "number", "num"),
    "list[int]": ("xs", "nums", "numbers", "values"),
    "str": ("s", "text", "string"),
    "list[str]": ("words", "items", "names"),
    "dict[str, int]": ("d", "table", "counts"),
    "tuple[int, int]": ("pair", "p"),
}
_GENERIC_NAMES = ("solve", "process", "transform", "compute", "run", "convert", "apply_steps", "f")
_HELD_OUT = ("val", "test", "hard-test")
_BLANK = ("[]", "''", "{}", "0", "(0, 0)")
_TRIES = 40
_CANDIDATES = 20


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A task whose tests have inputs and no answers yet."""

    task: Task
    composition: Composition
    choices: tuple[Choice | None, ...]
    """The parameter of each step; None where it has none, or where the function takes it as an argument."""

    inputs: tuple[tuple[Any, ...], ...]
    meant: tuple[Any, ...]
    """What the operations themselves give for the inputs: the reference has to agree."""


def draw_task(split: Split, index: int, seed: int) -> Draft:
    """Task number `index` of a split. Raises TaskError for an unknown split, or past the end of a held-out one."""
    if split not in SPLITS:
        raise TaskError(f"{split!r} is no split of the synthetic suite; {did_you_mean(split, SPLITS)}")
    if index < 0:
        raise TaskError(f"task {index} of synthetic-{split} was asked for; the first one is 0")
    rng = random.Random(derive_seed(seed, f"synthetic {split}", index))
    for attempt in range(_TRIES):
        draft = _attempt(rng, split, index, _composition(rng, split, index, seed), is_strict=attempt < _TRIES - 5)
        if draft is not None:
            return draft
    raise AssertionError(f"no draw of synthetic-{split}/{index} was accepted with the seed {seed}")


def num_tasks(split: Split) -> int | None:
    """How many tasks a split has; None: no end."""
    return sum(map(len, strata(split).values())) if split in _HELD_OUT else None


def _composition(rng: random.Random, split: Split, index: int, seed: int) -> Composition:
    if split in _HELD_OUT:
        order = _order(split, seed)
        if index >= len(order):
            raise TaskError(
                f"task {index} of synthetic-{split} was asked for, which has {len(order)}: each of its compositions "
                "once; ask for fewer, or take synthetic-train or synthetic-hard-train, which have no end"
            )
        return order[index]
    groups = strata(split)
    weights = [_weight(*stratum) for stratum in groups]
    return rng.choice(rng.choices(list(groups.values()), weights)[0])


@lru_cache(maxsize=16)
def _order(split: Split, seed: int) -> tuple[Composition, ...]:
    """Every composition of a held-out split once, mixed so that each beginning has the kinds in their proportions."""
    rng = random.Random(derive_seed(seed, f"synthetic order {split}"))
    placed: list[tuple[float, Composition]] = []
    for stratum, members in strata(split).items():
        mixed, offset = list(members), rng.random()
        rng.shuffle(mixed)
        placed += [((rank + offset) / _weight(*stratum), composition) for rank, composition in enumerate(mixed)]
    return tuple(composition for _, composition in sorted(placed))


def _weight(depth: int, takes: Type) -> float:
    return _DEPTH_WEIGHTS[depth] * _TYPE_WEIGHTS[takes]


def _attempt(
    rng: random.Random, split: Split, index: int, composition: Composition, *, is_strict: bool
) -> Draft | None:
    """A draft, or None where the draw is too long, or where its inputs would not tell right from nearly right."""
    steps, argument, parameter = _draw_steps(rng, [PRIMITIVES[name] for name in composition])
    takes, gives = steps[0].primitive.takes, steps[-1].primitive.gives
    bringer = next((step for step in steps if step.argument), None)
    calls, outputs = _draw_calls(rng, steps, bringer)
    if is_strict and not _tells(steps, calls, outputs):
        return None
    name = _draw_name(rng, composition, {argument, parameter})
    arguments = f"{argument}: {takes}"
    if bringer is not None and bringer.primitive.parameter is not None:
        arguments += f", {parameter}: {bringer.primitive.parameter.type}"
    signature = f"{name}({arguments}) -> {gives}"
    body = "".join(f"    {line}\n" for line in write_body(rng, steps, argument=argument, style=rng.choice(STYLES)))
    clauses = wording.draw_clauses(rng, steps)
    examples = _draw_examples(rng, steps, bringer)
    prompt = f"def {signature}:\n" + _docstring(wording.draw_sentence(rng, clauses, takes), name, examples)
    reference = f"def {signature}:\n{body}"
    if len(prompt) > LONGEST_PROMPT or len(reference) > LONGEST_PROGRAM["hard" if split.startswith("hard") else "easy"]:
        return None
    sentence = wording.draw_sentence(rng, clauses, takes)
    task = Task(
        task_id=f"synthetic-{split}/{index}",
        prompt=prompt,
        instruction=wording.draw_instruction(rng, sentence, name=name, signature=signature),
        entry_point=name,
        reference=reference,
        reference_completion=body,
        limits=LIMITS,
    )
    choices = tuple(None if step.argument else step.choice for step in steps)
    return Draft(task=task, composition=composition, choices=choices, inputs=calls, meant=outputs)


def _draw_steps(rng: random.Random, primitives: Sequence[Primitive]) -> tuple[list[Step], str, str]:
    """The steps with their parameters, the name of the argument, and the name of a parameter that is one, or ""."""
    argument = rng.choice(_ARGUMENTS[primitives[0].takes])
    open_at = [at for at, primitive in enumerate(primitives) if primitive.parameter is not None]
    bringer = rng.choice(open_at) if open_at and rng.random() < 0.25 else None
    steps, name = [], ""
    for at, primitive in enumerate(primitives):
        if primitive.parameter is None:
            steps.append(Step(primitive=primitive))
            continue
        choice = rng.choice(primitive.parameter.choices)
        if at == bringer:
            name = rng.choice(primitive.parameter.names)
        steps.append(Step(primitive=primitive, choice=choice, argument=name if at == bringer else ""))
    return steps, argument, name


def _draw_calls(
    rng: random.Random, steps: Sequence[Step], bringer: Step | None
) -> tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...]]:
    """The edge case, inputs that show each step's part, and inputs whose answers differ most; with what they mean."""
    takes = steps[0].primitive.takes
    drawn = [inputs.draw_value(rng, takes, is_small=steps[0].primitive.is_first) for _ in range(_CANDIDATES)]
    found: dict[str, tuple[tuple[Any, ...], Any]] = {}
    for value in (*inputs.EDGES[takes], *drawn):
        call = _call(rng, value, bringer)
        found.setdefault(repr(call), (call, _mean(steps, call)))
    chosen = list(found)[:1]
    for rest in _shorter(steps):
        chosen += [next((key for key, (call, output) in found.items() if _mean(rest, call) != output), chosen[0])]
    ranks: dict[str, int] = {}
    order: list[tuple[int, int, str]] = []
    for place, (key, (_, output)) in enumerate(found.items()):
        rank = ranks[repr(output)] = ranks.get(repr(output), -1) + 1
        order.append((rank, place, key))
    chosen = list(dict.fromkeys([*chosen, *(key for *_, key in sorted(order))]))[:NUM_TESTS]
    calls, outputs = zip(*(found[key] for key in chosen), strict=True)
    return calls, outputs


def _call(rng: random.Random, value: Any, bringer: Step | None) -> tuple[Any, ...]:
    if bringer is None or bringer.primitive.parameter is None:
        return (value,)
    return (value, rng.choice(bringer.primitive.parameter.choices))


def _mean(steps: Sequence[Step], call: tuple[Any, ...]) -> Any:
    """What the steps make of a call's arguments."""
    value = call[0]
    for step in steps:
        choice = call[1] if step.argument else step.choice
        value = step.primitive.apply(value) if choice is None else step.primitive.apply(value, choice)
    return value


def _tells(steps: Sequence[Step], calls: Sequence[tuple[Any, ...]], outputs: Sequence[Any]) -> bool:
    """Whether the answers differ enough, and no step can be left out unseen."""
    if len(calls) < NUM_TESTS or len({repr(output) for output in outputs}) < (2 if type(outputs[0]) is bool else 3):
        return False
    return not any(
        all(_mean(rest, call) == output for call, output in zip(calls, outputs, strict=True))
        for rest in _shorter(steps)
    )


def _shorter(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps without one of them, for each that the types let go."""
    return [
        [*steps[:at], *steps[at + 1 :]]
        for at, step in enumerate(steps)
        if (steps[at + 1].primitive.takes if at + 1 < len(steps) else step.primitive.gives) == step.primitive.takes
    ]


def _draw_examples(rng: random.Random, steps: Sequence[Step], bringer: Step | None) -> list[tuple[str, str]]:
    """One or two calls for the docstring, as (arguments, answer): those whose answers show the most."""
    takes, shorter = steps[0].primitive.takes, _shorter(steps)
    shown: dict[str, tuple[bool, int, bool, str]] = {}
    for _ in range(8):
        value = inputs.draw_value(rng, takes, is_small=steps[0].primitive.is_first, is_short=True)
        call = _call(rng, value, bringer)
        output = _mean(steps, call)
        answer, arguments = repr(output), ", ".join(map(repr, call))
        idle = sum(_mean(rest, call) == output for rest in shorter)
        shown.setdefault(answer, (answer in _BLANK, idle, len(arguments) + len(answer) > 60, arguments))
    best = sorted(shown, key=lambda answer: shown[answer][:3])
    return [(shown[answer][3], answer) for answer in best[: 1 if rng.random() < 0.5 else 2]]


def _docstring(sentence: str, name: str, examples: Sequence[tuple[str, str]]) -> str:
    text = "\n    ".join(textwrap.wrap(sentence, 96))
    shown = "".join(f"    >>> {name}({arguments})\n    {answer}\n" for arguments, answer in examples)
    return f'    """{text}\n\n{shown}    """\n'


def _draw_name(rng: random.Random, composition: Composition, taken: set[str]) -> str:
    """A name that says what the function does, where that is short enough, or a general one."""
    said = composition[0]
    if len(composition) > 1:
        said = "_of_".join(PRIMITIVES[name].result for name in reversed(composition))
    is_free = not (keyword.iskeyword(said) or hasattr(builtins, said) or said in taken)
    if is_free and len(said) <= 32 and rng.random() < 0.6:
        return said
    return rng.choice(_GENERIC_NAMES)
