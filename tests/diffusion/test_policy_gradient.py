"""Advantages, ratios and losses against loops that say the same in the obvious way; gradients against differences."""

import math
import statistics
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.diffusion.likelihood import draw_views, token_scores
from unmask.diffusion.policy_gradient import (
    advantages,
    clip_counts,
    clip_masks,
    clipped_objective,
    has_spread,
    kl_penalty,
    log_ratio,
    loss_counts,
    loss_weights,
)
from unmask.diffusion.rl_settings import Estimator, check_clipping, check_group
from unmask.errors import SettingsError

nan = math.nan


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counted(*sizes: int, width: int = 6) -> Tensor:
    """Answers of these lengths behind a prompt of one token."""
    column = torch.arange(width)
    return torch.stack([(column >= 1) & (column <= size) for size in sizes])


# --- advantages


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=5, max_size=5), min_size=1, max_size=4),
    st.sampled_from(["group_mean", "leave_one_out"]),
    st.sampled_from(["none", "group", "batch"]),
)
def test_advantages_are_those_of_the_obvious_loop(groups: list[Any], baseline: Any, scale: Any) -> None:
    reward = torch.tensor([[r / 4 for r, _ in group] for group in groups], dtype=torch.float64)
    is_valid = torch.tensor([[valid for _, valid in group] for group in groups])
    everything = reward[is_valid].tolist()
    expected = []
    for row, valid in zip(reward.tolist(), is_valid.tolist(), strict=True):
        own = [r for r, keep in zip(row, valid, strict=True) if keep]
        for i, r in enumerate(row):
            if not valid[i] or len(own) < 2 or len(set(own)) == 1:
                expected.append(0.0)
                continue
            others = list(own)
            others.remove(r)
            advantage = r - statistics.fmean(own if baseline == "group_mean" else others)
            if scale == "group":
                advantage /= statistics.stdev(own) + 1e-4
            elif scale == "batch":
                advantage /= statistics.stdev(everything) + 1e-4
            expected.append(advantage)
    reward = reward.masked_fill(~is_valid, nan)  # never read
    given_ = advantages(reward, is_valid, baseline=baseline, scale=scale)
    torch.testing.assert_close(given_.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_leave_one_out_is_the_group_mean_further_away() -> None:
    reward, is_valid = randn(3, 10), torch.ones(3, 10, dtype=torch.bool)
    one = advantages(reward, is_valid, baseline="leave_one_out")
    torch.testing.assert_close(one, advantages(reward, is_valid) * 10 / 9)


def test_a_lost_answer_changes_nothing_for_its_group() -> None:
    is_valid = torch.tensor([[True, False, True, True]])
    lost = advantages(torch.tensor([[1.0, nan, 0.0, 0.5]]), is_valid, scale="group")
    alone = advantages(torch.tensor([[1.0, 0.0, 0.5]]), torch.ones(1, 3, dtype=torch.bool), scale="group")
    assert lost[0, [0, 2, 3]].tolist() == alone[0].tolist()
    assert lost[0, 1] == 0


def test_groups_without_spread_are_found_and_have_no_advantage_at_all() -> None:
    reward = torch.tensor([[0.7, 0.7, 0.7], [0.7, 0.7, 0.8], [0.7, nan, 0.8], [nan, 0.1, nan], [nan, nan, nan]])
    is_valid = ~reward.isnan()
    is_valid[2, 2] = False
    assert has_spread(reward, is_valid).tolist() == [False, True, False, False, False]
    assert advantages(reward, is_valid, scale="group")[[0, 2, 3, 4]].count_nonzero() == 0


@pytest.mark.parametrize("count", [0, 1])
def test_a_group_of_one_is_refused(count: int) -> None:
    with pytest.raises(SettingsError) as error:
        check_group(count, "leave_one_out")
    assert str(error.value).startswith(f"num_generations={count} leaves nothing to learn from: leave_one_out compares")
    assert "set at least 2, and 8 to 16 are usual" in str(error.value)
    with pytest.raises(SettingsError, match="compared with the mean of its group, which is itself"):
        check_group(count, "group_mean")
    check_group(2, "leave_one_out")


# --- ratios and their clipping


def test_token_ratios_are_differences_and_sequence_ratios_their_sums() -> None:
    score, old, mask = randn(2, 6), randn(2, 6, seed=1), counted(3, 5)
    difference = (score - old) * mask
    token = log_ratio(score, old, mask, level="token")
    torch.testing.assert_close(token, difference)
    total = log_ratio(score, old, mask, level="sequence", per_token=False)
    torch.testing.assert_close(total, difference.sum(1, keepdim=True) * mask)
    mean = log_ratio(score, old, mask, level="sequence")
    torch.testing.assert_close(mean, total / torch.tensor([[3.0], [5.0]], dtype=torch.float64))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equal_scores_make_a_ratio_of_exactly_one(level: Any) -> None:
    score = randn(3, 6).float()
    ratio = log_ratio(score, score.clone(), counted(0, 2, 5), level=level).exp()
    assert (ratio == 1).all()


def test_what_is_not_counted_is_never_read() -> None:
    mask = counted(2)
    score = torch.where(mask, 0.5, nan).requires_grad_()
    reference = torch.where(mask, 0.25, -math.inf)
    for level in ("token", "sequence"):
        ratio = log_ratio(score, reference, mask, level=level)
        penalty = kl_penalty(score, reference, mask, estimator="k3", level=level)
        assert ratio.isfinite().all()
        assert penalty.isfinite().all()
        (gradient,) = torch.autograd.grad((ratio + penalty).sum(), score)
        assert gradient.isfinite().all()
        assert not gradient[~mask].any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "delta", "expected"),
    [
        (1.0, 2.0, None, 2.0),
        (1.4, 2.0, None, 2.56),  # clipped at 1.28
        (0.5, 2.0, None, 1.0),  # a good answer that became rarer is not clipped
        (0.5, -2.0, None, -1.6),  # clipped at 0.8
        (1.4, -2.0, None, -2.8),  # a bad answer that became likelier is not clipped
        (9.0, -2.0, None, -18.0),
        (9.0, -2.0, 4.0, -8.0),  # unless by delta
        (9.0, 2.0, 4.0, 2.56),
    ],
)
def test_the_clipped_objective_by_hand(ratio: float, advantage: float, delta: float | None, expected: float) -> None:
    objective = clipped_objective(
        torch.tensor([[math.log(ratio)]], dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        epsilon=0.2,
        epsilon_high=0.28,
        delta=delta,
    )
    assert objective.item() == pytest.approx(expected)


def test_epsilon_high_is_epsilon_unless_given() -> None:
    objective = clipped_objective(torch.tensor([[5.0]]), torch.tensor([1.0]), epsilon=0.5)
    assert objective.item() == pytest.approx(1.5)


def test_a_ratio_beyond_all_numbers_leaves_a_gradient_that_is_one() -> None:
    log_rho = torch.tensor([[500.0, -500.0], [500.0, -500.0]], requires_grad=True)
    clipped_objective(log_rho, torch.tensor([1.0, 0.0]), epsilon=0.2).sum().backward()
    assert log_rho.grad is not None
    assert not log_rho.grad.any()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0.0, None, None), "epsilon=0.0 is no bound: the ratio is kept above 1 - epsilon, so it lies in (0, 1)"),
        ((1.0, None, None), "0.2 is usual, and DiffuCoder takes 0.5"),
        ((0.2, 0.0, None), "epsilon_high=0.0 is no bound: the ratio is kept below 1 + epsilon_high"),
        ((0.2, 0.28, 1.28), "delta=1.28 lies at or below 1 + epsilon_high = 1.28, where the ratio is clipped already"),
        ((0.5, None, 1.2), "set it higher, such as 4, or leave it out"),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(bounds: Any, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        check_clipping(*bounds)
    assert message in str(error.value)


def test_clip_statistics_by_hand() -> None:
    """A good answer and a bad one; each with a ratio too low, one too high and one between, and one more uncounted."""
    log_rho = torch.tensor([[0.5, 1.5, 1.0, 1.5], [0.5, 1.5, 1.0, 0.5]]).log()
    low, high = clip_masks(log_rho, torch.tensor([1.0, -1.0]), epsilon=0.2, epsilon_high=0.28)
    assert low.tolist() == [[False] * 4, [True, False, False, True]]
    assert high.tolist() == [[False, True, False, True], [False] * 4]
    mask = torch.tensor([[True, True, True, False]] * 2)
    assert clip_counts(low, high, mask, level="token").tolist() == [1, 1, 2, 6]
    nothing, _ = clip_masks(log_rho, torch.zeros(2), epsilon=0.2)
    assert not nothing.any()


def test_clip_statistics_of_sequences_count_answers() -> None:
    mask = counted(2, 5, 0)
    score = torch.tensor([[1.0], [0.0], [1.0]]).expand(3, 6)
    log_rho = log_ratio(score, torch.zeros(3, 6), mask, level="sequence")
    low, high = clip_masks(log_rho, torch.tensor([1.0, 1.0, 1.0]), epsilon=0.2)
    assert clip_counts(low, high, mask, level="sequence").tolist() == [0, 1, 1, 2]


def test_the_gradient_stops_exactly_where_the_clip_masks_say() -> None:
    log_rho = randn(8, 6).requires_grad_()
    advantage = randn(8, seed=1)
    low, high = clip_masks(log_rho, advantage, epsilon=0.2, epsilon_high=0.3)
    clipped_objective(log_rho, advantage, epsilon=0.2, epsilon_high=0.3).sum().backward()
    assert log_rho.grad is not None
    assert torch.equal(log_rho.grad == 0, low | high)
    assert low.any()
    assert high.any()


# --- KL


@pytest.mark.parametrize(("estimator", "slope"), [("k1", 1.0), ("k2", 0.7), ("k3", 1 - math.exp(-0.7))])
def test_kl_estimators_are_0_at_the_reference_and_have_the_stated_slope(estimator: Any, slope: float) -> None:
    mask = torch.tensor([[True, True]])
    score = torch.tensor([[0.0, 0.7]], dtype=torch.float64, requires_grad=True)
    value = kl_penalty(score, torch.zeros(1, 2, dtype=torch.float64), mask, estimator=estimator)
    assert value[0, 0] == 0
    (gradient,) = torch.autograd.grad(value[0, 1], score)
    assert gradient[0].tolist() == pytest.approx([0, slope])


def test_the_mean_gradients_of_kl_estimators_are_those_of_the_divergences_that_they_name() -> None:
    """Counted out over four words whose log-probabilities come from logits."""
    logits, reference = randn(4).requires_grad_(), randn(4, seed=1).log_softmax(-1)
    logp = logits.log_softmax(-1)
    policy = logp.detach().exp()
    mask = torch.ones(1, 4, dtype=torch.bool)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    def mean(estimator: Any) -> Tensor:
        return gradient((policy * kl_penalty(logp[None], reference[None], mask, estimator=estimator)[0]).sum())

    torch.testing.assert_close(mean("k1"), torch.zeros_like(logits))
    torch.testing.assert_close(mean("k2"), gradient((logp.exp() * (logp - reference)).sum()))
    torch.testing.assert_close(mean("k3"), gradient((reference.exp() * (reference - logp)).sum()))


def test_the_mean_of_k1_and_k3_over_the_policy_is_the_divergence() -> None:
    logp, reference = randn(1, 4).log_softmax(-1), randn(1, 4, seed=1).log_softmax(-1)
    mask = torch.ones(1, 4, dtype=torch.bool)
    exact = (logp.exp() * (logp - reference)).sum()
    for estimator in ("k1", "k3"):
        mean = (logp.exp() * kl_penalty(logp, reference, mask, estimator=estimator)).sum()  # type: ignore[arg-type]
        torch.testing.assert_close(mean, exact)


def test_k3_is_exact_near_the_reference() -> None:
    value = kl_penalty(torch.tensor([[1e-4]]), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), estimator="k3")
    assert value.item() == pytest.approx(5e-9, rel=0.01)


