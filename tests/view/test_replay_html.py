"""The replay page as a file: what its data say about a run, how large it is, and what hostile text can do in it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unmask.trajectory import Commit, Step, Trajectory
from unmask.view.meter import FrameMeter
from unmask.view.replay_html import Cell, cells, data, page


def commits(*pairs: tuple[int, int], confidence: float = 0.9) -> Step:
    return Step(commits=[Commit(0, position, token, confidence, 0.1) for position, token in pairs])


def small(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "initial_ids": [1, None, None, None],
        "steps": [commits((2, 2)), commits((1, 3), (3, 4))],
        "model": "tiny",
        "settings": {"temperature": 0.5, "steps": None},
        "pieces": {1: "<user>", 2: "def", 3: " f", 4: "\n"},
        "num_forwards": 2,
        "finish_reason": "stop",
    }
    return Trajectory(**{**fields, **changes})


class Reader(HTMLParser):
    """The elements, and the texts in them."""

    def __init__(self, whole: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}
        self.policy = ""
        self._open = ""
        self.feed(whole)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self._open = str(named.get("id") or tag)
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(named["content"])

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data


@st.composite
def runs(draw: st.DrawFn) -> Trajectory:
    initial = draw(st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=6))
    length, steps = len(initial), []
    for _ in range(draw(st.integers(0, 5))):
        resized = []
        for _ in range(draw(st.integers(0, 2))):
            position = draw(st.integers(0, length))
            resized.append((position, draw(st.integers(position - length, 3))))
            length += resized[-1][1]
        places = st.lists(st.integers(0, length - 1), unique=True, max_size=4) if length else st.just([])
        step = commits(*((position, draw(st.integers(0, 9))) for position in draw(places)))
        steps.append(Step(commits=step.commits, remasked=draw(places), resized=resized))
    return Trajectory(initial_ids=initial, steps=steps)


def look(cell: Cell, step: int) -> tuple[int | None, bool, bool] | None:
    """Token, given, new: what a cell is at a step, from its own events alone; None where it is not there."""
    if cell.born > step or (cell.died is not None and step >= cell.died):
        return None
    events = [event for event in cell.events if event[0] <= step]
    if not events:
        return cell.token, cell.token is not None, False
    return events[-1][1], False, events[-1][0] == step and events[-1][1] is not None


@given(runs())
@settings(max_examples=100, deadline=None)
def test_the_cells_of_any_run_show_its_frames(run: Trajectory) -> None:
    every = cells(run)
    for frame in run.frames():
        shown = [seen for cell in every if (seen := look(cell, frame.step)) is not None]
        wanted = [(token, i in frame.given, i in frame.new) for i, token in enumerate(frame.ids)]
        assert shown == wanted


def test_an_event_says_what_the_model_thought() -> None:
    commit = Commit(0, 1, 3, 0.87654321, 0.5, ((2, 0.1), (4, 0.01)))
    run = small(steps=[Step(commits=[commit]), Step(remasked=[1])])
    assert cells(run)[1].events == [[1, 3, 0.8765, 0.5, [[2, 0.1], [4, 0.01]]], [2, None]]


@given(runs())
@example(
    Trajectory(initial_ids=[None, None], steps=[commits((0, 0), (1, 0)), Step(resized=[(0, -1)]), commits((0, 0))])
)
@settings(max_examples=30, deadline=None)
def test_ar_ness_is_at_each_step_what_the_live_meter_read_there(run: Trajectory) -> None:
    shown = data([run])["runs"][0]
    meter = FrameMeter(end_ids=run.end_ids)
    for frame, *drawn in zip(run.frames(), shown["local"], shown["global"], strict=True):
        meter.follow(frame)
        assert drawn == [None if value != value else pytest.approx(value, abs=1e-4) for value in meter.reading()]


def test_ar_ness_so_far_does_not_know_what_comes() -> None:
    """Places still open on the left count, and so the series of a part is the part of the series."""
    whole = small(initial_ids=[None] * 4, steps=[commits((2, 2)), commits((3, 3)), commits((0, 2)), commits((1, 3))])
    shown = data([whole])["runs"][0]
    assert shown["global"][2] == 0
    for step in range(5):
        part = data([small(initial_ids=[None] * 4, steps=whole.steps[:step])])["runs"][0]
        assert (part["local"], part["global"]) == (shown["local"][: step + 1], shown["global"][: step + 1])


def test_what_is_not_a_number_is_no_page() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        page([small(steps=[commits((1, 2), confidence=float("nan"))])])


def test_two_runs_tell_where_they_part() -> None:
    other = small(steps=[commits((2, 2)), commits((1, 4), (3, 4))])
    assert data([small(), other])["parts"] == 2
    assert data([small(), small()])["parts"] is None
    assert data([small(), small(initial_ids=[2, None, None, None])])["parts"] == 0
    assert data([small()])["parts"] is None


def test_the_header_names_model_settings_forwards_and_end() -> None:
    assert data([small()])["runs"][0]["facts"] == "tiny · temperature 0.5 · seed 0 · 2 forwards · finished: stop"
    assert data([small(finish_reason=None, num_forwards=1, sample=3)])["runs"][0]["facts"] == (
        "tiny · temperature 0.5 · seed 0 · sample 3 · 1 forward · finished: no"
    )


def test_the_policy_lets_in_this_script_and_this_style_and_nothing_else() -> None:
    read = Reader(page([small()]))
    allowed = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(read.texts[kind].encode()).digest()).decode()}'"
        for kind in ("style", "script")
    }
    assert read.policy == (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; base-uri 'none'"
    )
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page([small()]))


HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>"


def test_hostile_text_neither_ends_an_element_nor_opens_one() -> None:
    run = small(
        model=HOSTILE,
        settings={"mode": HOSTILE},
        pieces={1: HOSTILE, 2: "\x1b]0;t\x07", 3: "\u202e"},
        finish_reason="<b>",
    )
    calm, hostile = Reader(page([small()])), Reader(page([run], names=[HOSTILE]))
    assert hostile.tags == calm.tags
    assert "<" not in hostile.texts["data"]
    shown = json.loads(hostile.texts["data"])["runs"][0]
    assert shown["pieces"] == {"1": HOSTILE, "2": "␛]0;t␇", "3": "\ufffd"}
    assert (shown["name"], shown["facts"].count(HOSTILE)) == (HOSTILE, 2)


def test_bytes_that_are_no_text_stay_bytes() -> None:
    shown = data([small(pieces={1: "日", 2: "a\udce6\udc97", 3: "\udca5"})])["runs"][0]["pieces"]
    assert shown == {1: "日", 2: {"bytes": "61e697"}, 3: {"bytes": "a5"}}


def test_without_a_script_the_final_text_is_there() -> None:
    assert Reader(page([small()])).texts["pre"] == "<user> fdef\n"
    assert "░" in Reader(page([small(steps=[])])).texts["pre"]


def long(steps: int = 512) -> Trajectory:
    """A run as long as the paper's, with five runners-up for each token."""
    order = [(position * 197) % steps for position in range(steps)]
    others = tuple((1000 + rank, 0.1234 / (rank + 1)) for rank in range(5))
    done = [
        Step(commits=[Commit(0, 100 + position, 151000 + position, 0.654321, 1.234567, others)]) for position in order
    ]
    pieces = {151000 + position: f" token{position}" for position in range(steps)} | {9: "word\n"}
    pieces |= {1000 + rank: f" other{rank}" for rank in range(5)}
    return Trajectory(initial_ids=[9] * 100 + [None] * steps, steps=done, pieces=pieces, model="long")


def test_two_runs_of_512_steps_stay_far_under_a_megabyte() -> None:
    assert len(page([long(), long()]).encode()) < 400_000
