"""Tasks from anyone's JSON lines: what each form becomes, and what is refused with its line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from unmask.data.jsonl import read_tasks, text_above
from unmask.errors import TaskError
from unmask.sandbox.tests import AssertTests, CallTests

BASE: dict[str, Any] = {"task_id": "a/1", "prompt": "def add(a, b):\n", "entry_point": "add"}
CALLS = {**BASE, "tests": [{"input": [1, 2], "output": 3}, {"input": [0, 0], "output": 0}]}
LISTED = {**BASE, "test_list": ["assert add(1, 2) == 3", " assert add(0, 0) == 0 "]}
CHECKED = {**BASE, "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}


def write(tmp_path: Path, *records: object) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def failure(tmp_path: Path, *records: object) -> str:
    with pytest.raises(TaskError) as caught:
        read_tasks(write(tmp_path, *records))
    return str(caught.value)


def test_calls_become_call_tests(tmp_path: Path) -> None:
    (task,) = read_tasks(write(tmp_path, {**CALLS, "atol": 0.5, "instruction": "Add."}))
    assert task.tests["base"] == CallTests.of("add", [(1, 2), (0, 0)], [3, 0], atol=0.5)
    assert (task.task_id, task.prompt, task.entry_point, task.instruction) == ("a/1", BASE["prompt"], "add", "Add.")
    assert task.required_tests == ("base",)


def test_listed_asserts_become_assert_tests(tmp_path: Path) -> None:
    (task,) = read_tasks(write(tmp_path, {**LISTED, "setup": "import math\n", "in_place": True}))
    assert task.tests["base"] == AssertTests(
        entry_point="add",
        code="assert add(1, 2) == 3\nassert add(0, 0) == 0\n",
        setup="import math\n",
        writes_back=True,
    )


def test_a_check_function_is_called_with_the_entry_point(tmp_path: Path) -> None:
    record = {**CHECKED, "prompt": "import math\n\ndef add(a, b):\n"}
    (task,) = read_tasks(write(tmp_path, record))
    assert task.tests["base"] == AssertTests(
        entry_point="add", code=f"{CHECKED['test']}\ncheck(add)\n", setup="import math\n\n"
    )
    (task,) = read_tasks(write(tmp_path, {**record, "setup": ""}))
    assert task.tests["base"] == AssertTests(entry_point="add", code=f"{CHECKED['test']}\ncheck(add)\n")


def test_a_reference_and_a_completion_are_made_from_each_other(tmp_path: Path) -> None:
    gap = {**CALLS, "suffix": "    return c\n"}
    whole = "def add(a, b):\n    c = a + b\n    return c\n"
    tasks = read_tasks(
        write(
            tmp_path,
            {**gap, "canonical_solution": "    c = a + b\n"},
            {**gap, "task_id": "2", "reference": whole},
            {**gap, "task_id": "3", "reference": "add = int.__add__\n"},
        )
    )
    assert [task.reference for task in tasks] == [whole, whole, "add = int.__add__\n"]
    assert [task.reference_completion for task in tasks] == ["    c = a + b\n", "    c = a + b\n", ""]
    assert tasks[0].program(tasks[0].reference_completion) == whole


def test_text_above_stops_at_the_entry_points_own_definition() -> None:
    prompt = "def add_all(x): ...\n\nasync def add(a):\n    def add(b): ...\n"
    assert text_above(prompt, "add") == "def add_all(x): ...\n\n"
    assert text_above("Write add.", "add") == ""


def test_human_evals_own_file_is_such_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(os.environ.get("UNMASK_DATA") or Path(__file__).parents[3] / "shared" / "data")
    path = shared / "humaneval" / "HumanEval.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no benchmark data: UNMASK_DATA is not set, and there is no file {path}")
    from unmask.evaluate.benchmarks import load

    monkeypatch.setenv("UNMASK_DATA", str(shared))
    assert read_tasks(path) == load("humaneval").tasks


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({**CALLS, "columns": ["easy"]}, "'columns' is ['easy']; it has to be an object whose keys are names"),
        ({**CALLS, "columns": {"not a name": 1}}, "it has to be an object whose keys are names"),
        ({**CALLS, "columns": {"task": 1}}, "the column 'task' has the name of what is passed anyway"),
        ({**CALLS, "entrypoint": "x"}, "the key 'entrypoint' is not known; did you mean entry_point"),
        ({"task_id": "a", "entry_point": "f", "test_list": []}, "'prompt' is missing; each task has task_id, prompt"),
        ({**CALLS, "prompt": 3}, "'prompt' is a int; it has to be a text"),
        ({**CALLS, "task_id": " "}, "'task_id' is empty; give the task a name"),
        ({**CALLS, "entry_point": "a.b"}, "the entry_point 'a.b' is not the name of a function"),
        ({**CALLS, "reference": "", "canonical_solution": ""}, "both 'reference' and 'canonical_solution' are given"),
        (BASE, "the task has no tests; give exactly one of tests, test_list, test"),
        ({**CALLS, "test": CHECKED["test"]}, "the task has tests and test; give exactly one of"),
        ({**CALLS, "setup": "import math"}, "'setup' has no effect on 'tests'; remove it"),
        ({**CALLS, "in_place": True}, "'in_place' has no effect on 'tests'"),
        ({**LISTED, "atol": 1}, "'atol' has no effect on 'test_list'"),
        ({**LISTED, "in_place": 1}, "'in_place' is 1; it is true or false"),
        ({**BASE, "tests": []}, "'tests' has to be a list of"),
        ({**BASE, "tests": [{"input": [1], "output": 1}, {"input": 1, "output": 1}]}, "tests[1] has to be"),
        ({**BASE, "tests": [{"input": [1], "output": 1, "hint": 1}]}, "tests[0] has to be"),
        ({**CALLS, "atol": -1}, "'atol' is -1; it has to be a number of 0 or more"),
        ({**CALLS, "atol": True}, "'atol' is True"),
        ({**CALLS, "atol": float("nan")}, "'atol' is nan"),
        ({**BASE, "test_list": []}, "'test_list' has to be a list of texts with at least one assert"),
        ({**BASE, "test_list": ["assert add(1, 2) == 3", "add(1, 2)"]}, "test_list[1] asserts nothing"),
        ({**BASE, "test_list": ["assert add(1, 2 == 3"]}, "'test_list[0]' is not Python"),
        ({**LISTED, "setup": "import"}, "'setup' is not Python"),
        ({**BASE, "test": "assert add(1, 2) == 3"}, "'test' does not define check(candidate)"),
        ({**BASE, "test": "def check(candidate:\n"}, "'test' is not Python"),
        ({**BASE, "test": "def check(c): \0"}, "'test' is not Python"),
        ({**CHECKED, "prompt": "Please write\ndef add(a, b):"}, "prompt above the entry point (give 'setup' to"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, record: dict[str, Any], told: str) -> None:
    message = failure(tmp_path, {**CALLS, "task_id": "first"}, record)
    assert f"{tmp_path / 'mine.jsonl'}, line 2: " in message
    assert told in message


def test_tests_nested_too_deep_are_refused(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    assert "line 1: the tests cannot be used: " in failure(
        tmp_path, {**BASE, "tests": [{"input": [deep], "output": 1}]}
    )


def test_a_task_id_that_is_there_twice_names_both_lines(tmp_path: Path) -> None:
    message = failure(tmp_path, CALLS, {**CALLS, "task_id": "b"}, CALLS)
    assert "line 3: the task_id 'a/1' is on line 1 already; give each its own" in message


def test_a_file_without_tasks_is_refused(tmp_path: Path) -> None:
    assert "mine.jsonl holds no tasks; write one JSON object a line" in failure(tmp_path)


def test_other_peoples_escapes_are_no_warning(tmp_path: Path) -> None:
    (task,) = read_tasks(write(tmp_path, {**BASE, "test_list": ['assert add("\\d", "") == "\\\\d"']}))
    assert isinstance(task.tests["base"], AssertTests)
