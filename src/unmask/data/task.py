"""A task: something to write, and the tests that judge it.

Benchmarks, the synthetic suite and reinforcement learning all speak of tasks; the sandbox judges them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unmask.errors import TaskError
from unmask.sandbox.tests import Tests
from unmask.sandbox.verdict import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task. A solution is a whole program: `task.program(completion)` makes one of what a model wrote."""

    task_id: str
    """As the benchmark writes it, e.g. `HumanEval/0`."""

    prompt: str
    """What a base model continues: code up to the gap (HumanEval), or a docstring with the text and a test (MBPP)."""

    instruction: str = ""
    """The task in words, where the benchmark has it apart from the prompt (MBPP's text, BigCodeBench Instruct)."""

    suffix: str = ""
    """Given text behind the gap (infilling)."""

    entry_point: str = ""
    """Name of the function that the tests call."""

    preamble: str = ""
    """Code that stands before every extracted solution: imports and helpers that the benchmark gives."""

    reference: str = ""
    """A whole program that passes, where there is one."""

    reference_completion: str = ""
    """What the reference puts behind the prompt and before the suffix; infilling's length oracle counts its tokens."""

    tests: Mapping[str, Tests] = field(default_factory=dict)
    """Named sets, run apart, each in a fresh process: `{"base": ..., "plus": ...}`."""

    required: tuple[str, ...] = ()
    """Which of them a solution must pass to count; empty: all."""

    limits: Limits = Limits()

    columns: Mapping[str, Any] = field(default_factory=dict)
    """What else reward functions are passed of it, by name."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.required if name not in self.tests]
        if unknown:
            raise TaskError(f"task {self.task_id} requires the tests {unknown}, but has {sorted(self.tests)}")

    @property
    def required_tests(self) -> tuple[str, ...]:
        """The names of the test sets that decide."""
        return self.required or tuple(self.tests)

    def program(self, completion: str) -> str:
        """The whole program of a text that continues the prompt (and, when infilling, is followed by the suffix)."""
        return self.prompt + completion + self.suffix
