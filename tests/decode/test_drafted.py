"""Diffusion decoding of a causal model with a drafter: windows through the cache against one whole forward each."""

from dataclasses import replace

import pytest
import torch

from unmask.decode.canvas import Canvas
from unmask.decode.denoiser import CachedDenoiser
from unmask.decode.drafted import DraftedDenoiser
from unmask.decode.loop import denoise
from unmask.decode.settings import DecodeSettings
from unmask.errors import CanvasError, SettingsError
from unmask.model.cache import Behind, Kept, Span

from doubles import tiny_backbone
from drafters import CONFIG, MASK, drafter_of, gated

ROWS = [[3, 4, 5, *[None] * 17], [7, 7, 1, 9, 12, 40, 41, *[None] * 26], [41, *[None] * 9]]

THRESHOLD = DecodeSettings(decoder="diffusion", policy="threshold", threshold=0.05)
SETTINGS = [
    THRESHOLD,
    DecodeSettings(decoder="diffusion", policy="threshold", threshold=0.04, temperature=0.7),
    DecodeSettings(decoder="diffusion", policy="factor", factor=1.97),
    DecodeSettings(decoder="diffusion", policy="entropy"),
    DecodeSettings(decoder="diffusion", policy="entropy_bound", entropy_bound=4.0),
    DecodeSettings(decoder="diffusion", policy="frechet", frechet=0.0),
    DecodeSettings(decoder="diffusion", policy="random", seed=4),
    DecodeSettings(decoder="diffusion", policy="origin", seed=2),
]


def slow_logits(backbone, drafter, window, ids, column, mask_id, never):
    """The scores of one open place: the settled text as the parent reads it, and the whole window behind it."""

    def best_of(scores, ids):
        return max((float(score), -at, at) for at, score in enumerate(scores) if int(ids[at]) not in never)[2]

    first = ids.index(None)
    none = Span(0, 0)
    kept = Kept()
    prefix = torch.tensor([ids[:first]])
    clean_1PD = backbone(
        prefix,
        torch.arange(first)[None],
        attn_mask=torch.ones(first, first).tril().bool()[None, None],
        cache=kept,
        window=none,
    )
    if column == first:
        return backbone.logits(clean_1PD[0, -1])
    stop = min(first + window - 1, len(ids) - 1)
    shown = torch.tensor([[mask_id if token is None else token for token in ids[first:stop]]])
    noisy_1ND = backbone(
        shown,
        torch.arange(first, stop)[None],
        attn_mask=torch.ones(1, 1, stop - first, stop, dtype=torch.bool),
        cache=Behind(kept),
        window=none,
        gate=0,
    )
    parent_V = backbone.logits(clean_1PD[0, -1])
    best = best_of(parent_V, range(len(parent_V)))
    chain, scores_W = float(parent_V.softmax(-1)[best]), None
    for at in range(first, column):  # the state at a place says what stands behind it
        token = torch.tensor(best if ids[at] is None else ids[at])
        scores_W = drafter.scores(noisy_1ND[:, at - first], token[None])[0]
        place = best_of(scores_W, drafter.words_W)
        best = int(drafter.words_W[place])
        if at + 1 < column and ids[at + 1] is None:
            chain *= float(scores_W.softmax(-1)[place])
    out = torch.full((backbone.config.vocab_size,), -torch.inf)
    out[drafter.words_W] = (chain * scores_W.softmax(-1) + (1 - chain) / len(scores_W)).log()
    return out


class Checked(DraftedDenoiser):
    """Compares every row of logits with the slow ones."""

    def logits(self, canvas, places):
        found = torch.cat(list(super().logits(canvas, places)))
        with torch.inference_mode():
            for logits_V, row, column in zip(found, places.rows_M.tolist(), places.columns_M.tolist(), strict=True):
                ids, start = canvas.row_ids(row), int(canvas.start_B[row])
                never = self._is_suppressed_V.nonzero().flatten().tolist()
                expected_V = slow_logits(
                    self.backbone, self.drafter, self.window_length, ids, column - start, MASK, never
                )
                torch.testing.assert_close(logits_V, expected_V, atol=1e-4, rtol=1e-4)
        yield found


