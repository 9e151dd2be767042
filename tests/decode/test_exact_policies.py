"""`mode="exact"` against a slow version that decodes one row at a time in plain Python."""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from unmask.decode.canvas import Canvas
from unmask.decode.loop import denoise
from unmask.decode.policy import (
    gumbel,
    propose,
    rank_within_rows,
    take_above,
    take_best,
    take_bounded,
    take_factor,
    take_frechet,
)
from unmask.decode.settings import ADAPTIVE_POLICIES, POLICIES, DecodeSettings
from unmask.diffusion.schedule import split_steps
from unmask.seeds import derive_seed

from doubles import RowDenoiser, fixed_scores, mixed_scores, tiny_config

VOCABULARY, MASK, END = 13, 12, 2
FULL = tiny_config(family="dream", attention="full", mask_id=MASK, vocab_size=VOCABULARY)
BLOCK = tiny_config(attention="block", block_length=4, mask_id=MASK, vocab_size=VOCABULARY)
CAUSAL = tiny_config(vocab_size=VOCABULARY)
RANKED = ("maskgit_plus", "topk_margin", "entropy")


# --- the slow version ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What the model says about one position."""

    token: int
    confidence: float
    entropy: float
    score: float
    raw_confidence: float


def slow_decode(scores, row, settings, *, config, sample=0, end_ids=(), suppressed=()):
    """Decode one row and return, step by step, {position: Answer} of what was committed."""
    ids, history, step = list(row), [], 0
    forbidden = {*suppressed, *([] if config.mask_id is None else [config.mask_id])}

    def ask(position):
        shown = [(config.mask_id or 0) if token is None else token for token in ids]
        logits = scores(shown, position).tolist()
        return slow_answer(logits, settings, forbidden, stream(settings.seed, "content", sample, step)[position])

    for block, steps in slow_blocks(row, settings, config):
        for index in range(10_000):
            stop = first_end(ids, row, end_ids)
            places = [place for place in block if ids[place] is None and place < stop]
            if not places:
                break
            order = stream(settings.seed, "order", sample, step)
            taken = slow_step(places, ask, settings, len(block), steps, index, order)
            for place, answer in taken.items():
                ids[place] = answer.token
            history.append(taken)
            step += 1
    return history


@cache
def stream(seed, purpose, sample, step):
    """One number per position, in a stream that is named by its purpose, the sample and the step."""
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose, sample, step))
    return torch.rand(64, generator=generator).tolist()


def first_end(ids, row, end_ids):
    """An end token that the caller gave ends nothing; one that was committed ends the answer."""
    ends = [i for i, token in enumerate(ids) if token in end_ids and row[i] is None]
    return min(ends, default=len(ids))


