"""An object of a user's file as a reward function: a reward model, a table, a client; anything with state.

The file builds it once, when it is loaded:

    class Judge(torch.nn.Module):
        def forward(self, *, completions, **columns):   # TRL's arguments, by name
            return [self.score(text) for text in completions]

    judge = Judge.from_pretrained(...).to("cuda")

and `rewards.py:judge` names it; that is also the name its rewards are logged by. A run loads each file once per
process, not per batch: with two processes there are two judges, each on the device that the file puts it on. A network
(`torch.nn.Module`) is set to evaluation, and called without gradients. What merely holds one sees to both
itself: an object with a network inside, a `functools.partial` of one, a bound method such as `judge.score`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn, no_grad


class RewardModel:
    """Calls an object under its own `__name__`, or else the name that it has in the user's file."""

    def __init__(self, model: Any, name: str) -> None:
        self.__name__ = str(getattr(model, "__name__", name))
        self.model = model
        if isinstance(model, nn.Module):
            model.eval()  # a class may have its own, which need not return the network

    def __call__(self, **arguments: Any) -> Iterable[float | None]:
        if not isinstance(self.model, nn.Module):
            found: Iterable[float | None] = self.model(**arguments)
            return found
        with no_grad():
            found = self.model(**arguments)
            return list(found) if isinstance(found, Iterator) else found  # a generator would run on behind this
