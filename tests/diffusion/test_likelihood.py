"""Scores against enumeration, on an answer of five tokens over four words.

`LOGP` is a table of log-probabilities of every token given every set of masks, drawn at random: what an estimator means
is then a finite sum. The test counts the sets (or the orders, for a whole number of masks) out and feeds them to the
estimator in the place of its random numbers.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.diffusion import likelihood
from unmask.diffusion.likelihood import Views, draw_views, num_views, sequence_scores, spread, token_scores
from unmask.diffusion.rl_settings import Estimator
from unmask.errors import SettingsError, TrajectoryError

N = 5
ANSWER = (0, 3, 1, 1, 2)
SETS = torch.tensor(list(itertools.product([False, True], repeat=N)))
ALL = ["mean_field", "coupled", "coupled_normalised", "decoupled", "elbo", "espo", "left_to_right", "trajectory"]


def table(seed: int = 0) -> Tensor:
    """Log-probability [2^N, N] of each token of ANSWER given each set of masks; no number at visible ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(SETS), N, 4, generator=generator, dtype=torch.float64)
    logp = logits.log_softmax(-1)[:, torch.arange(N), torch.tensor(ANSWER)]
    return logp.masked_fill(~SETS, math.nan)


LOGP = table()


def number(is_masked: Tensor) -> Tensor:
    """Index of each set of masks in SETS."""
    return (is_masked.long() * 2 ** torch.arange(N - 1, -1, -1)).sum(-1)


def row(prompt: int, answer: int, tail: int) -> tuple[Tensor, Tensor]:
    """(is_answer, is_prompt) of one row."""
    kind = torch.tensor([0] * prompt + [1] * answer + [2] * tail)
    return kind == 1, kind == 0


def draw(name: str, sample: Tensor, /, *, seed: int = 0, step: int = 0, iteration: int = 0, **options: Any) -> Views:
    """Views of copies of one row: two tokens of prompt, ANSWER, one behind its end."""
    is_answer, is_prompt = row(2, N, 1)
    size = (len(sample), -1)
    estimator = Estimator(name=name, **options)
    committed_at = torch.arange(N + 3).expand(size) if name == "trajectory" else None
    return draw_views(
        estimator,
        is_answer.expand(size),
        is_prompt.expand(size),
        sample,
        seed=seed,
        step=step,
        iteration=iteration,
        committed_at_BL=committed_at,
    )


def look_up(views: Views) -> Tensor:
    """log p of each view's tokens in the table; no number outside of the answer."""
    logp = torch.full(views.is_masked_KBL.shape, math.nan, dtype=torch.float64)
    logp[:, :, 2:-1] = LOGP[number(views.is_masked_KBL[:, :, 2:-1])]
    return logp


def score(views: Views) -> Tensor:
    """Token scores [B, N]."""
    scores = token_scores(views, look_up(views))
    assert not scores[:, :2].any()
    assert not scores[:, -1].any()
    return scores[:, 2:-1]


def in_context(t: float) -> Tensor:
    """The mean log p [N] of each token, itself masked, where each of the others is with probability t."""
    out = torch.zeros(N, dtype=torch.float64)
    for k in range(N):
        for is_masked, logp in zip(SETS, LOGP, strict=True):
            if is_masked[k]:
                others = int(is_masked.sum()) - 1
                out[k] += t**others * (1 - t) ** (N - 1 - others) * logp[k]
    return out


def over_times(mean: Callable[[float], Tensor], least: float, greatest: float, parts: int = 100) -> Tensor:
    """The mean of a polynomial in t over a range, by midpoints."""
    times = [least + (greatest - least) * (part + 0.5) / parts for part in range(parts)]
    return torch.stack([mean(t) for t in times]).mean(0)


def exact_bound() -> float:
    """The mean over all orders of filling the answer in, one token at a time: no noise levels, no weights."""
    total = 0.0
    for order in itertools.permutations(range(N)):
        is_masked = torch.ones(N, dtype=torch.bool)
        for place in order:
            total += float(LOGP[number(is_masked), place])
            is_masked[place] = False
    return total / math.factorial(N)


BOUND = exact_bound()


