"""What a run observes beside its commits: right, once, and without moving anything."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.decode.canvas import Canvas
from unmask.decode.infill import Hole, infill
from unmask.decode.loop import denoise
from unmask.decode.observe import Observe, best_others
from unmask.decode.settings import POLICIES, REFERENCE_POLICIES, DecodeSettings
from unmask.errors import SettingsError

from checkpoints import tiny_model
from doubles import FormulaDenoiser, RowDenoiser, fixed_scores, mixed_scores, tiny_config

CONFIG = tiny_config(family="dream", attention="full", mask_id=60)
ROWS = [[5, 9, *[None] * 6], [7, *[None] * 4, 3, None]]
ALL = Observe(runners_up=3)
NOTHING = Observe(first_step=False)


def events_of(settings, observe, *, rows=ROWS, denoiser=None, **options):
    canvas = Canvas.from_rows(rows, mask_id=60)
    denoiser = denoiser or FormulaDenoiser(CONFIG)
    return list(denoise(denoiser, canvas, settings, observe=observe, **options)), canvas


def bare(events):
    return [
        replace(event, seen={}, commits=tuple(replace(commit, runners_up=()) for commit in event.commits))
        for event in events
    ]


# --- it changes nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    ("mode", "policy"),
    [*(("exact", policy) for policy in POLICIES), *(("reference", policy) for policy in REFERENCE_POLICIES)],
)
def test_an_observed_run_has_the_bits_of_one_that_is_not(mode, policy, temperature):
    settings = DecodeSettings(mode=mode, policy=policy, temperature=temperature, steps=5, max_new_tokens=6, seed=3)
    observed, canvas = events_of(settings, ALL)
    plain, other = events_of(settings, NOTHING)
    assert bare(observed) == plain == bare(plain)
    assert observed != plain
    assert torch.equal(canvas.ids_BL, other.ids_BL)


def test_unobserved_proposals_hold_no_runners_up():
    events, _ = events_of(DecodeSettings(), None)
    assert all(commit.runners_up == () for event in events for commit in event.commits)


# --- runners-up -------------------------------------------------------------------------------------------------------


def tempered(table, position, *, temperature, top_k=None):
    scores = table[position].double() / (temperature or 1)
    if top_k is not None:
        scores[scores < scores.sort().values[-top_k]] = -torch.inf
    return scores.softmax(-1)


@pytest.mark.parametrize("mode", ["exact", "reference"])
@pytest.mark.parametrize("shaping", [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 3}])
def test_runners_up_are_the_best_of_the_distribution_that_confidence_comes_from(mode, shaping):
    table = torch.randn(9, 60, generator=torch.Generator().manual_seed(2))
    table = torch.cat((table, torch.full((9, 1), -100.0)), -1)  # the mask id, which the reference mode may draw
    denoiser = RowDenoiser(CONFIG, fixed_scores(table), chunk=2)
    settings = DecodeSettings(mode=mode, policy="maskgit_plus", steps=3, max_new_tokens=8, **shaping)
    events, _ = events_of(settings, ALL, rows=[[5, *[None] * 8]], denoiser=denoiser)
    commits = [commit for event in events for commit in event.commits]
    assert len(commits) == 8
    for commit in commits:
        p = tempered(table, commit.position, temperature=settings.temperature, top_k=settings.top_k)
        falling = [(token, p[token].item()) for token in p.argsort(descending=True).tolist() if p[token] > 0]
        expected = [pair for pair in falling if pair[0] != commit.token_id][:3]
        assert [token for token, _ in commit.runners_up] == [token for token, _ in expected]
        assert [q for _, q in commit.runners_up] == pytest.approx([q for _, q in expected], rel=1e-4)
        assert commit.confidence == pytest.approx(p[commit.token_id].item(), rel=1e-4)


@pytest.mark.parametrize("role", ["content", "order"])
def test_the_role_of_the_temperature_holds_for_runners_up_as_for_confidence(role):
    table = torch.tensor([[0.0, 2.0, 1.0, -9.0]] * 2)
    config = tiny_config(attention="full", vocab_size=4, mask_id=3)
    settings = DecodeSettings(temperature=2.0, temperature_role=role, seed=1)
    denoiser = RowDenoiser(config, fixed_scores(table))
    canvas = Canvas.from_rows([[0, None]], mask_id=3)
    (event,) = denoise(denoiser, canvas, settings, observe=Observe(runners_up=9))
    (commit,) = event.commits
    p = (table[1, :3] / (2.0 if role == "order" else 1.0)).softmax(-1)
    assert dict(commit.runners_up) | {commit.token_id: commit.confidence} == pytest.approx(
        {token: p[token].item() for token in range(3)}
    )


def test_what_may_not_be_committed_is_no_runner_up():
    events, _ = events_of(DecodeSettings(), Observe(runners_up=99), suppressed_ids=range(10, 60))
    for event in events:
        for commit in event.commits:
            assert {commit.token_id, *(token for token, _ in commit.runners_up)} == set(range(10))


@given(
    scores=st.lists(st.integers(-3, 3), min_size=2, max_size=7),
    k=st.integers(1, 8),
    token=st.integers(0, 6),
)
@settings(deadline=None)
def test_best_others_are_a_sorted_list_without_the_token(scores, k, token):
    token %= len(scores)
    values, ids = best_others(torch.tensor([scores]).float(), torch.tensor([token]), k)
    others = sorted((score for at, score in enumerate(scores) if at != token), reverse=True)
    assert values[0].tolist() == others[:k]
    assert len(set(ids[0].tolist()) - {token}) == min(k, len(scores) - 1)
    assert [scores[at] for at in ids[0].tolist()] == others[:k]


def test_a_negative_number_of_runners_up_is_refused():
    with pytest.raises(SettingsError) as caught:
        Observe(runners_up=-1)
    assert str(caught.value) == "runners_up=-1 is not a count of tokens; it must be 0 (none) or more"


# --- the first look ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "reference"])
def test_the_first_step_tells_of_every_place_that_was_asked_about(mode):
    settings = DecodeSettings(mode=mode, policy="entropy", steps=4, max_new_tokens=6)
    (first, *others), _ = events_of(settings, Observe())
    table = {row: {position: (c, h) for position, c, h in seen} for row, seen in first.seen.items()}
    assert table.keys() == {0, 1}
    assert [sorted(seen) for seen in table.values()] == [
        [position for position, token in enumerate(row) if token is None] for row in ROWS
    ]
    for commit in first.commits:
        assert table[commit.row][commit.position] == (commit.confidence, commit.entropy)
    assert others
    assert not any(event.seen for event in others)


@pytest.mark.parametrize("mode", ["exact", "reference"])
def test_a_policy_that_picks_places_unseen_tells_of_those_it_took(mode):
    settings = DecodeSettings(mode=mode, policy="origin", steps=2, max_new_tokens=6)
    (first, *_), _ = events_of(settings, Observe())
    assert first.commits
    assert {(row, p, c, h) for row, seen in first.seen.items() for p, c, h in seen} == {
        (commit.row, commit.position, commit.confidence, commit.entropy) for commit in first.commits
    }


def test_a_block_model_has_seen_its_first_block_alone():
    config = tiny_config(attention="block", block_length=4, mask_id=60)
    denoiser = RowDenoiser(config, mixed_scores(61))
    (first, *_), _ = events_of(DecodeSettings(), Observe(), rows=[[5, *[None] * 7]], denoiser=denoiser)
    assert [position for position, _, _ in first.seen[0]] == [1, 2, 3]


# --- through the session ----------------------------------------------------------------------------------------------


def test_the_first_step_after_a_resume_is_not_the_first_step():
    model = tiny_model("full")
    whole = model.generate("a = ", raw=True, max_new_tokens=6, runners_up=2)
    again = model.resume(whole.trajectory, at=2, runners_up=2).finish()[0].trajectory
    assert [len(step.seen) for step in again.steps] == [6, 0, 0, 0, 0, 0]
    assert again.steps == whole.trajectory.steps
    anew = model.resume(whole.trajectory, at=0).finish()[0].trajectory
    assert anew.steps[0].seen == whole.trajectory.steps[0].seen


def test_a_resumed_run_observes_as_it_is_told():
    model = tiny_model("full")
    whole = model.generate("a = ", raw=True, max_new_tokens=4)
    again = model.resume(whole.trajectory, at=2, runners_up=1).finish()[0].trajectory
    assert [len(commit.runners_up) for step in again.steps for commit in step.commits] == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["full", "causal", "block"])
def test_runners_up_are_recorded_and_named_on_request_alone(kind):
    model = tiny_model(kind)
    plain = model.generate("a = ", raw=True, max_new_tokens=4).trajectory
    observed = model.generate("a = ", raw=True, max_new_tokens=4, runners_up=3).trajectory
    assert [len(commit.runners_up) for step in observed.steps for commit in step.commits] == [3] * 4
    assert not any(commit.runners_up for step in plain.steps for commit in step.commits)
    named = {token for step in observed.steps for commit in step.commits for token, _ in commit.runners_up}
    assert named <= observed.pieces.keys()
    assert all(observed.pieces[token] == model.tokenizer.piece(token) for token in named)
    assert not named <= plain.pieces.keys()
    assert observed.settings == plain.settings


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_a_filled_hole_has_runners_up_on_request(kind):
    filled = infill(tiny_model(kind), ["a = ", Hole.parse("3"), "\n"], runners_up=2)
    commits = [commit for run in filled.trajectories for step in run.steps for commit in step.commits]
    assert [len(commit.runners_up) for commit in commits] == [2] * 3
