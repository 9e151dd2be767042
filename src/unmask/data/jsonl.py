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
    columns             {"difficulty": 3, …}: what reward functions are passed beside the task, by these names

Unknown keys are refused. HumanEval's own file is such a file. JSON has no tuples, sets or bytes: tasks that return them
need `test_list` or `test`.

A row of AceCode (Zeng et al. 2025; TIGER-Lab/AceCode-87K) is read as well: `id`, `question` and `test_cases`, which
are asserts; of its `inferences` the best program, if it passed everything, is the reference. Where none did, an assert
that uses a name which nobody gives (a bare `isclose`) is left out: it would ask the answer for it. Other columns are
passed over. The question stands in the prompt, and no test does.
"""

import ast
import builtins
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.atomic import beside
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
KEYS = (*_TEXTS, "tests", "test_list", "atol", "in_place", "columns")
_TAKEN = ("prompts", "completions", "task", "task_id", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What reward functions are passed under names of its own (`reward/function.py`)."""


def read_tasks(path: Path) -> tuple[Task, ...]:
    """All tasks of a file. Raises TaskError with the number of the line that is wrong."""
    tasks: list[Task] = []
    lines: dict[str, int] = {}
    for number, record in numbered_records(path):
        where = f"{path}, line {number}"
        task = task_of(record, where)
        if task.task_id in lines:
            raise TaskError(
                f"{where}: the task_id {task.task_id!r} is on line {lines[task.task_id]} already; give each its own"
            )
        lines[task.task_id] = number
        tasks.append(task)
    if not tasks:
        raise TaskError(f"{path} holds no tasks; write one JSON object a line: {', '.join(_REQUIRED)} and tests")
    return tuple(tasks)


