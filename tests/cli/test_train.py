"""`unmask train` as a newcomer meets it: a recipe in a file, two stages of a few steps, weights that generate."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from unmask.cli.train import _first_rank_speaks
from unmask.errors import SettingsError
from unmask.evaluate.benchmarks import load
from unmask.model.drafter_files import holds_drafter, read_info
from unmask.recipes import NAMES
from unmask.train import draft, loop
from unmask.train.metrics import read_metrics
from unmask.train.rig import Rig

from command_line import Outcome, refusal, unmask

RECIPE = """
from pathlib import Path

from unmask.data.shards import ShardWriter, fingerprint
from unmask.model.config import ModelConfig
from unmask.text.tokenizer import Tokenizer
from unmask.train.schedule import Schedule
from unmask.train.settings import *

TOKENIZER = Tokenizer.byte_level()
SHAPE = ModelConfig(
    family="qwen2", vocab_size=260, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, num_kv_heads=2,
    head_dim=8, max_positions=64, qkv_bias=True, end_ids=(TOKENIZER.token_to_id("<|endoftext|>"),),
)


def prepare(folder, tell):
    if (folder / "texts").is_dir():
        return
    tell("small: making the data")
    TOKENIZER.save(folder / "tokenizer")
    with ShardWriter(folder / "texts", vocab_size=TOKENIZER.vocab_size, tokenizer=fingerprint(TOKENIZER)) as writer:
        for i in range(40):
            writer.add(TOKENIZER.encode(f"def f_{i}(x):\\n    return x + {i}\\n"))


def recipe(folder: Path) -> Recipe:
    shared = dict(
        data=DataSettings(train=(SourceSettings(path=str(folder / "texts")),), length=32, rows=4, micro_rows=2),
        schedule=Schedule(total_steps=4, warmup_steps=1),
        run=RunSettings(precision="float32", log_every=1, save_every=2),
        evaluation=EvaluationSettings(every=0),
    )
    first = StageSettings(
        name="first",
        note="Reads.",
        model=ModelSettings(config=SHAPE, tokenizer=str(folder / "tokenizer")),
        loss=LossSettings(kind="autoregressive"),
        **shared,
    )
    second = StageSettings(
        name="second",
        model=ModelSettings(source=str(folder / "first" / "final"), attention="full", init_mask_row=True),
        **shared,
    )
    return Recipe(name="small", summary="two stages", needs="nothing", stages=(first, second), prepare=prepare)
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the recipe in it, as if by hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    Path("small.py").write_text(RECIPE)


@pytest.fixture
def no_training() -> Iterator[None]:
    """Whoever trains here, or loads weights, fails."""
    with (
        mock.patch("unmask.train.rig.build_network", side_effect=AssertionError),
        mock.patch("unmask.model.hub.resolve", side_effect=AssertionError),
    ):
        yield


# --- from a recipe to weights -----------------------------------------------------------------------------------------


def test_a_recipe_ends_in_weights_that_generate() -> None:
    outcome = unmask("train", "small.py")
    assert (outcome.code, outcome.out) == (0, b"")
    told = outcome.err.splitlines()
    assert told[:2] == ["small: making the data", "first: 4 steps of 128 tokens"]
    assert "first: done, runs/small/first/final" in told
    assert told[-2:] == [
        "second: done, runs/small/second/final",
        "try it: unmask generate --model runs/small/second/final PROMPT",
    ]
    assert any(line.startswith("step 4/4  loss ") for line in told)
    answered = unmask("generate", "--model", "runs/small/second/final", "def", "--max-new-tokens", 4, "--json")
    assert answered.code == 0
    assert json.loads(answered.out)["num_forwards"] >= 1


