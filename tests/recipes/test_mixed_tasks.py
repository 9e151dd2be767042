"""Tasks that a model sometimes solves: those with right and wrong answers stay; drawing goes on where it stopped."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unmask import recipes
from unmask.decode import session
from unmask.errors import SettingsError, TaskError
from unmask.evaluate import generate as generating
from unmask.evaluate.generate import Prompt
from unmask.evaluate.samples import Sample
from unmask.recipes.mixed_tasks import prepare
from unmask.train.grpo_settings import GrpoStage

from checkpoints import tiny_model

COUNT, ANSWERS = 4, 3


class Answers:
    """Right answers as often as it is told, by the task's place; stops after some batches if asked."""

    def __init__(self, right: Sequence[int], *, stop_after: int | None = None) -> None:
        self.right, self.stop_after, self.drawn = right, stop_after, 0

    def __call__(
        self, model: Any, prompts: Sequence[Prompt], cells: Any, *, n: int, batch_size: int, done: Collection[Any]
    ) -> Iterator[list[Sample]]:
        assert cells[0].settings.temperature == 1.0
        for place, prompt in enumerate(prompts):
            for number in range(n):
                if (cells[0].name, prompt.task.task_id, number) in done:
                    continue
                if self.drawn == self.stop_after:
                    raise KeyboardInterrupt
                self.drawn += 1
                program = prompt.task.reference if number < self.right[place] else "x = 1"
                yield [sample(prompt.task.task_id, number, cells[0].name, program)]


def sample(task_id: str, number: int, cell: str, program: str) -> Sample:
    return Sample(task_id=task_id, sample=number, cell=cell, completion=program, program=program, raw_program=program)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> GrpoStage:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(session, "load", lambda name: tiny_model("full", chat=True, max_positions=2048))
    (stage,) = recipes.find("tiny_cpgrpo", tmp_path).stages
    assert isinstance(stage, GrpoStage)
    return replace(stage, name="test")


def make(folder: Path, stage: GrpoStage, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(generating, "generate", answers)
    said: list[str] = []
    prepare(
        folder,
        said.append,
        stage=stage,
        split="hard-train",
        count=COUNT,
        answers=ANSWERS,
        output=folder / "data" / "mixed.jsonl",
    )
    return said


def kept(folder: Path) -> list[int]:
    """Places of the tasks that were chosen."""
    ids = [json.loads(line)["task_id"] for line in (folder / "data" / "raw" / "asked.jsonl").read_text().splitlines()]
    chosen = [json.loads(line)["task_id"] for line in (folder / "data" / "mixed.jsonl").read_text().splitlines()]
    return [ids.index(task_id) for task_id in chosen]


def test_tasks_with_right_and_wrong_answers_are_kept(
    tmp_path: Path, stage: GrpoStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = make(tmp_path, stage, Answers([0, 1, 3, 2]), monkeypatch)
    assert kept(tmp_path) == [1, 3]
    assert said[-1] == "test: 2 of 4 tasks have right and wrong answers"


def test_drawing_goes_on_where_it_was_stopped_and_what_is_there_stays(
    tmp_path: Path, stage: GrpoStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [2, 0, 1, 3]
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, stage, Answers(right, stop_after=5), monkeypatch)
    assert not (tmp_path / "data" / "mixed.jsonl").exists()
    rest = Answers(right)
    make(tmp_path, stage, rest, monkeypatch)
    assert rest.drawn == COUNT * ANSWERS - 5
    assert kept(tmp_path) == [0, 2]
    again = Answers(right)
    assert make(tmp_path, stage, again, monkeypatch) == []
    assert again.drawn == 0


def test_answers_that_were_drawn_otherwise_are_not_gone_on_with(
    tmp_path: Path, stage: GrpoStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, stage, Answers([1, 1, 1, 1], stop_after=5), monkeypatch)
    other = replace(stage, rollout=replace(stage.rollout, threshold=0.9))
    with pytest.raises(SettingsError, match=r"differs in settings.threshold \(0.98 there, 0.9 here\)"):
        make(tmp_path, other, Answers([1, 1, 1, 1]), monkeypatch)


def test_a_model_that_solves_all_or_nothing_has_no_such_tasks(
    tmp_path: Path, stage: GrpoStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TaskError, match="nothing is left after the step 'answers that differ'"):
        make(tmp_path, stage, Answers([0, 3, 0, 3]), monkeypatch)
