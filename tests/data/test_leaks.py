"""What a prompt gives away of its tests, in the forms in which prompts show calls, and what is left of a task."""

import ast
from dataclasses import replace

import pytest

from unmask.data.leaks import claims, leaks, num_tests, without_leaks
from unmask.data.task import Task
from unmask.sandbox.inside import values
from unmask.sandbox.tests import AssertTests, CallTests, UnitTests

CALLS = CallTests.of("add", [(1, 2), ([1], "a"), (3, 4), (-1, 0.5)], [3, ["x"], True, (1, "=")])


def task_of(*tests: AssertTests | CallTests | UnitTests, required: tuple[str, ...] = ()) -> Task:
    return Task(task_id="t", prompt="", tests=dict(zip(("base", "plus"), tests, strict=False)), required=required)


@pytest.mark.parametrize(
    "text",
    [
        "def add(a, b):\n    '''Add.\n\n    >>> add(1, 2)\n    3\n    '''",
        ">>> add(1, 2)  # the sum\n3",
        "assert add(1,2)==3",
        "    assert add(1, 2) == 3, 'no'",
        "For example `add(1, 2) == 3`.",
        "For example `add(1, 2)` returns `3`.",
        "add(1, 2) -> 3",
        "add(a=1, b=2) => 3, and so on",
        "add(1, 2) should be 3.",
        "`add(1, 2)` will return `3`",
        "calling add(1, 2) should output 3",
        "add(1, 2) evaluates to 3",
        "Example: add( 1, 2 ) = 3\nadd(9, 9)",
        "print(add(1, 2))\n# 18\nadd(1, 2)  # 3",
    ],
)
def test_a_call_with_its_value_is_a_leak_however_it_is_written(text: str) -> None:
    assert leaks(task_of(CALLS), text) == ["add(1, 2) == 3"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def add(a: int, b: int) -> int:\n    return 3",
        "add(1, 2)",
        "add(1, 2) == 4",
        "add(1, 3) == 3",
        "add(1, 2) == 30",
        "add(1, 2) == 3.5",
        "add(1, 2) is hard to say",
        "badd(1, 2) == 3",
        "add(1, 2",
        "add(x, 2) == 3",
        "add(1, 2) == '\\d' and \\z",
    ],
)
def test_what_only_looks_like_it_is_none(text: str) -> None:
    assert leaks(task_of(CALLS), text) == []


def test_values_of_every_kind_are_compared() -> None:
    text = ">>> add([1], 'a')\n['x']\n>>> add(3, 4)\nTrue\n>>> add(-1, 0.5)\n(1, '=')\n"
    assert leaks(task_of(CALLS), text) == ["add([1], 'a') == ['x']", "add(3, 4) == True", "add(-1, 0.5) == (1, '=')"]


def test_the_rest_of_the_calls_is_as_it_was() -> None:
    limited = replace(CALLS, call_cpu_seconds=(1.0, 2.0, 3.0, 4.0), atol=0.25)
    task, taken = without_leaks(task_of(limited), "add([1], 'a') == ['x'] and add(3, 4) == True")
    rest = task.tests["base"]
    assert isinstance(rest, CallTests)
    assert taken == ["add([1], 'a') == ['x']", "add(3, 4) == True"]
    assert values.decode(rest.inputs) == [(1, 2), (-1, 0.5)]
    assert [values.decode(value) for value in rest.expected] == [3, (1, "=")]
    assert rest.call_cpu_seconds == (1.0, 4.0)
    assert (rest.entry_point, rest.oracle, rest.atol) == ("add", "equal", 0.25)
    assert (num_tests(task_of(limited)), num_tests(task)) == (4, 2)


def test_a_task_that_nothing_is_given_away_of_is_the_same_object() -> None:
    task = task_of(CALLS)
    assert without_leaks(task, "add two numbers: add(1, 2) == 5") == (task, [])
    assert without_leaks(task, "add(1, 2) == 5")[0] is task


