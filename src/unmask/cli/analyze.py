"""`unmask analyze`: measure recorded runs, or run a model and measure what it did.

Of files and folders nothing but the trajectories is read, so neither a model nor torch is needed. With `--model` an
evaluation is run first, one cell for each temperature, in a folder that is taken up again like any evaluation's.
"""

import contextlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import ModelOptions, with_decoding
from unmask.errors import SettingsError

if TYPE_CHECKING:
    from unmask.analyze.groups import Analysis, RunGroup
    from unmask.evaluate.result import Result

    Pairs = Sequence[tuple[RunGroup, Analysis]]

_RUNNING, _MEASURING = "Running a model", "Measures"


def _option(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


@with_decoding("temperature")
def analyze(
    trajectories: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Trajectory files, folders of them, folders of evaluations. Each is a group; a cell is one.",
            metavar="[PATH]...",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Result only: no progress, no hints.")] = False,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Draw figures into DIR.", metavar="DIR", show_default=False)
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Figures as PNG, not as SVG.")] = False,
    part: Annotated[
        str | None, _option("--part", help="answer, end or all. [answer]", panel=_MEASURING, metavar="PART")
    ] = None,
    ties: Annotated[
        str | None,
        _option(
            "--ties", help="Order within a step: position or confidence. [position]", panel=_MEASURING, metavar="ORDER"
        ),
    ] = None,
    over: Annotated[
        str | None,
        _option(
            "--over", help="Local AR-ness of the steps: defined or all. [defined]", panel=_MEASURING, metavar="STEPS"
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        _option("--tasks", help="Benchmark, as in `unmask evaluate`.", panel=_RUNNING, metavar="NAME"),
    ] = None,
    temperatures: Annotated[
        str | None, _option("--temperatures", help="A cell for each. [0.2,1.0]", panel=_RUNNING, metavar="T,…")
    ] = None,
    limit: Annotated[int | None, _option("--limit", help="First N tasks only.", panel=_RUNNING, metavar="N")] = None,
    n: Annotated[int | None, _option("-n", help="Samples per task. [1]", panel=_RUNNING, metavar="N")] = None,
    preset: Annotated[
        str | None, _option("--preset", help="How to ask. [the model's]", panel=_RUNNING, metavar="NAME")
    ] = None,
    output: Annotated[
        Path | None,
        _option("--output", "-o", help="Folder of the evaluation. [evaluations/…]", panel=_RUNNING, metavar="DIR"),
    ] = None,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Measure in what order recorded runs settled.

    AR-ness, when each kind of token settles, the entropy sink, pass@k over the temperature.

    Example: unmask analyze run.jsonl --figures figures

    Example: unmask analyze -m tiny --tasks synthetic-test --temperatures 0.2,1.0 --limit 50
    """
    from unmask.analyze.groups import analyse_all, read_groups
    from unmask.analyze.measure import Conventions

    given = {"over": over, "ties": ties, "part": part}
    conventions = Conventions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    _check_figures(figures, png=png)
    if trajectories:
        _refuse_running(
            {
                "--tasks": tasks,
                "--temperatures": temperatures,
                "--limit": limit,
                "-n": n,
                "--preset": preset,
                "--output": output,
                **{"--" + name.replace("_", "-"): value for name, value in settings.items()},
                **_loading(model),
            }
        )
        paths = trajectories
    else:
        folder = _run(
            model,
            settings,
            tasks=tasks,
            temperatures=temperatures,
            limit=limit,
            n=n,
            preset=preset,
            output=output,
            quiet=quiet,
        )
        paths = [folder]
    pairs, left_out = analyse_all(read_groups(paths), conventions=conventions)
    results = _results(paths)
    _print(pairs, left_out, results, as_json=as_json)
    for label, reason in left_out.items():
        print(f"{label} is left out: {reason}", file=sys.stderr)
    if figures is not None:
        _draw(pairs, figures, results, png=png, quiet=quiet)


def _check_figures(folder: Path | None, *, png: bool) -> None:
    """Refuse what would fail when everything else is done."""
    if folder is None:
        if png:
            raise SettingsError("--png says how figures are written, and none were asked for; give --figures DIR")
        return
    from unmask.view.figures import make_folder

    make_folder(folder)


def _refuse_running(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise SettingsError(
                f"{name} is for running a model, and recorded runs were given; leave it out, or leave out the files"
            )


def _loading(model: ModelOptions) -> dict[str, object]:
    named = {"--" + field.name.replace("_", "-"): getattr(model, field.name) for field in fields(model)}
    return {"--model": named.pop("--name"), **named, "--offline": named["--offline"] or None}


def _run(
    model: ModelOptions,
    settings: Mapping[str, Any],
    *,
    tasks: str | None,
    temperatures: str | None,
    limit: int | None,
    n: int | None,
    preset: str | None,
    output: Path | None,
    quiet: bool,
) -> Path:
    """Evaluate the model on the tasks, one cell per temperature; the folder."""
    from unmask.cli.evaluation import Drawing, Judging

    if tasks is None:
        raise SettingsError(
            "give recorded runs, as in `unmask analyze run.jsonl`, or tasks to run a model on, as in "
            "`unmask analyze --model tiny --tasks synthetic-test --temperatures 0.2,1.0 --limit 20`"
        )
    judging = Judging(sandbox="auto", workers=None, k=None, score_raw=False, quiet=quiet)
    listed = {name: str(settings[name]) for name in ("steps", "max_new_tokens", "policy") if name in settings}
    drawing = Drawing(
        axes={"temperature": temperatures or "0.2,1.0", **listed},
        settings={name: value for name, value in settings.items() if name not in listed},
        n=1 if n is None else n,
        preset=preset,
        registered=None,
        length=None,
        batch_size=None,
        quiet=quiet,
        trajectories=True,
    )
    with contextlib.ExitStack() as stack:
        try:
            drawing.check(judging)
        except SettingsError as error:  # which knows the option by its name in `unmask evaluate`
            raise SettingsError(re.sub(r"--temperature(?![\w-])", "--temperatures", str(error))) from None
        benchmark, executor = judging.prepare(
            tasks, stack, version=None, limit=limit, is_offline=model.offline, is_wanted=True
        )
        assert executor is not None
        drawn = drawing.draw(benchmark, model, stack, output=output, limit=limit)
        judging.judge(drawn, benchmark, executor)
        return drawn.folder


def _results(paths: Sequence[Path]) -> "dict[str, Result]":
    """The scores of those paths that are evaluations, by the names of their folders."""
    from unmask.evaluate.result import load_result

    folders = [path for path in paths if (path / "result.json").is_file()]
    names = [path.resolve().name for path in folders]
    if len(set(names)) < len(names):
        names = [str(path) for path in folders]
    return {name: load_result(path) for name, path in zip(names, folders, strict=True)}


def _draw(pairs: "Pairs", folder: Path, results: "Mapping[str, Result]", *, png: bool, quiet: bool) -> None:
    from unmask.view.analysis_figures import draw

    written = draw(
        [analysis for _, analysis in pairs],
        [group for group, _ in pairs],
        folder,
        results=[*results.values()],
        names=[*results],
        suffix=".png" if png else ".svg",
        tell=lambda note: print(note, file=sys.stderr),
    )
    if not quiet and written:
        print(f"figures in {folder}: {', '.join(path.name for path in written)}", file=sys.stderr)


def _print(pairs: "Pairs", left_out: Mapping[str, str], results: "Mapping[str, Result]", *, as_json: bool) -> None:
    from unmask.cli.output import print_line, print_rich

    if as_json:
        print_line(json.dumps(_record(pairs, left_out, results), ensure_ascii=False))
        return
    from rich.text import Text

    from unmask.view.analysis import report
    from unmask.view.evaluation import scores

    print_rich(report([analysis for _, analysis in pairs]))
    for name, result in results.items():
        print_rich(Text(f"\n{name}" if len(results) > 1 else ""), scores(result))


def _record(pairs: "Pairs", left_out: Mapping[str, str], results: "Mapping[str, Result]") -> dict[str, Any]:
    """All groups; above them the same of all runs together, and in what these differ. Of several models there is no
    mean, and their AR-ness together is null."""
    from unmask.analyze.groups import differing, together

    pooled = pairs[0][1] if len(pairs) == 1 else together(pairs)
    record: dict[str, Any] = {"label": "all", "model": None}
    if pooled is not None:
        record = pooled.to_json()
    else:
        first = pairs[0][1].to_json()
        record |= {
            name: dict.fromkeys(first[name]) for name in ("local_ar_ness", "local_ar_ness_set", "global_ar_ness")
        }
    record["differing"] = differing([group for group, _ in pairs])
    record["groups"] = [analysis.to_json() for _, analysis in pairs]
    record["left_out"] = dict(left_out)
    if results:
        record["evaluations"] = [result.to_json(tasks=False) for result in results.values()]
    return record
