"""The AR-ness meter of a live view: how near to left-to-right the answer has been filled so far, and the line it makes.

A run may mask a position again, or commit an end token further left; then what counted before counts no more. So the
meter keeps the positions of each step, and reads them when it is asked to, which is seldom (at each drawing, not at
each step): `ArNessMeter` gets what is new, or everything where something has been taken back.
"""

from collections.abc import Collection

from unmask.analyze.ar_ness import ArNessMeter
from unmask.trajectory import Frame

BAR = 8
_NARROW_BAR = 4


class FrameMeter:
    """Local and global AR-ness@1 of the answer in a run's frames, of which each must be shown to `follow`.

    It counts as `analyze.measure.measure` does: a position when it was committed last, one step's positions from left
    to right, what is still masked as open, the first end token and what lies behind it not at all. A new run, and a
    row whose length has changed, start the meter anew.

    >>> meter = FrameMeter()
    >>> meter.follow(Frame(1, (5, None, 7), frozenset({0}), frozenset({2}), {}))
    >>> meter.follow(Frame(2, (5, 6, 7), frozenset({0}), frozenset({1}), {}))
    >>> meter.reading()
    (0.0, 0.5)
    """

    def __init__(self, *, end_ids: Collection[int] = ()) -> None:
        self._end_ids = frozenset(end_ids)
        self._frame: Frame | None = None
        self._forget()

    def _forget(self) -> None:
        self._steps: list[list[int]] = []
        self._settled: set[int] = set()
        self._end: int | None = None
        self._meter: ArNessMeter | None = None  # of the first `_num_read` steps, up to `_end`
        self._num_read = 0

    @property
    def has_begun(self) -> bool:
        return self._frame is not None

    def follow(self, frame: Frame) -> None:
        """Take in the frame after one more step; the same frame again is no step."""
        before, self._frame = self._frame, frame
        if before is not None:
            if frame.step == before.step and frame.ids == before.ids:
                return
            if frame.step <= before.step or len(frame.ids) != len(before.ids):
                self._forget()
            elif frame.given != before.given or any(before.ids[position] is not None for position in frame.new):
                self._meter = None  # a position that had a token was open after all: it has been so all along
        undone = {position for position in self._settled if frame.ids[position] is None or position in frame.new}
        if undone:
            self._steps = [[position for position in step if position not in undone] for step in self._steps]
            self._settled -= undone
            self._meter = None
        self._steps.append(sorted(frame.new))
        self._settled |= frame.new

    def reading(self) -> tuple[float, float]:
        """Local and global AR-ness@1 so far; NaN until two positions are filled."""
        if self._frame is None:
            return float("nan"), float("nan")
        end = self._answer_end(self._frame)
        if self._meter is None or end != self._end:
            still_open = (position for position, token in enumerate(self._frame.ids) if token is None)
            self._meter, self._num_read, self._end = ArNessMeter([*still_open, *self._settled]), 0, end
        for step in self._steps[self._num_read :]:
            self._meter.add(position for position in step if position < end)
        self._num_read = len(self._steps)
        local = self._meter.local()
        return local, float("nan") if local != local else self._meter.global_()

    def _answer_end(self, frame: Frame) -> int:
        ends = (position for position in self._settled if frame.ids[position] in self._end_ids)
        return min(ends, default=len(frame.ids))


def meter_line(local: float, global_: float, *, width: int, is_ascii: bool = False) -> str:
    """Two bars, a full one being 1: left to right. Narrow terminals get shorter bars, or the numbers alone.

    >>> meter_line(0.62, 0.91, width=80)
    'AR-ness  local ▇▇▇▇▇▁▁▁ 0.62   global ▇▇▇▇▇▇▇▁ 0.91   (1 = left to right)'
    >>> meter_line(0.62, float("nan"), width=40)
    'AR-ness local ▇▇▁▁ 0.62 global ▁▁▁▁ –'
    """
    bars = [_bar(share, BAR, is_ascii) for share in (local, global_)]
    short = [_bar(share, _NARROW_BAR, is_ascii) for share in (local, global_)]
    numbers = [_number(share, is_ascii) for share in (local, global_)]
    wide = f"AR-ness  local {bars[0]} {numbers[0]:4}   global {bars[1]} {numbers[1]}"
    for line in (
        f"{wide}   (1 = left to right)",
        wide,
        f"AR-ness local {short[0]} {numbers[0]:4} global {short[1]} {numbers[1]}",
    ):
        if len(line) <= width:
            return line
    return f"local {numbers[0]} global {numbers[1]}"[:width]


def _bar(share: float, cells: int, is_ascii: bool) -> str:
    full, empty = ("#", ".") if is_ascii else ("▇", "▁")
    filled = 0 if share != share else cells if share >= 1 else min(round(share * cells), cells - 1)  # full at 1 alone
    return full * filled + empty * (cells - filled)


def _number(share: float, is_ascii: bool) -> str:
    return ("-" if is_ascii else "–") if share != share else f"{share:.2f}"
