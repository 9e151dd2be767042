"""How numbers move over a run: the learning rate's factor, and ramps for annealing and for the noise.

Pure functions of the step, which counts from 0, so a resumed run needs no state for them. The first `warmup_steps`
steps rise linearly from 1/warmup_steps to 1: the first step already learns. After that

    constant   1
    cosine     half a cosine from 1 down to final_share at the last step (Loshchilov & Hutter, 2017)
    wsd        1, and over the last decay_share of the run a line down to final_share (Hu et al., 2024, MiniCPM)
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from unmask.errors import SettingsError, did_you_mean

Kind = Literal["constant", "cosine", "wsd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate over a run, as a factor of its peak."""

    kind: Kind = "cosine"
    total_steps: int = 1000
    """Optimiser steps of the whole run."""
    warmup_steps: int = 0
    """Steps until the peak."""
    final_share: float = 0.1
    """The factor at the last step, for cosine and wsd."""
    decay_share: float = 0.2
    """The last part of the run in which wsd decays."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingsError(f"the schedule {self.kind!r} is not one; {did_you_mean(self.kind, get_args(Kind))}")
        if self.total_steps < 1:
            raise SettingsError(f"total_steps is {self.total_steps}; a run has at least 1 step")
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise SettingsError(
                f"warmup_steps is {self.warmup_steps} in a run of {self.total_steps} steps; "
                f"give 0 to {self.total_steps}, or a longer run"
            )
        if not 0 <= self.final_share <= 1:
            raise SettingsError(f"final_share is {self.final_share}; it is a share of the peak, from 0 to 1")
        if not 0 < self.decay_share <= 1:
            raise SettingsError(f"decay_share is {self.decay_share}; it is a share of the run, above 0 and up to 1")


def lr_factor(schedule: Schedule, step: int) -> float:
    """The learning rate of a step as a factor of its peak.

    >>> run = Schedule(kind="cosine", total_steps=9, warmup_steps=4)
    >>> [round(lr_factor(run, step), 3) for step in range(9)]
    [0.25, 0.5, 0.75, 1.0, 0.914, 0.689, 0.411, 0.186, 0.1]
    >>> run = Schedule(kind="wsd", total_steps=8, warmup_steps=2, decay_share=0.5)
    >>> [round(lr_factor(run, step), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1]
    >>> run = Schedule(kind="constant", total_steps=4, warmup_steps=2)
    >>> [lr_factor(run, step) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    number = min(step, schedule.total_steps - 1) + 1  # steps taken when this one is done
    if number <= schedule.warmup_steps:
        return number / schedule.warmup_steps
    fall = 1 - schedule.final_share
    if schedule.kind == "cosine":
        progress = (number - schedule.warmup_steps) / (schedule.total_steps - schedule.warmup_steps)
        return schedule.final_share + fall * (1 + math.cos(math.pi * progress)) / 2
    if schedule.kind == "wsd":
        decay_steps = min(
            max(1, round(schedule.decay_share * schedule.total_steps)), schedule.total_steps - schedule.warmup_steps
        )
        progress = max(0.0, 1 - (schedule.total_steps - number) / decay_steps)
        return 1 - fall * progress
    return 1.0


def ramp(step: int, steps: int) -> float:
    """A line from 0 to 1 that is reached at the last of `steps` steps; 1 at once for no steps.

    It is the r of attention-mask annealing, r = min(1, (step + 1) / steps), and the rising end of the noise levels.

    >>> [ramp(step, 4) for step in range(6)], ramp(0, 0)
    ([0.25, 0.5, 0.75, 1.0, 1.0, 1.0], 1.0)
    """
    return 1.0 if steps < 1 else min(1.0, (step + 1) / steps)
