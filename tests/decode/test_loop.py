"""The loop itself: its events, its refusals, and what is left when it is left half-way."""

import math

import pytest
import torch

from unmask.decode.canvas import Canvas
from unmask.decode.denoiser import CachedDenoiser, FullDenoiser
from unmask.decode.loop import denoise
from unmask.decode.settings import POLICIES, DecodeSettings
from unmask.errors import CanvasError, CheckpointError, NumericsError, SettingsError

from doubles import RowDenoiser, fixed_scores, mixed_scores, tiny_backbone, tiny_config

FULL = tiny_config(family="dream", attention="full", mask_id=60)
BLOCK = tiny_config(attention="block", block_length=8, mask_id=60)
CAUSAL = tiny_config()
VOCABULARY = FULL.vocab_size


def canvas_of(rows, config=FULL):
    return Canvas.from_rows(rows, mask_id=config.mask_id, align=config.block_length or 1)


# --- events -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_events_tell_the_whole_story(policy):
    rows = [[1, 2, *[None] * 6], [3, None, 4, None], [5, 6, *[None] * 9]]
    canvas = canvas_of(rows)
    denoiser = RowDenoiser(FULL, mixed_scores(VOCABULARY))
    told = [list(row) for row in rows]
    finished = []
    for number, event in enumerate(denoise(denoiser, canvas, DecodeSettings(policy=policy))):
        assert event.step == number
        assert not event.remasked
        assert event.active == tuple(row for row in range(3) if row not in finished)
        for commit in event.commits:
            assert told[commit.row][commit.position] is None
            told[commit.row][commit.position] = commit.token_id
            assert canvas.committed_at_BL[commit.row, canvas.start_B[commit.row] + commit.position] == number
        finished += event.finished
        assert told == [canvas.row_ids(row) for row in range(3)]
    assert sorted(finished) == [0, 1, 2]
    assert denoiser.num_forwards <= number + 1


def test_an_event_counts_what_went_through_the_network():
    backbone = tiny_backbone(FULL)
    canvas = canvas_of([[1, 2, *[None] * 4], [1, None]])
    events = list(denoise(FullDenoiser(backbone), canvas, DecodeSettings(steps=2)))
    assert [event.num_forwards for event in events] == [1, 1]
    assert [event.positions_computed for event in events] == [8, 6], "the second row is done after its only step"


def test_first_step_numbers_the_steps_from_there():
    canvas = Canvas.from_rows([[1, 7, None, None]], mask_id=60, committed_at=[[None, 0, None, None]])
    events = list(denoise(RowDenoiser(FULL, mixed_scores(VOCABULARY)), canvas, DecodeSettings(), first_step=1))
    assert [event.step for event in events] == [1, 2]
    assert canvas.committed_at_BL[0].max() == 2


def test_a_canvas_without_masks_is_done_at_once():
    denoiser = RowDenoiser(FULL, mixed_scores(VOCABULARY))
    assert list(denoise(denoiser, canvas_of([[1, 2, 3]]), DecodeSettings())) == []
    assert denoiser.num_forwards == 0


@pytest.mark.parametrize("config", [FULL, BLOCK, CAUSAL])
def test_a_row_without_masks_waits_beside_the_others(config):
    canvas = canvas_of([[1, 2, 3], [1, None, None], [4]], config)
    events = list(denoise(RowDenoiser(config, mixed_scores(VOCABULARY)), canvas, DecodeSettings()))
    assert [event.active for event in events] == [(1,), (1,)]
    assert canvas.row_ids(0) == [1, 2, 3]
    assert canvas.row_ids(2) == [4]


def test_given_text_is_never_changed():
    rows = [[1, None, 60, None, 2, 0, None], [0, 60, 5, None]]  # the mask id and id 0 may be given text
    canvas = canvas_of(rows)
    list(denoise(RowDenoiser(FULL, mixed_scores(VOCABULARY)), canvas, DecodeSettings(temperature=1.0), end_ids=[2]))
    for number, row in enumerate(rows):
        filled = canvas.row_ids(number)
        assert [filled[i] for i, token in enumerate(row) if token is not None] == [t for t in row if t is not None]


# --- half-way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_that_is_closed_half_way_leaves_a_consistent_canvas(policy):
    rows = [[1, 2, *[None] * 8], [3, *[None] * 7]]
    canvas = canvas_of(rows)
    told = [list(row) for row in rows]
    events = denoise(RowDenoiser(FULL, mixed_scores(VOCABULARY)), canvas, DecodeSettings(policy=policy))
    for _ in range(3):
        for commit in next(events).commits:
            told[commit.row][commit.position] = commit.token_id
    events.close()
    assert [canvas.row_ids(row) for row in range(2)] == told
    assert torch.equal(canvas.committed_at_BL >= 0, ~canvas.is_masked_BL & ~canvas.is_fixed_BL)
    with pytest.raises(StopIteration):
        next(events)


def test_nothing_is_computed_before_the_first_event_is_asked_for():
    denoiser = RowDenoiser(FULL, mixed_scores(VOCABULARY))
    events = denoise(denoiser, canvas_of([[1, None]]), DecodeSettings())
    assert denoiser.num_forwards == 0
    next(events)
    assert denoiser.num_forwards == 1


