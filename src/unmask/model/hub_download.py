"""Download from the Hugging Face hub, through the hub's client and into the hub's cache.

The client resumes, retries and locks; added here are a bounded wait for a hub that cannot be reached, a look at the
free space, the check of what arrived, and reasons a user can act on.
"""

import errno
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from unmask.errors import DownloadError
from unmask.model import hub_cache, store
from unmask.model.progress import Progress, Report
from unmask.model.table import HubSource

_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]

# Left to itself huggingface_hub asks six times with growing pauses, and after the first answer that did not come it
# waits a minute for each: 23 s for a name that does not resolve, minutes for a host that swallows packets. One
# question of our own comes first, with a short wait; the deadline bounds what its timeout does not, such as name
# lookup and a list of addresses that are all silent. Both in seconds.
_TIMEOUT = 5.0
_DEADLINE = 10.0


def pull(source: HubSource, report: Report) -> Path:
    """Download a folder in HF layout, or the source's one file, and return its place in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        _ask(source)
        store.check_space(hub_cache.home(), _size(source) - hub_cache.started_bytes(source))
        folder = snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=[source.file] if source.file else _FILES,
            ignore_patterns=["*/*"],
            cache_dir=hub_cache.home(),
            tqdm_class=_reporting_bar(source.repo, report),
        )
    except _failures() as error:
        raise DownloadError(_reason(error, source)) from error
    return _checked(Path(folder), source)


def _ask(source: HubSource) -> None:
    """One HEAD request for a file that the checkpoint must have; raises what the hub, or its absence, answers."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    failures = _failures()
    url = hf_hub_url(source.repo, source.file or "config.json", revision=source.revision)
    answer: Future[None] = Future()

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=_TIMEOUT)
        except failures as error:
            answer.set_exception(error)
        else:
            answer.set_result(None)

    threading.Thread(target=ask, daemon=True).start()
    answer.result(timeout=_DEADLINE)


def _failures() -> tuple[type[BaseException], ...]:
    """What a hub call may raise. The base of the hub's own error names the HTTP library that is in use."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http = cast("tuple[type[BaseException], ...]", HfHubHTTPError.__bases__)
    return (*http, OSError, ValueError, RuntimeError, EntryNotFoundError)


def _size(source: HubSource) -> int:
    return source.bytes or source.about_bytes or 0


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


def _reason(error: BaseException, source: HubSource) -> str:
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
            return f"no answer within {_DEADLINE:g} s"
        case OSError(errno=errno.ENOSPC):
            return store.full_disk(hub_cache.home(), _size(source))
    return f"not reached ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _checked(folder: Path, source: HubSource) -> Path:
    if source.file is None:
        if not store.is_complete(folder):
            raise DownloadError("the repository has no complete set of config, tokenizer and safetensors files")
        return folder
    path = folder / source.file
    if not path.is_file():
        raise DownloadError(f"the repository has no file {source.file}")
    if wrong := store.wrong_size(source, path) or store.wrong_hash(source, path):
        store.delete(path)
        raise DownloadError(f"{wrong}, so it was removed")
    return path
