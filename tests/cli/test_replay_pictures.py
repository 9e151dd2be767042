"""`unmask replay --html|--svg|--cast`: what is written where, and every combination that is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unmask.trajectory import Commit, Step, Trajectory, save

from command_line import refusal, unmask


def generated(**changes: Any) -> Trajectory:
    steps = [Step(commits=[Commit(0, position, position + 1, 0.9, 0.1)]) for position in (2, 1, 3)]
    fields: dict[str, Any] = {
        "initial_ids": [1, None, None, None],
        "steps": steps,
        "model": "tiny",
        "pieces": {1: "<user>\n", 2: "def", 3: " f", 4: "()"},
        "num_forwards": 3,
        "finish_reason": "stop",
    }
    return Trajectory(**{**fields, **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(tmp_path / "run.jsonl", [generated(), generated(seed=1, steps=generated().steps[:1])])
    save(tmp_path / "other.jsonl", [generated(model="another")])
    return tmp_path / "run.jsonl"


def data(path: Path) -> dict[str, Any]:
    whole = path.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(whole.split('id="data">')[1].split("</script>")[0])
    return found


def test_a_page_is_written_and_said_on_stderr_alone(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    outcome = unmask("replay", file, "--html", page, "--speed", 3)
    assert (outcome.code, outcome.out, outcome.err) == (0, b"", f"html written to {page}\n")
    assert data(page)["speed"] == 3
    assert [run["name"] for run in data(page)["runs"]] == ["run.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.jsonl", "out.html", "run.jsonl"]


@pytest.mark.parametrize("how", ["argument", "option"])
def test_two_files_stand_side_by_side(file: Path, tmp_path: Path, how: str) -> None:
    page, other = tmp_path / "out.html", tmp_path / "other.jsonl"
    unmask("replay", file, *([other] if how == "argument" else ["--with", other]), "--html", page)
    assert [run["name"] for run in data(page)["runs"]] == ["run.jsonl", "other.jsonl"]


def test_two_runs_of_one_file_stand_side_by_side(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    assert unmask("replay", file, "--with-row", 1, "--html", page).code == 0
    assert [run["name"] for run in data(page)["runs"]] == ["run.jsonl, row 0", "run.jsonl, row 1"]
    assert data(page)["parts"] == 2


def test_all_pictures_can_be_had_at_once(file: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a.html", "a.svg", "a.cast")]
    outcome = unmask("replay", file, "--html", outs[0], "--svg", outs[1], "--cast", outs[2], "--columns", 30)
    assert outcome.err.count("written to") == 3
    assert "step 3 of 3" in outs[1].read_text(encoding="utf-8")
    assert json.loads(outs[2].read_text(encoding="utf-8").splitlines()[0])["width"] == 30


def test_a_figure_of_one_step(file: Path, tmp_path: Path) -> None:
    unmask("replay", file, "--svg", tmp_path / "a.svg", "--step", 1)
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ("step 1 of 3" in drawn, drawn.count("step ")) == (True, 1)


def test_a_recording_can_hold_the_meter(file: Path, tmp_path: Path) -> None:
    unmask("replay", file, "--cast", tmp_path / "a.cast", "--live", "--no-color")
    recorded = (tmp_path / "a.cast").read_text(encoding="utf-8")
    assert "AR-ness" in recorded
    assert "102m" not in recorded


def test_an_older_page_is_replaced_whole_and_a_device_is_written_straight(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    page.write_text("x" * 10**6)
    assert unmask("replay", file, "--html", page).code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert unmask("replay", file, "--html", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


def test_a_picture_can_have_a_name_of_the_greatest_length(file: Path, tmp_path: Path) -> None:
    page = tmp_path / ("x" * 255)
    assert unmask("replay", file, "--html", page).code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_live_without_a_terminal_says_that_it_draws_nothing(file: Path) -> None:
    outcome = unmask("replay", file, "--live")
    assert outcome.text == "def f()\n"
    assert outcome.err == "--live draws on a terminal, and stderr is none: only the text follows\n"


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{other}", "--with", "{other}", "--html", "{out}"], "both name a second run; give one of them"),
        (["{other}"], "{other} has no effect without the page that shows both; give --html FILE with it"),
        (["--with-row", 1, "--svg", "{out}"], "--with-row 1 has no effect without the page that shows both"),
        (["--html", "{out}", "--json"], "--json has no effect with --html, which writes a file"),
        (["--html", "{out}", "--live"], "--live has no effect with --html, which needs no terminal"),
        (["--live", "--json"], "--live plays the run and --json does not; give one of them"),
        (["--live", "--step", 1], "--live plays the run and --step does not; give one of them"),
        (["--html", "{out}", "--step", 1], "--step 1 has no effect with --html, which holds every step"),
        (["--html", "{out}", "--columns", 9], "--columns 9 has no effect without --svg or --cast"),
        (["--svg", "{out}", "--columns", 0], "--columns 0 was given, but a line holds at least 1 character"),
        (["--svg", "{out}", "--speed", 2], "--speed 2 has no effect with --svg, which stands still"),
        (["--json", "--speed", 2], "--speed 2 has no effect with --json; leave it out"),
        (["--step", 1, "--speed", 2], "--speed 2 has no effect with --step; leave it out"),
        (["--html", "{out}", "--no-color"], "--no-color has no effect with --html, which heeds no terminal"),
        (["--svg", "{out}", "--no-color"], "--no-color has no effect with --svg, which heeds no terminal"),
        (["--json", "--no-color"], "--no-color has no effect with --json, which heeds no terminal"),
        (["--svg", "{out}", "--step", 9], "step 9 was asked for, but this trajectory has 3 steps"),
        (["--html", "{out}", "--with-row", 7], "row 7 was asked for, but {file} holds 2 runs; give --with-row 0 to 1"),
        (["--html", "{file}"], "--html {file} would be written over {file}; give another file"),
        (["--html", "{out}", "--svg", "{out}"], "--svg {out} would be written over --html {out}; give another file"),
        (["--html", "{folder}"], "--html {folder} is a folder; give a file in a folder that exists"),
        (["--cast", "{folder}/none/a.cast"], "--cast {folder}/none/a.cast lies in {folder}/none, which is not there"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(
    file: Path, tmp_path: Path, arguments: list[object], words: str
) -> None:
    names = {"file": file, "other": tmp_path / "other.jsonl", "out": tmp_path / "out", "folder": tmp_path}
    before = file.read_bytes()
    said = refusal("replay", file, *(str(argument).format(**names) for argument in arguments))
    assert words.format(**names) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.jsonl", "run.jsonl"]
    assert file.read_bytes() == before


def test_the_pictures_load_neither_torch_nor_numpy(file: Path, tmp_path: Path) -> None:
    outs = [f"--{kind}={tmp_path / kind}" for kind in ("html", "svg", "cast")]
    code = (
        f"import sys\nfrom unmask.cli.main import main\nsys.argv = ['unmask', 'replay', {str(file)!r}, *{outs!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'tokenizers', 'matplotlib') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
