"""A low-rank change that acts on some columns and leaves the others to the parent, to the bit.

The noisy block of a draft goes through the network together with the clean tokens that are being checked. A gated layer
computes the parent's product for all columns and adds its change from the gate on, so what the parent says of the clean
columns does not depend on there being an adapter (Samragh et al., "Your LLM knows the future", 2507.11851).

Letters: B rows, T columns, I inputs, O outputs, r rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class GatedLinear(nn.Module):
    """A linear layer, and from a column on its change `B A x`, the scale being part of B."""

    def __init__(self, base: nn.Module, A: Float[Tensor, "r I"], B: Float[Tensor, "O r"]) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(A, requires_grad=False)
        self.lora_B = nn.Parameter(B, requires_grad=False)

    def forward(self, x_BTI: Float[Tensor, "B T I"], gate: int | None = None) -> Float[Tensor, "B T O"]:
        out_BTO: Tensor = self.base(x_BTI)
        if gate is None or gate >= x_BTI.shape[1]:
            return out_BTO
        change = F.linear(F.linear(x_BTI[:, gate:], self.lora_A), self.lora_B)
        if torch.is_grad_enabled():
            return torch.cat((out_BTO[:, :gate], out_BTO[:, gate:] + change), 1)
        out_BTO[:, gate:] += change
        return out_BTO


def through(linear: nn.Module, x_BTI: Float[Tensor, "B T I"], gate: int | None) -> Float[Tensor, "B T O"]:
    """A layer's output; one that has no gate needs none."""
    out: Tensor = linear(x_BTI) if gate is None or not isinstance(linear, GatedLinear) else linear(x_BTI, gate)
    return out
