"""A run that is killed, stopped or told to go on ends as one that was never touched."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import CheckpointError
from unmask.train.checks import is_done
from unmask.train.loop import Outcome, _Run, train_stage
from unmask.train.parallel import Layout, World
from unmask.train.settings import SourceSettings, StageSettings

from training_runs import (
    Job,
    alone,
    assert_same_bits,
    assert_same_log,
    changed,
    cut_back,
    kill,
    make_data,
    records,
    run_jobs,
    start,
    tiny_stage,
    together,
    wait,
    write_texts,
)

STEPS = 10
DRAWN = random.Random(20250620)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def long_stage(data: Path, **changes: Any) -> StageSettings:
    """Checkpoints, records and evaluations at steps that have little to do with each other."""
    stage: StageSettings = tiny_stage(data, steps=STEPS, **changes)
    stage = changed(changed(stage, "evaluation", every=5), "data", micro_rows=4)
    return changed(stage, "run", save_every=3, log_every=2)


def train_till_killed(who: World, stage: StageSettings, folder: Path, layout: Layout = "none") -> None:
    """The run, whose last step takes as long as it takes to be killed."""

    def before(step: int) -> None:
        if step == stage.steps - 1:
            time.sleep(300)

    _train(replace(who, layout=layout), stage, folder, before)


def train_till_sigterm(who: World, stage: StageSettings, folder: Path, layout: Layout = "none") -> None:
    """The run, whose last rank is told to stop in the step after the fourth."""

    def before(step: int) -> None:
        if step == 4 and who.rank == who.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = _train(replace(who, layout=layout), stage, folder, before)
    assert (outcome.is_done, outcome.step) == (False, 5)


def _train(who: World, stage: StageSettings, folder: Path, before: Callable[[int], None]) -> Outcome:
    whole = _Run.make_step

    def make_step(self: _Run, step: int) -> Any:
        before(step)
        return whole(self, step)

    _Run.make_step = make_step  # type: ignore[method-assign]
    return train_stage(stage, folder, world=who, quiet=True)


def assert_ended_alike(one: Path, other: Path) -> None:
    assert_same_bits(one, other)
    assert_same_log(one, other, tolerance=0.0)


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(data: Path, tmp_path: Path, lora: bool) -> None:
    stage = long_stage(data, lora=lora)
    alone(stage, tmp_path / "whole")
    folder = tmp_path / "killed"
    processes = start(train_till_killed, stage, folder)
    kill(processes, folder, step=DRAWN.randrange(4, STEPS - 2))
    assert wait(processes[0]) == -signal.SIGKILL
    assert not (folder / "final").exists()
    alone(stage, folder, resume=True)
    assert_ended_alike(tmp_path / "whole", folder)


@pytest.mark.parametrize(("layout", "lora"), [("fsdp", False), ("ddp", True)])
def test_two_killed_processes_end_bit_for_bit_as_two_that_were_not(
    data: Path, tmp_path: Path, layout: Layout, lora: bool
) -> None:
    stage = long_stage(data, lora=lora)
    folder = tmp_path / "killed"
    processes = start(train_till_killed, stage, folder, layout, size=2)
    kill(processes, folder, step=DRAWN.randrange(4, STEPS - 2))
    assert [wait(process) for process in processes] == [-signal.SIGKILL] * 2
    together(
        run_jobs,
        [
            Job(stage=stage, folder=tmp_path / "whole", layout=layout),
            Job(stage=stage, folder=folder, layout=layout, resume=True),
        ],
    )
    assert_ended_alike(tmp_path / "whole", folder)


def test_sigterm_saves_and_ends_in_order_and_the_run_goes_on_from_there(data: Path, tmp_path: Path) -> None:
    stage = long_stage(data)
    alone(stage, tmp_path / "whole")
    folder = tmp_path / "stopped"
    (process,) = start(train_till_sigterm, stage, folder)
    assert wait(process) == 0
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert saved == ["step-00000003", "step-00000005"]
    assert not (folder / "final").exists()
    alone(stage, folder, resume=True)
    assert_ended_alike(tmp_path / "whole", folder)


def test_sigterm_to_one_of_two_ends_both_in_order(data: Path, tmp_path: Path) -> None:
    stage = changed(long_stage(data), "run", save_every=1000)
    folder = tmp_path / "stopped"
    processes = start(train_till_sigterm, stage, folder, "fsdp", size=2)
    assert [wait(process) for process in processes] == [0, 0]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("step", [3, 9])
def test_a_checkpoint_between_two_records_leaves_no_gap_in_the_log(data: Path, tmp_path: Path, step: int) -> None:
    stage = changed(long_stage(data), "run", log_every=4)
    alone(stage, tmp_path / "whole")
    folder = cut_back(tmp_path / "whole", tmp_path / "cut", step=step)
    alone(stage, folder, resume=True)
    assert_ended_alike(tmp_path / "whole", folder)


def test_an_autoregressive_run_resumes_too(data: Path, tmp_path: Path) -> None:
    stage = long_stage(data, attention="causal")
    alone(stage, tmp_path / "whole")
    folder = cut_back(tmp_path / "whole", tmp_path / "cut", step=6)
    alone(stage, folder, resume=True)
    assert_ended_alike(tmp_path / "whole", folder)
    assert all("loss_by_level" not in record for record in records(folder))


def test_going_on_with_a_finished_stage_changes_nothing(data: Path, tmp_path: Path) -> None:
    stage = tiny_stage(data, steps=4)
    alone(stage, tmp_path / "run")
    before = shutil.copytree(tmp_path / "run", tmp_path / "before")
    outcome = alone(stage, tmp_path / "run", resume=True)
    assert outcome.is_done
    assert outcome.step == 4
    assert_ended_alike(before, tmp_path / "run")
    assert (before / "metrics.jsonl").read_bytes() == (tmp_path / "run" / "metrics.jsonl").read_bytes()


def test_torn_checkpoints_are_passed_over_and_cleared_away(data: Path, tmp_path: Path) -> None:
    stage = tiny_stage(data, steps=6)
    alone(stage, tmp_path / "whole")
    folder = cut_back(tmp_path / "whole", tmp_path / "torn", step=4)
    checkpoints = folder / "checkpoints"
    (checkpoints / "step-00000004" / "meta.json").unlink()
    shutil.copytree(checkpoints / "step-00000002", checkpoints / ".step-00000005.partial")
    alone(stage, folder, resume=True)
    assert_ended_alike(tmp_path / "whole", folder)
    assert not list(checkpoints.glob(".*"))


def test_without_resume_a_run_that_is_there_is_left_alone(data: Path, tmp_path: Path) -> None:
    alone(tiny_stage(data, steps=2), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run holds a run at step 2; go on with --resume, or begin anew in"):
        alone(tiny_stage(data, steps=2), tmp_path / "run")


def test_with_resume_a_run_without_a_checkpoint_begins(data: Path, tmp_path: Path) -> None:
    stage = tiny_stage(data, steps=2)
    alone(stage, tmp_path / "whole")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step"', encoding="utf-8")
    alone(stage, tmp_path / "begun", resume=True)
    assert_ended_alike(tmp_path / "whole", tmp_path / "begun")


def test_other_settings_are_refused_by_name_and_how_to_run_may_change(data: Path, tmp_path: Path) -> None:
    stage = tiny_stage(data, steps=4)
    alone(stage, tmp_path / "run")
    other = changed(changed(stage, "optimiser", eps=0.5), "data", rows=16)
    with pytest.raises(
        CheckpointError,
        match=r"made with other settings; different are optimiser.eps \(1e-08 there, 0.5 now\), data.rows \(8 there, "
        r"16 now\)\. Resume with the settings of the run, or begin anew in another --output",
    ):
        alone(other, tmp_path / "run", resume=True)
    assert alone(changed(stage, "run", log_every=7, keep=1), tmp_path / "run", resume=True).is_done


def test_the_learning_rate_may_be_lowered_at_a_resume_and_it_is_said(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = tiny_stage(data, steps=4)
    alone(stage, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    alone(changed(stage, "optimiser", lr=0.001), tmp_path / "run", resume=True)
    assert "going on with other settings than before: optimiser.lr (0.01 there, 0.001 now)" in caplog.text
    rates = {record["step"]: record["lr"] for record in records(tmp_path / "run") if "lr" in record}
    assert rates[4] < 0.002 < rates[2]
    assert is_done(changed(stage, "optimiser", lr=0.001), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"final was made with other settings; different are optimiser.lr"):
        is_done(stage, tmp_path / "run")


def test_rows_that_were_built_anew_are_refused_at_a_resume(data: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", [f"x = {n}\n" * 9 for n in range(40)])
    source = SourceSettings(path=str(tmp_path / "texts"))
    stage = changed(tiny_stage(data, steps=4), "data", train=(source,), heldout=())
    alone(stage, tmp_path / "run")
    shutil.rmtree(tmp_path / "texts")
    write_texts(tmp_path / "texts", [f"y = {n}\n" * 9 for n in range(40)])
    with pytest.raises(CheckpointError, match=r"made with other data; the shards of .*texts have been built anew"):
        alone(stage, tmp_path / "run", resume=True)