def slow_blocks(row, settings, config):
    """The open positions of each block, left to right, and how many steps the block has."""
    open_places = [i for i, token in enumerate(row) if token is None]
    length = {"causal": 1, "block": settings.block_length or config.block_length, "full": settings.block_length}
    length = length[config.attention] or len(row)
    origin = 0 if config.attention == "block" else open_places[0]  # block attention counts from the row's first token
    blocks = {}
    for place in open_places:
        blocks.setdefault((place - origin) // length, []).append(place)
    steps = len(open_places) if settings.steps is None else settings.steps
    if settings.policy != "origin":
        steps = min(steps, len(open_places))
    return list(zip(blocks.values(), split_steps([len(block) for block in blocks.values()], steps), strict=True))


def slow_step(places, ask, settings, size, steps, index, order):
    """Which of the open places a step commits, and to what."""
    counted = size // steps + (1 if index < size % steps else 0)
    steps_left = max(1, steps - index)
    if settings.policy == "origin":
        return {place: ask(place) for place in places if order[place] < 1 / steps_left}
    if settings.policy == "left_to_right":
        return {place: ask(place) for place in sorted(places)[:counted]}
    if settings.policy == "random":
        return {place: ask(place) for place in sorted(places, key=lambda place: -order[place])[:counted]}

    answers = {place: ask(place) for place in places}
    rank = {place: answer.score for place, answer in answers.items()}
    if settings.policy_temperature > 0:
        noise = {place: -math.log(-math.log(order[place])) for place in places}
        rank = {place: rank[place] / settings.policy_temperature + noise[place] for place in places}
    best = sorted(places, key=lambda place: (-rank[place], -answers[place].raw_confidence, place))
    if settings.policy in RANKED:
        return {place: answers[place] for place in best[:counted]}

    at_least = 1 if settings.steps is None else math.ceil(len(places) / steps_left)
    enough, together, entropies = 0, 0.0, 0.0
    for n, place in enumerate(best, 1):
        confidence = answers[place].confidence
        together += confidence
        if settings.policy == "threshold":
            enough += confidence >= (settings.threshold or 0.9)
        elif settings.policy == "frechet":
            if together - (n - 1) - (1 - confidence) > (0.2 if settings.frechet is None else settings.frechet):
                enough = n
        elif settings.policy == "entropy_bound":
            if entropies <= (0.15 if settings.entropy_bound is None else settings.entropy_bound):
                enough = n
            entropies += answers[place].entropy
        elif (n + 1) * (1 - confidence) < (settings.factor or 1.0):
            enough = n
    return {place: answers[place] for place in best[: max(enough, at_least)]}


def slow_answer(logits, settings, forbidden, uniform):
    raw = softmax([-math.inf if token in forbidden else score for token, score in enumerate(logits)])
    shaped = slow_shape(raw, settings)
    greedy = settings.temperature == 0 or settings.temperature_role == "order"
    token = raw.index(max(raw)) if greedy else slow_draw(shaped, uniform)
    ordering = raw if settings.temperature_role == "content" else shaped
    best, second = sorted(ordering, reverse=True)[:2]
    entropy = -sum(p * math.log(p) for p in ordering if p > 0)
    scores = {"entropy": -entropy, "entropy_bound": -entropy, "topk_margin": best - second}
    score = scores.get(settings.policy, ordering[token])
    return Answer(token, ordering[token], entropy, score, raw[token])


def softmax(scores):
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def slow_shape(raw, settings):
    """Temperature, then the nucleus, then the best k; what ties with the last one kept stays."""
    p = raw
    if settings.temperature > 0:
        p = softmax([math.log(x) / settings.temperature if x > 0 else -math.inf for x in p])
    if settings.top_p is not None and settings.top_p < 1:
        total, smallest = 0.0, max(p)
        for x in sorted(p, reverse=True):
            if total >= settings.top_p:
                break
            total, smallest = total + x, x
        p = [x if x >= smallest else 0.0 for x in p]
    if settings.top_k is not None:
        kth = sorted(p, reverse=True)[: settings.top_k][-1]
        p = [x if x >= kth else 0.0 for x in p]
    return [x / sum(p) for x in p]


def slow_draw(p, uniform):
    total = 0.0
    for token, x in enumerate(p):
        total += x
        if total > uniform * sum(p):
            return token
    raise AssertionError("a uniform number lies below 1")


# --- the comparison -----------------------------------------------------------------------------------------------


def run(denoiser, rows, settings, *, samples=None, **options):
    canvas = Canvas.from_rows(rows, mask_id=denoiser.config.mask_id, align=denoiser.config.block_length or 1)
    return canvas, list(denoise(denoiser, canvas, settings, samples=samples, **options))


def of_row(events, row):
    """One row's steps, up to its last one, as {position: Commit}."""
    last = max(event.step for event in events if row in event.active)
    return [{c.position: c for c in event.commits if c.row == row} for event in events if event.step <= last]


def compare(rows, settings, *, config=FULL, seed=0, scale=1.0, end_ids=(), suppressed=()):
    scores = mixed_scores(VOCABULARY, seed=seed, scale=scale)
    samples = [row + 3 for row in range(len(rows))]
    denoiser = RowDenoiser(config, scores)
    canvas, events = run(denoiser, rows, settings, samples=samples, end_ids=end_ids, suppressed_ids=suppressed)
    for number, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        expected = slow_decode(
            scores, row, settings, config=config, sample=sample, end_ids=end_ids, suppressed=suppressed
        )
        ours = of_row(events, number)
        assert [{p: c.token_id for p, c in step.items()} for step in ours] == [
            {p: answer.token for p, answer in step.items()} for step in expected
        ]
        for step, theirs in zip(ours, expected, strict=True):
            for position, commit in step.items():
                assert commit.confidence == pytest.approx(theirs[position].confidence, abs=1e-5)
                assert commit.entropy == pytest.approx(theirs[position].entropy, abs=1e-4)
        assert [token for step in expected for token in step] or None not in row
    return canvas, events


PROMPTS = [[5, 9, 11, *[None] * 6], [7, *[None] * 9]]
HOLES = [[1, None, None, 4, None, 6, 7, None, None, None, None], [None, None, 3, *[None] * 5, 10]]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("steps", [None, 3, 7, 40])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_policy_follows_the_slow_version(policy, steps, temperature):
    settings = DecodeSettings(policy=policy, steps=steps, temperature=temperature)
    compare(PROMPTS + HOLES, settings, seed=steps or 0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("block_length", "steps"), [(1, None), (2, 7), (3, None), (3, 4), (5, 5), (8, None), (64, 6)])
def test_blocks_follow_the_slow_version(policy, block_length, steps):
    settings = DecodeSettings(policy=policy, steps=steps, block_length=block_length, temperature=0.8)
    compare(PROMPTS + HOLES, settings, seed=block_length)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("config", "block_length"), [(BLOCK, None), (BLOCK, 4), (BLOCK, 2), (BLOCK, 1), (CAUSAL, None)]
)
def test_the_models_own_blocks_follow_the_slow_version(policy, config, block_length):
    compare(PROMPTS + HOLES, DecodeSettings(policy=policy, block_length=block_length, temperature=0.6), config=config)


