"""Hostile programs against the task f(x) = x + 1: none passes, none harms the host or the next program, each is judged
within its limits.

The programs are in `hostile/*.txt`, one after the other, each below a line `#: name - what it tries`. They are no
Python files on purpose: nothing that collects or imports modules may run them. A program that got what it was after
says so by `reached(...)`; what it did to the host shows in the fixture `host`.
"""

import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from unmask.errors import SandboxError
from unmask.sandbox import backends
from unmask.sandbox.executor import Job, LocalExecutor, open_executor
from unmask.sandbox.tests import AssertTests, CallTests, Tests, UnitTests
from unmask.sandbox.verdict import Limits, Verdict

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=1.5, memory_bytes=512 << 20)
CALLS = CallTests.of("f", [(1,), (41,), (-7,)], [2, 42, -6])
ASSERTS = AssertTests(
    entry_point="f",
    setup="import math",
    code="""
def check(candidate):
    for x in range(3):
        assert candidate(x) == x + 1
    assert candidate(41) == 42
    assert not candidate(-1)
    assert [candidate(x) for x in (5, 6)] == [6, 7]
    assert isinstance(candidate(1), int) and math.isclose(candidate(2), 3)
    assert candidate(-7) in (-6,) and len(str(candidate(9))) == 2
check(f)
""",
)
UNITS = UnitTests(
    num_tests=3,
    code="""
import unittest

class TestCases(unittest.TestCase):
    \"\"\"Cases.\"\"\"
    def test_one(self):
        \"\"\"One.\"\"\"
        self.assertEqual(f(1), 2)
    def test_two(self):
        self.assertEqual(f(41), 42)
        self.assertTrue(f(-2) == -1)
    def test_three(self):
        with self.assertRaises(TypeError):
            f("a")
        self.assertNotEqual(f(3), 5)
""",
)
ISOLATING = ("bwrap", "landlock")
PLACES = 4
"""Programs side by side: many of them sleep until their limit."""

# of x86-64; the programs that use them are left out elsewhere
SYSCALLS = {
    "socket": 41, "clone": 56, "vfork": 58, "kill": 62, "semget": 64, "msgget": 68, "ptrace": 101, "syslog": 103,
    "capset": 126, "rt_sigqueueinfo": 129, "mount": 165, "umount2": 166, "reboot": 169, "tkill": 200, "tgkill": 234,
    "mq_open": 240, "add_key": 248, "keyctl": 250, "shmget": 29, "unshare": 272, "perf_event_open": 298,
    "name_to_handle_at": 303, "setns": 308, "process_vm_readv": 310, "bpf": 321, "userfaultfd": 323,
    "io_uring_setup": 425, "fsopen": 430, "clone3": 435, "fchmodat2": 452,
}  # fmt: skip

TOOLS = """
def reached(what):
    raise RuntimeError("REACHED " + what)

def attempt_number(number, *arguments):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(*(ctypes.c_long(value) for value in (number, *arguments))) >= 0:
        reached(f"system call {number}")
    raise PermissionError(ctypes.get_errno(), "refused")

def attempt(name, *arguments):
    attempt_number(SYSCALLS[name], *arguments)

KEPT = []
def keep(buffer):
    import ctypes
    KEPT.append(buffer)
    return ctypes.addressof(buffer)

def forge(kind, payload=b""):
    import os, struct
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, struct.pack("<cQ", kind, len(payload)) + payload)
        except OSError:
            pass
"""

FUSSY = """
import os, resource, signal, sys, tempfile, threading, json, math, builtins
def look():
    folder = tempfile.gettempdir()
    assert os.listdir(folder) == [], os.listdir(folder)
    assert os.path.samefile(os.getcwd(), folder), os.getcwd()
    assert os.listxattr(folder) == [], os.listxattr(folder)
    assert os.stat(folder).st_mtime > 1e9, os.stat(folder).st_mtime
    with open("mine", "w") as file:
        file.write("mine")
    assert os.umask(0o22) == 0o22
    os.unlink("mine")
def f(x):
    if WRITES:
        look()
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert threading.active_count() == 1 and sys.getrecursionlimit() == 1000
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] >= 2
    assert "MARK" not in os.environ and not hasattr(math, "mark") and not hasattr(builtins, "mark")
    assert json.loads("[1]") == [1] and isinstance(1, int) and math.sqrt(4) == 2
    thread = threading.Thread(target=print, args=("here",))
    thread.start()
    thread.join()
    return x + 1
"""


UNIT_FUSSY = """
import ctypes, os, socket
def f(x):
    if x == 1:
        assert os.listdir("/tmp") == [] and not os.path.exists("/dev/shm/mark"), os.listdir("/tmp")
        assert ctypes.CDLL(None).shmget(0x1234, 0, 0) < 0
        own = {"1", str(os.getpid()), str(os.getppid())}
        others = {name for name in os.listdir("/proc") if name.isdigit()} - own
        assert not others, others
        socket.create_server(("127.0.0.1", 5555)).close()
    return x + 1
"""


