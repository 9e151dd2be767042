"""A file of JSON lines that is written over hours: it grows batch by batch, and a kill loses one batch at most.

    answers.jsonl.partial         the lines so far
    answers.jsonl.partial.json    what was asked, and how much of the lines belongs to whole batches
    answers.jsonl                 all of it, when it is done: the first one, renamed

The lines reach the disk before the note that counts them, so lines that no note counts are a batch that was broken off,
and are cut away when the work is taken up again. Only work that asks for the same goes on in it.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from unmask.atomic import beside
from unmask.errors import DataError

VERSION = 1


@dataclass(kw_only=True)
class Partial:
    """An output under way; `open_partial` makes one."""

    output: Path
    asked: Mapping[str, Any]
    """What the lines depend on, as JSON values by name."""

    done: int = 0
    """How much of the work is finished, in the caller's units, lines or none."""

    lines: int = 0
    size: int = 0
    """Bytes of the lines that are counted."""

    left_out: Counter[str] = field(default_factory=Counter)
    """How many made no line, by reason."""

    @property
    def path(self) -> Path:
        """The file that grows."""
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def note(self) -> Path:
        """The file that says what was asked and how far it is."""
        return self.output.with_name(f"{self.output.name}.partial.json")

    def append(self, records: Iterable[Mapping[str, Any]], *, done: int, left_out: Mapping[str, int]) -> None:
        """Add the lines of one batch; `done` and `left_out` are what this batch adds. Raises DataError when another
        process has written to the file."""
        texts = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        with self.path.open("ab") as file:
            if file.tell() != self.size:
                raise DataError(
                    f"{self.path} has {file.tell():,} bytes, and {self.size:,} were written here: another process is "
                    "at work on it; stop one of the two, and go on with --resume"
                )
            file.write("".join(texts).encode("utf-8"))
            _flush(file)
            self.size = file.tell()
        self.lines += len(texts)
        self.done += done
        self.left_out.update(left_out)
        self.write_note()

    def finish(self) -> None:
        """Give the file its name. Raises DataError where one of that name has come up meanwhile."""
        if self.output.exists():
            raise DataError(f"{self.output} has come up meanwhile; rename it, and go on with --resume")
        self.path.replace(self.output)
        self.note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete both files."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def write_note(self) -> None:
        """Write down how far the work is."""
        record = {
            "unmask": VERSION,
            "asked": dict(self.asked),
            "done": self.done,
            "lines": self.lines,
            "bytes": self.size,
            "left_out": dict(self.left_out),
        }
        with beside(self.note) as part, part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
            _flush(file)


def open_partial(output: Path, asked: Mapping[str, Any], *, resume: bool) -> Partial:
    """Begin, or with `resume` go on behind the last whole batch; where there is nothing to go on with, it begins.

    Raises DataError for work under way that was not asked for, or that asked for something else.
    """
    asked = json.loads(json.dumps(dict(asked)))
    new = Partial(output=output, asked=asked)
    if not new.path.exists():
        new.write_note()
        new.path.touch()
        return new
    if not resume:
        raise DataError(
            f"{new.path} is work under way towards {output.name}; go on with it by --resume, or delete it to begin anew"
        )
    found = _read(new)
    size = new.path.stat().st_size
    if size < found.size:
        raise DataError(
            f"{new.path} has {size:,} bytes, and {found.size:,} were written: it was cut off; delete it to begin anew"
        )
    differing = [name for name in {**found.asked, **asked} if found.asked.get(name) != asked.get(name)]
    if differing:
        shown = "; ".join(f"{name} ({found.asked.get(name)} there, {asked.get(name)} here)" for name in differing)
        raise DataError(
            f"{new.path} was begun with something else: {shown}; give the same again, or another output, or delete it"
        )
    os.truncate(new.path, found.size)
    return found


def _read(new: Partial) -> Partial:
    try:
        record = json.loads(new.note.read_text(encoding="utf-8"))
        return Partial(
            output=new.output,
            asked=dict(record["asked"]),
            done=int(record["done"]),
            lines=int(record["lines"]),
            size=int(record["bytes"]),
            left_out=Counter(record["left_out"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{new.note} is missing or damaged ({error}), so nothing says what {new.path.name} holds; delete that file "
            "to begin anew"
        ) from error


def _flush(file: IO[Any]) -> None:
    """Wait until the disk has what was written."""
    file.flush()
    os.fsync(file.fileno())