@pytest.mark.parametrize("policy", [*RANKED, *ADAPTIVE_POLICIES])
@pytest.mark.parametrize("role", ["both", "content", "order"])
@pytest.mark.parametrize("shaping", [{}, {"top_p": 0.8}, {"top_k": 4}, {"top_p": 0.9, "top_k": 6}])
def test_the_temperature_acts_where_its_role_says(policy, role, shaping):
    settings = DecodeSettings(policy=policy, temperature=1.4, temperature_role=role, steps=6, **shaping)
    compare(PROMPTS, settings, seed=4)


@pytest.mark.parametrize("policy", POLICIES)
def test_top_p_and_top_k_move_the_order_of_a_greedy_run_too(policy):
    compare(PROMPTS, DecodeSettings(policy=policy, top_p=0.7, top_k=5), seed=5)


@pytest.mark.parametrize("policy", RANKED)
@pytest.mark.parametrize("policy_temperature", [0.05, 0.5, 3.0])
def test_policy_temperature_draws_positions_from_the_named_stream(policy, policy_temperature):
    for temperature in (0.0, 1.1):
        settings = DecodeSettings(
            policy=policy, policy_temperature=policy_temperature, temperature=temperature, steps=5, seed=9
        )
        compare(PROMPTS + HOLES, settings, seed=6)


@pytest.mark.parametrize("policy", POLICIES)
def test_early_stops_follow_the_slow_version(policy):
    stopped = 0
    for seed in range(5):
        settings = DecodeSettings(policy=policy, block_length=6, temperature=1.0, seed=seed)
        canvas, _ = compare(PROMPTS + HOLES, settings, seed=seed, end_ids=[END, 5, 9], suppressed=[3, 4])
        stopped += bool(canvas.is_masked_BL.any())
    assert stopped, "no run of five stopped before its end; the test shows nothing"


@st.composite
def cases(draw):
    """Any settings that go together, and any canvases."""
    policy = draw(st.sampled_from(POLICIES))
    temperature = draw(st.sampled_from([0.0, 0.5, 1.0, 1.5]))
    token = st.none() | st.none() | st.integers(0, VOCABULARY - 2)
    rows = draw(
        st.lists(st.lists(token, min_size=1, max_size=10).filter(lambda row: None in row), min_size=1, max_size=3)
    )
    block_length = draw(st.sampled_from([None, 2, 3, 7]))
    steps = draw(st.none() | st.integers(6, 15))
    settings = DecodeSettings(
        policy=policy,
        temperature=temperature,
        temperature_role=draw(st.sampled_from(["both", "content", "order"])) if temperature else "both",
        policy_temperature=draw(st.sampled_from([0.0, 0.3])) if policy in RANKED else 0.0,
        threshold=draw(st.sampled_from([None, 0.2, 0.5])) if policy == "threshold" else None,
        factor=draw(st.sampled_from([None, 0.5, 3.0])) if policy == "factor" else None,
        frechet=draw(st.sampled_from([None, 0.0, 0.6])) if policy == "frechet" else None,
        entropy_bound=draw(st.sampled_from([None, 0.0, 2.5])) if policy == "entropy_bound" else None,
        top_p=draw(st.sampled_from([None, 0.5, 0.9])),
        top_k=draw(st.sampled_from([None, 1, 5])),
        block_length=block_length,
        steps=steps,
        seed=draw(st.integers(0, 99)),
    )
    return rows, settings, draw(st.sampled_from([(), (END,), (END, 5, 6)])), draw(st.integers(0, 5))