ASSERTS = """import math
assert add(1, 2) == 3
assert add(1, 3) == add(2, 2)
assert math.isclose(add(0.1, 0.2), 0.3)
assert add(True, [])
assert not add(0, 0)
"""


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("assert add(1, 2) == 3", ["assert add(1, 2) == 3"]),
        (">>> add(1, 2)\n3", ["assert add(1, 2) == 3"]),
        ("assert add(1,   3) ==\n  add(2, 2)", ["assert add(1, 3) == add(2, 2)"]),
        ("(assert math.isclose(add(0.1, 0.2), 0.3))", ["assert math.isclose(add(0.1, 0.2), 0.3)"]),
        ("add(True, []) is True", ["assert add(True, [])"]),
        (">>> add(0, 0)\nFalse", ["assert not add(0, 0)"]),
        ("assert add(1, 2) == 33", []),
        ("assert add(1, 2) == 3.5", []),
        ("assert add(1, 2)", []),
    ],
)
def test_assertions_leak_by_their_words_and_by_what_they_say(text: str, taken: list[str]) -> None:
    task, found = without_leaks(task_of(AssertTests(entry_point="add", code=ASSERTS)), text)
    assert found == taken
    assert num_tests(task) == 5 - len(taken)
    rest = task.tests["base"]
    assert isinstance(rest, AssertTests)
    left = [ast.unparse(node) for node in ast.parse(rest.code).body if isinstance(node, ast.Assert)]
    assert left == [line for line in ASSERTS.splitlines()[1:] if line not in taken]
    assert rest.code.startswith("import math")


def test_assertions_inside_check_are_taken_out_of_it() -> None:
    code = "def check(candidate):\n    for x in (1,):\n        assert candidate(x) == 1\n    assert candidate(2) == 4\n"
    tests = AssertTests(entry_point="square", code=f"{code}check(square)\n", setup="import math\n")
    task, taken = without_leaks(task_of(tests), "def square(x):\n    '''\n    >>> square(2)\n    4\n    '''")
    rest = task.tests["base"]
    assert isinstance(rest, AssertTests)
    assert taken == ["assert candidate(2) == 4"]
    assert "candidate(x) == 1" in rest.code
    assert "candidate(2)" not in rest.code
    exec(rest.code, {"square": lambda x: x * x})
    assert rest.setup == "import math\n"
    assert num_tests(task_of(tests)) == num_tests(task) == 1  # a reward cannot run them apart


def test_a_set_without_tests_is_gone_and_one_that_does_not_decide_stays() -> None:
    small = CallTests.of("add", [(1, 2)], [3])
    both, taken = without_leaks(task_of(small, CALLS), "add(1, 2) == 3")
    assert set(both.tests) == {"plus"}
    assert len(taken) == 2
    assert num_tests(both) == 3
    one, taken = without_leaks(task_of(CALLS, small, required=("base",)), "add(1, 2) == 3")
    assert (set(one.tests), one.required, len(taken)) == ({"base", "plus"}, ("base",), 1)
    assert one.tests["plus"] is small
    gone, taken = without_leaks(task_of(small, CALLS, required=("base",)), "add(1, 2) == 3")
    assert (gone.tests, gone.required, num_tests(gone), len(taken)) == ({}, (), 0, 1)  # "plus" never decided
    none, _ = without_leaks(task_of(small), "add(1, 2) == 3")
    assert (none.tests, num_tests(none)) == ({}, 0)


def test_unit_tests_stand_and_fall_together() -> None:
    code = "class TestCases(unittest.TestCase):\n    def test_one(self):\n        self.assertEqual(f(1), 2)\n"
    task = task_of(UnitTests(code=code, num_tests=4))
    assert num_tests(task) == 1  # a reward cannot run them apart
    assert without_leaks(task, "f(1) is 2")[0] is task
    assert without_leaks(task, "as in self.assertEqual(f(1), 2)")[1] == ["self.assertEqual(f(1), 2)"]
    assert num_tests(without_leaks(task, "as in self.assertEqual(f(1), 2)")[0]) == 0


def test_claims_are_read_of_calls_and_assertions() -> None:
    assert claims(CALLS)[:2] == [((1, 2), 3), (([1], "a"), ["x"])]
    assert claims(AssertTests(entry_point="add", code=ASSERTS)) == [
        ((1, 2), 3),
        None,
        None,
        ((True, []), True),
        ((0, 0), False),
    ]
    assert claims(CallTests.of("f", [(1,)], ["x" * (5 << 20)])) == [None]


def test_a_long_value_is_never_in_a_prompt() -> None:
    long = CallTests.of("f", [(1,)], ["x" * (5 << 20)])
    assert long.expected[0].startswith(b"D")
    assert leaks(task_of(long), "f(1) == 2") == []
