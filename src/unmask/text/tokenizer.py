"""Text to token ids and back: byte-level BPE, the tokenizer of every model family here.

`Tokenizer` wraps one `tokenizers.Tokenizer` and adds what decoding needs: the exact bytes of one token, the ids that
have no token, and a promise about special tokens. Text is data: `encode` turns `<|im_end|>` typed by a user into
ordinary tokens, and only `special=True`, meant for rendered chat templates, gives control tokens. `unmask.text.chat`
builds on that promise; `unmask.text.gguf_tokenizer` reads the same tokenizer from a GGUF file.

A *byte-level* vocabulary writes each of the 256 bytes as one printable character (GPT-2's table, section 2.2 of its
paper), so every text has an encoding and every token is a string of bytes, not always of whole characters.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from unmask.errors import TextError, did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_ROLES_OF_TOKENS = ("bos", "eos", "pad", "mask")
_FIM_SPELLINGS = ("<|fim_{}|>", "<fim_{}>")


@dataclass(frozen=True, slots=True, kw_only=True)
class FimIds:
    """The three control tokens of fill-in-the-middle prompts, as the autoregressive code models use them."""

    prefix: int
    suffix: int
    middle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """One token that is looked up as a whole instead of being built by merges; `special` ones are control tokens."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """How text is cut into words before merging.

    Each pattern cuts the pieces that the one before it left. `nfc` composes characters first; `whole_words` takes a
    word that is in the vocabulary without asking the merges (`ignore_merges` in tokenizer.json).
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_AFTER_LETTERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"

QWEN2 = PreTokenizer(patterns=(rf"{_WORDS}|\p{{N}}|{_AFTER_LETTERS}",), nfc=True)
LLAMA3 = PreTokenizer(patterns=(rf"{_WORDS}|\p{{N}}{{1,3}}|{_AFTER_LETTERS}",), whole_words=True)
GPT2 = PreTokenizer(patterns=(_GPT2,))
SMOLLM = PreTokenizer(patterns=(r"\p{N}", _GPT2))

_PRE_TOKENIZER_OF_CLASS = {
    "Qwen2Tokenizer": QWEN2,
    "Qwen2TokenizerFast": QWEN2,
    "DreamTokenizer": QWEN2,
    "DreamTokenizerFast": QWEN2,
    "GPT2Tokenizer": GPT2,
    "GPT2TokenizerFast": GPT2,
}


