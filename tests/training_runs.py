"""Whole training runs in small: a byte tokenizer, two kinds of shards, a network of two layers, a few steps.

`alone` runs in this process; `together` starts several processes, which find each other as under `torchrun`. They are
forked from a server that has imported torch and done nothing else, so one starts in a tenth of a second.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from unmask.data.shards import ShardWriter, fingerprint
from unmask.diffusion.settings import Corruption
from unmask.model.checkpoint import load_folder
from unmask.model.config import ModelConfig
from unmask.model.lora import LoraSettings
from unmask.text.tokenizer import Tokenizer
from unmask.train.loop import Outcome, train_stage
from unmask.train.metrics import CLOCK, read_metrics
from unmask.train.optimiser import OptimiserSettings
from unmask.train.parallel import Layout, World, world
from unmask.train.schedule import Schedule
from unmask.train.settings import (
    DataSettings,
    EvaluationSettings,
    LossSettings,
    ModelSettings,
    RunSettings,
    SourceSettings,
    StageSettings,
)

LENGTH = 48
VOCAB_SIZE = 261  # 256 bytes, mask and end, and three rows without a token
SHAPE = ModelConfig(
    family="qwen2",
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=True,
    qkv_bias=True,
    max_positions=128,
)
LORA = LoraSettings(rank=4, train_embeddings=True)


def make_data(folder: Path) -> Path:
    """A tokenizer, texts, and pairs of prompts and answers."""
    tokenizer = Tokenizer.byte_level()
    tokenizer.save(folder / "tokenizer")
    write_texts(folder / "texts", [f"def f{i}(x):\n    return x + {i}\n" for i in range(60)])
    with ShardWriter(folder / "pairs", vocab_size=tokenizer.vocab_size, tokenizer=fingerprint(tokenizer)) as writer:
        for i in range(60):
            prompt = tokenizer.encode(f"add {i}:")
            writer.add(prompt + tokenizer.encode(f"x+{i}\n"), prompt_length=len(prompt))
    return folder


def write_texts(folder: Path, texts: Sequence[str], *, tokenizer: Tokenizer | None = None) -> Path:
    """Shards of some texts."""
    tokenizer = tokenizer or Tokenizer.byte_level()
    with ShardWriter(folder, vocab_size=tokenizer.vocab_size, tokenizer=fingerprint(tokenizer)) as writer:
        for text in texts:
            writer.add(tokenizer.encode(text))
    return folder


def tiny_stage(data: Path, *, attention: str = "full", lora: bool = False, steps: int = 6, **changes: Any) -> Any:
    """A stage on `make_data`; `changes` replace whole groups of its settings."""
    is_block = attention == "block"
    corruption = Corruption(kind="block", block_length=4) if is_block else Corruption()
    pairs = SourceSettings(path=str(data / "pairs"), rows="pairs", canvas=(6, 20))
    settings: dict[str, Any] = {
        "name": "stage",
        "schedule": Schedule(total_steps=steps, warmup_steps=2),
        "optimiser": OptimiserSettings(lr=1e-2),
        "model": ModelSettings(
            config=SHAPE,
            tokenizer=str(data / "tokenizer"),
            attention=attention,  # type: ignore[arg-type]
            block_length=4 if is_block else None,
            init_mask_row=attention != "causal",
        ),
        "data": DataSettings(
            train=(SourceSettings(path=str(data / "texts")), pairs),
            heldout=(pairs,),
            length=LENGTH,
            rows=8,
            micro_rows=2,
        ),
        "loss": LossSettings(kind="diffusion" if attention != "causal" else "autoregressive", corruption=corruption),
        "lora": LORA if lora else None,
        "ema": 0.9,
        "run": RunSettings(precision="float32", log_every=1, save_every=2, keep=99),
        "evaluation": EvaluationSettings(every=4, documents=4, samples=3),
    }
    return StageSettings(**{**settings, **changes})


def changed(stage: StageSettings, group: str, **changes: Any) -> StageSettings:
    """A stage with some settings of one group replaced."""
    return replace(stage, **{group: replace(getattr(stage, group), **changes)})


def alone(stage: StageSettings, folder: Path, *, resume: bool = False, evaluator: Any = None) -> Outcome:
    """The stage in this process."""
    with _no_measuring():
        return train_stage(stage, folder, world=World(), resume=resume, evaluator=evaluator, quiet=True)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of several processes."""

    stage: StageSettings
    folder: Path
    layout: Layout
    resume: bool = False


