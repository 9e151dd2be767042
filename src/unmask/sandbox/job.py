"""What an executor is given, and what it has to be able to do."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from unmask.errors import SettingsError
from unmask.sandbox.slot import CallRun
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


def in_order(jobs: Iterable[Job], submit: Callable[[Job], Future[Verdict]], *, workers: int) -> Iterator[Verdict]:
    """Verdicts in the order of the jobs, of which twice as many as `workers` are under way at most."""
    waiting: deque[Future[Verdict]] = deque()
    try:
        for job in jobs:
            waiting.append(submit(job))
            while len(waiting) > 2 * workers or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def check_workers(count: int) -> int:
    """The number itself. Raises SettingsError unless it is at least 1."""
    if count < 1:
        raise SettingsError(f"--workers {count} is not a number of workers; it must be at least 1")
    return count
