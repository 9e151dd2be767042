"""`unmask trajectory diff|slice|resume`: where runs part, what a part of one is, and how one is taken up again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from unmask.cli.trajectory import cut
from unmask.trajectory import Commit, Step, Trajectory, load, save

from checkpoints import write_checkpoint
from command_line import refusal, unmask

PIECES = {1: "<user>\n", 2: "def", 3: " f", 4: "()\n", 5: " g", 6: "x"}


def commits(*pairs: tuple[int, int]) -> Step:
    return Step(commits=[Commit(0, position, token, 0.9, 0.1) for position, token in pairs])


def generated(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "initial_ids": [1, None, None, None],
        "steps": [commits((1, 2)), commits((2, 3)), commits((3, 4))],
        "model": "tiny",
        "settings": {"temperature": 0.0},
        "pieces": PIECES,
        "num_forwards": 3,
        "finish_reason": "length",
    }
    return Trajectory(**{**fields, **changes})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    runs = {
        "a": generated(),
        "b": generated(steps=[commits((1, 2)), commits((3, 6), (2, 5)), Step()], model="warm"),
        "canvas": generated(initial_ids=[1, None, None, None, None]),
        "short": generated(steps=generated().steps[:2]),
        "undone": generated(steps=[commits((1, 2)), Step(remasked=[1]), commits((1, 2))]),
        "grown": generated(steps=[commits((1, 2)), Step(resized=[(2, 2)]), commits((3, 4))]),
    }
    paths = {name: tmp_path / f"{name}.jsonl" for name in (*runs, "many")}
    for name, run in runs.items():
        save(paths[name], [run])
    save(paths["many"], [generated(sample=sample) for sample in range(5)])
    return paths


# --- diff ---------------------------------------------------------------------------------------------------------


def test_the_same_run_is_said_with_code_0(files: dict[str, Path]) -> None:
    outcome = unmask("trajectory", "diff", files["a"], files["a"])
    assert (outcome.code, outcome.text, outcome.err) == (0, "the same run: 3 steps\n", "")


def test_different_runs_tell_step_tokens_and_texts_with_code_1(files: dict[str, Path]) -> None:
    outcome = unmask("trajectory", "diff", files["a"], files["b"])
    assert outcome.code == 1
    assert outcome.text == (
        "the runs part at step 2\n"
        f"{files['a']} (tiny, 3 steps):\n"
        "  position 2: ' f' (3)\n"
        f"{files['b']} (warm, 3 steps):\n"
        "  position 2: ' g' (5)\n"
        "  position 3: 'x' (6)\n"
        "\n--- A\n+++ B\n@@ -1 +1 @@\n-def f()\n+def gx\n"
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("canvas", "the runs start from different canvases, of 4 and 5 tokens"),
        ("short", "the runs part at step 3"),
        ("short", "the run is over"),
        ("undone", "position 1: masked"),
        ("grown", "resized at 2 by +2"),
    ],
)
def test_every_kind_of_parting_is_named(files: dict[str, Path], other: str, words: str) -> None:
    outcome = unmask("trajectory", "diff", files["a"], files[other])
    assert outcome.code == 1
    assert words in outcome.text


def test_runs_that_differ_on_the_way_alone_are_said_to_end_alike(files: dict[str, Path], tmp_path: Path) -> None:
    save(tmp_path / "c.jsonl", [generated(steps=[commits((2, 3)), commits((1, 2)), commits((3, 4))])])
    assert unmask("trajectory", "diff", files["a"], tmp_path / "c.jsonl").text.endswith("\nboth end in the same text\n")


def test_two_rows_of_one_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    save(path, [generated(), generated(steps=[commits((1, 6))])])
    told = unmask("trajectory", "diff", path, path, "--with-row", 1).text
    assert f"{path}, row 0 (tiny, 3 steps):" in told
    assert f"{path}, row 1 (tiny, 1 steps):" in told


def test_texts_that_differ_in_a_line_end_are_not_said_to_be_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    save(tmp_path / "c.jsonl", [generated(pieces={**PIECES, 4: "()"})])
    save(tmp_path / "d.jsonl", [generated(steps=[commits((2, 3)), commits((1, 2)), commits((3, 4))])])
    told = unmask("trajectory", "diff", tmp_path / "c.jsonl", tmp_path / "d.jsonl").text
    assert told.endswith("\nthe texts differ in their line ends alone\n")


def test_json_has_both_sides(files: dict[str, Path]) -> None:
    outcome = unmask("trajectory", "diff", files["a"], files["b"], "--json")
    told = json.loads(outcome.text)
    assert (outcome.code, told["same"], told["step"], told["positions"]) == (1, False, 2, [2, 3])
    assert told["a"]["tokens"] == [{"position": 2, "id": 3, "text": " f"}]
    assert told["b"]["tokens"] == [{"position": 2, "id": 5, "text": " g"}, {"position": 3, "id": 6, "text": "x"}]
    assert (told["a"]["text"], told["b"]["text"]) == ("def f()\n", "def gx")
    same = unmask("trajectory", "diff", files["many"], files["many"], "--row", 1, "--with-row", 2, "--json")
    assert (same.code, json.loads(same.text)["same"], json.loads(same.text)["step"]) == (0, True, None)


def test_many_tokens_are_cut_short_and_counted(tmp_path: Path) -> None:
    for name, token in (("a", 2), ("b", 3)):
        run = generated(initial_ids=[None] * 30, steps=[commits(*((place, token) for place in range(30)))])
        save(tmp_path / name, [run])
    told = unmask("trajectory", "diff", tmp_path / "a", tmp_path / "b").text
    assert told.count("position ") == 40
    assert told.count("  … and 10 more\n") == 2


def test_bad_input_of_diff_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    assert "holds one run; give --with-row 0" in refusal("trajectory", "diff", files["a"], files["b"], "--with-row", 1)
    (tmp_path / "cut").write_bytes(files["a"].read_bytes()[:40])
    assert "the file is cut short or damaged" in refusal("trajectory", "diff", tmp_path / "cut", files["a"])
    (tmp_path / "new").write_text('{"format": "unmask.trajectory", "version": 2}')
    assert "has version 2, this program reads version 1" in refusal("trajectory", "diff", files["a"], tmp_path / "new")


# --- slice --------------------------------------------------------------------------------------------------------


def test_rows_are_kept_in_the_order_given(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    outcome = unmask("trajectory", "slice", files["many"], "--rows", "3,0-1", "-o", out)
    assert (outcome.code, outcome.out) == (0, b"")
    assert [run.sample for run in load(out)] == [3, 0, 1]
    assert load(out)[0] == load(files["many"])[3]


def test_a_slice_of_a_generation_is_one_whose_first_step_has_what_came_before(
    files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    unmask("trajectory", "slice", files["a"], "--steps", "2-2", "-o", out)
    (part,) = load(out)
    assert part.initial_ids == [1, None, None, None]
    assert (part.steps, part.num_forwards, part.finish_reason) == (generated().steps[:2], 2, None)
    unmask("trajectory", "slice", files["a"], "--steps", "3", "-o", out)
    (part,) = load(out)
    assert part.steps == [commits((1, 2), (2, 3)), commits((3, 4))]
    assert (part.num_forwards, part.finish_reason) == (3, "length")


def test_a_replay_of_a_slice_prints_the_answer(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    unmask("trajectory", "slice", files["a"], "--steps", "3-3", "-o", out)
    assert unmask("replay", out).text == unmask("replay", files["a"]).text == "def f()\n"
    assert json.loads(unmask("replay", out, "--json").text)["num_tokens"] == 3


@pytest.mark.parametrize("name", ["a", "undone", "grown"])
def test_the_frames_of_a_slice_are_those_of_the_whole(files: dict[str, Path], name: str) -> None:
    (whole,) = load(files[name])
    frames = [(frame.ids, frame.given, frame.confidence) for frame in whole.frames()]
    for first in range(1, 4):
        for last in range(first, 4):
            part = [(frame.ids, frame.given, frame.confidence) for frame in cut(whole, first, last).frames()]
            assert part[first > 1 :] == frames[first - 1 : last + 1]
            assert first == 1 or set(part[0][0]) == {1, None}
    assert cut(whole, 1, 3) == whole


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to cut: give --rows, as in --rows 0-3,7, or --steps, as in --steps 10-20"),
        (["--rows", "5"], "--rows names row 5, but {many} holds 5 runs, rows 0 to 4"),
        (["--rows", "0-999999999"], "--rows names row 5, but {many} holds 5 runs, rows 0 to 4"),
        (["--rows", "9" * 5000], "is no list of rows; write numbers and spans of them, as in 0-3,7"),
        (["--rows", "0-9999999999"], "is no list of rows; write numbers and spans of them, as in 0-3,7"),
        (["--steps", "9" * 5000], "is no span of steps; write it as in 10-20, counted from 1"),
        (["--rows", "1,x"], "--rows '1,x' is no list of rows; write numbers and spans of them, as in 0-3,7"),
        (["--rows", "3-1"], "--rows '3-1' is no list of rows"),
        (["--rows", ""], "--rows '' is no list of rows"),
        (["--rows", "0-2,1"], "--rows '0-2,1' names a row twice; name each once"),
        (["--steps", "0-2"], "--steps '0-2' is no span of steps; write it as in 10-20, counted from 1"),
        (["--steps", "3-2"], "--steps '3-2' is no span of steps"),
        (["--steps", "-1"], "--steps '-1' is no span of steps"),
        (["--steps", "2-4"], "--steps 2-4 was given, but this trajectory has steps 1 to 3; give a span in them"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    files: dict[str, Path], tmp_path: Path, arguments: list[str], words: str
) -> None:
    said = refusal("trajectory", "slice", files["many"], *arguments, "-o", tmp_path / "out")
    assert words.format(**files) in said
    assert not (tmp_path / "out").exists()


def test_a_run_without_steps_has_none_to_cut(tmp_path: Path) -> None:
    save(tmp_path / "a", [generated(steps=[])])
    assert "but this trajectory has no step; leave --steps out" in refusal(
        "trajectory", "slice", tmp_path / "a", "--steps", "1", "-o", tmp_path / "out"
    )


def test_a_slice_is_never_written_over_its_source(files: dict[str, Path]) -> None:
    before = files["many"].read_bytes()
    assert "would be written over the runs that are cut; give another file" in refusal(
        "trajectory", "slice", files["many"], "--rows", "0", "-o", files["many"]
    )
    assert files["many"].read_bytes() == before


def test_a_resumed_run_is_never_written_over_its_source(files: dict[str, Path]) -> None:
    before = files["a"].read_bytes()
    assert "would be written over the run that is taken up; give another file" in refusal(
        "trajectory", "resume", files["a"], "--at", 1, "-o", files["a"]
    )
    assert files["a"].read_bytes() == before


def test_diff_and_slice_never_load_torch(files: dict[str, Path], tmp_path: Path) -> None:
    commands = [
        ["trajectory", "diff", str(files["a"]), str(files["b"])],
        ["trajectory", "slice", str(files["a"]), "--steps", "1", "-o", str(tmp_path / "out")],
        ["trajectory", "resume", "--help"],
    ]
    code = (
        f"import sys\nfrom unmask.cli.main import main\nfor command in {commands!r}:\n"
        "    sys.argv = ['unmask', *command]\n    try:\n        main()\n    except SystemExit:\n        pass\n"
        "print([m for m in ('torch', 'numpy', 'tokenizers') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- resume -------------------------------------------------------------------------------------------------------


def test_the_help_of_resume_says_where_its_defaults_come_from() -> None:
    said = " ".join(unmask("trajectory", "resume", "--help").text.replace("│", " ").split())
    for option in ("--model", "--steps", "--policy", "--temperature", "--seed"):
        told = said[said.rindex(f" {option} ") :]
        assert told[: told.index("]")].endswith("[as recorded")
    assert "[auto]" in said
    assert "[as recorded]" not in unmask("generate", "--help").text


def test_a_slice_of_a_generation_can_be_taken_up(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", "full")
    run, part, on = (tmp_path / f"{name}.jsonl" for name in ("run", "part", "on"))
    short = ("-m", tmp_path / "model", "--dtype", "float32", "-q", "--offline")
    unmask("generate", "def add(a, b):", *short, "--max-new-tokens", 6, "--trajectory", run)
    unmask("trajectory", "slice", run, "--steps", "4-5", "-o", part)
    again = unmask("trajectory", "resume", part, "--at", 2, *short, "-o", on)
    assert (again.code, again.err) == (0, "")
    (whole,), (resumed,) = load(run), load(on)
    assert resumed.initial_ids == whole.initial_ids
    assert list(resumed.frames())[2].ids == list(whole.frames())[4].ids
    assert None not in list(resumed.frames())[-1].ids
    assert unmask("replay", on).out == again.out


def test_resume_is_generate_with_resume(files: dict[str, Path], tmp_path: Path) -> None:
    """The same code: what differs is how it is asked for."""
    out = tmp_path / "out.jsonl"
    seen = []
    for command in (
        ["trajectory", "resume", files["many"], "-o", out],
        ["generate", "--resume", files["many"], "--trajectory", out],
    ):
        with mock.patch("unmask.cli.options.ModelOptions.load", autospec=True, side_effect=KeyboardInterrupt) as load:
            outcome = unmask(*command, "--at", 2, "--row", 1, "--temperature", 0.5, "-m", "tiny", "-q")
        seen.append((outcome, load.call_args))
    assert seen[0] == seen[1]
    assert seen[0][1].kwargs["default"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{a}", "--at", 9], "step 9 was asked for, but this trajectory has 3 steps"),
        (["{a}", "--at", 1, "--temperature", -1], "is not a temperature"),
        (["{many}", "--at", 1], "holds 5 runs; say which with --row, from 0 to 4"),
        (["{many}", "--at", 1, "--row", 9], "--row 9 is not in {many}"),
        (["{grown}", "--at", 1], "a run whose canvas was resized cannot be taken up half-way"),
    ],
)
def test_what_cannot_be_taken_up_is_refused(
    files: dict[str, Path], tmp_path: Path, arguments: list[object], words: str
) -> None:
    given = [str(argument).format(**files) for argument in arguments]
    assert words.format(**files) in refusal("trajectory", "resume", *given, "-o", tmp_path / "out")


def test_an_output_that_cannot_be_written_is_refused_beforehand(files: dict[str, Path], tmp_path: Path) -> None:
    for command in (["slice", files["a"], "--rows", 0], ["resume", files["a"], "--at", 1]):
        assert refusal("trajectory", *command, "-o", tmp_path) == (
            f"--output {tmp_path} is a folder; give a file in a folder that exists"
        )
