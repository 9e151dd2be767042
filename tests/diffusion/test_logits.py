"""Shaping and drawing, each against the slow and obvious version."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.diffusion.logits import draw, keep_nucleus, keep_top_k, shape_logits, suppress_

FLOOR = torch.finfo(torch.float32).min
SCORES = st.floats(-20, 20, width=32).map(lambda score: round(score, 1))  # one digit, so that ties are common
ROWS = st.integers(2, 12).flatmap(
    lambda size: st.lists(st.lists(SCORES, min_size=size, max_size=size), min_size=1, max_size=4)
)


def survivors(shaped_MV):
    return [{token for token, score in enumerate(row) if score > FLOOR} for row in shaped_MV.tolist()]


def probabilities(scores):
    """Softmax in Python's double precision."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


# --- suppressed ids -----------------------------------------------------------------------------------------------


def test_suppressed_ids_have_probability_zero_and_the_others_keep_their_ratios():
    logits_MV = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    is_suppressed_V = torch.tensor([False, True, False, False, True, False, False])
    expected = logits_MV.masked_fill(is_suppressed_V, -torch.inf).softmax(-1)
    assert torch.equal(suppress_(logits_MV, is_suppressed_V).softmax(-1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_suppression_works_in_place_and_stays_finite(dtype):
    logits_MV = torch.zeros(2, 3, dtype=dtype)
    out = suppress_(logits_MV, torch.tensor([True, False, False]))
    assert out is logits_MV
    assert bool(logits_MV.isfinite().all())
    assert (logits_MV.float().softmax(-1)[:, 0] == 0).all()


# --- top-k --------------------------------------------------------------------------------------------------------


@given(ROWS, st.integers(1, 15))
def test_top_k_keeps_the_k_best_and_what_ties_with_the_last(rows, k):
    expected = [
        {token for token, score in enumerate(row) if score >= sorted(row, reverse=True)[min(k, len(row)) - 1]}
        for row in rows
    ]
    shaped = keep_top_k(torch.tensor(rows), k)
    assert survivors(shaped) == expected
    for row, kept, out in zip(rows, expected, shaped.tolist(), strict=True):
        assert all(out[token] == pytest.approx(row[token]) for token in kept), "what is kept is not changed"


# --- nucleus ------------------------------------------------------------------------------------------------------


def slow_nucleus(scores, top_p):
    """The best tokens, one after another, until their sum reaches `top_p`; then all that tie with the last one."""
    weights = probabilities(scores)
    falling = sorted(range(len(scores)), key=lambda token: -scores[token])
    reached, last = weights[falling[0]], falling[0]
    for token in falling[1:]:
        if reached >= top_p:
            break
        reached, last = reached + weights[token], token
    return {token for token, score in enumerate(scores) if score >= scores[last]}


@given(ROWS, st.floats(0.01, 1.0))
def test_nucleus_is_the_smallest_set_of_best_tokens_that_reaches_top_p(rows, top_p):
    for row, kept in zip(rows, survivors(keep_nucleus(torch.tensor(rows), top_p)), strict=True):
        # Where a sum meets top_p to the last digit, float32 may fall on either side.
        assert slow_nucleus(row, top_p - 1e-5) <= kept <= slow_nucleus(row, top_p + 1e-5)
        assert kept == {token for token, score in enumerate(row) if score >= min(row[token] for token in kept)}


def test_a_set_that_reaches_top_p_exactly_takes_no_further_token():
    """The first token's probability is 1 to the last bit, on every machine."""
    assert survivors(keep_nucleus(torch.tensor([[200.0, 0.0, -1.0]]), 1.0)) == [{0}]


@given(ROWS, st.floats(0.01, 1.0))
def test_the_best_token_always_survives(rows, top_p):
    for row, kept in zip(rows, survivors(keep_nucleus(torch.tensor(rows), top_p)), strict=True):
        assert row.index(max(row)) in kept


def plain_nucleus(logits_MV, top_p):
    """The whole vocabulary sorted, in the same precision as the code, without its short cut."""
    falling = logits_MV.sort(-1, descending=True).values
    weight = (falling - logits_MV.logsumexp(-1, keepdim=True)).exp()
    is_inside = (weight.cumsum(-1) - weight) < top_p
    cutoff = falling.masked_fill(~is_inside, torch.inf).min(-1, keepdim=True).values
    return logits_MV.masked_fill(logits_MV < cutoff, FLOOR)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("top_p", [0.05, 0.2, 0.5, 0.9, 0.95, 0.999])
def test_the_short_cut_over_1024_candidates_changes_no_answer(scale, top_p):
    """Flat rows need more than 1,024 tokens and peaked rows few; both kinds stand in one batch."""
    generator = torch.Generator().manual_seed(int(scale * 10))
    logits_MV = scale * torch.randn(6, 5000, generator=generator)
    logits_MV[::2] *= 4
    assert torch.equal(keep_nucleus(logits_MV, top_p), plain_nucleus(logits_MV, top_p))


def test_a_flat_row_beyond_the_candidates_keeps_its_share_of_the_vocabulary():
    logits_MV = torch.linspace(1e-3, 0, 4000)[None]
    assert len(survivors(keep_nucleus(logits_MV, 0.5))[0]) == pytest.approx(2000, abs=3)


def test_scores_that_are_not_numbers_pass_through_the_nucleus():
    """The loop reports them by position; here they must not become an index error."""
    logits_MV = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 1.0, 2.0]])
    shaped = keep_nucleus(logits_MV, 0.9)
    assert bool(shaped[0].isnan().any())
    assert bool(shaped[1].isfinite().all())


