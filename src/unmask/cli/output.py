"""What a decoding command does around the run: draw it, keep its record, print its result."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import SettingsError, TextError
from unmask.trajectory import Trajectory, save

if TYPE_CHECKING:
    from unmask.decode.run import Generation, Run


def watch(run: "Run", *, quiet: bool, keep: bool = False) -> bool:
    """Run to the end, drawing the first row on a terminal; False when Ctrl-C ended it early."""
    from unmask.view.terminal import LiveCanvas

    total = run.settings.steps
    live = LiveCanvas(keep=keep, end_ids=run.trajectories[0].end_ids)
    if quiet or not live.is_drawn:
        return _drain(run)
    with live:
        try:
            live.update(run.frame(), run.pieces(), num_forwards=0, total_steps=total)
            for _ in run:
                live.update(run.frame(), run.pieces(), num_forwards=run.trajectories[0].num_forwards, total_steps=total)
        except KeyboardInterrupt:
            return False
    return True


def _drain(run: "Run") -> bool:
    try:
        for _ in run:
            pass
    except KeyboardInterrupt:
        return False
    return True


def check_writable(path: Path | None) -> None:
    """Refuse a trajectory path that could not be written, before any work is done."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is not there"
        raise SettingsError(f"--trajectory {path} {what}; give a file in a folder that exists")
    if not path.exists():
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise SettingsError(
                f"--trajectory {path} cannot be written ({os.strerror(error.errno or 0)}); give another file"
            ) from None


def save_trajectories(path: Path | None, trajectories: Sequence[Trajectory]) -> None:
    """Keep the record, and say where."""
    if path is not None:
        save(path, trajectories)
        print(f"trajectory kept in {path}; `unmask replay {path}` plays it", file=sys.stderr)


def print_card(results: Sequence["Generation"]) -> None:
    """The speed card of a batch, on stderr."""
    from unmask.view.card import SpeedCard

    card = SpeedCard(
        settled_tokens=sum(result.num_tokens + result.wasted_tokens for result in results),
        num_forwards=max(result.num_forwards for result in results),
        positions_computed=sum(result.positions_computed for result in results),
        wasted_tokens=sum(result.wasted_tokens for result in results),
        seconds=results[0].seconds,
        rows=len(results),
    )
    print(card.format(), file=sys.stderr)


def print_results(results: Sequence["Generation"], *, as_json: bool) -> None:
    """The texts, or one JSON object: the first answer's fields, and all answers when there are several."""
    if as_json:
        payload: dict[str, Any] = results[0].to_json()
        if len(results) > 1:
            payload["answers"] = [result.to_json() for result in results]
        print_line(json.dumps(payload, ensure_ascii=False))
        return
    for number, result in enumerate(results, 1):
        if len(results) > 1:
            print_line(f"=== answer {number} of {len(results)} ===")
        print_line(result.text)


def print_line(text: str) -> None:
    """Text and a newline in UTF-8, whatever the terminal's encoding says."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()


def read_prompt(prompt: str) -> str:
    """The prompt itself, or standard input for "-"."""
    if prompt != "-":
        return prompt
    return decode_utf8(sys.stdin.buffer.read(), "standard input")


def decode_utf8(data: bytes, where: str) -> str:
    """Bytes as text, exactly; TextError names the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TextError(
            f"{where} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}; "
            "convert it first, as in `iconv -f latin1 -t utf-8`"
        ) from None
