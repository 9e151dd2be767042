"""The training loop: one stage of a recipe, from its settings to a folder of weights.

    for each step:   the step's rows (index arithmetic) ─ this rank's share ─ micro-batches
                     the global denominator, then forward and backward of each micro-batch
                     gradients added over ranks, clipped; one optimiser step; the moving average
                     a line of metrics; now and then an evaluation and a checkpoint

The state is the weights, the optimiser and the step. A stage leaves in its folder

    settings.json   everything that decides its result        metrics.jsonl   a line every few steps
    checkpoints/    to resume from                            trajectories/   the fixed prompt at each evaluation
    final/          a Hugging Face folder (or a PEFT adapter and the merged network), when it is done
"""

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unmask.diffusion.corrupt import stratified_levels
from unmask.errors import NumericsError, SettingsError
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import save_folder
from unmask.model.lora import lora_layers, save_adapter
from unmask.model.packed import multiplies_bfloat16
from unmask.text.tokenizer import Tokenizer
from unmask.train import state
from unmask.train.checks import check_blocks, check_rows, checkpoint_to_resume
from unmask.train.ema import Ema
from unmask.train.heldout import heldout_loss
from unmask.train.metrics import ConsoleSink, MetricsLog, matmul_peak, open_sinks, peak_memory
from unmask.train.network import Network, build_network
from unmask.train.optimiser import build_optimiser, set_lr
from unmask.train.pace import Pace
from unmask.train.parallel import (
    World,
    add_gradients,
    add_up,
    clip_gradients,
    gather_objects,
    loss_scale,
    shard,
    wait_for_all,
)
from unmask.train.plan import model_flops
from unmask.train.schedule import lr_factor
from unmask.train.settings import StageSettings, as_record
from unmask.train.sources import end_tokens, identity, open_mixture
from unmask.train.step import (
    LEVEL_BINS,
    STATISTICS,
    Batch,
    Trainee,
    make_batch,
    samples_without_loss,
    share_of_rank,
    statistics,
)


