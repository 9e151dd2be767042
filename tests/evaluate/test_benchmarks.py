"""The benchmarks as lists of tasks: counts, hashes, what tasks hold, and answers that come from references.

The tests that read benchmark data skip without it. `evalplus`, where it is installed, is the oracle of MBPP+'s inputs.
"""

import ast
import contextlib
import functools
import gzip
import hashlib
import json
import os
import re
import unittest
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from unmask.data import files
from unmask.data.jsonl import parse
from unmask.data.task import Task
from unmask.errors import TaskError
from unmask.evaluate.benchmarks import DEFINITIONS, NAMES, Benchmark, load, needed_files
from unmask.evaluate.benchmarks.answers import Calls, Unanswered, with_answers
from unmask.evaluate.benchmarks.bigcodebench import count_tests, offline_notes
from unmask.evaluate.benchmarks.cruxeval import answer_program
from unmask.evaluate.benchmarks.mbpp import restored_inputs
from unmask.sandbox.inside import values
from unmask.sandbox.tests import AssertTests, CallTests, UnitTests
from unmask.sandbox.verdict import Limits

SHARED = Path(os.environ.get("UNMASK_DATA") or Path(__file__).parents[3] / "shared" / "data")
COUNTS = {
    ("humaneval", "6d43fb9"): 164,
    ("humaneval+", "v0.1.10"): 164,
    ("humaneval+", "v0.1.9"): 164,
    ("mbpp", "30c8c57"): 974,
    ("mbpp-sanitized", "30c8c57"): 427,
    ("mbpp+", "v0.2.0"): 378,
    ("mbpp+", "v0.1.0"): 399,
    ("bigcodebench-complete", "v0.1.0"): 1140,
    ("bigcodebench-complete-hard", "v0.1.0"): 148,
    ("bigcodebench-instruct", "v0.1.0"): 1140,
    ("bigcodebench-instruct-hard", "v0.1.0"): 148,
    ("infilling-single-line", "88062ff"): 1033,
    ("infilling-multi-line", "88062ff"): 5815,
    ("infilling-random-span", "88062ff"): 1640,
    ("infilling-random-span-light", "88062ff"): 164,
    ("cruxeval-input", "190faf1"): 800,
    ("cruxeval-output", "190faf1"): 800,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no benchmark data: UNMASK_DATA is not set, and there is no folder {SHARED}")
    monkeypatch.setenv("UNMASK_DATA", str(SHARED))
    return SHARED


@functools.cache
def loaded(name: str, version: str | None = None) -> Benchmark:
    return load(name, version=version, answers=False, offline=True)


@functools.cache
def by_id(name: str) -> dict[str, Task]:
    return {task.task_id: task for task in loaded(name).tasks}


def asserts(task: Task) -> AssertTests:
    tests = task.tests["base"]
    assert isinstance(tests, AssertTests)
    return tests


def defined(code: str) -> set[str]:
    return {node.name for node in parse(code).body if isinstance(node, ast.FunctionDef)}


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(TaskError) as caught:
        call()
    return str(caught.value)


# All of them


def test_each_version_of_each_benchmark_has_its_tasks_and_names_its_data(data: Path) -> None:
    of_files = {
        (name, version)
        for name in NAMES
        for version, found in DEFINITIONS[name].versions.items()
        if found.files  # the synthetic suites are made, not read
    }
    assert set(COUNTS) == of_files
    for (name, version), count in COUNTS.items():
        benchmark = loaded(name, version)
        assert (len(benchmark.tasks), benchmark.name, benchmark.version) == (count, name, version)
        assert len({task.task_id for task in benchmark.tasks}) == count
        assert benchmark.licence
        assert benchmark.data_sha256 == {
            path: hashlib.sha256((data / path).read_bytes()).hexdigest() for path in needed_files(name, version=version)
        }


def test_every_task_has_a_reference_that_is_python_and_begins_with_its_prompt(data: Path) -> None:
    for name in ("humaneval", "humaneval+", "infilling-random-span-light", "bigcodebench-complete-hard"):
        for task in loaded(name).tasks:
            assert task.reference == task.program(task.reference_completion)
            assert task.entry_point in defined(task.reference), task.task_id


def test_the_newest_data_is_the_default(data: Path) -> None:
    assert [loaded(name).version for name in ("humaneval+", "mbpp+")] == ["v0.1.10", "v0.2.0"]


def test_a_limit_takes_the_first_tasks(data: Path) -> None:
    assert load("humaneval", limit=3).tasks == loaded("humaneval").tasks[:3]
    assert "limit is 0, but a benchmark needs at least one task" in failure(lambda: load("humaneval", limit=0))


def test_unknown_names_and_versions_are_refused_with_the_nearest() -> None:
    assert "'humanevalplus' is not a benchmark; did you mean humaneval" in failure(lambda: load("humanevalplus"))
    assert "its path, which ends in .jsonl" in failure(lambda: load("tasks.json"))
    assert "mbpp+ has no version 'v0.2.1'; did you mean v0.2.0" in failure(lambda: load("mbpp+", version="v0.2.1"))


def test_data_that_is_not_there_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_DATA", str(tmp_path))
    message = failure(lambda: load("humaneval", offline=True))
    assert "humaneval/HumanEval.jsonl.gz is not in" in message
    assert "put https://raw.githubusercontent.com/openai/human-eval/" in message


def test_a_file_of_tasks_is_a_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"task_id": str(i), "prompt": "", "entry_point": "f", "tests": [{"input": [], "output": i}]} for i in range(3)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    benchmark = load(str(path), limit=2)
    assert (benchmark.name, benchmark.version, benchmark.kind, len(benchmark.tasks)) == ("mine", "", "complete", 2)
    assert benchmark.data_sha256 == {"mine.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert "which has none; leave it out" in failure(lambda: load(str(path), version="1"))
    path.write_text(json.dumps({**rows[0], "suffix": "\n"}), encoding="utf-8")
    assert load(str(path)).kind == "infill"
    assert "there is no file" in failure(lambda: load(str(tmp_path / "other.jsonl")))


# HumanEval and infilling


def test_humaneval_tests_have_the_prompts_helpers_but_never_the_entry_point(data: Path) -> None:
    tasks = by_id("humaneval")
    helpers = {task_id: defined(asserts(task).setup) for task_id, task in tasks.items()}
    assert {task_id: names for task_id, names in helpers.items() if names} == {
        "HumanEval/10": {"is_palindrome"},
        "HumanEval/32": {"poly"},
        "HumanEval/38": {"encode_cyclic"},
        "HumanEval/50": {"encode_shift"},
    }
    for task in tasks.values():
        assert asserts(task).code.endswith(f"\ncheck({task.entry_point})\n")
        assert defined(task.prompt) - helpers[task.task_id] == {task.entry_point}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("infilling")])
