"""Settle times by syntax class, pass@k against temperature, speed against quality."""

from math import nan

import pytest

from unmask.view.figures import Curve
from unmask.view.figures_score import Bars, pass_at_k_curves, settle_times, speed_quality

pytest.importorskip("matplotlib", reason="figures need the extra `plots`")

NAMES = ("keyword", "bracket", "name", "comment")


def test_settle_times_are_bars_with_the_earliest_class_on_top() -> None:
    series = Bars(label="a", names=NAMES, values=(0.5, 0.125, 0.25, nan), counts=(1200, 3, 40, 0))
    (axes,) = settle_times([series]).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["bracket (3)", "name (40)", "keyword (1,200)"]
    assert [bar.get_width() for bar in axes.patches] == [0.125, 0.25, 0.5]
    assert axes.yaxis.get_inverted()
    assert [text.get_text() for text in axes.texts] == ["12", "25", "50"]
    assert axes.get_xlabel() == "settled at (% of the run)"
    assert axes.get_ylabel() == "syntax class (tokens)"


def test_settle_times_carry_their_intervals_where_they_are_known() -> None:
    series = Bars(label="a", names=NAMES[:2], values=(0.5, 0.125), low=(0.25, nan), high=(0.625, nan))
    (axes,) = settle_times([series]).axes
    (segments,) = [each.get_segments()[0] for each in axes.collections]
    assert (segments[0][0], segments[1][0]) == (0.25, 0.625)
    assert axes.get_ylabel() == "syntax class"


def test_settle_times_of_two_series_differ_by_hatch_and_are_named() -> None:
    one = Bars(label="a", names=NAMES[:2], values=(0.5, 0.25), counts=(2, 3))
    two = Bars(label="b", names=NAMES[1:3], values=(0.75, 0.125), counts=(4, 5))
    figure = settle_times([one, two])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["name (5)", "keyword (2)", "bracket (7)"]
    assert len(axes.patches) == 4
    assert len({bar.get_hatch() for bar in axes.patches}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert len({round(bar.get_y(), 6) for bar in axes.patches}) == 4  # none before another


def test_pass_at_k_is_drawn_over_the_temperatures_that_were_tried() -> None:
    tried = [0.0, 0.2, 0.5, 1.0]
    (axes,) = pass_at_k_curves([Curve(label="pass@1", x=tried, y=[0.5, 0.75, 0.25, 0.0])]).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.2", "0.5", "1"]
    assert list(axes.lines[0].get_ydata()) == [0.5, 0.75, 0.25, 0.0]
    assert axes.get_xlabel() == "temperature"
    assert axes.get_ylabel() == "tasks solved, pass@k (%)"
    low, high = axes.get_ylim()
    assert -0.1 < low < 0
    assert 0.75 < high < 1.0


def test_temperatures_that_lie_too_close_are_not_written_over_each_other() -> None:
    (axes,) = pass_at_k_curves([Curve(label="a", x=[0, 0.01, 1.0], y=[0.5, 0.5, 0.5])]).axes
    assert 0.01 not in axes.get_xticks()


def test_speed_against_quality_shows_every_point_and_interval() -> None:
    quality = [
        Curve(label="a", x=[16, 256], y=[0.5, 0.7], low=[0.4, 0.6], high=[0.6, 0.85]),
        Curve(label="b", x=[16, 256], y=[0.45, 0.65], low=[0.3, 0.6], high=[0.5, 0.7]),
    ]
    (axes,) = speed_quality(quality).axes
    assert axes.get_xscale() == "log"
    assert axes.xaxis.get_major_formatter()(64, 0) == "64"
    assert axes.get_xlim()[0] < 16 < 256 < axes.get_xlim()[1]
    assert axes.get_ylim()[0] < 0.3 < 0.85 < axes.get_ylim()[1]
    assert [list(each.get_xdata()) for each in axes.lines if len(each.get_xdata()) == 2] == [[16, 256], [16, 256]]
    assert axes.get_xlabel() == "forwards per answer"
    assert axes.get_ylabel() == "tasks solved, pass@1 (%)"


def test_bars_at_equal_forwards_stand_beside_each_other_on_the_page_alone() -> None:
    quality = [Curve(label=label, x=[16.0], y=[0.5], low=[0.4], high=[0.6]) for label in "ab"]
    figure = speed_quality(quality)
    axes = figure.axes[0]
    first, second = (each for each in axes.lines if each.get_marker() in ("o", "s"))
    apart = second.get_transform().transform((16, 0.5)) - first.get_transform().transform((16, 0.5))
    assert apart == pytest.approx((2.5 / 72 * figure.dpi, 0))
    assert axes.get_xscale() == "linear"
    unlike = speed_quality([Curve(label="a", x=[16.0], y=[0.5]), Curve(label="b", x=[17.0], y=[0.5])])
    (line,) = (each for each in unlike.axes[0].lines if each.get_marker() == "s")
    assert line.get_transform().transform((17, 0.5)) == pytest.approx(unlike.axes[0].transData.transform((17, 0.5)))


def test_an_interval_need_not_lie_about_its_value() -> None:
    (axes,) = speed_quality([Curve(label="a", x=[8], y=[0.5], low=[0.5], high=[0.75])]).axes
    assert tuple(axes.collections[0].get_segments()[0][:, 1]) == (0.5, 0.75)
