"""What a run observes beside its commits: the first look at the whole canvas, and the runners-up of each token.

Observing changes nothing: it takes no random number, and nothing that is decoded depends on it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    """What to observe. Every default is valid."""

    first_step: bool = True
    """Keep confidence and entropy of every place that the first step asks about (the entropy sink)."""

    runners_up: int = 0
    """How many of the next best tokens to keep for each commit."""

    def __post_init__(self) -> None:
        if self.runners_up < 0:
            raise SettingsError(f"runners_up={self.runners_up} is not a count of tokens; it must be 0 (none) or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runners:
    """For each place the K best other tokens, best first; what could not have been drawn has probability 0."""

    token_MK: Int[Tensor, "M K"]
    probability_MK: Float[Tensor, "M K"]

    def of(self, index_M: Tensor) -> list[tuple[tuple[int, float], ...]]:
        """Those of the places that `index_M` picks, as a record keeps them."""
        tokens, probabilities = self.token_MK[index_M].tolist(), self.probability_MK[index_M].tolist()
        return [
            tuple((token, p) for token, p in zip(*one, strict=True) if p > 0)
            for one in zip(tokens, probabilities, strict=True)
        ]


def best_others(
    score_MV: Float[Tensor, "M V"], token_M: Int[Tensor, " M"], k: int
) -> tuple[Float[Tensor, "M K"], Int[Tensor, "M K"]]:
    """The scores and ids of each row's `k` best tokens other than `token_M`, best first; all others where V <= k.

    >>> best_others(torch.tensor([[0.5, 0.2, 0.3]]), torch.tensor([0]), 1)
    (tensor([[0.3000]]), tensor([[2]]))
    """
    size = score_MV.shape[-1]
    best = score_MV.topk(min(k + 1, size), dim=-1)
    is_token_MK = best.indices == token_M[:, None]
    others_first_MK = is_token_MK.int().sort(dim=-1, stable=True).indices[:, : min(k, size - 1)]
    return best.values.gather(-1, others_first_MK), best.indices.gather(-1, others_first_MK)


def join_runners(parts: list[Runners]) -> Runners:
    """The runners-up of several chunks as one, on the CPU."""
    return Runners(
        token_MK=torch.cat([part.token_MK for part in parts]).cpu(),
        probability_MK=torch.cat([part.probability_MK for part in parts]).cpu(),
    )
