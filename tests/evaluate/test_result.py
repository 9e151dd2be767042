"""Results: what a cell's figures are made of, which cell is quoted, and how a result is kept and read."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import SandboxError, SettingsError, TaskError
from unmask.evaluate.pass_at_k import estimate
from unmask.evaluate.result import (
    CellResult,
    Result,
    check_ks,
    load_result,
    parse_ks,
    save_result,
    summarise_cell,
    usual_ks,
)
from unmask.evaluate.samples import Sample
from unmask.evaluate.score import Outcome


def cell_of(
    passed: dict[str, Sequence[str]], *, name: str = "only", ks: Sequence[int] = (1,), **given: Any
) -> CellResult:
    """A cell from the status of each task's samples."""
    pairs = [(task_id, i, status) for task_id, found in passed.items() for i, status in enumerate(found)]
    samples = [Sample(task_id=task_id, sample=i, completion="x") for task_id, i, _ in pairs]
    outcomes = [Outcome(sample=i, status=status, message="", sets={"base": status}) for _, i, status in pairs]  # type: ignore[arg-type]
    return summarise_cell(name, {"seed": 0}, samples, outcomes, ks=ks, seed=0, **given)


def result_of(*cells: CellResult, **changes: Any) -> Result:
    given: dict[str, Any] = {
        "benchmark": "toy",
        "version": "1",
        "model": "tiny",
        "num_tasks": 2,
        "n": 1,
        "seed": 0,
        "cells": cells,
        "sandbox": {"backend": "bwrap", "guarantees": ["no network"], "interpreter": "Python 3.11.7"},
        "data_sha256": {"toy.jsonl": "ab"},
    }
    return Result(**{**given, **changes})


HALF = cell_of({"a": ["pass"], "b": ["fail"]})


def test_the_score_is_the_mean_over_tasks_of_the_unbiased_estimate() -> None:
    cell = cell_of({"a": ["pass", "fail", "fail"], "b": ["pass", "pass", "fail"]}, ks=(1, 2))
    assert cell.pass_at_k == {
        "1": pytest.approx((1 / 3 + 2 / 3) / 2),
        "2": pytest.approx((estimate(3, 1, 2) + estimate(3, 2, 2)) / 2),
    }
    assert cell.statuses == {"pass": 3, "fail": 3}


def test_the_interval_holds_the_score_and_depends_on_the_seed_alone() -> None:
    statuses = {str(i): ["pass" if i % 3 else "fail"] for i in range(60)}
    cell = cell_of(statuses)
    low, high = cell.interval
    assert low < cell.score < high
    assert cell_of(statuses).interval == cell.interval


def test_each_test_set_has_a_score_of_its_own() -> None:
    samples = [Sample(task_id=task_id, completion="x") for task_id in "ab"]
    outcomes = [
        Outcome(sample=0, status="fail", sets={"base": "pass", "plus": "fail"}),
        Outcome(sample=0, status="pass", sets={"base": "pass", "plus": "pass"}),
    ]
    cell = summarise_cell("only", {}, samples, outcomes, ks=[1], seed=0)
    assert cell.score == 0.5
    assert cell.sets == {"base": {"1": 1.0}, "plus": {"1": 0.5}}


def test_the_raw_text_has_a_score_beside_the_extracted_one() -> None:
    raw = [Outcome(sample=0, status="fail"), Outcome(sample=0, status="fail")]
    cell = cell_of({"a": ["pass"], "b": ["fail"]}, raw_outcomes=raw)
    assert (cell.pass_at_k, cell.raw_pass_at_k) == ({"1": 0.5}, {"1": 0.0})


def test_raw_texts_that_were_not_judged_are_counted_and_keep_their_column() -> None:
    raw = [Outcome(sample=i, status="pass" if i else "sandbox_error") for i in range(2)]
    cell = cell_of({"a": ["pass", "fail"]}, ks=(1, 2), raw_outcomes=raw)
    assert (cell.raw_pass_at_k, cell.raw_not_judged) == ({"1": 1.0, "2": None}, 1)
    assert Result.from_json(result_of(cell).to_json()).main.raw_not_judged == 1


def test_what_was_not_judged_is_left_out_and_listed() -> None:
    cell = cell_of({"a": ["pass"], "b": ["sandbox_error"], "c": ["fail"]})
    assert cell.score == 0.5
    assert cell.num_tasks_judged == 2
    assert [(where, task_id) for where, task_id, _ in result_of(cell).not_judged] == [("only", "b")]


def test_a_lost_sample_leaves_its_task_to_the_others() -> None:
    cell = cell_of({"a": ["pass", "sandbox_error"], "b": ["fail", "fail"]}, ks=(1, 2))
    assert cell.pass_at_k == {"1": 0.5, "2": 0.0}


def test_where_nothing_was_judged_there_is_no_score() -> None:
    with pytest.raises(SandboxError, match=r"no task has 1 samples that the sandbox could judge.*unmask doctor"):
        cell_of({"a": ["sandbox_error"]})