RL_RECIPE = """
from unmask.reward.settings import RewardSettings
from unmask.train.grpo_settings import GrpoStage
from unmask.train.prompts import PromptSettings
from unmask.train.rollout import RolloutSettings
from unmask.train.schedule import Schedule
from unmask.train.settings import *


def recipe(folder):
    stage = GrpoStage(
        name="rl",
        model=ModelSettings(source="runs/small/second/final"),
        prompts=PromptSettings(tasks=("tasks.jsonl",), preset="base", max_new_tokens=6),
        rollout=RolloutSettings(num_generations=4, temperature=1.0),
        reward=RewardSettings(functions=("pass_fraction*2.0", "rewards.py:low_ids")),
        prompts_per_step=2,
        schedule=Schedule(total_steps=4, warmup_steps=1),
        run=RunSettings(precision="float32", log_every=1, save_every=2),
        evaluation=EvaluationSettings(every=0),
        card_every=1,
    )
    return Recipe(name="rl", summary="answers", needs="weights", stages=(stage,))
"""


def test_reinforcement_learning_goes_on_from_trained_weights_and_leaves_cards() -> None:
    Path("rl.py").write_text(RL_RECIPE)
    Path("rewards.py").write_text(
        "def low_ids(completion_ids, **columns):\n"
        "    return [sum(i < 100 for i in ids) / len(ids) for ids in completion_ids]\n"
    )
    task = {"task_id": "a", "prompt": "def f(n):\n", "entry_point": "f", "tests": [{"input": [1], "output": 2}]}
    Path("tasks.jsonl").write_text(json.dumps(task) + "\n" + json.dumps(task | {"task_id": "b"}) + "\n")
    assert unmask("train", "small.py", "--quiet").code == 0
    outcome = unmask("train", "rl.py")
    assert outcome.code == 0, outcome.err
    told = outcome.err.splitlines()
    assert told[0] == "rl: 4 steps, 2 on each 8 answers to 2 prompts"
    assert told[-1] == "try it: unmask generate --model runs/rl/rl/final PROMPT"
    records = read_metrics(Path("runs/rl/rl/metrics.jsonl"))
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[0]["rewards/pass_fraction/mean"] == 0
    assert records[0]["reward"] == pytest.approx(records[0]["rewards/low_ids/mean"])
    assert sum(records[0][name] for name in records[0] if name.startswith("sandbox/")) == 8
    cards = sorted(path.name for path in Path("runs/rl/rl/rollouts").glob("*.html"))
    assert cards == ["phase-000000.html", "phase-000001.html"]
    assert unmask("replay", "runs/rl/rl/rollouts/phase-000000.jsonl", "--json").code == 0
    assert unmask("train", "rl.py", "--resume").err.splitlines()[0] == "rl: done already, runs/rl/rl/final"


DRAFT_RECIPE = """
from unmask.model.config import ModelConfig
from unmask.model.lora import LoraSettings
from unmask.train.draft_settings import DraftSettings, DraftStage
from unmask.train.schedule import Schedule
from unmask.train.settings import *

SHAPE = ModelConfig(
    family="qwen2", vocab_size=260, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, num_kv_heads=2,
    head_dim=8, max_positions=64, qkv_bias=True,
)


def recipe(folder):
    texts = (SourceSettings(path="runs/small/texts"),)
    stage = DraftStage(
        name="drafter",
        note="Drafts.",
        model=ModelSettings(source="runs/small/first/final", config=SHAPE, mask_token="#259"),
        lora=LoraSettings(rank=2, alpha=4.0),
        data=DataSettings(train=texts, heldout=texts, length=32, rows=4, micro_rows=2),
        draft=DraftSettings(block_length=4, curriculum=((0.0, 2), (0.5, 4)), words=0, inner=8),
        schedule=Schedule(total_steps=4, warmup_steps=1),
        run=RunSettings(precision="float32", log_every=1, save_every=2),
        evaluation=EvaluationSettings(every=0, documents=2),
    )
    return Recipe(name="draft", summary="a drafter", needs="weights", stages=(stage,))
"""


@pytest.fixture
def parent() -> None:
    """A recipe of a drafter, and the weights of its parent."""
    Path("draft.py").write_text(DRAFT_RECIPE)
    assert unmask("train", "small.py", "--quiet", "--stage", "first").code == 0


