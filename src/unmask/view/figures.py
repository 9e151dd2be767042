"""What every figure shares: the data of a curve, one style, a legend that hides nothing, and the file.

The figures themselves are in `figures_order` (the order of a run) and `figures_score` (what it is worth). They take
plain numbers and know nothing of runs. Each series has its own marker, line style and hatch beside its colour, so that
a figure reads in greyscale; colours are those of Okabe and Ito, told apart by the colour-blind. Widths are those of a
paper's column and page, so that a figure is placed without scaling and its text stays 7 points tall or more.

matplotlib is used through its objects alone: no display, no pyplot, nothing set globally, and the reader's own
matplotlibrc is not heard.
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len

from unmask.atomic import beside
from unmask.errors import SettingsError, did_you_mean
from unmask.view.evaluation import clean

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Width = Literal["column", "page"]
WIDTHS: dict[Width, float] = {"column": 3.3, "page": 6.8}
"""Inches."""

SUFFIXES = (".svg", ".png")

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "////", "xxxx", "----", "\\\\\\\\", "++++", "...")
"""Of 7, 8, 5 and 7 kinds: the 280th series is the first that looks like an earlier one."""

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that files are the same everywhere
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.8,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.07,  # the layout is one round behind the last change of tick labels
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "unmask",  # the same ids in every run
}
_LINE_HEIGHT = 0.145  # inches of one line of a legend or a title
_CHARACTER = 0.059  # inches, a little above the mean in 7 points
_HANDLE = 0.45  # inches beside a legend's text


class NothingToDraw(SettingsError):
    """A figure's series have no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points of one series, and where it is known the interval of each. NaN points are left out.

    >>> Curve(label="tiny", x=(2, 1, 3), y=(0.4, 0.3, float("nan"))).points
    [(1, 0.3, nan, nan), (2, 0.4, nan, nan)]
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    def __post_init__(self) -> None:
        check_lengths(self.label, {"x": self.x, "y": self.y}, {"low": self.low, "high": self.high})

    @property
    def points(self) -> list[tuple[float, float, float, float]]:
        """(x, y, low, high) rising in x; low and high are NaN where no interval is known."""
        low, high = self.low or [nan] * len(self.x), self.high or [nan] * len(self.x)
        whole = zip(self.x, self.y, low, high, strict=True)
        return sorted((point for point in whole if isfinite(point[0]) and isfinite(point[1])), key=lambda p: p[0])


def save(figure: "Figure", path: Path | str, *, dpi: float = 200) -> None:
    """Write a figure as SVG or PNG, as the file's name says: beside it first, then renamed. The same figure gives the
    same bytes.
    """
    path = check_suffix(path)
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"svg": {"Date": None, "Creator": "unmask"}, "png": {"Software": "unmask"}}[kind]
    try:
        with styled(), warnings.catch_warnings(), beside(path) as part, part.open("wb") as file:
            warnings.filterwarnings(
                "ignore", message="Glyph .* missing"
            )  # a box in PNG; in SVG the viewer's font has it
            figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(
            f"could not write the figure {path} ({reason}); make room, or give a file in a folder that exists"
        ) from error


def make_folder(folder: Path) -> None:
    """A folder for figures, before the work that they are to show. Raises SettingsError where it cannot be made, or
    where matplotlib is missing."""
    with styled():
        pass
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--figures {folder} is a file; give a folder, which is made where there is none")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"--figures {folder} cannot be made ({error.strerror}); give a folder that exists, or one that can be made"
        ) from None


