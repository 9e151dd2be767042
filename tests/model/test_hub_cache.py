"""The hub's own cache: found without the hub's client, and left as other programs need it."""

import logging
from pathlib import Path

import pytest

from sources import DATA, HUB_FILE, FakeHub, Table, failure
from unmask.model import hub_cache
from unmask.model.hub import cached, remove, resolve

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
