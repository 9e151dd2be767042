"""One micro-batch: rows of tokens to what goes into the network, and what comes out to a loss.

    rows ─ truncate, clean prefix ─ corrupt ─▶ Batch ─ Trainee ─▶ nll per predicted token ─ weights ─▶ loss

Everything random in a batch is a function of (seed, global sample index) or of (seed, step), so how rows are shared
among ranks and micro-batches never changes a mask. The network is asked for logits at the predicted positions alone.

Which hidden state predicts the token at (row, l), for shifted logits: the one at l - 1. Under block attention a block
is written while all earlier ones are finished, so there the input is the noisy row and the clean row side by side, and
a block's first token is predicted from the *clean* copy of the position before it, as it is when decoding.

Letters: B rows, L row length, T positions of the input (L, or 2L under block attention), M predicted tokens.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.diffusion.corrupt import Corrupted, corrupt, restrict
from unmask.diffusion.documents import document_positions
from unmask.diffusion.loss import linear_cross_entropy
from unmask.diffusion.objective import denominator, loss_weights, place_end_weights
from unmask.diffusion.settings import Corruption
from unmask.model.attention import annealed_mask, as_bias, block_training_mask, causal_document_mask, document_mask
from unmask.model.backbone import Backbone
from unmask.model.config import ModelConfig
from unmask.train.schedule import ramp
from unmask.train.settings import Kind, LossSettings

if TYPE_CHECKING:
    from unmask.data.rows import Rows

LEVEL_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Who sees whom in a batch. A mask is T² numbers per row, so it is made where and when a forward needs it."""

    kind: Literal["full", "annealed", "causal", "block"]
    document_BL: Int[Tensor, "B L"]
    share: float = 1.0
    """Of the positions behind, how many an annealed mask lets see."""

    seed: int = 0
    step: int = 0
    block_length: int = 1

    def mask(self) -> Bool[Tensor, "B 1 T T"] | None:
        """The attention mask; None where everyone sees everyone."""
        document_BL = self.document_BL
        if self.kind == "causal":
            return causal_document_mask(document_BL)
        if self.kind == "annealed":
            return annealed_mask(document_BL, share=self.share, seed=self.seed, step=self.step)
        if self.kind == "block":
            return block_training_mask(document_BL, document_positions(document_BL), block_length=self.block_length)
        return None if bool((document_BL == 0).all()) else document_mask(document_BL)

    def to(self, device: torch.device) -> "Sight":
        """The same sight on a device."""
        return replace(self, document_BL=self.document_BL.to(device, non_blocking=True))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward and backward need."""

    ids_BT: Int[Tensor, "B T"]
    positions_BT: Int[Tensor, "B T"]
    sight: Sight
    row_M: Int[Tensor, " M"]
    column_M: Int[Tensor, " M"]
    """Where the hidden state stands that predicts each token."""

    target_M: Int[Tensor, " M"]
    weight_M: Float[Tensor, " M"]
    """Of each token's NLL in the objective, before the division by the global denominator."""

    elbo_weight_M: Float[Tensor, " M"]
    """Of each token's NLL in the bound on the likelihood."""

    level_M: Float[Tensor, " M"]
    """Probability with which the token was masked."""

    is_end_M: Bool[Tensor, " M"]
    index_B: Int[Tensor, " B"]
    """Global sample indices of the rows."""

    denominator: float
    num_maskable: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "index_B"
        }
        return replace(self, **moved, sight=self.sight.to(device))


def make_batch(
    rows: "Rows",
    index_B: Int[Tensor, " B"],
    level_B: Float[Tensor, " B"],
    *,
    loss: LossSettings,
    config: ModelConfig,
    seed: int,
    step: int,
    end_tokens: int,
) -> Batch:
    """The batch of some rows of a step.

    `index_B` are their global sample indices and `level_B` their noise levels, from the whole step's stratified ones.
    """
    ids_BL = torch.from_numpy(rows.ids_BL)
    corruption = _corruption(loss, step)
    is_maskable_BL, document_BL = restrict(
        torch.from_numpy(rows.is_maskable_BL),
        torch.from_numpy(rows.document_BL).long(),
        index_B,
        corruption=corruption,
        seed=seed,
    )
    if loss.kind == "autoregressive":
        corrupted = _everything_predicted(is_maskable_BL)
    else:
        corrupted = corrupt(is_maskable_BL, document_BL, level_B, index_B, corruption=corruption, seed=seed)
    is_end_BL = torch.from_numpy(rows.is_end_BL) & (document_BL >= 0)
    end_weight_BL = place_end_weights(is_end_BL, document_BL, count=end_tokens)
    objective = replace(loss.objective, weight="none") if step < loss.t_warmup_steps else loss.objective
    weight_BL = loss_weights(objective, corrupted, is_maskable_BL, document_BL, end_weight_BL)
    return _assemble(
        ids_BL,
        document_BL,
        corrupted,
        weight_BL,
        is_end_BL,
        index_B=index_B,
        loss=loss,
        config=config,
        seed=seed,
        step=step,
        denominator=float(denominator(objective, corrupted, is_maskable_BL, document_BL, end_weight_BL)),
        num_maskable=int(is_maskable_BL.sum()),
    )


