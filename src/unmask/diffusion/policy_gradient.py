"""From rewards and scores to a loss: advantages, ratios, their clipping, the KL penalty, and what each token weighs.

The objective is that of GRPO (2402.03300) with the score of `likelihood` in the place of a log-probability. With s the
policy's score of a token, s_old that of the policy that wrote the answer and A the answer's advantage,

    ρ = exp(s - s_old)        objective = min(ρ·A, clip(ρ, 1 - epsilon, 1 + epsilon_high)·A)
    loss = -Σ weight · objective + beta · Σ weight · KL        both sums over all ranks and accumulation steps

What a token weighs (TRL's names), for B answers with N_b counted tokens each, over the whole global batch:

    grpo     1 / (B · N_b): the mean over answers of the mean over tokens. Short answers' tokens weigh more.
    dr_grpo  1 / (B · max_new_tokens): no length in it at all (2503.20783).
    dapo     1 / Σ N_b: the mean over all tokens (2503.14476).
    bnpo     1 / (micro-batches · tokens of the token's own micro-batch): the mean over micro-batches of the mean over
             tokens. It depends on how the batch is shared out; DiffuCoder's released code does this.

The KL penalty keeps the policy near a reference with score r (Schulman's estimators), d = s - r:

    k1  d                   its gradient is that of s alone, 0 on average whatever r is: it shows a distance, but
                            cannot keep it small.
    k2  d²/2                gradient d·∇s: that of KL(policy ‖ reference) on average over the policy's own answers.
    k3  exp(-d) - 1 + d     gradient (1 - exp(-d))·∇s: on average that of KL(reference ‖ policy). Where the reference is
                            much surer of a token it explodes.

These are statements about log-probabilities; of scores, which are none, they keep the zero at s = r and the signs.

On the level of sequences a ratio is made of the sums over the answer, and every token carries it.

Letters: P prompts, G answers of each, B batch (answers), L length.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.diffusion.rl_settings import Baseline, KlEstimator, Level, LossType, Scale

_SCALE_FLOOR = 1e-4
"""Added to a standard deviation before the division, as TRL does."""

_LARGEST_LOG_RATIO = 60.0
"""Where the ratio stops growing: float32 overflows at 88, and the gradient of a ratio that is clipped from infinity is
no number."""


def advantages(
    reward_PG: Float[Tensor, "P G"],
    is_valid_PG: Bool[Tensor, "P G"],
    *,
    baseline: Baseline = "group_mean",
    scale: Scale = "none",
) -> Float[Tensor, "P G"]:
    """How much better each answer is than its group.

    `leave_one_out` compares with the mean of the group's others, which is G/(G-1) times as far away. `group` and
    `batch` divide by the standard deviation of the group, or of all rewards given, so give those of all ranks. An
    invalid answer (whose reward is unknown, and never read) has advantage 0 and is no part of its group. Groups without
    spread have advantages of exactly 0, and so do those with fewer than two valid answers.

    >>> advantages(torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[True, True, False]])).tolist()
    [[0.5, -0.5, 0.0]]
    """
    reward_PG = torch.where(is_valid_PG, reward_PG, 0)
    count_P1 = is_valid_PG.sum(1, keepdim=True)
    centred_PG = reward_PG - reward_PG.sum(1, keepdim=True) / count_P1.clamp(min=1)
    centred_PG = torch.where(is_valid_PG & has_spread(reward_PG, is_valid_PG)[:, None], centred_PG, 0)
    advantage_PG = centred_PG
    if baseline == "leave_one_out":
        advantage_PG = centred_PG * count_P1 / (count_P1 - 1).clamp(min=1)
    if scale == "group":
        deviation_P1 = (centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
        advantage_PG = advantage_PG / (deviation_P1 + _SCALE_FLOOR)
    elif scale == "batch":
        valid_M = reward_PG[is_valid_PG]
        deviation = valid_M.std() if len(valid_M) >= 2 else 0
        advantage_PG = advantage_PG / (deviation + _SCALE_FLOOR)
    return advantage_PG


def has_spread(reward_PG: Float[Tensor, "P G"], is_valid_PG: Bool[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Whether the valid answers of a group differ in reward; where they do not, there is nothing to learn.

    >>> has_spread(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.ones(2, 2, dtype=torch.bool)).tolist()
    [True, False]
    """
    highest_P = reward_PG.masked_fill(~is_valid_PG, -torch.inf).amax(1)
    lowest_P = reward_PG.masked_fill(~is_valid_PG, torch.inf).amin(1)
    return highest_P > lowest_P


