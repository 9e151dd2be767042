"""What is asked, in which order, and what is left out or refused before anything is asked."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unmask.data.leaks import num_tests
from unmask.decode.session import Model
from unmask.errors import SettingsError, TaskError
from unmask.sandbox.executor import Executor, Job, open_executor
from unmask.train.prompts import Prompts, PromptSettings, load_tasks, open_prompts

from checkpoints import tiny_model

LOGGER = "unmask.train.prompts"


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with open_executor(workers=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("full", chat=True)


def record(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "task_id": f"t/{index}",
        "prompt": f"def f{index}(x):\n    '''Add {index}.'''\n",
        "entry_point": f"f{index}",
        "tests": [{"input": [x], "output": x + index} for x in range(4)],
        **changes,
    }


def tasks_in(path: Path, records: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def opened(model: Model, executor: Executor, *tasks: str, seed: int = 0, **settings: Any) -> Prompts:
    given = {"preset": "plain", "max_new_tokens": 16, **settings}
    return open_prompts(PromptSettings(tasks=tasks, **given), model, seed=seed, executor=executor)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return tasks_in(tmp_path / "tasks.jsonl", [record(index) for index in range(6)])


def test_the_default_settings_are_valid_and_ask_what_needs_no_file(executor: Executor) -> None:
    (name,) = PromptSettings().tasks
    assert len(load_tasks(name.replace("2000", "2"), executor=executor).tasks) == 2


def test_a_prompt_is_what_an_evaluation_with_the_preset_would_ask(model: Model, executor: Executor, file: str) -> None:
    item = opened(model, executor, file, preset="evalplus", max_new_tokens=100).items[2]
    assert isinstance(item.prompt, list)
    assert [message["role"] for message in item.prompt] == ["user"]
    assert "Add 2." in item.prompt[0]["content"]
    assert item.prefill.endswith("```python\n")
    assert model.tokenizer.decode(item.ids).endswith(f"assistant\n{item.prefill}")
    assert item.text == f"{item.prompt[0]['content']}\n\n{item.prefill}"
    assert (item.source, item.task.task_id, num_tests(item.task)) == (file, "t/2", 4)
    plain = opened(model, executor, file, preset="base").items[2]
    assert (plain.prompt, plain.prefill) == ("def f2(x):\n    '''Add 2.'''\n", "")
    assert plain.text == plain.prompt == model.tokenizer.decode(plain.ids)


@pytest.mark.parametrize(
    ("behind", "ids"), [("", range(6)), (":2", range(2)), (":2-5", range(2, 5)), (":4-9", range(4, 6))]
)
def test_a_range_behind_the_name_chooses_tasks(
    model: Model, executor: Executor, file: str, behind: str, ids: range
) -> None:
    found = opened(model, executor, f"{file}{behind}")
    assert [item.task.task_id for item in found.items] == [f"t/{index}" for index in ids]


def test_the_synthetic_suite_gives_more_tasks_than_the_benchmark_has(model: Model, executor: Executor) -> None:
    benchmark = load_tasks("synthetic-hard-train:199-202", executor=executor)
    assert [task.task_id for task in benchmark.tasks] == [f"synthetic-hard-train/{index}" for index in (199, 200, 201)]
    assert benchmark.kind == "complete"
    task = benchmark.tasks[2]
    (verdict,) = executor.judge([Job(code=task.reference, tests=task.tests["base"], limits=task.limits)])
    assert verdict.passed
    assert (
        load_tasks("synthetic-hard-train:2", executor=executor).tasks[1].tests["base"]
        == (load_tasks("synthetic-hard-train:1-2", executor=executor).tasks[0].tests["base"])
    )


def test_every_prompt_comes_once_in_each_pass_in_an_order_of_its_own(
    model: Model, executor: Executor, file: str
) -> None:
    prompts = opened(model, executor, file, seed=4)
    passes = [[prompts.at(index).task.task_id for index in range(first, first + 6)] for first in (0, 6, 12)]
    assert all(sorted(ids) == [f"t/{index}" for index in range(6)] for ids in passes)
    assert len({tuple(ids) for ids in passes}) == 3
    again = opened(model, executor, file, seed=4)
    assert [again.at(index) for index in range(18)] == [prompts.at(index) for index in range(18)]
    other = opened(model, executor, file, seed=5)
    assert [other.at(index) for index in range(18)] != [prompts.at(index) for index in range(18)]


def test_long_prompts_are_left_out_and_counted_and_never_cut(
    model: Model, executor: Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = record(1, prompt="def f1(x):\n    '''" + "Add one. " * 20 + "'''\n")
    file = tasks_in(tmp_path / "tasks.jsonl", [record(0), long, record(2)])
    whole = opened(model, executor, file, preset="base")
    longest = max(len(item.ids) for item in whole.items)
    assert (whole.num_too_long, len(whole)) == (0, 3)
    with caplog.at_level(logging.INFO, LOGGER):
        short = opened(model, executor, file, preset="base", max_prompt_tokens=longest - 1)
    assert [item.task.task_id for item in short.items] == ["t/0", "t/2"]
    assert short.items == (whole.items[0], whole.items[2])
    assert short.num_too_long == 1
    assert f"1 of 3 prompts have more than {longest - 1} tokens and are left out" in caplog.text
    assert "2 prompts are asked" in caplog.text
    assert len(opened(model, executor, file, preset="base", max_prompt_tokens=longest)) == 3


def test_the_models_context_bounds_a_prompt_with_its_answer(model: Model, executor: Executor, file: str) -> None:
    longest = max(len(item.ids) for item in opened(model, executor, file).items)
    assert len(opened(model, executor, file, max_new_tokens=512 - longest)) == 6
    with pytest.raises(TaskError, match=rf"no prompt remains: 6 of 6 prompts have more than {longest - 1} tokens"):
        opened(model, executor, file, max_new_tokens=512 - longest + 1)
    with pytest.raises(SettingsError, match=r"prompts.max_new_tokens=512 leaves no room .* context of 512; give less"):
        opened(model, executor, file, max_new_tokens=512)


def leaky(index: int, *, shown: int) -> dict[str, Any]:
    examples = "".join(f"    >>> f{index}({x})\n    {x + index}\n" for x in range(shown))
    return record(
        index, prompt=f"def f{index}(x):\n    '''Add {index}.\n\n{examples}    >>> f{index}(9)\n    0\n    '''\n"
    )


def test_tests_that_the_prompt_shows_do_not_score_and_prompts_that_show_too_many_are_left_out(
    model: Model, executor: Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tasks_in(tmp_path / "tasks.jsonl", [leaky(index, shown=index) for index in range(4)])
    with caplog.at_level(logging.INFO, LOGGER):
        fair = opened(model, executor, file)
    assert [(item.task.task_id, num_tests(item.task)) for item in fair.items] == [("t/0", 4), ("t/1", 3)]
    assert (fair.num_leaking, fair.num_tests_taken, fair.num_too_long) == (2, 1, 0)
    assert "2 of 4 prompts show so many of their tests that fewer than 3 are left and are left out" in caplog.text
    assert "1 tests do not score: their prompts show them" in caplog.text
    asked = opened(model, executor, file, min_tests=1)
    assert [num_tests(item.task) for item in asked.items] == [4, 3, 2, 1]
    assert asked.num_tests_taken == 6
    leaking = opened(model, executor, file, allow_leaks=True)
    assert [num_tests(item.task) for item in leaking.items] == [4, 4, 4, 4]
    assert (leaking.num_leaking, leaking.num_tests_taken) == (0, 0)
    with pytest.raises(TaskError, match=r"no prompt remains: 4 of 4 prompts show so many .*prompts.allow_leaks=true"):
        opened(model, executor, tasks_in(tmp_path / "all.jsonl", [leaky(i, shown=4) for i in range(4)]), min_tests=1)


def test_a_task_of_few_tests_that_shows_none_is_asked(model: Model, executor: Executor, tmp_path: Path) -> None:
    one = record(0, tests=[{"input": [1], "output": 1}])
    assert len(opened(model, executor, tasks_in(tmp_path / "tasks.jsonl", [one]))) == 1


def test_identity_tells_other_tasks_tests_wording_and_limits(model: Model, executor: Executor, tmp_path: Path) -> None:
    base, more = [record(index) for index in range(3)], [record(7)]
    first, second = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    tasks_in(Path(first), base)
    tasks_in(Path(second), more)
    whole = opened(model, executor, first, second)
    found = whole.identity()
    assert set(found) == {first, second}
    assert all(len(value) == 64 for value in found.values())
    assert opened(model, executor, first, second, seed=9).identity() == found
    assert opened(model, executor, first).identity() == {first: found[first]}
    assert opened(model, executor, first, second, preset="evalplus").identity().keys() == found.keys()
    changes: list[tuple[str, dict[str, Any]]] = [
        ("prompt", {"prompt": "def f1(x):\n    '''Plus 1.'''\n"}),
        ("tests", {"tests": [{"input": [5], "output": 6}]}),
        ("task_id", {"task_id": "other"}),
    ]
    for _, change in changes:
        tasks_in(Path(first), [base[0], record(1, **change), base[2]])
        other = opened(model, executor, first, second).identity()
        assert (other[first] != found[first], other[second]) == (True, found[second])
    item = whole.items[0]
    slower = replace(item.task, limits=replace(item.task.limits, cpu_seconds=77.0))
    assert replace(whole, items=(replace(item, task=slower), *whole.items[1:])).identity()[first] != found[first]


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ()}, r"prompts.tasks='' names nothing to ask; .*as in prompts.tasks=synthetic-hard-train:2000"),
        ({"tasks": ("a", " ")}, r"names nothing to ask"),
        ({"max_prompt_tokens": 0}, r"prompts.max_prompt_tokens=0 must be at least 1"),
        ({"max_new_tokens": -3}, r"prompts.max_new_tokens=-3 must be at least 1"),
        ({"min_tests": 0}, r"prompts.min_tests=0 must be at least 1"),
        ({"min_tests": 2, "allow_leaks": True}, r"prompts.min_tests=2 has no effect with prompts.allow_leaks=true"),
        ({"preset": "evalpus"}, r"'evalpus' is no prompt preset; did you mean evalplus\?"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        PromptSettings(**settings)


def test_an_unknown_source_is_refused_with_the_nearest_one(model: Model, executor: Executor, file: str) -> None:
    with pytest.raises(TaskError, match=r"'synthetic-hard-trai' is not a benchmark; did you mean synthetic-hard-train"):
        opened(model, executor, "synthetic-hard-trai:20")
    with pytest.raises(TaskError, match=r"from 5 up to 5, which are none; give .*:COUNT or .*:FIRST-STOP"):
        opened(model, executor, f"{file}:5-5")
    with pytest.raises(TaskError, match=r"begins at task 6, and .*tasks.jsonl has 6; begin earlier"):
        opened(model, executor, f"{file}:6-9")
    with pytest.raises(TaskError, match=r"synthetic-val.* which has \d+: each of its compositions once"):
        opened(model, executor, "synthetic-val:99999")


def test_tasks_without_tests_are_named(
    model: Model, executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = load_tasks(tasks_in(tmp_path / "tasks.jsonl", [record(index) for index in range(5)]), executor=executor)
    bare = tuple(replace(task, tests={}) for task in tasks.tasks[:4])
    monkeypatch.setattr("unmask.train.prompts.load", lambda *_, **__: replace(tasks, tasks=(*bare, tasks.tasks[4])))
    with pytest.raises(TaskError, match=r"4 of 5 tasks have no tests: t/0, t/1, t/2 and more; a reward is what tests"):
        opened(model, executor, "any")


def test_a_task_that_is_in_the_mixture_twice_is_named(model: Model, executor: Executor, file: str) -> None:
    with pytest.raises(TaskError, match=r"the task t/3 is in .*:4 and in .*:3-6, so it would be asked twice as often"):
        opened(model, executor, f"{file}:4", f"{file}:3-6")
    with pytest.raises(TaskError, match=r"the task t/0 is in .*tasks.jsonl, so .*give each task once"):
        opened(model, executor, file, file)
    assert len(opened(model, executor, f"{file}:4", f"{file}:4-6")) == 6


@pytest.mark.parametrize(("kind", "what"), [("infill", "holes to fill"), ("predict", "inputs or outputs to predict")])
def test_tasks_that_no_program_answers_are_refused(
    model: Model, executor: Executor, file: str, kind: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = load_tasks(file, executor=executor)
    monkeypatch.setattr("unmask.train.prompts.load", lambda *_, **__: replace(tasks, kind=kind))
    with pytest.raises(TaskError, match=rf"the tasks of any are {what}, and a rollout is a program that answers"):
        opened(model, executor, "any")


def test_a_conversation_needs_a_chat_template(executor: Executor, file: str) -> None:
    with pytest.raises(SettingsError, match=r"the preset plain holds a conversation, .* give prompts.preset=base"):
        opened(tiny_model("full"), executor, file)
    assert not opened(tiny_model("full"), executor, file, preset="").items[0].rendered.is_chat
