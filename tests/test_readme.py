"""The README holds: its length, its commands, its Python."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

import unmask
from unmask.cli.main import app
from unmask.data.jsonl import read_tasks

from checkpoints import write_checkpoint

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    unmask ")]


def test_readme_has_at_most_165_lines():
    assert len(README.splitlines()) <= 165


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_exists_with_its_options(line):
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-") and word != "-"} <= known


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(import unmask.*?)```", README, re.DOTALL)[1]
    model = unmask.load(str(write_checkpoint(tmp_path, "causal")))
    monkeypatch.setattr(unmask, "load", lambda name: model, raising=False)
    exec(compile(code, "README.md", "exec"), {})


def test_every_file_that_the_readme_links_to_is_there():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).is_file(), target


def test_the_task_of_the_readme_is_one(tmp_path):
    line = re.search(r"```json\n(.*?)```", README, re.DOTALL)[1]
    path = tmp_path / "tasks.jsonl"
    path.write_text(line, encoding="utf-8")
    (task,) = read_tasks(path)
    assert task.program("    return a + b\n").endswith("return a + b\n")
    assert list(task.tests)
