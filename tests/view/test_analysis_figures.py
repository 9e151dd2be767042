"""From evaluations to curves: one for each setting of the axes that are not drawn."""

from dataclasses import replace
from itertools import product
from typing import Any

from unmask.evaluate.result import CellResult, Cost, Result
from unmask.view.analysis_figures import speed_curves, temperature_curves


def cell(score: float, *, forwards: float = 8, **settings: Any) -> CellResult:
    return CellResult(
        name=str(settings),
        settings=settings,
        num_samples=1,
        num_tasks_judged=1,
        pass_at_k={"1": score},
        intervals={"1": (score, score)},
        cost=Cost(num_forwards=forwards),
    )


def result(*cells: CellResult) -> Result:
    return Result(benchmark="b", version="1", model="m", num_tasks=1, n=1, seed=0, cells=cells)


GRID = result(*(cell(t / 100 + s, forwards=s, temperature=t, steps=s) for t, s in product((0.2, 1.0), (0, 1))))


def test_each_number_of_steps_has_its_curve_over_the_temperature() -> None:
    curves = temperature_curves([(GRID, "x")])
    assert [(one.label, list(one.x), list(one.y)) for one in curves] == [
        ("pass@1, steps=0", [0.2, 1.0], [0.002, 0.01]),
        ("pass@1, steps=1", [0.2, 1.0], [1.002, 1.01]),
    ]
    both = temperature_curves([(GRID, "x"), (GRID, "y")])
    assert len({one.label for one in both}) == 4
    one = replace(GRID, cells=GRID.cells[::2])
    assert [found.label for found in temperature_curves([(one, "x")])] == ["pass@1"]


def test_each_temperature_has_its_curve_over_the_forwards() -> None:
    cells = [cell(0.5, forwards=s, temperature=t, steps=s) for t, s in product((0.2, 1.0), (4, 8))]
    curves = speed_curves([(result(*cells), "x")])
    assert [(one.label, list(one.x)) for one in curves] == [("temperature=0.2", [4, 8]), ("temperature=1.0", [4, 8])]


def test_thresholds_that_set_the_forwards_make_the_figure_too() -> None:
    fast, slow = (result(cell(0.5, forwards=f, policy="threshold", threshold=t)) for f, t in ((4, 0.5), (8, 0.9)))
    assert [(one.label, list(one.x)) for one in speed_curves([(fast, "fast"), (slow, "slow")])] == [
        ("fast", [4]),
        ("slow", [8]),
    ]
    assert speed_curves([(fast, "x")]) == []
