"""What a run says about itself: JSON lines first, and the same numbers to the terminal and to dashboards.

One line of `metrics.jsonl` is one record: `step`, the number of optimiser steps made so far, and named numbers:

    loss               what is minimised, per predicted token: the weighted, normalised loss
    nelbo              the weighted negative evidence lower bound, nats per maskable token
    masked_ce          cross-entropy at masked positions without weights, nats per masked token
    loss_by_level      masked_ce in ten bins of the noise level t, from 0 to 1; null for a bin without tokens
    end_ce             masked_ce of the end tokens alone, which the other two leave out
    grad_norm          joint norm of the gradients before clipping
    lr                 learning rate of the step
    epoch              passes over the data so far
    tokens             tokens trained on so far, padding included
    heldout_nelbo      nelbo on the held-out rows; its standard errors, of the masks and of the rows, are
                       heldout_nelbo_se and heldout_nelbo_document_se
    heldout_masked_ce  masked_ce there, end tokens included
    pass_at_1          share of the held-out tasks solved; parses is that of the answers which are Python

of a drafter (`train/draft.py`) instead of the losses above

    hard, soft, blind  cross-entropy with the text, with the parent, and with the parent before the draft head
    acceptance         by distance, how often the drafted token is the parent's own (on the training rows: its best of
                       those that may be drafted); null where no mask was
    tokens_per_round   what a round of speculative decoding would settle with that acceptance; both, and soft, on the
                       held-out rows under heldout_
    word_share         share of the tokens that may be drafted at all

and those of the clock, which differ between two runs of the same numbers (`CLOCK`):

    time               seconds since 1970
    tokens_per_second  over all devices, since the last record
    mfu                model FLOPs per second as a share of the measured matmul peak of all devices
    memory_bytes       the most that this process held: device memory, or resident memory on the CPU
    eta_seconds        time until the last step at the pace since the last record

A resumed run drops the records of the steps it does again, so that its file ends as that of an uninterrupted run.
"""

import importlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from unmask.errors import CheckpointError, SettingsError

CLOCK = frozenset({"time", "tokens_per_second", "mfu", "memory_bytes", "eta_seconds"})
"""Names whose values depend on the clock and the machine."""

Number = float | int | None
Values = Mapping[str, Number | Sequence[Number]]


class Sink(Protocol):
    """Where records go."""

    def write(self, step: int, values: Values) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """The file of records, and the sinks that are told the same.

    `first_step` is how many steps the run has made: records of later steps, which it makes again, are dropped, and so
    is a last line that was cut short. A new run starts at 0 with an empty file.
    """

    def __init__(self, path: Path, *, first_step: int = 0, sinks: Sequence[Sink] = ()) -> None:
        self.path = path
        self._sinks = tuple(sinks)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _keep_until(path, first_step)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from error

    def write(self, step: int, values: Values) -> None:
        """Append one record and see it on its way to the disk. Numbers that are not finite become null."""
        record = {"step": step, "time": round(time.time(), 3), **{name: _plain(v) for name, v in values.items()}}
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        for sink in self._sinks:
            sink.write(step, values)

    def close(self) -> None:
        """Close the file and the sinks."""
        self._file.close()
        for sink in self._sinks:
            sink.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a file; a last line that was cut short is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


class ConsoleSink:
    """One readable line on stderr for every record."""

    def __init__(self, *, total_steps: int) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)
        self._total_steps = total_steps

    def write(self, step: int, values: Values) -> None:
        self._console.print(console_line(step, values, total_steps=self._total_steps))

    def close(self) -> None:
        pass


