"""`unmask data`: what the benchmarks need (list, fetch, setup, overlap), and what training needs (build, tokenizer,
synth; rl, select for reinforcement learning).

Results go to stdout: a table on a terminal, tab-separated lines otherwise, JSON with `--json`. Progress and what was
done go to stderr. No model is loaded, so torch is never imported.
"""

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unmask.data.build import BuildProgress
    from unmask.data.files import DataFile
    from unmask.data.overlap import Overlap
    from unmask.data.select import Selection
    from unmask.data.task import Task
    from unmask.evaluate.environment import Environment
    from unmask.text.tokenizer import Tokenizer

app = typer.Typer(help="Data of benchmarks and for training.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_EXAMPLES_SHOWN = 3


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the data files of the benchmarks: which are here, and whether each is the right one.

    Into a pipe each line is: file, version, licence, state, path; the state is "ok", "wrong" (another sha256) or
    "absent", and the path of an absent file is a "-".

    Example: unmask data list
    """
    from unmask.data import files

    records = [_file_record(file) for file in files.table().values()]
    if as_json:
        _print_json(records)
    elif sys.stdout.isatty():
        _print_table(["file", "version", "licence", "state", "path"], [_cells(record) for record in records])
    else:
        for record in records:
            _print_line(_cells(record))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A benchmark.", show_default=False)],
    version: Annotated[
        str | None, typer.Option("--version", help="Version of its data; the newest if not given.", metavar="V")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download the data that a benchmark needs, check it, and print its paths.

    Example: unmask data fetch humaneval+
    """
    from unmask.cli.models import progress
    from unmask.data import files
    from unmask.evaluate import benchmarks

    needed = benchmarks.needed_files(name, version=version)
    if not needed:
        _tell(f"{name} needs no data: its tasks are generated")
    with progress() as report:
        places = {path: files.locate(path, report=report) for path in needed}
    if as_json:
        _print_json({path: str(place) for path, place in places.items()})
        return
    for place in places.values():
        _print_line([place])


@app.command()
def setup(
    name: Annotated[str, typer.Argument(help="A benchmark with libraries of its own: bigcodebench.", metavar="NAME")],
    python: Annotated[
        Path | None,
        typer.Option("--python", help="Interpreter to make it for; otherwise a Python 3.10 is looked for."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make it anew, even if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the Python environment that a benchmark's tests need, and print where its libraries are.

    Example: unmask data setup bigcodebench
    """
    from unmask.evaluate import environment

    try:
        made = environment.setup(name, python=python, again=again, report=_tell)
    except KeyboardInterrupt:
        _tell(f"stopped; `unmask data setup {name}` begins it again")
        raise typer.Exit(130) from None
    if made.warning:
        _tell(f"warning: {made.warning}")
    if as_json:
        _print_json(_environment_record(made))
        return
    for place in made.site_packages:
        _print_line([place])


@app.command()
def overlap(
    training_file: Annotated[Path, typer.Argument(help="JSON lines, a JSON array or text, each also gzipped.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="Benchmark to compare with, again for more; otherwise all that are here."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Words in a run that counts as shared.")] = 10,
    with_tests: Annotated[bool, typer.Option("--with-tests", help="Compare with the test code too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell which benchmark tasks a training file has seen: by their ids, and by runs of words that it shares.

    Into a pipe each line is: benchmark, its tasks, tasks named by id, tasks that share a run, documents that overlap.

    Example: unmask data overlap train.jsonl --benchmark humaneval+ --benchmark mbpp+
    """
    from unmask.data.overlap import find_overlap
    from unmask.evaluate import benchmarks

    names = benchmark or _here()
    tasks = {name: benchmarks.load(name, answers=False).tasks for name in names}
    found = find_overlap(training_file, tasks, n=n, with_tests=with_tests)
    if as_json:
        _print_json(asdict(found))
        return
    rows = _overlap_rows(found)
    if sys.stdout.isatty():
        _print_table(["benchmark", "tasks", "by id", f"by {n} words", "documents"], rows)
    else:
        for row in rows:
            _print_line(row)
    _tell_examples(found)


Sources = Annotated[
    list[str],
    typer.Argument(
        help="JSON lines (.jsonl, .jsonl.gz), parquet, a text file, a folder of Python files, `stdlib`, or "
        "hf:OWNER/NAME[/CONFIG][:SPLIT].",
        metavar="SOURCE...",
        show_default=False,
    ),
]


@app.command()
def build(
    sources: Sources,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", help="A model, or a folder with a tokenizer.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.", show_default=False)],
    licences: Annotated[
        str | None,
        typer.Option("--licences", help="Keep documents under these alone: MIT,Apache-2.0.", metavar="A,B"),
    ] = None,
    allow_unlicensed: Annotated[
        bool, typer.Option("--allow-unlicensed", help="With --licences: keep documents that state none, too.")
    ] = False,
    min_chars: Annotated[int, typer.Option("--min-chars", help="Fewest characters of a document.", metavar="N")] = 1,
    max_chars: Annotated[
        int, typer.Option("--max-chars", help="Most characters of a document.", metavar="N")
    ] = 1_000_000,
    must_parse: Annotated[bool, typer.Option("--must-parse", help="Drop texts that are no Python.")] = False,
    dedup: Annotated[str, typer.Option("--dedup", help="exact, near, or none.", metavar="HOW")] = "exact",
    without_benchmarks: Annotated[
        str | None,
        typer.Option(
            "--without-benchmarks", help="Drop documents that share ten words with these.", metavar="NAME,NAME"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Order of the documents.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make token shards for training out of texts and conversations.

    Prints the folder, its documents and its tokens; what was dropped, and why, goes to stderr.

    Example: unmask data build stdlib pairs.jsonl --tokenizer tiny --output shards --dedup near
    """
    from unmask.data.build import build as build_shards
    from unmask.data.filters import FilterSettings

    filters = FilterSettings(
        licences=_names(licences),
        allow_unlicensed=allow_unlicensed,
        min_chars=min_chars,
        max_chars=max_chars,
        must_parse=must_parse,
        dedup=dedup,  # type: ignore[arg-type]  # the settings refuse other words
    )
    without = _tasks_of(_names(without_benchmarks))
    found = _tokenizer_of(tokenizer)
    try:
        with _counting() as tell:

            def report(progress: "BuildProgress") -> None:
                label = f"reading {progress.source}" if progress.stage == "read" else f"writing {progress.source}"
                tell(label, progress.done, progress.total)

            meta = build_shards(
                sources, output, tokenizer=found, filters=filters, without=without, seed=seed, report=report
            )
    except KeyboardInterrupt:
        _tell(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    _tell(f"{meta.num_documents:,} documents kept, {_dropped(meta.dropped)}")
    if as_json:
        _print_json({"path": str(output), **asdict(meta)})
        return
    _print_line([output, meta.num_documents, meta.num_tokens])


@app.command()
def tokenizer(
    sources: Sources,
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="Most ids, special tokens included.", metavar="N")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer: byte-level BPE with indentation as tokens, a mask token and a chat template.

    Prints the folder and the size of the vocabulary.

    Example: unmask data tokenizer stdlib --vocab-size 4096 --output tokenizer
    """
    from unmask.data import corpus
    from unmask.errors import TaskError
    from unmask.text.train import train_tokenizer

    if output.exists():
        raise TaskError(f"{output} is there already, and is never written over; delete it or choose another folder")
    skipped: Counter[str] = Counter()

    def texts() -> Iterator[str]:
        for source in sources:
            for number, document in enumerate(corpus.read(source, skipped=skipped), 1):
                tell(f"reading {source}", number, None)
                yield from document.contents

    try:
        with _counting() as tell:
            made = train_tokenizer(texts(), vocab_size=vocab_size)
        _save(made, output)
    except KeyboardInterrupt:
        _tell(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    if skipped:
        _tell(_dropped(skipped))
    if made.vocab_size < vocab_size:
        _tell(f"the sources gave {made.vocab_size:,} ids, fewer than {vocab_size:,}: nothing was left to merge")
    if as_json:
        _print_json({"path": str(output), "vocab_size": made.vocab_size})
        return
    _print_line([output, made.vocab_size])


@app.command()
def synth(
    split: Annotated[str, typer.Argument(help="train, val, test, hard-train or hard-test.", show_default=False)],
    count: Annotated[int, typer.Option("--count", help="Tasks to make.", metavar="N", min=1)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to make: JSON lines.", show_default=False)],
    seed: Annotated[int, typer.Option("--seed", help="Which tasks.")] = 0,
    format: Annotated[
        str, typer.Option("--format", help="tasks, messages (for SFT), or text (for pre-training).", metavar="FORM")
    ] = "tasks",
    sandbox: Annotated[
        str, typer.Option("--sandbox", help="What runs the solutions, as for `unmask evaluate`.", metavar="NAME")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option("--workers", help="Programs run side by side. [one per core]", metavar="N")
    ] = None,
) -> None:
    """Make tasks of the synthetic suite: small Python functions, their tests made by running the solutions.

    Prints the file and the number of its tasks.

    Example: unmask data synth test --count 200 --output test.jsonl
    """
    from unmask.data.synthetic.write import write
    from unmask.errors import TaskError
    from unmask.sandbox.executor import open_executor

    if output.exists():
        raise TaskError(f"{output} is there already, and is never written over; delete it or choose another file")
    try:
        with open_executor(sandbox, workers=workers) as executor, _counting() as tell:
            written = write(
                split,  # type: ignore[arg-type]  # `write` refuses other words
                count,
                seed=seed,
                path=output,
                format=format,  # type: ignore[arg-type]
                executor=executor,
                report=lambda done, total: tell(f"making {split} tasks", done, total),
            )
    except KeyboardInterrupt:
        _tell(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    _print_line([output, written])


@app.command()
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

    _check_new(output)
    rl_sets.check(name, count=count, seed=seed)
    without = _tasks_of(_names(without_benchmarks))
    try:
        with open_executor(sandbox, workers=workers) as executor, _counting() as tell:
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
        _tell(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    if made.dropped:
        _tell(_dropped(made.dropped))
    if made.num_unchecked:
        have = "task has" if made.num_unchecked == 1 else "tasks have"
        _tell(f"{made.num_unchecked:,} {have} no solution: nothing says that their tests can be passed")
    if as_json:
        _print_json(
            {"path": str(output), "tasks": written, "dropped": made.dropped, "num_unchecked": made.num_unchecked}
        )
        return
    _print_line([output, written])


@app.command()
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
            help="paper (of the hardest fifth the 40 % with most spread), or as-coded (spread as among all tasks).",
            metavar="NAME",
        ),
    ] = "paper",
    mean_percentile: Annotated[
        float, typer.Option("--mean-percentile", help="Keep means up to this percentile.", metavar="P")
    ] = 20.0,
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

    _check_new(output)
    settings = selecting.SelectSettings(
        rule=rule,  # type: ignore[arg-type]  # the settings refuse other words
        mean_percentile=mean_percentile,
        std_percentile=std_percentile,
        min_pass=min_pass,
        models=_names(models),
        dedup=dedup,  # type: ignore[arg-type]
        stubs=stubs,
        show_test=show_test,
    )
    rates = _rates_of(results) if results else None
    found = selecting.select(tasks, settings, rates=rates, without=_tasks_of(_names(without_benchmarks)))
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
        _print_json({"path": str(output), "tasks": written, "steps": steps, **counts})
    elif sys.stdout.isatty():
        _print_table(["step", "threshold", "dropped", "left"], rows)
    else:
        for row in rows:
            _print_line(row)


# What is read


def _check_new(output: Path) -> None:
    """Refuse an output that is there, or could not be written: before the work, which takes minutes."""
    from unmask.data.jsonl import check_output
    from unmask.errors import TaskError

    if output.exists():
        raise TaskError(f"{output} is there already, and is never written over; delete it or choose another file")
    check_output(output)


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


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in (text or "").split(","))))


def _tasks_of(benchmark_names: Sequence[str]) -> "list[Task]":
    if not benchmark_names:
        return []
    from unmask.evaluate import benchmarks

    return [task for name in benchmark_names for task in benchmarks.load(name, answers=False).tasks]


def _tokenizer_of(name: str) -> "Tokenizer":
    """The tokenizer in a folder, or of a model as `unmask generate --model` knows it."""
    from unmask.text.tokenizer import Tokenizer

    if any((Path(name) / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        return Tokenizer.from_folder(name)
    from unmask.cli.models import progress
    from unmask.model import hub

    with progress() as report:
        path = hub.resolve(name, report=report).path
    if path.is_dir():
        return Tokenizer.from_folder(path)
    from unmask.model.gguf import GGUFFile
    from unmask.text.gguf_tokenizer import tokenizer_from_gguf

    return tokenizer_from_gguf(GGUFFile(path).metadata)


# What is written


def _save(tokenizer: "Tokenizer", output: Path) -> None:
    """Write the folder whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as beside:
        tokenizer.save(Path(beside) / "tokenizer")
        (Path(beside) / "tokenizer").rename(output)


# What is told


@contextlib.contextmanager
def _counting() -> Iterator[Callable[[str, int, int | None], None]]:
    """Tells (what, how many are done, of how many): a bar on stderr; a line for each what where that is no terminal."""
    if not sys.stderr.isatty():
        told: set[str] = set()

        def tell_once(label: str, done: int, total: int | None) -> None:
            if label not in told:
                told.add(label)
                _tell(label)

        yield tell_once
        return
    from rich import progress as rich
    from rich.console import Console

    columns = [rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.MofNCompleteColumn()]
    times = [rich.TimeElapsedColumn(), rich.TimeRemainingColumn()]
    with rich.Progress(*columns, *times, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def tell(label: str, done: int, total: int | None) -> None:
            bars.update(task, description=label, completed=done, total=total)

        yield tell


def _dropped(counts: Mapping[str, int]) -> str:
    parts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
    return f"{sum(counts.values()):,} dropped" + (f": {parts}" if parts else "")


def _tell_selection(found: "Selection", output: Path, written: int) -> None:
    stubs = f", {found.num_stubs:,} of them stubs" if found.num_stubs else ""
    _tell(f"{output}: {written:,} tasks{stubs}")
    if found.num_unusable_tests:
        count = found.num_unusable_tests
        were = (
            "test was left out: it is no assert, or uses a name"
            if count == 1
            else "tests were left out: they are no asserts, or use names"
        )
        _tell(f"{count:,} {were} that nobody gives")
    if found.num_never_passed:
        _tell(
            f"of {found.num_never_passed:,} chosen tasks no recorded answer passed a single test; --min-pass 0.01 "
            "leaves them out"
        )


def _here() -> list[str]:
    """The benchmarks whose data is on this machine; TaskError when there are none."""
    from unmask.data import files
    from unmask.errors import TaskError
    from unmask.evaluate import benchmarks

    of_files = [name for name in benchmarks.NAMES if benchmarks.needed_files(name)]
    here = [name for name in of_files if all(files.find(path) for path in benchmarks.needed_files(name))]
    if not here:
        raise TaskError(
            "no benchmark's data is on this machine, so there is nothing to compare with: name a benchmark "
            "(--benchmark humaneval+) to have it downloaded, or set UNMASK_DATA to the folder that holds the data"
        )
    absent = [name for name in of_files if name not in here]
    if absent:
        _tell(f"not compared, since their data is not here: {', '.join(absent)}; `unmask data fetch NAME` gets it")
    return here


def _file_record(file: "DataFile") -> dict[str, Any]:
    from unmask.data import files

    place = files.find(file.path)
    state = "absent" if place is None else "ok" if files.sha256_of(place) == file.sha256 else "wrong"
    return {**asdict(file), "state": state, "place": None if place is None else str(place)}


def _cells(record: dict[str, Any]) -> list[str]:
    return [record["path"], record["version"], record["licence"], record["state"], record["place"] or "-"]


def _environment_record(made: "Environment") -> dict[str, Any]:
    return {**json.loads(json.dumps(asdict(made), default=str)), "warning": made.warning}


def _overlap_rows(found: "Overlap") -> list[list[str]]:
    return [
        [name, *(str(n) for n in (b.num_tasks, len(b.tasks_by_id), len(b.tasks_by_ngram), b.num_documents))]
        for name, b in found.benchmarks.items()
    ]


def _tell_examples(found: "Overlap") -> None:
    _tell(f"{found.num_documents:,} documents of {found.path} were read")
    for name, benchmark in found.benchmarks.items():
        for example in benchmark.examples[:_EXAMPLES_SHOWN]:
            what = "names" if example.kind == "id" else "shares"
            _tell(f"{name}: document {example.document} {what} {example.task_id}: {example.shared}")
        if benchmark.num_too_short:
            _tell(f"{name}: tasks of fewer than {found.n} words, found by id alone: {benchmark.num_too_short}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _print_line(fields: Sequence[object]) -> None:
    print(*fields, sep="\t")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