class Tokenizer:
    """Text to ids and back, exact to the byte (a Qwen2 vocabulary composes characters first: NFC).

    `bos_id`, `eos_id`, `pad_id` and `mask_id` are what the checkpoint's files say, or None. `adds_bos` tells that raw
    text begins with `bos_id` in this checkpoint; `encode` never adds it by itself.

    >>> tokenizer = Tokenizer.byte_level()
    >>> tokenizer.encode("hé<|mask|>")[:4]
    [104, 195, 169, 60]
    >>> tokenizer.encode("hé<|mask|>", special=True)
    [104, 195, 169, 256]
    >>> tokenizer.decode([104, 195, 169, 256])
    'hé'
    """

    def __init__(
        self,
        backend: "Backend",
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        mask_id: int | None = None,
        adds_bos: bool = False,
        chat_template: str | None = None,
    ) -> None:
        _require_byte_level(backend)
        _mark_control_tokens(backend)
        backend.encode_special_tokens = True  # the library's name for: spell special tokens out as text
        self._backend = backend
        self._added = dict(backend.get_added_tokens_decoder())
        self._bytes_of_id: dict[int, bytes | None] = {}
        self.special_ids = frozenset(id_ for id_, token in self._added.items() if token.special)
        self.bos_id, self.eos_id, self.pad_id, self.mask_id = bos_id, eos_id, pad_id, mask_id
        self.adds_bos = adds_bos
        self.chat_template = chat_template

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True  # the library forgets it when pickled

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} ids, eos_id={self.eos_id}, mask_id={self.mask_id})"

    # Where tokenizers come from

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """The tokenizer of a checkpoint folder: `tokenizer.json`, or else `vocab.json` with `merges.txt`.

        DiffuCoder and Dream ship the second layout. Special tokens and the chat template come from
        `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and `chat_template.jinja`.
        """
        return cls._from_files(_TokenizerFiles(Path(folder)))

    @classmethod
    def _from_files(cls, files: "_TokenizerFiles") -> Self:
        backend = files.backend()
        ids = {f"{role}_id": files.special_id(backend, role) for role in _ROLES_OF_TOKENS}
        adds_bos = files.config.get("add_bos_token")
        if not isinstance(adds_bos, bool):
            adds_bos = ids["bos_id"] is not None and backend.encode("").ids[:1] == [ids["bos_id"]]
        return cls(backend, **ids, adds_bos=adds_bos, chat_template=files.chat_template())

    @classmethod
    def byte_level(
        cls, special: Sequence[str] = ("<|mask|>", "<|endoftext|>"), *, chat_template: str | None = None
    ) -> Self:
        """A tokenizer without files: id = byte for 0 to 255, then the special tokens in the order given.

        `<|mask|>` is the mask, `<|endoftext|>` the end and the padding, when they are among them.

        >>> Tokenizer.byte_level(["<|mask|>", "<|im_end|>"]).token_to_id("<|im_end|>")
        257
        """
        vocab = {char: byte for byte, char in _CHAR_OF_BYTE.items()}
        added = [AddedToken(id=256 + i, text=text, special=True) for i, text in enumerate(special)]
        id_of = {token.text: token.id for token in added}
        end = id_of.get("<|endoftext|>")
        return cls(
            build_backend(vocab, [], added, PreTokenizer(patterns=())),
            eos_id=end,
            pad_id=end,
            mask_id=id_of.get("<|mask|>"),
            chat_template=chat_template,
        )

    # Text to ids

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text. With `special=True` the special tokens written in it become control tokens.

        That is for text this program wrote, such as a rendered chat template; a user's text is encoded without it.
        """
        if not special:
            return self._encode_literally(text)
        parts = self.split(text)
        return [id_ for part in parts for id_ in ([part] if isinstance(part, int) else self._encode_literally(part))]

    def split(self, text: str) -> list[str | int]:
        """The text cut at its special tokens: stretches of plain text, and the ids between them.

        >>> Tokenizer.byte_level().split("a<|mask|>b")
        ['a', 256, 'b']
        """
        if self._special_pattern is None:
            return [text] if text else []
        return list(self._cut(text, self._special_pattern))

    def _cut(self, text: str, pattern: re.Pattern[str]) -> Iterator[str | int]:
        start = 0
        for match in pattern.finditer(text):
            if match.start() > start:
                yield text[start : match.start()]
            found = match.group()
            yield self._id_of_special[found if found in self._id_of_special else found.strip()]
            start = match.end()
        if start < len(text):
            yield text[start:]

    def _encode_literally(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise _not_unicode(text, error) from error
        if self.special_ids.isdisjoint(ids):
            return ids
        # A vocabulary can hold a special token's text as a word of its own; spell it out in bytes.
        return [spelled for id_ in ids for spelled in (self._spell(id_) if id_ in self.special_ids else [id_])]

    def _spell(self, token_id: int) -> list[int]:
        chars = (_CHAR_OF_BYTE[byte] for byte in self.token_bytes(token_id))
        return [id_ for id_ in map(self._backend.token_to_id, chars) if id_ is not None]

    @cached_property
    def _id_of_special(self) -> dict[str, int]:
        return {self._added[id_].content: id_ for id_ in self.special_ids}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        tokens = sorted((self._added[id_] for id_ in self.special_ids), key=lambda t: len(t.content), reverse=True)
        return re.compile("|".join(map(_pattern_of, tokens))) if tokens else None

    @property
    def special_texts(self) -> tuple[str, ...]:
        """How the special tokens are written, longest first."""
        return tuple(sorted(self._id_of_special, key=len, reverse=True))

    # Ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of some ids, spaces untouched. Broken UTF-8, and an id without a token, show as U+FFFD."""
        kept = (id_ for id_ in ids if not (skip_special and id_ in self.special_ids))
        return b"".join(self._bytes(id_) or _REPLACEMENT for id_ in kept).decode("utf-8", errors="replace")

    def piece(self, token_id: int) -> str:
        """One token as text; bytes that are no UTF-8 on their own are lone surrogates (`surrogateescape`).

        Joining pieces and encoding with `("utf-8", "surrogateescape")` gives the exact bytes. A special token's piece
        is its literal text.

        >>> tokenizer = Tokenizer.byte_level()
        >>> "".join(map(tokenizer.piece, [0xC3, 0xA9])).encode("utf-8", "surrogateescape").decode()
        'é'
        """
        return self.token_bytes(token_id).decode("utf-8", errors="surrogateescape")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token."""
        found = self._bytes(token_id)
        if found is None:
            raise TextError(
                f"id {token_id} has no token in this vocabulary, whose ids end at {self.vocab_size - 1}; "
                "such ids must not be sampled: suppress `undefined_ids(network_vocab_size)`"
            )
        return found

    def _bytes(self, token_id: int) -> bytes | None:
        if token_id not in self._bytes_of_id:
            self._bytes_of_id[token_id] = self._look_up(token_id)
        return self._bytes_of_id[token_id]

    def _look_up(self, token_id: int) -> bytes | None:
        if token_id in self._added:
            return self._added[token_id].content.encode()
        token = self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            return None
        if all(char in _BYTE_OF_CHAR for char in token):
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        return token.encode()

    # The vocabulary

    @cached_property
    def _defined_ids(self) -> frozenset[int]:
        return frozenset(self._backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included: what a network needs at least."""
        return max(self._defined_ids) + 1

    def token_to_id(self, token: str) -> int | None:
        """The id of an entry as the vocabulary writes it (`<|mask|>`, `Ġdef`), or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def undefined_ids(self, network_vocab_size: int) -> list[int]:
        """The ids that the network can produce but that have no token. They must never be sampled."""
        return [id_ for id_ in range(network_vocab_size) if id_ not in self._defined_ids]

    @cached_property
    def fim_ids(self) -> FimIds | None:
        """The fill-in-the-middle tokens, when the vocabulary has all three."""
        for spelling in _FIM_SPELLINGS:
            prefix, suffix, middle = (self.token_to_id(spelling.format(x)) for x in ("prefix", "suffix", "middle"))
            if prefix is not None and suffix is not None and middle is not None:
                return FimIds(prefix=prefix, suffix=suffix, middle=middle)
        return None

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, readable by `from_folder` and by `transformers`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for role in _ROLES_OF_TOKENS:
            id_ = getattr(self, f"{role}_id")
            if id_ is not None:
                config[f"{role}_token"] = self._backend.id_to_token(id_)
        if self.adds_bos:
            config["add_bos_token"] = True
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        self._backend.save(str(folder / "tokenizer.json"))
        text = json.dumps(config, ensure_ascii=False, indent=2)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def build_backend(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Iterable[AddedToken], pre: PreTokenizer
) -> "Backend":
    """A byte-level BPE from its parts: entries with their ids, merges in order of rank, and whole tokens.

    The whole tokens become entries of the vocabulary too: only so they keep ids that leave gaps.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers

    tokens = list(added)
    entries = dict(vocab) | {token.text: token.id for token in tokens}
    try:
        model = models.BPE(vocab=entries, merges=list(merges), ignore_merges=pre.whole_words)
    except Exception as error:  # the library raises nothing narrower
        raise TextError(
            f"the vocabulary and its merges do not fit together ({error}); take both from the same checkpoint"
        ) from error
    backend = tokenizers.Tokenizer(model)
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer_of(pre)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([tokenizers.AddedToken(token.text, special=token.special, normalized=False) for token in tokens])
    return backend


