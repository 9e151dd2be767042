"""Executed tests as a reward: shares, what is not run, lost samples, and answers that cheat."""

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unmask.data.leaks import num_tests
from unmask.data.task import Task
from unmask.errors import SandboxError, SettingsError, TaskError
from unmask.reward.combine import combine
from unmask.reward.pass_fraction import PassFraction
from unmask.reward.settings import RewardSettings, open_rewards
from unmask.sandbox.cache import VerdictCache
from unmask.sandbox.executor import LocalExecutor, open_executor
from unmask.sandbox.job import Job
from unmask.sandbox.tests import AssertTests, CallTests, Tests, UnitTests, assertions_apart, num_scored
from unmask.sandbox.verdict import Limits, Verdict

CALLS = CallTests.of("f", [(n,) for n in range(4)], [n + 1 for n in range(4)])
ASSERTS = AssertTests(entry_point="f", code="".join(f"assert f({n}) == {n + 1}\n" for n in range(4)))
RIGHT = "def f(x): return x + 1"


def task(tests: Tests, /, **given: Any) -> Task:
    limits = Limits(cpu_seconds=2.0, wall_seconds=20, memory_bytes=1 << 30)
    return Task(**{"task_id": "t", "prompt": "", "tests": {"base": tests}, "limits": limits, **given})


def answer(code: str) -> str:
    return f"```python\n{code}\n```"


class Fake:
    """Gives the verdicts that a rule makes of the jobs, and keeps the jobs."""

    name, guarantees, interpreter = "fake", (), "Python"

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.jobs: list[Job] = []

    def judge(self, jobs: Iterable[Job], /) -> Iterator[Verdict]:
        for job in jobs:
            self.jobs.append(job)
            yield self.rule(job)

    def call(self, *_: Any) -> Any:
        raise AssertionError

    def close(self) -> None:
        pass


def passes(job: Job) -> Verdict:
    return Verdict(status="pass")


def loses(job: Job) -> Verdict:
    return Verdict(status="sandbox_error", message="no jail could be started")


# What is run, and what is not


def test_text_without_its_one_block_is_worth_nothing_and_not_run() -> None:
    fake = Fake(passes)
    texts = [RIGHT, answer(RIGHT) + "\nDone.", answer(RIGHT) * 2, "```python\ndef f(x\n```", "```python\n\0\n```", ""]
    assert PassFraction(fake)(completions=texts, task=[task(CALLS)] * len(texts)) == [0.0] * len(texts)
    assert fake.jobs == []


def test_the_preamble_stands_above_the_code() -> None:
    fake = Fake(passes)
    assert PassFraction(fake)(completions=[answer(RIGHT)], task=[task(CALLS, preamble="import math")]) == [1.0]
    assert fake.jobs[0].code == f"import math\n{RIGHT}\n"


def test_the_same_program_is_judged_once_in_a_batch() -> None:
    fake = Fake(passes)
    other = task(CALLS, task_id="other", limits=Limits(cpu_seconds=1.0))
    texts = [answer(RIGHT), [{"role": "assistant", "content": answer(RIGHT)}], answer("f = None"), answer(RIGHT)]
    tasks = [task(CALLS), task(CALLS), task(CALLS), other]
    assert PassFraction(fake)(completions=texts, task=tasks) == [1.0] * 4
    assert [job.code for job in fake.jobs] == [f"{RIGHT}\n", "f = None\n", f"{RIGHT}\n"]


def test_a_cache_knows_the_programs_of_earlier_batches(tmp_path: Path) -> None:
    def half(job: Job) -> Verdict:
        return Verdict(status="fail", num_tests=2, failed_test=0)

    fake = Fake(half)
    with VerdictCache(fake, tmp_path / "verdicts.sqlite") as cache:
        reward = PassFraction(cache)
        for _ in range(3):
            assert reward(completions=[answer(RIGHT)], task=[task(CALLS)]) == [0.5]
    assert len(fake.jobs) == 1


