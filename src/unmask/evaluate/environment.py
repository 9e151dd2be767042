"""Python environments for benchmarks whose tests need libraries of their own (BigCodeBench).

    <cache home>/environments/<name>/               a virtual environment
    <cache home>/environments/<name>/unmask.json    written last: what it is, and what could not be installed

`requirements/<name>.txt` lists what the benchmark's programs import, pinned for Python 3.10, and
`requirements/<name>-constraints.txt` pins what that needs in turn. Under another Python the pins do not install, so
there the newest versions are taken and the environment carries a warning. An interrupted set-up has no record and is
begun again; so is one that was made from another list.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from unmask.errors import DownloadError, SettingsError, did_you_mean
from unmask.model.lock import locked
from unmask.model.store import cache_home, check_space

NAMES = ("bigcodebench",)
PYTHON = "3.10"
"""The Python that the lists are made for."""

PRELOAD = {
    "bigcodebench": (
        "numpy", "pandas", "matplotlib.pyplot", "seaborn", "sklearn.preprocessing", "sklearn.linear_model",
        "sklearn.model_selection", "sklearn.decomposition", "sklearn.cluster", "sklearn.feature_extraction.text",
        "sklearn.metrics", "sklearn.ensemble", "sklearn.datasets", "requests", "faker", "bs4", "nltk", "PIL.Image",
        "unittest.mock", "doctest", "sqlite3", "subprocess", "tempfile", "zipfile", "csv", "urllib.request",
    )
}  # fmt: skip
"""What the programs use most: loaded once per jail (1.5 s of CPU time, 190 MB) instead of once per program."""

Tell = Callable[[str], None]
"""Called with each thing that is done."""

_RECORD = "unmask.json"
_SPACE = 4_000_000_000  # bytes: 2.7 GB installed, and the wheels on their way


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A set of libraries, and the interpreter that they were installed for."""

    name: str
    python: Path
    """The interpreter itself, not a link to it."""

    prefix: Path
    """The installation that the interpreter belongs to: its standard library lies there."""

    site_packages: tuple[Path, ...]
    """Folders with the libraries; together with `prefix` all that a jail has to show."""

    version: str
    """Of the interpreter: "3.10.13"."""

    missing: tuple[str, ...] = ()
    """Requirements that could not be installed."""

    @property
    def label(self) -> str:
        """The name with a digest of what is installed: verdicts of one set of libraries are not those of another."""
        parts = [self.version, *self.missing, *(f"{name}" for name in requirements(self.name))]
        return f"{self.name} {hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()}"

    @property
    def warning(self) -> str:
        """Why scores may differ from those of others; empty if nothing is known to be wrong."""
        told = []
        if not self.version.startswith(f"{PYTHON}."):
            told.append(
                f"{self.name} is made for Python {PYTHON} and runs under {self.version} with newer libraries, so "
                f"scores may differ: install Python {PYTHON}, then `unmask data setup {self.name} --again`"
            )
        if self.missing:
            told.append(f"{self.name} lacks {', '.join(self.missing)}: tasks that need them cannot be judged")
        return "; ".join(told)


