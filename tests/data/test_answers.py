"""A model's own answers: they are written as it gave them, a stop loses nothing, and batches move nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.data import answers
from unmask.data.answers import Answered, AnswerProgress, Asked, answer, lay_out, question_of, read_questions
from unmask.data.corpus import read
from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.errors import DataError, SettingsError
from unmask.text.chat import Message

from checkpoints import END_ID, IM_START_ID, VOCAB_SIZE, scripted, tiny_model
from doubles import Scores

SHORT = DecodeSettings(max_new_tokens=16)
RANDOM = DecodeSettings(max_new_tokens=6, temperature=1.0)


def asked(*contents: str, **fields: Any) -> list[Asked]:
    return [question_of({"prompt": text, **fields}, f"line {number}") for number, text in enumerate(contents, 1)]


def replies(reply: str | None = "Yes, indeed.") -> Scores:
    """Scores of a model that answers every question so, or None: never comes to an end."""

    def scores(row: list[int], position: int) -> Tensor:
        first = len(row) - row[::-1].index(IM_START_ID) + len("assistant\n")
        out = torch.zeros(VOCAB_SIZE)
        ids = list((reply if reply is not None else "no end " * 99).encode())
        out[ids[position - first] if position - first < len(ids) else END_ID] = 20.0
        return out

    return scores


def chat(reply: str | None = "Yes, indeed.") -> Model:
    return scripted(tiny_model("causal", chat=True), replies(reply))


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(path: Path) -> dict[str, str]:
    """The answers by their questions."""
    return {record["messages"][0]["content"]: record["messages"][-1]["content"] for record in written(path)}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


# What is written


def test_a_conversation_is_written_with_what_it_was_drawn_with(output: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    question = question_of({"messages": turns, "kind": "chat", "licence": "MIT", "model": "other"}, "line 1")
    assert answer(chat(), [question], output, SHORT) == Answered(num_answers=1, left_out={})
    assert written(output) == [
        {
            "messages": [*turns, {"role": "assistant", "content": "Yes, indeed."}],
            "kind": "chat",
            "licence": "MIT",
            "model": "tiny-causal",
            "temperature": 0.0,
            "sample": 0,
            "finish_reason": "stop",
        }
    ]
    (document,) = read(output)
    assert document.messages[-1] == Message("assistant", "Yes, indeed.")
    assert document.licences == ("MIT",)
    assert list(output.parent.iterdir()) == [output]


def test_a_task_is_asked_in_its_words_and_keeps_its_fields(output: Path) -> None:
    task = {"task_id": "Mine/1", "entry_point": "f", "instruction": "Write f.", "prompt": "def f():", "reference": "x"}
    answer(chat(), [question_of(task, "line 1")], output, SHORT)
    (record,) = written(output)
    assert [turn["content"] for turn in record["messages"]] == ["Write f.", "Yes, indeed."]
    assert (record["task_id"], record["prompt"]) == ("Mine/1", "def f():")
    (document,) = read(output)
    assert document.messages[-1].content == "Yes, indeed."


def test_what_begins_the_answer_is_part_of_it(output: Path) -> None:
    answer(chat("Yes, indeed."), asked("Is it?", prefill="Yes, "), output, SHORT)
    (record,) = written(output)
    assert record["messages"][-1]["content"] == "Yes, indeed."
    assert "prefill" not in record


def test_a_model_without_a_chat_template_continues_the_text(output: Path) -> None:
    model = tiny_model("causal")
    question, begun = asked("def add(a, b):"), asked("def add(a, b):", prefill="\n    return")
    answer(model, question, output, SHORT, keep_cut=True)
    assert contents(output)["def add(a, b):"] == model.generate("def add(a, b):", max_new_tokens=16).text
    output.unlink()
    answer(model, begun, output, SHORT, keep_cut=True)
    (text,) = contents(output).values()
    whole = model.generate("def add(a, b):\n    return", max_new_tokens=16).text
    assert text == f"\n    return{whole}"


def test_answers_without_an_end_and_empty_ones_are_left_out_and_counted(output: Path) -> None:
    def scores(row: list[int], position: int) -> Tensor:
        letter = chr(row[row.index(ord("Q")) + 1])
        return replies({"a": "Fine.", "b": None, "c": " \n"}[letter])(row, position)

    model = scripted(tiny_model("causal", chat=True), scores)
    questions = asked("Qa", "Qb", "Qc", "Qb", "x" * 600)
    left_out = {"cut": 2, "empty": 1, "too long for the context": 1}
    assert answer(model, questions, output, SHORT) == Answered(num_answers=1, left_out=left_out)
    assert contents(output) == {"Qa": "Fine."}
    output.unlink()
    made = answer(model, questions, output, SHORT, keep_cut=True)
    assert (made.num_answers, made.left_out) == (3, {"empty": 1, "too long for the context": 1})
    assert Counter(record["finish_reason"] for record in written(output)) == {"stop": 1, "length": 2}


def test_a_run_that_leaves_nothing_says_why(output: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 2 answers is left \(cut 2\); give more --max-new-tokens, or"):
        answer(chat(None), asked("a", "b"), output, SHORT)
    assert list(output.parent.iterdir()) == []


# What an answer depends on

QUESTIONS = [f"Question {'x' * (number % 7)}{number}" for number in range(11)]


def test_the_same_command_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = DecodeSettings(max_new_tokens=6, temperature=1.0, seed=seed)
        answer(tiny_model("causal", chat=True), asked(*QUESTIONS), tmp_path / name, settings, keep_cut=True)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("kind", ["causal", "full", "block"])
def test_the_batch_size_moves_no_byte(tmp_path: Path, kind: str) -> None:
    model = tiny_model(kind, chat=True)
    for size in (1, 3, 16):
        answer(model, asked(*QUESTIONS), tmp_path / str(size), RANDOM, n=2, batch_size=size, keep_cut=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes() == (tmp_path / "16").read_bytes()


def test_an_answer_does_not_depend_on_the_other_questions(tmp_path: Path) -> None:
    model = tiny_model("causal", chat=True)
    answer(model, asked(*QUESTIONS), tmp_path / "all", RANDOM, keep_cut=True)
    answer(model, asked(*QUESTIONS[3:5]), tmp_path / "two", RANDOM, keep_cut=True)
    assert contents(tmp_path / "two").items() <= contents(tmp_path / "all").items()


def test_samples_and_repeated_questions_have_random_numbers_of_their_own(output: Path) -> None:
    answer(tiny_model("causal", chat=True), asked("Again", "Again"), output, RANDOM, n=3, keep_cut=True)
    assert [record["sample"] for record in written(output)] == [0, 1, 2, 0, 1, 2]
    assert len({record["messages"][-1]["content"] for record in written(output)}) == 6


def test_the_reference_mode_draws_each_row_alone(tmp_path: Path) -> None:
    settings = DecodeSettings(max_new_tokens=4, steps=4, mode="reference", temperature=1.0)
    for size in (1, 8):
        answer(
            tiny_model("full", chat=True),
            asked(*QUESTIONS[:3]),
            tmp_path / str(size),
            settings,
            batch_size=size,
            keep_cut=True,
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "8").read_bytes()


def test_neighbours_are_of_one_kind_and_about_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WINDOW", 4)
    questions = [
        question_of({"prompt": "x" * length, "kind": kind}, "here")
        for kind, length in [("b", 3), ("a", 9), ("b", 1), ("a", 2), ("a", 5), ("b", 7), ("b", 2), ("a", 1)]
    ]
    rows, _ = lay_out(tiny_model("causal", chat=True), questions, SHORT, n=1)
    laid = [(row.asked.fields["kind"], len(row.asked.messages[0].content)) for row in rows]
    assert laid == [("a", 2), ("a", 9), ("b", 1), ("b", 3), ("b", 7), ("b", 2), ("a", 5), ("a", 1)]


# Stopping and going on


@pytest.mark.parametrize("stopped_at", [1, 5, 9])
def test_a_run_that_was_stopped_goes_on_and_writes_the_same_bytes(tmp_path: Path, stopped_at: int) -> None:
    model = tiny_model("causal", chat=True)
    answer(model, asked(*QUESTIONS), tmp_path / "whole", RANDOM, batch_size=4, keep_cut=True)

    def stop(progress: AnswerProgress) -> None:
        if progress.done >= stopped_at:
            raise KeyboardInterrupt

    output = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        answer(model, asked(*QUESTIONS), output, RANDOM, batch_size=4, keep_cut=True, report=stop)
    kept = len(written(tmp_path / "parts.partial"))
    assert kept == (stopped_at - 1) // 4 * 4
    assert not output.exists()
    told: list[AnswerProgress] = []
    answer(model, asked(*QUESTIONS), output, RANDOM, batch_size=3, keep_cut=True, resume=True, report=told.append)
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert {progress.begun for progress in told} == {kept}
    assert (told[-1].done, told[-1].total) == (11, 11)


def test_only_the_same_command_goes_on(output: Path) -> None:
    def stop(progress: AnswerProgress) -> None:
        raise KeyboardInterrupt

    model = chat()
    with pytest.raises(KeyboardInterrupt):
        answer(model, asked("a"), output, SHORT, facts={"weights": "1f"}, report=stop)
    with pytest.raises(DataError, match="go on with it by --resume"):
        answer(model, asked("a"), output, SHORT, facts={"weights": "1f"})
    other = DecodeSettings(max_new_tokens=9)
    with pytest.raises(DataError, match=r"weights \(1f there, 2e here\); max_new_tokens \(16 there, 9 here\)"):
        answer(model, asked("a"), output, other, facts={"weights": "2e"}, resume=True)
    with pytest.raises(DataError, match=r"begun with something else: n \(1 there, 2 here\); questions \("):
        answer(model, asked("b"), output, SHORT, n=2, facts={"weights": "1f"}, resume=True)
    made = answer(model, asked("a"), output, SHORT, facts={"weights": "1f"}, resume=True)
    assert made.num_answers == 1


def test_progress_counts_tokens_and_tells_the_time_left(output: Path) -> None:
    told: list[AnswerProgress] = []
    answer(chat("Yes."), asked("a", "b", "c"), output, SHORT, batch_size=2, report=told.append)
    assert [progress.done for progress in told] == [0, 0, 0, 0, 2, 2, 2, 2, 2, 3]
    assert told[-1].tokens == 3 * len("Yes.") + 3
    assert told[0].seconds_left is None
    assert told[-1].seconds_left == 0
    assert AnswerProgress(begun=10, done=15, total=25, tokens=9, seconds=2.0).seconds_left == 4.0


# Reading questions


def test_questions_are_read_in_order_up_to_the_limit(tmp_path: Path) -> None:
    for name in "ab":
        lines = [json.dumps({"prompt": f"{name}{number}"}) for number in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert [question.messages[0].content for question in read_questions(paths)] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert [question.messages[0].content for question in read_questions(paths, limit=4)] == ["a0", "a1", "a2", "b0"]
    (tmp_path / "b.jsonl").write_text("broken")
    assert len(read_questions(paths, limit=3)) == 3
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the files hold no questions; `unmask data questions` makes some"):
        read_questions(paths[1:])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "line 7 has the fields text; a question has one of messages, instruction, prompt"),
        ({}, "line 7 has the fields nothing; a question"),
        ({"prompt": 3}, "line 7: 'prompt' is a int; it has to be a text"),
        ({"prompt": "a", "prefill": ["b"]}, "line 7: 'prefill' is a list; it has to be a text"),
        ({"prompt": " \n"}, "line 7: the question is empty; leave that line out"),
        ({"messages": "hi"}, 'line 7: "messages" has to be a list of {"role": …, "content": …}'),
        ({"messages": [{"role": "user"}]}, "line 7: a message has to have a role and a content ('content')"),
        (
            {"messages": [{"role": "bot", "content": "a"}]},
            "line 7: a message has to have a role and a content ('bot' is",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "line 7: the conversation ends with the assistant's turn; the last one has to be the user's: leave out",
        ),
        ({"prompt": "a\ud800"}, "line 7 holds half a character (surrogates not allowed); mend that line"),
    ],
)
def test_a_record_that_asks_nothing_is_named(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        question_of(record, "line 7")
    assert str(caught.value).startswith(message)


def test_a_conversation_needs_a_chat_template(output: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    with pytest.raises(DataError, match=r"line 1 is a conversation, and tiny-causal has no chat template to write it"):
        answer(tiny_model("causal"), [question_of({"messages": turns}, "line 1")], output, SHORT)


@pytest.mark.parametrize(("name", "option"), [("n", "-n"), ("batch_size", "--batch-size"), ("limit", "--limit")])
def test_counts_are_counts(name: str, option: str) -> None:
    given: dict[str, int] = {"n": 1, "batch_size": 1, "limit": 1, name: 0}
    with pytest.raises(SettingsError, match=f"{option} 0 is not a count; it must be at least 1"):
        answers.check(**given)
