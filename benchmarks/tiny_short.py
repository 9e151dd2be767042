"""`tiny` in a sixth to an eighth of its steps, without the twin: stages for `unmask reproduce` in half an hour.

Run it with `unmask train benchmarks/tiny_short.py --output runs/tiny-short`, then `unmask reproduce --stages
runs/tiny-short`. After `adapt` and `mid` it answers with an end at once, so of these it tells nothing (docs/log.md).
"""

from dataclasses import replace
from pathlib import Path

from unmask.recipes import tiny
from unmask.train.settings import Recipe

STEPS = {"pretrain": 150, "adapt": 100, "mid": 100, "sft": 200, "sft-2": 200}


def recipe(folder: Path) -> Recipe:
    """The stages of `tiny` up to the twin, each with fewer steps."""
    whole = tiny.recipe(folder)
    stages = []
    for stage in whole.stages:
        steps = STEPS.get(stage.name)
        if steps is None:
            continue
        share = steps / stage.steps
        stages.append(
            replace(
                stage,
                schedule=replace(stage.schedule, total_steps=steps, warmup_steps=10),
                loss=replace(stage.loss, anneal_steps=round(stage.loss.anneal_steps * share)),
                ema=None if stage.ema is None else 1 - (1 - stage.ema) / share,
                evaluation=replace(stage.evaluation, every=steps, samples=1, num_tasks=8),
            )
        )
    return replace(
        whole,
        name="tiny_short",
        summary="tiny in a sixth to an eighth of its steps",
        needs="half an hour of one core that multiplies bfloat16, 10 GiB of memory; all data is made on the spot",
        stages=tuple(stages),
    )
