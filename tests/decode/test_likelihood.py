"""Log-likelihoods against brute force: the chain rule step by step, the bound over every order of the tokens."""

import itertools
import math

import pytest
import torch

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import FullDenoiser
from unmask.decode.likelihood import all_masks, answer_log_likelihood, draw_masks
from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.errors import CanvasError, NumericsError, SettingsError

from checkpoints import END_ID, MASK_ID, VOCAB_SIZE, scripted, spell, tiny_model
from doubles import mixed_scores

PROMPT = [104, 105, 33]
ANSWER = [97, 98, 32, 99]


def formula(seed: int = 0) -> Model:
    """A diffusion model whose scores are a formula of the row."""
    return scripted(tiny_model("full"), mixed_scores(VOCAB_SIZE, seed=seed))


def log_p(model: Model, row: list[int | None], position: int, token: int) -> float:
    """log P(token at position | row), one question at a time."""
    canvas = model.canvas([row])
    column = int(canvas.start_B[0]) + position
    (logits_1V,) = FullDenoiser(model.backbone).logits(canvas, Positions(torch.tensor([0]), torch.tensor([column])))
    return float(logits_1V[0].double().log_softmax(-1)[token])


def over_all_orders(model: Model, prompt: list[int], answer: list[int]) -> float:
    """The bound as the mean over every order of filling the answer in, token by token: another sum than the code's."""
    orders = list(itertools.permutations(range(len(answer))))
    total = 0.0
    for order in orders:
        row: list[int | None] = [*prompt, *[None] * len(answer)]
        for place in order:
            total += log_p(model, row, len(prompt) + place, answer[place])
            row[len(prompt) + place] = answer[place]
    return total / len(orders)


def over_all_masks(model: Model, prompt: list[int], answer: list[int]) -> float:
    """The paper's expectation: l uniform, then every set of l masks."""
    length, total = len(answer), 0.0
    for count in range(1, length + 1):
        sets = list(itertools.combinations(range(length), count))
        for masked in sets:
            row = [*prompt, *(None if i in masked else token for i, token in enumerate(answer))]
            logps = [log_p(model, row, len(prompt) + i, answer[i]) for i in masked]
            total += length / count * sum(logps) / len(sets) / length
    return total


# The sets of masks


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_all_masks_are_every_set_once_with_weights_that_make_each_size_equally_likely(length):
    masks = all_masks(length)
    rows = [tuple(row) for row in masks.is_masked_NL.int().tolist()]
    assert sorted(rows) == sorted(set(itertools.product((0, 1), repeat=length)) - {(0,) * length})
    probability_N = masks.weight_N * masks.is_masked_NL.sum(-1) / length
    for count in range(1, length + 1):
        of_size = probability_N[masks.is_masked_NL.sum(-1) == count]
        assert float(of_size.sum()) == pytest.approx(1 / length)


def test_drawn_sizes_come_equally_often_when_the_strata_divide_evenly():
    masks = draw_masks(8, 32, seed=3)
    sizes = masks.is_masked_NL.sum(-1)
    assert sizes.tolist() == sorted([*range(1, 9)] * 4)
    torch.testing.assert_close(masks.weight_N, 8 / sizes.double() / 32)


def test_drawn_sizes_are_uniform_when_the_strata_do_not_divide_evenly():
    sizes = torch.cat([draw_masks(5, 12, seed).is_masked_NL.sum(-1) for seed in range(1000)])
    share = sizes.bincount(minlength=6)[1:] / len(sizes)
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.005, rtol=0)


def test_drawn_positions_are_equally_likely():
    share_L = draw_masks(5, 20_000, seed=1).is_masked_NL.double().mean(0)
    torch.testing.assert_close(share_L, torch.full((5,), 0.6, dtype=torch.float64), atol=0.015, rtol=0)


# The bound


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_the_bound_is_the_expectation_over_all_masks_and_over_all_orders(length):
    model, answer = tiny_model("full"), ANSWER[:length]
    found = answer_log_likelihood(model, PROMPT, answer, num_samples=15)
    assert found.value == pytest.approx(over_all_masks(model, PROMPT, answer), rel=1e-5)
    assert found.value == pytest.approx(over_all_orders(model, PROMPT, answer), rel=1e-5)
    assert (found.standard_error, found.num_samples) == (0.0, 2**length - 1)


