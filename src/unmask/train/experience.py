"""What a rollout phase brought: answers, their rewards, and what they are worth.

Every rank holds all of it, since ids are few, and scores its own share of the answers. So counts are global without
asking, and a checkpoint in the middle of the inner iterations loads at any number of processes.

Letters: N answers, P prompts, G answers of each, L columns.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unmask.diffusion.policy_gradient import advantages, has_spread
from unmask.errors import CheckpointError, DataError, TrajectoryError
from unmask.model.checkpoint import write_tensors
from unmask.train.grpo_settings import GrpoStage
from unmask.train.prompts import Prompts
from unmask.train.rollout import Rollout, load_rollouts, measure, save_rollouts, summary

CARD = -1
"""In place of an inner iteration: the scores that a rollout card begins with."""

_ROLLOUTS, _REWARDS, _SCORES = "rollouts.jsonl", "rewards.json", "old_scores.safetensors"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The rewards of some answers, in their order."""

    totals: tuple[float | None, ...]
    """Weighted sums; None where an answer could not be judged, which leaves its group."""

    by_function: Mapping[str, tuple[float | None, ...]]
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """How the programs ended, counted."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """What reward functions logged of the batch (TRL's `log_metric`)."""

    problem: str = ""
    """Why none of them could be judged."""


@dataclass(kw_only=True)
class Experience:
    """One rollout phase."""

    number: int
    """Of the phase, from 0."""

    rollouts: tuple[Rollout, ...]
    """Prompt by prompt, `num_generations` of each."""

    judged: Judged
    advantage_N: Tensor
    has_spread_P: Tensor
    is_counted_N: Tensor
    """Answers that are in the loss."""

    old_scores: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """(inner iteration, answer) → the scores of its tokens under the policy that wrote it, for the answers of this
    rank; those of the first iteration are the policy's own, at the time. And (`CARD`, answer) for the answers of a
    card, under the masks of the first iteration."""

    @property
    def reward_N(self) -> Tensor:
        """Rewards; NaN where there is none."""
        return torch.tensor([math.nan if total is None else total for total in self.judged.totals])

    def rows_of_rank(self, *, rank: int, size: int) -> list[int]:
        """Which answers a rank scores: every `size`-th of those that count, in the order of their lengths, so that
        ranks and micro-batches have about equal work."""
        counted = [number for number, counts in enumerate(self.is_counted_N.tolist()) if counts]
        return sorted(counted, key=lambda n: (self.length(n), n))[rank::size]

    def num_rows(self, *, size: int) -> int:
        """The most answers that a rank scores; what others are short of, they fill with answers of no weight."""
        return -(-int(self.is_counted_N.sum()) // size)

    def length(self, number: int) -> int:
        """Columns of an answer's row up to its end."""
        rollout = self.rollouts[number]
        return len(rollout.prompt_ids) + len(rollout.answer_ids)


def weigh(number: int, rollouts: Sequence[Rollout], judged: Judged, stage: GrpoStage) -> Experience:
    """Advantages of the answers of one phase, and which of them count."""
    shape = (-1, stage.rollout.num_generations)
    is_valid_PG = torch.tensor([total is not None for total in judged.totals]).view(shape)
    reward_PG = torch.tensor([total or 0.0 for total in judged.totals], dtype=torch.float64).view(shape)
    advantage_PG = advantages(reward_PG, is_valid_PG, baseline=stage.policy.baseline, scale=stage.policy.scale)
    has_spread_P = has_spread(reward_PG, is_valid_PG)
    is_counted_N = is_valid_PG.flatten().clone()
    if stage.policy.no_spread != "keep":
        is_counted_N &= has_spread_P.repeat_interleave(stage.rollout.num_generations)
    if stage.policy.mask_truncated:
        is_counted_N &= torch.tensor([rollout.has_ended for rollout in rollouts])
    return Experience(
        number=number,
        rollouts=tuple(rollouts),
        judged=judged,
        advantage_N=advantage_PG.flatten().float(),
        has_spread_P=has_spread_P,
        is_counted_N=is_counted_N,
    )


def widest_group(reward_N: Tensor, *, size: int) -> tuple[int, int]:
    """The first answer of the group whose rewards differ most, and the group's size; lost answers (NaN) differ from
    nothing.

    >>> widest_group(torch.tensor([math.nan, 2.0, 0.0, 1.0]), size=2)
    (2, 2)
    """
    group_PG = reward_N.view(-1, size)
    is_lost_PG = group_PG.isnan()
    width_P = group_PG.masked_fill(is_lost_PG, -math.inf).amax(1) - group_PG.masked_fill(is_lost_PG, math.inf).amin(1)
    return int(width_P.argmax()) * size, size


# As files of a checkpoint


def save_experience(folder: Path, experience: Experience) -> None:
    """Write what a resume in the middle of the inner iterations needs; `old_scores` must hold those of all ranks."""
    save_rollouts(folder / _ROLLOUTS, experience.rollouts)
    judged = experience.judged
    record = {
        "number": experience.number,
        "totals": judged.totals,
        "by_function": {name: list(values) for name, values in judged.by_function.items()},
        "outcomes": dict(judged.outcomes),
    }
    (folder / _REWARDS).write_text(json.dumps(record), encoding="utf-8")
    scores = {f"{iteration}/{answer}": value for (iteration, answer), value in experience.old_scores.items()}
    try:
        write_tensors({name: value.cpu() for name, value in scores.items()}, folder / _SCORES)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def load_experience(folder: Path, prompts: Prompts, stage: GrpoStage) -> Experience | None:
    """What `save_experience` wrote; None where the checkpoint stands between two phases."""
    if not (folder / _REWARDS).is_file():
        return None
    try:
        record = json.loads((folder / _REWARDS).read_text(encoding="utf-8"))
        judged = Judged(
            totals=tuple(record["totals"]),
            by_function={name: tuple(values) for name, values in record["by_function"].items()},
            outcomes=record["outcomes"],
        )
        scores = load_file(folder / _SCORES)
        rollouts = load_rollouts(folder / _ROLLOUTS, prompts)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, TrajectoryError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error}); delete it, and the one before it is resumed from"
        ) from None
    experience = weigh(record["number"], rollouts, judged, stage)
    for name, value in scores.items():
        iteration, _, answer = name.partition("/")
        experience.old_scores[int(iteration), int(answer)] = value
    return experience


