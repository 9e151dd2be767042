"""A model's own answers as training data: each question is asked, and whole conversations are written down.

What learns to speak like a model (a drafter, a student) learns from what that model says (Kim and Rush 2016, section
3.2: sequence-level knowledge distillation). A question is a record with one of

    messages       a conversation that ends with the user's turn
    instruction    a task in words, as in `data/jsonl.py`
    prompt         a text

and, where it applies, `prefill`: the given beginning of the answer. An answer is a record that `unmask data build`
reads: the conversation with the answer, the question's other fields, and what the answer was drawn with, which stands
where a field of the question has its name. Answers without an end, and empty ones, are left out and counted.

An answer depends on its question, its number and the settings: its random numbers are named by them. Rows are laid out
before any is drawn, neighbours of one kind and about one length inside of windows, so that the rows of a batch end
about together; neither the batch size nor a stop in the middle moves a line (in the network's float32).
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.data.files import numbered_records
from unmask.data.partial import Partial, open_partial
from unmask.errors import DataError, SettingsError, TextError
from unmask.seeds import derive_seed
from unmask.text.chat import Message, encode_chat

if TYPE_CHECKING:
    from unmask.decode.run import Generation
    from unmask.decode.session import Model
    from unmask.decode.settings import DecodeSettings

BATCH_SIZE = 16
WINDOW = 1024
"""Rows that are sorted together: enough for even batches, and few enough that a file's beginning is done first."""

_ASKS = ("messages", "instruction", "prompt")
_PREFILL = "prefill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question as it was read."""

    where: str
    messages: tuple[Message, ...]
    prefill: str
    fields: Mapping[str, Any]
    """The record's other fields, which the answer's record keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer to draw."""

    asked: Asked
    ids: tuple[int, ...]
    """The prompt as the model gets it."""

    sample: int
    """Which of the answers to its question, from 0."""

    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerProgress:
    """How far the work is: rows, and the tokens and seconds of this process alone."""

    begun: int
    """Rows that were done when this process took the work up."""

    done: int
    total: int
    tokens: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """What the rest takes at the pace so far; None before anything is done."""
        own = self.done - self.begun
        return self.seconds / own * (self.total - self.done) if own else None


