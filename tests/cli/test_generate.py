"""`unmask generate`: what goes where, what is kept, and every input that it refuses."""

import errno
import json
import os
import re
import shutil
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask import trajectory as trajectories
from unmask.analyze.ar_ness import global_ar_ness, local_ar_ness
from unmask.atomic import beside
from unmask.decode import session
from unmask.decode.run import Run
from unmask.decode.session import Model, load
from unmask.model import hub
from unmask.model.config import Override
from unmask.model.table import Defaults, ModelEntry, PackageSource
from unmask.trajectory import StepEvent

from checkpoints import (
    CHATML,
    END_ID,
    MASK_ID,
    VOCAB_SIZE,
    scripted,
    spell,
    tiny_model,
    write_checkpoint,
    write_drafter,
    write_gguf,
)
from command_line import Outcome, refusal, start, unmask

PROMPT = "def add(a, b):"
SHORT = ("--max-new-tokens", 8, "--dtype", "float32")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, nobody's cache, an empty working folder, and a terminal without colours."""
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
    made["drafter"] = write_drafter(place / "drafter")
    return made | {"chat": write_checkpoint(place / "chat", "causal", chat=True)}


@pytest.fixture
def full(folders: dict[str, Path]) -> Path:
    return folders["full"]


@pytest.fixture
def damaged(full: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be spoilt."""
    return Path(shutil.copytree(full, tmp_path / "damaged"))


def generate(folder: Path, *more: object, stdin: bytes = b"") -> Outcome:
    outcome = unmask("generate", PROMPT, "-m", folder, *SHORT, *more, stdin=stdin)
    assert outcome.code == 0, outcome.err
    return outcome


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; None takes one out."""
    path = folder / "config.json"
    config = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(config))
    return folder


