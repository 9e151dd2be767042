"""The held-out bound: unbiased, the same masks for ever, and errors that are what they say."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from unmask.diffusion.corrupt import corrupt
from unmask.diffusion.nelbo import combine
from unmask.diffusion.settings import Corruption
from unmask.errors import SettingsError

IS_MASKABLE = torch.tensor([False, True, True, False, True, True, True])
T = int(IS_MASKABLE.sum())


def nll(is_masked_NL: Tensor) -> Tensor:
    """Summed NLL of each copy's masked tokens, by a formula that depends on which others are masked."""
    place_L = torch.arange(1, len(IS_MASKABLE) + 1, dtype=torch.float64)
    masked_NL = is_masked_NL.double()
    return (masked_NL * (0.3 + place_L.sin().abs() + (masked_NL @ place_L)[:, None] / 20)).sum(1)


def exact() -> float:
    """The bound from its definition: k uniform, then every set of k."""
    total = 0.0
    places = IS_MASKABLE.nonzero()[:, 0].tolist()
    for k in range(1, T + 1):
        sets = list(itertools.combinations(places, k))
        for chosen in sets:
            is_masked_1L = torch.zeros(1, len(IS_MASKABLE), dtype=torch.bool)
            is_masked_1L[0, list(chosen)] = True
            total += float(nll(is_masked_1L)) / k / len(sets)
    return total


def estimates(documents: int, samples: int) -> Tensor:
    """What the masked copies of one document say of its bound, as they are drawn for held-out text."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for document in range(documents):
        level_N = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(samples)) / samples
        masks = corrupt(
            IS_MASKABLE.expand(samples, -1),
            torch.zeros(samples, len(IS_MASKABLE), dtype=torch.long),
            level_N,
            document * samples + torch.arange(samples),
            corruption=Corruption(t_min=0.0),
            seed=0,
        )
        rows.append(masks.loss_weight_BL.amax(1).double() * nll(masks.is_masked_BL))
    return torch.stack(rows)


@pytest.mark.parametrize("samples", [1, 3, 5, 8])
def test_the_estimate_is_unbiased_for_any_number_of_samples(samples: int) -> None:
    means = estimates(3000 // samples, samples).mean(1)
    error = float(means.std()) / math.sqrt(len(means))
    assert float(means.mean()) == pytest.approx(exact(), abs=4 * error)
    assert error < 0.05 * exact()


def test_the_mean_is_per_token_and_long_documents_count_more() -> None:
    nelbo = combine(torch.tensor([[1.0, 3.0], [30.0, 30.0]]), torch.tensor([1, 15]))
    assert nelbo.nats_per_token == pytest.approx(2)
    assert (nelbo.num_documents, nelbo.num_samples) == (2, 2)


def test_the_masks_error_covers_the_spread_over_mask_draws_and_leans_to_the_large_side() -> None:
    """120 evaluations with other seeds: the errors they state against how far they lie apart."""
    runs = estimates(120 * 10, 8).reshape(120, 10, 8)
    nelbos = [combine(terms_DN, torch.full((10,), T)) for terms_DN in runs]
    spread = float(torch.tensor([nelbo.nats_per_token for nelbo in nelbos]).std())
    stated = sum(nelbo.standard_error for nelbo in nelbos) / len(nelbos)
    assert 0.9 * spread < stated < 2 * spread


def test_the_documents_error_is_that_of_their_spread() -> None:
    """Documents whose nats per token are drawn at random, with no noise from masks."""
    generator = torch.Generator().manual_seed(0)
    rate_RD = 1 + torch.rand(400, 30, generator=generator, dtype=torch.float64)
    tokens_RD = torch.randint(5, 50, (400, 30), generator=generator)
    nelbos = [
        combine((rate_D * tokens_D)[:, None].expand(-1, 4), tokens_D)
        for rate_D, tokens_D in zip(rate_RD, tokens_RD, strict=True)
    ]
    spread = float(torch.tensor([nelbo.nats_per_token for nelbo in nelbos]).std())
    stated = sum(nelbo.document_standard_error for nelbo in nelbos) / len(nelbos)
    assert stated == pytest.approx(spread, rel=0.1)
    assert all(nelbo.standard_error == 0 for nelbo in nelbos)


def test_one_sample_or_one_document_has_no_known_error() -> None:
    nelbo = combine(torch.tensor([[2.0]]), torch.tensor([2]))
    assert (nelbo.standard_error, nelbo.document_standard_error) == (math.inf, math.inf)


def test_nothing_to_evaluate_is_said() -> None:
    with pytest.raises(SettingsError, match=r"0 documents with 0 tokens .* give at least one document with a token"):
        combine(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
