"""What a task says: the phrases of its steps, joined in one of several manners, and the words around them."""

import random
from collections.abc import Sequence

from unmask.data.synthetic.code import Step
from unmask.data.synthetic.primitives import Type, fill

_GIVEN: dict[Type, tuple[str, ...]] = {
    "int": ("a number", "an integer"),
    "list[int]": ("a list of numbers", "a list of integers"),
    "str": ("a text", "a string"),
    "list[str]": ("a list of words", "a list of strings"),
    "dict[str, int]": ("a dictionary from names to numbers",),
    "tuple[int, int]": ("a pair of numbers",),
}


def draw_clauses(rng: random.Random, steps: Sequence[Step]) -> list[str]:
    """The steps as imperatives, the last of which returns: ["keep the even numbers", "return the sum"]."""
    clauses: list[str] = []
    for step in steps:
        primitive, is_last = step.primitive, step is steps[-1]
        phrase = fill(rng.choice((*primitive.verbs, *primitive.nouns)), k=step.words)
        if phrase.startswith(("the ", "how ", "whether ", "a ")):
            asks = phrase.startswith(("how ", "whether "))
            clauses.append(f"return {phrase}" if is_last else f"{'find' if asks else 'take'} {phrase}")
        else:
            clauses.append(phrase)
            if is_last:
                clauses.append("return the result")
    return clauses


def draw_sentence(rng: random.Random, clauses: Sequence[str], takes: Type) -> str:
    """The clauses as running text.

    >>> draw_sentence(random.Random(4), ["keep the even numbers", "return the sum"], "list[int]")
    'Keep the even numbers and return the sum.'
    """
    *firsts, last = clauses
    if not firsts:
        return _sentence(last)
    manners = [_in_a_row, _in_a_row, _apart, _then]
    if clauses[1] != "return the result":  # more than one step
        manners += [_first_then, _listed]
    if rng.random() < 0.15:
        return f"Given {rng.choice(_GIVEN[takes])}, {rng.choice((_in_a_row, _then))(clauses)}."
    if last != "return the result":
        manners.append(_afterwards)
    return _sentence(rng.choice(manners)(clauses))


def draw_instruction(rng: random.Random, sentence: str, *, name: str, signature: str) -> str:
    """The task in words, with the function's name and types."""
    head = rng.choice(
        (
            f"Write a Python function `{signature}`. {{}}",
            f"Write a function `{signature}` that does the following. {{}}",
            f"Implement `{signature}` in Python. {{}}",
            f"Define a function named {name} with the signature `{signature}`. {{}}",
            f"{{}} Write this as a Python function `{signature}`.",
        )
    )
    return head.replace("{}", sentence, 1)


def _in_a_row(clauses: Sequence[str]) -> str:
    return f"{', '.join(clauses[:-1])} and {clauses[-1]}"


def _then(clauses: Sequence[str]) -> str:
    return ", then ".join(clauses)


def _first_then(clauses: Sequence[str]) -> str:
    *firsts, last = clauses
    return (
        f"first {', then '.join(firsts)}, and finally {last}" if len(firsts) > 1 else f"first {firsts[0]}, then {last}"
    )


def _apart(clauses: Sequence[str]) -> str:
    return ". ".join([clauses[0], *map(_capital, clauses[1:])])


def _listed(clauses: Sequence[str]) -> str:
    return f"in this order: {'; '.join(clauses)}"


def _afterwards(clauses: Sequence[str]) -> str:
    *firsts, last = clauses
    return f"{'; '.join(firsts)}; after that {last}"


def _sentence(text: str) -> str:
    return f"{_capital(text)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