def fix_chance(monkeypatch: pytest.MonkeyPatch, level: float, uniforms: Tensor) -> None:
    """Put a level, and numbers [R, B, N] for the answer, in the place of the random ones."""

    def levels(self: Any, count: int) -> Tensor:
        return torch.full((count, len(self.sample_B)), level, dtype=torch.float64)

    def fixed(self: Any, purpose: str, is_drawn: Tensor, count: int) -> Tensor:
        out = torch.ones(count, *is_drawn.shape, dtype=torch.float64)
        out[:, :, 2:-1] = uniforms
        return out

    monkeypatch.setattr(likelihood._Chance, "levels", levels)
    monkeypatch.setattr(likelihood._Chance, "uniforms", fixed)


def below(is_masked: Tensor) -> Tensor:
    """Uniform numbers that mask just this set, at every t in between."""
    return torch.where(is_masked, 0.0, 1 - 1e-9).double()


def probability(is_masked: Tensor, t: float) -> Tensor:
    count = is_masked.sum(-1)
    return t**count * (1 - t) ** (N - count)


# --- the mean of each estimator, counted out


@pytest.mark.parametrize("level", [0.0, 0.3, 0.75])
@pytest.mark.parametrize("name", ["coupled", "coupled_normalised", "decoupled"])
def test_the_mean_over_all_masks_of_a_pair_is_the_mean_over_contexts(
    monkeypatch: pytest.MonkeyPatch, name: str, level: float
) -> None:
    t = 0.2 + 0.6 * level
    if name == "decoupled":
        first, second = SETS.repeat_interleave(len(SETS), 0), SETS.repeat(len(SETS), 1)
        chance = probability(first, t) * probability(second, 1 - t)
        uniforms = torch.stack([below(first), below(second)])
    else:
        chance, uniforms = probability(SETS, t), below(SETS)[None]
    fix_chance(monkeypatch, level, uniforms)
    mean = (score(draw(name, torch.arange(len(chance)))) * chance[:, None]).sum(0)
    full = LOGP[-1]
    if name == "coupled_normalised":  # of a pair only the view that masks the token counts, once
        expected = (full + t * in_context(t) + (1 - t) * in_context(1 - t)) / 2
    else:
        expected = (full + in_context(t) + in_context(1 - t)) / 2
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=0)  # weights are float32


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_mean_over_all_masks_of_elbo_is_the_mean_over_contexts(
    monkeypatch: pytest.MonkeyPatch, level: float
) -> None:
    t = 0.001 + 0.999 * level
    fix_chance(monkeypatch, level, below(SETS)[None])
    mean = (score(draw("elbo", torch.arange(len(SETS)))) * probability(SETS, t)[:, None]).sum(0)
    torch.testing.assert_close(mean, in_context(t), atol=1e-6, rtol=0)


def test_the_mean_over_all_counts_and_orders_of_espo_is_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = torch.tensor(list(itertools.permutations(range(N)))).double() / N
    totals = []
    for masked in range(N + 1):
        fix_chance(monkeypatch, (masked + 0.5) / (N + 1), orders[None])
        views = draw("espo", torch.arange(len(orders)))
        assert set(views.is_masked_KBL[0, :, 2:-1].sum(-1).tolist()) == {masked}
        totals.append(score(views).sum(1).mean())
    assert torch.stack(totals).mean().item() == pytest.approx(BOUND, abs=1e-6)


def test_the_mean_over_contexts_of_all_times_is_the_bound() -> None:
    """So the test of elbo above is one of the bound."""
    assert over_times(in_context, 0, 1).sum().item() == pytest.approx(BOUND, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("coupled", {}),
        ("coupled", {"pairs": 2}),
        ("coupled_normalised", {}),
        ("decoupled", {}),
        ("elbo", {"t_min": 0.1, "samples": 2}),
        ("espo", {}),
        ("espo", {"samples": 2}),
    ],
)
def test_scores_of_drawn_masks_average_to_the_exact_mean(name: str, options: dict[str, Any]) -> None:
    scores = score(draw(name, torch.arange(1500), seed=3, **options)).sum(1)
    error = scores.std() / math.sqrt(len(scores))
    pairs = options.get("pairs", 1)
    if name == "elbo":
        expected = over_times(in_context, 0.1, 1).sum()
    elif name == "espo":
        expected = torch.tensor(BOUND)
    elif name == "coupled_normalised":
        expected = (LOGP[-1] + 2 * over_times(lambda t: t * in_context(t), 0.2, 0.8)).sum() / 2
    else:
        expected = (LOGP[-1] + 2 * pairs * over_times(in_context, 0.2, 0.8)).sum() / (pairs + 1)
    assert abs(scores.mean() - expected) < 4 * error
    assert error < 0.03 * abs(expected)


