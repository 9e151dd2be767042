"""A recorded run as a terminal recording (asciinema, version 2 of its format): the replay as `unmask replay` plays it.

The file is a header, a JSON object, and then one event a line: [seconds since the start, "o", what the terminal got].
It is drawn by the same `LiveCanvas` as the replay, on a terminal that is only a buffer, by a clock that only counts:
the same run gives the same file. It draws up to 30 steps a second; faster ones are drawn together.
"""

import io
import json
from collections.abc import Iterator

from rich.console import Console

from unmask.errors import SettingsError
from unmask.trajectory import Trajectory
from unmask.view.terminal import LiveCanvas, printable, render

MOST_LINES = 40
"""Lines of the recorded terminal; a longer canvas moves in it as in any terminal."""

FRAMES_PER_SECOND = 30 * (1 + 1e-9)  # a hair more, as the times of steps are sums of floats and may fall short of it

_BESIDE_CANVAS = 3  # the legend, the status, and the line that the cursor is on
_LINGER = 2.0  # seconds that the last state stays


def recording(
    run: Trajectory, *, speed: float = 10.0, columns: int = 80, colour: bool = True, meter: bool = False
) -> str:
    """The whole file, playing `speed` steps a second on a terminal `columns` wide, with an AR-ness meter or without."""
    if columns < 1:
        raise SettingsError(f"{columns} columns were asked for; a terminal is at least 1 wide")
    rows = min(MOST_LINES, max(_lines(run, columns)) + _BESIDE_CANVAS + meter)
    header = {
        "version": 2,
        "width": columns,
        "height": rows,
        "title": printable(f"unmask replay: {run.model or 'a model'}, {len(run.steps)} steps"),
        "env": {"TERM": "xterm-256color"},
    }
    events = _events(run, speed=speed, columns=columns, rows=rows, colour=colour, meter=meter)
    return "\n".join(json.dumps(line, ensure_ascii=False, allow_nan=False) for line in (header, *events)) + "\n"


def _lines(run: Trajectory, columns: int) -> Iterator[int]:
    """How many lines each frame takes."""
    for frame in run.frames():
        yield 1 + render(frame, run.pieces, width=columns, end_ids=run.end_ids).plain.count("\n")


def _events(
    run: Trajectory, *, speed: float, columns: int, rows: int, colour: bool, meter: bool
) -> Iterator[tuple[float, str, str]]:
    screen = _Screen()
    console = Console(
        file=screen,
        force_terminal=True,
        color_system="256" if colour else None,
        no_color=not colour,
        width=columns,
        height=rows,
        legacy_windows=False,
        _environ={"TERM": "xterm-256color"},
    )
    total, at = len(run.steps), 0.0
    with LiveCanvas(
        console,
        keep=True,
        end_ids=run.end_ids,
        timed=False,
        meter=meter,
        frames_per_second=FRAMES_PER_SECOND,
        clock=lambda: at,
    ) as canvas:
        for frame in run.frames():
            at = frame.step / speed
            forwards = run.num_forwards * frame.step // total if total else run.num_forwards
            canvas.update(frame, run.pieces, num_forwards=forwards, total_steps=total)
            if drawn := screen.take():
                yield round(at, 6), "o", drawn
    yield round(at, 6), "o", screen.take()
    yield round(at + _LINGER, 6), "o", ""


class _Screen(io.StringIO):
    """What is written and not yet taken, with the line ends that a terminal wants."""

    def take(self) -> str:
        written = self.getvalue()
        self.seek(0)
        self.truncate()
        return written.replace("\n", "\r\n")
