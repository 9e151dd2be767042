"""What analysis costs: 1,000 recorded runs of 256 steps, read and measured, and the size of a replay page of 512 steps.

The runs settle the tokens of a small program in random order, with what the first step saw. Seconds are of the CPU, so
that other work on the machine does not count.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unmask.analyze.groups import read_groups
from unmask.analyze.measure import measure, summary
from unmask.analyze.sink import sink
from unmask.analyze.syntax import settle_times
from unmask.trajectory import Commit, Step, Trajectory, save
from unmask.view.replay_html import page

from side_by_side import report

PROGRAM = (
    "def f(xs):\n    total = 0\n    for x in xs:\n        if x % 2 == 0:\n            total += x\n    return total\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.jsonl"
        save(path, [_run(options.steps, seed) for seed in range(options.runs)])
        rows: list[dict[str, Any]] = []
        runs = _timed(rows, "read the file", lambda: read_groups([path])[0].runs)
        measures = _timed(rows, "measures", lambda: [measure(run) for run in runs])
        _timed(rows, "means and intervals", lambda: summary(measures))
        _timed(rows, "entropy sink", lambda: sink(runs))
        _timed(rows, "syntax", lambda: settle_times(runs))
        size = path.stat().st_size
    rows.append({"stage": "all", "seconds": sum(row["seconds"] for row in rows)})
    report(f"{options.runs} runs of {options.steps} steps, {size / 1e6:.0f} MB", rows, to=options.json)
    long = [_run(512, seed, runners_up=3) for seed in range(2)]
    sizes = [{"page": f"{len(some)} of 512 steps", "kB": len(page(some).encode()) / 1e3} for some in (long[:1], long)]
    report("replay pages, three runners-up a token", sizes, to=None)


def _run(steps: int, seed: int, *, runners_up: int = 0) -> Trajectory:
    chance = random.Random(seed)
    text = PROGRAM * (2 * steps // len(PROGRAM) + 1)
    places = list(range(1, steps + 1))
    pieces = {0: "", **{place: text[2 * place - 2 : 2 * place] for place in places}}
    order = chance.sample(places, steps)
    done = [
        Step(
            commits=[Commit(0, place, place, chance.random(), 1.0, tuple((place - i, 0.1) for i in range(runners_up)))]
        )
        for place in order
    ]
    done[0].seen = [(place, chance.random(), 1.0) for place in places]
    return Trajectory(
        initial_ids=[0, *[None] * steps],
        steps=done,
        model="none",
        label=f"task {seed}",
        pieces=pieces,
        num_forwards=steps,
    )


def _timed(rows: list[dict[str, Any]], stage: str, work: Callable[[], Any]) -> Any:
    started = time.process_time()
    found = work()
    rows.append({"stage": stage, "seconds": time.process_time() - started})
    return found


if __name__ == "__main__":
    main()