def test_mean_field_scores_every_token_with_the_whole_answer_masked() -> None:
    torch.testing.assert_close(score(draw("mean_field", torch.arange(2))), LOGP[-1].expand(2, -1))


def test_left_to_right_is_the_chain_rule() -> None:
    expected = []
    for k in range(N):
        is_masked = torch.arange(N) >= k
        expected.append(LOGP[number(is_masked), k])
    torch.testing.assert_close(score(draw("left_to_right", torch.tensor([4])))[0], torch.stack(expected))


# --- the theorem of the paper's appendix A.4


def moments(logp: Callable[[Tensor], Tensor], times: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of g, variance of (g + ĝ)/2 of a pair, variance of g; each [N], over equally likely times and all masks.

    g = [k ∈ M] ℓ_k(M)/t, and ĝ the same of the complement at 1 - t.
    """
    mean, second, paired = torch.zeros(3, N, dtype=torch.float64)
    for t in times:
        for is_masked in SETS:
            chance = probability(is_masked, t) / len(times)
            g = torch.where(is_masked, logp(is_masked) / t, 0)
            partner = torch.where(~is_masked, logp(~is_masked) / (1 - t), 0)
            mean = mean + chance * g
            second = second + chance * g.square()
            paired = paired + chance * ((g + partner) / 2).square()
    return mean, paired - mean.square(), second - mean.square()


@pytest.mark.parametrize("pairs", [1, 3])
def test_pairs_save_exactly_the_variance_that_the_theorem_says(pairs: int) -> None:
    mean, coupled, independent = moments(lambda is_masked: LOGP[number(is_masked)], [0.2, 0.35, 0.5, 0.65, 0.8])
    gap = independent / (2 * pairs) - coupled / pairs
    torch.testing.assert_close(gap, mean.square() / (2 * pairs))
    assert (mean.square() > 0.01).all()


def test_the_pairs_of_the_estimator_have_the_variance_of_the_theorem(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0.2, 0.35, 0.5, 0.65, 0.8]
    first = torch.zeros(N, dtype=torch.float64)
    second = torch.zeros(N, dtype=torch.float64)
    for t in times:
        fix_chance(monkeypatch, (t - 0.2) / 0.6, below(SETS)[None])
        views = draw("coupled", torch.arange(len(SETS)))
        pair = score(views) - LOGP[-1] / 2  # without the full mask; (g + ĝ)/2, as the paper divides by pairs + 1 = 2
        chance = probability(SETS, t)[:, None] / len(times)
        first, second = first + (chance * pair).sum(0), second + (chance * pair.square()).sum(0)
    mean, coupled, _ = moments(lambda is_masked: LOGP[number(is_masked)], times)
    torch.testing.assert_close(first, mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(second - first.square(), coupled, atol=1e-4, rtol=1e-4)


# --- masks


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=4),
    st.sampled_from(ALL),
    st.integers(1, 3),
    st.integers(0, 9),
)
def test_masks_keep_their_rules_for_every_shape_of_batch(
    shapes: list[tuple[int, int, int]], name: str, count: int, step: int
) -> None:
    width = max(sum(shape) for shape in shapes) or 1
    rows = [row(prompt, answer, width - prompt - answer) for prompt, answer, _ in shapes]
    is_answer, is_prompt = (torch.stack(kind) for kind in zip(*rows, strict=True))
    options: dict[str, Any] = {}
    if "coupled" in name:
        options = {"pairs": count}
    elif name in ("elbo", "espo"):
        options = {"samples": count}
    estimator = Estimator(name=name, **options)
    committed_at = torch.arange(width).flip(0).expand_as(is_answer) // count
    views = draw_views(
        estimator,
        is_answer,
        is_prompt,
        torch.arange(len(rows)) + 7,
        seed=1,
        step=step,
        iteration=0,
        committed_at_BL=committed_at,
    )
    masked, weight = views.is_masked_KBL, views.weight_KBL
    assert not (masked & is_prompt).any()
    assert (masked | is_answer | is_prompt).all()  # what is behind the answer is masked
    assert not (weight > 0)[~(masked & is_answer)].any()
    assert (weight >= 0).all()
    assert weight.isfinite().all()
    assert len(masked) == len(weight) == len(views.draw_K) == len(views.rescale_K)
    assert len(masked) == num_views(estimator, is_answer, committed_at_BL=committed_at)
    if name in ("coupled", "coupled_normalised"):
        assert (masked[0] | is_prompt).all()
        first, second = masked[1::2] & is_answer, masked[2::2] & is_answer
        assert ((first | second) == is_answer).all()
        assert not (first & second).any()
    if name == "espo":
        first, second = masked[0::2] & is_answer, masked[1::2] & is_answer
        assert ((first | second) == is_answer).all()
        assert not (first & second).any()
    if name in ("left_to_right", "trajectory", "mean_field"):
        assert (weight.sum(0) == is_answer).all()  # each token scored once
    if name == "coupled_normalised":
        torch.testing.assert_close(weight.sum(0), is_answer.float())


def test_scale_factors_are_those_of_the_paper() -> None:
    total = draw("coupled", torch.arange(2000)).weight_KBL.sum(0)[:, 2:-1]
    assert total.min() >= 1.125 - 1e-6
    assert total.max() <= 3 + 1e-6
    assert total.mean().item() == pytest.approx(1.5, abs=0.01)
    decoupled = draw("decoupled", torch.arange(2000)).weight_KBL.sum(0)[:, 2:-1]
    assert decoupled.min().item() == 0.5  # in neither mask of the pair
    assert decoupled.mean().item() == pytest.approx(1.5, abs=0.03)


def test_the_extreme_scale_factors_are_reached_at_the_ends_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_chance(monkeypatch, 0.0, below(torch.tensor([[True, False, False, False, False]]))[None])
    total = draw("coupled", torch.arange(1)).weight_KBL.sum(0)[0, 2:-1]
    torch.testing.assert_close(total, torch.tensor([3, 1.125, 1.125, 1.125, 1.125]))


def test_neighbouring_answers_and_draws_have_evenly_spread_times() -> None:
    """With the answer's whole length masked at t, the share that is masked tells t."""
    is_answer = torch.ones(8, 2000, dtype=torch.bool)
    views = draw_views(
        Estimator(name="elbo", samples=4),
        is_answer,
        ~is_answer,
        torch.arange(8) + 500,
        seed=0,
        step=3,
        iteration=1,
    )
    share = views.is_masked_KBL.float().mean(2)  # [draws, answers]
    for times in share.T:  # the four draws of an answer lie a quarter apart
        assert (times.sort().values.diff() - 0.25).abs().max() < 0.06
    gaps = share[0].sort().values.diff()
    assert gaps.max() < 0.3  # eight independent ones would leave more in half of all cases
    assert gaps.min() > 0.03


def test_levels_do_not_lose_their_digits_for_large_sample_numbers() -> None:
    first = draw("espo", torch.arange(1000) + 10**9, samples=1)
    counts = first.is_masked_KBL[0, :, 2:-1].sum(1).bincount(minlength=N + 1)
    assert counts.min() > 1000 / (N + 1) - 5
    assert counts.max() < 1000 / (N + 1) + 5


def test_masked_shares_follow_the_time_of_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        likelihood._Chance,
        "levels",
        lambda self, count: torch.full((count, len(self.sample_B)), 0.25, dtype=torch.float64),
    )
    views = draw("coupled", torch.arange(3000))
    share = views.is_masked_KBL[1, :, 2:-1].float()
    assert share.mean().item() == pytest.approx(0.35, abs=0.015)
    assert share.mean(0).sub(0.35).abs().max() < 0.03
    assert torch.corrcoef(share.T).fill_diagonal_(0).abs().max() < 0.06  # tokens are masked one by one


