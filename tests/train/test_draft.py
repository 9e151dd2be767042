"""The loop that trains a drafter: it learns, resumes to the bit, shares its rows, and leaves a drafter behind."""

from dataclasses import replace

import pytest
import torch

from unmask.errors import SettingsError
from unmask.model.backbone import Backbone
from unmask.model.drafter_files import attach_drafter
from unmask.model.lora import LoraSettings
from unmask.train.draft import train_draft
from unmask.train.draft_settings import DraftSettings, DraftStage
from unmask.train.metrics import read_metrics
from unmask.train.network import fresh_backbone
from unmask.train.optimiser import OptimiserSettings
from unmask.train.parallel import World
from unmask.train.schedule import Schedule
from unmask.train.settings import DataSettings, EvaluationSettings, ModelSettings, RunSettings, SourceSettings
from unmask.train.sources import frequent_tokens

from training_runs import LENGTH, SHAPE, make_data, together


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def stage_of(data, *, steps=6, **draft):
    pairs = SourceSettings(path=str(data / "pairs"), rows="pairs", end_tokens=1)
    return DraftStage(
        name="draft",
        model=ModelSettings(config=SHAPE, tokenizer=str(data / "tokenizer"), mask_token="#260", init_mask_row=False),
        lora=LoraSettings(rank=4, alpha=8.0),
        data=DataSettings(train=(pairs,), heldout=(pairs,), length=LENGTH, rows=8, micro_rows=4),
        draft=DraftSettings(**{"block_length": 3, "words": 64, "inner": 16, **draft}),
        optimiser=OptimiserSettings(lr=2e-2, weight_decay=0.0),
        schedule=Schedule(total_steps=steps, warmup_steps=2),
        run=RunSettings(precision="float32", log_every=1, save_every=2, keep=99),
        evaluation=EvaluationSettings(every=0, documents=8),
    )


def weights(folder):
    backbone = parent()
    drafter = attach_drafter(backbone, folder / "final")
    tensors = {name: value for name, value in backbone.state_dict().items() if "lora" in name or name == "mask_row"}
    return tensors | dict(drafter.head.state_dict())


def parent() -> Backbone:
    return fresh_backbone(SHAPE, seed=0)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_two(world: World, stage: DraftStage, folder: str) -> None:
    from pathlib import Path

    train_draft(stage, Path(folder), world=world, quiet=True)


def test_it_learns_and_leaves_a_drafter_of_its_parent(data, tmp_path):
    outcome = train_draft(stage_of(data, steps=40), tmp_path, world=World(), quiet=True)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert sum(line["hard"] for line in lines[-5:]) < 0.8 * sum(line["hard"] for line in lines[:5])
    assert len(lines[-1]["acceptance"]) == 3
    assert outcome.last["heldout_tokens_per_round"] >= 1
    backbone = parent()
    drafter = attach_drafter(backbone, outcome.folder)
    assert (drafter.block_length, len(drafter.words_W), backbone.config.mask_id) == (3, 64, 260)


def test_a_run_that_stops_half_way_ends_as_one_that_does_not(data, tmp_path):
    stage = stage_of(data)
    train_draft(stage, tmp_path / "whole", world=World(), quiet=True)
    train_draft(stage, tmp_path / "half", world=World(), quiet=True)
    checkpoints = tmp_path / "half" / "checkpoints"
    for late in ("step-00000004", "step-00000006"):
        for file in (checkpoints / late).iterdir():
            file.unlink()
        (checkpoints / late).rmdir()
    train_draft(stage, tmp_path / "half", world=World(), resume=True, quiet=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "half"))


def test_two_processes_learn_what_one_does(data, tmp_path):
    stage = stage_of(data, steps=3)
    train_draft(stage, tmp_path / "one", world=World(), quiet=True)
    together(by_two, replace(stage, run=replace(stage.run, parallel="ddp")), str(tmp_path / "two"))
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_words_are_the_most_frequent_ones(data):
    source = SourceSettings(path=str(data / "texts"))
    few = frequent_tokens([source], 3)
    assert few == sorted(few)
    assert ord(" ") in few
    assert frequent_tokens([source], 0) is None
    assert frequent_tokens([source], 10_000) is None


def test_settings_that_make_no_drafter_are_refused(data):
    with pytest.raises(SettingsError, match="a drafter is an adapter"):
        replace(stage_of(data), lora=None)
    with pytest.raises(SettingsError, match="would change the parent"):
        replace(stage_of(data), lora=LoraSettings(rank=4, train_embeddings=True))
    with pytest.raises(SettingsError, match="have no effect on a drafter"):
        replace(stage_of(data), evaluation=EvaluationSettings(tasks="synthetic-val"))
    with pytest.raises(SettingsError, match="over each other"):
        DraftSettings(block_length=4, stride=3)
    with pytest.raises(SettingsError, match="learns nothing"):
        DraftSettings(hard=0, soft=0)
    stage = replace(stage_of(data), model=replace(stage_of(data).model, attention="full"))
    with pytest.raises(SettingsError, match="writes ahead of a causal parent"):
        train_draft(stage, data / "nothing", world=World(), quiet=True)
