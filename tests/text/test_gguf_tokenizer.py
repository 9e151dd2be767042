"""The tokenizer in a GGUF file: the same ids as the folder it was made from, and clear refusals."""

import os
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter

from unmask.errors import TextError
from unmask.model.gguf import GGUFFile
from unmask.text.chat import Message, encode_chat
from unmask.text.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_from_gguf
from unmask.text.tokenizer import Tokenizer, build_backend

from bpe_checkpoint import CHATML, CORPUS, SPECIAL, TRICKY, Bpe, train_bpe, write_vocab_layout

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
NUM_UNUSED = 3


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return train_bpe()


@pytest.fixture(scope="module")
def fields(bpe: Bpe) -> dict[str, Any]:
    """The metadata that llama.cpp's converter would write."""
    ids = bpe.token_ids()
    tokens = [*sorted(bpe.vocab, key=bpe.vocab.__getitem__), *ids]
    types = [NORMAL] * len(bpe.vocab) + [CONTROL if text in SPECIAL else USER_DEFINED for text in ids]
    unused = [f"[PAD{len(tokens) + i}]" for i in range(NUM_UNUSED)]
    return {
        "general.architecture": "qwen2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*tokens, *unused],
        "tokenizer.ggml.token_type": [*types, *[UNUSED] * NUM_UNUSED],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in bpe.merges],
        "tokenizer.ggml.eos_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.padding_token_id": ids["<|dlm_pad|>"],
        "tokenizer.ggml.mask_token_id": ids["<|mask|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def write_gguf(fields: dict[str, Any], path: Path) -> Path:
    writer = GGUFWriter(str(path), fields["general.architecture"])
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif key != "general.architecture":
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def message_of(action: object, *args: object) -> str:
    with pytest.raises(TextError) as caught:
        action(*args)  # type: ignore[operator]
    return str(caught.value)


# Parity


@pytest.mark.parametrize("text", TRICKY)
def test_ids_are_those_of_the_folder(bpe: Bpe, fields: dict[str, Any], tmp_path: Path, text: str) -> None:
    ours, folder = tokenizer_from_gguf(fields), Tokenizer.from_folder(write_vocab_layout(bpe, tmp_path))
    assert ours.encode(text) == folder.encode(text)
    ids = ours.encode(text, special=True)
    assert ids == folder.encode(text, special=True)
    assert ours.decode(ids) == folder.decode(ids)


def test_everything_the_file_says_is_kept(bpe: Bpe, fields: dict[str, Any], tmp_path: Path) -> None:
    ours, folder = tokenizer_from_gguf(fields), Tokenizer.from_folder(write_vocab_layout(bpe, tmp_path))
    names = (
        "bos_id",
        "eos_id",
        "pad_id",
        "mask_id",
        "adds_bos",
        "chat_template",
        "special_ids",
        "fim_ids",
        "vocab_size",
    )
    for name in names:
        assert getattr(ours, name) == getattr(folder, name), name


def test_unused_entries_have_no_token(fields: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_gguf(fields)
    size = len(fields["tokenizer.ggml.tokens"])
    assert tokenizer.undefined_ids(size) == list(range(size - NUM_UNUSED, size))
    assert tokenizer.token_to_id(f"[PAD{size - 1}]") is None


def test_an_unused_entry_that_is_named_the_mask_is_in_use(fields: dict[str, Any]) -> None:
    last = len(fields["tokenizer.ggml.tokens"]) - 1
    tokenizer = tokenizer_from_gguf(fields | {"tokenizer.ggml.mask_token_id": last})
    assert tokenizer.mask_id == last
    assert last in tokenizer.special_ids
    assert tokenizer.piece(last) == f"[PAD{last}]"


def test_token_types_are_optional(fields: dict[str, Any]) -> None:
    without = {key: value for key, value in fields.items() if key != "tokenizer.ggml.token_type"}
    tokenizer = tokenizer_from_gguf(without)
    assert tokenizer.special_ids == tokenizer_from_gguf(fields).special_ids
    assert tokenizer.encode("a<|im_end|>", special=True) == tokenizer_from_gguf(fields).encode(
        "a<|im_end|>", special=True
    )


@pytest.mark.parametrize(
    ("given", "pre", "expected"), [(None, "llama-bpe", True), (None, "qwen2", False), (True, "qwen2", True)]
)
def test_adds_bos_is_the_files_word_or_else_llama_cpps_default(
    fields: dict[str, Any], given: bool | None, pre: str, expected: bool
) -> None:
    changed = fields | {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": given}
    assert tokenizer_from_gguf(changed).adds_bos is expected


# How text is cut into words

CUTS = {
    "qwen2": ["I", "'LL", " pay", " ", "1", "2", "3", "4", " €", "5", ".\n\n", "\t", "\tx", "  ", " y", "  "],
    "llama-bpe": ["I", "'LL", " pay", " ", "123", "4", " €", "5", ".\n\n", "\t", "\tx", "  ", " y", "  "],
    "bailingmoe": ["I", "'LL", " pay", " ", "1", "2", "3", "4", " €", "5", ".\n\n", "\t", "\tx", "  ", " y", "  "],
    "gpt-2": ["I", "'", "LL", " pay", " 1234", " €", "5", ".", "\n\n\t", "\t", "x", "  ", " y", "  "],
    "smollm": ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", " €", "5", ".", "\n\n\t", "\t", "x", "  ", " y", "  "],
    "default": ["I", "'", "LL", " pay", " ", "123", "4", " €", "5", ".", "\n\n\t", "\t", "x", "  ", " y", "  "],
}


@pytest.mark.parametrize("name", CUTS)
def test_words_of_a_worked_example(name: str) -> None:
    text = "I'LL pay 1234 €5.\n\n\t\tx   y  "
    words = cut(name, text)
    assert "".join(words) == text
    assert words == CUTS[name]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@pytest.mark.parametrize("text", [*TRICKY, *CORPUS])
def test_words_are_those_of_a_slow_cut_pattern_by_pattern(name: str, text: str) -> None:
    regex = pytest.importorskip("regex")
    pieces = [text] if text else []
    for pattern in PRE_TOKENIZERS[name].patterns:
        pieces = [part for piece in pieces for part in _slow_cut(regex.compile(pattern), piece)]
    assert cut(name, text) == pieces


def _slow_cut(pattern: Any, text: str) -> list[str]:
    """Matches, and what lies between them."""
    parts, start = [], 0
    for match in pattern.finditer(text):
        parts += [text[start : match.start()], match.group()]
        start = match.end()
    return [part for part in [*parts, text[start:]] if part]


def cut(name: str, text: str) -> list[str]:
    pre_tokenizer = build_backend({}, [], [], PRE_TOKENIZERS[name]).pre_tokenizer
    return [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]


def test_smollm_words_are_those_of_digits_and_byte_level() -> None:
    """SmolLM's own tokenizer.json spells its rule with these two parts."""
    from tokenizers import pre_tokenizers

    theirs = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours = build_backend({}, [], [], PRE_TOKENIZERS["smollm"]).pre_tokenizer
    for text in [*TRICKY, *CORPUS]:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


# Files


def test_metadata_is_what_the_gguf_package_reads(fields: dict[str, Any], tmp_path: Path) -> None:
    more: dict[str, Any] = fields | {"x.floats": [0.5, -2.0], "x.words": ["é", "", "b"], "x.flags": [True, False]}
    path = write_gguf(more, tmp_path / "tiny.gguf")
    metadata = GGUFFile(Path(path)).metadata
    reader = GGUFReader(path)
    names = [name for name in reader.fields if not name.startswith("GGUF.")]
    assert metadata == {name: reader.fields[name].contents() for name in names}
    assert metadata | more == metadata


def test_a_reader_and_a_mapping_give_the_same_tokenizer(fields: dict[str, Any], tmp_path: Path) -> None:
    path = write_gguf(fields, tmp_path / "tiny.gguf")
    ours, other = tokenizer_from_gguf(GGUFFile(Path(path)).metadata), tokenizer_from_gguf(GGUFReader(path))
    for name in ("eos_id", "pad_id", "mask_id", "bos_id", "adds_bos", "chat_template", "special_ids", "vocab_size"):
        assert getattr(ours, name) == getattr(other, name), name
    for text in TRICKY:
        assert ours.encode(text, special=True) == other.encode(text, special=True)


# Refusals


def test_sentencepiece_is_refused(fields: dict[str, Any]) -> None:
    message = message_of(tokenizer_from_gguf, fields | {"tokenizer.ggml.model": "llama"})
    assert "holds a 'llama' tokenizer; only byte-level BPE ('gpt2') can be read" in message


def test_a_file_without_a_tokenizer_is_refused() -> None:
    assert "holds no tokenizer" in message_of(tokenizer_from_gguf, {"general.architecture": "qwen2"})


def test_an_unknown_way_of_cutting_is_refused_with_the_known_ones(fields: dict[str, Any]) -> None:
    message = message_of(tokenizer_from_gguf, fields | {"tokenizer.ggml.pre": "qwen35"})
    assert "in the way called 'qwen35', which is not supported; did you mean qwen2?" in message
    assert "smollm" in message


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"])
def test_a_missing_list_is_named(fields: dict[str, Any], key: str) -> None:
    assert f"has no {key}" in message_of(tokenizer_from_gguf, fields | {key: None})


def test_an_id_past_the_end_is_refused(fields: dict[str, Any]) -> None:
    message = message_of(tokenizer_from_gguf, fields | {"tokenizer.ggml.mask_token_id": 99999})
    assert "sets tokenizer.ggml.mask_token_id to 99999, but its tokens end at" in message


def test_a_token_given_twice_is_refused(fields: dict[str, Any]) -> None:
    tokens = list(fields["tokenizer.ggml.tokens"])
    tokens[1] = tokens[0]
    message = message_of(tokenizer_from_gguf, fields | {"tokenizer.ggml.tokens": tokens})
    assert "twice, with the ids 0 and 1" in message


def test_types_that_do_not_match_the_tokens_are_refused(fields: dict[str, Any]) -> None:
    message = message_of(tokenizer_from_gguf, fields | {"tokenizer.ggml.token_type": [1, 1]})
    assert "tokens but 2 token types" in message


# Real files, by hand. transformers' own conversion from GGUF forgets that Qwen2 composes characters and that SmolLM
# cuts digits apart, so the references are its Qwen2 class and SmolLM's rule as its tokenizer.json writes it.


@pytest.fixture
def real_metadata(request: pytest.FixtureRequest) -> dict[str, Any]:
    path = os.environ.get(request.param)
    if not path:
        pytest.skip(f"set {request.param} to the path of the model's GGUF file")
    return GGUFFile(Path(path)).metadata


def require_same_ids(ours: Tokenizer, theirs: Any) -> None:
    for text in [*TRICKY, *CORPUS, Path(__file__).read_text(encoding="utf-8")]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=True) == ids
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)


def vocab_and_merges(metadata: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    types = metadata["tokenizer.ggml.token_type"]
    tokens = enumerate(metadata["tokenizer.ggml.tokens"])
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    return {token: id_ for id_, token in tokens if types[id_] == NORMAL}, merges


@pytest.mark.weights
@pytest.mark.parametrize("real_metadata", ["UNMASK_TEST_QWEN_GGUF"], indirect=True)
def test_a_real_qwen_file_gives_the_ids_of_qwen2tokenizer(real_metadata: dict[str, Any]) -> None:
    from transformers import Qwen2Tokenizer

    vocab, merges = vocab_and_merges(real_metadata)
    types, tokens = real_metadata["tokenizer.ggml.token_type"], real_metadata["tokenizer.ggml.tokens"]
    theirs = Qwen2Tokenizer(vocab=vocab, merges=merges)
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (CONTROL, USER_DEFINED):
            theirs.add_tokens(token, special_tokens=type_ == CONTROL)
    ours = tokenizer_from_gguf(real_metadata)
    assert (ours.piece(151645), ours.eos_id, ours.pad_id, ours.adds_bos) == ("<|im_end|>", 151645, 151643, False)
    assert theirs.convert_tokens_to_ids("<|file_sep|>") == 151664 == ours.vocab_size - 1
    assert ours.undefined_ids(151936) == list(range(151665, 151936))
    assert ours.fim_ids is not None
    require_same_ids(ours, theirs)
    conversation = [{"role": "user", "content": "Reverse a list."}]
    theirs.chat_template = ours.chat_template
    prompt = theirs.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert encode_chat(ours, [Message("user", "Reverse a list.")]) == theirs.encode(prompt)


@pytest.mark.weights
@pytest.mark.parametrize("real_metadata", ["UNMASK_TEST_SMOLLM_GGUF"], indirect=True)
def test_a_real_smollm_file_gives_the_ids_of_its_own_rule(real_metadata: dict[str, Any]) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab, merges = vocab_and_merges(real_metadata)
    specials = real_metadata["tokenizer.ggml.tokens"][:17]
    library = tokenizers.Tokenizer(models.BPE({text: id_ for id_, text in enumerate(specials)} | vocab, merges))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(specials)
    ours = tokenizer_from_gguf(real_metadata)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (1, 2, 2, 49152)
    assert ours.special_ids == frozenset(range(17))
    assert ours.undefined_ids(49152) == []
    require_same_ids(ours, PreTrainedTokenizerFast(tokenizer_object=library))
