"""DiffuCoder-7B: Qwen2.5-Coder-7B turned into a diffusion model in the paper's stages (arXiv 2506.20639).

Every number is the paper's (sections 3 and B.1) unless the line says otherwise. The fourth stage, coupled-GRPO, is not
a matter of this loop.
"""

from pathlib import Path

from unmask.diffusion.settings import Corruption, Objective
from unmask.model.config import ModelConfig
from unmask.train.optimiser import OptimiserSettings
from unmask.train.schedule import Schedule
from unmask.train.settings import (
    DataSettings,
    EvaluationSettings,
    LossSettings,
    ModelSettings,
    Recipe,
    RunSettings,
    SourceSettings,
    StageSettings,
)

SHAPE = ModelConfig(
    family="qwen2",
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    rope_theta=1e6,
    max_positions=32_768,
    qkv_bias=True,
)

_GPU = RunSettings(
    checkpoint_layers=True,
    compile=True,
    save_every=1000,
    timeout_seconds=7200,  # the first rank scores tasks while the others wait
)
# One rank decodes while all others wait, some ten minutes: seldom, and a part of the tasks
_EVALUATION = EvaluationSettings(every=10_000, tasks="humaneval", num_tasks=32, max_new_tokens=512)


def recipe(folder: Path) -> Recipe:
    """Three stages; the shards of each are brought by the user."""
    data = folder / "data"
    return Recipe(
        name="diffucoder_7b",
        summary="Qwen2.5-Coder-7B to DiffuCoder: adaptation, mid-training, instruction tuning",
        needs="80 H100 for 40 hours, then 64 A100 for 90 hours, then 64 H100 for 24 hours (the paper's own); "
        f"shards under {data}: adapt (400 B tokens of code, text and mathematics), mid (16 B), sft (436 K pairs)",
        stages=(
            StageSettings(
                name="adapt",
                note="65 B tokens; more (720 B) was worse. While the causal mask opens the loss rises before it falls. "
                "At noise outside 0.2 to 0.8 it stays erratic (the paper's figure 8): judge by loss_by_level.",
                model=ModelSettings(
                    source="Qwen/Qwen2.5-Coder-7B",
                    config=SHAPE,
                    attention="full",
                    mask_token="#151666",  # Dream's <|mask|>, a spare row of Qwen2.5's vocabulary
                    init_mask_row=True,
                ),
                data=DataSettings(
                    train=(SourceSettings(path=str(data / "adapt")),),
                    heldout=(SourceSettings(path=str(data / "adapt-heldout")),),
                    length=4096,
                    rows=160,  # 2 per GPU on 80 GPUs; x 4096 x 100 k steps = 65 B tokens
                    micro_rows=2,
                ),
                loss=LossSettings(
                    corruption=Corruption(kind="bernoulli", truncate_share=0.01, clean_prefix_share=0.01),
                    objective=Objective(weight="elbo", normaliser="token"),
                    anneal_steps=10_000,
                ),
                optimiser=OptimiserSettings(lr=2e-5, betas=(0.9, 0.95), weight_decay=0.1),  # betas, decay: DiffuLLaMA's
                schedule=Schedule(kind="cosine", total_steps=100_000, warmup_steps=20_000, final_share=0.1),
                run=_GPU,
                evaluation=_EVALUATION,
            ),
            StageSettings(
                name="mid",
                note="4 epochs of 16 B tokens of algorithmic and synthetic code (OpenCoder's annealing set). The loss "
                "goes on from where `adapt` left it and falls a little with each epoch.",
                model=ModelSettings(source=str(folder / "adapt" / "final")),
                data=DataSettings(
                    train=(SourceSettings(path=str(data / "mid")),),
                    heldout=(SourceSettings(path=str(data / "mid-heldout")),),
                    length=4096,
                    rows=128,  # 2 per GPU on 64 GPUs; x 4096 x 124 k steps = 65 B tokens
                    micro_rows=2,
                ),
                loss=LossSettings(
                    corruption=Corruption(kind="bernoulli", truncate_share=0.01, clean_prefix_share=0.01),
                ),
                optimiser=OptimiserSettings(lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1),
                schedule=Schedule(kind="cosine", total_steps=124_000, warmup_steps=2_000, final_share=0.1),
                run=_GPU,
                evaluation=_EVALUATION,
            ),
            StageSettings(
                name="sft",
                note="5 epochs of 436 K pairs; the prompt is never masked. The paper pads every answer to 2,048 "
                "tokens; here the run of end tokens weighs as much as 4, however long it is.",
                model=ModelSettings(source=str(folder / "mid" / "final")),
                data=DataSettings(
                    train=(SourceSettings(path=str(data / "sft"), rows="pairs", canvas=(64, 1024), on_long="drop"),),
                    heldout=(
                        SourceSettings(path=str(data / "sft-heldout"), rows="pairs", canvas=(64, 1024), on_long="drop"),
                    ),
                    length=2048,
                    rows=128,
                    micro_rows=2,
                ),
                loss=LossSettings(corruption=Corruption(kind="bernoulli")),
                optimiser=OptimiserSettings(lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1),
                schedule=Schedule(kind="cosine", total_steps=17_000, warmup_steps=1_700, final_share=0.1),
                run=_GPU,
                evaluation=_EVALUATION,
            ),
        ),
    )
