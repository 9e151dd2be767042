"""Figures of what an order is worth: settle time by syntax class, pass@k against temperature, speed against quality."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan
from typing import TYPE_CHECKING

from unmask.errors import SettingsError
from unmask.view.evaluation import clean
from unmask.view.figures import (
    COLOURS,
    HATCHES,
    Curve,
    NothingToDraw,
    Width,
    barred_line,
    check_curves,
    check_labels,
    check_lengths,
    check_shares,
    in_percent,
    in_whole_numbers,
    legend,
    line,
    panels,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One value for each name, where known its interval, and of how many tokens it is the mean. NaN is left out."""

    label: str
    names: Sequence[str]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    counts: Sequence[int] = ()

    def __post_init__(self) -> None:
        given = {"names": self.names, "values": self.values}
        check_lengths(self.label, given, {"low": self.low, "high": self.high})
        check_lengths(self.label, given, {"counts": self.counts})

    @property
    def by_name(self) -> dict[str, tuple[float, float, float]]:
        """(value, low, high) of each name whose value is a number."""
        low, high = self.low or [nan] * len(self.names), self.high or [nan] * len(self.names)
        found = zip(self.names, zip(self.values, low, high, strict=True), strict=True)
        return {name: values for name, values in found if isfinite(values[0])}


def settle_times(bars: Sequence[Bars], *, title: str = "", width: Width = "column") -> "Figure":
    """When tokens of each syntax class settle, as a share of the run; the earliest class on top."""
    check_labels([series.label for series in bars], "settle times")
    for series in bars:
        check_shares(series.label, [*series.values, *series.low, *series.high])
    found = {series.label: series.by_name for series in bars}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    if not names:
        raise NothingToDraw(
            "there is nothing to draw: no syntax class has a settle time that is a number; give runs whose answers "
            "hold Python"
        )
    mean = {name: _mean([values[name][0] for values in found.values() if name in values]) for name in names}
    names.sort(key=lambda name: mean[name])
    counts = {name: _count(bars, name) for name in names}
    thick = 0.8 / len(bars)
    with styled():
        figure, (axes,) = panels(
            width=width, height=max(1.85, 0.55 + len(names) * max(0.19, 0.14 * len(bars))), title=title
        )
        drawn: dict[str, Artist] = {}
        for at, series in enumerate(bars):
            values = found[series.label]
            for place, name in enumerate(names):
                if name not in values:
                    continue
                value, low, high = values[name]
                where = place + (at - (len(bars) - 1) / 2) * thick
                (bar,) = axes.barh(
                    where, value, height=thick * 0.92, facecolor=_pale(at), edgecolor="black", linewidth=0.5,
                    hatch=HATCHES[at % len(HATCHES)],
                )  # fmt: skip
                drawn.setdefault(series.label, bar)
                end = value
                if isfinite(low) and isfinite(high):
                    axes.errorbar(
                        (low + high) / 2, where, xerr=(high - low) / 2, color="black", elinewidth=0.9, capsize=1.5
                    )
                    end = max(value, high)
                axes.annotate(
                    f"{100 * value:.0f}",
                    (end, where),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
        axes.set_yticks(range(len(names)), [clean(name) + counts[name] for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        in_percent(axes.xaxis)
        axes.set_xlabel("settled at (% of the run)")
        axes.set_ylabel("syntax class (tokens)" if any(counts.values()) else "syntax class")
        if len(bars) > 1:
            legend(figure, drawn)
    return figure


def pass_at_k_curves(curves: Sequence[Curve], *, title: str = "", width: Width = "column") -> "Figure":
    """pass@k against the sampling temperature: one curve for each k, or for each model and k."""
    check_curves(curves, "pass@k")
    with styled():
        figure, (axes,) = panels(width=width, height=2.2, title=title)
        drawn = {curve.label: line(axes, curve, at=at) for at, curve in enumerate(curves)}
        temperatures = sorted({x for curve in curves for x, *_ in curve.points})
        gaps = [high - low for low, high in pairwise(temperatures)]
        if min(gaps, default=1.0) >= 0.08 * sum(gaps):  # or else they would be written over each other
            axes.set_xticks(temperatures, [f"{temperature:g}" for temperature in temperatures])
        axes.set_xlabel("temperature")
        axes.set_ylabel("tasks solved, pass@k (%)")
        _share_limits(axes)
        legend(figure, drawn)
    return figure


def speed_quality(curves: Sequence[Curve], *, title: str = "", width: Width = "column") -> "Figure":
    """pass@1 against the network calls that an answer took; points of one series are joined in the order of calls."""
    check_curves(curves, "speed against quality")
    calls = [x for curve in curves for x, *_ in curve.points]
    if min(calls) <= 0:
        raise SettingsError(
            f"an answer is said to have taken {min(calls):g} forwards; it takes at least one, so leave this point out"
        )
    with styled():
        from matplotlib.ticker import FuncFormatter, NullFormatter

        figure, (axes,) = panels(width=width, height=2.2, title=title)
        aside = 2.5 if len(set(calls)) < len(calls) else 0.0
        drawn: dict[str, Artist] = {}
        for at, curve in enumerate(curves):
            drawn[curve.label] = barred_line(axes, curve, at=at, aside=(at - (len(curves) - 1) / 2) * aside)
        if max(calls) >= 4 * min(calls):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            in_whole_numbers(axes.xaxis)
        axes.set_xlabel("forwards per answer")
        axes.set_ylabel("tasks solved, pass@1 (%)")
        _share_limits(axes)
        legend(figure, drawn)
    return figure


def _share_limits(axes: "Axes") -> None:
    """As much of 0 to 100 per cent as holds the data, and a little more for markers."""
    low, high = axes.get_ylim()
    room = 0.04 * (high - low)
    axes.set_ylim(max(low, 0.0) - room, min(high, 1.0) + room)
    in_percent(axes.yaxis)


def _pale(at: int) -> str:
    """The series' colour, light enough for a hatch and a bar to be seen on it."""
    red, green, blue = (int(COLOURS[at % len(COLOURS)][i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.45 * (255 - part)):02x}" for part in (red, green, blue))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _count(bars: Sequence[Bars], name: str) -> str:
    """Tokens behind a name in all series, as the end of its label; nothing where they are not known."""
    known = [dict(zip(series.names, series.counts, strict=True)).get(name, 0) for series in bars if series.counts]
    return f" ({sum(known):,})" if known else ""
