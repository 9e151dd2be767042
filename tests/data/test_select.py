"""Selection by pass rates: the two rules against numpy, stubs of hostile programs, what is refused and how."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.jsonl import from_acecode, read_tasks, write_records
from unmask.data.select import SelectSettings, choose, percentile, select, stub_of
from unmask.data.task import Task
from unmask.errors import SettingsError, TaskError
from unmask.sandbox.tests import AssertTests

SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
RATES = st.lists(st.lists(SHARES, min_size=2, max_size=5), min_size=1, max_size=30)


def row(number: int, *rates: float, **more: Any) -> dict[str, Any]:
    """A row of AceCode: the best answer first passes what `rates` says."""
    inferences = [
        {
            "model_name": "qwen" if index % 2 == 0 else "llama",
            "completion_id": index,
            "completion": f"def f{number}(x: int, y=2):\n    return x + {number}",
            "pass_rate": rate,
        }
        for index, rate in enumerate(rates)
    ]
    return {
        "id": f"ace_{number}",
        "source": "oss",
        "question": f"Write a function f{number}(x) that adds {number} to x.",
        "test_cases": [f"assert f{number}({x}) == {x + number}" for x in range(3)],
        "inferences": inferences,
        "context_messages": [[{"content": "…", "role": "user"}]],
        **more,
    }


ROWS = [
    row(0, 0.0, 0.0),
    row(1, 0.0, 0.2),
    row(2, 0.0, 0.4),
    row(3, 0.9, 1.0),
    row(4, 1.0, 1.0),
]
HALF = SelectSettings(mean_percentile=50)


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def failure(path: Path, settings: SelectSettings = HALF, **more: Any) -> str:
    with pytest.raises((TaskError, SettingsError)) as caught:
        select(path, settings, **more)
    return str(caught.value)


# The rules


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 100))
def test_a_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-12)


def rounded(values: Any) -> Any:
    return np.round(values, 12)


@settings(deadline=None)
@given(RATES, st.integers(0, 100), st.integers(0, 100))
def test_as_coded_takes_both_percentiles_over_all_tasks(rates: list[list[float]], low: int, high: int) -> None:
    means = rounded([np.mean(found) for found in rates])
    stds = rounded([np.std(found) for found in rates])
    is_kept = (means <= np.percentile(means, low)) & (stds >= np.percentile(stds, high))
    chosen = choose(rates, SelectSettings(rule="as-coded", mean_percentile=low, std_percentile=high))
    assert chosen == np.flatnonzero(is_kept).tolist()


@settings(deadline=None)
@given(RATES, st.integers(0, 100), st.integers(0, 100))
def test_the_papers_rule_takes_the_second_percentile_over_what_the_first_left(
    rates: list[list[float]], low: int, high: int
) -> None:
    means = rounded([np.mean(found) for found in rates])
    hard = np.flatnonzero(means <= np.percentile(means, low))
    stds = rounded([np.std(rates[place]) for place in hard])
    kept = hard[stds >= np.percentile(stds, high)]
    chosen = choose(rates, SelectSettings(rule="paper", mean_percentile=low, std_percentile=high))
    assert chosen == kept.tolist()


def test_the_rules_second_percentiles_are_the_papers_and_the_released_programs() -> None:
    assert (SelectSettings().std_from, SelectSettings(rule="as-coded").std_from) == (60, 40)
    assert SelectSettings(std_percentile=10).std_from == 10


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=4), max_size=8))
def test_mixed_keeps_the_tasks_whose_answers_differ(rates: list[list[float]]) -> None:
    expected = [place for place, of_task in enumerate(rates) if min(of_task) < max(of_task)]
    assert choose(rates, SelectSettings(rule="mixed")) == expected


def test_equal_rates_are_equal_at_a_threshold_whatever_their_last_digit() -> None:
    rates = [[0.1, 0.1, 0.1], [0.3, 0.0, 0.0], [0.0, 0.1, 0.2], [0.3] * 3]
    assert choose(rates, SelectSettings(mean_percentile=0, std_percentile=0)) == [0, 1, 2]


def test_every_step_says_what_it_dropped_and_compared_with(tmp_path: Path) -> None:
    path = write(tmp_path, *ROWS, row(5))
    found = select(path, HALF)
    assert [(step.name, step.dropped, step.left, step.threshold) for step in found.steps] == [
        ("tasks", 0, 6, None),
        ("recorded answers", 1, 5, None),
        ("mean up to percentile 50", 2, 3, 0.2),
        ("deviation from percentile 60 of these", 2, 1, pytest.approx(0.12)),
        ("duplicate", 0, 1, None),
        ("usable tests", 0, 1, None),
    ]
    assert [record["task_id"] for record in found.records] == ["ace_2"]


def test_only_the_named_models_count(tmp_path: Path) -> None:
    rows = [row(0, 0.0, 1.0), row(1, 1.0, 0.0)]
    settings = SelectSettings(mean_percentile=0, models=("llama",))
    assert [record["task_id"] for record in select(write(tmp_path, *rows), settings).records] == ["ace_1"]


def test_min_pass_drops_tasks_that_no_answer_passed_and_without_it_they_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, row(0, 0.0, 0.0), row(1, 0.0, 0.0), row(2, 0.0, 0.1), row(3, 0.9, 1.0))
    everything = SelectSettings(mean_percentile=60, std_percentile=0)
    found = select(path, everything)
    assert (len(found.records), found.num_never_passed) == (2, 2)
    found = select(path, SelectSettings(mean_percentile=80, std_percentile=0, min_pass=0.1))
    assert [record["task_id"] for record in found.records] == ["ace_2"]
    assert (found.steps[4].name, found.steps[4].dropped, found.num_never_passed) == ("best answer", 2, 0)


def test_an_evaluation_gives_the_rates_of_our_own_tasks(tmp_path: Path) -> None:
    ours = [
        {"task_id": f"t/{n}", "prompt": f"def f{n}(x):\n", "entry_point": f"f{n}", "test_list": [f"assert f{n}(1)"]}
        for n in range(4)
    ]
    rates = {"t/0": {"a": [1.0, 1.0]}, "t/1": {"a": [0.0, 1.0]}, "t/2": {"a": [0.0, 0.0]}}
    found = select(write(tmp_path, *ours), SelectSettings(mean_percentile=50), rates=rates)
    assert found.records == (ours[1],)
    assert (found.steps[1].dropped, found.steps[1].left) == (1, 3)


def test_inferences_without_pass_rates_do_not_matter_beside_an_evaluation(tmp_path: Path) -> None:
    task = row(1, inferences=[{"completion": None}, {"completion": "def f1(a): pass"}])
    settings = SelectSettings(stubs=True)
    found = select(write(tmp_path, task), settings, rates={"ace_1": {"tiny": [0.0, 1.0]}})
    assert found.records[1]["prompt"].startswith("def f1(a):")


# Duplicates and benchmarks


def test_a_question_that_is_asked_twice_stays_once(tmp_path: Path) -> None:
    again = {**row(1, 0.0, 0.2), "id": "again"}
    again["question"] = "  " + again["question"].replace(" ", "  ")
    path = write(tmp_path, row(1, 0.0, 0.2), again)
    assert [record["task_id"] for record in select(path, HALF).records] == ["ace_1"]
    both = select(path, SelectSettings(mean_percentile=50, dedup="none"))
    assert [record["task_id"] for record in both.records] == ["ace_1", "again"]


def test_near_duplicates_go_when_asked(tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(100))
    rows = [{**row(n, 0.0, 0.2), "question": f"f{n}: {words}", "id": f"ace_{n}"} for n in (1, 2)]
    path = write(tmp_path, *rows)
    assert len(select(path, HALF).records) == 2
    found = select(path, SelectSettings(mean_percentile=50, dedup="near"))
    assert len(found.records) == 1
    assert [step.name for step in found.steps][-3:] == ["duplicate", "near duplicate", "usable tests"]


def test_a_benchmarks_question_goes_and_is_counted(tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven"
    path = write(tmp_path, row(1, 0.0, 0.2), row(2, 0.0, 0.2, question=f"f2: {words.upper()}"))
    found = select(path, HALF, without=[Task(task_id="B/1", prompt=words)])
    assert [record["task_id"] for record in found.records] == ["ace_1"]
    assert [(step.name, step.dropped) for step in found.steps if step.dropped] == [("benchmark", 1)]


# AceCode's rows


def test_a_row_of_acecode_is_a_task_whose_prompt_shows_no_test(tmp_path: Path) -> None:
    (task,) = read_tasks(write(tmp_path, row(1, 0.5, 1.0)))
    assert (task.task_id, task.entry_point) == ("ace_1", "f1")
    assert task.tests["base"] == AssertTests(
        entry_point="f1", code="assert f1(0) == 1\nassert f1(1) == 2\nassert f1(2) == 3\n"
    )
    assert "assert" not in task.prompt + task.instruction
    assert task.reference.startswith("def f1(")
    (task,) = read_tasks(write(tmp_path, row(1, 0.5)))
    assert task.reference == ""  # it did not pass everything


def test_the_name_of_the_function_is_said_where_the_question_does_not() -> None:
    record = from_acecode({**row(1), "question": "Add one."}, "here")
    assert record["instruction"] == "Add one.\n\nThe function is called `f1`."


def test_a_module_that_the_asserts_ask_is_imported_for_them_also_where_no_program_passed() -> None:
    tests = ["assert math.isclose(f1(0), 1.0)", "datetime = f1(2)\nassert datetime.day == 3"]
    assert from_acecode({**row(1, 0.5), "test_cases": tests}, "here")["setup"] == "import math\n"
    assert "setup" not in from_acecode(row(1, 0.5), "here")


def test_without_a_program_that_passed_no_test_asks_the_answer_for_a_helper(tmp_path: Path) -> None:
    good = ["assert f1(0) == 1", "assert math.isclose(f1(1), max([2 for _ in range(1)]))", "g = f1(2)\nassert g == 3"]
    bad = ["assert isclose(f1(3), 4)", "assert np.allclose(f1(4), 5)", "assert f1(Node(5)) == 6"]
    bare = {**row(1, 0.5), "test_cases": [*good, *bad]}
    record = from_acecode(bare, "here")
    assert (record["test_list"], record["setup"]) == (good, "import math\n")
    with pytest.raises(TaskError, match="here: each of its test_cases uses names beside f1 that nobody gives"):
        from_acecode({**bare, "test_cases": [*bad, "assert isclose(f1(6), f1(7))", "assert g(f1(0)) == f1(1)"]}, "here")
    path = tmp_path / "ace.jsonl"
    write_records([bare], path)
    found = select(path, SelectSettings())
    assert (found.records[0]["test_list"], found.num_unusable_tests) == (good, len(bad))


def test_a_shown_test_is_not_scored_in_any_layout() -> None:
    tests = ["assert f1(0) == 1", "assert  f1( 0 )==1", "assert f1(1) == 2"]
    record = from_acecode({**row(1), "test_cases": tests}, "here", show_test=True)
    assert "assert f1(0) == 1" in record["prompt"]
    assert "assert f1(0) == 1" in record["instruction"]
    assert record["test_list"] == ["assert f1(1) == 2"]


@pytest.mark.parametrize(
    "change", [{"test_cases": ["assert f1(0) == 1"]}, {"question": "f1 is\n```python\ndef f1(x): …\n```"}]
)
def test_the_only_test_is_never_shown_nor_is_one_beside_given_code(change: dict[str, Any]) -> None:
    record = from_acecode({**row(1), **change}, "here", show_test=True)
    assert "assert" not in record["prompt"]
    assert record["test_list"] == {**row(1), **change}["test_cases"]


def test_tests_that_assert_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    broken = row(1, 0.0, 0.2, test_cases=["assert f1(0) == 1", "f1(2)", "assert f1("])
    hopeless = row(2, 0.0, 0.2, test_cases=["print(1)"])
    found = select(write(tmp_path, broken, hopeless), HALF)
    assert [record["test_list"] for record in found.records] == [["assert f1(0) == 1"]]
    assert found.num_unusable_tests == 2
    assert (found.steps[-1].name, found.steps[-1].dropped) == ("usable tests", 1)


def test_what_was_chosen_reads_back_as_tasks(tmp_path: Path) -> None:
    found = select(write(tmp_path, *ROWS), SelectSettings(mean_percentile=100, std_percentile=0, stubs=True))
    place = tmp_path / "out.jsonl"
    assert write_records(found.records, place) == 10
    tasks = read_tasks(place)
    assert [task.task_id for task in tasks[:2]] == ["ace_0", "ace_0/stub"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "tasks.jsonl"]


# Stubs

QUESTION = 'Say """hello\\n""" twice.\n\n    Keep the layout, "please"'


def stub(*programs: str, question: str = "Do it.") -> str | None:
    return stub_of(question, "f", programs)


@pytest.mark.parametrize(
    ("program", "head"),
    [
        ("def f(x): return x", "def f(x):"),
        ("def f(x,\n      y=(1, 2),\n      *rest, **more): return {'a': x}", "def f(x, y=(1, 2), *rest, **more):"),
        ("def g(f):\n    def f(inner): pass\n    return f\ndef f(x): return x", "def f(x):"),
        ("import functools\n@functools.cache\ndef f(x: int) -> int:\n    return x", "def f(x: int) -> int:"),
        ("class A:\n    def f(self): pass\ndef f(a: 'A', b=lambda: 1): pass", "def f(a: 'A', b=lambda: 1):"),
        ("def f(old): pass\ndef f(new): pass", "def f(new):"),
        ("def f(x):\n    if x:\n        return {1: 2}[x:\n3]", "def f(x):"),
    ],
)
def test_a_stub_has_the_head_of_the_function_that_the_tests_call(program: str, head: str) -> None:
    made = stub(program)
    assert made is not None
    assert made.splitlines()[0] == head


def test_a_stub_keeps_the_imports_of_its_head_and_no_others() -> None:
    made = stub("import os\nfrom typing import List, Dict\nimport math as m\ndef f(x: List[int], y=m.pi): pass")
    assert made is not None
    assert made.startswith("from typing import List, Dict\nimport math as m\n\n\ndef f(x: List[int], y=m.pi):\n")


@pytest.mark.parametrize(
    "program",
    [
        "def f(x:\n",  # no Python
        "f = lambda x: x",
        "def f(x): pass\nf = memoise(f)",
        "class f:\n    pass",
        "async def f(x): pass",
        "def g():\n    def f(x): pass",
        "def f(x=LIMIT): pass\nLIMIT = 3",  # its head needs the rest of the program
        "def f(x: Node): pass",
        "def f(x): return '\0'",
        "def f(x): return " + "(" * 500 + "x" + ")" * 500,
        "",
    ],
)
def test_a_program_without_such_a_head_gives_none_and_the_next_best_is_taken(program: str) -> None:
    assert stub(program) is None
    assert stub(program, "def f(next_best): pass") == 'def f(next_best):\n    """\n    Do it.\n    """\n'


def test_a_stub_is_python_and_says_the_question_whatever_is_in_it() -> None:
    made = stub("def f(x): pass", question=QUESTION)
    assert made is not None
    function = ast.parse(made).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert ast.get_docstring(function) == QUESTION


def test_questions_that_say_you_get_no_stub(tmp_path: Path) -> None:
    rows = [row(1, 0.0, 0.2), row(2, 0.0, 0.2, question="Your task: f2.")]
    found = select(write(tmp_path, *rows), SelectSettings(mean_percentile=50, stubs=True))
    assert [record["task_id"] for record in found.records] == ["ace_1", "ace_1/stub", "ace_2"]
    assert found.num_stubs == 1
    assert found.records[1]["prompt"].startswith('def f1(x: int, y=2):\n    """\n    Write a function')
    assert found.records[1]["test_list"] == found.records[0]["test_list"]


