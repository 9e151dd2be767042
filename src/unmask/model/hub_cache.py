"""The Hugging Face hub's own cache, which other programs share: where it is and what it holds.

    <hub cache>/models--<owner>--<name>/refs/<revision>       the commit that a branch or tag stood for
    <hub cache>/models--<owner>--<name>/snapshots/<commit>/   the files of that commit, links to blobs
    <hub cache>/models--<owner>--<name>/blobs/                their contents, and what an interrupted download left

Looking follows this documented layout, so that it costs no import; only deleting is left to the hub's client.
"""

import dataclasses
import logging
import os
from pathlib import Path

from unmask.model.store import tree_bytes, user_cache
from unmask.model.table import HubSource

_log = logging.getLogger(__name__)


def home() -> Path:
    """Where the hub's client puts its downloads, by the same variables as there."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if place := os.environ.get(variable):
            return _expanded(place)
    hf_home = os.environ.get("HF_HOME")
    return (_expanded(hf_home) if hf_home else user_cache() / "huggingface") / "hub"


def snapshot(source: HubSource) -> Path:
    """The folder of the source's revision as last seen here, whether it exists or not."""
    revision = source.revision or "main"
    ref = _repo(source) / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    return _repo(source) / "snapshots" / commit


def started_bytes(source: HubSource) -> int:
    """What an earlier, interrupted download has left."""
    return tree_bytes(_repo(source) / "blobs")


def remove(source: HubSource) -> int:
    """Delete the source's revision, or without one the whole repository, from the cache; return the bytes freed.

    What is to be deleted is left alone if the source is one file and others are there too.
    """
    if not _repo(source).is_dir():
        return 0
    from huggingface_hub import scan_cache_dir

    freed = 0
    scan = scan_cache_dir(home())
    for repo in scan.repos:
        if repo.repo_id != source.repo or repo.repo_type != "model":
            continue
        doomed = [
            revision
            for revision in repo.revisions
            if source.revision is None or source.revision in {revision.commit_hash, *revision.refs}
        ]
        if not doomed:
            continue
        files = {file.file_name for revision in doomed for file in revision.files}
        if source.file is not None and files - {source.file}:
            _log.warning("%s holds more than %s and was left alone", repo.repo_path, source.file)
            continue
        strategy = scan.delete_revisions(*[revision.commit_hash for revision in doomed])
        # A link that the user made in the snapshot leads out of the repository; the client would follow it.
        places = (repo.repo_path, repo.repo_path.resolve())
        foreign = {
            file.blob_path: file.size_on_disk
            for revision in doomed
            for file in revision.files
            if not any(file.blob_path.is_relative_to(place) for place in places)
        }
        freed += strategy.expected_freed_size - sum(foreign.values())
        dataclasses.replace(strategy, blobs=strategy.blobs - foreign.keys()).execute()
    return freed


def _repo(source: HubSource) -> Path:
    return home() / f"models--{source.repo.replace('/', '--')}"


def _expanded(place: str) -> Path:
    return Path(os.path.expandvars(place)).expanduser()
