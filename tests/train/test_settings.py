"""Settings of a stage: defaults, `--set`, records, and what is refused in which words."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from unmask import recipes
from unmask.diffusion.settings import Corruption, Objective
from unmask.errors import SettingsError, UnmaskError
from unmask.model.lora import LoraSettings
from unmask.train.draft_settings import DraftSettings, DraftStage
from unmask.train.grpo_settings import GrpoStage
from unmask.train.optimiser import OptimiserSettings
from unmask.train.schedule import Schedule
from unmask.train.settings import (
    DataSettings,
    EvaluationSettings,
    LossSettings,
    ModelSettings,
    Recipe,
    RunSettings,
    SourceSettings,
    StageSettings,
    as_record,
    differences,
    parse_value,
    with_values,
)

RECIPE = Recipe(
    name="two",
    summary="Two stages.",
    needs="Nothing.",
    stages=(
        StageSettings(name="adapt", data=DataSettings(train=(SourceSettings(path="a"), SourceSettings(path="b")))),
        StageSettings(name="sft", lora=LoraSettings(rank=8)),
    ),
)


def test_every_default_is_valid() -> None:
    for kind in (
        ModelSettings,
        DataSettings,
        LossSettings,
        OptimiserSettings,
        Schedule,
        RunSettings,
        EvaluationSettings,
        LoraSettings,
        Corruption,
        Objective,
        DraftSettings,
    ):
        kind()
    SourceSettings(path="folder")
    StageSettings(name="stage")
    DraftStage(name="stage")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_says_what_a_reader_must_know(name: str, tmp_path: Path) -> None:
    recipe = recipes.find(name, tmp_path)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.needs
    assert len({stage.name for stage in recipe.stages}) == len(recipe.stages) > 0
    for stage in recipe.stages:
        assert stage.note, f"{stage.name}: what it is for, and what to expect of its loss"
        assert stage.prompts.tasks if isinstance(stage, GrpoStage) else stage.data.train
        assert json.loads(json.dumps(as_record(stage)))["name"] == stage.name


# --set


@pytest.mark.parametrize(
    ("change", "read", "wanted"),
    [
        ("seed=7", lambda s: s.seed, 7),
        ("optimiser.lr=1e-4", lambda s: s.optimiser.lr, 1e-4),
        ("optimiser.kind=muon", lambda s: s.optimiser.kind, "muon"),
        ("optimiser.betas=0.8, 0.9", lambda s: s.optimiser.betas, (0.8, 0.9)),
        ("schedule.total_steps=1e3", lambda s: s.steps, 1000),
        ("data.rows=1_024", lambda s: s.data.rows, 1024),
        ("ema=0.99", lambda s: s.ema, 0.99),
        ("ema=none", lambda s: s.ema, None),
        ("run.checkpoint_layers=True", lambda s: s.run.checkpoint_layers, True),
        ("run.sinks=tensorboard,wandb", lambda s: s.run.sinks, ("tensorboard", "wandb")),
        ("run.sinks=", lambda s: s.run.sinks, ()),
        ("model.source=a=b", lambda s: s.model.source, "a=b"),
        ("model.attention=full", lambda s: s.model.attention, "full"),
        ("lora.rank=4", lambda s: s.lora.rank, 4),
        ("lora=none", lambda s: s.lora, None),
        ("loss.corruption.truncate_share=0.01", lambda s: s.loss.corruption.truncate_share, 0.01),
        ("evaluation.prompt=def f(x):", lambda s: s.evaluation.prompt, "def f(x):"),
    ],
)
def test_a_change_is_read_by_the_type_of_its_field(change: str, read: Any, wanted: Any) -> None:
    for stage in RECIPE.with_changes([change]).stages:
        found = read(stage)
        assert found == wanted
        assert type(found) is type(wanted)


def test_a_change_is_for_one_stage_where_it_names_one() -> None:
    adapt, sft = RECIPE.with_changes(["sft.data.length=64", "data.rows=16", "adapt.data.rows=8"]).stages
    assert (adapt.data.length, adapt.data.rows) == (512, 8)
    assert (sft.data.length, sft.data.rows) == (64, 16)


def test_the_last_of_two_changes_of_a_setting_counts() -> None:
    assert RECIPE.with_changes(["seed=1", "seed=2"]).stages[0].seed == 2


def test_items_of_a_list_are_set_by_number() -> None:
    adapt = RECIPE.with_changes(["adapt.data.train.1.path=c", "adapt.data.train.1.canvas=16,96"]).stages[0]
    assert [source.path for source in adapt.data.train] == ["a", "c"]
    assert adapt.data.train[1].canvas == (16, 96)


def test_settings_that_need_each_other_are_set_at_once() -> None:
    stage = with_values(
        StageSettings(name="s"),
        {
            "loss.corruption.kind": "block",
            "loss.corruption.block_length": "4",
            "model.block_length": "4",
            "model.attention": "block",
        },
    )
    assert stage.loss.corruption == Corruption(kind="block", block_length=4)
    assert (stage.model.attention, stage.model.block_length) == ("block", 4)


def test_no_change_leaves_everything_as_it_is() -> None:
    assert RECIPE.with_changes([]) == RECIPE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", r"--set lr is not of the form key=value, as in --set optimiser.lr=1e-4"),
        ("=3", r"--set =3 is not of the form key=value"),
        ("optimizer.lr=1", r"'optimizer' is not a setting; did you mean optimiser\b"),
        ("optimiser.Lr=1", r"'Lr' is not a setting of optimiser; did you mean lr\b"),
        ("stf.seed=1", r"'stf' is not a setting; did you mean sft\b"),
        ("seed.x=1", r"seed is a plain value and has no setting 'x'; set it as --set seed=VALUE"),
        ("ema.x=1", r"ema is a plain value and has no setting 'x'; set it as --set ema=VALUE"),
        ("optimiser=adam", r"--set optimiser=adam: has settings of its own: kind, lr"),
        ("optimiser.kind=muno", r"--set optimiser.kind=muno: did you mean muon\b"),
        ("model.attention=ful", r"--set model.attention=ful: did you mean full\b"),
        ("data.rows=many", r"--set data.rows=many: "),
        ("data.rows=1.5e0", r"--set data.rows=1.5e0: needs a whole number"),
        ("data.rows=1e999", r"--set data.rows=1e999: "),
        ("run.compile=yes", r"--set run.compile=yes: needs true or false"),
        ("optimiser.betas=0.9", r"--set optimiser.betas=0.9: needs 2 values separated by commas"),
        ("optimiser.lr=none", r"--set optimiser.lr=none: "),
        ("adapt.data.train.2.path=x", r"data.train has 2 entries, numbered from 0; there is no data.train.2"),
        ("sft.data.train.0.path=x", r"data.train has 0 entries, numbered from 0; there is no data.train.0"),
        ("adapt.data.train.0=x", r"data.train.0 has settings of its own; name one, as in data.train.0.path"),
        ("adapt.data.train=x", r"--set data.train=x: has settings of its own: path, rows"),
        ("adapt.data.train.0.part=2", r"'part' is not a setting of data.train.0; did you mean parts or path"),
    ],
)
def test_a_change_that_cannot_be_is_refused(change: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RECIPE.with_changes([change])


def test_an_unknown_stage_is_refused_with_the_nearest() -> None:
    assert RECIPE.stage("sft").name == "sft"
    with pytest.raises(SettingsError, match=r"'sf' is no stage of the recipe two; did you mean sft\b"):
        RECIPE.stage("sf")


def test_what_has_no_text_form_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be set from the command line; change the recipe"):
        parse_value(bytes, "x")


# What a value must be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("clip_norm=0", r"clip_norm=0.0 would stop all learning; it must be above 0"),
        ("ema=1", r"ema=1.0 is not a decay; it lies between 0 and 1, as in 0.999"),
        ("data.rows=0", r"data.rows=0 must be at least 1"),
        ("data.micro_rows=0", r"data.micro_rows=0 must be at least 1"),
        ("data.length=1", r"data.length=1 leaves nothing to predict; it must be at least 2"),
        ("adapt.data.train.0.parts=0", r"parts=0 of a is not a share; it must be at least 1"),
        ("adapt.data.train.0.end_tokens=-1", r"end_tokens=-1 is not a count; it must be at least 0"),
        ("loss.anneal_steps=-1", r"loss.anneal_steps=-1 is not a number of steps; it must be at least 0"),
        ("run.save_every=0", r"run.save_every=0 must be at least 1"),
        ("run.log_every=0", r"run.log_every=0 must be at least 1"),
        ("run.keep=0", r"run.keep=0 must be at least 1"),
        ("run.timeout_seconds=0", r"run.timeout_seconds=0 must be at least 1"),
        ("evaluation.every=-1", r"evaluation.every=-1 must be at least 0"),
        ("evaluation.samples=0", r"evaluation.samples=0 must be at least 1"),
        ("evaluation.temperature=-1", r"evaluation.temperature=-1.0 must be at least 0"),
        (
            "model.block_length=8",
            r"model.attention=None and model.block_length=8: block attention, and only it, has a block length; set",
        ),
        ("model.attention=block", r"model.attention=block and model.block_length=None: block attention, and only it"),
        ("schedule.total_steps=0", r"total_steps is 0; a run has at least 1 step"),
    ],
)
def test_a_value_out_of_range_is_refused(change: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RECIPE.with_changes([change])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"loss.anneal_steps=5 has no effect on an autoregressive loss; set it to"):
        LossSettings(kind="autoregressive", anneal_steps=5)
    with pytest.raises(SettingsError, match=r"an autoregressive loss masks nothing: it would read each row twice; set"):
        LossSettings(kind="autoregressive", corruption=Corruption(pairs=True))
    with pytest.raises(
        SettingsError, match=r"weight=cart counts visible neighbours, and an autoregressive loss .* none"
    ):
        LossSettings(kind="autoregressive", objective=Objective(weight="cart"))
    with pytest.raises(SettingsError, match=r"loss.corruption.pairs and loss.t_warmup_steps contradict each other"):
        LossSettings(corruption=Corruption(pairs=True), t_warmup_steps=5)
    with pytest.raises(SettingsError, match=r"model.block_length=0 is not a length; it must be at least 1"):
        ModelSettings(attention="block", block_length=0)


# Records


def test_a_record_survives_json_and_differs_from_itself_in_nothing() -> None:
    for stage in RECIPE.stages:
        record = as_record(stage)
        assert differences(json.loads(json.dumps(record)), record) == []
        assert set(record) == {field.name for field in dataclasses.fields(StageSettings)}


def test_a_record_differs_where_one_setting_does() -> None:
    stage = RECIPE.stages[0]
    for change, wanted in (
        ("seed=3", ["seed (0 there, 3 now)"]),
        ("optimiser.lr=0.5", [f"optimiser.lr ({stage.optimiser.lr} there, 0.5 now)"]),
        ("ema=0.5", ["ema (None there, 0.5 now)"]),
    ):
        other = RECIPE.with_changes([change]).stages[0]
        assert differences(as_record(stage), as_record(other)) == wanted


def test_what_is_only_in_one_record_is_a_difference() -> None:
    assert differences({"a": 1}, {"a": 1, "b": 2}) == ["b (None there, 2 now)"]
    assert differences({"a": None}, {"a": {"b": 1}}) == ["a (None there, {'b': 1} now)"]


def test_a_step_has_rows_times_length_tokens() -> None:
    stage = StageSettings(name="s", data=DataSettings(rows=4, length=100), schedule=Schedule(total_steps=7))
    assert (stage.steps, stage.tokens_per_step) == (7, 400)


def test_every_error_is_of_our_tree() -> None:
    with pytest.raises(UnmaskError):
        DataSettings(rows=0)
