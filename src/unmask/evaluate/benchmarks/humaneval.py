"""HumanEval (Chen et al. 2021) and HumanEval+ (EvalPlus, Liu et al. 2023): 164 functions from their docstrings.

HumanEval's `check(candidate)` uses helpers of the prompt (tasks 32, 38, 50): what the prompt has above the function
runs in the tests' own process. HumanEval+ compares with what its reference returns, on HumanEval's inputs (`base`) and
on many more (`plus`); a solution has to pass both.
"""

from collections.abc import Iterator
from pathlib import Path

from unmask.data.files import read_jsonl
from unmask.data.jsonl import LIMITS, check_tests, text_above
from unmask.data.task import Task
from unmask.evaluate.benchmarks.answers import Calls, Unanswered
from unmask.evaluate.benchmarks.definition import Definition, Version
from unmask.sandbox.tests import Oracle


def _humaneval(paths: tuple[Path, ...]) -> Iterator[Task]:
    for row in read_jsonl(paths[0]):
        prompt, entry_point = row["prompt"], row["entry_point"]
        yield Task(
            task_id=row["task_id"],
            prompt=prompt,
            entry_point=entry_point,
            reference=prompt + row["canonical_solution"],
            reference_completion=row["canonical_solution"],
            tests={"base": check_tests(row["test"], entry_point=entry_point, setup=text_above(prompt, entry_point))},
            limits=LIMITS,
        )


def _humaneval_plus(paths: tuple[Path, ...]) -> Iterator[Unanswered]:
    for row in read_jsonl(paths[0]):
        task = Task(
            task_id=row["task_id"],
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            reference=row["prompt"] + row["canonical_solution"],
            reference_completion=row["canonical_solution"],
        )
        oracle: Oracle = "find_zero" if task.entry_point == "find_zero" else "equal"
        calls = {which: Calls.of(row[f"{which}_input"], oracle=oracle, atol=row["atol"]) for which in ("base", "plus")}
        yield Unanswered(task=task, calls=calls)


DEFINITIONS = {
    "humaneval": Definition(
        kind="complete",
        build=_humaneval,
        versions={"6d43fb9": Version(files=("humaneval/HumanEval.jsonl.gz",))},
    ),
    "humaneval+": Definition(
        kind="complete",
        build=_humaneval_plus,
        versions={
            "v0.1.10": Version(files=("humanevalplus/HumanEvalPlus.jsonl.gz",)),
            "v0.1.9": Version(files=("humanevalplus/v0.1.9/HumanEvalPlus.jsonl.gz",)),
        },
    ),
}