def test_the_bound_lies_below_the_likelihood_in_a_world_that_can_be_enumerated():
    model = tiny_model("full")
    first, second = 97, 98
    ordered = log_p(model, [*PROMPT, None, None], 3, first) + log_p(model, [*PROMPT, first, None], 4, second)
    reversed_ = log_p(model, [*PROMPT, None, None], 4, second) + log_p(model, [*PROMPT, None, second], 3, first)
    mixture = math.log((math.exp(ordered) + math.exp(reversed_)) / 2)  # the model that fills in a random order
    found = answer_log_likelihood(model, PROMPT, [first, second])
    assert found.value == pytest.approx((ordered + reversed_) / 2, rel=1e-5)
    assert found.value <= mixture
    assert not found.is_exact


def test_one_token_is_exact():
    model = tiny_model("full")
    found = answer_log_likelihood(model, PROMPT, [97], num_samples=1)
    assert found.is_exact
    assert found.value == pytest.approx(log_p(model, [*PROMPT, None], 3, 97), rel=1e-5)


def test_drawn_samples_are_unbiased_and_their_standard_error_is_honest():
    model, answer = formula(), [97, 98, 99, 100, 101, 32]
    truth = answer_log_likelihood(model, PROMPT, answer, num_samples=63)
    assert truth.standard_error == 0
    found = [answer_log_likelihood(model, PROMPT, answer, num_samples=12, seed=seed) for seed in range(60)]
    values = torch.tensor([one.value for one in found], dtype=torch.float64)
    spread = float(values.std())
    assert abs(float(values.mean()) - truth.value) < 3.5 * spread / math.sqrt(len(found))
    claimed = math.sqrt(sum(one.standard_error**2 for one in found) / len(found))
    assert 0.85 * spread < claimed < 2.5 * spread
    assert all(one.num_samples == 12 for one in found)


def test_a_single_sample_says_that_it_knows_no_error():
    found = answer_log_likelihood(formula(), PROMPT, ANSWER, num_samples=1)
    assert found.standard_error == math.inf
    assert math.isfinite(found.value)


def test_the_seed_alone_decides_what_is_drawn():
    def value(seed: int) -> float:
        return answer_log_likelihood(formula(), PROMPT, ANSWER * 2, num_samples=8, seed=seed).value

    torch.manual_seed(1)
    first = value(5)
    torch.manual_seed(2)
    assert value(5) == first
    assert value(6) != first


@pytest.mark.parametrize("kind", ["full", "block"])
def test_the_batch_size_does_not_matter(kind):
    model, answer = tiny_model(kind), [*b"a bit more than a block"]
    found = [
        answer_log_likelihood(model, PROMPT, answer, num_samples=9, seed=4, batch_size=size) for size in (1, 4, 100)
    ]
    assert [one.value for one in found] == pytest.approx([found[0].value] * 3, rel=1e-5)
    assert [one.standard_error for one in found] == pytest.approx([found[0].standard_error] * 3, rel=1e-3)


def test_the_prompt_is_never_masked_and_the_answer_is_never_without_a_mask():
    seen = []

    class Watched(Model):
        def canvas(self, rows, **options) -> Canvas:
            seen.extend(list(row) for row in rows)
            return super().canvas(rows, **options)

    model = tiny_model("full")
    answer_log_likelihood(Watched(model.backbone, model.tokenizer), PROMPT, ANSWER, num_samples=5)
    assert len(seen) >= 5
    assert all(row[: len(PROMPT)] == PROMPT and None in row[len(PROMPT) :] for row in seen)


def test_a_diffusion_model_may_have_no_prompt():
    model = tiny_model("full")
    assert answer_log_likelihood(model, [], [97, 98]).value == pytest.approx(
        over_all_masks(model, [], [97, 98]), rel=1e-5
    )


# Blocks


def test_block_attention_takes_the_bound_of_each_block_after_the_finished_ones():
    model = tiny_model("block", block_length=2)
    answer = [97, 98, 32, 99, 100]  # behind three tokens: blocks of 1, 2 and 2
    found = answer_log_likelihood(model, PROMPT, answer)
    parts = [over_all_masks(model, [*PROMPT, *answer[:a]], answer[a:b]) for a, b in ((0, 1), (1, 3), (3, 5))]
    assert found.value == pytest.approx(sum(parts), rel=1e-5)
    assert (found.num_samples, found.is_exact) == (1 + 3 + 3, False)


def test_blocks_of_one_token_are_exact():
    model = tiny_model("block", block_length=1)
    found = answer_log_likelihood(model, PROMPT, ANSWER)
    one_by_one = [log_p(model, [*PROMPT, *ANSWER[:i], None], 3 + i, token) for i, token in enumerate(ANSWER)]
    assert found.value == pytest.approx(sum(one_by_one), rel=1e-5)
    assert found.is_exact


