"""`unmask data questions`: questions to ask a model, made from code and from the standard library."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.data_terminal import (
    AsJson,
    check_new,
    counting,
    dropped,
    names_in,
    print_json,
    print_line,
    say,
    tasks_of,
)


def questions(
    count: Annotated[int, typer.Option("--count", help="Questions to make.", metavar="N", min=1, show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make: JSON lines.", show_default=False)],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Code to ask about: `stdlib`, `installed` (packages beside this Python under permissive licences), a "
            "folder of Python files, or what `unmask data build` reads.",
            metavar="SOURCE...",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which questions, and their order.")] = 0,
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds",
            help="Only these: chat, write, complete, instruct, explain, tests, bug, docstring, types, refactor. [all]",
            metavar="A,B",
            show_default=False,
        ),
    ] = None,
    without_benchmarks: Annotated[
        str | None,
        typer.Option(
            "--without-benchmarks", help="Drop questions that share ten words with these.", metavar="NAME,NAME"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make questions as people put them to a code assistant, for `unmask data answers`.

    Prints the file and the number of its questions; how many of each kind, and what was dropped, goes to stderr.

    Example: unmask data questions stdlib installed --count 2000 --output questions.jsonl
    """
    from unmask.data import questions as asking
    from unmask.data.jsonl import write_records

    chosen = names_in(kinds) if kinds is not None else asking.KINDS
    asking.check(sources or [], chosen)
    check_new(output)
    without = tasks_of(names_in(without_benchmarks))
    try:
        with counting() as tell:
            made = asking.make(sources or [], count=count, seed=seed, kinds=chosen, without=without, report=tell)
        written = write_records((question.record() for question in made.questions), output)
    except KeyboardInterrupt:
        say(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    by_kind = Counter(question.kind for question in made.questions)
    say(", ".join(f"{kind} {number:,}" for kind, number in by_kind.most_common()))
    if made.dropped:
        say(dropped(made.dropped))
    if written < count:
        say(f"the sources gave {written:,} questions, fewer than {count:,}: add sources or kinds for more")
    if as_json:
        print_json({"path": str(output), "questions": written, "kinds": dict(by_kind), "dropped": made.dropped})
        return
    print_line([output, written])
