"""Between the options of `unmask evaluate` and its report: draw samples or read them, judge them, keep the result.

`Drawing` and `Judging` hold what the options say and check it before anything is loaded. What they bring forth lands in
the run's folder as it comes.
"""

import contextlib
import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unmask.atomic import beside
from unmask.cli.options import ModelOptions
from unmask.errors import SandboxError, SettingsError
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.decode.session import Model
    from unmask.evaluate.benchmarks import Benchmark
    from unmask.evaluate.generate import Prompt
    from unmask.evaluate.grid import Cell
    from unmask.evaluate.result import Result
    from unmask.evaluate.samples import Sample
    from unmask.evaluate.score import Outcome
    from unmask.model.progress import Progress, Report
    from unmask.sandbox.executor import Executor


_BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The samples of a run and what they are samples of."""

    folder: Path
    samples: "list[Sample]"
    cells: Mapping[str, Mapping[str, Any]]
    """Name → settings, in the order of the grid."""
    model: str
    n: int
    protocol: Mapping[str, Any]
    seed: int = 0
    preset: Mapping[str, Any] = field(default_factory=dict)
    registered: str | None = None
    first_prompt: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What the options say about samples, and the way from there to the samples."""

    axes: Mapping[str, str]
    settings: Mapping[str, Any]
    n: int
    preset: str | None
    registered: str | None
    length: str | None
    batch_size: int | None
    """None: the usual one."""
    quiet: bool
    trajectories: bool = False
    """Keep what every step did, in the run's folder."""

    def check(self, judging: "Judging") -> None:
        """Refuse what can be refused before anything is loaded."""
        from unmask.evaluate.prompts import find_preset
        from unmask.evaluate.result import check_ks

        for option, value in (("-n", self.n), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise SettingsError(f"{option} {value} is not a number of samples; it must be at least 1")
        check_ks(judging.ks(self.n), self.n)
        self.cells()
        if self.preset is not None:
            find_preset(self.preset)

    def cells(self, *, room: int | None = None) -> "tuple[Cell, ...]":
        """The grid; `room` is the answer length of the model or the preset, for when none was asked for."""
        from unmask.evaluate.grid import find_cell, make_grid, parse_axis

        axes = {name: parse_axis(name, text) for name, text in self.axes.items()}
        if room is not None:
            axes.setdefault("max_new_tokens", [room])
        cells = make_grid(axes, self.settings)
        if self.registered is not None:
            find_cell(cells, self.registered)
        return cells

    def draw(
        self,
        tasks: "Benchmark",
        options: ModelOptions,
        stack: contextlib.ExitStack,
        *,
        output: Path | None,
        limit: int | None,
    ) -> Drawn:
        """Load the model, and draw what the run's folder does not hold yet."""
        from unmask.cli.output import tell_ineffective
        from unmask.evaluate import folder as folders
        from unmask.evaluate.generate import UNKNOWN, check_length, check_room, encode_prompts, generate, infill
        from unmask.evaluate.grid import find_cell
        from unmask.evaluate.prompts import find_preset, preset_for, render
        from unmask.evaluate.samples import SampleLog

        is_infill = tasks.kind == "infill"
        if self.length is not None and not is_infill:
            raise SettingsError(
                f"--length {self.length} is the length of holes, and {tasks.name} has none; leave it out, or give "
                "--max-new-tokens"
            )
        length = self.length or UNKNOWN
        loaded = options.load(quiet=self.quiet)
        is_chat = loaded.tokenizer.chat_template is not None
        own = loaded.defaults
        usual = preset_for(is_chat=is_chat, kind=tasks.kind, own=own.preset)
        preset = find_preset(self.preset) if self.preset else usual
        if preset.is_chat and not is_chat:
            raise SettingsError(
                f"the preset {preset.name} holds a conversation, and {loaded.name} has no chat template; "
                "give `--preset base`"
            )
        known = _known_name(tasks)
        forms = [render(preset, task, benchmark=known, kind=tasks.kind) for task in tasks.tasks]
        cells = self.cells(room=None if is_infill else own.max_new_tokens or forms[0].max_new_tokens)
        if is_infill:
            check_length(length, cells)
        prompts = encode_prompts(loaded, tasks.tasks, forms)
        if not is_infill:
            check_room(prompts, cells, loaded.backbone.config.max_positions)
        protocol = {
            **_identity(tasks, limit),
            **options.facts(loaded),
            "preset": preset.name,
            "preset_digest": _digest(asdict(preset)),
            **({"length": length} if is_infill else {}),
            **({"trajectories": True} if self.trajectories else {}),
            "n": self.n,
            "cells": {cell.name: _as_record(cell) for cell in cells},
            "registered": None if self.registered is None else find_cell(cells, self.registered).name,
            folders.NOTED: {"unmask": __version__, "source": loaded.source},
        }
        folder = output if output is not None else folders.default_folder(protocol)
        protocol = _enter(folder, protocol, stack)
        log = stack.enter_context(SampleLog(folder / folders.SAMPLES))
        if not self.quiet:
            tell_ineffective(loaded, cells[0].settings, {*self.axes, *self.settings}, n=self.n)
            if self.batch_size is not None and (is_infill or cells[0].settings.mode == "reference"):
                reason = "infilling" if is_infill else "the reference mode"
                print(f"--batch-size {self.batch_size} has no effect: {reason} draws one by one", file=sys.stderr)
        drawn = list(log.samples)
        wanted = len(prompts) * self.n * len(cells)
        keep = None
        if self.trajectories:
            folders.drop_unfinished(folder, drawn)
            keep = partial(folders.keep_trajectories, folder)
        done = {sample.key for sample in drawn}
        try:
            with _progress("drawing samples", wanted, len(drawn), quiet=self.quiet) as report:
                if is_infill:
                    batches = infill(
                        loaded, prompts, cells, n=self.n, length=length, done=done, report=report, keep=keep
                    )
                else:
                    size = self.batch_size or _BATCH_SIZE
                    batches = generate(
                        loaded, prompts, cells, n=self.n, batch_size=size, done=done, report=report, keep=keep
                    )
                for batch in batches:
                    log.append(batch)
                    drawn += batch
        except KeyboardInterrupt:
            kept = f"{len(drawn)} of {wanted} samples are kept in {folder}"
            print(f"interrupted; {kept}, and the same command goes on from there", file=sys.stderr)
            raise typer.Exit(130) from None
        return Drawn(
            folder=folder,
            samples=_in_order(drawn, [cell.name for cell in cells], tasks),
            cells={cell.name: _as_record(cell) for cell in cells},
            model=loaded.name,
            n=self.n,
            seed=cells[0].settings.seed,
            preset={"name": preset.name, "source": preset.source},
            protocol=protocol,
            registered=protocol["registered"],
            first_prompt=_prompt_text(loaded, prompts[0]),
        )


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What the options say about scoring, and the way from samples to a result."""

    sandbox: str
    workers: int | None
    k: str | None
    score_raw: bool
    quiet: bool

    def ks(self, n: int) -> list[int]:
        """The k of pass@k."""
        from unmask.evaluate.result import parse_ks, usual_ks

        return usual_ks(n) if self.k is None else parse_ks(self.k)

    def prepare(
        self,
        benchmark: str,
        stack: contextlib.ExitStack,
        *,
        version: str | None,
        limit: int | None,
        is_offline: bool,
        is_wanted: bool,
    ) -> "tuple[Benchmark, Executor | None]":
        """The tasks, and the sandbox where it is wanted: it is opened before hours are spent on samples."""
        from unmask.evaluate.benchmarks import bigcodebench, load
        from unmask.sandbox.tests import UnitTests

        wanted: dict[str, Any] = {"version": version, "limit": limit, "offline": is_offline}
        with _download_bar(quiet=self.quiet) as report:
            loaded = load(benchmark, **wanted, answers=False, report_download=report)
        if not is_wanted:
            return loaded, None
        in_process = [t for task in loaded.tasks for t in task.tests.values() if isinstance(t, UnitTests)]
        executor, warning = self._open(in_process[0].environment if in_process else None)
        stack.callback(executor.close)
        notes = (*loaded.notes, *bigcodebench.offline_notes(loaded), *([warning] if warning else []))
        if all(task.tests for task in loaded.tasks):
            return replace(loaded, notes=notes), executor
        with _progress("running the reference programs, once", len(loaded.tasks), quiet=self.quiet) as advance:
            told = [0]

            def tell(done: int, _: int) -> None:
                advance(done - told[0])
                told[0] = done

            return load(benchmark, **wanted, executor=executor, report_answers=tell), executor

    def _open(self, environment: str | None) -> "tuple[Executor, str]":
        """The sandbox, on the libraries that the tests need, and what is wrong with these."""
        from unmask.sandbox.executor import open_executor

        if environment is None:
            return open_executor(self.sandbox, workers=self.workers), ""
        from unmask.evaluate.environment import PRELOAD, find
        from unmask.sandbox.backends import PRELOAD as STANDARD
        from unmask.sandbox.backends import Interpreter

        found = find(environment)
        if found is None:
            raise SandboxError(
                f"these tests need the libraries of {environment}, which are not set up; run `unmask data setup "
                f"{environment}` once"
            )
        if found.warning and not self.quiet:
            print(found.warning, file=sys.stderr)
        python = Interpreter(
            python=found.python,
            prefix=found.prefix,
            site_packages=found.site_packages,
            preload=(*STANDARD, *PRELOAD[environment]),
            name=found.label,
        )
        return open_executor(self.sandbox, workers=self.workers, interpreter=python, loose=True), found.warning

    def judge(self, drawn: Drawn, tasks: "Benchmark", executor: "Executor") -> "Result":
        """Judge every sample, write `result.json` and `report.html`."""
        from unmask.evaluate import folder as folders
        from unmask.evaluate.result import Result, check_ks, save_result, summarise_cell
        from unmask.evaluate.score import score
        from unmask.model.store import cache_home
        from unmask.sandbox.cache import VerdictCache
        from unmask.view.evaluation_html import page

        ks = self.ks(drawn.n)
        check_ks(ks, drawn.n)
        total = len(drawn.samples) * (2 if self.score_raw else 1)
        try:
            with (
                VerdictCache(executor, cache_home() / "verdicts.sqlite") as judge,
                _progress("judging", total, quiet=self.quiet) as report,
            ):
                outcomes = score(drawn.samples, tasks.tasks, judge, report=report)
                raw = None
                if self.score_raw:
                    raw = score(drawn.samples, tasks.tasks, judge, text="raw_program", report=report)
        except KeyboardInterrupt:
            print(f"interrupted; the samples are kept in {drawn.folder}, and the same command goes on", file=sys.stderr)
            raise typer.Exit(130) from None
        quoted, cells = drawn.registered or next(iter(drawn.cells)), []
        for name, settings in drawn.cells.items():
            rows = [index for index, sample in enumerate(drawn.samples) if sample.cell == name]
            cells.append(
                summarise_cell(
                    name,
                    settings,
                    [drawn.samples[row] for row in rows],
                    [outcomes[row] for row in rows],
                    ks=ks,
                    seed=drawn.seed,
                    raw_outcomes=None if raw is None else [raw[row] for row in rows],
                )
            )
        result = Result(
            benchmark=tasks.name,
            version=tasks.version,
            model=drawn.model,
            num_tasks=len({sample.task_id for sample in drawn.samples}),
            n=drawn.n,
            seed=drawn.seed,
            cells=tuple(cells),
            registered=drawn.registered,
            sandbox={
                "backend": executor.name,
                "guarantees": list(executor.guarantees),
                "interpreter": executor.interpreter,
            },
            data_sha256=dict(tasks.data_sha256),
            preset=drawn.preset,
            protocol=drawn.protocol,
            notes=(*tasks.notes, *drawn.notes),
            first_prompt=drawn.first_prompt,
            first_outputs=tuple(sample.raw for sample in drawn.samples if sample.cell == quoted)[:3],
            versions={"unmask": __version__, "torch": metadata.version("torch")},
            timing=_timing(drawn),
        )
        save_result(result, drawn.folder)
        with beside(drawn.folder / folders.REPORT) as part:
            part.write_text(page(result, drawn.samples), encoding="utf-8")
        _export_results(drawn, tasks, outcomes)
        return result


# Samples that are given


def beyond_limit(benchmark: str, tasks: "Benchmark", *, version: str | None, is_offline: bool) -> set[str]:
    """The ids of the benchmark's tasks that a limit has left out of `tasks`."""
    from unmask.evaluate.benchmarks import load

    whole = load(benchmark, version=version, offline=is_offline, answers=False)
    return {task.task_id for task in whole.tasks} - {task.task_id for task in tasks.tasks}


def read(
    tasks: "Benchmark",
    file: Path,
    options: ModelOptions,
    stack: contextlib.ExitStack,
    *,
    output: Path | None,
    limit: int | None,
    left_out: Collection[str],
    is_partial: bool,
) -> Drawn:
    """Samples of a file. A `run.json` beside it, where it is of this benchmark, says what they are. Those of tasks that
    the limit has `left_out` are passed over."""
    from unmask.evaluate import folder as folders
    from unmask.evaluate.grid import ONLY
    from unmask.evaluate.samples import read_samples

    found = read_samples(file, tasks.tasks, partial=is_partial, left_out=left_out)
    found = [sample if sample.cell else replace(sample, cell=ONLY) for sample in found]
    recorded = folders.read_protocol(file.parent) if file.is_file() else None
    if recorded is not None and recorded.get("benchmark") != tasks.name:
        recorded = None
    recorded = recorded or {}
    names = list(dict.fromkeys(sample.cell for sample in found))
    known = recorded.get("cells", {})
    model = options.name or str(recorded.get("model") or file.name.partition(".")[0])
    protocol = {**_identity(tasks, limit), "model": model, "samples": file.name, "samples_sha256": _sha256(found)}
    if recorded:
        protocol["drawn"] = recorded
    folder = output if output is not None else folders.default_folder(protocol)
    protocol = _enter(folder, protocol, stack)
    counts = Counter((sample.cell, sample.task_id) for sample in found)
    registered = recorded.get("registered")
    notes = list(_notes_on(found, tasks, recorded))
    if left_out:
        notes.append(f"--limit {limit} leaves out {len(left_out)} tasks of the benchmark")
    return Drawn(
        folder=folder,
        samples=_in_order(found, names, tasks),
        cells={name: known.get(name, {}) for name in names},
        model=model,
        n=min(counts.values()),
        protocol=protocol,
        seed=known.get(names[0], {}).get("seed", 0),
        preset={"name": recorded["preset"]} if "preset" in recorded else {},
        registered=registered if registered in names else None,
        notes=tuple(notes),
    )


def _notes_on(samples: "Sequence[Sample]", tasks: "Benchmark", recorded: Mapping[str, Any]) -> Iterator[str]:
    """What given samples lack, and what the record of their run says otherwise than this one."""
    from unmask.evaluate.samples import missing_tasks

    lacking = missing_tasks(samples, [task.task_id for task in tasks.tasks])
    for cell, missing in lacking.items():
        if missing:
            where = f"{cell}: " if len(lacking) > 1 else ""
            yield f"{where}scored on the tasks that have samples; {len(missing)} of {len(tasks.tasks)} have none"
    if without := [name for name in recorded.get("cells", {}) if name not in lacking]:
        yield f"cells of the run that have no samples here: {'; '.join(without)}"
    if recorded and recorded.get("data_sha256") != dict(tasks.data_sha256):
        drawn, here = (f"version {v}" if v else "other data" for v in (recorded.get("version"), tasks.version))
        if drawn == here:
            drawn, here = "other data of the same name", "these"
        yield f"the samples were drawn for {drawn}, and are scored on {here}"


# What a run is


def _known_name(tasks: "Benchmark") -> str:
    """The benchmark's name; empty for a file of tasks, which is asked like none of them whatever it is called."""
    return tasks.name if tasks.version else ""


def _identity(tasks: "Benchmark", limit: int | None) -> dict[str, Any]:
    return {
        "benchmark": tasks.name,
        "version": tasks.version,
        "data_sha256": dict(tasks.data_sha256),
        "limit": limit,
        "num_tasks": len(tasks.tasks),
    }


def _as_record(cell: "Cell") -> dict[str, Any]:
    return {name: value for name, value in asdict(cell.settings).items() if value is not None}


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=8).hexdigest()


