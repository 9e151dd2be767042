"""`unmask replay`: what goes to stdout and what to stderr, the looks at one step, and its refusals."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest
import typer
from typer.testing import CliRunner, Result

from unmask.cli import replay as module
from unmask.errors import SettingsError, TrajectoryError
from unmask.trajectory import Commit, Step, Trajectory, save

PIECES = {1: "<user>", 2: "def", 3: " f", 4: "():\n", 5: "\treturn", 6: " '\udce6\udc97", 7: "\udca5'", 8: "<end>"}
ANSWER = "def f():\n\treturn '日'"
app = typer.Typer()
app.command()(module.replay)


def commits(*pairs: tuple[int, int]) -> Step:
    return Step(commits=[Commit(0, position, token, 0.9, 0.1) for position, token in pairs])


def generated(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "initial_ids": [1, *[None] * 8],
        "steps": [commits((1, 2), (3, 4)), commits((2, 3), (4, 5), (5, 6)), commits((6, 7), (7, 8), (8, 8))],
        "model": "tiny",
        "settings": {"steps": 3},
        "seed": 11,
        "end_ids": [8],
        "pieces": PIECES,
        "num_forwards": 3,
        "finish_reason": "stop",
    }
    return Trajectory(**{**fields, **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(tmp_path / "run.jsonl", [generated(), generated(seed=12, steps=generated().steps[:2], finish_reason=None)])
    return tmp_path / "run.jsonl"


def replay(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- the text -----------------------------------------------------------------------------------------------------


def test_without_a_terminal_only_the_answer_is_printed(file: Path) -> None:
    result = replay(file)
    assert (result.stdout, result.stderr, result.exit_code) == (ANSWER + "\n", "", 0)


def test_a_text_that_ends_with_a_newline_gets_no_second_one(tmp_path: Path) -> None:
    save(tmp_path / "run.jsonl", [generated(initial_ids=[None], steps=[commits((0, 4))])])
    assert replay(tmp_path / "run.jsonl").stdout == "():\n"


def test_a_row_that_stopped_early_shows_its_masks_and_tells(file: Path) -> None:
    result = replay(file, "--row", 1)
    assert result.stdout == "def f():\n\treturn '\ufffd░░░\n"
    assert result.stderr == "the run stopped early: 3 positions are still masked, shown as ░\n"


def test_one_masked_position_is_told_with_the_reason(tmp_path: Path) -> None:
    save(tmp_path / "run.jsonl", [generated(initial_ids=[2, None], steps=[], finish_reason="interrupted")])
    assert replay(tmp_path / "run.jsonl").stderr == (
        "the run stopped early (interrupted): 1 position is still masked, shown as ░\n"
    )


def test_an_infill_prints_the_whole_text_without_end_tokens_in_its_holes(tmp_path: Path) -> None:
    run = generated(initial_ids=[2, None, None, 4, None, 8], steps=[commits((1, 3), (2, 8), (4, 5))])
    save(tmp_path / "run.jsonl", [run])
    assert replay(tmp_path / "run.jsonl").stdout == "def f():\n\treturn<end>\n"


def test_a_run_without_an_open_position_prints_an_empty_answer(tmp_path: Path) -> None:
    save(tmp_path / "run.jsonl", [generated(initial_ids=[1], steps=[])])
    assert replay(tmp_path / "run.jsonl").stdout == "\n"


def test_an_output_that_is_not_utf8_gets_question_marks_instead_of_a_crash(file: Path) -> None:
    result = CliRunner(charset="ascii").invoke(app, [str(file)])
    assert result.exit_code == 0
    assert result.stdout_bytes == b"def f():\n\treturn '?'\n"


# --- one step, and the summary ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "canvas"),
    [(0, "░░░░░░░░"), (1, "def░():\n░░░░░"), (2, "def f():\n\treturn '\ufffd░░░"), (3, ANSWER + "<end><end>")],
)
def test_step_prints_the_canvas_as_it_was(file: Path, step: int, canvas: str) -> None:
    assert replay(file, "--step", step).stdout == canvas + "\n"


def test_json_is_one_object_about_the_run(file: Path) -> None:
    result = replay(file, "--json")
    assert json.loads(result.stdout) == {
        "text": ANSWER,
        "model": "tiny",
        "num_tokens": 6,
        "num_forwards": 3,
        "seconds": None,
        "seed": 11,
        "settings": {"steps": 3},
        "finish_reason": "stop",
        "steps": 3,
    }
    assert result.stdout.count("\n") == 1


def test_json_does_not_count_masked_positions_as_tokens(file: Path) -> None:
    assert json.loads(replay(file, "--json", "--row", 1).stdout)["num_tokens"] == 5


# --- refusals -----------------------------------------------------------------------------------------------------


def refusal(kind: type[Exception], *arguments: object) -> str:
    with pytest.raises(kind) as caught:
        replay(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("speed", ["0", "-2", "0.0009", "nan", "inf"])
def test_a_speed_that_is_no_speed_is_refused(file: Path, speed: str) -> None:
    assert refusal(SettingsError, file, "--speed", speed) == (
        f"--speed {speed} was given, but it counts steps per second; give a finite number of at least 0.001"
    )


def test_json_and_step_together_are_refused(file: Path) -> None:
    assert refusal(SettingsError, file, "--json", "--step", 1) == (
        "--json tells about the whole run and --step about one step of it; give one of them"
    )


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_outside_the_run_is_refused(file: Path, step: int) -> None:
    assert refusal(TrajectoryError, file, "--step", step) == (
        f"step {step} was asked for, but this trajectory has 3 steps; give a step between 0 and 3"
    )


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_file_is_refused(file: Path, row: int) -> None:
    assert refusal(TrajectoryError, file, "--row", row) == (
        f"row {row} was asked for, but {file} holds 2 runs; give --row 0 to 1"
    )


def test_a_row_beside_the_only_one_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "run.jsonl", [generated()])
    assert refusal(TrajectoryError, tmp_path / "run.jsonl", "--row", 1).endswith("holds one run; give --row 0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        ("", "is empty; a trajectory file has one JSON object per line"),
        ('{"format": "unmask.traj', "line 1 is not JSON"),
        ('{"format": "unmask.trajectory", "version": 9}', "has version 9, this program reads version 1"),
        ('{"format": "unmask.trajectory", "version": 1}', "line 1 is damaged: it lacks 'initial_ids'"),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_text(content)
    assert words in refusal(TrajectoryError, path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder, not a trajectory" in refusal(TrajectoryError, tmp_path)


# --- on a terminal ------------------------------------------------------------------------------------------------

PROGRAM = """
import fcntl, signal, termios, typer
from unmask.cli.replay import replay
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # this terminal's Ctrl-C is for us
app = typer.Typer()
app.command()(replay)
app()
"""


def on_a_terminal(
    *arguments: object, keys: bytes = b"", stdout: IO[bytes] | None = None, environment: Mapping[str, str] | None = None
) -> tuple[str, int]:
    """Run the command with a pseudo-terminal on all streams but a given `stdout`; what it showed, and its exit code."""
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdin=slave,
        stdout=slave if stdout is None else stdout,
        stderr=slave,
        start_new_session=True,
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", **(environment or {})},
    )
    os.close(slave)
    seen = b""
    while chunk := _read(master):
        seen += chunk
        if keys and b"step 1 of" in seen:
            os.write(master, keys)
            keys = b""
    os.close(master)
    return seen.decode(), process.wait()


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # Linux says so when the last writer has gone
        return b""


def test_on_a_terminal_the_run_is_played_and_the_text_is_left(file: Path) -> None:
    output, code = on_a_terminal(file, "--speed", 5)
    assert code == 0
    assert "step 0 of 3" in output
    assert any(f"step {step} of 3" in output for step in (1, 2, 3))
    assert "\x1b[?25h" in output
    after = output.rsplit("\x1b[", 1)[1]
    assert after.split("def f", 1)[1] == "():\r\n\treturn '日'\r\n"


def test_ctrl_c_leaves_quietly_with_130_and_the_cursor_restored(file: Path) -> None:
    output, code = on_a_terminal(file, "--speed", 2, keys=b"\x03")
    assert code == 130
    assert "Traceback" not in output
    assert "Aborted" not in output
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")
    assert "step 3 of 3" not in output


def test_a_terminal_is_never_sent_the_control_characters_of_a_model(tmp_path: Path) -> None:
    save(tmp_path / "run.jsonl", [generated(pieces={**PIECES, 2: "\x1b]0;title\x07"})])
    output, _ = on_a_terminal(tmp_path / "run.jsonl", "--speed", 1000)
    assert "\x1b]0;" not in output
    assert "␛]0;title␇" in output


def test_a_step_on_a_terminal_comes_with_its_legend(file: Path) -> None:
    output, code = on_a_terminal(file, "--step", 1)
    assert code == 0
    assert "masked" in output
    assert "\x1b[" in output


@pytest.mark.parametrize("how", [["--no-color"], []])
def test_colour_can_be_refused(file: Path, how: list[str]) -> None:
    output, _ = on_a_terminal(file, "--step", 1, *how, environment={} if how else {"NO_COLOR": "1"})
    assert "░" in output
    assert "102m" not in output


def test_a_terminal_on_stderr_alone_plays_nothing(file: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        assert on_a_terminal(file, stdout=out) == ("", 0)
    assert (tmp_path / "out").read_text(encoding="utf-8") == ANSWER + "\n"


def test_replay_to_a_pipe_loads_neither_torch_nor_rich_drawing(file: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from unmask.cli.replay import replay\n"
        f"replay(Path({str(file)!r}))\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'rich.live'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output == ANSWER + "\n"
