"""`unmask chat`: turns, commands, what is remembered, and what is refused."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from unmask.cli import chat as module
from unmask.decode import session
from unmask.decode.run import Run
from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.model.table import Defaults
from unmask.trajectory import StepEvent

from checkpoints import scripted, spell, tiny_model, write_checkpoint
from command_line import Outcome, refusal, unmask

HELP = "/clear forgets the conversation, /exit (or Ctrl-D) leaves, /help shows this"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"UNMASK_OFFLINE": "1", "UNMASK_HOME": tmp_path, "HF_HOME": tmp_path}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("TERM", "xterm")


class Listener:
    """A model that answers everything with "ok" and remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.asked: list[str] = []
        self.rooms: list[int] = []
        self.model = model = tiny_model("causal", chat=True, **changes)
        begin = Model.start

        def start(self_: Model, prompts: Sequence[Sequence[int]], settings: DecodeSettings, **how: Any) -> Run:
            (prompt,) = prompts
            self.rooms.append(settings.max_new_tokens)
            self.asked.append(model.tokenizer.decode(prompt, skip_special=False))
            return begin(scripted(model, spell("ok", start=len(prompt))), prompts, settings, **how)

        monkeypatch.setattr(Model, "start", start)
        monkeypatch.setattr(session, "load", lambda *_, **__: model)


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    return Listener(monkeypatch)


def chat(*lines: str | bytes, more: Sequence[object] = (), terminal: bool = False) -> Outcome:
    said = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    outcome = unmask("chat", "--max-new-tokens", 8, *more, stdin=said, terminal=terminal)
    assert outcome.code == 0, outcome.err
    return outcome


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


ANSWER = "<|im_start|>assistant\n"


def test_each_answer_is_a_line_on_stdout_and_its_card_on_stderr(listener: Listener) -> None:
    outcome = chat("one", "two")
    assert outcome.text == "ok\nok\n"
    assert outcome.err.count("2 tokens in ") == 2
    assert chat("one", more=["-q"]) == Outcome(0, b"ok\n", "")


def test_a_turn_sees_the_turns_before_it(listener: Listener) -> None:
    chat("one", "", "   ", "two")
    assert listener.asked == [
        turn("user", "one") + ANSWER,
        turn("user", "one") + turn("assistant", "ok") + turn("user", "two") + ANSWER,
    ]


def test_clear_forgets_all_but_the_system_message(listener: Listener) -> None:
    outcome = chat("one", "/clear", "two", more=["--system", "be brief"])
    assert listener.asked[-1] == turn("system", "be brief") + turn("user", "two") + ANSWER
    assert "forgotten\n" in outcome.err


def test_exit_leaves_and_the_end_of_input_too(listener: Listener) -> None:
    assert chat("one", "/exit", "two").text == "ok\n"
    assert chat().text == ""


def test_commands_explain_themselves_and_never_reach_the_model(listener: Listener) -> None:
    outcome = chat("/help", "/hlep", "/usr/bin is a folder", more=["-q"])
    assert outcome.err == f"{HELP}\n/hlep is not a command; {HELP}\n"
    assert listener.asked == [turn("user", "/usr/bin is a folder") + ANSWER]


def test_a_line_that_is_not_utf8_is_left_out_and_the_others_are_answered(listener: Listener) -> None:
    outcome = chat("one", b"caf\xe9", "two", more=["-q"])
    assert outcome == Outcome(0, b"ok\nok\n", "that line is not UTF-8 and was left out; give it again\n")
    assert listener.asked[-1].endswith(turn("user", "two") + ANSWER)


def test_a_last_line_without_a_newline_is_answered(listener: Listener) -> None:
    assert unmask("chat", "--max-new-tokens", 8, "-q", stdin=b"one").text == "ok\n"


def test_control_tokens_that_a_user_types_stay_text(listener: Listener) -> None:
    chat("<|im_end|>", "two")
    assert listener.asked[1].count("<|im_end|>") == 4  # three of the template, and the text
    assert "user\n<|im_end|><|im_end|>\n" in listener.asked[1]


def test_a_conversation_that_no_longer_fits_is_told_and_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(monkeypatch, max_positions=128)
    outcome = chat("x" * 60, "y" * 60, "/clear", "z", more=["-q"])
    assert outcome.text == "ok\nok\n"
    assert "but the model's context holds 128; " in outcome.err
    assert outcome.err.splitlines()[0].endswith("; or forget the conversation with /clear")
    assert listener.asked[-1] == turn("user", "z") + ANSWER


def test_an_interrupted_answer_is_shown_and_not_remembered(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    record, interrupts = Run._record, iter([True])

    def recording(self: Run, event: StepEvent) -> None:
        record(self, event)
        if next(interrupts, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_record", recording)
    outcome = chat("one", "two")
    assert outcome.text == "o\nok\n"
    assert "interrupted; this turn is not remembered\n" in outcome.err
    assert listener.asked[1] == turn("user", "two") + ANSWER


def test_a_terminal_is_greeted_asked_and_left_on_a_fresh_line(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: Iterator[str] = iter(["one", "caf\udce9", "two"])

    def ask(prompt: str = "") -> str:
        print(prompt, end="")
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", ask)
    outcome = chat(more=["-q"], terminal=True)
    assert outcome.err.startswith(f"tiny-causal\n{HELP}\n")
    assert outcome.err.endswith("that line is not UTF-8 and was left out; give it again\n\n")
    assert outcome.text == "> ok\n> > ok\n> "


def test_the_prompt_never_goes_into_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt="": f"typed after {prompt!r}")
    assert module._ask() == "typed after ''"
    assert capsys.readouterr() == ("", "> ")


def test_a_model_without_a_chat_template_is_refused_at_once(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "causal")
    assert refusal("chat", "-m", folder, stdin=b"hello\n") == (
        f"{folder} has no chat template, so there is no known way to hold a conversation with it; "
        "`unmask generate --raw` continues a text"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--steps", 0), "--steps 0 is not a count"),
        (("--top-p", 2), "--top-p 2.0 lies outside (0, 1]"),
        (("-m", "smollm2-135m-instrct"), "did you mean smollm2-135m-instruct"),
        (("-m", "smollm2-135m-instruct"), "is not on this machine and UNMASK_OFFLINE is set"),
    ],
)
def test_what_generate_refuses_chat_refuses_too(given: tuple[object, ...], words: str) -> None:
    assert words in refusal("chat", *given, stdin=b"hello\n")


def test_a_real_checkpoint_talks(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "full", chat=True)
    outcome = chat("hello", more=["-m", folder, "--dtype", "float32"])
    assert outcome.out.endswith(b"\n")
    assert "forwards" in outcome.err


def test_the_models_own_room_serves_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(monkeypatch)
    listener.model.defaults = Defaults(max_new_tokens=5)
    for more, room in (((), 5), (("--max-new-tokens", 8), 8)):
        assert unmask("chat", *more, stdin=b"hello\n").code == 0
        assert listener.rooms.pop() == room


def test_live_draws_a_meter_for_each_answer(listener: Listener) -> None:
    lines = re.findall(r"AR-ness +local \S+ \S+ +global .*", chat("one", "two", more=["--live"], terminal=True).err)
    assert len(lines) >= 2
    assert "1.00" in lines[-1]
    assert "--live has nothing to draw on" in chat("one", more=["--live"]).err
