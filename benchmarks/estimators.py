"""How far an estimator's score of an answer scatters over its masks, on a real model.

The answers are the reference solutions of tasks, so nothing is decoded. Each is scored under many draws of masks; the
table has the mean score per token, the standard deviation over draws (of the mean over an answer's tokens, and of a
single token's score), and the forward passes that a score takes. `coupled` and `decoupled` have the same mean and the
same passes: what lies between their variances is what the complement is worth. The exact left-to-right score stands
beside them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from unmask.decode.session import Model
from unmask.diffusion.likelihood import draw_views, token_scores
from unmask.diffusion.rl_settings import Estimator
from unmask.evaluate.benchmarks import load
from unmask.evaluate.generate import encode_prompts
from unmask.evaluate.prompts import find_preset, render
from unmask.model.packed import multiplies_bfloat16
from unmask.train.network import build_network
from unmask.train.rollout import Packed
from unmask.train.scoring import log_probs
from unmask.train.settings import ModelSettings
from unmask.train.step import Trainee

from side_by_side import report

ESTIMATORS = {
    "coupled": Estimator(name="coupled"),
    "decoupled": Estimator(name="decoupled"),
    "coupled, 2 pairs": Estimator(name="coupled", pairs=2),
    "coupled_normalised": Estimator(name="coupled_normalised"),
    "mean_field": Estimator(name="mean_field"),
    "mean_field, prompt masks": Estimator(name="mean_field", prompt_mask=0.15),
    "elbo, 3 samples": Estimator(name="elbo", samples=3),
    "espo": Estimator(name="espo"),
    "left_to_right": Estimator(name="left_to_right"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tasks", default="synthetic-hard-train")
    parser.add_argument("--num-tasks", type=int, default=32)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--preset", default="diffucoder")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    network = build_network(ModelSettings(source=options.model), kind="diffusion", lora=None, seed=0)
    model = Model(network.backbone, network.tokenizer, name=options.model)
    packed = _answers(model, options)
    rows = [_measure(name, estimator, model, packed, options.draws) for name, estimator in ESTIMATORS.items()]
    what = f"{len(packed.ids_BL)} answers of {options.tasks} under {options.model}, {options.draws} draws of the masks"
    report(f"{what}; nats per token", rows, to=options.json)


def _answers(model: Model, options: argparse.Namespace) -> Packed:
    """The references behind their prompts, with an end token, in the room that a rollout would have."""
    benchmark = load(options.tasks, limit=options.num_tasks)
    preset = find_preset(options.preset)
    forms = [render(preset, task, benchmark=benchmark.name, kind=benchmark.kind) for task in benchmark.tasks]
    rows = []
    for prompt in encode_prompts(model, benchmark.tasks, forms):
        answer = [*model.tokenizer.encode(f"{prompt.task.reference.rstrip()}\n```"), model.end_ids[-1]]
        if len(answer) <= options.max_new_tokens:
            rows.append((list(prompt.ids), answer))
    width = max(len(prompt) for prompt, _ in rows) + options.max_new_tokens
    shape = (len(rows), width)
    mask_id = model.backbone.config.mask_id
    assert mask_id is not None
    packed = Packed(
        ids_BL=torch.zeros(shape, dtype=torch.long),
        is_prompt_BL=torch.zeros(shape, dtype=torch.bool),
        is_answer_BL=torch.zeros(shape, dtype=torch.bool),
        document_BL=torch.full(shape, -1),
        committed_at_BL=torch.full(shape, -1),
    )
    for row, (prompt, answer) in enumerate(rows):
        first, stop = len(prompt), len(prompt) + len(answer)
        end = first + options.max_new_tokens
        packed.ids_BL[row, :stop] = torch.tensor([*prompt, *answer])
        packed.ids_BL[row, stop:end] = mask_id
        packed.is_prompt_BL[row, :first] = True
        packed.is_answer_BL[row, first:stop] = True
        packed.document_BL[row, :end] = 0
    return packed


@torch.no_grad()
def _measure(name: str, estimator: Estimator, model: Model, packed: Packed, draws: int) -> dict[str, Any]:
    trainee = Trainee(model.backbone)
    precision = torch.bfloat16 if multiplies_bfloat16(torch.device("cpu")) else torch.float32
    is_answer_BL = packed.is_answer_BL
    is_random = estimator.name not in ("left_to_right", "trajectory") and (
        estimator.name != "mean_field" or estimator.prompt_mask > 0
    )
    scores = []
    views_made = 0
    for draw in range(draws if is_random else 1):
        found = []
        for row in range(len(packed.ids_BL)):
            here = slice(row, row + 1)
            one = Packed(**{field: value[here] for field, value in vars(packed).items()})
            views = draw_views(
                estimator, one.is_answer_BL, one.is_prompt_BL, torch.tensor([row]), seed=0, step=draw, iteration=0
            )
            views_made = len(views.draw_K)
            logp = log_probs(
                trainee,
                one,
                views,
                config=model.backbone.config,
                precision=precision,
                device=torch.device("cpu"),
                keep_graph=False,
            )
            found.append(token_scores(views, logp)[0])
        scores.append(torch.stack(found).double())
    score_RBL = torch.stack(scores)
    length_B = is_answer_BL.sum(1)
    mean_RB = score_RBL.sum(2) / length_B
    return {
        "estimator": name,
        "passes": views_made,
        "mean": float(mean_RB.mean()),
        "sd of an answer's mean": float(mean_RB.std(0).mean()) if is_random else 0.0,
        "sd of a token": float(score_RBL.std(0)[is_answer_BL].mean()) if is_random else 0.0,
    }


if __name__ == "__main__":
    main()
