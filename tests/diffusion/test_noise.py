"""The schedules: their ends, and their slope as a derivative."""

import pytest
import torch

from unmask.diffusion.noise import mask_probability, mask_slope
from unmask.diffusion.settings import NoiseSchedule


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_nothing_is_masked_at_time_0_and_everything_at_time_1(schedule: NoiseSchedule) -> None:
    ends = mask_probability(schedule, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_slope_is_the_derivative_of_the_mask_probability(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(mask_probability(schedule, t).sum(), t)
    torch.testing.assert_close(mask_slope(schedule, t.detach()), derivative)


def test_the_cosine_schedule_spends_more_time_at_high_noise() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert mask_probability("cosine", t).mean() > 0.63
    assert bool((mask_probability("cosine", t) >= mask_probability("linear", t) - 1e-12).all())
