"""AR-ness curves and their references, the order map, the entropy sink."""

from itertools import permutations
from math import isnan, nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.analyze.random_order import Shape
from unmask.view.figures import Curve
from unmask.view.figures_order import (
    ar_ness_curves,
    entropy_sink,
    order_map,
    random_global,
    random_local,
    settled_grid,
)

pytest.importorskip("matplotlib", reason="figures need the extra `plots`")


def slow_local(order: tuple[int, ...], k: int, reading: str) -> float:
    hits = 0
    for t in range(k, len(order)):
        before, meant = list(order[t - k : t]), list(range(order[t] - k, order[t]))
        hits += (before if reading == "sequence" else sorted(before)) == meant
    return hits / (len(order) - k)


def slow_global(order: tuple[int, ...], k: int) -> float:
    return sum(p in sorted(order[t:])[:k] for t, p in enumerate(order)) / len(order)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_random_order_is_the_mean_over_all_orders(k: int) -> None:
    orders = list(permutations(range(5)))
    for reading in ("sequence", "set"):
        mean = sum(slow_local(order, k, reading) for order in orders) / len(orders)
        assert random_local([5], k, reading=reading) == pytest.approx(mean)  # type: ignore[arg-type]
        assert random_local([5], k, reading=reading, over="all") == pytest.approx(mean * (5 - k) / 5)  # type: ignore[arg-type]
    assert random_global([5], k) == pytest.approx(sum(slow_global(order, k) for order in orders) / len(orders))


def test_the_random_order_of_several_runs_is_their_mean_over_those_that_are_long_enough() -> None:
    assert random_local([2, 4], 1) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert random_local([2, 4], 2) == random_local([4], 2)
    assert random_global([2, 4], 1) == pytest.approx((random_global([2], 1) + random_global([4], 1)) / 2)
    assert isnan(random_local([2], 5))
    assert isnan(random_global([], 1))


def ar_ness(**options: Any) -> Any:
    local = [Curve(label="a", x=[1, 2], y=[0.8, 0.6]), Curve(label="b", x=[1, 2], y=[0.7, nan])]
    return ar_ness_curves(local, [Curve(label="b", x=[1, 2], y=[0.9, 1.0])], **options)


def lines(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(each.get_xdata()), list(each.get_ydata())) for each in axes.lines]


def test_ar_ness_is_drawn_over_k_beside_both_references() -> None:
    local, global_ = ar_ness(shapes=[4, 4]).axes
    assert lines(local)[:2] == [([1, 2], [0.8, 0.6]), ([1], [0.7])]
    assert lines(local)[2][1] == [1.0, 1.0]
    assert lines(local)[3] == ([1, 2], [0.25, 1 / 12])
    assert lines(global_)[0] == ([1, 2], [0.9, 1.0])
    assert lines(global_)[2] == ([1, 2], [random_global([4], 1), random_global([4], 2)])
    assert local.get_ylabel() == "local AR-ness@k (share)"
    assert local.get_xlabel() == "k (positions)"


def test_a_label_looks_the_same_in_both_panels() -> None:
    local, global_ = ar_ness().axes
    assert local.lines[1].get_color() == global_.lines[0].get_color() != local.lines[0].get_color()
    assert local.lines[1].get_marker() == global_.lines[0].get_marker() != local.lines[0].get_marker()


def test_over_all_steps_a_left_to_right_run_is_below_one() -> None:
    local, _ = ar_ness(shapes=[4], over="all").axes
    assert lines(local)[2] == ([1, 2], [0.75, 0.5])
    without, _ = ar_ness(over="all").axes
    assert len(without.lines) == 2  # its height is not known