@hypothesis_settings(derandomize=True, max_examples=60, deadline=None)
@given(cases())
def test_any_settings_follow_the_slow_version(case):
    rows, settings, end_ids, seed = case
    compare(rows, settings, end_ids=end_ids, seed=seed)


# --- budgets ------------------------------------------------------------------------------------------------------


def counts(events, row):
    return [len(step) for step in of_row(events, row)]


@pytest.mark.parametrize("policy", [*RANKED, "left_to_right", "random"])
def test_every_row_commits_exactly_its_own_budget(policy):
    rows = [[1, *[None] * 10], [1, 1, 1, 1, *[None] * 7], [*[1] * 8, *[None] * 3]]
    _, events = run(RowDenoiser(FULL, mixed_scores(VOCABULARY)), rows, DecodeSettings(policy=policy, steps=4))
    assert [counts(events, row) for row in range(3)] == [[3, 3, 2, 2], [2, 2, 2, 1], [1, 1, 1]]


@pytest.mark.parametrize("policy", [*RANKED, "left_to_right", "random"])
def test_blocks_share_the_steps_and_are_filled_one_after_another(policy):
    settings = DecodeSettings(policy=policy, steps=6, block_length=4)
    _, events = run(RowDenoiser(FULL, mixed_scores(VOCABULARY)), [[1, 2, *[None] * 12]], settings)
    assert counts(events, 0) == [2, 2, 2, 2, 2, 2]
    assert [{(c.position - 2) // 4 for c in event.commits} for event in events] == [{0}, {0}, {1}, {1}, {2}, {2}]


@pytest.mark.parametrize("policy", [*RANKED, "left_to_right", "random", *ADAPTIVE_POLICIES])
def test_steps_beyond_the_masks_are_not_taken(policy):
    denoiser = RowDenoiser(FULL, fixed_scores(torch.zeros(9, VOCABULARY)))
    _, events = run(denoiser, [[1, None, None, None]], DecodeSettings(policy=policy, steps=200))
    assert counts(events, 0) == [1, 1, 1]
    assert denoiser.num_forwards == 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("steps", [2, 3, 9])
@pytest.mark.parametrize("block_length", [None, 6])
def test_no_policy_takes_more_steps_than_it_was_given(policy, steps, block_length):
    """Flat scores: nothing ever reaches a threshold or a factor."""
    denoiser = RowDenoiser(FULL, fixed_scores(torch.zeros(20, VOCABULARY)))
    settings = DecodeSettings(policy=policy, steps=steps, block_length=block_length)
    canvas, events = run(denoiser, [[1, *[None] * 11], [None, 2, *[None] * 9, 3]], settings)
    assert len(events) <= steps
    assert not canvas.is_masked_BL.any()


def test_small_holes_do_not_add_steps():
    """Blocks of one, one, four and two open positions in four steps."""
    row = [None, 5, 5, 5, None, 5, 5, 5, *[None] * 6]
    settings = DecodeSettings(steps=4, block_length=4)
    denoiser = RowDenoiser(FULL, mixed_scores(VOCABULARY))
    _, events = run(denoiser, [row], settings)
    assert len(events) == 4


def test_origin_commits_with_the_schedules_probability():
    """Step i of S commits each open position with probability 1 / (S - i), so each step takes 1/S of them all."""
    rows = [[None] * 50] * 40
    denoiser = RowDenoiser(FULL, fixed_scores(torch.zeros(50, VOCABULARY)), chunk=500)
    _, events = run(denoiser, rows, DecodeSettings(policy="origin", steps=5))
    shares = [len(event.commits) / 2000 for event in events]
    assert shares == pytest.approx([0.2] * 5, abs=0.04)  # 4.5 standard deviations
    assert len({tuple(counts(events, row)) for row in range(40)}) > 20, "rows draw for themselves"


def test_a_step_that_commits_nothing_asks_nothing():
    denoiser = RowDenoiser(FULL, fixed_scores(torch.zeros(9, VOCABULARY)))
    _, events = run(denoiser, [[1, None, None]], DecodeSettings(policy="origin", steps=60))
    empty = [event for event in events if not event.commits]
    assert len(empty) > 30
    assert all(event.num_forwards == 0 for event in empty)
    assert all(event.active == (0,) for event in empty), "the row waits; it has not left the run"
    assert denoiser.num_forwards == len(events) - len(empty)


# --- ties ---------------------------------------------------------------------------------------------------------


def committed_order(events, row=0):
    return [c.position for event in events for c in event.commits if c.row == row]


@pytest.mark.parametrize("policy", RANKED)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_equal_places_are_committed_from_the_left(policy, temperature):
    """Greedy tokens (the temperature acts on the order alone), and the same scores everywhere."""
    table = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)).expand(9, -1)
    role = "order" if temperature else "both"
    settings = DecodeSettings(policy=policy, temperature=temperature, temperature_role=role)
    _, events = run(RowDenoiser(FULL, fixed_scores(table)), [[1, *[None] * 8]], settings)
    assert committed_order(events) == list(range(1, 9))


