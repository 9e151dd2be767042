"""The recipes: each builds whole, keeps to the paper where it says so, and is found by name or by file."""

import dataclasses
from pathlib import Path

import pytest

from unmask import recipes
from unmask.errors import SettingsError
from unmask.model.table import find
from unmask.train.draft_settings import DraftStage
from unmask.train.grpo_settings import GrpoStage
from unmask.train.settings import Recipe, StageSettings, as_record

FOLDER = Path("runs/mine")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_builds_and_bears_its_name(name: str) -> None:
    recipe = recipes.find(name, FOLDER)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.needs
    assert all(stage.note for stage in recipe.stages)
    stages = [stage.name for stage in recipe.stages]
    assert len(set(stages)) == len(stages) > 0
    assert as_record(recipe.stages[0])["name"] == stages[0]


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_stage_starts_from_nothing_from_outside_or_from_one_before_it(name: str) -> None:
    before: set[str] = set()
    for stage in recipes.find(name, FOLDER).stages:
        if Path(stage.model.source).is_relative_to(FOLDER):
            assert stage.model.source in before
        else:
            assert stage.model.config is not None  # so that a plan needs no weights
        before.add(str(FOLDER / stage.name / "final"))


@pytest.mark.parametrize("name", recipes.NAMES)
def test_diffusion_attends_both_ways_and_autoregression_does_not(name: str) -> None:
    for stage in recipes.find(name, FOLDER).stages:
        inherits = stage.model.attention is None
        if isinstance(stage, StageSettings) and stage.loss.kind == "autoregressive":
            assert inherits or stage.model.attention == "causal"
        else:
            assert inherits or stage.model.attention in ("full", "block")


def test_coupled_grpo_has_the_numbers_of_the_paper() -> None:
    (stage,) = recipes.find("diffucoder_7b_cpgrpo", FOLDER).stages
    assert isinstance(stage, GrpoStage)
    assert (stage.rollout.num_generations, stage.rollout.temperature, stage.policy.iterations) == (10, 1.2, 2)
    assert (stage.policy.epsilon, stage.policy.beta, stage.policy.sync_every) == (0.5, 0.01, 64)
    assert (stage.estimator.name, stage.estimator.t_range) == ("coupled", (0.2, 0.8))
    assert stage.reward.weighted == (("pass_fraction", 2.0), ("code_format", 0.5))
    assert stage.answers_per_step == 80
    assert stage.most_views == 3
    assert stage.evaluation.preset == stage.prompts.preset  # the best checkpoint is chosen as it is trained to answer


def test_what_was_released_differs_from_the_paper_where_it_is_said_to() -> None:
    (paper,) = recipes.find("diffucoder_7b_cpgrpo", FOLDER).stages
    (released,) = recipes.find("diffucoder_7b_cpgrpo_released", FOLDER).stages
    assert isinstance(paper, GrpoStage)
    assert isinstance(released, GrpoStage)
    differing = {
        f"{group}.{field.name}" if group else field.name: (getattr(one, field.name), getattr(other, field.name))
        for group, one, other in (
            *((name, getattr(paper, name), getattr(released, name)) for name in ("rollout", "policy", "reward")),
            ("estimator", paper.estimator, released.estimator),
            ("prompts", paper.prompts, released.prompts),
        )
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(other, field.name)
    }
    assert differing == {
        "rollout.temperature": (1.2, 1.0),
        "policy.baseline": ("group_mean", "leave_one_out"),
        "policy.score_temperature": (None, 1.0),
        "policy.no_spread": ("filter", "keep"),
    }
    assert (released.seed, released.steps, released.optimiser, released.schedule) == (
        *(paper.seed, paper.steps, paper.optimiser, paper.schedule),
    )


