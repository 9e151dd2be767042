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

from unmask.decode.session import Model
from unmask.diffusion.rl_settings import Estimator
from unmask.evaluate.benchmarks import load
from unmask.evaluate.generate import encode_prompts
from unmask.evaluate.prompts import find_preset, render
from unmask.train.estimator_spread import answer_means, draw_scores, passes
from unmask.train.network import build_network
from unmask.train.rollout import Packed, PackedRow, pack_rows
from unmask.train.settings import ModelSettings

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
    answers = []
    for prompt in encode_prompts(model, benchmark.tasks, forms):
        ids = [*model.tokenizer.encode(f"{prompt.task.reference.rstrip()}\n```"), model.end_ids[-1]]
        if len(ids) <= options.max_new_tokens:
            answers.append(PackedRow(prompt_ids=prompt.ids, answer_ids=tuple(ids), room=options.max_new_tokens))
    mask_id = model.backbone.config.mask_id
    assert mask_id is not None
    return pack_rows(answers, mask_id=mask_id)


def _measure(name: str, estimator: Estimator, model: Model, packed: Packed, draws: int) -> dict[str, Any]:
    is_random = estimator.name not in ("left_to_right", "trajectory") and (
        estimator.name != "mean_field" or estimator.prompt_mask > 0
    )
    score_RBL = draw_scores(model, packed, estimator, draws=range(draws if is_random else 1))
    mean_RB = answer_means(packed, score_RBL)
    return {
        "estimator": name,
        "passes": passes(estimator, packed),
        "mean": float(mean_RB.mean()),
        "sd of an answer's mean": float(mean_RB.std(0).mean()) if is_random else 0.0,
        "sd of a token": float(score_RBL.std(0)[packed.is_answer_BL].mean()) if is_random else 0.0,
    }


if __name__ == "__main__":
    main()
