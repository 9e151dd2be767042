"""Recorded runs in groups, and everything that is measured of each.

A group is what is averaged: the runs of one file, or of one cell of an evaluation that kept its trajectories. Runs of
several models in one file become several groups, since a mean over models is a measure of none.
"""

import gc
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from unmask.analyze.measure import Conventions, Measures, Summary, by_model, measure, summary
from unmask.analyze.random_order import Shape
from unmask.analyze.sink import Sink, sink
from unmask.analyze.syntax import SettleTimes, settle_times
from unmask.errors import TrajectoryError
from unmask.trajectory import Trajectory, load

TRAJECTORIES = "trajectories"
"""Where an evaluation keeps them, in a folder for each cell (`path_name` of it)."""


def path_name(name: str) -> str:
    """A name of anything as a part of a path.

    >>> path_name("temperature=0.2,steps=48")
    'temperature-0.2-steps-48'
    """
    return re.sub(r"[^A-Za-z0-9+._]+", "-", name).strip("-.") or "run"


class NothingMeasured(TrajectoryError):
    """No run of a group has anything to measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """Runs of one model, under one name."""

    label: str
    runs: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """What was measured of a group."""

    label: str
    measures: tuple[Measures, ...]
    """One for each run, also for the empty ones."""

    summary: Summary
    sink: Sink | None
    """None where no run says what the network had in its first step."""

    settle_times: SettleTimes
    num_narrow: int = 0
    """Runs whose first step saw no more than the places that it settled, while others were open: what the sink has of
    them is of those places alone."""

    @property
    def shapes(self) -> list[Shape]:
        """How many positions each step of each run settled, of those that AR-ness is of."""
        return [found.shape for found in self.measures if not found.is_empty]

    def to_json(self) -> dict[str, Any]:
        """The summary's fields, with `label`, `entropy_sink` (null where it is not known) and `syntax`."""
        return {
            "label": self.label,
            **self.summary.to_json(),
            "entropy_sink": None if self.sink is None else self.sink.to_json(),
            "syntax": self.settle_times.to_json(),
        }


def analyse(group: RunGroup, *, conventions: Conventions = Conventions(), seed: int = 0) -> Analysis:
    """Measure a group. Raises NothingMeasured where none of its runs has anything to measure."""
    return _analysis(group, tuple(measure(run, conventions=conventions) for run in group.runs), seed=seed)


def analyse_all(
    groups: Sequence[RunGroup], *, conventions: Conventions = Conventions(), seed: int = 0
) -> tuple[list[tuple[RunGroup, Analysis]], dict[str, str]]:
    """Measure groups: those that have something to measure, and of the others, by label, why they are left out.

    Raises NothingMeasured where no group is left.
    """
    found, left_out = [], {}
    for group in groups:
        try:
            with _collector_paused():
                found.append((group, analyse(group, conventions=conventions, seed=seed)))
        except NothingMeasured as error:
            left_out[group.label] = str(error).removeprefix(f"{group.label}: ")
            last = error
    if not found:
        raise last
    return found, left_out


def together(pairs: Sequence[tuple[RunGroup, Analysis]], *, seed: int = 0) -> Analysis | None:
    """The analysis of all runs of several groups, from their measures; None where they are of several models.

    What it averages over beside tasks and seeds is in `differing`.
    """
    runs = tuple(chain.from_iterable(group.runs for group, _ in pairs))
    if len({run.model for run in runs}) > 1:
        return None
    measures = tuple(chain.from_iterable(analysis.measures for _, analysis in pairs))
    return _analysis(RunGroup(label="all", runs=runs), measures, seed=seed)


def differing(groups: Sequence[RunGroup]) -> list[str]:
    """In what the runs of some groups differ: `model`, and the names of settings but for the seed.

    Settings are what `unmask generate` and `unmask evaluate` write with a run.
    """
    found: dict[str, set[str]] = {}
    runs = [run for group in groups for run in group.runs]
    names = dict.fromkeys(name for run in runs for name in run.settings if name != "seed")
    for run in runs:
        found.setdefault("model", set()).add(str(run.model))
        for name in names:
            found.setdefault(name, set()).add(json.dumps(run.settings.get(name), sort_keys=True, default=str))
    return [name for name, values in found.items() if len(values) > 1]