def test_a_drafter_is_trained_for_weights_that_are_there(parent: None) -> None:
    outcome = unmask("train", "draft.py", "--set", "draft.revealed=0")
    assert (outcome.code, outcome.out) == (0, b""), outcome.err
    told = outcome.err.splitlines()
    assert told[0] == "drafter: 4 steps of 128 tokens, in blocks of 4"
    assert told[-2:] == [
        "drafter: done, runs/draft/drafter/final",
        "try it: unmask generate --model runs/small/first/final --drafter runs/draft/drafter/final PROMPT",
    ]
    (last,) = (line for line in told if line.startswith("step 4/4  loss "))
    assert re.search(r"  acceptance( 1?\.\d\d){4}  tokens_per_round \d\.\d\d  ", last)
    records = read_metrics(Path("runs/draft/drafter/metrics.jsonl"))
    assert [len(record["acceptance"]) for record in records[:4]] == [4] * 4
    assert records[0]["acceptance"][2:] == [None, None]
    assert holds_drafter(Path("runs/draft/drafter/final"))
    again = unmask("train", "draft.py", "--resume", "--set", "draft.revealed=0")
    assert again.err == "drafter: done already, runs/draft/drafter/final\n"
    assert "draft.revealed (0.0 there, 0.25 now)" in refusal("train", "draft.py", "--resume")


def test_ctrl_c_saves_a_drafter_on_its_way(parent: None) -> None:
    outcome = signalled(signal.SIGINT, recipe="draft.py", of=draft)
    assert outcome.code == 130, outcome
    assert outcome.err.splitlines()[-1] == "drafter: stopped after step 3 of 4 and saved; go on with --resume"
    assert unmask("train", "draft.py", "--resume", "--quiet").code == 0
    records = read_metrics(Path("runs/draft/drafter/metrics.jsonl"))
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]


def test_blocks_of_another_length_are_set_from_the_command_line(parent: None) -> None:
    changes = ["--set", "draft.block_length=3", "--set", "draft.curriculum=0:1,0.5:3"]
    assert unmask("train", "draft.py", "--quiet", *changes).code == 0
    settings = json.loads(Path("runs/draft/drafter/settings.json").read_text())
    assert settings["draft"]["curriculum"] == [[0.0, 1], [0.5, 3]]
    assert read_info(Path("runs/draft/drafter/final")).block_length == 3


def test_a_stage_without_tasks_or_prompt_copies_its_network_once_to_export_it() -> None:
    with mock.patch.object(Rig, "plain", autospec=True, side_effect=Rig.plain) as copied:
        assert unmask("train", "small.py", "--quiet", "--stage", "first").code == 0
    assert copied.call_count == 1


def test_quiet_says_nothing_and_does_the_same() -> None:
    outcome = unmask("train", "small.py", "--quiet", "--stage", "first")
    assert (outcome.code, outcome.out, outcome.err) == (0, b"", "")
    assert Path("runs/small/first/final/model.safetensors").is_file()
    assert not Path("runs/small/second").exists()


def test_changes_reach_every_stage_or_the_one_that_they_name() -> None:
    changes = ["--set", "schedule.total_steps=3", "--set", "second.seed=5", "--output", "mine"]
    assert unmask("train", "small.py", *changes, "--quiet").code == 0
    first, second = (json.loads(Path(f"mine/{name}/settings.json").read_text()) for name in ("first", "second"))
    assert first["schedule"]["total_steps"] == second["schedule"]["total_steps"] == 3
    assert (first["seed"], second["seed"]) == (0, 5)


def test_a_run_that_is_there_is_gone_on_with_or_refused() -> None:
    assert unmask("train", "small.py", "--quiet", "--stage", "first").code == 0
    again = unmask("train", "small.py", "--quiet")
    assert again.code == 2
    assert again.err == (
        "error: runs/small/first holds a run at step 4; go on with --resume, or begin anew in another --output\n"
    )
    resumed = unmask("train", "small.py", "--resume")
    assert resumed.code == 0
    assert "first: done already, runs/small/first/final" in resumed.err
    assert "second: done, runs/small/second/final" in resumed.err