def test_an_infilling_task_has_the_setup_of_its_humaneval_task(data: Path, name: str) -> None:
    originals = by_id("humaneval")
    for task in loaded(name).tasks:
        original = originals["/".join(task.task_id.split("/")[1:3])]
        assert asserts(task).setup.strip() == asserts(original).setup.strip()
        mended = (
            {"HumanEval/47", "HumanEval/130"} if name == "infilling-random-span-light" else set()
        )  # their docstrings
        if original.task_id not in mended:
            assert task.reference.split() == original.reference.split()


# MBPP


def test_an_mbpp_task_has_its_text_its_asserts_and_the_entry_point_that_they_call(data: Path) -> None:
    task = by_id("mbpp")["Mbpp/4"]
    assert task.entry_point == "heap_queue_largest"
    assert task.instruction.startswith("Write a function to find the largest integers")
    assert task.prompt.startswith('"""\nWrite a function to find the largest integers')
    assert task.prompt.endswith(',3)==[85, 75, 65] \n"""\n')
    assert asserts(task).code.count("assert ") == 3
    assert "\r" not in task.reference


def test_mbpps_odd_tasks(data: Path) -> None:
    tasks = by_id("mbpp")
    assert asserts(tasks["Mbpp/596"]).setup == "import sys\n"  # the asserts ask sys.getsizeof
    assert asserts(tasks["Mbpp/367"]).code.startswith("root = Node(1)")  # a class of the program's own
    assert tasks["Mbpp/126"].entry_point == "sum"
    assert tasks["Mbpp/601"].entry_point == "max_chain_length"
    assert asserts(by_id("mbpp-sanitized")["Mbpp/82"]).setup == "import math\n"
    assert sum(bool(asserts(task).setup) for task in loaded("mbpp").tasks) == 1