def test_tests_keep_their_own_time_limits_and_get_one_where_they_have_none() -> None:
    fake = Fake(passes)
    own = CallTests.of("f", [(1,)], [2], call_cpu_seconds=[0.25])
    PassFraction(fake, test_cpu_seconds=0.5)(
        completions=[answer(RIGHT)] * 3, task=[task(own), task(CALLS), task(ASSERTS)]
    )
    mine, given, *asserts = fake.jobs
    assert isinstance(mine.tests, CallTests)
    assert isinstance(given.tests, CallTests)
    assert (mine.tests.call_cpu_seconds, given.tests.call_cpu_seconds) == ((0.25,), (0.5,) * 4)
    assert (mine.limits.cpu_seconds, [job.limits.cpu_seconds for job in asserts]) == (2.0, [0.5] * 4)
    assert (mine.tests.call_wall_seconds, given.tests.call_wall_seconds) == (10.0, 20 / 4)
    assert [job.limits.wall_seconds for job in asserts] == [10.0] * 4


def test_each_of_many_calls_has_its_share_of_the_tasks_time_and_the_run_has_time_for_all() -> None:
    fake = Fake(passes)
    given = task(CALLS, limits=Limits(cpu_seconds=2.0, wall_seconds=3.0))
    PassFraction(fake)(completions=[answer(RIGHT)], task=[given])
    (job,) = fake.jobs
    assert isinstance(job.tests, CallTests)
    assert (job.tests.call_cpu_seconds, job.tests.call_wall_seconds) == ((0.5,) * 4, 1.0)  # a second at the least
    assert (job.limits.cpu_seconds, job.limits.wall_seconds) == (2.0 + 4 * 0.5, 3.0 + 4 * 1.0)


def test_tests_that_cannot_be_run_apart_have_the_tasks_own_limits_and_a_single_assertion_has_a_tests() -> None:
    fake = Fake(passes)
    check = AssertTests(entry_point="f", code="def check(c):\n    assert c(1)\n    assert c(2)\ncheck(f)")
    single = AssertTests(entry_point="f", code="assert f(1) == 2")
    units = UnitTests(code="class TestCases: ...", num_tests=9)
    PassFraction(fake, test_cpu_seconds=0.5)(
        completions=[answer(RIGHT)] * 3, task=[task(check), task(single), task(units)]
    )
    assert [(job.limits.cpu_seconds, job.limits.wall_seconds) for job in fake.jobs] == [(2, 20), (0.5, 10), (2, 20)]


# Shares


def test_every_required_set_counts_test_by_test() -> None:
    def by_kind(job: Job) -> Verdict:
        if isinstance(job.tests, CallTests):
            return Verdict(status="fail", num_tests=3, failed_test=0)
        return Verdict(status="pass" if "f(0)" in getattr(job.tests, "code", "") else "timeout", num_tests=1)

    sets = {"calls": CALLS, "asserts": ASSERTS, "units": UnitTests(code="class TestCases: ...", num_tests=9)}
    given = task(CALLS, tests=sets)
    assert PassFraction(Fake(by_kind))(completions=[answer(RIGHT)], task=[given]) == [(3 + 1 + 0) / (4 + 4 + 1)]
    asked = task(CALLS, tests=sets, required=("calls",))
    assert PassFraction(Fake(by_kind))(completions=[answer(RIGHT)], task=[asked]) == [3 / 4]


def test_all_or_nothing_is_one_only_for_all() -> None:
    def most(job: Job) -> Verdict:
        wrong = "wrong" in job.code
        return Verdict(status="fail", num_tests=3, failed_test=0) if wrong else Verdict(status="pass", num_tests=4)

    reward = PassFraction(Fake(most), all_or_nothing=True)
    assert reward(completions=[answer(RIGHT), answer("wrong = 1")], task=[task(CALLS)] * 2) == [1.0, 0.0]


def test_a_failed_sandbox_is_no_zero() -> None:
    def loses_once(job: Job) -> Verdict:
        return loses(job) if "f(3)" in getattr(job.tests, "code", "") else Verdict(status="fail")

    rewards = PassFraction(Fake(loses_once))(completions=[answer(RIGHT), "no code"], task=[task(ASSERTS)] * 2)
    assert rewards[0] is not None
    assert math.isnan(rewards[0])
    assert rewards[1] == 0.0