def test_the_stubs_head_is_that_of_the_best_answer(tmp_path: Path) -> None:
    task = row(1, 0.1, 0.3, 0.2)
    for inference, name in zip(task["inferences"], "abc", strict=True):
        inference["completion"] = f"```python\ndef f1({name}): pass\n```"
    found = select(write(tmp_path, task), SelectSettings(stubs=True))
    assert found.records[1]["prompt"].startswith("def f1(b):\n")


# What is refused


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "tasks.jsonl holds no tasks; give JSON lines, one task each" in failure(write(tmp_path))


def test_tasks_without_recorded_answers_are_refused(tmp_path: Path) -> None:
    message = failure(write(tmp_path, row(0), {**row(1), "inferences": None}))
    assert "no task has recorded answers, so nothing says which are hard" in message
    assert "--results FOLDER" in message


def test_a_model_that_answered_nothing_is_refused_with_the_nearest_that_did(tmp_path: Path) -> None:
    message = failure(write(tmp_path, *ROWS), SelectSettings(models=("llama", "qwem")))
    assert "has no answers of the model 'qwem'; did you mean qwen? (known: qwen, llama)" in message


def test_a_pass_rate_that_is_no_share_is_refused_with_its_line(tmp_path: Path) -> None:
    broken = row(1, 0.5)
    broken["inferences"][0]["pass_rate"] = 50
    message = failure(write(tmp_path, row(0, 0.1), broken))
    assert "tasks.jsonl, line 2: the pass_rate 50 is no share of tests between 0 and 1; mend that line" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean_percentile": 101}, "mean_percentile=101: a percentile lies between 0 and 100"),
        ({"std_percentile": -1}, "std_percentile=-1: a percentile lies between 0 and 100"),
        ({"mean_percentile": float("nan")}, "mean_percentile=nan: a percentile lies between 0 and 100"),
        ({"min_pass": 5}, "min_pass=5: give a share of the tests, between 0 and 1"),
        ({"rule": "papers"}, "rule='papers' is not known; did you mean paper? (known: paper, as-coded, mixed)"),
        ({"rule": "mixed", "std_percentile": 50}, "std_percentile=50 has no effect with the rule mixed"),
        ({"dedup": "fuzzy"}, "dedup='fuzzy': give one of exact, near, none"),
    ],
)
def test_settings_outside_their_range_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        SelectSettings(**change)
    assert words in str(caught.value)


