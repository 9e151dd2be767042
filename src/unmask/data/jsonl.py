"""Tasks from a file of JSON lines: anyone's benchmark.

One object a line (`.jsonl`, or `.jsonl.gz`):

    task_id             unique
    prompt              what a base model continues
    entry_point         the function that the tests call

and exactly one of

    tests               [{"input": [1, 2], "output": 3}, …]: calls, and what each returns
    test_list           ["assert add(1, 2) == 3", …], as in MBPP
    test                code that defines check(candidate), as in HumanEval

and, where they apply,

    instruction         the task in words
    suffix              given text behind the gap (infilling)
    reference           a whole program that passes; or
    canonical_solution  what stands between the prompt and the suffix in one that does
    setup               code that runs before test_list or test: imports, helpers. Without it a `test` gets what its
                        prompt has above the entry point
    atol                absolute tolerance of `tests`
    in_place            test_list or test looks at arguments that the program has changed

Unknown keys are refused. HumanEval's own file is such a file. JSON has no tuples, sets or bytes: tasks that return them
need `test_list` or `test`.
"""

import ast
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.data.files import numbered_records
from unmask.data.task import Task
from unmask.errors import SettingsError, TaskError, did_you_mean
from unmask.sandbox.tests import AssertTests, CallTests, Tests
from unmask.sandbox.verdict import Limits

LIMITS = Limits(cpu_seconds=10.0)
_TESTS = ("tests", "test_list", "test")
_TEXTS = (
    "task_id",
    "prompt",
    "entry_point",
    "instruction",
    "suffix",
    "reference",
    "canonical_solution",
    "setup",
    "test",
)
_REQUIRED = ("task_id", "prompt", "entry_point")
KEYS = (*_TEXTS, "tests", "test_list", "atol", "in_place")


def read_tasks(path: Path) -> tuple[Task, ...]:
    """All tasks of a file. Raises TaskError with the number of the line that is wrong."""
    tasks: list[Task] = []
    lines: dict[str, int] = {}
    for number, record in numbered_records(path):
        where = f"{path}, line {number}"
        task = _task(record, where)
        if task.task_id in lines:
            raise TaskError(
                f"{where}: the task_id {task.task_id!r} is on line {lines[task.task_id]} already; give each its own"
            )
        lines[task.task_id] = number
        tasks.append(task)
    if not tasks:
        raise TaskError(f"{path} holds no tasks; write one JSON object a line: {', '.join(_REQUIRED)} and tests")
    return tuple(tasks)


def check_tests(test: str, *, entry_point: str, setup: str = "", writes_back: bool = False) -> AssertTests:
    """HumanEval's tests: code that defines `check(candidate)`, and the call of it."""
    code = f"{test}\ncheck({entry_point})\n"
    return AssertTests(entry_point=entry_point, code=code, setup=setup, writes_back=writes_back)


def assert_tests(
    test_list: Sequence[str], *, entry_point: str, setup: str = "", writes_back: bool = False
) -> AssertTests:
    """MBPP's tests: lines that assert."""
    code = "".join(f"{line.strip()}\n" for line in test_list)
    return AssertTests(entry_point=entry_point, code=code, setup=setup, writes_back=writes_back)


def text_above(prompt: str, entry_point: str) -> str:
    """What a prompt has above the function that it asks for: imports, and helpers that the tests use too.

    >>> text_above("import math\\n\\n\\ndef area(r):\\n    ", "area")
    'import math\\n\\n\\n'
    """
    found = re.search(rf"^(async )?def {re.escape(entry_point)}\b", prompt, re.MULTILINE)
    return prompt[: found.start()] if found else ""


