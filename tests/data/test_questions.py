"""Questions: their kinds come in their shares, each suits its function, and the seed decides all of it."""

import re
from collections import Counter
from pathlib import Path

import pytest

from unmask.data import questions, wordings
from unmask.data.corpus import Document
from unmask.data.functions import Function, functions
from unmask.data.questions import KINDS, SHARES, draw, make
from unmask.data.task import Task
from unmask.errors import DataError, SettingsError
from unmask.seeds import derive_seed

CODE = '''
def total_{n}(values, start={n}):
    """Add values up and return the sum of number {n}."""
    for value in values:
        start += value
    return start


class Bag:
    def size_{n}(self) -> int:
        """Number of things in it: {n}."""
        return len(self.things) + {n}
'''


def code(count: int) -> list[Function]:
    return list(
        functions([Document(name="a.py", text=CODE.replace("{n}", str(n)), licences=("MIT",)) for n in range(count)])
    )


FUNCTIONS = code(300)


def test_the_kinds_come_in_their_shares_and_mixed() -> None:
    made = draw(FUNCTIONS, count=200)
    assert Counter(question.kind for question in made) == {kind: 2 * share for kind, share in SHARES.items()}
    assert sum(SHARES.values()) == 100
    assert len({question.kind for question in made[:20]}) > 5


def test_the_seed_decides_which_questions_and_in_which_order() -> None:
    one, same, other = (draw(FUNCTIONS, count=50, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert {question.content for question in one} != {question.content for question in other}


def test_no_question_is_asked_twice() -> None:
    made = draw(FUNCTIONS, count=2000)
    assert len({question.content for question in made}) == len(made)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "chat"])
def test_each_kind_shows_what_it_is_about_in_several_wordings(kind: str) -> None:
    made = draw(FUNCTIONS, count=60, kinds=[kind])
    assert len(wordings.CODE[kind]) >= 3
    assert len({re.sub(r"\d+", "", question.content) for question in made}) >= 3
    for question in made:
        assert (question.kind, question.licence) == (kind, "MIT")
        name = question.source.split()[-1].removeprefix("Bag.")
        assert question.source.startswith("a.py: ")
        assert (name in question.content) == (kind != "instruct")
        shows_body = "start += value" in question.content or "things) + " in question.content
        assert shows_body == (kind in ("explain", "tests", "docstring", "types", "refactor")) or kind == "bug"
        assert question.content.count("```") in (0, 2)


def test_what_a_function_does_is_said_in_both_forms() -> None:
    made = draw(code(30), count=30, kinds=["instruct"])
    said = {re.sub(r"\d+", "N", question.content) for question in made}
    assert "Write a Python function that adds values up and returns the sum of number N." in said
    assert "Write a function to add values up and return the sum of number N." in said


def test_only_functions_that_suit_a_kind_are_asked_about() -> None:
    methods = {
        kind: {".size" in q.content or "size_" in q.content for q in draw(code(9), count=99, kinds=[kind])}
        for kind in ("complete", "write", "instruct", "types")
    }
    assert methods == {kind: {False} for kind in methods}


def test_a_bug_is_in_the_code_that_is_shown() -> None:
    for question in draw(code(9), count=9, kinds=["bug"]):
        shown = question.content.split("```")[1]
        assert "start -= value" in shown or "self.things) - " in shown


def test_what_one_kind_lacks_the_others_fill_in() -> None:
    few = [function for function in code(4) if not function.is_method]
    made = draw(few, count=100)
    assert Counter(q.kind for q in made) == {kind: 100 - 4 * 9 if kind == "chat" else 4 for kind in KINDS}
    assert len(draw(few, count=10**6, kinds=["complete", "explain"])) == 8


def test_chat_talks_about_names_pairs_programs_and_ideas_in_many_wordings() -> None:
    made = [question.content for question in draw([], count=400, kinds=["chat"])]
    assert len(wordings.NAMES) >= 12
    assert len({re.sub(r"`[^`]+`", "X", content) for content in made}) > 25
    assert any(content.startswith("What is the difference between `") for content in made)
    assert any(content.startswith("Write a script that ") for content in made)
    assert not any("{" in content for content in made)


def test_exceptions_are_asked_about_as_such() -> None:
    made = [question.content for question in draw([], count=10**6, kinds=["chat"])]
    assert "When is `KeyError` raised?" in made
    assert "What does `KeyError` return?" not in made
    assert "How do I use `itertools.groupby`? Give a short example." in made
    assert "What is the difference between `list.sort` and `sorted`?" in made
    assert len(set(made)) == len(made)


def test_public_names_are_public_and_callable() -> None:
    names = questions.public_names()
    assert all(not part.startswith("_") for inside in names.values() for name in inside for part in name.split("."))
    assert {"str.split", "len"} <= {*names["str"], *names["builtins"]}
    assert "math.pi" not in names["math"]
    assert "shutil.os" not in names["shutil"]


def test_a_question_that_a_benchmark_asks_is_dropped(tmp_path: Path) -> None:
    words = "add the values of a list up and return the sum of them all"
    other = CODE.replace("{n}", "1")
    (tmp_path / "a.py").write_text(f'def f(x):\n    """{words.capitalize()}."""\n    y = sum(x)\n    return y\n{other}')
    asked = make([str(tmp_path)], count=99, kinds=["instruct", "docstring"]).questions
    assert {question.source.split()[-1] for question in asked} == {"f", "total_1", "Bag.size_1"}
    task = Task(task_id="Mine/0", prompt=words)
    made = make([str(tmp_path)], count=99, kinds=["instruct", "docstring"], without=[task])
    assert {question.source.split()[-1] for question in made.questions} == {"total_1", "Bag.size_1"}
    assert made.dropped == {"benchmark": 1}
    talk = Task(task_id="Mine/1", prompt="Give me three examples of `len`, from simple to advanced.")
    assert "benchmark" not in make([], count=9, kinds=["chat"], without=[task]).dropped
    assert make([], count=10**6, kinds=["chat"], without=[talk]).dropped["benchmark"] > 0


def test_a_record_is_a_conversation_that_waits_for_its_answer() -> None:
    (question,) = draw(FUNCTIONS, count=1, kinds=["complete"], seed=derive_seed(0, "any"))
    assert question.record() == {
        "messages": [{"role": "user", "content": question.content}],
        "kind": "complete",
        "source": question.source,
        "licence": "MIT",
    }


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'explian' is no kind of question; did you mean explain\?"):
        make(["stdlib"], count=1, kinds=["explian"])
    with pytest.raises(
        SettingsError, match=r"questions about code need code .* stdlib or installed, or `--kinds chat`"
    ):
        make([], count=1)
    with pytest.raises(SettingsError, match="no kind of question was named; known: chat, "):
        make(["stdlib"], count=1, kinds=[])
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(DataError, match=r"no function to ask about in .*, with a docstring and of 3 to 40 lines"):
        make([str(tmp_path)], count=1)