Report = Callable[[AnswerProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What was written, and what was left out, by reason."""

    num_answers: int
    left_out: Mapping[str, int]


def read_questions(sources: Iterable[Path], *, limit: int | None = None) -> list[Asked]:
    """The questions of some files of JSON lines, the first `limit`. Raises DataError, which names the line."""
    found: list[Asked] = []
    for path in sources:
        if limit is not None and len(found) >= limit:
            break
        found += (question_of(record, f"{path}, line {number}") for number, record in numbered_records(path))
    if not found:
        raise DataError("the files hold no questions; `unmask data questions` makes some")
    return found[:limit]


def question_of(record: Mapping[str, Any], where: str) -> Asked:
    """The question in one object."""
    name = next((name for name in _ASKS if record.get(name)), None)
    if name is None:
        given = ", ".join(map(str, record)) or "nothing"
        raise DataError(
            f"{where} has the fields {given}; a question has one of {', '.join(_ASKS)}, with something in it"
        )
    prefill = record.get(_PREFILL) or ""
    for key, value in ((_PREFILL, prefill), *([] if name == "messages" else [(name, record[name])])):
        if not isinstance(value, str):
            raise DataError(f"{where}: {key!r} is a {type(value).__name__}; it has to be a text")
    messages = _turns(record[name], where) if name == "messages" else (Message("user", record[name]),)
    if not messages[-1].content.strip():
        raise DataError(f"{where}: the question is empty; leave that line out")
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a character ({error.reason}); mend that line, or leave it out") from error
    return Asked(
        where=where,
        messages=messages,
        prefill=prefill,
        fields={key: value for key, value in record.items() if key not in (name, "messages", _PREFILL)},
    )


def answer(
    model: "Model",
    questions: Sequence[Asked],
    output: Path,
    settings: "DecodeSettings",
    *,
    n: int = 1,
    batch_size: int = BATCH_SIZE,
    keep_cut: bool = False,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
    report: Report = lambda progress: None,
) -> Answered:
    """Ask the model, and write `n` answers to each question into a new file of JSON lines.

    The file grows as `FILE.partial` (`data/partial.py`), and `resume` goes on with one that was stopped. `facts` are
    compared then, beside the settings and the questions: what else the answers depend on, such as the weights.
    """
    rows, num_too_long = lay_out(model, questions, settings, n=n)
    asked = {**(facts or {}), **_protocol(questions, settings, n=n, keep_cut=keep_cut)}
    partial = open_partial(output, asked, resume=resume)
    size = 1 if settings.mode == "reference" else batch_size  # its one random stream is that of a canvas
    for batch, results in _drawn(model, rows, settings, size, partial.done, report):
        _write(partial, batch, results, settings, keep_cut=keep_cut)
    left_out = partial.left_out + Counter({"too long for the context": num_too_long})
    if not partial.lines:
        partial.discard()
        raise DataError(
            f"none of the {sum(left_out.values()):,} answers is left ({_listed(left_out)}); give more "
            "--max-new-tokens, or --keep-cut"
        )
    partial.finish()
    return Answered(num_answers=partial.lines, left_out=left_out)


def check(*, n: int, batch_size: int, limit: int | None) -> None:
    """Raise SettingsError for numbers that are none, before a model is loaded."""
    for option, value in (("-n", n), ("--batch-size", batch_size), ("--limit", limit)):
        if value is not None and value < 1:
            raise SettingsError(f"{option} {value} is not a count; it must be at least 1")


def lay_out(model: "Model", questions: Sequence[Asked], settings: "DecodeSettings", *, n: int) -> tuple[list[Row], int]:
    """All rows in the order in which they are drawn and written; and how many do not fit the model's context."""
    room = model.backbone.config.max_positions - settings.max_new_tokens
    seen: Counter[str] = Counter()
    rows: list[Row] = []
    num_too_long = 0
    for question in questions:
        ids = _encode(model, question)
        if len(ids) > room:
            num_too_long += n
            continue
        name = _digest([_as_json(question.messages), question.prefill])
        for sample in range(n):
            seed = derive_seed(settings.seed, f"answer to {name}", seen[name], sample)
            rows.append(Row(asked=question, ids=ids, sample=sample, seed=seed))
        seen[name] += 1  # the same question again gets an answer of its own
    return _evenly(rows), num_too_long


# One question


def _turns(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise DataError(f'{where}: "messages" has to be a list of {{"role": …, "content": …}}')
    try:
        messages = tuple(Message(turn["role"], turn["content"]) for turn in value)
    except (KeyError, TextError) as error:
        raise DataError(f"{where}: a message has to have a role and a content ({error})") from error
    if messages[-1].role != "user":
        raise DataError(
            f"{where}: the conversation ends with the {messages[-1].role}'s turn; the last one has to be the user's: "
            "leave out what follows it"
        )
    return messages


def _encode(model: "Model", question: Asked) -> tuple[int, ...]:
    """The ids in front of the answer: through the chat template, or the text as it stands where there is none."""
    if model.tokenizer.chat_template is not None:
        return tuple(encode_chat(model.tokenizer, question.messages, prefill=question.prefill or None))
    if len(question.messages) > 1:
        raise DataError(
            f"{question.where} is a conversation, and {model.name} has no chat template to write it with; leave it "
            "out, or take an instruction-tuned model"
        )
    return tuple(model.encode_prompt(question.messages[0].content + question.prefill, raw=True))


def _evenly(rows: Sequence[Row]) -> list[Row]:
    """Windows sorted by kind and length, every other one backwards, so that a batch across two is even as well."""
    windows = [rows[at : at + WINDOW] for at in range(0, len(rows), WINDOW)]
    return [
        row for number, window in enumerate(windows) for row in sorted(window, key=_likeness, reverse=number % 2 == 1)
    ]


def _likeness(row: Row) -> tuple[str, int]:
    """Answers to one kind of question have about one length; so have those to questions of one length."""
    return str(row.asked.fields.get("kind", "")), len(row.ids)


# Drawing and writing


def _drawn(
    model: "Model", rows: Sequence[Row], settings: "DecodeSettings", size: int, done: int, report: Report
) -> "Iterator[tuple[Sequence[Row], list[Generation]]]":
    """Batches behind the first `done` rows, each with its answers as it ends."""
    started, tokens = time.perf_counter(), 0
    for at in range(done, len(rows), size):
        batch = rows[at : at + size]
        its = replace(settings, seed=batch[0].seed) if settings.mode == "reference" else settings
        run = model.run_rows(
            [[*row.ids, *[None] * settings.max_new_tokens] for row in batch], its, samples=[row.seed for row in batch]
        )
        finished = 0
        for event in run:
            finished += len(event.finished)
            tokens += len(event.commits)
            seconds = time.perf_counter() - started
            report(AnswerProgress(begun=done, done=at + finished, total=len(rows), tokens=tokens, seconds=seconds))
        yield batch, run.results()


def _write(
    partial: Partial,
    batch: Sequence[Row],
    results: "Sequence[Generation]",
    settings: "DecodeSettings",
    *,
    keep_cut: bool,
) -> None:
    records, left_out = [], Counter[str]()
    for row, result in zip(batch, results, strict=True):
        if not result.text.strip():
            left_out["empty"] += 1
        elif result.finish_reason != "stop" and not keep_cut:
            left_out["cut"] += 1
        else:
            records.append(_record(row, result, settings))
    partial.append(records, done=len(batch), left_out=left_out)


def _record(row: Row, result: "Generation", settings: "DecodeSettings") -> dict[str, Any]:
    """One line: a conversation that ends with the model's answer."""
    answered = (*row.asked.messages, Message("assistant", row.asked.prefill + result.text))
    return {
        "messages": _as_json(answered),
        **row.asked.fields,
        "model": result.model,
        "temperature": settings.temperature,
        "sample": row.sample,
        "finish_reason": result.finish_reason,
    }


def _protocol(questions: Sequence[Asked], settings: "DecodeSettings", *, n: int, keep_cut: bool) -> dict[str, Any]:
    """What the lines depend on, beside the model."""
    asked = [[_as_json(question.messages), question.prefill, question.fields] for question in questions]
    stated = {name: value for name, value in asdict(settings).items() if value is not None}
    return {**stated, "n": n, "keep_cut": keep_cut, "questions": _digest(asked)}


def _as_json(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
