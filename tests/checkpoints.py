"""Tiny checkpoints on disk and in memory: a seeded random network with a byte-level tokenizer.

The network scores more ids than the tokenizer knows, as the field's checkpoints do, so ids without a token are there to
be sampled by mistake. `scripted` keeps the tokenizer and the conventions and replaces what the network says.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doubles import RowDenoiser, Scores, tiny_backbone, tiny_config
from unmask.decode.session import Model
from unmask.model.checkpoint import save_folder
from unmask.text.tokenizer import Tokenizer

MASK, END, IM_START, IM_END = "<|mask|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
SPECIAL = (MASK, END, IM_START, IM_END, *FIM)
MASK_ID, END_ID, IM_START_ID, IM_END_ID, FIM_PREFIX_ID, FIM_SUFFIX_ID, FIM_MIDDLE_ID = range(256, 263)
VOCAB_SIZE = 280
"""Ids that the network scores: 256 bytes, the special tokens, and 17 that have no token."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

KINDS: dict[str, dict[str, Any]] = {
    "full": {"family": "dream", "attention": "full", "mask_id": MASK_ID},
    "causal": {},
    "block": {"attention": "block", "block_length": 8, "mask_id": MASK_ID},
}


def tiny_model(kind: str = "full", *, fim: bool = True, chat: bool = False, seed: int = 0, **changes: Any) -> Model:
    """A model of one attention kind; `fim` and `chat` say what its tokenizer brings along."""
    settings = {"vocab_size": VOCAB_SIZE, "max_positions": 512, "end_ids": (END_ID,), **KINDS[kind], **changes}
    tokenizer = Tokenizer.byte_level(SPECIAL if fim else SPECIAL[:4], chat_template=CHATML if chat else None)
    return Model(tiny_backbone(tiny_config(**settings), seed=seed), tokenizer, name=f"tiny-{kind}")


def write_checkpoint(folder: Path, kind: str = "full", **changes: Any) -> Path:
    """The folder of `tiny_model`, in Hugging Face's layout."""
    model = tiny_model(kind, **changes)
    save_folder(model.backbone, folder)
    model.tokenizer.save(folder)
    return folder


def scripted(model: Model, scores: Scores) -> Model:
    """The model with its network replaced: a row's ids and a position to the scores of the tokens there."""

    class Scripted(Model):
        def denoiser(self) -> RowDenoiser:
            return RowDenoiser(self.backbone.config, scores)

    return Scripted(model.backbone, model.tokenizer, name=model.name)


def spell(tokens: str | list[int], *, start: int | None = None, size: int = VOCAB_SIZE) -> Scores:
    """Scores that write `tokens` one after the other and then the end token for ever.

    The first stands at `start`, or behind the last `<|fim_middle|>` of the row.
    """
    ids = list(tokens.encode()) if isinstance(tokens, str) else tokens

    def scores(row: list[int], position: int) -> Tensor:
        first = start if start is not None else len(row) - row[::-1].index(FIM_MIDDLE_ID)
        place = position - first
        out = torch.zeros(size)
        out[ids[place] if place < len(ids) else END_ID] = 20.0
        return out

    return scores
