"""`unmask infill FILE`: fill the holes of a text and print it, the rest byte for byte as it was."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import ModelOptions, with_decoding
from unmask.errors import SettingsError, TextError

if TYPE_CHECKING:
    from unmask.decode.infill import Filler, Infilling, Segment


@with_decoding("max_new_tokens", "mode", "eps")
def infill(
    file: Annotated[str, typer.Argument(help="A UTF-8 text with holes; - is standard input.", show_default=False)],
    lines: Annotated[
        list[str] | None,
        typer.Option(
            "--lines", help="Make a hole of these lines; may be given again.", metavar="A-B", show_default=False
        ),
    ] = None,
    length: Annotated[
        str, typer.Option("--length", help="Tokens of a --lines hole: N, N-M, or + to grow.", metavar="LENGTH")
    ] = "+",
    limit: Annotated[int, typer.Option("--limit", help="Most tokens of a hole that grows.", metavar="N")] = 64,
    in_place: Annotated[bool, typer.Option("--in-place", "-i", help="Write the result back to FILE.")] = False,
    trajectory: Annotated[
        Path | None, typer.Option("--trajectory", help="Keep every step in a file.", metavar="FILE", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Result only: no drawing, no speed card.")] = False,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Fill the holes of a file: [[?]] grows, [[?12]] takes 12 tokens, [[?4-16]] a range.

    Example: unmask infill program.py --lines 10-14
    """
    from unmask.cli import output
    from unmask.decode.infill import start_infill
    from unmask.decode.session import settings_from

    checked = settings_from(settings)
    output.check_writable(trajectory)
    if in_place and file == "-":
        raise SettingsError("--in-place needs a file to write back to; leave it out to read standard input")
    segments = _segments(_read(file), lines or [], length=length, limit=limit)
    filler = start_infill(model.load(quiet=quiet), segments, checked)
    is_whole = _watch(filler, quiet=quiet)
    result = filler.result()
    output.save_trajectories(trajectory, result.trajectories)
    if as_json:
        output.print_line(json.dumps(_record(result, filler), ensure_ascii=False))
    elif in_place and is_whole:
        _write_back(Path(file), result.text)
    elif is_whole:
        sys.stdout.buffer.write(result.text.encode("utf-8"))
        sys.stdout.buffer.flush()
    if not is_whole:
        print("interrupted; the file was left as it was", file=sys.stderr)
        raise typer.Exit(130)
    if not quiet:
        _print_card(result)


def _read(file: str) -> str:
    from unmask.cli.output import decode_utf8

    if file == "-":
        return decode_utf8(sys.stdin.buffer.read(), "standard input")
    try:
        return decode_utf8(Path(file).read_bytes(), file)
    except FileNotFoundError:
        raise TextError(f"there is no file {file}; give a text with holes, or - for standard input") from None
    except IsADirectoryError:
        raise TextError(f"{file} is a folder; give a text file with holes") from None


def _segments(text: str, lines: list[str], *, length: str, limit: int) -> "list[Segment]":
    from unmask.decode.infill import Hole, cut_lines, parse_markers

    if not lines:
        return parse_markers(text, limit=limit)
    if not re.fullmatch(r"\+|\d+(-\d+)?", length):
        raise SettingsError(f"--length {length} is not a length; give N, N-M, or + for a hole that grows")
    ranges = []
    for given in lines:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", given)
        if match is None:
            raise SettingsError(f"--lines {given} is not a range of lines; give FIRST-LAST, as in --lines 10-14")
        ranges.append((int(match[1]), int(match[2] or match[1])))
    return cut_lines(text, ranges, Hole.parse(length, limit=limit))


def _watch(filler: "Filler", *, quiet: bool) -> bool:
    from unmask.view.terminal import LiveCanvas

    live = LiveCanvas()
    try:
        with live:
            for _ in filler:
                if live.is_drawn and not quiet:
                    run = filler.run
                    forwards = run.trajectories[0].num_forwards
                    live.update(run.frame(), run.pieces(), num_forwards=forwards, total_steps=run.settings.steps)
    except KeyboardInterrupt:
        return False
    return True


def _write_back(path: Path, text: str) -> None:
    """Replace the file in one step."""
    import os
    import shutil
    import tempfile

    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(text.encode("utf-8"))
        shutil.copymode(path, temporary)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _record(result: "Infilling", filler: "Filler") -> dict[str, Any]:
    trajectories = result.trajectories
    return {
        "text": result.text,
        "holes": list(result.holes),
        "model": filler.model.name,
        "num_tokens": result.num_tokens,
        "num_forwards": result.num_forwards,
        "positions_computed": result.positions_computed,
        "seconds": result.seconds,
        "seed": filler.settings.seed,
        "settings": trajectories[0].settings if trajectories else {},
        "finish_reason": result.finish_reason,
    }


def _print_card(result: "Infilling") -> None:
    from unmask.view.card import SpeedCard

    card = SpeedCard(
        settled_tokens=result.num_tokens,
        num_forwards=result.num_forwards,
        positions_computed=result.positions_computed,
        wasted_tokens=0,
        seconds=result.seconds,
        rows=1,
    )
    print(card.format(), file=sys.stderr)
