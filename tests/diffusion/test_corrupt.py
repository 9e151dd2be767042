"""Masks and weights against enumeration, on a text of five tokens over four words.

`EXACT` is a table of log-probabilities of every token given every set of masks, drawn at random: the bound is then a
finite sum, and each way to estimate it must have that sum as its mean.
"""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.diffusion.corrupt import (
    Corrupted,
    clean_prefix,
    corrupt,
    restrict,
    row_uniforms,
    stratified_levels,
    truncate,
)
from unmask.diffusion.noise import mask_probability
from unmask.diffusion.settings import Corruption
from unmask.errors import SettingsError

L = 5
TEXT = (0, 3, 1, 1, 2)
SETS = [torch.tensor(bits, dtype=torch.bool) for bits in itertools.product([False, True], repeat=L)]


def table(seed: int = 0) -> Tensor:
    """NLL [2^L, L] of each token of TEXT given each set of masks; 0 at visible tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2**L, L, 4, generator=generator, dtype=torch.float64)
    nll = -logits.log_softmax(-1)[:, torch.arange(L), torch.tensor(TEXT)]
    return nll * torch.stack(SETS)


NLL = table()


def number(is_masked: Tensor) -> Tensor:
    """Index of each set of masks in SETS."""
    return (is_masked.long() * 2 ** torch.arange(L - 1, -1, -1)).sum(-1)


def exact_bound() -> float:
    """The mean over all orders of filling the text in, one token at a time: no noise levels, no weights."""
    total = 0.0
    for order in itertools.permutations(range(L)):
        is_masked = torch.ones(L, dtype=torch.bool)
        for place in order:
            total += float(NLL[number(is_masked), place])
            is_masked[place] = False
    return total / math.factorial(L)


BOUND = exact_bound()


def draw(levels: Tensor, *, document: list[int] | None = None, first: int = 0, **changes: Any) -> Corrupted:
    """Masks of as many copies of one row as there are levels."""
    document_BL = torch.tensor([document or [0] * L]).expand(len(levels), -1)
    return corrupt(
        document_BL >= 0,
        document_BL,
        levels,
        first + torch.arange(len(levels)),
        corruption=Corruption(**changes),
        seed=1,
    )


def chances(corruption: Corruption, level: float) -> dict[int, float]:
    """P(set of masks) at one level from the definition of each kind, for one document of L tokens."""
    t = corruption.t_min + (corruption.t_max - corruption.t_min) * level
    p = float(mask_probability(corruption.schedule, torch.tensor(t, dtype=torch.float64)))
    out = {}
    for index, is_masked in enumerate(SETS):
        k = int(is_masked.sum())
        if corruption.kind == "bernoulli":
            out[index] = p**k * (1 - p) ** (L - k)
        elif corruption.kind == "exact_k":
            count = math.floor(p * (L + 1)) if corruption.pairs else math.floor(p * L) + 1
            out[index] = (k == count) / math.comb(L, count)
        else:
            out[index] = math.prod(
                block_chance(block.tolist(), max(p_of, 1 / (corruption.block_length or 1)))
                for block, p_of in zip(
                    is_masked.split(corruption.block_length or 1), block_p(corruption, level), strict=True
                )
            )
    return out


def block_p(corruption: Corruption, level: float) -> list[float]:
    """Mask probabilities of the blocks of one row: each has the level of the last plus the golden ratio, modulo 1."""
    golden = (math.sqrt(5) - 1) / 2
    blocks = math.ceil(L / (corruption.block_length or 1))
    t = [corruption.t_min + (corruption.t_max - corruption.t_min) * ((level + i * golden) % 1) for i in range(blocks)]
    return mask_probability(corruption.schedule, torch.tensor(t, dtype=torch.float64)).tolist()


def block_chance(block: list[bool], u: float) -> float:
    """Of one block's masks when the empty set is replaced by one token at random."""
    k, n = sum(block), len(block)
    forced = (1 - u) ** n / n if k == 1 else 0.0
    return (u**k * (1 - u) ** (n - k) if k else 0.0) + forced


KINDS = [
    Corruption(kind="bernoulli"),
    Corruption(kind="bernoulli", schedule="cosine"),
    Corruption(kind="exact_k"),
    Corruption(kind="exact_k", schedule="cosine", t_min=0.2, t_max=0.7),
    Corruption(kind="exact_k", pairs=True),
    Corruption(kind="block", block_length=2),
    Corruption(kind="block", block_length=3, schedule="cosine"),
]


