"""`unmask data questions` and `unmask data answers`: what goes where, and how a run that was stopped goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unmask.cli import data_answers
from unmask.data import answers, corpus
from unmask.data.shards import Shards
from unmask.decode.run import Run
from unmask.trajectory import StepEvent

from checkpoints import write_checkpoint
from command_line import Outcome, refusal, unmask

CODE = '''
def total(values):
    """Add values up and return their sum."""
    result = 0
    for value in values:
        result += value
    return result
'''


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, nobody's cache, an empty working folder, and a terminal without colours."""
    for variable, value in {"UNMASK_OFFLINE": "1", "UNMASK_HOME": tmp_path, "HF_HOME": tmp_path}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "causal", chat=True)


def asked(*contents: str) -> Path:
    path = Path("questions.jsonl")
    lines = [{"messages": [{"role": "user", "content": text}], "kind": "chat"} for text in contents]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(checkpoint: Path, *more: object, output: str = "answers.jsonl") -> Outcome:
    return unmask(
        "data", "answers", "questions.jsonl", "-o", output, "-m", checkpoint, "--max-new-tokens", 5,
        "--dtype", "float32", "--keep-cut", *more,
    )  # fmt: skip


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# questions


def test_questions_are_written_and_their_kinds_told() -> None:
    Path("code").mkdir()
    Path("code/a.py").write_text(CODE)
    outcome = unmask("data", "questions", "code", "--count", 4, "--kinds", "chat, explain", "-o", "q.jsonl")
    assert (outcome.code, outcome.text) == (0, "q.jsonl\t4\n")
    assert outcome.err.splitlines() == ["reading code", "making questions", "chat 3, explain 1"]
    made = lines("q.jsonl")
    assert {record["kind"] for record in made} == {"chat", "explain"}
    assert all(record["messages"][-1]["role"] == "user" for record in made)
    again = unmask("data", "questions", "code", "--count", 4, "--kinds", "chat, explain", "-o", "p.jsonl", "--json")
    assert json.loads(again.text)["kinds"] == {"chat": 3, "explain": 1}
    assert Path("p.jsonl").read_bytes() == Path("q.jsonl").read_bytes()


def test_questions_say_when_the_sources_are_too_few_and_what_was_dropped() -> None:
    Path("code").mkdir()
    Path("code/a.py").write_text(CODE)
    Path("code/b.py").write_text("print 1\n")
    task = {"task_id": "Mine/0", "prompt": "Write some unit tests", "entry_point": "f", "test_list": ["assert f()"]}
    Path("tasks.jsonl").write_text(json.dumps(task) + "\n")
    options = ("--kinds", "explain,tests", "-o", "q.jsonl", "--without-benchmarks", "tasks.jsonl")
    outcome = unmask("data", "questions", "code", "--count", 9, *options)
    assert outcome.text == "q.jsonl\t2\n"
    assert outcome.err.splitlines()[-2:] == [
        "1 dropped: syntax 1",
        "the sources gave 2 questions, fewer than 9: add sources or kinds for more",
    ]


def test_questions_refuse_what_they_cannot_make() -> None:
    assert "give a source such as stdlib or installed" in refusal("data", "questions", "--count", 1, "-o", "q.jsonl")
    assert "did you mean chat?" in refusal("data", "questions", "--count", 1, "-o", "q.jsonl", "--kinds", "chta")
    Path("q.jsonl").write_text("mine")
    text = refusal("data", "questions", "--count", 1, "-o", "q.jsonl", "--kinds", "chat")
    assert text.startswith("q.jsonl is there already, and is never written over")
    assert Path("q.jsonl").read_text() == "mine"


def test_ctrl_c_while_questions_are_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "read", stop)
    outcome = unmask("data", "questions", "stdlib", "--count", 3, "-o", "q.jsonl")
    assert (outcome.code, outcome.out) == (130, b"")
    assert outcome.err == "stopped; nothing was written to q.jsonl\n"
    assert not Path("q.jsonl").exists()


# answers


def test_answers_are_written_and_data_build_reads_them(checkpoint: Path) -> None:
    asked("One?", "Two?", "Three?")
    outcome = run(checkpoint, "-n", 2, "--temperature", 1, "--limit", 2)
    assert (outcome.code, outcome.text) == (0, "answers.jsonl\t4\n")
    assert outcome.err.splitlines()[-1].startswith("4 of 4 answers, ")
    made = lines("answers.jsonl")
    assert [(record["messages"][0]["content"], record["sample"]) for record in made] == [
        ("One?", 0), ("One?", 1), ("Two?", 0), ("Two?", 1),
    ]  # fmt: skip
    assert {(record["model"], record["temperature"], record["kind"]) for record in made} == {
        (str(checkpoint), 1.0, "chat")
    }
    built = unmask("data", "build", "answers.jsonl", "--tokenizer", checkpoint, "--output", "shards")
    assert built.code == 0, built.err
    assert Shards.open(Path("shards")).num_documents == 4
    record = json.loads(run(checkpoint, "--json", output="more.jsonl").text)
    assert record == {"path": "more.jsonl", "answers": 3, "left_out": {}}


