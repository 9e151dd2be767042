"""Which position a run settled when, in final coordinates.

A run may mask a position again, or put masks in and take tokens out. A position counts where it stands in the end, and
at the step that committed it last; one that is masked in the end counts not at all.

Three parts of a run are told apart. `end` is the first end token that the run committed and what it committed behind
it, `answer` what it committed before, `all` both. (A model that fills its canvas with end tokens first is far from
left-to-right for a reason that has nothing to do with the answer.)

Places that are masked in the end belong to the answer where they lie left of the end token, or where there is none.

Steps are counted from 0 here; in `settle_time`, the first of n steps is 1 / n of the run and the last is 1.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Literal

from unmask.analyze.ar_ness import require_known
from unmask.trajectory import Commit, Trajectory

Part = Literal["answer", "end", "all"]
PARTS: tuple[Part, ...] = ("answer", "end", "all")
Ties = Literal["position", "confidence"]
TIES: tuple[Ties, ...] = ("position", "confidence")
Settled = Mapping[int, tuple[int, Commit]]
"""Final position: (the step that committed it, what it committed; its `position` is where that was at the time)."""


def commit_steps(t: Trajectory, *, part: Part = "answer", ties: Ties = "position") -> list[list[int]]:
    """The positions that each step settled, one list per step of the run.

    Within a step: from left to right (`position`), or the surest first (`confidence`).

    >>> from unmask.trajectory import Step
    >>> first = Step(commits=[Commit(0, 1, 7, 0.5, 0.0), Commit(0, 2, 8, 0.9, 0.0)])
    >>> last = Step(commits=[Commit(0, 3, 9, 0.5, 0.0)])
    >>> run = Trajectory(initial_ids=[5, None, None, None], steps=[first, Step(), last])
    >>> commit_steps(run)
    [[1, 2], [], [3]]
    >>> commit_steps(run, ties="confidence")
    [[2, 1], [], [3]]
    """
    return steps_of(settled(t), t, part=part, ties=ties)


def order(t: Trajectory, *, part: Part = "answer", ties: Ties = "position") -> list[int]:
    """The positions of a run in the order in which they settled."""
    return list(chain.from_iterable(commit_steps(t, part=part, ties=ties)))


def settle_time(t: Trajectory) -> dict[int, float]:
    """For each settled position, the share of the run's steps that were done once it had settled: above 0, up to 1."""
    return {position: (step + 1) / len(t.steps) for position, (step, _) in settled(t).items()}


def settled(t: Trajectory) -> Settled:
    """The last commit of each position that is settled in the end, by position."""
    if any(step.resized for step in t.steps):
        return _settled_in_resized(t)
    found: dict[int, tuple[int, Commit]] = {}
    for number, step in enumerate(t.steps):
        for position in step.remasked:
            found.pop(position, None)
        for commit in step.commits:
            found[commit.position] = (number, commit)
    return dict(sorted(found.items()))


def end_position(found: Settled, t: Trajectory) -> int | None:
    """Where the first end token stands that the run committed itself; None where there is none."""
    ends = set(t.end_ids)
    return next((position for position, (_, commit) in found.items() if commit.token_id in ends), None)


def steps_of(found: Settled, t: Trajectory, *, part: Part, ties: Ties) -> list[list[int]]:
    """`commit_steps` of a run whose settled positions are at hand."""
    require_known("part of a run", part, PARTS)
    require_known("order within a step", ties, TIES)
    end = end_position(found, t)
    steps: list[list[int]] = [[] for _ in t.steps]
    for position, (step, _) in found.items():
        is_answer = end is None or position < end
        if part == "all" or is_answer == (part == "answer"):
            steps[step].append(position)  # by position, since `found` is
    if ties == "confidence":
        return [sorted(step, key=lambda position: -found[position][1].confidence) for step in steps]
    return steps


def still_open(found: Settled, t: Trajectory, *, part: Part) -> list[int]:
    """The places of a part that are masked in the end: of the answer, those left of the end token (if there is one)."""
    require_known("part of a run", part, PARTS)
    end = end_position(found, t)
    masked = [position for position, token_id in enumerate(t.ids_at(len(t.steps))) if token_id is None]
    if part == "all":
        return masked
    return [position for position in masked if (end is None or position < end) == (part == "answer")]


def ranked(steps: Iterable[Iterable[int]], still_open: Iterable[int]) -> tuple[list[list[int]], list[int]]:
    """The positions of steps and those still open, numbered among all of them: what AR-ness calls neighbours.

    The holes of an infill join; the places of one answer keep their distances.

    >>> ranked([[3], [7, 8]], [2])
    ([[1], [2, 3]], [0])
    """
    steps, still_open = [list(step) for step in steps], list(still_open)
    ranks = {position: rank for rank, position in enumerate(sorted([*chain.from_iterable(steps), *still_open]))}
    return [[ranks[position] for position in step] for step in steps], sorted(ranks[place] for place in still_open)


def _settled_in_resized(t: Trajectory) -> Settled:
    cells: list[tuple[int, Commit] | None] = [None] * len(t.initial_ids)
    for number, step in enumerate(t.steps):
        for position, delta in step.resized:
            cells[position : position + max(-delta, 0)] = [None] * max(delta, 0)
        for position in step.remasked:
            cells[position] = None
        for commit in step.commits:
            cells[commit.position] = (number, commit)
    return {position: cell for position, cell in enumerate(cells) if cell is not None}
