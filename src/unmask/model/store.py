"""The models on this disk: where they lie, what shows that a file is whole and right, and room for more.

    <cache home>/models/<name>/<file>          a verified GGUF file, or a folder the user put there
    <cache home>/models/<name>/<file>.sha256   written after the check; a file with it is not hashed again
    <cache home>/models/<name>/<file>.part     an interrupted download; whole pieces of it are kept

Downloads from the Hugging Face hub lie elsewhere (`hub_cache.py`). What is wrong with a file is answered as text, not
raised: whoever asks deletes the file and tells the user.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from unmask.errors import DownloadError
from unmask.model.table import Source


def cache_home() -> Path:
    """`$UNMASK_HOME`, else `$XDG_CACHE_HOME/unmask`, else `~/.cache/unmask`."""
    if home := os.environ.get("UNMASK_HOME"):
        return Path(home).expanduser()
    return user_cache() / "unmask"


def user_cache() -> Path:
    """The folder in which programs of this user cache things."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def is_complete(folder: Path) -> bool:
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


def wrong_size(source: Source, path: Path) -> str | None:
    """What is wrong with a file's size, or None; costs no reading."""
    if source.bytes is None or (size := path.stat().st_size) == source.bytes:
        return None
    return f"{path} has {size:,} bytes instead of {source.bytes:,}"


def wrong_hash(source: Source, path: Path) -> str | None:
    """What is wrong with a file's content, or None; reads all of it if the source gives a hash."""
    if source.sha256 is None:
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == source.sha256 else f"{path} has sha256 {found} instead of {source.sha256}"


def wrong_hash_once(source: Source, path: Path) -> str | None:
    """`wrong_hash` of a file that carries no marker yet: the user may have put it there by hand."""
    if source.sha256 is None or is_marked(source, path):
        return None
    wrong = wrong_hash(source, path)
    if wrong is None:
        mark(source, path)
    return wrong


def is_marked(source: Source, path: Path) -> bool:
    """Whether this file was checked against this source before."""
    marker = _marker(path)
    return marker.is_file() and marker.read_text(encoding="utf-8") == _marker_text(source)


def mark(source: Source, path: Path) -> None:
    """Remember that this file was checked against this source."""
    with contextlib.suppress(OSError):  # a cache that cannot be written is hashed each time instead
        _marker(path).write_text(_marker_text(source), encoding="utf-8")


def delete(path: Path) -> str:
    """Delete a file of a cache with its marker, and say what was removed.

    Of a link, or of a file in a linked folder, only the link goes: what it leads to may be the user's own. A blob of
    the hub's cache, to which that cache itself links, goes too.
    """
    is_snapshot = path.parents[1].name == "snapshots"  # <hub cache>/models--x--y/snapshots/<commit>/<file>
    depth = 3 if is_snapshot else 1
    below_cache = [*reversed([path.parents[level] for level in range(depth)]), path]
    link = next((place for place in below_cache if place.is_symlink()), None)
    behind, cache = path.resolve(), path.parents[depth].resolve()
    (link or path).unlink()
    _marker(path).unlink(missing_ok=True)
    if link is not None and not (is_snapshot and behind.is_relative_to(cache)):
        return f"the link {link} was removed (the file behind it was left alone)"
    behind.unlink(missing_ok=True)
    return "it was removed"


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed; 0 if there is no such folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def check_space(folder: Path, needed: int) -> None:
    """Refuse a download that cannot fit."""
    if needed > _free(folder):
        raise DownloadError(full_disk(folder, needed))


def full_disk(folder: Path, needed: int) -> str:
    """What a user is told when there is no room."""
    return (
        f"{needed:,} bytes are needed in {folder} and {_free(folder):,} are free: make room, or set UNMASK_HOME "
        "(HF_HOME for hub downloads) to a larger disk"
    )


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _marker_text(source: Source) -> str:
    return f"{source.sha256}  {source.bytes}\n"


def _free(folder: Path) -> int:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free
