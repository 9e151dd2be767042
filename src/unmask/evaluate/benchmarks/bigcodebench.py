"""BigCodeBench (Zhuo et al. 2024): programs that use many libraries, judged by unittest cases that mock what they call.

Complete gives a signature with its docstring, Instruct the task in words; Hard is a list of 148 of the 1,140 tasks. As
on the leaderboard ("calibrated") the prompt's imports and signature, with a body of `pass`, stand before each solution.
"""

import ast
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from unmask.data import files
from unmask.data.files import read_json, read_jsonl
from unmask.data.jsonl import parse
from unmask.data.task import Task
from unmask.evaluate.benchmarks.definition import Benchmark, Definition, Version
from unmask.sandbox.tests import UnitTests
from unmask.sandbox.verdict import Limits

_LIMITS = Limits(cpu_seconds=240.0, wall_seconds=240.0, memory_bytes=8 << 30)
_DATA = "bigcodebench/BigCodeBench-v0.1.0-hf_data.jsonl.gz"
_HARD = "bigcodebench/hard_task_ids.json"
_NOTES = (
    "data v0.1.0: the public leaderboard has scores on v0.1.4, in which 10 tasks differ",
    "some reference solutions do not pass without a network: a task that cannot be judged here counts as failed",
)
_OFFLINE = "bigcodebench/offline_gt_pass_ids.json"


def _bigcodebench(paths: tuple[Path, ...], *, is_instruct: bool) -> Iterator[Task]:
    hard = frozenset(read_json(paths[1])) if len(paths) > 1 else None
    for row in read_jsonl(paths[0]):
        if hard is not None and row["task_id"] not in hard:
            continue
        yield Task(
            task_id=row["task_id"],
            prompt=row["complete_prompt"],
            instruction=row["instruct_prompt"] if is_instruct else "",
            entry_point=row["entry_point"],
            preamble=row["code_prompt"] + "\n    pass\n",
            reference=row["complete_prompt"] + row["canonical_solution"],
            reference_completion=row["canonical_solution"],
            tests={"base": UnitTests(code=row["test"], num_tests=count_tests(row["test"]))},
            limits=_LIMITS,
        )


def offline_notes(benchmark: Benchmark) -> tuple[str, ...]:
    """Names the tasks whose reference is not on the list of those that pass without a network.

    Nothing for other benchmarks, and where the list is not on this machine.
    """
    is_ours = bool(benchmark.version) and benchmark.name in DEFINITIONS
    place = files.find(_OFFLINE) if is_ours else None
    if place is None:
        return ()
    files.check(place, files.known(_OFFLINE).sha256)
    passed = frozenset(files.read_json(place)["pass"])
    others = [task.task_id for task in benchmark.tasks if task.task_id not in passed]
    if not others:
        return ()
    return (f"{len(others)} references did not pass without a network when the list was made: {', '.join(others)}",)


def count_tests(code: str, test_class: str = "TestCases") -> int:
    """How many test methods unittest collects from a class, those of its bases in the same source included.

    A name that is defined twice counts once; one that is bound to something else than a function does not count.

    >>> count_tests("class TestCases(Base):\\n    def test_a(self): ...\\n    def helper(self): ...\\n    test_b = 1")
    1
    """
    classes = {node.name: node for node in parse(code).body if isinstance(node, ast.ClassDef)}
    return len(_test_names(classes[test_class], classes))


def _test_names(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    names: set[str] = set()
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and base.id in classes and classes[base.id] is not node:
            names |= _test_names(classes[base.id], classes)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign):
            names -= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return {name for name in names if name.startswith("test")}


def _definition(*, is_instruct: bool, is_hard: bool) -> Definition:
    return Definition(
        kind="instruct" if is_instruct else "complete",
        build=partial(_bigcodebench, is_instruct=is_instruct),
        versions={"v0.1.0": Version(files=(_DATA, _HARD) if is_hard else (_DATA,), notes=_NOTES)},
    )


DEFINITIONS = {
    "bigcodebench-complete": _definition(is_instruct=False, is_hard=False),
    "bigcodebench-complete-hard": _definition(is_instruct=False, is_hard=True),
    "bigcodebench-instruct": _definition(is_instruct=True, is_hard=False),
    "bigcodebench-instruct-hard": _definition(is_instruct=True, is_hard=True),
}
