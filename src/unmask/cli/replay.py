"""`unmask replay FILE`: play a recorded run again, look at one step, take its text or a picture; no model is needed.

On a terminal the canvas fills on stderr and the final text is left on stdout; into a pipe or a file goes the final
text alone. For a generation the text is the answer, up to its end; where given text stands behind an open position
(an infill) it is the whole row. `--html`, `--svg` and `--cast` write a file instead.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask import trajectory as trajectories
from unmask.atomic import beside
from unmask.cli.output import check_writable
from unmask.errors import SettingsError, TrajectoryError
from unmask.trajectory import Frame, Trajectory

MASK = "░"
SPEED, COLUMNS = 10.0, 80
SLOWEST = 0.001  # steps per second: beyond a quarter of an hour for each, a pause is no replay
_PICTURES = "Pictures"


def _picture(*names: str, help: str, metavar: str) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=_PICTURES, show_default=False)


def replay(
    file: Annotated[Path, typer.Argument(help="A trajectory, written by `--trajectory`.", show_default=False)],
    second: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="The same as --with OTHER.", show_default=False)
    ] = None,
    row: Annotated[int, typer.Option("--row", help="Which run of the file, counted from 0.", metavar="N")] = 0,
    speed: Annotated[
        float | None, typer.Option("--speed", help="Steps per second. [10]", metavar="FLOAT", show_default=False)
    ] = None,
    step: Annotated[
        int | None,
        typer.Option("--step", help="Print the canvas as it was after step K and leave.", metavar="K"),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Play with an AR-ness meter, even where the text goes into a pipe.")
    ] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Show states without colour.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object about the run.")] = False,
    html: Annotated[Path | None, _picture("--html", help="Write a page that plays the run.", metavar="FILE")] = None,
    svg: Annotated[
        Path | None, _picture("--svg", help="Write a figure of five steps, or of --step K.", metavar="FILE")
    ] = None,
    cast: Annotated[
        Path | None, _picture("--cast", help="Write a terminal recording (asciinema).", metavar="FILE")
    ] = None,
    other: Annotated[
        Path | None, _picture("--with", help="A second run, beside the first in the page.", metavar="OTHER")
    ] = None,
    other_row: Annotated[
        int | None, _picture("--with-row", help="Which run of OTHER, or of FILE. [0]", metavar="N")
    ] = None,
    columns: Annotated[
        int | None, _picture("--columns", help="Width of the figure or recording. [80]", metavar="N")
    ] = None,
) -> None:
    """Play a recorded run again.

    Example: unmask replay run.jsonl --html run.html
    """
    if second is not None and other is not None:
        raise SettingsError(f"{second} and --with {other} both name a second run; give one of them")
    other = second or other
    pictures = {"--html": html, "--svg": svg, "--cast": cast}
    outputs = {option: path for option, path in pictures.items() if path is not None}
    _check_settings(
        speed=speed, step=step, columns=columns, as_json=as_json, live=live, no_color=no_color, outputs=outputs
    )
    if "--html" not in outputs and (other is not None or other_row is not None):
        given = f"the second run {other}" if other is not None else f"--with-row {other_row}"
        raise SettingsError(f"{given} has no effect without the page that shows both; give --html FILE with it")
    _check_outputs(outputs, inputs=[file, *([other] if other else [])])
    try:
        run = pick(file, row)
        if outputs:
            shown = [(file, row)]
            if other is not None or other_row is not None:
                shown.append((other or file, other_row or 0))
            runs = [run, *(pick(*picked, "--with-row") for picked in shown[1:])]
            for option, text in _drawn(
                runs,
                outputs,
                names=_names(shown),
                speed=speed or SPEED,
                step=step,
                columns=columns or COLUMNS,
                colour=not no_color,
                meter=live,
            ):
                _write(outputs[option], text)
                print(f"{option.removeprefix('--')} written to {outputs[option]}", file=sys.stderr)
        elif as_json:
            _print(json.dumps(_summary(run), ensure_ascii=False))
        elif step is not None:
            _show_step(run, step, no_color=no_color)
        else:
            if live or sys.stdout.isatty():
                _play(run, speed=speed or SPEED, no_color=no_color, meter=live)
            _print(answer_text(run))
            _tell_if_unfinished(run)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _check_settings(
    *,
    speed: float | None,
    step: int | None,
    columns: int | None,
    as_json: bool,
    live: bool,
    no_color: bool,
    outputs: Mapping[str, Path],
) -> None:
    if speed is not None and not (speed >= SLOWEST and math.isfinite(speed)):
        raise SettingsError(
            f"--speed {speed:g} was given, but it counts steps per second; give a finite number of at least {SLOWEST:g}"
        )
    if columns is not None and columns < 1:
        raise SettingsError(f"--columns {columns} was given, but a line holds at least 1 character; 80 is usual")
    if as_json and step is not None:
        raise SettingsError("--json tells about the whole run and --step about one step of it; give one of them")
    option = next(iter(outputs), None)
    if as_json and option:
        raise SettingsError(f"--json has no effect with {option}, which writes a file; leave one of them out")
    if live and option and "--cast" not in outputs:
        raise SettingsError(f"--live has no effect with {option}, which needs no terminal; leave it out")
    if live and (as_json or step is not None):
        raise SettingsError(f"--live plays the run and {'--json' if as_json else '--step'} does not; give one of them")
    if step is not None and outputs and set(outputs) != {"--svg"}:
        option = next(name for name in outputs if name != "--svg")
        raise SettingsError(f"--step {step} has no effect with {option}, which holds every step; leave it out")
    if columns is not None and not {"--svg", "--cast"} & set(outputs):
        raise SettingsError(
            f"--columns {columns} has no effect without --svg or --cast; a terminal and a page have their own width"
        )
    if speed is not None and (as_json or (step is not None and not outputs)):
        raise SettingsError(f"--speed {speed:g} has no effect with {'--json' if as_json else '--step'}; leave it out")
    if no_color and (as_json or (outputs and "--cast" not in outputs)):
        option = option or "--json"
        raise SettingsError(f"--no-color has no effect with {option}, which heeds no terminal; leave it out")
    if speed is not None and set(outputs) == {"--svg"}:
        raise SettingsError(f"--speed {speed:g} has no effect with --svg, which stands still; leave it out")


def _check_outputs(outputs: Mapping[str, Path], *, inputs: list[Path]) -> None:
    """Each can be written, and none is a file that is read or another output."""
    taken = {Path(os.path.realpath(path)): str(path) for path in inputs}
    for option, path in outputs.items():
        check_writable(path, option=option)
        if (same := taken.get(Path(os.path.realpath(path)))) is not None and (path.is_file() or not path.exists()):
            raise SettingsError(f"{option} {path} would be written over {same}; give another file")
        taken[Path(os.path.realpath(path))] = f"{option} {path}"


def pick(file: Path, row: int, option: str = "--row") -> Trajectory:
    """One run of a file. Raises TrajectoryError for a row that it does not have."""
    runs = trajectories.load(file)
    if not 0 <= row < len(runs):
        held = (
            f"one run; give {option} 0" if len(runs) == 1 else f"{len(runs)} runs; give {option} 0 to {len(runs) - 1}"
        )
        raise TrajectoryError(f"row {row} was asked for, but {file} holds {held}")
    return runs[row]


def _names(shown: Sequence[tuple[Path, int]]) -> list[str]:
    """What tells runs apart: their files' names, with the row where it is not the first or the file is the same."""
    is_one_file = len(shown) > 1 and len({path for path, _ in shown}) == 1
    return [path.name + (f", row {row}" if row or is_one_file else "") for path, row in shown]


