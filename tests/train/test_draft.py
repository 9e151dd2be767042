"""The loop that trains a drafter: it learns, resumes to the bit, shares its rows, and leaves a drafter behind."""

import json
import math
import signal
from dataclasses import replace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from unmask.errors import SettingsError
from unmask.model.backbone import Backbone
from unmask.model.drafter_files import attach_drafter
from unmask.model.lora import LoraSettings
from unmask.train import draft
from unmask.train.checks import is_done
from unmask.train.draft import _agreement, _losses, _shares, train_draft
from unmask.train.draft_settings import DraftSettings, DraftStage
from unmask.train.drafting import Drafted
from unmask.train.metrics import read_metrics
from unmask.train.network import fresh_backbone
from unmask.train.optimiser import OptimiserSettings
from unmask.train.parallel import World
from unmask.train.schedule import Schedule
from unmask.train.settings import (
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    RunSettings,
    SourceSettings,
    with_values,
)
from unmask.train.sources import frequent_tokens

from training_runs import LENGTH, SHAPE, cut_back, make_data, records, together


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

    train_draft(stage, Path(folder), world=replace(world, layout=stage.run.parallel), quiet=True)


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


def test_blocks_grow_over_the_run_and_a_resume_between_lengths_changes_nothing(data, tmp_path):
    """Six steps: one of blocks of one token, two of two, and three of three."""
    stage = stage_of(data, curriculum=((0.0, 1), (0.2, 2), (0.5, 3)), revealed=0.5)
    train_draft(stage, tmp_path / "whole", world=World(), quiet=True)
    lines = [line for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    reached = [[share is not None for share in line["acceptance"]] for line in lines]
    assert reached == [[True, False, False]] + [[True, True, False]] * 2 + [[True, True, True]] * 3
    assert all(line["tokens_per_round"] == pytest.approx(slow_chain(line["acceptance"])) for line in lines)
    half = cut_back(tmp_path / "whole", tmp_path / "half", step=2)
    train_draft(stage, half, world=World(), resume=True, quiet=True)
    assert same(weights(tmp_path / "whole"), weights(half))
    assert records(tmp_path / "whole") == records(half)


def slow_chain(shares):
    known = [share for share in shares if share is not None]
    return 1 + sum(math.prod(known[: n + 1]) for n in range(len(known)))


def test_drafts_are_measured_on_blocks_that_show_nothing(data, tmp_path):
    """What is held out is measured alike whatever the steps train on, and a step counts none of its open blocks."""
    kinds = {"plain": {"revealed": 0.0}, "open": {"revealed": 0.9}, "short": {"curriculum": ((0.0, 1), (0.9, 3))}}
    outcomes, lines = {}, {}
    for name, changes in kinds.items():
        stage = stage_of(data, steps=2, **changes)
        still = replace(stage, optimiser=OptimiserSettings(lr=1e-30, weight_decay=0.0))
        outcomes[name] = train_draft(still, tmp_path / name, world=World(), quiet=True).last
        lines[name] = read_metrics(tmp_path / name / "metrics.jsonl")[0]
    assert outcomes["plain"] == outcomes["open"] == outcomes["short"]
    assert len(outcomes["short"]["heldout_acceptance"]) == 3
    with mock.patch("unmask.train.draft._agreement", return_value=torch.zeros(3, 2, dtype=torch.float64)):
        empty = train_draft(stage_of(data, steps=2), tmp_path / "empty", world=World(), quiet=True).last
    assert (empty["heldout_acceptance"], empty["heldout_tokens_per_round"]) == ([None, None, None], 1.0)


def test_an_open_block_counts_in_the_loss_alone():
    drafted = Drafted(
        hard_M=torch.tensor([1.0, 2.0, 4.0]),
        soft_M=torch.zeros(3),
        blind_M=torch.zeros(3),
        is_word_M=torch.tensor([True, True, True]),
        agrees_M=torch.tensor([True, False, True]),
        distance_M=torch.tensor([1, 2, 1]),
        is_closed_M=torch.tensor([True, True, False]),
    )
    assert _agreement(drafted, 3).tolist() == [[1, 1], [0, 1], [0, 0]]
    assert _shares(_agreement(drafted, 3)) == [1.0, 0.0, None]
    loss, _ = _losses(drafted, DraftStage(name="a", draft=DraftSettings(hard=1.0, decay=0.5)))
    assert float(loss) == pytest.approx(1.0 + 0.5 * 2.0 + 4.0)


def test_an_evaluation_that_a_stop_leaves_out_is_made_at_the_resume(data, tmp_path):
    stage = replace(stage_of(data), evaluation=EvaluationSettings(every=3, documents=8))
    train_draft(stage, tmp_path / "whole", world=World(), quiet=True)
    plain = draft._Run.make_step

    def make_step(run, step):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(run, step)

    with mock.patch.object(draft._Run, "make_step", make_step):
        stopped = train_draft(stage, tmp_path / "half", world=World(), quiet=True)
    assert (stopped.is_done, stopped.step) == (False, 3)
    train_draft(stage, tmp_path / "half", world=World(), resume=True, quiet=True)
    assert records(tmp_path / "whole") == records(tmp_path / "half")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "half"))


