"""The figures of analyses: what `figures_order` and `figures_score` draw, from measured groups."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.analyze.bootstrap import Mean
from unmask.analyze.groups import Analysis, RunGroup
from unmask.analyze.order import commit_steps
from unmask.evaluate.result import Result
from unmask.view.figures import Curve, save
from unmask.view.figures_order import ar_ness_curves, entropy_sink, order_map
from unmask.view.figures_score import Bars, pass_at_k_curves, settle_times, speed_quality

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(
    analyses: Sequence[Analysis],
    groups: Sequence[RunGroup],
    folder: Path,
    *,
    results: Sequence[Result] = (),
    suffix: str = ".svg",
) -> list[Path]:
    """Write every figure that the analyses have numbers for into `folder`, and name the files.

    `results` are evaluations of a grid: pass@k against the temperature where cells differ in it, pass@1 against the
    forwards where there are several cells.
    """
    conventions = analyses[0].summary.conventions
    figures: dict[str, Callable[[], Figure]] = {
        "ar-ness": lambda: ar_ness_curves(
            [curve(analysis.label, analysis.summary.local) for analysis in analyses],
            [curve(analysis.label, analysis.summary.global_) for analysis in analyses],
            lengths=[length for analysis in analyses for length in analysis.lengths],
            over=conventions.over,
        ),
        "order": lambda: order_map(
            {
                group.label: [steps for run in group.runs if any(steps := commit_steps(run, part=conventions.part))]
                for group in groups
            }
        ),
    }
    if sinks := [
        curve(analysis.label, {point.distance: point.confidence for point in analysis.sink.points})
        for analysis in analyses
        if analysis.sink is not None
    ]:
        figures["entropy-sink"] = lambda: entropy_sink(sinks)
    if bars := [_bars(analysis) for analysis in analyses if analysis.settle_times.rows]:
        figures["syntax"] = lambda: settle_times(bars)
    if warm := temperature_curves(results):
        figures["pass-at-k"] = lambda: pass_at_k_curves(warm)
    if speeds := _speeds(results):
        figures["speed-quality"] = lambda: speed_quality(speeds)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in figures.items():
        written.append(folder / f"{name}{suffix}")
        save(make(), written[-1])
    return written


def curve(label: str, means: Mapping[int, Mean]) -> Curve:
    """Means by k, or by distance, with their intervals."""
    return Curve(
        label=label,
        x=list(means),
        y=[mean.value for mean in means.values()],
        low=[mean.low for mean in means.values()],
        high=[mean.high for mean in means.values()],
    )


def temperature_curves(results: Sequence[Result]) -> list[Curve]:
    """pass@k over the temperature, one curve for each evaluation and k; none where only one temperature was run."""
    curves = []
    for result in results:
        cells = [cell for cell in result.cells if "temperature" in cell.settings]
        if len({cell.settings["temperature"] for cell in cells}) < 2:
            continue
        for k in cells[0].pass_at_k:
            label = f"pass@{k}" if len(results) == 1 else f"{result.model}: pass@{k}"
            curves.append(
                Curve(
                    label=label,
                    x=[cell.settings["temperature"] for cell in cells],
                    y=[cell.pass_at_k[k] for cell in cells],
                    low=[cell.intervals[k][0] for cell in cells],
                    high=[cell.intervals[k][1] for cell in cells],
                )
            )
    return curves


def _speeds(results: Sequence[Result]) -> list[Curve]:
    """pass@1 against the mean number of forwards, of evaluations with several cells that differ in it."""
    curves = []
    for result in results:
        cells = [(cell, cell.cost.num_forwards) for cell in result.cells if "1" in cell.pass_at_k]
        points = [(cell, forwards) for cell, forwards in cells if forwards]
        if len({cell.settings.get("steps") for cell, _ in points}) < 2:
            continue
        curves.append(
            Curve(
                label=result.model,
                x=[forwards for _, forwards in points],
                y=[cell.pass_at_k["1"] for cell, _ in points],
                low=[cell.intervals["1"][0] for cell, _ in points],
                high=[cell.intervals["1"][1] for cell, _ in points],
            )
        )
    return curves


def _bars(analysis: Analysis) -> Bars:
    rows = analysis.settle_times.rows
    return Bars(
        label=analysis.label,
        names=[row.name for row in rows],
        values=[row.settle_time.value for row in rows],
        low=[row.settle_time.low for row in rows],
        high=[row.settle_time.high for row in rows],
        counts=[row.num_tokens for row in rows],
    )
