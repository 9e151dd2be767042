"""Samples of a model: every task `n` times in every cell of a grid, batch by batch.

A sample's text depends on the task, its number and the settings. Its random numbers are named by (seed, task, number),
so neither the batch, nor the order, nor `n`, nor a `--limit` moves them, and the cells of a grid share them. Batches
are laid out over all samples before any is drawn, longest prompts first, and a run that is taken up again draws the
batches that are not whole in the same company as before: with the same `--batch-size` on the same machine not even
rounding differs. The reference mode has one random stream per canvas, so there each sample has a canvas of its own. So
has each infilling.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING

from unmask.data.task import Task
from unmask.errors import CanvasError, SettingsError
from unmask.evaluate.benchmarks.cruxeval import answer_program
from unmask.evaluate.extract import extract, raw_program
from unmask.evaluate.grid import Cell
from unmask.evaluate.prompts import Rendered, cut_at_stops
from unmask.evaluate.samples import Sample
from unmask.seeds import derive_seed

if TYPE_CHECKING:
    from unmask.decode.infill import Filler, Hole
    from unmask.decode.run import Generation
    from unmask.decode.session import Model
    from unmask.decode.settings import DecodeSettings
    from unmask.trajectory import Trajectory

Key = tuple[str, str, int]
"""What names a sample in a run: (cell, task id, number)."""

Report = Callable[[int], None]
"""Called with how many samples were finished since the last call."""

Keep = Callable[[str, int, "Sequence[Trajectory]"], None]
"""Called before a batch is yielded, with its cell, the running number of its first sample that was missing (whatever
the batch size), and what each missing sample did."""

ORACLE = "oracle"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A task as the model gets it."""

    task: Task
    rendered: Rendered
    ids: tuple[int, ...]


def sample_seed(seed: int, task_id: str, number: int) -> int:
    """The seed of one sample, a function of nothing else."""
    return derive_seed(seed, f"sample of {task_id}", number)


def encode_prompts(model: "Model", tasks: Sequence[Task], rendered: Sequence[Rendered]) -> list[Prompt]:
    """The prompts as ids: conversations through the chat template, texts as they stand."""
    from unmask.text.chat import encode_chat

    prompts = []
    for task, form in zip(tasks, rendered, strict=True):
        if form.messages:
            ids = encode_chat(model.tokenizer, form.messages, prefill=form.prefill or None)
        else:
            ids = model.encode_prompt(form.text, raw=True)
        prompts.append(Prompt(task=task, rendered=form, ids=tuple(ids)))
    return prompts


def check_room(prompts: Sequence[Prompt], cells: Sequence[Cell], limit: int) -> None:
    """Raise CanvasError, naming the tasks, when a prompt and its answer do not fit the model's context."""
    room = max(cell.settings.max_new_tokens for cell in cells)
    long = [prompt for prompt in prompts if len(prompt.ids) + room > limit]
    if not long:
        return
    longest = max(long, key=lambda prompt: len(prompt.ids))
    names = ", ".join(prompt.task.task_id for prompt in long[:3]) + (" and more" if len(long) > 3 else "")
    fits = limit - len(longest.ids)
    raise CanvasError(
        f"{len(long)} prompts do not fit with {room} new tokens into the model's context of {limit}: {names}; the "
        f"longest has {len(longest.ids)} tokens; "
        + (f"give --max-new-tokens {fits} or fewer" if fits > 0 else "take a model with a longer context")
    )


def generate(
    model: "Model",
    prompts: Sequence[Prompt],
    cells: Sequence[Cell],
    *,
    n: int,
    batch_size: int,
    done: Collection[Key] = (),
    report: Report = lambda _: None,
    keep: Keep | None = None,
) -> Iterator[list[Sample]]:
    """The samples that are not in `done`, a list for each batch as it ends."""
    for cell in cells:
        batches = _batches(prompts, n, 1 if cell.settings.mode == "reference" else batch_size)
        end = 0
        for batch in batches:
            start, end = end, end + len(batch)
            missing = [(cell.name, prompt.task.task_id, number) not in done for prompt, number in batch]
            if not any(missing):
                continue
            results = _decode(model, batch, cell.settings, report)
            if keep is not None:
                for (prompt, _), result in zip(batch, results, strict=True):
                    result.trajectory.label = prompt.task.task_id
                keep(cell.name, start + missing.index(True), [r.trajectory for r in compress(results, missing)])
            yield [
                _sample(prompt, cell, number, result, rows=len(batch))
                for (prompt, number), result, is_missing in zip(batch, results, missing, strict=True)
                if is_missing
            ]


def _batches(prompts: Sequence[Prompt], n: int, size: int) -> list[list[tuple[Prompt, int]]]:
    """All samples in batches of about one length, the longest first: what does not fit the memory fails at once."""
    by_length = sorted(prompts, key=lambda prompt: -len(prompt.ids))
    rows = [(prompt, number) for prompt in by_length for number in range(n)]
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _decode(
    model: "Model", batch: Sequence[tuple[Prompt, int]], settings: "DecodeSettings", report: Report
) -> "list[Generation]":
    seeds = [sample_seed(settings.seed, prompt.task.task_id, number) for prompt, number in batch]
    if settings.mode == "reference":  # its stream is seeded as a whole
        settings = replace(settings, seed=seeds[0])
    rows = [[*prompt.ids, *[None] * settings.max_new_tokens] for prompt, _ in batch]
    # all prompts of a benchmark have the preset's stop strings; what they leave is cut at the string afterwards
    run = model.run_rows(rows, settings, samples=seeds, stop_strings=batch[0][0].rendered.stop_strings)
    told = 0
    for event in run:
        report(len(event.finished))
        told += len(event.finished)
    report(len(batch) - told)
    return run.results()


