"""`unmask infill FILE`: fill the holes of a text and print it, the rest byte for byte as it was."""

import json
import os
import re
import shutil
import sys
import tempfile
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
        str | None,
        typer.Option(
            "--length", help="Tokens of a --lines hole: N, N-M, or + to grow. [+]", metavar="LENGTH", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Most tokens of a hole that grows.", metavar="N")] = 64,
    in_place: Annotated[bool, typer.Option("--in-place", "-i", help="Write the result back to FILE.")] = False,
    trajectory: Annotated[
        Path | None, typer.Option("--trajectory", help="Keep every step in a file.", metavar="FILE", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Draw a meter of AR-ness below the canvas.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Result only: no drawing, no speed card.")] = False,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Fill the holes of a file and print it, the rest untouched.

    In the text [[?]] is a hole that grows, [[?12]] one of 12 tokens, [[?4-16]] one of 4 to 16; or name whole lines with
    --lines.

    Example: unmask infill program.py --lines 10-14
    """
    from unmask.cli import output
    from unmask.decode.infill import require_holes, start_infill
    from unmask.decode.session import settings_from

    checked = settings_from(settings)
    output.check_writable(trajectory)
    output.check_live(live=live, quiet=quiet)
    if in_place and file == "-":
        raise SettingsError("--in-place needs a file to write back to; leave it out to read standard input")
    segments = _segments(_read(file), lines or [], length=length, limit=limit)
    require_holes(segments)
    if in_place:
        output.check_writable(Path(file), option="--in-place")
    runners_up = output.RUNNERS_UP if trajectory is not None else 0
    filler = start_infill(model.load(quiet=quiet), segments, checked, runners_up=runners_up)
    try:
        is_whole = _watch(filler, quiet=quiet, meter=live)
    except BaseException:
        output.save_trajectories(trajectory, filler.result().trajectories, quiet=quiet)
        raise
    result = filler.result()
    try:
        output.save_trajectories(trajectory, result.trajectories, quiet=quiet)
    finally:
        if is_whole and in_place:
            _write_back(file, result.text)
        if as_json:
            output.print_line(json.dumps(_record(result, filler), ensure_ascii=False))
        elif is_whole and not in_place:
            output.print_text(result.text)
    if not is_whole:
        if not quiet:
            done = "the file was left as it was" if in_place else "the text is not whole and was left out"
            print(f"interrupted; {done}", file=sys.stderr)
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
    except OSError as error:
        raise TextError(f"{file} cannot be read ({error.strerror}); give another file, or - for stdin") from None


def _segments(text: str, lines: list[str], *, length: str | None, limit: int) -> "list[Segment]":
    from unmask.decode.infill import Hole, cut_lines, parse_markers

    if not lines:
        if length is not None:
            raise SettingsError(
                f"--length {length} is for the holes of --lines, and none were given; "
                "a marker says its own length, as in [[?12]]"
            )
        return parse_markers(text, limit=limit)
    length = length or "+"
    if not re.fullmatch(r"\+|\d+(-\d+)?", length, re.ASCII):
        raise SettingsError(f"--length {length} is not a length; give N, N-M, or + for a hole that grows")
    ranges = []
    for given in lines:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", given, re.ASCII)
        if match is None:
            raise SettingsError(f"--lines {given} is not a range of lines; give FIRST-LAST, as in --lines 10-14")
        ranges.append((int(match[1]), int(match[2] or match[1])))
    return cut_lines(text, ranges, Hole.parse(length, limit=limit))


def _watch(filler: "Filler", *, quiet: bool, meter: bool) -> bool:
    from unmask.view.terminal import LiveCanvas

    live = LiveCanvas(meter=meter, end_ids=filler.model.end_ids)
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


def _write_back(file: str, text: str) -> None:
    """Replace the file in one step; where that fails, print the text instead, so that the work is not lost."""
    path = Path(os.path.realpath(file))
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(text.encode("utf-8"))
            shutil.copymode(path, temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        from unmask.cli.output import print_text

        print_text(text)
        raise TextError(
            f"{file} could not be written ({error.strerror}) and is as it was; the filled text is on standard output: "
            "make room, or send it to another file"
        ) from None


def _record(result: "Infilling", filler: "Filler") -> dict[str, Any]:
    trajectories = result.trajectories
    return {
        "text": result.text,
        "holes": list(result.holes),
        "model": filler.model.name,
        "num_tokens": result.num_tokens,
        "wasted_tokens": result.wasted_tokens,
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
        settled_tokens=result.num_tokens + result.wasted_tokens,
        num_forwards=result.num_forwards,
        positions_computed=result.positions_computed,
        wasted_tokens=result.wasted_tokens,
        seconds=result.seconds,
        rows=1,
    )
    print(card.format(), file=sys.stderr)