@pytest.mark.parametrize("policy", RANKED)
def test_ties_of_a_cold_distribution_are_ordered_by_raw_confidence(policy):
    """At temperature 0.01 every place is certain; the untempered scores still tell them apart."""
    leads = [0.0, 5.0, 9.0, 4.0, 8.0, 9.0, 3.0]
    table = torch.zeros(len(leads), VOCABULARY)
    table[:, 7] = torch.tensor(leads)
    denoiser = RowDenoiser(FULL, fixed_scores(table))
    canvas, events = run(denoiser, [[1, *[None] * 6]], DecodeSettings(policy=policy, temperature=0.01))
    assert {c.confidence for event in events for c in event.commits} == {1.0}
    assert {c.entropy for event in events for c in event.commits} == {0.0}
    assert committed_order(events) == [2, 5, 4, 1, 3, 6]
    assert canvas.row_ids(0) == [1, 7, 7, 7, 7, 7, 7]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_ranks_are_by_score_then_tie_then_position_within_each_row(places):
    places = sorted(places, key=lambda place: place[0])
    rows, scores, ties = zip(*places, strict=True)
    expected = [0] * len(places)
    for row in set(rows):
        mine = [i for i in range(len(places)) if rows[i] == row]
        for rank, i in enumerate(sorted(mine, key=lambda i: (-scores[i], -ties[i], i))):
            expected[i] = rank
    rank_M = rank_within_rows(torch.tensor(rows), torch.tensor(scores).float(), torch.tensor(ties).float())
    assert rank_M.tolist() == expected


# --- drawing positions --------------------------------------------------------------------------------------------


def test_positions_are_drawn_without_replacement_from_the_softmax_of_their_scores():
    """First and second of three places, against the exact probabilities p_a and p_a · p_b / (1 - p_a)."""
    p = torch.tensor([0.6, 0.3, 0.1])
    trials = 30_000
    noise = gumbel(torch.rand(trials * 3, generator=torch.Generator().manual_seed(0)))
    rows = torch.arange(trials).repeat_interleave(3)
    score = p.log().repeat(trials).double() + noise
    rank = rank_within_rows(rows, score, score).view(trials, 3)
    order = rank.argsort(-1)[:, :2]
    for a in range(3):
        for b in range(3):
            if a != b:
                expected = float(p[a] * p[b] / (1 - p[a]))
                share = float(((order[:, 0] == a) & (order[:, 1] == b)).float().mean())
                assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / trials))


def test_gumbel_noise_is_finite_at_both_ends():
    assert bool(gumbel(torch.tensor([0.0, 1 - 2**-24, 1.0])).isfinite().all())


def test_a_high_policy_temperature_forgets_the_scores_and_a_low_one_obeys_them():
    scores = mixed_scores(VOCABULARY, seed=1)
    row = [1, *[None] * 10]

    def order(policy_temperature):
        settings = DecodeSettings(policy="maskgit_plus", policy_temperature=policy_temperature)
        return committed_order(run(RowDenoiser(FULL, scores), [row], settings)[1])

    assert order(1e-6) == order(0.0)
    assert order(1e6) != order(0.0)
    assert sorted(order(1e6)) == sorted(order(0.0))


# --- threshold and factor -----------------------------------------------------------------------------------------


def table_of_confidence(confidences):
    """Scores at which token 7 has these probabilities and token 8 the rest."""
    table = torch.full((len(confidences), VOCABULARY), -1e4)
    table[:, 7] = torch.tensor(confidences).log()
    table[:, 8] = (1 - torch.tensor(confidences)).log()
    return table


def test_threshold_commits_all_places_that_reach_it():
    table = table_of_confidence([0.5, 0.95, 0.6, 0.91, 0.89, 0.99])
    _, events = run(RowDenoiser(FULL, fixed_scores(table)), [[1, *[None] * 5]], DecodeSettings(policy="threshold"))
    assert [[c.position for c in event.commits] for event in events] == [[1, 3, 5], [4], [2]]


