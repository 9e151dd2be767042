"""Mutants of the benchmarks' references: a reference whose answer is changed fails, whatever the load of the machine.

The mutators here also make the samples of `test_verdicts.py`. A mutant is a whole program in which one thing of the
function that the tests call has been changed; `random.Random(task and kind)` chooses the place, so that the same
mutant comes out everywhere.
"""

import ast
import copy
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from unmask.data.jsonl import parse
from unmask.data.task import Task
from unmask.errors import SandboxError
from unmask.evaluate.benchmarks import load
from unmask.sandbox.executor import Job, LocalExecutor, open_executor
from unmask.sandbox.tests import CallTests
from unmask.sandbox.verdict import Verdict

DATA = Path(os.environ.get("UNMASK_DATA") or Path(__file__).parents[3] / "shared" / "data")

CHANGED = {  # the last return value in another place: equal to no right answer
    "in a list": "['changed', VALUE]",
    "in a tuple": "('changed', VALUE)",
    "in a dict": "{'changed': VALUE}",
}
VALUES = {  # the last return value, changed in ways that some tests do not see
    "plus one": "VALUE + 1",
    "off by one": "VALUE - 1",
    "negated": "-VALUE",
    "not": "not VALUE",
    "nothing": "None",
    "reversed": "VALUE[::-1]",
    "shortened": "VALUE[:-1]",
    "doubled": "VALUE * 2",
}
TYPES = {  # the same answer in another type: where the rules of comparison differ, it shows here
    "list and tuple": "(lambda v: tuple(v) if type(v) is list else list(v) if type(v) is tuple else v)(VALUE)",
    "set": "(lambda v: set(v) if type(v) in (list, tuple) else frozenset(v) if type(v) is set else v)(VALUE)",
    "iterator": "(lambda v: iter(v) if type(v) in (list, tuple, set) else v)(VALUE)",
    "dict view": "(lambda v: dict.fromkeys(v).keys() if type(v) in (list, tuple, set) else v)(VALUE)",
    "integer": "(lambda v: int(v) if type(v) in (bool, float) else v)(VALUE)",
    "float": "(lambda v: float(v) if type(v) in (bool, int) else v)(VALUE)",
    "complex": "(lambda v: complex(v) if type(v) in (bool, int, float) else v)(VALUE)",
    "text": "str(VALUE)",
    "bytes": "(lambda v: v.encode() if type(v) is str else v)(VALUE)",
    "subclass": "(lambda v: v if type(v) in (bool, type(None)) else type('Own', (type(v),), {})(v))(VALUE)",
    "ordered dict": "(lambda v: __import__('collections').OrderedDict(v) if type(v) is dict else v)(VALUE)",
    "deque": "(lambda v: __import__('collections').deque(v) if type(v) is list else v)(VALUE)",
    "fraction": "(lambda v: __import__('fractions').Fraction(v) if type(v) in (int, float) else v)(VALUE)",
    "decimal": "(lambda v: __import__('decimal').Decimal(v) if type(v) in (int, float) else v)(VALUE)",
    "numpy scalar": "(lambda v: __import__('numpy').array([v])[0] if type(v) in (bool, int, float) else v)(VALUE)",
    "numpy array": "(lambda v: __import__('numpy').array(v) if type(v) in (list, tuple) else v)(VALUE)",
    "items as floats": "(lambda v: [float(i) if type(i) is int else i for i in v] if type(v) is list else v)(VALUE)",
    "near": "(lambda v: v * (1 + 5e-8) if type(v) is float else v)(VALUE)",
    "not so near": "(lambda v: v + 1e-5 if type(v) is float else v)(VALUE)",
    "not a number": "(lambda v: float('nan') if type(v) is float else v)(VALUE)",
}
ENDINGS = {  # statements put before the last return
    "raises": "raise ValueError('mutant')",
    "leaves": "raise SystemExit(0)",
    "asserts": "assert False",
    "loops": "while True:\n    pass",
    "recurses": "def deeper():\n    return deeper() + 1\ndeeper()",
    "prints": "print('a mutant', 'prints')",
    "reads": "input()",
    "needs memory": "bytearray(16 << 30)",
    "forgets": "import sys\nsys.calls = getattr(sys, 'calls', 0) + 1\nif sys.calls > 2:\n    return 'forgotten'",
    "imports": "import collections, functools, itertools, math, re, string",
    "misses a library": "import a_library_that_nobody_has",
}
PROGRAMS = {  # what is put behind the whole program
    "exits": "\nimport sys\nsys.exit(0)\n",
    "exits at once": "\nimport os\nos._exit(0)\n",
    "fails when loaded": "\nassert 1 == 2\n",
    "has a main part": "\nif __name__ == '__main__':\n    raise ValueError('mutant')\n",
    "is undone": "\nENTRY = None\n",
    "is deleted": "\ndel ENTRY\n",
    "is wrapped": "\nENTRY = __import__('functools').lru_cache(maxsize=None)(ENTRY)\n",
    "is an object": "\nENTRY = type('Own', (), {'__call__': staticmethod(ENTRY)})()\n",
    "is not closed": "\nprint((1, 2\n",
    "has a null byte": "\n# \0\n",
    "has a tab": "\nif True:\n        one = 1\n\ttwo = 2\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A program that differs from its task's reference in one thing."""

    task_id: str
    kind: str
    code: str


def mutants(task: Task, kinds: Sequence[str]) -> Iterator[Mutant]:
    """The mutants of a task's reference, of these kinds; kinds for which it has no place are left out."""
    for kind in kinds:
        code = mutate(task, kind)
        if code is not None:
            yield Mutant(task_id=task.task_id, kind=kind, code=code)


def mutate(task: Task, kind: str) -> str | None:
    """The reference with one change, or None where there is no place for it."""
    if kind in PROGRAMS:
        return task.reference + PROGRAMS[kind].replace("ENTRY", task.entry_point)
    module = parse(task.reference)
    function = next((n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == task.entry_point), None)
    if function is None:
        return None
    chance = random.Random(f"{task.task_id} {kind}")
    is_done = _INSIDE[kind](function, chance) if kind in _INSIDE else _change_return(function, kind)
    return ast.unparse(ast.fix_missing_locations(module)) if is_done else None


def _change_return(function: ast.FunctionDef, kind: str) -> bool:
    """Change what the last `return` gives, or put statements before it."""
    last: tuple[list[ast.stmt], int] | None = None
    for body in _bodies(function):
        for place, statement in enumerate(body):
            if not isinstance(statement, ast.Return) or statement.value is None:
                continue
            if last is None or statement.lineno >= last[0][last[1]].lineno:
                last = body, place
    if last is None:
        return False
    body, place = last
    if kind in ENDINGS:
        body[place:place] = ast.parse(ENDINGS[kind]).body if kind != "forgets" else _statements(ENDINGS[kind])
        return True
    returned = body[place]
    assert isinstance(returned, ast.Return)
    template = ast.parse((CHANGED | VALUES | TYPES)[kind], mode="eval").body
    returned.value = _Insert(returned.value).visit(template)
    return True


def _statements(source: str) -> list[ast.stmt]:
    """Statements that may hold a `return`."""
    function = ast.parse("def f():\n" + "\n".join("    " + line for line in source.splitlines())).body[0]
    assert isinstance(function, ast.FunctionDef)
    return function.body


class _Insert(ast.NodeTransformer):
    """Put an expression in the place of VALUE."""

    def __init__(self, value: ast.expr | None) -> None:
        self.value = value

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return copy.deepcopy(self.value) if self.value is not None and node.id == "VALUE" else node


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every list of statements of a function, nested functions and classes left out."""
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(node, name, None)
        if isinstance(statements, list) and statements:
            yield statements
            for statement in statements:
                if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield from _bodies(statement)
    for handler in getattr(node, "handlers", []):
        yield from _bodies(handler)


def _flip_comparison(function: ast.FunctionDef, chance: random.Random) -> bool:
    found = [node for node in ast.walk(function) if isinstance(node, ast.Compare)]
    if not found:
        return False
    node = chance.choice(found)
    flips: dict[type[ast.cmpop], type[ast.cmpop]] = {
        ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
        ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    }  # fmt: skip
    node.ops[0] = flips[type(node.ops[0])]()
    return True


def _change_constant(function: ast.FunctionDef, chance: random.Random) -> bool:
    found = [n for n in ast.walk(function) if isinstance(n, ast.Constant) and isinstance(n.value, int | float | str)]
    docstring = function.body[0].value if isinstance(function.body[0], ast.Expr) else None
    found = [node for node in found if node is not docstring]
    if not found:
        return False
    node = chance.choice(found)
    value = node.value
    assert isinstance(value, int | float | str)
    node.value = (not value) if isinstance(value, bool) else value + "x" if isinstance(value, str) else value + 1
    return True


def _swap_operands(function: ast.FunctionDef, chance: random.Random) -> bool:
    found = [node for node in ast.walk(function) if isinstance(node, ast.BinOp)]
    if not found:
        return False
    node = chance.choice(found)
    node.left, node.right = node.right, node.left
    return True


def _change_operator(function: ast.FunctionDef, chance: random.Random) -> bool:
    found = [node for node in ast.walk(function) if isinstance(node, ast.BinOp | ast.AugAssign)]
    if not found:
        return False
    node = chance.choice(found)
    node.op = chance.choice([op for op in (ast.Add(), ast.Sub(), ast.Mult()) if type(op) is not type(node.op)])
    return True


def _drop_statement(function: ast.FunctionDef, chance: random.Random) -> bool:
    found = [(body, place) for body in _bodies(function) for place in range(len(body))]
    body, place = chance.choice(found)
    body[place] = ast.Pass()
    return True


def _drop_branch(function: ast.FunctionDef, chance: random.Random) -> bool:
    found = [node for node in ast.walk(function) if isinstance(node, ast.If) and node.orelse]
    if not found:
        return False
    chance.choice(found).orelse = []
    return True


def _swap_names(function: ast.FunctionDef, chance: random.Random) -> bool:
    found = [node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    if len({node.id for node in found}) < 2:
        return False
    node = chance.choice(found)
    node.id = chance.choice([other.id for other in found if other.id != node.id])
    return True


def _change_arguments(function: ast.FunctionDef, chance: random.Random) -> bool:
    """Empty the lists that it was given, once the answer is there."""
    names = ", ".join(argument.arg for argument in function.args.args)
    source = f"(lambda v: ([a.clear() for a in ({names},) if type(a) is list and a is not v], v)[1])(VALUE)"
    returns = [n for body in _bodies(function) for n in body if isinstance(n, ast.Return) and n.value is not None]
    for node in returns:
        node.value = _Insert(node.value).visit(ast.parse(source, mode="eval").body)
    return bool(returns) and bool(names)


_INSIDE: dict[str, Callable[[ast.FunctionDef, random.Random], bool]] = {
    "comparison flipped": _flip_comparison,
    "constant changed": _change_constant,
    "operands swapped": _swap_operands,
    "operator changed": _change_operator,
    "statement dropped": _drop_statement,
    "branch dropped": _drop_branch,
    "names swapped": _swap_names,
    "arguments changed": _change_arguments,
}
KINDS = (*CHANGED, *VALUES, *TYPES, *ENDINGS, *PROGRAMS, *_INSIDE)


def judge_all(executor: LocalExecutor, tasks: Sequence[Task], programs: Sequence[Mutant]) -> list[dict[str, Verdict]]:
    """For each program, a verdict by the name of each test set."""
    by_id = {task.task_id: task for task in tasks}

    def job(place: int, name: str) -> Job:
        task = by_id[programs[place].task_id]
        return Job(code=programs[place].code, tests=task.tests[name], limits=task.limits)

    plan = [(place, name) for place, mutant in enumerate(programs) for name in by_id[mutant.task_id].required_tests]
    found: list[dict[str, Verdict]] = [{} for _ in programs]
    for (place, name), verdict in zip(plan, executor.judge(job(*entry) for entry in plan), strict=True):
        found[place][name] = verdict
    return found


# ---------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    try:
        opened = open_executor()
    except SandboxError as error:
        pytest.skip(f"no sandbox that isolates: {error}")
    assert isinstance(opened, LocalExecutor)
    with opened:
        yield opened


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    if not (DATA / "humanevalplus").is_dir():
        pytest.skip(f"no benchmark data at {DATA}; UNMASK_DATA names its folder")
    monkeypatch.setenv("UNMASK_DATA", str(DATA))
    if not os.environ.get("UNMASK_HOME"):  # where it is set, answers of the references may be there already
        monkeypatch.setenv("UNMASK_HOME", str(tmp_path_factory.getbasetemp() / "home"))


def changed_answers(tasks: Sequence[Task], count: int) -> list[Mutant]:
    """Mutants with another last return value.

    Left out are tasks whose official oracle takes any answer, and Mbpp/9, whose last `return` is never reached.
    """
    blind = ("anything", "not_none")
    seeing = [
        task
        for task in tasks
        if not any(isinstance(tests, CallTests) and tests.oracle in blind for tests in task.tests.values())
        and task.task_id != "Mbpp/9"
    ]
    made = [mutant for task in seeing for mutant in mutants(task, tuple(CHANGED))]
    return random.Random(0).sample(made, count)


def assert_all_fail(executor: LocalExecutor, tasks: Sequence[Task], programs: Sequence[Mutant]) -> None:
    verdicts = judge_all(executor, tasks, programs)
    survived = [
        f"{mutant.task_id}, {mutant.kind}"
        for mutant, sets in zip(programs, verdicts, strict=True)
        if all(verdict.passed for verdict in sets.values())
    ]
    assert not survived
    lost = [verdict for sets in verdicts for verdict in sets.values() if verdict.status == "sandbox_error"]
    assert not lost


def test_a_reference_with_another_answer_fails(executor: LocalExecutor) -> None:
    tasks = [*load("humaneval").tasks, *load("mbpp+", limit=12, executor=executor).tasks]
    first = changed_answers([task for task in tasks if task.task_id.startswith("HumanEval")], 18)
    second = changed_answers([task for task in tasks if task.task_id.startswith("Mbpp")], 12)
    assert_all_fail(executor, tasks, first + second)
    # the same references, unchanged, pass: the mutants failed for what was changed
    chosen = {mutant.task_id for mutant in first + second}
    references = [Mutant(task_id=t.task_id, kind="none", code=t.reference) for t in tasks if t.task_id in chosen]
    assert all(v.passed for sets in judge_all(executor, tasks, references) for v in sets.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_references_with_another_answer_fail(executor: LocalExecutor) -> None:
    tasks = [*load("humaneval+", executor=executor).tasks, *load("mbpp+", executor=executor).tasks]
    assert_all_fail(executor, tasks, changed_answers(tasks, 1000))


def _burn() -> None:
    while True:
        pass


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_busy_machine_changes_no_verdict(executor: LocalExecutor) -> None:
    tasks = load("humaneval+", executor=executor).tasks
    programs = [
        mutant for number, task in enumerate(tasks) for mutant in mutants(task, (KINDS[number % len(KINDS)], "prints"))
    ]
    alone = judge_all(executor, tasks, programs)
    context = multiprocessing.get_context("spawn")
    burners = [context.Process(target=_burn, daemon=True) for _ in os.sched_getaffinity(0)]
    try:
        for burner in burners:
            burner.start()
        crowded = judge_all(executor, tasks, programs)
    finally:
        for burner in burners:
            burner.kill()
            burner.join()
    statuses = [[{name: verdict.status for name, verdict in sets.items()} for sets in run] for run in (alone, crowded)]
    assert statuses[0] == statuses[1]


def test_each_kind_of_mutant_can_be_made() -> None:
    tasks = load("humaneval", limit=40).tasks
    made = {mutant.kind for task in tasks for mutant in mutants(task, KINDS)}
    assert made == set(KINDS)
