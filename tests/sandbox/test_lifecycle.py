"""Jails come and go: what is killed is replaced, and nothing is left, whoever ends first."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unmask.errors import SandboxError
from unmask.sandbox.executor import Job, LocalExecutor, open_executor
from unmask.sandbox.tests import AssertTests, CallTests
from unmask.sandbox.verdict import Limits

LIMITS = Limits(cpu_seconds=2, wall_seconds=10, memory_bytes=512 << 20)
RIGHT = "def f(x): return x + 1"
WRONG = "def f(x): return x"
CALLS = CallTests.of("f", [(1,), (2,)], [2, 3])
ASSERTS = AssertTests(entry_point="f", code="assert f(1) == 2")
ISOLATING = ("bwrap", "landlock")


def opened(name: str, workers: int = 1) -> LocalExecutor:
    try:
        found = open_executor(name, workers=workers)
    except SandboxError as error:
        pytest.skip(f"{name} cannot be had here: {error}")
    assert isinstance(found, LocalExecutor)
    return found


@pytest.fixture(params=ISOLATING)
def executor(request: pytest.FixtureRequest) -> Iterator[LocalExecutor]:
    with opened(request.param) as found:
        yield found


def statuses(executor: LocalExecutor, code: str = RIGHT) -> list[str]:
    """One verdict by calls and one by assertions."""
    jobs = [Job(code=code, tests=tests, limits=LIMITS) for tests in (CALLS, ASSERTS)]
    return [verdict.status for verdict in executor.judge(jobs)]


def processes() -> dict[int, tuple[int, str]]:
    """Each process of this machine that is no zombie: its parent and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if state != "Z":
                found[int(entry.name)] = (int(parent), line)
    return found


def below(pid: int) -> set[int]:
    """The processes below one, however deep."""
    known, found = processes(), {pid}
    while more := {child for child, (parent, _) in known.items() if parent in found} - found:
        found |= more
    return found - {pid}


def gone(pids: set[int], seconds: float = 5.0) -> bool:
    """Whether all end within the time."""
    deadline = time.monotonic() + seconds
    while set(processes()) & pids:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def jails(executor: LocalExecutor) -> set[int]:
    """All processes of the executor's jails."""
    return set(executor.pids).union(*(below(pid) for pid in executor.pids))


def test_a_killed_jail_is_replaced_and_the_verdict_is_right(executor: LocalExecutor) -> None:
    assert statuses(executor) == ["pass", "pass"]
    before = executor.pids
    assert len(before) == 2  # one for programs, one for the judge
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert statuses(executor) == ["pass", "pass"]
    assert statuses(executor, WRONG) == ["fail", "fail"]
    assert not set(before) & set(executor.pids)


def test_a_killed_zygote_is_replaced_and_the_verdict_is_right(executor: LocalExecutor) -> None:
    """The innermost process: with bubblewrap the third, behind its monitor and its process 1."""
    assert statuses(executor) == ["pass", "pass"]
    inner = jails(executor) - set(executor.pids)
    assert inner
    for pid in inner:
        os.kill(pid, signal.SIGKILL)
    assert statuses(executor) == ["pass", "pass"]
    assert statuses(executor, WRONG) == ["fail", "fail"]
    assert gone(inner)


