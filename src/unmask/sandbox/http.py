"""A sandbox behind HTTP, for machines that have a service: SandboxFusion's protocol (`POST /run_code`).

What the service isolates is its own affair. Honest verdicts need less trust than that for tests by calls: the service
gets the program and the inputs, and the results that come back are compared here. Tests by assertions and
unittest-style tests run inside the program's process there, and their verdicts say so (`is_in_process`).
"""

import base64
import contextlib
import json
import secrets
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from unmask.errors import SandboxError, SettingsError
from unmask.sandbox import backends
from unmask.sandbox.inside import values
from unmask.sandbox.job import Job
from unmask.sandbox.slot import CallRun, Ruling, Run, Slot
from unmask.sandbox.tests import AssertTests, CallTests, UnitTests
from unmask.sandbox.verdict import Limits, Verdict

_CALLS = """
import base64, marshal, sys, types
values = types.ModuleType("values")
exec(compile({values!r}, "values", "exec"), vars(values))
job = marshal.loads(base64.b64decode({job!r}))
out, sys.stdout = sys.stdout, open("/dev/null", "w")
def say(kind, data=b""):
    out.write({mark!r} + kind + base64.b64encode(data).decode() + "\\n")
    out.flush()
module = types.ModuleType("solution")
sys.modules["solution"] = module
try:
    code = compile(job["code"], "<program>", "exec")
except (SyntaxError, ValueError) as error:
    say("S", str(error).encode("utf-8", "replace"))
    sys.exit()
try:
    exec(code, vars(module))
    entry = vars(module)[job["entry_point"]]
    for arguments in marshal.loads(job["inputs"]):
        result = entry(*arguments)
        if job["as_set"] and type(result) not in (list, tuple, set, frozenset, dict, str):
            result = set(result)
        data, is_exact = values.encode_compact(result)
        say("E" if is_exact else "R", data)
except BaseException as error:
    say("X", (type(error).__name__ + ": " + str(error)).encode("utf-8", "replace"))
else:
    say("D")
"""
_UNITTEST = """
import unittest as _unittest
_result = _unittest.TestResult()
_unittest.TestLoader().loadTestsFromTestCase({test_class}).run(_result)
assert _result.wasSuccessful() and not _result.skipped, (_result.failures + _result.errors)[:1]
assert _result.testsRun == {num_tests}, "another number of tests ran"
"""