class Evaluator(Protocol):
    """Measures a plain network on the first rank: scores on tasks, a prompt's trajectory."""

    def __call__(self, backbone: Backbone, tokenizer: Tokenizer, *, step: int, folder: Path) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage ended."""

    folder: Path
    """The exported weights, when the stage is done."""

    step: int
    is_done: bool
    """False when a SIGTERM ended it early; it goes on with --resume."""

    last: Mapping[str, Any] = field(default_factory=dict)
    """The last evaluation."""


def train_stage(
    stage: StageSettings,
    folder: Path,
    *,
    world: World,
    resume: bool = False,
    evaluator: Evaluator | None = None,
    quiet: bool = False,
) -> Outcome:
    """Run a stage to its end, or go on with it.

    Raises SettingsError and CheckpointError before any work for what cannot be run, NumericsError when the loss stops
    being a number (the last checkpoint stays), and what reading the data raises.
    """
    check_rows(stage, world.size)
    checkpoint = checkpoint_to_resume(stage, folder, resume=resume)
    run = _Run(stage, folder, world=world, evaluator=evaluator, quiet=quiet)
    if checkpoint is not None:
        run.load(checkpoint)
    if world.is_first:  # at a resume too: what may be changed then has its last value here
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "settings.json", as_record(stage))
    wait_for_all(world)
    with _terminated() as is_terminated:
        return run.go(is_terminated)


class _Run:
    """A stage in progress."""

    def __init__(
        self,
        stage: StageSettings,
        folder: Path,
        *,
        world: World,
        evaluator: Evaluator | None,
        quiet: bool,
    ) -> None:
        self.stage, self.folder, self.world = stage, folder, world
        self.evaluator, self.quiet = evaluator, quiet
        self.has_evaluator = any(gather_objects(evaluator is not None, world))
        self.network: Network = build_network(stage.model, kind=stage.loss.kind, lora=stage.lora, seed=stage.seed)
        self.config = self.network.backbone.config
        self.architecture = as_record(self.config) | {"lora": as_record(stage.lora)}
        if stage.data.length > self.config.max_positions:
            raise SettingsError(
                f"data.length={stage.data.length} is longer than the network's context of {self.config.max_positions}; "
                f"set data.length={self.config.max_positions} or less"
            )
        check_blocks(stage, self.config)
        self.rows = open_mixture(stage.data.train, stage, self.network.tokenizer)
        self.heldout = open_mixture(stage.data.heldout, stage, self.network.tokenizer) if stage.data.heldout else None
        self.data = identity(stage.data.train)
        self.precision = _precision(stage.run.precision, world.device)
        self.trainee = Trainee(self.network.backbone)
        self.network.backbone.checkpoint_layers = stage.run.checkpoint_layers
        if world.layout == "fsdp":
            shard(self.trainee, self.network.backbone.layers, world)
        else:
            self.trainee.to(world.device)
        if stage.run.compile:
            for layer in self.network.backbone.layers:
                layer.compile()
        self.optimiser = build_optimiser(self.trainee, stage.optimiser)
        self.ema = Ema(self.trainee, decay=stage.ema) if stage.ema is not None else None
        self.trained = state.Trained(module=self.trainee, optimiser=self.optimiser, ema=self.ema)
        self.step = 0
        self.unlogged: Tensor | None = None
        self.owes_evaluation = False
        self.last: Mapping[str, Any] = {}

    # One step

    def batches(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of a step."""
        stage, world = self.stage, self.world
        count, pairs = stage.data.rows, stage.loss.corruption.pairs
        level_B = stratified_levels(count, seed=stage.seed, step=step, pairs=pairs)
        mine = share_of_rank(count, rank=world.rank, size=world.size)
        for start in range(mine.start, mine.stop, stage.data.micro_rows):
            places = range(start, min(start + stage.data.micro_rows, mine.stop))
            indices = [step * count + place for place in places]
            yield make_batch(
                self.rows.rows([index // 2 for index in indices] if pairs else indices),
                torch.tensor(indices),
                level_B[places.start : places.stop],
                loss=stage.loss,
                config=self.config,
                seed=stage.seed,
                step=step,
                end_tokens=end_tokens(stage),
            )

    def make_step(self, step: int) -> tuple[Tensor, float, float]:
        """One optimiser step: the statistics of all ranks, the gradient norm, and the loss."""
        batches = list(self.batches(step))
        total = torch.tensor([sum(batch.denominator for batch in batches)], dtype=torch.float64)
        denominator = float(add_up(total.to(self.world.device), self.world)) or 1.0
        set_lr(self.optimiser, lr_factor(self.stage.schedule, step))
        found = None
        without: list[int] = []
        for batch in batches:
            batch = batch.to(self.world.device)
            nll_M = self.trainee.nll(batch, precision=self.precision)
            loss = (batch.weight_M * nll_M).sum() * (loss_scale(self.world) / denominator)
            loss.backward()  # type: ignore[no-untyped-call]
            sums = statistics(batch, nll_M)
            found = sums if found is None else found + sums
            without += samples_without_loss(batch, nll_M)
        assert found is not None
        add_gradients(self.trainee, self.world)
        norm = float(clip_gradients(self.trainee, self.stage.clip_norm))
        found = add_up(found, self.world).cpu()
        if not (math.isfinite(norm) and bool(found.isfinite().all())):
            self._stop_at_nan(step, without, norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.update()
        return found, norm, float(found[0]) / denominator

    def _stop_at_nan(self, step: int, without: list[int], norm: float) -> None:
        samples = sorted(index for found in gather_objects(without, self.world) for index in found)
        checkpoint = state.latest(self.folder / "checkpoints")
        what = f"the gradient norm is {norm}"
        if samples:
            more = f" and {len(samples) - 4} more" if len(samples) > 4 else ""
            what = f"the loss of {', '.join(self._name(index) for index in samples[:4])}{more} is not a number"
        raise NumericsError(
            f"step {step}: {what}; nothing was updated, "
            + (f"the last checkpoint is {checkpoint}" if checkpoint else "and no checkpoint was written yet")
            + ". Resume with a lower optimiser.lr or clip_norm, or look at these rows of the data"
        )

    def _name(self, sample: int) -> str:
        """A sample as a reader can find it."""
        place = self.rows.place(sample // 2 if self.stage.loss.corruption.pairs else sample)
        return f"sample {sample} (row {place.row} of {self.stage.data.train[place.source].path})"

    # The loop

    def go(self, is_terminated: Callable[[], bool]) -> Outcome:
        """Every step that is left; on the first rank with a log."""
        if not self.world.is_first:
            return self._go(None, is_terminated)
        stage = self.stage
        sinks = open_sinks(
            stage.run.sinks,
            folder=self.folder,
            run=f"{self.folder.parent.name}-{stage.name}",
            settings=as_record(stage),
            first_step=self.step,
        )
        console = [] if self.quiet else [ConsoleSink(total_steps=stage.steps)]
        log = MetricsLog(self.folder / "metrics.jsonl", first_step=self.step, sinks=[*console, *sinks])
        try:
            return self._go(log, is_terminated)
        finally:
            log.close()

    def _go(self, log: MetricsLog | None, is_terminated: Callable[[], bool]) -> Outcome:
        stage = self.stage
        pace = self._pace() if log is not None else None
        if self.owes_evaluation:
            self._evaluate(log)
        while self.step < stage.steps:
            found, norm, loss = self.make_step(self.step)
            self.step += 1
            self.unlogged = found if self.unlogged is None else self.unlogged + found
            is_last, every = self.step == stage.steps, stage.evaluation.every
            if pace is not None:
                pace.step_done()
            if is_last or self.step % stage.run.log_every == 0:
                if log is not None and pace is not None:
                    log.write(self.step, {"loss": loss, "grad_norm": norm, **self._record(self.unlogged, pace)})
                self.unlogged = None
            stops = self._any_rank(is_terminated())
            self.owes_evaluation = is_last or (every > 0 and self.step % every == 0)
            if self.owes_evaluation and not stops:
                self._evaluate(log)
                stops = self._any_rank(is_terminated())
            if is_last or stops or self.step % stage.run.save_every == 0:
                self.save()
            if stops and not is_last:
                return Outcome(folder=self.folder, step=self.step, is_done=False, last=self.last)
            if pace is not None:
                pace.go_on()
        self.export()
        return Outcome(folder=self.folder / "final", step=self.step, is_done=True, last=self.last)

    def _evaluate(self, log: MetricsLog | None) -> None:
        self.last = self.evaluate()
        self.owes_evaluation = False
        if log is not None and self.last:
            log.write(self.step, self.last)

    def _any_rank(self, value: bool) -> bool:
        return bool(add_up(torch.tensor(float(value), device=self.world.device), self.world))

    def _pace(self) -> Pace:
        stage, world = self.stage, self.world
        share = 1.0 if stage.loss.kind == "autoregressive" else 0.5
        flops = model_flops(self.config, stage.data.length, masked_share=share, lora=stage.lora)
        return Pace(
            total_steps=stage.steps,
            tokens_per_step=stage.tokens_per_step,
            flops_per_token=flops.total,
            peak=matmul_peak(world.device, self.precision) * world.size,
        )

    def _record(self, total: Tensor, pace: Pace) -> dict[str, Any]:
        """The numbers of the steps since the last record, from the sums over them."""
        found = dict(zip(STATISTICS, total.tolist(), strict=False))
        bins = total[len(STATISTICS) :].tolist()
        pairs = self.stage.loss.corruption.pairs
        record: dict[str, Any] = {
            "nelbo": found["elbo"] / max(found["maskable"], 1.0),
            "masked_ce": found["nll"] / found["tokens"] if found["tokens"] else None,
            "end_ce": found["end_nll"] / found["end_tokens"] if found["end_tokens"] else None,
            "loss_by_level": [
                total / count if count else None
                for total, count in zip(bins[:LEVEL_BINS], bins[LEVEL_BINS:], strict=True)
            ],
            "lr": lr_factor(self.stage.schedule, self.step - 1) * self.stage.optimiser.lr,
            "tokens": self.step * self.stage.tokens_per_step,
            "epoch": max(self.rows.epochs_at(self.step * self.stage.data.rows // (2 if pairs else 1))),
            **pace.read(self.step),
            "memory_bytes": peak_memory(self.world.device),
        }
        if self.stage.loss.kind == "autoregressive":
            del record["loss_by_level"]  # every token is at the same level
        return record

    # What is measured and written

    def evaluate(self) -> dict[str, float]:
        """Held-out loss on all ranks, then tasks and trajectory on the first."""
        stage, settings = self.stage, self.stage.evaluation
        found: dict[str, float] = {}
        with self.ema.swapped_in() if self.ema is not None else nullcontext():
            if self.heldout is not None and settings.documents > 0:
                found |= heldout_loss(
                    self.trainee,
                    self.heldout,
                    loss=stage.loss,
                    config=self.config,
                    num_rows=min(settings.documents, sum(source.num_rows for source in self.heldout.sources)),
                    samples=settings.samples,
                    micro_rows=stage.data.micro_rows,
                    precision=self.precision,
                    world=self.world,
                )
            if self.has_evaluator:
                plain = self.plain()
                if plain is not None and self.evaluator is not None:
                    plain.to(self.world.device)
                    found |= self.evaluator(plain, self.network.tokenizer, step=self.step, folder=self.folder)
                wait_for_all(self.world)
        return found

    def plain(self) -> Backbone | None:
        """A copy of the network in one piece with adapters merged, on the first rank; None on the others."""
        weights = state.whole_weights(self.trainee, self.world)
        if not self.world.is_first:
            return None
        return _copy(self.network.backbone, weights)

    def save(self) -> None:
        meta = state.Meta(
            step=self.step,
            settings=as_record(self.stage),
            architecture=self.architecture,
            data=self.data,
            owes_evaluation=self.owes_evaluation,
            unlogged=[] if self.unlogged is None else self.unlogged.tolist(),
        )
        state.save(self.folder / "checkpoints", meta, self.trained, world=self.world, keep=self.stage.run.keep)

    def load(self, checkpoint: Path) -> None:
        peaks = [group["initial_lr"] for group in self.optimiser.param_groups]
        meta = state.load(checkpoint, self.trained, architecture=self.architecture)
        for group, peak in zip(self.optimiser.param_groups, peaks, strict=True):
            group["initial_lr"] = peak  # the settings', which may have been changed
        self.step = meta.step
        self.owes_evaluation = meta.owes_evaluation
        self.unlogged = torch.tensor(meta.unlogged, dtype=torch.float64) if meta.unlogged else None

    def export(self) -> None:
        """Write `final/`: the network, its tokenizer, and the adapter where there is one."""
        final = self.folder / "final"
        with self.ema.swapped_in() if self.ema is not None else nullcontext():
            if self.stage.lora is not None:
                adapter = self.folder / "adapter"
                save_adapter(self.network.backbone, adapter, self.stage.lora, base_name=self.network.source)
            plain = self.plain()
        if plain is not None:
            final.mkdir(parents=True, exist_ok=True)
            self.network.tokenizer.save(final)
            save_folder(plain, final)
        wait_for_all(self.world)


def _copy(backbone: Backbone, weights: Mapping[str, Tensor]) -> Backbone:
    """A network of its own with these weights (`Trainee` names them), adapters merged."""
    with torch.device("meta"):
        out = Backbone(backbone.config)
    adapted = {name: module.scale for name, module in lora_layers(backbone)}
    for name, _ in list(out.named_parameters()):
        values = weights[f"backbone.{name}"].detach()
        owner, _, last = name.rpartition(".")
        if owner in adapted and last == "weight":
            A, B = (weights[f"backbone.{owner}.lora_{side}.weight"].detach().float() for side in "AB")
            values = torch.add(values.float(), B @ A, alpha=adapted[owner]).to(values.dtype)
        setattr(out.get_submodule(owner), last, nn.Parameter(values.cpu().clone(), requires_grad=False))
    if backbone.config.tie_embeddings:
        out.lm_head.weight = out.embed_tokens.weight
    return out.eval()


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@contextmanager
def _terminated() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come: the loop then saves and ends in order."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_json(path: Path, record: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
