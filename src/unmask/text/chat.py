"""A conversation as the prompt its checkpoint was trained on, without letting what people write become control tokens.

`render_chat` fills in a Hugging Face chat template, jinja2 in its sandbox, exactly as `transformers` does.
`encode_chat` goes on to ids. It gives the same ids as encoding the rendered text, except where a message *contains*
the text of a special token: that stays text. How: special tokens inside contents are replaced by secret placeholders
before rendering, so every special token in the rendered text is the template's own; the text is cut at those, and
between them the placeholders turn back into literal text. Cuts fall nowhere else, so merges over the borders of a
content are those of the rendered text.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from unmask.errors import TextError, did_you_mean
from unmask.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")

# What a template can raise: jinja's own errors, and Python's from an expression such as `1 + 'a'`.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    >>> Message("user", "Reverse a list.").role
    'user'
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise TextError(f"{self.role!r} is no role of a message; {did_you_mean(str(self.role), ROLES)}")
        if not isinstance(self.content, str):
            raise TextError(
                f"the content of a {self.role} message is {type(self.content).__name__}; it must be text: give a str"
            )


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    prefill: str | None = None,
) -> list[int]:
    """The ids of a conversation, ready for the answer.

    `prefill` is the start of the answer, given to the model instead of left to it.
    """
    if tokenizer.chat_template is None:
        raise TextError(
            "this checkpoint has no chat template, so there is no known way to write a conversation for it; ask for "
            "raw completion of a plain text instead, or set the tokenizer's `chat_template`"
        )
    veil = _Veil(tokenizer.special_texts)
    rendered = render_chat(
        tokenizer.chat_template,
        [replace(message, content=veil.hide(message.content)) for message in messages],
        add_generation_prompt=add_generation_prompt,
        prefill=None if prefill is None else veil.hide(prefill),
        **_token_texts(tokenizer),
    )
    parts = tokenizer.split(rendered)
    return [i for part in parts for i in ([part] if isinstance(part, int) else tokenizer.encode(veil.show(part)))]


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    prefill: str | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
) -> str:
    """The text of a conversation under a chat template.

    >>> chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n{% endfor %}"
    >>> render_chat(chatml, [Message("user", "hi")])
    '<|im_start|>user\\nhi<|im_end|>\\n'
    """
    if not messages:
        raise TextError("the conversation has no messages; give at least one, such as Message('user', 'hello')")
    if prefill is not None and not add_generation_prompt:
        raise TextError(
            "prefill begins the assistant's answer, which needs the generation prompt before it; leave "
            "add_generation_prompt on, or write the text as the last assistant message"
        )
    tokens = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
    values: dict[str, Any] = {name: text for name, text in tokens.items() if text is not None}
    values["messages"] = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = _compile(template).render(
            values, add_generation_prompt=add_generation_prompt, tools=None, documents=None
        )
    except _TEMPLATE_FAILURES as error:
        reason = str(error).rstrip(".")
        raise TextError(
            f"the chat template failed: {reason}; change the messages to what it accepts, or use raw completion"
        ) from error
    return text + (prefill or "")


def _token_texts(tokenizer: Tokenizer) -> dict[str, str]:
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    return {name: tokenizer.piece(id_) for name, id_ in ids.items() if id_ is not None}


class _Veil:
    """Hides special tokens in contents from the template and from `Tokenizer.split`, and shows them again.

    A placeholder is made of private-use characters: no white space to trim, no letters to change case, and with 20
    random ones out of 6,000 nobody can write it in advance.
    """

    _FIRST, _COUNT = 0xE000, 6000

    def __init__(self, special_texts: Sequence[str]) -> None:
        key = "".join(chr(self._FIRST + secrets.randbelow(self._COUNT)) for _ in range(20))
        self.placeholder_of = {text: f"{key}{chr(self._FIRST + i)}" for i, text in enumerate(special_texts)}

    def hide(self, text: str) -> str:
        for special, placeholder in self.placeholder_of.items():
            text = text.replace(special, placeholder)
        return text

    def show(self, text: str) -> str:
        for special, placeholder in self.placeholder_of.items():
            text = text.replace(placeholder, special)
        return text


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now, "namespace": _PlainNamespace}
    return environment.from_string(template)


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training tools; rendering only needs what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it this way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _PlainNamespace(Namespace):
    """jinja's `namespace`, without names that begin with an underscore: Python's internals are behind those."""

    def __init__(self, *values: Any, **named: Any) -> None:
        attributes = dict(*values, **named)
        for name in attributes:
            _PlainNamespace._check(name)  # through the class: an instance shows its attributes alone
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _PlainNamespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: str) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template may not set {name!r} on a namespace")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Plain JSON; jinja's own filter escapes characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