class HttpExecutor:
    """Judges programs by a SandboxFusion service at `url`."""

    def __init__(self, url: str, *, workers: int | None = None) -> None:
        count = workers if workers is not None else 4
        if count < 1:
            raise SettingsError(f"--workers {count} is not a number of workers; it must be at least 1")
        self.name = url.rstrip("/")
        self.guarantees = ("whatever the service isolates", "calls are compared outside the program's process")
        # comparing runs our own code alone, on bytes that it decodes with care: resource limits are enough
        judge = backends.choose("plain")
        self._slots: SimpleQueue[Slot] = SimpleQueue()
        self._all = [Slot(judge, backends.running_interpreter(), number=number) for number in range(count)]
        for slot in self._all:
            self._slots.put(slot)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sandbox")
        try:
            answer = self._run("import sys\nprint(sys.version.split()[0])", Limits())
            self.interpreter = f"Python {answer['stdout'].strip()}"
        except BaseException:
            self.close()
            raise

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        """As every executor does."""
        waiting: deque[Future[Verdict]] = deque()
        try:
            for job in jobs:
                waiting.append(self._threads.submit(self._judge, job))
                while len(waiting) > 2 * len(self._all) or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        """What a trusted program returns. The service tells no time of single calls: they are 0."""
        tests = CallTests(entry_point=entry_point, inputs=inputs, expected=())
        answers: list[bytes] = []
        try:
            answers += [data for _, data in self._results(code, tests, limits, count=None)]
        except Ruling as ruling:
            return CallRun(answers=tuple(answers), cpu_seconds=(0.0,) * len(answers), error=ruling.message)
        return CallRun(answers=tuple(answers), cpu_seconds=(0.0,) * len(answers))

    def close(self) -> None:
        """End the comparing processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for slot in self._all:
            slot.close()

    def __enter__(self) -> "HttpExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge(self, job: Job) -> Verdict:
        slot = self._slots.get()

        def judged(run: Run) -> int:
            if isinstance(job.tests, CallTests):
                count = len(job.tests.expected)
                return run.check(self._results(job.code, job.tests, job.limits, count=count), job.tests)
            return self._in_process(job)

        try:
            verdict = slot.ruled(judged, job.limits)
        finally:
            self._slots.put(slot)
        return replace(verdict, backend=self.name, is_in_process=not isinstance(job.tests, CallTests))

    def _results(
        self, code: str, tests: CallTests, limits: Limits, *, count: int | None
    ) -> Iterator[tuple[bool, bytes]]:
        mark = f"\x1e{secrets.token_hex(8)}"
        job = values.encode(
            {"code": code, "entry_point": tests.entry_point, "inputs": tests.inputs, "as_set": tests.oracle == "set"}
        )
        source = Path(values.__file__).read_text(encoding="utf-8")
        script = _CALLS.format(values=source, job=base64.b64encode(job).decode(), mark=mark)
        answer = self._run(script, limits)
        lines = [line[len(mark) :] for line in answer["stdout"].split("\n") if line.startswith(mark)]
        for index, line in enumerate(lines):
            kind, data = line[:1], _unpacked(line[1:])
            if kind in ("E", "R") and (count is None or index < count):
                yield kind == "E", data
            elif kind == "D" and count in (None, index):
                return
            elif kind == "S":
                raise Ruling("syntax_error", data.decode("utf-8", "replace")[:1000])
            elif kind == "X":
                text = data.decode("utf-8", "replace")[:1000]
                raise Ruling("memory" if text.startswith("MemoryError") else "fail", f"raised {text}", index)
            else:
                break
        raise Ruling("crash", f"the process ended early (exit code {answer['return_code']})", max(0, len(lines)))

    def _in_process(self, job: Job) -> int:
        """Tests behind the program in one process; it passes when the last line is reached."""
        word = secrets.token_hex(16)
        if isinstance(job.tests, UnitTests):
            ending = _UNITTEST.format(test_class=job.tests.test_class, num_tests=job.tests.num_tests)
            script = f"{job.code}\n{job.tests.code}\n{ending}\nprint({word!r})\n"
        else:
            assert isinstance(job.tests, AssertTests)
            script = f"{job.tests.setup}\n{job.code}\n{job.tests.code}\nprint({word!r})\n"
        answer = self._run(script, job.limits)
        if answer["return_code"] == 0 and answer["stdout"].rstrip().endswith(word):
            return 1
        lines = answer["stderr"].strip().splitlines() or [f"exit code {answer['return_code']}"]
        raise Ruling("syntax_error" if lines[-1].startswith("SyntaxError") else "fail", lines[-1][:1000])

    def _run(self, code: str, limits: Limits) -> dict[str, Any]:
        """One run there. Raises SandboxError when the service fails, Ruling for a time-out."""
        request = {
            "code": code,
            "language": "python",
            "run_timeout": limits.wall_seconds,
            "memory_limit_MB": limits.memory_bytes >> 20,
        }
        call = urllib.request.Request(
            f"{self.name}/run_code",
            data=json.dumps(request).encode("utf-8", "replace"),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(call, timeout=limits.wall_seconds + 30) as response:
                answer = json.load(response)
            run = answer["run_result"] or {}
            if answer["status"] == "SandboxError":
                raise SandboxError(f"the sandbox at {self.name} failed: {answer.get('message', '')[:300]}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "reason", None) or error
            raise SandboxError(
                f"the sandbox at {self.name} cannot be used ({reason}); it must speak SandboxFusion's /run_code"
            ) from None
        if run.get("status") == "TimeLimitExceeded":
            raise Ruling("timeout", f"the run took more than {limits.wall_seconds:.3g} s")
        return {
            "stdout": run.get("stdout") or "",
            "stderr": run.get("stderr") or "",
            "return_code": run.get("return_code"),
        }


def _unpacked(text: str) -> bytes:
    with contextlib.suppress(ValueError):
        return base64.b64decode(text, validate=True)
    return b""
