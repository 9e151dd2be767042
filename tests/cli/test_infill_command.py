"""`unmask infill`: the file's bytes, what goes where, what is kept, and every input that it refuses."""

import errno
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask import trajectory as trajectories
from unmask.atomic import beside
from unmask.decode import session
from unmask.decode.run import Run
from unmask.decode.session import Model
from unmask.trajectory import StepEvent

from checkpoints import MASK_ID, VOCAB_SIZE, scripted, spell, tiny_model, write_checkpoint
from command_line import Outcome, refusal, start, unmask

CRLF = b"def f(x):\r\n    y = x\r\n    return y\r\n"
AWKWARD = "a\r\nb\rc\nd\u2028e\x0cf\x00e\u0301[[?x]][[?3]]<|mask|>\ufeff\r\n".encode()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"UNMASK_OFFLINE": "1", "UNMASK_HOME": tmp_path, "HF_HOME": tmp_path}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("checkpoints")
    made = {kind: write_checkpoint(place / kind, kind) for kind in ("full", "causal", "block")}
    return made | {"plain": write_checkpoint(place / "plain", "causal", fim=False)}


@pytest.fixture
def full(folders: dict[str, Path]) -> Path:
    return folders["full"]


@pytest.fixture
def file() -> Path:
    path = Path("program.py")
    path.write_bytes(CRLF)
    return path


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `--model`, whatever it names, be a causal model that writes "1" into every hole."""
    model = scripted(tiny_model("causal"), spell("1"))
    monkeypatch.setattr(session, "load", lambda *_, **__: model)


def infill(folder: Path, *more: object, stdin: bytes = b"") -> Outcome:
    outcome = unmask("infill", *more, "-m", folder, "--dtype", "float32", stdin=stdin)
    assert outcome.code == 0, outcome.err
    return outcome


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    record, seen = Run._record, []

    def recording(self: Run, event: StepEvent) -> None:
        record(self, event)
        seen.append(event)
        if len(seen) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_record", recording)


# --- what goes where --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_the_text_comes_out_with_every_given_byte(folders: dict[str, Path], kind: str) -> None:
    Path("awkward.txt").write_bytes(AWKWARD)
    outcome = infill(folders[kind], "awkward.txt")
    before, behind = AWKWARD.split(b"[[?3]]")
    assert outcome.out.startswith(before)
    assert outcome.out.endswith(behind)
    assert "forwards" in outcome.err
    assert infill(folders[kind], "-", "-q", stdin=AWKWARD) == Outcome(0, outcome.out, "")
    assert Path("awkward.txt").read_bytes() == AWKWARD


@pytest.mark.usefixtures("one")
def test_lines_become_holes_and_their_newlines_stay(file: Path) -> None:
    assert unmask("infill", file, "--lines", "2").out == b"def f(x):\r\n1\r\n    return y\r\n"
    assert unmask("infill", file, "--lines", "2-3").out == b"def f(x):\r\n1\r\n"
    assert unmask("infill", file, "--lines", "3", "--lines", "1").out == b"1\r\n    y = x\r\n1\r\n"


@pytest.mark.parametrize(("length", "tokens"), [("5", {5}), ("2-3", {2, 3}), ("+", {8, 10})])
def test_length_and_limit_say_how_long_a_hole_is(full: Path, file: Path, length: str, tokens: set[int]) -> None:
    record = json.loads(infill(full, file, "--lines", "2", "--length", length, "--limit", 10, "--json").text)
    assert record["num_tokens"] in tokens


def test_json_is_one_object_with_the_holes(full: Path, file: Path) -> None:
    outcome = infill(full, "-", "--json", "--seed", 5, "--temperature", 1, stdin="α = [[?2]], β = [[?3]]".encode())
    record = json.loads(outcome.text)
    needed = {"text", "model", "num_tokens", "num_forwards", "seconds", "seed", "settings", "finish_reason", "holes"}
    assert needed <= record.keys()
    assert outcome.out.count(b"\n") == 1
    first, second = record["holes"]
    assert record["text"] == f"α = {first}, β = {second}"
    assert (record["num_tokens"], record["num_forwards"], record["finish_reason"]) == (5, 5, "stop")
    assert (record["seed"], record["settings"]["temperature"]) == (5, 1.0)


@pytest.mark.usefixtures("one")
def test_in_place_writes_the_file_and_prints_nothing(file: Path) -> None:
    file.chmod(0o750)
    outcome = unmask("infill", file, "--lines", "2", "-i", "-q")
    assert outcome == Outcome(0, b"", "")
    assert file.read_bytes() == b"def f(x):\r\n1\r\n    return y\r\n"
    assert file.stat().st_mode & 0o777 == 0o750
    assert list(Path().iterdir()) == [file]


@pytest.mark.usefixtures("one")
def test_in_place_with_json_does_both(file: Path) -> None:
    record = json.loads(unmask("infill", file, "--lines", "2", "-i", "--json").text)
    assert file.read_bytes() == record["text"].encode() == b"def f(x):\r\n1\r\n    return y\r\n"


@pytest.mark.usefixtures("one")
def test_in_place_through_a_link_changes_the_file_it_names(file: Path) -> None:
    Path("link.py").symlink_to(file)
    unmask("infill", "link.py", "--lines", "2", "-i")
    assert Path("link.py").is_symlink()
    assert file.read_bytes() == b"def f(x):\r\n1\r\n    return y\r\n"


def test_the_trajectory_is_kept_and_replays_the_text(full: Path, file: Path) -> None:
    outcome = infill(full, file, "--lines", "2", "--length", 4, "--trajectory", "run.jsonl", "-q")
    assert outcome.err == ""
    assert unmask("replay", "run.jsonl").out.decode() == outcome.text


@pytest.mark.usefixtures("one")
def test_hole_by_hole_the_trajectory_has_a_run_for_each() -> None:
    unmask("infill", "-", "--trajectory", "run.jsonl", stdin=b"a[[?]]b[[?]]c")
    runs = trajectories.load("run.jsonl")
    assert [run.finish_reason for run in runs] == ["stop", "stop"]
    assert unmask("replay", "run.jsonl", "--row", 1).text == "1\n"


def test_a_terminal_is_drawn_on_and_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted(tiny_model("causal"), spell("\x1b[2J"))
    monkeypatch.setattr(session, "load", lambda *_, **__: model)
    Path("text").write_bytes(b"a[[?]]\r\n")
    outcome = unmask("infill", "text", terminal=True)
    assert outcome.text == "a␛[2J\n"
    assert "settled" in outcome.err
    assert unmask("infill", "text").out == b"a\x1b[2J\r\n"


@pytest.mark.usefixtures("one")
def test_a_kept_trajectory_names_three_runners_up() -> None:
    unmask("infill", "-", "--trajectory", "run.jsonl", stdin=b"a[[?]]b[[?]]c")
    commits = [c for run in trajectories.load("run.jsonl") for step in run.steps for c in step.commits]
    assert commits
    assert all(len(commit.runners_up) == 3 for commit in commits)


def test_live_draws_a_meter_and_leaves_its_last_reading(full: Path, file: Path) -> None:
    asked = ("infill", file, "--lines", "2", "--length", 6, "-m", full)
    assert "AR-ness" not in unmask(*asked, terminal=True).err
    outcome = unmask(*asked, "--live", terminal=True)
    assert re.search(r"AR-ness +local \S+ [01]\.\d\d +global \S+ [01]\.\d\d", outcome.err)
    assert "--live has nothing to draw on: stderr is no terminal" in unmask(*asked, "--live").err
    assert refusal(*asked, "--live", "-q").startswith("--live draws on the terminal and --quiet keeps it empty")


# --- cut short --------------------------------------------------------------------------------------------------------


def test_an_interrupt_leaves_the_file_and_keeps_the_record(
    full: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("infill", file, "--lines", "2", "--length", 6, "-m", full, "--trajectory", "run.jsonl")
    interrupt_after(monkeypatch, 2)
    assert unmask(*asked, "-i") == Outcome(
        130,
        b"",
        "trajectory kept in run.jsonl; `unmask replay run.jsonl` plays it\ninterrupted; the file was left as it was\n",
    )
    assert file.read_bytes() == CRLF
    (run,) = trajectories.load("run.jsonl")
    assert (len(run.steps), run.finish_reason) == (2, "interrupted")
    interrupt_after(monkeypatch, 2)
    outcome = unmask(*asked, "-q")
    assert (outcome.code, outcome.out, outcome.err) == (130, b"", "")
    interrupt_after(monkeypatch, 2)
    record = json.loads(unmask(*asked, "-q", "--json").text)
    assert (record["finish_reason"], record["num_tokens"]) == ("interrupted", 2)


def test_an_interrupt_before_the_first_step_leaves_an_older_record_alone(
    full: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looking(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("unmask.decode.infill.CanvasFiller._first_look", looking)
    Path("run.jsonl").write_text("older")
    outcome = unmask("infill", file, "--lines", "2", "-m", full, "--trajectory", "run.jsonl", "--json")
    assert outcome.code == 130
    assert json.loads(outcome.text)["text"].encode() == CRLF.replace(b"    y = x", b"")
    assert Path("run.jsonl").read_text() == "older"


SLOW = """
import sys, time
from unmask.decode.run import Run
record = Run._record
def slowly(self, event):
    record(self, event)
    print("step", file=sys.stderr, flush=True)
    time.sleep(0.05)
