"""A drafter for Qwen2.5-Coder-0.5B-Instruct: blocks of eight tokens drafted in the forward that checks the last ones.

The parent is the 4-bit file of the model table, since that is what decodes here and its answers are what is drafted;
its weights are trained against as they are decoded. The drafter in the package was made so (its card has the data, the
curve and the scores). Three quarters of the rows are the parent's own answers, because a
draft is right when the parent agrees with it, and a quarter is code. No end tokens stand behind an answer: who is done
drafts nothing.

Blocks grow from two tokens to eight, as NBDiff's do (arXiv 2512.06776): what comes right behind the text is learnt
first. A quarter of them show some of their tokens, for decoding that fills a block in any order.
"""

from dataclasses import replace
from pathlib import Path

from unmask.model.lora import LoraSettings
from unmask.recipes.own_answers import prepare
from unmask.recipes.qwen_0_5b import SHAPE
from unmask.train.draft_settings import DraftSettings, DraftStage
from unmask.train.optimiser import OptimiserSettings
from unmask.train.schedule import Schedule
from unmask.train.settings import (
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Recipe,
    RunSettings,
    SourceSettings,
)

SOURCE = "qwen2.5-coder-0.5b-instruct"


def recipe(folder: Path) -> Recipe:
    """One stage, which leaves a drafter."""
    data = folder / "data"
    answers = SourceSettings(path=str(data / "answers"), rows="pairs", parts=3, end_tokens=0, on_long="cut")
    return Recipe(
        name="qwen_0_5b_block",
        summary="a drafter for Qwen2.5-Coder-0.5B-Instruct, blocks of 2, 4 and then 8 tokens",
        needs="one GPU with 40 GiB: 11 minutes of an H100, and before that 5 for the parent's own answers. On two "
        "processor cores take less, as --set data.rows=8 --set data.micro_rows=2 --set schedule.total_steps=450: 5 GiB "
        "of memory and some hours, and as many again for the answers",
        stages=(
            DraftStage(
                name="drafter",
                note="An adapter of rank 32 and a draft head; the parent is never changed. Watch "
                "heldout_tokens_per_round; 1 is the parent alone.",
                model=ModelSettings(source=SOURCE, config=SHAPE, mask_token="#151666"),
                lora=LoraSettings(rank=32, alpha=64.0),
                data=DataSettings(
                    train=(answers, SourceSettings(path=str(data / "code"), parts=1)),
                    heldout=(replace(answers, path=str(data / "heldout"), parts=1),),
                    length=512,
                    rows=32,
                    micro_rows=32,
                ),
                draft=DraftSettings(block_length=8, curriculum=((0.0, 2), (0.06, 4), (0.15, 8)), words=24_000),
                optimiser=OptimiserSettings(lr=8e-4),
                schedule=Schedule(kind="cosine", total_steps=1950, warmup_steps=60),
                run=RunSettings(save_every=50, log_every=5),
                evaluation=EvaluationSettings(every=250, documents=64),
            ),
        ),
        prepare=lambda folder, tell: prepare(folder, tell, source=SOURCE),
        makes=(str(data),),
    )
