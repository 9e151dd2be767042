"""How far an estimator's score of an answer scatters over its masks, on a real model.

An answer is scored under many draws of masks. What the scores scatter about is the estimator's mean; how far, is noise
in every gradient of coupled-GRPO. `coupled` and `decoupled` have the same mean and as many forwards, so what lies
between their variances is what the complement is worth (DiffuCoder, arXiv 2506.20639, appendix A.4).

Letters: R draws, B answers, L columns.
"""

from collections.abc import Iterable
from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.decode.session import Model
from unmask.diffusion.likelihood import draw_views, num_views, token_scores
from unmask.diffusion.rl_settings import Estimator
from unmask.model.packed import multiplies_bfloat16
from unmask.train.rollout import Packed, PackedRow
from unmask.train.scoring import log_probs
from unmask.train.step import Trainee
from unmask.trajectory import Trajectory


def answer_of(t: Trajectory) -> PackedRow:
    """The answer of a run: all that is settled behind the prompt, up to its end token or its first masked place."""
    ids = t.ids_at(len(t.steps))
    first = next((at for at, token in enumerate(t.initial_ids) if token is None), len(ids))
    answer: list[int] = []
    for token in ids[first:]:
        if token is None:
            break
        answer.append(token)
        if token in t.end_ids:
            break
    prompt = tuple(token for token in t.initial_ids[:first] if token is not None)
    return PackedRow(prompt_ids=prompt, answer_ids=tuple(answer), room=len(ids) - first)


def row_of(packed: Packed, row: int) -> Packed:
    """One answer of a batch, as a batch."""
    return Packed(**{field.name: getattr(packed, field.name)[row : row + 1] for field in fields(Packed)})


@torch.no_grad()
def draw_scores(
    model: Model, packed: Packed, estimator: Estimator, *, draws: Iterable[int], seed: int = 0
) -> Float[Tensor, "R B L"]:
    """Each token's score in each draw of the masks, float64; 0 outside of the answers.

    Answers are scored one by one, so none depends on the others or on padding. A draw is named by its number, and is
    the same for the answer of the same row whatever else is drawn.
    """
    device = model.backbone.embed_tokens.weight.device
    precision = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    trainee = Trainee(model.backbone)
    scores = []
    for draw in draws:
        found = []
        for row in range(len(packed.ids_BL)):
            one = row_of(packed, row)
            views = draw_views(
                estimator, one.is_answer_BL, one.is_prompt_BL, torch.tensor([row]), seed=seed, step=draw, iteration=0
            )
            logp = log_probs(
                trainee,
                one,
                views,
                config=model.backbone.config,
                precision=precision,
                device=device,
                keep_graph=False,
            )
            found.append(token_scores(views, logp)[0])
        scores.append(torch.stack(found).double())
    return torch.stack(scores)


def answer_means(packed: Packed, score_RBL: Float[Tensor, "R B L"]) -> Float[Tensor, "R B"]:
    """The mean score of an answer's tokens, in each draw."""
    return score_RBL.sum(2) / packed.is_answer_BL.sum(1)


def passes(estimator: Estimator, packed: Packed) -> int:
    """Forward passes that scoring the last answer takes."""
    return num_views(estimator, row_of(packed, len(packed.ids_BL) - 1).is_answer_BL)