def write_records(records: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write one JSON object a line, and return how many. The file appears when it is complete."""
    check_output(path)
    written = 0
    with beside(path) as part, part.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            written += 1
    return written


def check_output(path: Path) -> None:
    """Raise SettingsError for a place where `write_records` cannot write: to be asked before the work."""
    if not path.parent.is_dir():
        raise SettingsError(f"there is no folder {path.parent} for {path.name}; make it, or give another output file")
    if not path.name.endswith(".jsonl"):
        raise SettingsError(f"{path} would hold plain JSON lines, and task files end in .jsonl; give such a name")


def task_of(record: Mapping[str, Any], where: str) -> Task:
    """The task in one object. Raises TaskError, whose text begins with `where`."""
    if is_acecode(record):
        record = from_acecode(record, where)
    return _task(dict(record), where)


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


def called_function(test_list: Sequence[str], code: str = "") -> str:
    """The function that asserts call: the first one that `code` defines; without code the one in most of the asserts.

    Empty where there is none. Raises SyntaxError for asserts that are no Python.

    >>> called_function(["assert set(f(1)) == {1}", "assert len(f(2)) == g(2)"])
    'f'
    """
    defined = {node.name for node in parse(code).body if isinstance(node, ast.FunctionDef)} if code else set()
    if defined:
        return next((name for name in _called("\n".join(test_list)) if name in defined), "")
    calls: Counter[str] = Counter()
    for test in test_list:
        calls.update(list(dict.fromkeys(name for name in _called(test) if not hasattr(builtins, name))))
    return max(calls, key=lambda name: calls[name], default="")  # of equal ones the outermost call of the first test


def imports_of_tests(code: str, test_list: Sequence[str]) -> list[str]:
    """Imports of a program on which asserts rely (MBPP 596 asks `sys.getsizeof`).

    Left to the program, such a module would be one that the program hands out.
    """
    used = {node.id for node in ast.walk(parse("\n".join(test_list))) if isinstance(node, ast.Name)}
    imports = (node for node in parse(code).body if isinstance(node, ast.Import | ast.ImportFrom))
    return [ast.unparse(node) for node in imports if used & {name.asname or name.name for name in node.names}]


def modules_of_tests(test_list: Sequence[str]) -> list[str]:
    """Imports of the standard library on which asserts rely without saying so, where no program has them.

    >>> modules_of_tests(["assert math.isclose(f(1), 0.5)", "queue = f(2)\\nassert queue.pop() == 1"])
    ['import math']
    """
    nodes = [node for node in ast.walk(parse("\n".join(test_list))) if isinstance(node, ast.Name | ast.Attribute)]
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    asked = (node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return [f"import {name}" for name in dict.fromkeys(asked) if name in sys.stdlib_module_names and name not in bound]


def self_contained(test_list: Sequence[str], entry_point: str) -> list[str]:
    """The asserts that use nothing but the function, builtins, modules of the standard library, and their own names.

    Any other name would be one of the answer's, which could then judge itself.

    >>> self_contained(["assert isclose(f(1), 0.5)", "assert math.isclose(f(1), 0.5)"], "f")
    ['assert math.isclose(f(1), 0.5)']
    """
    modules = "\n".join(modules_of_tests(test_list))
    given = {entry_point, *vars(builtins), *_bound("\n".join([modules, *test_list]))}
    names = ((test, (node for node in ast.walk(parse(test)) if isinstance(node, ast.Name))) for test in test_list)
    return [test for test, used in names if given.issuperset(node.id for node in used)]


def _bound(code: str) -> Iterator[str]:
    """Names that some code binds, wherever it does."""
    for node in ast.walk(parse(code)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def docstring_of(text: str) -> str:
    """A text as the docstring at the head of a file, whatever is in it.

    >>> print(docstring_of("Add."), end="")
    \"\"\"
    Add.
    \"\"\"
    """
    escaped = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"').replace("\r", "\\r").replace("\0", "\\0")
    return f'"""\n{escaped}\n"""\n'


def _called(code: str) -> Iterator[str]:
    """Names that are called, outer calls before the ones inside them."""
    calls = (node for node in ast.walk(parse(code)) if isinstance(node, ast.Call))
    return (call.func.id for call in calls if isinstance(call.func, ast.Name))


# AceCode


def is_acecode(record: Mapping[str, Any]) -> bool:
    """Whether an object is a row of AceCode: it asks a question, and has no `task_id`."""
    return "question" in record and "task_id" not in record


def from_acecode(row: Mapping[str, Any], where: str, *, show_test: bool = False) -> dict[str, Any]:
    """A row of AceCode as a record of ours.

    `show_test` puts its first test into the prompt, and takes it out of the tests. A row with one test shows none, nor
    does one whose question has code in a fence. The function's name is given where the question does not say it.
    Asserts that a row without a program cannot judge by are left out (`self_contained`).
    """
    tests = acecode_tests(row, where)
    program = acecode_program(row)
    try:
        entry_point = called_function(tests, program) or called_function(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TaskError(f"{where}: its test_cases are not Python ({error}); leave that row out") from error
    if not entry_point:
        raise TaskError(f"{where}: its test_cases call no function of the program; leave that row out")
    if not program and not (tests := self_contained(tests, entry_point)):
        raise TaskError(
            f"{where}: each of its test_cases uses names beside {entry_point} that nobody gives, and it has no program "
            "that passed; leave that row out, as `unmask data select` does"
        )
    question = row["question"].strip()
    if not re.search(rf"\b{re.escape(entry_point)}\b", question):
        question += f"\n\nThe function is called `{entry_point}`."
    others = [test for test in tests if not same_code(test, tests[0])]
    if show_test and others and "```" not in question:
        question += f"\n\nA test that it has to pass: `{tests[0]}`"
        tests = others
    record: dict[str, Any] = {
        "task_id": row["id"],
        "prompt": docstring_of(question),
        "instruction": question,
        "entry_point": entry_point,
        "test_list": tests,
    }
    if program:
        record["reference"] = program
    imports = imports_of_tests(program, tests) if program else modules_of_tests(tests)
    if imports:
        record["setup"] = "".join(f"{line}\n" for line in imports)
    return record


def acecode_tests(row: Mapping[str, Any], where: str) -> list[str]:
    """The asserts of a row. Raises TaskError for a row without an id, a question, or tests."""
    for key in ("id", "question"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise TaskError(f"{where}: {key!r} is {row.get(key)!r:.40}; a row of AceCode has a text there")
    tests = row.get("test_cases")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        near = [key for key in row if key.startswith("test") and key != "test_cases"]
        raise TaskError(
            f"{where}: the task {row['id']!r} has no tests: 'test_cases' has to be a list of asserts with at least one"
            + (f" (there is {near[0]!r})" if near else "")
        )
    return [test.strip() for test in tests]


def acecode_program(row: Mapping[str, Any]) -> str:
    """The first recorded program that passed everything, without its fence; empty where there is none."""
    for inference in row.get("inferences") or ():
        if isinstance(inference, dict) and inference.get("pass_rate") == 1:
            program = unfenced(str(inference.get("completion")))
            if "def " in program and _is_python(program):
                return program
    return ""


def unfenced(text: str) -> str:
    """The code in the first fence of an answer; all of an answer that has none.

    >>> unfenced("Here it is:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    found = re.search(r"^```[^\n`]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else text


def same_code(a: str, b: str) -> bool:
    """Whether two pieces of code differ in layout alone.

    >>> same_code("assert f( 1 )==2", "assert f(1) == 2")
    True
    """
    try:
        return ast.dump(parse(a.strip())) == ast.dump(parse(b.strip()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return a.strip() == b.strip()


def _is_python(code: str) -> bool:
    try:
        return bool(parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


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
        columns=record.get("columns", {}),
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
    columns = record.get("columns", {})
    if not isinstance(columns, dict) or not all(name.isidentifier() for name in columns):
        raise TaskError(f"{where}: 'columns' is {columns!r:.80}; it has to be an object whose keys are names")
    for name in columns:
        if name in _TAKEN:
            raise TaskError(f"{where}: the column {name!r} has the name of what is passed anyway; give it another")
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
