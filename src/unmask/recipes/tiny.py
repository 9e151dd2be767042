"""`tiny`: DiffuCoder's design in small, from nothing to a diffusion coder on two processor cores.

    pretrain    autoregressive, on Python's standard library and the synthetic suite
    adapt       stage 1: the causal mask opens to full attention while tokens are masked (mask annealing)
    mid         stage 2: the same objective, three quarters of it the suite
    sft, sft-2  stage 3: questions and answers; the prompt is never masked
    twin-*      the autoregressive twin: the rows of those stages in the same order, still autoregressive

All data is made here: `prepare` writes the suite's training split, learns a tokenizer of 4,096 ids and builds the
shards. No composition of the suite's held-out splits is in any of it.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
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
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=704,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    rope_theta=10_000.0,
    max_positions=1024,
    tie_embeddings=True,
    qkv_bias=True,
    end_ids=(0, 2),  # <|endoftext|>, <|im_end|>
    pad_id=0,
)
TASKS = 60_000
HELD_OUT_TASKS = 400
WORDINGS = 2  # of the three that a question can have
CANVAS = (24, 96)  # tokens of an answer's region, end tokens included

_AUTOREGRESSIVE = LossSettings(kind="autoregressive", objective=Objective(weight="none", normaliser="token"))
_RUN = RunSettings(save_every=100, keep=2, log_every=20)
_EVALUATION = EvaluationSettings(every=200, documents=64, samples=8)
_PROMPT = (
    "Write a Python function `solve(xs: list[int]) -> int`. Keep the even numbers and return the sum of the numbers."
)
_SCORED = replace(
    _EVALUATION, tasks="synthetic-val", num_tasks=64, max_new_tokens=96, preset="diffucoder", prompt=_PROMPT
)


def recipe(folder: Path) -> Recipe:
    """The stages, in a run that lives in `folder`."""
    data = folder / "data"
    texts = DataSettings(
        train=(
            SourceSettings(path=str(data / "library"), parts=1),
            SourceSettings(path=str(data / "suite"), parts=1),
        ),
        heldout=(SourceSettings(path=str(data / "suite-heldout")),),
        length=256,
        rows=32,
        micro_rows=32,
    )
    pairs = replace(
        texts,
        train=(SourceSettings(path=str(data / "pairs"), rows="pairs", canvas=CANVAS),),
        heldout=(SourceSettings(path=str(data / "pairs-heldout"), rows="pairs", canvas=CANVAS),),
        length=512,
        rows=16,
        micro_rows=16,
    )
    suite = replace(texts, train=(replace(texts.train[0], parts=1), replace(texts.train[1], parts=3)))
    bound = Objective(weight="elbo", normaliser="token")
    diffusion = LossSettings(corruption=Corruption(kind="exact_k"), objective=bound)
    from_texts = LossSettings(
        corruption=Corruption(kind="exact_k", truncate_share=0.01, clean_prefix_share=0.01), objective=bound
    )
    optimiser = OptimiserSettings(kind="muon", lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1)

    pretrain = StageSettings(
        name="pretrain",
        note="Autoregressive, from nothing: the held-out loss on the suite ends at 0.67 nats per token.",
        model=ModelSettings(config=SHAPE, tokenizer=str(data / "tokenizer")),
        data=texts,
        loss=_AUTOREGRESSIVE,
        optimiser=optimiser,
        schedule=Schedule(kind="wsd", total_steps=800, warmup_steps=50, decay_share=0.2, final_share=0.3),
        run=_RUN,
        evaluation=_EVALUATION,
    )
    adapt = StageSettings(
        name="adapt",
        seed=1,  # each stage has its own, or all would begin with the same rows
        note="The causal mask opens over the first half; the held-out bound ends at 1.31 nats per token.",
        model=ModelSettings(source=str(folder / "pretrain" / "final"), attention="full", init_mask_row=True),
        data=texts,
        loss=replace(from_texts, anneal_steps=300),
        optimiser=replace(optimiser, lr=2e-3),
        schedule=Schedule(kind="wsd", total_steps=600, warmup_steps=50, decay_share=0.2, final_share=0.3),
        run=_RUN,
        evaluation=_EVALUATION,
    )
    mid = replace(
        adapt,
        name="mid",
        seed=2,
        note="Three quarters of it the suite. The held-out bound ends at 1.06 nats per token.",
        model=ModelSettings(source=str(folder / "adapt" / "final")),
        data=suite,
        loss=from_texts,
        schedule=Schedule(kind="cosine", total_steps=600, warmup_steps=50, final_share=0.3),
    )
    sft = StageSettings(
        name="sft",
        seed=3,
        note="Questions and answers, packed; a run of end tokens weighs as much as four.",
        model=ModelSettings(source=str(folder / "mid" / "final")),
        data=pairs,
        loss=diffusion,
        optimiser=replace(optimiser, lr=2e-3),
        schedule=Schedule(kind="cosine", total_steps=1600, warmup_steps=50, final_share=0.05),
        ema=0.998,
        run=_RUN,
        evaluation=replace(_SCORED, every=400),
    )
    again = replace(
        sft,
        name="sft-2",
        seed=4,
        note="The same on other rows, from a lower peak.",
        model=ModelSettings(source=str(folder / "sft" / "final")),
        optimiser=replace(optimiser, lr=1.2e-3),
        schedule=Schedule(kind="cosine", total_steps=1600, warmup_steps=50, final_share=0.02),
    )
    return Recipe(
        name="tiny",
        summary="a diffusion coder of 7 M parameters, from nothing, with its autoregressive twin",
        needs="two processor cores for about five hours, 3 GiB of memory, 1 GiB of disk; all data is made on the spot",
        stages=(pretrain, adapt, mid, sft, again, *_twins(folder, adapt, mid, sft, again)),
        prepare=prepare,
    )


def _twins(folder: Path, *stages: StageSettings) -> Iterator[StageSettings]:
    """The same rows in the same order, still autoregressive."""
    before = "pretrain"
    for stage in stages:
        yield replace(
            stage,
            name=f"twin-{stage.name}",
            note=f"The twin on the rows of `{stage.name}`.",
            model=ModelSettings(source=str(folder / before / "final")),
            loss=_AUTOREGRESSIVE,
        )
        before = f"twin-{stage.name}"


def prepare(folder: Path, tell: Callable[[str], None]) -> None:
    """Write the suite's texts and pairs, learn the tokenizer, build the shards: what is there already stays."""
    from unmask.data.build import build
    from unmask.data.corpus import STDLIB, read
    from unmask.text.tokenizer import Tokenizer
    from unmask.text.train import train_tokenizer

    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    _write_suite(data, tell)
    raw = data / "raw"
    if not (data / "tokenizer" / "tokenizer_config.json").is_file():
        tell("tiny: learning the tokenizer")
        library = (document.text for document in read(STDLIB))
        trained = train_tokenizer(itertools.chain(library, _some_texts(raw)), vocab_size=SHAPE.vocab_size)
        trained.save(data / "tokenizer")
    tokenizer = Tokenizer.from_folder(data / "tokenizer")
    sources: dict[str, str | Path] = {
        "library": STDLIB,
        "suite": raw / "train-texts.jsonl",
        "suite-heldout": raw / "val-texts.jsonl",
        "pairs": raw / "train-pairs.jsonl",
        "pairs-heldout": raw / "val-pairs.jsonl",
    }
    for name, source in sources.items():
        if not (data / name / "meta.json").is_file():
            tell(f"tiny: building the shards {name}")
            build([source], data / name, tokenizer=tokenizer)