def test_a_run_can_be_driven_in_and_out_of_a_gradient_context():
    """The canvas holds ordinary tensors, which the caller may change and compute with."""
    canvas = canvas_of([[1, None, None]])
    list(denoise(FullDenoiser(tiny_backbone(FULL)), canvas, DecodeSettings(temperature=0.5)))
    for name in ("ids_BL", "is_masked_BL", "committed_at_BL"):
        assert not getattr(canvas, name).is_inference()
    canvas.ids_BL[0, 1] = 5


# --- numbers that are not numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "shaping", [{}, {"top_p": 0.9}, {"top_k": 3}, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 1.0}]
)
def test_nan_logits_stop_the_run_with_their_place(policy, shaping):
    table = torch.zeros(9, VOCABULARY)
    table[4, 17] = math.nan
    canvas = canvas_of([[1, 2, 3, None], [1, 2, 3, None, None, 5, None]])
    settings = DecodeSettings(policy=policy, **shaping)
    with pytest.raises(NumericsError) as caught:
        list(denoise(RowDenoiser(FULL, fixed_scores(table)), canvas, settings))
    message = str(caught.value)
    assert "logits that are not numbers (NaN)" in message
    assert "row 1, position 4" in message
    assert "--dtype float32" in message
    assert canvas.row_ids(1)[4] is None, "nothing was committed there"


def test_the_step_in_the_message_counts_from_one():
    def scores(ids, position):
        return torch.full((VOCABULARY,), math.nan if ids[1] != 60 else 0.0)

    canvas = canvas_of([[1, None, None]])
    events = denoise(RowDenoiser(FULL, scores), canvas, DecodeSettings(policy="left_to_right"))
    next(events)
    with pytest.raises(NumericsError, match="in step 2, row 0, position 2"):
        next(events)
    assert canvas.row_ids(0)[1] is not None, "what was settled before stays"


def test_infinite_scores_that_leave_no_distribution_are_not_numbers_either():
    table = torch.zeros(2, VOCABULARY)
    table[1, [3, 4]] = math.inf
    with pytest.raises(NumericsError, match="row 0, position 1"):
        list(denoise(RowDenoiser(FULL, fixed_scores(table)), canvas_of([[1, None]]), DecodeSettings()))


def test_minus_infinity_forbids_a_token_and_is_no_error():
    table = torch.full((3, VOCABULARY), -math.inf)
    table[:, 7:9] = 0.0
    canvas = canvas_of([[1, None, None]])
    list(denoise(RowDenoiser(FULL, fixed_scores(table)), canvas, DecodeSettings(temperature=2.0, top_p=0.99)))
    assert set(canvas.row_ids(0)[1:]) <= {7, 8}


# --- settings and models that do not go together ------------------------------------------------------------------


def refusal(config, rows, settings, error=SettingsError):
    """The message with which a run is refused, before anything is asked of the network."""
    denoiser = RowDenoiser(config, mixed_scores(config.vocab_size))
    with pytest.raises(error) as caught:
        denoise(denoiser, canvas_of(rows, config), settings)
    assert denoiser.num_forwards == 0
    return str(caught.value)


def test_a_causal_model_with_longer_blocks_is_refused():
    message = refusal(CAUSAL, [[1, *[None] * 8]], DecodeSettings(block_length=8))
    assert "--block-length 8 was given, but the model is autoregressive" in message
    assert "leave --block-length out or give 1" in message


def test_blocks_that_do_not_divide_the_models_own_are_refused():
    message = refusal(BLOCK, [[1, *[None] * 8]], DecodeSettings(block_length=3))
    assert "--block-length 3 does not divide the model's block length 8; give a divisor of 8" in message


def test_fewer_steps_than_blocks_are_refused():
    message = refusal(FULL, [[1, *[None] * 8]], DecodeSettings(block_length=2, steps=3))
    assert "--steps 3 is fewer than the 4 blocks of 2 positions" in message
    assert "give --steps 4 or more, or a larger --block-length" in message


def test_fewer_steps_than_tokens_of_an_autoregressive_answer_are_refused():
    message = refusal(CAUSAL, [[1, *[None] * 8]], DecodeSettings(steps=3))
    assert "--steps 3 is fewer than the 8 tokens to fill, and the model fills one per step" in message
    assert "give --steps 8 or more, or leave --steps out" in message
    assert "--block-length" not in message, "a longer block would be refused as well"


@pytest.mark.parametrize("denoiser_class", [FullDenoiser, CachedDenoiser])
def test_a_canvas_longer_than_the_models_context_is_refused(denoiser_class):
    config = tiny_config(max_positions=10)
    denoiser = denoiser_class(tiny_backbone(config))
    with pytest.raises(CanvasError) as caught:
        list(denoise(denoiser, canvas_of([[1, 2, *[None] * 9]], config), DecodeSettings()))
    assert "11 positions and the model has 10; shorten the prompt or ask for fewer new tokens" in str(caught.value)
    assert denoiser.num_forwards == 0


def test_padding_does_not_count_against_the_context():
    """A row of 9 in blocks of 8 takes 16 columns, of which the model sees 9."""
    config = tiny_config(attention="block", block_length=8, max_positions=10)
    for denoiser in (FullDenoiser(tiny_backbone(config)), CachedDenoiser(tiny_backbone(config))):
        canvas = canvas_of([[1, 2, *[None] * 7]], config)
        list(denoise(denoiser, canvas, DecodeSettings()))
        assert None not in canvas.row_ids(0)


def test_a_full_attention_model_is_not_cached():
    with pytest.raises(CheckpointError, match=r"attends to the whole canvas.*decode it without a cache"):
        CachedDenoiser(tiny_backbone(FULL))