class Trainee(nn.Module):
    """A network as training sees it: a batch in, the NLL of each predicted token out, in one forward.

    One forward, so that FSDP gathers the head's weight together with the embedding's.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self,
        ids_BT: Int[Tensor, "B T"],
        positions_BT: Int[Tensor, "B T"],
        attn_mask: Bool[Tensor, "B 1 T T"] | Float[Tensor, "B 1 T T"] | None,
        row_M: Int[Tensor, " M"],
        column_M: Int[Tensor, " M"],
        target_M: Int[Tensor, " M"],
        temperature: float = 1.0,
    ) -> Float[Tensor, " M"]:
        hidden_MD = self.backbone(ids_BT, positions_BT, attn_mask=attn_mask)[row_M, column_M]
        return linear_cross_entropy(
            hidden_MD if temperature == 1 else hidden_MD / temperature,  # the head is linear: it divides the logits
            self.backbone.lm_head.weight,
            target_M,
            forbidden_id=self.backbone.config.mask_id,
        )

    def nll(self, batch: Batch, *, precision: torch.dtype) -> Float[Tensor, " M"]:
        """The NLL of the batch's tokens, in nats; products run in `precision`."""
        with autocast(batch.ids_BT.device, precision):
            out: Tensor = self(
                batch.ids_BT,
                batch.positions_BT,
                mask_of(batch.sight, precision),
                batch.row_M,
                batch.column_M,
                batch.target_M,
            )
        return out


def mask_of(sight: Sight, precision: torch.dtype) -> Tensor | None:
    """The mask; as numbers where the network attends by products (`model/attention.py`)."""
    mask = sight.mask()
    is_small = sight.document_BL.device.type == "cpu" and precision is torch.bfloat16
    return as_bias(mask, precision) if is_small and torch.is_grad_enabled() else mask


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Products in `precision` over float32 weights; nothing for float32."""
    if precision is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


STATISTICS = (
    "objective",  # Σ weight · nll
    "elbo",  # Σ elbo weight · nll
    "nll",  # Σ nll of ordinary tokens
    "tokens",  # how many of them
    "end_nll",
    "end_tokens",
    "maskable",
)


def statistics(batch: Batch, nll_M: Float[Tensor, " M"]) -> Float[Tensor, " S"]:
    """Sums to be added up over micro-batches and ranks: `STATISTICS`, then the NLL and the count of ordinary
    tokens per noise level."""
    nll_M = nll_M.detach().double()
    is_end_M = batch.is_end_M
    ordinary_M = nll_M[~is_end_M]
    bin_M = (batch.level_M[~is_end_M] * LEVEL_BINS).long().clamp(0, LEVEL_BINS - 1)
    zeros = torch.zeros(LEVEL_BINS, dtype=torch.float64, device=nll_M.device)
    head = torch.stack(
        [
            (batch.weight_M * nll_M).sum(),
            (batch.elbo_weight_M * nll_M).sum(),
            ordinary_M.sum(),
            (~is_end_M).sum().double(),
            nll_M[is_end_M].sum(),
            is_end_M.sum().double(),
            torch.tensor(float(batch.num_maskable), dtype=torch.float64, device=nll_M.device),
        ]
    )
    counts = zeros.index_add(0, bin_M, torch.ones_like(ordinary_M))
    return torch.cat((head, zeros.index_add(0, bin_M, ordinary_M), counts))


def samples_without_loss(batch: Batch, nll_M: Float[Tensor, " M"]) -> list[int]:
    """Global indices of the samples whose loss is not a number."""
    rows = batch.row_M[~nll_M.isfinite()].unique().cpu()  # type: ignore[no-untyped-call]
    return sorted(batch.index_B[rows].tolist())


def _corruption(loss: LossSettings, step: int) -> Corruption:
    if step >= loss.t_warmup_steps:
        return loss.corruption
    highest = ramp(step, loss.t_warmup_steps) * loss.corruption.t_max
    return replace(loss.corruption, t_max=max(highest, 2 * loss.corruption.t_min))


def _everything_predicted(is_maskable_BL: Bool[Tensor, "B L"]) -> Corrupted:
    """Autoregressive training: every token is predicted, nothing is hidden but by the causal mask."""
    weight_BL = is_maskable_BL.float()
    return Corrupted(is_masked_BL=is_maskable_BL, loss_weight_BL=weight_BL, mask_probability_BL=weight_BL)


def _assemble(
    ids_BL: Tensor,
    document_BL: Tensor,
    corrupted: Corrupted,
    weight_BL: Tensor,
    is_end_BL: Tensor,
    *,
    index_B: Tensor,
    loss: LossSettings,
    config: ModelConfig,
    seed: int,
    step: int,
    denominator: float,
    num_maskable: int,
) -> Batch:
    inputs = lay_out(ids_BL, document_BL, corrupted.is_masked_BL, corrupted.is_masked_BL, config=config, kind=loss.kind)
    row_M, place_M = inputs.row_M, inputs.place_M
    return Batch(
        ids_BT=inputs.ids_BT,
        positions_BT=inputs.positions_BT,
        sight=_sight(document_BL, loss=loss, config=config, seed=seed, step=step),
        row_M=row_M,
        column_M=inputs.column_M,
        target_M=inputs.target_M,
        weight_M=weight_BL[row_M, place_M].float(),
        elbo_weight_M=corrupted.loss_weight_BL[row_M, place_M].float(),
        level_M=corrupted.mask_probability_BL[row_M, place_M].float(),
        is_end_M=is_end_BL[row_M, place_M],
        index_B=index_B,
        denominator=denominator,
        num_maskable=num_maskable,
    )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the network is given of some rows, and where it says what."""

    ids_BT: Int[Tensor, "B T"]
    positions_BT: Int[Tensor, "B T"]
    row_M: Int[Tensor, " M"]
    place_M: Int[Tensor, " M"]
    """Where each predicted token stands in its row."""

    column_M: Int[Tensor, " M"]
    """Where the hidden state stands that predicts it."""

    target_M: Int[Tensor, " M"]


