"""A small byte-level BPE and the folders a checkpoint would ship it in; also texts that break careless tokenizers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA_LIKE = """{% set loop_messages = messages %}
{% for message in loop_messages %}
    {% set content = '<|header|>' + message['role'] + '<|/header|>\n\n' + message['content'] | trim + '<|eot|>' %}
    {% if loop.index0 == 0 %}
        {% set content = bos_token + content %}
    {% endif %}
    {{- content }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|header|>assistant<|/header|>\n\n' }}
{% endif %}"""

# Qwen2's pattern, written out here once more so that the one in the package is checked against it.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|beginoftext|>",
    "<|mask|>",
    "<|dlm_pad|>",
    "<|header|>",
    "<|/header|>",
    "<|eot|>",
]
NOT_SPECIAL = ["<tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]

CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "for i in range(10):\n\tprint(i, end=' ')\n\n\nclass Tree:\n    def __init__(self):\n        self.left = None\n",
    "the quick brown fox jumps over the lazy dog, doesn't it? We'll see: 1 + 22 == 23\n",
    "naïve café, größer, 東京 и Москва, 😀 ok\n",
]

TRICKY = [
    "",
    " ",
    "\n",
    "   \n\n  \t x",
    "def f(x):\n    return x  # 3 spaces   \n",
    "\r\nwindows\r\n\r\n",
    "I'll WE'VE don't",
    "123 4567 ٣٤ ½ Ⅷ",
    "café e\N{COMBINING ACUTE ACCENT} \N{ANGSTROM SIGN}",  # not composed: Qwen2 composes
    "東京タワー  한국어 ภาษาไทย",
    "👩‍👩‍👧 🏳️‍🌈 \N{ZERO WIDTH SPACE}x\N{NO-BREAK SPACE}y",
    "\x00\x07\x7f\x85 control",
    "a <|im_end|> b<|mask|><|mask|>\n<|im_start|>user",
    "<tool_call>{}</tool_call> <|fim_prefix|>x",
    "<|im_end <|im_end|>> <|im_en",
]


@dataclass(frozen=True)
class Bpe:
    """A trained byte-level BPE: its entries, its merges, and the whole thing as `tokenizers` has it."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    library: Tokenizer

    def token_ids(self) -> dict[str, int]:
        return {text: len(self.vocab) + i for i, text in enumerate([*SPECIAL, *NOT_SPECIAL])}


def train_bpe() -> Bpe:
    library = Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(library.to_str())["model"]
    library.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    library.add_tokens([AddedToken(text, normalized=False) for text in NOT_SPECIAL])
    return Bpe(vocab=model["vocab"], merges=[(a, b) for a, b in model["merges"]], library=library)


def token_config(bpe: Bpe, **changes: Any) -> dict[str, Any]:
    entries = {
        str(id_): {"content": text, "special": text in SPECIAL, "normalized": False, "lstrip": False, "rstrip": False}
        for text, id_ in bpe.token_ids().items()
    }
    named = {
        "eos_token": "<|endoftext|>",
        "pad_token": {"__type": "AddedToken", "content": "<|dlm_pad|>", "special": True},
        "mask_token": "<|mask|>",
    }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": entries,
        "chat_template": CHATML,
        "bos_token": None,
        **named,
    } | changes


def write_json_layout(bpe: Bpe, folder: Path, **changes: Any) -> Path:
    """`tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe.library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(token_config(bpe, **changes)), encoding="utf-8")
    return folder


def write_vocab_layout(bpe: Bpe, folder: Path, **changes: Any) -> Path:
    """`vocab.json`, `merges.txt` and `tokenizer_config.json`, as DiffuCoder's folders have them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(bpe.vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in bpe.merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(bpe.token_ids()), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(token_config(bpe, **changes)), encoding="utf-8")
    return folder
