"""The lock between processes: one waits for the other, and a killed one holds nothing."""

import subprocess
import sys
import threading
from pathlib import Path

from unmask.model.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from unmask.model.lock import locked
with locked(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_waited_for_and_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waited = threading.Event()

        def end_the_holder() -> None:
            waited.set()
            holder.kill()

        with locked(folder, end_the_holder):
            assert waited.is_set()
            assert folder.is_dir()
