"""A sandbox behind HTTP, for machines that have a service: SandboxFusion's protocol (`POST /run_code`).

What the service isolates is its own affair. Honest verdicts need less trust than that for tests by calls: the service
gets the program and the inputs, and the results that come back are compared here. Tests by assertions and
unittest-style tests run inside the program's process there, and their verdicts say so (`is_in_process`).

The service limits a whole run by the clock and says nothing of single calls. So where every call is to be counted, one
that ends the process costs itself only, and one that never returns also costs those behind it.
"""

import base64
import contextlib
import json
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from unmask.errors import SandboxError
from unmask.sandbox import backends
from unmask.sandbox.inside import values
from unmask.sandbox.job import Job, check_workers, in_order
from unmask.sandbox.slot import CallRun, Ruling, Run, Slot, calls_from
from unmask.sandbox.tests import AssertTests, CallTests, UnitTests
from unmask.sandbox.verdict import Limits, Verdict

_RESULTS = "unmask-results"
"""The file that a run leaves its results in. The service cuts what is printed after a megabyte, and files nowhere."""

_FIRST = """
import sys
with open({results!r}, "w") as out:
    out.write("Python " + sys.version.split()[0])
"""
_SCRIPT = """
import base64, marshal, sys, types
out = open({results!r}, "w")
values = types.ModuleType("values")
exec(compile({values!r}, "values", "exec"), vars(values))
job = marshal.loads(base64.b64decode({job!r}))
def say(kind, data=b""):
    out.write(kind + base64.b64encode(data).decode() + "\\n")
    out.flush()
module = types.ModuleType("solution")
sys.modules["solution"] = module
try:
    parts = [compile(part, "<program>", "exec", dont_inherit=True) for part in job["parts"]]
except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
    say("S", str(error).encode("utf-8", "replace"))
    sys.exit()
try:
    for part in parts:
        exec(part, vars(module))
{rest}
except BaseException as error:
    text = type(error).__name__ + ": " + str(error)
    say("M" if isinstance(error, MemoryError) else "X", text.encode("utf-8", "replace"))
else:
    say("D")
"""
_CALLS = """
    entry = vars(module)[job["entry_point"]]
    for arguments in marshal.loads(job["inputs"]):
        result = entry(*arguments)
        if job["as_set"] and type(result) not in (list, tuple, set, frozenset, dict, str):
            result = set(result)
        data, is_exact = values.encode_compact(result)
        say("E" if is_exact else "R", data)
"""
_UNITTEST = """
    import unittest
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromTestCase(vars(module)[job["test_class"]]).run(result)
    for problem in result.failures + result.errors:
        raise AssertionError(problem[1].strip().splitlines()[-1])
    if not result.wasSuccessful() or result.skipped or result.testsRun != job["num_tests"]:
        raise AssertionError("another number of tests ran")
"""