def together(call: Callable[..., None], *arguments: Any, size: int = 2, limit: float = 120) -> None:
    """`call(world, *arguments)` in processes that are one world; an error in any of them is one here."""
    processes = start(call, *arguments, size=size)
    codes = [wait(process, limit) for process in processes]
    assert codes == [0] * size, f"exit codes {codes}; what went wrong is above, on stderr"


def start(call: Callable[..., None], *arguments: Any, size: int = 1) -> list[BaseProcess]:
    """The same without waiting."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unmask.train.loop", "unmask.data.rows"])
    port = free_port()
    processes = [
        context.Process(target=_process, args=(call, arguments, rank, size, port), daemon=True) for rank in range(size)
    ]
    for process in processes:
        process.start()
    return list(processes)


def wait(process: BaseProcess, limit: float = 60) -> int | None:
    """The exit code; a process that hangs is ended, which fails the test that waits for it."""
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def run_jobs(who: World, jobs: Sequence[Job]) -> None:
    """To be called in each process: the runs one after the other."""
    for job in jobs:
        who = replace(who, layout=job.layout)
        train_stage(job.stage, job.folder, world=who, resume=job.resume, quiet=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def kill(processes: Sequence[BaseProcess], folder: Path, *, step: int) -> None:
    """End all without warning as soon as the log of the run in `folder` has this step."""
    log, stop = folder / "metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and any(record["step"] >= step for record in read_metrics(log))):
        assert time.monotonic() < stop, f"{folder} never came to step {step}"
        assert all(process.is_alive() for process in processes), "the run was over before it could be stopped"
        time.sleep(0.002)
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)


def cut_back(folder: Path, copy: Path, *, step: int) -> Path:
    """A copy of a run as it would be had it ended after `step`, at a checkpoint."""
    shutil.copytree(folder, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    for left in ("final", "adapter"):
        shutil.rmtree(copy / left, ignore_errors=True)
    return copy


def records(folder: Path) -> list[dict[str, Any]]:
    """The log of a run without what the clock says."""
    return [
        {name: value for name, value in record.items() if name not in CLOCK}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    """What a run has exported."""
    return load_folder(folder / "final", dtype=torch.float32, device=torch.device("cpu")).state_dict()


def assert_same_bits(one: Path, other: Path) -> None:
    """Two runs ended at the same weights, bit for bit."""
    ours, theirs = weights(one), weights(other)
    different = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert not different, f"{different[:3]} differ"


def assert_same_log(one: Path, other: Path, *, tolerance: float) -> None:
    """Two runs wrote the same records up to rounding."""
    ours, theirs = records(one), records(other)
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for mine, yours in zip(ours, theirs, strict=True):
        for name in mine:
            assert _close(mine[name], yours[name], tolerance), f"step {mine['step']}: {name} {mine[name]} {yours[name]}"


def _close(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(_close(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if one is None or other is None:
        return one is other
    return bool(abs(one - other) <= tolerance * max(1.0, abs(one)))


def _process(call: Callable[..., None], arguments: Sequence[Any], rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in told.items()})
    try:
        with _no_measuring(), world("ddp" if size > 1 else "none", device="cpu", timeout_seconds=60) as who:
            call(who, *arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # not waiting for the others, as they may wait for us


def _no_measuring() -> AbstractContextManager[Any]:
    return mock.patch("unmask.train.loop.matmul_peak", return_value=1.0)  # it takes 0.3 s a run
