"""The synthetic suite as benchmarks: no data files, the same tasks each time, and a hash that names them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.data.synthetic import compositions
from unmask.data.synthetic.drafts import Draft, draw_task
from unmask.errors import SandboxError, TaskError
from unmask.evaluate import benchmarks
from unmask.evaluate.benchmarks import DEFINITIONS, load, needed_files, synthetic
from unmask.evaluate.prompts import find_preset, render
from unmask.sandbox.executor import LocalExecutor, open_executor
from unmask.sandbox.inside import values
from unmask.sandbox.job import Job
from unmask.sandbox.slot import CallRun
from unmask.sandbox.tests import CallTests
from unmask.sandbox.verdict import Limits

NAMES = tuple(synthetic.DEFINITIONS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    try:
        found = open_executor(workers=1)
    except SandboxError as error:
        pytest.skip(str(error))
    with found as local:
        assert isinstance(local, LocalExecutor)
        yield local


def test_every_split_is_a_benchmark_of_200_tasks_from_no_file() -> None:
    assert {name.removeprefix("synthetic-") for name in NAMES} == set(compositions.SPLITS)
    for name in NAMES:
        benchmark = load(name, answers=False, offline=True)
        assert (len(benchmark.tasks), benchmark.version, benchmark.kind) == (200, "v1", "complete")
        assert [task.task_id for task in benchmark.tasks] == [f"{name}/{index}" for index in range(200)]
        assert benchmark.licence == "Apache-2.0"
        assert list(benchmark.data_sha256) == [name]
        assert needed_files(name) == ()


def test_the_tasks_are_those_that_the_suite_draws_with_the_seed_0() -> None:
    tasks = load("synthetic-test", answers=False).tasks
    assert tasks[17] == draw_task("test", 17, 0).task


@pytest.mark.parametrize("split", ["val", "test", "hard-test"])
def test_the_expected_values_are_what_the_words_mean(split: compositions.Split, executor: LocalExecutor) -> None:
    tasks = load(f"synthetic-{split}", executor=executor).tasks
    assert len(tasks) == 200
    for index, task in enumerate(tasks):
        draft = draw_task(split, index, 0)
        tests = task.tests["base"]
        assert isinstance(tests, CallTests)
        assert values.decode(tests.inputs) == list(draft.inputs)
        assert tuple(map(values.decode, tests.expected)) == draft.meant, task.task_id


def test_a_limit_takes_the_first_tasks_of_the_same_data() -> None:
    whole, few = load("synthetic-val", answers=False), load("synthetic-val", answers=False, limit=3)
    assert few.tasks == whole.tasks[:3]
    assert few.data_sha256 == whole.data_sha256


def test_the_hash_names_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load("synthetic-test", answers=False).data_sha256
    assert load("synthetic-test", answers=False).data_sha256 == before

    def other_inputs(split: compositions.Split, index: int, seed: int) -> Draft:
        draft = draw_task(split, index, seed)
        return replace(draft, inputs=draft.inputs[1:]) if index == 199 else draft

    monkeypatch.setattr(synthetic, "draw_task", other_inputs)
    assert load("synthetic-test", answers=False).data_sha256 != before


def test_references_pass_and_an_infinite_loop_fails_soon(executor: LocalExecutor) -> None:
    tasks = load("synthetic-test", limit=25, executor=executor).tasks
    jobs = [Job(code=task.reference, tests=task.tests["base"], limits=task.limits) for task in tasks]
    assert all(verdict.passed for verdict in executor.judge(jobs))
    tests = tasks[0].tests["base"]
    assert isinstance(tests, CallTests)
    assert len(tests.expected) >= 6
    endless = f"def {tasks[0].entry_point}(*_):\n    while True:\n        pass\n"
    (verdict,) = executor.judge([Job(code=endless, tests=tests, limits=tasks[0].limits)])
    assert (verdict.status, verdict.cpu_seconds < 3) == ("timeout", True)


class Timed:
    """A sandbox whose clock is fine enough to tell what a small call takes."""

    def __init__(self, executor: LocalExecutor) -> None:
        self.executor, self.interpreter, self.asked = executor, executor.interpreter, 0

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        self.asked += 1
        run = self.executor.call(code, entry_point, inputs, limits)
        return replace(run, cpu_seconds=(1e-6,) * len(run.answers))


def test_the_answers_are_kept(home: Path, executor: LocalExecutor) -> None:
    timed = Timed(executor)
    first = load("synthetic-hard-test", limit=3, executor=timed)
    assert [place.name.startswith("synthetic-hard-test-v1-") for place in (home / "answers").iterdir()] == [True]
    assert load("synthetic-hard-test", limit=3, executor=timed).tasks == first.tasks
    assert timed.asked == 3


def test_a_task_is_asked_as_code_to_complete() -> None:
    task = load("synthetic-test", answers=False, limit=1).tasks[0]
    rendered = render(find_preset("base"), task, benchmark="synthetic-test", kind=DEFINITIONS["synthetic-test"].kind)
    assert rendered.text == task.prompt
    assert task.prompt in render(find_preset("diffucoder"), task, benchmark="synthetic-test", kind="complete").messages[
        -1
    ].content.replace("\n```\n", "\n", 2)


def test_another_version_is_refused_with_the_known_one() -> None:
    with pytest.raises(TaskError) as caught:
        load("synthetic-test", version="v0")
    assert "synthetic-test has no version 'v0'; did you mean v1?" in str(caught.value)


def test_a_split_that_does_not_exist_is_named_with_its_nearest() -> None:
    with pytest.raises(TaskError) as caught:
        benchmarks.load("synthetic-tset")
    assert "did you mean synthetic-test" in str(caught.value)
