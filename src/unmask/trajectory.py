"""What a denoising run did, step by step, as plain Python: read, replayed, compared and resumed without torch.

A *step* is one turn of the denoising loop. `StepEvent` is what the loop yields for a whole batch; a `Trajectory` keeps
the steps of one row. Positions count tokens of the row from 0, prompt included, padding never. In a file each line is
one JSON object, one row:

    {"format": "unmask.trajectory", "version": 1, "model": …, "settings": {…}, "seed": 0, "sample": 0,
     "initial_ids": [12, 7, null, null], "end_ids": [2], "pieces": {"12": "def", …},
     "steps": [{"commits": [[position, id, confidence, entropy], …], "remasked": […], "resized": [[position, delta]]}],
     "num_forwards": 2, "finish_reason": "stop"}

`null` is a masked position. A piece is the text of one token; bytes that are no UTF-8 on their own are kept as lone
surrogates (Python's `surrogateescape`), so that joining pieces and encoding gives the exact bytes back. What else was
observed stands in the file only where there is some: a commit's runners-up as its fifth part, `[[id, probability], …]`,
a step's `"seen": [[position, confidence, entropy], …]`, and the `"drafted": [[position, id], …]` that it checked. A
`"label"` names what the run answers, as in a task's id.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from unmask.atomic import beside
from unmask.errors import TrajectoryError

FORMAT = "unmask.trajectory"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Commit:
    """One position made final: where, which token, and how sure the model was.

    `confidence` is the probability of the token under the distribution it was drawn from, `entropy` (nats) is that
    distribution's entropy, `runners_up` are its best other tokens as (id, probability), best first.
    """

    row: int
    position: int
    token_id: int
    confidence: float
    entropy: float
    runners_up: tuple[tuple[int, float], ...] = ()


Seen = tuple[int, float, float]
"""A position that the network was asked about, and the confidence and entropy (nats) it had for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """What one turn of the loop did to a batch.

    `active` are the rows that took part, `asked` those for which the network was called; `remasked` are (row, position)
    pairs that went back to masked; `finished` are the rows that are done after this step; `positions_computed` counts
    the token positions that went through the network in this step. `seen` is what the network had for every place it
    was asked about, by row; a run observes it in its first step. `drafted` are the (row, position, token) that a
    speculative step checked; those that it accepted are among its commits.
    """

    step: int
    active: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    commits: tuple[Commit, ...] = ()
    remasked: tuple[tuple[int, int], ...] = ()
    finished: tuple[int, ...] = ()
    num_forwards: int = 1
    positions_computed: int = 0
    seen: Mapping[int, Sequence[Seen]] = field(default_factory=dict)
    drafted: tuple[tuple[int, int, int], ...] = ()


