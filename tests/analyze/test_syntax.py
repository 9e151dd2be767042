"""Classes of Python's syntax for the tokens of an answer, and when each class settles."""

import json
import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unmask.analyze.syntax import CLASSES, settle_times, syntax
from unmask.trajectory import Commit, Step, Trajectory

END = 0
WORDS = re.compile(r"[^\W\d]\w*|\d+|\n *| |.", re.DOTALL)


def run(
    answer: str | Sequence[str], *, prompt: str = "a question\n", behind: str = "", has_ended: bool = True
) -> Trajectory:
    """One token per step, from left to right; text `behind` makes it an infill."""
    pieces = WORDS.findall(answer) if isinstance(answer, str) else list(answer)
    named = {1: prompt, 2: behind, END: "<|end|>", **{number + 10: piece for number, piece in enumerate(pieces)}}
    ids = [*range(10, 10 + len(pieces)), *([END] if has_ended and not behind else [])]
    return Trajectory(
        initial_ids=[1, *[None] * len(ids), *([2] if behind else [])],
        steps=[Step(commits=[Commit(0, place, token, 0.9, 0.1)]) for place, token in enumerate(ids, 1)],
        end_ids=[END],
        pieces=named,
    )


def classes(t: Trajectory) -> list[tuple[str, str]]:
    found = syntax(t)
    assert found.is_python, found.reason
    ids = t.ids_at(len(t.steps))
    return [(t.pieces[ids[place] or END], name) for place, name in sorted(found.classes.items())]


def reason(t: Trajectory) -> str:
    found = syntax(t)
    assert not found.classes
    assert not found.is_python
    return found.reason


def test_each_kind_of_token_has_its_class() -> None:
    expected = {
        "def": "keyword",
        " f": "name",
        "(": "bracket",
        "x": "name",
        "):\n": "bracket",
        "    ": "indent",
        '"""Doc."""': "docstring",
        "\n    ": "indent",
        "return": "keyword",
        " y": "name",
        " +": "operator",
        " 1": "literal",
        "  # why": "comment",
        "\n": "other",
    }
    assert classes(run(list(expected))) == list(expected.items())


def test_a_token_has_the_class_of_most_of_it_and_blanks_do_not_count() -> None:
    assert classes(run(["xs", "[0", "].", "append", "(x", ")\n", "y", " =", " 'long", " text'"])) == [
        ("xs", "name"),
        ("[0", "bracket"),  # one of each: the first
        ("].", "bracket"),
        ("append", "name"),
        ("(x", "bracket"),
        (")\n", "bracket"),
        ("y", "name"),
        (" =", "operator"),
        (" 'long", "literal"),
        (" text'", "literal"),
    ]


def test_only_a_string_in_a_docstrings_place_is_one() -> None:
    answer = ['"""Module."""', "\nclass A:\n    ", "'A.'", "\n    def f(self):\n        ", "'F.'", "\n        return "]
    assert [name for piece, name in classes(run([*answer, "'x'"])) if "'" in piece or '"' in piece] == [
        "docstring",
        "docstring",
        "docstring",
        "literal",
    ]
    assert ("'later'", "literal") in classes(run(["x = 1\n", "'later'"]))


def test_an_fstring_is_a_literal_as_a_whole() -> None:
    assert classes(run(["f'", "{", "x", ":", ">", "3", "}", " of {", 'f"{y}"', "}'", " + ", "z"])) == [
        *[(piece, "literal") for piece in ["f'", "{", "x", ":", ">", "3", "}", " of {", 'f"{y}"', "}'"]],
        (" + ", "operator"),
        ("z", "name"),
    ]


def test_inside_a_fence_is_code_and_outside_is_text() -> None:
    answer = ["Sure, take", " this:", "\n```", "python\n", "x", " = 1", "\n", "```", "\nIt adds", "."]
    assert [name for _, name in classes(run(answer))] == [
        *["text"] * 4,
        "name",
        "operator",
        "other",
        *["text"] * 3,
    ]