def test_resuming_with_other_settings_names_them() -> None:
    assert unmask("train", "small.py", "--quiet", "--stage", "first").code == 0
    Path("runs/small/first/final/config.json").unlink()  # as if it had ended before its export
    told = refusal("train", "small.py", "--quiet", "--resume", "--set", "first.data.rows=16")
    assert "data.rows (4 there, 16 now)" in told


# --- ways to end early ------------------------------------------------------------------------------------------------


def signalled(*signals: signal.Signals, quiet: bool = False, recipe: str = "small.py", of: Any = loop) -> Outcome:
    """A run that gets these signals in the third step of its first stage, in the loop of that module."""
    plain = of._Run.make_step

    def make_step(run: Any, step: int) -> Any:
        if step == 2:
            for number in signals:
                signal.raise_signal(number)
        return plain(run, step)

    with mock.patch.object(of._Run, "make_step", make_step):
        return unmask("train", recipe, *["--quiet"] * quiet)


def checkpoints() -> list[str]:
    return sorted(path.name for path in Path("runs/small/first/checkpoints").iterdir())


def test_ctrl_c_saves_after_the_step_and_leaves_with_130() -> None:
    outcome = signalled(signal.SIGINT)
    assert outcome.code == 130, outcome
    told = outcome.err.splitlines()
    assert "stopping after this step; Ctrl-C again stops at once and loses what came after the last checkpoint" in told
    assert told[-1] == "first: stopped after step 3 of 4 and saved; go on with --resume"
    assert checkpoints() == ["step-00000002", "step-00000003"]
    assert unmask("train", "small.py", "--resume", "--quiet").code == 0
    assert [record["step"] for record in read_metrics(Path("runs/small/first/metrics.jsonl"))] == [1, 2, 3, 4]
    assert Path("runs/small/second/final/model.safetensors").is_file()


def test_ctrl_c_twice_stops_at_once_and_the_last_checkpoint_stays() -> None:
    outcome = signalled(signal.SIGINT, signal.SIGINT)
    assert outcome.code == 130, outcome
    assert checkpoints() == ["step-00000002"]
    assert unmask("train", "small.py", "--resume", "--quiet").code == 0


def test_sigterm_saves_and_leaves_with_0() -> None:
    outcome = signalled(signal.SIGTERM, quiet=True)
    assert (outcome.code, outcome.err) == (0, "")
    assert checkpoints() == ["step-00000002", "step-00000003"]


def test_ctrl_c_while_the_data_is_made_ends_at_once() -> None:
    Path("small.py").write_text(RECIPE.replace("    tell(", "    raise KeyboardInterrupt\n    tell("))
    assert unmask("train", "small.py") == Outcome(130, b"", "")


