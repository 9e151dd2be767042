"""What is refused before any work: a stage that cannot be shared out, and a resume of something else."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError, SettingsError
from unmask.model.config import ModelConfig
from unmask.model.drafter_files import holds_drafter
from unmask.train import state
from unmask.train.settings import Stage, StageSettings, as_record, differences, with_defaults

_log = logging.getLogger(__name__)

_FREE: tuple[tuple[str, ...], ...] = (("note",), ("run",), ("evaluation",), ("guard",), ("card_every",))
"""Settings that may differ at a resume: they decide how, how long and what is shown, and not what is learned."""

_TUNED: tuple[tuple[str, ...], ...] = (("optimiser", "lr"), ("optimiser", "muon_lr"), ("clip_norm",))
"""Those that may be changed on the way, as after a loss that was not a number; it is said in the log."""


def check_rows(stage: StageSettings, size: int) -> None:
    rows = stage.data.rows
    if rows % size:
        near = max(size, round(rows / size) * size)
        raise SettingsError(f"data.rows={rows} cannot be shared evenly among {size} processes; set data.rows={near}")


def check_blocks(stage: StageSettings, config: ModelConfig) -> None:
    """Noise and attention must mean the same blocks, or none."""
    corruption = stage.loss.corruption
    if config.attention == "block" and stage.loss.anneal_steps:
        raise SettingsError(
            f"loss.anneal_steps={stage.loss.anneal_steps} has no effect on block attention, which opens no causal "
            "mask; set it to 0, or model.attention=full"
        )
    if stage.loss.kind == "autoregressive" or (corruption.kind == "bernoulli"):
        return
    if config.attention == "block" and (corruption.kind, corruption.block_length) != ("block", config.block_length):
        raise SettingsError(
            f"the network attends in blocks of {config.block_length} and the corruption is {corruption.kind!r}"
            + (f" with blocks of {corruption.block_length}" if corruption.block_length else "")
            + f": each block needs a noise of its own; set loss.corruption.kind=block and "
            f"loss.corruption.block_length={config.block_length}"
        )
    if config.attention != "block" and corruption.kind == "block":
        raise SettingsError(
            f"loss.corruption.kind=block, but the network attends {config.attention!r}; set model.attention=block with "
            f"model.block_length={corruption.block_length}, or loss.corruption.kind=exact_k"
        )


def checkpoint_to_resume(stage: Stage, folder: Path, *, resume: bool) -> Path | None:
    """The newest checkpoint of the same stage; None where there is none yet."""
    checkpoint = state.latest(folder / "checkpoints")
    if checkpoint is None:
        return None
    meta = state.read_meta(checkpoint)
    if not resume:
        raise CheckpointError(
            f"{folder} holds a run at step {meta.step}; go on with --resume, or begin anew in another --output"
        )
    _compare(checkpoint, meta.settings, stage, tuned=_TUNED)
    return checkpoint


def check_data(checkpoint: Path, now: Mapping[str, str], *, what: str) -> None:
    """Refuse a checkpoint that was made with other data under the same names."""
    then = state.read_meta(checkpoint).data
    changed = differences(dict(then), dict(now)) if then else []
    if changed:
        raise CheckpointError(
            f"{checkpoint} was made with other data; the {what} of {changed[0].partition(' ')[0]} have been built anew "
            "since. Put the old ones back, or begin anew in another --output"
        )


def is_done(stage: Stage, folder: Path) -> bool:
    """Whether the stage has left its weights, or its drafter; CheckpointError when they were made with other
    settings."""
    if not (folder / "final" / "config.json").is_file() and not holds_drafter(folder / "final"):
        return False
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'settings.json'} cannot be read ({error}); begin anew in another --output"
        ) from None
    _compare(folder / "final", settings, stage, tuned=())
    return True


def _compare(made: Path, then: Mapping[str, Any], stage: Stage, *, tuned: tuple[tuple[str, ...], ...]) -> None:
    defaults = as_record(type(stage)(name=stage.name))  # a setting that is newer than the checkpoint
    old, new = with_defaults(then, defaults), as_record(stage)
    for path in _FREE:
        old, new = _without(old, path), _without(new, path)
    before = differences(old, new)
    for path in tuned:
        old, new = _without(old, path), _without(new, path)
    other = differences(old, new)
    if other:
        raise CheckpointError(
            f"{made} was made with other settings; different are {', '.join(other[:4])}. "
            "Resume with the settings of the run, or begin anew in another --output"
        )
    if before:
        _log.warning("going on with other settings than before: %s", ", ".join(before))


def _without(record: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    first, *rest = path
    if not rest:
        return {key: value for key, value in record.items() if key != first}
    inner = record.get(first)
    return {**record, first: _without(inner, tuple(rest))} if isinstance(inner, Mapping) else dict(record)