def lay_out(
    ids_BL: Int[Tensor, "B L"],
    document_BL: Int[Tensor, "B L"],
    is_masked_BL: Bool[Tensor, "B L"],
    is_predicted_BL: Bool[Tensor, "B L"],
    *,
    config: ModelConfig,
    kind: Kind = "diffusion",
) -> Inputs:
    """Rows in which some tokens are hidden and some (of those) are predicted, as the network takes them."""
    position_BL = document_positions(document_BL)
    row_M, place_M = is_predicted_BL.nonzero(as_tuple=True)
    column_M = place_M - 1 if config.shift_logits else place_M
    inputs_BL = ids_BL
    if kind == "diffusion":
        assert config.mask_id is not None
        inputs_BL = ids_BL.masked_fill(is_masked_BL, config.mask_id)
    if config.attention == "block" and kind == "diffusion":
        assert config.block_length is not None
        is_first_M = position_BL[row_M, place_M] % config.block_length == 0
        if config.shift_logits:
            column_M = torch.where(is_first_M, column_M + ids_BL.shape[1], column_M)
        inputs_BL, position_BL = torch.cat((inputs_BL, ids_BL), -1), torch.cat((position_BL, position_BL), -1)
    return Inputs(
        ids_BT=inputs_BL,
        positions_BT=position_BL,
        row_M=row_M,
        place_M=place_M,
        column_M=column_M,
        target_M=ids_BL[row_M, place_M],
    )


def _sight(document_BL: Int[Tensor, "B L"], *, loss: LossSettings, config: ModelConfig, seed: int, step: int) -> Sight:
    if loss.kind == "autoregressive":
        return Sight(kind="causal", document_BL=document_BL)
    if config.attention == "block":
        assert config.block_length is not None
        return Sight(kind="block", document_BL=document_BL, block_length=config.block_length)
    share = ramp(step, loss.anneal_steps) if loss.anneal_steps else 1.0
    if share < 1:
        return Sight(kind="annealed", document_BL=document_BL, share=share, seed=seed, step=step)
    return Sight(kind="full", document_BL=document_BL)


def share_of_rank(count: int, *, rank: int, size: int) -> range:
    """The places of a step's rows that a rank works on.

    >>> list(share_of_rank(8, rank=1, size=2))
    [4, 5, 6, 7]
    """
    each = count // size
    return range(rank * each, (rank + 1) * each)