class TensorBoardSink:
    """Scalars in TensorBoard's format. A resumed run hides what was logged after `first_step`."""

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        module = _import("torch.utils.tensorboard", package="tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, step: int, values: Values) -> None:
        for name, value in flat(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class ModuleSink:
    """A module with wandb's three functions: `init(**settings)`, `log(values, step=)` and `finish()`."""

    def __init__(self, module: str | Any = "wandb", *, run: str, settings: Mapping[str, Any]) -> None:
        self._module = _import(module, package=module) if isinstance(module, str) else module
        absent = [name for name in ("init", "log", "finish") if not callable(getattr(self._module, name, None))]
        if absent:
            raise SettingsError(
                f"the sink {module!r} has no {', '.join(absent)}; a sink is `tensorboard` or a module that logs as "
                "wandb does: init(**settings), log(values, step=), finish()"
            )
        self._module.init(project="unmask", name=run, config=dict(settings))

    def write(self, step: int, values: Values) -> None:
        self._module.log(flat(values), step=step)

    def close(self) -> None:
        self._module.finish()


def open_sinks(
    names: Sequence[str], *, folder: Path, run: str, settings: Mapping[str, Any], first_step: int = 0
) -> list[Sink]:
    """The sinks of a run by name: `tensorboard`, or any module with wandb's functions (`wandb`, `trackio`)."""
    return [
        TensorBoardSink(folder / "tensorboard", first_step=first_step)
        if name == "tensorboard"
        else ModuleSink(name, run=run, settings=settings)
        for name in names
    ]


def console_line(step: int, values: Values, *, total_steps: int) -> str:
    """A record as one line for people.

    >>> values = {"loss": 2.34567, "lr": 0.0003, "tokens_per_second": 15234.2, "eta_seconds": 3725.0}
    >>> console_line(10, values, total_steps=100)
    'step 10/100  loss 2.346  lr 0.0003  15.2k tokens/s  1:02:05 left'
    >>> console_line(10, {"heldout_nelbo": 1.5, "pass_at_1": 0.25}, total_steps=100)
    'step 10/100  heldout_nelbo 1.5  pass_at_1 0.25'
    >>> console_line(10, {"acceptance": [0.713, 0.5, None], "tokens_per_round": 2.0694}, total_steps=100)
    'step 10/100  acceptance .71 .50  tokens_per_round 2.07'
    """
    parts = [f"step {step}/{total_steps}"]
    for name, value in values.items():
        if name in ("tokens", "epoch", "time") or value is None:
            continue
        if name in _SPOKEN:
            parts.append(_SPOKEN[name](value))
        elif not isinstance(value, Sequence):
            parts.append(f"{name} {value:.4g}")
    return "  ".join(parts)


def flat(values: Values) -> dict[str, float]:
    """One scalar per name, as dashboards want them; what is absent is left out.

    >>> flat({"loss": 2.0, "loss_by_level": [None, 1.5]})
    {'loss': 2.0, 'loss_by_level/1': 1.5}
    """
    return dict(_flat(values))


def matmul_peak(device: torch.device, dtype: torch.dtype, *, size: int | None = None, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest square matrix product seen in `seconds`: the base of MFU that this machine really has."""
    n = size or (8192 if device.type == "cuda" else 1024)
    one, two = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    out = one @ two  # warms up
    best, stop = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < stop:
        _synchronise(device)
        start = time.perf_counter()
        torch.mm(one, two, out=out)
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held so far: allocated on a GPU, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} left"


def _short_shares(shares: Sequence[Number]) -> str:
    return " ".join(f"{share:.2f}".removeprefix("0") for share in shares if share is not None)


_SPOKEN: dict[str, Callable[[Any], str]] = {
    "acceptance": lambda shares: f"acceptance {_short_shares(shares)}",
    "heldout_acceptance": lambda shares: f"heldout_acceptance {_short_shares(shares)}",
    "tokens_per_round": lambda tokens: f"tokens_per_round {tokens:.2f}",
    "heldout_tokens_per_round": lambda tokens: f"heldout_tokens_per_round {tokens:.2f}",
    "tokens_per_second": lambda rate: f"{rate / 1000:.1f}k tokens/s" if rate >= 1000 else f"{rate:.0f} tokens/s",
    "eta_seconds": _clock_face,
    "memory_bytes": lambda size: f"{size / 2**30:.1f} GiB",
    "mfu": lambda share: f"mfu {share:.1%}",
}


def _flat(values: Values) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        parts = enumerate(value) if isinstance(value, Sequence) else [("", value)]
        for place, number in parts:
            if number is not None and math.isfinite(number):
                yield (f"{name}/{place}" if isinstance(value, Sequence) else name), float(number)


def _plain(value: Number | Sequence[Number]) -> Number | list[Number]:
    if isinstance(value, Sequence):
        return [_finite(number) for number in value]
    return _finite(value)


def _finite(number: Number) -> Number:
    return number if number is None or math.isfinite(number) else None


def _keep_until(path: Path, step: int) -> None:
    """Drop the records beyond `step` (all of them before the first) and a torn last line, at once or not at all."""
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if step > 0 and json.loads(line)["step"] <= step]
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not (line.endswith("\n") and _is_record(line)):
            if number == len(lines):  # cut short by a crash
                return lines[:-1]
            raise CheckpointError(
                f"line {number} of {path} is no record of metrics; move the file away, and the run starts a new one"
            )
    return lines


def _is_record(line: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("step"), int)


def _import(name: str, *, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"the metrics are to go to {package}, and it cannot be imported ({error}); install it with "
            f"`pip install {package}`, or leave it out of run.sinks: metrics.jsonl has the same numbers"
        ) from None


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return CheckpointError(
        f"the metrics could not be written to {path} ({reason}); free some space there or name another folder, "
        "then go on with --resume"
    )
