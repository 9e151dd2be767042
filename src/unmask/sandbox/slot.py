"""One place where programs are judged, one at a time: a jail for the program and a jail for its judge.

The two have nothing in common but a socket. The jails are started when first needed, kept from program to program, and
replaced when one is lost or cannot be cleaned.
"""

import contextlib
import json
import marshal
import math
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from unmask.errors import SandboxError
from unmask.sandbox import backends
from unmask.sandbox.channel import Channel, Garbled, wait
from unmask.sandbox.inside import judge as inside_judge
from unmask.sandbox.inside import remote, values
from unmask.sandbox.jail import Ended, Jail, JailLost
from unmask.sandbox.tests import AssertTests, CallTests, Tests, UnitTests
from unmask.sandbox.verdict import Limits, Status, Verdict

_RESULT = struct.Struct("<?d")
_MAX_FILES = 20_000
_MAX_NAMES, _MAX_RECORD = 1 << 18, 1 << 16
"""Bytes of what a program may say about itself; only results may be longer."""
_FIRST_LOOK, _LOOK = 0.2, 0.3
_JUDGE_LIMITS = Limits(cpu_seconds=5, wall_seconds=60, memory_bytes=4 << 30, processes=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRun:
    """What a trusted program returned: encoded answers (digests where they are large), CPU seconds of each call."""

    answers: tuple[bytes, ...]
    cpu_seconds: tuple[float, ...]
    error: str = ""


class Ruling(Exception):
    """A run is decided; carries the status and message."""

    def __init__(
        self, status: Status, message: str, failed_test: int | None = None, num_passed: int | None = None
    ) -> None:
        super().__init__(message)
        self.status: Status = status
        self.message = message
        self.failed_test = failed_test
        self.num_passed = (failed_test or 0) if num_passed is None else num_passed


class Slot:
    """Judges programs one after the other."""

    def __init__(
        self,
        backend: backends.Backend,
        interpreter: backends.Interpreter,
        *,
        number: int,
        loose: bool = False,
    ) -> None:
        self._backend = backend
        self._interpreter = interpreter
        self._number = number
        self.is_loose = loose
        self._folders: dict[str, backends.Folder] = {}
        self._jails: dict[str, Jail] = {}
        self._is_aborted = False
        self._disk_bytes = Limits().disk_bytes

    def judge(self, code: str, tests: Tests, limits: Limits) -> Verdict:
        """The verdict on one program. Never raises for what the program does."""
        started = time.monotonic()
        verdict = self._attempt(code, tests, limits)
        if verdict.status == "sandbox_error" and not self._is_aborted:  # a jail was ended, or the machine full
            first, verdict = verdict, self._attempt(code, tests, limits)
            if first.message == verdict.message == _LOST:  # twice in a row, in fresh jails: the program does it
                verdict = Verdict(status="crash", message=_LOST)
        in_process = isinstance(tests, UnitTests)
        return replace(
            verdict,
            wall_seconds=time.monotonic() - started,
            backend=self._backend.name,
            is_in_process=in_process,
        )

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        """Run a program on inputs and give what it returns, for references."""
        answers: list[bytes] = []
        seconds: list[float] = []
        tests = CallTests(entry_point=entry_point, inputs=inputs, expected=())
        try:
            with Run(self, limits) as run:
                for _, cpu_seconds, data in run.results(code, tests, count=None):
                    answers.append(data)
                    seconds.append(cpu_seconds)
        except Ruling as ruling:
            return CallRun(
                answers=tuple(answers), cpu_seconds=tuple(seconds), error=f"{ruling.status}: {ruling.message}"
            )
        return CallRun(answers=tuple(answers), cpu_seconds=tuple(seconds))

    def close(self) -> None:
        """End both jails."""
        for role in list(self._jails):
            self.discard(role)

    def abort(self) -> None:
        """End the jails from another thread, and what runs in them; nothing is judged here any more."""
        self._is_aborted = True
        for jail in list(self._jails.values()):
            jail.kill()

    @property
    def pids(self) -> list[int]:
        """The processes that hold the jails."""
        return [jail.pid for jail in list(self._jails.values())]

    def jail(self, role: str) -> Jail:
        """The jail for this role, started if need be."""
        self._refuse_if_aborted(role)
        if role not in self._jails:
            loose = self.is_loose and role == "program"
            interpreter = self._interpreter if role == "program" else backends.running_interpreter()
            folder = self._folders[role] = backends.Folder(self._backend)
            plan = backends.plan(
                self._backend,
                interpreter,
                Limits(disk_bytes=self._disk_bytes),
                folder=folder.path,
                number=2 * self._number + (role == "judge"),
                loose=loose,
            )
            try:
                jail = Jail(plan)
            except SandboxError:
                folder.remove()
                raise
            self._jails[role] = jail
            self._refuse_if_aborted(role)
        return self._jails[role]

    def _refuse_if_aborted(self, role: str) -> None:
        if self._is_aborted:
            self.discard(role)
            raise SandboxError("the sandbox is closed")

    def discard(self, role: str) -> None:
        """Throw a jail away; the next run gets a new one."""
        jail = self._jails.pop(role, None)
        if jail is not None:
            jail.close()
            self._folders.pop(role).remove()

    def _attempt(self, code: str, tests: Tests, limits: Limits) -> Verdict:
        if limits.disk_bytes != self._disk_bytes:
            self.close()
            self._disk_bytes = limits.disk_bytes

        def judged(run: Run) -> int:
            if isinstance(tests, CallTests):
                return run.calls(code, tests)
            return run.asserts(code, tests) if isinstance(tests, AssertTests) else run.unit_tests(code, tests)

        return self.ruled(judged, limits)

    def ruled(self, judged: Callable[["Run"], int], limits: Limits) -> Verdict:
        """The verdict that a run comes to; `judged` gives the number of tests or raises Ruling."""
        run = Run(self, limits)
        try:
            with run:
                num_tests = judged(run)
            return Verdict(status="pass", num_tests=num_tests, cpu_seconds=run.cpu_seconds)
        except Ruling as ruling:
            return Verdict(
                status=ruling.status,
                message=ruling.message,
                failed_test=ruling.failed_test,
                num_tests=ruling.num_passed,
                cpu_seconds=run.cpu_seconds,
                tampering=ruling.message if ruling.message.startswith(_TAMPERED) else "",
            )
        except (SandboxError, OSError) as error:
            self.close()
            return Verdict(status="sandbox_error", message=_LOST if isinstance(error, JailLost) else str(error))


_LOST = "the jail was lost while the program ran"
_TAMPERED = "the program changed its judge"


@dataclass(slots=True)
class _OpenCall:
    """A call that the program has not answered yet; without an index the program loads."""

    index: int | None
    cpu_seconds: float
    wall_seconds: float
    opened: float
    first_seen: float | None = None
    """CPU time that the process had spent when somebody first looked."""


class Run:
    """One program in its jail, from its start to its end."""

    def __init__(self, slot: Slot, limits: Limits) -> None:
        self._slot = slot
        self._limits = limits
        self._channels: dict[str, Channel] = {}
        self._pids: dict[str, int] = {}
        self._ended: dict[str, Ended] = {}
        self._started = time.monotonic()
        self._next_look = _FIRST_LOOK
        self._allowed = limits.cpu_seconds
        self._open_call: _OpenCall | None = None
        self.cpu_seconds = 0.0

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for role in list(self._pids):
            self._end(role)
        for channel in self._channels.values():
            channel.close()

    # ---------------------------------------------------------------------------------------------- kinds of tests

    def calls(self, code: str, tests: CallTests) -> int:
        """Judge by calls; the number of calls. Raises Ruling unless every result is accepted."""
        if tests.counts_all:
            return self.count(lambda first: self._results_from(first, code, tests), tests)
        results = self.results(code, tests, count=len(tests.expected))
        return self.check(((is_exact, data) for is_exact, _, data in results), tests)

    def check(self, results: Iterable[tuple[bool, bytes]], tests: CallTests) -> int:
        """Compare results with what is expected; their number. Equal bytes need no second look."""
        count = 0
        for is_exact, data in results:
            self._accept(count, is_exact, data, tests)
            count += 1
        return count

    def count(self, results_from: Callable[[int], Iterable[tuple[bool, bytes]]], tests: CallTests) -> int:
        """Judge every call apart; the number of calls. Raises Ruling, with the number that passed, unless all did.

        `results_from(first)` starts the program anew for the calls from `first` on: a call that raises, hangs or ends
        the process costs itself only, as long as the run's limits, which all calls and loads share, hold out. A Ruling
        without an index ends the run (the program does not load; time is up), and what was not called until then has
        not passed.
        """
        total, passed, at = len(tests.expected), 0, 0
        failed: list[Ruling] = []
        while at < total:
            try:
                for is_exact, data in results_from(at):
                    passed += self._is_accepted(at, is_exact, data, tests, failed)
                    at += 1
            except Ruling as ruling:
                failed.append(Ruling(ruling.status, ruling.message, at))
                self._end("program")
                if ruling.failed_test is None or self.cpu_seconds >= self._limits.cpu_seconds:
                    break
                at += 1
        if not failed:
            return passed
        worst = next((ruling for ruling in failed if ruling.status not in ("fail", "syntax_error")), failed[0])
        raise Ruling(worst.status, worst.message, worst.failed_test, passed)

    def _is_accepted(self, index: int, is_exact: bool, data: bytes, tests: CallTests, failed: list[Ruling]) -> bool:
        """Whether one result is accepted; if not, the reason goes to `failed`."""
        try:
            self._accept(index, is_exact, data, tests)
        except Ruling as ruling:
            if ruling.status != "fail":  # the run's time is up, and the judge may yet answer: nothing more is asked
                raise
            failed.append(Ruling("fail", ruling.message, index))
            return False
        return True

    def _results_from(self, first: int, code: str, tests: CallTests) -> Iterator[tuple[bool, bytes]]:
        """The results of a fresh process of the program, for the calls from `first` on."""
        self._ended.pop("program", None)
        rest = calls_from(first, tests)
        for is_exact, _, data in self.results(code, rest, count=len(rest.expected)):
            yield is_exact, data

    def _accept(self, index: int, is_exact: bool, data: bytes, tests: CallTests) -> None:
        """Return if a result is accepted; equal bytes need no second look. Raises Ruling otherwise."""
        if data != tests.expected[index] or tests.oracle == "find_zero":
            self._compare(index, is_exact, data, tests)

    def results(self, code: str, tests: CallTests, *, count: int | None) -> Iterator[tuple[bool, float, bytes]]:
        """Each call's result as it arrives: (is_exact, CPU seconds by the program's own account, encoded value)."""
        job = {
            "mode": "call",
            "code": code,
            "entry_point": tests.entry_point,
            "inputs": tests.inputs,
            "call_cpu_seconds": list(tests.call_cpu_seconds),
            "output_bytes": self._limits.output_bytes,
            "as_set": tests.oracle == "set",
        }
        wall_seconds = tests.call_wall_seconds or math.inf
        self._start("program", job)
        with self._open(None, wall_seconds=wall_seconds):
            self._loaded()
        index = 0
        while True:
            allowed = tests.call_cpu_seconds[index] if index < len(tests.call_cpu_seconds) else math.inf
            with self._open(index, cpu_seconds=allowed if tests.counts_all else math.inf, wall_seconds=wall_seconds):
                kind, payload = self._next("program")
            if kind == b"R" and (count is None or index < count) and len(payload) >= _RESULT.size:
                is_exact, seconds = _RESULT.unpack_from(payload)
                yield is_exact, seconds, payload[_RESULT.size :]
                index += 1
            elif kind == b"D" and (count is None or index == count):
                return
            elif kind == b"X":
                raise self._raised(payload, index, _shown_call(tests, index))
            elif kind == b"T":
                message = f"{_shown_call(tests, index)} took more than {allowed:.3g} s of CPU time"
                raise Ruling("timeout", message, index)
            else:
                raise self._not_understood(kind, payload, index)

    def asserts(self, code: str, tests: AssertTests) -> int:
        """Judge by assertions in a process of their own; 1 when they hold. Raises Ruling otherwise."""
        program_end, judge_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        job = {"mode": "serve", "code": code, "output_bytes": self._limits.output_bytes}
        try:
            self._start("program", job, peer=program_end)
            names = self._loaded()
            self._start(
                "judge",
                {
                    "mode": "assert",
                    "code": tests.code,
                    "setup": tests.setup,
                    "entry_point": tests.entry_point,
                    "names": names,
                    "writes_back": tests.writes_back,
                },
                peer=judge_end,
            )
        finally:
            program_end.close()
            judge_end.close()
        kind, payload = self._next("judge")
        if kind == b"P":
            return 1
        if kind == b"F":
            raise _failed_assertion(payload)
        if kind == b"":
            raise self._judge_gone()
        raise self._gone("program", "its replies to the tests were not understood")

    def unit_tests(self, code: str, tests: UnitTests) -> int:
        """Judge by a unittest class in the program's own process; the number of tests. Raises Ruling otherwise."""
        job = {"code": code, "tests": tests.code, "test_class": tests.test_class}
        self._start("program", job, role_inside="unittest")
        kind, payload = self._next("program")
        if kind == b"S":
            raise Ruling("syntax_error", _describe(payload))
        if kind == b"I":
            raise self._raised(payload, None, "loading the program")
        if kind != b"U":
            raise self._not_understood(kind, payload, None)
        report = _record(payload)
        try:
            ran, skipped = int(report["passed"]), int(report["skipped"])
            problems = [tuple(str(part) for part in problem) for problem in report["problems"]]
            changed = [str(name) for name in report["changed"]]
            test, kind_name, text = problems[0] if problems else ("", "", "")
        except (ValueError, KeyError, TypeError, OverflowError):
            raise Ruling("crash", "the report of its tests was not understood") from None
        if changed:
            raise Ruling("fail", f"{_TAMPERED}: {_printable(', '.join(changed[:5]))}")
        if problems:
            raise Ruling("fail", _printable(f"{test.split(' ')[0]} of {tests.num_tests} tests: {kind_name}: {text}"))
        if ran != tests.num_tests or skipped:
            what = f"{ran} tests passed" + (f" and {skipped} were skipped" if skipped else "")
            raise Ruling("fail", f"{what} where the trusted source has {tests.num_tests}")
        return ran

    # ------------------------------------------------------------------------------------------------- the machinery

    def _start(
        self, role: str, job: dict[str, Any], *, peer: socket.socket | None = None, role_inside: str | None = None
    ) -> None:
        limits = self._limits if role == "program" else _JUDGE_LIMITS
        if role == "program":  # a second process of it has what the first one left
            self._allowed = self._limits.cpu_seconds - self.cpu_seconds
            limits = replace(limits, cpu_seconds=self._allowed)
        if role == "judge":
            limits = replace(limits, cpu_seconds=max(limits.cpu_seconds, self._limits.cpu_seconds))
        if role in self._channels:
            self._channels.pop(role).close()
        sock, pid = self._slot.jail(role).fork(role_inside or role, limits, peer=peer)
        channel = Channel(sock, limit=self._limits.output_bytes if role == "program" else 1 << 30)
        self._channels[role], self._pids[role] = channel, pid
        with contextlib.suppress(OSError):  # it has ended already; reading tells why
            channel.send(b"J", marshal.dumps(job, 2))

    def _loaded(self) -> list[str]:
        """Wait until the program's own statements have run; the names that it defines."""
        kind, payload = self._next("program")
        if kind == b"K" and len(payload) <= _MAX_NAMES:
            return payload.decode("utf-8", "replace").split("\n")
        if kind == b"S":
            raise Ruling("syntax_error", _describe(payload))
        if kind == b"I":
            raise self._raised(payload, None, "loading the program")
        raise self._not_understood(kind, payload, None)

    def _next(self, role: str) -> tuple[bytes, bytes]:
        """The next frame of a child; its end is `(b"", b"")`. Raises Ruling when a limit is reached meanwhile."""
        channel = self._channels[role]
        while True:
            try:
                found = channel.take()
            except Garbled as error:
                raise Ruling("output", str(error)) from None
            if found is not None:
                return found
            elapsed = time.monotonic() - self._started
            if elapsed >= self._next_look:
                self._look(elapsed)
                self._next_look = elapsed + _LOOK
            wait([channel], min(self._next_look, self._limits.wall_seconds) - elapsed)

    def _look(self, elapsed: float) -> None:
        """Check the limits that the kernel does not."""
        for role, pid in list(self._pids.items()):
            try:
                usage, files = self._slot.jail(role).usage()
            except JailLost:
                if not self._slot.is_loose:
                    raise
                raise Ruling("crash", "the program stopped its jail's helper process; the jail was replaced") from None
            allowed = self._allowed if role == "program" else max(_JUDGE_LIMITS.cpu_seconds, self._limits.cpu_seconds)
            if usage.get(pid, 0.0) >= allowed:
                raise Ruling("timeout", f"the run took more than {allowed:.3g} s of CPU time")
            if role == "program" and self._open_call is not None:
                self._look_at_call(self._open_call, usage.get(pid, 0.0))
            if role == "program" and files > _MAX_FILES:
                raise Ruling("output", f"the program made more than {_MAX_FILES} files")
        if elapsed >= self._limits.wall_seconds:
            raise Ruling("timeout", f"the run took more than {self._limits.wall_seconds:.3g} s")

    @contextlib.contextmanager
    def _open(self, index: int | None, *, wall_seconds: float, cpu_seconds: float = math.inf) -> Iterator[None]:
        """What the program does meanwhile is one call (None: it loads), with limits of its own."""
        self._open_call = _OpenCall(index, cpu_seconds, wall_seconds, time.monotonic())
        try:
            yield
        finally:
            self._open_call = None

    def _look_at_call(self, call: "_OpenCall", spent: float) -> None:
        """End a call that sleeps, or outlasts its limit by more than one look: a loop that catches its own alarm."""
        what = "loading the program" if call.index is None else "a call"
        if call.first_seen is None:
            call.first_seen = spent
        elif spent - call.first_seen >= call.cpu_seconds:
            message = f"{what} took more than {call.cpu_seconds:.3g} s of CPU time, and did not let go"
            raise Ruling("timeout", message, call.index)
        if time.monotonic() - call.opened >= call.wall_seconds:
            raise Ruling("timeout", f"{what} took more than {call.wall_seconds:.3g} s", call.index)

    def _end(self, role: str) -> Ended | None:
        """End a child, and leave its jail clean or discarded."""
        pid = self._pids.pop(role, None)
        if pid is None:
            return self._ended.get(role)
        try:
            ended, is_clean = self._slot.jail(role).end()
        except JailLost:
            self._slot.discard(role)
            return None
        if not is_clean:
            self._slot.discard(role)
        found = ended.get(pid)
        if found is not None:
            self._ended[role] = found
            if role == "program":
                self.cpu_seconds += found.cpu_seconds
        return found

    def _gone(self, role: str, otherwise: str) -> Ruling:
        """Why a child stopped answering, from how it ended."""
        try:
            ended = self._wait_for_end(role)
        except Ruling as ruling:
            return ruling
        if ended is None:
            raise JailLost("the jail has ended")
        if ended.signal in (signal.SIGXCPU, signal.SIGKILL) and ended.cpu_seconds >= self._allowed * 0.9:
            return Ruling("timeout", f"the run took more than {self._limits.cpu_seconds:.3g} s of CPU time")
        if ended.signal == signal.SIGKILL:
            return Ruling("crash", otherwise)
        return Ruling("crash", ended.describe())

    def _judge_gone(self) -> Exception:
        """Why the judge's process stopped answering. That it was killed is nobody's verdict: the run is made again."""
        ended = self._wait_for_end("judge")
        if ended is None or (ended.signal == signal.SIGKILL and ended.cpu_seconds < _JUDGE_LIMITS.cpu_seconds * 0.9):
            return JailLost("the judge's process was lost")
        return Ruling("fail", "its results cannot be judged within the limits")

    def _wait_for_end(self, role: str) -> Ended | None:
        """Give a child whose socket is closed a moment to end by itself, so that its status says why."""
        channel = self._channels[role]
        deadline = time.monotonic() + 0.2
        while not channel.is_closed and time.monotonic() < deadline:
            wait([channel], 0.05)
            with contextlib.suppress(Garbled):
                channel.take()
        return self._end(role)

    def _not_understood(self, kind: bytes, payload: bytes, index: int | None) -> Ruling:
        if kind == b"O":
            return Ruling("output", f"the program printed more than {self._limits.output_bytes} characters", index)
        if kind == b"":
            ruling = self._gone("program", "its process ended without a word")
            return Ruling(ruling.status, ruling.message, index)
        return Ruling("crash", "its replies were not understood", index)

    def _raised(self, payload: bytes, index: int | None, where: str) -> Ruling:
        record = _record(payload)
        if not record:
            return Ruling("crash", "its replies were not understood", index)
        status = _status_of(str(record.get("builtin")), record.get("errno"))
        return Ruling(status, f"{where} raised {_describe(payload)}", index)

    def _compare(self, index: int, is_exact: bool, data: bytes, tests: CallTests) -> None:
        """Have the judge's process compare one result; return if it accepts. Raises Ruling otherwise."""
        call = _shown_call(tests, index)
        if data[:1] == b"D" or tests.expected[index][:1] == b"D":
            raise Ruling("fail", f"{call} returned another large value than expected", index)
        if "judge" not in self._pids:
            self._start("judge", {"mode": "compare", "oracle": tests.oracle, "atol": tests.atol})
        arguments = b"" if tests.oracle == "equal" else values.encode(marshal.loads(tests.inputs)[index])
        payload = inside_judge.pack_comparison(is_exact, data, tests.expected[index], arguments)
        with contextlib.suppress(OSError):
            self._channels["judge"].send(b"C", payload)
        kind, answer = self._next("judge")
        if kind == b"Y":
            return
        if kind == b"":
            raise self._judge_gone()
        if kind != b"N":
            raise Ruling("fail", f"{call} returned a value that cannot be compared within the limits", index)
        got, expected = json.loads(answer)
        raise Ruling("fail", _printable(f"{call} returned {got}, expected {expected}"), index)


def calls_from(first: int, tests: CallTests) -> CallTests:
    """The calls from `first` on."""
    if first == 0:
        return tests
    return replace(
        tests,
        inputs=values.encode(marshal.loads(tests.inputs)[first:]),
        expected=tests.expected[first:],
        call_cpu_seconds=tests.call_cpu_seconds[first:],
    )


def _status_of(builtin: str, errno: object = None) -> Status:
    if builtin == "MemoryError" or errno == 12:  # ENOMEM
        return "memory"
    return "output" if errno in (27, 28, 122) else "fail"  # EFBIG, ENOSPC, EDQUOT


def _record(payload: bytes) -> dict[str, Any]:
    """A JSON object that a program sent; empty for anything else. Long payloads are not read: ours are short."""
    if len(payload) > _MAX_RECORD:
        return {}
    try:
        record = json.loads(payload)
    except (ValueError, RecursionError, MemoryError):
        return {}
    return record if isinstance(record, dict) else {}


def _describe(payload: bytes) -> str:
    record = _record(payload)
    if not record:
        return "an exception that cannot be shown"
    return _printable(f"{record.get('type')}: {record.get('message')}").rstrip(": ")


def _printable(text: str) -> str:
    """Text of a program for a message: a terminal's control characters and lone surrogates are written out."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text[:1000])


def _failed_assertion(payload: bytes) -> Ruling:
    record = json.loads(payload)  # from the judge's process
    kinds: dict[str, Status] = {"MemoryError": "memory", "OutputLimit": "output"}
    message = str(record["message"]) + (f"; the last call: {record['last']}" if record["last"] else "")
    return Ruling(kinds.get(str(record["type"]), "fail"), _printable(message))


def _shown_call(tests: CallTests, index: int) -> str:
    """The call as one would write it; its arguments are the benchmark's own."""
    inputs = marshal.loads(tests.inputs)
    arguments = ", ".join(remote.short(value, 120) for value in inputs[index]) if index < len(inputs) else "…"
    return f"{tests.entry_point}({arguments})"
