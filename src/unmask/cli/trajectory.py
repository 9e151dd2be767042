"""`unmask trajectory diff|slice|resume`: compare recorded runs, cut them, and go on from the middle of one.

`diff` and `slice` read and write files alone and never import torch; `resume` is `unmask generate --resume`.
"""

import difflib
import inspect
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask import trajectory as trajectories
from unmask.analyze import order
from unmask.cli.generate import generate
from unmask.cli.options import ModelOptions, with_decoding
from unmask.cli.output import check_writable, print_line, print_text
from unmask.cli.replay import answer_text, pick
from unmask.errors import SettingsError, TrajectoryError
from unmask.trajectory import Commit, Step, Trajectory

app = typer.Typer(help="Recorded runs: diff, slice, resume.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="A trajectory, written by `--trajectory`.", show_default=False)]
Row = Annotated[int, typer.Option("--row", help="Which run of A, counted from 0.", metavar="N")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write.", metavar="FILE", show_default=False)]


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A trajectory.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.", show_default=False)],
    row: Row = 0,
    with_row: Annotated[int, typer.Option("--with-row", help="Which run of B, counted from 0.", metavar="N")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say where two runs part: the step, the tokens, the texts.

    The exit code is 0 for the same run and 1 for different ones.

    Example: unmask trajectory diff greedy.jsonl warm.jsonl
    """
    first, second = pick(a, row), pick(b, with_row, "--with-row")
    found = parting(first, second)
    if as_json:
        print_line(json.dumps(found))
    elif found["same"]:
        print_line(f"the same run: {len(first.steps)} steps")
    else:
        is_one_file = _is_same_file(a, b)
        print_text(
            _told(found, *(f"{path}, row {n}" if is_one_file else f"{path}" for path, n in ((a, row), (b, with_row))))
        )
    if not found["same"]:
        raise typer.Exit(1)


@app.command("slice")
def slice_(
    file: File,
    output: Output,
    rows: Annotated[
        str | None,
        typer.Option("--rows", help="Runs to keep, as in 0-3,7. [all]", metavar="N,N-M", show_default=False),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="Steps to keep, as in 10-20. [all]", metavar="K-L", show_default=False),
    ] = None,
) -> None:
    """Keep some runs of a file, or some steps of each.

    What a run had committed before the first step that is kept becomes one step, the first of what is written.

    Example: unmask trajectory slice runs.jsonl --rows 0-3,7 --steps 10-20 -o part.jsonl
    """
    if rows is None and steps is None:
        raise SettingsError("nothing to cut: give --rows, as in --rows 0-3,7, or --steps, as in --steps 10-20")
    chosen = None if rows is None else _numbers(rows)
    span = None if steps is None else _span(steps)
    check_writable(output, option="--output")
    if _is_same_file(output, file):
        raise SettingsError(f"--output {output} would be written over the runs that are cut; give another file")
    runs = trajectories.load(file)
    kept = runs if chosen is None else [run for rows in chosen for run in _runs_of(runs, rows, file)]
    if span is not None:
        kept = [cut(run, *span) for run in kept]
    trajectories.save(output, kept)


@app.command()
@with_decoding("max_new_tokens", default="as recorded")
def resume(
    file: File,
    output: Output,
    at: Annotated[int, typer.Option("--at", help="Go on after step K, with the settings given here.", metavar="K")],
    row: Annotated[
        int | None, typer.Option("--row", help="Which run of FILE, from 0.", metavar="N", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Result only: no drawing, no speed card.")] = False,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Go on from the middle of a run, with other settings.

    Example: unmask trajectory resume run.jsonl --at 20 --temperature 0.8 -o warmer.jsonl
    """
    check_writable(output, option="--output")
    if _is_same_file(output, file):
        raise SettingsError(f"--output {output} would be written over the run that is taken up; give another file")
    inspect.unwrap(generate)(
        trajectory=output, resume=file, at=at, row=row, as_json=as_json, quiet=quiet, model=model, settings=settings
    )


def parting(a: Trajectory, b: Trajectory) -> dict[str, Any]:
    """Where two runs part, as `diff --json` prints it.

    `step` counts from 1; 0 means that they start from different canvases, and `positions` are then those that differ.
    Otherwise they are what the two do differently in that step. `a` and `b` hold what each has there, and its text.
    """
    step = trajectories.first_difference(a, b)
    texts = (answer_text(a), answer_text(b))
    changes: list[dict[int, dict[str, Any]]] = [{}, {}]
    if step == 0:
        changes = [_canvas(a), _canvas(b)]
    elif step is not None:
        changes = [_changes(a, step), _changes(b, step)]
    positions = sorted(p for p in changes[0].keys() | changes[1].keys() if changes[0].get(p) != changes[1].get(p))
    unified = difflib.unified_diff(texts[0].splitlines(), texts[1].splitlines(), "A", "B", lineterm="")
    return {
        "same": step is None,
        "step": step,
        "positions": positions,
        **{
            name: {
                "model": run.model,
                "steps": len(run.steps),
                "length": len(run.initial_ids),
                "tokens": [change[p] for p in positions if p in change],
                "resized": [] if not step or step > len(run.steps) else run.steps[step - 1].resized,
                "text": text,
            }
            for name, run, change, text in zip("ab", (a, b), changes, texts, strict=True)
        },
        "diff": list(unified),
    }


def cut(run: Trajectory, first: int, last: int) -> Trajectory:
    """Steps `first` to `last` of a run, counted from 1, after one that commits what had settled before `first`.

    The given text stays given and what was committed stays committed, so that a part of a generation is one too. In
    that first step stands each position with its last commit, as if all had been committed at once; in a run that was
    resized, where it had come to. Raises TrajectoryError for steps that the run does not have.

    >>> from unmask.trajectory import Commit, Step
    >>> steps = [Step(commits=[Commit(0, position, 7, 0.5, 0.1)]) for position in (2, 3, 1)]
    >>> part = cut(Trajectory(initial_ids=[5, None, None, None], steps=steps), 3, 3)
    >>> part.initial_ids, [[commit.position for commit in step.commits] for step in part.steps]
    ([5, None, None, None], [[2, 3], [1]])
    """
    total = len(run.steps)
    if last > total:
        held = f"steps 1 to {total}; give a span in them" if total else "no step; leave --steps out"
        raise TrajectoryError(f"--steps {first}-{last} was given, but this trajectory has {held}")
    start = next(frame for frame in run.frames() if frame.step == first - 1)
    before = [Step(commits=_standing(run, first - 1))] if first > 1 else []
    # an estimate where the record of a part is not kept apart: a step that commits something asked the network
    asked = sum(bool(step.commits) for step in run.steps[:last])
    return replace(
        run,
        initial_ids=[token if position in start.given else None for position, token in enumerate(start.ids)],
        steps=[*before, *run.steps[first - 1 : last]],
        num_forwards=run.num_forwards if last == total else min(run.num_forwards, asked),
        finish_reason=run.finish_reason if last == total else None,
    )


def _standing(run: Trajectory, step: int) -> list[Commit]:
    """What stands committed after `step` steps, each where it is by then."""
    settled = order.settled(replace(run, steps=run.steps[:step]))
    return [replace(commit, position=position) for position, (_, commit) in settled.items()]


def _is_same_file(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _canvas(run: Trajectory) -> dict[int, dict[str, Any]]:
    return {position: _token(run, position, token) for position, token in enumerate(run.initial_ids)}


def _changes(run: Trajectory, step: int) -> dict[int, dict[str, Any]]:
    """What a step, counted from 1, did to each position that it touched; a run that is over does nothing."""
    if step > len(run.steps):
        return {}
    done = run.steps[step - 1]
    return {position: _token(run, position, None) for position in done.remasked} | {
        commit.position: _token(run, commit.position, commit.token_id) for commit in done.commits
    }


def _token(run: Trajectory, position: int, token: int | None) -> dict[str, Any]:
    return {"position": position, "id": token, "text": None if token is None else run.text([token])}


def _told(found: dict[str, Any], *names: str) -> str:
    step = found["step"]
    if step == 0:
        lines = [f"the runs start from different canvases, of {found['a']['length']} and {found['b']['length']} tokens"]
    else:
        lines = [f"the runs part at step {step}"]
    for name, side in zip(names, (found["a"], found["b"]), strict=True):
        lines.append(f"{name} ({side['model'] or 'no model named'}, {side['steps']} steps):")
        lines += [f"  position {t['position']}: {_said(t)}" for t in side["tokens"][:_MOST]]
        left = len(side["tokens"]) - _MOST
        lines += [f"  … and {left} more"] if left > 0 else []
        lines += [f"  resized at {position} by {delta:+d}" for position, delta in side["resized"]]
        if not side["tokens"] and not side["resized"]:
            lines.append("  the run is over" if step > side["steps"] else "  nothing")
    ends = found["diff"]
    if not ends:
        is_same = found["a"]["text"] == found["b"]["text"]
        ends = ["both end in the same text" if is_same else "the texts differ in their line ends alone"]
    return "\n".join([*lines, "", *ends]) + "\n"


_MOST = 20
"""Tokens told of each side; `--json` has all."""


def _said(token: dict[str, Any]) -> str:
    return "masked" if token["id"] is None else f"{token['text']!r} ({token['id']})"


_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def _numbers(text: str) -> list[range]:
    """The rows of `0-3,7`, in the order given."""
    found: list[range] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if high < low:
            raise SettingsError(
                f"--rows {_short(text)} is no list of rows; write numbers and spans of them, as in 0-3,7"
            )
        found.append(range(low, high + 1))
    in_turn = sorted(found, key=lambda rows: rows.start)
    if any(later.start < earlier.stop for earlier, later in itertools.pairwise(in_turn)):
        raise SettingsError(f"--rows {_short(text)} names a row twice; name each once")
    return found


def _span(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise SettingsError(f"--steps {_short(text)} is no span of steps; write it as in 10-20, counted from 1")
    return first, last


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _runs_of(runs: Sequence[Trajectory], rows: range, file: Path) -> Sequence[Trajectory]:
    if rows.stop > len(runs):
        held = "one run, row 0" if len(runs) == 1 else f"{len(runs)} runs, rows 0 to {len(runs) - 1}"
        raise TrajectoryError(f"--rows names row {max(rows.start, len(runs))}, but {file} holds {held}")
    return runs[rows.start : rows.stop]
