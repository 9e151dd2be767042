"""The optimiser: AdamW, or Muon on the hidden matrices with AdamW on the rest, as one `torch.optim.Optimizer`.

Weight decay is for matrices. Norms and biases scale and shift, and pulling them to zero only fights the network.
Embeddings (with a tied head) get no decay because a row moves only when its token appears: decay would wear the rows of
rare tokens and of the not yet trained mask token down to nothing, and a mask row of vanishing norm makes gradients
explode once noise is high (reported for LLaDA2.0).

Muon (Jordan et al., 2024; Liu et al., 2025) replaces the momentum of a hidden matrix by the nearest orthogonal matrix,

    M ← β M + (1 − β) G        U = (1 − β) G + β M        W ← (1 − ηλ) W − 0.2 √max(O, I) · η · orthogonal(U)

so that every direction is learnt at the same pace. The factor gives the update the RMS that AdamW's has, so a learning
rate found for AdamW serves. `torch.optim.Muon` computes the same, but on sharded matrices it multiplies shards in
bfloat16, and a run on two devices departs from a run on one; here a sharded U is gathered first, and both agree.

Letters: O outputs, I inputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from unmask.errors import SettingsError, did_you_mean

Kind = Literal["adamw", "muon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserSettings:
    """How gradients become steps."""

    kind: Kind = "adamw"
    lr: float = 3e-4
    """Peak learning rate; a `Schedule` gives each step's factor of it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the mean gradient and of its square."""
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Share of a matrix that is taken off per unit of learning rate."""
    muon_lr: float | None = None
    """Peak learning rate of the hidden matrices under muon; None takes `lr`."""
    muon_momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingsError(f"the optimiser {self.kind!r} is not one; {did_you_mean(self.kind, get_args(Kind))}")
        for name in ("lr", "muon_lr", "eps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"{name} is {value}; it must be above 0")
        for name, value in (("betas", beta) for beta in self.betas):
            if not 0 <= value < 1:
                raise SettingsError(f"{name} holds {value}; give 0 or more and less than 1, as in 0.95")
        if not 0 <= self.muon_momentum < 1:
            raise SettingsError(f"muon_momentum is {self.muon_momentum}; give 0 or more and less than 1, as in 0.95")
        if self.weight_decay < 0:
            raise SettingsError(f"weight_decay is {self.weight_decay}; it must be 0 or more")
        if self.muon_lr is not None and self.kind != "muon":
            raise SettingsError(f"muon_lr is {self.muon_lr} and the optimiser is {self.kind!r}; set kind to 'muon'")


def build_optimiser(module: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """The optimiser of a module's trainable parameters, which must be float32; build it after sharding.

    Each of its groups keeps its peak learning rate as `initial_lr`, which `set_lr` scales.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise SettingsError("no parameter asks for a gradient, so there is nothing to train; unfreeze some")
    for name, parameter in named:
        if parameter.dtype is not torch.float32:
            raise SettingsError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}; small steps vanish in it, so what is "
                "trained must be float32: load the network with dtype float32 and compute under autocast"
            )
    embeddings = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "hidden": [], "plain": []}
    for name, parameter in named:
        is_matrix = parameter.ndim == 2 and id(parameter) not in embeddings
        is_hidden = is_matrix and settings.kind == "muon" and not name.endswith("lm_head.weight")
        groups["hidden" if is_hidden else "matrix" if is_matrix else "plain"].append(parameter)
    adamw = [
        {"params": groups["matrix"], "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": groups["plain"], "lr": settings.lr, "weight_decay": 0.0},
    ]
    hidden_lr = settings.lr if settings.muon_lr is None else settings.muon_lr
    muon = [{"params": groups["hidden"], "lr": hidden_lr, "weight_decay": settings.weight_decay}]
    optimiser: torch.optim.Optimizer
    if settings.kind == "adamw":
        optimiser = _adamw(_filled(adamw), settings)
    else:
        optimiser = MuonAdamW(_filled(muon), _filled(adamw), settings)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Give every group this factor of its peak learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group["initial_lr"]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some groups and AdamW for the others, with one state and one list of groups."""

    def __init__(self, muon: list[dict[str, Any]], adamw: list[dict[str, Any]], settings: OptimiserSettings) -> None:
        for group in muon:
            group["momentum"] = settings.muon_momentum
        self._adamw = _adamw(adamw, settings) if adamw else None
        # AdamW has filled its groups with all its options; the outer optimiser holds the same objects.
        super().__init__([*muon, *(self._adamw.param_groups if self._adamw else [])], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        adamw = [group for group in self.param_groups if "momentum" not in group]
        for group in self.param_groups:
            if "momentum" in group:
                self._muon_step(group)
        if self._adamw is not None:
            # Loading a state replaces both objects, so they are handed over anew at every step.
            self._adamw.param_groups, self._adamw.state = adamw, self.state
            self._adamw.step()
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        beta, lr = group["momentum"], group["lr"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight.grad)
            momentum = state["momentum_buffer"]
            momentum.lerp_(weight.grad, 1 - beta)
            direction = _orthogonal_of(weight.grad.lerp(momentum, beta))
            weight.mul_(1 - lr * group["weight_decay"])
            weight.add_(direction, alpha=-lr * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrix_OI: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """About the nearest matrix with orthonormal rows or columns: five Newton-Schulz steps in bfloat16.

    The quintic's coefficients are steepest at zero, so singular values end near 1 (0.7 to 1.2) and not at it, which
    serves as well (Jordan et al., 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix_OI.bfloat16()
    if wide.shape[0] > wide.shape[1]:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=1e-7)  # every singular value at most 1
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix_OI.shape[0] > matrix_OI.shape[1] else wide


def _orthogonal_of(update: Tensor) -> Tensor:
    """`orthogonal` of a matrix that may be sharded: every rank computes it whole and keeps its part."""
    if not isinstance(update, DTensor):
        return orthogonal(update)
    whole = orthogonal(update.full_tensor())
    return distribute_tensor(whole, update.device_mesh, update.placements, src_data_rank=None)


def _adamw(groups: list[dict[str, Any]], settings: OptimiserSettings) -> torch.optim.AdamW:
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= {"cpu", "cuda"}  # one kernel for the whole update; elsewhere torch chooses
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused or None)


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if group["params"]]