def test_ctrl_c_is_pythons_again_after_a_run() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert unmask("train", "small.py", "--quiet", "--stage", "first").code == 0
    assert signal.getsignal(signal.SIGINT) is before


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tinny"], "'tinny' is no recipe; did you mean tiny or tiny_cpgrpo? (known: tiny, tiny_cpgrpo, qwen_0_5b"),
        (["absent.py"], "absent.py is not a file; give the path of a recipe, or one of tiny, tiny_cpgrpo, qwen_0_5b"),
        (["small.py", "--set", "optimiser.lrate=1"], "'lrate' is not a setting of optimiser; did you mean lr?"),
        (["small.py", "--set", "optimizer.lr=1"], "'optimizer' is not a setting; did you mean optimiser?"),
        (["small.py", "--set", "optimiser.lr"], "--set optimiser.lr is not of the form key=value"),
        (["small.py", "--set", "optimiser.lr=fast"], "--set optimiser.lr=fast: "),
        (["small.py", "--set", "data.rows=2.5"], "--set data.rows=2.5: "),
        (["small.py", "--set", "run.compile=1"], "--set run.compile=1: needs true or false"),
        (["small.py", "--set", "loss.kind=difusion"], "--set loss.kind=difusion: did you mean diffusion?"),
        (["small.py", "--set", "optimiser.lr=-1"], "lr is -1.0; it must be above 0"),
        (["qwen_0_5b_block", "--set", "draft.block_length=4"], "set draft.block_length=8 too, or leave the curriculum"),
        (["qwen_0_5b_block", "--set", "draft.curriculum=2,8"], "'2' needs 2 values separated by a colon, as in 0.2:4"),
        (["small.py", "--set", "model=qwen"], "--set model=qwen: has settings of its own: source, "),
        (["small.py", "--stage", "secnd"], "'secnd' is no stage of the recipe small; did you mean second?"),
        (["small.py", "--stage", "second"], "run that one first, as in --stage first --stage second"),
        (
            ["small.py", "--set", "second.run.timeout_seconds=60"],
            "run.timeout_seconds is 600 in the stage first and 60 in second, and one start has one of it; set it for "
            "every stage, as in --set run.timeout_seconds=600, or run them apart with --stage",
        ),
        (["small.py", "--device", "gpu"], "--device gpu is none to train on; "),
        (["small.py", "--plan", "--devices", "0"], "--devices 0 leaves nothing to train on; give 1 or more"),
        (["small.py", "--plan", "--mfu", "40"], "--mfu 40 is not a share; it lies above 0 and up to 1"),
        (["small.py", "--plan", "--peak", "fast"], "--peak fast is no speed; give a100, h100, here, or FLOP/s"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(arguments: list[str], words: str, no_training: None) -> None:
    assert words in refusal("train", *arguments)
    assert not Path("runs").exists()


def test_a_gpu_that_is_not_there_is_said_to_be_absent(no_training: None) -> None:
    with mock.patch("torch.cuda.is_available", return_value=False):
        told = refusal("train", "small.py", "--device", "cuda")
    assert told == "--device cuda cannot be used here: torch finds no GPU; give cpu or auto"


@pytest.mark.parametrize(("recipe", "folder"), [("qwen_0_5b", "pairs"), ("diffucoder_7b", "adapt")])
def test_absent_data_is_told_before_weights_are_fetched(recipe: str, folder: str, no_training: None) -> None:
    told = refusal("train", recipe, "--output", "mine", "--quiet")
    assert told.startswith(f"mine/data/{folder} is no folder of shards")
    assert "`unmask data build" in told
    assert f"--output mine/data/{folder}`" in told


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], "mine/data/acecode-hard.jsonl"),
        (["--set", "prompts.tasks=nowhere.jsonl:20"], "nowhere.jsonl"),
        (["--set", "prompts.tasks=synthetic-hart-train:20"], "did you mean synthetic-hard-train"),
    ],
)
def test_absent_tasks_are_told_before_weights_are_fetched(tasks: list[str], words: str, no_training: None) -> None:
    told = refusal("train", "diffucoder_7b_cpgrpo", "--output", "mine", "--quiet", *tasks)
    assert words in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("second.evaluation.tasks=humanevil", "'humanevil' is not a benchmark; did you mean humaneval"),
        ("second.evaluation.tasks=infilling-single-line", "are holes to fill"),
    ],
)
def test_tasks_that_cannot_be_scored_are_told_before_the_first_stage(
    change: str, words: str, no_training: None
) -> None:
    holes = SimpleNamespace(kind="infill")  # the benchmark's own data is not here
    with mock.patch(
        "unmask.evaluate.training.load", side_effect=lambda name, **_: holes if "infill" in name else load(name)
    ):
        assert words in refusal("train", "small.py", "--quiet", "--set", change)