def run(denoiser, rows, settings, **options):
    canvas = Canvas.from_rows(rows, mask_id=MASK)
    return canvas, list(denoise(denoiser, canvas, settings, **options))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: f"{settings.policy}-{settings.temperature}")
@pytest.mark.parametrize("block_length", [None, 2, 7])
def test_windows_through_the_cache_are_scored_as_in_one_whole_forward(settings, block_length):
    for rows in ([ROWS[0]], ROWS):
        denoiser = Checked(gated(), drafter_of(4), block_length=block_length)
        canvas, events = run(denoiser, rows, settings)
        assert not canvas.is_masked_BL.any()
        assert denoiser.num_forwards == sum(event.num_forwards for event in events)


def test_what_may_not_be_committed_is_not_the_token_before_another():
    free, _ = run(DraftedDenoiser(gated(), drafter_of()), ROWS, THRESHOLD)
    frequent = free.ids_BL[~free.is_fixed_BL].unique()[:20].tolist()
    found, _ = run(Checked(gated(), drafter_of()), ROWS, THRESHOLD, suppressed_ids=frequent)
    assert not set(frequent) & set(found.ids_BL[~found.is_fixed_BL].tolist())


def test_a_row_does_not_depend_on_its_neighbours():
    together, _ = run(DraftedDenoiser(gated(), drafter_of()), ROWS, THRESHOLD)
    for number, row in enumerate(ROWS):
        alone, _ = run(DraftedDenoiser(gated(), drafter_of()), [row], THRESHOLD, samples=[number])
        assert alone.row_ids(0) == together.row_ids(number)


def test_a_window_of_one_is_the_parent_one_token_at_a_time():
    expected, _ = run(CachedDenoiser(tiny_backbone(CONFIG)), ROWS, DecodeSettings())
    found, events = run(DraftedDenoiser(gated(), drafter_of(), block_length=1), ROWS, THRESHOLD)
    assert torch.equal(found.ids_BL, expected.ids_BL)
    assert len(events) == max(row.count(None) for row in ROWS)


def test_what_is_trusted_altogether_is_settled_a_window_at_a_time():
    everything = DecodeSettings(decoder="diffusion", policy="threshold", threshold=1e-9)
    _, events = run(DraftedDenoiser(gated(), drafter_of(4)), [ROWS[0]], everything)
    assert [len(event.commits) for event in events] == [5, 5, 5, 2]


def test_a_number_of_steps_is_refused():
    settings = DecodeSettings(decoder="diffusion", policy="entropy", steps=6)
    with pytest.raises(SettingsError, match="--steps 6 cannot be kept where a window moves"):
        run(DraftedDenoiser(gated(), drafter_of(4)), [ROWS[0]], settings)


@pytest.mark.parametrize("policy", ["random", "origin"])
def test_chance_in_the_places_and_in_the_tokens_is_refused(policy):
    warm = DecodeSettings(decoder="diffusion", policy=policy, temperature=0.5)
    with pytest.raises(SettingsError, match=f"--policy {policy} commits places without looking at them"):
        run(DraftedDenoiser(gated(), drafter_of(4)), [ROWS[0]], warm)
    canvas, _ = run(DraftedDenoiser(gated(), drafter_of(4)), [ROWS[0]], replace(warm, temperature=0.0))
    assert not canvas.is_masked_BL.any()


def test_the_parent_settles_what_nobody_trusts():
    """Of a window below the threshold the surest place is committed, and the cache stays that of the parent."""
    never = DecodeSettings(decoder="diffusion", policy="threshold", threshold=1.0)
    canvas, events = run(Checked(gated(), drafter_of(4)), [ROWS[1]], never)
    assert [len(event.commits) for event in events] == [1] * 26
    assert not canvas.is_masked_BL.any()


def test_nothing_is_drafted_in_front_of_a_text():
    with pytest.raises(CanvasError, match="give a prompt"):
        run(DraftedDenoiser(gated(), drafter_of()), [[None, None, 3]], THRESHOLD)
