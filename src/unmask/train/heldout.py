"""The loss on held-out rows, with masks that never change, so that values of different steps can be compared.

Every row is seen under `samples` noise levels, one from each of that many strata, with masks drawn from (row, sample)
alone. Full attention masks a whole number of tokens (`exact_k`: least variance); block attention masks each token by
itself, since a number of masks in the row would couple its blocks. An autoregressive network has one exact value.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.diffusion.corrupt import row_uniforms
from unmask.diffusion.nelbo import combine
from unmask.diffusion.settings import Corruption, Objective
from unmask.model.config import ModelConfig
from unmask.train.parallel import World, add_up
from unmask.train.settings import LossSettings
from unmask.train.step import Batch, Trainee, make_batch

if TYPE_CHECKING:
    from unmask.data.rows import Mixture

_SEED = 20_250_620  # of the fixed masks; the same in every run, so that runs can be compared


def heldout_loss(
    trainee: Trainee,
    rows: "Mixture",
    *,
    loss: LossSettings,
    config: ModelConfig,
    num_rows: int,
    samples: int,
    micro_rows: int,
    precision: torch.dtype,
    world: World,
) -> Mapping[str, float]:
    """`heldout_nelbo` in nats per token with the standard errors of masks and documents; `heldout_masked_ce`.

    The ranks share the work; every rank returns the same values.
    """
    is_exact = loss.kind == "autoregressive"
    N = 1 if is_exact else samples
    fixed = replace(
        loss,
        # exact_k bounds its weights by itself; a Bernoulli's 1/t needs the least time above 0
        corruption=Corruption(kind="bernoulli") if config.attention == "block" else Corruption(t_min=0.0),
        objective=Objective(),
        anneal_steps=0,
        t_warmup_steps=0,
    )
    jobs = [(row, sample) for row in range(num_rows) for sample in range(N)]
    each = -(-len(jobs) // (world.size * micro_rows)) * micro_rows  # every rank makes as many forwards
    terms_DN = torch.zeros(num_rows, N, dtype=torch.float64)
    tokens_D = torch.zeros(num_rows, dtype=torch.float64)
    sums = torch.zeros(2, dtype=torch.float64)
    mine = jobs[world.rank * each : (world.rank + 1) * each]
    mode = trainee.training
    trainee.eval()
    for at in range(0, each, micro_rows):
        chosen = mine[at : at + micro_rows]
        batch, maskable_B = _batch(rows, chosen or jobs[:1], loss=fixed, config=config, samples=N)
        with torch.no_grad():
            nll_M = trainee.nll(batch.to(world.device), precision=precision).double().cpu()
        if chosen:
            terms_B = torch.zeros(len(chosen), dtype=torch.float64)
            terms_B.index_add_(0, batch.row_M, batch.elbo_weight_M.double() * nll_M)
            for place, (row, sample) in enumerate(chosen):
                terms_DN[row, sample] = terms_B[place]
                if sample == 0:
                    tokens_D[row] = maskable_B[place]
            ordinary_M = nll_M[~batch.is_end_M]
            sums += torch.tensor([float(ordinary_M.sum()), float(len(ordinary_M))], dtype=torch.float64)
    trainee.train(mode)
    packed = torch.cat((terms_DN.reshape(-1), tokens_D, sums)).to(world.device)
    packed = add_up(packed, world).cpu()
    terms_DN = packed[: num_rows * N].view(num_rows, N)
    tokens_D, sums = packed[num_rows * N : num_rows * (N + 1)], packed[-2:]
    found = combine(terms_DN, tokens_D.long())
    return {
        "heldout_nelbo": found.nats_per_token,
        "heldout_nelbo_se": 0.0 if is_exact else found.standard_error,
        "heldout_nelbo_document_se": found.document_standard_error,
        "heldout_masked_ce": float(sums[0] / sums[1].clamp(min=1)),
    }


def _batch(
    rows: "Mixture", jobs: list[tuple[int, int]], *, loss: LossSettings, config: ModelConfig, samples: int
) -> tuple[Batch, Tensor]:
    """The batch of some (row, sample), and how many tokens of each row are predicted in the long run."""
    found = rows.rows([row for row, _ in jobs])
    own_B = torch.tensor([row * samples + sample for row, sample in jobs])
    first_B = row_uniforms(_SEED, "held-out level", torch.tensor([row for row, _ in jobs]), 1)[:, 0]
    level_B = (first_B + torch.tensor([sample for _, sample in jobs])) / samples
    batch = make_batch(
        found, own_B, level_B, loss=loss, config=config, seed=_SEED, step=0, end_tokens=found.ids_BL.shape[1]
    )
    return batch, torch.from_numpy(found.is_maskable_BL).sum(-1)