def _enter(folder: Path, protocol: Mapping[str, Any], stack: contextlib.ExitStack) -> dict[str, Any]:
    """Take the folder for this run, alone: the lock comes first, or two new runs would both write their protocol."""
    from unmask.evaluate.folder import check_place, enter
    from unmask.model.lock import locked

    def refuse() -> None:
        raise SettingsError(f"another process is at work in {folder}; wait for it, or give another --output")

    check_place(folder)
    stack.enter_context(locked(folder, refuse))
    return enter(folder, protocol)


def _in_order(samples: "Sequence[Sample]", cells: Sequence[str], tasks: "Benchmark") -> "list[Sample]":
    """By cell, task and number, whatever order they were drawn in."""
    cell_at = {name: index for index, name in enumerate(cells)}
    task_at = {task.task_id: index for index, task in enumerate(tasks.tasks)}
    return sorted(samples, key=lambda s: (cell_at[s.cell], task_at[s.task_id], s.sample))


def _prompt_text(loaded: "Model", prompt: "Prompt") -> str:
    """What the model saw, control tokens included."""
    return loaded.tokenizer.decode(prompt.ids, skip_special=False) + (
        f"⟨hole⟩{prompt.rendered.suffix}" if prompt.rendered.kind == "infill" else ""
    )


