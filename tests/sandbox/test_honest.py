"""Honest programs that a strict sandbox might wrongly refuse: each passes, on each back end that isolates.

The programs and their tests are in `honest.txt`: `#: name`, the program, `#= calls` or `#= asserts NAME`, the tests.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.errors import SandboxError
from unmask.sandbox.executor import Job, LocalExecutor, open_executor
from unmask.sandbox.inside import values
from unmask.sandbox.tests import AssertTests, CallTests, Tests
from unmask.sandbox.verdict import Limits, Verdict

LIMITS = Limits(cpu_seconds=5, wall_seconds=20, memory_bytes=1 << 30)


def honest_programs() -> dict[str, tuple[str, Tests]]:
    found: dict[str, tuple[str, Tests]] = {}
    text = (Path(__file__).parent / "honest.txt").read_text("utf-8")
    for section in re.split(r"^#: ", text, flags=re.M)[1:]:
        name, rest = section.split("\n", 1)
        program, kind, *flags, body = re.split(r"^#= (\w+)(?: (\w+))?( writes_back)?\n", rest, flags=re.M)
        if kind == "asserts":
            tests: Tests = AssertTests(entry_point=flags[0], code=body, writes_back=bool(flags[1]))
        else:
            calls = [ast.literal_eval(line) for line in body.splitlines()]
            tests = CallTests.of("f", [arguments for arguments, _ in calls], [expected for _, expected in calls])
        found[name] = (program, tests)
    infinite = float("inf")
    found |= {
        "large_ints": ("def f(x): return 3**x", CallTests.of("f", [(9000,)], [3**9000])),
        "large_ints_in_a_list_of_floats": (
            "def f(x): return [10**5000, 1.0]",
            CallTests.of("f", [(1,)], [[10**5000, 1]]),
        ),
        "infinities": (
            "def f(x): return [x, -x, 0.0]",
            CallTests.of("f", [(infinite,)], [[infinite, -infinite, 0.0]]),
        ),
        "a_lone_surrogate": ("def f(x): return x + x", CallTests.of("f", [("\ud800",)], ["\ud800\ud800"])),
        "an_answer_of_many_megabytes": (
            "def f(x): return list(range(x))",
            CallTests.of("f", [(3_000_000,)], [list(range(3_000_000))]),
        ),
        "setup_of_the_tests": (
            "def f(x): return helper(x) if 'helper' in globals() else x + 1",
            AssertTests(
                entry_point="f", setup="import math\ndef helper(x): return 5", code="assert f(1) == math.floor(2.5)"
            ),
        ),
        "names_that_the_program_shares_with_the_tests": (
            "def check(x): return False\nexpected = 7\ndef f(x): return x + 1",
            AssertTests(entry_point="f", code="def check(g):\n    expected = 2\n    assert g(1) == expected\ncheck(f)"),
        ),
    }
    return found


PROGRAMS = honest_programs()


@pytest.fixture(scope="module", params=["bwrap", "landlock"])
def verdicts(request: pytest.FixtureRequest) -> Iterator[dict[str, Verdict]]:
    try:
        found = open_executor(request.param, workers=2)
    except SandboxError as error:
        pytest.skip(f"{request.param} cannot be had here: {error}")
    with found:
        jobs = [Job(code=program, tests=tests, limits=LIMITS) for program, tests in PROGRAMS.values()]
        yield dict(zip(PROGRAMS, found.judge(jobs), strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_honest_program_passes(verdicts: dict[str, Verdict], name: str) -> None:
    assert verdicts[name].status == "pass", verdicts[name]


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    try:
        found = open_executor(workers=1)
    except SandboxError as error:
        pytest.skip(str(error))
    assert isinstance(found, LocalExecutor)
    with found:
        yield found


FAILS = {
    "a wrong answer": ("def f(x): return x", "fail", "f(1) returned 1, expected 2"),
    "an exception": ("def f(x): return 1 / 0", "fail", "f(1) raised ZeroDivisionError: division by zero"),
    "no such function": ("def g(x): return x", "fail", "f is not defined"),
    "no function": ("f = 5", "fail", "'int' object is not callable"),
    "nothing": ("", "fail", "f is not defined"),
    "not Python": ("def f(x) return x", "syntax_error", "SyntaxError: expected ':' (line 1)"),
    "an error while loading": ("import nothing_of_that_name", "fail", "ModuleNotFoundError"),
    "too much time": ("def f(x):\n    while True: pass", "timeout", "CPU time"),
    "too much memory": ("def f(x): return bytearray(1 << 40)", "memory", "MemoryError"),
    "too much output": ("def f(x):\n    while True: print('a' * 10**6)", "output", "printed more than"),
    "too large a file": ("def f(x): open('a', 'wb').write(bytes(1 << 26))", "output", "File too large"),
    "an end of its own": ("import os\ndef f(x): os._exit(3)", "crash", "the process ended itself with exit code 3"),
    "a signal": ("import os\ndef f(x): os.abort()", "crash", "the process was ended by SIGABRT"),
}


@pytest.mark.parametrize("name", FAILS)
def test_a_failure_is_told_as_what_it_is(executor: LocalExecutor, name: str) -> None:
    code, status, message = FAILS[name]
    limits = Limits(cpu_seconds=0.5, wall_seconds=10, memory_bytes=1 << 30)
    (verdict,) = executor.judge([Job(code=code, tests=CallTests.of("f", [(1,)], [2]), limits=limits)])
    assert verdict.status == status, verdict
    assert message in verdict.message


def test_a_failed_assertion_is_shown_with_the_last_call(executor: LocalExecutor) -> None:
    tests = AssertTests(entry_point="f", code="x = 3\nassert f(x) == 4, 'off by one'")
    (verdict,) = executor.judge([Job(code="def f(x): return x", tests=tests, limits=LIMITS)])
    assert verdict.status == "fail"
    assert verdict.message == "assert f(x) == 4, 'off by one' failed: off by one; the last call: f(3) returned 3"


def test_the_failed_call_and_the_passed_ones_are_counted(executor: LocalExecutor) -> None:
    tests = CallTests.of("f", [(1,), (2,), (3,)], [1, 2, 4])
    (verdict,) = executor.judge([Job(code="def f(x): return x", tests=tests, limits=LIMITS)])
    assert (verdict.failed_test, verdict.num_tests) == (2, 2)


def test_a_call_has_its_own_time_limit(executor: LocalExecutor) -> None:
    tests = CallTests.of("f", [(0.0,), (1.0,)], [0.0, 1.0], call_cpu_seconds=[0.2, 0.2])
    code = "from time import process_time\ndef f(x):\n    while process_time() < x: pass\n    return x"
    (verdict,) = executor.judge([Job(code=code, tests=tests, limits=LIMITS)])
    assert (verdict.status, verdict.failed_test) == ("timeout", 1)
    assert verdict.message == "f(1.0) took more than 0.2 s of CPU time"


COUNTED = {
    "right": ("def f(x): return x + 1", "pass", None, 4),
    "wrong for two": ("def f(x): return x + 1 if x > 1 else 0", "fail", 0, 2),
    "raises in one": ("def f(x): return x + 1 + 0 // (x - 1)", "fail", 1, 3),
    "raises in all": ("def f(x): raise SystemExit(0)", "fail", 0, 0),
    "ends itself in one": ("import os\ndef f(x): return os._exit(0) if x == 2 else x + 1", "crash", 2, 3),
    "ends itself in all": ("import os\ndef f(x): os._exit(0)", "crash", 0, 0),
    "ends itself at the last": ("import os\ndef f(x): return os._exit(0) if x == 3 else x + 1", "crash", 3, 3),
    "does not parse": ("def f(x) return x", "syntax_error", 0, 0),
    "does not load": ("import nothing_of_that_name", "fail", 0, 0),
    "wants too much memory once": ("def f(x): return x + 1 + (x == 0) * len(bytearray(1 << 40))", "memory", 0, 0),
    "hangs in one": ("def f(x):\n    while x == 1: pass\n    return x + 1", "timeout", 1, 3),
    "hangs in one and does not let go": (
        "def f(x):\n    if x == 1: sum(range(10**15))\n    return x + 1",
        "timeout",
        1,
        3,
    ),
    "wrong in one, hangs in another": ("def f(x):\n    while x == 2: pass\n    return x and x + 1", "timeout", 2, 2),
}


@pytest.mark.parametrize("name", COUNTED)
def test_every_call_is_counted_where_that_is_asked_for(executor: LocalExecutor, name: str) -> None:
    code, *expected = COUNTED[name]
    tests = CallTests.of("f", [(n,) for n in range(4)], [1, 2, 3, 4], call_cpu_seconds=[0.1] * 4, counts_all=True)
    (verdict,) = executor.judge([Job(code=code, tests=tests, limits=LIMITS)])
    assert [verdict.status, verdict.failed_test, verdict.num_tests] == expected, verdict


SLEEPS = {
    "in one": ("def f(x):\n    time.sleep(60 * (x == 1))\n    return x + 1", 1, 3, "a call took more than 1.5 s"),
    "while it loads": ("time.sleep(60)\ndef f(x): return x + 1", 0, 0, "loading the program took more than 1.5 s"),
}


@pytest.mark.parametrize("name", SLEEPS)
def test_a_call_that_sleeps_ends_at_its_own_wall_limit(executor: LocalExecutor, name: str) -> None:
    code, failed_test, num_tests, message = SLEEPS[name]
    calls = CallTests.of("f", [(n,) for n in range(4)], [1, 2, 3, 4], counts_all=True)
    tests = replace(calls, call_wall_seconds=1.5)
    limits = Limits(wall_seconds=30)
    (verdict,) = executor.judge([Job(code=f"import time\n{code}", tests=tests, limits=limits)])
    assert (verdict.status, verdict.failed_test, verdict.num_tests) == ("timeout", failed_test, num_tests), verdict
    assert verdict.message == message
    assert verdict.wall_seconds < 15


def test_all_calls_together_keep_to_the_limit_of_the_run(executor: LocalExecutor) -> None:
    code = "def f(x):\n    while True: pass"
    tests = CallTests.of("f", [(n,) for n in range(9)], range(9), call_cpu_seconds=[0.2] * 9, counts_all=True)
    limits = Limits(cpu_seconds=0.5, wall_seconds=20)
    (verdict,) = executor.judge([Job(code=code, tests=tests, limits=limits)])
    assert (verdict.status, verdict.num_tests) == ("timeout", 0)
    assert verdict.cpu_seconds < 1.0


def test_arguments_are_changed_for_the_tests_only_where_they_ask_for_it(executor: LocalExecutor) -> None:
    code = "def f(x): x.append(1)"
    tests = {
        back: AssertTests(entry_point="f", code="a = []\nf(a)\nassert a == [1]", writes_back=back)
        for back in (True, False)
    }
    verdicts = list(executor.judge([Job(code=code, tests=each, limits=LIMITS) for each in tests.values()]))
    assert [verdict.status for verdict in verdicts] == ["pass", "fail"]


def test_the_answers_of_a_trusted_program_are_returned_as_they_are(executor: LocalExecutor) -> None:
    run = executor.call("def f(x): return [x, {x: None}]", "f", values.encode([(1,), (2.5,)]), LIMITS)
    broken = executor.call("def f(x): return 1 // x", "f", values.encode([(1,), (0,)]), LIMITS)
    assert [values.decode(answer) for answer in run.answers] == [[1, {1: None}], [2.5, {2.5: None}]]
    assert len(run.cpu_seconds) == 2
    assert run.error == ""
    assert (len(broken.answers), "ZeroDivisionError" in broken.error) == (1, True)