def _sample(prompt: Prompt, cell: Cell, number: int, result: "Generation", *, rows: int) -> Sample:
    task, form = prompt.task, prompt.rendered
    completion, stop = cut_at_stops(result.text, form.stop_strings)
    program, raw = programs(task, completion, form)
    return Sample(
        task_id=task.task_id,
        sample=number,
        cell=cell.name,
        seed=sample_seed(cell.settings.seed, task.task_id, number),
        raw=result.text,
        completion=completion,
        program=program,
        raw_program=raw,
        num_tokens=result.num_tokens,
        num_forwards=result.num_forwards,
        wasted_tokens=result.wasted_tokens,
        positions_computed=result.positions_computed,
        seconds=result.seconds / rows,
        finish_reason="stop_string" if stop is not None else result.finish_reason,
        prompt_tokens=len(prompt.ids),
    )


def programs(task: Task, completion: str, form: Rendered) -> tuple[str, str]:
    """The program that is judged, and the one without any extraction.

    What a benchmark gives with its tasks (`Task.preamble`) stands before both. A prediction becomes a program that
    returns it.
    """
    if form.kind == "predict":
        program = answer_program(task, completion)
        return program, program
    around = {"prompt": form.text, "suffix": form.suffix}
    extracted = extract(completion, entry_point=task.entry_point, kind=form.kind, **around).program
    return task.preamble + extracted, task.preamble + raw_program(completion, kind=form.kind, **around)


# Infilling


def check_length(length: str, cells: Sequence[Cell]) -> None:
    """Raise SettingsError for a `--length` that is none."""
    for cell in cells:
        _hole(length, oracle=1, most=cell.settings.max_new_tokens)


def infill(
    model: "Model",
    prompts: Sequence[Prompt],
    cells: Sequence[Cell],
    *,
    n: int,
    length: str,
    done: Collection[Key] = (),
    report: Report = lambda _: None,
    keep: Keep | None = None,
) -> Iterator[list[Sample]]:
    """As `generate`, for gaps in given code, one sample at a time.

    `length` is `oracle` (as many tokens as the reference has: the official figure of models that need a length),
    `unknown` (the model finds it, up to `max_new_tokens`), N or N-M tokens. Raises CanvasError, naming the task, before
    any work where a text does not fit.
    """
    for cell in cells:
        for prompt in prompts:
            _filler(model, prompt, cell, 0, length)
    for cell in cells:
        for index, (prompt, number) in enumerate((prompt, number) for prompt in prompts for number in range(n)):
            if (cell.name, prompt.task.task_id, number) not in done:
                filler = _filler(model, prompt, cell, number, length)
                for _ in filler:
                    pass
                report(1)
                if keep is not None:
                    filled = filler.result().trajectories
                    for trajectory in filled:
                        trajectory.label = prompt.task.task_id
                    keep(cell.name, index, filled)
                yield [_filled(prompt, cell, number, filler)]


def _filler(model: "Model", prompt: Prompt, cell: Cell, number: int, length: str) -> "Filler":
    from unmask.decode.infill import start_infill

    task = prompt.task
    oracle = len(model.tokenizer.encode(task.reference_completion))
    hole = _hole(length, oracle=oracle, most=cell.settings.max_new_tokens)
    seed = sample_seed(cell.settings.seed, task.task_id, number)
    try:
        return start_infill(model, [task.prompt, hole, task.suffix], replace(cell.settings, seed=seed))
    except CanvasError as error:
        raise CanvasError(f"the task {task.task_id} cannot be filled in: {error}") from None


def _hole(length: str, *, oracle: int, most: int) -> "Hole":
    from unmask.decode.infill import Hole

    if length == ORACLE:
        return Hole.parse(str(max(1, oracle)))
    if length == UNKNOWN:
        return Hole.parse("+", limit=most)
    if not re.fullmatch(r"\d+(-\d+)?", length, re.ASCII):
        raise SettingsError(
            f"--length {length!r} is not the length of a hole; give oracle (the reference's), unknown, N or N-M tokens"
        )
    return Hole.parse(length)


def _filled(prompt: Prompt, cell: Cell, number: int, filler: "Filler") -> Sample:
    result = filler.result()
    (filled,) = result.holes
    completion, stop = cut_at_stops(filled, prompt.rendered.stop_strings)
    completion += stop or ""  # the newline that ends a missing line belongs to it
    program, raw = programs(prompt.task, completion, prompt.rendered)
    return Sample(
        task_id=prompt.task.task_id,
        sample=number,
        cell=cell.name,
        seed=filler.settings.seed,
        raw=filled,
        completion=completion,
        program=program,
        raw_program=raw,
        num_tokens=result.num_tokens,
        num_forwards=result.num_forwards,
        wasted_tokens=result.wasted_tokens,
        positions_computed=result.positions_computed,
        seconds=result.seconds,
        prompt_tokens=len(prompt.ids),
    )
