"""The form of an answer: what earns 1, a half, and nothing."""

import warnings

import pytest

from unmask.errors import SettingsError
from unmask.reward.code_format import CodeFormat, fenced_code

WHOLE = "```python\ndef f(x):\n    return x\n```"

FORMS = {
    "one block": (WHOLE, 1.0),
    "a newline behind the fence": (WHOLE + "\n", 1.0),
    "words before the block": ("Here is the code:\n\n" + WHOLE, 1.0),
    "a warning is no error": ('```python\nx = "\\d"\n```', 1.0),
    "does not parse": ("```python\ndef f(x:\n```", 0.5),
    "a null byte": ("```python\nx = '\0'\n```", 0.5),
    "a million brackets": ("```python\n" + "[" * 1_000_000 + "\n```", 0.5),
    "a long chain of minus signs": ("```python\nx = " + "-" * 100_000 + "1\n```", 0.5),
    "a lone surrogate": ("```python\nx = '\ud800'\n```", 0.5),
    "text behind the fence": (WHOLE + "\nIt returns x.", 0.0),
    "two newlines behind the fence": (WHOLE + "\n\n", 0.0),
    "two blocks": (f"{WHOLE}\n{WHOLE}", 0.0),
    "a fence in the code": ('```python\nx = """\n```\n"""\n```', 0.0),
    "another block before": (f"```\nf(1)\n```\n{WHOLE}", 0.0),
    "another kind of fence before": (f"~~~\nf(1)\n~~~\n{WHOLE}", 0.0),
    "no language": ("```\nx = 1\n```", 0.0),
    "another language": ("```python3\nx = 1\n```", 0.0),
    "four backticks": ("````python\nx = 1\n````", 0.0),
    "no fence": ("def f(x):\n    return x\n", 0.0),
    "not closed": ("```python\nx = 1\n", 0.0),
    "only the beginning": ("```python\n", 0.0),
    "a fence inside a line": ("Here: ```python\nx = 1\n```", 0.0),
    "closed inside a line": ("```python\nx = 1```", 0.0),
    "nothing": ("", 0.0),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_an_answer_is_told(name: str) -> None:
    text, expected = FORMS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CodeFormat()(completions=[text]) == [expected]
    assert (fenced_code(text) is None) == (expected == 0.0)


def test_messages_are_read_as_texts_are() -> None:
    messages = [[{"role": "assistant", "content": text}] for text, _ in FORMS.values()]
    assert CodeFormat()(completions=messages) == [expected for _, expected in FORMS.values()]


@pytest.mark.parametrize("completion", [None, 3, [], [{"role": "assistant"}], [{"content": 1}], ["a", "b"]])
def test_what_is_no_completion_is_refused(completion: object) -> None:
    with pytest.raises(SettingsError, match="it has to be a text, or a list of one message with a text as its content"):
        CodeFormat()(completions=[completion])