def test_a_confidence_equal_to_the_threshold_reaches_it():
    table = table_of_confidence([0.5] * 6)
    settings = DecodeSettings(policy="threshold", threshold=0.5)
    _, events = run(RowDenoiser(FULL, fixed_scores(table)), [[1, *[None] * 5]], settings)
    assert counts(events, 0) == [5]


def test_threshold_commits_at_least_one_place_per_step():
    denoiser = RowDenoiser(FULL, fixed_scores(torch.zeros(9, VOCABULARY)))
    _, events = run(denoiser, [[1, *[None] * 6], [1, 2, 3, *[None] * 4]], DecodeSettings(policy="threshold"))
    assert counts(events, 0) == [1] * 6
    assert counts(events, 1) == [1] * 4


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 9])
def test_threshold_is_done_within_the_steps_it_was_given(steps):
    denoiser = RowDenoiser(FULL, fixed_scores(torch.zeros(12, VOCABULARY)))
    canvas, events = run(denoiser, [[1, *[None] * 9]], DecodeSettings(policy="threshold", steps=steps))
    assert len(events) == steps
    assert not canvas.is_masked_BL.any()
    assert all(earlier >= later for earlier, later in pairwise(counts(events, 0)))


CONFIDENCES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12)


@given(CONFIDENCES, st.floats(0.01, 5))
def test_factor_takes_the_largest_n_that_satisfies_the_bound(confidences, factor):
    confidence_M = torch.tensor(confidences)
    rank_M = rank_within_rows(torch.zeros(len(confidences), dtype=torch.long), confidence_M, confidence_M)
    kept_M = take_factor(rank_M, confidence_M, factor=factor, at_least_M=torch.ones_like(rank_M))
    falling = sorted(confidence_M.tolist(), reverse=True)
    satisfied = [
        n for n, c in enumerate(falling, 1) if float((n + 1) * (1 - torch.tensor(c))) < float(torch.tensor(factor))
    ]
    assert satisfied == list(range(1, len(satisfied) + 1)), "the bound grows with n, so what satisfies it comes first"
    assert sorted(rank_M[kept_M].tolist()) == list(range(max(1, len(satisfied))))


@given(CONFIDENCES, st.floats(0.01, 5), st.floats(0.01, 5))
def test_a_larger_factor_and_a_lower_threshold_never_commit_less(confidences, one, other):
    confidence_M = torch.tensor(confidences)
    rank_M = rank_within_rows(torch.zeros(len(confidences), dtype=torch.long), confidence_M, confidence_M)
    least_M = torch.ones_like(rank_M)
    low, high = sorted((one, other))
    few, many = (take_factor(rank_M, confidence_M, factor=f, at_least_M=least_M) for f in (low, high))
    assert bool((many | ~few).all())
    many, few = (take_above(rank_M, confidence_M, threshold=t / 5, at_least_M=least_M) for t in (low, high))
    assert bool((many | ~few).all())


@given(CONFIDENCES, st.integers(1, 15))
def test_the_least_number_is_met_by_the_best_places(confidences, least):
    confidence_M = torch.tensor(confidences)
    rank_M = rank_within_rows(torch.zeros(len(confidences), dtype=torch.long), confidence_M, confidence_M)
    least_M = torch.full_like(rank_M, least)
    best = set(range(min(least, len(confidences))))
    assert best == set(rank_M[take_best(rank_M, least_M)].tolist())
    rows_M = torch.zeros_like(rank_M)
    for kept_M in (
        take_frechet(rank_M, rows_M, confidence_M, delta=0.2, at_least_M=least_M),
        take_bounded(rank_M, rows_M, 1 - confidence_M, bound=0.1, at_least_M=least_M),
        take_above(rank_M, confidence_M, threshold=0.9, at_least_M=least_M),
        take_factor(rank_M, confidence_M, factor=1.0, at_least_M=least_M),
    ):
        assert best <= set(rank_M[kept_M].tolist())


@given(st.integers(1, 12), st.floats(0.25, 1, width=32), st.floats(0, 0.9))
def test_frechet_is_the_factor_rule_where_all_are_equally_sure(count, confidence, delta):
    """n c - (n - 1) - (1 - c) = 1 - (n + 1)(1 - c)"""
    confidence_M, rows_M = torch.full((count,), confidence), torch.zeros(count, dtype=torch.long)
    rank_M, least_M = torch.arange(count), torch.ones(count, dtype=torch.long)
    bounds = [abs((n + 1) * (1 - confidence) - (1 - delta)) for n in range(1, count + 1)]
    assume(min(bounds) > 1e-5)  # one computes in float32, the other in float64
    expected_M = take_factor(rank_M, confidence_M, factor=1 - delta, at_least_M=least_M)
    assert torch.equal(take_frechet(rank_M, rows_M, confidence_M, delta=delta, at_least_M=least_M), expected_M)


