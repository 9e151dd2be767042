"""Jails on this machine: a few slots, each on its own thread, verdicts in the order of the jobs."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from unmask.sandbox import backends
from unmask.sandbox.job import Job, check_workers, in_order
from unmask.sandbox.slot import CallRun, Slot
from unmask.sandbox.verdict import Limits, Verdict


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
        count = check_workers(len(os.sched_getaffinity(0)) if workers is None else workers)
        self._backend = backend
        python = interpreter or backends.running_interpreter()
        self._slots = [Slot(backend, python, number=number, loose=loose) for number in range(count)]
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        # bubblewrap ends with the thread that started it: these threads live as long as the executor
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sandbox")
        try:
            version = self._threads.submit(self._first_jail).result()
            self.interpreter = f"{version} with {python.name}" if python.name else version
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
        return in_order(jobs, lambda job: self._threads.submit(self._judge, job), workers=len(self._slots))

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        return self._threads.submit(self._call, code, entry_point, inputs, limits).result()

    def close(self) -> None:
        """End every jail, and what still runs in it."""
        for slot in self._slots:
            slot.abort()
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
