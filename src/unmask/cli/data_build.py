"""`unmask data build|tokenizer|synth`: what pre-training and fine-tuning need."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.data_terminal import AsJson, counting, dropped, names_in, print_json, print_line, say, tasks_of

if TYPE_CHECKING:
    from unmask.data.build import BuildProgress
    from unmask.text.tokenizer import Tokenizer

Sources = Annotated[
    list[str],
    typer.Argument(
        help="JSON lines (.jsonl, .jsonl.gz), parquet, a text file, a folder of Python files, `stdlib`, "
        "`installed` (packages beside this Python), or hf:OWNER/NAME[/CONFIG][:SPLIT].",
        metavar="SOURCE...",
        show_default=False,
    ),
]


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
        licences=names_in(licences),
        allow_unlicensed=allow_unlicensed,
        min_chars=min_chars,
        max_chars=max_chars,
        must_parse=must_parse,
        dedup=dedup,  # type: ignore[arg-type]  # the settings refuse other words
    )
    without = tasks_of(names_in(without_benchmarks))
    found = _tokenizer_of(tokenizer)
    try:
        with counting() as tell:

            def report(progress: "BuildProgress") -> None:
                label = f"reading {progress.source}" if progress.stage == "read" else f"writing {progress.source}"
                tell(label, progress.done, progress.total)

            meta = build_shards(
                sources, output, tokenizer=found, filters=filters, without=without, seed=seed, report=report
            )
    except KeyboardInterrupt:
        say(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    say(f"{meta.num_documents:,} documents kept, {dropped(meta.dropped)}")
    if as_json:
        print_json({"path": str(output), **asdict(meta)})
        return
    print_line([output, meta.num_documents, meta.num_tokens])


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
        with counting() as tell:
            made = train_tokenizer(texts(), vocab_size=vocab_size)
        _save(made, output)
    except KeyboardInterrupt:
        say(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    if skipped:
        say(dropped(skipped))
    if made.vocab_size < vocab_size:
        say(f"the sources gave {made.vocab_size:,} ids, fewer than {vocab_size:,}: nothing was left to merge")
    if as_json:
        print_json({"path": str(output), "vocab_size": made.vocab_size})
        return
    print_line([output, made.vocab_size])


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
        with open_executor(sandbox, workers=workers) as executor, counting() as tell:
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
        say(f"stopped; nothing was written to {output}")
        raise typer.Exit(130) from None
    print_line([output, written])


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


def _save(tokenizer: "Tokenizer", output: Path) -> None:
    """Write the folder whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as beside:
        tokenizer.save(Path(beside) / "tokenizer")
        (Path(beside) / "tokenizer").rename(output)
