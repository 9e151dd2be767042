"""Files of the synthetic suite: tasks (as `data/jsonl.py` reads them), messages for SFT, or text for pre-training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from unmask.atomic import beside
from unmask.data.synthetic.compositions import Split
from unmask.data.synthetic.tasks import make_tasks
from unmask.data.synthetic.texts import as_document, as_messages
from unmask.data.task import Task
from unmask.errors import SettingsError, did_you_mean
from unmask.sandbox.inside import values
from unmask.sandbox.job import Executor
from unmask.sandbox.tests import CallTests

Format = Literal["tasks", "messages", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
Report = Callable[[int, int], None]
"""Told (tasks written, tasks in all)."""


def write(
    split: Split, count: int, *, seed: int, path: Path, format: Format, executor: Executor, report: Report | None = None
) -> int:
    """Write the first `count` tasks of a split, one JSON object a line; the number written.

    A text is `{"text": …}`, a conversation `{"messages": […]}`. The file appears when it is complete.
    Raises SettingsError for an unknown format, a packed file, or a folder that is not there.
    """
    if format not in FORMATS:
        raise SettingsError(f"{format!r} is no format of the synthetic suite; {did_you_mean(str(format), FORMATS)}")
    if not path.parent.is_dir():
        raise SettingsError(f"there is no folder {path.parent} for {path.name}; make it, or give another output file")
    if path.suffix == ".gz":
        raise SettingsError(f"{path} would hold plain JSON lines; give a name without .gz, and pack the file yourself")
    if path.exists() and not path.is_file():  # a device would be renamed over
        raise SettingsError(f"{path} is there already and is no file; give another output file")
    written = 0
    with beside(path) as part, part.open("w", encoding="utf-8") as file:
        for index, task in enumerate(make_tasks(split, count, seed=seed, executor=executor)):
            file.write(json.dumps(_record(task, index, format), ensure_ascii=False) + "\n")
            written += 1
            if report is not None:
                report(index + 1, count)
    return written


def _record(task: Task, index: int, format: Format) -> dict[str, Any]:
    if format == "text":
        return {"text": as_document(task)}
    if format == "messages":
        return {"messages": as_messages(task, index)}
    return {
        "task_id": task.task_id,
        "prompt": task.prompt,
        "instruction": task.instruction,
        "entry_point": task.entry_point,
        "canonical_solution": task.reference_completion,
        **_tests(task),
    }


def _tests(task: Task) -> dict[str, Any]:
    """Calls where JSON can write them; assertions where a value is a tuple."""
    tests = task.tests["base"]
    assert isinstance(tests, CallTests)
    pairs = [
        (list(call), values.decode(expected))
        for call, expected in zip(values.decode(tests.inputs), tests.expected, strict=True)
    ]
    if any(isinstance(value, tuple) for call, output in pairs for value in (*call, output)):
        return {
            "test_list": [f"assert {task.entry_point}({', '.join(map(repr, c))}) == {output!r}" for c, output in pairs]
        }
    return {"tests": [{"input": call, "output": output} for call, output in pairs]}