def find(name: str) -> Environment | None:
    """The environment of this name, or None if it is not set up, half set up, or made from another list."""
    folder = _folder(name)
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        made_from, fields = record["requirements"], record["environment"]
        places = {key: Path(fields[key]) for key in ("python", "prefix")}
        site_packages = tuple(Path(place) for place in fields["site_packages"])
        found = Environment(**{**fields, **places, "site_packages": site_packages, "missing": tuple(fields["missing"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_there = found.python.is_file() and all(place.is_dir() for place in site_packages)
    return found if is_there and made_from == _digest(name) else None


def setup(name: str, *, python: Path | None = None, again: bool = False, report: Tell | None = None) -> Environment:
    """Make the environment, or return it if it is there; `again` makes it anew.

    `python` is the interpreter to make it for: without it, a Python 3.10 is looked for, and if there is none this one
    is taken. Raises SettingsError for a name or an interpreter that cannot be used, DownloadError where pip fails.
    """
    tell = report or (lambda _: None)
    folder = _folder(name)
    found = None if again else find(name)
    if found is not None:
        if python is not None and _ask(python)["python"] != str(found.python):
            raise SettingsError(
                f"{name} is set up for {found.python}, and --python gives {python}; add --again to make it anew"
            )
        return found
    base = _ask(python) if python is not None else _python()
    check_space(folder, _SPACE)
    with locked(folder, on_wait=lambda: tell("waiting for another process that sets it up")):
        if not again and (found := find(name)) is not None:
            return found  # the other process has made it
        tell(f"making an environment for Python {base['version']} in {folder}")
        shutil.rmtree(folder)
        own = _make(folder, base)
        is_pinned = base["version"].startswith(f"{PYTHON}.")
        missing = _install(own["python"], name, is_pinned=is_pinned, tell=tell)
        environment = Environment(
            name=name,
            python=Path(base["python"]),
            prefix=Path(base["prefix"]),
            site_packages=tuple(Path(place) for place in dict.fromkeys((own["purelib"], own["platlib"]))),
            version=base["version"],
            missing=missing,
        )
        _write(folder, name, environment)
    return environment


# Pythons


def _python() -> dict[str, str]:
    """The first Python of the right version that runs; this one if there is none."""
    for candidate in _candidates():
        try:
            described = _ask(candidate)
        except SettingsError:  # pyenv puts names on the PATH that refuse to run
            continue
        if described["version"].startswith(f"{PYTHON}."):
            return described
    return _ask(Path(sys.executable))


def _candidates() -> Iterator[Path]:
    """Where a Python of this version usually lies: the PATH, pyenv's versions, uv's."""
    if on_path := shutil.which(f"python{PYTHON}"):
        yield Path(on_path)
    home = Path("~").expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv/python")
    for folder, pattern in ((pyenv, f"{PYTHON}.*"), (uv, f"cpython-{PYTHON}.*")):
        found = folder.glob(f"{pattern}/bin/python{PYTHON}")
        yield from sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True)


_DESCRIBE = """
import json, os, platform, sys, sysconfig
python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
paths = sysconfig.get_paths()
print(json.dumps({"python": python, "prefix": os.path.realpath(sys.base_prefix), "version": platform.python_version(),
                  "purelib": paths["purelib"], "platlib": paths["platlib"]}))
"""


def _ask(python: Path) -> dict[str, str]:
    """What an interpreter says about itself: its real path, its prefix, its version, where its libraries go."""
    try:
        said = subprocess.run([str(python), "-I", "-c", _DESCRIBE], capture_output=True, text=True, timeout=60)
        described: dict[str, str] = json.loads(said.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise SettingsError(
            f"{python} does not run as a Python; give the path of an interpreter, "
            f"as in --python /usr/bin/python{PYTHON}"
        ) from None
    return described


# Making one


def _make(folder: Path, base: dict[str, str]) -> dict[str, str]:
    """An empty virtual environment; what its interpreter says about itself, with the path of its own link."""
    made = subprocess.run([base["python"], "-m", "venv", str(folder)], capture_output=True, text=True, errors="replace")
    if made.returncode:
        said = _last_line(made.stdout + made.stderr)
        raise SettingsError(
            f"{base['python']} cannot make a virtual environment ({said}); install its venv and ensurepip modules (on "
            f"Debian the package python{'.'.join(base['version'].split('.')[:2])}-venv), or give another with --python"
        )
    link = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    return {**_ask(link), "python": str(link)}


def _install(python: str, name: str, *, is_pinned: bool, tell: Tell) -> tuple[str, ...]:
    """Install the list, all at once and then, if that fails, line by line. Returns the lines that do not install."""
    lines = requirements(name)
    with resources.as_file(_list(f"{name}-constraints")) as constraints:
        # What has only a source distribution is pure Python; nothing big is ever compiled here.
        options = ["--prefer-binary", *_SOURCES] + (["--constraint", str(constraints)] if is_pinned else [])
        wanted = lines if is_pinned else [_bare(line) for line in lines]
        tell(f"installing {len(wanted)} libraries and what they need: some minutes, 2.7 GB")
        said = _pip(python, [*options, *wanted], tell)
        if said is None:
            return ()
        if (reason := _hopeless(said)) is not None:
            raise DownloadError(f"the libraries of {name} could not be installed: {reason}")
        tell(f"pip refused the whole list ({_last_error(said)}); installing its lines one by one")
        missing = []
        for number, line in enumerate(wanted, 1):
            tell(f"{number} of {len(wanted)}: {line}")
            said = _pip(python, [*options, line], None)
            if said is not None:
                if (reason := _hopeless(said)) is not None:
                    raise DownloadError(f"{line}, a library of {name}, could not be installed: {reason}")
                tell(f"{line} could not be installed: {_last_error(said)}")
                missing.append(line)
    if len(missing) == len(wanted):
        raise DownloadError(
            f"none of the {len(wanted)} libraries of {name} could be installed; "
            f"pip says of the last: {_last_error(said or ())}"
        )
    return tuple(missing)


_SOURCES = ("--only-binary=:all:", "--no-binary=flask-mail,python-levenshtein-wheels,wikipedia,wordninja")


def requirements(name: str) -> list[str]:
    """The libraries that a benchmark needs, one requirement each."""
    _check(name)
    lines = _list(name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _list(stem: str) -> Any:
    return resources.files("unmask.evaluate") / "requirements" / f"{stem}.txt"


def _bare(requirement: str) -> str:
    return re.split(r"[=<>!~ ]", requirement, maxsplit=1)[0]


def _pip(python: str, arguments: Sequence[str], tell: Tell | None) -> list[str] | None:
    """Run the environment's pip; None if all went well, else what it said."""
    command = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    said: list[str] = []
    with subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                said.append(line.strip())
                if tell is not None and line.startswith(("Collecting ", "Installing collected")):
                    tell(line.strip()[:100])
            process.wait()
        finally:
            process.kill()  # does nothing to one that has ended
    return said if process.returncode else None


def _hopeless(said: Sequence[str]) -> str | None:
    """Why no other line can succeed either, or None."""
    if any("No space left" in line for line in said):
        return "no space left on the disk; make room or set UNMASK_HOME to a larger one"
    if any("Retrying (Retry" in line for line in said):
        return (
            f"the package index could not be reached ({_last_error(said)}); run the same command again when it can be"
        )
    if any("No module named pip" in line for line in said):
        return "the environment has no pip; install the interpreter's ensurepip module"
    return None


def _last_error(said: Sequence[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return errors[-1] if errors else _last_line("\n".join(said))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


# The record


def _write(folder: Path, name: str, environment: Environment) -> None:
    """Written beside and renamed, as the last thing that a set-up does."""
    record = {"requirements": _digest(name), "environment": asdict(environment)}
    part = folder / f"{_RECORD}.part"
    part.write_text(json.dumps(record, default=str, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / _RECORD)


def _digest(name: str) -> str:
    both = [_list(stem).read_bytes() for stem in (name, f"{name}-constraints")]
    return hashlib.sha256(b"".join(both)).hexdigest()


def _folder(name: str) -> Path:
    _check(name)
    return cache_home() / "environments" / name


def _check(name: str) -> None:
    if name not in NAMES:
        raise SettingsError(
            f"{name!r} has no environment of its own; {did_you_mean(name, NAMES)}. Other benchmarks need none"
        )
