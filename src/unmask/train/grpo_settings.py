"""Everything that decides a stage of reinforcement learning: coupled-GRPO (DiffuCoder, arXiv 2506.20639) and its kin.

One rollout asks `prompts_per_step` prompts for `rollout.num_generations` answers each. It is learned from in
`policy.iterations` optimiser steps, each with masks of its own.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from unmask.diffusion.rl_settings import (
    Baseline,
    Estimator,
    KlEstimator,
    LossType,
    Scale,
    check_clipping,
    check_group,
)
from unmask.errors import did_you_mean
from unmask.reward.settings import RewardSettings
from unmask.train.prompts import PromptSettings, name_of
from unmask.train.rollout import RolloutSettings
from unmask.train.settings import Stage, require

NoSpread = Literal["filter", "keep", "redraw"]


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What is maximised. The defaults are the paper's; as released only `baseline` differs (leave_one_out)."""

    baseline: Baseline = "group_mean"
    """What an answer's reward is compared with: the mean of its group, or of the others in it."""

    scale: Scale = "none"
    """Advantages are divided by the standard deviation of their group, or of the whole rollout, or not at all."""

    loss_type: LossType = "dapo"
    """How tokens are averaged (TRL's names)."""

    epsilon: float = 0.5
    """The ratio is clipped below 1 - epsilon and above 1 + epsilon_high."""

    epsilon_high: float | None = None
    """None: as epsilon."""

    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative (two-sided clipping); None: none."""

    iterations: int = 2
    """Optimiser steps per rollout (μ), each with fresh masks."""

    beta: float = 0.01
    """Weight of the KL divergence from the reference policy; 0: there is none, and what follows about it is idle."""

    kl: KlEstimator = "k3"
    sync_every: int = 64
    """Optimiser steps between updates of the reference policy; 0: it stays the policy of the start, which with a fresh
    LoRA is the base."""

    sync_share: float = 0.6
    """Share of the policy in an updated reference (TRL's ref_model_mixup_alpha)."""

    score_temperature: float | None = None
    """Logits are divided by it in the scores; None: the rollout's temperature, from which the answers were drawn. The
    released code scores at 1 what it draws at 1.0 to 1.2."""

    mask_truncated: bool = False
    """Leave answers that never end out of the loss (TRL's mask_truncated_completions)."""

    no_spread: NoSpread = "filter"
    """What happens to a group whose rewards are all the same and teach nothing."""

    redraws: int = 0
    """How often another prompt is drawn in place of such a group."""

    patience: int = 8
    """Rollouts in a row without any spread after which the run stops."""

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("sync_every", 0), ("redraws", 0), ("patience", 1)):
            given = getattr(self, name)
            require(given >= least, f"policy.{name}={given} must be at least {least}")
        for name, kind in (
            ("baseline", Baseline),
            ("scale", Scale),
            ("loss_type", LossType),
            ("kl", KlEstimator),
            ("no_spread", NoSpread),
        ):
            chosen, known = getattr(self, name), get_args(kind)
            require(chosen in known, f"policy.{name}={chosen} is not known; {did_you_mean(str(chosen), known)}")
        check_clipping(self.epsilon, self.epsilon_high, self.delta)
        require(self.beta >= 0, f"policy.beta={self.beta} would reward distance from the reference; it must be >= 0")
        require(0 < self.sync_share <= 1, f"policy.sync_share={self.sync_share} lies outside (0, 1]")
        require(
            self.score_temperature is None or self.score_temperature > 0,
            f"policy.score_temperature={self.score_temperature} is not a temperature; it must be above 0, or none",
        )
        require(
            (self.no_spread == "redraw") == (self.redraws > 0),
            f"policy.no_spread={self.no_spread} and policy.redraws={self.redraws} contradict each other; redrawing "
            "needs a number of attempts, as in policy.no_spread=redraw and policy.redraws=2",
        )


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """When a run stops by itself, because it is not learning any more but breaking."""

    window: int = 10
    """Rollouts over which the reward is averaged."""

    reward_drop: float = 0.5
    """Share of its best average by which the reward may fall; an average that was never above 0 stops nothing."""

    max_kl: float = 10.0
    """Nats per token from the reference, averaged over an optimiser step; without one (policy.beta=0) it is idle."""

    def __post_init__(self) -> None:
        require(self.window >= 1, f"guard.window={self.window} must be at least 1")
        require(0 < self.reward_drop <= 1, f"guard.reward_drop={self.reward_drop} lies outside (0, 1]")
        require(self.max_kl > 0, f"guard.max_kl={self.max_kl} must be above 0")


@dataclass(frozen=True, kw_only=True)
class GrpoStage(Stage):
    """One stage of reinforcement learning.

    Every step is logged and the held-out loss is none of its measures, so `run.log_every`, `evaluation.documents` and
    `evaluation.samples` say nothing here.
    """

    prompts: PromptSettings = field(default_factory=PromptSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    estimator: Estimator = field(default_factory=Estimator)
    policy: PolicySettings = field(default_factory=PolicySettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    prompts_per_step: int = 8
    """Prompts of one rollout, over all devices."""

    micro_answers: int = 8
    """Answers that are scored in one forward on one device, each in all views of the estimator."""

    card_every: int = 0
    """Rollouts between rollout cards (a page with the answers of one prompt); 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.prompts_per_step >= 1, f"prompts_per_step={self.prompts_per_step} must be at least 1")
        require(self.micro_answers >= 1, f"micro_answers={self.micro_answers} must be at least 1")
        require(self.card_every >= 0, f"card_every={self.card_every} must be at least 0")
        check_group(self.rollout.num_generations, self.policy.baseline)
        measured = name_of(self.evaluation.tasks)
        require(
            not measured or measured not in map(name_of, self.prompts.tasks),
            f"prompts.tasks and evaluation.tasks both name {measured}: pass@1 would be that of tasks that were learned "
            "from; measure it on others",
        )

    @property
    def answers_per_step(self) -> int:
        """Answers of one rollout."""
        return self.prompts_per_step * self.rollout.num_generations

    @property
    def most_views(self) -> int:
        """Forwards that scoring an answer takes, for an answer that fills its room."""
        import torch

        from unmask.diffusion.likelihood import num_views

        is_answer_BL = torch.ones(1, self.prompts.max_new_tokens, dtype=torch.bool)
        each = -(-self.prompts.max_new_tokens // (self.rollout.steps or self.prompts.max_new_tokens))
        return num_views(
            self.estimator,
            is_answer_BL,
            committed_at_BL=torch.arange(self.prompts.max_new_tokens)[None] // each,
        )
