"""How much is masked at time t: the forward process of absorbing diffusion.

A token is kept with probability alpha(t), which falls from 1 at t = 0 to 0 at t = 1, and is masked otherwise. Training
asks for two things: the mask probability 1 - alpha, and its slope -alpha', whose quotient is the weight of the
evidence lower bound (Sahoo et al., 2406.07524; Shi et al., 2406.04329). The bound is the same for every schedule, since
only the mask probability matters and the slope is the change of variables; what differs is how often each probability
is visited.
"""

import math

from jaxtyping import Float
from torch import Tensor

from unmask.diffusion.settings import NoiseSchedule


def mask_probability(schedule: NoiseSchedule, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 - alpha(t): t for `linear`, sin(πt/2) for `cosine`, which spends more of its time at high noise.

    >>> import torch
    >>> mask_probability("cosine", torch.tensor([0.0, 1 / 3, 1.0])).round(decimals=3).tolist()
    [0.0, 0.5, 1.0]
    """
    return t if schedule == "linear" else (t * (math.pi / 2)).sin()


def mask_slope(schedule: NoiseSchedule, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-alpha'(t), the derivative of `mask_probability`."""
    return t.new_ones(t.shape) if schedule == "linear" else (t * (math.pi / 2)).cos() * (math.pi / 2)
