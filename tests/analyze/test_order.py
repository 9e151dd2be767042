"""Which position settled when, also in runs that mask again, resize, or fill several positions per step."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.analyze.order import commit_steps, order, ranked, settle_time, settled, still_open
from unmask.errors import SettingsError
from unmask.trajectory import Commit, Step, Trajectory

END = 2


def commit(position: int, token_id: int = 7, confidence: float = 0.5) -> Commit:
    return Commit(0, position, token_id, confidence, 0.1)


def run(steps: list[Step], *, length: int = 6) -> Trajectory:
    return Trajectory(initial_ids=[5] + [None] * (length - 1), steps=steps, end_ids=[END])


def test_steps_that_settle_nothing_keep_their_place() -> None:
    t = run([Step(commits=[commit(2)]), Step(), Step(commits=[commit(3), commit(1)])])
    assert commit_steps(t) == [[2], [], [1, 3]]
    assert order(t) == [2, 1, 3]
    assert settle_time(t) == {1: 1, 2: 1 / 3, 3: 1}


def test_the_surest_of_a_step_comes_first_when_asked() -> None:
    t = run([Step(commits=[commit(1, confidence=0.2), commit(2, confidence=0.9), commit(3, confidence=0.2)])])
    assert order(t, ties="confidence") == [2, 1, 3]


def test_what_stands_from_the_end_token_on_is_no_answer() -> None:
    t = run([Step(commits=[commit(5)]), Step(commits=[commit(1)]), Step(commits=[commit(3, END)])])
    assert commit_steps(t) == [[], [1], []]
    assert commit_steps(t, part="end") == [[5], [], [3]]
    assert commit_steps(t, part="all") == [[5], [1], [3]]


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    t = Trajectory(initial_ids=[END, None], steps=[Step(commits=[commit(1)])], end_ids=[END])
    assert order(t) == [1]


def test_a_position_counts_where_it_was_committed_last() -> None:
    t = run([Step(commits=[commit(1), commit(2)]), Step(remasked=[1, 2]), Step(commits=[commit(2, END)])])
    assert commit_steps(t, part="all") == [[], [], [2]]
    assert commit_steps(t) == [[], [], []]


def test_what_a_resize_moves_is_counted_where_it_ends() -> None:
    t = run(
        [
            Step(commits=[commit(1), commit(3), commit(4)]),
            Step(resized=[(2, 2)], commits=[commit(2)]),  # 3 and 4 stand at 5 and 6 from here on
            Step(resized=[(5, -1)]),  # what stood at 3 is taken out
        ]
    )
    assert commit_steps(t) == [[1, 5], [2], []]


def test_masked_places_behind_the_end_token_are_no_part_of_the_answer() -> None:
    t = run([Step(commits=[commit(1)]), Step(commits=[commit(3, END)])])
    assert still_open(settled(t), t, part="answer") == [2]
    assert still_open(settled(t), t, part="end") == [4, 5]
    assert still_open(settled(t), t, part="all") == [2, 4, 5]


def test_ranks_join_holes_and_keep_what_is_open_between() -> None:
    assert ranked([[9, 3], [], [5]], [4]) == ([[3, 0], [], [2]], [1])


def test_words_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"'answers' is no part of a run; did you mean answer\?"):
        order(run([]), part="answers")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"'entropy' is no order within a step; known: position, confidence"):
        order(run([]), ties="entropy")  # type: ignore[arg-type]


@given(st.integers(0, 10_000))
def test_settled_places_hold_what_the_last_frame_shows(seed: int) -> None:
    generator = random.Random(seed)
    length, steps = 5, []
    for _ in range(6):
        resized = []
        if generator.random() < 0.4:
            position = generator.randrange(length + 1)
            delta = generator.choice([1, 2, -min(2, length - position)])
            resized, length = [(position, delta)], length + delta
        places = list(range(length))
        remasked = generator.sample(places, min(len(places), generator.randrange(3)))
        chosen = generator.sample(places, min(len(places), generator.randrange(3)))
        commits = [commit(place, generator.randrange(10, 99)) for place in chosen]
        steps.append(Step(resized=resized, remasked=remasked, commits=commits))
    t = Trajectory(initial_ids=[5, None, None, None, None], steps=steps)
    *_, last = t.frames()
    found = settled(t)
    assert {place: commit.token_id for place, (_, commit) in found.items()} == {
        place: token for place, token in enumerate(last.ids) if token is not None and place not in last.given
    }
    assert list(found) == sorted(found)
    assert sorted(order(t)) == list(found)
    masked = [place for place, token in enumerate(last.ids) if token is None]
    assert still_open(found, t, part="all") == still_open(found, t, part="answer") == masked
    assert still_open(found, t, part="end") == []
