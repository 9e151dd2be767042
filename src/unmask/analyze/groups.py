"""Recorded runs in groups, and everything that is measured of each.

A group is what is averaged: the runs of one file, or of one cell of an evaluation that kept its trajectories. Runs of
several models in one file become several groups, since a mean over models is a measure of none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.analyze.measure import Conventions, Measures, Summary, by_model, measure, summary
from unmask.analyze.sink import Sink, sink
from unmask.analyze.syntax import SettleTimes, settle_times
from unmask.errors import TrajectoryError
from unmask.trajectory import Trajectory, load

TRAJECTORIES = "trajectories"
"""Where an evaluation keeps them, in a folder for each cell."""


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

    @property
    def lengths(self) -> list[int]:
        """How many positions each run settled, of those that AR-ness is of."""
        return [found.num_measured for found in self.measures if not found.is_empty]

    def to_json(self) -> dict[str, Any]:
        """The summary's fields, with `label`, `entropy_sink` (null where it is not known) and `syntax`."""
        return {
            "label": self.label,
            **self.summary.to_json(),
            "entropy_sink": None if self.sink is None else self.sink.to_json(),
            "syntax": self.settle_times.to_json(),
        }


def analyse(group: RunGroup, *, conventions: Conventions = Conventions(), seed: int = 0) -> Analysis:
    """Measure a group. Raises TrajectoryError where none of its runs has anything to measure."""
    measures = tuple(measure(run, conventions=conventions) for run in group.runs)
    try:
        found = summary(measures, seed=seed)
    except TrajectoryError as error:
        raise TrajectoryError(f"{group.label}: {error}") from None
    has_view = any(run.steps and run.steps[0].seen for run in group.runs)
    return Analysis(
        label=group.label,
        measures=measures,
        summary=found,
        sink=sink(group.runs, seed=seed) if has_view else None,
        settle_times=settle_times(group.runs, seed=seed),
    )


def read_groups(paths: Sequence[Path]) -> list[RunGroup]:
    """The runs in files and folders.

    A file is a group. A folder is one, of all its `*.jsonl` together; the folder of an evaluation has one for each
    cell. Raises TrajectoryError for a file that is none, and for a folder without trajectories.
    """
    found = [(label, file) for path in paths for label, file in _sources(path)]
    labels = [label for label, _ in found]
    if len(set(labels)) < len(labels):  # same names in different folders
        found = [(str(files[0].parent if len(files) > 1 else files[0]), files) for _, files in found]
    groups = []
    for label, files in found:
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
    kept = path / TRAJECTORIES
    cells = sorted(folder for folder in kept.iterdir() if folder.is_dir()) if kept.is_dir() else []
    if cells:
        for cell in cells:
            label = path.name if len(cells) == 1 else f"{path.name}: {cell.name}"
            yield label, sorted(cell.glob("*.jsonl"))
        return
    files = sorted(path.glob("*.jsonl"))
    if not files or kept.is_dir() or (path / "run.json").is_file():
        raise TrajectoryError(
            f"{path} holds no trajectories; `unmask evaluate … --trajectories` keeps them in its folder, and "
            "`unmask generate PROMPT --trajectory FILE` in a file"
        )
    yield path.name, files
