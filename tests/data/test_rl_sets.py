"""RL sets: what gets in, what is left out and counted, and that solutions pass the tests that their tasks come with."""

import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unmask.data import files, puzzles, rl_sets
from unmask.data.files import DataFile
from unmask.data.jsonl import read_tasks, task_of, write_records
from unmask.data.task import Task
from unmask.errors import SandboxError, SettingsError, TaskError
from unmask.sandbox.executor import Job, LocalExecutor, open_executor
from unmask.sandbox.slot import CallRun
from unmask.sandbox.verdict import Limits, Verdict

SHARED = Path(os.environ.get("UNMASK_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no benchmark data: UNMASK_DATA is not set, and there is no folder {SHARED}")
    monkeypatch.setenv("UNMASK_DATA", str(SHARED))
    return SHARED


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    try:
        found = open_executor(workers=1)
    except SandboxError as error:
        pytest.skip(str(error))
    assert isinstance(found, LocalExecutor)
    with found:
        yield found


class Judge:
    """An executor that answers by a word in the solution's comment: `# timeout`; a pass without one."""

    name, guarantees, interpreter = "fake", (), "Python"

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        for job in jobs:
            self.jobs.append(job)
            status = job.code.rpartition("# ")[2].strip() if "# " in job.code else "pass"
            yield Verdict(status=status, message="as told")  # type: ignore[arg-type]

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        raise NotImplementedError

    def close(self) -> None:
        pass


def mbpp_row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": f"Write a function for thing number {number}.",
        "code": f"def f{number}(x):\r\n    return x + {number}",
        "test_setup_code": "",
        "test_list": [f"assert f{number}({x}) == {x + number}" for x in range(3)],
        "challenge_test_list": [],
        **more,
    }


def puzzle(name: str, sat: str, *bodies: str, kind: str = "int", module: str = "study.py") -> dict[str, Any]:
    head = sat.partition("\n")[0]
    parameters = head[head.index("(") + 1 : head.rindex(")")].partition(", ")[2]
    return {
        "name": name,
        "sat": sat,
        "ans_type": kind,
        "sol_header": f"def sol({parameters}):",
        "sol_docstring": '    """Find it."""',
        "sol_bodies": list(bodies),
        "module": module,
        "notes": "",
        "weight": 1.0,
    }


