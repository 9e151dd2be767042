"""The canvas of one row, drawn in a terminal while it is being filled, or as plain text afterwards.

Every masked token is one cell, `░`, until its text is known; a token new in this step stands out, a settled one is
shaded by the model's confidence, given text is dim. Colour is never the only sign: without it new tokens are reversed
and doubtful ones underlined, and a mask is a cell either way.

The text of a model is not trusted: control characters, which could move the cursor or retitle the window, become
visible signs, and bytes that are not UTF-8 on their own wait for the token that completes them or become `�`.

`render`, `legend` and `status` are pure; `LiveCanvas` holds the terminal, a clock, what is new since it
drew last, and the AR-ness meter if one is wanted.
"""

import codecs
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Literal, Self

from rich.cells import get_character_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from unmask.trajectory import Frame
from unmask.view.meter import FrameMeter, meter_line

MASK = "░"
END = "∎"
TAB = 8  # as terminals have it, so that the canvas looks like the text that is printed after it
SURE, FAIR = 0.9, 0.5  # lower bounds of the two better grades of confidence
FRAMES_PER_SECOND = 20.0
MAX_SHARE_OF_TIME = 0.1  # drawing may take this part of the time at most; a slow terminal gets fewer frames

State = Literal["masked", "new", "sure", "fair", "unsure", "given", "end"]

COLOURS: dict[State, str] = {
    "masked": "bright_black",
    "new": "bold black on bright_green",
    "sure": "default",
    "fair": "yellow",
    "unsure": "magenta",
    "given": "dim",
    "end": "bright_black",
}
WITHOUT_COLOUR: dict[State, str] = {
    "masked": "none",
    "new": "reverse",
    "sure": "none",
    "fair": "underline",
    "unsure": "bold underline",
    "given": "dim",
    "end": "dim",
}


def render(
    frame: Frame,
    pieces: Mapping[int, str],
    *,
    width: int,
    height: int | None = None,
    context: int | None = 1,
    end_ids: Collection[int] = (),
    colour: bool = True,
    mask: str = MASK,
    top: int = 0,
) -> Text:
    """The open region of a canvas as lines of at most `width` cells.

    `context` is how many lines of given text stand before and after the open region; None draws the whole row. With
    `height`, a longer canvas shows the lines around the newest commits, as near to line `top` as they allow, and a
    note says how many lines are hidden.

    >>> frame = Frame(1, (5, None, 9, None), frozenset({0}), frozenset({2}), {2: 0.8})
    >>> render(frame, {5: "def ", 9: "(x)"}, width=80).plain
    'def ░(x)░'
    """
    lines = _layout(frame, pieces, width=width, context=context, end_ids=end_ids, mask=mask)
    start, stop = _window(lines, height, top)
    return _draw(lines, start, stop, width=width, palette=COLOURS if colour else WITHOUT_COLOUR)


def legend(*, colour: bool = True, mask: str = MASK, with_end: bool = False) -> Text:
    """What the looks mean, on one line."""
    palette = COLOURS if colour else WITHOUT_COLOUR
    entries: list[tuple[str, State]] = [
        (f"{mask} masked", "masked"),
        (" new ", "new"),
        (f"sure {SURE:.0%}+", "sure"),
        (f"fair {FAIR:.0%}+", "fair"),
        ("unsure", "unsure"),
        ("given", "given"),
    ]
    if with_end:
        entries.append((f"{_end_cell(mask)} end", "end"))
    text = Text(no_wrap=True, overflow="crop")
    for number, (label, state) in enumerate(entries):
        text.append("   " if number else "").append(label, palette[state])
    return text


def status(frame: Frame, *, num_forwards: int, total_steps: int | None, seconds: float | None = None) -> str:
    """Where the run is, on one line.

    >>> frame = Frame(2, (5, None, 9, 9), frozenset({0}), frozenset({2}), {})
    >>> status(frame, num_forwards=2, total_steps=3, seconds=1.5)
    'step 2 of 3, 2/3 settled, 2 forwards, 1.0 tokens/forward, 1.5 s'
    """
    opened = [token for position, token in enumerate(frame.ids) if position not in frame.given]
    settled = len(opened) - opened.count(None)
    parts = [
        f"step {frame.step}" if total_steps is None else f"step {frame.step} of {total_steps}",
        f"{settled}/{len(opened)} settled",
        "1 forward" if num_forwards == 1 else f"{num_forwards} forwards",
        f"{settled / num_forwards if num_forwards else 0.0:.1f} tokens/forward",
    ]
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    return ", ".join(parts)


def printable(text: str) -> str:
    """`text` with its control characters made visible, safe to print on a terminal; newlines and tabs stay.

    >>> printable("a\\x1b[2Jb\\n")
    'a␛[2Jb\\n'
    """
    return text.replace("\r\n", "\n").translate(_VISIBLE)