def looks_like_control(text: str) -> bool:
    """Whether a token is written as control tokens are: `<|fim_prefix|>`. Some checkpoints forget to flag theirs."""
    return text.startswith("<|") and text.endswith("|>")


def _pre_tokenizer_of(pre: PreTokenizer) -> Any:
    from tokenizers import Regex, pre_tokenizers

    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _require_byte_level(backend: "Backend") -> None:
    if "ByteLevel" not in repr(backend.decoder):
        given = "no decoder" if backend.decoder is None else f"a {type(backend.decoder).__name__} decoder"
        raise TextError(
            f"this tokenizer has {given}, so its tokens are not strings of bytes; only byte-level BPE can be used "
            "(Qwen2, DiffuCoder, Dream, LLaDA, Llama 3, SmolLM)"
        )


def _mark_control_tokens(backend: "Backend") -> None:
    """Qwen2.5 lists `<|fim_prefix|>` and its like as ordinary added tokens, which would be recognised in any text."""
    from tokenizers import AddedToken as LibraryToken

    added = backend.get_added_tokens_decoder().values()
    unmarked = [token for token in added if not token.special and looks_like_control(token.content)]
    backend.add_special_tokens([LibraryToken(t.content, special=True, normalized=t.normalized) for t in unmarked])


def _pattern_of(token: Any) -> str:
    """A special token can ask to take the white space beside it along, or to stand as a word of its own."""
    pattern: str = re.escape(token.content)
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    before, after = (r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip))
    return before + pattern + after


def _not_unicode(text: object, error: TypeError) -> Exception:
    if not isinstance(text, str):
        return error
    at = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    return TextError(
        f"the text holds the lone surrogate {text[at]!a} at position {at}, which is no Unicode character; "
        'read the text with errors="strict", or replace it first'
    )


