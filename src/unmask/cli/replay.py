"""`unmask replay FILE`: play a recorded run again, look at one step of it, or take its text; no model is needed.

On a terminal the canvas fills on stderr and the final text is left on stdout; into a pipe or a file goes the final
text alone. For a generation the text is the answer, up to its end; where given text stands behind an open position
(an infill) it is the whole row.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask import trajectory as trajectories
from unmask.errors import SettingsError, TrajectoryError
from unmask.trajectory import Frame, Trajectory

MASK = "░"


def replay(
    file: Annotated[Path, typer.Argument(help="A trajectory, written by `--trajectory`.", show_default=False)],
    row: Annotated[int, typer.Option("--row", help="Which run of the file, counted from 0.", metavar="N")] = 0,
    speed: Annotated[float, typer.Option("--speed", help="Steps per second.", metavar="FLOAT")] = 10.0,
    step: Annotated[
        int | None,
        typer.Option("--step", help="Print the canvas as it was after step K and leave.", metavar="K"),
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="Show states without colour.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object about the run.")] = False,
) -> None:
    """Play a recorded run again.

    Example: unmask replay run.jsonl --speed 20
    """
    _check_settings(speed=speed, step=step, as_json=as_json)
    try:
        run = _pick(file, row)
        if as_json:
            _print(json.dumps(_summary(run), ensure_ascii=False))
        elif step is not None:
            _show_step(run, step, no_color=no_color)
        else:
            if sys.stdout.isatty():
                _play(run, speed=speed, no_color=no_color)
            _print(_text(run))
            _tell_if_unfinished(run)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _check_settings(*, speed: float, step: int | None, as_json: bool) -> None:
    if not (speed > 0 and math.isfinite(speed)):
        raise SettingsError(
            f"--speed {speed:g} was given, but it counts steps per second; give a finite number above 0"
        )
    if as_json and step is not None:
        raise SettingsError("--json tells about the whole run and --step about one step of it; give one of them")


def _pick(file: Path, row: int) -> Trajectory:
    runs = trajectories.load(file)
    if not 0 <= row < len(runs):
        held = "one run; give --row 0" if len(runs) == 1 else f"{len(runs)} runs; give --row 0 to {len(runs) - 1}"
        raise TrajectoryError(f"row {row} was asked for, but {file} holds {held}")
    return runs[row]


def _play(run: Trajectory, *, speed: float, no_color: bool) -> None:
    """Fill the canvas on stderr, `speed` steps a second."""
    from rich.console import Console

    from unmask.view.terminal import LiveCanvas

    console = Console(stderr=True, no_color=no_color or None)
    total = len(run.steps)
    with LiveCanvas(console, end_ids=run.end_ids, timed=False) as canvas:
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


def _answer(run: Trajectory) -> list[int | None]:
    """The final ids that make the text: a generation is cut at its end, an infill only loses its end tokens."""
    *_, last = run.frames()
    ends = {i for i, token in enumerate(last.ids) if token in run.end_ids and i not in last.given}
    if _is_infill(last):
        return [token for i, token in enumerate(last.ids) if i not in ends]
    stop = min(ends, default=len(last.ids))
    return [token for i, token in enumerate(last.ids[:stop]) if i not in last.given]


def _text(run: Trajectory) -> str:
    return run.text(_answer(run), mask=MASK)


def _summary(run: Trajectory) -> dict[str, Any]:
    answer = _answer(run)
    return {
        "text": run.text(answer, mask=MASK),
        "model": run.model,
        "num_tokens": len(answer) - answer.count(None),
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
    masked = _answer(run).count(None)
    if masked:
        why = f" ({run.finish_reason})" if run.finish_reason else ""
        noun = "position is" if masked == 1 else "positions are"
        print(f"the run stopped early{why}: {masked} {noun} still masked, shown as {MASK}", file=sys.stderr)