def _sha256(samples: "Sequence[Sample]") -> str:
    from unmask.evaluate.samples import to_line

    digest = hashlib.sha256()
    for sample in samples:
        digest.update(to_line(sample).encode())
    return digest.hexdigest()


def _timing(drawn: Drawn) -> dict[str, dict[str, float]]:
    times = {}
    for name in drawn.cells:
        rows = [sample for sample in drawn.samples if sample.cell == name]
        if seconds := sum(sample.seconds for sample in rows):
            tokens = sum(sample.num_tokens for sample in rows)
            times[name] = {"seconds": seconds, "tokens_per_second": tokens / seconds}
    return times


def export(drawn: Drawn, tasks: "Benchmark") -> None:
    """The samples in the formats of the benchmark's own tools, to check with."""
    from unmask.evaluate.samples import write_evalplus, write_human_eval

    for name in drawn.cells:
        rows = [sample for sample in drawn.samples if sample.cell == name]
        ending = _ending(drawn, name)
        if _known_name(tasks) in ("humaneval", "humaneval+", "mbpp+"):
            write_evalplus(drawn.folder / f"evalplus{ending}.jsonl", rows)
        if _known_name(tasks) in ("humaneval", "humaneval+"):
            write_human_eval(drawn.folder / f"human-eval{ending}.jsonl", rows, tasks.tasks)


