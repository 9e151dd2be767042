"""A run's folder: only a run that asks the same goes on in it, and weights are known by their content."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import SettingsError, TaskError, TrajectoryError
from unmask.evaluate.folder import (
    NOTED,
    RUN,
    check_place,
    default_folder,
    drop_unfinished,
    enter,
    fingerprint,
    keep_trajectories,
    read_protocol,
)
from unmask.evaluate.samples import Sample
from unmask.trajectory import Trajectory, load

PROTOCOL: dict[str, Any] = {"benchmark": "humaneval+", "model": "org/Tiny-1B", "n": 1, "cells": {"only": {"steps": 8}}}


def test_a_new_folder_records_what_was_asked(tmp_path: Path) -> None:
    enter(tmp_path / "a" / "b", PROTOCOL)
    assert read_protocol(tmp_path / "a" / "b") == PROTOCOL


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    enter(tmp_path, PROTOCOL)
    enter(tmp_path, json.loads(json.dumps(PROTOCOL)))


def test_another_run_is_told_what_differs(tmp_path: Path) -> None:
    enter(tmp_path, PROTOCOL)
    with pytest.raises(SettingsError) as error:
        enter(tmp_path, {**PROTOCOL, "n": 5, "cells": {"only": {"steps": 16}}})
    assert "differs in n (1 there, 5 here); cells.only.steps (8 there, 16 here); give another --output" in str(
        error.value
    )


def test_a_folder_with_samples_of_nobody_knows_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(SettingsError, match=r"holds samples.jsonl but no run.json to say what they are"):
        enter(tmp_path, PROTOCOL)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUN).write_text("{")
    with pytest.raises(TaskError, match=r"run.json is damaged .*; give another --output"):
        enter(tmp_path, PROTOCOL)
    assert read_protocol(tmp_path) is None


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="is a file; give a folder"):
        check_place(tmp_path / "file")


def test_what_is_noted_is_kept_as_it_was_first_and_makes_no_other_run(tmp_path: Path) -> None:
    first = {**PROTOCOL, NOTED: {"source": "hub"}, "drawn": {NOTED: {"unmask": "1"}}}
    later = {**PROTOCOL, NOTED: {"source": "cache"}, "drawn": {NOTED: {"unmask": "2"}}}
    assert enter(tmp_path, first) == enter(tmp_path, later) == read_protocol(tmp_path) == first
    assert default_folder(first) == default_folder(later)


def test_the_default_folder_is_one_for_each_protocol() -> None:
    here = default_folder(PROTOCOL)
    assert here.parts[0] == "evaluations"
    assert here.name.startswith("humaneval+-Tiny-1B-")
    assert default_folder(dict(reversed(PROTOCOL.items()))) == here
    assert default_folder({**PROTOCOL, "n": 2}) != here


def test_a_path_as_a_model_name_stays_within_the_folder() -> None:
    assert default_folder({**PROTOCOL, "model": "../../etc/.."}).parts[0] == "evaluations"
    assert len(default_folder({**PROTOCOL, "model": "../../etc/.."}).parts) == 2


def checkpoint(folder: Path, data: bytes) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text("{}")
    return folder


def test_copies_have_one_fingerprint_and_trained_weights_another(tmp_path: Path) -> None:
    large = bytes(range(256)) * 4096
    first = checkpoint(tmp_path / "a", large)
    copy = Path(shutil.copytree(first, tmp_path / "b"))
    assert fingerprint(first) == fingerprint(copy)
    for name, data in {"end": large[:-1] + b"x", "longer": large + b"x", "start": b"x" + large[1:]}.items():
        assert fingerprint(checkpoint(tmp_path / name, data)) != fingerprint(first)
    assert fingerprint(first / "model.safetensors") != fingerprint(first / "config.json")


def test_every_byte_of_a_small_file_counts(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    first = checkpoint(tmp_path / "a", data)
    other = checkpoint(tmp_path / "b", data[:9000] + b"\xff" + data[9001:])
    assert fingerprint(first) != fingerprint(other)


def kept_rows(folder: Path) -> list[int]:
    return [t.sample - 100 for path in sorted(folder.rglob("*.jsonl")) for t in load(path)]


def row(number: int) -> Trajectory:
    return Trajectory(initial_ids=[0, None], sample=100 + number, label="t")


def finished(*numbers: int) -> list[Sample]:
    return [Sample(task_id="t", sample=n, cell="x=1", seed=100 + n, completion="", program="") for n in numbers]


@pytest.mark.parametrize(("before", "after"), [(2, 8), (8, 2), (4, 4), (3, 4)])
@pytest.mark.parametrize("done", range(9))
def test_no_run_is_lost_or_doubled_when_another_batch_size_goes_on(
    tmp_path: Path, before: int, after: int, done: int
) -> None:
    for start in range(0, 8, before):
        if start <= done:  # the batch under way was kept, and a kill came before all its samples were written
            keep_trajectories(tmp_path, "x=1", start, [row(n) for n in range(start, min(start + before, 8))])
    drop_unfinished(tmp_path, finished(*range(done)))
    assert kept_rows(tmp_path) == list(range(done))
    for start in range(0, 8, after):
        if missing := [n for n in range(start, start + after) if n >= done]:
            keep_trajectories(tmp_path, "x=1", missing[0], [row(n) for n in missing])
    assert sorted(kept_rows(tmp_path)) == list(range(8))


def test_a_sample_lost_from_the_middle_is_drawn_again_beside_the_others(tmp_path: Path) -> None:
    keep_trajectories(tmp_path, "x=1", 0, [row(n) for n in range(4)])
    drop_unfinished(tmp_path, finished(1, 2, 3))
    keep_trajectories(tmp_path, "x=1", 0, [row(0)])
    assert sorted(kept_rows(tmp_path)) == [0, 1, 2, 3]


def test_a_file_where_the_folder_belongs_is_told(tmp_path: Path) -> None:
    (tmp_path / "trajectories").write_text("")
    with pytest.raises(TrajectoryError, match=r"could not make the folder .*; make room, or give another --output"):
        keep_trajectories(tmp_path, "x=1", 0, [row(0)])