def test_what_is_left_out_is_told(checkpoint: Path) -> None:
    asked("One?", "x" * 600)
    outcome = run(checkpoint)
    assert outcome.text == "answers.jsonl\t1\n"
    assert outcome.err.splitlines()[-1] == "1 dropped: too long for the context 1"


def test_ctrl_c_keeps_whole_batches_and_says_how_to_go_on(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(*(f"Question {number}?" for number in range(5)))
    assert run(checkpoint, "--temperature", 1, output="whole.jsonl").code == 0
    record, seen = Run._record, 0

    def stop(self: Run, event: StepEvent) -> None:
        nonlocal seen
        seen += 1
        if seen == 12:  # in the third batch of five steps each
            raise KeyboardInterrupt
        record(self, event)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_record", stop)
        outcome = run(checkpoint, "--temperature", 1, "--batch-size", 2)
    assert (outcome.code, outcome.out) == (130, b"")
    assert outcome.err.splitlines()[-1] == (
        "stopped; finished batches are kept in answers.jsonl.partial, and the same command with --resume goes on"
    )
    assert len(lines("answers.jsonl.partial")) == 4
    assert not Path("answers.jsonl").exists()
    message = refusal(
        "data", "answers", "questions.jsonl", "-o", "answers.jsonl", "-m", checkpoint, "--dtype", "float32"
    )
    assert "answers.jsonl.partial is work under way towards answers.jsonl; go on with it by --resume" in message
    other = run(checkpoint, "--temperature", 0.5, "--resume")
    assert (other.code, other.err.count("temperature (1.0 there, 0.5 here)")) == (2, 1)
    assert run(checkpoint, "--temperature", 1, "--resume").code == 0
    assert Path("answers.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["answers.jsonl", "questions.jsonl", "whole.jsonl"]


def test_answers_refuse_before_a_model_is_loaded() -> None:
    asked("One?")
    command = ("data", "answers", "questions.jsonl", "-m", "no-such-model", "-o")
    assert refusal(*command, "answers.txt").startswith("answers.txt would hold plain JSON lines")
    assert refusal(*command, "a.jsonl", "-n", 0) == "-n 0 is not a count; it must be at least 1"
    assert refusal(*command, "a.jsonl", "--top-p", 2).startswith("--top-p 2.0 lies outside (0, 1]")
    Path("a.jsonl").write_text("mine")
    assert refusal(*command, "a.jsonl").startswith("a.jsonl is there already, and is never written over")
    Path("questions.jsonl").write_text('{"text": "x"}\n')
    assert "a question has one of messages, instruction, prompt" in refusal(*command, "b.jsonl")


def test_samples_that_cannot_differ_are_told(checkpoint: Path) -> None:
    asked("One?")
    assert "the 3 answers will be the same: nothing is random at --temperature 0" in run(checkpoint, "-n", 3).err


def test_progress_tells_pace_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = [answers.AnswerProgress(begun=0, done=done, total=4000, tokens=9000, seconds=9.0) for done in (0, 5, 4000)]
    with data_answers._telling() as tell:
        for progress in told:
            tell(progress)
    assert capsys.readouterr().err == "4,000 of 4,000 answers, 1,000 tokens/s\n"
    monkeypatch.setattr(data_answers, "_PAUSE", 0.0)
    with data_answers._telling() as tell:
        tell(told[1])
    assert capsys.readouterr().err == "5 of 4,000 answers, 1,000 tokens/s, 1:59:51 left\n"


def test_a_terminal_gets_a_bar(checkpoint: Path) -> None:
    asked("One?")
    command = ("data", "answers", "questions.jsonl", "-o", "a.jsonl", "-m", checkpoint, "--keep-cut")
    outcome = unmask(*command, "--max-new-tokens", 5, terminal=True)
    assert outcome.code == 0
    assert "tokens/s" in outcome.err
    assert "1/1" in outcome.err


@pytest.mark.parametrize("verb", ["questions", "answers"])
def test_help_explains_and_imports_no_torch(verb: str) -> None:
    code = (
        f"import sys\nfrom unmask.cli.main import main\nsys.argv = ['unmask', 'data', {verb!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'tokenizers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"Example: unmask data {verb}" in done.stdout
