"""`unmask generate PROMPT`: one answer, or several, to one prompt."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import ModelOptions, with_decoding
from unmask.errors import SettingsError

if TYPE_CHECKING:
    from unmask.trajectory import Trajectory


@with_decoding()
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; - reads it from standard input.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Answers to give.", metavar="N")] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself, without the chat template.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="System message.", metavar="TEXT", show_default=False)
    ] = None,
    trajectory: Annotated[
        Path | None, typer.Option("--trajectory", help="Keep every step in FILE.", metavar="FILE", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Take up the run recorded in FILE …", metavar="FILE", show_default=False),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option("--at", help="… after step K, with the settings given here.", metavar="K", show_default=False),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option("--row", help="Which run of FILE to take up, from 0.", metavar="N", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Draw a meter of AR-ness below the canvas.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Result only: no drawing, no speed card.")] = False,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Write an answer to a prompt, and watch the draft settle.

    Example: unmask generate "Write hello world." --temperature 0.2
    """
    from unmask.cli import output
    from unmask.decode.session import resumed_settings, settings_from
    from unmask.trajectory import load

    output.check_writable(trajectory)
    output.check_live(live=live, quiet=quiet)
    runners_up = output.RUNNERS_UP if trajectory is not None else 0
    if (resume is None) != (at is None):
        raise SettingsError("--resume FILE and --at K go together: the record, and the step after which to go on")
    if (prompt is None) == (resume is None):
        raise SettingsError(
            'give either a prompt, as in `unmask generate "Write hello world."`, or --resume FILE --at K'
        )
    if prompt is not None:
        if row is not None:
            raise SettingsError(f"--row {row} names a run of a --resume FILE; leave it out with a prompt")
        settings_from(settings)  # what is wrong is refused before a model is loaded
        text = output.read_prompt(prompt)
        loaded = model.load(quiet=quiet)
        ids = loaded.encode_prompt(text, raw=raw, system=system)
        run = loaded.start([ids], loaded.settings(settings), n=n, runners_up=runners_up)
    else:
        assert resume is not None
        assert at is not None
        _refuse_with_resume({"-n": n != 1, "--raw": raw, "--system": system is not None})
        recorded = _pick(load(resume), resume, row)
        recorded.ids_at(at)  # what cannot be resumed is refused before a model is loaded
        resumed_settings(recorded, settings)
        loaded = model.load(quiet=quiet, default=recorded.model)
        run = loaded.resume(recorded, at=at, runners_up=runners_up, **settings)
        if recorded.model != loaded.name and not quiet:
            print(f"the run was recorded with {recorded.model} and goes on with {loaded.name}", file=sys.stderr)
    if not quiet:
        output.tell_ineffective(loaded, run.settings, set(settings), n=n)
    try:
        is_whole = output.watch(run, quiet=quiet, meter=live)
    except BaseException:
        run.results()
        output.save_trajectories(trajectory, run.trajectories, quiet=quiet)
        raise
    results = run.results()
    try:
        output.save_trajectories(trajectory, run.trajectories, quiet=quiet)
    finally:
        output.print_results(results, as_json=as_json)
    if not quiet:
        output.print_card(results, first_step=at or 0)
        if resume is None and any(result.finish_reason == "length" for result in results):
            room = run.settings.max_new_tokens
            print(f"the room of {room} tokens was used up; --max-new-tokens gives more", file=sys.stderr)
    if not is_whole:
        if not quiet:
            print("interrupted; the answer is what had settled by then", file=sys.stderr)
        raise typer.Exit(130)


def _pick(recorded: "list[Trajectory]", file: Path, row: int | None) -> "Trajectory":
    """The run to take up; a file that holds several wants one named."""
    if row is None and len(recorded) > 1:
        raise SettingsError(f"{file} holds {len(recorded)} runs; say which with --row, from 0 to {len(recorded) - 1}")
    if row is not None and not 0 <= row < len(recorded):
        raise SettingsError(f"--row {row} is not in {file}, which holds {len(recorded)} runs counted from 0")
    return recorded[row or 0]


def _refuse_with_resume(given: dict[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given:
            raise SettingsError(
                f"{option} has no effect with --resume, which goes on from one recorded canvas; leave one of them out"
            )