def names(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_each_series_once_and_the_references_last() -> None:
    assert names(ar_ness(shapes=[4])) == ["a", "b", "left to right (reference)", "random order (expected)"]
    assert names(ar_ness()) == ["a", "b", "left to right (reference)"]


def test_series_whose_random_orders_differ_have_one_each_in_their_colour() -> None:
    shapes = {"a": [Shape(sizes=(1, 1, 1, 1), num_open=4)], "b": [Shape(sizes=(2, 2), num_open=4)]}
    figure = ar_ness(shapes=shapes)
    local, _ = figure.axes
    dotted = [each for each in local.lines if each.get_linestyle() == ":"]
    assert [each.get_color() for each in dotted] == [each.get_color() for each in local.lines[:2]]
    assert [list(each.get_ydata()) for each in dotted] == [
        [random_local(given, k) for k in (1, 2)] for given in shapes.values()
    ]
    assert names(figure)[-1] == "random order (expected), in its colour"
    assert names(ar_ness(shapes={"a": [4], "b": [4]}))[-1] == "random order (expected)"


def test_an_order_map_of_one_run_is_exact_and_counts_from_one() -> None:
    figure = order_map({"": [[[7], [9, 8], []]]})
    (axes,) = figure.axes
    assert axes.images[0].get_array().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert list(axes.images[0].get_extent()) == [0.5, 3.5, 0.5, 3.5]
    assert axes.get_xlabel() == "step"
    assert names(figure) == ["left to right, evenly", "settled"]


def test_an_order_map_of_many_runs_is_their_mean_with_a_scale() -> None:
    figure = order_map({"": [[[1], [2]], [[2], [1]], [[1], [2]], [[1], [2]]]})
    assert figure.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert figure.axes[1].get_ylabel() == "tokens there settled\nin that step (%)"


def test_runs_of_different_lengths_are_laid_over_each_other_by_per_cent() -> None:
    figure = order_map({"a": [[[1], [2]]], "b": [[[1], [2], [3], [4]]]})
    first, second, *_ = figure.axes
    assert list(first.images[0].get_extent()) == list(second.images[0].get_extent()) == [0, 100, 0, 100]
    assert second.get_xlabel() == "step (% of the run)"
    assert settled_grid([[[1], [2]], [[1], [2], [3], [4]]]).cells[0] == [0.75, 0.25, 0.0, 0.0]


def test_a_place_where_nothing_settled_is_marked() -> None:
    figure = order_map({"": [[[1], [3]]]})
    assert figure.axes[0].images[0].get_array().mask.tolist() == [[False, False], [True, True], [False, False]]
    assert names(figure)[-1] == "nothing settled there"


@pytest.mark.parametrize(("panels", "rows"), [(2, 1), (4, 2), (6, 2)])
def test_each_label_has_its_panel_and_steps_are_named_below_the_lowest(panels: int, rows: int) -> None:
    figure = order_map({f"run {i}": [[[1], [2]]] for i in range(panels)})
    assert [axes.get_title() for axes in figure.axes] == [f"run {i}" for i in range(panels)]
    assert [axes.get_xlabel() for axes in figure.axes[-min(panels, 3) :]] == ["step"] * min(panels, 3)
    assert figure.axes[0].get_subplotspec().get_gridspec().nrows == rows


@st.composite
def orders(draw: st.DrawFn) -> list[list[list[int]]]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        order = draw(st.permutations(range(draw(st.integers(1, 9)))))
        cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=5)))
        first = draw(st.integers(0, 50))
        found.append([[first + p for p in order[a:b]] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)])
    return found


@given(orders(), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_each_position_is_shared_out_once_however_it_is_binned(runs: list[list[list[int]]], bins: int) -> None:
    """Against a slow version that cuts each token into fine parts and counts them."""
    grid = settled_grid(runs, bins=bins)
    across = min(bins, max(len(run) for run in runs))
    up = min(bins, max(sum(map(len, run)) for run in runs))
    slow = [[0.0] * across for _ in range(up)]
    for run in runs:
        first, length = min(p for step in run for p in step), sum(map(len, run))
        for number, step in enumerate(run):
            for position in step:
                for i in range(up):
                    for j in range(across):
                        slow[i][j] += overlap(i, up, position - first, length) * overlap(number, len(run), j, across)
    for row, meant in zip(grid.cells, slow, strict=True):
        assert sum(row) == pytest.approx(1)
        assert row == pytest.approx([cell / sum(meant) for cell in meant])


def overlap(at: int, count: int, into: int, bins: int) -> float:
    """How much of part `at` of `count` lies in part `into` of `bins`."""
    inside = min((at + 1) / count, (into + 1) / bins) - max(at / count, into / bins)
    return max(0.0, inside) * count


def test_the_sink_is_drawn_in_per_cent() -> None:
    (axes,) = entropy_sink([Curve(label="a", x=[1, 2], y=[0.9, 0.1])]).axes
    assert axes.get_ylabel() == "confidence in the first step (%)"
    assert axes.yaxis.get_major_formatter()(0.35, 0) == "35"
    assert axes.get_xlabel() == "distance from the prompt (tokens)"


def test_long_curves_carry_few_markers_that_stand_beside_each_other() -> None:
    x = list(range(1, 241))
    (axes,) = entropy_sink([Curve(label=label, x=x, y=[0.5] * 240) for label in "ab"]).axes
    assert [each.get_markevery() for each in axes.lines] == [(0, 20), (2, 20)]