# --- all of them together -----------------------------------------------------------------------------------------


@given(ROWS, st.sampled_from([0.0, 0.3, 1.0, 2.5]))
def test_temperature_divides_and_zero_leaves_the_scores_alone(rows, temperature):
    logits_MV = torch.tensor(rows)
    shaped = shape_logits(logits_MV, temperature=temperature, top_p=None, top_k=None)
    assert torch.equal(shaped, logits_MV / (temperature or 1.0))


@given(ROWS, st.sampled_from([0.0, 0.4, 1.0, 1.7]), st.none() | st.floats(0.05, 1), st.none() | st.integers(1, 9))
def test_shaping_is_temperature_then_nucleus_then_top_k(rows, temperature, top_p, top_k):
    logits_MV = torch.tensor(rows)
    expected = logits_MV / (temperature or 1.0)
    expected = keep_nucleus(expected, top_p) if top_p is not None and top_p < 1 else expected
    expected = keep_top_k(expected, top_k) if top_k is not None else expected
    assert torch.equal(shape_logits(logits_MV, temperature=temperature, top_p=top_p, top_k=top_k), expected)


def test_shaping_does_not_touch_its_input():
    logits_MV = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    before = logits_MV.clone()
    shape_logits(logits_MV, temperature=0.5, top_p=0.5, top_k=2)
    assert torch.equal(logits_MV, before)


# --- drawing ------------------------------------------------------------------------------------------------------


def slow_draw(logp, uniform):
    """Walk along the probabilities until their sum exceeds the uniform number's share of the total."""
    weights = [float(weight) for weight in torch.tensor(logp).exp()]
    total = 0.0
    for weight in weights:
        total += weight
    passed = 0.0
    for token, weight in enumerate(weights):
        passed += weight
        if passed > uniform * total:
            return token
    raise AssertionError("a uniform number lies below 1")


BELOW_ONE = 1 - 2**-24
UNIFORM = st.one_of(st.sampled_from([0.0, 0.5, BELOW_ONE]), st.floats(0, BELOW_ONE, width=32))


@given(ROWS, st.data())
def test_drawing_inverts_the_cumulative_distribution(rows, data):
    logp_MV = torch.tensor(rows).log_softmax(-1)
    uniforms = data.draw(st.lists(UNIFORM, min_size=len(rows), max_size=len(rows)))
    expected = [slow_draw(logp, uniform) for logp, uniform in zip(logp_MV.tolist(), uniforms, strict=True)]
    assert draw(logp_MV, torch.tensor(uniforms)).tolist() == expected


@given(ROWS, st.data())
def test_a_token_of_probability_zero_is_never_drawn(rows, data):
    """At both ends of the uniform's range, where the first and the last token stand."""
    logits_MV = torch.tensor(rows)
    vocabulary = logits_MV.shape[1]
    forbidden = data.draw(st.sets(st.integers(0, vocabulary - 1), max_size=vocabulary - 1))
    is_forbidden_V = torch.tensor([token in forbidden for token in range(vocabulary)])
    logp_MV = suppress_(logits_MV, is_forbidden_V).log_softmax(-1)
    for uniform in (0.0, data.draw(UNIFORM), BELOW_ONE):
        drawn = draw(logp_MV, torch.full((len(rows),), uniform))
        assert not forbidden & set(drawn.tolist())


def test_draws_follow_the_distribution():
    weights = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.3])
    trials = 40_000
    uniform_M = torch.rand(trials, generator=torch.Generator().manual_seed(0))
    counts = draw(weights.log().expand(trials, -1), uniform_M).bincount(minlength=5)
    assert counts[2] == 0
    expected = trials * weights[weights > 0]
    statistic = float(((counts[weights > 0] - expected) ** 2 / expected).sum())
    assert statistic < 16.27, "chi-square with 3 degrees of freedom passes this once in a thousand"


def test_every_token_of_a_large_vocabulary_can_be_drawn():
    vocabulary = 150_000
    logp_MV = torch.full((3, vocabulary), 1 / vocabulary).log()
    tokens = torch.tensor([0, vocabulary // 2, vocabulary - 1])
    assert draw(logp_MV, (tokens + 0.5) / vocabulary).tolist() == tokens.tolist()


def test_rare_tokens_behind_a_likely_one_are_told_apart():
    """Near 1 a float32 sum moves in steps of 6e-8, and would pass over tokens of probability 1e-8."""
    rare = 50
    logp_V = torch.tensor([1.0, *[1e-8] * rare]).log()
    weights = logp_V.exp().double()
    before = weights.cumsum(-1) - weights
    uniform_M = (before + weights / 2) / weights.sum()
    assert draw(logp_V.expand(rare + 1, -1), uniform_M).tolist() == list(range(rare + 1))


def test_a_draw_depends_on_its_own_number_alone():
    logp_MV = torch.randn(6, 9, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    uniform_M = torch.rand(6, generator=torch.Generator().manual_seed(3))
    together = draw(logp_MV, uniform_M)
    alone = [draw(logp_MV[i : i + 1], uniform_M[i : i + 1]).item() for i in range(6)]
    assert together.tolist() == alone
