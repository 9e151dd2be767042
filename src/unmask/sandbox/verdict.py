"""What the sandbox says about a program: the limits it ran under, how it ended, and what kept it in.

A verdict is about the program, with one exception: `sandbox_error` says that *we* failed (a jail could not be started,
a worker was lost). It is never a score: callers leave the sample out or stop, and never count it as wrong.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from unmask.errors import SettingsError

Status = Literal["pass", "fail", "syntax_error", "timeout", "memory", "output", "crash", "sandbox_error"]
STATUSES: tuple[str, ...] = get_args(Status)

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use. Time is CPU time, so that a busy machine changes no verdict."""

    cpu_seconds: float = 10.0
    """CPU time of the whole run: loading the program and all its tests."""

    wall_seconds: float = 60.0
    """Wall-clock cap, for programs that sleep or wait. Generous on purpose: see `cpu_seconds`."""

    memory_bytes: int = 4096 * _MIB
    """Address space of the process (EvalPlus's limit)."""

    file_bytes: int = 16 * _MIB
    """Size of one file that the program writes."""

    disk_bytes: int = 64 * _MIB
    """Everything in the program's private folder together."""

    output_bytes: int = 64 * _MIB
    """What the program may return or print."""

    processes: int = 64
    """Threads, and processes where the back end lets a program start any (unittest-style tests only)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise SettingsError(f"the sandbox limit {field.name}={value} must be a positive, finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one program fared against one set of tests."""

    status: Status
    message: str = ""
    """Which test failed and how, in the words a programmer would read; empty for a pass."""

    failed_test: int | None = None
    """Index of the first failed call, where the tests are calls. Where all are counted: of the first that ended at a
    limit or in a crash, if one did; the status and the message are then that call's."""

    num_tests: int = 0
    """Tests that were run and passed, the failed one not counted. Where all are counted (`CallTests.counts_all`): those
    that passed, also behind a failed one."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    backend: str = ""
    """Which back end judged it."""

    is_in_process: bool = False
    """The tests ran in the program's own process (unittest-style tests): a weaker verdict, which says so."""

    tampering: str = ""
    """What an in-process program was seen to have changed in its judge; such a run never passes."""

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults, and the status."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: v for k, v in given.items() if k == "status" or v != _DEFAULTS.get(k)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Verdict":
        """The inverse of `to_json`."""
        known = {field.name for field in fields(cls)}
        return cls(**{k: v for k, v in record.items() if k in known})


_DEFAULTS = {field.name: field.default for field in fields(Verdict)}
