"""Verdicts that are already known: the same program, tests, limits and sandbox give the same verdict.

Keyed by content, in one SQLite file, so that a second scoring of the same samples, a resumed run, and two processes
side by side all profit. Not kept: sandbox errors, which are no verdicts, and what ended at a limit of time, memory or
output or in a crash, since the machine has a part in those.
"""

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Self

from unmask.errors import SandboxError
from unmask.sandbox.job import Executor, Job
from unmask.sandbox.slot import CallRun
from unmask.sandbox.tests import Tests, digest_of
from unmask.sandbox.verdict import Limits, Verdict

FORMAT = 2
"""Raised when a change of the sandbox changes verdicts."""

_log = logging.getLogger(__name__)
_KEPT = ("pass", "fail", "syntax_error")


class VerdictCache:
    """An executor that asks another one only for what it does not know."""

    def __init__(self, executor: Executor, path: Path) -> None:
        self._inner = executor
        self.hits = 0
        self._is_broken = False
        self._lock = threading.Lock()
        self._digests: dict[int, tuple[Tests, str]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._store.execute("pragma journal_mode = wal")
            self._store.execute("create table if not exists verdicts (key text primary key, verdict text not null)")
        except (sqlite3.Error, OSError) as error:
            raise SandboxError(
                f"the verdict cache {path} cannot be used ({error}); delete it, or set UNMASK_HOME to another folder"
            ) from None

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def guarantees(self) -> tuple[str, ...]:
        return self._inner.guarantees

    @property
    def interpreter(self) -> str:
        return self._inner.interpreter

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        """As the executor does, with known verdicts in their places."""
        order: list[Verdict | str] = []

        def unknown() -> Iterator[Job]:
            for job in jobs:
                key = self.key(job)
                found = self._look_up(key)
                order.append(found or key)
                if found is None:
                    yield job

        inner = self._inner.judge(unknown())
        at = 0
        for verdict in inner:
            while at < len(order) and isinstance(known := order[at], Verdict):
                yield known
                at += 1
            key = order[at]
            assert isinstance(key, str)
            self._keep(key, verdict)
            order[at] = verdict
            at += 1
            yield verdict
        for known in order[at:]:
            assert isinstance(known, Verdict)
            yield known

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        return self._inner.call(code, entry_point, inputs, limits)

    def close(self) -> None:
        self._store.close()
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def key(self, job: Job) -> str:
        """A digest of everything that the verdict depends on."""
        if id(job.tests) not in self._digests:  # the tests of a task are shared by its samples
            self._digests[id(job.tests)] = (job.tests, digest_of(job.tests))
        tests = self._digests[id(job.tests)][1]
        parts = [FORMAT, job.code, tests, astuple(job.limits), self.name, self.interpreter]
        return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()

    def _look_up(self, key: str) -> Verdict | None:
        row = self._execute("select verdict from verdicts where key = ?", key)
        if row is None:
            return None
        self.hits += 1
        return Verdict.from_json(json.loads(row[0]))

    def _keep(self, key: str, verdict: Verdict) -> None:
        if verdict.status in _KEPT:
            self._execute("insert or replace into verdicts values (?, ?)", key, json.dumps(verdict.to_json()))

    def _execute(self, statement: str, *values: str) -> tuple[str] | None:
        """The first row of a statement. A cache that fails half-way is left alone from then on; no verdict is lost."""
        if self._is_broken:
            return None
        try:
            with self._lock:
                row: tuple[str] | None = self._store.execute(statement, values).fetchone()
            return row
        except sqlite3.Error as error:
            self._is_broken = True
            _log.warning("the verdict cache is not used any more (%s)", error)
            return None