def test_the_drafter_is_of_the_model_that_decodes_here_and_its_blocks_grow() -> None:
    (stage,) = recipes.find("qwen_0_5b_block", FOLDER).stages
    assert isinstance(stage, DraftStage)
    assert stage.model.source == find("qwen2.5-coder-0.5b-instruct").name
    assert [stage.draft.length_at(step, steps=stage.steps) for step in (0, 116, 117, 291, 292, 1949)] == [
        *(2, 2, 4, 4, 8, 8)
    ]
    assert [Path(source.path).name for source in (*stage.data.train, *stage.data.heldout)] == [
        *("answers", "code", "heldout")
    ]


def test_the_twin_of_tiny_sees_the_same_rows_at_the_same_length() -> None:
    recipe = recipes.find("tiny", FOLDER)
    stages = {stage.name: stage for stage in recipe.stages}
    assert len({stages[name].seed for name in ("pretrain", "adapt", "mid", "sft", "sft-2")}) == 5  # or all begin alike
    for name in ("adapt", "mid", "sft", "sft-2"):
        one, twin = stages[name], stages[f"twin-{name}"]
        assert (one.seed, one.data, one.optimiser, one.schedule) == (
            twin.seed,
            twin.data,
            twin.optimiser,
            twin.schedule,
        )
        assert (one.loss.kind, twin.loss.kind) == ("diffusion", "autoregressive")


def test_diffucoder_reads_the_papers_65_billion_tokens_twice() -> None:
    adapt, mid, sft = recipes.find("diffucoder_7b", FOLDER).stages
    for stage in (adapt, mid):
        assert _tokens(stage) == pytest.approx(65e9, rel=0.01)
        assert stage.data.length == 4096
    assert adapt.loss.anneal_steps == 10_000
    assert sft.data.rows * sft.steps == pytest.approx(5 * 436_000, rel=0.01)


def test_a_file_is_a_recipe_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from unmask.train.settings import Recipe, StageSettings\n"
        "def recipe(folder):\n"
        "    return Recipe(name='mine', summary=str(folder), needs='', stages=(StageSettings(name='only'),))\n"
    )
    assert recipes.find(str(path), FOLDER) == Recipe(
        name="mine", summary="runs/mine", needs="", stages=(StageSettings(name="only"),)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipes = 3\n", "defines no function `recipe(folder)`; it returns an unmask.train.settings.Recipe"),
        ("recipe = 3\n", "defines no function `recipe(folder)`"),
        ("def recipe(folder):\n    return {}\n", "returned dict; it must return a Recipe"),
        (
            "from unmask.train.settings import Recipe\n"
            "def recipe(folder):\n    return Recipe(name='', summary='', needs='', stages=())\n",
            "has no stages; give it one or more",
        ),
        (
            "from unmask.train.settings import Recipe, StageSettings\n"
            "def recipe(folder):\n"
            "    return Recipe(name='', summary='', needs='', stages=(StageSettings(name='a'),) * 2)\n",
            "has two stages of the name 'a', which would write into one folder; give them names of their own",
        ),
    ],
)
def test_a_file_that_holds_no_recipe_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        recipes.find(str(path), FOLDER)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_folder_is_no_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "odd.py").mkdir()
    with pytest.raises(SettingsError, match=r"odd\.py is not a file; give the path of a recipe, or one of tiny"):
        recipes.find(str(tmp_path / "odd.py"), FOLDER)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"'qwen' is no recipe; did you mean qwen_0_5b\?.*ends in \.py"):
        recipes.find("qwen", FOLDER)


def _tokens(stage: StageSettings) -> int:
    return stage.steps * stage.tokens_per_step


def test_data_is_made_where_a_stage_reads_it_and_not_where_it_was_given_other_data() -> None:
    recipe = recipes.find("tiny_cpgrpo", FOLDER)
    assert recipe.is_prepared_for(recipe.stages)
    other = recipe.with_changes(["prompts.tasks=mine.jsonl"])
    assert not other.is_prepared_for(other.stages)
    tiny = recipes.find("tiny", FOLDER)  # which says nothing of what it makes
    assert tiny.is_prepared_for(tiny.with_changes(["sft.data.rows=8"]).stages)
    adapted = recipes.find("diffucoder_7b", FOLDER)
    assert not adapted.is_prepared_for(adapted.stages)