def parse(code: str) -> ast.Module:
    """`ast.parse` that keeps quiet about other people's style (`"\\d"` in a text)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)


# One line of a file


def _task(record: dict[str, Any], where: str) -> Task:
    _check_fields(record, where)
    tests = _tests(record, where)
    prompt, suffix = record["prompt"], record.get("suffix", "")
    completion, reference = record.get("canonical_solution", ""), record.get("reference", "")
    if completion:
        reference = prompt + completion + suffix
    elif reference.startswith(prompt) and reference.endswith(suffix) and len(reference) >= len(prompt) + len(suffix):
        completion = reference[len(prompt) : len(reference) - len(suffix)]
    return Task(
        task_id=record["task_id"],
        prompt=prompt,
        instruction=record.get("instruction", ""),
        suffix=suffix,
        entry_point=record["entry_point"],
        reference=reference,
        reference_completion=completion,
        tests={"base": tests},
        limits=LIMITS,
    )


def _check_fields(record: dict[str, Any], where: str) -> None:
    for key in record:
        if key not in KEYS:
            raise TaskError(f"{where}: the key {key!r} is not known; {did_you_mean(key, KEYS)}")
    for key in _REQUIRED:
        if key not in record:
            raise TaskError(f"{where}: {key!r} is missing; each task has {', '.join(_REQUIRED)} and tests")
    for key in _TEXTS:
        if not isinstance(record.get(key, ""), str):
            raise TaskError(f"{where}: {key!r} is a {type(record[key]).__name__}; it has to be a text")
    for key in ("task_id", "entry_point"):
        if not record[key].strip():
            raise TaskError(f"{where}: {key!r} is empty; give the task a name, and the function that its tests call")
    if not record["entry_point"].isidentifier():
        raise TaskError(
            f"{where}: the entry_point {record['entry_point']!r} is not the name of a function; give one name"
        )
    if "reference" in record and "canonical_solution" in record:
        raise TaskError(f"{where}: both 'reference' and 'canonical_solution' are given; keep the one that is right")


def _tests(record: dict[str, Any], where: str) -> Tests:
    given = [key for key in _TESTS if key in record]
    if len(given) != 1:
        has = f"has {' and '.join(given)}" if given else "has no tests"
        raise TaskError(f"{where}: the task {has}; give exactly one of {', '.join(_TESTS)}")
    needless = ("setup", "in_place") if given == ["tests"] else ("atol",)
    for key in needless:
        if key in record:
            raise TaskError(
                f"{where}: {key!r} has no effect on {given[0]!r}; remove it, or give the tests in another form"
            )
    if given == ["tests"]:
        return _call_tests(record, where)
    if not isinstance(record.get("in_place", False), bool):
        raise TaskError(f"{where}: 'in_place' is {record['in_place']!r}; it is true or false")
    _parse(record.get("setup", ""), where, "setup")
    if given == ["test_list"]:
        return _listed_tests(record, where)
    return _check_function(record, where)


def _call_tests(record: dict[str, Any], where: str) -> CallTests:
    tests = record["tests"]
    if not isinstance(tests, list) or not tests:
        raise TaskError(f'{where}: \'tests\' has to be a list of {{"input": […], "output": …}} with at least one test')
    for index, test in enumerate(tests):
        if not isinstance(test, dict) or set(test) != {"input", "output"} or not isinstance(test["input"], list):
            raise TaskError(
                f'{where}: tests[{index}] has to be {{"input": [the arguments], "output": the result}} and nothing else'
            )
    atol = record.get("atol", 0.0)
    if isinstance(atol, bool) or not isinstance(atol, int | float) or not 0 <= atol < float("inf"):
        raise TaskError(f"{where}: 'atol' is {atol!r}; it has to be a number of 0 or more")
    try:
        return CallTests.of(
            record["entry_point"],
            [test["input"] for test in tests],
            [test["output"] for test in tests],
            atol=float(atol),
        )
    except (SettingsError, ValueError) as error:  # nested deeper than the wire carries
        raise TaskError(f"{where}: the tests cannot be used: {error}") from error


def _listed_tests(record: dict[str, Any], where: str) -> AssertTests:
    lines = record["test_list"]
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise TaskError(f"{where}: 'test_list' has to be a list of texts with at least one assert")
    for index, line in enumerate(lines):
        body = _parse(line.strip(), where, f"test_list[{index}]")
        if not any(isinstance(node, ast.Assert) for node in ast.walk(body)):
            raise TaskError(f"{where}: test_list[{index}] asserts nothing, so it would always pass; write `assert …`")
    return assert_tests(
        lines,
        entry_point=record["entry_point"],
        setup=record.get("setup", ""),
        writes_back=record.get("in_place", False),
    )


def _check_function(record: dict[str, Any], where: str) -> AssertTests:
    body = _parse(record["test"], where, "test").body
    if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in body):
        raise TaskError(
            f"{where}: 'test' does not define check(candidate); define it, or give the asserts as 'test_list'"
        )
    setup = record.get("setup")
    if setup is None:
        setup = text_above(record["prompt"], record["entry_point"])
        _parse(setup, where, "prompt above the entry point (give 'setup' to replace it)")
    return check_tests(
        record["test"],
        entry_point=record["entry_point"],
        setup=setup,
        writes_back=record.get("in_place", False),
    )


def _parse(code: str, where: str, name: str) -> ast.Module:
    try:
        return parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TaskError(f"{where}: {name!r} is not Python ({error}); mend it") from error