def test_a_sequence_penalty_is_that_of_the_sums_by_the_length() -> None:
    score, reference, mask = randn(2, 6), randn(2, 6, seed=1), counted(3, 5)
    total = ((score - reference) * mask).sum(1)
    penalty = kl_penalty(score, reference, mask, estimator="k2", level="sequence")
    weight = loss_weights("grpo", mask, loss_counts(mask), max_new_tokens=5)
    expected = (total.square() / 2 / torch.tensor([3.0, 5.0])).mean()
    torch.testing.assert_close((penalty * weight).sum(), expected)


# --- gradients against differences


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_gradient_of_the_kl_is_that_of_finite_differences(estimator: Any, level: Any) -> None:
    reference, mask = randn(2, 6, seed=1), counted(3, 5)
    assert torch.autograd.gradcheck(
        lambda score: kl_penalty(score, reference, mask, estimator=estimator, level=level),
        (randn(2, 6).requires_grad_(),),
    )


@pytest.mark.parametrize("name", ["coupled", "espo"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_the_gradient_of_the_whole_loss_is_that_of_finite_differences(name: Any, loss_type: Any) -> None:
    """From the log-probabilities of every view to the loss, with clipping of all kinds and a KL penalty."""
    mask, estimator = counted(3, 5, 4), Estimator(name=name)
    is_prompt = torch.arange(6).expand(3, -1) == 0
    views = draw_views(estimator, mask, is_prompt, torch.arange(3), seed=0, step=0, iteration=0)
    shape = views.weight_KBL.shape
    old, reference = (token_scores(views, randn(*shape, seed=seed) * 0.3) for seed in (1, 2))
    weight = loss_weights(loss_type, mask, loss_counts(mask), max_new_tokens=5).double()

    def loss(logp: Tensor) -> Tensor:
        score = token_scores(views, logp)
        ratio = log_ratio(score, old, mask, level=estimator.ratio_level)
        objective = clipped_objective(
            ratio, torch.tensor([1.0, -1.0, -0.5]).double(), epsilon=0.2, epsilon_high=0.3, delta=1.6
        )
        penalty = kl_penalty(score, reference, mask, estimator="k3", level=estimator.ratio_level)
        return (weight * (0.1 * penalty - objective)).sum()

    assert torch.autograd.gradcheck(loss, ((randn(*shape) * 0.3).requires_grad_(),))


# --- what a token weighs

BATCH = [counted(3, 5), counted(1, 0), counted(0, 0), counted(2, 4)]
"""Micro-batches, of one rank or several; the second has an answer that does not count, the third only such."""


def total_counts() -> Tensor:
    return torch.stack([loss_counts(mask) for mask in BATCH]).sum(0)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_losses_over_micro_batches_are_those_of_the_obvious_loops(loss_type: Any) -> None:
    values = [randn(2, 6, seed=seed).float() for seed in range(len(BATCH))]
    count = total_counts()
    assert count.tolist() == [5, 15, 3]
    weighted = sum(
        float((loss_weights(loss_type, mask, count, max_new_tokens=8) * value).sum())
        for mask, value in zip(BATCH, values, strict=True)
    )
    answers = [[value[row, mask[row]].tolist() for row in range(2)] for mask, value in zip(BATCH, values, strict=True)]
    kept = [answer for micro_batch in answers for answer in micro_batch if answer]
    if loss_type == "grpo":
        expected = statistics.fmean(statistics.fmean(answer) for answer in kept)
    elif loss_type == "dr_grpo":
        expected = statistics.fmean(sum(answer) / 8 for answer in kept)
    elif loss_type == "dapo":
        expected = statistics.fmean(value for answer in kept for value in answer)
    else:
        tokens = [[value for answer in micro_batch for value in answer] for micro_batch in answers]
        expected = statistics.fmean(statistics.fmean(micro_batch) for micro_batch in tokens if micro_batch)
    assert weighted == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_weights_do_not_depend_on_how_the_batch_is_shared_out(loss_type: Any) -> None:
    rows = torch.cat(BATCH)
    count = total_counts()
    whole = loss_weights(loss_type, rows, count, max_new_tokens=8)
    for cuts in ([0, 8], [0, 3, 8], [0, 1, 2, 5, 8]):
        parts = [loss_weights(loss_type, rows[first:last], count, max_new_tokens=8) for first, last in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_nothing_counted_weighs_nothing(loss_type: Any) -> None:
    mask = counted(0, 0)
    weight = loss_weights(loss_type, mask, loss_counts(mask), max_new_tokens=8)
    assert weight.dtype == torch.float32
    assert not weight.any()


def test_bnpo_is_dapo_in_one_micro_batch_and_grpo_in_micro_batches_of_one() -> None:
    mask = counted(3, 5)
    bnpo = loss_weights("bnpo", mask, loss_counts(mask), max_new_tokens=8)
    assert torch.equal(bnpo, loss_weights("dapo", mask, loss_counts(mask), max_new_tokens=8))
    count = loss_counts(mask[:1]) + loss_counts(mask[1:])
    alone = torch.cat([loss_weights("bnpo", mask[row : row + 1], count, max_new_tokens=8) for row in range(2)])
    assert torch.equal(alone, loss_weights("grpo", mask, loss_counts(mask), max_new_tokens=8))