def test_prompt_masks_are_fresh_in_each_draw_and_leave_the_answer_masked() -> None:
    is_answer, is_prompt = row(400, 3, 1)
    estimator = Estimator(name="mean_field", prompt_mask=0.15, samples=2)
    views = draw_views(estimator, is_answer[None], is_prompt[None], torch.tensor([5]), seed=0, step=0, iteration=0)
    prompts = views.is_masked_KBL[:, 0, :400]
    assert prompts.float().mean().item() == pytest.approx(0.15, abs=0.04)
    assert (prompts[0] != prompts[1]).any()
    assert views.is_masked_KBL[:, 0, 400:].all()
    assert views.weight_KBL[:, 0].sum(0).tolist() == [0.0] * 400 + [1.0] * 3 + [0.0]


@pytest.mark.parametrize("name", ALL)
def test_views_of_an_answer_depend_on_no_other_answer_nor_on_padding(name: str) -> None:
    options: dict[str, Any] = {"prompt_mask": 0.3, "samples": 2} if name == "mean_field" else {}
    estimator = Estimator(name=name, **options)
    shapes = [(3, 6, 4), (1, 9, 0), (2, 2, 1)]

    def views_of(indices: list[int], width: int) -> Views:
        rows = [row(shapes[i][0], shapes[i][1], width - sum(shapes[i][:2])) for i in indices]
        is_answer, is_prompt = (torch.stack(kind) for kind in zip(*rows, strict=True))
        committed_at = torch.arange(width).expand_as(is_answer)
        samples = torch.tensor(indices) + 40
        return draw_views(
            estimator,
            is_answer,
            is_prompt,
            samples,
            seed=2,
            step=5,
            iteration=1,
            committed_at_BL=committed_at,
        )

    together = views_of([2, 0, 1], 20)
    for place, index in enumerate([2, 0, 1]):
        width = sum(shapes[index])
        alone = views_of([index], width)
        count = len(alone.draw_K)
        assert torch.equal(together.is_masked_KBL[:count, place, :width], alone.is_masked_KBL[:, 0])
        assert torch.equal(together.weight_KBL[:count, place, :width], alone.weight_KBL[:, 0])
        assert not together.weight_KBL[count:, place].any()


