"""The reference sampler does what the description of the released sampler says, defects included.

The models here are tables of logits, so every expected canvas can be written down or replayed in a few lines.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from reference_sampler import Model, ReferenceRun, commits_per_step, diffusion_generate

MASK = 31
VOCAB = 32
SCORED_ALGS = ["maskgit_plus", "topk_margin", "entropy"]


def random_model(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> Model:
    """Fresh random logits on every call, from a generator of its own; never proposes the mask id."""
    generator = torch.Generator().manual_seed(seed)

    def model(x_BL: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        logits_BLV = torch.randn(*x_BL.shape, VOCAB, generator=generator) * 3
        logits_BLV[..., MASK] = -1e4
        return logits_BLV.to(dtype)

    return model


def table_model(logits_LV: Tensor) -> Model:
    """The same logits for every row on every call, given for the position they are to decide."""
    unshifted_LV = torch.cat([logits_LV[1:], logits_LV[-1:]])

    def model(x_BL: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        return unshifted_LV.expand(len(x_BL), -1, -1)

    return model


def probabilities(*rows: list[float]) -> Tensor:
    """Logits over VOCAB tokens whose softmax starts with the listed probabilities and is zero after them."""
    return torch.tensor([row + [0.0] * (VOCAB - len(row)) for row in rows]).clamp(min=1e-30).log()


def prompt(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def committed_at(run: ReferenceRun, step: int) -> list[int]:
    """The positions after a one-token prompt that row 0 has decoded once `step` is over."""
    return [j for j, token in enumerate(run.history[step][0].tolist()) if j > 0 and token != MASK]


def mask_counts(run: ReferenceRun) -> list[list[int]]:
    """How many masks each row holds after each step."""
    return [(canvas == MASK).sum(dim=1).tolist() for canvas in run.history]


def recording(model: Model, calls: list[tuple[Tensor, Tensor | None, Tensor | None]]) -> Model:
    def wrapped(x_BL: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        calls.append((x_BL, attention_mask, position_ids))
        return model(x_BL, attention_mask, position_ids)

    return wrapped


# The schedule


@pytest.mark.parametrize(
    ("num_new", "steps", "first", "middle", "last"),
    [
        (256, 256, 0, 1, 2),
        (512, 512, 0, 1, 2),
        (768, 768, 0, 1, 2),
        (256, 128, 1, 2, 3),
        (256, 64, 3, 4, 5),
        (256, 32, 7, 8, 9),
    ],
)
def test_schedule_table(num_new: int, steps: int, first: int, middle: int, last: int) -> None:
    assert commits_per_step(num_new, steps) == [first, *[middle] * (steps - 2), last]


def test_more_steps_than_masks_leaves_73_steps_without_a_commit() -> None:
    counts = commits_per_step(128, 200)
    assert counts == [0] * 73 + [1] * 126 + [2]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50])
@pytest.mark.parametrize("num_new", [1, 5, 20])
def test_schedule_commits_every_mask(num_new: int, steps: int) -> None:
    counts = commits_per_step(num_new, steps)
    assert len(counts) == steps
    assert min(counts) >= 0
    assert sum(counts) == num_new


@pytest.mark.parametrize(("num_new", "steps", "eps"), [(256, 256, 1e-3), (12, 3, 0.5), (8, 12, 0.2), (3, 9, 0.1)])
def test_schedule_is_computed_in_float32(num_new: int, steps: int, eps: float) -> None:
    times = torch.linspace(1, eps, steps + 1).numpy()
    one = np.float32(1)
    left = num_new
    expected = []
    for step in range(steps - 1):
        expected.append(int(np.float32(left) * (one - times[step + 1] / times[step])))
        left -= expected[-1]
    assert commits_per_step(num_new, steps, eps) == [*expected, left]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("alg_temp", [None, 0.0, 0.5])
@pytest.mark.parametrize("alg", SCORED_ALGS)
@pytest.mark.parametrize(("num_new", "steps"), [(16, 16), (16, 8), (24, 5), (6, 9)])
def test_scored_run_commits_by_the_schedule(
    num_new: int, steps: int, alg: str, alg_temp: float | None, temperature: float
) -> None:
    torch.manual_seed(1)
    ids = prompt([1, 2, 3], [4, 5, 6])
    run = diffusion_generate(
        random_model(),
        ids,
        mask_id=MASK,
        max_new_tokens=num_new,
        steps=steps,
        alg=alg,
        alg_temp=alg_temp,
        temperature=temperature,
    )
    left = num_new
    expected = []
    for count in commits_per_step(num_new, steps):
        left -= count
        expected.append([left, left])
    assert mask_counts(run) == expected
    assert torch.equal(run.ids[:, :3], ids)


@pytest.mark.parametrize("alg", ["origin", *SCORED_ALGS])
def test_history_holds_every_step_and_committed_tokens_stay(alg: str) -> None:
    torch.manual_seed(2)
    ids = prompt([1, 2])
    run = diffusion_generate(random_model(), ids, mask_id=MASK, max_new_tokens=9, steps=6, alg=alg)
    assert len(run.history) == 6
    assert torch.equal(run.history[-1], run.ids)
    assert not (run.ids == MASK).any()
    for before, after in zip(run.history, run.history[1:], strict=False):
        committed = before != MASK
        assert torch.equal(before[committed], after[committed])
    assert torch.equal(ids, prompt([1, 2]))  # the caller's tensor is left alone


@pytest.mark.parametrize("alg", ["origin", *SCORED_ALGS])
def test_the_last_step_commits_everything_whatever_eps_is(alg: str) -> None:
    run = diffusion_generate(random_model(), prompt([1]), mask_id=MASK, max_new_tokens=20, steps=1, eps=0.5, alg=alg)
    assert not (run.ids == MASK).any()


# What the model is asked, and how its answer is read


def test_every_step_calls_the_model_even_when_nothing_is_left() -> None:
    calls: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    torch.manual_seed(0)
    run = diffusion_generate(
        recording(random_model(), calls), prompt([1]), mask_id=MASK, max_new_tokens=1, steps=20, alg="origin"
    )
    assert len(calls) == len(run.history) == 20
    assert not (run.history[-2] == MASK).any()  # this seed commits the only token before the last step
    assert (calls[0][0] == MASK).sum() == 1  # and the first canvas was not written to afterwards


def test_logits_are_shifted_right_by_one() -> None:
    def names_its_position(x_BL: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        return torch.eye(VOCAB)[: x_BL.shape[1]].expand(len(x_BL), -1, -1)

    ids = prompt([MASK, 20, 20])
    run = diffusion_generate(names_its_position, ids, mask_id=MASK, max_new_tokens=3, steps=2, alg="maskgit_plus")
    assert run.ids.tolist() == [[0, 20, 20, 2, 3, 4]]  # position 0 has only its own logits


@pytest.mark.parametrize("attention_mask", [None, torch.ones(2, 3, dtype=torch.long)])
def test_a_batch_without_padding_gets_no_mask_and_no_positions(attention_mask: Tensor | None) -> None:
    calls: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    diffusion_generate(
        recording(random_model(), calls),
        prompt([1, 2, 3], [4, 5, 6]),
        attention_mask=attention_mask,
        mask_id=MASK,
        max_new_tokens=2,
        steps=1,
    )
    assert [(mask, positions) for _, mask, positions in calls] == [(None, None)]


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_left_padding_gives_an_outer_mask_and_counted_positions(dtype: torch.dtype) -> None:
    calls: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    diffusion_generate(
        recording(random_model(), calls),
        prompt([0, 0, 3], [4, 5, 6]),
        attention_mask=torch.tensor([[0, 0, 1], [1, 1, 1]]).to(dtype),
        mask_id=MASK,
        max_new_tokens=2,
        steps=1,
    )
    _, visible, positions = calls[0]
    assert visible is not None
    assert positions is not None
    assert positions.tolist() == [[1, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert visible.dtype == torch.bool
    assert visible.shape == (2, 1, 5, 5)
    is_real = [[False, False, True, True, True], [True] * 5]
    for row in range(2):
        for query in range(5):
            for key in range(5):
                assert visible[row, 0, query, key] == (is_real[row][query] and is_real[row][key])


def test_mask_ids_inside_the_prompt_are_decoded_too() -> None:
    ids = prompt([1, MASK, 2, MASK, 3])
    run = diffusion_generate(random_model(), ids, mask_id=MASK, max_new_tokens=2, steps=4, alg="maskgit_plus")
    assert not (run.ids == MASK).any()
    assert run.ids[0, [0, 2, 4]].tolist() == [1, 2, 3]
    assert mask_counts(run) == [[4], [3], [2], [0]]  # four masks, not two, by commits_per_step(4, 4)


def test_a_sampled_mask_id_silently_stays_a_mask() -> None:
    ids = prompt([1])
    model = table_model(probabilities([1.0], [0.0] * MASK + [1.0], [0.6, 0.4]))
    run = diffusion_generate(model, ids, mask_id=MASK, max_new_tokens=2, steps=2, alg="maskgit_plus")
    assert run.ids.tolist() == [[1, MASK, 0]]


# The scores


def test_each_alg_commits_by_its_own_score() -> None:
    likeliest = [0.50, 0.40, 0.10]
    widest_gap = [0.48] + [0.52 / 30] * 30
    least_entropy = [0.49, 0.49, 0.02]
    model = table_model(probabilities([1.0], likeliest, widest_gap, least_entropy))
    committed = {}
    for alg in SCORED_ALGS:
        run = diffusion_generate(model, prompt([9]), mask_id=MASK, max_new_tokens=3, steps=2, alg=alg)
        committed[alg] = committed_at(run, 0)
    assert commits_per_step(3, 2) == [1, 2]
    assert committed == {"maskgit_plus": [1], "topk_margin": [2], "entropy": [3]}


def test_at_temperature_zero_every_token_is_the_argmax() -> None:
    logits_LV = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(3))
    for alg in ["origin", *SCORED_ALGS]:
        run = diffusion_generate(
            table_model(logits_LV), prompt([9]), mask_id=MASK, max_new_tokens=7, steps=1, alg=alg, top_p=0.5
        )
        assert torch.equal(run.ids[0, 1:], logits_LV[1:].argmax(dim=-1))


def test_top_p_changes_the_order_even_at_temperature_zero() -> None:
    # Cut at 0.45, position 1 keeps 0.40 of 0.80 and position 2 keeps 0.39 of 0.451.
    model = table_model(probabilities([1.0], [0.40, 0.40, 0.20], [0.39] + [0.061] * 10, [1 / 30] * 30))

    def first_committed(top_p: float | None) -> list[int]:
        run = diffusion_generate(
            model, prompt([9]), mask_id=MASK, max_new_tokens=3, steps=2, alg="maskgit_plus", top_p=top_p
        )
        return committed_at(run, 0)

    assert first_committed(None) == [1]
    assert first_committed(1.0) == [1]
    assert first_committed(0.45) == [2]


def test_temperature_changes_the_order() -> None:
    # Squared and rescaled, [0.5, 0.5] stays as it is and [0.7, 0.06 × 5] sharpens to [0.96, 0.007 × 5].
    model = table_model(probabilities([1.0], [0.5, 0.5], [0.7] + [0.06] * 5, [1 / 30] * 30))
    committed = {}
    for temperature in (0.0, 0.5):
        torch.manual_seed(0)
        run = diffusion_generate(
            model, prompt([9]), mask_id=MASK, max_new_tokens=3, steps=2, alg="entropy", temperature=temperature
        )
        committed[temperature] = committed_at(run, 0)
    assert committed == {0.0: [1], 0.5: [2]}


def test_equal_scores_leave_the_choice_to_topk() -> None:
    model = table_model(torch.zeros(8, VOCAB))
    run = diffusion_generate(model, prompt([9]), mask_id=MASK, max_new_tokens=7, steps=3, alg="maskgit_plus")
    count = commits_per_step(7, 3)[0]
    score_BL = torch.tensor([[-torch.inf] + [1 / VOCAB] * 7])
    assert count == 2
    assert committed_at(run, 0) == sorted(score_BL.topk(count).indices[0].tolist())


def test_the_score_is_kept_in_the_dtype_of_the_logits() -> None:
    # Both logits fit bfloat16 exactly; their top probabilities 0.99966 and 0.99968 are the same bfloat16 number.
    pick_of_equals = int(torch.tensor([[-torch.inf, 1.0, 1.0, 1.0]], dtype=torch.bfloat16).topk(1).indices)
    surest = 1 if pick_of_equals != 1 else 2
    logits_LV = torch.full((4, VOCAB), -1e4)
    logits_LV[:, 0] = 0.0
    logits_LV[:, 1] = -8.0
    logits_LV[surest, 1] = -8.0625
    for dtype, expected in [(torch.float32, surest), (torch.bfloat16, pick_of_equals)]:
        model = table_model(logits_LV.to(dtype))
        run = diffusion_generate(model, prompt([9]), mask_id=MASK, max_new_tokens=3, steps=2, alg="maskgit_plus")
        assert committed_at(run, 0) == [expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alg", ["origin", *SCORED_ALGS])
def test_half_precision_logits_run_through(alg: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    run = diffusion_generate(
        random_model(dtype=dtype),
        prompt([1, 2]),
        mask_id=MASK,
        max_new_tokens=8,
        steps=4,
        alg=alg,
        temperature=0.5,
        top_p=0.9,
        alg_temp=None,
    )
    assert run.ids.dtype == torch.long
    assert not (run.ids == MASK).any()


# The filters


def drawn_tokens(
    row: list[float], *, temperature: float = 1.0, top_p: float | None = None, top_k: int | None = None
) -> set[int]:
    torch.manual_seed(0)
    run = diffusion_generate(
        table_model(probabilities(*[row] * 301)),
        prompt([9]),
        mask_id=MASK,
        max_new_tokens=300,
        steps=1,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )
    return set(run.ids[0, 1:].tolist())


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    assert drawn_tokens([0.2, 0.5, 0.3]) == {0, 1, 2}
    assert drawn_tokens([0.2, 0.5, 0.3], top_p=0.6) == {1, 2}
    assert drawn_tokens([0.2, 0.5, 0.3], top_p=0.4) == {1}


def test_temperature_comes_before_top_p() -> None:
    assert drawn_tokens([0.5, 0.3, 0.2], top_p=0.65) == {0, 1}
    assert drawn_tokens([0.5, 0.3, 0.2], top_p=0.65, temperature=0.5) == {0}  # 0.66, 0.24, 0.11


def test_top_k_keeps_ties_with_the_last_one() -> None:
    assert drawn_tokens([0.1, 0.4, 0.2, 0.3], top_k=2) == {1, 3}
    assert drawn_tokens([0.1, 0.4, 0.25, 0.25], top_k=2) == {1, 2, 3}


def test_top_k_none_is_off_and_a_large_one_changes_nothing() -> None:
    row = [0.3, 0.3, 0.2, 0.2]
    assert drawn_tokens(row, top_k=None) == drawn_tokens(row, top_k=10 * VOCAB) == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("alg", ["origin", "entropy"])
def test_top_k_zero_crashes(alg: str, temperature: float) -> None:
    with pytest.raises(IndexError):
        diffusion_generate(
            random_model(),
            prompt([1]),
            mask_id=MASK,
            max_new_tokens=4,
            steps=1,
            alg=alg,
            temperature=temperature,
            top_k=0,
        )


# Randomness


def test_origin_picks_positions_first_and_draws_tokens_for_those_alone() -> None:
    logits_LV = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(4))
    logits_LV[:, MASK] = -1e4
    ids = prompt([1, 2], [3, MASK])

    torch.manual_seed(5)
    canvas = torch.cat([ids, torch.full((2, 4), MASK)], dim=1)
    times = torch.linspace(1, 1e-3, 4)
    for step in range(3):
        masked = [(row, j) for row in range(2) for j in range(6) if canvas[row, j] == MASK]
        chance = 1.0 if step == 2 else float(1 - times[step + 1] / times[step])
        picked = [place for place, u in zip(masked, torch.rand(len(masked)).tolist(), strict=True) if u < chance]
        rows_MV = logits_LV[[j for _, j in picked]]
        tokens = Categorical(probs=torch.softmax(rows_MV / 0.8, dim=-1)).sample()  # type: ignore[no-untyped-call]
        for (row, j), token in zip(picked, tokens, strict=True):
            canvas[row, j] = token
    state = torch.get_rng_state()

    torch.manual_seed(5)
    run = diffusion_generate(table_model(logits_LV), ids, mask_id=MASK, max_new_tokens=4, steps=3, temperature=0.8)
    assert torch.equal(run.ids, canvas)
    assert torch.equal(torch.get_rng_state(), state)


def test_scored_algs_draw_a_token_for_every_mask_and_then_the_positions() -> None:
    logits_LV = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(6))
    logits_LV[:, MASK] = -1e4
    ids = prompt([1], [2])

    torch.manual_seed(7)
    probs_MV = torch.softmax(torch.cat([logits_LV[1:], logits_LV[1:]]) / 0.8, dim=-1)
    tokens_M = Categorical(probs=probs_MV).sample()  # type: ignore[no-untyped-call]
    score_BL = torch.full((2, 6), -torch.inf)
    score_BL[:, 1:] = probs_MV.gather(1, tokens_M[:, None]).view(2, 5)
    count = commits_per_step(5, 2)[0]
    picked_BK = torch.multinomial(torch.softmax(score_BL / 0.3, dim=-1), count)
    canvas = torch.cat([ids, torch.full((2, 5), MASK)], dim=1)
    for row in range(2):
        for j in picked_BK[row].tolist():
            canvas[row, j] = tokens_M.view(2, 5)[row, j - 1]

    torch.manual_seed(7)
    run = diffusion_generate(
        table_model(logits_LV),
        ids,
        mask_id=MASK,
        max_new_tokens=5,
        steps=2,
        temperature=0.8,
        alg="maskgit_plus",
        alg_temp=0.3,
    )
    assert count == 2
    assert torch.equal(run.history[0], canvas)


@pytest.mark.parametrize("alg_temp", [None, 0.0])
@pytest.mark.parametrize("alg", SCORED_ALGS)
def test_greedy_scored_runs_use_no_randomness(alg: str, alg_temp: float | None) -> None:
    before = torch.get_rng_state()
    diffusion_generate(random_model(), prompt([1]), mask_id=MASK, max_new_tokens=6, steps=3, alg=alg, alg_temp=alg_temp)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_decides_the_run() -> None:
    def final(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return diffusion_generate(
            random_model(), prompt([1]), mask_id=MASK, max_new_tokens=12, steps=4, temperature=1.0
        ).ids.tolist()

    assert final(0) == final(0)
    assert final(0) != final(1)


def test_one_bad_row_silently_turns_every_draw_into_an_argmax() -> None:
    row = [0.3, 0.4, 0.3]
    logits_LV = probabilities(*[row] * 41)
    assert drawn_tokens(row) == {0, 1, 2}
    logits_LV[40] = torch.nan
    torch.manual_seed(0)
    run = diffusion_generate(
        table_model(logits_LV), prompt([9]), mask_id=MASK, max_new_tokens=40, steps=1, temperature=1.0
    )
    assert set(run.ids[0, 1:40].tolist()) == {1}


# Defects that come from averaging the mask count over the batch


def test_a_row_with_fewer_masks_has_prompt_tokens_overwritten_by_masks() -> None:
    ids = prompt([5, 6, 7, 8], [MASK, MASK, MASK, MASK])  # with two new ones: 2 and 6 masks, 4 on average
    for alg in SCORED_ALGS:
        run = diffusion_generate(random_model(), ids, mask_id=MASK, max_new_tokens=2, steps=1, alg=alg)
        assert not (run.ids[0, 4:] == MASK).any()
        overwritten = run.ids[0, :4] != ids[0]
        assert overwritten.sum() == 2
        assert (run.ids[0, :4][overwritten] == MASK).all()
        assert (run.ids[1] == MASK).sum() == 2  # while the other row ends with masks left


def test_overwritten_prompt_tokens_are_decoded_again_in_later_steps() -> None:
    ids = prompt([5] * 11, [MASK] * 11)
    run = diffusion_generate(random_model(), ids, mask_id=MASK, max_new_tokens=1, steps=3, alg="maskgit_plus")
    # 1 and 12 masks: 6.5 on average, 2 to commit, so row 0 commits its only mask and makes a new one.
    assert mask_counts(run)[0] == [1, 10]
    (place,) = (run.history[0][0] == MASK).nonzero().flatten().tolist()
    assert place < 11
    assert run.history[1][0, place] not in (5, MASK)


def test_origin_has_no_trouble_with_unequal_rows() -> None:
    torch.manual_seed(0)
    ids = prompt([5, 6, 7, 8], [MASK, MASK, MASK, MASK])
    run = diffusion_generate(random_model(), ids, mask_id=MASK, max_new_tokens=2, steps=3)
    assert not (run.ids == MASK).any()
    assert torch.equal(run.ids[0, :4], ids[0])


def test_a_finished_row_crashes_the_draw_of_positions() -> None:
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="probability tensor"):
        diffusion_generate(
            random_model(),
            prompt([5] * 11, [MASK] * 11),
            mask_id=MASK,
            max_new_tokens=1,
            steps=12,
            alg="entropy",
            alg_temp=0.5,
        )


# What is refused


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="must outgrow the prompt"):
        diffusion_generate(random_model(), prompt([MASK]), mask_id=MASK, max_new_tokens=0, steps=1)


def test_an_unknown_alg_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match=r"'best'.*origin, maskgit_plus, topk_margin, entropy"):
        diffusion_generate(random_model(), prompt([1]), mask_id=MASK, max_new_tokens=1, steps=1, alg="best")
