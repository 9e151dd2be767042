"""What a drafter learns from: its parent's own answers, and some code.

    questions   put to a code assistant, about functions of permissive packages and the standard library
    problems    such functions up to their docstrings, asked as benchmarks ask theirs, with answers begun by a preset
    mbpp        MBPP's rows outside MBPP+, and synthetic, the synthetic suite, asked in the same way
    code        such functions whole

Nothing in it shares ten words with HumanEval+ or MBPP+. All questions are answered greedily, and some once more at a
temperature. What is there already stays, and answers go on where they were stopped.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.atomic import beside
from unmask.seeds import derive_seed

if TYPE_CHECKING:
    from unmask.data.answers import AnswerProgress
    from unmask.data.functions import Function
    from unmask.data.task import Task
    from unmask.decode.session import Model

Tell = Callable[[str], None]
_BENCHMARKS = ("humaneval+", "mbpp+")
_PRESETS = ("diffucoder", "evalplus", "qwen")
_WARM = 0.8
_SHARDS = ("heldout", "answers", "code")


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much of each is made."""

    questions: int = 7500
    problems: int = 2000
    mbpp: int = 600
    synthetic: int = 400
    warm: int = 900
    """Questions that are answered once more, at a temperature of 0.8."""

    heldout: int = 64
    """Greedy answers that are kept apart, evenly from all of them: neighbours in the file are of one kind."""

    code: int = 16_000
    max_new_tokens: int = 400
    batch_size: int = 64