@pytest.mark.parametrize("name", ["coupled", "decoupled", "elbo", "espo"])
def test_masks_belong_to_seed_step_iteration_and_sample(name: str) -> None:
    def masks(sample: int = 0, **indices: int) -> Tensor:
        is_answer = torch.ones(1, 64, dtype=torch.bool)
        where: dict[str, Any] = {"seed": 0, "step": 0, "iteration": 0, **indices}
        sample_B = torch.tensor([sample])
        return draw_views(Estimator(name=name), is_answer, ~is_answer, sample_B, **where).is_masked_KBL

    assert torch.equal(masks(), masks())
    for changed in (masks(sample=1), masks(seed=1), masks(step=1), masks(iteration=1)):
        assert not torch.equal(changed, masks())


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first = draw("coupled", torch.arange(3))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = draw("coupled", torch.arange(3))
    assert torch.equal(first.is_masked_KBL, second.is_masked_KBL)
    assert torch.equal(torch.get_rng_state(), state)


# --- trajectories


def test_a_trajectory_from_left_to_right_is_scored_as_left_to_right() -> None:
    one, other = draw("trajectory", torch.arange(2)), draw("left_to_right", torch.arange(2))
    assert torch.equal(one.is_masked_KBL, other.is_masked_KBL)
    assert torch.equal(one.weight_KBL, other.weight_KBL)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(1, 3))
def test_a_view_of_a_trajectory_shows_what_earlier_groups_of_steps_committed(steps: list[int], shrink: int) -> None:
    committed_at = torch.tensor([[-1, *steps, 99, -1]])
    is_answer, is_prompt = row(1, len(steps), 2)
    views = draw_views(
        Estimator(name="trajectory", shrink=shrink),
        is_answer[None],
        is_prompt[None],
        torch.tensor([0]),
        seed=0,
        step=0,
        iteration=0,
        committed_at_BL=committed_at,
    )
    own = sorted(set(steps))
    groups = [own[start : start + shrink] for start in range(0, len(own), shrink)]
    assert len(views.draw_K) == len(groups)
    for is_masked, weight, group in zip(views.is_masked_KBL, views.weight_KBL, groups, strict=True):
        assert is_masked[0].tolist() == [False, *(step >= group[0] for step in steps), True, True]
        assert weight[0].tolist() == [0.0, *(float(step in group) for step in steps), 0.0, 0.0]


