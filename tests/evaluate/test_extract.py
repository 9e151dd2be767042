"""Extraction keeps programs whole, drops what is not part of them, and takes any text."""

import ast
import textwrap
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import SettingsError
from unmask.evaluate import extract as module
from unmask.evaluate.extract import AnswerKind, close_completion, extract, raw_program

ADD = "def add(a, b):\n    return a + b"


def program(text: str, entry_point: str = "add") -> str:
    return extract(text, entry_point=entry_point).program


# What an answer looks like


@pytest.mark.parametrize(
    "answer",
    [
        ADD,
        f"```python\n{ADD}\n```",
        f"```\n{ADD}\n```\n",
        f"Sure! Here's the code:\n\n```python\n{ADD}\n```\n\nIt adds (two numbers.",
        f"{ADD}\n```\n\nThis function returns the sum.",
        f"```python\n{ADD}",
        f"Here's the code (it's short:\n{ADD}\nThis function doesn't do more.",
        f"1. First:\n   ```python\n{textwrap.indent(ADD, '   ')}\n   ```\n2. Done",
        f"~~~python\n{ADD}\n~~~",
        f"```python\r\n{ADD}\r\n```".replace("\n", "\r\n").replace("\r\r", "\r"),
        f"\ufeff{ADD}",
        f"{ADD}```",
        f"### Explanation\nNote: this\n{ADD}\nExplanation\nOutput: 5",
    ],
)
def test_the_function_alone_is_left_of_an_answer(answer: str) -> None:
    code = program(answer)
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(ADD))


def test_a_fenced_program_is_kept_byte_for_byte() -> None:
    code = "import math  # half\n\n\ndef add(a, b):\n    '''\n   \n    x'''\n    return a + b   # ok\n\n# end"
    assert program(f"Hi.\n```python\n{code}\n```\nBye.") == code


@pytest.mark.parametrize(
    "code",
    [
        "def helper(x):\n    x.append(1)\n\n\ndef add(a, b):\n    helper(a)\n    return a + b",
        "import functools\n\n\n@functools.lru_cache(None)\ndef add(a, b):\n    return a + b",
        "A, B = 1, 2\n\n\ndef add(a, b):\n    return a + b + A - B",
        "try:\n    import numpy as np\nexcept ImportError:\n    np = None\n\n\ndef add(a, b):\n    return a + b",
        "import sys\n\nsys.setrecursionlimit(10**6)\n\n\ndef add(a, b):\n    return a + b",
        "class Node:\n    value = 0\n\n\ndef add(a: Node, b):\n    return a.value + b",
        "LIMIT = 10\nLIMIT += 1\n\n\ndef add(a, b):\n    return min(a + b, LIMIT)",
        "import sys\n\nif sys.version_info > (3, 8):\n    def add(a, b):\n        return a + b\nelse:\n    add = None",
        "table = {}\n\n\ndef fill():\n    table[1] = 2\n\n\nfill()\n\n\ndef add(a, b):\n    return table",
        "add = lambda a, b: a + b",
        "class add:\n    def __init__(self, a, b):\n        self.sum = a + b",
        "from operator import add",
        "def add(a, b):\n    return a + b\n\n\nadd = staticmethod(add)",
    ],
)
@pytest.mark.parametrize("frame", ["{}", "Sure:\n\n```python\n{}\n```\n", "It's easy (:\n{}\nThat's all, folks."])
def test_all_that_a_program_needs_is_kept(code: str, frame: str) -> None:
    extraction = extract(frame.replace("{}", code), entry_point="add")
    assert ast.dump(ast.parse(extraction.program)) == ast.dump(ast.parse(code))
    assert extraction.problem == ""


@pytest.mark.parametrize(
    "use",
    [
        "print(add(1, 2))",
        "assert add(1, 2) == 4",
        "result = add(1, 2)\nprint(result)\nif result > 2:\n    raise SystemExit",
        "a = int(input())\nb = int(input())\nprint(a + b)",
        'if __name__ == "__main__":\n    print(add(1, 2))',
        "def main():\n    print(add(1, 2))\n\n\nmain()",
        "for a in range(3):\n    assert add(a, a) == 2 * a",
        "import unittest\nunittest.main()",
    ],
)
def test_statements_that_only_use_the_solution_are_dropped(use: str) -> None:
    kept = ast.parse(program(f"```python\n{ADD}\n\n{use}\n```")).body
    assert all(isinstance(statement, ast.FunctionDef | ast.Import) for statement in kept)
    assert "add" in {statement.name for statement in kept if isinstance(statement, ast.FunctionDef)}