class LiveCanvas:
    """The canvas, its legend and a status line, redrawn in place while a run goes on; silent without a terminal.

        with LiveCanvas(end_ids=end_ids) as canvas:
            for frame in frames:
                canvas.update(frame, pieces, num_forwards=frame.step, total_steps=64)

    `keep` leaves the last state on the screen, otherwise it is wiped. `timed` adds the seconds since the start. `meter`
    adds a line with the AR-ness of the answer so far; its last reading stays on the screen. However it ends, Ctrl-C
    included, the cursor comes back.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        keep: bool = False,
        context: int | None = 1,
        end_ids: Collection[int] = (),
        timed: bool = True,
        meter: bool = False,
        frames_per_second: float = FRAMES_PER_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = Console(stderr=True) if console is None else console
        self.is_drawn = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            transient=not keep,
            redirect_stdout=False,  # the result belongs to stdout, even when it is printed while we draw
            vertical_overflow="crop",
        )
        self._keep = keep
        self._context = context
        self._end_ids = frozenset(end_ids)
        self._timed = timed
        self._meter = FrameMeter(end_ids=end_ids) if meter else None
        self._interval = 1.0 / frames_per_second
        self._clock = clock
        self._started = self._next = clock()
        self._top = 0
        self._length = 0
        self._new: frozenset[int] = frozenset()  # committed since the last drawing
        self._waiting: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._started = self._next = self._clock()
        if self.is_drawn:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_drawn:
            return
        try:
            if self._keep and self._waiting is not None:
                self._waiting()
        finally:
            self._live.stop()
        if self._meter is not None and self._meter.has_begun and not self._keep:
            self.console.print(self._meter_line(self._meter), highlight=False)

    def follow(self, frame: Frame) -> None:
        """Let the meter see a frame that is not to be drawn: the steps of a run before it was taken up."""
        if self.is_drawn and self._meter is not None:
            self._meter.follow(frame)

    def update(self, frame: Frame, pieces: Mapping[int, str], *, num_forwards: int, total_steps: int | None) -> None:
        """Show `frame`, unless the last drawing was too short a time ago; its commits then stay new until one is."""
        if not self.is_drawn:
            return
        self.follow(frame)
        has_moved = len(frame.ids) != self._length  # what was new before is somewhere else now
        self._length = len(frame.ids)
        self._new = frame.new if has_moved else self._new | frame.new
        seen = replace(frame, new=self._new)
        self._waiting = partial(self._draw, seen, pieces, num_forwards, total_steps)
        begun = self._clock()
        if begun >= self._next:
            self._waiting()
            ended = self._clock()
            self._next = max(begun + self._interval, ended + (ended - begun) * (1 / MAX_SHARE_OF_TIME - 1))

    def _draw(self, frame: Frame, pieces: Mapping[int, str], num_forwards: int, total_steps: int | None) -> None:
        width, height = self.console.size
        colour = self.console.color_system is not None and not self.console.no_color
        mask = MASK if self.console.encoding.startswith("utf") else "_"
        lines = _layout(frame, pieces, width=width, context=self._context, end_ids=self._end_ids, mask=mask)
        below = 3 if self._meter is None else 4  # legend, status, perhaps the meter, and a line of air
        start, stop = _window(lines, max(1, height - below), self._top)
        self._top = start
        canvas = _draw(lines, start, stop, width=width, palette=COLOURS if colour else WITHOUT_COLOUR)
        explained = legend(colour=colour, mask=mask, with_end=bool(self._end_ids))
        explained.truncate(width)
        seconds = self._clock() - self._started if self._timed else None
        where = status(frame, num_forwards=num_forwards, total_steps=total_steps, seconds=seconds)
        canvas.append("\n").append_text(explained).append("\n").append(where[:width])
        if self._meter is not None:
            canvas.append("\n").append(self._meter_line(self._meter))
        self._live.update(canvas, refresh=True)
        self._new = frozenset()
        self._waiting = None

    def _meter_line(self, meter: FrameMeter) -> str:
        is_ascii = not self.console.encoding.startswith("utf")
        return meter_line(*meter.reading(), width=self.console.width, is_ascii=is_ascii)


@dataclass(slots=True)
class _Line:
    """One line of the screen. A newline belongs to the line that it ends."""

    spans: list[tuple[str, State]] = field(default_factory=list)
    states: set[State] = field(default_factory=set)

    def add(self, text: str, state: State) -> None:
        if self.spans and self.spans[-1][1] == state:
            self.spans[-1] = (self.spans[-1][0] + text, state)
        else:
            self.spans.append((text, state))


def _layout(
    frame: Frame,
    pieces: Mapping[int, str],
    *,
    width: int,
    context: int | None,
    end_ids: Collection[int],
    mask: str,
) -> list[_Line]:
    """The whole drawn region as lines, however many."""
    width = max(width, 2)  # a wide character must fit
    first, stop = _region(frame, pieces, width=width, context=context)
    lines = _wrap(_spans(frame, pieces, first, stop, end_ids=end_ids, mask=mask), width)
    if context is None:
        return lines
    opened = [number for number, line in enumerate(lines) if line.states - {"given"}]
    if not opened:
        return []
    return lines[max(0, opened[0] - context) : opened[-1] + 1 + context]


def _region(frame: Frame, pieces: Mapping[int, str], *, width: int, context: int | None) -> tuple[int, int]:
    """The open positions with enough given ones around them for the context, so that a long prompt costs nothing."""
    length = len(frame.ids)
    if context is None:
        return 0, length
    opened = [position for position in range(length) if position not in frame.given]
    if not opened:
        return 0, 0
    room = (context + 2) * width
    first, stop = opened[0], opened[-1] + 1
    return first - _reach(frame, pieces, range(first - 1, -1, -1), context + 1, room), stop + _reach(
        frame, pieces, range(stop, length), context + 1, room
    )


def _reach(frame: Frame, pieces: Mapping[int, str], positions: range, newlines: int, room: int) -> int:
    """How many of `positions` hold this many newlines, or this many characters."""
    taken = 0
    for position in positions:
        if newlines <= 0 or room <= 0:
            break
        piece = _piece(frame.ids[position], pieces)
        newlines -= piece.count("\n")
        room -= len(piece)
        taken += 1
    return taken


def _spans(
    frame: Frame, pieces: Mapping[int, str], first: int, stop: int, *, end_ids: Collection[int], mask: str
) -> Iterator[tuple[str, State]]:
    """The text of the positions, each stretch with its state; a split character belongs to the token ending it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    state: State = "given"
    for position in range(first, stop):
        token = frame.ids[position]
        is_end = token in end_ids and position not in frame.given
        if token is None or is_end:
            yield decoder.decode(b"", final=True), state
            state = "masked" if token is None else "new" if position in frame.new else "end"
            yield mask if token is None else _end_cell(mask), state
        else:
            state = _state(frame, position)
            yield decoder.decode(_piece(token, pieces).encode("utf-8", "surrogateescape")), state
    yield decoder.decode(b"", final=True), state


