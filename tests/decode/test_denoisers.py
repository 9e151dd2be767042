"""The cached denoiser against the one without a cache: the same logits, the same run, less work."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import CHUNK, CachedDenoiser, Denoiser, FullDenoiser
from unmask.decode.loop import denoise
from unmask.decode.settings import POLICIES, DecodeSettings
from unmask.errors import CheckpointError
from unmask.model.config import ModelConfig

from doubles import tiny_backbone, tiny_config

MASK = 60

backbone_of = cache(tiny_backbone)


def config_of(block_length: int | None, *, shift: bool = True) -> ModelConfig:
    """A causal config for None, else one with blocks."""
    if block_length is None:
        return tiny_config()
    return tiny_config(attention="block", block_length=block_length, mask_id=MASK, shift_logits=shift)


CONFIGS = {
    "causal": config_of(None),
    "block1": config_of(1),
    "block2": config_of(2),
    "block3": config_of(3),
    "block8": config_of(8),
    "block3-unshifted": config_of(3, shift=False),
    "block8-unshifted": config_of(8, shift=False),
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
BLOCK_CONFIGS = pytest.mark.parametrize(
    "config", [c for c in CONFIGS.values() if c.attention == "block"], ids=[n for n in CONFIGS if n != "causal"]
)

# Prompts of 1, 5, 8 and 11 tokens, so that they end inside blocks of every length; answers of different lengths.
ROWS = [
    [3, *[None] * 7],
    [4, 8, 15, 16, 23, *[None] * 9],
    [7, 7, 1, 9, 2, 2, 30, 41, *[None] * 4],
    [*range(20, 31), *[None] * 6],
]


class Both:
    """A cached and a plain denoiser side by side: every answer of one must be the other's."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        backbone = backbone_of(config, seed=seed)
        self.full, self.cached = FullDenoiser(backbone), CachedDenoiser(backbone)
        self.config, self.device = config, backbone.device

    def logits(self, canvas: Canvas, places: Positions) -> Iterator[Tensor]:
        expected = torch.cat(list(self.full.logits(canvas, places)))
        logits_MV = torch.cat(list(self.cached.logits(canvas, places)))
        torch.testing.assert_close(logits_MV, expected, atol=2e-4, rtol=1e-4)
        yield logits_MV

    @property
    def num_forwards(self) -> int:
        assert self.cached.num_forwards == self.full.num_forwards
        return self.cached.num_forwards

    @property
    def positions_computed(self) -> int:
        return self.cached.positions_computed


def run(denoiser, rows, settings, *, align=None, **options):
    config = denoiser.config
    canvas = Canvas.from_rows(rows, mask_id=config.mask_id, align=align or config.block_length or 1)
    return canvas, list(denoise(denoiser, canvas, settings, **options))


def compare(config, rows, settings, *, seed=0, align=None, **options):
    """The same logits at every step of a cached run, and the same tokens in the same steps as in a run without."""
    canvas, events = run(Both(config, seed=seed), rows, settings, align=align, **options)
    other, _ = run(FullDenoiser(backbone_of(config, seed=seed)), rows, settings, align=align, **options)
    assert torch.equal(other.ids_BL, canvas.ids_BL)
    assert torch.equal(other.committed_at_BL, canvas.committed_at_BL)
    return canvas, events


# --- the same run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["causal", "block3", "block8-unshifted"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_cache_changes_no_token_of_any_policy(config, policy):
    compare(CONFIGS[config], ROWS, DecodeSettings(policy=policy, temperature=0.7))


@EVERY_CONFIG
def test_the_cache_changes_no_token_of_a_single_row(config):
    for row in ROWS[1:3]:
        compare(config, [row], DecodeSettings())


