"""The hub's own cache: found without the hub's client, and left as other programs need it."""

import logging
from pathlib import Path

import pytest

from unmask.model import hub_cache
from unmask.model.hub import cached, remove, resolve

from sources import DATA, FOLDER, HUB_FILE, FakeHub, Table, failure

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b"}, "/b"),
        ({"HF_HOME": "/c"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
    ],
)
def test_the_cache_of_the_hub_is_where_the_hub_says(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HOME")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hub_cache.home() == Path(expected)


def test_the_cache_of_the_hub_is_used_without_network(table: Table, fake_hub: FakeHub) -> None:
    table(HUB_FILE)
    fake_hub.files = {"tiny.gguf": DATA}
    folder = fake_hub.snapshot("me/tiny-GGUF")
    found = resolve("tiny", offline=True)
    assert found.path == folder / "tiny.gguf"
    assert found.source == "cache of the Hugging Face hub, me/tiny-GGUF/tiny.gguf"
    assert fake_hub.asked == 0


def test_a_damaged_file_in_the_cache_of_the_hub_is_removed_with_its_blob(table: Table, fake_hub: FakeHub) -> None:
    table(HUB_FILE)
    fake_hub.files = {"tiny.gguf": DATA[:-1]}
    folder = fake_hub.snapshot("me/tiny-GGUF")
    assert f"has {len(DATA) - 1} bytes instead of {len(DATA)}, so it was removed" in failure(offline=True)
    assert list(folder.iterdir()) == []
    assert list((folder.parents[1] / "blobs").iterdir()) == []


def test_remove_leaves_a_repository_alone_that_holds_other_files(
    table: Table, fake_hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    table(HUB_FILE)
    fake_hub.files = {"tiny.gguf": DATA, "other.gguf": b"of somebody else"}
    folder = fake_hub.snapshot("me/tiny-GGUF")
    with caplog.at_level(logging.WARNING):
        assert remove("tiny") == 0
    assert "holds more than tiny.gguf and was left alone" in caplog.text
    assert (folder / "tiny.gguf").exists()


def test_remove_deletes_a_single_file_from_the_cache_of_the_hub(table: Table, fake_hub: FakeHub) -> None:
    table(HUB_FILE)
    fake_hub.files = {"tiny.gguf": DATA}
    fake_hub.snapshot("me/tiny-GGUF")
    assert remove("tiny") == len(DATA)
    assert cached("tiny") is None


@pytest.fixture
def two_revisions(fake_hub: FakeHub) -> Path:
    """A repository with two commits that share one file: `main` is c0ffee and `v1` is f00d."""
    fake_hub.files = FOLDER
    home = fake_hub.snapshot("me/tiny").parents[1]
    (home / "refs" / "v1").write_text("f00d")
    old = home / "snapshots" / "f00d"
    old.mkdir()
    (home / "blobs" / "old").write_bytes(b"old weights")
    (old / "model.safetensors").symlink_to("../../blobs/old")
    (old / "config.json").symlink_to((home / "snapshots" / "c0ffee" / "config.json").readlink())
    return home


@pytest.mark.parametrize("revision", ["v1", "f00d"])
def test_remove_of_a_revision_leaves_the_others_whole(two_revisions: Path, revision: str) -> None:
    assert remove(f"me/tiny@{revision}") == len(b"old weights")
    assert [folder.name for folder in (two_revisions / "snapshots").iterdir()] == ["c0ffee"]
    assert [ref.name for ref in (two_revisions / "refs").iterdir()] == ["main"]
    assert not (two_revisions / "blobs" / "old").exists()
    assert cached("me/tiny") == two_revisions / "snapshots" / "c0ffee"
    assert remove(f"me/tiny@{revision}") == 0


def test_remove_without_a_revision_deletes_all_of_them(two_revisions: Path) -> None:
    assert remove("me/tiny@v2") == 0
    assert remove("me/tiny") == len(b"old weights") + sum(map(len, FOLDER.values()))
    assert not two_revisions.exists()


def test_remove_does_not_follow_a_link_out_of_the_repository(two_revisions: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"my own")
    (two_revisions / "snapshots" / "f00d" / "mine.safetensors").symlink_to(mine)
    assert remove("me/tiny@v1") == len(b"old weights")
    assert mine.read_bytes() == b"my own"
    assert not (two_revisions / "snapshots" / "f00d").exists()
