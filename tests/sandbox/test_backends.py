"""Which back end is chosen, and what is said when none can be had."""

import os
import signal
from pathlib import Path

import pytest

from unmask.errors import SandboxError, SettingsError
from unmask.sandbox import backends
from unmask.sandbox.executor import Job, LocalExecutor, open_executor
from unmask.sandbox.inside import confine, guard
from unmask.sandbox.jail import Plan
from unmask.sandbox.tests import CallTests
from unmask.sandbox.verdict import Limits

RIGHT = Job(code="def f(x): return x + 1", tests=CallTests.of("f", [(1,)], [2]))


def test_an_unknown_sandbox_is_told_the_nearest() -> None:
    with pytest.raises(SandboxError, match="the sandbox 'bwarp' is not known; did you mean bwrap"):
        backends.choose("bwarp")


def test_without_an_isolating_back_end_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_bwrap", lambda: None)
    monkeypatch.setattr(confine, "landlock_version", lambda: 0)
    with pytest.raises(SandboxError) as caught:
        backends.choose("auto")
    message = str(caught.value)
    assert "no sandbox that isolates programs can be had here" in message
    assert "bwrap: bubblewrap is not installed" in message
    assert "landlock: the kernel has no Landlock" in message
    assert "apt-get install bubblewrap" in message
    assert "`--sandbox plain`" in message


def test_plain_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "probe", lambda name: "no")
    with pytest.raises(SandboxError):
        backends.choose("auto")
    plain = backends.choose("plain")
    assert not plain.isolates
    assert not any("network" in guarantee or "host" in guarantee for guarantee in plain.guarantees)


def test_a_bubblewrap_that_does_not_work_is_told_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(backends, "find_bwrap", lambda: str(broken))
    with pytest.raises(SandboxError, match="No permissions to create new namespace"):
        backends.choose("bwrap")


def test_a_bubblewrap_that_cannot_be_started_is_a_reason_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backends, "find_bwrap", lambda: str(tmp_path / "absent"))
    with pytest.raises(SandboxError, match="cannot be started: No such file"):
        backends.choose("bwrap")


def test_a_machine_without_a_known_filter_has_no_isolating_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "supported", lambda: False)
    assert "needs Linux on x86-64 or aarch64" in str(backends.probe("bwrap"))
    assert "needs Linux on x86-64 or aarch64" in str(backends.probe("landlock"))


def test_unit_tests_need_bubblewrap() -> None:
    if isinstance(backends.probe("landlock"), str):
        pytest.skip("no Landlock here")
    with pytest.raises(
        SandboxError,
        match="unittest-style tests start processes, which only the back end bwrap can hold, and this is landlock",
    ):
        open_executor("landlock", loose=True)


def test_workers_are_at_least_one() -> None:
    with pytest.raises(SettingsError, match="--workers 0 is not a number of workers; it must be at least 1"):
        open_executor("plain", workers=0)


def test_plain_judges_from_outside_too() -> None:
    with open_executor("plain", workers=1) as executor:
        jobs = [RIGHT, Job(code="import sys; sys.exit(0)", tests=RIGHT.tests)]
        assert [verdict.status for verdict in executor.judge(jobs)] == ["pass", "fail"]
        assert executor.name == "plain"


@pytest.mark.parametrize("name", ["bwrap", "landlock"])
def test_each_verdict_names_its_back_end(name: str) -> None:
    if isinstance(backends.probe(name), str):  # type: ignore[arg-type]
        pytest.skip(f"no {name} here")
    with open_executor(name, workers=1) as executor:
        (verdict,) = executor.judge([RIGHT])
        assert (verdict.status, verdict.backend) == ("pass", name)
        assert executor.interpreter.startswith("Python 3.")
        assert "the judge is outside the program's process" in executor.guarantees


def test_a_jail_that_cannot_be_had_is_a_sandbox_error_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_executor("plain", workers=1) as executor:
        assert isinstance(executor, LocalExecutor)
        list(executor.judge([RIGHT]))
        for pid in executor.pids:
            os.kill(pid, signal.SIGKILL)
        monkeypatch.setattr(backends, "plan", _broken_plan)
        (verdict,) = executor.judge([RIGHT])
    assert verdict.status == "sandbox_error"
    assert "cannot be started" in verdict.message


def _broken_plan(*_: object, **__: object) -> Plan:
    return Plan(command=("/nothing/of/that/name",), environment={}, config={})


def test_the_order_of_verdicts_is_that_of_the_jobs() -> None:
    jobs = [
        Job(
            code=f"import time\ntime.sleep({0.05 if number % 3 == 0 else 0})\ndef f(x): return x + {number}",
            tests=CallTests.of("f", [(1,)], [1 + (number if number % 2 else -1)]),
            limits=Limits(wall_seconds=20),
        )
        for number in range(12)
    ]
    with open_executor("plain", workers=3) as executor:
        assert isinstance(executor, LocalExecutor)
        assert [verdict.passed for verdict in executor.judge(jobs)] == [bool(number % 2) for number in range(12)]