def test_assertions_are_split_and_all_else_stays_with_each() -> None:
    code = (
        "import math\n@decorated\ndef g(x):\n    assert x\nassert f(1) == 2, 'one'  # first\ny = 3\nassert f(y) == 4\n"
    )
    around = "import math\n\n@decorated\ndef g(x):\n    assert x"
    first, second = assertions_apart(code)
    assert (
        compile(first, "", "exec").co_names == compile(f"{around}\nassert f(1) == 2, 'one'\ny = 3", "", "exec").co_names
    )
    assert ("f(1)" in first, "f(y)" in first, "f(1)" in second, "f(y)" in second) == (True, False, False, True)
    assert "@decorated" in first
    assert "y = 3" in second


@pytest.mark.parametrize(
    "tests",
    [
        CALLS,
        ASSERTS,
        UnitTests(code="class TestCases: ...", num_tests=9),
        AssertTests(entry_point="f", code="def check(c):\n    assert c(1)\n    assert c(2)\ncheck(f)"),
        AssertTests(entry_point="f", code="def check(c):\n    assert c(1)\ncheck(f)\nassert f(2)\nassert f(3)"),
    ],
)
def test_a_test_is_one_to_the_reward_and_to_what_reads_leaks(tests: Tests) -> None:
    runs = PassFraction(Fake(passes)).runs(task(tests))
    assert sum(run.num_tests for run in runs) == num_scored(tests) == num_tests(task(tests))


def test_test_code_with_at_most_one_assertion_stays_whole() -> None:
    for code in (
        "assert f(1) == 2  # as it is",
        "def check(c):\n    assert c(1)\n    assert c(2)\ncheck(f)",
        "assert f(",
    ):
        assert assertions_apart(code) == [code]
    assert assertions_apart("# nothing\n") == []


# Errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tests": {}}, "the task t has no tests, so any answer would earn the same; leave it out, or give it tests"),
        ({"tests": {"base": CallTests.of("f", [], [])}}, "the tests 'base' of the task t are empty, so every program"),
        ({"tests": {"base": AssertTests(entry_point="f", code="# none")}}, "the tests 'base' of the task t are empty"),
        ({"tests": {"base": UnitTests(code="", num_tests=0)}}, "the tests 'base' of the task t are empty"),
    ],
)
def test_a_task_without_tests_is_refused_before_anything_is_run(given: dict[str, Any], message: str) -> None:
    fake = Fake(passes)
    with pytest.raises(TaskError, match=message):
        PassFraction(fake)(completions=[answer(RIGHT)] * 2, task=[task(CALLS), task(CALLS, **given)])
    assert fake.jobs == []


def test_what_it_needs_is_told() -> None:
    with pytest.raises(SettingsError, match="pass_fraction was called without `task`; it runs a task's tests"):
        PassFraction(Fake(passes))(completions=[""])
    with pytest.raises(SettingsError, match="test_cpu_seconds=-1 leaves no time for a test"):
        PassFraction(Fake(passes), test_cpu_seconds=-1)
    with pytest.raises(SettingsError, match="test_wall_seconds=inf leaves no time for a test"):
        PassFraction(Fake(passes), test_wall_seconds=math.inf)


# With the others


def test_outcomes_are_counted_and_a_lost_sample_leaves_its_group() -> None:
    def by_code(job: Job) -> Verdict:
        if "lost" in job.code:
            return loses(job)
        return Verdict(status="timeout", num_tests=1, failed_test=1) if "slow" in job.code else Verdict(status="pass")

    functions = open_rewards(RewardSettings(), Fake(by_code))
    texts = [answer(RIGHT), answer("lost = 1"), answer("slow = 1"), "no code", "```python\nx =\n```"]
    rewards = combine(functions, ["p"] * 5, texts, {"task": [task(CALLS)] * 5})
    assert rewards.total_N == [2.5, None, 2.0 * 0.25 + 0.5, 0.0, 0.25]
    assert rewards.outcomes == {"pass": 1, "sandbox_error": 1, "timeout": 1, "no_code": 2}
    assert rewards.num_lost == 1
    assert rewards.extra["verdict"][1] == "no jail could be started"


def test_a_sandbox_that_is_down_stops_the_run() -> None:
    functions = open_rewards(RewardSettings(), Fake(loses))
    with pytest.raises(SandboxError, match=r"none of the 2 answers .* \(no jail could be started\).* `unmask doctor`"):
        combine(functions, ["p"] * 2, [answer(RIGHT)] * 2, {"task": [task(CALLS)] * 2})