def test_a_fence_that_the_prompt_opened_counts() -> None:
    prompt = "Write f.\n```\ndef f(): ...\n```\nHere it is:\n```python\n"
    answer = ["x", "\n", "```", "\nDone, I think."]
    assert [name for _, name in classes(run(answer, prompt=prompt))] == ["name", "other", "text", "text"]


def test_a_fence_opened_again_by_the_answer_opens_the_code() -> None:
    answer = ["```", "python\n", "x", " = ", "1", "\n```"]
    found = classes(run(answer, prompt="Here it is:\n```python\n"))
    assert found[2:5] == [("x", "name"), (" = ", "operator"), ("1", "literal")]


def test_one_block_that_is_no_python_does_not_spoil_the_others() -> None:
    found = classes(run(["```\n", "no program here", "\n```\nbut\n```\n", "x", "\n```"]))
    assert [name for _, name in found] == ["text", "text", "text", "name", "text"]


def test_the_body_of_a_function_that_the_prompt_began_is_code() -> None:
    assert classes(run(["    return", " x", "\n\n", "def", " g(): pass"], prompt="def f(x):\n"))[0][1] == "keyword"
    found = classes(run(["y", " = x\n    ", "return", " y"], prompt="def f(x):\n    "))
    assert found == [("y", "name"), (" = x\n    ", "indent"), ("return", "keyword"), (" y", "name")]


def test_an_infill_is_read_with_the_text_around_it() -> None:
    t = run([" (", "x", "):", "\n    "], prompt="<|begin|>def f", behind="return x\n")
    assert classes(t) == [(" (", "bracket"), ("x", "name"), ("):", "bracket"), ("\n    ", "indent")]
    assert reason(run(["("], prompt="def f", behind="return x\n")).startswith("not Python: line 1")


def test_bytes_that_are_no_text_belong_to_the_string_they_stand_in() -> None:
    halves = ["x", " = '", "\udce6\udc97", "\udca5", "'"]  # one character in two tokens
    assert [name for _, name in classes(run(halves))] == ["name", "operator", "literal", "literal", "literal"]
    assert [name for _, name in classes(run(["# ", "\udce6"]))] == ["comment", "comment"]
    assert reason(run(["x", "\udce6"])).startswith("not Python")


def test_an_answer_that_was_cut_off_is_read_up_to_where_it_parses() -> None:
    answer = "def f(x):\n    y = x\n    return y\n\ndef g(x):"
    assert reason(run(answer)).startswith("not Python: line 5")
    found = classes(run(answer, has_ended=False))
    assert found[0] == ("def", "keyword")
    assert found[-5:] == [("g", "other"), ("(", "other"), ("x", "other"), (")", "other"), (":", "other")]
    assert reason(run("x\ny z\nand so on\nand on", has_ended=False)).startswith("not Python: line 2")


def test_an_answer_ends_at_its_first_masked_place() -> None:
    t = run(["x", " = 1", "\n", "(("])
    t.steps = [step for step in t.steps if step.commits[0].position != 3]
    assert classes(t) == [("x", "name"), (" = 1", "operator")]
    t.steps = t.steps[1:]
    assert reason(t) == "unfinished: its first place is masked"


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (run("I cannot help with that."), "not Python: line 1: invalid syntax"),
        (run("  \n"), "not Python: nothing but blanks"),
        (run(""), "the answer is empty"),
        (Trajectory(initial_ids=[1, None]), "nothing was filled"),
        (run(["x", "\0"]), "not Python: "),
        (run("(" * 3000 + ")" * 3000), "not Python: "),
    ],
)
def test_what_is_no_python_says_why(t: Trajectory, expected: str) -> None:
    assert reason(t).startswith(expected)


def test_an_unfinished_infill_says_how_much_is_missing() -> None:
    t = run(["(", ")", ":"], prompt="def f", behind=" pass\n")
    t.steps = t.steps[:1]
    assert reason(t) == "unfinished: 2 places of the text are still masked"


def test_what_the_tokenizer_refuses_is_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise SyntaxError("unlike the parser")

    monkeypatch.setattr("unmask.analyze.syntax.tokenize.generate_tokens", refuse)
    assert reason(run("x")) == "not Python: unlike the parser"