ADD = "def sat(x: int, a={}, b={}):\n    return x == a + b"
PUZZLES = [
    puzzle("Add:0", ADD.format(1000, 2), "    return a + b"),
    puzzle("Add:1", ADD.format(3, 4), "    return a + b"),
    puzzle("Old:0", ADD.format(3, 4), "    return a + b", module="human_eval.py"),
    puzzle("Riddle:0", "def sat(x: int):\n    return x * x == 2"),
    puzzle("Quine:0", "def sat(x: str):\n    return eval(x) == x", "    return ''", kind="str"),
    puzzle("Big:0", f"def sat(x: int, n={'9' * 5000}):\n    return x == n", "    return n"),
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with MBPP of six rows, of which MBPP+ has two, and P3 of six puzzles."""
    folder = tmp_path / "data"
    setup = "root = Node(1)"
    rows = [
        mbpp_row(1),
        mbpp_row(2),
        mbpp_row(3, challenge_test_list=["assert f3(9) == 12", "assert f3(0)  ==  3"]),
        mbpp_row(4, test_setup_code=setup),
        mbpp_row(5, test_list=["assert f5(1) == 6", "assert f5(1)==6"]),
        mbpp_row(6, code="import math\ndef f6(x):\n    return x  # fail", test_list=["assert f6(1)"] * 2),
        mbpp_row(
            8, code="def f8(x):\n    return True", test_list=["assert f8(0)", "assert f8(1)", "assert f8(2)==True"]
        ),
        mbpp_row(7, code="import math\ndef f7(x):\n    return x", test_list=["assert f7(1)", "assert f7(math.e)"]),
    ]
    clean = {"task_id": 3, "prompt": "Add three.", "code": rows[2]["code"], "test_imports": ["import os"]}
    contents = {
        "mbpp/mbpp.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "mbpp/sanitized-mbpp.json": json.dumps([{**clean, "test_list": rows[2]["test_list"]}]).encode(),
        "mbppplus/MbppPlus.jsonl.gz": gzip.compress(b'{"task_id": "Mbpp/1"}\n'),
        "mbppplus/v0.1.0/MbppPlus.jsonl.gz": gzip.compress(b'{"task_id": "Mbpp/2"}\n'),
        "p3/puzzles.json": json.dumps(PUZZLES).encode(),
    }
    table = {}
    for path, content in contents.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        table[path] = DataFile(path=path, version="v", licence="MIT", bytes=len(content), sha256=sha256)
    monkeypatch.setattr(files, "table", lambda: table)
    monkeypatch.setenv("UNMASK_DATA", str(folder))
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    return folder


def failure(name: str, **options: Any) -> str:
    with pytest.raises((TaskError, SettingsError, SandboxError)) as caught:
        rl_sets.make(name, executor=Judge(), **options)
    return str(caught.value)


def tasks_file(tmp_path: Path, *records: object) -> str:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def ours(name: str, **more: Any) -> dict[str, Any]:
    tests = ["assert f(1) == 2", "assert f(2) == 3"]
    return {"task_id": name, "prompt": f"# {name}\n", "entry_point": "f", "test_list": tests, **more}


# mbpp-rl


@pytest.mark.usefixtures("data")
def test_mbpp_rl_has_no_row_of_any_mbpp_plus_and_counts_what_it_leaves_out() -> None:
    made = rl_sets.make("mbpp-rl", executor=Judge())
    assert [record["task_id"] for record in made.records] == ["Mbpp/3", "Mbpp/7"]
    assert made.dropped == {
        "in MBPP+": 2,
        "needs a class that its prompt does not name": 1,
        "fewer than two different tests": 2,
        "one constant passes all its tests": 1,
    }


@pytest.mark.usefixtures("data")
def test_mbpp_rl_shows_one_test_and_scores_the_others_of_the_sanitized_row_and_the_challenge() -> None:
    (record, _) = rl_sets.make("mbpp-rl", executor=Judge()).records
    assert record["test_list"] == ["assert f3(1) == 4", "assert f3(2) == 5", "assert f3(9) == 12"]
    assert record["prompt"] == '"""\nAdd three.\nassert f3(0) == 3\n"""\n'
    assert record["instruction"] == "Add three.\n\n```python\nassert f3(0) == 3\n```"
    assert record["setup"] == "import os\n"
    assert "\r" not in record["reference"]


@pytest.mark.usefixtures("data")
def test_what_an_assert_takes_from_a_module_does_not_come_from_the_program() -> None:
    assert rl_sets.make("mbpp-rl", executor=Judge()).records[1]["setup"] == "import math\n"


# p3


@pytest.mark.usefixtures("data")
def test_p3_leaves_out_humaneval_riddles_evaluated_answers_and_huge_inputs() -> None:
    made = rl_sets.make("p3", executor=Judge())
    assert [record["task_id"] for record in made.records] == ["P3/Add"]
    assert made.dropped == {
        "from HumanEval": 1,
        "no known solution": 1,
        "evaluates the answer": 1,
        "too large to be read": 1,
    }


def test_puzzles_that_differ_in_their_inputs_are_the_tests_of_one_task_that_shows_the_shortest() -> None:
    (record,) = puzzles.records(PUZZLES[:2], dropped=Counter())
    assert record["prompt"] == (
        'def sat(x: int, a=3, b=4):\n    return x == a + b\n\n\ndef sol(a=3, b=4):\n    """Find it."""\n'
    )
    assert record["test_list"] == [
        "assert holds(sol(a=1000, b=2), a=1000, b=2)",
        "assert holds(sol(a=3, b=4), a=3, b=4)",
    ]
    assert record["instruction"].startswith(
        "Find it.\n\nWrite a function `sol(a, b)`. It returns a value of type `int`"
    )


def test_another_question_under_the_same_name_is_counted() -> None:
    dropped: Counter[str] = Counter()
    other = puzzle("Add:2", "def sat(x: int, a=1, b=2):\n    return x == a - b", "    return a - b")
    (record,) = puzzles.records([*PUZZLES[:2], other], dropped=dropped)
    assert (len(record["test_list"]), dropped["another question under the same name"]) == (2, 1)


LIST = puzzle(
    "Twice:0", "def sat(li: List[int], n=2):\n    return li.count(7) == n", "    return [7] * n", kind="List[int]"
)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("[7, 7]", "pass"),
        ("[7]", "fail"),
        ("(7, 7)", "fail"),
        ("[7, 7, 'x']", "fail"),
        ("[7, 7, True]", "fail"),
        ("type('Yes', (), {'count': lambda self, x: 2})()", "fail"),  # says that it holds two of anything
        ("type('List', (list,), {'count': lambda self, x: 2})()", "fail"),
        ("exit(0)", "fail"),
    ],
)
def test_only_an_answer_of_the_right_type_that_the_predicate_accepts_passes(
    executor: LocalExecutor, answer: str, status: str
) -> None:
    (record,) = puzzles.records([LIST], dropped=Counter())
    tests = task_of(record, "here").tests["base"]
    program = (
        f"def sat(*any, **of): return True\ndef holds(*any, **of): return True\ndef sol(n=2):\n    return {answer}\n"
    )
    (verdict,) = executor.judge([Job(code=program, tests=tests)])
    assert verdict.passed == (status == "pass"), verdict


def test_the_solution_of_a_puzzle_passes_its_own_tests(executor: LocalExecutor) -> None:
    made = list(puzzles.records([*PUZZLES[:2], LIST], dropped=Counter()))
    tasks = [task_of(record, "here") for record in made]
    verdicts = executor.judge([Job(code=task.reference, tests=task.tests["base"]) for task in tasks])
    assert [verdict.status for verdict in verdicts] == ["pass", "pass"]


# Files


def test_a_file_of_tasks_is_kept_as_it_is_and_acecodes_rows_become_tasks(tmp_path: Path) -> None:
    tests = ["assert f(1) == 2", "assert f(2) == 3", "assert isclose(f(3), 4)"]
    ace = {"id": "ace_1", "question": "Write f(x).", "test_cases": tests, "source": "oss"}
    mine = ours("a", reference="def f(x): return x + 1")
    made = rl_sets.make(tasks_file(tmp_path, mine, ace), executor=Judge())
    assert made.records[0] == mine
    assert (made.records[1]["task_id"], made.records[1]["test_list"]) == ("ace_1", tests[:2])
    assert made.num_unchecked == 1
    assert made.dropped == {"a test that needs more than the function": 1}


def test_a_solution_that_fails_or_takes_too_long_costs_the_task_its_place(tmp_path: Path) -> None:
    records = [ours(status, reference=f"def f(x): return 2  # {status}") for status in ("fail", "timeout", "crash")]
    made = rl_sets.make(tasks_file(tmp_path, ours("good", reference="f = 1"), *records), executor=Judge())
    assert [record["task_id"] for record in made.records] == ["good"]
    assert made.dropped == {"its solution fails": 2, "its solution takes too long": 1}


def test_a_solution_has_a_fifth_of_the_time_of_an_answer(tmp_path: Path) -> None:
    judge = Judge()
    rl_sets.make(tasks_file(tmp_path, ours("a", reference="f = 1")), executor=judge)
    (task,) = read_tasks(tmp_path / "mine.jsonl")
    assert judge.jobs[0].limits.cpu_seconds == task.limits.cpu_seconds / 5


@pytest.mark.usefixtures("data")
def test_a_puzzle_whose_solution_fails_costs_p3_one_test_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "judge", lambda self, jobs: iter([Verdict(status="timeout"), Verdict(status="pass")]))
    made = rl_sets.make("p3", executor=Judge())
    assert made.records[0]["test_list"] == ["assert holds(sol(a=3, b=4), a=3, b=4)"]
    assert made.dropped["its solution takes too long"] == 1


def test_a_task_that_shares_ten_words_with_a_benchmark_goes_and_is_counted(tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven"
    records = [ours("a"), ours("b", instruction=words), ours("c", reference=f"'''{words}'''\nf = 1")]
    made = rl_sets.make(
        tasks_file(tmp_path, *records), executor=Judge(), without=[Task(task_id="B/1", prompt=words.upper())]
    )
    assert [record["task_id"] for record in made.records] == ["a"]
    assert made.dropped == {"overlaps a benchmark": 2}


def test_count_keeps_the_first(tmp_path: Path) -> None:
    made = rl_sets.make(tasks_file(tmp_path, *map(ours, "abc")), executor=Judge(), count=2)
    assert [record["task_id"] for record in made.records] == ["a", "b"]


def test_no_solution_is_run_behind_the_last_task_that_is_kept(tmp_path: Path) -> None:
    records = [ours(str(n), reference=f"f = {n}  # {'fail' if n % 2 else 'pass'}") for n in range(50)]
    judge = Judge()
    made = rl_sets.make(tasks_file(tmp_path, *records), executor=judge, count=3)
    every = rl_sets.make(tasks_file(tmp_path, *records), executor=Judge())
    assert made.records == every.records[:3]
    assert (len(judge.jobs), made.dropped) == (5, {"its solution fails": 2})


CHECKED = "def check(candidate):\n    assert candidate(1) == 5\n    assert candidate(2) == "


@pytest.mark.parametrize(
    ("tests", "is_left_out"),
    [
        ({"test_list": ["assert f(1) == 5", "assert 5 == f(2)"]}, True),
        ({"test_list": ["assert f(1)", "assert f(2) == True"]}, True),
        ({"test_list": ["assert not f(1)", "assert f(2) is False"]}, True),
        ({"test_list": ["assert f(1) == 5"]}, True),
        ({"tests": [{"input": [1], "output": [5]}, {"input": [2], "output": [5]}]}, True),
        ({"test": f"{CHECKED}5\n"}, True),
        ({"test": f"{CHECKED}6\n"}, False),
        ({"tests": [{"input": [1], "output": [5]}, {"input": [2], "output": []}]}, False),
        ({"test_list": ["assert f(1) == 5", "assert f(2) == 6"]}, False),
        ({"test_list": ["assert f(1) == 5", "assert abs(f(2)) == 5"]}, False),
    ],
)
def test_a_task_that_one_constant_solves_is_left_out(tmp_path: Path, tests: dict[str, Any], is_left_out: bool) -> None:
    mine = ours("a", **tests)
    if "test_list" not in tests:
        del mine["test_list"]
    made = rl_sets.make(tasks_file(tmp_path, mine, ours("b")), executor=Judge())
    assert [record["task_id"] for record in made.records] == (["b"] if is_left_out else ["a", "b"])
    assert made.dropped == ({"one constant passes all its tests": 1} if is_left_out else {})


def test_synthetic_hard_has_as_many_tasks_as_are_asked_for(executor: LocalExecutor, tmp_path: Path) -> None:
    made = rl_sets.make("synthetic-hard", executor=executor, count=3, seed=1)
    assert (len(made.records), made.num_unchecked, +made.dropped) == (3, 0, {})
    place = tmp_path / "hard.jsonl"
    assert write_records(made.records, place) == 3
    assert all(task.reference and task.tests for task in read_tasks(place))


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "mbpp",
            {},
            "'mbpp' is no RL set; did you mean mbpp-rl? (known: mbpp-rl, p3, synthetic-hard). A file of tasks",
        ),
        ("p3", {"count": 0}, "count=0: ask for at least one task, or leave it out for all"),
        ("p3", {"seed": 1}, "seed=1 has no effect on p3, whose tasks are not drawn by chance; leave it out"),
        ("synthetic-hard", {}, "synthetic-hard has as many tasks as are asked for: give a count, such as 2000"),
        ("none.jsonl", {}, "there is no file none.jsonl"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    assert words in failure(name, **options)


def test_an_empty_file_and_tasks_without_tests_are_refused(tmp_path: Path) -> None:
    assert "mine.jsonl holds no tasks" in failure(tasks_file(tmp_path))
    bare = ours("a")
    del bare["test_list"]
    assert "line 2: the task has no tests; give exactly one of" in failure(tasks_file(tmp_path, ours("b"), bare))


def test_a_set_of_which_nothing_is_left_says_what_took_it(tmp_path: Path) -> None:
    bad = ours("a", reference="f = 1  # fail")
    message = failure(tasks_file(tmp_path, bad))
    assert "mine.jsonl: nothing is left of 1 task (its solution fails: 1); give other tasks" in message
    message = failure(tasks_file(tmp_path, bad, {**bad, "task_id": "b"}))
    assert "nothing is left of 2 tasks (its solution fails: 2)" in message


def test_a_sandbox_that_fails_is_no_verdict_on_a_task(tmp_path: Path) -> None:
    message = failure(tasks_file(tmp_path, ours("a", reference="f = 1  # sandbox_error")))
    assert "the sandbox failed at solution 1 of 1 (as told), so nothing is known of it; mend the sandbox" in message


@pytest.mark.parametrize("name", ["tasks.json", "tasks.jsonl.gz", "nowhere/tasks.jsonl"])
def test_an_output_that_would_be_misread_is_refused_and_nothing_is_left_beside_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"task files end in \.jsonl|there is no folder .*nowhere"):
        write_records([ours("a")], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# The real data


@pytest.mark.usefixtures("shared")
def test_a_few_solutions_of_mbpp_rl_and_p3_pass(executor: LocalExecutor) -> None:
    found = list(rl_sets.mbpp(dropped=Counter()))
    several = [p for p in files.read_json(files.locate("p3/puzzles.json")) if f"P3/{p['name'].split(':')[0]}" in _QUICK]
    small = list(puzzles.records(several, dropped=Counter()))
    tasks = [task_of(record, record["task_id"]) for record in (*found[::60], *small)]
    jobs = [Job(code=task.reference, tests=task.tests["base"], limits=rl_sets.SOLUTION_LIMITS) for task in tasks]
    assert [verdict.status for verdict in executor.judge(jobs)] == ["pass"] * len(tasks)
    assert (len(found), len(small)) == (572, len(_QUICK))


_QUICK = ("P3/IntSum", "P3/ListMul", "P3/ListIn", "P3/StrJoiner", "P3/LineIntersection")


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_every_solution_of_mbpp_rl_passes(executor: LocalExecutor) -> None:
    made = rl_sets.make("mbpp-rl", executor=executor)
    assert len(made.records) == 521
    assert set(made.dropped) == {
        "in MBPP+",
        "one constant passes all its tests",
        "needs a class that its prompt does not name",
        "fewer than two different tests",
    }


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_solutions_of_p3_pass_unless_they_are_slow(executor: LocalExecutor) -> None:
    several = files.read_json(files.locate("p3/puzzles.json"))
    sample = list(puzzles.records(several, dropped=Counter()))[::6]
    tasks = [task_of({**record, "test_list": record["test_list"][:1]}, record["task_id"]) for record in sample]
    jobs = [Job(code=task.reference, tests=task.tests["base"], limits=rl_sets.SOLUTION_LIMITS) for task in tasks]
    statuses = Counter(verdict.status for verdict in executor.judge(jobs))
    assert statuses["pass"] >= 0.9 * len(tasks)
