"""Environments for benchmarks: which Python is taken, what pip does, and what is left when it fails.

Nothing is downloaded: pip installs tiny wheels that lie in a folder.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unmask.errors import DownloadError, SettingsError
from unmask.evaluate import environment
from unmask.evaluate.environment import Environment, find, requirements, setup

HERE = ".".join(str(number) for number in sys.version_info[:3])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no other Python, and a pip that knows the wheels of one folder only."""
    (tmp_path / "wheels").mkdir()
    for variable, value in {
        "UNMASK_HOME": tmp_path / "home",
        "PATH": tmp_path / "bin",
        "PYENV_ROOT": tmp_path / "pyenv",
        "UV_PYTHON_INSTALL_DIR": tmp_path / "uv",
        "PIP_FIND_LINKS": tmp_path / "wheels",
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(variable, str(value))
    return tmp_path / "home" / "environments" / "bigcodebench"


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pip, made once: it takes seconds."""
    folder = tmp_path_factory.mktemp("blank") / "venv"
    environment._make(folder, environment._ask(Path(sys.executable)))
    return folder


@pytest.fixture
def lists(tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short list of requirements instead of the benchmark's, and this Python as the one it is made for."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "bigcodebench.txt").write_text("# two\nalpha==1.0\nbeta==2.0\n")
    (folder / "bigcodebench-constraints.txt").write_text("gamma==3.0\n")
    monkeypatch.setattr(environment, "_list", lambda stem: folder / f"{stem}.txt")
    monkeypatch.setattr(environment, "PYTHON", "{}.{}".format(*sys.version_info))
    monkeypatch.setattr(environment, "_make", lambda folder, _: copy_of(blank, folder))
    return folder


def copy_of(blank: Path, folder: Path) -> dict[str, str]:
    shutil.copytree(blank, folder, symlinks=True)
    link = folder / "bin" / "python"
    return {**environment._ask(link), "python": str(link)}


def add_wheel(tmp_path: Path, name: str, version: str, *, needs: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def versions(made: Environment) -> dict[str, str]:
    found = (path.name.removesuffix(".dist-info") for path in made.site_packages[0].glob("*.dist-info"))
    return dict(name.split("-", 1) for name in found)


def fake_python(path: Path, *, version: str = "3.10.9", runs: bool = True) -> Path:
    """A program that says of itself what an interpreter says."""
    said = {"python": str(path), "prefix": str(path.parent.parent), "version": version, "purelib": "p", "platlib": "p"}
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\n" if runs else "#!/bin/sh\nexit 127\n")
    path.chmod(0o755)
    return path


# Set-up


def test_a_set_up_installs_the_pinned_list_and_is_found_again(tmp_path: Path, home: Path, lists: Path) -> None:
    for name, version, needs in (("alpha", "1.0", "gamma"), ("alpha", "1.5", ""), ("beta", "2.0", "")):
        add_wheel(tmp_path, name, version, needs=needs)
    add_wheel(tmp_path, "gamma", "3.0")
    add_wheel(tmp_path, "gamma", "4.0")  # the constraints keep it out
    assert find("bigcodebench") is None
    told: list[str] = []
    made = setup("bigcodebench", report=told.append)
    assert versions(made).items() >= {"alpha": "1.0", "beta": "2.0", "gamma": "3.0"}.items()
    assert (made.version, made.missing, made.warning) == (HERE, (), "")
    assert made.python == Path(sys._base_executable).resolve()
    assert made.prefix == Path(sys.base_prefix).resolve()
    assert find("bigcodebench") == made
    assert told == [
        f"making an environment for Python {HERE} in {home}",
        "installing 2 libraries and what they need: some minutes, 2.7 GB",
        "Installing collected packages: gamma, beta, alpha",
    ]

    told.clear()
    assert setup("bigcodebench", report=told.append) == made
    assert told == []

    # the interpreter and the folders are all that is needed: no venv, no site
    path = str(made.site_packages[0])
    code = f"import sys; sys.path.append({path!r}); import alpha, gamma; print(alpha.version, gamma.version)"
    said = subprocess.run([str(made.python), "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "1.0 3.0\n"

    # another list, another environment
    (lists / "bigcodebench.txt").write_text("alpha==1.5\n")
    assert find("bigcodebench") is None


def test_what_does_not_install_is_recorded_and_the_rest_is_there(tmp_path: Path, lists: Path) -> None:
    add_wheel(tmp_path, "alpha", "1.0")
    told: list[str] = []
    made = setup("bigcodebench", report=told.append)
    assert made.missing == ("beta==2.0",)
    assert "alpha" in versions(made)
    assert made.warning == "bigcodebench lacks beta==2.0: tasks that need them cannot be judged"
    assert any(line.startswith("beta==2.0 could not be installed: No matching distribution") for line in told)
    assert find("bigcodebench") == made


def test_another_python_takes_the_newest_versions_and_warns(
    tmp_path: Path, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("alpha", "1.0"), ("alpha", "1.5"), ("beta", "2.7")):
        add_wheel(tmp_path, name, version)
    monkeypatch.setattr(environment, "PYTHON", "3.10")
    made = setup("bigcodebench")
    assert versions(made).items() >= {"alpha": "1.5", "beta": "2.7"}.items()
    assert made.warning == (
        f"bigcodebench is made for Python 3.10 and runs under {HERE} with newer libraries, so scores may differ: "
        "install Python 3.10, then `unmask data setup bigcodebench --again`"
    )


def test_a_set_up_that_was_cut_off_is_begun_again(
    tmp_path: Path, home: Path, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object, **__: object) -> tuple[str, ...]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environment, "_install", cut_off)
        with pytest.raises(KeyboardInterrupt):
            setup("bigcodebench")
    assert (home / "pyvenv.cfg").exists()
    assert find("bigcodebench") is None
    (home / "left-over").touch()
    monkeypatch.setattr(environment, "_install", lambda *_, **__: ())
    assert setup("bigcodebench") == find("bigcodebench")
    assert not (home / "left-over").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"requirements": "x"}', '{"requirements": "x", "environment": {}}'])
def test_a_broken_record_is_no_environment(home: Path, text: str) -> None:
    home.mkdir(parents=True)
    (home / "unmask.json").write_text(text)
    assert find("bigcodebench") is None


# Which Python


def test_a_python_on_the_path_comes_first_then_pyenvs_newest_then_uvs(tmp_path: Path) -> None:
    uv = fake_python(tmp_path / "uv/cpython-3.10.4-linux-x86_64-gnu/bin/python3.10")
    assert environment._python()["python"] == str(uv)
    fake_python(tmp_path / "pyenv/versions/3.10.9/bin/python3.10")
    newest = fake_python(tmp_path / "pyenv/versions/3.10.13/bin/python3.10")
    assert environment._python()["python"] == str(newest)
    first = fake_python(tmp_path / "bin/python3.10")
    assert environment._python()["python"] == str(first)


def test_a_python_that_refuses_to_run_is_passed_over(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin/python3.10", runs=False)  # as pyenv's do
    other = fake_python(tmp_path / "pyenv/versions/3.10.9/bin/python3.10")
    assert environment._python()["python"] == str(other)


def test_without_the_right_python_this_one_is_taken() -> None:
    assert environment._python()["version"] == HERE


# Refusals


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(SettingsError) as caught:
        setup("bigcodebench-hard")
    assert str(caught.value) == (
        "'bigcodebench-hard' has no environment of its own; did you mean bigcodebench? (known: bigcodebench). "
        "Other benchmarks need none"
    )


def test_a_program_that_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        setup("bigcodebench", python=tmp_path / "absent")
    assert str(caught.value) == (
        f"{tmp_path}/absent does not run as a Python; give the path of an interpreter, "
        "as in --python /usr/bin/python3.10"
    )


def test_another_python_for_an_environment_that_is_there_is_refused(
    tmp_path: Path, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_install", lambda *_, **__: ())
    made = setup("bigcodebench")
    other = fake_python(tmp_path / "bin/other")
    with pytest.raises(SettingsError) as caught:
        setup("bigcodebench", python=other)
    assert str(caught.value) == (
        f"bigcodebench is set up for {made.python}, and --python gives {other}; add --again to make it anew"
    )
    assert setup("bigcodebench", python=Path(sys.executable)) == made


def test_a_python_without_venv_is_named_with_the_package_to_install(tmp_path: Path) -> None:
    bare = fake_python(tmp_path / "bin/python3.10")
    bare.write_text(
        bare.read_text().replace("echo", 'if [ "$2" = venv ]; then echo ensurepip is not available; exit 1; fi\necho')
    )
    with pytest.raises(SettingsError) as caught:
        setup("bigcodebench")
    assert str(caught.value) == (
        f"{bare} cannot make a virtual environment (ensurepip is not available); install its venv and ensurepip "
        "modules (on Debian the package python3.10-venv), or give another with --python"
    )


def test_when_nothing_installs_pips_reason_is_told(lists: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        setup("bigcodebench")
    assert str(caught.value) == (
        "none of the 2 libraries of bigcodebench could be installed; pip says of the last: "
        "No matching distribution found for beta==2.0"
    )
    assert find("bigcodebench") is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            ["WARNING: Retrying (Retry(total=4 …", "ERROR: No matching distribution found for alpha"],
            "the package index could not be reached (No matching distribution found for alpha); "
            "run the same command again when it can be",
        ),
        (
            ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"],
            "no space left on the disk; make room or set UNMASK_HOME to a larger one",
        ),
        (["python: No module named pip"], "the environment has no pip; install the interpreter's ensurepip module"),
    ],
)
def test_a_failure_that_every_line_would_share_ends_the_set_up(
    lists: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], reason: str
) -> None:
    calls: list[object] = []

    def pip(*arguments: object) -> list[str]:
        calls.append(arguments)
        return said

    monkeypatch.setattr(environment, "_make", lambda *_: {"python": "p", "purelib": "p", "platlib": "p"})
    monkeypatch.setattr(environment, "_pip", pip)
    with pytest.raises(DownloadError) as caught:
        setup("bigcodebench")
    assert str(caught.value) == f"the libraries of bigcodebench could not be installed: {reason}"
    assert len(calls) == 1


# The list itself


def test_every_requirement_of_the_list_and_of_its_constraints_is_pinned_once() -> None:
    constraints = [
        line
        for line in environment._list("bigcodebench-constraints").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    lines = requirements("bigcodebench") + constraints
    names = [environment._bare(line).lower().replace("_", "-") for line in lines]
    assert all(line.count("==") == 1 for line in lines)
    assert len(set(names)) == len(names) > 150
    assert {"numpy", "pandas", "matplotlib", "scikit-learn"} < set(names)
