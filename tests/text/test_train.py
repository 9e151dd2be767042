"""Training a tokenizer: exact, the same each time, indentation in one token, and read alike by `transformers`."""

import inspect
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from unmask.data.shards import fingerprint
from unmask.errors import SettingsError, TextError
from unmask.text import chat, tokenizer, train
from unmask.text.chat import Message, encode_chat
from unmask.text.tokenizer import Tokenizer
from unmask.text.train import CHATML, SPECIAL_TOKENS, train_tokenizer

SOURCES = [inspect.getsource(module) for module in (chat, tokenizer, train, inspect)]
TRICKY = [
    "",
    "   \n\n  \t x",
    "\r\nwindows\r\n\r\n",
    "def f(x):\n\treturn x  # 3 spaces   \n",
    "naïve café 東京 😀 1234 <|mask|> \x00\x7f",
    "    indented from the start",
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(SOURCES, vocab_size=1000)


def test_python_comes_back_byte_for_byte(trained: Tokenizer) -> None:
    for text in (*SOURCES, *TRICKY):
        ids = trained.encode(text)
        assert b"".join(map(trained.token_bytes, ids)) == text.encode()
        assert trained.decode(ids) == text
        assert trained.special_ids.isdisjoint(ids)


def test_special_tokens_have_the_lowest_ids_whatever_the_size(trained: Tokenizer) -> None:
    for found in (trained, train_tokenizer(SOURCES[:1], vocab_size=300)):
        assert [found.token_to_id(text) for text in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
        assert found.special_ids == {0, 1, 2, 3, 4}
        assert (found.eos_id, found.pad_id, found.mask_id, found.bos_id) == (0, 0, 3, None)
    assert trained.vocab_size == 1000


def test_a_line_break_with_its_indentation_is_one_token(trained: Tokenizer) -> None:
    pieces = [trained.piece(id_) for id_ in trained.encode("def f(x):\n    if x:\n        return x\n\n    return 12")]
    assert "\n    " in pieces
    assert "\n        " in pieces
    assert "\n\n    " in pieces
    assert pieces.count("return") == 2
    assert pieces[-2:] == ["1", "2"]


def test_the_same_texts_give_the_same_tokenizer(trained: Tokenizer) -> None:
    assert fingerprint(train_tokenizer(iter(SOURCES), vocab_size=1000)) == fingerprint(trained)
    assert fingerprint(train_tokenizer(SOURCES[1:], vocab_size=1000)) != fingerprint(trained)


def test_it_is_saved_for_us_and_for_transformers(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))
    messages = [Message("user", "Add <|im_end|>?"), Message("assistant", "a + b")]
    for text in (*SOURCES, *TRICKY):
        assert ours.encode(text) == trained.encode(text)
        assert ours.encode(text, special=True) == theirs.encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.mask_token_id) == (0, 0, 3)
    plain = [{"role": "user", "content": "Add."}]
    text = theirs.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    assert ours.encode(text, special=True) == encode_chat(ours, [Message("user", "Add.")])
    assert encode_chat(ours, messages) == encode_chat(trained, messages)


def test_the_template_puts_no_system_message_in_front(trained: Tokenizer) -> None:
    text = chat.render_chat(CHATML, [Message("user", "hi")])
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = encode_chat(trained, [Message("system", "Be brief."), Message("user", "hi")])
    assert ids.count(1) == 3
    assert ids.count(2) == 2


def test_few_texts_give_fewer_ids() -> None:
    assert train_tokenizer(["ab ab"], vocab_size=4096).vocab_size < 300


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="vocab_size=200: the 256 bytes and 5 special tokens take 261 ids; give more"
    ):
        train_tokenizer(SOURCES, vocab_size=200)
    with pytest.raises(SettingsError, match=r"lack '<\|endoftext\|>', which ends documents and fills rows; add it"):
        train_tokenizer(SOURCES, vocab_size=300, special_tokens=["<|mask|>"])
    with pytest.raises(TextError, match="there are no texts to learn a tokenizer from; give sources with text in them"):
        train_tokenizer(["", ""], vocab_size=300)
