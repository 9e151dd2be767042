"""Figures of the order in which runs settled their positions: AR-ness, the order map, the entropy sink.

As DiffuCoder draws them (arXiv 2506.20639, 4.1 to 4.3, figures 3 and 4), with intervals, and with the two orders that
any other is judged by: left to right, and random, for which both measures have closed forms.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Literal

from unmask.analyze.random_order import Shape, random_global, random_local
from unmask.errors import SettingsError
from unmask.view.figures import (
    COLOURS,
    WIDTHS,
    Curve,
    NothingToDraw,
    Width,
    check_curves,
    check_labels,
    grow,
    in_percent,
    in_whole_numbers,
    legend,
    line,
    panels,
    styled,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Runs = Sequence[Sequence[Sequence[int]]]
"""Of each run, of each step, the positions that it settled."""

_LEFT_TO_RIGHT, _RANDOM = "left to right (reference)", "random order (expected)"
_EACH_RANDOM = "random order (expected), in its colour"
_ALIKE = 0.005
"""Shares that no eye tells apart in a panel: random orders that differ by no more are one line."""


def ar_ness_curves(
    local: Sequence[Curve],
    global_: Sequence[Curve],
    *,
    shapes: Sequence[Shape | int] | Mapping[str, Sequence[Shape | int]] = (),
    reading: Literal["sequence", "set"] = "sequence",
    over: Literal["defined", "all"] = "defined",
    title: str = "",
    width: Width = "page",
) -> "Figure":
    """Local and global AR-ness@k over k; a label is the same series in both.

    `shapes` say how many positions each step of each run settled (a number n: n steps of one); with them the value that
    a random order has is drawn, for the `reading` and the denominator (`over`) that the curves were made with. Given by
    label, series whose random orders differ have one each, dotted, in the colour of the series.
    """
    check_curves([*local], "local AR-ness")
    check_curves([*global_], "global AR-ness")
    labels = list(dict.fromkeys(curve.label for curve in [*local, *global_]))
    by_label = shapes if isinstance(shapes, Mapping) else {"": shapes}
    together = [shape for given in by_label.values() for shape in given]
    settled = [shape if isinstance(shape, int) else shape.num_settled for shape in together]
    in_order: dict[str, Callable[[int], float]] = {
        "local": lambda k: 1.0 if over == "defined" else _mean([(n - k) / n for n in settled if n > k]),
        "global": lambda k: 1.0,
    }
    by_chance: dict[str, Callable[[Sequence[Shape | int], int], float]] = {
        "local": lambda given, k: random_local(given, k, reading=reading, over=over),
        "global": random_global,
    }
    with styled():
        shape = {"columns": 2} if width == "page" else {"rows": 2}
        figure, both = panels(width=width, height=2.2 if width == "page" else 3.6, title=title, **shape)
        entries: dict[str, Artist] = {}
        for axes, curves, name in zip(both, (local, global_), in_order, strict=True):
            for curve in curves:
                entries[curve.label] = line(axes, curve, at=labels.index(curve.label))
            ks = sorted({int(x) for curve in curves for x, *_ in curve.points})
            if drawn := _reference(axes, [in_order[name](k) for k in ks], ks, linestyle="-"):
                entries[_LEFT_TO_RIGHT] = drawn
            chances = {label: [by_chance[name](given, k) for k in ks] for label, given in by_label.items()}
            if not _are_alike(chances.values()):
                for label, shares in chances.items():
                    if drawn := _reference(
                        axes, shares, ks, linestyle=":", color=COLOURS[labels.index(label) % len(COLOURS)]
                    ):
                        entries.setdefault(_EACH_RANDOM, drawn)
            elif drawn := _reference(axes, [by_chance[name](together, k) for k in ks], ks, linestyle=":"):
                entries[_RANDOM] = drawn
            axes.set_xticks(ks)
            axes.set_xlim(0.6, ks[-1] + 0.4)
            axes.set_ylim(-0.03, 1.06)
            axes.set_xlabel("k (positions)")
            sets = ", as sets" if reading == "set" and name == "local" else ""
            axes.set_ylabel(f"{name} AR-ness@k (share{sets}{', of all steps' if over == 'all' else ''})")
        shown = [*labels, *(called for called in (_LEFT_TO_RIGHT, _RANDOM, _EACH_RANDOM) if called in entries)]
        legend(figure, {label: entries[label] for label in shown})
    return figure


def _reference(
    axes: "Axes", shares: Sequence[float], ks: Sequence[int], *, linestyle: str, color: str = "0.45"
) -> "Artist | None":
    """A line over the k that have a value; None where none has."""
    found = [(k, share) for k, share in zip(ks, shares, strict=True) if isfinite(share)]
    if not found:
        return None
    x: list[float] = [k for k, _ in found]
    y = [share for _, share in found]
    if len(set(y)) == 1:
        x, y = [0.6, ks[-1] + 0.4], [y[0], y[0]]  # from side to side
    (drawn,) = axes.plot(x, y, color=color, linewidth=1, linestyle=linestyle)
    return drawn


def _are_alike(curves: Iterable[Sequence[float]]) -> bool:
    """Whether values at the same k lie so close that one line stands for all."""
    return all(
        max(finite) - min(finite) <= _ALIKE
        for values in zip(*curves, strict=True)
        if (finite := [value for value in values if isfinite(value)])
    )


def order_map(runs: Mapping[str, Runs], *, bins: int = 64, title: str = "", width: Width | None = None) -> "Figure":
    """When each place was settled: step to the right, position upwards, one panel per label, one shade for all.

    A shade is the share of the tokens at a position that was settled in a step; over many runs it is their mean. Runs
    that differ in steps or length are laid over each other by per cent of the run, and so are all panels then.
    """
    check_labels(list(runs), "the order map")
    grids = {label: settled_grid(given, bins=bins) for label, given in runs.items()}
    is_exact = len({(grid.num_steps, grid.num_positions) for grid in grids.values()}) == 1 and all(
        grid.num_steps for grid in grids.values()
    )
    cells = [cell for grid in grids.values() for row in grid.cells for cell in row]
    width = width or ("page" if len(grids) > 1 else "column")
    with styled():
        import matplotlib
        from matplotlib.colors import PowerNorm
        from matplotlib.patches import Patch

        columns = min(len(grids), 3 if width == "page" else 1)
        rows = -(-len(grids) // columns)
        figure, every = panels(
            width=width, height=2.1 * rows + 0.2, columns=columns, rows=rows, title=title, sharex=True, sharey=True
        )
        headings = [wrapped(label, WIDTHS[width] / columns - 0.4) if label else [] for label in grids]
        for row in range(rows):
            grow(figure, max(map(len, headings[row * columns : (row + 1) * columns])))
        used, unused = every[: len(grids)], every[len(grids) :]
        for axes in unused:
            axes.remove()
        shades = matplotlib.colormaps["Blues"].with_extremes(bad="0.85")
        norm = PowerNorm(0.5, vmin=0.0, vmax=max(filter(isfinite, cells)))  # the faint ones are most of a map
        for axes, heading, grid in zip(used, headings, grids.values(), strict=True):
            image, diagonal = _panel(axes, grid, is_exact=is_exact, norm=norm, cmap=shades)
            axes.set_title("\n".join(heading))
            axes.label_outer()
        for lowest in used[-columns:]:  # in the last row, and above a place that stays empty
            lowest.xaxis.set_tick_params(labelbottom=True)
            lowest.set_xlabel(_step_label(is_exact))
        entries: dict[str, Artist] = {"left to right, evenly": diagonal}
        if all(cell in (0.0, 1.0) for cell in cells if isfinite(cell)):
            entries["settled"] = Patch(facecolor=shades(1.0))
        else:
            bar = figure.colorbar(image, ax=used, pad=0.02)
            bar.set_label("tokens there settled\nin that step (%)")
            in_percent(bar.ax.yaxis)
        if not all(map(isfinite, cells)):
            entries["nothing settled there"] = Patch(facecolor="0.85")
        legend(figure, entries)
    return figure


def _panel(
    axes: "Axes", grid: "Grid", *, is_exact: bool, norm: "Normalize", cmap: "Colormap"
) -> "tuple[AxesImage, Artist]":
    from matplotlib.patheffects import Normal, Stroke

    across, up = (grid.num_steps, grid.num_positions) if is_exact else (100, 100)
    start = 0.5 if is_exact else 0.0  # the first step is from 0.5 to 1.5
    x, y = (start, across + start), (start, up + start)
    image = axes.imshow(
        grid.cells, origin="lower", aspect="auto", interpolation="none", cmap=cmap, norm=norm, extent=(*x, *y)
    )
    halo = [Stroke(linewidth=2.4, foreground="white"), Normal()]  # seen on every shade
    (diagonal,) = axes.plot(x, y, color="black", linewidth=1, linestyle="--", path_effects=halo)
    axes.grid(False)
    in_whole_numbers(axes.xaxis)
    in_whole_numbers(axes.yaxis)
    axes.set_xlabel(_step_label(is_exact))
    axes.set_ylabel("position in the answer" if is_exact else "position (% of the answer)")
    return image, diagonal


def _step_label(is_exact: bool) -> str:
    return "step" if is_exact else "step (% of the run)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """`cells[position][step]`: the share of a position's tokens that a step settled; NaN where there is no token.

    `num_steps` and `num_positions` are those of the runs, or 0 where runs differ in them.
    """

    cells: list[list[float]]
    num_steps: int
    num_positions: int


def settled_grid(runs: Runs, *, bins: int = 64) -> Grid:
    """Lay runs over each other, in at most `bins` places each way; a token that lies across several is divided.

    >>> settled_grid([[[5], [6, 7]]]).cells
    [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    if bins < 1:
        raise SettingsError(f"an order map of {bins} × {bins} places has nothing to show; give at least 1")
    found = [(run, [position for step in run for position in step]) for run in runs]
    spans = [(run, min(places), max(places) - min(places) + 1) for run, places in found if places]
    if not spans:
        raise NothingToDraw(
            "there is nothing to draw: none of the runs of the order map settled a token; give a run that did"
        )
    across, up = min(bins, max(len(run) for run, *_ in spans)), min(bins, max(length for *_, length in spans))
    cells = [[0.0] * across for _ in range(up)]
    for run, first, length in spans:
        rows = [_overlaps(at, length, up) for at in range(length)]
        for number, step in enumerate(run):
            columns = _overlaps(number, len(run), across)
            for position in step:
                for row, part in rows[position - first]:
                    for column, share in columns:
                        cells[row][column] += part * share * up / length  # each run counts alike
    whole = [sum(row) for row in cells]
    exact = {(len(run), length) for run, _, length in spans}
    steps, positions = exact.pop() if len(exact) == 1 else (0, 0)
    return Grid(
        cells=[[cell / total if total else nan for cell in row] for row, total in zip(cells, whole, strict=True)],
        num_steps=steps,
        num_positions=positions,
    )


def _overlaps(at: int, count: int, bins: int) -> list[tuple[int, float]]:
    """The bins that the `at`-th of `count` equal parts lies in, and how much of it lies in each."""
    found = []
    for into in range(at * bins // count, ((at + 1) * bins - 1) // count + 1):
        inside = min((at + 1) * bins, (into + 1) * count) - max(at * bins, into * count)  # in 1 / (count × bins)
        found.append((into, inside / bins))
    return found


def entropy_sink(curves: Sequence[Curve], *, title: str = "", width: Width = "column") -> "Figure":
    """How sure the network is in the first step, by how far behind the prompt a position lies (1 is next to it)."""
    check_curves(curves, "the entropy sink", are_shares=True)
    with styled():
        figure, (axes,) = panels(width=width, height=2.1, title=title)
        farthest = max(len(curve.points) for curve in curves)
        every = max(1, farthest // 12)
        drawn = {curve.label: line(axes, curve, at=at, every=every) for at, curve in enumerate(curves)}
        in_whole_numbers(axes.xaxis)
        axes.set_xlabel("distance from the prompt (tokens)")
        axes.set_ylabel("confidence in the first step (%)")
        axes.set_ylim(-0.03, 1.03)
        in_percent(axes.yaxis)
        legend(figure, drawn)
    return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan
