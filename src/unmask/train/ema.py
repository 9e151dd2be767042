"""An exponential moving average of the trained weights (EMA), for evaluation and export.

After update n (counted from 1)

    average ← average + (1 − d_n) · (weight − average)        d_n = min(decay, (1 + n) / (10 + n))

The warm decay d_n keeps the random start out: with a constant 0.999 half of the average would still be the first
weights after 690 updates, with d_n the first are forgotten within tens. A bias correction (as in Adam) would do the
same for an average that starts at zero, but its raw values could not be evaluated without the correction.

A reference policy of reinforcement learning is such an average too, with `is_warm` false: it starts at weights that
are to be kept.

Only parameters that ask for a gradient are averaged. Sharded parameters are averaged shard by shard.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from unmask.errors import CheckpointError, SettingsError
from unmask.model.checkpoint import mismatches


class Ema:
    """The average of a module's trainable parameters; create it after sharding, update it after each step."""

    def __init__(self, module: nn.Module, *, decay: float = 0.999, is_warm: bool = True) -> None:
        if not 0 <= decay < 1:
            raise SettingsError(f"the EMA decay is {decay}; give 0 or more and less than 1, as in 0.999")
        self.decay = decay
        self.is_warm = is_warm
        self.num_updates = 0
        self._module = module
        _reshard(module)  # while a group is gathered its module shows other parameter objects
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._is_swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights, once."""
        assert not self._is_swapped, "the average stands in the network; leave `swapped_in` before training on"
        self.num_updates += 1
        warm = (1 + self.num_updates) / (10 + self.num_updates) if self.is_warm else 1.0
        decay = min(self.decay, warm)
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name].detach(), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The network with the averaged weights inside the block, and bit for bit its own afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """The count of updates and the averages under the parameters' names, as they are sharded."""
        return {"num_updates": self.num_updates, "averages": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved average of the same parameters."""
        averages: Mapping[str, Tensor] = state["averages"]
        problems = mismatches(_shapes(self._averages), _shapes(averages), optional={})
        if problems:
            raise CheckpointError(
                f"the saved average is of another network; {problems}. Resume with the run's settings"
            )
        self.num_updates = int(state["num_updates"])
        for name, average in self._averages.items():
            average.copy_(averages[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._averages.items():
            weight = self._parameters[name].detach()
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)
        self._is_swapped = not self._is_swapped
        _reshard(self._module)  # what is gathered is now out of date


def _reshard(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
