"""A lock on one folder, between processes: two downloads of one model take turns.

It is the operating system's lock on an empty file beside the folder, so it ends with its process, however that ends,
and a lock file that was left behind locks nothing.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

_PAUSE = 0.2  # seconds between two tries


@contextlib.contextmanager
def locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Make the folder and hold its lock; `on_wait` is called again and again while another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        while not _try_lock(lock):
            on_wait()
            time.sleep(_PAUSE)
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
