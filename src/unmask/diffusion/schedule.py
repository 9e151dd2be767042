"""How many positions a step may commit.

Two schedules. The exact one divides integers: `total` positions over `steps` steps, remainder first, none empty as long
as steps <= total. The reference one is Dream's: with times t falling linearly from 1 to eps, a step from t to s commits
floor(masks · (1 - s/t)), and the last step commits the rest; in float32 that makes the first of N steps over N
positions empty and the last one double.
"""

import torch


def step_budget(total: int, steps: int, index: int) -> int:
    """Positions to commit in step `index` of `steps` (exact mode).

    >>> [step_budget(10, 4, i) for i in range(4)]
    [3, 3, 2, 2]
    """
    base, remainder = divmod(total, steps)
    return base + (index < remainder)


def split_steps(sizes: list[int], steps: int) -> list[int]:
    """Share `steps` among blocks in proportion to their open positions, at least one each (so steps >= blocks).

    Each block takes its part of the steps and positions that are left, so the shares add up to `steps`, and none is
    larger than its block as long as steps <= positions.

    >>> split_steps([32, 32, 16], 10), split_steps([1, 1, 98], 3)
    ([4, 4, 2], [1, 1, 1])
    """
    shares, positions_left, steps_left = [], sum(sizes), steps
    for number, size in enumerate(sizes, 1):
        share = min(max(1, steps_left * size // positions_left), steps_left - (len(sizes) - number))
        shares.append(share)
        positions_left, steps_left = positions_left - size, steps_left - share
    return shares


def reference_times(steps: int, eps: float) -> torch.Tensor:
    """Dream's times: steps + 1 float32 numbers from 1 down to eps."""
    return torch.linspace(1, eps, steps + 1)


def reference_share(times: torch.Tensor, index: int) -> torch.Tensor:
    """The share 1 - s/t of the masked positions that step `index` commits, 1 in the last step; a float32 scalar."""
    if index == len(times) - 2:
        return torch.tensor(1.0)
    return 1 - times[index + 1] / times[index]


def reference_budget(mean_masks: torch.Tensor, times: torch.Tensor, index: int) -> int:
    """Dream's count of positions to commit per row, from the batch's mean mask count.

    >>> times = reference_times(4, 1e-3)
    >>> [reference_budget(torch.tensor(float(m)), times, i) for i, m in enumerate([4, 4, 3, 2])]
    [0, 1, 1, 2]
    """
    return int(mean_masks * reference_share(times, index))