def test_mbpp_plus_has_mbpps_prompts_since_v020_without_the_links(data: Path) -> None:
    sanitized = by_id("mbpp-sanitized")
    for task in loaded("mbpp+", "v0.1.0").tasks:
        assert task.prompt == sanitized[task.task_id].prompt
    for task in loaded("mbpp+", "v0.2.0").tasks:
        assert task.prompt == re.sub(r"https://\S+", "", sanitized[task.task_id].prompt)


def test_notes_count_the_tasks_that_models_train_on(data: Path) -> None:
    for name, version in (("mbpp+", "v0.2.0"), ("mbpp+", "v0.1.0"), ("mbpp-sanitized", "30c8c57")):
        benchmark = loaded(name, version)
        numbers = [int(task.task_id.split("/")[1]) for task in benchmark.tasks]
        train, validation = sum(n >= 601 for n in numbers), sum(511 <= n <= 600 for n in numbers)
        prompt = sum(n <= 10 for n in numbers)
        assert f"shares {train + validation + prompt} tasks with" in benchmark.notes[0]
        assert f"({train} train, {validation} validation, {prompt} prompt)" in benchmark.notes[0]


def test_restored_inputs_have_their_tuples_sets_and_complex_numbers() -> None:
    assert restored_inputs("Mbpp/6", [[[1], 2]]) == [([1], 2)]
    assert restored_inputs("Mbpp/106", [[[5], [6]]]) == [([5], (6,))]
    assert restored_inputs("Mbpp/115", [[[[1, 1], [], {}]]]) == [([{1}, {}, {}],)]
    assert restored_inputs("Mbpp/124", [["1", "2j"]]) == [(1.0, 2j)]
    assert restored_inputs("Mbpp/278", [[[1, [2]]]]) == [((1, (2,)),)]
    assert restored_inputs("Mbpp/580", [[[1, [2, [3]]]]]) == [((1, (2, (3,))),)]
    assert restored_inputs("Mbpp/722", [[{"a": [1, 2]}, 3, 4]]) == [({"a": (1, 2)}, 3, 4)]


def test_restored_inputs_are_evalplus_own(data: Path) -> None:
    theirs = pytest.importorskip("evalplus.data.mbpp", reason="evalplus is not installed").mbpp_deserialize_inputs
    for path in ("mbppplus/MbppPlus.jsonl.gz", "mbppplus/v0.1.0/MbppPlus.jsonl.gz"):
        for row in files.read_jsonl(data / path):
            for which in ("base_input", "plus_input"):
                expected = [tuple(arguments) for arguments in theirs(row["task_id"], row[which])]
                found = restored_inputs(row["task_id"], row[which])
                assert repr(found) == repr(expected), row["task_id"]  # tells 1 from 1.0, and nan is nan


# CRUXEval


def test_an_output_is_compared_with_the_literal(data: Path) -> None:
    task = by_id("cruxeval-output")["sample_3"]
    assert task.tests["base"] == CallTests.of("answer", [()], ["bcksrutq"])
    assert task.prompt.endswith("assert f('bcksrut', 'q') == ??\n[/PYTHON]\n[ANSWER]\n")
    assert task.reference == answer_program(task, task.reference_completion)


