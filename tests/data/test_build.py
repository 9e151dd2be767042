"""Building shards: what is kept is there once, in an order of the seed's, and nothing is left of a build that stops."""

import json
from pathlib import Path
from typing import Any

import pytest

from unmask.data.build import BuildProgress, build
from unmask.data.filters import FilterSettings
from unmask.data.shards import Shards
from unmask.data.task import Task
from unmask.errors import DataError
from unmask.text.chat import Message, encode_chat
from unmask.text.tokenizer import Tokenizer
from unmask.text.train import CHATML, SPECIAL_TOKENS

TOKENIZER = Tokenizer.byte_level(SPECIAL_TOKENS, chat_template=CHATML)
END_OF_TEXT = TOKENIZER.token_to_id("<|endoftext|>")
END_OF_TURN = TOKENIZER.token_to_id("<|im_end|>")


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return lines(tmp_path / "texts.jsonl", *({"text": f"text {i}", "license": "MIT"} for i in range(40)))


def stored(folder: Path) -> list[str]:
    shards = Shards.open(folder)
    return [TOKENIZER.decode(shards.document(i)[0].tolist()) for i in range(shards.num_documents)]


def test_texts_end_with_the_end_of_text_and_are_there_once(tmp_path: Path, texts: Path) -> None:
    build([texts], tmp_path / "s", tokenizer=TOKENIZER)
    shards = Shards.open(tmp_path / "s")
    assert sorted(stored(tmp_path / "s")) == sorted(f"text {i}" for i in range(40))
    assert all(shards.document(i)[0][-1] == END_OF_TEXT for i in range(40))
    assert all(shards.document(i)[1] == 0 for i in range(40))
    shards.verify()


def test_the_order_is_the_seeds(tmp_path: Path, texts: Path) -> None:
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build([texts], tmp_path / name, tokenizer=TOKENIZER, seed=seed)
        orders.append(stored(tmp_path / name))
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != [f"text {i}" for i in range(40)]


def test_conversations_become_prompts_and_answers(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "a + b"}]
    build([lines(tmp_path / "a.jsonl", {"messages": turns})], tmp_path / "s", tokenizer=TOKENIZER)
    ids, prompt_length = Shards.open(tmp_path / "s").document(0)
    assert ids[:prompt_length].tolist() == encode_chat(TOKENIZER, [Message("user", "Add.")])
    assert ids[prompt_length:].tolist() == [*b"a + b", END_OF_TURN]


def test_the_meta_says_what_was_dropped_and_under_which_licences_the_rest_is(tmp_path: Path, texts: Path) -> None:
    more = lines(
        tmp_path / "more.jsonl",
        {"text": "text 7", "license": "MIT"},
        {"text": "mask <|mask|>", "license": "MIT"},
        {"text": "none"},
        {"text": "both", "licenses": ["MIT", "Apache-2.0"]},
        {"text": "text from HumanEval/3", "license": "MIT"},
    )
    settings = FilterSettings(licences=("MIT", "Apache-2.0"))
    task = Task(task_id="HumanEval/3", prompt="")
    meta = build([texts, more], tmp_path / "s", tokenizer=TOKENIZER, filters=settings, without=[task], seed=3)
    assert meta == Shards.open(tmp_path / "s").meta
    assert meta.licences == {"MIT": 40, "MIT AND Apache-2.0": 1}
    assert meta.dropped == {"benchmark": 1, "control tokens": 1, "duplicate": 1, "licence": 1}
    assert meta.sources == (str(texts), str(more))
    assert (meta.settings["seed"], meta.settings["licences"]) == (3, ["MIT", "Apache-2.0"])


def test_progress_counts_documents_read_and_written(tmp_path: Path, texts: Path) -> None:
    told: list[BuildProgress] = []
    build([texts], tmp_path / "s", tokenizer=TOKENIZER, report=told.append)
    assert [(p.stage, p.done, p.total) for p in told[38:42]] == [
        ("read", 39, None),
        ("read", 40, None),
        ("write", 1, 40),
        ("write", 2, 40),
    ]
    assert told[-1] == BuildProgress(stage="write", source=str(tmp_path / "s"), done=40, total=40)


@pytest.mark.parametrize("stage", ["read", "write"])
def test_a_build_that_is_stopped_leaves_nothing(tmp_path: Path, texts: Path, stage: str) -> None:
    def stop(progress: BuildProgress) -> None:
        if progress.stage == stage and progress.done == 20:
            raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        build([texts], tmp_path / "out" / "s", tokenizer=TOKENIZER, report=stop)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_build_of_nothing_says_why(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(DataError, match=r"there are no documents to write to .*; dropped: licence 40; give sources"):
        build([texts], tmp_path / "s", tokenizer=TOKENIZER, filters=FilterSettings(licences=("BSD-3-Clause",)))
    assert not (tmp_path / "s").exists()


def test_one_document_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hi")
    folder = tmp_path / "made" / "too" / "s"
    assert build([tmp_path / "a.txt"], folder, tokenizer=TOKENIZER).num_documents == 1
    assert stored(folder) == ["hi"]


def test_a_tokenizer_without_an_end_is_refused_for_texts(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(DataError, match=r"neither <\|endoftext\|> nor an eos_token, so documents could not be told ap"):
        build([texts], tmp_path / "s", tokenizer=Tokenizer.byte_level(["<|mask|>"]))


def test_a_conversation_without_an_answer_is_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": " "}]
    path = lines(tmp_path / "a.jsonl", {"messages": turns})
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: messages\[1\], the answer to learn, is empty"):
        build([path], tmp_path / "s", tokenizer=TOKENIZER)