def test_what_shares_a_line_with_a_kept_statement_stays() -> None:
    code = f"{ADD}\nSIZE = 3; print(add(1, 2))"
    assert program(code) == code


# Which block


def test_the_first_block_that_defines_the_entry_point_is_the_solution() -> None:
    other = "def add(a, b):\n    return sum((a, b))"
    assert program(f"```python\n{ADD}\n```\nOr:\n```python\n{other}\n```") == ADD
    assert program(f"```python\nadd(1, 2)\n```\n```python\n{ADD}\n```") == ADD


def test_a_block_that_repeats_the_stub_is_passed_over() -> None:
    stub = 'def add(a, b):\n    """Add."""'
    assert program(f"You gave:\n```python\n{stub}\n```\nSo:\n```python\n{ADD}\n```") == ADD
    alone = extract(f"```python\n{stub}\n    pass\n```", entry_point="add")
    assert alone.problem == "the definition of add has no body"
    assert alone.program == f"{stub}\n    pass"


def test_blocks_that_define_what_the_solution_uses_are_put_in_front() -> None:
    blocks = [
        "import math",
        "UNUSED = 1",
        "def add(a, b):\n    return math.fsum([a, half(b)])",
        "def half(b):\n    return b",
    ]
    answer = "\nThen:\n".join(f"```python\n{block}\n```" for block in blocks)
    assert program(answer) == f"{blocks[0]}\n\n{blocks[3]}\n\n{blocks[2]}"


def test_a_fence_inside_a_docstring_does_not_cut_the_function() -> None:
    code = 'def add(a, b):\n    """Add.\n\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b'
    assert program(code) == code
    assert program(f"```python\n{code}\n```") == code


# What broke off


def test_of_an_answer_cut_in_the_middle_the_longest_part_that_parses_is_kept() -> None:
    answer = f"```python\nimport math\n\n{ADD}\n\ndef more(x):\n    y = 1\n    for i in range(x"
    assert program(answer) == f"import math\n\n{ADD}\n\ndef more(x):\n    y = 1"


def test_garbage_inside_the_function_cuts_it_there() -> None:
    assert program(f"{ADD}\n    the end is ( near\n    return 3") == ADD


def test_an_open_string_at_the_end_does_not_swallow_what_stands_before() -> None:
    assert program(f'{ADD}\n\nprint("""never closed\n\nand on') == ADD


def test_a_repeated_definition_that_breaks_off_is_dropped() -> None:
    assert program(f"{ADD}\n\ndef add(a, b):") == ADD


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "the answer is empty"),
        (" \n\n", "the answer is empty"),
        ("I cannot do (that", "no line of the answer is Python code"),
        ("```python\ndef sub(a, b):\n    return a - b\n```", "the program does not define add"),
    ],
)
def test_the_problem_says_what_is_missing(answer: str, problem: str) -> None:
    assert extract(answer, entry_point="add").problem == problem


def test_the_text_itself_is_the_program_when_there_is_no_code() -> None:
    assert program("I cannot do (that") == "I cannot do (that"


def test_the_prompt_is_never_added_to_an_answer() -> None:
    extraction = extract("    return a + b", entry_point="add", prompt="def add(a, b):\n")
    assert "def add" not in extraction.program
    assert extraction.problem


def test_without_an_entry_point_the_longest_block_is_taken_as_it_is() -> None:
    assert program("```\nx = 1\n```\n```\ny = 2\nprint(y)\nassert y\n```", "") == "y = 2\nprint(y)\nassert y"


# Completions


def test_a_completion_is_closed_where_it_last_parses() -> None:
    prompt = 'def add(a, b):\n    """Add."""\n'
    assert close_completion(prompt, "    return a + b\n") == prompt + "    return a + b\n"
    assert (
        close_completion(prompt, "    return a + b\n\n    if a:\n        x = (1,\n") == prompt + "    return a + b\n\n"
    )
    assert close_completion(prompt, "    return a + b\n    ) = 3\n    return 2") == prompt + "    return a + b\n"