def answers_with(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    """Let `--model`, whatever it names, be this model."""
    monkeypatch.setattr(session, "load", lambda *_, **__: model)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Ctrl-C, as soon as a run has recorded this many steps."""
    record = Run._record

    def recording(self: Run, event: StepEvent) -> None:
        record(self, event)
        if event.step + 1 == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_record", recording)


# --- what goes where --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "causal", "block"])
def test_stdout_carries_the_answer_alone_and_stderr_the_card(folders: dict[str, Path], kind: str) -> None:
    outcome = generate(folders[kind])
    expected = load(str(folders[kind]), dtype="float32").generate(PROMPT, max_new_tokens=8)
    assert outcome.text == expected.text + "\n"
    first, second, third = outcome.err.splitlines()
    assert re.fullmatch(r"[\d.,]+ settled tokens/s: \d+ tokens? in [\d.]+ s, .*", first)
    assert second.startswith(f"{expected.num_forwards} forwards, ")
    assert f" {expected.positions_computed} positions computed" in second
    assert third == "the room of 8 tokens was used up; --max-new-tokens gives more"


def test_quiet_says_nothing_beside_the_answer(full: Path) -> None:
    outcome = generate(full, "-q", "--trajectory", "run.jsonl")
    assert outcome.err == ""
    assert outcome.out == generate(full).out


def test_json_is_one_object_with_what_a_program_needs(full: Path) -> None:
    outcome = generate(full, "--json", "--seed", 7, "--temperature", 0.5)
    record = json.loads(outcome.text)
    assert outcome.out.count(b"\n") == 1
    needed = {"text", "model", "num_tokens", "num_forwards", "seconds", "seed", "settings", "finish_reason"}
    assert needed <= record.keys()
    assert record["model"] == str(full)
    assert record["seed"] == 7
    assert record["settings"]["temperature"] == 0.5
    assert (record["num_tokens"], record["num_forwards"], record["finish_reason"]) == (8, 8, "length")
    assert record["seconds"] > 0
    assert record["text"] + "\n" == generate(full, "--seed", 7, "--temperature", 0.5).text


def test_several_answers_are_told_apart(full: Path) -> None:
    outcome = generate(full, "-n", 3, "--temperature", 1)
    parts = re.split(r"=== answer (\d) of 3 ===\n", outcome.text)
    assert parts[0] == ""
    assert parts[1::2] == ["1", "2", "3"]
    record = json.loads(generate(full, "-n", 3, "--temperature", 1, "--json").text)
    assert [answer["text"] + "\n" for answer in record["answers"]] == parts[2::2]
    assert [answer["sample"] for answer in record["answers"]] == [0, 1, 2]
    assert record["text"] == record["answers"][0]["text"]
    assert len(set(parts[2::2])) == 3


def test_the_same_seed_prints_the_same_bytes(full: Path) -> None:
    one, two, other = (generate(full, "--temperature", 1, "--seed", seed).out for seed in (1, 1, 2))
    assert one == two != other


def test_a_dash_reads_the_prompt_from_standard_input(full: Path) -> None:
    outcome = unmask("generate", "-", "-m", full, *SHORT, stdin=PROMPT.encode())
    assert outcome.out == generate(full).out


def test_the_prompt_goes_through_the_template_unless_raw(folders: dict[str, Path]) -> None:
    for number, more in enumerate(([], ["--raw"], ["--system", "be brief"])):
        generate(folders["chat"], *more, "--trajectory", f"{number}.jsonl")
    prompts = []
    for number in range(3):
        (run,) = trajectories.load(f"{number}.jsonl")
        prompts.append(run.text(token for token in run.initial_ids if token is not None))
    asked = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [asked, PROMPT, f"<|im_start|>system\nbe brief<|im_end|>\n{asked}"]
    assert "im_start" in CHATML


def test_a_terminal_is_drawn_on_and_its_stdout_still_has_the_answer_alone(full: Path) -> None:
    outcome = unmask("generate", PROMPT, "-m", full, *SHORT, terminal=True)
    assert outcome.code == 0
    assert f"loading {full}"[:40] in outcome.err
    assert "8/8 settled" in outcome.err or "░" in outcome.err
    assert "░" not in outcome.text
    quiet = unmask("generate", PROMPT, "-m", full, *SHORT, "-q", terminal=True)
    assert quiet == Outcome(0, outcome.out, "")


def test_an_answer_cannot_steer_the_terminal(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers_with(monkeypatch, scripted(tiny_model("full"), spell("\x1b[2Ja\r\nb", start=len(PROMPT))))
    asked = ("generate", PROMPT, "--max-new-tokens", 16, "--policy", "left_to_right", "-q")
    assert unmask(*asked, terminal=True).text == "␛[2Ja\nb\n"
    assert unmask(*asked).text == "\x1b[2Ja\r\nb\n"


# --- the record, and taking it up again -------------------------------------------------------------------------------


def test_the_trajectory_is_kept_and_replays_the_answer(full: Path) -> None:
    outcome = generate(full, "-n", 2, "--temperature", 1, "--trajectory", "run.jsonl")
    assert "trajectory kept in run.jsonl; `unmask replay run.jsonl` plays it\n" in outcome.err
    runs = trajectories.load("run.jsonl")
    assert [run.finish_reason for run in runs] == ["length", "length"]
    for row in range(2):
        assert unmask("replay", "run.jsonl", "--row", row).text in outcome.text
    assert list(Path().iterdir()) == [Path("run.jsonl")]


def test_resume_goes_on_as_the_unbroken_run(full: Path) -> None:
    whole = generate(full, "--temperature", 1, "--seed", 3, "--trajectory", "run.jsonl")
    for at in (0, 3, 8):
        again = unmask("generate", "--resume", "run.jsonl", "--at", at, "-m", full, "--dtype", "float32")
        assert again.code == 0
        assert again.out == whole.out
    other = unmask(
        "generate", "--resume", "run.jsonl", "--at", 3, "-m", full, "--temperature", 3, "--seed", 9, "--json"
    )
    record = json.loads(other.text)
    assert record["text"] + "\n" != whole.text
    assert (record["settings"]["temperature"], record["seed"]) == (3.0, 9)


def test_the_card_of_a_resumed_run_counts_only_what_it_did(full: Path) -> None:
    generate(full, "--trajectory", "run.jsonl")
    again = unmask("generate", "--resume", "run.jsonl", "--at", 6, "-m", full, "--dtype", "float32")
    assert " settled tokens/s: 2 tokens in " in again.err
    assert "\n2 forwards, 1.0 tokens per forward, " in again.err
    done = unmask("generate", "--resume", "run.jsonl", "--at", 8, "-m", full, "--dtype", "float32")
    assert "0.0 settled tokens/s: 0 tokens in 0.0 s" in done.err


def test_a_setting_of_the_recorded_policy_can_be_changed_on_resume(full: Path) -> None:
    generate(full, "--policy", "threshold", "--threshold", 1, "--trajectory", "run.jsonl")
    again = unmask("generate", "--resume", "run.jsonl", "--at", 2, "--threshold", "0.001", "-m", full, "--json")
    assert json.loads(again.text)["num_forwards"] == 3


def test_a_resume_that_makes_no_sense_is_refused(full: Path, tmp_path: Path) -> None:
    generate(full, "--trajectory", "run.jsonl")
    generate(full, "--mode", "reference", "--trajectory", "reference.jsonl")
    at = ("--resume", "run.jsonl", "--at", 2, "-m", tmp_path / "never looked at")
    both = "--resume FILE and --at K go together: the record, and the step after which to go on"
    assert refusal("generate", "--resume", "run.jsonl") == both
    assert refusal("generate", PROMPT, "--at", 3) == both
    either = 'give either a prompt, as in `unmask generate "Write hello world."`, or --resume FILE --at K'
    assert refusal("generate", PROMPT, *at) == refusal("generate") == either
    for option in (("-n", 2), ("--raw",), ("--system", "x")):
        assert refusal("generate", *at, *option) == (
            f"{option[0]} has no effect with --resume, which goes on from one recorded canvas; leave one of them out"
        )
    assert "--max-new-tokens 9 has no effect on a recorded run" in refusal("generate", *at, "--max-new-tokens", 9)
    assert "--top-p 7.0 lies outside (0, 1]" in refusal("generate", *at, "--top-p", 7)
    assert "this trajectory has 8 steps" in refusal("generate", "--resume", "run.jsonl", "--at", 9)
    assert "there is no file gone.jsonl" in refusal("generate", "--resume", "gone.jsonl", "--at", 0)
    assert "one random stream" in refusal("generate", "--resume", "reference.jsonl", "--at", 2)
    Path("half.jsonl").write_bytes(Path("run.jsonl").read_bytes()[:100])
    assert "is not JSON" in refusal("generate", "--resume", "half.jsonl", "--at", 0)


def test_a_record_of_a_larger_vocabulary_is_refused(full: Path, tmp_path: Path) -> None:
    generate(full, "--trajectory", "run.jsonl")
    small = write_checkpoint(tmp_path / "small", vocab_size=100, mask_id=99, end_ids=())
    told = refusal("generate", "--resume", "run.jsonl", "--at", 0, "-m", small)
    assert told.startswith(f"the trajectory was made by {full} and holds ids beyond this model's vocabulary of 100")


# --- cut short --------------------------------------------------------------------------------------------------------


def test_an_interrupt_keeps_what_had_settled(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 3)
    outcome = unmask("generate", PROMPT, "-m", full, *SHORT, "--trajectory", "run.jsonl")
    (run,) = trajectories.load("run.jsonl")
    assert outcome.code == 130
    assert len(run.steps) == run.num_forwards == 3
    assert run.finish_reason == "interrupted"
    assert "interrupted; the answer is what had settled by then\n" in outcome.err
    assert outcome.text != "\n"
    record = json.loads(unmask("generate", PROMPT, "-m", full, *SHORT, "--json").text)
    assert (record["finish_reason"], record["num_tokens"], record["num_forwards"]) == ("interrupted", 3, 3)
    assert record["text"] + "\n" == outcome.text


def test_an_interrupt_while_drawing_keeps_it_too(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 3)
    outcome = unmask("generate", PROMPT, "-m", full, *SHORT, "--trajectory", "run.jsonl", terminal=True)
    assert outcome.code == 130
    assert len(trajectories.load("run.jsonl")[0].steps) == 3
    assert outcome.err.rstrip().endswith("interrupted; the answer is what had settled by then")
    assert outcome.err.count("\x1b[?25l") == outcome.err.count("\x1b[?25h")  # the cursor is back


def test_an_interrupt_while_loading_leaves_an_older_record_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(*_: Any, **__: Any) -> Model:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "load", loading)
    Path("run.jsonl").write_text("older")
    for terminal in (False, True):
        outcome = unmask("generate", PROMPT, "--trajectory", "run.jsonl", terminal=terminal)
        assert (outcome.code, outcome.out) == (130, b"")
        assert "Traceback" not in outcome.err
    assert Path("run.jsonl").read_text() == "older"


def test_a_kept_trajectory_names_three_runners_up_and_the_first_look(full: Path) -> None:
    plain = generate(full)
    assert generate(full, "--trajectory", "run.jsonl").out == plain.out
    (run,) = trajectories.load("run.jsonl")
    runners_up = [commit.runners_up for step in run.steps for commit in step.commits]
    assert [len(runners) for runners in runners_up] == [3] * 8
    assert {token for runners in runners_up for token, _ in runners} <= run.pieces.keys()
    assert [len(step.seen) for step in run.steps] == [8] + [0] * 7
    generate_on = unmask("generate", "--resume", "run.jsonl", "--at", 3, "-m", full, "--trajectory", "on.jsonl")
    assert generate_on.code == 0
    assert trajectories.load("on.jsonl")[0].steps[:3] == run.steps[:3]
    assert [len(c.runners_up) for step in trajectories.load("on.jsonl")[0].steps for c in step.commits] == [3] * 8


# --- the live meter ---------------------------------------------------------------------------------------------------


def test_live_draws_a_meter_on_stderr_and_leaves_its_last_reading(full: Path) -> None:
    plain = unmask("generate", PROMPT, "-m", full, *SHORT, terminal=True)
    outcome = unmask("generate", PROMPT, "-m", full, *SHORT, "--live", "--trajectory", "run.jsonl", terminal=True)
    assert outcome.out == plain.out
    assert "AR-ness" not in plain.err
    order = trajectories.load("run.jsonl")[0].order()
    last = outcome.err[outcome.err.rindex("AR-ness") :].split("\n")[0]
    numbers = [float(number) for number in re.findall(r"[\d.]{4}", last)]
    assert numbers == pytest.approx([local_ar_ness(order), global_ar_ness(order)], abs=0.005)


def test_live_on_a_resumed_run_counts_from_its_beginning(full: Path) -> None:
    generate(full, "--trajectory", "run.jsonl")
    whole = unmask("generate", PROMPT, "-m", full, *SHORT, "--live", terminal=True)
    again = unmask("generate", "--resume", "run.jsonl", "--at", 6, "-m", full, "--live", terminal=True)
    readings = [re.findall(r"AR-ness .*", outcome.err)[-1] for outcome in (whole, again)]
    assert readings[0] == readings[1]


def test_live_without_a_terminal_says_so_and_goes_on(full: Path) -> None:
    outcome = generate(full, "--live")
    assert outcome.out == generate(full).out
    first, *_ = outcome.err.splitlines()
    assert first == "--live has nothing to draw on: stderr is no terminal; the run goes on without"
    assert "AR-ness" not in outcome.err


def test_live_and_quiet_exclude_each_other() -> None:
    assert refusal("generate", PROMPT, "--live", "-q") == (
        "--live draws on the terminal and --quiet keeps it empty; leave one of them out"
    )


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


def test_ctrl_c_half_way_keeps_a_record_that_loads(full: Path) -> None:
    with start(
        "generate", PROMPT, "-m", full, "--max-new-tokens", 400, "--trajectory", "run.jsonl", before=SLOW
    ) as child:
        assert child.stderr is not None
        for _ in range(3):
            assert child.stderr.readline() == b"step\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in err
    (run,) = trajectories.load("run.jsonl")
    assert 3 <= len(run.steps) < 400
    assert run.finish_reason == "interrupted"
    settled = [commit.token_id for step in run.steps for commit in step.commits]
    assert len(settled) == len(run.steps)
    assert out.endswith(b"\n")
    assert list(Path().iterdir()) == [Path("run.jsonl")]


def test_a_reader_that_has_enough_ends_it_without_a_traceback(full: Path) -> None:
    with start("generate", PROMPT, "-m", full, *SHORT, "--trajectory", "run.jsonl") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        err = child.stderr.read()
    assert child.returncode == 1
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err
    assert len(trajectories.load("run.jsonl")[0].steps) == 8


@pytest.mark.parametrize("before", [None, b"an older record"])
def test_a_full_disk_loses_neither_the_answer_nor_the_older_record(
    full: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    expected = generate(full).out
    if before is not None:
        Path("run.jsonl").write_bytes(before)

    @contextmanager
    def full_disk(path: Path) -> Iterator[Path]:
        with beside(path) as part:
            yield part
            part.write_bytes(part.read_bytes()[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trajectories, "beside", full_disk)
    outcome = unmask("generate", PROMPT, "-m", full, *SHORT, "--trajectory", "run.jsonl")
    assert outcome == Outcome(
        2,
        expected,
        "error: could not write run.jsonl (No space left on device); what was there before is untouched: "
        "make room or give another file\n",
    )
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == (
        {} if before is None else {"run.jsonl": before}
    )


def test_numbers_that_are_not_numbers_are_told_and_the_record_so_far_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(row: list[int], position: int) -> torch.Tensor:
        return (
            torch.full((VOCAB_SIZE,), float("nan")) if row.count(256) == 5 else spell("x" * 9, start=14)(row, position)
        )

    answers_with(monkeypatch, scripted(tiny_model("full"), scores))
    told = refusal("generate", PROMPT, "--max-new-tokens", 8, "--trajectory", "run.jsonl", "-q")
    assert told.startswith("the network returned logits that are not numbers (NaN) in step 4, row 0, position ")
    assert told.endswith("load the checkpoint again, or in float32 with `--dtype float32`")
    (run,) = trajectories.load("run.jsonl")
    assert len(run.steps) == 3
    assert run.finish_reason == "interrupted"


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
        (("--steps", 0), "--steps 0 is not a count; it must be at least 1"),
        (("--steps=-4",), "--steps -4 is not a count; it must be at least 1"),
        (("--max-new-tokens", 0), "--max-new-tokens 0 is not a count; it must be at least 1"),
        (("--block-length", 0), "--block-length 0 is not a count; it must be at least 1"),
        (("--top-k", 0), "--top-k 0 is not a count; it must be at least 1"),
        (("--top-p", 0), "--top-p 0.0 lies outside (0, 1]; 1 keeps everything"),
        (("--top-p", 1.5), "--top-p 1.5 lies outside (0, 1]; 1 keeps everything"),
        (("--top-p", "nan"), "--top-p nan lies outside (0, 1]; 1 keeps everything"),
        (("--temperature=-1",), "--temperature -1.0 is not a temperature; it must be 0 (greedy) or more"),
        (("--temperature", "inf"), "--temperature inf is not a temperature; it must be 0 (greedy) or more"),
        (("--policy", "entropi"), "--policy 'entropi' is not known; did you mean entropy or entropy_bound?"),
        (("--mode", "refrence"), "--mode 'refrence' is not known; did you mean reference?"),
        (("--threshold", 0.5), "--threshold 0.5 has no effect with the policy 'entropy'; give `--policy threshold`"),
        (("--eps", 0.5), "--eps belongs to the reference schedule; give `--mode reference` with it"),
        (("--attention", "ful"), "`--attention ful` is not a kind of attention; give full, causal, or block:LENGTH"),
        (
            ("--attention", "block"),
            "`--attention block` is not a kind of attention; give full, causal, or block:LENGTH",
        ),
        (("--trajectory", "gone/run.jsonl"), "which is not there; give a file in a folder that exists"),
        (("--trajectory", "."), "--trajectory . is a folder; give a file in a folder that exists"),
    ],
)
def test_a_setting_that_breaks_its_rule_is_refused(given: tuple[object, ...], words: str) -> None:
    assert words in refusal("generate", PROMPT, *given)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    words = 'the prompt is empty; give some text, as in `unmask generate "Write hello world."`'
    assert refusal("generate", prompt) == words
    assert refusal("generate", "-", stdin=prompt.encode()) == words


@pytest.mark.usefixtures("no_model")
def test_standard_input_that_is_not_utf8_is_refused_with_the_place() -> None:
    assert refusal("generate", "-", stdin=b"one\ntwo caf\xe9\nthree") == (
        "standard input is not UTF-8: byte 11 (line 2) is 0xe9; convert it first, as in `iconv -f latin1 -t utf-8`"
    )


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_cannot_be_written_is_refused_even_where_the_file_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(**_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", shut)
    Path("run.jsonl").write_text("older")
    for name in ("run.jsonl", "new.jsonl"):
        assert refusal("generate", PROMPT, "--trajectory", name) == (
            f"--trajectory {name} cannot be written (Permission denied); give a file in another folder"
        )


# --- refused by the model ---------------------------------------------------------------------------------------------


def refused(folder: Path | str, *more: object, prompt: str = PROMPT) -> str:
    """The refusal; nothing is left behind by a run that did not begin."""
    told = refusal("generate", prompt, "-m", folder, "--trajectory", "run.jsonl", *more)
    assert list(Path().iterdir()) == []
    return told


def test_an_unknown_model_is_refused_with_the_nearest() -> None:
    told = refused("smollm2-135m-instrct")
    assert told.startswith("'smollm2-135m-instrct' is not a model of the table, not a folder or .gguf file that exists")
    assert "did you mean smollm2-135m-instruct" in told


def test_without_a_network_and_with_nothing_cached_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("smollm2-135m-instruct", "somebody/tiny"):
        told = refused(name)
        assert told.startswith(f"{name} is not on this machine and UNMASK_OFFLINE is set, so it cannot be downloaded")
        assert f"run `unmask models pull {name}` with the network allowed" in told
    monkeypatch.delenv("UNMASK_OFFLINE")
    assert "and offline was asked for" in refused("somebody/tiny", "--offline")


def test_a_prompt_longer_than_the_context_is_refused(full: Path) -> None:
    assert refused(full, prompt="x" * 300) == (
        "the prompt has 300 tokens and 256 new ones were asked for, but the model's context holds 512; "
        "give --max-new-tokens 212 or fewer"
    )
    assert refused(full, prompt="x" * 600).endswith("the model's context holds 512; shorten the prompt")


def test_no_answers_are_refused(full: Path) -> None:
    assert refused(full, "-n", 0) == "-n 0 is not a number of answers; it must be at least 1"


def test_a_system_message_without_a_template_is_refused(full: Path) -> None:
    assert refused(full, "--system", "be brief").startswith("--system was given, but the prompt does not go through")


def test_blocks_on_an_autoregressive_model_are_refused(folders: dict[str, Path]) -> None:
    told = refused(folders["causal"], "--block-length", 4)
    assert told.startswith("--block-length 4 was given, but the model is autoregressive")


def test_a_precision_device_or_revision_that_cannot_be_is_refused(full: Path) -> None:
    assert "did you mean bfloat16" in refused(full, "--dtype", "bf16")
    assert refused(full, "--device", "gpu").startswith("--device gpu cannot be used here (")
    assert "which is on this disk and has no revisions" in refused(full, "--revision", "main")
    assert "holds no adapter_config.json" in refused(full, "--adapter", ".")


def test_a_config_without_a_mask_id_is_refused_with_the_flag_that_gives_it(damaged: Path) -> None:
    section = {"attention": "full", "shift_logits": True}
    edit_config(damaged, mask_token_id=None, unmask=section)
    told = refused(damaged)
    assert told == (
        "the checkpoint attends 'full', so masked positions are fed to it, but it names no mask id; "
        "give it with `--mask-id ID`"
    )
    assert generate(damaged, "--mask-id", 256).code == 0
    assert "mask id 5000 lies outside the vocabulary of 280" in refused(damaged, "--mask-id", 5000)


def test_a_mask_id_without_a_word_on_attention_is_refused_with_the_flag(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["block"], tmp_path / "silent"))
    edit_config(folder, unmask=None)
    assert "give `--attention full`, `--attention block:LENGTH` or `--attention causal`" in refused(folder)
    assert generate(folder, "--attention", "block:8").out == generate(folders["block"]).out


def test_truncated_weights_are_refused(damaged: Path) -> None:
    file = damaged / "model.safetensors"
    whole = file.read_bytes()
    for kept in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        told = refused(damaged)
        assert f"{file} is cut short" in told
        assert "download the file again" in told


def test_weights_of_other_shapes_are_refused_by_name(damaged: Path) -> None:
    told = refused(edit_config(damaged, intermediate_size=64))
    assert "mis-shaped: " in told
    assert "model.layers.0.mlp.gate_proj.weight is 48×32 instead of 64×32" in told
    told = refused(edit_config(damaged, intermediate_size=48, num_hidden_layers=3))
    assert "missing: model.layers.2." in told
    told = refused(edit_config(damaged, num_hidden_layers=1))
    assert "unexpected: model.layers.1." in told


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_is_refused(damaged: Path, file: str) -> None:
    (damaged / file).write_bytes(b'{"half":')
    assert file in refused(damaged)


def test_a_folder_or_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refused(tmp_path / "empty")
    (tmp_path / "text.txt").write_text("x")
    assert "is a file but not a .gguf" in refused(tmp_path / "text.txt")
    (tmp_path / "text.gguf").write_text("hello there, I am a text")
    assert "is not a GGUF file" in refused(tmp_path / "text.gguf")
    (tmp_path / "none.gguf").write_bytes(b"")
    assert "is empty; download it again" in refused(tmp_path / "none.gguf")


def test_a_gguf_file_that_is_cut_short_or_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    assert generate(file).code == 0
    whole = file.read_bytes()
    for kept in (30, len(whole) // 2, len(whole) - 32):
        file.write_bytes(whole[:kept])
        assert "is cut short" in refused(file)
    file.write_bytes(whole.replace(struct.pack("<Q", 5) + b"dream", struct.pack("<Q", 5) + b"dreem"))
    assert "has the architecture 'dreem', which is not read here; qwen2, llama, dream, llada are" in refused(file)


def test_damaged_weights_that_are_no_numbers_are_told(damaged: Path) -> None:
    file = damaged / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    file.write_bytes(bytes(data))
    told = refusal("generate", PROMPT, "-m", damaged, *SHORT)
    assert told.startswith("the network returned logits that are not numbers (NaN) in step 1")


def test_an_answer_of_no_tokens_is_an_empty_line(monkeypatch: pytest.MonkeyPatch) -> None:
    answers_with(monkeypatch, scripted(tiny_model("full"), spell([END_ID], start=len(PROMPT))))
    outcome = unmask("generate", PROMPT, "--policy", "left_to_right")
    assert outcome.out == b"\n"
    assert "used up" not in outcome.err
    assert "0.0 settled tokens/s: 0 tokens" in outcome.err


def test_a_file_of_several_runs_wants_one_named(full: Path) -> None:
    generate(full, "-n", 2, "--temperature", 1, "--trajectory", "two.jsonl")
    again = ("--resume", "two.jsonl", "--at", 2, "-m", full, "--dtype", "float32")
    assert refusal("generate", *again) == "two.jsonl holds 2 runs; say which with --row, from 0 to 1"
    assert "--row 2 is not in two.jsonl" in refusal("generate", *again, "--row", 2)
    second = trajectories.load("two.jsonl")[1]
    outcome = unmask("generate", *again, "--row", 1, "--json")
    assert json.loads(outcome.text)["sample"] == second.sample == 1


def test_a_run_is_taken_up_with_the_model_that_made_it(full: Path) -> None:
    generate(full, "--trajectory", "run.jsonl")
    outcome = unmask("generate", "--resume", "run.jsonl", "--at", 3, "--dtype", "float32", "--json")
    assert json.loads(outcome.text)["model"] == str(full)


def test_options_without_effect_are_named(folders: dict[str, Path]) -> None:
    err = generate(folders["causal"], "--policy", "random", "--top-p", 0.5, "-n", 2).err
    assert "no effect here: --policy, --top-p (the model settles one position per forward, left to right)" in err
    assert "the 2 answers will be the same: nothing is random at --temperature 0" in err
    assert "no effect" not in generate(folders["full"], "--policy", "maskgit_plus").err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: …")])
def test_a_full_memory_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object, **__: object) -> Model:
        raise error

    monkeypatch.setattr(session, "load", load)
    assert refusal("generate", PROMPT).startswith("the memory is used up; take a smaller model")


# A model that comes with the package


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package has weights for `tiny`: a random network that holds conversations."""
    monkeypatch.setattr(hub, "PACKAGE", tmp_path / "package")
    return write_checkpoint(tmp_path / "package" / "weights" / "tiny", "full", chat=True)


def test_tiny_answers_without_a_network_and_with_the_room_it_was_trained_on(packaged: Path) -> None:
    outcome = unmask("generate", PROMPT, "-m", "tiny", "--dtype", "float32", "--steps", 2, "--json", "-q")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.text)["model"] == "tiny"
    assert json.loads(outcome.text)["settings"]["max_new_tokens"] == 96


