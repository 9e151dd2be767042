"""`Tokenizer`: the same ids as transformers, exact bytes, and no control token out of a user's text."""

import copy
import json
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models

from unmask.errors import TextError
from unmask.text.tokenizer import GPT2, AddedToken, FimIds, Tokenizer, build_backend

from bpe_checkpoint import NOT_SPECIAL, SPECIAL, TRICKY, Bpe, train_bpe, write_json_layout, write_vocab_layout

BYTES = Tokenizer.byte_level(["<|mask|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
any_text = st.text(st.characters(exclude_categories=["Cs"]))
text_with_special = st.lists(st.one_of(any_text, st.sampled_from(BYTES.special_texts))).map("".join)


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return train_bpe()


@pytest.fixture(scope="module")
def small(bpe: Bpe, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_vocab_layout(bpe, tmp_path_factory.mktemp("vocab")))


@pytest.fixture(scope="module")
def json_folder(bpe: Bpe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json_layout(bpe, tmp_path_factory.mktemp("json"))


# Parity


@pytest.mark.parametrize("text", TRICKY)
def test_ids_are_those_of_transformers(json_folder: Path, text: str) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours = Tokenizer.from_folder(json_folder)
    for theirs in (
        PreTrainedTokenizerFast(tokenizer_file=str(json_folder / "tokenizer.json")),
        AutoTokenizer.from_pretrained(json_folder),
    ):
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=True) == expected
        assert ours.decode(expected, skip_special=False) == theirs.decode(expected)


@pytest.mark.parametrize("text", TRICKY)
def test_vocab_and_merges_give_the_ids_of_qwen2tokenizer(bpe: Bpe, small: Tokenizer, text: str) -> None:
    from transformers import Qwen2Tokenizer

    theirs = Qwen2Tokenizer(vocab=bpe.vocab, merges=bpe.merges, unk_token=None, bos_token=None, pad_token=None)
    theirs.add_tokens(SPECIAL[1:], special_tokens=True)
    theirs.add_tokens(NOT_SPECIAL)
    assert theirs.convert_tokens_to_ids("<|mask|>") == small.mask_id
    ids = theirs.encode(text, add_special_tokens=False)
    assert small.encode(text, special=True) == ids
    assert small.decode(ids, skip_special=False) == theirs.decode(ids)


@pytest.mark.parametrize("text", TRICKY)
@pytest.mark.parametrize("special", [False, True])
def test_both_layouts_are_the_same_tokenizer(small: Tokenizer, json_folder: Path, text: str, special: bool) -> None:
    other = Tokenizer.from_folder(json_folder)
    ids = small.encode(text, special=special)
    assert ids == other.encode(text, special=special)
    assert small.decode(ids) == other.decode(ids)
    assert small.vocab_size == other.vocab_size
    assert small.special_ids == other.special_ids


def test_plain_text_is_cut_as_the_library_cuts_it(small: Tokenizer, bpe: Bpe) -> None:
    library = copy.deepcopy(bpe.library)
    library.encode_special_tokens = True
    for text in TRICKY[:12]:
        assert small.encode(text) == library.encode(text, add_special_tokens=False).ids


# What the files say


def test_named_tokens_come_from_the_config(bpe: Bpe, small: Tokenizer) -> None:
    ids = bpe.token_ids()
    assert (small.bos_id, small.eos_id) == (None, ids["<|endoftext|>"])
    assert (small.pad_id, small.mask_id) == (ids["<|dlm_pad|>"], ids["<|mask|>"])
    assert not small.adds_bos
    assert small.fim_ids == FimIds(
        prefix=ids["<|fim_prefix|>"], suffix=ids["<|fim_suffix|>"], middle=ids["<|fim_middle|>"]
    )


def test_named_tokens_come_from_the_special_tokens_map_where_the_config_is_silent(bpe: Bpe, tmp_path: Path) -> None:
    folder = write_json_layout(bpe, tmp_path)
    (folder / "tokenizer_config.json").unlink()
    named = {"eos_token": {"content": "<|im_end|>"}, "mask_token": "<|mask|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.eos_id, tokenizer.mask_id) == (bpe.token_ids()["<|im_end|>"], bpe.token_ids()["<|mask|>"])
    assert tokenizer.pad_id is None
    assert tokenizer.chat_template is None


def test_added_tokens_json_alone_is_enough(bpe: Bpe, small: Tokenizer, tmp_path: Path) -> None:
    folder = write_vocab_layout(bpe, tmp_path, added_tokens_decoder={})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_ids == small.special_ids
    for text in TRICKY:
        assert tokenizer.encode(text, special=True) == small.encode(text, special=True)


def test_a_special_token_inside_vocab_json_is_control_too(bpe: Bpe, tmp_path: Path) -> None:
    folder = write_vocab_layout(bpe, tmp_path, added_tokens_decoder={}, eos_token="</s>", pad_token=None)
    (folder / "added_tokens.json").write_text(json.dumps({"<|mask|>": len(bpe.vocab) + 1}))
    (folder / "vocab.json").write_text(json.dumps(bpe.vocab | {"</s>": len(bpe.vocab)}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_id == len(bpe.vocab)
    assert tokenizer.eos_id in tokenizer.special_ids
    assert tokenizer.encode("x</s>", special=True)[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in tokenizer.encode("x</s>")


def test_the_template_file_wins_over_the_config(bpe: Bpe, tmp_path: Path) -> None:
    folder = write_json_layout(bpe, tmp_path)
    (folder / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.from_folder(folder).chat_template == "from the file"


def test_the_default_one_of_several_templates_is_taken(bpe: Bpe, tmp_path: Path) -> None:
    several = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    assert Tokenizer.from_folder(write_json_layout(bpe, tmp_path, chat_template=several)).chat_template == "b"


def test_adds_bos_is_read_from_the_post_processor(bpe: Bpe, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    folder = write_json_layout(bpe, tmp_path, bos_token="<|beginoftext|>")
    assert not Tokenizer.from_folder(folder).adds_bos
    library = copy.deepcopy(bpe.library)
    bos = ("<|beginoftext|>", bpe.token_ids()["<|beginoftext|>"])
    library.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    library.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.adds_bos
    assert tokenizer.bos_id not in tokenizer.encode("x")


# Special tokens


@pytest.mark.parametrize("text", [*SPECIAL, "<|fim_prefix|>"])
def test_typed_special_text_stays_text(small: Tokenizer, text: str) -> None:
    typed = f"a{text} b"
    ids = small.encode(typed)
    assert small.special_ids.isdisjoint(ids)
    assert small.decode(ids, skip_special=False) == typed
    assert small.token_to_id(text) in small.encode(typed, special=True)


@given(text_with_special)
def test_no_text_becomes_a_control_token(text: str) -> None:
    ids = BYTES.encode(text)
    assert BYTES.special_ids.isdisjoint(ids)
    assert BYTES.decode(ids) == text


@given(text_with_special)
def test_special_encoding_loses_nothing(text: str) -> None:
    ids = BYTES.encode(text, special=True)
    assert BYTES.decode(ids, skip_special=False) == text
    assert "".join(part if isinstance(part, str) else BYTES.piece(part) for part in BYTES.split(text)) == text


def test_a_special_token_that_is_also_a_word_is_spelled_out() -> None:
    vocab = {char: byte for byte, char in enumerate(BYTES.piece(i) for i in range(33, 127))}
    added = [AddedToken(id=200, text="STOP", special=True)]
    whole_words = type(GPT2)(patterns=GPT2.patterns, whole_words=True)
    tokenizer = Tokenizer(build_backend(vocab, [], added, whole_words), eos_id=200)
    assert [tokenizer.piece(i) for i in tokenizer.encode("STOP")] == ["S", "T", "O", "P"]
    assert tokenizer.encode("STOP", special=True) == [200]


def test_ids_with_gaps_are_kept() -> None:
    added = [AddedToken(id=id_, text=text, special=True) for id_, text in ((300, "<|mask|>"), (400, "<|eot|>"))]
    tokenizer = Tokenizer(build_backend({"a": 0, "b": 1}, [], added, GPT2))
    assert tokenizer.encode("a<|eot|>b<|mask|>", special=True) == [0, 400, 1, 300]
    assert tokenizer.vocab_size == 401


def test_white_space_that_a_special_token_asks_for_goes_with_it(tmp_path: Path) -> None:
    from tokenizers import AddedToken as LibraryToken
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    library = LibraryTokenizer(models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(
        [
            LibraryToken("<mask>", lstrip=True, normalized=False),
            LibraryToken("<sep>", rstrip=True, normalized=False),
            LibraryToken("END", single_word=True, normalized=False),
        ]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_folder(tmp_path)
    for text in ("a <mask> b", "a <sep>  b", "x END", "xEND END.", "ENDING"):
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)
        assert ours.special_ids.isdisjoint(ours.encode(text))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_a_copy_still_keeps_typed_special_text_as_text(small: Tokenizer, duplicate: object) -> None:
    again = duplicate(small)  # type: ignore[operator]
    assert again.encode("x<|im_end|>") == small.encode("x<|im_end|>")
    assert again.encode("x<|im_end|>", special=True) == small.encode("x<|im_end|>", special=True)


# Bytes


@given(any_text)
def test_byte_tokenizer_round_trips_any_text(text: str) -> None:
    ids = BYTES.encode(text)
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text


@given(any_text)
def test_pieces_join_to_the_exact_bytes(text: str) -> None:
    joined = "".join(map(BYTES.piece, BYTES.encode(text)))
    assert joined.encode("utf-8", "surrogateescape") == text.encode()


@given(any_text)
def test_pieces_of_a_trained_vocabulary_join_to_the_composed_text(small: Tokenizer, text: str) -> None:
    ids = small.encode(text)
    expected = unicodedata.normalize("NFC", text)
    assert "".join(map(small.piece, ids)).encode("utf-8", "surrogateescape").decode() == expected
    assert small.decode(ids) == expected


@given(st.lists(st.integers(0, 255)))
def test_decode_shows_broken_utf8_as_python_does(ids: list[int]) -> None:
    assert BYTES.decode(ids) == bytes(ids).decode("utf-8", errors="replace")


def test_decode_leaves_spaces_alone() -> None:
    assert BYTES.decode(BYTES.encode(" a , b 's  c ")) == " a , b 's  c "


def test_decode_shows_an_id_without_a_token() -> None:
    assert BYTES.decode([97, 9999, 98]) == "a\N{REPLACEMENT CHARACTER}b"


def test_decode_skips_special_tokens_unless_told_not_to() -> None:
    ids = [97, 256, 98, 257]
    assert BYTES.decode(ids) == "ab"
    assert BYTES.decode(ids, skip_special=False) == "a<|mask|>b<|endoftext|>"


def test_byte_level_tokens() -> None:
    tokenizer = Tokenizer.byte_level()
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (256, 257, 257, None)
    assert tokenizer.vocab_size == 258
    assert tokenizer.undefined_ids(260) == [258, 259]
    assert tokenizer.undefined_ids(100) == []
    assert tokenizer.fim_ids is None
    assert tokenizer.token_to_id("<|mask|>") == 256
    assert tokenizer.token_to_id("nothing") is None
    assert repr(tokenizer) == "Tokenizer(258 ids, eos_id=257, mask_id=256)"


def test_byte_level_without_special_tokens() -> None:
    tokenizer = Tokenizer.byte_level([])
    assert tokenizer.vocab_size == 256
    assert tokenizer.encode("ab<", special=True) == [97, 98, 60]
    assert (tokenizer.mask_id, tokenizer.split(""), tokenizer.split("a")) == (None, [], ["a"])


def test_fim_tokens_in_the_other_spelling() -> None:
    tokenizer = Tokenizer.byte_level(["<fim_prefix>", "<fim_middle>", "<fim_suffix>"])
    assert tokenizer.fim_ids == FimIds(prefix=256, suffix=258, middle=257)


# Saving


def test_a_saved_tokenizer_reads_back_here_and_in_transformers(small: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    small.save(tmp_path / "new" / "folder")
    again = Tokenizer.from_folder(tmp_path / "new" / "folder")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    for name in ("bos_id", "eos_id", "pad_id", "mask_id", "adds_bos", "chat_template", "special_ids", "vocab_size"):
        assert getattr(again, name) == getattr(small, name), name
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.mask_token_id) == (
        again.eos_id,
        again.pad_id,
        again.mask_id,
    )
    assert theirs.chat_template == small.chat_template
    for text in TRICKY:
        ids = small.encode(text, special=True)
        assert again.encode(text, special=True) == ids == theirs.encode(text, add_special_tokens=False)
        assert again.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == small.decode(ids)


def test_a_saved_tokenizer_keeps_its_gaps_and_its_bos(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    added = [AddedToken(id=300, text="<|bos|>", special=True)]
    backend = build_backend({"a": 0, "b": 1}, [], added, GPT2)
    Tokenizer(backend, bos_id=300, adds_bos=True).save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert (again.bos_id, again.adds_bos) == (300, True)
    assert again.encode("a<|bos|>", special=True) == [0, 300]
    assert AutoTokenizer.from_pretrained(tmp_path).encode("a<|bos|>", add_special_tokens=False) == [0, 300]


# Errors


def message_of(action: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(TextError) as caught:
        action(*args, **kwargs)  # type: ignore[operator]
    return str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = message_of(Tokenizer.from_folder, tmp_path / "gone")
    assert "gone is not a folder; give the folder that holds" in message


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    message = message_of(Tokenizer.from_folder, tmp_path)
    assert "looked for tokenizer.json, then for vocab.json with merges.txt (merges.txt missing)" in message


def test_a_broken_tokenizer_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version"')
    message = message_of(Tokenizer.from_folder, tmp_path)
    assert "tokenizer.json cannot be read as a tokenizer" in message
    assert "fetch the file again" in message


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_a_broken_config_is_named(bpe: Bpe, tmp_path: Path, content: str) -> None:
    folder = write_json_layout(bpe, tmp_path)
    (folder / "tokenizer_config.json").write_bytes(content.encode("latin-1"))
    message = message_of(Tokenizer.from_folder, folder)
    assert "tokenizer_config.json" in message
    assert "fetch the file again" in message


def test_broken_merges_are_shown(bpe: Bpe, tmp_path: Path) -> None:
    folder = write_vocab_layout(bpe, tmp_path)
    (folder / "merges.txt").write_text("a b\none two three\n")
    assert "has the line 'one two three'; a merge is two entries" in message_of(Tokenizer.from_folder, folder)


def test_merges_of_another_vocabulary_are_refused(bpe: Bpe, tmp_path: Path) -> None:
    folder = write_vocab_layout(bpe, tmp_path)
    (folder / "merges.txt").write_text("a nowhere\n")
    assert "do not fit together" in message_of(Tokenizer.from_folder, folder)


def test_an_id_given_twice_is_refused(bpe: Bpe, tmp_path: Path) -> None:
    folder = write_vocab_layout(bpe, tmp_path)
    (folder / "added_tokens.json").write_text(json.dumps({"<|extra|>": bpe.vocab["a"]}))
    assert f"both 'a' and '<|extra|>' have the id {bpe.vocab['a']}" in message_of(Tokenizer.from_folder, folder)


@pytest.mark.parametrize(("name", "given"), [("Qwen3Tokenizer", "'Qwen3Tokenizer'"), (None, "no tokenizer class")])
def test_an_unknown_tokenizer_class_is_refused(bpe: Bpe, tmp_path: Path, name: str | None, given: str) -> None:
    message = message_of(Tokenizer.from_folder, write_vocab_layout(bpe, tmp_path, tokenizer_class=name))
    assert given in message
    assert "Qwen2Tokenizer" in message
    assert "save tokenizer.json with transformers" in message


def test_a_named_token_that_the_vocabulary_lacks_is_refused(bpe: Bpe, tmp_path: Path) -> None:
    message = message_of(Tokenizer.from_folder, write_json_layout(bpe, tmp_path, pad_token="[PAD]"))
    assert "names '[PAD]' as its pad_token, but its vocabulary has no such token" in message


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    library = LibraryTokenizer(models.BPE({"a": 0}, []))
    library.decoder = decoders.Metaspace()
    library.save(str(tmp_path / "tokenizer.json"))
    message = message_of(Tokenizer.from_folder, tmp_path)
    assert "has a Metaspace decoder" in message
    assert "only byte-level BPE can be used" in message


@pytest.mark.parametrize("token_id", [258, -1, 2**40])
def test_the_piece_of_an_undefined_id_is_refused(token_id: int) -> None:
    message = message_of(Tokenizer.byte_level().piece, token_id)
    assert f"id {token_id} has no token in this vocabulary, whose ids end at 257" in message
    assert "undefined_ids" in message


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    message = message_of(BYTES.encode, "ab\udc80")
    assert "lone surrogate '\\udc80' at position 2" in message


def test_a_text_that_is_no_text_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        BYTES.encode(b"bytes")  # type: ignore[arg-type]


def test_importing_the_tokenizer_costs_no_libraries() -> None:
    code = "import sys, unmask.text.tokenizer as t; print([m for m in ('torch', 'tokenizers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
