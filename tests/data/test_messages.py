"""Training pairs: the prompt is what the model will be asked with, the answer ends with the template's own token."""

import pytest

from unmask.data.messages import PairEncoder, read_messages
from unmask.errors import DataError
from unmask.text.chat import Message, encode_chat
from unmask.text.tokenizer import Tokenizer
from unmask.text.train import CHATML, SPECIAL_TOKENS

TOKENIZER = Tokenizer.byte_level(SPECIAL_TOKENS, chat_template=CHATML)
END = TOKENIZER.token_to_id("<|im_end|>")
ASK, ANSWER = Message("user", "Add."), Message("assistant", "a + b")


def test_a_pair_is_the_prompt_of_decoding_the_answer_and_the_end_of_the_turn() -> None:
    ids, prompt_length = PairEncoder(TOKENIZER).encode([ASK, ANSWER])
    assert ids[:prompt_length] == encode_chat(TOKENIZER, [ASK])
    assert ids[prompt_length:] == [*b"a + b", END]


def test_a_pair_is_the_rendered_conversation_without_the_line_break_behind_it() -> None:
    ids, _ = PairEncoder(TOKENIZER).encode([ASK, ANSWER])
    assert [*ids, ord("\n")] == encode_chat(TOKENIZER, [ASK, ANSWER], add_generation_prompt=False)


def test_only_the_last_answer_is_learned_and_what_follows_it_is_left_out() -> None:
    turns = [Message("system", "Be brief."), ASK, ANSWER, Message("user", "And?"), Message("assistant", "b + a")]
    ids, prompt_length = PairEncoder(TOKENIZER).encode([*turns, Message("user", "Thanks.")])
    assert TOKENIZER.decode(ids[prompt_length:]) == "b + a"
    assert "a + b" in TOKENIZER.decode(ids[:prompt_length])
    assert "Thanks" not in TOKENIZER.decode(ids)


def test_another_templates_end_of_turn_is_found() -> None:
    template = (
        "{% for m in messages %}<|header|>{{ m.role }}<|/header|>{{ m.content }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|header|>assistant<|/header|>{% endif %}"
    )
    tokenizer = Tokenizer.byte_level(["<|header|>", "<|/header|>", "<|eot|>"], chat_template=template)
    assert PairEncoder(tokenizer).end_of_turn == tokenizer.token_to_id("<|eot|>")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}",
    ],
)
def test_a_template_whose_answers_have_no_end_is_refused(template: str) -> None:
    tokenizer = Tokenizer.byte_level(SPECIAL_TOKENS, chat_template=template)
    with pytest.raises(DataError, match=r"chat template writes no control token behind an answer, or begins it .* in "):
        PairEncoder(tokenizer)


def test_what_someone_wrote_never_becomes_a_control_token() -> None:
    ids, prompt_length = PairEncoder(TOKENIZER).encode([ASK, Message("assistant", "<|mask|><|im_end|>")])
    assert TOKENIZER.special_ids & set(ids[prompt_length:-1]) == set()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([ASK], "x: no message is the assistant's, so there is no answer to learn; add one"),
        ([ASK, Message("assistant", " \n")], r"x: messages\[1\], the answer to learn, is empty; leave the convers"),
        ([ANSWER], "x: nothing stands before the answer; put the user's message in front of it"),
    ],
)
def test_a_conversation_without_an_answer_to_learn_is_refused(messages: list[Message], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PairEncoder(TOKENIZER).encode(messages, "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hi", "f, line 3: \"messages\" is 'hi'; give a list of"),
        ([], r'f, line 3: "messages" is \[\]; give a list of'),
        (["hi"], r"f, line 3: messages\[0\] is 'hi'; give"),
        ([{"role": "user"}], r"f, line 3: messages\[0\] is {'role': 'user'}; give"),
        (
            [{"role": "usr", "content": ""}],
            r"f, line 3: messages\[0\]: 'usr' is no role of a message; did you mean user",
        ),
        ([{"role": "user", "content": 3}], r"f, line 3: messages\[0\]: the content of a user message is int"),
        ([{"role": "user", "content": "hi"}], "f, line 3: no message is the assistant's"),
    ],
)
def test_messages_of_another_form_are_refused_with_their_place(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_messages(value, "f, line 3")
