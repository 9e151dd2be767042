"""P3, Python Programming Puzzles (Schuster et al. 2021), as tasks: a function whose answers a predicate accepts.

A puzzle is `def sat(answer, inputs=…)`, and asks for an answer that it accepts. The file has up to five puzzles that
differ in their inputs alone: they become one task, `def sol(inputs)`, and each of them one of its tests. An answer
that is right for the inputs that its prompt shows, and for no others, passes that one test.

A test hands the answer to `sat` in a process that the program cannot reach, and only after its type was checked: a
predicate compares, and an object of the program's own could say that it equals everything.

Left out are puzzles of the module `human_eval.py`, which are HumanEval's tasks; those without a solution, some of which
nobody knows; those that evaluate their answer as code; and inputs too large to be read. What takes too long is left
out where the solutions are run (`data/rl_sets.py`).
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unmask.data.jsonl import parse

HUMAN_EVAL = "human_eval.py"
_EVALUATES = frozenset({"eval", "exec", "compile", "__import__"})

_HOLDS = """

_KINDS = {{"int": int, "float": float, "str": str, "bool": bool}}


def _fits(value, kind):
    if kind.startswith("List["):
        return type(value) is list and all(_fits(item, kind[5:-1]) for item in value)
    return type(value) is _KINDS[kind]


def holds(answer, **inputs):
    return _fits(answer, "{kind}") and sat(answer, **inputs) is True
"""


def records(puzzles: Sequence[Mapping[str, Any]], *, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """The tasks in P3's list of puzzles, as `data/jsonl.py` reads them. `dropped` counts puzzles by what they lack."""
    families: dict[str, list[tuple[Mapping[str, Any], ast.FunctionDef]]] = {}
    for puzzle in puzzles:
        found = _predicate(puzzle)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            families.setdefault(puzzle["name"].rpartition(":")[0], []).append((puzzle, found))
    for name, family in families.items():
        alike = [member for member in family if _question(member[1]) == _question(family[0][1])]
        dropped["another question under the same name"] += len(family) - len(alike)
        solved = [member for member in alike if member[0]["sol_bodies"]]
        if solved:
            yield _record(f"P3/{name}", alike, shown=min(solved, key=lambda member: len(member[0]["sat"])))
        else:
            dropped["no known solution"] += len(alike)


def _predicate(puzzle: Mapping[str, Any]) -> ast.FunctionDef | str:
    """The definition of `sat`, or why it cannot be used."""
    if puzzle["module"] == HUMAN_EVAL:
        return "from HumanEval"
    try:
        found = parse(puzzle["sat"]).body[0]
    except SyntaxError:  # a number of more digits than Python reads
        return "too large to be read"
    assert isinstance(found, ast.FunctionDef)
    if any(isinstance(node, ast.Name) and node.id in _EVALUATES for node in ast.walk(found)):
        return "evaluates the answer"
    return found


def _question(sat: ast.FunctionDef) -> tuple[list[str], str]:
    """What puzzles that differ in their inputs alone have in common, whatever the order of their parameters."""
    return sorted(argument.arg for argument in sat.args.args), ast.dump(ast.Module(sat.body, []))


def _record(
    task_id: str,
    family: Sequence[tuple[Mapping[str, Any], ast.FunctionDef]],
    *,
    shown: tuple[Mapping[str, Any], ast.FunctionDef],
) -> dict[str, Any]:
    puzzle, sat = shown
    kind = puzzle["ans_type"]
    imports = "from typing import List\n\n\n" if "List[" in puzzle["sat"].partition("\n")[0] else ""
    head = f"{puzzle['sol_header']}\n{puzzle['sol_docstring']}\n"
    names = ", ".join(argument.arg for argument in sat.args.args[1:])
    text = ast.get_docstring(_function(f"{head}    pass\n")) or ""
    like = " with the same inputs (those in its head are examples)" if names else ""
    predicate = f"{imports}{puzzle['sat']}\n"
    return {
        "task_id": task_id,
        "prompt": f"{predicate}\n\n{head}",
        "instruction": (
            f"{text}\n\nWrite a function `sol({names})`. It returns a value of type `{kind}` for which this function "
            f"returns True{like}:\n\n```python\n{predicate}```"
        ),
        "entry_point": "sol",
        "canonical_solution": f"{puzzle['sol_bodies'][0]}\n",
        "setup": predicate + _HOLDS.format(kind=kind),
        "test_list": list(dict.fromkeys(_test(member) for _, member in family)),
    }


def _test(sat: ast.FunctionDef) -> str:
    names = [argument.arg for argument in sat.args.args[1:]]
    inputs = ", ".join(
        f"{name}={ast.unparse(default)}" for name, default in sorted(zip(names, sat.args.defaults, strict=True))
    )
    return f"assert holds(sol({inputs}), {inputs})" if inputs else "assert holds(sol())"


def _function(code: str) -> ast.FunctionDef:
    found = parse(code).body[0]
    assert isinstance(found, ast.FunctionDef)
    return found
