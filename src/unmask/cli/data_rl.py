"""`unmask data rl|select`: tasks for reinforcement learning."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.data_terminal import (
    AsJson,
    check_new,
    counting,
    dropped,
    names_in,
    print_json,
    print_line,
    print_table,
    say,
    tasks_of,
)

if TYPE_CHECKING:
    from unmask.data.select import Selection


def rl(
    name: Annotated[
        str,
        typer.Argument(
            help="mbpp-rl, p3, synthetic-hard, or a file of tasks (.jsonl).", metavar="SET", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make: JSON lines.", show_default=False)],
    count: Annotated[
        int | None, typer.Option("--count", help="Keep the first N tasks; synthetic-hard needs it.", metavar="N")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Which tasks of synthetic-hard. [0]", show_default=False)
    ] = None,
    without_benchmarks: Annotated[
        str,
        typer.Option("--without-benchmarks", help="Drop tasks that share ten words with these.", metavar="NAME,NAME"),
    ] = "humaneval+,mbpp+",
    sandbox: Annotated[
        str, typer.Option("--sandbox", help="What runs the solutions, as for `unmask evaluate`.", metavar="NAME")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option("--workers", help="Programs run side by side. [one per core]", metavar="N")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a set of tasks for reinforcement learning: apart from the benchmarks, and passed by their own solutions.

    Prints the file and the number of its tasks; what was left out, and why, goes to stderr.

    Example: unmask data rl mbpp-rl --output mbpp-rl.jsonl
    """
    from unmask.data import rl_sets
    from unmask.data.jsonl import write_records
    from unmask.sandbox.executor import open_executor

    check_new(output)
    rl_sets.check(name, count=count, seed=seed)
    without = tasks_of(names_in(without_benchmarks))
    try:
        with open_executor(sandbox, workers=workers) as executor, counting() as tell:
            made = rl_sets.make(
                name,
                executor=executor,
                without=without,
                count=count,
                seed=seed,
                report=lambda done, total: tell(f"running the solutions of {name}", done, total),
            )
        written = write_records(made.records, output)
    except KeyboardInterrupt:
        say(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    if made.dropped:
        say(dropped(made.dropped))
    if made.num_unchecked:
        have = "task has" if made.num_unchecked == 1 else "tasks have"
        say(f"{made.num_unchecked:,} {have} no solution: nothing says that their tests can be passed")
    if as_json:
        print_json(
            {"path": str(output), "tasks": written, "dropped": made.dropped, "num_unchecked": made.num_unchecked}
        )
        return
    print_line([output, written])


def select(
    tasks: Annotated[
        Path,
        typer.Argument(help="AceCode's rows with their inferences, or tasks of ours (.jsonl).", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make: JSON lines.", show_default=False)],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results", help="Evaluation of these tasks whose samples count; again for more.", metavar="PATH"
        ),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            help="paper (of the hardest fifth the 40 % with most spread), as-coded (spread as among all tasks), or "
            "mixed (all whose answers differ).",
            metavar="NAME",
        ),
    ] = "paper",
    mean_percentile: Annotated[
        float | None, typer.Option("--mean-percentile", help="Keep means up to this percentile. [20]", metavar="P")
    ] = None,
    std_percentile: Annotated[
        float | None,
        typer.Option(
            "--std-percentile", help="Keep deviations from this percentile on. [paper: 60, as-coded: 40]", metavar="P"
        ),
    ] = None,
    min_pass: Annotated[
        float, typer.Option("--min-pass", help="Least share of tests that the best answer passes.", metavar="SHARE")
    ] = 0.0,
    models: Annotated[
        str | None,
        typer.Option(
            "--models", help="Whose answers count; the paper: qwen_coder_2.5,llama3_instruct.", metavar="NAME,NAME"
        ),
    ] = None,
    dedup: Annotated[
        str, typer.Option("--dedup", help="Questions that are one: exact, near, or none.", metavar="HOW")
    ] = "exact",
    stubs: Annotated[
        bool, typer.Option("--stubs", help="AceCode: add a copy of each question as a function to complete.")
    ] = False,
    show_test: Annotated[
        bool, typer.Option("--show-test", help="AceCode: show the first test, and do not score it.")
    ] = False,
    without_benchmarks: Annotated[
        str | None,
        typer.Option("--without-benchmarks", help="Drop tasks that share ten words with these.", metavar="NAME,NAME"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Keep tasks that are hard and can be done, by the pass rates of recorded answers.

    Into a pipe each line is: step, its threshold, the tasks that it dropped, the tasks left; a step that compares with
    nothing has "-" as its threshold.

    Example: unmask data select acecode.jsonl --models qwen_coder_2.5,llama3_instruct --output hard.jsonl
    """
    from unmask.data import select as selecting
    from unmask.data.jsonl import write_records

    check_new(output)
    settings = selecting.SelectSettings(
        rule=rule,  # type: ignore[arg-type]  # the settings refuse other words
        mean_percentile=mean_percentile,
        std_percentile=std_percentile,
        min_pass=min_pass,
        models=names_in(models),
        dedup=dedup,  # type: ignore[arg-type]
        stubs=stubs,
        show_test=show_test,
    )
    rates = _rates_of(results) if results else None
    found = selecting.select(tasks, settings, rates=rates, without=tasks_of(names_in(without_benchmarks)))
    written = write_records(found.records, output)
    _tell_selection(found, output, written)
    rows = [
        [step.name, "-" if step.threshold is None else f"{step.threshold:.4g}", str(step.dropped), str(step.left)]
        for step in found.steps
    ]
    if as_json:
        counts = {"num_stubs": found.num_stubs, "num_unusable_tests": found.num_unusable_tests}
        counts["num_never_passed"] = found.num_never_passed
        steps = [asdict(step) for step in found.steps]
        print_json({"path": str(output), "tasks": written, "steps": steps, **counts})
    elif sys.stdout.isatty():
        print_table(["step", "threshold", "dropped", "left"], rows)
    else:
        for row in rows:
            print_line(row)


def _rates_of(results: Sequence[Path]) -> dict[str, dict[str, list[float]]]:
    """Of each task, and of each model that was evaluated: 1 for a sample that passed, 0 for one that did not.

    Of a grid the cell that is quoted counts. What the sandbox lost says nothing.
    """
    from unmask.evaluate.result import load_result

    rates: dict[str, dict[str, list[float]]] = {}
    for place in results:
        result = load_result(place)
        for task_id, outcomes in result.main.tasks.items():
            of_model = rates.setdefault(task_id, {}).setdefault(result.model, [])
            of_model += [float(outcome.passed) for outcome in outcomes if outcome.is_judged]
    return rates


def _tell_selection(found: "Selection", output: Path, written: int) -> None:
    stubs = f", {found.num_stubs:,} of them stubs" if found.num_stubs else ""
    say(f"{output}: {written:,} tasks{stubs}")
    if found.num_unusable_tests:
        count = found.num_unusable_tests
        were = (
            "test was left out: it is no assert, or uses a name"
            if count == 1
            else "tests were left out: they are no asserts, or use names"
        )
        say(f"{count:,} {were} that nobody gives")
    if found.num_never_passed:
        say(
            f"of {found.num_never_passed:,} chosen tasks no recorded answer passed a single test; --min-pass 0.01 "
            "leaves them out"
        )