@given(st.lists(CONFIDENCES, min_size=1, max_size=4), st.floats(0, 0.9))
def test_frechet_commits_what_factor_does_and_more(rows, delta):
    confidence_M = torch.tensor([c for row in rows for c in row])
    rows_M = torch.tensor([number for number, row in enumerate(rows) for _ in row])
    rank_M, least_M = rank_within_rows(rows_M, confidence_M, confidence_M), torch.ones_like(rows_M)
    few_M = take_factor(rank_M, confidence_M, factor=1 - delta - 1e-5, at_least_M=least_M)
    many_M = take_frechet(rank_M, rows_M, confidence_M, delta=delta, at_least_M=least_M)
    assert bool((many_M | ~few_M).all())


def test_the_entropy_bound_leaves_the_last_one_out_of_the_sum():
    entropy_M = torch.tensor([0.1, 0.05, 3.0, 0.02])
    rank_M, rows_M = torch.tensor([2, 1, 3, 0]), torch.tensor([0, 0, 0, 0])
    kept_M = take_bounded(rank_M, rows_M, entropy_M, bound=0.071, at_least_M=torch.ones_like(rows_M))
    assert kept_M.tolist() == [True, True, False, True]


def test_factor_one_commits_in_parallel_what_is_surely_the_joint_answer():
    """(n + 1)(1 - c) < 1: two places may go together above 2/3, three above 3/4."""
    for confidence, expected in ((0.6, 1), (0.7, 2), (0.76, 3), (0.81, 4)):
        table = table_of_confidence([confidence] * 9)
        settings = DecodeSettings(policy="factor", factor=1.0)
        _, events = run(RowDenoiser(FULL, fixed_scores(table)), [[1, *[None] * 8]], settings)
        assert counts(events, 0)[0] == expected


# --- what may not be committed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "shaping", [{}, {"temperature": 0.2, "top_p": 0.9}, {"temperature": 2.0}, {"temperature": 2.0, "top_k": 3}]
)
def test_mask_and_suppressed_ids_are_never_committed(policy, shaping):
    table = torch.randn(20, VOCABULARY, generator=torch.Generator().manual_seed(0))
    table[:, [MASK, 0, 5]] += 30
    denoiser = RowDenoiser(FULL, fixed_scores(table))
    settings = DecodeSettings(policy=policy, steps=5, **shaping)
    _, events = run(denoiser, [[1, *[None] * 15], [0, 5, None, None]], settings, suppressed_ids=[0, 5])
    commits = [c for event in events for c in event.commits]
    assert len(commits) == 17
    assert not {MASK, 0, 5} & {c.token_id for c in commits}
    assert all(0 < c.confidence <= 1 and math.isfinite(c.entropy) for c in commits)


def test_a_causal_model_needs_no_mask_id_and_may_answer_any_id():
    denoiser = RowDenoiser(CAUSAL, fixed_scores(torch.eye(VOCABULARY)))
    canvas, _ = run(denoiser, [[0, *[None] * 12]], DecodeSettings())
    assert canvas.row_ids(0) == list(range(13))


# --- early stop ---------------------------------------------------------------------------------------------------


def ending_at(end, *, length, order):
    """Token 7 everywhere but an end token at `end`; positions settle in `order`."""
    table = torch.zeros(length, VOCABULARY)
    table[:, 7] = 1.0
    table[end, 7], table[end, END] = 0.0, 1.0
    for rank, position in enumerate(order):
        table[position] *= 10 - rank
    return table


def test_nothing_behind_a_settled_end_is_asked_about_again():
    table = ending_at(4, length=10, order=[8, 4, 2, 1, 3, 5, 6, 7, 9])
    denoiser = RowDenoiser(FULL, fixed_scores(table))
    canvas, events = run(denoiser, [[1, *[None] * 9]], DecodeSettings(), end_ids=[END])
    assert committed_order(events) == [8, 4, 2, 1, 3]
    assert [[position for _, position in asked] for asked in denoiser.asked] == [
        list(range(1, 10)),
        [1, 2, 3, 4, 5, 6, 7, 9],
        [1, 2, 3],
        [1, 3],
        [3],
    ]
    assert canvas.row_ids(0) == [1, 7, 7, 7, END, None, None, None, 7, None]
    assert [event.finished for event in events] == [(), (), (), (), (0,)]