def _analysis(group: RunGroup, measures: tuple[Measures, ...], *, seed: int) -> Analysis:
    try:
        found = summary(measures, seed=seed)
    except TrajectoryError as error:
        kind = NothingMeasured if all(one.is_empty for one in measures) else TrajectoryError
        raise kind(f"{group.label}: {error}") from None
    has_view = any(run.steps and run.steps[0].seen for run in group.runs)
    return Analysis(
        label=group.label,
        measures=measures,
        summary=found,
        sink=sink(group.runs, seed=seed) if has_view else None,
        settle_times=settle_times(group.runs, seed=seed),
        num_narrow=sum(map(_is_narrow, group.runs)),
    )


def _is_narrow(run: Trajectory) -> bool:
    if not run.steps or not run.steps[0].seen:
        return False
    first = run.steps[0]
    seen = {position for position, *_ in first.seen}
    num_open = run.initial_ids.count(None) + sum(delta for _, delta in first.resized)
    return len(seen) < num_open and seen <= {commit.position for commit in first.commits}


def read_groups(paths: Sequence[Path]) -> list[RunGroup]:
    """The runs in files and folders.

    A file is a group. A folder is one, of all its `*.jsonl` together; the folder of an evaluation has one for each
    cell that has some. Raises TrajectoryError for a file that is none, a folder without trajectories, and a path that
    is given twice.
    """
    named: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in named:
            raise TrajectoryError(
                f"{path} is given twice, and would be compared with itself"
                + (f" ({named[path.resolve()]} is the same place)" if named[path.resolve()] != path else "")
                + "; leave one out"
            )
        named[path.resolve()] = path
    found = [(label, file) for path in paths for label, file in _sources(path)]
    labels = [label for label, _ in found]
    if len(set(labels)) < len(labels):  # same names in different folders
        found = [(str(files[0].parent if len(files) > 1 else files[0]), files) for _, files in found]
    groups = []
    for label, files in found:
        with _collector_paused():
            models = by_model(run for file in files for run in load(file))
        for model, runs in models.items():
            name = label if len(models) == 1 else f"{label}: {model}"
            groups.append(RunGroup(label=name, runs=tuple(runs)))
    return groups


def _sources(path: Path) -> Iterator[tuple[str, list[Path]]]:
    """(label, files) of each group that a path stands for."""
    if not path.is_dir():
        yield path.name, [path]
        return
    name = path.resolve().name  # that of `.` is empty
    kept = path / TRAJECTORIES
    cells = sorted(folder for folder in kept.iterdir() if folder.is_dir()) if kept.is_dir() else []
    if found := [(cell, files) for cell in cells if (files := sorted(cell.glob("*.jsonl")))]:
        names = _cell_names(path)
        for cell, files in found:
            yield name if len(cells) == 1 else f"{name}: {names.get(cell.name, cell.name)}", files
        return
    files = sorted(path.glob("*.jsonl"))
    if not files or kept.is_dir() or (path / "run.json").is_file():
        raise TrajectoryError(
            f"{path} holds no trajectories; `unmask evaluate … --trajectories` keeps them in its folder, and "
            "`unmask generate PROMPT --trajectory FILE` in a file"
        )
    yield name, files


def _cell_names(evaluation: Path) -> Mapping[str, str]:
    """What `run.json` calls the cells, by the names of their folders; nothing where it cannot be read."""
    try:
        names = list(json.loads((evaluation / "run.json").read_text(encoding="utf-8"))["cells"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {path_name(str(name)): str(name) for name in names}


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection: loaded runs are millions of objects, none of them garbage, and looking at them again and
    again takes as long as making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