def _write_suite(data: Path, tell: Callable[[str], None]) -> None:
    """The suite's training and validation tasks as texts and as conversations, each drawn and run once."""
    from unmask.data.synthetic.compositions import Split
    from unmask.data.synthetic.tasks import make_tasks
    from unmask.data.synthetic.texts import as_document, as_messages
    from unmask.sandbox.executor import open_executor

    raw, partial = data / "raw", data / ".raw.partial"
    if raw.is_dir():
        return
    partial.mkdir(exist_ok=True)
    with open_executor() as executor:
        counts: dict[Split, int] = {"train": TASKS, "val": HELD_OUT_TASKS}
        for split, count in counts.items():
            tell(f"tiny: drawing {count:,} tasks of synthetic-{split}")
            with (
                (partial / f"{split}-texts.jsonl").open("w", encoding="utf-8") as texts,
                (partial / f"{split}-pairs.jsonl").open("w", encoding="utf-8") as pairs,
            ):
                for number, task in enumerate(make_tasks(split, count, seed=0, executor=executor)):
                    texts.write(json.dumps({"text": as_document(task)}) + "\n")
                    for wording in range(WORDINGS):
                        pairs.write(json.dumps({"messages": as_messages(task, number + wording)}) + "\n")
    partial.rename(raw)


def _some_texts(raw: Path, every: int = 6) -> Iterator[str]:
    """A share of the suite, with its questions, for the tokenizer."""
    for name in ("train-texts.jsonl", "train-pairs.jsonl"):
        with (raw / name).open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number % every == 0:
                    record = json.loads(line)
                    yield record.get("text") or "\n".join(turn["content"] for turn in record["messages"])