@pytest.mark.parametrize("corruption", KINDS, ids=str)
@pytest.mark.parametrize("level", [0.07, 0.5, 0.93])
def test_every_set_of_masks_comes_as_often_as_its_kind_says(corruption: Corruption, level: float) -> None:
    count = 6_000
    index_B = torch.arange(0, 2 * count, 2)  # even ones: the first of each pair
    document_BL = torch.zeros(count, L, dtype=torch.long)
    levels = torch.full((count,), level, dtype=torch.float64)
    masks = corrupt(document_BL == 0, document_BL, levels, index_B, corruption=corruption, seed=3)
    seen = torch.bincount(number(masks.is_masked_BL), minlength=2**L) / count
    expected = torch.tensor(list(chances(corruption, level).values()))
    assert float(expected.sum()) == pytest.approx(1)
    assert bool((seen[expected == 0] == 0).all())
    error = (expected * (1 - expected) / count).sqrt().clamp(min=1 / count)
    assert float(((seen - expected) / error).abs().max()) < 5


@pytest.mark.parametrize("corruption", KINDS, ids=str)
@pytest.mark.parametrize("level", [0.0, 0.13, 0.5, 0.999])
def test_the_stated_probability_is_the_exact_marginal_of_each_token(corruption: Corruption, level: float) -> None:
    masks = corrupt(
        torch.ones(1, L, dtype=torch.bool),
        torch.zeros(1, L, dtype=torch.long),
        torch.tensor([level], dtype=torch.float64),
        torch.tensor([0]),
        corruption=corruption,
        seed=0,
    )
    marginal_L = sum(chance * SETS[index].double() for index, chance in chances(corruption, level).items())
    torch.testing.assert_close(masks.mask_probability_BL[0].double(), marginal_L, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("corruption", KINDS, ids=str)
def test_every_token_counts_once_over_the_levels(corruption: Corruption) -> None:
    """The mean weight over all levels, 0 where a token is visible: each token's share of the loss is 1."""
    count = 20_000
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    document_BL = torch.zeros(count, L, dtype=torch.long)
    masks = corrupt(document_BL == 0, document_BL, levels, 2 * torch.arange(count), corruption=corruption, seed=0)
    share_L = masks.loss_weight_BL.double().mean(0)
    assert float((share_L - 1).abs().max()) < (0.12 if corruption.kind == "bernoulli" else 0.04)


def expectation(corruption: Corruption, level: float, index: int) -> float:
    """E[Σ weight · NLL] at one level, over all sets: weights from `corrupt`, one draw per set that has a chance."""
    total, chance = 0.0, chances(corruption, level)
    weights = weights_at(corruption, level, index)
    for number_, p in chance.items():
        nll = NLL[number_] if index % 2 == 0 else NLL[2**L - 1 - number_]
        total += p * float((weights * nll).sum())
    return total


def weights_at(corruption: Corruption, level: float, index: int) -> Tensor:
    """The weight of each token where it is masked: the same in every set of one level."""
    rows = 200
    masks = corrupt(
        torch.ones(rows, L, dtype=torch.bool),
        torch.zeros(rows, L, dtype=torch.long),
        torch.full((rows,), level, dtype=torch.float64),
        index + 2 * torch.arange(rows),
        corruption=corruption,
        seed=0,
    )
    weight_L = masks.loss_weight_BL.amax(0).double()
    spread = (masks.loss_weight_BL - weight_L.float()) * masks.is_masked_BL
    assert float(spread.abs().max()) == 0
    return weight_L


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_exact_k_has_the_bound_as_its_mean(schedule: str) -> None:
    corruption = Corruption(kind="exact_k", schedule=schedule, t_min=0.0)  # type: ignore[arg-type]
    count = L if schedule == "linear" else 150  # under the linear schedule constant between the multiples of 1/L
    levels = [(i + 0.5) / count for i in range(count)]
    mean = sum(expectation(corruption, level, 0) for level in levels) / len(levels)
    assert mean == pytest.approx(BOUND, rel=1e-5 if schedule == "linear" else 3e-3)


@pytest.mark.parametrize("index", [0, 1])
def test_each_half_of_a_pair_has_the_bound_as_its_mean(index: int) -> None:
    corruption = Corruption(kind="exact_k", pairs=True, t_min=0.0)
    levels = [(k + 0.5) / (L + 1) for k in range(L + 1)]
    mean = sum(expectation(corruption, level, index) for level in levels) / len(levels)
    assert mean == pytest.approx(BOUND, rel=1e-5)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("pairs", [False, True])
def test_bernoulli_masks_have_the_bound_as_their_mean(index: int, pairs: bool) -> None:
    """At p the sum over sets is a polynomial of degree L - 1 in p: Gauss's four nodes integrate it exactly."""
    corruption = Corruption(kind="bernoulli", pairs=pairs, t_min=0.0)
    near, far = math.sqrt(3 / 7 - 2 / 7 * math.sqrt(6 / 5)), math.sqrt(3 / 7 + 2 / 7 * math.sqrt(6 / 5))
    heavy, light = (18 + math.sqrt(30)) / 72, (18 - math.sqrt(30)) / 72
    nodes = [(near, heavy), (-near, heavy), (far, light), (-far, light)]
    flip = index if pairs else 0
    mean = sum(weight * expectation(corruption, (1 + node) / 2, flip) for node, weight in nodes)
    assert mean == pytest.approx(BOUND, rel=1e-5)


def test_a_narrower_range_of_times_takes_the_mean_of_the_bounds_integrand_there() -> None:
    levels = [(i + 0.5) / 40 for i in range(40)]
    part = Corruption(kind="bernoulli", t_min=0.3, t_max=0.8)
    whole = Corruption(kind="bernoulli", t_min=0.0)
    mean = sum(expectation(part, level, 0) for level in levels) / 40
    inside = sum(expectation(whole, 0.3 + 0.5 * level, 0) for level in levels) / 40
    assert mean == pytest.approx(inside, rel=1e-6)


def test_a_pair_masks_every_token_once() -> None:
    for kind in ("bernoulli", "exact_k"):
        masks = draw(stratified_levels(64, seed=0, step=0, pairs=True), kind=kind, pairs=True)
        assert bool((masks.is_masked_BL[0::2] ^ masks.is_masked_BL[1::2]).all())
        both = masks.mask_probability_BL[0::2] + masks.mask_probability_BL[1::2]
        torch.testing.assert_close(both, torch.ones(32, L))


def test_no_weight_of_a_pair_exceeds_the_inverse_of_the_least_time() -> None:
    levels = torch.tensor([0.9999999] * 2000, dtype=torch.float64)
    masks = draw(levels, kind="bernoulli", pairs=True, t_min=0.05)
    assert float(masks.loss_weight_BL.max()) == pytest.approx(20, rel=1e-5)


def test_every_block_has_a_mask_even_at_the_least_noise() -> None:
    document = [0] * 7 + [1] * 6 + [-1] * 3
    masks = draw(torch.zeros(300, dtype=torch.float64), document=document, kind="block", block_length=4)
    for start, stop in ((0, 4), (4, 7), (7, 11), (11, 13)):  # blocks begin anew with each document
        assert bool(masks.is_masked_BL[:, start:stop].any(1).all())
    assert not masks.is_masked_BL[:, 13:].any()


def test_a_block_without_maskable_tokens_is_left_alone() -> None:
    is_maskable = torch.tensor([[False, False, True, True]]).expand(50, -1)
    masks = corrupt(
        is_maskable,
        torch.zeros(50, 4, dtype=torch.long),
        torch.zeros(50, dtype=torch.float64),
        torch.arange(50),
        corruption=Corruption(kind="block", block_length=2),
        seed=0,
    )
    assert not masks.is_masked_BL[:, :2].any()
    assert bool(masks.is_masked_BL[:, 2:].any(1).all())
    assert bool(masks.loss_weight_BL.isfinite().all())


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    kind=st.sampled_from(["bernoulli", "exact_k", "block"]),
    schedule=st.sampled_from(["linear", "cosine"]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    level=st.floats(0, 1, exclude_max=True),
)
def test_only_maskable_tokens_are_masked_and_exact_k_counts_per_document(
    data: st.DataObject, kind: str, schedule: str, lengths: list[int], level: float
) -> None:
    document = [d for d, length in enumerate(lengths) for _ in range(length)] + [-1] * 2
    is_maskable = data.draw(st.lists(st.booleans(), min_size=len(document), max_size=len(document)))
    corruption = Corruption(kind=kind, schedule=schedule, block_length=3 if kind == "block" else None)  # type: ignore[arg-type]
    masks = corrupt(
        torch.tensor([is_maskable]),
        torch.tensor([document]),
        torch.tensor([level], dtype=torch.float64),
        torch.tensor([5]),
        corruption=corruption,
        seed=0,
    )
    allowed = torch.tensor([is_maskable]) & (torch.tensor([document]) >= 0)
    assert not (masks.is_masked_BL & ~allowed).any()
    assert bool((masks.mask_probability_BL[~allowed] == 0).all())
    assert bool((masks.loss_weight_BL[~masks.is_masked_BL] == 0).all())
    assert bool(masks.loss_weight_BL.isfinite().all())
    if kind != "exact_k":
        return
    golden = (math.sqrt(5) - 1) / 2
    for d in range(len(lengths)):
        here = torch.tensor([document]) == d
        size = int((allowed & here).sum())
        t = 1e-3 + (1 - 1e-3) * ((level + d * golden) % 1)
        p = float(mask_probability(corruption.schedule, torch.tensor(t, dtype=torch.float64)))
        assert int((masks.is_masked_BL & here).sum()) == min(math.floor(p * size) + 1, size)


@pytest.mark.parametrize("corruption", [*KINDS, Corruption(kind="bernoulli", pairs=True)], ids=str)
def test_a_slice_of_the_batch_gets_the_same_masks_as_in_the_whole(corruption: Corruption) -> None:
    levels = stratified_levels(12, seed=0, step=4, pairs=corruption.pairs)
    index_B = 48 + torch.arange(12)
    document_BL = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, -1]]).expand(12, -1)
    whole = corrupt(document_BL >= 0, document_BL, levels, index_B, corruption=corruption, seed=0)
    for part in (slice(0, 6), slice(6, 12), slice(3, 4)):
        some = corrupt(
            document_BL[part] >= 0, document_BL[part], levels[part], index_B[part], corruption=corruption, seed=0
        )
        for name in ("is_masked_BL", "loss_weight_BL", "mask_probability_BL"):
            assert torch.equal(getattr(some, name), getattr(whole, name)[part])