def test_a_run_is_done_when_its_drafter_is_whole(data, tmp_path):
    stage = stage_of(data, steps=2)
    assert not is_done(stage, tmp_path)
    train_draft(stage, tmp_path, world=World(), quiet=True)
    assert is_done(stage, tmp_path)
    config = tmp_path / "final" / "adapter_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "unmask_drafter"}))
    assert not is_done(stage, tmp_path), "the export had begun and not ended"


def test_two_processes_learn_what_one_does(data, tmp_path):
    stage = stage_of(data, steps=3)
    train_draft(stage, tmp_path / "one", world=World(), quiet=True)
    together(by_two, replace(stage, run=replace(stage.run, parallel="ddp")), str(tmp_path / "two"))
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_rank_without_heldout_rows_takes_part_in_their_measure(data, tmp_path):
    stage = stage_of(data, steps=2)
    stage = replace(stage, evaluation=replace(stage.evaluation, documents=3))
    one = train_draft(stage, tmp_path / "one", world=World(), quiet=True).last
    together(by_two, replace(stage, run=replace(stage.run, parallel="fsdp")), str(tmp_path / "two"), limit=60)
    two = read_metrics(tmp_path / "two" / "metrics.jsonl")[-1]
    assert two["heldout_soft"] == pytest.approx(one["heldout_soft"], abs=1e-5)
    drafters = [load_file(tmp_path / name / "final" / "drafter.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(drafters[0][name], drafters[1][name], atol=1e-2) for name in drafters[0])


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
    with pytest.raises(SettingsError, match=r"draft\.revealed=1 lies outside \[0, 1\).*0\.25 is usual"):
        DraftSettings(revealed=1)
    stage = replace(stage_of(data), model=replace(stage_of(data).model, attention="full"))
    with pytest.raises(SettingsError, match="writes ahead of a causal parent"):
        train_draft(stage, data / "nothing", world=World(), quiet=True)


@pytest.mark.parametrize(
    ("curriculum", "words"),
    [
        (((0.1, 2), (0.4, 8)), "says nothing of the run before 0.1 of it; let the first entry begin at 0, as in 0:2"),
        (((0, 2), (0.4, 4), (0.4, 8)), "begins later than the one before it, at a share of the run below 1"),
        (((0, 2), (1, 8)), "begins later than the one before it, at a share of the run below 1"),
        (((0, 4), (0.4, 2), (0.6, 8)), "block lengths rise from 1 or more, as in 0:2,0.2:4,0.4:8"),
        (((0, 0), (0.4, 8)), "block lengths rise from 1 or more"),
        (
            ((0, 2), (0.4, 4)),
            "draft.curriculum=0:2,0.4:4 ends at blocks of 4 and draft.block_length=8; the last must be the same: set "
            "draft.block_length=4 too, or leave the curriculum empty",
        ),
    ],
)
def test_a_curriculum_that_is_none_is_refused(curriculum, words):
    with pytest.raises(SettingsError) as caught:
        DraftSettings(block_length=8, curriculum=curriculum)
    assert words in str(caught.value)


def test_a_curriculum_is_set_from_the_command_line():
    stage = DraftStage(name="draft")
    changed = with_values(stage, {"draft.block_length": "8", "draft.curriculum": "0:2, 0.2:4, 0.4:8"})
    assert changed.draft.curriculum == ((0.0, 2), (0.2, 4), (0.4, 8))
    assert with_values(changed, {"draft.curriculum": ""}).draft.curriculum == ()
    for text, words in (("2,4", "'2' needs 2 values separated by a colon, as in 0.2:4"), ("0:2.5", "a whole number")):
        with pytest.raises(SettingsError) as caught:
            with_values(stage, {"draft.curriculum": text})
        assert f"--set draft.curriculum={text}: " in str(caught.value)
        assert words in str(caught.value)
