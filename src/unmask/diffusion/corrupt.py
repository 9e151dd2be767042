"""Which tokens are masked, and what each masked one weighs.

The bound that masked diffusion trains on is a mean over mask probabilities p and over sets of masked tokens, of the
masked tokens' negative log-likelihoods times 1/p. A corruption is a way to draw both. Each weight is the inverse of the
probability with which its token is masked at that noise, so that every token counts once on average:

    bernoulli  each token by itself with probability p. Weight 1/p (MDLM, 2406.07524).
    exact_k    k of a document's N tokens, k uniform in 1 … N. Weight N/k (LLaDA, 2502.09992, section 2.4). The same
               bound with less variance, as Σ_k 1/N · N/k = Σ_k 1/k; the form with k in 0 … N and (N+1)/k has the same
               mean and spends one draw in N+1 on a row without a mask. Pairs need it: see below.
    block      each block at a noise of its own, p not below 1/block_length, and where that masks none of a block's n
               tokens, one of them at random (Stable-DiffCoder, 2601.15892). A token is then masked with probability
               p + (1-p)^n / n, and weighs the inverse of that; the paper's 1/p overweights low noise.

A level u in [0, 1) of each row says how noisy it is: t = t_min + (t_max - t_min)·u, p = mask_probability(t). The
documents of a packed row (or its blocks) get levels of their own, the row's plus multiples of the golden ratio, modulo
1: each is uniform, those of one row are spread, and rows that were stratified stay so. A schedule other than the linear
one visits probabilities unevenly, which the slope of the schedule in the weight undoes. What is estimated is therefore
the mean of the bound's integrand over the probabilities between those of t_min and t_max: the bound itself for t_min 0
and t_max 1, short of a thousandth of its range at the default t_min. With `block` it is no bound, because of the floor.

With `pairs` the rows 2j and 2j + 1 hold the same text and level; the second masks what the first does not, so every
token is predicted once. Its probability is 1 - p, and under exact_k its count N - k, for which k is uniform in 0 … N.

Random numbers belong to a sample (its global index) and not to a batch, so neither world size, nor workers, nor a
resume changes them.

Letters: N levels, B batch, L length.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.diffusion.documents import document_positions, segment_sums
from unmask.diffusion.noise import mask_probability, mask_slope
from unmask.diffusion.settings import Corruption
from unmask.errors import SettingsError
from unmask.seeds import derive_seed

_GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Its multiples modulo 1 are the most evenly spread of all (Weyl's theorem; the three-gap theorem)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupted:
    """The masks of a batch of rows. The noisy ids are ids_BL.masked_fill(is_masked_BL, mask_id)."""

    is_masked_BL: Bool[Tensor, "B L"]

    loss_weight_BL: Float[Tensor, "B L"]
    """The weight of each masked token in the bound, float32; 0 elsewhere."""

    mask_probability_BL: Float[Tensor, "B L"]
    """Probability of each maskable token to be masked at its noise, float32; 0 elsewhere."""


def stratified_levels(count: int, *, seed: int, step: int, pairs: bool = False) -> Float[Tensor, " N"]:
    """Levels in [0, 1) of a whole global batch, one in each of `count` equal parts, in random order, float64.

    They are (u + i/count) mod 1 for one uniform u (Kingma et al., 2107.00630): each is uniform, and
    their mean over a function varies far less than that of independent ones. A rank takes its slice. With `pairs` the
    rows 2j and 2j + 1 share a level.

    >>> (stratified_levels(4, seed=0, step=7) * 4).long().sort().values.tolist()
    [0, 1, 2, 3]
    """
    if pairs:
        if count % 2:
            raise SettingsError(
                f"a global batch of {count} rows cannot hold pairs; make it even, such as {count + 1}, or set "
                "pairs=False"
            )
        return stratified_levels(count // 2, seed=seed, step=step).repeat_interleave(2)
    generator = torch.Generator().manual_seed(derive_seed(seed, "levels", step))
    first = torch.rand(1, generator=generator, dtype=torch.float64)
    order_N = torch.randperm(count, generator=generator)
    return (first + order_N / count) % 1


def restrict(
    is_maskable_BL: Bool[Tensor, "B L"],
    document_BL: Int[Tensor, "B L"],
    index_B: Int[Tensor, " B"],
    *,
    corruption: Corruption,
    seed: int,
) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L"]]:
    """What is left to mask, and the documents that are left, after random truncation and random clean prefixes.

    It comes before `corrupt`: attention and the loss's denominator count what is left. Without either it changes
    nothing.
    """
    if corruption.pairs:
        index_B = index_B // 2
    if corruption.truncate_share > 0:
        document_BL = truncate(document_BL, index_B, share=corruption.truncate_share, seed=seed)
    is_maskable_BL = is_maskable_BL & (document_BL >= 0)
    if corruption.clean_prefix_share > 0:
        is_maskable_BL = clean_prefix(is_maskable_BL, index_B, share=corruption.clean_prefix_share, seed=seed)
    return is_maskable_BL, document_BL


def corrupt(
    is_maskable_BL: Bool[Tensor, "B L"],
    document_BL: Int[Tensor, "B L"],
    level_B: Float[Tensor, " B"],
    index_B: Int[Tensor, " B"],
    *,
    corruption: Corruption,
    seed: int,
) -> Corrupted:
    """Draw the masks of rows from their levels and their global sample indices.

    A row with level 0.5 and four maskable tokens has three of them masked (k = floor(0.5 · 4) + 1), each with weight
    4/3:

    >>> masks = corrupt(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.long), torch.tensor([0.5]),
    ...                 torch.tensor([0]), corruption=Corruption(t_min=0), seed=0)
    >>> int(masks.is_masked_BL.sum()), round(float(masks.loss_weight_BL.max()), 3)
    (3, 1.333)
    """
    is_maskable_BL = is_maskable_BL & (document_BL >= 0)
    own_B = index_B // 2 if corruption.pairs else index_B
    uniform_BL = row_uniforms(seed, "masks", own_B, is_maskable_BL.shape[1]).to(is_maskable_BL.device)
    is_complement_B1 = (index_B % 2 == 1).to(is_maskable_BL.device)[:, None] & corruption.pairs

    segment_BL = _segments(document_BL, corruption)
    level_BL = (level_B.double().to(segment_BL.device)[:, None] + segment_BL * _GOLDEN_RATIO) % 1
    probability_BL, density_BL = _noise(level_BL, corruption)
    size_BL = segment_sums(is_maskable_BL, segment_BL).gather(1, segment_BL).clamp(min=1)

    if corruption.kind == "bernoulli":
        is_masked_BL, chance_BL = _bernoulli(uniform_BL, probability_BL, corruption)
    elif corruption.kind == "exact_k":
        is_masked_BL, chance_BL = _exact_k(uniform_BL, probability_BL, is_maskable_BL, segment_BL, size_BL, corruption)
    else:
        is_masked_BL, chance_BL = _block(uniform_BL, probability_BL, is_maskable_BL, segment_BL, size_BL, corruption)
    is_masked_BL = (is_masked_BL ^ is_complement_B1) & is_maskable_BL
    chance_BL = torch.where(is_complement_B1, 1 - chance_BL, chance_BL)
    if corruption.kind == "exact_k" and corruption.pairs:
        # One count of N + 1 masks nothing in its row; the others make up for it.
        density_BL = density_BL * (size_BL + 1) / size_BL
    weight_BL = torch.where(is_masked_BL, density_BL / chance_BL, 0)
    return Corrupted(
        is_masked_BL=is_masked_BL,
        loss_weight_BL=weight_BL.float(),
        mask_probability_BL=torch.where(is_maskable_BL, chance_BL, 0).float(),
    )


def row_uniforms(seed: int, purpose: str, index_B: Int[Tensor, " B"], length: int) -> Float[Tensor, "B L"]:
    """Uniform numbers in [0, 1) of each sample, a pure function of (seed, purpose, sample index); float64, so that no
    two of a row are alike."""
    rows = [
        torch.rand(
            length, generator=torch.Generator().manual_seed(derive_seed(seed, purpose, index)), dtype=torch.float64
        )
        for index in index_B.tolist()
    ]
    return torch.stack(rows) if rows else torch.zeros(0, length, dtype=torch.float64)


def truncate(
    document_BL: Int[Tensor, "B L"], index_B: Int[Tensor, " B"], *, share: float, seed: int
) -> Int[Tensor, "B L"]:
    """Cut a share of the rows to a random length of at least 2 tokens: what lies behind becomes padding."""
    chosen_B, place_B = row_uniforms(seed, "truncation", index_B, 2).to(document_BL.device).unbind(1)
    length_B = (document_BL >= 0).sum(1)
    keep_B = 2 + (place_B * (length_B - 1).clamp(min=1)).long()  # uniform in 2 … length
    column_L = torch.arange(document_BL.shape[1], device=document_BL.device)
    is_cut_BL = (chosen_B < share)[:, None] & (column_L >= keep_B[:, None])
    return document_BL.masked_fill(is_cut_BL, -1)


def clean_prefix(
    is_maskable_BL: Bool[Tensor, "B L"], index_B: Int[Tensor, " B"], *, share: float, seed: int
) -> Bool[Tensor, "B L"]:
    """Keep a random prefix of a share of the rows unmasked; it ends before the row's last maskable token."""
    chosen_B, place_B = row_uniforms(seed, "clean prefix", index_B, 2).to(is_maskable_BL.device).unbind(1)
    column_L = torch.arange(is_maskable_BL.shape[1], device=is_maskable_BL.device)
    last_B = (column_L * is_maskable_BL).amax(1)
    prefix_B = 1 + (place_B * last_B).long()  # uniform in 1 … last
    is_kept_BL = (chosen_B < share)[:, None] & (column_L < prefix_B.minimum(last_B)[:, None])
    return is_maskable_BL & ~is_kept_BL