def test_an_error_of_all_ranks_is_told_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = mock.Mock()
    monkeypatch.setattr("time.sleep", waited)
    monkeypatch.setenv("RANK", "0")
    assert refusal("train", "tinny").startswith("'tinny' is no recipe")
    waited.assert_not_called()
    monkeypatch.setenv("RANK", "3")
    assert refusal("train", "tinny").startswith("rank 3: 'tinny' is no recipe")  # torchrun ends a rank that waits
    assert waited.call_args.args[0] > 1


@pytest.mark.skipif(os.name != "posix", reason="torchrun needs POSIX")
def test_torchrun_prints_an_error_once() -> None:
    program = Path(sys.executable).with_name("unmask")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    command += [str(program), "train", "small.py", "--set", "data.rows=3", "--stage", "first"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "cannot be shared evenly among 2 processes" in line]
    assert len(told) == 1, done.stderr
    assert told[0].startswith("error: data.rows=3")


# --- lists and plans --------------------------------------------------------------------------------------------------


def test_alone_it_lists_the_recipes_with_what_they_need() -> None:
    outcome = unmask("train")
    assert outcome.code == 0
    for name in NAMES:
        assert f"{name}: " in outcome.text
    assert outcome.text.count("    needs: ") == outcome.text.count("    stages: ") == len(NAMES)


def test_a_plan_prints_what_the_7b_recipe_costs_and_does_nothing(no_training: None) -> None:
    outcome = unmask("train", "diffucoder_7b", "--plan", "--devices", 80)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.text.count("parameters        7.62 B, of which trained 7.62 B") == 3
    assert "tokens            65.5 B\n" in outcome.text
    assert "26.3 hours at an MFU of 40% of 989 TFLOP/s a device" in outcome.text
    assert "GiB, each of 80 devices" in outcome.text
    assert "all stages        241,000 steps" in outcome.text
    assert [path.name for path in Path().iterdir()] == ["small.py"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("tiny", ["pretrain: ", "parameters        6.96 M, of which trained 6.96 M", "all stages"]),
        ("qwen_0_5b", ["full: ", "494 M, of which trained 494 M", "lora: ", "of which trained 154 M", "989 TFLOP/s"]),
        ("small.py", ["first: Reads.", "steps             4 of 128 tokens"]),
        ("qwen_0_5b_block", ["drafter: ", "513 M, of which trained 19 M", "1,950 of 16.4 k tokens", "36.28 GiB"]),
        ("diffucoder_7b_cpgrpo", ["cpgrpo: ", "  writing answers ", "  other scoring ", "7.62 B, of which trained"]),
    ],
)
def test_each_recipe_has_a_plan_without_weights(recipe: str, words: list[str], no_training: None) -> None:
    outcome = unmask("train", recipe, "--plan")
    assert (outcome.code, outcome.err) == (0, "")
    for word in words:
        assert word in outcome.text
    assert [path.name for path in Path().iterdir()] == ["small.py"]


def test_a_small_network_is_planned_for_this_machine() -> None:
    with mock.patch("unmask.train.metrics.matmul_peak", return_value=50e9):
        shown = unmask("train", "tiny", "--plan", "--stage", "sft").text
    assert "at an MFU of 40% of 50 GFLOP/s a device" in shown
    assert "minutes" in shown or "hours" in shown or "days" in shown
    assert "of 2 TFLOP/s" in unmask("train", "tiny", "--plan", "--stage", "sft", "--peak", "2e12").text


def test_help_names_the_flags_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom unmask.cli.main import main\nsys.argv = ['unmask', 'train', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('heavy:', 'torch' in sys.modules or 'numpy' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "heavy: False"
    for flag in ("--stage", "--set", "--output", "--resume", "--plan", "--peak", "--device", "--quiet"):
        assert flag in shown
    assert "Example: unmask train tiny" in shown


def test_only_what_is_ours_is_told_late() -> None:
    with pytest.raises(SettingsError, match=r"^mine$"), _first_rank_speaks():
        raise SettingsError("mine")
    with pytest.raises(ZeroDivisionError), _first_rank_speaks():
        _ = 1 / 0
