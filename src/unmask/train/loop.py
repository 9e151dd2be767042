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

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.diffusion.corrupt import stratified_levels
from unmask.errors import NumericsError
from unmask.train import state
from unmask.train.checks import check_blocks, check_data, check_rows, checkpoint_to_resume
from unmask.train.heldout import heldout_loss
from unmask.train.metrics import MetricsLog, matmul_peak, peak_memory
from unmask.train.pace import Pace
from unmask.train.parallel import World, add_up, gather_objects, loss_scale, wait_for_all
from unmask.train.plan import model_flops
from unmask.train.rig import Evaluator, Outcome, Rig, terminated, write_json
from unmask.train.schedule import lr_factor
from unmask.train.settings import StageSettings, as_record
from unmask.train.sources import end_tokens, identity, open_mixture
from unmask.train.stage_run import StageRun
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
        check_data(checkpoint, run.data, what="shards")
        run.load(checkpoint)
    if world.is_first:  # at a resume too: what may be changed then has its last value here
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "settings.json", as_record(stage))
    wait_for_all(world)
    with terminated() as is_terminated:
        return run.go(is_terminated)


class _Run(StageRun):
    """A stage in progress."""

    rig: Rig[Trainee]

    def __init__(
        self,
        stage: StageSettings,
        folder: Path,
        *,
        world: World,
        evaluator: Evaluator | None,
        quiet: bool,
    ) -> None:
        super().__init__(quiet=quiet)
        self.stage, self.folder, self.world = stage, folder, world
        self.evaluator = evaluator
        self.has_evaluator = any(gather_objects(evaluator is not None, world))
        self.rig = Rig(stage, folder, kind=stage.loss.kind, world=world, trainee=Trainee)
        self.config, self.trainee = self.rig.config, self.rig.trainee
        self.rig.check_length(stage.data.length, name="data.length")
        check_blocks(stage, self.config)
        self.rows = open_mixture(stage.data.train, stage, self.rig.tokenizer)
        self.heldout = open_mixture(stage.data.heldout, stage, self.rig.tokenizer) if stage.data.heldout else None
        self.data = identity(stage.data.train)
        self.trained = self.rig.trained()
        self.unlogged: Tensor | None = None
        self.pace = self._pace() if world.is_first else None

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
        self.rig.set_lr(step)
        found = None
        without: list[int] = []
        for batch in batches:
            batch = batch.to(self.world.device)
            nll_M = self.trainee.nll(batch, precision=self.rig.precision)
            loss = (batch.weight_M * nll_M).sum() * (loss_scale(self.world) / denominator)
            loss.backward()  # type: ignore[no-untyped-call]
            sums = statistics(batch, nll_M)
            found = sums if found is None else found + sums
            without += samples_without_loss(batch, nll_M)
        assert found is not None
        norm = self.rig.gather_gradients()
        found = add_up(found, self.world).cpu()
        if not (math.isfinite(norm) and bool(found.isfinite().all())):
            self._stop_at_nan(step, without, norm)
        self.rig.update()
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

    def advance(self, log: MetricsLog | None) -> None:
        stage = self.stage
        if self.pace is not None:
            self.pace.go_on()
        found, norm, loss = self.make_step(self.step)
        self.step += 1
        self.unlogged = found if self.unlogged is None else self.unlogged + found
        if self.pace is not None:
            self.pace.step_done()
        if self.step == stage.steps or self.step % stage.run.log_every == 0:
            if log is not None and self.pace is not None:
                log.write(self.step, {"loss": loss, "grad_norm": norm, **self._record(self.unlogged, self.pace)})
            self.unlogged = None

    def _pace(self) -> Pace:
        stage, world = self.stage, self.world
        share = 1.0 if stage.loss.kind == "autoregressive" else 0.5
        flops = model_flops(self.config, stage.data.length, masked_share=share, lora=stage.lora)
        return Pace(
            total_steps=stage.steps,
            tokens_per_step=stage.tokens_per_step,
            flops_per_token=flops.total,
            peak=matmul_peak(world.device, self.rig.precision) * world.size,
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
        with self.rig.averaged():
            if self.heldout is not None and settings.documents > 0:
                found |= heldout_loss(
                    self.trainee,
                    self.heldout,
                    loss=stage.loss,
                    config=self.config,
                    num_rows=min(settings.documents, sum(source.num_rows for source in self.heldout.sources)),
                    samples=settings.samples,
                    micro_rows=stage.data.micro_rows,
                    precision=self.rig.precision,
                    world=self.world,
                )
            if self.has_evaluator:
                found |= self.rig.evaluate(self.evaluator, step=self.step)
        return found

    def save(self) -> None:
        meta = state.Meta(
            step=self.step,
            settings=as_record(self.stage),
            architecture=self.rig.architecture,
            data=self.data,
            owes_evaluation=self.owes_evaluation,
            unlogged=[] if self.unlogged is None else self.unlogged.tolist(),
        )
        self.rig.save(meta, self.trained)

    def load(self, checkpoint: Path) -> None:
        meta = self.rig.load(checkpoint, self.trained)
        self.step = meta.step
        self.owes_evaluation = meta.owes_evaluation
        self.unlogged = torch.tensor(meta.unlogged, dtype=torch.float64) if meta.unlogged else None
