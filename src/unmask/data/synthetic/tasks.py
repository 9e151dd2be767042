"""From drafts to tasks: the references answer their inputs in the sandbox, many in one program.

A reference that fails there, or that answers otherwise than its operations mean, is a fault of the suite's own table;
its task is left out with a warning.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from unmask.data.synthetic.compositions import Split
from unmask.data.synthetic.drafts import Draft, draw_task
from unmask.data.task import Task
from unmask.errors import SandboxError, TaskError
from unmask.sandbox.inside import values
from unmask.sandbox.job import Executor
from unmask.sandbox.tests import CallTests
from unmask.sandbox.verdict import Limits

BATCH = 100
"""References in one program."""

_LIMITS = Limits(cpu_seconds=60.0, wall_seconds=300.0)
_DISPATCHER = """
SPACES = {}

def run(which, arguments):
    try:
        if which not in SPACES:
            SPACES[which] = {}
            exec(PROGRAMS[which][0], SPACES[which])
        return True, SPACES[which][PROGRAMS[which][1]](*arguments)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
"""

_log = logging.getLogger(__name__)


def make_tasks(split: Split, count: int, *, seed: int, executor: Executor, start: int = 0) -> Iterator[Task]:
    """The tasks `start` to `start + count` of a split, with their tests.

    Raises TaskError when a split that is held out has fewer, SandboxError when the sandbox fails.
    """
    if count < 1:
        raise TaskError(f"{count} tasks of synthetic-{split} were asked for; ask for 1 or more")
    draw_task(split, start + count - 1, seed)  # past the end: said before any work is done
    for first in range(start, start + count, BATCH):
        indices = range(first, min(first + BATCH, start + count))
        yield from answer([draw_task(split, index, seed) for index in indices], executor=executor)


def answer(drafts: Sequence[Draft], *, executor: Executor) -> Iterator[Task]:
    """The drafts as tasks, tested on what their references return."""
    programs = [(draft.task.reference, draft.task.entry_point) for draft in drafts]
    calls = [(which, arguments) for which, draft in enumerate(drafts) for arguments in draft.inputs]
    run = executor.call(f"PROGRAMS = {programs!r}\n{_DISPATCHER}", "run", values.encode(calls), _LIMITS)
    if run.error or len(run.answers) != len(calls):
        raise SandboxError(
            f"the sandbox answered {len(run.answers)} of {len(calls)} calls of the synthetic suite "
            f"({run.error or 'no reason was given'}); try again, or another back end (`unmask doctor` lists them)"
        )
    answers = iter(run.answers)
    for draft in drafts:
        results: list[tuple[bool, Any]] = [values.decode(next(answers)) for _ in draft.inputs]
        if results == [(True, meant) for meant in draft.meant]:
            yield _tested(draft, [result for _, result in results])
        else:
            _log.warning("%s is left out: its reference does not do what its words say", draft.task.task_id)


def _tested(draft: Draft, expected: Sequence[Any]) -> Task:
    tests = CallTests.of(draft.task.entry_point, draft.inputs, expected)
    return replace(draft.task, tests={"base": tests})