def test_masks_depend_on_the_seed_and_on_the_sample() -> None:
    levels = torch.full((20,), 0.5, dtype=torch.float64)
    one, other = draw(levels), draw(levels, first=100)
    assert not torch.equal(one.is_masked_BL, other.is_masked_BL)
    assert len(one.is_masked_BL.unique(dim=0)) > 1


# Levels


@settings(deadline=None)
@given(count=st.integers(1, 40), step=st.integers(0, 10**9))
def test_there_is_one_level_in_each_equal_part(count: int, step: int) -> None:
    levels = stratified_levels(count, seed=3, step=step)
    assert bool(((levels >= 0) & (levels < 1)).all())
    assert torch.equal((levels * count - levels.min() * count).round().sort().values, torch.arange(count).double())


def test_levels_differ_between_steps_and_seeds_and_their_order_is_random() -> None:
    one = stratified_levels(16, seed=0, step=0)
    assert not torch.equal(one, stratified_levels(16, seed=0, step=1))
    assert not torch.equal(one, stratified_levels(16, seed=1, step=0))
    assert not torch.equal(one.argsort(), torch.arange(16))


def test_stratified_levels_and_exact_counts_lower_the_variance_of_the_loss() -> None:
    """A toy loss with NLL growing in the noise, 16 rows of 64 tokens, 150 steps; deterministic."""
    document_BL = torch.zeros(16, 64, dtype=torch.long)

    def spread(kind: str, is_stratified: bool) -> float:
        losses = []
        for step in range(150):
            levels = stratified_levels(16, seed=0, step=step)
            if not is_stratified:
                levels = row_uniforms(0, "independent", torch.tensor([step]), 16)[0]
            masks = corrupt(
                document_BL == 0,
                document_BL,
                levels,
                16 * step + torch.arange(16),
                corruption=Corruption(kind=kind),  # type: ignore[arg-type]
                seed=0,
            )
            nll_BL = 0.4 + 2.6 * masks.is_masked_BL.double().mean(1, keepdim=True) ** 1.5
            losses.append(float((masks.loss_weight_BL * nll_BL).sum() / document_BL.numel()))
        return float(torch.tensor(losses).std())

    independent, stratified, exact = spread("bernoulli", False), spread("bernoulli", True), spread("exact_k", True)
    assert stratified < 0.75 * independent
    assert exact < 0.25 * independent


