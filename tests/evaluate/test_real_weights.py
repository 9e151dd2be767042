"""The 0.5B model's own answer, judged in the sandbox."""

import pytest

import unmask
from unmask.evaluate.extract import extract
from unmask.sandbox.executor import Job, open_executor
from unmask.sandbox.tests import AssertTests

pytestmark = pytest.mark.weights

TESTS = """
assert sorted(NAME([3, 4, 5, 6], [5, 7, 4, 10])) == [4, 5]
assert sorted(NAME([1, 2, 3, 4], [5, 4, 3, 7])) == [3, 4]
assert sorted(NAME([11, 12], [13, 14])) == []
"""


def test_the_answer_to_the_first_prompt_of_the_demo_passes_its_tests() -> None:
    model = unmask.load("qwen2.5-coder-0.5b-instruct")
    answer = model.generate(
        "Write a function to find the shared elements from the given two lists.", max_new_tokens=160
    ).text
    program = extract(answer).program
    name = program.split("def ", 1)[1].split("(", 1)[0]
    with open_executor(workers=1) as executor:
        job = Job(code=program, tests=AssertTests(entry_point=name, code=TESTS.replace("NAME", name)))
        (verdict,) = executor.judge([job])
    assert verdict.passed, verdict.message
