"""Speculative decoding against decoding one by one: the same tokens at every setting, in fewer forwards."""

from functools import cache

import pytest
import torch

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import CachedDenoiser, FullDenoiser
from unmask.decode.loop import denoise
from unmask.decode.settings import DecodeSettings
from unmask.decode.speculative import Speculator
from unmask.errors import CanvasError, SettingsError
from unmask.model.drafter import Drafter, DraftHead

from doubles import tiny_backbone
from drafters import CONFIG, MASK, drafter_of, embeddings, gated

ROWS = [
    [3, 4, 5, *[None] * 17],
    [7, 7, 1, 9, 12, 40, 41, *[None] * 26],
    [41, *[None] * 9],
    [*range(1, 31), *[None] * 12],
]
GREEDY = DecodeSettings()
WARM = DecodeSettings(temperature=0.8, top_p=0.9)

plain = cache(tiny_backbone)


class Oracle(Drafter):
    """Reads the future off a finished canvas, wrongly now and then."""

    def __init__(self, answers, *, wrong_every, block_length=4):
        super().__init__(DraftHead(32, 8), *embeddings(), torch.arange(60), block_length=block_length)
        self.answers, self.wrong_every, self.count = answers, wrong_every, 0
        self.speculator = None

    def read(self, hidden_AJD, known_A):
        tokens = []
        for a, row in enumerate(self.speculator._held):
            column = self.speculator._rows[row].settled + 1 + self.accepted[a]
            tokens.append([])
            for j in range(hidden_AJD.shape[1]):
                self.count += 1
                right = int(self.answers[row, min(column + 1 + j, self.answers.shape[1] - 1)])
                tokens[-1].append((right + 1) % 60 if self.count % self.wrong_every == 0 else right)
        return torch.tensor(tokens), torch.full((len(tokens), hidden_AJD.shape[1]), 0.9)


def run(denoiser, rows, settings, **options):
    canvas = Canvas.from_rows(rows, mask_id=MASK)
    return canvas, list(denoise(denoiser, canvas, settings, **options))


def one_by_one(rows, settings, **options):
    return run(CachedDenoiser(plain(CONFIG)), rows, settings, **options)


class Accepted(Speculator):
    """Tells an oracle how many tokens were accepted."""

    def _redraft(self, hidden_ATD, states, accepted, *rest):
        self.drafter.accepted = accepted
        super()._redraft(hidden_ATD, states, accepted, *rest)


def with_oracle(rows, settings, *, wrong_every, **options):
    expected, _ = one_by_one(rows, settings, **options)
    oracle = Oracle(expected.ids_BL, wrong_every=wrong_every)
    oracle.speculator = Accepted(gated(), oracle)
    return expected, run(oracle.speculator, rows, settings, **options)


# --- the same tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("block_length", [1, 4, 7])
def test_a_poor_draft_changes_no_token(settings, block_length):
    for rows in ([ROWS[0]], ROWS):
        expected, _ = one_by_one(rows, settings)
        found, _ = run(Speculator(gated(), drafter_of(block_length)), rows, settings)
        assert torch.equal(found.ids_BL, expected.ids_BL)


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "warm"])
def test_a_block_of_one_drafts_nothing(settings):
    expected, before = one_by_one(ROWS, settings)
    found, events = run(Speculator(gated(), drafter_of(), longest=0), ROWS, settings)
    assert torch.equal(found.ids_BL, expected.ids_BL)
    assert len(events) == len(before)
    assert not any(event.drafted for event in events)


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("wrong_every", [2, 3, 5, 10_000])
def test_a_good_draft_changes_no_token_either(settings, wrong_every):
    expected, (found, _) = with_oracle(ROWS, settings, wrong_every=wrong_every)
    assert torch.equal(found.ids_BL, expected.ids_BL)


def test_a_perfect_draft_settles_a_block_and_one_more_token_in_a_forward():
    _, (_, events) = with_oracle([ROWS[1]], GREEDY, wrong_every=10_000)
    assert [len(event.commits) for event in events] == [1, 5, 5, 5, 5, 5]
    assert sum(event.num_forwards for event in events) == 7  # one of them for the prompt


@pytest.mark.parametrize("wrong_every", [3, 10_000])
def test_an_end_token_inside_a_draft_ends_the_row(wrong_every):
    expected, _ = one_by_one(ROWS, GREEDY)
    ends = {int(expected.ids_BL[1, expected.start_B[1] + 14]), int(expected.ids_BL[0, expected.start_B[0] + 9])}
    expected, (found, _) = with_oracle(ROWS, GREEDY, wrong_every=wrong_every, end_ids=ends)
    assert [found.row_ids(row) for row in range(4)] == [expected.row_ids(row) for row in range(4)]
    assert any(None in found.row_ids(row) for row in range(4))