def test_an_input_is_handed_to_the_trusted_function(data: Path) -> None:
    task = by_id("cruxeval-input")["sample_3"]
    assert asserts(task).code == "args, kwargs = answer()\nassert f(*args, **kwargs) == 'bcksrutq'\n"
    assert defined(asserts(task).setup) == {"f"}
    assert task.prompt.endswith("assert f(??) == 'bcksrutq'\n[/PYTHON]\n[ANSWER]\n")


def test_every_official_answer_becomes_its_reference(data: Path) -> None:
    for name in ("cruxeval-input", "cruxeval-output"):
        for task in loaded(name).tasks:
            assert answer_program(task, task.reference_completion) == task.reference
            assert "answer" in defined(task.reference)


OUTPUT = Task(task_id="o", prompt="", tests={"base": CallTests.of("answer", [()], [()])})
INPUT = Task(
    task_id="i", prompt="", preamble="def f(x): ...", tests={"base": AssertTests(entry_point="answer", code="")}
)


@pytest.mark.parametrize(
    ("text", "output", "given"),
    [
        ("assert f(1) == 2\n[/ANSWER]\n\n[PYTHON]\nassert f(3) == 4", "2", "f(1)"),
        ("Sure.\n[ANSWER]\nassert f(1) == 2\n[/ANSWER]", "2", "f(1)"),
        ("f('a==b') == 'x==y'", "'x==y'", "f('a==b')"),
        ("assert f(1) == (\n 'a'\n 'b')", "'a'\n 'b'", "f(1)"),
        ("assert f(1) == 2  # two", "2", "f(1)"),
        ("assert f(x := ) == 2", "2", "f(x := )"),
        ("f('\\d')", "f('\\d')", "f('\\d')"),
        ("17", "17", None),
        ("x = 17", "x = 17", None),
        ("", None, None),
        ("# nothing", None, None),
        ("[/ANSWER]17", None, None),
    ],
)
def test_an_answer_becomes_a_program(text: str, output: str | None, given: str | None) -> None:
    made = answer_program(OUTPUT, text)
    assert made == ("" if output is None else f"def answer():\n    return (\n{output}\n)\n")
    made = answer_program(INPUT, text)
    assert made.startswith("def f(x): ...\n\ndef f(*args, **kwargs):" if given is not None else "")
    assert made.endswith("" if given is None else f"def answer():\n    return (\n{given}\n)\n")
    assert bool(made) == (given is not None)


# BigCodeBench


def test_complete_and_instruct_have_the_same_tests_and_their_own_words(data: Path) -> None:
    complete, instruct = loaded("bigcodebench-complete"), loaded("bigcodebench-instruct")
    assert (complete.kind, instruct.kind) == ("complete", "instruct")
    assert [task.tests for task in complete.tasks] == [task.tests for task in instruct.tasks]
    assert not any(task.instruction for task in complete.tasks)
    assert all(task.instruction for task in instruct.tasks)
    assert complete.tasks[3].preamble.endswith("def task_func(LETTERS):\n\n    pass\n")
    ast.parse(complete.tasks[3].preamble)
    hard = json.loads((data / "bigcodebench/hard_task_ids.json").read_text())
    assert [task.task_id for task in loaded("bigcodebench-instruct-hard").tasks] == hard


def test_tasks_whose_reference_needs_a_network_are_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = set(json.loads((data / "bigcodebench/offline_gt_pass_ids.json").read_text())["pass"])
    hard = loaded("bigcodebench-complete-hard")
    (note,) = offline_notes(hard)
    assert note.startswith("17 references did not pass without a network when the list was made: BigCodeBench/")
    assert note.partition(": ")[2].split(", ") == [task.task_id for task in hard.tasks if task.task_id not in listed]
    assert offline_notes(replace(hard, tasks=tuple(task for task in hard.tasks if task.task_id in listed))) == ()
    assert offline_notes(replace(hard, version="")) == ()  # a user's file of that name
    monkeypatch.delenv("UNMASK_DATA")
    assert offline_notes(hard) == ()