class HttpExecutor:
    """Judges programs by a SandboxFusion service at `url`."""

    def __init__(self, url: str, *, workers: int | None = None) -> None:
        count = check_workers(4 if workers is None else workers)
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
            self.interpreter = self._first_run()
        except BaseException:
            self.close()
            raise

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        """As every executor does."""
        return in_order(jobs, lambda job: self._threads.submit(self._judge, job), workers=len(self._all))

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        """What a trusted program returns. The service tells no time of single calls: they are 0."""
        tests = CallTests(entry_point=entry_point, inputs=inputs, expected=())
        answers: list[bytes] = []
        error = ""
        try:
            for _, data in self._results(code, tests, limits, count=None):
                answers.append(data)
        except Ruling as ruling:
            error = f"{ruling.status}: {ruling.message}"
        return CallRun(answers=tuple(answers), cpu_seconds=(0.0,) * len(answers), error=error)

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
            if isinstance(job.tests, CallTests) and job.tests.counts_all:
                return run.count(lambda first: self._results_from(first, job), job.tests)
            if isinstance(job.tests, CallTests):
                count = len(job.tests.expected)
                return run.check(self._results(job.code, job.tests, job.limits, count=count), job.tests)
            return self._in_process(job)

        try:
            verdict = slot.ruled(judged, job.limits)
        finally:
            self._slots.put(slot)
        return replace(verdict, backend=self.name, is_in_process=not isinstance(job.tests, CallTests))

    def _first_run(self) -> str:
        """The Python there. Raises SandboxError where there is none."""
        try:
            answer = self._run(_FIRST.format(results=_RESULTS), Limits())
        except Ruling as ruling:
            raise SandboxError(f"the sandbox at {self.name} cannot run Python: {ruling.message}") from None
        version: str = answer["results"].decode("utf-8", "replace")
        if not version.startswith("Python "):
            said = (answer["stderr"] or answer["stdout"])[:300]
            raise SandboxError(
                f"the sandbox at {self.name} cannot run Python, or does not give files back (`fetch_files`); it said "
                f"{said!r}"
            )
        return version

    def _results(
        self, code: str, tests: CallTests, limits: Limits, *, count: int | None
    ) -> Iterator[tuple[bool, bytes]]:
        job: dict[str, Any] = {"parts": [code], "entry_point": tests.entry_point, "inputs": tests.inputs}
        job["as_set"] = tests.oracle == "set"
        index = 0
        for kind, data in self._said(job, _CALLS, limits):
            if kind in ("E", "R") and (count is None or index < count):
                yield kind == "E", data
                index += 1
            elif kind == "D" and count in (None, index):
                return
            else:
                raise _ruling(kind, data, index)

    def _results_from(self, first: int, job: Job) -> Iterator[tuple[bool, bytes]]:
        """The results of a run that makes the calls from `first` on; a Ruling names the call that ended it."""
        assert isinstance(job.tests, CallTests)
        rest, done = calls_from(first, job.tests), 0
        try:
            for result in self._results(job.code, rest, job.limits, count=len(rest.expected)):
                yield result
                done += 1
        except Ruling as ruling:
            ended_itself = ruling.status == "crash" and ruling.failed_test is None
            raise Ruling(ruling.status, ruling.message, done) if ended_itself else ruling from None

    def _in_process(self, job: Job) -> int:
        """Tests behind the program in one process; the number of tests that passed."""
        tests = job.tests
        if isinstance(tests, UnitTests):
            parts = [job.code + "\n" + tests.code]
            work = {"parts": parts, "test_class": tests.test_class, "num_tests": tests.num_tests}
            said = self._said(work, _UNITTEST, job.limits)
        else:
            assert isinstance(tests, AssertTests)
            said = self._said({"parts": [tests.setup, job.code, tests.code]}, "", job.limits)
        for kind, data in said:
            if kind != "D":
                raise _ruling(kind, data, None)
            break
        return tests.num_tests if isinstance(tests, UnitTests) else 1

    def _said(self, job: dict[str, Any], rest: str, limits: Limits) -> Iterator[tuple[str, bytes]]:
        """What a run has left in its file; a run that ended early is a Ruling behind the last line."""
        source = Path(values.__file__).read_text(encoding="utf-8")
        packed = base64.b64encode(values.encode(job)).decode()
        answer = self._run(_SCRIPT.format(values=source, job=packed, results=_RESULTS, rest=rest), limits)
        for line in answer["results"].decode("ascii", "replace").splitlines():
            yield line[:1], _unpacked(line[1:])
        raise Ruling("crash", f"the process ended early (exit code {answer['return_code']})")

    def _run(self, code: str, limits: Limits) -> dict[str, Any]:
        """One run there. Raises SandboxError when the service fails, Ruling for a time-out."""
        request = {
            "code": code,
            "language": "python",
            "run_timeout": limits.wall_seconds,
            "memory_limit_MB": limits.memory_bytes >> 20,
            "fetch_files": [_RESULTS],
        }
        call = urllib.request.Request(
            f"{self.name}/run_code",
            data=json.dumps(request).encode("utf-8", "replace"),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(call, timeout=limits.wall_seconds + 30) as response:
                answer = json.load(response)
            if answer["status"] == "SandboxError":
                raise SandboxError(f"the sandbox at {self.name} failed: {str(answer.get('message'))[:300]}")
            run, files = answer["run_result"], answer.get("files") or {}
            if run.get("status") == "TimeLimitExceeded":
                raise Ruling("timeout", f"the run took more than {limits.wall_seconds:.3g} s")
            stdout, stderr = run.get("stdout") or "", run.get("stderr") or ""
            return {
                "stdout": stdout.strip(),
                "stderr": stderr.strip(),
                "return_code": run.get("return_code"),
                "results": base64.b64decode(files.get(_RESULTS) or ""),
            }
        except (
            OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError, RecursionError
        ) as error:  # fmt: skip
            reason = getattr(error, "reason", None) or error
            raise SandboxError(
                f"the sandbox at {self.name} cannot be used ({reason}); it must speak SandboxFusion's /run_code"
            ) from None


def _ruling(kind: str, data: bytes, index: int | None) -> Ruling:
    """What another line than a result decides."""
    text = data.decode("utf-8", "replace")[:1000]
    if kind == "S":
        return Ruling("syntax_error", text)
    if kind in ("M", "X"):
        return Ruling("memory" if kind == "M" else "fail", f"raised {text}", index)
    return Ruling("crash", "its replies were not understood", index)


def _unpacked(text: str) -> bytes:
    with contextlib.suppress(ValueError):
        return base64.b64decode(text, validate=True)
    return b""