@dataclass(frozen=True)
class Hostile:
    name: str
    code: str
    family: str


def hostile_programs() -> list[Hostile]:
    found = []
    for path in sorted((Path(__file__).parent / "hostile").glob("*.txt")):
        for section in re.split(r"^#: ", path.read_text("utf-8"), flags=re.M)[1:]:
            head, code = section.split("\n", 1)
            needs_numbers = re.search(r"\battempt(_number)?\(|\[x86_64\]", section) is not None
            if not needs_numbers or platform.machine() == "x86_64":
                found.append(Hostile(name=head.split(" - ")[0], code=code.replace("<NUL>", "\0"), family=path.stem))
    return found


PROGRAMS = hostile_programs()
IN_PROCESS = [program for program in PROGRAMS if program.family == "in_process"]
OUTSIDE = [program for program in PROGRAMS if program.family != "in_process"]


class Host:
    """What a program of the host would not want touched: files, a process, listening sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o777)
        self.secret = folder / "secret.txt"
        self.secret.write_text("the secret")
        self.secret.chmod(0o666)
        self.process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"])
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = self._bound(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        mark = f"unmask-{os.getpid()}-{id(self)}"
        self.unix = self._bound(socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "s"))
        self.unix_datagram = self._bound(socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "d"))
        self.abstract = self._bound(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{mark}")
        self.abstract_datagram = self._bound(socket.AF_UNIX, socket.SOCK_DGRAM, f"\0{mark}-d")
        for name in ("s", "d"):
            (folder / name).chmod(0o777)
        self.constants = {
            "folder": str(folder),
            "secret": str(self.secret),
            "pid": self.process.pid,
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "unix": str(folder / "s"),
            "unix_datagram": str(folder / "d"),
            "abstract": mark,
            "abstract_datagram": f"{mark}-d",
            "variable": "UNMASK_TEST_VARIABLE",
        }
        self.before = self._look()

    def damage(self) -> list[str]:
        """What has changed, or who has called."""
        found = []
        if self._look() != self.before:
            found.append(f"the files: {self.before} became {self._look()}")
        if self.process.poll() is not None:
            found.append("the process has ended")
        for name in ("tcp", "udp", "unix", "unix_datagram", "abstract", "abstract_datagram"):
            sock = getattr(self, name)
            sock.setblocking(False)
            try:
                sock.recv(100) if sock.type == socket.SOCK_DGRAM else sock.accept()
            except BlockingIOError:
                continue
            found.append(f"the socket {name} was reached")
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for sock in (self.tcp, self.udp, self.unix, self.unix_datagram, self.abstract, self.abstract_datagram):
            sock.close()

    def _look(self) -> dict[str, object]:
        look: dict[str, object] = {"names": sorted(path.name for path in self.folder.iterdir())}
        if self.secret.exists():
            found = self.secret.stat()
            look |= {
                "text": self.secret.read_text(),
                "mode": found.st_mode,
                "owner": found.st_uid,
                "links": found.st_nlink,
            }
            look |= {"date": found.st_mtime_ns, "attributes": os.listxattr(self.secret)}
        return look

    @staticmethod
    def _bound(family: int, kind: int, address: object) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock


@dataclass(frozen=True)
class Outcome:
    hostile: Verdict
    neighbour: Verdict


@dataclass(frozen=True)
class Suite:
    """What came of all programs on one back end."""

    outcomes: dict[str, Outcome]
    damage: list[str]
    left: list[str]


def opened(backend: str, *, loose: bool = False) -> LocalExecutor:
    try:
        found = open_executor(backend, workers=1, loose=loose)
    except SandboxError as error:
        pytest.skip(f"{backend} cannot be had here: {error}")
    assert isinstance(found, LocalExecutor)
    return found


def judged(backend: str, folder: Path, kinds: dict[str, Tests], *, loose: bool = False) -> Suite:
    """Each hostile program against its kind of tests, and a right program after it in the same jail."""
    host = Host(folder)
    waiting: SimpleQueue[Hostile] = SimpleQueue()
    for program in PROGRAMS:
        if program.name in kinds:
            waiting.put(program)
    outcomes: dict[str, Outcome] = {}
    head = f"HOST = {host.constants}\nSYSCALLS = {SYSCALLS}\n{TOOLS}\n"

    def work(executor: LocalExecutor) -> None:
        writes = "private folder" in executor.guarantees
        fussy = f"WRITES = {writes}\n{FUSSY}"
        right = (
            Job(code=UNIT_FUSSY, tests=UNITS, limits=LIMITS) if loose else Job(code=fussy, tests=CALLS, limits=LIMITS)
        )
        while True:
            try:
                program = waiting.get_nowait()
            except Empty:
                return
            job = Job(code=head + program.code, tests=kinds[program.name], limits=LIMITS)
            outcomes[program.name] = Outcome(*[next(iter(executor.judge([each]))) for each in (job, right)])

    try:
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(PLACES) as threads:
            executors = [stack.enter_context(opened(backend, loose=loose)) for _ in range(PLACES)]
            for future in [threads.submit(work, executor) for executor in executors]:
                future.result()
            pids = [pid for executor in executors for pid in executor.pids]
        left = [f"process {pid}" for pid in pids if Path(f"/proc/{pid}").exists()]
        return Suite(outcomes=outcomes, damage=host.damage(), left=left)
    finally:
        host.close()


def holds(outcome: Outcome) -> None:
    """The four claims about one program."""
    verdict = outcome.hostile
    assert verdict.status not in ("pass", "sandbox_error"), verdict
    assert "REACHED" not in verdict.message, verdict
    assert verdict.wall_seconds <= LIMITS.wall_seconds + 1, verdict
    assert outcome.neighbour.status == "pass", outcome


def kinds_of(backend: str, *, swapped: bool = False) -> dict[str, Tests]:
    """Calls for one half of the programs and assertions for the other, the other way round on the second back end."""
    both = (CALLS, ASSERTS)
    first = (backend == "landlock") != swapped
    kinds = {program.name: both[(index + first) % 2] for index, program in enumerate(OUTSIDE)}
    found = backends.probe("landlock" if backend == "landlock" else "bwrap")
    if isinstance(found, backends.Backend) and any("threads by memory" in text for text in found.guarantees):
        del kinds["thread_bomb"]  # no limit of processes binds root, and the back end says so
    return kinds


@pytest.fixture(scope="module", params=ISOLATING)
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASK_TEST_VARIABLE", "the secret")
        yield judged(request.param, tmp_path_factory.mktemp("host"), kinds_of(request.param))


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    kinds: dict[str, Tests] = {program.name: UNITS for program in IN_PROCESS}
    return judged("bwrap", tmp_path_factory.mktemp("host"), kinds, loose=True)


@pytest.mark.parametrize("name", [program.name for program in OUTSIDE])
def test_a_hostile_program_never_passes_reaches_nothing_and_leaves_its_jail_clean(suite: Suite, name: str) -> None:
    if name not in suite.outcomes:
        pytest.skip("this back end says that memory alone bounds the threads here")
    holds(suite.outcomes[name])


def test_hostile_programs_change_nothing_on_the_host_and_call_nobody(suite: Suite) -> None:
    assert suite.damage == []
    assert suite.left == []


@pytest.mark.parametrize("name", [program.name for program in IN_PROCESS])
def test_a_program_that_tampers_with_tests_in_its_own_process_does_not_pass(in_process: Suite, name: str) -> None:
    holds(in_process.outcomes[name])
    assert in_process.outcomes[name].hostile.is_in_process


def test_programs_that_may_start_processes_change_nothing_on_the_host(in_process: Suite) -> None:
    assert in_process.damage == []
    assert in_process.left == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", ISOLATING)
def test_hostile_programs_fare_no_better_with_the_other_kind_of_tests(backend: str, tmp_path: Path) -> None:
    found = judged(backend, tmp_path, kinds_of(backend, swapped=True))
    for outcome in found.outcomes.values():
        holds(outcome)
    assert found.damage == []


LOOPS = {
    "zip": "for got, want in zip(map(f, (1, 2)), (2, 3)):\n    assert got == want",
    "all": "assert all(got == 2 for got in map(f, (1, 1)))",
    "generator": "def each():\n    for x in (1, 2):\n        yield f(x) == x + 1\nassert all(each())",
    "iterator": "for got in iter(lambda: f(1), None):\n    assert got == 2\n    break",
    "next": "assert next(map(f, [1]), 2) == 2",
}


@pytest.mark.parametrize("raised", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "IndexError"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_program_cannot_end_a_loop_of_the_tests(right_here: LocalExecutor, loop: str, raised: str) -> None:
    tests = AssertTests(entry_point="f", code=LOOPS[loop])
    codes = (f"def f(x): raise {raised}", "def f(x): return x + 1")
    verdicts = right_here.judge([Job(code=code, tests=tests, limits=LIMITS) for code in codes])
    assert [verdict.status for verdict in verdicts] == ["fail", "pass"]


@pytest.fixture(scope="module")
def right_here() -> Iterator[LocalExecutor]:
    with opened("auto") as executor:
        yield executor


@pytest.mark.parametrize("backend", ISOLATING)
def test_every_kind_of_tests_passes_the_right_program(backend: str) -> None:
    """Otherwise all the claims above would be empty."""
    with opened(backend) as executor:
        for tests in (CALLS, ASSERTS):
            (verdict,) = executor.judge([Job(code="def f(x): return x + 1", tests=tests, limits=LIMITS)])
            assert verdict.status == "pass", verdict


def test_the_collection_is_as_large_as_it_should_be() -> None:
    names = [program.name for program in PROGRAMS]
    assert len(names) == len(set(names)) >= 200
