"""The terminal recording: its format, its times, and that a terminal that gets it ends with the final canvas."""

import json
import re
from typing import Any

import pytest

from unmask.errors import SettingsError
from unmask.trajectory import Commit, Step, Trajectory
from unmask.view.cast import recording


def commits(*pairs: tuple[int, int]) -> Step:
    return Step(commits=[Commit(0, position, token, 0.9, 0.1) for position, token in pairs])


def small(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "initial_ids": [None] * 3,
        "steps": [commits((1, 3)), commits((0, 2)), commits((2, 4))],
        "model": "tiny",
        "pieces": {2: "def", 3: " f", 4: "():\n    pass"},
        "num_forwards": 3,
    }
    return Trajectory(**{**fields, **changes})


def read(recorded: str) -> tuple[dict[str, Any], list[tuple[float, str, str]]]:
    header, *events = [json.loads(line) for line in recorded.splitlines()]
    return header, [(at, kind, drawn) for at, kind, drawn in events]


def screen(events: list[tuple[float, str, str]]) -> str:
    """What a terminal shows in the end; knows the controls that the replay uses, and refuses others."""
    lines, line = [""], 0
    for part in re.findall(r"\x1b\[[?\d;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", "".join(drawn for _, _, drawn in events)):
        if part == "\n":
            line += 1
            lines += [""] * (line + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[line] = ""
        elif part.startswith("\x1b[") and part.endswith("A"):
            line -= int(part[2:-1] or 1)
        elif part.startswith("\x1b["):
            assert part[-1] in "mlh", part
        elif part != "\r":
            lines[line] += part
    return "\n".join(line.rstrip() for line in lines).rstrip()


def test_the_header_is_version_2_and_holds_the_size() -> None:
    header, _ = read(recording(small(), columns=60))
    assert (header["version"], header["width"], header["height"]) == (2, 60, 5)
    assert header["title"] == "unmask replay: tiny, 3 steps"


def test_times_follow_the_speed_and_the_last_state_lingers() -> None:
    _, events = read(recording(small(), speed=4))
    assert {kind for _, kind, _ in events} == {"o"}
    times = [at for at, _, _ in events]
    assert times == sorted(times)
    assert sorted(set(times)) == [0.0, 0.25, 0.5, 0.75, 2.75]


def test_each_step_is_drawn_and_the_last_stays() -> None:
    _, events = read(recording(small()))
    whole = "".join(drawn for _, _, drawn in events)
    assert [step for step in range(4) if f"step {step} of 3" in whole] == [0, 1, 2, 3]
    assert screen(events).splitlines()[:2] == ["def f():", "    pass"]
    assert whole.rindex("\x1b[?25h") > whole.rindex("\x1b[?25l")


@pytest.mark.parametrize("speed", [5, 10, 20, 25, 30])
def test_no_step_is_dropped_up_to_thirty_a_second(speed: float) -> None:
    run = small(initial_ids=[None] * 100, steps=[commits((place, 2)) for place in range(100)])
    _, events = read(recording(run, speed=speed))
    drawn = "".join(drawn for _, _, drawn in events)
    assert [step for step in range(101) if f"step {step} of 100" not in drawn] == []


def test_a_number_that_json_lacks_is_not_recorded() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        recording(small(), speed=1e-320)


def test_a_fast_replay_draws_no_more_frames_than_a_terminal_would() -> None:
    run = small(initial_ids=[None] * 100, steps=[commits((place, 2)) for place in range(100)])
    _, events = read(recording(run, speed=1000))
    assert len(events) < 10
    assert screen(events).startswith("def" * 26)


def test_a_long_canvas_moves_in_a_terminal_of_forty_lines() -> None:
    run = small(initial_ids=[None] * 60, steps=[commits((place, 4)) for place in range(60)])
    header, _ = read(recording(run))
    assert header["height"] == 40


def test_colour_can_be_left_out() -> None:
    assert "\\u001b[1;30;102m" in recording(small())
    assert "102m" not in recording(small(), colour=False)


def test_the_meter_is_recorded_where_it_is_wanted() -> None:
    header, events = read(recording(small(), meter=True))
    assert header["height"] == 6
    assert "AR-ness  local" in screen(events).splitlines()[-1]
    assert "AR-ness" not in recording(small()).splitlines()[-2]


def test_the_same_run_gives_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recording(small())
    for name, value in {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "20"}.items():
        monkeypatch.setenv(name, value)
    assert recording(small()) == whole


def test_no_control_character_of_a_model_is_recorded() -> None:
    run = small(model="\x1b]0;m\x07", pieces={2: "\x1b]0;t\x07", 3: "f", 4: "g"})
    header, events = read(recording(run))
    assert "\x1b" not in header["title"]
    assert "\x1b]" not in "".join(drawn for _, _, drawn in events)


def test_a_terminal_without_columns_is_refused() -> None:
    with pytest.raises(SettingsError, match="0 columns were asked for; a terminal is at least 1 wide"):
        recording(small(), columns=0)