def test_tests_are_counted_as_unittest_counts_them(data: Path) -> None:
    source = """
import unittest

class Shared(unittest.TestCase):
    def test_shared(self): ...
    def test_hidden(self): ...
    def helper(self): ...

class TestCases(Shared):
    test_data = 1
    test_hidden = None
    def test_a(self): ...
    def test_a(self): ...
    async def test_b(self): ...

class Other(unittest.TestCase):
    def test_other(self): ...
"""
    names: dict[str, Any] = {"__name__": "counted"}
    exec(source, names)  # ours, not a model's
    collected = unittest.TestLoader().getTestCaseNames(names["TestCases"])
    assert sorted(collected) == ["test_a", "test_b", "test_shared"]
    counts = {task.task_id: task.tests["base"] for task in loaded("bigcodebench-complete").tasks}
    for number, count in {90: 6, 392: 4, 804: 5}.items():  # two methods of one name
        tests = counts[f"BigCodeBench/{number}"]
        assert isinstance(tests, UnitTests)
        assert tests.num_tests == count
    assert count_tests(source) == len(collected)


# Answers of references


@dataclass(frozen=True, kw_only=True)
class Run:
    answers: tuple[bytes, ...]
    cpu_seconds: tuple[float, ...]
    error: str = ""


@dataclass
class FakeExecutor:
    """Answers with the sum of the arguments; each call takes a tenth of a second for each unit of it."""

    interpreter: str = "Python 3.11.7"
    asked: list[str] = field(default_factory=list)
    error: str = ""
    fail_at: str = "nowhere"

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> Run:
        self.asked.append(code)
        if code == self.fail_at:
            raise KeyboardInterrupt
        sums = [sum(arguments) if arguments[0] >= 0 else None for arguments in values.decode(inputs)]
        return Run(
            answers=tuple(values.encode(value) for value in sums),
            cpu_seconds=tuple((value or 0) / 10 for value in sums),
            error=self.error,
        )


def need(number: int, **options: Any) -> Unanswered:
    task = Task(task_id=f"T/{number}", prompt="", entry_point="add", reference=f"reference {number}")
    calls = {"base": Calls.of([[1, 2]], **options), "plus": Calls.of([[number, 10], [-1, 0]], **options)}
    return Unanswered(task=task, calls=calls)


def answered(*needs: Unanswered, executor: FakeExecutor | None = None, **options: Any) -> tuple[Task, ...]:
    given = {"name": "sums-v1", "data_sha256": {"sums": "0"}, "executor": executor or FakeExecutor(), **options}
    return with_answers(needs, **given)


def test_a_references_answers_become_the_expected_results() -> None:
    (task,) = answered(need(7, atol=0.5))
    assert task.tests["plus"] == CallTests.of(
        "add", [(7, 10), (-1, 0)], [17, None], atol=0.5, call_cpu_seconds=[4 * 1.7, 1.0]
    )
    assert task.required == ("base", "plus")


def test_a_run_may_take_the_sum_of_its_calls_but_at_most_a_minute_and_a_second() -> None:
    (short,) = answered(need(7))
    (long,) = answered(need(500))
    assert short.limits.cpu_seconds == pytest.approx(6.8 + 1.0 + 1.0)
    assert long.limits.cpu_seconds == 61.0
    assert long.limits.wall_seconds >= 3 * 61.0


def test_where_any_answer_will_do_only_its_presence_is_expected() -> None:
    (task,) = answered(need(7, oracle="not_none"))
    tests = task.tests["plus"]
    assert isinstance(tests, CallTests)
    assert tests.expected == (values.encode(True), values.encode(False))