def prepare(folder: Path, tell: Tell, *, source: str, amounts: Amounts | None = None) -> None:
    """Make the shards `answers`, `heldout` and `code` in a run's folder, with what they are made from beside them."""
    from unmask.data.build import build
    from unmask.data.filters import FilterSettings
    from unmask.decode.session import load

    amounts = Amounts() if amounts is None else amounts
    data, raw = folder / "data", folder / "data" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    if all((data / name / "meta.json").is_file() for name in _SHARDS):
        return
    if not (raw / "code.jsonl").is_file():  # written last of the two
        tell("drafter: reading the library and the packages")
        benchmarks = list(_benchmarks())
        found = _shuffled(_library(benchmarks), "functions")
        _write(raw / "questions.jsonl", _shuffled(_questions(found, benchmarks, amounts), "questions"))
        shown = ({"text": function.text, "licence": function.licence} for function in found)
        _write(raw / "code.jsonl", itertools.islice(shown, amounts.code))
    model = load(source, drafter="none")  # what it says by itself
    greedy = _answers(model, raw, "greedy", 0.0, amounts, tell)
    warm = _answers(model, raw, "warm", _WARM, amounts, tell)
    apart = {_question(record) for record in greedy[:: max(1, len(greedy) // amounts.heldout)][: amounts.heldout]}
    _write(raw / "heldout.jsonl", (record for record in greedy if _question(record) in apart))
    _write(raw / "answers.jsonl", (record for record in (*greedy, *warm) if _question(record) not in apart))
    for name in _SHARDS:
        if not (data / name / "meta.json").is_file():
            tell(f"drafter: building the shards {name}")
            build(
                [raw / f"{name}.jsonl"],
                data / name,
                tokenizer=model.tokenizer,
                filters=FilterSettings(dedup="none"),
                without=_benchmarks(),
            )


def _benchmarks() -> "Iterator[Task]":
    from unmask.evaluate import benchmarks

    for name in _BENCHMARKS:
        yield from benchmarks.load(name, answers=False).tasks


def _library(benchmarks: "Sequence[Task]") -> "list[Function]":
    """The functions that may be shown and asked about."""
    from unmask.data import corpus
    from unmask.data.corpus import Document
    from unmask.data.filters import Filters, FilterSettings
    from unmask.data.functions import functions

    sieve = Filters(FilterSettings(dedup="none"), without=benchmarks)
    documents = itertools.chain(corpus.read(corpus.STDLIB), corpus.read(corpus.INSTALLED))
    return [f for f in functions(documents) if sieve.keeps(Document(name=f.source, text=f.text))]


def _questions(found: "Sequence[Function]", benchmarks: "Sequence[Task]", amounts: Amounts) -> Iterator[dict[str, Any]]:
    """Everything that is asked, one kind after the other."""
    from unmask.data import questions
    from unmask.data.corpus import Document
    from unmask.data.filters import Filters, FilterSettings
    from unmask.text.chat import Message

    sieve = Filters(FilterSettings(dedup="none"), without=benchmarks)

    def keeps(text: str) -> bool:
        return sieve.keeps(Document(name="", messages=(Message("user", text),)))

    drawn = questions.draw(found, count=amounts.questions, keeps=lambda question: keeps(question.content))
    yield from (question.record() for question in drawn)
    for number, (task, benchmark, licence) in enumerate(_tasks(found, amounts)):
        record = _as_asked(task, benchmark, _PRESETS[number % len(_PRESETS)])
        if keeps(record["messages"][-1]["content"]):
            yield {**record, "kind": "problem", "source": task.task_id, "licence": licence}


def _tasks(found: "Sequence[Function]", amounts: Amounts) -> "Iterator[tuple[Task, str, str]]":
    """Problems with the benchmark whose wording they get, and their licence."""
    from unmask.data import jsonl
    from unmask.data.rl_sets import mbpp
    from unmask.data.synthetic.tasks import make_tasks
    from unmask.data.task import Task
    from unmask.sandbox.executor import open_executor

    plain = (function for function in found if not function.is_method and function.text.startswith("def "))
    for function in itertools.islice(plain, amounts.problems):
        yield Task(task_id=function.source, prompt=function.stub, entry_point=function.name), "", function.licence
    for record in itertools.islice(mbpp(dropped=Counter()), amounts.mbpp):
        yield jsonl.task_of(record, "MBPP"), "mbpp", "CC-BY-4.0"
    with open_executor() as executor:
        for task in make_tasks("train", amounts.synthetic, seed=0, executor=executor):
            yield task, "", ""


def _as_asked(task: "Task", benchmark: str, preset: str) -> dict[str, Any]:
    from unmask.evaluate.prompts import find_preset, render

    rendered = render(find_preset(preset), task, benchmark=benchmark, kind="complete")
    messages = [{"role": message.role, "content": message.content} for message in rendered.messages]
    return {"messages": messages, "prefill": rendered.prefill}


def _answers(
    model: "Model", raw: Path, name: str, temperature: float, amounts: Amounts, tell: Tell
) -> list[dict[str, Any]]:
    """The model's answers at a temperature: to all questions, or to the first ones where it is not 0."""
    from unmask.data.answers import answer, read_questions
    from unmask.decode.settings import DecodeSettings
    from unmask.model.drafter_files import mark_of

    path = raw / f"{name}.jsonl"
    if not path.is_file():
        asked = read_questions([raw / "questions.jsonl"], limit=amounts.warm if temperature else None)
        settings = DecodeSettings(max_new_tokens=amounts.max_new_tokens, temperature=temperature)
        tell(f"drafter: {len(asked):,} answers at temperature {temperature:g}")
        answer(
            model,
            asked,
            path,
            settings,
            batch_size=amounts.batch_size,
            keep_cut=True,
            facts={"parent": mark_of(model.backbone), "dtype": str(model.backbone.dtype)},
            resume=path.with_name(f"{path.name}.partial").is_file(),
            report=_progress(tell),
        )
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _progress(tell: Tell) -> "Callable[[AnswerProgress], None]":
    """Says every twentieth of the way where it stands."""
    told = -1

    def report(progress: "AnswerProgress") -> None:
        nonlocal told
        share = 20 * progress.done // max(progress.total, 1)
        if share != told:
            told = share
            rate = progress.tokens / max(progress.seconds, 1e-9)
            tell(f"drafter: {progress.done:,} of {progress.total:,} answers, {rate:,.0f} tokens/s")

    return report


def _question(record: dict[str, Any]) -> str:
    """What was asked, to keep all answers to one question together."""
    return json.dumps(record["messages"][:-1])


def _shuffled(items: Iterable[Any], what: str) -> list[Any]:
    from unmask.data.permutation import permute

    found = list(items)
    return [found[permute(place, len(found), derive_seed(0, what))] for place in range(len(found))]


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with beside(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
