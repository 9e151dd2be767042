"""`unmask data answers`: a model answers questions, and the conversations become training data."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.data_terminal import AsJson, check_new, counting, dropped, print_json, print_line, say
from unmask.cli.options import ModelOptions, with_decoding

if TYPE_CHECKING:
    from unmask.data.answers import AnswerProgress

_PAUSE = 30.0  # seconds between two lines of progress where stderr is no terminal


@with_decoding()
def answers(
    questions: Annotated[
        list[Path],
        typer.Argument(
            help="JSON lines with `messages` that end with the user's turn, `instruction` or `prompt`; `prefill` "
            "begins the answer.",
            metavar="QUESTIONS...",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make: JSON lines.", show_default=False)],
    n: Annotated[int, typer.Option("-n", help="Answers to each question.", metavar="N")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Answers drawn together.", metavar="N")] = 16,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Ask the first N questions alone.", metavar="N", show_default=False)
    ] = None,
    keep_cut: Annotated[
        bool,
        typer.Option(
            "--keep-cut", help="Keep answers without an end; `data build` would end them where they broke off."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with FILE.partial of a run that was stopped.")
    ] = False,
    as_json: AsJson = False,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Let a model answer questions: conversations in its own words, for `unmask data build`.

    Batches that are finished are kept in FILE.partial. Prints the file and the number of its answers; what was left
    out, and why, goes to stderr.

    Example: unmask data answers questions.jsonl --output answers.jsonl --temperature 0.7 --max-new-tokens 512
    """
    from unmask.cli.output import tell_ineffective
    from unmask.data import answers as answering
    from unmask.decode.session import settings_from

    answering.check(n=n, batch_size=batch_size, limit=limit)
    settings_from(settings)  # what is wrong is refused before a model is loaded
    check_new(output)
    asked = answering.read_questions(questions, limit=limit)
    loaded = model.load()
    decoding = loaded.settings(settings)
    tell_ineffective(loaded, decoding, set(settings), n=n)
    try:
        with _telling() as tell:
            made = answering.answer(
                loaded,
                asked,
                output,
                decoding,
                n=n,
                batch_size=batch_size,
                keep_cut=keep_cut,
                resume=resume,
                facts=model.facts(loaded),
                report=tell,
            )
    except KeyboardInterrupt:
        say(f"stopped; finished batches are kept in {output}.partial, and the same command with --resume goes on")
        raise typer.Exit(130) from None
    if made.left_out:
        say(dropped(made.left_out))
    if as_json:
        print_json({"path": str(output), "answers": made.num_answers, "left_out": dict(made.left_out)})
        return
    print_line([output, made.num_answers])


@contextlib.contextmanager
def _telling() -> "Iterator[Callable[[AnswerProgress], None]]":
    """Tells how far the work is: a bar on a terminal, elsewhere a line every half minute and one at the end."""
    if sys.stderr.isatty():
        with counting() as tell:
            yield lambda progress: tell(f"answering, {_speed(progress)}", progress.done, progress.total)
        return
    due = time.monotonic() + _PAUSE

    def tell_seldom(progress: "AnswerProgress") -> None:
        nonlocal due
        if time.monotonic() >= due or progress.done == progress.total:
            due = time.monotonic() + _PAUSE
            say(f"{progress.done:,} of {progress.total:,} answers, {_speed(progress)}{_time_left(progress)}")

    yield tell_seldom


def _speed(progress: "AnswerProgress") -> str:
    return f"{progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s"


def _time_left(progress: "AnswerProgress") -> str:
    if not progress.seconds_left:
        return ""
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    return f", {minutes // 60}:{minutes % 60:02}:{seconds:02} left"
