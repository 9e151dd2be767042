"""The live meter of AR-ness: what it counts, and the line it draws."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.analyze.measure import measure
from unmask.trajectory import Commit, Frame, Step, Trajectory
from unmask.view.meter import FrameMeter, meter_line

END = 2


def commit(position: int, token: int = 9) -> Commit:
    return Commit(0, position, token, 0.5, 0.1)


def same(one: float, other: float) -> bool:
    return one == pytest.approx(other) or (math.isnan(one) and math.isnan(other))


def some_run(seed: int) -> Trajectory:
    """Each step masks some settled positions again and fills some open ones; the last fills all, or some too."""
    chance = random.Random(seed)
    given_ids = chance.choices([5, END, None], [1, 1, 4], k=chance.randint(1, 8))
    ids, steps = list(given_ids), []
    is_whole = chance.random() < 0.5
    for left in reversed(range(chance.randint(1, 6))):
        settled = [p for p, token in enumerate(ids) if token is not None]
        again = chance.sample(settled, min(len(settled), chance.randint(0, 2))) if steps else []
        is_open = [p for p, token in enumerate(ids) if token is None or p in again]
        commits = [
            commit(p, chance.choice([7, 8, END])) for p in is_open if (left == 0 and is_whole) or chance.random() < 0.5
        ]
        for p in again:
            ids[p] = None
        for done in commits:
            ids[done.position] = done.token_id
        steps.append(Step(commits=commits, remasked=again))
    return Trajectory(initial_ids=given_ids, steps=steps, end_ids=[END])


@given(seed=st.integers(0, 10**6), looks=st.integers(0, 127))
@settings(max_examples=300, deadline=None)
def test_the_last_reading_is_the_ar_ness_of_the_record_however_often_it_was_read(seed: int, looks: int) -> None:
    run = some_run(seed)
    meter = FrameMeter(end_ids=run.end_ids)
    for frame in run.frames():
        meter.follow(frame)
        if looks >> frame.step & 1:
            meter.reading()
    local, global_ = meter.reading()
    found = measure(run)
    assert same(local, found.local[1])
    if not math.isnan(local):
        assert same(global_, found.global_[1])


def readings(run: Trajectory) -> list[tuple[float, float]]:
    meter, out = FrameMeter(end_ids=run.end_ids), []
    for frame in run.frames():
        meter.follow(frame)
        out.append(meter.reading())
    return out


def test_left_to_right_is_one_all_along_and_before_two_commits_there_is_no_number() -> None:
    run = Trajectory(initial_ids=[5, *[None] * 3], steps=[Step(commits=[commit(p)]) for p in (1, 2, 3)])
    assert [local == global_ == 1.0 for local, global_ in readings(run)] == [False, False, True, True]
    assert all(math.isnan(number) for pair in readings(run)[:2] for number in pair)


def test_what_is_still_open_on_the_left_counts_before_it_is_filled() -> None:
    run = Trajectory(initial_ids=[None] * 4, steps=[Step(commits=[commit(p)]) for p in (2, 3)])
    assert readings(run)[-1] == (1.0, 0.0)


def test_the_holes_of_an_infill_join() -> None:
    run = Trajectory(initial_ids=[None, 5, None, 5, None], steps=[Step(commits=[commit(p)]) for p in (0, 2, 4)])
    assert readings(run)[2:] == [(1.0, 1.0), (1.0, 1.0)]


def test_commits_behind_an_end_that_comes_later_are_taken_out_again() -> None:
    steps = [Step(commits=[commit(p, token)]) for p, token in ((5, END), (4, END), (0, 9), (1, 9), (2, END))]
    *_, before, after = readings(Trajectory(initial_ids=[None] * 6, steps=steps, end_ids=[END]))
    assert before == after == (1.0, 1.0)


def test_the_same_frame_again_is_no_step_and_a_new_run_begins_anew() -> None:
    meter = FrameMeter()
    frames = list(Trajectory(initial_ids=[None] * 3, steps=[Step(commits=[commit(p)]) for p in (2, 1, 0)]).frames())
    for frame in frames:
        meter.follow(frame)
        meter.follow(frame)
    assert meter.reading() == (0.0, pytest.approx(1 / 3))
    for step, ids in ((1, (1, 9, None)), (2, (1, 9, 9))):
        meter.follow(Frame(step, ids, frozenset({0}), frozenset({step}), {}))
    assert meter.reading() == (1.0, 1.0)


def test_a_row_of_another_length_begins_anew() -> None:
    meter = FrameMeter()
    steps = [Step(commits=[commit(1)]), Step(commits=[commit(0)], resized=[(1, 1)]), Step(commits=[commit(1)])]
    for frame in Trajectory(initial_ids=[None, None], steps=steps).frames():
        meter.follow(frame)
    assert meter.reading() == (1.0, 1.0)


def test_steps_before_a_run_was_taken_up_do_not_count_unless_they_are_shown() -> None:
    meter = FrameMeter()
    meter.follow(Frame(3, (5, 6, None, None), frozenset({0}), frozenset(), {1: 0.5}))
    meter.follow(Frame(4, (5, 6, 7, None), frozenset({0}), frozenset({2}), {1: 0.5, 2: 0.5}))
    meter.follow(Frame(5, (5, 6, 7, 8), frozenset({0}), frozenset({3}), {1: 0.5, 2: 0.5, 3: 0.5}))
    assert meter.reading() == (1.0, 1.0)


# --- the line ---------------------------------------------------------------------------------------------------------


@given(local=st.floats(0, 1) | st.just(math.nan), global_=st.floats(0, 1) | st.just(math.nan), width=st.integers(1, 99))
@settings(deadline=None)
def test_the_line_fits_any_width_and_has_both_numbers_from_24_columns_on(
    local: float, global_: float, width: int
) -> None:
    for is_ascii in (False, True):
        line = meter_line(local, global_, width=width, is_ascii=is_ascii)
        assert len(line) <= width
        assert line.isascii() or not is_ascii
        if width >= 24:
            assert line.startswith(("AR-ness", "local"))
            assert all(math.isnan(share) or f"{share:.2f}" in line for share in (local, global_))
        if width >= 40:
            assert line.startswith("AR-ness")
        if width >= 73:
            assert line.endswith("(1 = left to right)")


@pytest.mark.parametrize(
    ("share", "bar"), [(0.0, "▁▁▁▁▁▁▁▁"), (0.5, "▇▇▇▇▁▁▁▁"), (0.99, "▇▇▇▇▇▇▇▁"), (1.0, "▇▇▇▇▇▇▇▇")]
)
def test_a_bar_is_full_at_one_alone(share: float, bar: str) -> None:
    assert f"local {bar} {share:.2f} " in meter_line(share, 0.3, width=80)


def test_a_terminal_without_utf8_gets_plain_signs() -> None:
    assert meter_line(0.5, math.nan, width=80, is_ascii=True) == (
        "AR-ness  local ####.... 0.50   global ........ -   (1 = left to right)"
    )
