"""One process, two replicas, two shards: the same numbers, full and LoRA, full and block attention."""

from dataclasses import replace
from pathlib import Path

import pytest

from unmask.train.loop import Outcome, _Run
from unmask.train.parallel import World
from unmask.train.settings import StageSettings

from training_runs import (
    Job,
    alone,
    assert_same_log,
    changed,
    cut_back,
    make_data,
    records,
    run_jobs,
    tiny_stage,
    together,
)

CASES = [(attention, lora) for attention in ("full", "block") for lora in (False, True)]
NAMES = [f"{attention}-{'lora' if lora else 'whole'}" for attention, lora in CASES]
LAYOUTS = ("ddp", "fsdp")
ROUNDING = 5e-6  # the same to five decimals


def stages(data: Path) -> dict[str, StageSettings]:
    return {
        name: tiny_stage(data, attention=attention, lora=lora)
        for name, (attention, lora) in zip(NAMES, CASES, strict=True)
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: in one process, then in two, where some go on from a checkpoint of one, then one from two."""
    here = make_data(tmp_path_factory.mktemp("runs"))
    found = stages(here)
    for name, stage in found.items():
        alone(stage, here / "none" / name)
    jobs = [
        Job(stage=stage, folder=here / layout / name, layout=layout)  # type: ignore[arg-type]
        for layout in LAYOUTS
        for name, stage in found.items()
    ]
    for name, layout in (("full-whole", "fsdp"), ("block-lora", "ddp"), ("full-lora", "fsdp")):
        folder = cut_back(here / "none" / name, here / "from-one" / name, step=2)
        jobs.append(Job(stage=found[name], folder=folder, layout=layout, resume=True))  # type: ignore[arg-type]
    together(run_jobs, jobs)
    return here


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_has_the_losses_and_the_heldout_losses_of_one_process(runs: Path, layout: str, name: str) -> None:
    assert len(records(runs / "none" / name)) == 6 + 2
    assert_same_log(runs / "none" / name, runs / layout / name, tolerance=ROUNDING)


def test_the_losses_move_so_that_the_comparison_says_something(runs: Path) -> None:
    for name in NAMES:
        nelbos = [record["heldout_nelbo"] for record in records(runs / "none" / name) if "heldout_nelbo" in record]
        assert nelbos[1] < nelbos[0] - 0.01, name


@pytest.mark.parametrize("name", ["full-whole", "block-lora", "full-lora"])
def test_two_processes_go_on_from_the_checkpoint_of_one(runs: Path, name: str) -> None:
    assert_same_log(runs / "none" / name, runs / "from-one" / name, tolerance=ROUNDING)


@pytest.mark.parametrize(("name", "layout"), [("full-whole", "fsdp"), ("full-lora", "ddp"), ("block-lora", "fsdp")])
def test_one_process_goes_on_from_the_checkpoint_of_two(runs: Path, tmp_path: Path, name: str, layout: str) -> None:
    folder = cut_back(runs / layout / name, tmp_path / "run", step=2)
    outcome: Outcome = alone(stages(runs)[name], folder, resume=True)
    assert outcome.is_done
    assert_same_log(runs / "none" / name, folder, tolerance=ROUNDING)


@pytest.mark.parametrize("name", ["full-whole", "block-lora"])
def test_micro_batches_of_another_size_have_the_same_losses(runs: Path, tmp_path: Path, name: str) -> None:
    alone(changed(stages(runs)[name], "data", micro_rows=8), tmp_path / "run")
    assert_same_log(runs / "none" / name, tmp_path / "run", tolerance=ROUNDING)


@pytest.mark.parametrize("name", ["full-whole", "block-lora"])
def test_recomputed_activations_have_the_same_losses(runs: Path, tmp_path: Path, name: str) -> None:
    alone(changed(stages(runs)[name], "run", checkpoint_layers=True), tmp_path / "run")
    assert_same_log(runs / "none" / name, tmp_path / "run", tolerance=1e-6)


def test_bfloat16_products_come_near_float32_ones(runs: Path, tmp_path: Path) -> None:
    alone(changed(stages(runs)["full-whole"], "run", precision="bfloat16"), tmp_path / "run")
    assert_same_log(runs / "none" / "full-whole", tmp_path / "run", tolerance=0.1)
    assert records(tmp_path / "run") != records(runs / "none" / "full-whole")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_without_a_masked_token_takes_part(tmp_path: Path, layout: str) -> None:
    data = make_data(tmp_path)
    # Pairs in rows of their own and hardly any noise: most rows mask one token or, as Bernoulli does, none.
    stage = tiny_stage(data, steps=4)
    stage = changed(stage, "data", train=stage.data.heldout, heldout=(), rows=2, micro_rows=1)
    corruption = replace(stage.loss.corruption, kind="bernoulli", t_min=0.0, t_max=0.04)
    stage = changed(stage, "loss", corruption=corruption)
    alone(stage, tmp_path / "alone")
    run = _Run(stage, tmp_path / "look", world=World(), evaluator=None, quiet=True)
    masked = [[len(batch.target_M) for batch in run.batches(step)] for step in range(stage.steps)]
    assert any(0 in counts and any(counts) for counts in masked), "one rank has nothing and the other something"
    assert [0, 0] in masked
    together(run_jobs, [Job(stage=stage, folder=tmp_path / "two", layout=layout)])  # type: ignore[arg-type]
    assert_same_log(tmp_path / "alone", tmp_path / "two", tolerance=ROUNDING)
