"""The command line as a whole: help, unknown words, what it imports, and how errors come out."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest

import unmask as package
from unmask.cli.options import _SETTINGS
from unmask.decode.settings import POLICIES, DecodeSettings
from unmask.errors import UnmaskError
from unmask.trajectory import Commit, Step, Trajectory, save

from command_line import Outcome, refusal, unmask

VERBS = (
    *("generate", "chat", "infill", "replay", "analyze", "evaluate", "train", "reproduce"),
    *("trajectory", "models", "data", "doctor"),
)


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


def test_alone_it_shows_the_help_with_examples() -> None:
    outcome = unmask()
    shown = outcome.text + outcome.err
    assert outcome.code in (0, 2)
    assert 'unmask generate "Write a function that reverses a string."' in shown
    assert "Traceback" not in shown


def test_help_names_every_verb_and_its_first_sentence_fits() -> None:
    outcome = unmask("--help")
    assert outcome.code == 0
    assert outcome.err == ""
    listing = outcome.text[outcome.text.index("Commands:") :]
    assert sorted(re.findall(r"^  ([a-z]+) ", listing, re.MULTILINE)) == sorted(VERBS)
    assert "..." not in listing


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb: str) -> None:
    for flag in ("--help", "-h"):
        outcome = unmask(verb, flag)
        assert outcome.code == 0
        assert f"Usage: unmask {verb}" in outcome.text
    if verb not in ("trajectory", "models", "data"):
        assert f"Example: unmask {verb}" in outcome.text


def test_version_is_the_packages() -> None:
    assert unmask("--version").text == package.__version__ + "\n"


def test_an_unknown_verb_is_refused_with_the_nearest() -> None:
    outcome = unmask("generat", "hello")
    assert (outcome.code, outcome.out) == (2, b"")
    assert "No such command 'generat'" in outcome.err
    assert "generate" in outcome.err.replace("'generat'", "")


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    outcome = unmask("generate", "hello", "--temprature", "1")
    assert (outcome.code, outcome.out) == (2, b"")
    assert "--temprature" in outcome.err
    assert "--temperature" in outcome.err


def test_a_number_that_is_none_is_refused() -> None:
    outcome = unmask("generate", "hello", "--steps", "many")
    assert (outcome.code, outcome.out) == (2, b"")
    assert "'--steps'" in outcome.err


def test_every_setting_has_its_option_and_help_states_its_default() -> None:
    settings = {field.name: field.default for field in fields(DecodeSettings)}
    assert set(_SETTINGS) == set(settings)
    told = " ".join(unmask("generate", "--help").text.split())
    for name, default in settings.items():
        flag = "--" + name.replace("_", "-")
        assert flag in told
        stated = re.search(rf"{flag} [A-Z]+ [^\[]*\[([^\]]*)\]", told)
        assert stated is not None, flag
        first = stated[1].split(":")[0]
        if isinstance(default, str):
            assert first == default
        elif default is not None:
            assert float(first) == default
    for policy in POLICIES:
        assert policy in told


def test_help_replay_and_the_model_list_never_load_torch(tmp_path: Path) -> None:
    run = Trajectory(initial_ids=[None], steps=[Step(commits=[Commit(0, 0, 1, 1.0, 0.0)])], pieces={1: "hi"})
    save(tmp_path / "run.jsonl", [run])
    commands = [
        ["--help"],
        ["--version"],
        [],
        ["generate", "--help"],
        ["models", "list"],
        ["models", "show", "smollm2-135m"],
        ["replay", str(tmp_path / "run.jsonl")],
        ["generat"],
    ]
    code = (
        "import sys\nfrom unmask.cli.main import main\nheavy = {}\n"
        f"for command in {commands!r}:\n"
        "    sys.argv = ['unmask', *command]\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "    heavy[' '.join(command)] = [m for m in ('torch', 'numpy', 'tokenizers', 'jinja2') if m in sys.modules]\n"
        "print('heavy:', {command: found for command, found in heavy.items() if found})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: {}"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends_with() -> Iterator[mock.Mock]:
    with mock.patch("unmask.cli.main.app") as app:
        yield app


def ending(app: mock.Mock, error: BaseException) -> Outcome:
    app.side_effect = error
    return unmask()


def test_an_error_of_ours_is_one_line_and_code_2(ends_with: mock.Mock) -> None:
    assert ending(ends_with, UnmaskError("what; why; what next")) == Outcome(2, b"", "error: what; why; what next\n")


def test_an_interrupt_outside_a_run_is_code_130_and_says_nothing(ends_with: mock.Mock) -> None:
    assert ending(ends_with, KeyboardInterrupt()) == Outcome(130, b"", "")


@pytest.mark.parametrize(
    ("number", "file", "words"),
    [
        (
            errno.ENOSPC,
            "/full/run.jsonl",
            "/full/run.jsonl: No space left on device; make room or choose another place",
        ),
        (errno.ENOSPC, None, "the output: No space left on device; make room or choose another place"),
        (errno.EACCES, "/shut", "/shut: Permission denied; change its permissions or choose another place"),
        (errno.EROFS, "/shut", "/shut: Read-only file system; change its permissions or choose another place"),
    ],
)
def test_a_disk_that_is_full_or_shut_is_told_without_a_traceback(
    ends_with: mock.Mock, number: int, file: str | None, words: str
) -> None:
    assert ending(ends_with, OSError(number, os.strerror(number), file)) == Outcome(2, b"", f"error: {words}\n")


def test_other_errors_of_the_system_are_not_hidden(ends_with: mock.Mock) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        ending(ends_with, OSError(errno.EBADF, "Bad file descriptor"))


def test_a_refusal_comes_before_torch_where_nothing_else_is_needed() -> None:
    assert refusal("replay", "no-such-file.jsonl").startswith("there is no file no-such-file.jsonl")