@pytest.mark.parametrize("steps", [(0, 0, 1, 2, 2), (3, 1, 2, 0, 4), (7, 7, 7, 7, 7)])
def test_a_trajectory_scores_each_token_with_what_its_step_found_masked(steps: tuple[int, ...]) -> None:
    is_answer, is_prompt = row(2, N, 1)
    views = draw_views(
        Estimator(name="trajectory"),
        is_answer[None],
        is_prompt[None],
        torch.tensor([0]),
        seed=0,
        step=0,
        iteration=0,
        committed_at_BL=torch.tensor([[0, 0, *steps, 0]]),
    )
    at = torch.tensor(steps)
    expected = torch.stack([LOGP[number(at >= at[k]), k] for k in range(N)])
    torch.testing.assert_close(score(views)[0], expected)


def test_a_token_that_no_step_committed_is_refused() -> None:
    is_answer, is_prompt = row(1, 3, 0)
    arguments: dict[str, Any] = {"seed": 0, "step": 0, "iteration": 0}
    with pytest.raises(TrajectoryError, match="2 of the 3 tokens of answer 17 were committed by no step") as error:
        draw_views(
            Estimator(name="trajectory"),
            is_answer[None],
            is_prompt[None],
            torch.tensor([17]),
            committed_at_BL=torch.tensor([[-1, -1, 4, -1]]),
            **arguments,
        )
    assert "count tokens that were given to the prompt, or choose left_to_right or coupled" in str(error.value)
    with pytest.raises(TrajectoryError, match="no steps were given; keep the rollouts' trajectories"):
        draw_views(Estimator(name="trajectory"), is_answer[None], is_prompt[None], torch.tensor([17]), **arguments)


# --- scores and spread


def test_a_sequence_score_is_the_sum_of_its_tokens_scores() -> None:
    views = draw("espo", torch.arange(4), samples=2)
    is_answer = row(2, N, 1)[0].expand(4, -1)
    torch.testing.assert_close(sequence_scores(views, look_up(views), is_answer), score(views).sum(1))


def test_what_is_not_scored_has_no_gradient_whatever_it_holds() -> None:
    views = draw("coupled", torch.arange(2))
    logp = look_up(views).masked_fill(~views.is_masked_KBL, -math.inf).requires_grad_()
    token_scores(views, logp).sum().backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, views.weight_KBL.double())


def test_an_empty_answer_scores_nothing() -> None:
    is_answer = torch.zeros(1, 3, dtype=torch.bool)
    for name in ALL:
        views = draw_views(
            Estimator(name=name),
            is_answer,
            ~is_answer,
            torch.tensor([0]),
            seed=0,
            step=0,
            iteration=0,
            committed_at_BL=torch.full((1, 3), -1),
        )
        logp = torch.zeros(views.weight_KBL.shape)
        assert sequence_scores(views, logp, is_answer).tolist() == [0.0]
        assert spread(views, logp, is_answer).isnan().all()


def constant(views: Views, full: float, partial: float) -> Tensor:
    logp = torch.full(views.weight_KBL.shape, partial, dtype=torch.float64)
    logp[0] = full
    return logp


def test_the_spread_is_the_deviation_of_whole_scores_per_token() -> None:
    is_answer = row(2, N, 1)[0].expand(1, -1)
    sample = torch.tensor([0])
    views = draw("coupled_normalised", sample)
    assert spread(views, constant(views, -2, -1), is_answer).item() == pytest.approx(1 / math.sqrt(2))
    assert spread(views, constant(views, -2, -2), is_answer).item() == pytest.approx(0)
    views = draw("coupled_normalised", sample, pairs=3)
    assert spread(views, constant(views, -2, -1), is_answer).item() == pytest.approx(0.5)  # of -2, -1, -1, -1
    views = draw("coupled", sample, t_min=0.5, t_max=0.5)  # a whole score is 1.5 log-probabilities
    assert spread(views, constant(views, -2, -1), is_answer).item() == pytest.approx(1.5 / math.sqrt(2))
    views = draw("elbo", sample, t_min=1.0, t_max=1.0, samples=2)
    assert spread(views, constant(views, -2, -1), is_answer).item() == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("name", ["mean_field", "elbo", "espo", "left_to_right", "trajectory"])
