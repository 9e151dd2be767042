"""The tokenizer that a GGUF file carries in its metadata.

`tokenizer.ggml.model` "gpt2" is byte-level BPE: entries, merges, a type per entry, and in `tokenizer.ggml.pre` the
name of the way text is cut into words. llama.cpp's converter picks that name by encoding a fixed text, so models that
tokenise alike share one: Dream and DiffuCoder are written as "qwen2", LLaDA-8B (which has Ling's vocabulary) as
"bailingmoe". The patterns are those of llama.cpp's `llama-vocab.cpp`; where it leaves out Unicode composition that the
model was trained with (Qwen2), it is put back. SentencePiece vocabularies ("llama") are refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unmask.errors import TextError, did_you_mean
from unmask.text.tokenizer import (
    GPT2,
    LLAMA3,
    QWEN2,
    SMOLLM,
    AddedToken,
    PreTokenizer,
    Tokenizer,
    build_backend,
    looks_like_control,
)

if TYPE_CHECKING:
    from gguf import GGUFReader

_BAILING = PreTokenizer(
    patterns=(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_DEFAULT = PreTokenizer(patterns=(r"[\p{P}\$\+<=>\^~\|]+", *GPT2.patterns, r"\p{N}+", r"[0-9][0-9][0-9]"))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "qwen2": QWEN2,  # Qwen2, Qwen2.5-Coder, Dream, DiffuCoder
    "smollm": SMOLLM,
    "starcoder": SMOLLM,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "bailingmoe": _BAILING,  # LLaDA-8B
    "bailingmoe2": _BAILING,
    "llada-moe": _BAILING,
    "gpt-2": GPT2,
    "default": _DEFAULT,
}

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # the types that a token can have

_SPECIAL_KEYS = {
    "bos_id": "tokenizer.ggml.bos_token_id",
    "eos_id": "tokenizer.ggml.eos_token_id",
    "pad_id": "tokenizer.ggml.padding_token_id",
    "mask_id": "tokenizer.ggml.mask_token_id",
}


def tokenizer_from_gguf(source: "GGUFReader | Mapping[str, Any]") -> Tokenizer:
    """The tokenizer in a GGUF file's metadata, given as an open reader or as `{key: value}`.

    Entries of type "unused" are ids that have a row in the network but no token; they stay undefined.
    """
    get = _getter(source)
    _require_bpe(get("tokenizer.ggml.model"))
    pre = _pre_tokenizer(get("tokenizer.ggml.pre") or "default")
    tokens = _require(get, "tokenizer.ggml.tokens")
    ids = {role: _special_id(get, key, len(tokens)) for role, key in _SPECIAL_KEYS.items()}
    types = _types(get("tokenizer.ggml.token_type"), tokens, named=ids.values())
    merges = [_merge(merge) for merge in _require(get, "tokenizer.ggml.merges")]
    adds_bos = get("tokenizer.ggml.add_bos_token")
    return Tokenizer(
        build_backend(_vocab(tokens, types), merges, _added_tokens(tokens, types), pre),
        **ids,
        adds_bos=pre is LLAMA3 if adds_bos is None else bool(adds_bos),  # llama.cpp's default
        chat_template=get("tokenizer.chat_template"),
    )


def _getter(source: "GGUFReader | Mapping[str, Any]") -> Callable[[str], Any]:
    if isinstance(source, Mapping):
        return source.get

    def get(key: str) -> Any:
        field = source.get_field(key)
        return None if field is None else field.contents()

    return get


def _require_bpe(model: str | None) -> None:
    if model == "gpt2":
        return
    given = f"a {model!r} tokenizer" if model else "no tokenizer"
    raise TextError(
        f"this GGUF file holds {given}; only byte-level BPE ('gpt2') can be read: take a checkpoint of Qwen2, "
        "DiffuCoder, Dream, LLaDA, Llama 3 or SmolLM, or load the tokenizer from the model's Hugging Face folder"
    )


def _require(get: Callable[[str], Any], key: str) -> Any:
    value = get(key)
    if value is None:
        raise TextError(f"this GGUF file has no {key}, so its tokenizer cannot be built; convert the model again")
    return value


def _pre_tokenizer(name: str) -> PreTokenizer:
    if name not in PRE_TOKENIZERS:
        raise TextError(
            f"this GGUF file cuts text into words in the way called {name!r}, which is not supported; "
            f"{did_you_mean(name, PRE_TOKENIZERS)}; load the tokenizer from the model's Hugging Face folder instead"
        )
    return PRE_TOKENIZERS[name]


def _special_id(get: Callable[[str], Any], key: str, num_tokens: int) -> int | None:
    id_ = get(key)
    if id_ is not None and not 0 <= id_ < num_tokens:
        raise TextError(
            f"this GGUF file sets {key} to {id_}, but its tokens end at {num_tokens - 1}; convert the model again"
        )
    return None if id_ is None else int(id_)


def _types(given: Sequence[int] | None, tokens: Sequence[str], *, named: Iterable[int | None]) -> list[int]:
    """The type of each token. One that is named as bos, eos, padding or mask is in use, whatever its type says."""
    types = [_NORMAL] * len(tokens) if given is None else list(given)
    if len(types) != len(tokens):
        raise TextError(
            f"this GGUF file has {len(tokens)} tokens but {len(types)} token types; every token has one: "
            "convert the model again"
        )
    for id_ in named:
        if id_ is not None and types[id_] == _UNUSED:
            types[id_] = _CONTROL
    return [_CONTROL if looks_like_control(token) else type_ for token, type_ in zip(tokens, types, strict=True)]


def _vocab(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    used = [(token, id_) for id_, token in enumerate(tokens) if types[id_] != _UNUSED]
    vocab = dict(used)
    if len(vocab) < len(used):
        token, id_ = next((token, id_) for token, id_ in used if vocab[token] != id_)
        raise TextError(
            f"this GGUF file has the token {token!r} twice, with the ids {id_} and {vocab[token]}; a token has one id: "
            "convert the model again"
        )
    return vocab


def _added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[AddedToken]:
    whole = [id_ for id_, type_ in enumerate(types) if type_ in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    return [AddedToken(id=id_, text=tokens[id_], special=types[id_] != _USER_DEFINED) for id_ in whole]


def _merge(written: str) -> tuple[str, str]:
    left, _, right = written.partition(" ")
    return left, right