Run._record = slowly
"""


def test_ctrl_c_half_way_leaves_the_file(full: Path, file: Path) -> None:
    more = ("--lines", "2", "--length", 300, "-m", full, "-i", "--trajectory", "run.jsonl")
    with start("infill", file, *more, before=SLOW) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == b"step\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert file.read_bytes() == CRLF
    assert trajectories.load("run.jsonl")[0].finish_reason == "interrupted"
    assert sorted(path.name for path in Path().iterdir()) == ["program.py", "run.jsonl"]


@pytest.mark.usefixtures("one")
def test_a_full_disk_leaves_the_file_and_prints_the_text_instead(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opening(handle: int, mode: str) -> None:
        os.close(handle)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fdopen", opening)
        outcome = unmask("infill", file, "--lines", "2", "-i")
    assert outcome == Outcome(
        2,
        b"def f(x):\r\n1\r\n    return y\r\n",
        "error: program.py could not be written (No space left on device) and is as it was; the filled text is on "
        "standard output: make room, or send it to another file\n",
    )
    assert file.read_bytes() == CRLF
    assert list(Path().iterdir()) == [file]


@pytest.mark.usefixtures("one")
def test_a_disk_too_full_for_the_record_does_not_cost_the_text(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def full_disk(path: Path) -> Iterator[Path]:
        with beside(path) as part:
            yield part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trajectories, "beside", full_disk)
    outcome = unmask("infill", file, "--lines", "2", "--trajectory", "run.jsonl")
    assert (outcome.code, outcome.out) == (2, b"def f(x):\r\n1\r\n    return y\r\n")
    assert outcome.err.startswith("error: could not write run.jsonl (No space left on device)")
    assert unmask("infill", file, "--lines", "2", "-i", "--trajectory", "run.jsonl").code == 2
    assert file.read_bytes() == b"def f(x):\r\n1\r\n    return y\r\n"


def test_numbers_that_are_not_numbers_leave_the_file_and_keep_the_record(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(row: list[int], position: int) -> torch.Tensor:
        return torch.full((VOCAB_SIZE,), float("nan") if row.count(MASK_ID) == 2 else 0.0)

    model = scripted(tiny_model("full"), scores)
    monkeypatch.setattr(session, "load", lambda *_, **__: model)
    told = refusal("infill", file, "--lines", "2", "--length", 4, "-i", "-q", "--trajectory", "run.jsonl")
    assert told.startswith("the network returned logits that are not numbers (NaN) in step 3")
    assert file.read_bytes() == CRLF
    assert len(trajectories.load("run.jsonl")[0].steps) == 2


# --- refused before a model is loaded ---------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(*_: Any, **__: Any) -> Model:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(session, "load", loading)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--lines", "2-3", "--lines", "3"), "the holes overlap at line 3: each line can lie in one hole"),
        (("--lines", "3-2"), "lines 3-2 run backwards; give the first line first: 2-3"),
        (("--lines", "3-4"), "lines 3-4 are not in the text, which has 3 lines counted from 1"),
        (("--lines", "0"), "lines 0-0 are not in the text, which has 3 lines counted from 1"),
        (("--lines", "two"), "--lines two is not a range of lines; give FIRST-LAST, as in --lines 10-14"),
        (
            ("--lines", "2", "--length", "many"),
            "--length many is not a length; give N, N-M, or + for a hole that grows",
        ),
        (("--lines", "2", "--length", "0"), "a hole of 0 to 0 tokens cannot be filled"),
        (("--lines", "2", "--length", "5-3"), "a hole of 5 to 3 tokens cannot be filled"),
        (("--lines", "2", "--limit", 0), "a hole of 1 to 0 tokens cannot be filled"),
        (
            ("--length", "3"),
            "--length 3 is for the holes of --lines, and none were given; a marker says its own length",
        ),
        ((), "the text has no hole; write [[?]] where the model should fill in"),
        (("--lines", "2", "--steps", 0), "--steps 0 is not a count; it must be at least 1"),
        (("--lines", "2", "--top-p", 0), "--top-p 0.0 lies outside (0, 1]"),
        (("--lines", "2", "--trajectory", "gone/run.jsonl"), "which is not there; give a file in a folder that exists"),
    ],
)
def test_a_hole_or_setting_that_breaks_its_rule_is_refused(file: Path, given: tuple[object, ...], words: str) -> None:
    assert words in refusal("infill", file, *given)
    assert file.read_bytes() == CRLF


@pytest.mark.usefixtures("no_model")
def test_a_file_that_cannot_be_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("infill", "gone.py") == "there is no file gone.py; give a text with holes, or - for standard input"
    assert refusal("infill", ".") == ". is a folder; give a text file with holes"
    Path("latin.py").write_bytes(b"# caf\xe9 [[?]]\n")
    latin = " is not UTF-8: byte 5 (line 1) is 0xe9; convert it first, as in `iconv -f latin1 -t utf-8`"
    assert refusal("infill", "latin.py") == "latin.py" + latin
    assert refusal("infill", "-", stdin=b"# caf\xe9 [[?]]\n") == "standard input" + latin
    Path("empty.py").touch()
    assert refusal("infill", "empty.py").startswith("the text has no hole")
    assert refusal("infill", "empty.py", "--lines", "1").startswith("lines 1-1 are not in the text, which has 0 lines")

    def shut(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", shut)
    assert refusal("infill", file) == (
        "program.py cannot be read (Permission denied); give another file, or - for stdin"
    )


@pytest.mark.usefixtures("no_model")
def test_in_place_needs_a_file_that_can_be_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("infill", "-", "-i", stdin=b"[[?]]") == (
        "--in-place needs a file to write back to; leave it out to read standard input"
    )

    def shut(**_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", shut)
    assert refusal("infill", file, "--lines", "2", "-i") == (
        "--in-place program.py cannot be written (Permission denied); give a file in another folder"
    )


@pytest.mark.usefixtures("no_model")
def test_options_without_a_meaning_here_are_unknown(file: Path) -> None:
    for option in ("--max-new-tokens", "--mode", "--eps"):
        outcome = unmask("infill", file, option, "1")
        assert (outcome.code, outcome.out) == (2, b"")
        assert option in outcome.err


# --- refused by the model ---------------------------------------------------------------------------------------------


def test_holes_that_do_not_fit_are_refused_and_the_file_is_left(full: Path, file: Path) -> None:
    told = refusal("infill", file, "--lines", "2", "--length", 600, "-i", "-m", full)
    assert told == (
        "the given text and the holes take at least 627 tokens, but the model's context holds 512; "
        "shorten the text around the holes"
    )
    assert file.read_bytes() == CRLF


@pytest.mark.parametrize("kind", ["plain", "block"])
def test_a_model_that_cannot_infill_is_refused(folders: dict[str, Path], file: Path, kind: str) -> None:
    told = refusal("infill", file, "--lines", "2", "-m", folders[kind])
    assert "so a hole would not see the text behind it, and it has no fill-in-the-middle form" in told
    assert "infill with a full-attention model such as diffucoder-7b-instruct" in told


def test_an_unknown_model_is_refused_with_the_nearest(file: Path) -> None:
    assert "did you mean smollm2-135m-instruct" in refusal("infill", file, "--lines", "2", "-m", "smollm2-135m-instrct")
    assert file.read_bytes() == CRLF
