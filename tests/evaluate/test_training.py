"""What is measured while training: scores of a network whose answers are known, and a record that replays."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from unmask.decode.session import Model
from unmask.errors import SettingsError, UnmaskError
from unmask.evaluate import training
from unmask.evaluate.training import TrainingEvaluator
from unmask.sandbox.executor import open_executor
from unmask.sandbox.verdict import Verdict
from unmask.train.settings import EvaluationSettings
from unmask.trajectory import load as load_trajectories

from checkpoints import IM_END_ID, scripted, spell, tiny_model
from command_line import unmask


@dataclass(frozen=True)
class Judge:
    """Passes the programs that return x; stands for the sandbox."""

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def judge(self, jobs: Any) -> Any:
        for job in jobs:
            yield Verdict(status="pass" if "return x" in job.code else "fail", message="")


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "open_executor", Judge)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [
        {"task_id": f"t/{i}", "prompt": "def f(x):\n", "entry_point": "f", "tests": [{"input": [i], "output": i}]}
        for i in range(5)
    ]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "toy.jsonl"


def measured(model: Model, folder: Path, *, says: str | None = None, **settings: Any) -> dict[str, float]:
    """One evaluation of the model, or of one that writes `says` behind any prompt of ten characters."""
    evaluator = TrainingEvaluator(EvaluationSettings(max_new_tokens=16, **settings))
    answering = model if says is None else scripted(model, spell(says, start=10))
    with mock.patch.object(training, "Model", return_value=answering):
        return dict(evaluator(model.backbone, model.tokenizer, step=7, folder=folder))


@pytest.mark.parametrize("kind", ["full", "causal"])
@pytest.mark.parametrize(
    ("says", "scores"),
    [
        ("    return x\n", {"pass_at_1": 1.0, "parses": 1.0}),
        ("    return 0\n", {"pass_at_1": 0.0, "parses": 1.0}),
        ("    return (\n", {"pass_at_1": 0.0, "parses": 0.0}),
    ],
)
def test_scores_are_those_of_what_the_network_writes(
    kind: str, says: str, scores: dict[str, float], tasks: Path, tmp_path: Path, judge: None
) -> None:
    assert measured(tiny_model(kind), tmp_path, says=says, tasks=str(tasks), temperature=0.0) == scores


def test_the_sandbox_judges_for_real(tasks: Path, tmp_path: Path) -> None:
    try:
        with open_executor():
            pass
    except UnmaskError as error:
        pytest.skip(str(error))
    found = measured(tiny_model(), tmp_path, says="    return 3\n", tasks=str(tasks), temperature=0.0)
    assert found == {"pass_at_1": 0.2, "parses": 1.0}  # right for task 3 of 5


def test_as_many_tasks_are_asked_as_the_settings_say(tasks: Path, tmp_path: Path, judge: None) -> None:
    with mock.patch.object(training, "generate", wraps=training.generate) as asked:
        measured(tiny_model(), tmp_path, says="    return x\n", tasks=str(tasks), num_tasks=2)
    assert len(asked.call_args.args[1]) == 2


def test_a_model_with_a_chat_template_is_asked_in_a_conversation(tasks: Path, tmp_path: Path, judge: None) -> None:
    model = tiny_model(chat=True)
    with mock.patch.object(training, "generate", wraps=training.generate) as asked:
        measured(model, tmp_path, tasks=str(tasks), num_tasks=1)
        measured(model, tmp_path, tasks=str(tasks), num_tasks=1, preset="base")
    ids = [call.args[1][0].ids for call in asked.call_args_list]
    assert IM_END_ID in ids[0]
    assert bytes(ids[1]) == b"def f(x):\n"


@pytest.mark.parametrize("kind", ["full", "causal", "block"])
def test_the_prompts_trajectory_is_kept_and_replays(kind: str, tmp_path: Path) -> None:
    assert measured(tiny_model(kind), tmp_path, prompt="def f", temperature=0.5) == {}
    path = tmp_path / "trajectories" / "step-00000007.jsonl"
    (kept,) = load_trajectories(path)
    assert bytes(kept.initial_ids[:5]) == b"def f"
    assert len(kept.steps) > 0
    assert unmask("replay", path, "--speed", "1000").code == 0


def test_the_same_weights_leave_the_same_trajectory(tmp_path: Path) -> None:
    for name in ("one", "two"):
        measured(tiny_model(), tmp_path / name, prompt="def f", temperature=0.5)
    one, two = (load_trajectories(tmp_path / name / "trajectories" / "step-00000007.jsonl") for name in ("one", "two"))
    assert one[0].steps == two[0].steps


def test_without_tasks_or_prompt_nothing_is_opened(tmp_path: Path) -> None:
    with mock.patch.object(training, "load", side_effect=AssertionError):
        assert measured(tiny_model(), tmp_path) == {}
        TrainingEvaluator(EvaluationSettings()).check()
    assert list(tmp_path.iterdir()) == []


def test_holes_are_refused_with_what_to_take() -> None:
    benchmark = mock.Mock(kind="infill")
    with (
        mock.patch.object(training, "load", return_value=benchmark),
        pytest.raises(
            SettingsError,
            match=r"evaluation\.tasks=holes are holes to fill, .*; take tasks with a prompt, as in humaneval",
        ),
    ):
        TrainingEvaluator(EvaluationSettings(tasks="holes")).check()


def test_an_unknown_preset_is_refused_at_once(tasks: Path, judge: None) -> None:
    with pytest.raises(SettingsError, match="'evalpluss' is no prompt preset; did you mean evalplus"):
        TrainingEvaluator(EvaluationSettings(tasks=str(tasks), preset="evalpluss")).check()


def test_a_program_that_python_cannot_even_read_does_not_parse() -> None:
    assert not training._parses("x = '\0'")
    assert not training._parses("(" * 5000)
    assert training._parses("")
