"""What all figures share: files, labels, the style, room for long names, and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from unmask.errors import SettingsError
from unmask.view.figures import COLOURS, DASHES, HATCHES, MARKERS, Curve, panels, save, styled, wrapped
from unmask.view.figures_order import ar_ness_curves, entropy_sink, order_map
from unmask.view.figures_score import Bars, pass_at_k_curves, settle_times, speed_quality

matplotlib = pytest.importorskip("matplotlib", reason="figures need the extra `plots`")

LABELS = ["tiny, T 0.2", "tiny, T 1.0"]
LONG = [
    f"some-organisation/DiffuCoder-7B-cpGRPO-of-a-very-long-name, temperature {t}, 256 steps, block 32"
    for t in range(6)
]


def curve(label: str, at: int = 0, *, points: int = 4) -> Curve:
    y = [0.8 - 0.1 * i - 0.05 * at for i in range(points)]
    x = [float(2**i) for i in range(points)]
    return Curve(label=label, x=x, y=y, low=[v - 0.05 for v in y], high=[v + 0.05 for v in y])


def curves(labels: list[str]) -> list[Curve]:
    return [curve(label, at) for at, label in enumerate(labels)]


def bars(labels: list[str]) -> list[Bars]:
    names = ("keyword", "bracket", "name")
    values = (0.5, 0.125, 0.25)
    return [
        Bars(label=label, names=names, values=values, low=(0.4, 0.1, 0.2), high=(0.6, 0.2, 1.0), counts=(1200, 3, 40))
        for label in labels
    ]


FIGURES: dict[str, Callable[[list[str]], Any]] = {
    "ar_ness": lambda labels: ar_ness_curves(curves(labels), curves(labels), shapes=[9, 12], title="by position"),
    "ar_ness_column": lambda labels: ar_ness_curves(curves(labels), curves(labels), shapes=[9], width="column"),
    "order_map": lambda labels: order_map({label: [[[1], [3, 2]], [[3], [1]]] for label in labels}),
    "entropy_sink": lambda labels: entropy_sink(curves(labels)),
    "settle_times": lambda labels: settle_times(bars(labels)),
    "pass_at_k": lambda labels: pass_at_k_curves(curves(labels), title="HumanEval"),
    "speed_quality": lambda labels: speed_quality(curves(labels)),
}
EACH = pytest.mark.parametrize("name", FIGURES)


def texts(path: Path) -> str:
    """All text of an SVG, one line each, words that were broken over lines joined by a blank."""
    tag = "{http://www.w3.org/2000/svg}text"
    return "\n".join("".join(element.itertext()) for element in ElementTree.parse(path).iter(tag))


@pytest.mark.parametrize("name", sorted(FIGURES.keys() - {"ar_ness_column"}))
def test_an_svg_holds_its_labels_as_text_and_the_same_figure_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    for file in ("one.svg", "two.svg"):
        save(FIGURES[name](LABELS), tmp_path / file)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    found = texts(tmp_path / "one.svg")
    for label in LABELS:
        assert label in found
    assert "(" in found or "step" in found  # units
    assert "<dc:date>" not in (tmp_path / "one.svg").read_text()


@EACH
@pytest.mark.parametrize("labels", [["a"], LONG], ids=["short", "six long names"])
def test_nothing_is_cut_off_or_covered_and_no_text_is_under_seven_points(name: str, labels: list[str]) -> None:
    from matplotlib.text import Text

    figure = FIGURES[name](labels)
    with styled():
        figure.draw_without_rendering()
    places = [axes.get_tightbbox() for axes in figure.axes]  # with the labels of axes and ticks
    places += [part.get_window_extent() for part in [*figure.legends, *filter(None, [figure._suptitle])]]
    for place in places:
        assert figure.bbox.x0 - 1 <= place.x0 < place.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= place.y0 < place.y1 <= figure.bbox.y1 + 1
    for one, other in combinations(places, 2):
        assert not one.overlaps(other)
    for axes in figure.axes[: 1 if name != "order_map" else len(labels)]:
        assert min(axes.get_window_extent().size) > 60
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7


def test_a_png_is_as_wide_as_a_column_and_replaces_the_file_before_it(tmp_path: Path) -> None:
    path = tmp_path / "figure.PNG"
    path.write_text("old")
    save(entropy_sink(curves(LABELS)), path, dpi=100)
    header = path.read_bytes()[:24]
    assert header[1:4] == b"PNG"
    assert int.from_bytes(header[16:20], "big") == 330
    assert [each.name for each in tmp_path.iterdir()] == ["figure.PNG"]


@pytest.mark.parametrize("label", ["$x_1$ of $y$", "_hidden", "a<b>&c", "模型"])
def test_a_label_is_drawn_as_it_is(label: str, tmp_path: Path) -> None:
    save(entropy_sink(curves([label])), tmp_path / "a.svg")
    assert label in texts(tmp_path / "a.svg")


def test_control_characters_of_a_label_are_made_visible(tmp_path: Path) -> None:
    save(entropy_sink(curves(["a\x1b\x00b"])), tmp_path / "a.svg")
    assert "a␛␀b" in texts(tmp_path / "a.svg")


def test_a_letter_that_the_font_lacks_is_no_warning_in_png(tmp_path: Path) -> None:
    save(entropy_sink(curves(["模型"])), tmp_path / "a.png", dpi=50)


def test_the_readers_own_style_is_neither_heard_nor_changed(tmp_path: Path) -> None:
    save(entropy_sink(curves(LABELS)), tmp_path / "plain.svg")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        save(entropy_sink(curves(LABELS)), tmp_path / "styled.svg")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "styled.svg").read_bytes()


def test_importing_a_figure_module_imports_no_matplotlib_and_drawing_no_pyplot(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from unmask.view import figures, figures_order, figures_score\n"
        "assert not {'matplotlib', 'numpy', 'torch'} & set(sys.modules), 'imported at once'\n"
        "figure = figures_order.entropy_sink([figures.Curve(label='a', x=[1], y=[0.5])])\n"
        f"figures.save(figure, {str(tmp_path / 'a.svg')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"HOME": str(tmp_path)})


def test_series_differ_in_more_than_colour() -> None:
    looks = [(at % len(COLOURS), at % len(MARKERS), at % len(DASHES)) for at in range(280)]
    assert len(set(looks)) == 280
    assert len({(marker, dashes) for _, marker, dashes in looks[:40]}) == 40
    assert len(set(HATCHES)) == len(HATCHES) == len(COLOURS)


def test_a_long_name_without_a_break_is_broken_anywhere() -> None:
    assert wrapped("x" * 40, 1.0) == ["x" * 16, "x" * 16, "x" * 8]
    assert wrapped("", 1.0) == [""]
    assert wrapped("模" * 10, 1.0) == ["模" * 8, "模" * 2]


def test_points_that_are_no_numbers_are_left_out_and_the_rest_rises_in_x() -> None:
    given = Curve(label="a", x=[3, 1, 2], y=[0.3, 0.1, nan], low=[nan, 0.0, 0.1], high=[0.4, 0.2, 0.3])
    assert [point[:2] for point in given.points] == [(1, 0.1), (3, 0.3)]
    assert isnan(given.points[1][2])
    axes = entropy_sink([given]).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 3]
    assert list(axes.lines[0].get_ydata()) == [0.1, 0.3]


@pytest.mark.parametrize("draw", [entropy_sink, pass_at_k_curves, speed_quality])
def test_a_single_point_is_drawn_with_its_interval(draw: Callable[[list[Curve]], Any], tmp_path: Path) -> None:
    figure = draw([Curve(label="a", x=[2], y=[0.5], low=[0.25], high=[0.875])])
    axes = figure.axes[0]
    assert list(axes.lines[0].get_ydata()) == [0.5]
    assert tuple(axes.collections[0].get_segments()[0][:, 1]) == (0.25, 0.875)
    assert axes.get_ylim()[0] < 0.25 < 0.875 < axes.get_ylim()[1]
    assert axes.get_xlim()[0] < 2 < axes.get_xlim()[1]
    save(figure, tmp_path / "a.svg")


def test_a_band_spans_the_intervals() -> None:
    axes = entropy_sink(curves(["a"])).axes[0]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (min(heights), max(heights)) == pytest.approx((0.45, 0.85))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: entropy_sink([]), "there is nothing to draw: the entropy sink was given no series; give at least one"),
        (lambda: pass_at_k_curves([]), "pass@k was given no series"),
        (lambda: speed_quality([]), "speed against quality was given no series"),
        (lambda: ar_ness_curves([], curves(["a"])), "local AR-ness was given no series"),
        (lambda: ar_ness_curves(curves(["a"]), []), "global AR-ness was given no series"),
        (lambda: settle_times([]), "settle times was given no series"),
        (lambda: order_map({}), "the order map was given no series"),
        (lambda: order_map({"a": [[], [[], []]]}), "none of the runs of the order map settled a token"),
        (
            lambda: order_map({"a": [[[1]]]}, bins=0),
            "an order map of 0 × 0 places has nothing to show; give at least 1",
        ),
        (lambda: entropy_sink([Curve(label="a", x=[1], y=[nan])]), "no series of the entropy sink has a point that is"),
        (lambda: settle_times([Bars(label="a", names=["name"], values=[nan])]), "no syntax class has a settle time"),
        (lambda: pass_at_k_curves(curves(["a", "a"])), "two series of pass@k are called 'a', and no reader could"),
        (lambda: pass_at_k_curves([Curve(label="a", x=[1], y=[72.5])]), "'a' has the value 72.5, which is no share"),
        (lambda: settle_times([Bars(label="a", names=["name"], values=[41])]), "divide per cent by 100"),
        (lambda: speed_quality([Curve(label="a", x=[0], y=[0.5])]), "is said to have taken 0 forwards"),
        (lambda: Curve(label="a", x=[1, 2], y=[1]), "'a' has 2 x, 1 y; each point needs one of each, so give as many"),
        (lambda: Curve(label="a", x=[1], y=[1], low=[0]), "'a' has 1 x, 1 y, 1 low, 0 high"),
        (lambda: Bars(label="a", names=["b"], values=[1], counts=[1, 2]), "'a' has 1 names, 1 values, 2 counts"),
        (lambda: entropy_sink(curves(["a"]), width="colum"), "'colum' is no width of a figure; did you mean column?"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        call()
    assert words in str(error.value)


def test_a_file_of_another_kind_is_refused_with_the_two_that_can_be(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        save(entropy_sink(curves(["a"])), tmp_path / "figure.pdf")
    assert str(error.value) == (
        f"{tmp_path}/figure.pdf is no figure's name: figures are written as SVG or PNG, and the ending says which; "
        f"give {tmp_path}/figure.svg or {tmp_path}/figure.png"
    )
    with pytest.raises(SettingsError, match=r"a figure needs a file's name that ends in \.svg or \.png; give one"):
        save(entropy_sink(curves(["a"])), "")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        save(entropy_sink(curves(["a"])), tmp_path / "none" / "a.svg")
    assert "a.svg (No such file or directory); make room, or give a file in a folder that exists" in str(error.value)


def test_a_figure_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    path.write_text("old")

    class Broken:
        def savefig(self, file: Any, **_: object) -> None:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(Broken(), path)  # type: ignore[arg-type]
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.svg", "old")]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingsError) as error:
        entropy_sink(curves(["a"]))
    assert 'install it with `pip install "unmask[plots]"`' in str(error.value)


def test_a_title_adds_height_and_takes_none_from_the_axes() -> None:
    with styled():
        plain, _ = panels(width="column", height=2.0)
        titled, _ = panels(width="column", height=2.0, title="word " * 40)
    assert plain.get_figheight() == 2.0
    assert titled.get_figheight() > 2.4