def test_an_end_token_ends_only_once_its_left_side_is_settled():
    table = ending_at(3, length=5, order=[3, 1, 2, 4])
    _, events = run(RowDenoiser(FULL, fixed_scores(table)), [[1, *[None] * 4]], DecodeSettings(), end_ids=[END])
    assert committed_order(events) == [3, 1, 2]
    assert events[0].finished == ()


def test_an_end_token_that_was_given_ends_nothing():
    denoiser = RowDenoiser(FULL, fixed_scores(torch.eye(VOCABULARY)[[7] * 6]))
    canvas, _ = run(denoiser, [[END, None, END, None, 4, None]], DecodeSettings(), end_ids=[END])
    assert canvas.row_ids(0) == [END, 7, END, 7, 4, 7]


def test_later_blocks_of_a_row_that_has_ended_are_not_begun():
    table = ending_at(2, length=13, order=[1, 2, 3, 4])
    denoiser = RowDenoiser(FULL, fixed_scores(table))
    settings = DecodeSettings(block_length=4)
    canvas, events = run(denoiser, [[1, *[None] * 12], [5, 6, 7, *[None] * 10]], settings, end_ids=[END])
    assert canvas.row_ids(0)[:3] == [1, 7, END]
    assert all(position < 5 for asked in denoiser.asked for row, position in asked if row == 0)
    assert [event.step for event in events if 0 in event.finished] == [1]
    assert all(0 not in event.active for event in events[2:])


def test_an_earlier_end_replaces_a_later_one():
    table = torch.zeros(6, VOCABULARY)
    table[:, 7] = torch.tensor([0.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    table[5, 7], table[2, 7] = 0.0, 0.0
    table[5, END], table[2, END] = 9.0, 8.0
    _, events = run(RowDenoiser(FULL, fixed_scores(table)), [[1, *[None] * 5]], DecodeSettings(), end_ids=[END])
    assert committed_order(events) == [5, 2, 1]


# --- private random numbers ---------------------------------------------------------------------------------------


def test_random_begins_everywhere_equally_often():
    denoiser = RowDenoiser(FULL, fixed_scores(torch.zeros(4, VOCABULARY)), chunk=4000)
    rows = 1200
    _, events = run(denoiser, [[1, None, None, None]] * rows, DecodeSettings(policy="random"))
    first = [0, 0, 0, 0]
    for commit in events[0].commits:
        first[commit.position] += 1
    assert first[1:] == pytest.approx([rows / 3] * 3, abs=4 * math.sqrt(rows * 2 / 9))


def test_the_global_generator_is_neither_read_nor_moved():
    settings = DecodeSettings(policy="random", temperature=1.0)
    rows = [[1, *[None] * 6]]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = run(RowDenoiser(FULL, mixed_scores(VOCABULARY)), rows, settings)[1]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert run(RowDenoiser(FULL, mixed_scores(VOCABULARY)), rows, settings)[1] == one


def test_another_seed_gives_another_run():
    rows = [[1, *[None] * 10]]
    settings = DecodeSettings(policy="random", temperature=1.0)
    runs = [
        run(RowDenoiser(FULL, mixed_scores(VOCABULARY)), rows, replace(settings, seed=seed))[1] for seed in range(4)
    ]
    assert len({tuple(committed_order(events)) for events in runs}) == 4


@pytest.mark.parametrize("policy", ["entropy", "topk_margin", "threshold"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.0, "top_k": 4}])
def test_a_proposal_made_in_pieces_is_the_whole_one(monkeypatch, policy, sampling):
    settings = DecodeSettings(policy=policy, **sampling)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(23, VOCABULARY, generator=generator)
    uniform = torch.rand(23, generator=generator)
    wholes = propose(logits, settings, uniform_C=uniform, runners_up=2)
    monkeypatch.setattr("unmask.decode.policy.PIECE", 2 * VOCABULARY)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    pieces = propose(logits, settings, uniform_C=uniform, runners_up=2)
    for name in ("token_M", "confidence_M", "entropy_M", "score_M", "tie_M"):
        assert torch.equal(getattr(wholes, name), getattr(pieces, name)), name
    assert wholes.runners is not None
    assert pieces.runners is not None
    assert torch.equal(wholes.runners.token_MK, pieces.runners.token_MK)
    assert torch.equal(wholes.runners.probability_MK, pieces.runners.probability_MK)
    assert len(propose(logits[:0], settings, uniform_C=uniform[:0]).token_M) == 0