def _end_cell(mask: str) -> str:
    return END if mask == MASK else "$"  # a terminal that cannot show the one cannot show the other


def _piece(token: int | None, pieces: Mapping[int, str]) -> str:
    return "" if token is None else pieces.get(token, f"<{token}>")


def _state(frame: Frame, position: int) -> State:
    if position in frame.new:
        return "new"
    if position in frame.given:
        return "given"
    confidence = frame.confidence.get(position, 1.0)
    return "sure" if confidence >= SURE else "fair" if confidence >= FAIR else "unsure"


def _wrap(spans: Iterator[tuple[str, State]], width: int) -> list[_Line]:
    """Break at newlines and at `width` cells."""
    line, column = _Line(), 0
    lines = [line]
    for text, state in spans:
        for char in printable(text):
            line.states.add(state)
            if char == "\n":
                line, column = _Line(), 0
                lines.append(line)
                continue
            cell = " " * min(TAB - column % TAB, max(width - column, 1)) if char == "\t" else char
            size = len(cell) if char == "\t" or char.isascii() else get_character_cell_size(char)
            if column + size > width:
                line, column = _Line(states={state}), 0
                lines.append(line)
            line.add(cell, state)
            column += size
    return lines


def _window(lines: Sequence[_Line], height: int | None, top: int) -> tuple[int, int]:
    """The stretch of lines to show: the most lines with something new, else the first mask, moved as little as can be.

    When not all lines fit, one line of `height` is left for the note.
    """
    if height is None or len(lines) <= height:
        return 0, len(lines)
    room = max(height - 1, 1)
    wanted = ["new" in line.states for line in lines]
    if not any(wanted):
        first_mask = next((number for number, line in enumerate(lines) if "masked" in line.states), None)
        wanted = [number == first_mask for number in range(len(lines))]
    counts = [0]
    for is_wanted in wanted:
        counts.append(counts[-1] + is_wanted)
    starts = range(len(lines) - room + 1)
    start = max(starts, key=lambda start: (counts[start + room] - counts[start], -abs(start - top)))
    return start, start + room


def _draw(lines: Sequence[_Line], start: int, stop: int, *, width: int, palette: Mapping[State, str]) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    for number, line in enumerate(lines[start:stop]):
        text.append("\n" if number else "")
        for chunk, state in line.spans:
            text.append(chunk, palette[state])
    above, below = start, len(lines) - stop
    if above or below:
        note = f"(lines hidden: {above} above, {below} below)"
        text.append("\n").append(note[:width], "italic dim")
    return text


def _visible_signs() -> dict[int, str]:
    """Control characters as their pictures; those without one, and marks that turn the writing around, as `�`."""
    signs = {code: chr(0x2400 + code) for code in range(0x20)}
    del signs[ord("\n")], signs[ord("\t")]
    signs[0x7F] = "␡"
    hidden = [*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
    return signs | dict.fromkeys(hidden, "\ufffd")


_VISIBLE = _visible_signs()