def _export_results(drawn: Drawn, tasks: "Benchmark", outcomes: "Sequence[Outcome]") -> None:
    """The verdicts as EvalPlus writes them. Not under the name that EvalPlus itself would give the file: it would take
    them for its own, and check nothing."""
    from unmask.evaluate.samples import EvalPlusResult, evalplus_status, write_evalplus_results

    if tasks.name not in ("humaneval+", "mbpp+") or not tasks.version:
        return
    for name in drawn.cells:
        results = [
            EvalPlusResult(
                task_id=sample.task_id,
                solution=sample.program,
                base_status=evalplus_status(outcome.sets["base"]),
                plus_status=evalplus_status(outcome.sets["plus"]),
            )
            for sample, outcome in zip(drawn.samples, outcomes, strict=True)
            if sample.cell == name and outcome.is_judged
        ]
        place = drawn.folder / f"evalplus-results{_ending(drawn, name)}.json"
        now = f"{datetime.now():%Y-%m-%d %H:%M}"
        write_evalplus_results(place, results, data_hash=_md5_of_data(tasks), date=now)


def _md5_of_data(tasks: "Benchmark") -> str:
    """EvalPlus names a version of its data by the MD5 of the unpacked file."""
    from unmask.data.files import locate

    data = locate(next(iter(tasks.data_sha256))).read_bytes()
    return hashlib.md5(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, usedforsecurity=False).hexdigest()


def _ending(drawn: Drawn, cell: str) -> str:
    return "" if len(drawn.cells) == 1 else f"-{cell}"


# Bars


@contextlib.contextmanager
def _progress(label: str, total: int, done: int = 0, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal; yields what moves it on."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn()]
    times = [rich.TimeElapsedColumn(), rich.TimeRemainingColumn()]
    with rich.Progress(*columns, *times, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total, completed=done)
        yield lambda more: bars.advance(task, more)


@contextlib.contextmanager
def _download_bar(*, quiet: bool) -> "Iterator[Report | None]":
    """A bar that appears when benchmark data must be fetched."""
    if quiet:
        yield None
        return
    from unmask.cli.models import progress

    with contextlib.ExitStack() as stack:
        bars: list[Report] = []

        def report(done: "Progress") -> None:
            if not bars:
                bars.append(stack.enter_context(progress()))
            bars[0](done)

        yield report
