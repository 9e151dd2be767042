"""coupled-GRPO on DiffuCoder-7B-Instruct with the numbers that were released, where they are not the paper's.

    answers drawn at            1.0                 the paper's best run: 1.2
    compared with               the others          leave-one-out: with 10 answers, advantages 1.11 times as large
    scored at                   1.0                 whatever they were drawn at
    groups without spread       stay in the mean    and dilute it

What was released beside numbers and is not done here, for it is wrong or cannot be scored: one t for a whole batch, a
mean over each micro-batch's own tokens, a nucleus of 0.95, prompts cut from the left at 200 tokens. The rest is
`diffucoder_7b_cpgrpo`.
"""

from dataclasses import replace
from pathlib import Path

from unmask.recipes import diffucoder_7b_cpgrpo
from unmask.train.grpo_settings import GrpoStage
from unmask.train.settings import Recipe


def recipe(folder: Path) -> Recipe:
    """The one stage of `diffucoder_7b_cpgrpo`, as released."""
    paper = diffucoder_7b_cpgrpo.recipe(folder)
    (stage,) = paper.stages
    assert isinstance(stage, GrpoStage)
    released = replace(
        stage,
        rollout=replace(stage.rollout, temperature=1.0),
        policy=replace(stage.policy, baseline="leave_one_out", score_temperature=1.0, no_spread="keep"),
    )
    return replace(
        paper,
        name="diffucoder_7b_cpgrpo_released",
        summary="the same with the numbers that were released, where they differ from the paper's",
        stages=(released,),
    )