# In the real sandbox


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    try:
        found = open_executor(workers=1)
    except SandboxError as error:
        pytest.skip(str(error))
    assert isinstance(found, LocalExecutor)
    with found:
        yield found


ANSWERS = {
    "right": (RIGHT, 1.0),
    "right for two": ("def f(x): return x + 1 if x < 2 else 0", 0.5),
    "raises for the first": ("def f(x): return x // x + x", 0.75),
    "leaves for one": ("import os\ndef f(x):\n    if x == 1: os._exit(0)\n    return x + 1", 0.75),
    "exit(0) above all": ("import sys\nsys.exit(0)\n" + RIGHT, 0.0),
    "os._exit(0) above all": ("import os\nos._exit(0)\n" + RIGHT, 0.0),
    "sys.exit(0) in the call": ("import sys\ndef f(x): sys.exit(0)", 0.0),
    "os._exit(0) in the call": ("import os\ndef f(x): os._exit(0)", 0.0),
    "equals everything": ("class E:\n    def __eq__(self, other): return True\ndef f(x): return E()", 0.0),
    "changes what it can reach": (
        "import builtins\nbuiltins.AssertionError = KeyError\nbuiltins.all = lambda x: True\ndef f(x): return 0",
        0.0,
    ),
    "prints": ("def f(x):\n    print('R' * 1000, flush=True)\n    return x + 1", 1.0),
    "needs what it does not bring": ("def f(x): return math.floor(x) + 1", 0.0),
}


@pytest.mark.parametrize("tests", [CALLS, ASSERTS], ids=["calls", "asserts"])
def test_answers_earn_their_share_and_cheats_nothing(executor: LocalExecutor, tests: Tests) -> None:
    texts = [answer(code) for code, _ in ANSWERS.values()]
    found = PassFraction(executor)(completions=texts, task=[task(tests)] * len(texts))
    assert dict(zip(ANSWERS, found, strict=True)) == {name: share for name, (_, share) in ANSWERS.items()}


@pytest.mark.parametrize("tests", [CALLS, ASSERTS], ids=["calls", "asserts"])
def test_a_test_that_never_returns_costs_itself_only(executor: LocalExecutor, tests: Tests) -> None:
    code = "def f(x):\n    while x == 1: pass\n    return x + 1"
    assert PassFraction(executor, test_cpu_seconds=0.2)(completions=[answer(code)], task=[task(tests)]) == [0.75]


@pytest.mark.parametrize("hangs", ["x < 2", "x > 5"])
def test_the_share_does_not_depend_on_which_calls_never_return(executor: LocalExecutor, hangs: str) -> None:
    code = f"def f(x):\n    while {hangs}: pass\n    return x + 1"
    eight = task(CallTests.of("f", [(n,) for n in range(8)], range(1, 9)), limits=Limits(cpu_seconds=0.8))
    assert PassFraction(executor, test_cpu_seconds=0.5)(completions=[answer(code)], task=[eight]) == [0.75]


@pytest.mark.parametrize("tests", [CALLS, ASSERTS], ids=["calls", "asserts"])
def test_an_answer_that_sleeps_costs_itself_only_and_no_more_than_its_test(
    executor: LocalExecutor, tests: Tests
) -> None:
    code = "import time\ndef f(x):\n    time.sleep(100 * (x == 0))\n    return x + 1"
    started = time.monotonic()
    found = PassFraction(executor, test_wall_seconds=2)(completions=[answer(code)], task=[task(tests)])
    assert found == [0.75]
    assert time.monotonic() - started < 15


def test_a_program_that_sleeps_while_it_loads_has_the_time_of_one_test(executor: LocalExecutor) -> None:
    started = time.monotonic()
    reward = PassFraction(executor, test_wall_seconds=0.5)
    assert reward(completions=[answer("import time\ntime.sleep(100)")], task=[task(CALLS)]) == [0.0]
    assert time.monotonic() - started < 15


def test_a_program_that_never_loads_passes_nothing(executor: LocalExecutor) -> None:
    limits = Limits(cpu_seconds=0.3, wall_seconds=10)
    found = PassFraction(executor)(completions=[answer("while True: pass")], task=[task(CALLS, limits=limits)])
    assert found == [0.0]
