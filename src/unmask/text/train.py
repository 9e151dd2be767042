"""Training a tokenizer: byte-level BPE in the manner of Qwen2's, with indentation as words.

Qwen2 cuts "):\\n    return" into `):\\n`, three spaces and ` return`. Here a line break takes the indentation behind it
along (`):`, `\\n    `, `return`), so that one token places a line in its block and a name is the same token wherever it
stands. Digits stand alone and text is composed to NFC, both as in Qwen2. Special tokens have the lowest ids, so their
ids do not depend on the size of the vocabulary. Byte-level BPE: Radford et al. 2019, section 2.2.
"""

from collections.abc import Iterable, Iterator, Sequence

from unmask.errors import SettingsError, TextError
from unmask.text.tokenizer import PreTokenizer, Tokenizer, build_backend

END_OF_TEXT, END_OF_TURN, MASK = "<|endoftext|>", "<|im_end|>", "<|mask|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", END_OF_TURN, MASK, "<|dlm_pad|>")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Qwen's template without the system message that it puts in front of conversations that have none."""

CODE = PreTokenizer(
    patterns=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
        r"|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+",
    ),
    nfc=True,
)
_BYTES = 256


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    chat_template: str | None = CHATML,
) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` ids; `save` it to a folder that `transformers` reads too.

    The same texts in the same order give the same tokenizer. Few or short texts give a smaller vocabulary: there is
    nothing left to merge.
    """
    from tokenizers import pre_tokenizers, trainers

    special_tokens = tuple(dict.fromkeys(special_tokens))
    fewest = _BYTES + len(special_tokens)
    if vocab_size < fewest:
        raise SettingsError(
            f"vocab_size={vocab_size}: the {_BYTES} bytes and {len(special_tokens)} special tokens take {fewest} ids; "
            "give more, 4096 is enough for one programming language"
        )
    if END_OF_TEXT not in special_tokens:
        raise SettingsError(
            f"the special tokens {special_tokens} lack {END_OF_TEXT!r}, which ends documents and fills rows; add it"
        )
    backend = build_backend({}, [], [], CODE)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = _Counted(texts)
    backend.train_from_iterator(seen, trainer=trainer)
    if not seen.count:
        raise TextError("there are no texts to learn a tokenizer from; give sources with text in them")
    return Tokenizer(
        backend,
        eos_id=backend.token_to_id(END_OF_TEXT),
        pad_id=backend.token_to_id(END_OF_TEXT),
        mask_id=backend.token_to_id(MASK),
        chat_template=chat_template,
    )


class _Counted:
    """Passes texts on and counts those that hold something."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.count = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.count += bool(text)
            yield text
