"""What an executor is given, and what it has to be able to do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

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