def test_answers_are_kept_for_the_same_data_and_interpreter() -> None:
    first = FakeExecutor()
    tasks = answered(need(1), executor=first)
    assert first.asked == ["reference 1", "reference 1"]
    again = FakeExecutor()
    seen: list[tuple[int, int]] = []
    more = answered(need(1), need(2), executor=again, report=lambda done, total: seen.append((done, total)))
    assert more[:1] == tasks
    assert again.asked == ["reference 2", "reference 2"]
    assert seen == [(2, 2)]
    for other in ({"data_sha256": {"sums": "1"}}, {"executor": FakeExecutor(interpreter="Python 3.12.1")}):
        executor = other.setdefault("executor", FakeExecutor())
        answered(need(1), **other)
        assert executor.asked == ["reference 1", "reference 1"]


def test_an_interruption_keeps_what_was_computed() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        answered(need(1), need(2), executor=FakeExecutor(fail_at="reference 2"))
    executor = FakeExecutor()
    answered(need(1), need(2), executor=executor)
    assert executor.asked == ["reference 2", "reference 2"]


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"{}"), gzip.compress(b'{"key": "another"}'), b""])
def test_a_damaged_cache_is_made_again_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    tasks = answered(need(1))
    (cache,) = (tmp_path / "home" / "answers").iterdir()
    good = json.loads(gzip.decompress(cache.read_bytes()))
    cache.write_bytes(content)
    assert answered(need(1)) == tasks
    assert f"{cache} cannot be used" in caplog.text
    assert json.loads(gzip.decompress(cache.read_bytes())) == good


def test_a_reference_that_does_not_answer_stops_the_benchmark() -> None:
    message = failure(lambda: answered(need(1), executor=FakeExecutor(error="MemoryError")))
    assert (
        "the reference of T/1 answered 1 of its 1 base inputs (MemoryError), so there is nothing to compare" in message
    )


def test_evalplus_tasks_are_asked_with_its_oracles_and_tolerances(data: Path) -> None:
    built: dict[str, Unanswered] = {}
    for name, path in (
        ("humaneval+", "humanevalplus/HumanEvalPlus.jsonl.gz"),
        ("mbpp+", "mbppplus/v0.1.0/MbppPlus.jsonl.gz"),
    ):
        for task in DEFINITIONS[name].build((data / path,)):
            assert isinstance(task, Unanswered)
            built[task.task.task_id] = task
    found: dict[str, set[str]] = {}
    for task_id, task in built.items():
        found.setdefault(task.calls["plus"].oracle, set()).add(task_id)
    assert {oracle: len(ids) for oracle, ids in found.items() if oracle != "equal"} == {
        "find_zero": 1,
        "set": 8,
        "not_none": 3,
        "anything": 1,
        "zero_or_equal": 1,
        "surface_area": 1,
        "digit_distance": 1,
    }
    assert (built["HumanEval/32"].calls["plus"].oracle, built["HumanEval/32"].calls["plus"].atol) == ("find_zero", 1e-4)
    assert built["HumanEval/3"].calls["base"].num_calls == 6
    assert built["Mbpp/793"].calls["plus"].num_calls == 0
    assert values.decode(built["Mbpp/2"].calls["base"].inputs)[0] == ((3, 4, 5, 6), (5, 7, 4, 10))


def test_without_answers_the_tasks_have_no_tests(data: Path) -> None:
    assert not any(task.tests or task.required_tests for task in loaded("humaneval+").tasks)


def test_load_asks_the_executor_that_it_is_given(data: Path) -> None:
    class Refusing(FakeExecutor):
        def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> Run:
            return Run(answers=(), cpu_seconds=(), error="no time")

    message = failure(lambda: load("mbpp+", limit=1, executor=Refusing()))
    assert "the reference of Mbpp/2 answered 0 of its" in message