def test_suppressed_tokens_are_never_settled():
    expected, _ = one_by_one(ROWS, GREEDY)
    common = expected.ids_BL[~expected.is_fixed_BL].mode().values.item()
    wanted, _ = one_by_one(ROWS, GREEDY, suppressed_ids=[common])
    found, _ = run(Speculator(gated(), drafter_of()), ROWS, GREEDY, suppressed_ids=[common])
    assert torch.equal(found.ids_BL, wanted.ids_BL)
    assert not torch.equal(found.ids_BL, expected.ids_BL)


def test_long_prompts_are_computed_in_pieces(monkeypatch):
    import unmask.decode.speculative as module

    monkeypatch.setattr(module, "PREFILL", 7)
    expected, _ = one_by_one(ROWS, WARM)
    found, _ = run(Speculator(gated(), drafter_of()), ROWS, WARM)
    assert torch.equal(found.ids_BL, expected.ids_BL)


# --- lenience -----------------------------------------------------------------------------------------------------


def lenient(lenience, *, wrong_every=2):
    settings = DecodeSettings(lenience=lenience)
    _, (canvas, events) = with_oracle([ROWS[1]], settings, wrong_every=wrong_every)
    return canvas, events


@pytest.mark.parametrize("lenience", [0.9, 0.3, 0.02])
def test_a_draft_is_kept_by_its_share_of_the_best_probability_and_no_other_is(lenience):
    canvas, events = lenient(lenience)
    columns = torch.arange(1, canvas.width)
    logits_MV = torch.cat([*FullDenoiser(plain(CONFIG)).logits(canvas, Positions(columns * 0, columns))])
    chance_MV = logits_MV.index_fill(-1, torch.tensor([MASK]), -torch.inf).softmax(-1)
    share_MV = chance_MV / chance_MV.max(-1, keepdim=True).values  # row p - 1 is of position p
    kept_drafts = 0
    for event in events:
        settled = {commit.position: commit.token_id for commit in event.commits}
        drafted = {position: token for _, position, token in event.drafted}
        for position, token in settled.items():
            share = float(share_MV[position - 1, token])
            assert share >= 1 - 1e-4 or (drafted.get(position) == token and share >= lenience - 1e-4)
            kept_drafts += share < 1 - 1e-4
            if position in drafted and drafted[position] != token:
                assert float(share_MV[position - 1, drafted[position]]) < lenience + 1e-4
    assert kept_drafts > 0 or lenience > 0.02


def test_the_least_lenience_keeps_every_draft_and_the_greatest_is_none():
    _, events = lenient(1e-30)
    assert all(len(event.commits) == len(event.drafted) + 1 for event in events)
    assert any(event.drafted for event in events)
    expected, _ = one_by_one([ROWS[1]], GREEDY)
    canvas, _ = lenient(1.0)
    assert torch.equal(canvas.ids_BL, expected.ids_BL)


def test_what_a_lenient_check_kept_is_told_with_its_own_probability():
    _, events = lenient(1e-30)
    drafted = {(position, token) for event in events for _, position, token in event.drafted}
    sure = [c.confidence for event in events for c in event.commits if (c.position, c.token_id) in drafted]
    assert min(sure) < 0.05  # an untrained network gives a token that it would not take next to nothing


# --- what is recorded ---------------------------------------------------------------------------------------------


def test_what_was_drafted_is_told_and_what_agrees_was_accepted():
    _, (_, events) = with_oracle([ROWS[1]], GREEDY, wrong_every=3)
    for event in events:
        settled = {commit.position: commit.token_id for commit in event.commits}
        right = [settled.get(position) == token for _, position, token in event.drafted]
        assert right == sorted(right, reverse=True)  # accepted ones, then the first wrong one and all behind it
        assert len(settled) == sum(right) + 1
    assert any(event.drafted for event in events)


def test_rows_in_which_something_is_given_behind_a_hole_are_refused():
    for row in ([1, None, 2, None], [None, None]):
        with pytest.raises(CanvasError, match="writes behind a prompt"):
            run(Speculator(gated(), drafter_of()), [row], GREEDY)


def test_the_reference_mode_is_refused():
    with pytest.raises(SettingsError, match="drafts nothing"):
        run(Speculator(gated(), drafter_of()), [ROWS[0]], DecodeSettings(mode="reference"))