# What is left of a row


def test_a_share_of_the_rows_is_cut_to_a_random_length_of_at_least_two() -> None:
    document_BL = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3]).expand(4000, -1)
    index_B = torch.arange(4000)
    cut_BL = truncate(document_BL, index_B, share=0.25, seed=0)
    length_B = (cut_BL >= 0).sum(1)
    assert bool((cut_BL.where(cut_BL >= 0, document_BL) == document_BL).all())  # what is left is unchanged
    is_prefix_BL = torch.arange(12) < length_B[:, None]
    assert torch.equal(cut_BL >= 0, is_prefix_BL)
    # Eight lengths, 2 … 9, of which the last changes nothing.
    assert float((length_B < 9).double().mean()) == pytest.approx(0.25 * 7 / 8, abs=0.03)
    assert sorted(set(length_B.tolist())) == list(range(2, 10))
    assert torch.equal(truncate(document_BL, index_B, share=0.0, seed=0), document_BL)
    assert bool(((truncate(document_BL[:100], index_B[:100], share=1.0, seed=0) >= 0).sum(1) >= 2).all())


def test_a_share_of_the_rows_keeps_a_random_prefix_that_leaves_something_to_predict() -> None:
    is_maskable_BL = torch.tensor([[False, True, True, True, False, True, False]]).expand(4000, -1)
    kept_BL = clean_prefix(is_maskable_BL, torch.arange(4000), share=0.5, seed=0)
    assert not (kept_BL & ~is_maskable_BL).any()
    assert bool(kept_BL[:, 5].all())
    is_changed_B = (kept_BL != is_maskable_BL).any(1)
    assert float(is_changed_B.double().mean()) == pytest.approx(0.5 * 4 / 5, abs=0.03)  # a prefix of 1 changes nothing
    first_B = kept_BL.long().argmax(1)
    assert all(not kept_BL[row, : int(first_B[row])].any() for row in range(50))
    nothing_BL = torch.zeros(3, 4, dtype=torch.bool)
    assert torch.equal(clean_prefix(nothing_BL, torch.arange(3), share=1.0, seed=0), nothing_BL)


