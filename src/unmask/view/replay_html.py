"""A recorded run, or two side by side, as one HTML file that plays without a network.

The page holds the runs as JSON and a script that draws any step of them: the canvas with a state and a confidence for
each token, the order map (step × position), and local and global AR-ness so far. The script, the style and the skeleton
are the files `replay.js`, `replay.css` and `replay.html` beside this module.

A row may change its length, so the unit of the page is the *cell*: a place of the row from the step in which it came to
be until the one that took it out. What a cell shows at a step follows from its own list of events; that is why a jump
to any step is one pass over the cells.

The text of a model is hostile: it reaches the page as JSON that cannot end its element, the script writes it as text
alone, and the page's policy allows this one script, this one style, and no request.
"""

import hashlib
import json
import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from unmask.trajectory import Trajectory, first_difference
from unmask.view.meter import FrameMeter
from unmask.view.terminal import MASK, printable

DIGITS = 4
"""Decimals of a confidence, an entropy and a probability in the page."""


@dataclass(slots=True, kw_only=True)
class Cell:
    """A place of the row: the step it came with, the step that took it out, its first token, and what happened to it.

    An event is [step, token id, confidence, entropy, runners-up], or [step, None] where it was masked again.
    """

    born: int = 0
    died: int | None = None
    token: int | None = None
    events: list[list[Any]] = field(default_factory=list)


def page(runs: Sequence[Trajectory], *, names: Sequence[str] = (), speed: float = 10.0) -> str:
    """The whole file, for one run or two; `names` head them, `speed` is the rate at which it plays first."""
    style, script = _part("replay.css"), _part("replay.js")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'"
    return Template(_part("replay.html")).substitute(
        policy=policy,
        title=escape(_title(runs)),
        style=style,
        script=script,
        data=_json(data(runs, names=names, speed=speed)),
        fallback="".join(f'<pre class="final">{escape(_final_text(run))}</pre>' for run in runs),
    )


def data(runs: Sequence[Trajectory], *, names: Sequence[str] = (), speed: float = 10.0) -> dict[str, Any]:
    """What the script reads. `parts` is the first step in which two runs differ, 0 if they start differently."""
    return {
        "runs": [
            _run(run, name=name) for run, name in zip(runs, names or [run.model or "run" for run in runs], strict=True)
        ],
        "parts": first_difference(runs[0], runs[1]) if len(runs) > 1 else None,
        "speed": speed,
    }


def cells(run: Trajectory) -> list[Cell]:
    """All places that the row ever had, from left to right, those that were taken out among them.

    >>> from unmask.trajectory import Step
    >>> [(cell.born, cell.died) for cell in cells(Trajectory(initial_ids=[5, 6], steps=[Step(resized=[(1, 1)])]))]
    [(0, None), (1, None), (0, None)]
    """
    live = [Cell(token=token) for token in run.initial_ids]
    every = list(live)
    for number, step in enumerate(run.steps, start=1):
        for position, delta in step.resized:
            for cell in live[position : position + max(-delta, 0)]:
                cell.died = number
            made = [Cell(born=number) for _ in range(max(delta, 0))]
            if made:  # where they stand among cells that are gone is never seen
                place = _index(every, live[position]) if position < len(live) else len(every)
                every[place:place] = made
            live[position : position + max(-delta, 0)] = made
        for position in step.remasked:
            live[position].events.append([number, None])
        for commit in step.commits:
            others = [[token, round(chance, DIGITS)] for token, chance in commit.runners_up]
            event = [number, commit.token_id, round(commit.confidence, DIGITS), round(commit.entropy, DIGITS)]
            live[commit.position].events.append([*event, others] if others else event)
    return every


def _index(every: Sequence[Cell], wanted: Cell) -> int:
    return next(place for place, cell in enumerate(every) if cell is wanted)


def _run(run: Trajectory, *, name: str) -> dict[str, Any]:
    local, global_ = _ar_ness(run)
    return {
        "name": printable(name),
        "facts": _facts(run),
        "steps": len(run.steps),
        "ends": run.end_ids,
        "pieces": {token: _piece(piece) for token, piece in run.pieces.items()},
        "cells": [[cell.born, cell.died, cell.token, cell.events] for cell in cells(run)],
        "local": local,
        "global": global_,
        "ties": any(len(step.commits) > 1 for step in run.steps),
    }


def _ar_ness(run: Trajectory) -> tuple[list[float | None], list[float | None]]:
    """Local and global AR-ness@1 before the first step and after each, as the meter of a live view reads it then: what
    comes later changes nothing."""
    meter = FrameMeter(end_ids=run.end_ids)
    local: list[float | None] = []
    global_: list[float | None] = []
    for frame in run.frames():
        meter.follow(frame)
        for series, value in zip((local, global_), meter.reading(), strict=True):
            series.append(_number(value))
    return local, global_


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, DIGITS)


def _piece(piece: str) -> str | dict[str, str]:
    """The piece as it is shown; bytes that are no text on their own stay bytes."""
    raw = piece.encode("utf-8", "surrogateescape")
    try:
        return printable(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return {"bytes": raw.hex()}


def _facts(run: Trajectory) -> str:
    """What was run and how it ended, on one line."""
    facts = [run.model] if run.model else []
    facts += [f"{name.replace('_', ' ')} {value}" for name, value in run.settings.items() if value is not None]
    forwards = "1 forward" if run.num_forwards == 1 else f"{run.num_forwards} forwards"
    facts += [f"seed {run.seed}", *([f"sample {run.sample}"] if run.sample else []), forwards]
    return printable(" · ".join([*facts, f"finished: {run.finish_reason or 'no'}"]))


def _title(runs: Sequence[Trajectory]) -> str:
    models = list(dict.fromkeys(run.model or "a model" for run in runs))
    return printable(f"Replay of {' and '.join(models)}" if len(runs) < 2 else f"Two runs of {' and '.join(models)}")


def _final_text(run: Trajectory) -> str:
    return printable(run.text(run.ids_at(len(run.steps)), mask=MASK))


def _json(record: dict[str, Any]) -> str:
    """Compact JSON in ASCII; without a `<` it can neither end its element nor open a comment in it."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _part(name: str) -> str:
    return files("unmask.view").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}"