def test_costs_and_shares_are_those_of_the_samples() -> None:
    common: dict[str, Any] = {"task_id": "a", "num_forwards": 10}
    samples = [
        Sample(**common, completion="x", num_tokens=30, wasted_tokens=4, finish_reason="stop"),
        Sample(**common, sample=1, completion=" \n", num_tokens=10, finish_reason="stop"),
        Sample(**common, sample=2, completion="x", num_tokens=20, finish_reason="length"),
        Sample(**common, sample=3, completion="x", num_tokens=20, finish_reason="stop_string"),
    ]
    outcomes = [Outcome(sample=i, status="pass") for i in range(4)]
    cost = summarise_cell("only", {}, samples, outcomes, ks=[1], seed=0).cost
    assert (cost.num_forwards, cost.tokens_per_forward, cost.num_tokens, cost.wasted_tokens) == (10, 2, 20, 1)
    assert (cost.empty_share, cost.truncated_share, cost.ended_share, cost.cut_share) == (0.25, 0.25, 0.5, 0.25)
    unknown = [replace(sample, finish_reason="") for sample in samples]  # infilling
    cost = summarise_cell("only", {}, unknown, outcomes, ks=[1], seed=0).cost
    assert (cost.num_forwards, cost.truncated_share, cost.ended_share, cost.cut_share) == (10, None, None, None)


def test_samples_that_say_nothing_of_their_cost_have_none() -> None:
    assert HALF.cost.num_forwards is None
    assert HALF.cost.truncated_share is None
    assert HALF.cost.empty_share == 0


GRID = (
    cell_of({"a": ["fail"], "b": ["fail"]}, name="steps=8"),
    cell_of({"a": ["pass"], "b": ["fail"]}, name="steps=16"),
    cell_of({"a": ["pass"], "b": ["pass"]}, name="steps=32"),
)


def test_a_grid_quotes_the_registered_cell_and_marks_the_best_as_selected() -> None:
    record = result_of(*GRID, registered="steps=16").to_json()
    assert (record["cell"], record["pass_at_k"]) == ("steps=16", {"1": 0.5})
    assert record["best"] == {
        "cell": "steps=32",
        "pass_at_k": {"1": 1.0},
        "note": "best of 3 cells, selected on this data",
    }


def test_a_grid_without_a_registered_cell_quotes_the_first_not_the_best() -> None:
    record = result_of(*GRID).to_json()
    assert (record["cell"], record["registered"], record["pass_at_k"]) == ("steps=8", None, {"1": 0.0})


def test_a_single_cell_is_no_best_of_anything() -> None:
    assert "best" not in result_of(HALF).to_json()


def test_the_record_has_what_the_protocol_promises() -> None:
    record = result_of(HALF).to_json(tasks=False)
    assert {"benchmark", "model", "num_tasks", "pass_at_k", "interval", "settings", "sandbox", "data_sha256"} <= set(
        record
    )
    low, high = record["interval"]
    assert low <= record["pass_at_k"]["1"] <= high
    assert "tasks" not in record["cells"][0]


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = result_of(
        *GRID, registered="steps=16", first_outputs=("x",), notes=("n",), timing={"steps=8": {"seconds": 2.0}}
    )
    path = save_result(result, tmp_path)
    assert load_result(path) == load_result(tmp_path) == result
    assert json.loads(path.read_text())["cells"][0]["tasks"]["a"][0] == {
        "sample": 0,
        "passed": False,
        "status": "fail",
        "sets": {"base": "fail"},
    }
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory); give the folder of a finished"),
        ("{", "is not JSON"),
        ("[1]", "is JSON, but not a result of `unmask evaluate`"),
        ('{"unmask_result": 99}', "has the result format 99, and this version reads 1"),
        ('{"unmask_result": 1}', "is damaged"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(TaskError) as error:
        load_result(tmp_path)
    assert said in str(error.value)


def test_the_usual_k_are_those_that_the_samples_allow() -> None:
    assert [usual_ks(n) for n in (1, 9, 10, 200)] == [[1], [1], [1, 10], [1, 10, 100]]
    assert parse_ks("10,1,10") == [1, 10]


@pytest.mark.parametrize("text", ["0", "ten", "", "1,-2"])
def test_what_is_no_k_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a list of counts from 1 up"):
        parse_ks(text)


def test_a_k_above_the_number_of_samples_is_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"--k 10 needs 10 samples of each task, and there are 4; draw more \(`-n 10`\)"
    ):
        check_ks([1, 10], 4)
    check_ks([1, 4], 4)


def test_what_took_time_stands_apart(tmp_path: Path) -> None:
    slow = result_of(HALF, timing={"only": {"seconds": 9.0}}).to_json()
    fast = result_of(HALF, timing={"only": {"seconds": 1.0}}).to_json()
    assert [name for name in slow if slow[name] != fast[name]] == ["timing"]
    assert replace(result_of(HALF), timing={}) == result_of(HALF)
