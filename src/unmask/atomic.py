"""Files that appear whole or not at all: written beside their place, and renamed into it when they are complete.

with beside("result.json") as part:
    part.write_text(text, encoding="utf-8")
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path | str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends well; otherwise it is deleted, and what
    was there before is untouched.

    A link stays a link, to the new content. A device or a pipe, which must not be renamed over, is given as it is.
    Raises what the block and the file system raise.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    # A short name, as the target's may be the longest allowed
    part = target.with_name(f".unmask-{os.urandom(8).hex()}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