def log_ratio(
    score_BL: Float[Tensor, "B L"],
    old_score_BL: Float[Tensor, "B L"],
    is_counted_BL: Bool[Tensor, "B L"],
    *,
    level: Level,
    per_token: bool = True,
) -> Float[Tensor, "B L"]:
    """Log of the ratio of policy to old policy, at each token; 0 where none is counted.

    On the level of sequences it is the difference of the answers' scores, the same at all tokens of an answer. It grows
    with the answer, unless `per_token` divides it by its length (ESPO, and GSPO, 2507.18071).

    >>> log_ratio(torch.tensor([[0.5, 0.1]]), torch.zeros(1, 2), torch.tensor([[True, True]]), level="sequence")
    tensor([[0.3000, 0.3000]])
    """
    difference_BL = torch.where(is_counted_BL, score_BL - old_score_BL, 0)
    return _spread_out(difference_BL, is_counted_BL, per_token) if level == "sequence" else difference_BL


def clipped_objective(
    log_ratio_BL: Float[Tensor, "B L"],
    advantage_B: Float[Tensor, " B"],
    *,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> Float[Tensor, "B L"]:
    """What is maximised at each token: no more is gained by moving the ratio beyond its bounds.

    `delta` bounds the ratio of answers with a negative advantage as well, which the minimum leaves without an upper
    bound (INTELLECT-2, 2505.07291).

    >>> clipped_objective(torch.tensor([[0.0, 1.0]]), torch.tensor([1.0]), epsilon=0.5)
    tensor([[1.0000, 1.5000]])
    """
    ratio_BL = log_ratio_BL.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()
    high = epsilon if epsilon_high is None else epsilon_high
    clipped_BL = ratio_BL.clamp(1 - epsilon, 1 + high)
    if delta is not None:
        ratio_BL = ratio_BL.clamp(max=delta)
    return torch.minimum(ratio_BL * advantage_B[:, None], clipped_BL * advantage_B[:, None])


def kl_penalty(
    score_BL: Float[Tensor, "B L"],
    reference_BL: Float[Tensor, "B L"],
    is_counted_BL: Bool[Tensor, "B L"],
    *,
    estimator: KlEstimator,
    level: Level = "token",
) -> Float[Tensor, "B L"]:
    """The distance from the reference at each token; 0 where none is counted.

    On the level of sequences it is that of the answers' scores divided by the length (ESPO, with k2).

    >>> kl_penalty(torch.tensor([[2.0]]), torch.tensor([[0.0]]), torch.tensor([[True]]), estimator="k2").tolist()
    [[2.0]]
    """
    difference_BL = torch.where(is_counted_BL, score_BL - reference_BL, 0)
    if level == "token":
        return _kl(difference_BL, estimator)
    size_B1 = is_counted_BL.sum(1, keepdim=True).clamp(min=1)
    return _kl(_spread_out(difference_BL, is_counted_BL, per_token=False), estimator) / size_B1


def loss_counts(is_counted_BL: Bool[Tensor, "B L"]) -> Int[Tensor, "3"]:
    """Answers, tokens and micro-batches of a micro-batch: to be summed over micro-batches and ranks for `loss_weights`.

    Answers without a counted token count for nothing, and neither does a micro-batch without one.

    >>> loss_counts(torch.tensor([[True, True], [True, False], [False, False]])).tolist()
    [2, 3, 1]
    """
    size_B = is_counted_BL.sum(1)
    return torch.stack([(size_B > 0).sum(), size_B.sum(), is_counted_BL.any().long()])


def loss_weights(
    loss_type: LossType,
    is_counted_BL: Bool[Tensor, "B L"],
    count_3: Int[Tensor, "3"],
    *,
    max_new_tokens: int,
) -> Float[Tensor, "B L"]:
    """What each token of a micro-batch weighs in the loss, from the global sums of `loss_counts`; float32, 0 where a
    token is not counted.

    >>> is_counted = torch.tensor([[True, True], [True, False]])
    >>> loss_weights("grpo", is_counted, loss_counts(is_counted), max_new_tokens=2).tolist()
    [[0.25, 0.25], [0.5, 0.0]]
    """
    answers, tokens, micro_batches = count_3.clamp(min=1).unbind()
    size_B1 = is_counted_BL.sum(1, keepdim=True)
    match loss_type:
        case "grpo":
            denominator_B1 = answers * size_B1
        case "dr_grpo":
            denominator_B1 = (answers * max_new_tokens).expand_as(size_B1)
        case "dapo":
            denominator_B1 = tokens.expand_as(size_B1)
        case "bnpo":
            denominator_B1 = (micro_batches * size_B1.sum()).expand_as(size_B1)
    return is_counted_BL / denominator_B1.clamp(min=1)


def clip_masks(
    log_ratio_BL: Float[Tensor, "B L"],
    advantage_B: Float[Tensor, " B"],
    *,
    epsilon: float,
    epsilon_high: float | None = None,
) -> tuple[Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Where the clipping stops the gradient: below the low bound of a bad answer, above the high bound of a good one.

    >>> low, high = clip_masks(torch.tensor([[-1.0, 1.0]]), torch.tensor([1.0]), epsilon=0.2)
    >>> low.tolist(), high.tolist()
    ([[False, False]], [[False, True]])
    """
    ratio_BL = log_ratio_BL.detach().clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()
    high = epsilon if epsilon_high is None else epsilon_high
    is_low_BL = (ratio_BL < 1 - epsilon) & (advantage_B < 0)[:, None]
    is_high_BL = (ratio_BL > 1 + high) & (advantage_B > 0)[:, None]
    return is_low_BL, is_high_BL


def clip_counts(
    is_low_BL: Bool[Tensor, "B L"],
    is_high_BL: Bool[Tensor, "B L"],
    is_counted_BL: Bool[Tensor, "B L"],
    *,
    level: Level,
) -> Int[Tensor, "4"]:
    """How many tokens (on the level of sequences: answers) are clipped low, high, at either bound, and counted at all.

    Sums of them over micro-batches and ranks, the first three divided by the fourth, are TRL's clip_ratio/low_mean,
    high_mean and region_mean; the least quotient of a micro-batch is low_min, the greatest high_max.

    >>> clip_counts(torch.tensor([[True, False]]), torch.tensor([[False, False]]), torch.tensor([[True, True]]),
    ...             level="token").tolist()
    [1, 0, 1, 2]
    """
    kinds_4BL = torch.stack([is_low_BL, is_high_BL, is_low_BL | is_high_BL, torch.ones_like(is_low_BL)]) & is_counted_BL
    if level == "sequence":
        return kinds_4BL.any(2).sum(1)
    return kinds_4BL.sum((1, 2))


def _spread_out(
    value_BL: Float[Tensor, "B L"], is_counted_BL: Bool[Tensor, "B L"], per_token: bool
) -> Float[Tensor, "B L"]:
    """The sum (or mean) over an answer, at each of its counted tokens."""
    total_B1 = value_BL.sum(1, keepdim=True)
    if per_token:
        total_B1 = total_B1 / is_counted_BL.sum(1, keepdim=True).clamp(min=1)
    return torch.where(is_counted_BL, total_B1, 0)


def _kl(difference_BL: Float[Tensor, "B L"], estimator: KlEstimator) -> Float[Tensor, "B L"]:
    match estimator:
        case "k1":
            return difference_BL
        case "k2":
            return difference_BL.square() / 2
        case "k3":
            # expm1 keeps the difference of two near numbers, which is what the penalty is close to the reference.
            return (-difference_BL).expm1() + difference_BL
