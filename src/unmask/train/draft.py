"""The loop that trains a drafter: rows, blocks of masks, one optimiser step, a line of metrics, checkpoints.

A stage leaves in its folder what every stage does, and in `final/` the drafter (`model/drafter_files.py`). Its measure
is `tokens_per_round`: how many tokens a round of speculative decoding would settle on the held-out rows, if each token
of a draft were accepted as often as the masks at its distance agree with the parent there. It is measured on blocks of
the full length that show nothing, whatever the steps train on. A distance that the blocks of a step do not reach has no
share in its record.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmask.data.rows import Rows
from unmask.diffusion.draft_blocks import tile_blocks
from unmask.errors import NumericsError, SettingsError
from unmask.model.backbone import Backbone
from unmask.model.drafter import DraftHead
from unmask.model.drafter_files import save_drafter
from unmask.train import state
from unmask.train.checks import check_data, checkpoint_to_resume
from unmask.train.draft_settings import DraftStage
from unmask.train.drafting import Drafted, DraftTrainee, chain
from unmask.train.metrics import MetricsLog, peak_memory
from unmask.train.network import usual_row
from unmask.train.pace import Pace
from unmask.train.parallel import World, add_up, loss_scale, wait_for_all
from unmask.train.rig import Outcome, Rig, terminated, write_json
from unmask.train.schedule import lr_factor
from unmask.train.settings import as_record
from unmask.train.sources import frequent_tokens, identity, open_mixture
from unmask.train.stage_run import StageRun
from unmask.train.step import autocast, share_of_rank

_SUMS = ("loss", "hard", "soft", "blind", "weight", "masks", "words")


def train_draft(stage: DraftStage, folder: Path, *, world: World, resume: bool = False, quiet: bool = False) -> Outcome:
    """Run a stage to its end, or go on with it. Raises what `train_stage` raises."""
    checkpoint = checkpoint_to_resume(stage, folder, resume=resume)
    run = _Run(stage, folder, world=world, quiet=quiet)
    if checkpoint is not None:
        check_data(checkpoint, run.data, what="shards")
        run.load(checkpoint)
    if world.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "settings.json", as_record(stage))
    wait_for_all(world)
    with terminated() as is_terminated:
        return run.go(is_terminated)


class DraftRig(Rig[DraftTrainee]):
    """The parent, frozen and in the precision of its products, with an adapter, a row for the mask, and a head."""

    def __init__(self, stage: DraftStage, folder: Path, *, world: World) -> None:
        self.draft = stage.draft
        words = frequent_tokens(stage.data.train, stage.draft.words)

        def trainee(backbone: Backbone) -> DraftTrainee:
            row_D = usual_row(backbone.embed_tokens.weight.detach(), seed=stage.seed)
            backbone.mask_row = nn.Parameter(row_D.float())
            if world.layout != "fsdp":  # which shards parameters of one precision together
                _cast_frozen(backbone, self.precision)
            head = DraftHead(backbone.config.hidden_size, stage.draft.inner, seed=stage.seed)
            words_W = torch.arange(backbone.config.vocab_size) if words is None else torch.tensor(words)
            return DraftTrainee(backbone, head, words_W)

        super().__init__(stage, folder, kind="drafter", world=world, trainee=trainee)

    def export(self, name: str = "final") -> None:
        """Write the drafter."""
        stage, trainee = self.stage, self.trainee
        assert stage.lora is not None
        save_drafter(
            self.network.backbone,
            trainee.head,
            trainee.words_W,
            self.folder / name,
            stage.lora,
            block_length=self.draft.block_length,
            parent=self.network.source,
        )
        wait_for_all(self.world)


class _Run(StageRun):
    """A stage in progress."""

    rig: DraftRig

    def __init__(self, stage: DraftStage, folder: Path, *, world: World, quiet: bool) -> None:
        if stage.data.rows % world.size:
            raise SettingsError(
                f"data.rows={stage.data.rows} cannot be shared evenly among {world.size} processes; set "
                f"data.rows={max(world.size, round(stage.data.rows / world.size) * world.size)}"
            )
        super().__init__(quiet=quiet)
        self.stage, self.folder, self.world = stage, folder, world
        self.rig = DraftRig(stage, folder, world=world)
        self.rig.check_length(stage.data.length, name="data.length")
        self.rows = open_mixture(stage.data.train, stage, self.rig.tokenizer)
        self.heldout = open_mixture(stage.data.heldout, stage, self.rig.tokenizer) if stage.data.heldout else None
        self.data = identity(stage.data.train)
        self.trained = self.rig.trained()
        self.pace = Pace(total_steps=stage.steps, tokens_per_step=stage.tokens_per_step)

    # One step

    def drafted(self, rows: Rows, *, block_length: int, revealed: float, seed: int) -> Drafted:
        """One forward of some rows, with blocks of this length."""
        ids_BL, document_BL = torch.from_numpy(rows.ids_BL), torch.from_numpy(rows.document_BL).long()
        blocks = tile_blocks(
            torch.from_numpy(rows.is_maskable_BL),
            document_BL,
            torch.from_numpy(rows.index_B),
            block_length=block_length,
            stride=self.stage.draft.stride,
            revealed=revealed,
            seed=seed,
        )
        device = self.world.device
        with autocast(device, self.rig.precision if self.world.layout == "fsdp" else torch.float32):
            found: Drafted = self.rig.trainee(ids_BL.to(device), document_BL.to(device), blocks.to(device))
        return found

    def make_step(self, step: int) -> tuple[Tensor, float, Tensor]:
        """One optimiser step: sums over all ranks, the gradient norm, and `_agreement` over all ranks."""
        stage, world, count = self.stage, self.world, self.stage.data.rows
        block_length = stage.draft.length_at(step, steps=stage.steps)
        mine = share_of_rank(count, rank=world.rank, size=world.size)
        self.rig.set_lr(step)
        total = torch.zeros(len(_SUMS), dtype=torch.float64)
        agreed = torch.zeros(stage.draft.block_length, 2, dtype=torch.float64)
        for start in range(mine.start, mine.stop, stage.data.micro_rows):
            indices = [step * count + place for place in range(start, min(start + stage.data.micro_rows, mine.stop))]
            found = self.drafted(
                self.rows.rows(indices), block_length=block_length, revealed=stage.draft.revealed, seed=stage.seed
            )
            loss, sums = _losses(found, stage)
            # The gradient is divided by the weight of the whole step afterwards, which only the end of it knows
            (loss * loss_scale(world)).backward()  # type: ignore[no-untyped-call]
            total += sums
            agreed += _agreement(found, stage.draft.block_length)
        total = add_up(total.to(world.device), world).cpu()
        agreed = add_up(agreed.to(world.device), world).cpu()
        for parameter in self.rig.trainee.parameters():
            if parameter.grad is not None:
                parameter.grad /= max(float(total[_SUMS.index("weight")]), 1e-9)
        norm = self.rig.gather_gradients()
        if not (math.isfinite(norm) and bool(total.isfinite().all())):
            checkpoint = state.latest(self.folder / "checkpoints")
            raise NumericsError(
                f"step {step}: the loss is {float(total[0])} and the gradient norm {norm}; nothing was updated, "
                + (f"the last checkpoint is {checkpoint}" if checkpoint else "and no checkpoint was written yet")
                + ". Resume with a lower optimiser.lr or clip_norm"
            )
        self.rig.update()
        return total, norm, agreed

    # The loop

    def advance(self, log: MetricsLog | None) -> None:
        self.pace.go_on()
        total, norm, agreed = self.make_step(self.step)
        self.step += 1
        self.pace.step_done()
        if log is not None and (self.step == self.stage.steps or self.step % self.stage.run.log_every == 0):
            log.write(self.step, {**self._record(total, norm, agreed), **self.pace.read(self.step)})

    def _record(self, total: Tensor, norm: float, agreed: Tensor) -> dict[str, Any]:
        sums, shares = dict(zip(_SUMS, total.tolist(), strict=True)), _shares(agreed)
        return {
            "loss": sums["loss"] / max(sums["weight"], 1e-9),
            "hard": sums["hard"] / max(sums["words"], 1.0),
            "soft": sums["soft"] / max(sums["masks"], 1.0),
            "blind": sums["blind"] / max(sums["masks"], 1.0),
            "acceptance": shares,
            "tokens_per_round": chain(shares),
            "word_share": sums["words"] / max(sums["masks"], 1.0),
            "grad_norm": norm,
            "lr": lr_factor(self.stage.schedule, self.step - 1) * self.stage.optimiser.lr,
            "tokens": self.step * self.stage.tokens_per_step,
            "memory_bytes": peak_memory(self.world.device),
        }

    def evaluate(self) -> dict[str, Any]:
        """Acceptance on the held-out rows, always under the same blocks; every rank has its share of them."""
        stage, world, block_length = self.stage, self.world, self.stage.draft.block_length
        if self.heldout is None or stage.evaluation.documents == 0:
            return {}
        count = min(stage.evaluation.documents, sum(source.num_rows for source in self.heldout.sources))
        agreed = torch.zeros(stage.draft.block_length, 2, dtype=torch.float64)
        total = torch.zeros(len(_SUMS), dtype=torch.float64)
        micro = stage.data.micro_rows
        with torch.no_grad():
            for first in range(0, count, world.size * micro):  # every rank makes as many forwards
                place = first + world.rank * micro
                rows = self.heldout.rows(range(place, min(place + micro, count)) or range(1))
                found = self.drafted(rows, block_length=block_length, revealed=0.0, seed=0)
                if place >= count:
                    continue
                agreed += _agreement(found, stage.draft.block_length)
                total += _losses(found, stage)[1]
        agreed = add_up(agreed.to(world.device), world).cpu()
        total = add_up(total.to(world.device), world).cpu()
        sums, shares = dict(zip(_SUMS, total.tolist(), strict=True)), _shares(agreed)
        return {
            "heldout_acceptance": shares,
            "heldout_tokens_per_round": chain(shares),
            "heldout_soft": sums["soft"] / max(sums["masks"], 1.0),
        }

    def save(self) -> None:
        meta = state.Meta(
            step=self.step,
            settings=as_record(self.stage),
            architecture=self.rig.architecture,
            data=self.data,
            owes_evaluation=self.owes_evaluation,
        )
        self.rig.save(meta, self.trained)

    def load(self, checkpoint: Path) -> None:
        meta = self.rig.load(checkpoint, self.trained)
        self.step, self.owes_evaluation = meta.step, meta.owes_evaluation


def _losses(found: Drafted, stage: DraftStage) -> tuple[Tensor, Tensor]:
    """The weighted sum that is minimised, and `_SUMS`."""
    draft = stage.draft
    weight_M = draft.decay ** (found.distance_M - 1).double().float()
    each_M = draft.hard * found.hard_M + draft.soft * found.soft_M + draft.blind * found.blind_M
    loss = (weight_M * each_M).sum()
    sums = [loss, found.hard_M.sum(), found.soft_M.sum(), found.blind_M.sum(), weight_M.sum()]
    counts = [torch.tensor(float(len(weight_M))), found.is_word_M.sum()]
    return loss, torch.stack([value.detach().double().cpu() for value in (*sums, *counts)])


def _agreement(found: Drafted, block_length: int) -> Tensor:
    """By distance: how many masks of closed blocks agree with the parent, and how many there are."""
    count = torch.zeros(block_length, 2, dtype=torch.float64)
    is_closed_M = found.is_closed_M.cpu()
    index_M = found.distance_M.cpu()[is_closed_M] - 1
    count[:, 0].index_add_(0, index_M, found.agrees_M.cpu()[is_closed_M].double())
    count[:, 1].index_add_(0, index_M, torch.ones(len(index_M), dtype=torch.float64))
    return count


def _shares(agreed: Tensor) -> list[float | None]:
    """Acceptance by distance; None at one that no mask has."""
    return [agrees / count if count else None for agrees, count in agreed.tolist()]


def _cast_frozen(backbone: Backbone, dtype: torch.dtype) -> None:
    for parameter in backbone.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
