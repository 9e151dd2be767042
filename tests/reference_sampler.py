"""A slow, plain version of Dream's `diffusion_generate`, kept only to compare the real decoder against.

It follows the released sampler of Dream and DiffuCoder step by step, defects included: the schedule whose
first step may commit nothing, the mask count averaged over the batch, the failed draw that silently
becomes an argmax. It shares no code with the package and is not a decoder to use: no cache, no hooks, no early
stop, one full forward per step.

Randomness comes from torch's global generator, in the order in which the released sampler asks for it, so the
same `torch.manual_seed` gives the same canvas.

Shapes: B batch, P prompt length, L canvas length (prompt and answer), V vocabulary, M masked positions of the
whole batch taken row by row, K positions committed per row, T noise times (steps + 1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Categorical

# model(x_BL, attention_mask, position_ids) -> logits_BLV. The mask is None or bool [B, 1, L, L] (True: may
# look), the positions None or [B, L]. The logits at j guess the token at j + 1, as in the parent model.
Model = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]

SCORE_OF_ALG = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """What one run left behind: the final canvas, and the canvas after every step."""

    ids: Int[Tensor, "B L"]  # may still hold mask ids
    history: list[Tensor]  # one [B, L] canvas per step


@torch.no_grad()
def diffusion_generate(
    model: Model,
    input_ids: Int[Tensor, "B P"],
    *,
    attention_mask: Tensor | None = None,
    mask_id: int,
    max_new_tokens: int,
    steps: int,
    eps: float = 1e-3,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    alg: str = "origin",
    alg_temp: float | None = None,
) -> ReferenceRun:
    """Decode `max_new_tokens` masks after the prompt as the released sampler does.

    `attention_mask` is [B, P], zero where the prompt is padding. `alg` is one of "origin", "maskgit_plus",
    "topk_margin", "entropy". Mask ids inside the prompt are decoded like the others.
    """
    if max_new_tokens <= 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, but the canvas must outgrow the prompt; pass 1 or more")
    rows, prompt_len = input_ids.shape
    answer = torch.full((rows, max_new_tokens), mask_id, dtype=torch.long, device=input_ids.device)
    x_BL = torch.cat([input_ids.long(), answer], dim=1)
    visible, positions = attention_inputs(attention_mask, canvas_len=prompt_len + max_new_tokens)
    times = noise_times(steps, eps, device=x_BL.device)

    history: list[Tensor] = []
    for step in range(steps):
        is_masked_BL = x_BL == mask_id
        logits_BLV = model(x_BL, visible, positions)
        logits_BLV = torch.cat([logits_BLV[:, :1], logits_BLV[:, :-1]], dim=1)  # shift right by one
        logits_MV = logits_BLV[is_masked_BL]
        x_BL = x_BL.clone()  # neither the model's input nor the history sees later writes

        if alg == "origin":
            # Choose first, then draw: positions that were not picked use up no token draw.
            chance = 1 - times[step + 1] / times[step] if step < steps - 1 else 1
            is_picked_M = torch.rand(len(logits_MV), device=x_BL.device) < chance
            tokens_M = torch.full((len(logits_MV),), mask_id, dtype=torch.long, device=x_BL.device)
            _, tokens_M[is_picked_M] = sample_tokens(
                logits_MV[is_picked_M], score="confidence", temperature=temperature, top_p=top_p, top_k=top_k
            )
            x_BL[is_masked_BL] = tokens_M
        else:
            # Draw everywhere first, then choose: all M positions use up a token draw.
            score = SCORE_OF_ALG.get(alg)
            if score is None:
                raise RuntimeError(f"alg is {alg!r}, but the sampler knows origin, {', '.join(SCORE_OF_ALG)}; pass one")
            score_M, tokens_M = sample_tokens(logits_MV, score=score, temperature=temperature, top_p=top_p, top_k=top_k)
            # The mean over the batch, so rows with few and with many masks commit the same number.
            count = commits_at(step, is_masked_BL.sum().float() / rows, times)
            if count > 0:
                score_BL = torch.full(x_BL.shape, -torch.inf, dtype=logits_BLV.dtype, device=x_BL.device)
                score_BL[is_masked_BL] = score_M
                # A position that was not masked but is picked all the same turns into a mask.
                candidate_BL = torch.full_like(x_BL, mask_id)
                candidate_BL[is_masked_BL] = tokens_M
                picked_BK = pick_positions(score_BL, count, alg_temp=alg_temp)
                x_BL.scatter_(1, picked_BK, candidate_BL.gather(1, picked_BK))

        history.append(x_BL)
    return ReferenceRun(ids=x_BL, history=history)


def commits_per_step(num_new: int, steps: int, eps: float = 1e-3) -> list[int]:
    """How many tokens each step of a score-ordered run commits in one row with `num_new` masks.

    Step i takes floor(masks left · (1 − s/t)), t and s being neighbours on a float32 line from 1 to eps, and
    the last step takes what is left.

    >>> commits_per_step(4, 4)
    [0, 1, 1, 2]
    """
    times = noise_times(steps, eps)
    left = num_new
    counts = []
    for step in range(steps):
        count = commits_at(step, torch.tensor(float(left)), times)
        counts.append(count)
        left -= count
    return counts


def noise_times(steps: int, eps: float, *, device: torch.device | None = None) -> Float[Tensor, " T"]:
    return torch.linspace(1, eps, steps + 1, dtype=torch.float32, device=device)


def commits_at(step: int, mean_masks: Float[Tensor, ""], times: Float[Tensor, " T"]) -> int:
    is_last = step == len(times) - 2
    if is_last:
        return int(mean_masks)
    # With the default eps the share of step 0 is just below 1/steps, so N masks in N steps start with none.
    return int(mean_masks * (1 - times[step + 1] / times[step]))


def attention_inputs(
    attention_mask: Tensor | None, *, canvas_len: int
) -> tuple[Bool[Tensor, "B 1 L L"] | None, Int[Tensor, "B L"] | None]:
    """The mask and position ids the model sees: both None unless some prompt position is padding."""
    if attention_mask is None or bool((attention_mask != 0).all()):
        return None, None
    rows, prompt_len = attention_mask.shape
    answer = torch.ones(rows, canvas_len - prompt_len, dtype=torch.bool, device=attention_mask.device)
    is_real_BL = torch.cat([attention_mask != 0, answer], dim=1)
    positions_BL = is_real_BL.long().cumsum(dim=1) - 1
    positions_BL[~is_real_BL] = 1
    return is_real_BL[:, None, :, None] & is_real_BL[:, None, None, :], positions_BL


def sample_tokens(
    logits_MV: Float[Tensor, "M V"],
    *,
    score: str,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
) -> tuple[Float[Tensor, " M"], Int[Tensor, " M"]]:
    """A score and a token for each position, both from the logits after temperature, top-p and top-k.

    The scores stay in the dtype of the logits: "confidence" is the chosen token's probability, "margin" the
    gap between the best two, "entropy" the negative entropy.
    """
    if temperature > 0:
        logits_MV = logits_MV / temperature
    if top_p is not None and top_p < 1:
        logits_MV = keep_nucleus(logits_MV, top_p)
    if top_k is not None:
        logits_MV = keep_top_k(logits_MV, top_k)
    probs_MV = torch.softmax(logits_MV, dim=-1)

    score_M, tokens_M = probs_MV.max(dim=-1)
    if temperature > 0:
        try:
            tokens_M = Categorical(probs=probs_MV).sample()  # type: ignore[no-untyped-call]
            score_M = probs_MV.gather(-1, tokens_M[:, None])[:, 0]
        except Exception:  # the released sampler hides every failure (a NaN, say) and keeps the argmax everywhere
            pass

    if score == "margin":
        best_M2 = probs_MV.sort(dim=-1, descending=True).values[:, :2]
        score_M = best_M2[:, 0] - best_M2[:, 1]
    elif score == "entropy":
        score_M = (probs_MV * torch.log(probs_MV + 1e-10)).sum(dim=-1)
    return score_M, tokens_M


def keep_nucleus(logits_MV: Float[Tensor, "M V"], top_p: float) -> Float[Tensor, "M V"]:
    """Rule out the tokens after the first one at which the summed probability exceeds `top_p`."""
    sorted_MV, order_MV = torch.sort(logits_MV, descending=True)
    exceeds_MV = torch.softmax(sorted_MV, dim=-1).cumsum(dim=-1) > top_p
    # A token goes if the sum exceeded the threshold already before it, so the best one always stays.
    drop_sorted_MV = torch.cat([torch.zeros_like(exceeds_MV[:, :1]), exceeds_MV[:, :-1]], dim=1)
    drop_MV = torch.zeros_like(drop_sorted_MV).scatter(1, order_MV, drop_sorted_MV)
    return logits_MV.masked_fill(drop_MV, torch.finfo(logits_MV.dtype).min)


def keep_top_k(logits_MV: Float[Tensor, "M V"], top_k: int) -> Float[Tensor, "M V"]:
    """Rule out the tokens below the k-th best; ties with it stay. `top_k=0` has no k-th best: IndexError."""
    best_MK = logits_MV.topk(min(top_k, logits_MV.shape[-1])).values
    return logits_MV.masked_fill(logits_MV < best_MK[:, -1, None], torch.finfo(logits_MV.dtype).min)


def pick_positions(score_BL: Float[Tensor, "B L"], count: int, *, alg_temp: float | None) -> Int[Tensor, "B K"]:
    """The best `count` positions of each row, or as many drawn without replacement if `alg_temp` is set.

    Nothing keeps a row with too few masks from choosing positions scored −inf.
    """
    if alg_temp is None or alg_temp == 0:
        return score_BL.topk(count, dim=1).indices
    return torch.multinomial(torch.softmax(score_BL / alg_temp, dim=1), count)
