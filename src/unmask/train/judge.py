"""Answers to rewards: the reward functions of a stage, called as TRL calls them, on what the policy wrote."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.data.task import Task
from unmask.errors import SandboxError
from unmask.reward.combine import combine
from unmask.reward.function import name_of
from unmask.reward.settings import RewardSettings, open_rewards
from unmask.sandbox.job import Executor
from unmask.train.experience import Judged
from unmask.train.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What reward functions are told of the run, under TRL's name."""

    global_step: int


class RewardJudge:
    """Judges answers; identical programs of a task are run once."""

    def __init__(self, settings: RewardSettings, executor: Executor) -> None:
        self.settings = settings
        self._functions = open_rewards(settings, executor)

    def __call__(self, rollouts: Sequence[Rollout], *, step: int) -> Judged:
        """The rewards, in order. Raises what `combine` raises, but where the sandbox failed for all of them: a rank's
        share may be the answers to a single task, and whether that is the end is for the whole phase to say."""
        try:
            return self._judge(rollouts, step)
        except SandboxError as error:
            nothing = (None,) * len(rollouts)
            return Judged(
                totals=nothing,
                by_function={name_of(function): nothing for function, _ in self._functions},
                outcomes={"sandbox_error": len(rollouts)},
                problem=str(error),
            )

    def identity(self) -> dict[str, str]:
        """A hash of each file that rewards come from."""
        files = {Path(name.rpartition(":")[0]) for name, _ in self.settings.weighted if ".py:" in name}
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}

    def _judge(self, rollouts: Sequence[Rollout], step: int) -> Judged:
        texts = [rollout.text for rollout in rollouts]
        is_chat = [rollout.item.rendered.is_chat for rollout in rollouts]
        rewards = combine(
            self._functions,
            [rollout.item.prompt for rollout in rollouts],
            [
                [{"role": "assistant", "content": text}] if chat else text
                for text, chat in zip(texts, is_chat, strict=True)
            ],
            {
                **_columns([rollout.item.task for rollout in rollouts]),
                "task": [rollout.item.task for rollout in rollouts],
                "task_id": [rollout.item.task.task_id for rollout in rollouts],
                "completion_ids": [list(rollout.answer_ids) for rollout in rollouts],
            },
            trainer_state=TrainerState(global_step=step),
        )
        return Judged(
            totals=tuple(rewards.total_N),
            by_function={name: tuple(values) for name, values in rewards.by_function.items()},
            outcomes=dict(rewards.outcomes),
            metrics=rewards.metrics,
        )


def _columns(tasks: Sequence[Task]) -> dict[str, list[Any]]:
    """What the tasks bring for reward functions; None where one has no such column."""
    names = dict.fromkeys(name for task in tasks for name in task.columns)
    return {name: [task.columns.get(name) for task in tasks] for name in names}
