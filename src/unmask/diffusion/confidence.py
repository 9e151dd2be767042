"""How sure a distribution is: the scores by which a policy ranks open positions. Higher means commit earlier.

Each takes log-probabilities [M, V] in float32.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_confidence(logp_MV: Float[Tensor, "M V"], token_M: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Probability of the token that was chosen (`maskgit_plus`; Chang et al., 2022)."""
    return logp_MV.gather(-1, token_M[:, None]).squeeze(-1).exp()


def top_margin(logp_MV: Float[Tensor, "M V"]) -> Float[Tensor, " M"]:
    """Probability of the best token less that of the second (`topk_margin`; Kim et al., 2025).

    >>> top_margin(torch.tensor([[0.5, 0.3, 0.2]]).log())
    tensor([0.2000])
    """
    best = logp_MV.topk(2, dim=-1).values.exp()
    return best[:, 0] - best[:, 1]


def entropy(logp_MV: Float[Tensor, "M V"]) -> Float[Tensor, " M"]:
    """Entropy in nats; the `entropy` policy ranks by its negative.

    >>> entropy(torch.tensor([[0.5, 0.5]]).log())
    tensor([0.6931])
    """
    return -(logp_MV.exp() * logp_MV.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