def check_suffix(path: Path | str) -> Path:
    """Refuse the name of a file that no figure can be written to: to be asked before the work."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(
            f"{path} is no figure's name: figures are written as SVG or PNG, and the ending says which; "
            f"give {' or '.join(str(path.with_suffix(suffix)) for suffix in SUFFIXES)}"
            if path.name
            else f"a figure needs a file's name that ends in {' or '.join(SUFFIXES)}; give one"
        )
    return path


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib with this project's style alone, and as it was afterwards."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise SettingsError(
            f"figures are drawn by matplotlib, and it cannot be imported ({error}); install it with "
            '`pip install "unmask[plots]"`'
        ) from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        with matplotlib.rc_context(_STYLE):
            yield


def panels(
    *, width: Width, height: float, columns: int = 1, rows: int = 1, title: str = "", **share: Any
) -> "tuple[Figure, list[Axes]]":
    """A figure with empty axes, row by row; `height` is that of the axes, and titles and legends add theirs."""
    from matplotlib.figure import Figure

    if width not in WIDTHS:
        raise SettingsError(f"{width!r} is no width of a figure; {did_you_mean(str(width), WIDTHS)}")
    figure = Figure(figsize=(WIDTHS[width], height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **share)
    if title:
        lines = wrapped(title, WIDTHS[width] - 0.2)
        grow(figure, len(lines))
        figure.suptitle("\n".join(lines), fontsize=7.5)
    return figure, [axes for row in grid for axes in row]


def legend(figure: "Figure", entries: "dict[str, Artist]") -> None:
    """Name the series below the axes, where they hide nothing, in a figure made as much taller."""
    width = figure.get_figwidth()
    labels = ["\n".join(wrapped(label, width - _HANDLE)) for label in entries]
    widest = max(cell_len(line) for label in labels for line in label.split("\n"))
    columns = min(len(labels), max(1, int(width / (widest * _CHARACTER + _HANDLE))))
    rows = -(-len(labels) // columns)
    tallest = [max(label.count("\n") + 1 for label in labels[at::rows]) for at in range(rows)]  # filled down columns
    grow(figure, sum(tallest))
    figure.legend(list(entries.values()), labels, loc="outside lower center", ncols=columns, handlelength=2.6)


def line(axes: "Axes", curve: Curve, *, at: int, every: int = 1) -> "Artist":
    """Draw a curve as the `at`-th series, with a marker on each `every`-th point, and with a band, or a bar where a
    single point gives a band no width; return what a legend shows.
    """
    x, y, low, high = ([point[i] for point in curve.points] for i in range(4))
    drawn = _strokes(axes, x, y, at=at, markevery=(2 * at % every, every))
    if len(x) == 1:
        _whiskers(axes, curve, at=at)
    elif not all(map(isnan, low)):
        axes.fill_between(x, low, high, color=COLOURS[at % len(COLOURS)], alpha=0.16, linewidth=0)
    return drawn


def barred_line(axes: "Axes", curve: Curve, *, at: int, aside: float = 0.0) -> "Artist":
    """Draw a curve with a bar at each point, set `aside` by so many points of the page, the data as they are: so the
    bars of several series that share an x can be told apart.
    """
    from matplotlib.transforms import ScaledTranslation

    beside = ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    x, y, _, _ = ([point[i] for point in curve.points] for i in range(4))
    drawn = _strokes(axes, x, y, at=at, transform=axes.transData + beside)
    _whiskers(axes, curve, at=at, transform=axes.transData + beside)
    ends = [(x, end) for x, y, low, high in curve.points for end in (low, y, high) if isfinite(end)]
    axes.update_datalim(ends)  # what is moved on the page is not seen when the axes find their limits
    axes.autoscale_view()
    return drawn


def _strokes(axes: "Axes", x: list[float], y: list[float], *, at: int, **options: Any) -> "Artist":
    color, marker, dashes = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)], DASHES[at % len(DASHES)]
    look: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dashes}
    (drawn,) = axes.plot(x, y, markeredgecolor="white", markeredgewidth=0.4, zorder=3, **look, **options)
    return drawn


def _whiskers(axes: "Axes", curve: Curve, *, at: int, **options: Any) -> None:
    """The interval of each point that has one, which need not lie evenly about it."""
    look: dict[str, Any] = {"color": COLOURS[at % len(COLOURS)], "elinewidth": 0.8, "capsize": 2, "linestyle": "none"}
    for x, _, low, high in curve.points:
        if isfinite(low) and isfinite(high):
            axes.errorbar(x, (low + high) / 2, (high - low) / 2, **look, **options)


def in_percent(axis: "Axis") -> None:
    """Write shares from 0 to 1 as 0 to 100."""
    axis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g}")


def in_whole_numbers(axis: "Axis") -> None:
    """Put no tick where a count cannot be."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def wrapped(text: str, width: float) -> list[str]:
    """The lines of a text that `width` inches hold; names are broken behind a mark, and where there is none, anywhere.

    >>> wrapped("some/DiffuCoder-7B_v2, a", 0.9)
    ['some/', 'DiffuCoder-7B_', 'v2, a']
    """
    room = max(8, int(width / _CHARACTER))
    lines = [""]
    for word in re.findall(r"[^\s/_-]*[\s/_-]|[^\s/_-]+", clean(text)):
        if lines[-1] and cell_len(lines[-1] + word.rstrip()) > room:
            lines.append("")
        for letter in word:
            if cell_len(lines[-1] + letter) > room and not letter.isspace():
                lines.append("")
            lines[-1] += letter
    return [each.strip() for each in lines]


def grow(figure: "Figure", lines: int) -> None:
    """Make room for lines of text without taking it from the axes."""
    figure.set_figheight(figure.get_figheight() + _LINE_HEIGHT * lines + 0.06)


def check_labels(labels: Sequence[str], what: str) -> None:
    """Refuse a figure of nothing, and two series of one name."""
    if not labels:
        raise SettingsError(f"there is nothing to draw: {what} was given no series; give at least one")
    for label in labels:
        if labels.count(label) > 1:
            raise SettingsError(
                f"two series of {what} are called {label!r}, and no reader could tell them apart; name each by what "
                "sets it apart, as in 'tiny, temperature 0.2'"
            )


def check_curves(curves: Sequence[Curve], what: str, *, are_shares: bool = True) -> None:
    """Refuse what would draw an empty or a false figure."""
    check_labels([curve.label for curve in curves], what)
    if not any(curve.points for curve in curves):
        raise NothingToDraw(
            f"there is nothing to draw: no series of {what} has a point that is a number; give runs in which the "
            "measure is defined"
        )
    if are_shares:
        for curve in curves:
            check_shares(curve.label, [*curve.y, *curve.low, *curve.high])


def check_shares(label: str, values: Sequence[float]) -> None:
    for value in values:
        if isfinite(value) and not -1e-9 <= value <= 1 + 1e-9:
            raise SettingsError(
                f"{label!r} has the value {value:g}, which is no share: shares go from 0 to 1; divide per cent by 100"
            )


def check_lengths(label: str, needed: dict[str, Sequence[object]], optional: dict[str, Sequence[object]]) -> None:
    """Refuse columns of one series that differ in length; those of `optional` may all be empty instead."""
    columns = {**needed, **(optional if any(optional.values()) else {})}
    if len(set(map(len, columns.values()))) > 1:
        told = ", ".join(f"{len(values)} {name}" for name, values in columns.items())
        raise SettingsError(f"{label!r} has {told}; each point needs one of each, so give as many")
