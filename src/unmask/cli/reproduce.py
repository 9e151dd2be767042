"""`unmask reproduce`: measure DiffuCoder's findings again, and write the page that says which hold here."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.atomic import beside
from unmask.errors import SettingsError

if TYPE_CHECKING:
    from unmask.analyze.findings import Finding
    from unmask.cli.reproduction import Asked, Experiment, Ran
    from unmask.view.reproduction import Report


def _option(*names: str, help: str, metavar: str | None = None, panel: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, show_default=False, rich_help_panel=panel)


_RUNNING = "What is run"


def reproduce(
    model: Annotated[str, _option("--model", "-m", help="The model to measure. [tiny]", metavar="NAME")] = "tiny",
    after: Annotated[
        str | None,
        _option("--after", help="The model after coupled-GRPO. [MODEL-cpgrpo, where the table has it]", metavar="NAME"),
    ] = None,
    stages: Annotated[
        Path | None, _option("--stages", help="A folder of `unmask train tiny`, to compare its stages.", metavar="DIR")
    ] = None,
    only: Annotated[
        str | None, _option("--only", help="These findings alone; writes no page by itself.", metavar="NAME,…")
    ] = None,
    document: Annotated[
        Path | None,
        _option("--document", help="Where the page goes. [docs/reproduction.md, or …-MODEL.md]", metavar="FILE"),
    ] = None,
    figures: Annotated[
        Path | None, _option("--figures", help="Draw figures into DIR, and link them.", metavar="DIR")
    ] = None,
    output: Annotated[
        Path | None,
        _option("--output", "-o", help="Folder of the runs. [evaluations/reproduction, or …-MODEL]", metavar="DIR"),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be run and how long it takes.")] = False,
    seconds_per_answer: Annotated[
        float | None,
        _option("--seconds-per-answer", help="Plan with this rate. [measured on 8 answers]", metavar="S"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Result only: no progress, no hints.")] = False,
    tasks: Annotated[
        str | None, _option("--tasks", help="Benchmark. [synthetic-test]", metavar="NAME", panel=_RUNNING)
    ] = None,
    temperatures: Annotated[
        str | None,
        _option(
            "--temperatures", help="The lowest is compared with 1. [0.2,0.6,1.0,1.4]", metavar="T,…", panel=_RUNNING
        ),
    ] = None,
    limit: Annotated[
        int | None, _option("--limit", help="Tasks of each experiment. [40 to 200]", metavar="N", panel=_RUNNING)
    ] = None,
    n: Annotated[
        int | None, _option("-n", help="Samples per task, for pass@10. [10]", metavar="N", panel=_RUNNING)
    ] = None,
    max_new_tokens: Annotated[
        int | None, _option("--max-new-tokens", help="Room for an answer. [the model's]", metavar="N", panel=_RUNNING)
    ] = None,
    preset: Annotated[
        str | None, _option("--preset", help="How to ask. [the model's]", metavar="NAME", panel=_RUNNING)
    ] = None,
    dtype: Annotated[str | None, _option("--dtype", help="As in evaluate.", metavar="DTYPE", panel=_RUNNING)] = None,
    device: Annotated[str | None, _option("--device", help="As in evaluate.", metavar="DEVICE", panel=_RUNNING)] = None,
    sandbox: Annotated[str | None, _option("--sandbox", help="As in evaluate.", metavar="NAME", panel=_RUNNING)] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the network.")] = False,
) -> None:
    """Measure the paper's findings on a model, and write what holds.

    Everything is kept in one folder of evaluations: the same command goes on after Ctrl-C, and draws nothing twice.
    Another model than tiny has a folder and a page of its own.

    Example: unmask reproduce --plan

    Example: unmask reproduce --only temperature-local,temperature-global --limit 20 -n 1
    """
    from unmask.analyze.findings import find
    from unmask.cli import reproduction
    from unmask.evaluate.benchmarks import is_file, needed_files
    from unmask.evaluate.grid import parse_axis
    from unmask.model import hub, table

    findings = find([name.strip() for name in only.split(",")] if only is not None else [])
    entry = table.find(model)
    if after is None and table.find(f"{model}-cpgrpo") is not None:
        after = f"{model}-cpgrpo"
    for name in (model, after):
        if name is not None:
            hub.check_name(name)  # before anything runs for hours
    given = {
        "tasks": tasks,
        "temperatures": None
        if temperatures is None
        else tuple(parse_axis("temperature", temperatures, option="--temperatures")),
        "n": n,
        "sandbox": sandbox,
        "output": output,
        "max_new_tokens": _room(model, max_new_tokens),
    }
    asked = reproduction.Asked(
        model=model,
        after=after,
        stages=stages,
        limit=limit,
        preset=preset or (entry.defaults.preset if entry is not None else None),
        dtype=dtype,
        device=device,
        offline=offline,
        quiet=quiet,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    if not is_file(asked.tasks):
        needed_files(asked.tasks)  # which refuses a name that is none
    if plan:
        _plan(asked, findings, seconds_per_answer, as_json=as_json)
        return
    if seconds_per_answer is not None:
        raise SettingsError("--seconds-per-answer is for --plan, and this is a run; leave it out")
    page = document if document is not None or only is not None else reproduction.usual_page(model)
    _check_places(page, figures)
    report = _measure(asked, findings, only=only, page=page, figures=figures)
    if page is not None:
        _write(report, page, quiet=quiet)
    _print(report, as_json=as_json)


def _room(model: str, given: int | None) -> int | None:
    """The answer length of a model of the table."""
    from unmask.model import table

    if given is not None:
        return given  # a count that is none, to be refused where all counts are
    entry = table.find(model)
    if entry is not None and entry.defaults.max_new_tokens is not None:
        return entry.defaults.max_new_tokens
    raise SettingsError(
        f"{model} does not say how long its answers may be, and the runs must all have one length; give it, as in "
        "`--max-new-tokens 256`"
    )


def _check_places(page: Path | None, figures: Path | None) -> None:
    """Refuse what would fail when everything else is done."""
    if page is not None:
        from unmask.cli.output import check_writable

        try:
            page.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"--document {page} cannot be written: its folder cannot be made ({error.strerror}); give a file in a "
                "folder that exists"
            ) from None
        check_writable(page, option="--document")
    if figures is not None:
        from unmask.view.figures import make_folder

        make_folder(figures)


def _plan(asked: "Asked", findings: "Sequence[Finding]", rate: float | None, *, as_json: bool) -> None:
    from unmask.cli import reproduction
    from unmask.cli.output import print_line, print_rich

    if rate is not None and rate <= 0:
        raise SettingsError(f"--seconds-per-answer {rate:g} is no time; give what one answer takes, in seconds")
    source = "as given"
    missing = reproduction.missing(asked)
    lacking = {finding.name: missing[need] for finding in findings for need in finding.needs if need in missing}
    if rate is None:
        rate, source = reproduction.seconds_per_answer(asked)
    costs = reproduction.plan(asked, findings, seconds_per_answer=rate)
    if as_json:
        record = {
            "seconds_per_answer": rate,
            "experiments": [cost.to_json() for cost in costs],
            "not_measured": lacking,
        }
        print_line(json.dumps(record, ensure_ascii=False))
        return
    from unmask.view.reproduction import cost_table

    print_rich(cost_table(costs))
    hours = sum(cost.seconds for cost in costs) / 3600
    print_line(f"about {hours:.1f} hours at {rate:.2f} s an answer ({source}); nothing was run")
    for name, why in lacking.items():
        print_line(f"not measured: {name}: {why}")


def _measure(
    asked: "Asked", findings: "Sequence[Finding]", *, only: str | None, page: Path | None, figures: Path | None
) -> "Report":
    from unmask.analyze.findings import outcome
    from unmask.cli import reproduction
    from unmask.view.reproduction import Report

    planned = reproduction.experiments(asked, findings)
    ran = []
    for at, experiment in enumerate(planned, 1):
        if not asked.quiet:
            print(f"{at} of {len(planned)}: {experiment.name}, {experiment.num_answers} answers", file=sys.stderr)
        ran.append(reproduction.run(experiment, asked))
    by_name = {one.experiment.name: one for one in ran}
    wants_spread = any("spread" in finding.needs for finding in findings)
    spread = reproduction.run_spread(by_name["temperature"], asked) if wants_spread else None
    measured = reproduction.evidence(ran, spread)
    missing = reproduction.missing(asked)
    return Report(
        tasks=_tasks(asked, ran),
        command=reproduction.whole_command(
            asked,
            only=only or "",
            more=[("--document", page, reproduction.usual_page(asked.model)), ("--figures", figures, None)],
        ),
        models=[reproduction.facts(role, name, asked) for role, name in _models(planned).items()],
        outcomes=[outcome(finding, measured, missing=missing) for finding in findings],
        commands={finding.name: reproduction.commands(finding, planned, asked) for finding in findings},
        notes=reproduction.notes(ran),
        figures={} if figures is None else _figures(ran, figures, page),
    )


def _tasks(asked: "Asked", ran: "Sequence[Ran]") -> str:
    """The benchmark, with what names its data."""
    if not ran:
        return asked.tasks
    result = ran[0].result
    version = f" {result.version}" if result.version else ""
    counts = [str(count) for count in sorted({one.result.num_tasks for one in ran})]
    listed = " or ".join(filter(None, (", ".join(counts[:-1]), counts[-1])))
    return f"{result.benchmark}{version}, the first {listed} of it"


def _models(planned: "Sequence[Experiment]") -> Mapping[str, str]:
    """Role → model."""
    roles = {}
    for one in planned:
        role = "after reinforcement learning" if one.evidence.startswith("after_") else "measured"
        roles[f"stage {one.stage}" if one.stage else role] = one.model
    return roles


def _figures(ran: "Sequence[Ran]", folder: Path, page: Path | None) -> dict[str, str]:
    """Those of every experiment that compares settings; title → path from the page's folder."""
    from unmask.analyze.groups import NothingMeasured, analyse_all, read_groups
    from unmask.view.analysis_figures import draw

    links = {}
    for one in ran:
        if one.experiment.num_cells > 1:
            try:
                pairs, _ = analyse_all(read_groups([one.drawn.folder]))
            except NothingMeasured:  # every answer is empty: there is nothing to draw
                continue
            groups, analyses = [group for group, _ in pairs], [analysis for _, analysis in pairs]
            for path in draw(analyses, groups, folder / one.experiment.name, results=[one.result]):
                title = f"{one.experiment.name}: {path.stem}"
                links[title] = Path(os.path.relpath(path, page.parent if page is not None else ".")).as_posix()
    return links


def _write(report: "Report", path: Path, *, quiet: bool) -> None:
    """The page, in one step."""
    from unmask.view.reproduction import page

    with beside(path) as part:
        part.write_text(page(report), encoding="utf-8")
    if not quiet:
        print(f"the page is {path}", file=sys.stderr)


def _print(report: "Report", *, as_json: bool) -> None:
    from unmask.cli.output import print_line, print_rich
    from unmask.view.reproduction import table

    if as_json:
        print_line(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        print_rich(table(report))