def _drawn(
    runs: Sequence[Trajectory],
    outputs: Mapping[str, Path],
    *,
    names: list[str],
    speed: float,
    step: int | None,
    columns: int,
    colour: bool,
    meter: bool,
) -> Iterator[tuple[str, str]]:
    """The text of each output; the page alone shows a second run."""
    if "--html" in outputs:
        from unmask.view.replay_html import page

        yield "--html", page(runs, names=names, speed=speed)
    if "--svg" in outputs:
        from unmask.view.replay_svg import figure

        yield "--svg", figure(runs[0], steps=None if step is None else [step], columns=columns)
    if "--cast" in outputs:
        from unmask.view.cast import recording

        yield "--cast", recording(runs[0], speed=speed, columns=columns, colour=colour, meter=meter)


def _write(path: Path, text: str) -> None:
    with beside(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _play(run: Trajectory, *, speed: float, no_color: bool, meter: bool) -> None:
    """Fill the canvas on stderr, `speed` steps a second."""
    from rich.console import Console

    from unmask.view.terminal import LiveCanvas

    console = Console(stderr=True, no_color=no_color or None)
    total = len(run.steps)
    with LiveCanvas(console, end_ids=run.end_ids, timed=False, meter=meter) as canvas:
        if meter and not canvas.is_drawn:
            print("--live draws on a terminal, and stderr is none: only the text follows", file=sys.stderr)
            return
        due = time.monotonic()
        for frame in run.frames():
            forwards = run.num_forwards * frame.step // total if total else run.num_forwards
            canvas.update(frame, run.pieces, num_forwards=forwards, total_steps=total)
            due += 1 / speed
            time.sleep(max(0.0, due - time.monotonic()))


def _show_step(run: Trajectory, step: int, *, no_color: bool) -> None:
    run.ids_at(step)  # refuses a step that the run does not have
    frame = next(frame for frame in run.frames() if frame.step == step)
    if not sys.stdout.isatty():
        _print(run.text(_region(frame), mask=MASK))
        return
    from rich.console import Console

    from unmask.view.terminal import legend, render

    console = Console(no_color=no_color or None)
    colour = console.color_system is not None and not console.no_color
    console.print(render(frame, run.pieces, width=console.width, end_ids=run.end_ids, colour=colour))
    console.print(legend(colour=colour, with_end=bool(run.end_ids)))


def _is_infill(frame: Frame) -> bool:
    """Given text stands behind an open position."""
    opened = [position not in frame.given for position in range(len(frame.ids))]
    return not all(opened[opened.index(True) :]) if True in opened else False


def _region(frame: Frame) -> list[int | None]:
    """What belongs to the result: the whole row of an infill, else everything that was not given."""
    if _is_infill(frame):
        return list(frame.ids)
    return [token for position, token in enumerate(frame.ids) if position not in frame.given]


def answer(run: Trajectory) -> list[int | None]:
    """The final ids that make the text: a generation is cut at its end, an infill only loses its end tokens."""
    *_, last = run.frames()
    ends = {i for i, token in enumerate(last.ids) if token in run.end_ids and i not in last.given}
    if _is_infill(last):
        return [token for i, token in enumerate(last.ids) if i not in ends]
    stop = min(ends, default=len(last.ids))
    return [token for i, token in enumerate(last.ids[:stop]) if i not in last.given]


def answer_text(run: Trajectory) -> str:
    """The text of the answer, masks shown."""
    return run.text(answer(run), mask=MASK)


def _summary(run: Trajectory) -> dict[str, Any]:
    ids = answer(run)
    return {
        "text": run.text(ids, mask=MASK),
        "model": run.model,
        "num_tokens": len(ids) - ids.count(None),
        "num_forwards": run.num_forwards,
        "seconds": run.settings.get("seconds"),  # the record keeps no clock; only a writer that put it there knows
        "seed": run.seed,
        "settings": run.settings,
        "finish_reason": run.finish_reason,
        "steps": len(run.steps),
    }


def _print(text: str) -> None:
    """Write to stdout, with a newline at the end, whatever its encoding; a terminal gets no control characters."""
    if sys.stdout.isatty():
        from unmask.view.terminal import printable

        text = printable(text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.write("" if text.endswith("\n") else "\n")


def _tell_if_unfinished(run: Trajectory) -> None:
    masked = answer(run).count(None)
    if masked:
        why = f" ({run.finish_reason})" if run.finish_reason else ""
        noun = "position is" if masked == 1 else "positions are"
        print(f"the run stopped early{why}: {masked} {noun} still masked, shown as {MASK}", file=sys.stderr)
