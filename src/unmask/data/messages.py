"""A conversation as a training pair: the ids of everything before the answer, and of the answer.

The prompt is exactly what the model is given when it is asked (`text/chat.py`: template and generation prompt), and
the answer is encoded on its own behind it, as a model writes it. Only the last assistant turn is learned; earlier
ones are part of the prompt, and what comes after the last one is left out.
"""

from collections.abc import Sequence
from typing import Any

from unmask.errors import DataError, TextError
from unmask.text.chat import Message, encode_chat
from unmask.text.tokenizer import Tokenizer


def read_messages(value: Any, where: str) -> tuple[Message, ...]:
    """The messages format: `[{"role": "user", "content": "…"}, …]`, ending in or holding an assistant's answer."""
    if not isinstance(value, list) or not value:
        raise DataError(f'{where}: "messages" is {_shown(value)}; give a list of {{"role": …, "content": …}}')
    messages = []
    for number, turn in enumerate(value):
        if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
            raise DataError(f'{where}: messages[{number}] is {_shown(turn)}; give {{"role": …, "content": …}}')
        try:
            messages.append(Message(turn["role"], turn["content"]))
        except TextError as error:
            raise DataError(f"{where}: messages[{number}]: {error}") from error
    if all(message.role != "assistant" for message in messages):
        raise DataError(f"{where}: no message is the assistant's, so there is no answer to learn; add one")
    return tuple(messages)


def answer_of(messages: Sequence[Message], where: str) -> int:
    """Which message is the answer to learn; DataError if there is none, or nothing is asked."""
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise DataError(f"{where}: no message is the assistant's, so there is no answer to learn; add one")
    last = answers[-1]
    if not messages[last].content.strip():
        raise DataError(f"{where}: messages[{last}], the answer to learn, is empty; leave the conversation out")
    if not last:
        raise DataError(f"{where}: nothing stands before the answer; put the user's message in front of it")
    return last


class PairEncoder:
    """Turns conversations into (ids, prompt_length) for one tokenizer and its chat template.

    The ids end with the token that ends a turn in this template, `<|im_end|>` in ChatML.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end_of_turn = _end_of_turn(tokenizer)

    def encode(self, messages: Sequence[Message], where: str = "the conversation") -> tuple[list[int], int]:
        """The pair of one conversation; `where` names it in errors."""
        last = answer_of(messages, where)
        prompt = encode_chat(self.tokenizer, messages[:last])
        answer = self.tokenizer.encode(messages[last].content)
        return [*prompt, *answer, self.end_of_turn], len(prompt)


def _end_of_turn(tokenizer: Tokenizer) -> int:
    """What the template puts behind an answer: the first control token there."""
    question, answer = Message("user", "a"), Message("assistant", "b")
    prompt = encode_chat(tokenizer, [question])
    whole = encode_chat(tokenizer, [question, answer], add_generation_prompt=False)
    behind = [id_ for id_ in whole[len(prompt) :] if id_ in tokenizer.special_ids]
    if whole[: len(prompt)] != prompt or not behind:
        raise DataError(
            "this tokenizer's chat template writes no control token behind an answer, or begins it in "
            "another way than its generation prompt does, so the end of an answer cannot be learned; use a template "
            "in the manner of ChatML: <|im_start|>assistant, a line break, the answer, <|im_end|>"
        )
    return behind[0]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
