"""A rollout card: the answers to one prompt with everything that was made of them, for a reader.

It is written when a phase ends. Masks and scores are those of the first inner iteration, before the phase's first step
and after its last, so it shows which way each token was moved, and where the clipping would stop it from going on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from unmask.diffusion.policy_gradient import clip_masks, log_ratio
from unmask.errors import TextError
from unmask.text.tokenizer import Tokenizer
from unmask.train.experience import Experience
from unmask.train.grpo_settings import GrpoStage
from unmask.train.scoring import Micro


@dataclass(frozen=True, kw_only=True)
class CardAnswer:
    """One answer; sequences over its tokens, up to and including the end token."""

    text: str
    pieces: tuple[str, ...]
    """The tokens' texts."""

    has_ended: bool
    reward: float | None
    rewards: Mapping[str, float | None]
    """By function, without weights."""

    advantage: float
    is_counted: bool
    """Whether it is in the loss."""

    is_masked: tuple[tuple[bool, ...], ...]
    """For each view: which tokens it hides."""

    weights: tuple[tuple[float, ...], ...]
    """For each view: what a token's log-probability weighs in its score."""

    old_scores: tuple[float, ...]
    scores: tuple[float, ...]
    is_clipped: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One group of answers."""

    phase: int
    task_id: str
    prompt: str
    estimator: str
    answers: tuple[CardAnswer, ...]


class CardWriter(Protocol):
    """Shows a card to a reader (`view/`)."""

    def __call__(self, path: Path, card: Card) -> None:
        """Write it beside `path`, which has no suffix yet."""
        ...


def make_card(
    experience: Experience, micro: Micro, old_BL: Tensor, score_BL: Tensor, *, stage: GrpoStage, tokenizer: Tokenizer
) -> Card:
    """The card of a group; `micro` holds its answers alone."""
    advantage_B = experience.advantage_N[list(micro.numbers)]
    ratio_BL = log_ratio(score_BL, old_BL, micro.is_counted_BL, level=stage.estimator.ratio_level)
    low_BL, high_BL = clip_masks(
        ratio_BL, advantage_B, epsilon=stage.policy.epsilon, epsilon_high=stage.policy.epsilon_high
    )
    answers = []
    for row, number in enumerate(micro.numbers):
        rollout = experience.rollouts[number]
        first = len(rollout.prompt_ids)
        here = slice(first, first + len(rollout.answer_ids))
        answers.append(
            CardAnswer(
                text=rollout.text,
                pieces=tuple(_piece(tokenizer, token) for token in rollout.answer_ids),
                has_ended=rollout.has_ended,
                reward=experience.judged.totals[number],
                rewards={name: values[number] for name, values in experience.judged.by_function.items()},
                advantage=float(advantage_B[row]),
                is_counted=bool(experience.is_counted_N[number]),
                is_masked=tuple(tuple(view) for view in micro.views.is_masked_KBL[:, row, here].tolist()),
                weights=tuple(tuple(view) for view in micro.views.weight_KBL[:, row, here].tolist()),
                old_scores=tuple(old_BL[row, here].tolist()),
                scores=tuple(score_BL[row, here].tolist()),
                is_clipped=tuple((low_BL | high_BL)[row, here].tolist()),
            )
        )
    item = experience.rollouts[micro.numbers[0]].item
    return Card(
        phase=experience.number,
        task_id=item.task.task_id,
        prompt=item.text,
        estimator=stage.estimator.name,
        answers=tuple(answers),
    )


def _piece(tokenizer: Tokenizer, token: int) -> str:
    try:
        return tokenizer.piece(token)
    except TextError:
        return f"<{token}>"
