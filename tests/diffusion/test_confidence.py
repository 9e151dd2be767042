"""The three scores against sums written out in Python."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.diffusion.confidence import entropy, token_confidence, top_margin

WEIGHTS = st.lists(st.floats(0.001, 1.0), min_size=2, max_size=9)


def distribution(weights):
    return [weight / sum(weights) for weight in weights]


@given(WEIGHTS)
def test_scores_of_any_distribution(weights):
    p = distribution(weights)
    logp_MV = torch.tensor([p], dtype=torch.float32).log()
    best, second = sorted(p, reverse=True)[:2]
    assert top_margin(logp_MV).item() == pytest.approx(best - second, abs=1e-5)
    assert entropy(logp_MV).item() == pytest.approx(-sum(x * math.log(x) for x in p), abs=1e-5)
    for token, probability in enumerate(p):
        assert token_confidence(logp_MV, torch.tensor([token])).item() == pytest.approx(probability, abs=1e-5)


def test_each_place_is_scored_by_its_own_token():
    logp_MV = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]).log()
    assert token_confidence(logp_MV, torch.tensor([1, 2])).tolist() == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize("impossible", [-torch.inf, torch.finfo(torch.float32).min])
def test_impossible_tokens_add_nothing(impossible):
    logp_MV = torch.tensor([[math.log(0.75), math.log(0.25), impossible]])
    assert entropy(logp_MV).item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert top_margin(logp_MV).item() == pytest.approx(0.5)
    assert token_confidence(logp_MV, torch.tensor([2])).item() == 0


@pytest.mark.parametrize("impossible", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_certain_token_has_confidence_and_margin_one_and_entropy_zero(impossible):
    logp_MV = torch.tensor([[impossible, 0.0, impossible]])
    assert token_confidence(logp_MV, torch.tensor([1])).item() == 1
    assert top_margin(logp_MV).item() == 1
    assert entropy(logp_MV).item() == 0


@given(st.integers(2, 200))
def test_the_uniform_distribution_has_the_largest_entropy_and_no_margin(size):
    logp_MV = torch.zeros(1, size).log_softmax(-1)
    assert entropy(logp_MV).item() == pytest.approx(math.log(size), rel=1e-4)
    assert top_margin(logp_MV).item() == 0


def test_no_places_give_no_scores():
    nothing = torch.zeros(0, 5)
    assert entropy(nothing).shape == top_margin(nothing).shape == (0,)
