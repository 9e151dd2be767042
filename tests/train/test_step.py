"""One micro-batch: what is predicted from where, and that training and decoding mean the same by it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unmask.data.rows import Rows
from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import CachedDenoiser, FullDenoiser
from unmask.decode.likelihood import answer_log_likelihood
from unmask.decode.session import Model
from unmask.diffusion.settings import Corruption, Objective
from unmask.model.backbone import Backbone
from unmask.text.tokenizer import Tokenizer
from unmask.train.loop import _Run
from unmask.train.parallel import World
from unmask.train.settings import LossSettings
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

from doubles import tiny_backbone, tiny_config
from training_runs import changed, make_data, tiny_stage

L = 23
DOCUMENTS = ((0, 10), (10, 17), (17, 21))  # and two of padding
BLOCK = 4


def packed(num_rows: int = 2, *, seed: int = 0, documents: tuple[tuple[int, int], ...] = DOCUMENTS) -> Rows:
    """Rows of some documents side by side, each with a first token that is not predicted."""
    ids = np.random.default_rng(seed).integers(0, 50, (num_rows, L))
    document = np.full((num_rows, L), -1, dtype=np.int32)
    is_maskable = np.zeros((num_rows, L), dtype=bool)
    for number, (first, stop) in enumerate(documents):
        document[:, first:stop] = number
        is_maskable[:, first + 1 : stop] = True
    is_end = np.zeros_like(is_maskable)
    is_end[:, documents[-1][1] - 1] = True
    return Rows(
        ids_BL=ids, document_BL=document, is_maskable_BL=is_maskable, is_end_BL=is_end, index_B=np.arange(num_rows)
    )


def batch_of(rows: Rows, backbone: Backbone, *, loss: LossSettings, step: int = 0, first: int = 0) -> Batch:
    count = len(rows.ids_BL)
    return make_batch(
        rows,
        first + torch.arange(count),
        (torch.arange(count) + 0.6) / count,
        loss=loss,
        config=backbone.config,
        seed=3,
        step=step,
        end_tokens=4,
    )


def losses(backbone: Backbone, batch: Batch) -> Tensor:
    with torch.no_grad():
        return Trainee(backbone).nll(batch, precision=torch.float32)


def places(batch: Batch, rows: Rows, backbone: Backbone) -> Tensor:
    """The column of each predicted token, from what is visible in the batch: its source, one further if shifted."""
    column_M = batch.column_M % rows.ids_BL.shape[1]
    return column_M + 1 if backbone.config.shift_logits else column_M


def decoded_nll(backbone: Backbone, row: list[int | None], column: int, target: int, *, cached: bool = False) -> float:
    """The NLL of a token as decoding sees it: a canvas of one document, of which one place is asked about."""
    canvas = Canvas.from_rows([row], mask_id=backbone.config.mask_id, align=backbone.config.block_length or 1)
    where = Positions(torch.tensor([0]), canvas.start_B + column)
    denoiser = CachedDenoiser(backbone) if cached else FullDenoiser(backbone)
    (logits_1V,) = denoiser.logits(canvas, where)
    scores_V = logits_1V[0].clone()
    assert backbone.config.mask_id is not None
    scores_V[backbone.config.mask_id] = -torch.inf  # it is never a token's value
    return -float(scores_V.log_softmax(-1)[target])


def block_loss() -> LossSettings:
    return LossSettings(corruption=Corruption(kind="block", block_length=BLOCK))


@pytest.mark.parametrize("shift", [True, False])
def test_packed_documents_are_scored_as_decoding_scores_each_alone(shift: bool) -> None:
    backbone = tiny_backbone(tiny_config(attention="full", shift_logits=shift))
    rows = packed()
    batch = batch_of(rows, backbone, loss=LossSettings())
    column_M = places(batch, rows, backbone)
    assert len(column_M) > 15
    for row, column, target, nll in zip(
        batch.row_M.tolist(), column_M.tolist(), batch.target_M.tolist(), losses(backbone, batch).tolist(), strict=True
    ):
        first, stop = next(span for span in DOCUMENTS if span[0] <= column < span[1])
        assert target == rows.ids_BL[row, column]
        masked = set(column_M[batch.row_M == row].tolist())
        canvas = [None if at in masked else int(rows.ids_BL[row, at]) for at in range(first, stop)]
        assert nll == pytest.approx(decoded_nll(backbone, canvas, column - first, target), abs=1e-4)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_each_block_is_scored_as_decoding_scores_it_behind_finished_blocks(shift: bool, cached: bool) -> None:
    backbone = tiny_backbone(tiny_config(attention="block", block_length=BLOCK, shift_logits=shift))
    rows = packed()
    batch = batch_of(rows, backbone, loss=block_loss())
    column_M = places(batch, rows, backbone)
    starts = 0
    for row, column, target, nll in zip(
        batch.row_M.tolist(), column_M.tolist(), batch.target_M.tolist(), losses(backbone, batch).tolist(), strict=True
    ):
        first, stop = next(span for span in DOCUMENTS if span[0] <= column < span[1])
        assert target == rows.ids_BL[row, column]
        block = first + (column - first) // BLOCK * BLOCK
        starts += column == block
        masked = set(column_M[batch.row_M == row].tolist())
        # What comes before the block is finished, and what comes behind it is not there yet.
        canvas = [
            None if at >= block + BLOCK or (at >= block and at in masked) else int(rows.ids_BL[row, at])
            for at in range(first, stop)
        ]
        assert nll == pytest.approx(decoded_nll(backbone, canvas, column - first, target, cached=cached), abs=1e-4)
    assert starts >= 3, "first tokens of blocks are among them"


def test_the_first_token_of_a_block_is_read_from_the_clean_copy_alone_where_logits_are_shifted() -> None:
    for shift in (True, False):
        backbone = tiny_backbone(tiny_config(attention="block", block_length=BLOCK, shift_logits=shift))
        rows = packed()
        batch = batch_of(rows, backbone, loss=block_loss())
        column_M = places(batch, rows, backbone)
        document_start_M = torch.tensor([next(a for a, b in DOCUMENTS if a <= at < b) for at in column_M.tolist()])
        is_first_M = (column_M - document_start_M) % BLOCK == 0
        assert is_first_M.any()
        assert torch.equal(batch.column_M >= L, is_first_M if shift else torch.zeros_like(is_first_M))


def test_an_autoregressive_batch_has_the_losses_of_the_chain_rule() -> None:
    backbone = tiny_backbone(tiny_config(vocab_size=258))
    model = Model(backbone, Tokenizer.byte_level(), name="tiny")
    rows = packed()
    nll_M = losses(backbone, batch := batch_of(rows, backbone, loss=LossSettings(kind="autoregressive")))
    for row in range(2):
        for first, stop in DOCUMENTS:
            ids = rows.ids_BL[row, first:stop].tolist()
            exact = answer_log_likelihood(model, ids[:1], ids[1:]).value
            is_here_M = (batch.row_M == row) & (batch.column_M >= first) & (batch.column_M < stop - 1)
            assert float(nll_M[is_here_M].sum()) == pytest.approx(-exact, abs=1e-3)
    assert torch.equal(batch.weight_M, torch.ones_like(batch.weight_M))
    assert batch.denominator == batch.num_maskable == len(nll_M)


def test_an_annealed_mask_lies_between_causal_and_full() -> None:
    backbone = tiny_backbone(tiny_config(attention="full"))
    rows = packed(documents=((0, L),))
    opening = LossSettings(anneal_steps=10)
    seen = []
    for step in range(10):
        mask = batch_of(rows, backbone, loss=opening, step=step).sight.mask()
        seen.append(1.0 if mask is None else float(mask[0, 0].triu(1).sum()) / (L * (L - 1) / 2))
        assert mask is None or bool(mask[0, 0].tril().sum() == L * (L + 1) / 2)
    assert seen == pytest.approx([(step + 1) / 10 for step in range(10)], abs=0.1)
    assert seen[-1] == 1


def test_the_noise_ceiling_rises_over_its_warm_up_without_loss_weights() -> None:
    backbone = tiny_backbone(tiny_config(attention="full"))
    rows = packed(64, documents=((0, L),))
    warm = LossSettings(t_warmup_steps=4, objective=Objective(normaliser="pooled"))
    highest = [float(batch_of(rows, backbone, loss=warm, step=step).level_M.max()) for step in range(6)]
    assert highest[0] < 0.4
    assert highest == sorted(highest)
    assert highest[3:] == [1.0, 1.0, 1.0]
    assert set(batch_of(rows, backbone, loss=warm, step=3).weight_M.tolist()) == {1.0}
    assert batch_of(rows, backbone, loss=warm, step=4).weight_M.max() > 2


@pytest.mark.parametrize("attention", ["full", "block"])
def test_a_batch_is_the_same_however_the_step_is_cut(tmp_path: Path, attention: str) -> None:
    stage = tiny_stage(make_data(tmp_path), attention=attention)
    found: dict[int, list[tuple[Any, ...]]] = {}
    for micro_rows in (1, 3, 8):
        run = _Run(changed(stage, "data", micro_rows=micro_rows), tmp_path, world=World(), evaluator=None, quiet=True)
        found[micro_rows] = [
            (int(batch.index_B[row]), column, target, weight, level)
            for batch in run.batches(5)
            for row, column, target, weight, level in zip(
                batch.row_M.tolist(),
                batch.column_M.tolist(),
                batch.target_M.tolist(),
                batch.weight_M.tolist(),
                batch.level_M.tolist(),
                strict=True,
            )
        ]
    assert found[1] == found[3] == found[8]
    assert {index for index, *_ in found[1]} == set(range(40, 48)), "step 5 of 8 rows"


def test_ranks_share_a_step_without_overlap_or_gap() -> None:
    for size in (1, 2, 4):
        assert [at for rank in range(size) for at in share_of_rank(8, rank=rank, size=size)] == list(range(8))


def test_statistics_add_up_what_their_names_say() -> None:
    backbone = tiny_backbone(tiny_config(attention="full"))
    rows = packed(4)
    batch = batch_of(rows, backbone, loss=LossSettings())
    nll_M = losses(backbone, batch)
    sums = statistics(batch, nll_M)
    found = dict(zip(STATISTICS, sums.tolist(), strict=False))
    assert found["tokens"] + found["end_tokens"] == len(nll_M)
    assert found["end_tokens"] == sum(column == DOCUMENTS[-1][1] - 1 for column in places(batch, rows, backbone))
    assert found["nll"] + found["end_nll"] == pytest.approx(float(nll_M.sum()), rel=1e-5)
    assert found["objective"] == pytest.approx(float((batch.weight_M * nll_M).sum()), rel=1e-5)
    assert found["maskable"] == rows.is_maskable_BL.sum()
    bins = sums[len(STATISTICS) :].view(2, LEVEL_BINS)
    assert float(bins[1].sum()) == found["tokens"] < len(nll_M), "end tokens are told apart"
    bin_M = (batch.level_M * LEVEL_BINS).long().clamp(max=LEVEL_BINS - 1)
    for number in range(LEVEL_BINS):
        there_M = (bin_M == number) & ~batch.is_end_M
        assert float(bins[0, number]) == pytest.approx(float(nll_M[there_M].sum()), rel=1e-5)


def test_samples_without_a_loss_are_named_by_their_global_index() -> None:
    backbone = tiny_backbone(tiny_config(attention="full"))
    rows = packed(3)
    batch = batch_of(rows, backbone, loss=LossSettings(), first=400)
    nll_M = losses(backbone, batch)
    assert samples_without_loss(batch, nll_M) == []
    nll_M[batch.row_M == 2] = torch.nan
    nll_M[(batch.row_M == 0).nonzero()[0]] = torch.inf
    assert samples_without_loss(batch, nll_M) == [400, 402]


def test_the_mask_token_is_never_predicted() -> None:
    backbone = tiny_backbone(tiny_config(attention="full"))
    batch = batch_of(packed(), backbone, loss=LossSettings())
    before = losses(backbone, batch)
    backbone.lm_head.weight[backbone.config.mask_id] += 3.0  # type: ignore[index]
    assert torch.equal(before, losses(backbone, batch))


def test_moving_a_batch_to_where_it_is_copies_nothing() -> None:
    batch = batch_of(packed(), tiny_backbone(tiny_config(attention="full")), loss=LossSettings())
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert moved.sight.document_BL.is_meta
    assert moved.ids_BT.is_meta
    assert not moved.index_B.is_meta
