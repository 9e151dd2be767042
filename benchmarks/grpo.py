"""One update of coupled-GRPO against the passes that it needs: time beyond the network's own.

A phase of μ inner iterations needs, for each answer and view, μ forward and backward passes, μ forward passes of the
reference, and μ - 1 of the old policy (in the first iteration the policy is the old one). Those passes alone, on the
same rows with the same network, are the floor; what the trainer takes beyond it is masks, scores, ratios, copies of the
reference's weights, clipping and the optimiser. Answers are random and rewards given, so nothing is decoded or judged.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unmask.decode.session import Model
from unmask.diffusion.rl_settings import Estimator
from unmask.recipes import tiny
from unmask.recipes.tiny_cpgrpo import recipe
from unmask.reward.settings import RewardSettings
from unmask.sandbox.job import Job
from unmask.sandbox.verdict import Verdict
from unmask.text.tokenizer import Tokenizer
from unmask.train.experience import Experience
from unmask.train.grpo import _Run
from unmask.train.grpo_settings import GrpoStage
from unmask.train.parallel import World
from unmask.train.prompts import PromptSettings
from unmask.train.rollout import Request, Rollout
from unmask.train.settings import EvaluationSettings, ModelSettings
from unmask.trajectory import Commit, Step, Trajectory

from side_by_side import report

REWARD = "def by_length(completion_ids, **columns):\n    return [sum(ids) % 7 for ids in completion_ids]\n"


class NoSandbox:
    """Nothing is judged here."""

    name, guarantees, interpreter = "none", (), "Python"

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        raise AssertionError

    def call(self, *arguments: Any) -> Any:
        raise AssertionError

    def close(self) -> None:
        pass


class RandomAnswers:
    """Answers of random tokens, of all lengths between half the room and the room."""

    def __init__(self, room: int, *, words: int) -> None:
        self.room, self.words = room, words

    def answers(
        self,
        model: Model,
        requests: Sequence[Request],
        *,
        seed: int,
        step: int,
        stops: Callable[[], bool] = lambda: False,
    ) -> list[Rollout]:
        generator = torch.Generator().manual_seed(step)
        return [self._answer(request, generator) for request in requests]

    def _answer(self, request: Request, generator: torch.Generator) -> Rollout:
        length = int(torch.randint(self.room // 2, self.room + 1, (), generator=generator))
        ids = torch.randint(300, self.words, (length,), generator=generator).tolist()  # behind the bytes and the mask
        first = len(request.item.ids)
        commits = [Commit(0, first + place, token, 0.5, 1.0) for place, token in enumerate(ids)]
        return Rollout(
            item=request.item,
            index=request.index,
            generation=request.generation,
            answer_ids=tuple(ids),
            has_ended=False,
            text="",
            committed_at=tuple(range(length)),
            num_forwards=length,
            wasted_tokens=0,
            max_new_tokens=self.room,
            trajectory=Trajectory(
                initial_ids=[*request.item.ids, *[None] * self.room],
                model="random",
                steps=[Step(commits=[commit]) for commit in commits],
            ),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimators", nargs="+", default=["coupled", "mean_field", "espo"])
    parser.add_argument("--prompts", type=int, default=8, help="per phase")
    parser.add_argument("--micro", type=int, default=16, help="answers per forward")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [_measure(name, Path(folder), options) for name in options.estimators]
    title = (
        f"one phase of {options.prompts} prompts, 8 answers each, shape of tiny, in micro-batches of {options.micro}"
    )
    report(title, rows, to=options.json)


def _measure(name: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    stage = _stage(name, folder, options)
    run = _Run(
        stage,
        folder / name,
        world=World(),
        executor=NoSandbox(),  # type: ignore[arg-type]
        evaluator=None,
        engine=RandomAnswers(stage.prompts.max_new_tokens, words=4000),
        write_card=None,
        quiet=True,
    )
    iterations = stage.policy.iterations
    ours, floor = [], []
    for phase in range(options.repeats + 1):  # the first one warms up
        run.seconds.clear()
        for iteration in range(iterations):
            experience = run.experience
            run.make_step(phase * iterations + iteration)
            experience = run.experience or experience  # it is dropped with the phase's last step
        ours.append(run.seconds["score"] + run.seconds["update"])
        assert experience is not None
        floor.append(_floor(run, experience, iterations))
    ratios = [one / other for one, other in zip(ours[1:], floor[1:], strict=True)]
    return {
        "estimator": name,
        "update, s": statistics.median(ours[1:]),
        "passes alone, s": statistics.median(floor[1:]),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def _floor(run: _Run, experience: Experience, iterations: int) -> float:
    """Seconds of the passes that the phase needs, with a plain sum for a loss."""
    batches = [run.learner.micro_batches(experience, iteration) for iteration in range(iterations)]
    started = time.perf_counter()
    for iteration, micros in enumerate(batches):
        for micro in micros:
            for _ in range(1 + (iteration > 0)):  # the reference, and the old policy
                run.learner.log_probs(micro, keep_graph=False)
            run.learner.log_probs(micro, keep_graph=True).sum().backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - started
    run.rig.optimiser.zero_grad()
    return seconds


def _stage(name: Any, folder: Path, options: argparse.Namespace) -> GrpoStage:
    """The stage of `tiny_cpgrpo` on a network that was never trained."""
    (stage,) = recipe(folder).stages
    assert isinstance(stage, GrpoStage)
    Tokenizer.byte_level().save(folder / "tokenizer")
    (folder / "rewards.py").write_text(REWARD)
    with (folder / "tasks.jsonl").open("w") as file:
        for number in range(64):
            prompt = f"def f(n):\n    # {'word ' * (8 + number % 16)}\n"
            task = {"task_id": f"t/{number}", "prompt": prompt, "entry_point": "f"}
            file.write(json.dumps(task | {"tests": [{"input": [1], "output": 2}]}) + "\n")
    return replace(
        stage,
        model=ModelSettings(
            config=replace(tiny.SHAPE, end_ids=(257,)),
            tokenizer=str(folder / "tokenizer"),
            attention="full",
            init_mask_row=True,
        ),
        prompts=PromptSettings(tasks=(str(folder / "tasks.jsonl"),), preset="base", max_new_tokens=96),
        reward=RewardSettings(functions=(f"{folder / 'rewards.py'}:by_length",)),
        estimator=Estimator(name=name),
        prompts_per_step=options.prompts,
        micro_answers=options.micro,
        evaluation=EvaluationSettings(every=0),
        card_every=0,
    )


if __name__ == "__main__":
    main()