def test_a_room_that_is_given_goes_before_the_models_own(packaged: Path) -> None:
    more = ("--dtype", "float32", "--steps", 2, "--max-new-tokens", 400, "--json", "-q")
    outcome = unmask("generate", PROMPT, "-m", "tiny", *more)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.text)["settings"]["max_new_tokens"] == 400


def test_a_package_without_the_weights_is_told_in_one_line(packaged: Path) -> None:
    shutil.rmtree(packaged)
    message = refusal("generate", PROMPT, "-m", "tiny")
    assert message.startswith(f"tiny is part of the unmask package, but {packaged} is not there: install unmask again")
    assert "\n" not in message


# --- a drafter ----------------------------------------------------------------------------------------------------


def test_a_drafter_changes_nothing_but_the_forwards(folders: dict[str, Path], tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    plain = generate(folders["causal"], "--temperature", 0.8)
    drafted = generate(folders["causal"], "--temperature", 0.8, "--drafter", folders["drafter"], "--trajectory", record)
    assert drafted.text == plain.text
    assert re.search(r"\d+ tokens drafted and checked, \d+% accepted", drafted.err)
    assert "drafted" not in plain.err
    (run,) = trajectories.load(record)
    assert sum(len(step.drafted) for step in run.steps) > 0
    resumed = unmask(
        "generate", "--resume", record, "--at", 2, "-m", folders["causal"], "--drafter", folders["drafter"],
        "--dtype", "float32",
    )  # fmt: skip
    assert resumed.text == plain.text


def test_each_decoder_of_a_drafted_model_runs(folders: dict[str, Path]) -> None:
    with_drafter = ("--drafter", folders["drafter"], "--json")
    plain = json.loads(generate(folders["causal"], "--json").text)
    for decoder in ("autoregressive", "speculative"):
        found = json.loads(generate(folders["causal"], *with_drafter, "--decoder", decoder).text)
        assert (found["text"], found["num_tokens"]) == (plain["text"], plain["num_tokens"])
        assert found["settings"]["decoder"] == decoder
    trusting = ("--decoder", "diffusion", "--policy", "threshold", "--threshold", 1e-9)
    found = json.loads(generate(folders["causal"], *with_drafter, *trusting).text)
    assert found["num_forwards"] == 2  # eight places in windows of five


def test_a_block_longer_than_the_drafters_is_drafted_and_told(folders: dict[str, Path]) -> None:
    long = ("--drafter", folders["drafter"], "--block-length", 7)
    assert "trained for blocks of up to 5, and those of 7 will be drafted worse; the answer is the same" in generate(
        folders["causal"], *long
    ).err  # fmt: skip
    told = generate(folders["causal"], *long, "--decoder", "diffusion", "--policy", "threshold").err
    assert "will be drafted worse\n" in told
    assert "no effect here" not in told


def test_a_decoder_that_the_model_does_not_have_is_refused(folders: dict[str, Path]) -> None:
    def refused(kind: str, *more: object) -> str:
        return refusal("generate", PROMPT, "-m", folders[kind], *SHORT, *more)

    assert "needs a drafter, and" in refused("causal", "--decoder", "speculative")
    assert "--lenience 0.5 is about drafts, and nothing is drafted here" in refused("causal", "--lenience", "0.5")
    assert "give `--drafter DIR`" in refused("causal", "--decoder", "diffusion")
    assert "is for causal models, and" in refused("full", "--decoder", "autoregressive")
    assert "--policy threshold has no effect with `--decoder speculative`" in refused(
        "causal", "--decoder", "speculative", "--policy", "threshold", "--drafter", folders["drafter"]
    )
    assert "did you mean speculative" in refused("causal", "--decoder", "speculation")
    assert "a drafter is for a causal model" in refused("block", "--drafter", folders["drafter"])
    assert "no adapter, and a drafter is wanted" in refused("causal", "--drafter", folders["causal"])


def test_a_cache_that_is_not_exact_is_refused_with_every_decoder(folders: dict[str, Path]) -> None:
    for decoder in ((), ("--decoder", "diffusion")):
        message = refusal(
            "generate", PROMPT, "-m", folders["causal"], *SHORT, "--drafter", folders["drafter"], "--cache", "prefix",
            *decoder,
        )  # fmt: skip
        assert message.startswith("--cache prefix is for models with full attention")
        assert message.endswith("leave --cache out")


def test_a_run_goes_on_with_another_decoder(folders: dict[str, Path], tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    with_drafter = ("-m", folders["causal"], "--drafter", folders["drafter"], "--dtype", "float32")
    trusting = ("--decoder", "diffusion", "--policy", "threshold", "--threshold", 0.1, "--block-length", 3)
    generate(folders["causal"], "--drafter", folders["drafter"], *trusting, "--trajectory", record)
    plain = generate(folders["causal"]).text
    for decoder in ("autoregressive", "speculative"):
        outcome = unmask("generate", "--resume", record, "--at", 0, *with_drafter, "--decoder", decoder)
        assert (outcome.code, outcome.text) == (0, plain), outcome.err


@pytest.fixture
def named(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`causal-small` is a model of the table with a drafter in the package, and `causal-bare` one without."""
    package = tmp_path / "package"
    for name in ("causal", "drafter"):
        shutil.copytree(folders[name], package / "weights" / name)
    monkeypatch.setattr(hub, "PACKAGE", package)
    entries = tuple(
        ModelEntry(
            name=name,
            family="qwen2",
            parameters=1,
            licence="none",
            description="a network",
            sources=(PackageSource(path="weights/causal"),),
            defaults=Defaults(drafter=drafter),
        )
        for name, drafter in (("causal-small", "weights/drafter"), ("causal-bare", None))
    )
    monkeypatch.setattr("unmask.model.table.models", lambda: entries)
    monkeypatch.setattr(hub, "models", lambda: entries)
    return package / "weights" / "drafter"


def test_a_model_of_the_table_comes_with_its_drafter(named: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    plain = generate(folders["causal"])
    for given in ((), ("--drafter", named), ("--drafter", "causal-small")):
        drafted = generate(Path("causal-small"), *given)
        assert drafted.text == plain.text
        assert "tokens drafted and checked" in drafted.err
    for alone in (("--drafter", "none"), ("--decoder", "autoregressive")):
        assert "drafted" not in generate(Path("causal-small"), *alone).err
    assert "tokens drafted and checked" in generate(folders["causal"], "--drafter", "causal-small").err
    assert "drafted" not in generate(Path("causal-bare")).err
    assert "causal-bare has no drafter in the table; give a folder, or one of causal-small" in refusal(
        "generate", PROMPT, "-m", "causal-small", *SHORT, "--drafter", "causal-bare"
    )


def test_without_the_folder_of_its_drafter_the_model_is_used_alone(
    named: Path, folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (named / "adapter_model.safetensors").unlink()
    alone = generate(Path("causal-small"))
    assert alone.text == generate(folders["causal"]).text
    assert "drafted" not in alone.err
    assert "settles one token a forward: its drafter is not in" in caplog.text


def test_a_drafter_of_the_table_is_for_the_model_as_it_is(named: Path) -> None:
    assert load("causal-small").drafter_folder == named
    assert load("causal-small", override=Override(attention="full", mask_id=MASK_ID)).drafter is None
    assert "the sampler of models that see the whole canvas" in refusal(
        "generate", PROMPT, "-m", "causal-small", *SHORT, "--mode", "reference"
    )