def _segments(document_BL: Int[Tensor, "B L"], corruption: Corruption) -> Int[Tensor, "B L"]:
    """Which positions share a level, numbered from 0 along each row. Padding may have any: it is never masked."""
    if corruption.kind != "block":
        return document_BL.clamp(min=0).long()
    assert corruption.block_length is not None
    is_first_BL = document_positions(document_BL) % corruption.block_length == 0
    return is_first_BL.cumsum(1) - 1


def _noise(level_BL: Float[Tensor, "B L"], corruption: Corruption) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Mask probabilities, and the factor of the weight that makes every probability in their range count the same."""
    ends = torch.tensor([corruption.t_min, corruption.t_max], dtype=level_BL.dtype, device=level_BL.device)
    t_BL = ends[0] + ends.diff() * level_BL
    density_BL = (
        mask_slope(corruption.schedule, t_BL) * ends.diff() / mask_probability(corruption.schedule, ends).diff()
    )
    return mask_probability(corruption.schedule, t_BL), density_BL


def _bernoulli(
    uniform_BL: Float[Tensor, "B L"], probability_BL: Float[Tensor, "B L"], corruption: Corruption
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
    if corruption.pairs:  # the complement's weight is bounded as its partner's is
        least = float(mask_probability(corruption.schedule, torch.tensor(corruption.t_min, dtype=torch.float64)))
        probability_BL = probability_BL.clamp(max=1 - least)
    return uniform_BL < probability_BL, probability_BL


def _exact_k(
    uniform_BL: Float[Tensor, "B L"],
    probability_BL: Float[Tensor, "B L"],
    is_maskable_BL: Bool[Tensor, "B L"],
    segment_BL: Int[Tensor, "B L"],
    size_BL: Float[Tensor, "B L"],
    corruption: Corruption,
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
    least = 0 if corruption.pairs else 1
    count_BL = (probability_BL * (size_BL + 1 - least)).floor() + least  # 0 … N in pairs, else 1 … N
    count_BL = count_BL.minimum(size_BL)
    return _rank(uniform_BL, is_maskable_BL, segment_BL) < count_BL, count_BL / size_BL


def _rank(
    uniform_BL: Float[Tensor, "B L"], is_maskable_BL: Bool[Tensor, "B L"], segment_BL: Int[Tensor, "B L"]
) -> Int[Tensor, "B L"]:
    """The place of each maskable token among those of its segment, in the order of the random numbers."""
    # Sorting by segment + number lines the segments up one after the other; what is not maskable goes last.
    key_BL = torch.where(is_maskable_BL, segment_BL + uniform_BL, torch.inf)
    place_BL = key_BL.argsort(1).argsort(1)
    size_BS = segment_sums(is_maskable_BL, segment_BL).long()
    before_BS = size_BS.cumsum(1) - size_BS
    return place_BL - before_BS.gather(1, segment_BL)


def _block(
    uniform_BL: Float[Tensor, "B L"],
    probability_BL: Float[Tensor, "B L"],
    is_maskable_BL: Bool[Tensor, "B L"],
    segment_BL: Int[Tensor, "B L"],
    size_BL: Float[Tensor, "B L"],
    corruption: Corruption,
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
    """The token with the block's least number is masked in any case: where another is, its number is below p too."""
    assert corruption.block_length is not None
    probability_BL = probability_BL.clamp(min=1 / corruption.block_length)
    is_forced_BL = _rank(uniform_BL, is_maskable_BL, segment_BL) == 0
    forced_BL = (1 - probability_BL) ** size_BL / size_BL
    return (uniform_BL < probability_BL) | is_forced_BL, probability_BL + forced_BL
