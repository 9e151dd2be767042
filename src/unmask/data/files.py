"""The data files of the benchmarks: where each one lies, where it comes from, and whether it is the right one.

The package holds none of them. `locate` looks in `$UNMASK_DATA`, then in `<cache home>/data`, and downloads to there
what neither has. Whatever it hands out has the sha256 of the table (`files.toml`): a score names its data.

>>> known("cruxeval/cruxeval.jsonl").licence
'MIT'
"""

import contextlib
import functools
import gzip
import hashlib
import http.client
import json
import os
import tomllib
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from unmask.errors import DownloadError, TaskError, did_you_mean
from unmask.model import store
from unmask.model.progress import Progress, Report

_TIMEOUT = 30.0  # seconds without a byte
_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One row of the table."""

    path: str
    """Below the data folder."""

    version: str
    """The data set's own name for its version, else the commit that it was taken from."""

    licence: str
    bytes: int
    sha256: str
    url: str = ""
    """Where these very bytes can be downloaded; empty: nowhere."""

    how: str = ""
    """What the file is and how to get it, where there is no url."""


@functools.lru_cache(maxsize=1)
def table() -> dict[str, DataFile]:
    """All known files by path."""
    text = resources.files("unmask.data").joinpath("files.toml").read_text(encoding="utf-8")
    files = [DataFile(**row) for row in tomllib.loads(text)["files"]]
    return {file.path: file for file in files}


def known(path: str) -> DataFile:
    """The row of one file; raises TaskError for a path that is not in the table."""
    if path not in table():
        raise TaskError(f"{path!r} is not a data file that is known; {did_you_mean(path, table())}")
    return table()[path]


def folders() -> tuple[Path, ...]:
    """Where data files are looked for, in this order."""
    cache = store.cache_home() / "data"
    given = os.environ.get("UNMASK_DATA")
    if not given:
        return (cache,)
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise TaskError(
            f"UNMASK_DATA is {given}, which is not a folder; set it to the folder that holds humaneval/, mbpp/ …"
        )
    return (folder, cache)


def find(path: str) -> Path | None:
    """Where a file lies on this machine, unchecked; None if it does not."""
    return next((folder / path for folder in folders() if (folder / known(path).path).is_file()), None)


def locate(path: str, *, offline: bool = False, report: Report | None = None) -> Path:
    """The checked file on this disk; downloaded if need be, with its progress told to `report`.

    `offline`, or the environment variable `UNMASK_OFFLINE=1`, forbids the network. Raises TaskError for a file that
    cannot be had or is not the right one, DownloadError for a download that failed.
    """
    file = known(path)
    place = find(path)
    if place is None:
        _check_may_download(file, offline=offline)
        place = _download(file, folders()[-1], report)
    check(place, file.sha256)
    return place


@functools.lru_cache(maxsize=64)
def check(place: Path, sha256: str) -> None:
    """Raise TaskError unless the file has this hash. A file that has it is read once per process."""
    found = sha256_of(place)
    if found != sha256:
        raise TaskError(
            f"{place} has sha256 {found} instead of {sha256}: it is another version, or damaged; "
            "delete it to have it downloaded, or point UNMASK_DATA at a folder with the right one"
        )


def sha256_of(place: Path) -> str:
    """The hex sha256 of a file's bytes."""
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Reading


def read_json(place: Path) -> Any:
    """The value in a JSON file, `.gz` or not."""
    text = "\n".join(line for _, line in _lines(place))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{place} is not JSON ({error}); it may have been cut off: get it again") from error


def read_jsonl(place: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, `.gz` or not."""
    return [record for _, record in numbered_records(place)]


def numbered_records(place: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank; a TaskError names a broken line's number."""
    for number, line in _lines(place):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{place}, line {number} is not JSON ({error}); mend or remove that line") from error
        if not isinstance(record, dict):
            raise TaskError(
                f"{place}, line {number} holds a {type(record).__name__}; each line has to be one JSON object {{…}}"
            )
        yield number, record


def _lines(place: Path) -> Iterator[tuple[int, str]]:
    if place.is_dir():
        raise TaskError(f"{place} is a folder; give the path of a file in it")
    if not place.is_file():
        raise TaskError(f"there is no file {place}; give the path of a file that exists")
    opener = gzip.open if place.suffix == ".gz" else open
    number = 0
    try:
        with opener(place, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise TaskError(f"{place}, line {number} is not UTF-8 ({error}); convert the file to UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskError(
            f"{place} cannot be unpacked behind line {number} ({error}): it is not gzip, or was cut off; get it again"
        ) from error


# Downloading


def _check_may_download(file: DataFile, *, offline: bool) -> None:
    missing = f"{file.path} is not in {' or '.join(str(folder) for folder in folders())}"
    if not file.url:
        raise TaskError(f"{missing}, and cannot be downloaded: it is {file.how}. Put it there, or set UNMASK_DATA")
    is_off = (os.environ.get("UNMASK_OFFLINE") or "").upper() in {"1", "ON", "YES", "TRUE"}
    if offline or is_off:
        why = "offline was asked for" if offline else "UNMASK_OFFLINE is set"
        raise TaskError(f"{missing} and {why}; put {file.url} there, or set UNMASK_DATA to a folder that has it")


def _download(file: DataFile, folder: Path, report: Report | None) -> Path:
    """Fetch to a file beside the right place, check it, and rename it."""
    place = folder / file.path
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    store.check_space(place.parent, file.bytes)
    try:
        _fetch(file, part, report)
        found = sha256_of(part)
        if found != file.sha256:
            raise DownloadError(
                f"{file.url} has sha256 {found} instead of {file.sha256}, so it was not kept: "
                "its source has changed, or something on the way answers in its place; try again, or set UNMASK_DATA"
            )
        part.replace(place)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"{file.url} could not be downloaded ({error}): try again, or put the file at {place} by hand, "
            "or set UNMASK_DATA to a folder that has it"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return place


def _fetch(file: DataFile, part: Path, report: Report | None) -> None:
    done = 0
    with urllib.request.urlopen(file.url, timeout=_TIMEOUT) as answer, part.open("wb") as out:
        while (
            piece := answer.read(_PIECE)
        ) and done <= file.bytes:  # a longer answer is the wrong one: its hash says so
            out.write(piece)
            done += len(piece)
            if report is not None:
                report(Progress(label=file.path, done=done, total=file.bytes))