@BLOCK_CONFIGS
@pytest.mark.parametrize("threshold", [0.05, 0.12, 0.3])
def test_rows_that_drift_apart_keep_their_own_blocks(config, threshold):
    """A sure row is blocks ahead of an unsure one, and their windows differ."""
    _, events = compare(config, ROWS, DecodeSettings(policy="threshold", threshold=threshold), seed=2)
    together = [event.commits for event in events if len(event.active) > 1]
    assert together


def test_the_thresholds_above_do_let_rows_drift_apart():
    config = config_of(3)
    canvas = Canvas.from_rows(ROWS, mask_id=MASK, align=3)
    blocks = []
    for event in denoise(
        CachedDenoiser(backbone_of(config, seed=2)), canvas, DecodeSettings(policy="threshold", threshold=0.12)
    ):
        blocks.append({row: max(c.position for c in event.commits if c.row == row) // 3 for row in event.active})
    assert any(len({block - len(ROWS[row]) // 3 for row, block in now.items()}) > 1 for now in blocks)
    assert len({len([now for now in blocks if row in now]) for row in range(len(ROWS))}) > 2


@EVERY_CONFIG
def test_rows_that_finish_early_leave_the_cache(config):
    canvas = compare(config, ROWS, DecodeSettings(temperature=1.0, seed=1), end_ids=range(0, 61, 6))[0]
    assert canvas.is_masked_BL.any(), "some row ended before its last position"
    assert len(set(canvas.committed_at_BL.max(-1).values.tolist())) > 1, "and not all in the same step"


@EVERY_CONFIG
def test_rows_of_one_width_with_different_prompts_stand_at_different_columns(config):
    """No padding, so nothing but the columns tells the rows' windows apart."""
    rows = [[*range(5, 5 + given), *[None] * (12 - given)] for given in (1, 7, 4)]
    compare(config, rows, DecodeSettings())


@EVERY_CONFIG
def test_rows_that_begin_masked(config):
    rows = [[None, 9, *[None] * 7], [None, None, 5, None, None, 6], [4, *[None] * 6]]
    compare(config, rows, DecodeSettings(temperature=0.5))
    # Masks alone all look the same to the network, so no score may order them here.
    compare(config, [[None] * 9, [None] * 4], DecodeSettings(temperature=0.5, policy="random"))


@EVERY_CONFIG
def test_given_text_between_the_masks(config):
    rows = [[5, None, None, 7, 8, 9, 10, 11, None, 12, 13, None], [1, 2, 3, 4, 5, None, 6, 7, 8, 9, None, None, None]]
    compare(config, rows, DecodeSettings())


@EVERY_CONFIG
@pytest.mark.parametrize("align", [1, 5])
def test_rows_need_not_stand_on_whole_blocks(config, align):
    compare(config, ROWS, DecodeSettings(policy="threshold", threshold=0.1), align=align)


@pytest.mark.parametrize("block_length", [1, 2, 4])
def test_shorter_blocks_than_the_models_own(block_length):
    compare(config_of(8), ROWS, DecodeSettings(block_length=block_length))


@EVERY_CONFIG
def test_a_row_that_was_passed_over_comes_back(config):
    """`origin` asks about no place of a row in many of its steps."""
    _, events = compare(config, ROWS, DecodeSettings(policy="origin", steps=40, seed=3))
    passed_over = [
        row for event in events for row in event.active if event.commits and row not in {c.row for c in event.commits}
    ]
    assert passed_over


@EVERY_CONFIG
def test_a_resumed_run_begins_with_an_empty_cache(config):
    settings = DecodeSettings()
    canvas, _ = run(FullDenoiser(backbone_of(config)), ROWS, settings)
    after = 4
    rows, steps = [], []
    for row in range(len(ROWS)):
        here = slice(int(canvas.start_B[row]), int(canvas.end_B[row]))
        at = canvas.committed_at_BL[row, here].tolist()
        ids = canvas.ids_BL[row, here].tolist()
        rows.append([None if step >= after else token for token, step in zip(ids, at, strict=True)])
        steps.append([step if 0 <= step < after else None for step in at])
    resumed = Canvas.from_rows(rows, mask_id=config.mask_id, align=config.block_length or 1, committed_at=steps)
    list(denoise(CachedDenoiser(backbone_of(config)), resumed, settings, first_step=after))
    assert torch.equal(resumed.ids_BL, canvas.ids_BL)
    assert torch.equal(resumed.committed_at_BL, canvas.committed_at_BL)


# --- less work ----------------------------------------------------------------------------------------------------


def test_autoregressive_decoding_computes_the_prompt_once_and_then_one_column_per_step():
    config = config_of(None)
    _, events = run(CachedDenoiser(backbone_of(config)), [[1, 2, 3, 4, 5, *[None] * 6]], DecodeSettings())
    assert [event.positions_computed for event in events] == [5, 1, 1, 1, 1, 1]
    assert [event.num_forwards for event in events] == [1] * 6


def test_a_batch_of_autoregressive_rows_computes_each_prompt_once():
    config = config_of(None)
    rows = [[1, 2, 3, *[None] * 5], [*range(1, 9), None, None], [9, *[None] * 3]]
    _, events = run(CachedDenoiser(backbone_of(config)), rows, DecodeSettings())
    assert [event.positions_computed for event in events] == [3 + 8 + 1, 3, 2, 1, 1]


def test_without_a_cache_every_position_of_every_open_row_is_computed():
    config = config_of(3)
    _, events = run(FullDenoiser(backbone_of(config)), [[1, 2, *[None] * 4], [5, None]], DecodeSettings())
    assert [event.positions_computed for event in events] == [8, 6, 6, 6]


@BLOCK_CONFIGS
@pytest.mark.parametrize("given", [1, 5, 8])
def test_a_step_computes_from_the_first_unfinished_column_to_the_end_of_its_block(config, given):
    """With shifted logits the column before a block predicts its first position, and is computed with it; when nothing
    but that position is open, only the column before it is needed."""
    length, block, shift = given + 11, config.block_length, config.shift_logits
    row = [*range(given), *[None] * 11]
    canvas = Canvas.from_rows([row], mask_id=MASK, align=block)
    denoiser = CachedDenoiser(backbone_of(config))
    clean, expected, computed = 0, [], []
    events = denoise(denoiser, canvas, DecodeSettings(policy="left_to_right"))
    for position in range(given, length):
        source = max(position - shift, 0)
        begin = position // block * block
        end = min(begin + block, length) if source >= begin else begin
        expected.append(end - min(clean, source))
        computed.append(next(events).positions_computed)
        clean = begin
    assert computed == expected


def test_block_decoding_computes_less_than_the_whole_canvas():
    config = config_of(8)
    rows = [[1, 2, 3, *[None] * 29]]
    cached, full = CachedDenoiser(backbone_of(config)), FullDenoiser(backbone_of(config))
    assert torch.equal(run(cached, rows, DecodeSettings())[0].ids_BL, run(full, rows, DecodeSettings())[0].ids_BL)
    assert full.positions_computed == 29 * 32
    assert cached.positions_computed <= 29 * 9 + 4 * 8  # a block and the column before it, and each block once more


# --- one canvas at a time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [config_of(None), config_of(3)])
def test_a_second_canvas_does_not_see_the_first(config):
    backbone = backbone_of(config)
    reused = CachedDenoiser(backbone)
    for rows in ([ROWS[1]], [[9, 9, *[None] * 7]], [[3, *[None] * 20]], ROWS[:2]):
        expected, _ = run(FullDenoiser(backbone), rows, DecodeSettings())
        assert torch.equal(run(reused, rows, DecodeSettings())[0].ids_BL, expected.ids_BL)


# --- logits of chosen places --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attention", "shift"), [("full", True), ("full", False), ("block", True), ("block", False), ("causal", True)]
)
def test_logits_stand_where_the_shift_says_and_padding_is_invisible(attention, shift):
    """Hidden state i predicts token i + 1 with shifted logits, and token i without; position 0 predicts itself."""
    extra = {"attention": attention, "shift_logits": shift, "block_length": 3 if attention == "block" else None}
    config = tiny_config(mask_id=MASK, **extra)
    backbone = backbone_of(config)
    rows = [[None, 5, None, None], [1, 2, None, 4, 5, None, 7, 8, None], [None]]
    canvas = Canvas.from_rows(rows, mask_id=MASK, align=config.block_length or 1)
    logits_MV = torch.cat(list(FullDenoiser(backbone).logits(canvas, canvas.masked())))
    expected = []
    for row in rows:
        ids = torch.tensor([[MASK if token is None else token for token in row]])
        position = torch.arange(len(row))
        seen = {
            "full": torch.ones(len(row), len(row), dtype=torch.bool),
            "causal": position[None] <= position[:, None],
            "block": position[None] // 3 <= position[:, None] // 3,
        }[attention]
        hidden_LD = backbone(ids, position[None], attn_mask=seen[None, None])[0]
        expected += [hidden_LD[max(p - shift, 0)] for p, token in enumerate(row) if token is None]
    torch.testing.assert_close(logits_MV, backbone.logits(torch.stack(expected)), atol=1e-4, rtol=1e-4)


def test_logits_come_in_chunks_in_the_order_of_the_places():
    config = tiny_config(family="dream", attention="full", mask_id=MASK, max_positions=400)
    backbone = backbone_of(config)
    canvas = Canvas.from_rows([[1, *[None] * 299]], mask_id=MASK)
    parts = list(FullDenoiser(backbone).logits(canvas, canvas.masked()))
    assert [len(part) for part in parts] == [CHUNK, CHUNK, 299 - 2 * CHUNK]
    few = Positions(torch.tensor([0, 0]), torch.tensor([130, 290]))
    (chosen,) = FullDenoiser(backbone).logits(canvas, few)
    torch.testing.assert_close(torch.cat(parts)[[129, 289]], chosen)


def test_only_rows_that_are_asked_about_are_computed():
    denoiser = FullDenoiser(backbone_of(tiny_config(family="dream", attention="full", mask_id=MASK)))
    canvas = Canvas.from_rows([[1, None], [1, 2, 3, None], [1, 2, None]], mask_id=MASK)
    list(denoiser.logits(canvas, canvas.masked().where(torch.tensor([True, False, True]))))
    assert denoiser.positions_computed == 5


def test_both_denoisers_keep_the_protocol():
    for denoiser in (FullDenoiser(backbone_of(config_of(3))), CachedDenoiser(backbone_of(config_of(3)))):
        assert isinstance(denoiser, Denoiser)


def test_a_diffusion_model_without_mask_id_is_refused_with_the_flag_to_give():
    with pytest.raises(CheckpointError, match="--mask-id ID"):
        tiny_config(attention="block", block_length=3, mask_id=None)


@pytest.mark.parametrize(("attention", "block_length"), [("causal", None), ("block", 3)])
def test_a_prompt_prefilled_in_pieces_gives_the_same_logits(attention, block_length, monkeypatch):
    """Rows of different lengths, pieces of 8 columns (rounded down to whole blocks)."""
    monkeypatch.setattr("unmask.decode.denoiser.PREFILL", 8)
    backbone = backbone_of(tiny_config(mask_id=MASK, attention=attention, block_length=block_length))
    rows = [[*range(1, 30), None], [3, 4, None], [*range(5, 22), None]]
    canvas = Canvas.from_rows(rows, mask_id=MASK, align=block_length or 1)
    pieces, whole = CachedDenoiser(backbone), FullDenoiser(backbone)
    got, expected = (torch.cat(list(d.logits(canvas, canvas.masked()))) for d in (pieces, whole))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert pieces.num_forwards > 1
    if attention == "causal":
        assert pieces.positions_computed == sum(len(row) - 1 for row in rows)
