"""Tiny checkpoints on disk and in memory: a seeded random network with a byte-level tokenizer.

The network scores more ids than the tokenizer knows, as the field's checkpoints do, so ids without a token are there to
be sampled by mistake. `scripted` keeps the tokenizer and the conventions and replaces what the network says.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from torch import Tensor

from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.model.checkpoint import save_folder
from unmask.model.drafter import DraftHead
from unmask.model.drafter_files import save_drafter
from unmask.model.lora import LoraSettings, add_lora, lora_layers
from unmask.text.tokenizer import Tokenizer

from doubles import RowDenoiser, Scores, tiny_backbone, tiny_config

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


def write_drafter(folder: Path, *, block_length: int = 4, seed: int = 0) -> Path:
    """A random drafter for the causal `tiny_model` of the same seed; it may draft the 256 bytes. Its mask is an id
    without a token, which the parent may not say either."""
    model = tiny_model("causal", seed=seed, mask_id=VOCAB_SIZE - 1)
    backbone, settings = model.backbone, LoraSettings(rank=2, alpha=4.0)
    add_lora(backbone, settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _, lora in lora_layers(backbone):
        lora.lora_B.weight.data = 0.3 * torch.randn(lora.lora_B.weight.shape, generator=generator)
    width = backbone.config.hidden_size
    backbone.mask_row = torch.nn.Parameter(torch.randn(width, generator=generator))
    head, words_W = DraftHead(width, 8, seed=seed), torch.arange(256)
    save_drafter(backbone, head, words_W, folder, settings, block_length=block_length, parent=model.name)
    return folder


def write_gguf(path: Path, kind: str = "full", **changes: Any) -> Path:
    """`tiny_model` as a GGUF file in float32: the same ids, and one more for a pair of newlines, which is a merge."""
    model = tiny_model(kind, **changes)
    config = model.backbone.config
    with tempfile.TemporaryDirectory() as folder:
        model.tokenizer.save(folder)
        ids = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    newline = tokens[ord("\n")]
    unused = [f"[PAD{number}]" for number in range(len(tokens) + 1, config.vocab_size)]
    types = [1] * 256 + [3] * (len(tokens) - 256) + [1] + [5] * len(unused)  # normal, control, normal, unused
    writer = GGUFWriter(path, config.family)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, newline * 2, *unused])
    writer.add_token_types(types)
    writer.add_token_merges([f"{newline} {newline}"])
    writer.add_eos_token_id(END_ID)
    if config.attention == "full":
        writer.add_mask_token_id(MASK_ID)
    if model.tokenizer.chat_template is not None:
        writer.add_chat_template(model.tokenizer.chat_template)
    for name, parameter in model.backbone.named_parameters():
        writer.add_tensor(_gguf_name(name), parameter.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    whole = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    stem, _, kind = name.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{parts[part]}.{kind}"


def scripted(model: Model, scores: Scores) -> Model:
    """The model with its network replaced: a row's ids and a position to the scores of the tokens there."""

    class Scripted(Model):
        def denoiser(self, settings: DecodeSettings) -> RowDenoiser:
            return self.exact_denoiser()

        def exact_denoiser(self) -> RowDenoiser:
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
