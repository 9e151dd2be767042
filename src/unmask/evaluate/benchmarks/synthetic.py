"""The synthetic suite as benchmarks: the first 200 tasks of each split, drawn with a fixed seed, from no data file.

The same tasks come every time. `VERSION` is bumped whenever the generator draws others: a score names it.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from unmask.data.synthetic.compositions import SPLITS, Split
from unmask.data.synthetic.drafts import draw_task
from unmask.evaluate.benchmarks.answers import Calls, Unanswered
from unmask.evaluate.benchmarks.definition import Definition, Version

VERSION = "v1"
NUM_TASKS = 200
SEED = 0


def _synthetic(split: Split, _: tuple[Path, ...]) -> Iterator[Unanswered]:
    for index in range(NUM_TASKS):
        draft = draw_task(split, index, SEED)
        yield Unanswered(task=draft.task, calls={"base": Calls.of(draft.inputs)})


DEFINITIONS = {
    f"synthetic-{split}": Definition(
        kind="complete",
        build=partial(_synthetic, split),
        versions={VERSION: Version(files=(), licence="Apache-2.0")},
    )
    for split in SPLITS
}
