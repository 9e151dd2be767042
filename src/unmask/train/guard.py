"""When to stop a run of reinforcement learning that is breaking what it had."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from unmask.train.grpo_settings import GuardSettings


class Guard:
    """Watches reward, KL and groups; `reason` says why to stop, or is empty."""

    def __init__(self, settings: GuardSettings, *, patience: int) -> None:
        self.settings = settings
        self.patience = patience
        self.reason = ""
        self._rewards: deque[float] = deque(maxlen=settings.window)
        self._best = -float("inf")
        self._without_spread = 0

    def see_reward(self, reward: float, *, has_spread: bool, is_counted: bool = True) -> None:
        """A phase's mean reward (not a number where nothing could be judged), whether the rewards of any group differ,
        and whether any answer is in the loss."""
        self._without_spread = 0 if has_spread and is_counted else self._without_spread + 1
        if self._without_spread >= self.patience and has_spread:
            self.reason = (
                f"in {self._without_spread} rollouts in a row no answer of a group with spread is in the loss, for "
                "they never end; raise prompts.max_new_tokens, or set policy.mask_truncated=false"
            )
        elif self._without_spread >= self.patience:
            self.reason = (
                f"{self._without_spread} rollouts in a row had no group with spread, so nothing is learned; take "
                "easier or harder tasks (`unmask data select`), a higher rollout.temperature, or a larger "
                "rollout.num_generations"
            )
        if reward != reward:
            return
        self._rewards.append(reward)
        if len(self._rewards) < self.settings.window:
            return
        mean = sum(self._rewards) / len(self._rewards)
        self._best = max(self._best, mean)
        if self._best > 0 and mean < (1 - self.settings.reward_drop) * self._best:
            self.reason = (
                f"the reward fell to {mean:.3g}, the mean of {len(self._rewards)} rollouts, from {self._best:.3g}; "
                "begin anew with a lower optimiser.lr or a higher policy.beta, or go on with a higher guard.reward_drop"
            )

    def see_kl(self, kl: float) -> None:
        """An optimiser step's mean KL per token."""
        if kl > self.settings.max_kl:
            self.reason = (
                f"the KL from the reference is {kl:.3g} nats per token, above guard.max_kl={self.settings.max_kl:g}; "
                "begin anew with a lower optimiser.lr or a higher policy.beta"
            )

    def to_json(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        best = None if self._best == -float("inf") else self._best
        return {"rewards": list(self._rewards), "best": best, "without_spread": self._without_spread}

    def from_json(self, record: Mapping[str, Any]) -> None:
        """Go on watching."""
        self._rewards.extend(record["rewards"])
        self._best = -float("inf") if record["best"] is None else record["best"]
        self._without_spread = int(record["without_spread"])