@pytest.mark.parametrize("tests", [None, [], "assert f(1)", [1]])
def test_tasks_without_tests_are_refused_with_their_line(tmp_path: Path, tests: object) -> None:
    message = failure(write(tmp_path, row(1, 0.0, 0.2, test_cases=tests)))
    assert "line 1: the task 'ace_1' has no tests: 'test_cases' has to be a list of asserts" in message


def test_a_misspelt_column_of_tests_is_named(tmp_path: Path) -> None:
    task = row(1, 0.0, 0.2)
    task["test_case"] = task.pop("test_cases")
    assert "with at least one (there is 'test_case')" in failure(write(tmp_path, task))


def test_a_selection_that_leaves_nothing_names_the_step_that_took_the_last(tmp_path: Path) -> None:
    everything = SelectSettings(mean_percentile=100, std_percentile=0, min_pass=0.5)
    message = failure(write(tmp_path, row(0, 0.0, 0.0), row(1, 0.0, 0.1)), everything)
    assert "nothing is left after the step 'best answer' (0.5), which dropped the last 2 of 2 tasks" in message


def test_as_coded_can_leave_nothing_and_says_which_step_it_was(tmp_path: Path) -> None:
    rows = [row(0, 0.0, 0.0), row(1, 0.0, 1.0), row(2, 0.2, 1.0)]
    message = failure(write(tmp_path, *rows), SelectSettings(rule="as-coded", mean_percentile=0, std_percentile=50))
    assert "the step 'deviation from percentile 50 of all' (0.4), which dropped the last 1 of 3 tasks" in message


@pytest.mark.parametrize("name", ["stubs", "show_test"])
def test_what_rewrites_acecodes_questions_is_refused_on_tasks_of_ours(tmp_path: Path, name: str) -> None:
    ours = {"task_id": "t", "prompt": "p", "entry_point": "f", "test_list": ["assert f(1)"]}
    settings = SelectSettings(**{name: True})  # type: ignore[arg-type]
    message = failure(write(tmp_path, ours), settings, rates={"t": {"a": [0.0, 1.0]}})
    assert f"line 1: {name} rewrites the questions of AceCode, and this task has a prompt of its own" in message


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    rows = [row(1, 0.0, 0.2), {**row(2, 0.0, 0.2), "id": "ace_1"}]
    assert "line 2: the id 'ace_1' stands on a line above" in failure(write(tmp_path, *rows))