PARTS = ["def f(x):\n", "    ", "x", "\n", "\t", "'", '"""', "(", ")", "#c", "\\\n", "\x0c", "\r", "\0", "é", "\u2028"]
PARTS += ["f'{a}'", "if", "```python\n", "```", "\udc80", "1", "=", "if 1:\n", ":", "'\\d'", "\x1f"]


@given(st.lists(st.sampled_from(PARTS), max_size=8), st.sampled_from(PARTS), st.booleans(), st.sampled_from(["", "x"]))
@example(["'\\d'"], "\n", True, "")
def test_any_text_has_classes_or_a_reason(parts: list[str], prompt: str, has_ended: bool, behind: str) -> None:
    t = run(parts, prompt=prompt, behind=behind, has_ended=has_ended)
    found = syntax(t)
    assert set(found.classes.values()) <= set(CLASSES)
    assert list(found.classes) == (list(range(1, len(parts) + 1)) if found.is_python else [])


# When classes settle


def test_a_class_settles_at_the_mean_over_runs_and_what_is_no_python_is_counted() -> None:
    early, late = run(["x", " = ", "y"], has_ended=False), run(["1", "\n", "\n", "z"], has_ended=False)
    found = settle_times([early, late, run("no program"), run("none either"), run("")])
    rows = {row.name: row for row in found.rows}
    assert rows["name"].settle_time.value == pytest.approx(((1 / 3 + 1) / 2 + 1) / 2)
    assert (rows["name"].num_tokens, rows["name"].settle_time.count) == (3, 2)
    assert (rows["literal"].settle_time.value, rows["literal"].settle_time.count) == (1 / 4, 1)
    assert [row.name for row in found.rows] == ["literal", "other", "operator", "name"]
    assert (found.num_runs, found.reasons) == (2, {"not Python": 2, "the answer is empty": 1})
    line = json.loads(json.dumps(found.to_json(), allow_nan=False))
    literal = {"mean": 0.25, "low": None, "high": None, "runs": 1, "tasks": 1, "num_tokens": 1}
    assert line["settle_time"]["literal"] == literal
    assert line["left_out"] == {"not Python": 2, "the answer is empty": 1}


def test_settle_times_of_runs_of_one_task_have_no_interval() -> None:
    one, other = run(["x", " = ", "y"]), run(["x", " = ", "y"])
    one.label, other.label = "a", "a"
    assert all(math.isnan(row.settle_time.low) for row in settle_times([one, other]).rows)
    other.label = "b"
    rows = settle_times([one, other]).rows
    assert {(row.settle_time.tasks, row.settle_time.low == row.settle_time.high) for row in rows} == {(2, True)}


@pytest.mark.parametrize(
    ("program", "strings"),
    [
        ('def f(): "one"; return "two"\n', ["docstring", "literal"]),
        ('def f(é="a"): "one"; return "two"\n', ["literal", "docstring", "literal"]),
        ('"one" "more"; x = "two"\n', ["docstring", "docstring", "literal"]),
        ('class A:\n    """one\n    more""" ; x = "two"\n', ["docstring", "literal"]),
        ('x = 1; "one"\n', ["literal"]),
    ],
)
def test_a_docstring_is_known_by_its_place_and_not_by_its_line(program: str, strings: list[str]) -> None:
    pieces = re.findall(r'"""[^"]*"""|"[^"]*"|[^"]+', program)
    assert [name for piece, name in classes(run(pieces)) if piece.startswith('"')] == strings


def test_an_error_without_words_gives_a_reason_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ast.parse", fail)
    assert reason(run("x = 1")) == "not Python: nested too deeply"


def test_prose_that_parses_is_a_program() -> None:
    assert classes(run(["No", ",", " thanks"])) == [("No", "name"), (",", "operator"), (" thanks", "name")]


def test_without_any_python_the_table_is_empty_and_says_why() -> None:
    found = settle_times([run("no program")])
    assert (found.rows, found.num_runs, found.reasons) == ((), 0, {"not Python": 1})