def test_the_errors_of_blocks_add_up_in_squares():
    model, answer = tiny_model("block", block_length=8), [*range(97, 118)]  # blocks of 5, 8 and 8
    whole = answer_log_likelihood(model, PROMPT, answer, num_samples=31, seed=2)
    first = answer_log_likelihood(model, PROMPT, answer[:13], num_samples=31, seed=2)  # the first is enumerated
    assert 0 < first.standard_error < whole.standard_error
    assert whole.num_samples == 93


# Causal models


def test_a_causal_model_is_exact_and_equals_the_chain_rule_token_by_token():
    model = tiny_model("causal")
    found = answer_log_likelihood(model, PROMPT, ANSWER, num_samples=3)
    total = 0.0
    for number, token in enumerate(ANSWER):
        row_1L = torch.tensor([[*PROMPT, *ANSWER[:number]]])
        position_1L = torch.arange(row_1L.shape[1])[None]
        mask_11LL = torch.ones(row_1L.shape[1], row_1L.shape[1]).tril().bool()[None, None]
        with torch.inference_mode():
            hidden_1LD = model.backbone(row_1L, position_1L, attn_mask=mask_11LL)
            total += float(model.backbone.logits(hidden_1LD[0, -1:]).double().log_softmax(-1)[0, token])
    assert found.value == pytest.approx(total, rel=1e-5)
    assert (found.is_exact, found.standard_error, found.num_samples) == (True, 0.0, 1)


# Greedy answers


@pytest.mark.parametrize("kind", ["causal", "full", "block"])
def test_the_models_own_greedy_answer_is_greedy_and_any_other_is_not(kind):
    model = tiny_model(kind, seed=1)
    run = model.run_rows(
        [[*PROMPT, *[None] * 12]],
        DecodeSettings(max_new_tokens=12, policy="maskgit_plus"),
        samples=[0],
        end_ids=(),
    )
    run.finish()
    own = [token for token in run.canvas.row_ids(0)[len(PROMPT) :] if token is not None]
    assert answer_log_likelihood(model, PROMPT, own, num_samples=2).is_greedy
    for place in (0, 5, 11):
        other = [*own[:place], own[place] + (1 if own[place] != 97 else 2), *own[place + 1 :]]
        assert not answer_log_likelihood(model, PROMPT, other, num_samples=2).is_greedy


def test_an_end_token_in_the_answer_is_a_token_like_the_others():
    model = scripted(tiny_model("full"), spell("ab", start=len(PROMPT)))
    assert answer_log_likelihood(model, PROMPT, [97, 98, END_ID, END_ID]).is_greedy
    assert not answer_log_likelihood(model, PROMPT, [97, 98, END_ID, 97]).is_greedy


# Errors


def test_an_empty_answer_is_refused():
    with pytest.raises(CanvasError, match=r"the answer is empty.*give at least one token"):
        answer_log_likelihood(tiny_model("full"), PROMPT, [])


def test_an_answer_that_does_not_fit_says_how_much_there_is_and_how_much_fits():
    with pytest.raises(CanvasError, match=r"prompt has 3 tokens and the answer 14,.*holds 16; leave out the beginning"):
        answer_log_likelihood(tiny_model("full", max_positions=16), PROMPT, [97] * 14)
    assert answer_log_likelihood(tiny_model("full", max_positions=16), PROMPT, [97] * 13, num_samples=1).value < 0


def test_a_causal_model_without_a_prompt_is_refused():
    with pytest.raises(CanvasError, match=r"the prompt is empty, and a causal model.*beginning-of-text token"):
        answer_log_likelihood(tiny_model("causal"), [], [97])


@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(SettingsError, match=f"{name}=0 is not a count; it must be at least 1"):
        answer_log_likelihood(tiny_model("full"), PROMPT, ANSWER, **{name: 0})


def test_a_network_that_returns_nan_is_named():
    model = scripted(tiny_model("full"), lambda row, position: torch.full((VOCAB_SIZE,), math.nan))
    with pytest.raises(NumericsError, match="not numbers"):
        answer_log_likelihood(model, PROMPT, ANSWER)


def test_the_mask_token_is_never_in_the_models_own_answer():
    scores = spell([MASK_ID], start=len(PROMPT))
    assert not answer_log_likelihood(scripted(tiny_model("full"), scores), PROMPT, [MASK_ID]).is_greedy
