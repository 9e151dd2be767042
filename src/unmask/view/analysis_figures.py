"""The figures of analyses: what `figures_order` and `figures_score` draw, from measured groups."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.analyze.bootstrap import Mean
from unmask.analyze.groups import Analysis, RunGroup
from unmask.analyze.order import commit_steps
from unmask.decode.settings import ADAPTIVE_POLICIES
from unmask.evaluate.result import CellResult, Result
from unmask.view.figures import Curve, NothingToDraw, save
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
    names: Sequence[str] = (),
    suffix: str = ".svg",
    tell: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write every figure that the analyses have numbers for into `folder`, and name the files.

    `results` are evaluations, and `names` what they are called where there are several: pass@k is drawn against the
    temperature where cells differ in it, pass@1 against the forwards where cells differ in what sets these. All figures
    are made before one is written. `tell` hears which were left out.
    """
    called = [(result, names[at] if names else result.model) for at, result in enumerate(results)]
    conventions = analyses[0].summary.conventions
    figures: dict[str, Callable[[], Figure]] = {
        "ar-ness": lambda: ar_ness_curves(
            [curve(analysis.label, analysis.summary.local) for analysis in analyses],
            [curve(analysis.label, analysis.summary.global_) for analysis in analyses],
            shapes={analysis.label: analysis.shapes for analysis in analyses},
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
    if warm := temperature_curves(called):
        figures["pass-at-k"] = lambda: pass_at_k_curves(warm)
    if speeds := speed_curves(called):
        figures["speed-quality"] = lambda: speed_quality(speeds)
    made = {}
    for name, make in figures.items():
        try:
            made[folder / f"{name}{suffix}"] = make()
        except NothingToDraw as error:
            tell(f"no figure {name}: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    for path, figure in made.items():
        save(figure, path)
    return list(made)


def curve(label: str, means: Mapping[int, Mean]) -> Curve:
    """Means by k, or by distance, with their intervals."""
    return Curve(
        label=label,
        x=list(means),
        y=[mean.value for mean in means.values()],
        low=[mean.low for mean in means.values()],
        high=[mean.high for mean in means.values()],
    )


_AXES = ("temperature", "policy", "steps", "max_new_tokens", *ADAPTIVE_POLICIES)
"""Settings in which the cells of evaluations differ; others follow from these."""

_SPEED = ("steps", *ADAPTIVE_POLICIES)
"""Those of them that say how many places a step settles, and so how many forwards an answer takes."""

Called = tuple[Result, str]
"""An evaluation and its name."""


def temperature_curves(results: Sequence[Called]) -> list[Curve]:
    """pass@k over the temperature: a curve for each evaluation, each k, and each setting of the other axes; none where
    only one temperature was run."""
    curves = []
    for _, label, cells in _lines(results, over=("temperature",)):
        temperatures = [cell.settings["temperature"] for cell in cells if "temperature" in cell.settings]
        if len(set(temperatures)) > 1:
            for k in cells[0].pass_at_k:
                curves.append(_scores(f"pass@{k}, {label}" if label else f"pass@{k}", cells, temperatures, k))
    return curves


def speed_curves(results: Sequence[Called]) -> list[Curve]:
    """pass@1 against the mean number of forwards: a curve for each evaluation and each setting of what does not set it.

    None where all cells have the same speed, as their settings say it or as it was.
    """
    lines = [
        (result, label, known)
        for result, label, cells in _lines(results, over=_SPEED)
        if (known := [cell for cell in cells if "1" in cell.pass_at_k and cell.cost.num_forwards])
    ]
    cells = [cell for *_, known in lines for cell in known]
    asked = {tuple(cell.settings.get(name) for name in ("policy", *_SPEED)) for cell in cells}
    if len(asked) < 2 or len({cell.cost.num_forwards for cell in cells}) < 2:
        return []
    return [
        _scores(label or result.model, known, [cell.cost.num_forwards or 0.0 for cell in known], "1")
        for result, label, known in lines
    ]


def _lines(results: Sequence[Called], *, over: Sequence[str]) -> list[tuple[Result, str, list[CellResult]]]:
    """The cells that differ in nothing but `over`, with what sets them apart from the other lines."""
    lines: dict[tuple[int, tuple[object, ...]], list[CellResult]] = {}
    others = [name for name in _AXES if name not in over]
    for at, (result, _) in enumerate(results):
        for cell in result.cells:
            lines.setdefault((at, tuple(cell.settings.get(name) for name in others)), []).append(cell)
    differing = [name for i, name in enumerate(others) if len({values[i] for _, values in lines}) > 1]
    found = []
    for (at, values), cells in lines.items():
        result, name = results[at]
        chosen = dict(zip(others, values, strict=True))
        parts = [f"{one}={chosen[one]}" for one in differing if chosen[one] is not None]
        found.append((result, ", ".join([name, *parts] if len(results) > 1 else parts), cells))
    return found


def _scores(label: str, cells: Sequence[CellResult], x: Sequence[float], k: str) -> Curve:
    return Curve(
        label=label,
        x=x,
        y=[cell.pass_at_k[k] for cell in cells],
        low=[cell.intervals[k][0] for cell in cells],
        high=[cell.intervals[k][1] for cell in cells],
    )


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
