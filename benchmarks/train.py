"""A training step against the straightforward loop: tokens per second, peak memory, and the variance of the loss.

Both have the same network, rows, precision, clipping and optimiser. The straightforward loop masks each token with a
probability t of its row's own, projects *every* position onto the vocabulary, and weighs `F.cross_entropy` by 1/t. Ours
spreads the noise levels over the batch, masks a whole number of tokens, and projects the masked positions alone, a
slice of the vocabulary at a time.

Memory is read from a fresh process each: all that the program holds at its peak beyond its imports, and the part of it
beyond weights, gradients and optimiser. Variance is that of the loss over many draws of the noise on the same texts,
with a small network that was trained for a moment on Python's standard library.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.data.rows import Rows
from unmask.diffusion.corrupt import stratified_levels
from unmask.diffusion.settings import Corruption, CorruptionKind
from unmask.model.config import ModelConfig
from unmask.model.packed import multiplies_bfloat16
from unmask.recipes import tiny
from unmask.seeds import derive_seed
from unmask.train.network import fresh_backbone
from unmask.train.optimiser import OptimiserSettings, build_optimiser
from unmask.train.settings import LossSettings
from unmask.train.step import Batch, Trainee, autocast, make_batch

from side_by_side import interleave, ratio, report
from weights import QWEN_0_5B

SHAPES = {
    "wide": replace(QWEN_0_5B, attention="full", mask_id=151_666),
    "tiny": replace(tiny.SHAPE, attention="full", mask_id=4095),
}
ROWS = {"wide": (8, 256), "tiny": (32, 256)}
T_MIN = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["wide", "tiny"], choices=SHAPES)
    parser.add_argument("--layers", type=int, default=2, help="layers of the wide shape")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--draws", type=int, default=400, help="of the noise, for the variance; 0 leaves it out")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="of the products [what is native]")
    parser.add_argument("--json", type=Path, help="file name; the table's name is put behind it")
    parser.add_argument("--one", choices=["unmask", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    native = multiplies_bfloat16(torch.device("cpu"))
    name = options.precision or ("bfloat16" if native else "float32")
    precision = torch.bfloat16 if name == "bfloat16" else torch.float32
    if options.one:
        _measure_memory(options.shapes[0], options.one, layers=options.layers, precision=precision)
        return
    rows = [_compare(shape, options, precision) for shape in options.shapes]
    title = f"one training step, {name}: " + "; ".join(
        f"{shape} {_config(shape, options.layers).num_layers} layers, {ROWS[shape][0]} x {ROWS[shape][1]} tokens"
        for shape in options.shapes
    )
    report(title, rows, to=_named(options.json, "steps"))
    if options.draws:
        report(
            f"\nthe loss of 16 rows of 128 bytes over {options.draws} draws of the noise",
            _variances(options.draws),
            to=_named(options.json, "variance"),
        )


# Time and memory


class Stepper:
    """A network and its optimiser; calling it makes one step."""

    def __init__(self, shape: str, kind: str, *, layers: int, precision: torch.dtype) -> None:
        self.config = _config(shape, layers)
        self.trainee = Trainee(fresh_backbone(self.config, seed=0).train())
        self.optimiser = build_optimiser(self.trainee, OptimiserSettings(lr=1e-5))
        self.rows = _random_rows(*ROWS[shape], words=self.config.vocab_size - 1000)
        self.loss = self._ours if kind == "unmask" else self._plain
        self.precision, self.step = precision, 0

    def __call__(self) -> float:
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        return loss.item()

    def _ours(self) -> Tensor:
        level_B = stratified_levels(len(self.rows.ids_BL), seed=0, step=self.step)
        batch = _batch(self.rows, level_B, kind="exact_k", config=self.config, step=self.step)
        nll_M = self.trainee.nll(batch, precision=self.precision)
        return (batch.weight_M * nll_M).sum() / batch.denominator

    def _plain(self) -> Tensor:
        ids_BL, is_maskable_BL = torch.from_numpy(self.rows.ids_BL), torch.from_numpy(self.rows.is_maskable_BL)
        B, L = ids_BL.shape
        t_B1 = T_MIN + (1 - T_MIN) * torch.rand(B, 1)
        is_masked_BL = (torch.rand(B, L) < t_B1) & is_maskable_BL
        assert self.config.mask_id is not None
        noisy_BL = ids_BL.masked_fill(is_masked_BL, self.config.mask_id)
        with autocast(torch.device("cpu"), self.precision):
            hidden_BLD = self.trainee.backbone(noisy_BL, torch.arange(L).expand(B, L))
            logits_BLV = self.trainee.backbone.logits(hidden_BLD[:, :-1])  # shifted: l - 1 predicts l
            nll_BL = F.cross_entropy(logits_BLV.flatten(0, 1).float(), ids_BL[:, 1:].flatten(), reduction="none")
        weight_BL = is_masked_BL[:, 1:] / t_B1
        return (weight_BL.flatten() * nll_BL).sum() / is_maskable_BL.sum()


def _compare(shape: str, options: argparse.Namespace, precision: torch.dtype) -> dict[str, Any]:
    memory = {kind: _memory_of(shape, kind, options.layers, precision) for kind in ("unmask", "plain")}
    steppers: dict[str, Callable[[], Any]] = {
        kind: Stepper(shape, kind, layers=options.layers, precision=precision) for kind in ("unmask", "plain")
    }
    seconds = interleave(steppers, repeats=options.repeats)
    tokens = ROWS[shape][0] * ROWS[shape][1]
    rate = {kind: tokens / statistics.median(seconds[kind]) for kind in steppers}
    return {
        "shape": shape,
        "unmask tok/s": round(rate["unmask"]),
        "plain tok/s": round(rate["plain"]),
        "times faster": ratio(seconds, "unmask", "plain"),
        "unmask peak MB": round(memory["unmask"][1] / 1e6),
        "plain peak MB": round(memory["plain"][1] / 1e6),
        "ratio": memory["unmask"][1] / memory["plain"][1],
        "of it beyond the state, MB": " / ".join(f"{(peak - state) / 1e6:.0f}" for state, peak in memory.values()),
        "ratio of that": (memory["unmask"][1] - memory["unmask"][0]) / (memory["plain"][1] - memory["plain"][0]),
    }


def _memory_of(shape: str, kind: str, layers: int, precision: torch.dtype) -> tuple[int, int]:
    """Bytes of weights, gradients and optimiser, and bytes at the peak, of a process of its own."""
    name = str(precision).removeprefix("torch.")
    command = [sys.executable, __file__, "--one", kind, "--shapes", shape, "--layers", str(layers), "--precision", name]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(out[0]), int(out[1])


def _measure_memory(shape: str, kind: str, *, layers: int, precision: torch.dtype) -> None:
    before = _peak()
    stepper = Stepper(shape, kind, layers=layers, precision=precision)
    for _ in range(2):  # the second has the optimiser's state beside it
        stepper()
    state = 16 * sum(parameter.numel() for parameter in stepper.trainee.parameters())
    print(state, _peak() - before)


def _peak() -> int:
    # The high-water mark of this program alone; rusage would start from the parent's.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _config(shape: str, layers: int) -> ModelConfig:
    return replace(SHAPES[shape], num_layers=layers) if shape == "wide" else SHAPES[shape]


def _random_rows(B: int, L: int, *, words: int) -> Rows:
    return _rows(np.random.default_rng(0).integers(0, words, (B, L)))


def _rows(ids_BL: np.ndarray[Any, Any]) -> Rows:
    is_maskable_BL = np.ones(ids_BL.shape, dtype=bool)
    is_maskable_BL[:, 0] = False  # nothing stands before it to predict it from
    return Rows(
        ids_BL=ids_BL.astype(np.int64),
        document_BL=np.zeros(ids_BL.shape, dtype=np.int32),
        is_maskable_BL=is_maskable_BL,
        is_end_BL=np.zeros(ids_BL.shape, dtype=bool),
        index_B=np.arange(len(ids_BL)),
    )


def _batch(rows: Rows, level_B: Tensor, *, kind: CorruptionKind, config: ModelConfig, step: int) -> Batch:
    index_B = torch.arange(len(level_B)) + step * len(level_B)
    loss = LossSettings(corruption=Corruption(kind=kind, t_min=T_MIN))
    return make_batch(rows, index_B, level_B, loss=loss, config=config, seed=0, step=step, end_tokens=4)


# Variance


def _variances(draws: int) -> list[dict[str, Any]]:
    rows, trainee = _trained_network()
    found = {}
    for is_stratified in (False, True):
        for kind in ("bernoulli", "exact_k"):
            losses = []
            for step in range(draws):
                batch = _batch(
                    rows,
                    _levels(len(rows.ids_BL), step, is_stratified=is_stratified),
                    kind=kind,
                    config=trainee.backbone.config,
                    step=step,
                )
                with torch.no_grad():
                    nll_M = trainee.nll(batch, precision=torch.float32)
                losses.append(float((batch.weight_M * nll_M).sum()) / batch.denominator)
            found["stratified" if is_stratified else "i.i.d.", kind] = losses
    plain = statistics.variance(found["i.i.d.", "bernoulli"])
    return [
        {
            "levels": levels,
            "masks": kind,
            "mean": statistics.mean(losses),
            "standard error": statistics.stdev(losses) / len(losses) ** 0.5,
            "variance": statistics.variance(losses),
            "times less": plain / statistics.variance(losses),
        }
        for (levels, kind), losses in found.items()
    ]


def _levels(count: int, step: int, *, is_stratified: bool) -> Tensor:
    if is_stratified:
        return stratified_levels(count, seed=0, step=step)
    return torch.rand(count, generator=torch.Generator().manual_seed(derive_seed(0, "i.i.d.", step))).double()


def _trained_network(steps: int = 200, rows: int = 16, length: int = 128) -> tuple[Rows, Trainee]:
    """A byte network after some hundred steps, and rows that it was not trained on."""
    text = b"\n".join(Path(module).read_bytes() for module in (statistics.__file__, argparse.__file__))
    ids = np.frombuffer(text, dtype=np.uint8)
    config = replace(SHAPES["tiny"], vocab_size=257, mask_id=256, hidden_size=128, intermediate_size=352, num_layers=4)
    trainee = Trainee(fresh_backbone(config, seed=0).train())
    optimiser = build_optimiser(trainee, OptimiserSettings(kind="muon", lr=4e-3))
    windows = ids[: len(ids) // length * length].reshape(-1, length)
    kept, read = _rows(windows[-rows:]), windows[:-rows]
    for step in range(steps):
        chosen = np.random.default_rng(step).integers(0, len(read), rows)
        batch = _batch(
            _rows(read[chosen]), stratified_levels(rows, seed=1, step=step), kind="exact_k", config=config, step=step
        )
        loss = (batch.weight_M * trainee.nll(batch, precision=torch.float32)).sum() / batch.denominator
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return kept, trainee.eval()


def _named(path: Path | None, what: str) -> Path | None:
    return None if path is None else path.with_name(f"{path.stem}-{what}.json")


if __name__ == "__main__":
    main()
