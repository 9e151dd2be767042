"""Analyses as tables: every group has its column, and what a reader must know stands below."""

import io

import pytest
from rich.console import Console

from unmask.analyze.groups import RunGroup, analyse
from unmask.trajectory import Commit, Step, Trajectory
from unmask.view.analysis import report


def analysis(label: str, order: list[int], *, pieces: str = "f(x)", empty: int = 0, seen: bool = True):  # type: ignore[no-untyped-def]
    steps = [Step(commits=[Commit(0, place, place, 0.9, 0.1)]) for place in order]
    if seen:
        steps[0].seen = [(place, 0.5, 0.1) for place in sorted(order)]
    whole = Trajectory(
        initial_ids=[0, *[None] * len(order)],
        steps=steps,
        pieces={0: "ask: ", **dict(enumerate(pieces, 1))},
        num_forwards=len(order),
    )
    idle = Trajectory(initial_ids=[0, None])
    return analyse(RunGroup(label=label, runs=(whole, *[idle] * empty)))


def drawn(*analyses, width: int = 120) -> str:  # type: ignore[no-untyped-def]
    console = Console(file=io.StringIO(), width=width)
    console.print(report(analyses))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_each_group_has_a_column() -> None:
    text = drawn(analysis("forward", [1, 2, 3, 4]), analysis("backward", [4, 3, 2, 1]))
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["order"][-2:] == ["forward", "backward"]
    assert lines["local AR-ness@1"][-2:] == ["1.000", "0.000"]
    assert lines["global AR-ness@2"][-2:] == ["1.000", "0.500"]
    assert lines["local AR-ness@8"][-2:] == ["–", "–"]
    assert lines["bracket"][-2:] == ["0.750", "0.500"]
    assert lines["3"][-2:] == ["0.500", "0.500"]


def test_what_is_left_out_is_said() -> None:
    text = drawn(analysis("a", [1, 2, 3, 4], pieces="f((x", empty=2, seen=False), width=200)
    assert "a: 2 runs settled nothing that is measured, and are left out." in text
    assert "a: 1 answers have no syntax classes (not Python)." in text
    assert "there is no entropy sink" in text
    assert "settled after" not in text


def test_a_label_moves_no_cursor() -> None:
    assert "\x1b" not in drawn(analysis("a\x1b[2J", [1, 2]))


def test_forty_columns_lose_no_figure() -> None:
    text = drawn(analysis("a-rather-long-name-of-a-group", [1, 2, 3, 4]), width=40)
    assert all(len(line) <= 40 for line in text.splitlines())
    assert text.count("1.000") >= 5


def test_many_groups_have_a_row_each() -> None:
    text = drawn(*(analysis(f"run {at}", [1, 2, 3, 4]) for at in range(7)), width=160)
    (row, *_) = [line for line in text.splitlines() if line.startswith("run 3 ")]
    assert row.split()[2:5] == ["1", "1.000", "–"]
    assert text.count("run 3 ") == 3  # one in each table


def test_a_sink_of_unusual_distances_has_rows_and_a_narrow_view_is_told() -> None:
    steps = [
        Step(commits=[Commit(0, 4, 4, 0.9, 0.1)], seen=[(4, 0.75, 0.1)]),
        Step(commits=[Commit(0, 1, 1, 0.9, 0.1)]),
    ]
    run = Trajectory(initial_ids=[0, None, None, None, None], steps=steps, num_forwards=2)
    text = drawn(analyse(RunGroup(label="a", runs=(run,))), width=200)
    assert ["4", "0.750"] in [line.split() for line in text.splitlines()]
    assert "a: the first step of 1 runs saw only the places that it settled" in text
    assert "saw only" not in drawn(analysis("a", [1, 2, 3]))


@pytest.mark.parametrize("count", [6, 10])
def test_many_groups_fit_forty_columns_and_lose_no_figure(count: int) -> None:
    text = drawn(*(analysis(f"group number {at}", [1, 2, 3, 4]) for at in range(count)), width=40)
    assert all(len(line) <= 40 for line in text.splitlines())
    assert "…" not in text
    assert text.count("1.000") >= 2 * count
