"""Devices and processes: one process, replicas that add up their gradients (ddp), or FSDP2 shards.

Processes are started by `torchrun`, which tells each its rank in the environment. A step's rows are shared among the
ranks and the loss is divided by the *global* denominator, so gradients are added, never averaged, and the layout does
not change what is learnt.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from unmask.errors import SettingsError, UnmaskError
from unmask.train.settings import Parallel

Layout = Literal["none", "ddp", "fsdp"]

_PATIENCE = timedelta(days=30)
"""How long the other ranks leave to what the first does alone; one that fails ends them by torchrun."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Who we are among the processes of a run."""

    rank: int = 0
    size: int = 1
    layout: Layout = "none"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """True for the one process that writes files and talks."""
        return self.rank == 0


@contextmanager
def world(kind: Parallel, *, device: str = "auto", timeout_seconds: int = 600) -> Iterator[World]:
    """Join the other processes of this run, and leave them at the end."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    has_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_cuda else torch.device("cpu")
    layout: Layout = ("fsdp" if size > 1 else "none") if kind == "auto" else kind
    if layout == "none" and size > 1:
        raise SettingsError(
            f"run.parallel=none, but torchrun has started {size} processes, which would all train the same; set "
            "run.parallel=fsdp or run.parallel=ddp"
        )
    if has_cuda:
        torch.cuda.set_device(where)
    if layout == "none":
        yield World(device=where)
        return
    _join("nccl" if has_cuda else "gloo", rank=rank, size=size, timeout_seconds=timeout_seconds)
    try:
        yield World(rank=rank, size=size, layout=layout, device=where)
    finally:
        dist.destroy_process_group()


def _join(backend: str, *, rank: int, size: int, timeout_seconds: int) -> None:
    # Alone there is nobody to meet, at no port.
    store = dist.HashStore() if size == 1 else None  # type: ignore[attr-defined]
    try:
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_seconds)
        )
        dist.barrier()
    except (dist.DistError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(
            f"rank {rank} of {size} waited {timeout_seconds} s for the others and at least one did not come "
            f"({reason}); start every rank (torchrun --nnodes --nproc-per-node) with the same --rdzv-endpoint, or "
            "raise run.timeout_seconds"
        ) from None


def shard(module: nn.Module, layers: nn.ModuleList, world: World) -> None:
    """Cut the parameters among the ranks, layer by layer, then what is left (embedding, norm, head) together."""
    if world.layout != "fsdp":
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def loss_scale(world: World) -> float:
    """FSDP2 averages gradients over its ranks; the loss is multiplied by their number so that they add up."""
    return float(world.size) if world.layout == "fsdp" else 1.0


def add_gradients(module: nn.Module, world: World) -> None:
    """Add the gradients of the replicas, in one message (ddp only)."""
    if world.layout != "ddp":
        return
    gradients = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    at = 0
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
        at += gradient.numel()


def clip_gradients(module: nn.Module, limit: float) -> Tensor:
    """Scale the gradients so that their joint norm is at most `limit`; the norm before that."""
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def add_up(values: Tensor, world: World) -> Tensor:
    """The sum of a tensor over the ranks."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather_objects(value: Any, world: World) -> list[Any]:
    """Every rank's value, in order of rank."""
    if world.size == 1:
        return [value]
    out: list[Any] = [None] * world.size
    dist.all_gather_object(out, value)
    return out


def raise_together(problem: UnmaskError | None, world: World) -> None:
    """Raise the first problem that a rank has on every rank, so that none waits for one that is gone."""
    found = next((one for one in gather_objects(problem, world) if one is not None), None)
    if found is not None:
        raise found


def wait_for_all(world: World) -> None:
    """Go on when every rank is here."""
    if world.size > 1:
        dist.barrier()


def after_first(world: World, work: Callable[[], None]) -> None:
    """Let the first rank do some work, and go on when it is done: hours are no sign that a rank is lost, as they would
    be in `wait_for_all`."""
    if world.size == 1:
        work()
        return
    patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
    if world.is_first:
        work()
    dist.barrier(patient)
    dist.destroy_process_group(patient)
