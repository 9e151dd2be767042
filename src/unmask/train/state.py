"""Checkpoints of a run: everything that the next step depends on, loadable at any number of processes.

    checkpoints/step-00000500/   one torch.distributed.checkpoint: weights (the trained ones), optimiser, moving average
                  meta.json      step, settings, architecture; written last

A checkpoint is written into a hidden folder beside its place and renamed when every rank is done, so whatever happens
meanwhile, the ones before it stay valid. There is no random state in it: nothing here has one (`data/rows.py`,
`train/step.py`), the step alone says which samples come next and how they are corrupted.
"""

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.futures import Future

from unmask.errors import CheckpointError, UnmaskError
from unmask.train.ema import Ema
from unmask.train.parallel import World, gather_objects, wait_for_all
from unmask.train.settings import differences

_FORMAT = 1
_META = "meta.json"
_TRAINED = StateDictOptions(ignore_frozen_params=True)


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says of itself."""

    step: int
    """Optimiser steps that have been made."""

    settings: Mapping[str, Any]
    architecture: Mapping[str, Any]
    data: Mapping[str, str] = field(default_factory=dict)
    """Which shards the rows come from (`train/sources.py`); a checkpoint that is older than this has none."""

    owes_evaluation: bool = False
    """An evaluation was due at this step and a signal came first: the resumed run makes it."""

    unlogged: Sequence[float] = ()
    """The sums over the steps since the last line of metrics: the next line is to count them too."""

    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else a loop has to remember, as plain JSON values."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The things that change from step to step."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    averages: Mapping[str, Ema] = field(default_factory=dict)
    """Other weights of the same shape: a moving average, a reference policy."""


Writer = Callable[[Path], None]
"""Writes files of its own into a folder."""


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder."""
    whole = _whole(folder)
    return whole[-1] if whole else None


def read_meta(checkpoint: Path) -> Meta:
    """What a checkpoint says of itself."""
    try:
        record = json.loads((checkpoint / _META).read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise CheckpointError(
                f"{checkpoint} is of format {record['format']} and this version reads {_FORMAT}; resume it with the "
                "version that wrote it"
            )
        return Meta(
            step=int(record["step"]),
            settings=record["settings"],
            architecture=record["architecture"],
            data=record.get("data", {}),
            owes_evaluation=bool(record.get("owes_evaluation", False)),
            unlogged=record.get("unlogged", ()),
            notes=record.get("notes", {}),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint} is damaged ({error}); delete it, and the one before it is resumed from"
        ) from None


def save(folder: Path, meta: Meta, trained: Trained, *, world: World, keep: int, write: Writer | None = None) -> Path:
    """Write a checkpoint and drop the oldest beyond `keep`. Raises CheckpointError, with the others still valid.

    `write` adds the first rank's own files to it.
    """
    target = folder / f"step-{meta.step:08d}"
    partial = folder / f".{target.name}.partial"
    _agree(_made_room(folder, partial) if world.is_first else "", target, partial, world)
    problem = ""
    try:
        with _alone_or_together() as no_dist:
            state_dict_saver.save(_state(trained), checkpoint_id=partial, no_dist=no_dist)
        if world.is_first:
            if write is not None:
                write(partial)
            _write_meta(partial / _META, meta)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
    except (OSError, RuntimeError, CheckpointException, UnmaskError) as error:
        problem = _reason(error)
    _agree(problem, target, partial, world)
    if world.is_first:
        for old in _whole(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    wait_for_all(world)
    return target


def load(checkpoint: Path, trained: Trained, *, architecture: Mapping[str, Any]) -> Meta:
    """Read a checkpoint into the trained things, which have the layout of this run. Raises CheckpointError for one of
    another architecture, before anything is changed."""
    meta = read_meta(checkpoint)
    other = differences(dict(meta.architecture), dict(architecture))
    if other:
        raise CheckpointError(
            f"{checkpoint} belongs to a network of another architecture; different are {', '.join(other[:4])}. "
            "Resume it with its own recipe, or begin anew in another --output"
        )
    state = _state(trained)
    try:
        with _alone_or_together() as no_dist:
            state_dict_loader.load(state, storage_reader=_Reader(checkpoint), no_dist=no_dist)
    except (OSError, RuntimeError, KeyError, CheckpointException) as error:
        raise CheckpointError(
            f"{checkpoint} is damaged ({_reason(error)}); delete it, and the one before it is resumed from"
        ) from None
    set_model_state_dict(
        trained.module, state["model"], options=StateDictOptions(strict=False, ignore_frozen_params=True)
    )
    set_optimizer_state_dict(trained.module, trained.optimiser, state["optimiser"], options=_TRAINED)
    for name, average in trained.averages.items():
        average.load_state_dict(state[name])
    return meta


def whole_weights(module: nn.Module, world: World) -> dict[str, Tensor]:
    """Every parameter, gathered from the shards; on the CPU, and empty on all ranks but the first."""
    if not isinstance(module, FSDPModule):
        return {name: value.detach() for name, value in module.state_dict().items()} if world.is_first else {}
    whole = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value for name, value in whole.items() if isinstance(value, Tensor)}


def weights_everywhere(module: nn.Module, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every parameter in a precision, gathered from the shards on every rank: one at a time, so that only the result
    is ever whole."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().to(dtype)
        for name, value in module.state_dict().items()
    }


def _made_room(folder: Path, partial: Path) -> str:
    """Make the folder to write into, and clear away what killed runs left; what went wrong, or nothing."""
    try:
        for torn in folder.glob(".step-*.partial"):
            shutil.rmtree(torn, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        return _reason(error)
    return ""


def _agree(problem: str, target: Path, partial: Path, world: World) -> None:
    """Go on if no rank has a problem; else every rank raises, so that none waits for one that is gone."""
    problems = [found for found in gather_objects(problem, world) if found]
    if not problems:
        return
    if world.is_first:
        shutil.rmtree(partial, ignore_errors=True)
    before = latest(target.parent)
    raise CheckpointError(
        f"{target} could not be written ({problems[0]}); "
        + (f"{before.name} before it stays valid: " if before else "no checkpoint is there yet: ")
        + "make room and go on with --resume"
    )


class _Reader(FileSystemReader):
    """Reads file by file, and names the one that cannot be read."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        items: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            items.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, of_file in items.items():
            try:
                super().read_data(replace(plan, items=of_file), planner).wait()
            except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
                raise OSError(f"{name}: {_reason(error)}") from error
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _state(trained: Trained) -> dict[str, Any]:
    state = {
        "model": get_model_state_dict(trained.module, options=_TRAINED),
        "optimiser": get_optimizer_state_dict(trained.module, trained.optimiser, options=_TRAINED),
    }
    return state | {name: average.state_dict() for name, average in trained.averages.items()}


@contextmanager
def _alone_or_together() -> Iterator[bool]:
    """Whether this is the only process; torch then warns of what is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield not dist.is_initialized()


def _whole(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"step-*/{_META}"))


def _write_meta(path: Path, meta: Meta) -> None:
    record = {
        "format": _FORMAT,
        "step": meta.step,
        "settings": meta.settings,
        "architecture": meta.architecture,
        "data": dict(meta.data),
        "owes_evaluation": meta.owes_evaluation,
        "unlogged": list(meta.unlogged),
        "notes": dict(meta.notes),
        "torch": torch.__version__,
    }
    with path.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