def test_restriction_cuts_first_and_gives_both_rows_of_a_pair_the_same_rest() -> None:
    document_BL = torch.zeros(40, 9, dtype=torch.long)
    corruption = Corruption(pairs=True, truncate_share=0.5, clean_prefix_share=0.5)
    is_maskable_BL, rest_BL = restrict(document_BL == 0, document_BL, torch.arange(40), corruption=corruption, seed=0)
    assert not is_maskable_BL[rest_BL < 0].any()
    assert torch.equal(rest_BL[0::2], rest_BL[1::2])
    assert torch.equal(is_maskable_BL[0::2], is_maskable_BL[1::2])
    assert len(rest_BL.unique(dim=0)) > 2
    same, unchanged = restrict(document_BL == 0, document_BL, torch.arange(40), corruption=Corruption(), seed=0)
    assert bool(same.all())
    assert torch.equal(unchanged, document_BL)


# Settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "exactk"}, ["'exactk' is not known", "did you mean exact_k"]),
        ({"schedule": "cosin"}, ["schedule 'cosin' is not known", "did you mean cosine"]),
        ({"t_min": 0.5, "t_max": 0.5}, ["t_min=0.5 and t_max=0.5", "0 <= t_min < t_max <= 1"]),
        ({"t_max": 1.5}, ["t_max=1.5", "0 <= t_min < t_max <= 1"]),
        ({"truncate_share": -0.1}, ["truncate_share=-0.1 is not a share", "0 to 1"]),
        ({"clean_prefix_share": 2.0}, ["clean_prefix_share=2.0 is not a share"]),
        ({"block_length": 4}, ["block_length=4 has no effect with kind='exact_k'", "kind='block'"]),
        ({"kind": "block"}, ["kind='block' needs a block_length", "4 is usual"]),
        ({"kind": "block", "block_length": 0}, ["at least 1, and it is 0"]),
        ({"kind": "block", "block_length": 4, "pairs": True}, ["pairs do not go with kind='block'", "pairs=False"]),
        ({"pairs": True, "t_max": 0.5}, ["pairs and t_max=0.5 contradict", "t_max=1"]),
    ],
)
def test_a_wrong_setting_says_what_is_right(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Corruption(**changes)
    for word in words:
        assert word in str(caught.value)


def test_an_odd_batch_holds_no_pairs() -> None:
    with pytest.raises(SettingsError, match="a global batch of 7 rows cannot hold pairs; make it even, such as 8"):
        stratified_levels(7, seed=0, step=0, pairs=True)


def test_the_default_is_valid_and_settings_can_be_replaced() -> None:
    assert replace(Corruption(), t_max=0.5).t_max == 0.5
