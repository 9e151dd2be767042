"""Runs in groups: which files make one, and what is measured of each."""

import gc
import json
from dataclasses import replace
from numbers import Number
from pathlib import Path

import pytest

from unmask.analyze.groups import NothingMeasured, RunGroup, analyse, analyse_all, differing, read_groups, together
from unmask.analyze.measure import measure
from unmask.errors import TrajectoryError
from unmask.trajectory import Commit, Step, Trajectory, save


def run(order: list[int], *, model: str = "m", seen: bool = True, pieces: str = "f(x)") -> Trajectory:
    """One token of the prompt, then an answer whose places are settled in this order, one per step."""
    steps = [Step(commits=[Commit(0, place, place, 0.9, 0.1)]) for place in order]
    if seen:
        steps[0].seen = [(place, 1 / place, 0.1) for place in sorted(order)]
    return Trajectory(
        initial_ids=[0, *[None] * len(order)],
        steps=steps,
        model=model,
        settings={"temperature": 0.2},
        pieces={0: "ask: ", **dict(enumerate(pieces, 1))},
        num_forwards=len(order),
    )


def test_a_file_is_a_group_and_a_folder_of_files_is_one(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", [run([1, 2, 3, 4]), run([4, 3, 2, 1])])
    save(tmp_path / "b.jsonl", [run([1, 2, 4, 3])])
    one, other = read_groups([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert (one.label, len(one.runs), other.label, len(other.runs)) == ("a.jsonl", 2, "b.jsonl", 1)
    (whole,) = read_groups([tmp_path])
    assert (whole.label, len(whole.runs)) == (tmp_path.name, 3)


def test_an_evaluation_has_a_group_for_each_cell(tmp_path: Path) -> None:
    for cell, batches in {"cold": 2, "warm": 1}.items():
        (tmp_path / "trajectories" / cell).mkdir(parents=True)
        for batch in range(batches):
            save(tmp_path / "trajectories" / cell / f"{batch:06d}.jsonl", [run([1, 2, 3, 4])])
    groups = read_groups([tmp_path])
    assert [(g.label, len(g.runs)) for g in groups] == [(f"{tmp_path.name}: cold", 2), (f"{tmp_path.name}: warm", 1)]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "run.jsonl", [run([1, 2, 3, 4])])
    paths = [tmp_path / "x" / "run.jsonl", tmp_path / "y" / "run.jsonl"]
    assert [group.label for group in read_groups(paths)] == [str(path) for path in paths]


def test_models_are_never_averaged_together(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", [run([1, 2, 3, 4]), run([4, 3, 2, 1], model="other")])
    groups = read_groups([tmp_path / "a.jsonl"])
    assert [group.label for group in groups] == ["a.jsonl: m", "a.jsonl: other"]
    assert [analyse(group).summary.local[1].value for group in groups] == [1.0, 0.0]


def test_an_analysis_holds_what_the_single_measures_say() -> None:
    runs = (run([1, 2, 3, 4]), run([1, 2, 4, 3]), replace(run([1]), steps=[]))
    found = analyse(RunGroup(label="a", runs=runs))
    ones = [measure(each) for each in runs[:2]]
    assert found.summary.local[1].value == pytest.approx(sum(one.local[1] for one in ones) / 2)
    assert (found.summary.num_runs, found.summary.num_empty, [shape.num_settled for shape in found.shapes]) == (
        2,
        1,
        [4, 4],
    )
    assert found.sink is not None
    assert [point.confidence.value for point in found.sink.points] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    record = found.to_json()
    assert record["label"] == "a"
    assert isinstance(record["local_ar_ness"]["1"], Number)
    assert set(record["global_ar_ness"]) == {"1", "2", "3", "4"}
    assert record["syntax"]["settle_time"]["bracket"]["num_tokens"] == 4


def test_without_a_first_view_there_is_no_sink_and_the_rest_is_there() -> None:
    found = analyse(RunGroup(label="old", runs=(run([1, 2, 3, 4], seen=False),)))
    assert found.sink is None
    assert found.to_json()["entropy_sink"] is None
    assert found.summary.local[1].value == 1


def test_a_group_of_empty_runs_is_refused_by_name() -> None:
    with pytest.raises(TrajectoryError, match="idle: nothing was settled in the run; they were stopped"):
        analyse(RunGroup(label="idle", runs=(replace(run([1]), steps=[]),)))


def test_a_folder_without_trajectories_says_what_writes_them(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"holds no trajectories; `unmask evaluate … --trajectories`"):
        read_groups([tmp_path])
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(TrajectoryError, match="holds no trajectories"):
        read_groups([tmp_path])


def test_a_cell_without_files_is_skipped_and_cells_have_the_names_of_the_run(tmp_path: Path) -> None:
    for cell in ("temperature-0.2", "temperature-1.0"):
        (tmp_path / "trajectories" / cell).mkdir(parents=True)
    (tmp_path / "run.json").write_text(json.dumps({"cells": {"temperature=0.2": {}, "temperature=1.0": {}}}))
    with pytest.raises(TrajectoryError, match="holds no trajectories"):
        read_groups([tmp_path])
    save(tmp_path / "trajectories" / "temperature-1.0" / "000000.jsonl", [run([1, 2])])
    assert [group.label for group in read_groups([tmp_path])] == [f"{tmp_path.name}: temperature=1.0"]


def test_the_folder_one_is_in_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.jsonl", [run([1, 2])])
    monkeypatch.chdir(tmp_path)
    assert [group.label for group in read_groups([Path()])] == [tmp_path.name]


def test_a_path_given_twice_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", [run([1, 2])])
    with pytest.raises(TrajectoryError, match=r"a.jsonl is given twice.*same place.*; leave one out"):
        read_groups([tmp_path / "a.jsonl", tmp_path / ".." / tmp_path.name / "a.jsonl"])


def test_the_collector_is_on_again_also_after_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(TrajectoryError):
        read_groups([tmp_path / "bad.jsonl"])
    assert gc.isenabled()


def test_an_empty_group_is_left_out_with_its_reason_and_none_left_is_refused() -> None:
    idle = RunGroup(label="idle", runs=(replace(run([1]), steps=[]),))
    pairs, left_out = analyse_all([idle, RunGroup(label="a", runs=(run([1, 2, 3]),))])
    assert [analysis.label for _, analysis in pairs] == ["a"]
    assert left_out["idle"].startswith("nothing was settled in the run;")
    with pytest.raises(NothingMeasured, match="idle: nothing was settled"):
        analyse_all([idle])


def test_runs_of_one_model_are_pooled_and_what_they_differ_in_is_named() -> None:
    one, other = RunGroup(label="a", runs=(run([1, 2, 3]),)), RunGroup(label="b", runs=(run([3, 2, 1]),))
    pooled = together(analyse_all([one, other])[0])
    assert pooled is not None
    assert pooled.summary.local[1].value == 0.5
    assert differing([one, other]) == []
    seeded = RunGroup(label="s", runs=(replace(run([1, 2, 3]), settings={**run([1]).settings, "seed": 3}),))
    assert differing([one, seeded]) == []
    warm = RunGroup(label="c", runs=(replace(run([3, 2, 1]), settings={"temperature": 1.0}),))
    assert together(analyse_all([one, warm])[0]) is not None
    assert differing([one, warm]) == ["temperature"]
    foreign = RunGroup(label="d", runs=(replace(run([3, 2, 1]), model="other"),))
    assert together(analyse_all([one, foreign])[0]) is None
    assert differing([one, foreign]) == ["model"]
