"""The figure of a run: what text stands where, that it needs no colour, and that it is XML whatever the text."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from unmask.errors import SettingsError, TrajectoryError
from unmask.trajectory import Commit, Step, Trajectory
from unmask.view.replay_svg import figure, spread

SVG = "{http://www.w3.org/2000/svg}"


def commits(*pairs: tuple[int, int], confidence: float = 0.95) -> Step:
    return Step(commits=[Commit(0, position, token, confidence, 0.1) for position, token in pairs])


def small(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "initial_ids": [1, *[None] * 4],
        "steps": [commits((2, 3)), commits((1, 2), confidence=0.3), commits((3, 4), (4, 5))],
        "model": "tiny",
        "end_ids": [5],
        "pieces": {1: "#\n", 2: "def", 3: " f", 4: "()\n日", 5: "<end>"},
    }
    return Trajectory(**{**fields, **changes})


def texts(drawn: str) -> list[tuple[str, str]]:
    """Each text with its looks, in the order of drawing."""
    return [(str(e.text), e.get("class", "")) for e in ET.fromstring(drawn).iter(f"{SVG}text")]


def headings(drawn: str) -> list[str]:
    return [text for text, look in texts(drawn) if look == "title"]


def test_five_steps_are_shown_or_all_of_a_shorter_run() -> None:
    assert headings(figure(small())) == [f"step {step} of 3" for step in range(4)]
    many = small(initial_ids=[None] * 20, steps=[commits((place, 2)) for place in range(20)])
    assert headings(figure(many)) == [f"step {step} of 20" for step in (0, 5, 10, 15, 20)]
    assert spread(0) == [0]


def test_a_chosen_step_is_shown_alone_with_its_states() -> None:
    drawn = texts(figure(small(), steps=[2]))
    assert drawn[:6] == [
        ("step 2 of 3", "title"),
        ("#", "dim"),
        ("def", "reverse"),
        (" f", ""),
        ("░░", ""),
        ("░ masked", ""),
    ]
    assert ("fair 50%+", "underline") in drawn
    assert ("unsure", "bold underline") in drawn


def test_the_box_of_a_new_token_in_the_legend_has_air_on_both_sides() -> None:
    drawn = figure(small(), steps=[0])
    assert (" new ", "reverse") in texts(drawn)


def test_a_doubtful_token_is_bold_and_underlined_once_it_is_no_longer_new() -> None:
    assert ("def", "bold underline") in texts(figure(small(), steps=[3]))


def test_what_is_new_stands_on_a_dark_ground_of_its_width() -> None:
    root = ET.fromstring(figure(small(), steps=[1]))
    (back, _legend) = [e for e in root.iter(f"{SVG}rect") if e.get("class") == "back"]
    (word,) = [e for e in root.iter(f"{SVG}text") if e.text == " f"]
    assert (back.get("x"), back.get("width")) == (word.get("x"), word.get("textLength"))


def test_a_stretch_is_as_wide_as_its_cells() -> None:
    (wide,) = [e for e in ET.fromstring(figure(small(), steps=[3])).iter(f"{SVG}text") if e.text == "日∎"]
    assert float(wide.get("textLength", 0)) == (2 + 1) * 8.0


@pytest.mark.parametrize("columns", [1, 3, 10, 40])
def test_no_line_is_wider_than_asked_for_and_the_figure_holds_all(columns: int) -> None:
    run = small(pieces={1: "x" * 30, 2: "y" * 30, 3: "z", 4: "w", 5: "e"})
    root = ET.fromstring(figure(run, columns=columns))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for text in root.iter(f"{SVG}text"):
        assert float(text.get("x", 0)) + float(text.get("textLength", 0)) <= width
        assert float(text.get("y", 0)) <= height
    longest = max(len(text) for text, look in texts(figure(run, columns=columns)) if set(text) <= set("xyz"))
    assert longest <= max(columns, 2)


def test_hostile_text_is_text_and_xml() -> None:
    piece = "</text><script>a&b</script>\x1b\x00\ufffe\udcff"
    drawn = figure(small(model="<b>\x1b", pieces={1: "#\n", 2: piece, 3: " f", 4: ")", 5: "e"}), steps=[2])
    root = ET.fromstring(drawn)
    assert not list(root.iter(f"{SVG}script"))
    assert "".join(text for text, look in texts(drawn) if look == "reverse").startswith("</text><script>a&b</script>␛␀")
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text == "<b>␛, 3 steps"


def test_the_figure_draws_on_white_without_colour() -> None:
    drawn = figure(small())
    for colour in re.findall(r"#([0-9a-f]{3,6})\b", drawn):
        assert len({colour[i : i + len(colour) // 3] for i in range(0, len(colour), len(colour) // 3)}) == 1


def test_a_step_that_the_run_lacks_and_no_columns_are_refused() -> None:
    with pytest.raises(TrajectoryError, match="step 4 was asked for, but this trajectory has 3 steps"):
        figure(small(), steps=[4])
    with pytest.raises(SettingsError, match="0 columns were asked for; a line holds at least 1 character"):
        figure(small(), columns=0)
