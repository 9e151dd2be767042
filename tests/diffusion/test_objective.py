"""Weights and denominators against sums written out in Python."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.diffusion.corrupt import Corrupted, corrupt, stratified_levels
from unmask.diffusion.objective import cart_weights, denominator, loss_weights, place_end_weights
from unmask.diffusion.settings import NORMALISERS, WEIGHTS, Corruption, Objective
from unmask.errors import SettingsError

DOCUMENT = [0, 0, 0, 0, 1, 1, 1, 2, -1, -1]
MASKABLE = [False, True, True, True, False, True, True, False, False, False]


def batch(rows: int, kind: str = "exact_k", **changes: Any) -> tuple[Corrupted, Tensor, Tensor]:
    document_BL = torch.tensor([DOCUMENT]).expand(rows, -1)
    is_maskable_BL = torch.tensor([MASKABLE]).expand(rows, -1)
    corrupted = corrupt(
        is_maskable_BL,
        document_BL,
        stratified_levels(rows, seed=0, step=0),
        torch.arange(rows),
        corruption=Corruption(kind=kind, **changes),  # type: ignore[arg-type]
        seed=0,
    )
    return corrupted, is_maskable_BL, document_BL


def slow(objective: Objective, corrupted: Corrupted, nll_BL: Tensor, ends: list[float]) -> float:
    """The loss of a batch, token by token and document by document."""
    top = bottom = 0.0
    for row in range(len(nll_BL)):
        for d in (0, 1, 2):
            places = [i for i in range(len(DOCUMENT)) if DOCUMENT[i] == d]
            maskable = [i for i in places if MASKABLE[i]]
            masked = [i for i in maskable if corrupted.is_masked_BL[row, i]]
            size = sum(ends[i] for i in maskable)
            for i in masked:
                if objective.weight == "elbo":
                    weight = float(corrupted.loss_weight_BL[row, i])
                elif objective.weight == "cart":
                    visible = [j for j in places if j not in masked]
                    p = objective.cart_p
                    weight = sum(p * (1 - p) ** (abs(i - j) - 1) for j in visible) / 2
                else:
                    weight = 1.0
                top += ends[i] * weight * float(nll_BL[row, i]) / (size if objective.normaliser == "sequence" else 1)
            if objective.normaliser == "sequence":
                bottom += bool(maskable)
            else:
                bottom += size if objective.normaliser == "token" else sum(ends[i] for i in masked)
    return top / bottom


@pytest.mark.parametrize(("weight", "normaliser"), list(itertools.product(WEIGHTS, NORMALISERS)))
@pytest.mark.parametrize("has_ends", [False, True])
def test_every_weight_and_normaliser_is_its_sum_written_out(weight: Any, normaliser: Any, has_ends: bool) -> None:
    objective = Objective(weight=weight, normaliser=normaliser)
    corrupted, is_maskable_BL, document_BL = batch(6)
    nll_BL = torch.rand(6, len(DOCUMENT), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [1.0] * len(DOCUMENT)
    end_weight_BL = None
    if has_ends:
        ends[3] = ends[6] = 0.25
        end_weight_BL = torch.tensor([ends]).expand(6, -1)
    weight_BL = loss_weights(objective, corrupted, is_maskable_BL, document_BL, end_weight_BL)
    below = denominator(objective, corrupted, is_maskable_BL, document_BL, end_weight_BL)
    assert weight_BL.dtype == torch.float32
    assert below.dtype == torch.float64
    assert not weight_BL[~corrupted.is_masked_BL].any()
    loss = float((weight_BL * nll_BL).sum() / below)
    assert loss == pytest.approx(slow(objective, corrupted, nll_BL, ends), rel=1e-5)


@pytest.mark.parametrize(("weight", "normaliser"), list(itertools.product(WEIGHTS, NORMALISERS)))
def test_sums_over_parts_of_a_batch_are_those_of_the_whole(weight: Any, normaliser: Any) -> None:
    """What ranks and accumulation steps add up to is the loss of the batch, even where a part has no masks."""
    objective = Objective(weight=weight, normaliser=normaliser)
    corrupted, is_maskable_BL, document_BL = batch(5)
    whole = denominator(objective, corrupted, is_maskable_BL, document_BL)
    parts = [
        denominator(
            objective,
            Corrupted(**{name: getattr(corrupted, name)[part] for name in Corrupted.__slots__}),
            is_maskable_BL[part],
            document_BL[part],
        )
        for part in (slice(0, 2), slice(2, 5), slice(5, 5))
    ]
    assert float(sum(parts)) == float(whole)


def test_with_exact_counts_a_document_by_document_bound_is_the_mean_of_what_is_masked() -> None:
    corrupted, is_maskable_BL, document_BL = batch(8)
    weight_BL = loss_weights(Objective(normaliser="sequence"), corrupted, is_maskable_BL, document_BL)
    for places in (slice(1, 4), slice(5, 7)):
        masked_B1 = corrupted.is_masked_BL[:, places].sum(1, keepdim=True)
        torch.testing.assert_close(weight_BL[:, places], corrupted.is_masked_BL[:, places] / masked_B1)


def test_a_constant_nll_makes_the_bound_that_constant_and_diffullamas_quotient_twice_it() -> None:
    corrupted, is_maskable_BL, document_BL = batch(4000)

    def loss(**settings: Any) -> float:
        objective = Objective(**settings)
        weight_BL = loss_weights(objective, corrupted, is_maskable_BL, document_BL)
        return 3 * float(weight_BL.sum() / denominator(objective, corrupted, is_maskable_BL, document_BL))

    assert loss() == pytest.approx(3, rel=0.01)
    assert loss(normaliser="sequence") == pytest.approx(3, rel=0.01)
    assert loss(weight="none", normaliser="pooled") == pytest.approx(3)
    # k uniform in 1 … N masks a little more than half, 2/3 and 3/4 here.
    assert loss(normaliser="pooled") == pytest.approx(3 * 5 / (3 * 2 / 3 + 2 * 3 / 4), rel=0.02)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), length=st.integers(1, 14), p=st.sampled_from([0.05, 0.3, 0.9]))
def test_cart_counts_the_visible_tokens_around_in_the_same_document(data: st.DataObject, length: int, p: float) -> None:
    is_masked = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    cut, end = sorted((data.draw(st.integers(1, length)), data.draw(st.integers(1, length))))
    document = [0] * cut + [1] * (end - cut) + [-1] * (length - end)
    is_masked = [masked and d >= 0 for masked, d in zip(is_masked, document, strict=True)]
    weights = cart_weights(torch.tensor([is_masked]), torch.tensor([document]), p=p)[0]
    for n in range(length):
        expected = 0.0
        for i in range(length):
            if is_masked[n] and i != n and not is_masked[i] and document[i] == document[n]:
                expected += p * (1 - p) ** (abs(n - i) - 1) / 2
        assert float(weights[n]) == pytest.approx(expected, abs=1e-7)


def test_carts_far_neighbours_are_left_out_only_below_rounding() -> None:
    is_masked_BL = torch.zeros(1, 400, dtype=torch.bool)
    is_masked_BL[0, 200] = True
    weight = float(cart_weights(is_masked_BL, torch.zeros(1, 400, dtype=torch.long), p=0.1)[0, 200])
    assert weight == pytest.approx(1 - (0.9**200 + 0.9**199) / 2, abs=3e-7)


def test_a_run_of_end_tokens_counts_as_much_as_count_tokens_in_each_document() -> None:
    is_end_BL = torch.tensor([[False, True, False, True, True, True, True, False]])
    document_BL = torch.tensor([[0, 0, 1, 1, 1, 1, 1, -1]])
    weight_BL = place_end_weights(is_end_BL, document_BL, count=2)
    assert weight_BL.tolist() == [[1, 1, 1, 0.5, 0.5, 0.5, 0.5, 1]]
    assert place_end_weights(is_end_BL, document_BL, count=9).tolist() == [[1.0] * 8]
    assert place_end_weights(is_end_BL, document_BL, count=0).tolist() == [[1, 0, 1, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight": "elb"}, ["weight 'elb' is not known", "did you mean elbo"]),
        ({"normaliser": "tokens"}, ["normaliser 'tokens' is not known", "did you mean token"]),
        ({"weight": "cart", "cart_p": 1.0}, ["cart_p=1.0 lies outside (0, 1)", "0.3 and 0.1 are usual"]),
        ({"cart_p": 0.1}, ["cart_p=0.1 has no effect with weight='elbo'", "weight='cart'"]),
    ],
)
def test_a_wrong_setting_says_what_is_right(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Objective(**changes)
    for word in words:
        assert word in str(caught.value)


def test_the_default_is_the_bound() -> None:
    assert (Objective().weight, Objective().normaliser) == ("elbo", "token")
    assert math.isclose(Objective(weight="cart", cart_p=0.1).cart_p, 0.1)