def _byte_characters() -> dict[int, str]:
    """GPT-2's table: bytes that print stand for themselves, the other 68 follow from U+0100 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_CHAR_OF_BYTE = _byte_characters()
_BYTE_OF_CHAR = {char: byte for byte, char in _CHAR_OF_BYTE.items()}


class _TokenizerFiles:
    """The tokenizer files of one checkpoint folder, in the layouts that Hugging Face has used."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise TextError(f"{folder} is not a folder; give the folder that holds the checkpoint's tokenizer files")
        self.folder = folder
        self.config = self._read_object("tokenizer_config.json")
        self.special_map = self._read_object("special_tokens_map.json")

    def backend(self) -> "Backend":
        if (self.folder / "tokenizer.json").is_file():
            return self._backend_from_json()
        missing = [name for name in ("vocab.json", "merges.txt") if not (self.folder / name).is_file()]
        if missing:
            raise TextError(
                f"{self.folder} holds no tokenizer: looked for tokenizer.json, then for vocab.json with merges.txt "
                f"({' and '.join(missing)} missing); copy them from the checkpoint, SentencePiece files are not read"
            )
        return self._backend_from_vocab()

    def _backend_from_json(self) -> "Backend":
        import tokenizers

        path = self.folder / "tokenizer.json"
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise TextError(f"{path} cannot be read as a tokenizer ({error}); fetch the file again") from error

    def _backend_from_vocab(self) -> "Backend":
        vocab: dict[str, int] = self._read_object("vocab.json")
        lines = (self.folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        broken = next((merge for merge in merges if len(merge) != 2), None)
        if broken is not None:
            raise TextError(
                f"{self.folder / 'merges.txt'} has the line {' '.join(broken)!r}; a merge is two entries with one "
                "space between them; fetch the file again"
            )
        pairs = [(merge[0], merge[1]) for merge in merges]
        return build_backend(vocab, pairs, self._added_tokens(vocab), self._pre_tokenizer())

    def _pre_tokenizer(self) -> PreTokenizer:
        name = self.config.get("tokenizer_class")
        if name in _PRE_TOKENIZER_OF_CLASS:
            return _PRE_TOKENIZER_OF_CLASS[name]
        given = f"names the tokenizer class {name!r}" if name else "names no tokenizer class"
        known = did_you_mean(str(name), _PRE_TOKENIZER_OF_CLASS)
        raise TextError(
            f"{self.folder} has no tokenizer.json, and its tokenizer_config.json {given}, so how text is cut into "
            f"words is not known; save tokenizer.json with transformers, or set tokenizer_class ({known})"
        )

    def _added_tokens(self, vocab: Mapping[str, int]) -> list[AddedToken]:
        named = self._named_specials()
        special = {text: text in named or looks_like_control(text) for text in self._read_object("added_tokens.json")}
        ids = dict(self._read_object("added_tokens.json"))
        for key, entry in self.config.get("added_tokens_decoder", {}).items():
            ids[entry["content"]] = int(key)
            special[entry["content"]] = bool(entry.get("special")) or looks_like_control(entry["content"])
        for text in named & set(vocab):
            ids.setdefault(text, vocab[text])
            special.setdefault(text, True)
        self._require_distinct(ids, vocab)
        return [AddedToken(id=id_, text=text, special=special[text]) for text, id_ in ids.items()]

    def _require_distinct(self, ids: Mapping[str, int], vocab: Mapping[str, int]) -> None:
        owner = {id_: text for text, id_ in vocab.items()}
        for text, id_ in ids.items():
            other = owner.setdefault(id_, text)
            if other != text:
                raise TextError(
                    f"in {self.folder} both {other!r} and {text!r} have the id {id_}; an id belongs to one token: take "
                    "vocab.json, added_tokens.json and tokenizer_config.json from the same checkpoint"
                )

    def _named_specials(self) -> set[str]:
        sources = (self.special_map, self.config)
        named = [source.get(f"{role}_token") for source in sources for role in (*_ROLES_OF_TOKENS, "unk")]
        keys = ("additional_special_tokens", "extra_special_tokens")  # transformers 4, transformers 5
        for more in (source.get(key) or [] for source in sources for key in keys):
            named.extend(more.values() if isinstance(more, dict) else more)
        return {text for text in map(_text_of, named) if text is not None}

    def special_id(self, backend: "Backend", role: str) -> int | None:
        key = f"{role}_token"
        source = self.config if key in self.config else self.special_map
        text = _text_of(source.get(key))
        if text is None:
            return None
        found: int | None = backend.token_to_id(text)
        if found is None:
            raise TextError(
                f"{self.folder} names {text!r} as its {key}, but its vocabulary has no such token; add it to "
                f"tokenizer.json or added_tokens.json, or take {key} out of tokenizer_config.json"
            )
        return found

    def chat_template(self) -> str | None:
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self.config.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        return template

    def _read_object(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # broken JSON or broken UTF-8
            raise TextError(f"{path} is not JSON ({error}); fetch the file again") from error
        if not isinstance(value, dict):
            raise TextError(f"{path} holds a {type(value).__name__}, not an object; fetch the file again")
        return value


def _text_of(token: object) -> str | None:
    """A special token is written as a string, or as an object with its `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
