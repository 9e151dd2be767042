"""The form of an answer: one block of Python and nothing behind it (DiffuCoder's format reward, `rewards.py`).

The released pattern also demands a newline behind the closing fence, which an answer cut at its end token does not
have; here it may stand there or not.
"""

import ast
import re
import warnings
from typing import Any

from unmask.reward.function import text_of

_FENCE = re.compile(r"`{3,}")
_OTHER_FENCE = re.compile(r"^ {0,3}~{3,}", re.MULTILINE)
_OPENING, _CLOSING = "```python\n", "```"


class CodeFormat:
    """1.0 for one fenced block of Python that parses, 0.5 for one that does not parse, 0 for anything else."""

    __name__ = "code_format"

    def __call__(self, *, prompts: Any = None, completions: Any, **columns: Any) -> list[float | None]:
        return [format_reward(text_of(completion)) for completion in completions]


def format_reward(text: str) -> float:
    """The reward of one text.

    >>> format_reward("```python\\nx = 1\\n```"), format_reward("```python\\nx =\\n```"), format_reward("x = 1")
    (1.0, 0.5, 0.0)
    """
    code = fenced_code(text)
    if code is None:
        return 0.0
    return 1.0 if parses(code) else 0.5


def fenced_code(text: str) -> str | None:
    """The code of the text's one block, or None where the text is not of that form.

    The form: exactly two fences, each at the beginning of a line; the first is ```` ```python ```` and a newline, the
    second ends the text. Words may stand before the block.

    >>> fenced_code("Here it is:\\n```python\\nx = 1\\n```\\n")
    'x = 1\\n'
    >>> fenced_code("```python\\nx = 1\\n```\\nIt sets x.")
    """
    fences = [(found.start(), found[0]) for found in _FENCE.finditer(text)]
    if [fence for _, fence in fences] != [_CLOSING, _CLOSING]:
        return None
    (opening, _), (closing, _) = fences
    starts_lines = all(at == 0 or text[at - 1] == "\n" for at in (opening, closing))
    if not starts_lines or not text.startswith(_OPENING, opening) or text[closing + len(_CLOSING) :] not in ("", "\n"):
        return None
    if _OTHER_FENCE.search(text, 0, opening):
        return None
    return text[opening + len(_OPENING) : closing]


def parses(code: str) -> bool:
    """Whether it is Python. Null bytes are a ValueError there, a deep nest a RecursionError or a MemoryError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's escapes
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
