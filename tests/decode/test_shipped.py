"""The checkpoints that lie in the package: whole, counted, with a card, and able to write code."""

import math
import tomllib
from pathlib import Path

import pytest
from safetensors import safe_open

from unmask.data.jsonl import task_of
from unmask.decode.session import load
from unmask.errors import SandboxError
from unmask.evaluate.extract import extract
from unmask.model.hub import PACKAGE, resolve
from unmask.model.table import models
from unmask.sandbox.executor import open_executor
from unmask.sandbox.job import Job

SHIPPED = [entry for entry in models() if entry.package is not None]
CALLS = [{"input": [[1, 2, 3, 4]], "output": 6}, {"input": [[]], "output": 0}, {"input": [[-2, 5, 8]], "output": 6}]
TASK = "Write a Python function `f(xs: list[int]) -> int`. Keep the even numbers and return the sum."


def test_tiny_is_shipped_before_and_after_reinforcement_learning() -> None:
    assert [entry.name for entry in SHIPPED] == ["tiny", "tiny-cpgrpo"]


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_what_ships_has_a_card_its_parameters_and_at_most_forty_megabytes(entry) -> None:
    folder = resolve(entry.name).path
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40e6
    card = (folder / "README.md").read_text()
    assert card.startswith(f"# {entry.name}\n")
    assert f"{entry.parameters:,} parameters" in card
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is no mapping
    assert sum(math.prod(shape) for shape in shapes) == entry.parameters


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_what_ships_is_data_of_the_package(entry) -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["unmask"]
    files = {file.relative_to(PACKAGE) for file in resolve(entry.name).path.iterdir()}
    assert files <= {file.relative_to(PACKAGE) for pattern in patterns for file in PACKAGE.glob(pattern)}


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_what_ships_writes_a_function_that_does_what_was_asked(entry) -> None:
    answer = load(entry.name).generate(TASK)
    code = extract(answer.text, entry_point="f").program
    tests = task_of({"task_id": "f", "prompt": "", "entry_point": "f", "tests": CALLS}, "here").tests
    try:
        executor = open_executor()
    except SandboxError as error:
        pytest.skip(f"no sandbox that isolates: {error}")
    with executor:
        (verdict,) = executor.judge([Job(code=code, tests=one) for one in tests.values()])
    assert verdict.status == "pass", code
