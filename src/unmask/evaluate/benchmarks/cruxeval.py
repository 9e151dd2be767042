"""CRUXEval (Gu et al. 2024): 800 short functions; say what one returns (O), or an input for which it returns this (I).

The model completes `assert f(…) == …`. What it wrote becomes a program with a function `answer`, so that it is run
where every program is: the output is compared with the literal in the data; the input is handed to the trusted `f` in
the tests' process. The prompts are the official ones for direct answers (cruxeval `prompts.py`).

An answer that is not a literal is evaluated, as the official checker does, but never sees `f` when it is an output.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from unmask.data.files import read_jsonl
from unmask.data.jsonl import LIMITS, parse
from unmask.data.task import Task
from unmask.evaluate.benchmarks.definition import Definition, Version
from unmask.sandbox.tests import AssertTests, CallTests

_OUTPUT = """You are given a Python function and an assertion containing an input to the function. \
Complete the assertion with a literal (no unsimplified expressions, no function calls) containing the output when \
executing the provided code on the given input, even if the function is incorrect or incomplete. Do NOT output any \
extra information. Provide the full assertion with the correct output in [ANSWER] and [/ANSWER] tags, following the \
examples.

[PYTHON]
def f(n):
    return n
assert f(17) == ??
[/PYTHON]
[ANSWER]
assert f(17) == 17
[/ANSWER]

[PYTHON]
def f(s):
    return s + "a"
assert f("x9j") == ??
[/PYTHON]
[ANSWER]
assert f("x9j") == "x9ja"
[/ANSWER]

[PYTHON]
{code}
assert f({input}) == ??
[/PYTHON]
[ANSWER]
"""

_INPUT = """You will be given a function f and an output in the form f(??) == output. Find any input such that \
executing f on the input leads to the given output. There may be multiple answers, but you should only output one. \
In [ANSWER] and [/ANSWER] tags, complete the assertion with one such input that will produce the output when \
executing the function.

[PYTHON]
def f(my_list):
    count = 0
    for i in my_list:
        if len(i) % 2 == 0:
            count += 1
    return count
assert f(??) == 3
[/PYTHON]
[ANSWER]
assert f(["mq", "px", "zy"]) == 3
[/ANSWER]

[PYTHON]
def f(s1, s2):
    return s1 + s2
assert f(??) == "banana"
[/PYTHON]
[ANSWER]
assert f("ba", "nana") == "banana"
[/ANSWER]

[PYTHON]
{code}
assert f(??) == {output}
[/PYTHON]
[ANSWER]
"""

_RECORDED_F = "\n\ndef f(*args, **kwargs):\n    return args, kwargs\n\n\n"


def answer_program(task: Task, text: str) -> str:
    """The program of an answer: `answer()` returns the output, or the arguments, that the model wrote.

    `text` is what the model wrote behind the prompt: an assertion, with or without tags, or its missing side alone.
    An empty answer, and one that calls no `f` where an input is asked for, make the empty program, which fails.
    """
    is_input = isinstance(task.tests["base"], AssertTests)
    answer = _side(text.partition("[/ANSWER]")[0].rpartition("[ANSWER]")[2].strip(), left=is_input)
    if not answer or (is_input and "f(" not in answer):
        return ""
    above = task.preamble + _RECORDED_F if is_input else ""
    return f"{above}def answer():\n    return (\n{answer}\n)\n"


def _side(text: str, *, left: bool) -> str:
    """One side of the assertion's `==`, or the text itself where there is none."""
    try:
        statements = parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _side_of_broken(text, left=left)
    if not statements:
        return ""  # a comment
    found = statements[0]
    if not isinstance(found, ast.Assert | ast.Expr):
        return text
    side = found.test if isinstance(found, ast.Assert) else found.value
    if isinstance(side, ast.Compare) and isinstance(side.ops[0], ast.Eq):
        side = side.left if left else side.comparators[0]
    return ast.get_source_segment(text, side) or ""


def _side_of_broken(text: str, *, left: bool) -> str:
    """As the official script cuts: at the first `==`, without `assert`."""
    before, equals, after = text.partition("==")
    return before.partition("assert")[2].strip() if equals and left else after.strip() if equals else text


def _outputs(paths: tuple[Path, ...]) -> Iterator[Task]:
    for row in read_jsonl(paths[0]):
        yield Task(
            task_id=row["id"],
            prompt=_OUTPUT.format(code=row["code"], input=row["input"]),
            entry_point="answer",
            reference=f"def answer():\n    return (\n{row['output']}\n)\n",
            reference_completion=_completion(row),
            tests={"base": CallTests.of("answer", [()], [ast.literal_eval(row["output"])])},
            limits=LIMITS,
        )


def _inputs(paths: tuple[Path, ...]) -> Iterator[Task]:
    for row in read_jsonl(paths[0]):
        test = f"args, kwargs = answer()\nassert f(*args, **kwargs) == {row['output']}\n"
        yield Task(
            task_id=row["id"],
            prompt=_INPUT.format(code=row["code"], output=row["output"]),
            entry_point="answer",
            preamble=row["code"],
            reference=f"{row['code']}{_RECORDED_F}def answer():\n    return (\nf({row['input']})\n)\n",
            reference_completion=_completion(row),
            tests={"base": AssertTests(entry_point="answer", code=test, setup=row["code"])},
            limits=LIMITS,
        )


def _completion(row: dict[str, str]) -> str:
    return f"assert f({row['input']}) == {row['output']}\n[/ANSWER]"


_VERSIONS = {"190faf1": Version(files=("cruxeval/cruxeval.jsonl",))}
DEFINITIONS = {
    "cruxeval-input": Definition(kind="predict", build=_inputs, versions=_VERSIONS),
    "cruxeval-output": Definition(kind="predict", build=_outputs, versions=_VERSIONS),
}
