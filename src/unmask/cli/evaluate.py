"""`unmask evaluate BENCHMARK`: draw a model's samples, judge them in the sandbox, and report.

Everything lands in one folder (`evaluate/folder.py`), as it happens: the same command goes on after Ctrl-C, a kill or a
full disk, and ends in the same result.
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.evaluation import Drawing, Drawn, Judging, beyond_limit, export, read
from unmask.cli.options import ModelOptions, with_decoding
from unmask.errors import SettingsError

if TYPE_CHECKING:
    from unmask.evaluate.result import Result

_SAMPLING, _JUDGING = "Samples", "Judging"


def _option(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


@with_decoding("temperature", "steps", "max_new_tokens", "policy")
def evaluate(
    benchmark: Annotated[
        str | None, typer.Argument(help="A benchmark's name, or a .jsonl file of tasks.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="First N tasks only.", metavar="N", show_default=False)
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Version of the data.", metavar="V", show_default=False)
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="Score the samples in FILE; no model.", metavar="FILE", show_default=False),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", help="Two results, task by task.", metavar="A B", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run. [evaluations/…]", metavar="DIR", show_default=False),
    ] = None,
    generate_only: Annotated[bool, typer.Option("--generate-only", help="Draw samples, judge nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Result only: no progress, no hints.")] = False,
    n: Annotated[int | None, _option("-n", help="Samples per task. [1]", panel=_SAMPLING, metavar="N")] = None,
    preset: Annotated[
        str | None,
        _option(
            "--preset",
            help="How to ask: base, evalplus, diffucoder, qwen, plain. [the model's, or evalplus; base without chat]",
            panel=_SAMPLING,
            metavar="NAME",
        ),
    ] = None,
    temperature: Annotated[
        str | None,
        _option("--temperature", help="Chance in the tokens; a list is a grid. [0]", panel=_SAMPLING, metavar="T,…"),
    ] = None,
    steps: Annotated[
        str | None,
        _option("--steps", help="Forward passes; a list is a grid. [one per token]", panel=_SAMPLING, metavar="N,…"),
    ] = None,
    max_new_tokens: Annotated[
        str | None,
        _option(
            "--max-new-tokens",
            help="Room; a list is a grid. [the model's, else the preset's]",
            panel=_SAMPLING,
            metavar="N,…",
        ),
    ] = None,
    policy: Annotated[
        str | None, _option("--policy", help="Order; a list is a grid. [entropy]", panel=_SAMPLING, metavar="NAME,…")
    ] = None,
    registered: Annotated[
        str | None,
        _option(
            "--registered",
            help="The cell of the grid that was chosen before the run, as in temperature=0.2.",
            panel=_SAMPLING,
            metavar="CELL",
        ),
    ] = None,
    length: Annotated[
        str | None,
        _option(
            "--length",
            help="Of a hole, when infilling: oracle, unknown, N or N-M tokens. [unknown]",
            panel=_SAMPLING,
            metavar="LENGTH",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, _option("--batch-size", help="Samples drawn together. [16]", panel=_SAMPLING, metavar="N")
    ] = None,
    trajectories: Annotated[
        bool, _option("--trajectories", help="Keep what every step did, for `unmask analyze`.", panel=_SAMPLING)
    ] = False,
    k: Annotated[
        str | None, _option("--k", help="pass@k for these k. [1,10,100 up to n]", panel=_JUDGING, metavar="K,…")
    ] = None,
    score_raw: Annotated[
        bool, _option("--score-raw", help="Score the text as it stands too, without extraction.", panel=_JUDGING)
    ] = False,
    partial: Annotated[
        bool, _option("--partial", help="Score --samples that leave tasks out.", panel=_JUDGING)
    ] = False,
    sandbox: Annotated[
        str | None,
        _option(
            "--sandbox", help="auto, bwrap, landlock, plain (no jail!) or a URL. [auto]", panel=_JUDGING, metavar="NAME"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        _option("--workers", help="Programs judged side by side. [one per core]", panel=_JUDGING, metavar="N"),
    ] = None,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Score a model on a benchmark, its programs run in a sandbox.

    Names: humaneval[+], mbpp[+], mbpp-sanitized, bigcodebench-{complete,instruct}[-hard],
    infilling-{single-line,multi-line,random-span,random-span-light}, cruxeval-{input,output},
    synthetic-{train,val,test,hard-train,hard-test}.

    Example: unmask evaluate humaneval+ -m diffucoder-7b-instruct --temperature 0.2,0.4 --registered temperature=0.2
    """
    lists = {"temperature": temperature, "steps": steps, "max_new_tokens": max_new_tokens, "policy": policy}
    axes = {name: text for name, text in lists.items() if text is not None}
    sampling = {"-n": n, "--preset": preset, "--registered": registered, "--length": length, "--batch-size": batch_size}
    sampling |= {"--trajectories": trajectories or None}
    sampling |= {"--" + name.replace("_", "-"): value for name, value in {**axes, **settings}.items()}
    judged = {"--k": k, "--score-raw": score_raw or None, "--workers": workers, "--sandbox": sandbox}
    loading = {"--" + f.name.replace("_", "-"): getattr(model, f.name) for f in fields(model)}
    named = {"--model": loading.pop("--name"), "--offline": loading.pop("--offline") or None}
    if compare is not None:
        others = {"a benchmark": benchmark, "--samples": samples, "--output": output, "--limit": limit}
        others |= {"--version": version, "--generate-only": generate_only or None, "--partial": partial or None}
        _refuse({**others, **sampling, **judged, **named, **loading}, beside="--compare")
        _compare(*compare, as_json=as_json)
        return
    if benchmark is None:
        raise SettingsError("name a benchmark, as in `unmask evaluate humaneval+`; `unmask data list` shows them")
    if samples is not None:
        _refuse({"--generate-only": generate_only or None, **sampling, **loading}, beside="--samples")
    elif partial:
        raise SettingsError("--partial is for samples that leave tasks out; give it with --samples FILE")
    if generate_only:
        _refuse(judged, beside="--generate-only")
    judging = Judging(sandbox=sandbox or "auto", workers=workers, k=k, score_raw=score_raw, quiet=quiet)
    drawing = Drawing(
        axes=axes,
        settings=settings,
        n=1 if n is None else n,
        preset=preset,
        registered=registered,
        length=length,
        batch_size=batch_size,
        trajectories=trajectories,
        quiet=quiet,
    )
    with contextlib.ExitStack() as stack:
        if samples is None:
            drawing.check(judging)
        tasks, executor = judging.prepare(
            benchmark, stack, version=version, limit=limit, is_offline=model.offline, is_wanted=not generate_only
        )
        if samples is None:
            drawn = drawing.draw(tasks, model, stack, output=output, limit=limit)
        else:
            left_out = (
                set() if limit is None else beyond_limit(benchmark, tasks, version=version, is_offline=model.offline)
            )
            drawn = read(
                tasks, samples, model, stack, output=output, limit=limit, left_out=left_out, is_partial=partial
            )
        export(drawn, tasks)
        if executor is None:
            _tell_drawn(drawn, as_json=as_json, quiet=quiet)
            return
        result = judging.judge(drawn, tasks, executor)
    _report(result, drawn, as_json=as_json, quiet=quiet)
    if result.not_judged:
        print(
            f"error: {len(result.not_judged)} samples could not be judged and are left out of the scores: "
            f"{result.not_judged[0][2].message}; the same command judges them again",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _tell_drawn(drawn: Drawn, *, as_json: bool, quiet: bool) -> None:
    from unmask.cli.output import print_line
    from unmask.evaluate import folder as folders

    file = drawn.folder / folders.SAMPLES
    if as_json:
        print_line(json.dumps({**drawn.protocol, "num_samples": len(drawn.samples), "samples": str(file)}))
        return
    print_line(str(file))
    if not quiet:
        print(
            f"{len(drawn.samples)} samples; the same command without --generate-only scores them, or "
            f"`unmask evaluate {drawn.protocol['benchmark']} --samples {file}`",
            file=sys.stderr,
        )


def _report(result: "Result", drawn: Drawn, *, as_json: bool, quiet: bool) -> None:
    from unmask.cli.output import print_line, print_rich
    from unmask.evaluate import folder as folders
    from unmask.view.evaluation import summary

    if as_json:
        record = {**result.to_json(tasks=False), "output": str(drawn.folder)}
        print_line(json.dumps(record, ensure_ascii=False))
        return
    print_rich(summary(result))
    if not quiet:
        print(f"result.json and {folders.REPORT} are in {drawn.folder}", file=sys.stderr)


def _compare(first: Path, second: Path, *, as_json: bool) -> None:
    from unmask.cli.output import print_line, print_rich
    from unmask.evaluate.compare import compare
    from unmask.evaluate.result import load_result
    from unmask.view.evaluation import differences

    comparison = compare(load_result(first), load_result(second))
    if as_json:
        print_line(json.dumps(comparison.to_json(), ensure_ascii=False))
    else:
        print_rich(differences(comparison))


def _refuse(given: Mapping[str, object], *, beside: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise SettingsError(f"{name} has no effect with {beside}; leave one of them out")
