"""The drafter's data: what is asked, what is kept apart, and going on where it was stopped."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.data import corpus
from unmask.data.corpus import Document
from unmask.data.shards import Shards
from unmask.data.task import Task
from unmask.decode import session
from unmask.recipes import own_answers
from unmask.recipes.own_answers import Amounts, prepare

from checkpoints import END_ID, VOCAB_SIZE, scripted, tiny_model

AMOUNTS = Amounts(questions=12, problems=4, mbpp=2, synthetic=2, warm=5, heldout=3, code=4, max_new_tokens=24)
ASKED = "def double_all(numbers):\n    '''Multiply every one of the given numbers by two and return them.'''\n"


def code() -> Iterator[Document]:
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta"):
        text = (
            f"def {name}(first, second):\n    '''Return the {name} of two values, and nothing else.'''\n"
            f"    total = first + second\n    return total * {len(name)}\n"
        )
        yield Document(name=f"{name}.py", text=text, licences=("MIT",))
    yield Document(name="asked.py", text=ASKED + "    return [2 * number for number in numbers]\n", licences=("MIT",))


def says_x(row: list[int], position: int) -> Tensor:
    """An x, and then the end."""
    scores_V = torch.zeros(VOCAB_SIZE)
    scores_V[END_ID if row[position - 1] == ord("x") else ord("x")] = 20.0
    return scores_V


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of seven functions, one of them a benchmark's, and a model that says one thing."""
    model = scripted(tiny_model("causal", chat=True, max_positions=2048), says_x)
    monkeypatch.setattr(session, "load", lambda name, drafter: model)
    read, library = corpus.read, {corpus.STDLIB: list(code()), corpus.INSTALLED: []}
    monkeypatch.setattr(
        corpus, "read", lambda source, **more: iter(library[source]) if source in library else read(source, **more)
    )
    monkeypatch.setattr(own_answers, "_benchmarks", lambda: iter([Task(task_id="x", prompt=ASKED, entry_point="f")]))
    rows = [
        {"task_id": f"mbpp/{n}", "prompt": f"Add {n}.", "entry_point": "f", "test_list": ["assert f(1)"]}
        for n in (1, 2)
    ]
    monkeypatch.setattr("unmask.data.rl_sets.mbpp", lambda dropped: iter(rows))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_shards_hold_answers_to_all_that_was_asked(tmp_path: Path) -> None:
    said: list[str] = []
    prepare(tmp_path, said.append, source="any", amounts=AMOUNTS)
    raw = tmp_path / "data" / "raw"
    asked = lines(raw / "questions.jsonl")
    assert "double_all" not in (raw / "questions.jsonl").read_text()
    assert "double_all" not in (raw / "code.jsonl").read_text()
    problems = [record for record in asked if record["kind"] == "problem"]
    assert len(problems) == 4 + 2 + 2
    assert len({record["prefill"] for record in problems}) == 3
    greedy, warm = lines(raw / "greedy.jsonl"), lines(raw / "warm.jsonl")
    assert (len(greedy), len(warm)) == (len(asked), 5)
    shards = {name: Shards.open(tmp_path / "data" / name) for name in ("answers", "heldout", "code")}
    apart = {json.dumps(record["messages"][:-1]) for record in lines(raw / "heldout.jsonl")}
    assert len(apart) == 3
    order = [json.dumps(record["messages"][:-1]) for record in greedy]
    places = [order.index(question) for question in apart]
    assert max(places) - min(places) > len(greedy) // 2, "neighbours in the file are of one kind"
    kept = [record for record in warm if json.dumps(record["messages"][:-1]) not in apart]
    assert not apart & {json.dumps(record["messages"][:-1]) for record in lines(raw / "answers.jsonl")}
    assert sum(shards[name].meta.num_documents for name in ("answers", "heldout")) == len(asked) + len(kept)
    assert any("answers at temperature 0.8" in line for line in said)


def test_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, lambda line: None, source="any", amounts=AMOUNTS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(session, "load", lambda name, drafter: pytest.fail("nothing is left to answer"))
    prepare(tmp_path, lambda line: None, source="any", amounts=AMOUNTS)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_answers_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    amounts = Amounts(**{**AMOUNTS.__dict__, "batch_size": 4})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    prepare(whole, lambda line: None, source="any", amounts=amounts)

    def stop(line: str) -> None:
        if " of " in line and "tokens/s" in line and not line.startswith("drafter: 0"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(stopped, stop, source="any", amounts=amounts)
    assert (stopped / "data" / "raw" / "greedy.jsonl.partial").is_file()
    prepare(stopped, lambda line: None, source="any", amounts=amounts)
    for name in ("greedy", "warm", "answers", "heldout"):
        file = Path("data") / "raw" / f"{name}.jsonl"
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()


def test_answers_without_an_end_are_learnt_from_as_far_as_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always_x(row: list[int], position: int) -> Tensor:
        return 20.0 * torch.nn.functional.one_hot(torch.tensor(ord("x")), VOCAB_SIZE).float()

    model = scripted(tiny_model("causal", chat=True, max_positions=2048), always_x)
    monkeypatch.setattr(session, "load", lambda name, drafter: model)
    prepare(tmp_path, lambda line: None, source="any", amounts=AMOUNTS)
    raw = tmp_path / "data" / "raw"
    greedy = lines(raw / "greedy.jsonl")
    assert len(greedy) == len(lines(raw / "questions.jsonl"))
    assert {record["messages"][-1]["content"][-24:] for record in greedy} == {"x" * 24}
