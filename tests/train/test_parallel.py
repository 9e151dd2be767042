"""Processes: who joins, who is missed, and that sums over ranks are sums."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from unmask.errors import SettingsError
from unmask.train.parallel import (
    World,
    add_gradients,
    add_up,
    after_first,
    clip_gradients,
    gather_objects,
    loss_scale,
    shard,
    world,
)

from training_runs import free_port, start, together, wait


def told(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """The environment as torchrun sets it."""
    settings: Mapping[str, str] = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        **changes,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_alone_there_is_no_group() -> None:
    with world("auto", device="cpu") as who:
        assert who == World()
        assert who.is_first
        assert not torch.distributed.is_initialized()
        assert gather_objects("a", who) == ["a"]


def test_none_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    with (
        pytest.raises(
            SettingsError,
            match=r"run.parallel=none, but torchrun has started 2 processes, which would all train the same; set "
            r"run.parallel=fsdp or run.parallel=ddp",
        ),
        world("none", device="cpu"),
    ):
        pass


def wait_in_vain(who: World, out: Path) -> None:
    port = free_port()
    os.environ.update(RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    begun = time.monotonic()
    with pytest.raises(SettingsError) as found, world("fsdp", device="cpu", timeout_seconds=2):
        pass
    assert time.monotonic() - begun < 20
    out.write_text(str(found.value), encoding="utf-8")


def test_a_missing_rank_is_told_and_not_waited_for_without_end(tmp_path: Path) -> None:
    (process,) = start(wait_in_vain, tmp_path / "message")
    assert wait(process) == 0
    message = (tmp_path / "message").read_text(encoding="utf-8")
    assert message.startswith("rank 0 of 2 waited 2 s for the others and at least one did not come (")
    assert message.endswith(
        "); start every rank (torchrun --nnodes --nproc-per-node) with the same --rdzv-endpoint, or raise "
        "run.timeout_seconds"
    )


def prepare_slowly(who: World, rank: int, port: int, out: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))

    def work() -> None:
        time.sleep(4)
        out.write_text(str(here.rank), encoding="utf-8")

    with world("ddp", device="cpu", timeout_seconds=2) as here:
        after_first(here, work)
        assert out.read_text(encoding="utf-8") == "0"


def test_work_of_the_first_rank_may_take_longer_than_the_others_wait(tmp_path: Path) -> None:
    port = free_port()
    processes = [process for rank in (0, 1) for process in start(prepare_slowly, rank, port, tmp_path / "out")]
    assert [wait(process) for process in processes] == [0, 0]


def group_of_one(who: World, layout: str) -> None:
    with world(layout, device="cpu", timeout_seconds=20) as alone:  # type: ignore[arg-type]
        assert (alone.size, alone.layout) == (1, layout)
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


def test_a_group_of_one_needs_no_port(tmp_path: Path) -> None:
    # Two at a time, as two runs on one machine.
    processes = [*start(group_of_one, "ddp"), *start(group_of_one, "fsdp")]
    assert [wait(process) for process in processes] == [0, 0]


def gradients(who: World) -> None:
    """Rank r's loss is (r + 1) · Σ w · x_r: the sum over ranks is known."""
    values = add_up(torch.tensor([1.0, who.rank]), who)
    assert values.tolist() == [2.0, 1.0]
    assert gather_objects(who.rank * 10, who) == [0, 10]
    for layout in ("ddp", "fsdp"):
        here = replace(who, layout=layout)  # type: ignore[arg-type]
        module = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 1, bias=False))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(0.5)
        module[1].weight.requires_grad_(False)
        shard(module, nn.ModuleList([module[0]]), here)
        loss = (who.rank + 1) * module(torch.full((1, 3), 2.0)).sum() * loss_scale(here)
        loss.backward()
        add_gradients(module, here)
        gradient = module[0].weight.grad
        assert gradient is not None
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        torch.testing.assert_close(whole, torch.full((5, 3), 3.0))  # (1 + 2) · 0.5 · 2
        assert module[1].weight.grad is None
        norm = clip_gradients(module, 1.0)
        torch.testing.assert_close(norm, torch.tensor(3.0 * 15**0.5))
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        torch.testing.assert_close(whole.norm(), torch.tensor(1.0))


def test_gradients_are_added_over_ranks_in_both_layouts() -> None:
    together(gradients)


def without_a_gradient(who: World) -> None:
    module = nn.Linear(2, 1)
    if who.rank == 0:
        module(torch.ones(1, 2)).sum().backward()
    add_gradients(module, replace(who, layout="ddp"))
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[1.0, 1.0]]


def test_a_replica_without_a_gradient_gets_the_others() -> None:
    together(without_a_gradient)