def test_a_completion_of_which_no_line_parses_stays_as_it_is() -> None:
    assert close_completion("def add(a, b):\n", "return (a\n") == "def add(a, b):\nreturn (a\n"
    extraction = extract("return (a\n", entry_point="add", prompt="def add(a, b):\n", kind="completion")
    assert extraction.problem == "the program does not parse"


def test_a_completion_is_not_cut_before_the_entry_point() -> None:
    prompt = '"""\nAdd two numbers.\n"""\n'
    text = "x = 1\ndef add(a, b:\n"
    assert close_completion(prompt, text, entry_point="add") == prompt + text


def test_a_hole_is_filled_and_nothing_else_is_done() -> None:
    extraction = extract("(((", prompt="def f():\n    ", suffix="\n", kind="infill")
    assert extraction.program == "def f():\n    (((\n"


def test_raw_programs_are_the_text_with_what_was_given() -> None:
    assert raw_program("x", prompt="p", suffix="s", kind="answer") == "x"
    assert raw_program("x", prompt="p", suffix="s", kind="completion") == "px"
    assert raw_program("x", prompt="p", suffix="s", kind="infill") == "pxs"
    with pytest.raises(SettingsError, match="'answers' is no kind of model text; did you mean answer"):
        raw_program("x", kind="answers")  # type: ignore[arg-type]


# Any text, at little cost

PIECES = st.sampled_from(
    [
        "def add(a, b):\n",
        "    return a\n",
        "```python\n",
        "```\n",
        '"""',
        "'''",
        "(",
        "]",
        "\\\n",
        "\x00",
        "\ud800",
        "\r",
        "@x\n",
        "class C:\n",
        "else:\n",
        "    ```\n",
        "f'{a b}'\n",
        "# it's\n",
        "add(1)\n",
        "é\u2028\x0c",
        "if x:\n ",
        "'\\d'\n",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)),
    prompt=st.sampled_from(["", "def add(a, b):\n", '"""\n']),
    kind=st.sampled_from(get_args(AnswerKind)),
)
def test_any_text_gives_a_program(text: str, prompt: str, kind: AnswerKind) -> None:
    extraction = extract(text, entry_point="add", prompt=prompt, kind=kind)
    assert isinstance(extraction.program, str)
    if kind == "answer" and not extraction.problem:
        assert "add" in ast.unparse(ast.parse(extraction.program))


@pytest.mark.parametrize("deep", ["(" * 5000, "-" * 20000 + "1", "x = " + "[" * 150 + "]" * 150, "1" + "+1" * 20000])
def test_deep_nesting_is_survived(deep: str) -> None:
    assert program(f"{ADD}\n{deep}\n").startswith(ADD)


ANSWERS = {
    "code": lambda n: (
        "```python\n" + "".join(f"def f{i}(x):\n    return (x,\n        {i})\n\n" for i in range(n // 4)) + ADD
    ),
    "prose": lambda n: "It's a line (of words that aren't code\n" * n + ADD,
    "words": lambda n: "word\n" * n + "not code\n" + ADD,
    "fences": lambda n: "```python\nx = 1\n```\n" * (n // 3) + ADD,
    "truncated": lambda n: "def add(a, b):\n" + "    if a:\n        b = (1, 2)\n" * (n // 2) + "    while (",
    "nested": lambda n: "".join(" " * i + "if x:\n" for i in range(min(n, 95))) + "x\n" * n + ADD,
    "openers": lambda n: "x = (\n" * n + ADD,
    "quotes": lambda n: "'''\"\"\"\n" * n + ADD,
    "decorators": lambda n: "@a\n" * n + ADD,
    "garbage": lambda n: "def add(a, b):\n    return a\n" + "    ) = (\n" * n,
    "padding": lambda n: ADD + "\n" + "def add(a, b):\n" * n,
}


@pytest.mark.parametrize("shape", ANSWERS)
def test_the_cost_grows_with_the_length_of_the_answer(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in characters parsed, per character of the answer; EvalPlus's grows with the square of the lines."""

    def parsed_per_character(num_lines: int) -> float:
        parsed = 0

        def counting(code: str) -> ast.Module:
            nonlocal parsed
            parsed += len(code)
            return ast.parse(code)

        monkeypatch.setattr(module, "_parse", counting)
        answer = ANSWERS[shape](num_lines)
        assert "add" in program(answer)
        return parsed / len(answer)

    assert parsed_per_character(2000) < 2 * parsed_per_character(250) + 12
    assert parsed_per_character(2000) < 30
