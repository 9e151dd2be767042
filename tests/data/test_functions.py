"""Functions out of texts: which ones are taken, what of them can be shown, and mistakes that are one token large."""

import ast
from collections import Counter

import pytest

from unmask.data.corpus import Document
from unmask.data.functions import Function, functions, summary_of

SOURCE = '''
import math


@staticmethod
def area(r, *, unit=1):
    """Return the area of a circle.

    The unit is a length.
    """

    assert r >= 0
    return math.pi * r * r  # >= is not touched here


class Box:
    def is_open(self) -> bool:
        """
        Whether the box is open.
        """
        return not self.closed and True
'''


def found(text: str, name: str = "a.py", licences: tuple[str, ...] = ("MIT",)) -> list[Function]:
    return list(functions([Document(name=name, text=text, licences=licences)]))


def test_a_function_has_its_texts() -> None:
    area, is_open = found(SOURCE)
    assert (area.name, area.source, area.licence) == ("area", "a.py: area", "MIT")
    assert area.signature == "def area(r, *, unit=1)"
    assert area.summary == "Return the area of a circle"
    assert area.text == SOURCE[SOURCE.index("@static") : SOURCE.index("\n\n\nclass")] + "\n"
    assert area.stub.startswith("def area(r, *, unit=1):\n")
    assert area.stub.endswith('length.\n    """\n')
    assert area.without_docstring.splitlines()[:3] == [
        "@staticmethod",
        "def area(r, *, unit=1):",
        "    assert r >= 0",
    ]
    assert (area.is_method, area.is_annotated) == (False, False)
    assert (is_open.source, is_open.is_method, is_open.is_annotated) == ("a.py: Box.is_open", True, True)
    assert is_open.text.startswith("def is_open(self) -> bool:\n    ")


def test_each_part_that_is_shown_is_python() -> None:
    for function in found(SOURCE):
        for text in (function.text, function.stub, function.without_docstring, *function.swaps):
            ast.parse(text)
        ast.parse(f"{function.signature}: pass")


def test_a_swap_exchanges_one_token_below_the_docstring() -> None:
    area, is_open = found(SOURCE)
    assert [text.replace("assert r > 0", "assert r >= 0") for text in area.swaps] == [area.text]
    changed = [text.splitlines()[-1].strip() for text in is_open.swaps]
    assert changed == [
        "return self.closed and True",
        "return not self.closed or True",
        "return not self.closed and False",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    y = x\n    return y\n",  # says nothing
        'def f(x): "One line."; return x\n',
        'def f(x):\n    "Says and does."; y = x\n    return y\n',
        'def f(x):\n    """Promises."""\n    raise NotImplementedError\n',
        'def f(x):\n    """Promises."""\n    ...\n    pass\n',
        'def f(x):\n    """Short."""\n' + "    x += 1\n" * 40,
        'def f(x):\n    """Wide."""\n    return "' + "x" * 200 + '"\n',
        'def f(x):\n    """Has a fence: ```."""\n    return x\n',
        'class A:\n    def f(x):\n        """Holds back."""\n        return """\nleft"""\n',
    ],
)
def test_what_makes_no_question_is_left_out(text: str) -> None:
    assert found(text) == []


def test_the_same_name_and_body_counts_once_whatever_is_said_of_it() -> None:
    one, other = ('def f(x):\n    """One."""\n    return x\n', 'def f(x):\n    """Other."""\n\n    return  x\n')
    assert [function.docstring for function in found(one + other + one.replace("f(", "g("))] == ["One.", "One."]


def test_texts_that_are_no_python_are_counted() -> None:
    skipped: Counter[str] = Counter()
    documents = [Document(name="a", text="print 1"), Document(name="b", text="\0"), Document(name="c", text=SOURCE)]
    assert len(list(functions(documents, skipped=skipped))) == 2
    assert skipped == {"syntax": 2}


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("Return the sum, e.g. of\n  a list. It is fast.", "Return the sum, e.g. of a list"),
        ("Return a :class:`~os.Path` or ``None``.", "Return a `os.Path` or `None`"),
        ("Return the value of *name*:\n more", "Return the value of name"),
        ("Return the sum\n\nof all", "Return the sum"),
        ("Sum.", ""),
        ("Return " + "very " * 50 + "much.", ""),
    ],
)
def test_a_summary_is_the_first_sentence_in_plain_words(docstring: str, summary: str) -> None:
    assert summary_of(docstring) == summary