def test_a_jail_killed_in_the_middle_of_a_run_costs_no_verdict(executor: LocalExecutor) -> None:
    """The program is judged again in a fresh jail: that its jail was lost is not counted against it."""
    list(executor.judge([Job(code=RIGHT, tests=CALLS, limits=LIMITS)]))
    code = "import time\ntime.sleep(0.6)\ndef f(x): return x + 1"
    verdicts = executor.judge([Job(code=code, tests=CALLS, limits=LIMITS)])
    (pid,) = executor.pids

    def kill() -> None:
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    verdict = next(verdicts)
    killer.join()
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize("kind", ["calls", "asserts"])
def test_a_lost_judge_is_not_held_against_the_program(executor: LocalExecutor, kind: str) -> None:
    """A right program whose judge is killed once, by the machine running out of memory say, still passes."""
    slow_tests = AssertTests(entry_point="f", code="import time\ntime.sleep(0.6)\nassert f(1) == 2")
    # 1.0 is not the bytes of 1, so the judge is asked; the next result comes later
    slow_calls = CallTests.of("f", [(1,), (2,)], [2.0, 3.0])
    code = "import time\ndef f(x):\n    time.sleep(0.4 * (x == 2))\n    return x + 1"
    tests = {"calls": slow_calls, "asserts": slow_tests}[kind]
    assert next(executor.judge([Job(code=code, tests=tests, limits=LIMITS)])).status == "pass"
    judge_jail = executor.pids[-1]

    def kill() -> None:
        time.sleep(0.2)
        os.kill(judge_jail, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    verdict = next(executor.judge([Job(code=code, tests=tests, limits=LIMITS)]))
    killer.join()
    assert verdict.status == "pass", verdict


def test_closing_leaves_no_process(executor: LocalExecutor) -> None:
    assert statuses(executor) == ["pass", "pass"]
    found = jails(executor)
    assert len(found) >= 2
    executor.close()
    assert gone(found)
    assert executor.pids == []


@pytest.mark.parametrize("name", ISOLATING)
def test_an_iterator_that_is_given_up_leaves_the_executor_usable_and_no_process(name: str) -> None:
    with opened(name, workers=2) as executor:
        jobs = (Job(code=RIGHT, tests=CALLS, limits=LIMITS) for _ in range(1000))
        verdicts = executor.judge(jobs)
        assert next(verdicts).status == "pass"
        del verdicts
        gc.collect()
        assert statuses(executor) == ["pass", "pass"]
        found = jails(executor)
    assert gone(found)


def test_an_error_among_the_jobs_reaches_the_caller_and_leaves_the_executor_usable(executor: LocalExecutor) -> None:
    def jobs() -> Iterator[Job]:
        yield Job(code=RIGHT, tests=CALLS, limits=LIMITS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(executor.judge(jobs()))
    assert statuses(executor) == ["pass", "pass"]


PROGRAM = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the test run itself may ignore it
from unmask.sandbox.executor import Job, open_executor
from unmask.sandbox.tests import AssertTests
tests = AssertTests(entry_point="f", code="assert f(1) == 2")
right = Job(code="def f(x): return x + 1", tests=tests)
endless = Job(code="import time\\ndef f(x): time.sleep(1000)", tests=tests)
with open_executor(sys.argv[1], workers=2) as executor:
    assert [v.status for v in executor.judge([right] * 4)] == ["pass"] * 4
    print("ready", *executor.pids, flush=True)
    list(executor.judge([endless] * 4))
"""


@pytest.mark.parametrize("name", ISOLATING)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_supervisor_that_is_ended_leaves_no_process_and_no_folder(
    name: str, number: signal.Signals, tmp_path: Path
) -> None:
    opened(name).close()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, name]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    assert supervisor.stdout is not None
    assert supervisor.stderr is not None
    try:
        line = supervisor.stdout.readline()
        assert line.startswith("ready"), supervisor.stderr.read()
        time.sleep(0.3)
        found = below(supervisor.pid)
        assert {int(pid) for pid in line.split()[1:]} <= found
        os.kill(supervisor.pid, number)
        supervisor.wait(20)
        assert gone(found), [processes()[pid] for pid in found if pid in processes()]
    finally:
        supervisor.kill()
        supervisor.communicate()
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []


def descriptors() -> list[int]:
    """What this process has open."""
    open_now = []
    for number in range(1024):
        try:
            os.fstat(number)
        except OSError:
            continue
        open_now.append(number)
    return open_now


def test_nothing_is_left_open_in_the_supervisor(executor: LocalExecutor) -> None:
    assert statuses(executor) == ["pass", "pass"]
    before = descriptors()
    for code in (RIGHT, WRONG, "import os; os._exit(0)", "def f(x): return [0] * 10**6", "("):
        statuses(executor, code)
    assert descriptors() == before


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ISOLATING)
def test_ten_thousand_programs_leave_nothing_and_grow_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    programs = [RIGHT, WRONG, "import os\ndef f(x):\n    open('left', 'w').write('x' * 1000)\n    return x + 1"]
    with opened(name, workers=2) as executor:

        def run(count: int) -> None:
            jobs = (Job(code=programs[i % 3], tests=(CALLS, ASSERTS)[i % 2], limits=LIMITS) for i in range(count))
            for index, verdict in enumerate(executor.judge(jobs)):
                assert verdict.status == ("pass", "fail", "pass")[index % 3], verdict

        run(200)
        gc.collect()
        pids, files = jails(executor), len(descriptors())
        before = resident(os.getpid()), {pid: resident(pid) for pid in pids}
        run(10_000)
        gc.collect()
        assert jails(executor) == pids
        assert len(descriptors()) == files
        assert resident(os.getpid()) - before[0] < 50 << 20
        for pid in pids:
            assert resident(pid) - before[1][pid] < 50 << 20
    assert gone(pids)
    assert list(tmp_path.iterdir()) == []
