"""HumanEval-Infilling (Bavarian et al. 2022): HumanEval's references with a line, lines or a random span cut out.

The gap is always below the signature and docstring of the function that is tested, so what stands above it serves the
tests as it does in HumanEval.
"""

from collections.abc import Iterator
from pathlib import Path

from unmask.data.files import read_jsonl
from unmask.data.jsonl import LIMITS, check_tests, text_above
from unmask.data.task import Task
from unmask.evaluate.benchmarks.definition import Definition, Version

_FILES = {
    "single-line": "SingleLineInfilling",
    "multi-line": "MultiLineInfilling",
    "random-span": "RandomSpanInfilling",
    "random-span-light": "RandomSpanInfillingLight",
}


def _infilling(paths: tuple[Path, ...]) -> Iterator[Task]:
    for row in read_jsonl(paths[0]):
        prompt, suffix, entry_point = row["prompt"], row["suffix"], row["entry_point"]
        yield Task(
            task_id=row["task_id"],
            prompt=prompt,
            suffix=suffix,
            entry_point=entry_point,
            reference=prompt + row["canonical_solution"] + suffix,
            reference_completion=row["canonical_solution"],
            tests={"base": check_tests(row["test"], entry_point=entry_point, setup=text_above(prompt, entry_point))},
            limits=LIMITS,
        )


DEFINITIONS = {
    f"infilling-{name}": Definition(
        kind="infill",
        build=_infilling,
        versions={"88062ff": Version(files=(f"humaneval_infilling/HumanEval-{file}.jsonl.gz",))},
    )
    for name, file in _FILES.items()
}
