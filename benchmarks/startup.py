"""Time from the shell to the end of commands that must not load torch; the bar is 0.25 s each."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from unmask.trajectory import Commit, Step, Trajectory, save

from side_by_side import interleave, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unmask = str(Path(sys.executable).with_name("unmask"))
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run.jsonl"
        steps = [Step(commits=[Commit(0, position, 65, 0.9, 0.1)]) for position in range(64)]
        save(record, [Trajectory(initial_ids=[None] * 64, steps=steps, pieces={65: "A"})])
        commands = {
            "unmask --help": [unmask, "--help"],
            "unmask replay FILE": [unmask, "replay", str(record)],
            "unmask models list": [unmask, "models", "list"],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        seconds = interleave({name: _runner(command) for name, command in commands.items()}, repeats=options.repeats)
    rows = [
        {"command": name, "best s": min(taken), "median s": sorted(taken)[len(taken) // 2], "bar s": 0.25}
        for name, taken in seconds.items()
    ]
    report("start-up", rows, to=options.json)


def _runner(command: list[str]):  # type: ignore[no-untyped-def]
    return lambda: subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