# As numbers


def describe(experience: Experience, *, group: int) -> dict[str, Any]:
    """What the log says of a phase."""
    judged, rollouts = experience.judged, experience.rollouts
    entropies = [commit.entropy for rollout in rollouts for step in rollout.trajectory.steps for commit in step.commits]
    mean, deviation = _moments(judged.totals, group)
    record: dict[str, Any] = {"reward": mean, "reward_std": deviation}
    for name, values in judged.by_function.items():
        record[f"rewards/{name}/mean"], record[f"rewards/{name}/std"] = _moments(values, group)
    record["frac_reward_zero_std"] = 1 - float(experience.has_spread_P.double().mean())
    record["dropped"] = sum(total is None for total in judged.totals)
    record |= summary([measure(rollout) for rollout in rollouts])
    record["entropy"] = sum(entropies) / len(entropies) if entropies else None
    record |= {f"sandbox/{status}": count for status, count in sorted(judged.outcomes.items())}
    return {**judged.metrics, **record}  # what we log has the name


def _moments(values: Sequence[float | None], group: int) -> tuple[float, float]:
    """The mean of all, and the mean over groups of their standard deviations (TRL's reward_std); None is left out."""
    known = [value for value in values if value is not None]
    deviations = []
    for at in range(0, len(values), group):
        inside = torch.tensor([value for value in values[at : at + group] if value is not None], dtype=torch.float64)
        if len(inside) > 1:
            deviations.append(float(inside.std()))
    mean = sum(known) / len(known) if known else math.nan
    return mean, sum(deviations) / len(deviations) if deviations else math.nan
