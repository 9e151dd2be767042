"""`mode="reference"` against an independent transcription of the released sampler, bit for bit."""

from itertools import pairwise

import pytest
import torch

from unmask.decode.canvas import Canvas
from unmask.decode.loop import denoise
from unmask.decode.settings import DecodeSettings
from unmask.errors import CheckpointError, NumericsError, SettingsError

from doubles import FormulaDenoiser, tiny_config
from reference_sampler import commits_per_step, diffusion_generate

CONFIG = tiny_config(family="dream", attention="full", mask_id=60)
PROMPTS = [[5, 9, 11], [7, 7, 3]]


def run(denoiser, prompts, new, settings):
    canvas = Canvas.from_rows([[*prompt, *[None] * new] for prompt in prompts], mask_id=CONFIG.mask_id)
    history, events = [], []
    for event in denoise(denoiser, canvas, settings):
        history.append(canvas.ids_BL.clone())
        events.append(event)
    return canvas, history, events


def check(*, prompts=PROMPTS, new=12, steps=8, seed=0, dtype=torch.float32, scale=3.0, **options):
    denoiser = FormulaDenoiser(CONFIG, seed=seed, dtype=dtype, scale=scale)
    alg, alg_temp = options.pop("policy", "origin"), options.pop("policy_temperature", 0.0)
    torch.manual_seed(seed)
    expected = diffusion_generate(
        lambda ids, _mask, _positions: denoiser.full(ids),
        torch.tensor(prompts),
        mask_id=CONFIG.mask_id,
        max_new_tokens=new,
        steps=steps,
        alg=alg,
        alg_temp=alg_temp or None,
        **options,
    )
    settings = DecodeSettings(
        mode="reference", policy=alg, policy_temperature=alg_temp, max_new_tokens=new, steps=steps, seed=seed, **options
    )
    canvas, history, events = run(denoiser, prompts, new, settings)
    assert len(history) == len(expected.history) == steps
    for ours, theirs in zip(history, expected.history, strict=True):
        assert torch.equal(ours, theirs)
    return canvas, events


@pytest.mark.parametrize("policy", ["origin", "maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("shaping", [{}, {"top_p": 0.8}, {"top_k": 5}, {"top_p": 0.9, "top_k": 9}])
def test_every_policy_follows_the_reference_token_for_token(policy, temperature, shaping):
    for seed in range(3):
        check(policy=policy, temperature=temperature, seed=seed, **shaping)


@pytest.mark.parametrize("policy", ["maskgit_plus", "topk_margin", "entropy"])
def test_policy_temperature_draws_the_same_positions(policy):
    for seed in range(3):
        check(policy=policy, policy_temperature=0.5, temperature=0.4, top_p=0.95, seed=seed)


@pytest.mark.parametrize(("new", "steps"), [(12, 12), (12, 5), (8, 13), (1, 1), (16, 1)])
@pytest.mark.parametrize("policy", ["origin", "entropy"])
def test_step_counts_of_all_kinds_follow_the_reference(policy, new, steps):
    check(policy=policy, new=new, steps=steps, temperature=0.5)


def test_bfloat16_scores_and_their_silent_greedy_steps_follow_the_reference():
    for seed in range(6):
        check(policy="entropy", temperature=0.8, seed=seed, dtype=torch.bfloat16, scale=1.0)


def test_rows_with_unequal_masks_share_the_batch_mean_and_lose_settled_positions():
    prompts = [[5, 9, 60], [60, 60, 60], [1, 2, 3]]  # mask ids inside the prompt are decoded too
    _, events = check(prompts=prompts, new=6, steps=3, policy="maskgit_plus")
    assert any(event.remasked for event in events), "the defect shows: a settled position went back to the mask"


@pytest.mark.parametrize(("new", "steps"), [(256, 256), (256, 128), (256, 64), (256, 32), (128, 200)])
def test_commits_per_step_follow_the_schedule_table(new, steps):
    settings = DecodeSettings(mode="reference", policy="maskgit_plus", max_new_tokens=new, steps=steps)
    config = tiny_config(family="dream", attention="full", mask_id=60, max_positions=300)
    denoiser = FormulaDenoiser(config)
    denoiser.forbid(60)  # else the mask id itself is drawn now and then, and the step commits one fewer
    _, history, _ = run(denoiser, [[1, 2]], new, settings)
    masks = [new, *[int((ids == 60).sum()) for ids in history]]
    assert [before - after for before, after in pairwise(masks)] == commits_per_step(new, steps)


def test_a_model_without_mask_id_is_refused_with_the_flag_to_give():
    canvas = Canvas.from_rows([[1, None]], mask_id=None)
    with pytest.raises(CheckpointError, match="--mask-id"):
        list(denoise(FormulaDenoiser(tiny_config()), canvas, DecodeSettings(mode="reference")))


def test_a_draw_of_positions_that_cannot_succeed_is_explained():
    canvas = Canvas.from_rows([[1, 2, 3, 4], [None, None, None, None]], mask_id=60)
    settings = DecodeSettings(mode="reference", policy="entropy", policy_temperature=1.0, steps=1, max_new_tokens=4)
    with pytest.raises(NumericsError, match="use `--mode exact`"):
        list(denoise(FormulaDenoiser(CONFIG), canvas, settings))


def test_left_padded_rows_follow_the_reference():
    denoiser = FormulaDenoiser(CONFIG)
    torch.manual_seed(3)
    padded = torch.tensor([[0, 0, 9, 11], [7, 7, 3, 8]])
    expected = diffusion_generate(
        lambda ids, _mask, _positions: denoiser.full(ids),
        padded,
        attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        mask_id=60,
        max_new_tokens=8,
        steps=5,
        temperature=0.6,
        alg="entropy",
    )
    settings = DecodeSettings(mode="reference", policy="entropy", temperature=0.6, max_new_tokens=8, steps=5, seed=3)
    canvas, _, _ = run(denoiser, [[9, 11], [7, 7, 3, 8]], 8, settings)
    assert torch.equal(canvas.ids_BL, expected.ids)


def test_padding_stays_padding_and_positions_stay_in_the_row():
    rows = [[1, 2, None], [4, 5, 6, 7, None, None, None, None]]
    canvas = Canvas.from_rows(rows, mask_id=60)
    settings = DecodeSettings(mode="reference", policy="maskgit_plus", max_new_tokens=4, steps=2)
    for event in denoise(FormulaDenoiser(CONFIG), canvas, settings):
        assert all(0 <= position < len(rows[row]) for row, position in event.remasked)
    assert canvas.ids_BL[0, : int(canvas.start_B[0])].eq(0).all()


@pytest.mark.parametrize("kind", [{"attention": "causal"}, {"attention": "block", "block_length": 4}])
def test_a_model_that_does_not_see_the_whole_canvas_is_refused(kind):
    config = tiny_config(mask_id=60, **kind)
    with pytest.raises(SettingsError, match="leave `--mode reference` out"):
        list(
            denoise(
                FormulaDenoiser(config), Canvas.from_rows([[1, None]], mask_id=60), DecodeSettings(mode="reference")
            )
        )