def test_one_draw_has_no_spread(name: str) -> None:
    views = draw(name, torch.arange(2))
    is_answer = row(2, N, 1)[0].expand(2, -1)
    assert spread(views, look_up(views), is_answer).isnan().all()


@pytest.mark.parametrize("name", ["coupled", "decoupled", "elbo", "espo"])
def test_the_draws_that_the_spread_compares_are_whole_scores_on_average(name: str) -> None:
    options = {"elbo": {"samples": 3, "t_min": 0.2}, "espo": {"samples": 3}}.get(name, {"pairs": 2})
    views = draw(name, torch.arange(2000), **options)
    part = (views.weight_KBL * views.rescale_K[:, None, None])[:, :, 2:-1].mean((1, 2))
    whole = part.new_zeros(3).index_add(0, views.draw_K, part)
    total = views.weight_KBL.sum(0)[:, 2:-1].mean()
    torch.testing.assert_close(whole, total.expand(3), atol=0.03, rtol=0)


# --- settings


def refusal(**options: Any) -> str:
    """The message that refuses an estimator. The options are put in behind the type check of the tests, which would
    speak first."""
    estimator = Estimator()
    for key, value in options.items():
        object.__setattr__(estimator, key, value)
    with pytest.raises(SettingsError) as error:
        estimator.__post_init__()
    return str(error.value)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    assert "'cuopled' is not known; did you mean coupled" in refusal(name="cuopled")
    assert "'tokens' is not known; did you mean token?" in refusal(level="tokens")


@pytest.mark.parametrize("name", ["pairs", "samples", "shrink"])
def test_counts_below_one_are_refused(name: str) -> None:
    assert refusal(**{name: 0}) == f"{name}=0 is not a count; it must be at least 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_min": 0.0, "t_max": 1.0}, "0 < t_min <= t_max <= 1, such as 0.2 and 0.8"),
        ({"t_min": 0.6, "t_max": 0.4}, "are no range of mask probabilities"),
        ({"name": "elbo", "t_max": 1.5}, "such as 0.001 and 1"),
        ({"t_min": 0.1}, "do not lie symmetrically about one half"),
        ({"t_min": 0.1}, "set t_max=0.9, or t_min=0.2"),
        ({"name": "decoupled", "t_max": 0.9}, "set t_max=0.8, or t_min=0.1"),
        ({"samples": 2}, "samples=2 has no effect with the estimator 'coupled'; leave it out, or choose mean_field or"),
        ({"name": "espo", "t_min": 0.2}, "t_min=0.2 has no effect with the estimator 'espo'"),
        ({"name": "left_to_right", "pairs": 2}, "choose coupled or coupled_normalised or decoupled"),
        ({"name": "coupled", "shrink": 8}, "shrink=8 has no effect with the estimator 'coupled'"),
        ({"name": "elbo", "prompt_mask": 0.15}, "prompt_mask=0.15 has no effect with the estimator 'elbo'"),
        ({"name": "mean_field", "prompt_mask": 1.0}, "it lies in 0 to below 1, such as 0.15"),
        ({"name": "mean_field", "samples": 4}, "all alike without a prompt_mask; set samples=1, or prompt_mask=0.15"),
    ],
)
def test_contradictions_are_refused_with_what_to_do(options: dict[str, Any], message: str) -> None:
    assert message in refusal(**options)


@pytest.mark.parametrize("name", ALL)
def test_each_estimator_has_defaults_that_work_and_a_level_that_can_be_set(name: Any) -> None:
    own = "sequence" if name in ("elbo", "espo") else "token"
    assert Estimator(name=name).ratio_level == own
    assert Estimator(name=name, level="sequence").ratio_level == "sequence"
    assert Estimator(name=name, level="token").ratio_level == "token"