@dataclass(slots=True, kw_only=True)
class Step:
    """One step of one row: first it is resized, then positions are masked again, then positions are committed.

    `resized` holds (position, delta) in the order of doing: `delta` masks put in before `position`, or, when negative,
    that many tokens taken out from `position` on. Each position counts in the row as the change before it left it.
    `seen` is what the network had for the places it was asked about, before any of them was committed. `drafted` are
    the (position, id) that a speculative step checked; those among its commits were accepted.
    """

    commits: list[Commit] = field(default_factory=list)
    remasked: list[int] = field(default_factory=list)
    resized: list[tuple[int, int]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    drafted: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_accepted(self) -> int:
        """How many drafted tokens were committed as they were drafted."""
        return len(set(self.drafted) & {(commit.position, commit.token_id) for commit in self.commits})


@dataclass(frozen=True, slots=True)
class Frame:
    """The row after `step` steps: ids (None is masked), the positions given from the start, those new in this step."""

    step: int
    ids: tuple[int | None, ...]
    given: frozenset[int]
    new: frozenset[int]
    confidence: Mapping[int, float]


@dataclass(slots=True, kw_only=True)
class Trajectory:
    """The record of one row's run; see the module docstring for the file it becomes."""

    initial_ids: list[int | None]
    steps: list[Step] = field(default_factory=list)
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    sample: int = 0
    label: str = ""
    end_ids: list[int] = field(default_factory=list)
    pieces: dict[int, str] = field(default_factory=dict)
    num_forwards: int = 0
    finish_reason: str | None = None

    def record(self, event: StepEvent, *, row: int) -> None:
        """Append what `event` did to `row`."""
        self.steps.append(
            Step(
                commits=[commit for commit in event.commits if commit.row == row],
                remasked=[position for r, position in event.remasked if r == row],
                seen=list(event.seen.get(row, ())),
                drafted=[(position, token) for r, position, token in event.drafted if r == row],
            )
        )
        self.num_forwards += event.num_forwards if row in event.asked else 0

    def frames(self) -> Iterator[Frame]:
        """The row before the first step, then after each step.

        >>> t = Trajectory(initial_ids=[5, None, None], steps=[Step(commits=[Commit(0, 2, 9, 0.5, 0.1)])])
        >>> [frame.ids for frame in t.frames()]
        [(5, None, None), (5, None, 9)]
        """
        ids = list(self.initial_ids)
        given = {i for i, token in enumerate(ids) if token is not None}
        confidence: dict[int, float] = {}
        yield Frame(0, tuple(ids), frozenset(given), frozenset(), {})
        for number, step in enumerate(self.steps, start=1):
            for position, delta in step.resized:
                moves = {i: _moved(i, position, delta) for i in given | confidence.keys()}
                given = {to for i in given if (to := moves[i]) is not None}
                confidence = {to: c for i, c in confidence.items() if (to := moves[i]) is not None}
            _apply(step, ids)
            for position in step.remasked:
                given.discard(position)
                confidence.pop(position, None)
            for commit in step.commits:
                given.discard(commit.position)
                confidence[commit.position] = commit.confidence
            new = frozenset(commit.position for commit in step.commits)
            yield Frame(number, tuple(ids), frozenset(given), new, dict(confidence))

    def ids_at(self, step: int) -> list[int | None]:
        """The row after the first `step` steps; `step` 0 is the untouched canvas.

        Raises TrajectoryError when the run has fewer steps.
        """
        if not 0 <= step <= len(self.steps):
            raise TrajectoryError(
                f"step {step} was asked for, but this trajectory has {len(self.steps)} steps; "
                f"give a step between 0 and {len(self.steps)}"
            )
        ids = list(self.initial_ids)
        for done in self.steps[:step]:
            _apply(done, ids)
        return ids

    def order(self) -> list[int]:
        """Positions in the order in which they were committed, within a step by position."""
        return [c.position for step in self.steps for c in sorted(step.commits, key=lambda c: c.position)]

    def text(self, ids: Iterable[int | None], *, mask: str = "") -> str:
        """The text of `ids`, each masked position drawn as `mask`."""
        joined = "".join(mask if token is None else self.pieces.get(token, f"<{token}>") for token in ids)
        return joined.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _apply(step: Step, ids: list[int | None]) -> None:
    """What a step does to the row's ids, in place."""
    for position, delta in step.resized:
        ids[position : position + max(-delta, 0)] = [None] * max(delta, 0)
    for position in step.remasked:
        ids[position] = None
    for commit in step.commits:
        ids[commit.position] = commit.token_id


def _moved(index: int, position: int, delta: int) -> int | None:
    """Where the token at `index` stands after a resize; None when it was taken out."""
    if index < position:
        return index
    return index + delta if index + delta >= position else None


def first_difference(a: Trajectory, b: Trajectory) -> int | None:
    """The first step (counted from 1) in which two runs commit or re-mask differently; 0 if they start from different
    canvases; None if they are the same run.

    >>> start = [1, None]
    >>> one = Trajectory(initial_ids=start, steps=[Step(commits=[Commit(0, 1, 7, 0.9, 0.1)])])
    >>> two = Trajectory(initial_ids=start, steps=[Step(commits=[Commit(0, 1, 8, 0.9, 0.1)])])
    >>> first_difference(one, two), first_difference(one, one)
    (1, None)
    """
    if a.initial_ids != b.initial_ids:
        return 0
    for number in range(max(len(a.steps), len(b.steps))):
        if number >= len(a.steps) or number >= len(b.steps):
            return number + 1
        if _what_changed(a.steps[number]) != _what_changed(b.steps[number]):
            return number + 1
    return None


def _what_changed(step: Step) -> tuple[object, ...]:
    commits = sorted((c.position, c.token_id) for c in step.commits)
    return (commits, sorted(step.remasked), step.resized)


def save(path: Path | str, trajectories: Sequence[Trajectory]) -> None:
    """Write one line per trajectory, beside the target first and then renamed over it, so no half file is left.

    A device or a pipe is written straight. Raises TrajectoryError when the disk is full or the folder is missing.
    """
    lines = (json.dumps(_to_json(trajectory), separators=(",", ":")) + "\n" for trajectory in trajectories)
    try:
        with beside(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
    except OSError as error:
        raise TrajectoryError(
            f"could not write {path} ({_reason(error)}); what was there before is untouched: "
            "make room or give another file"
        ) from error


def load(path: Path | str) -> list[Trajectory]:
    """All trajectories of a file. Raises TrajectoryError for a file that is missing, empty, damaged, or too new."""
    path = Path(path)
    lines = _read(path).split("\n")
    loaded = [_from_line(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not loaded:
        raise TrajectoryError(
            f"{path} is empty; a trajectory file has one JSON object per line, and "
            f"`unmask generate PROMPT --trajectory {path}` writes one"
        )
    return loaded


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TrajectoryError(
            f"there is no file {path}; `unmask generate PROMPT --trajectory {path}` writes one"
        ) from None
    except IsADirectoryError:
        raise TrajectoryError(f"{path} is a folder, not a trajectory; give one of the files in it") from None
    except UnicodeDecodeError:
        raise TrajectoryError(
            f"{path} is not a trajectory: it must be a text file with one JSON object per line"
        ) from None
    except OSError as error:
        raise TrajectoryError(f"{path} could not be read ({_reason(error)}); check the path") from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _to_json(t: Trajectory) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": t.model,
        "settings": t.settings,
        "seed": t.seed,
        "sample": t.sample,
        **({"label": t.label} if t.label else {}),
        "initial_ids": t.initial_ids,
        "end_ids": t.end_ids,
        "pieces": {str(token): piece for token, piece in t.pieces.items()},
        "steps": [_step_to_json(step) for step in t.steps],
        "num_forwards": t.num_forwards,
        "finish_reason": t.finish_reason,
    }


def _step_to_json(step: Step) -> dict[str, Any]:
    out: dict[str, Any] = {"commits": [_commit_to_json(commit) for commit in step.commits]}
    if step.remasked:
        out["remasked"] = step.remasked
    if step.resized:
        out["resized"] = [list(pair) for pair in step.resized]
    if step.drafted:
        out["drafted"] = [list(pair) for pair in step.drafted]
    if step.seen:
        out["seen"] = [[position, round(c, 6), round(h, 6)] for position, c, h in step.seen]
    return out


def _commit_to_json(c: Commit) -> list[Any]:
    out: list[Any] = [c.position, c.token_id, round(c.confidence, 6), round(c.entropy, 6)]
    if c.runners_up:
        out.append([[token, round(probability, 6)] for token, probability in c.runners_up])
    return out


def _from_line(line: str, path: Path, number: int) -> Trajectory:
    where = f"{path}, line {number}"
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise TrajectoryError(f"{where} is not JSON ({reason}); the file is cut short or damaged") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TrajectoryError(
            f'{where} is not a trajectory: it lacks "format": "{FORMAT}"; give a file that `--trajectory` wrote'
        )
    if data.get("version") != VERSION:
        raise TrajectoryError(
            f"{where} has version {data.get('version')}, this program reads version {VERSION}; "
            "read it with the release that wrote it, or write it again"
        )
    try:
        trajectory = _from_json(data)
        _check(trajectory)
    except KeyError as error:
        raise TrajectoryError(f"{where} is damaged: it lacks {error}; write the file again") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TrajectoryError(f"{where} is damaged: {error}; write the file again") from None
    return trajectory


def _from_json(data: Mapping[str, Any]) -> Trajectory:
    return Trajectory(
        initial_ids=[None if token is None else int(token) for token in data["initial_ids"]],
        steps=[_step_from_json(step) for step in data["steps"]],
        model=str(data["model"]),
        settings=dict(data["settings"]),
        seed=int(data["seed"]),
        sample=int(data["sample"]),
        label=str(data.get("label", "")),
        end_ids=[int(token) for token in data["end_ids"]],
        pieces={int(token): str(piece) for token, piece in data["pieces"].items()},
        num_forwards=int(data["num_forwards"]),
        finish_reason=data["finish_reason"],
    )


def _step_from_json(step: Mapping[str, Any]) -> Step:
    return Step(
        commits=[_commit_from_json(commit) for commit in step["commits"]],
        remasked=[int(position) for position in step.get("remasked", [])],
        resized=[(int(position), int(delta)) for position, delta in step.get("resized", [])],
        seen=[(int(position), float(c), float(h)) for position, c, h in step.get("seen", [])],
        drafted=[(int(position), int(token)) for position, token in step.get("drafted", [])],
    )


def _commit_from_json(commit: Sequence[Any]) -> Commit:
    position, token, confidence, entropy, *more = commit
    (runners_up,) = more or ((),)
    return Commit(
        0,
        int(position),
        int(token),
        float(confidence),
        float(entropy),
        tuple((int(token), float(probability)) for token, probability in runners_up),
    )


def _check(t: Trajectory) -> None:
    """Every position lies in the row as it is at its step, probabilities are some, and every text has bytes; else
    ValueError."""
    for token, piece in t.pieces.items():
        _check_text(f"the piece of token {token}", piece)
    _check_text("the model's name", t.model)
    _check_text("the label", t.label)
    if t.finish_reason is not None:
        _check_text("the finish reason", t.finish_reason)
    length = len(t.initial_ids)
    for number, step in enumerate(t.steps, 1):
        for position, delta in step.resized:
            if not 0 <= position <= position + max(-delta, 0) <= length:
                raise ValueError(f"step {number} resizes position {position} by {delta} in a row of {length}")
            length += delta
        observed = (*(seen[0] for seen in step.seen), *(position for position, _ in step.drafted))
        named = (*step.remasked, *(commit.position for commit in step.commits), *observed)
        for position in named:
            if not 0 <= position < length:
                raise ValueError(f"step {number} names position {position} in a row of {length}")
        for commit in step.commits:
            if not _is_observed(commit.confidence, commit.entropy):
                raise ValueError(
                    f"step {number} committed [{commit.confidence}, {commit.entropy}] at {commit.position}, "
                    "no confidence and entropy"
                )
        for token, probability in (runner for commit in step.commits for runner in commit.runners_up):
            if token < 0 or not 0 <= probability <= 1 + _ROUNDING:
                raise ValueError(f"step {number} has the runner-up [{token}, {probability}], no id and probability")
        for position, confidence, entropy in step.seen:
            if not _is_observed(confidence, entropy):
                raise ValueError(
                    f"step {number} saw [{confidence}, {entropy}] at {position}, no confidence and entropy"
                )


_ROUNDING = 1e-5  # what sums in float32 may miss 1, or 0, by


def _is_observed(confidence: float, entropy: float) -> bool:
    return 0 <= confidence <= 1 + _ROUNDING and entropy >= -_ROUNDING and isfinite(entropy)


def _check_text(what: str, text: object) -> None:
    try:
        if isinstance(text, str):
            text.encode("utf-8", "surrogateescape")
            return
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{what} is no text")
