"""Qwen2.5-Coder-0.5B-Instruct adapted on one GPU: full attention with every weight, or LoRA.

The numbers are those of small adaptations that were published: learning rate 1e-4 and 3 % warm-up for LoRA with trained
embeddings (DiffuLLaMA's SFT), 3e-5 for every weight, 10,000 steps of mask annealing scaled to a tenth of the run.
What a small budget buys is said in the notes; block attention keeps more of the parent (Fast-dLLM v2, 2509.26328).
"""

from dataclasses import replace
from pathlib import Path

from unmask.diffusion.settings import Corruption
from unmask.model.config import ModelConfig
from unmask.model.lora import LoraSettings
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

SOURCE = "Qwen/Qwen2.5-Coder-0.5B-Instruct"  # not the table's GGUF file, whose weights have 4 bits

SHAPE = ModelConfig(
    family="qwen2",
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    rope_theta=1e6,
    max_positions=32_768,
    tie_embeddings=True,
    qkv_bias=True,
)


def recipe(folder: Path) -> Recipe:
    """Two stages that start from the same network: `full` trains every weight, `lora` an adapter."""
    data = folder / "data"
    full = StageSettings(
        name="full",
        note="Every weight. Others report a masked loss that stays near 2 nats for long, and 1 B tokens and more until "
        "full attention comes near its parent; watch pass_at_1 rather than the loss.",
        model=ModelSettings(source=SOURCE, config=SHAPE, attention="full", mask_token="#151666", init_mask_row=True),
        data=DataSettings(
            train=(SourceSettings(path=str(data / "pairs"), rows="pairs", canvas=(32, 512), on_long="drop"),),
            heldout=(SourceSettings(path=str(data / "heldout"), rows="pairs", canvas=(32, 512), on_long="drop"),),
            length=1024,
            rows=128,
            micro_rows=8,
        ),
        loss=LossSettings(corruption=Corruption(kind="exact_k"), anneal_steps=1000),
        optimiser=OptimiserSettings(lr=3e-5),
        schedule=Schedule(kind="cosine", total_steps=10_000, warmup_steps=300),
        run=RunSettings(checkpoint_layers=True),
        evaluation=EvaluationSettings(every=500, tasks="humaneval", num_tasks=164, max_new_tokens=256),
    )
    lora = replace(
        full,
        name="lora",
        note="An adapter of rank 32 and the embeddings, where the mask token lives. Loads in peft.",
        lora=LoraSettings(rank=32, alpha=64.0, train_embeddings=True),
        optimiser=OptimiserSettings(lr=1e-4),
        schedule=Schedule(kind="cosine", total_steps=3_000, warmup_steps=90),
    )
    return Recipe(
        name="qwen_0_5b",
        summary="Qwen2.5-Coder-0.5B-Instruct to a diffusion model, every weight or LoRA",
        needs="one GPU of 24 GiB; at 40 % of an A100's peak 8 hours for `full`, 2 for `lora`; pairs as shards in "
        f"{data}/pairs and {data}/heldout (`unmask data build pairs.jsonl --tokenizer {SOURCE} --output {data}/pairs`)",
        stages=(full, lora),
    )
