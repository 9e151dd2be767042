"""From sources to shards: read, filter, encode, and write in a random order.

Two passes. The first encodes every document that the filters keep and puts its ids into a file beside the output; the
second copies the documents from there into the shards in an order that the seed decides, so that neighbours in a
window have nothing to do with each other. Memory is that of the filters and of 24 bytes a document; the disk needs
room for the ids twice over, as four bytes each in the first pass.

A text is followed by the tokenizer's end-of-text token. A conversation becomes a prompt and an answer
(`data/messages.py`).
"""

import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from unmask.data import corpus
from unmask.data.corpus import Document
from unmask.data.filters import Filters, FilterSettings
from unmask.data.messages import PairEncoder
from unmask.data.permutation import permute
from unmask.errors import DataError
from unmask.seeds import derive_seed
from unmask.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from unmask.data.shards import ShardMeta
    from unmask.data.task import Task

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How far a build is, in documents; `total` is not known while sources are read."""

    stage: Literal["read", "write"]
    source: str
    done: int
    total: int | None = None


Report = Callable[[BuildProgress], None]


def build(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    tokenizer: Tokenizer,
    filters: FilterSettings | None = None,
    without: Iterable["Task"] = (),
    seed: int = 0,
    report: Report = lambda progress: None,
) -> "ShardMeta":
    """Write the documents of the sources to a new folder of shards; returns what its `meta.json` says.

    `without` are tasks whose text shall not be learned. Nothing is left at `output` unless all went well.
    """
    from unmask.data.shards import ShardWriter, fingerprint

    settings = filters or FilterSettings()
    sieve = Filters(settings, special_texts=tokenizer.special_texts, without=without)
    output = Path(output)
    writer = ShardWriter(output, vocab_size=tokenizer.vocab_size, tokenizer=fingerprint(tokenizer))
    with writer, tempfile.TemporaryFile(dir=output.parent) as file:
        spool = _Spool(file)
        encoder = _Encoder(tokenizer)
        for source in sources:
            _read(source, spool, sieve, encoder, report)
        writer.note(
            sources=[str(source) for source in sources],
            licences=dict(sorted(spool.licences.items())),
            dropped=dict(sorted(sieve.dropped.items())),
            settings={**asdict(settings), "licences": list(settings.licences), "seed": seed},
        )
        count, key = len(spool.prompt_lengths), derive_seed(seed, "document order")
        for i in range(count):
            ids, prompt_length = spool.document(permute(i, count, key))
            writer.add(ids, prompt_length=prompt_length)
            report(BuildProgress(stage="write", source=str(output), done=i + 1, total=count))
    return writer.meta


def _read(source: str | Path, spool: "_Spool", sieve: Filters, encoder: "_Encoder", report: Report) -> None:
    for number, document in enumerate(corpus.read(source, skipped=sieve.dropped), 1):
        if sieve.keeps(document):
            spool.add(document, *encoder.encode(document))
        report(BuildProgress(stage="read", source=str(source), done=number))


class _Encoder:
    """Documents to (ids, prompt_length); what conversations and texts need is looked up when the first one comes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._pairs: PairEncoder | None = None
        self._end: int | None = None

    def encode(self, document: Document) -> tuple[list[int], int]:
        if document.messages:
            self._pairs = self._pairs or PairEncoder(self.tokenizer)
            return self._pairs.encode(document.messages, document.name)
        if self._end is None:
            self._end = _end_of_text(self.tokenizer)
        return [*self.tokenizer.encode(document.text), self._end], 0


def _end_of_text(tokenizer: Tokenizer) -> int:
    # Instruct checkpoints of Qwen name <|im_end|>, the end of a turn, as their end
    found = tokenizer.token_to_id(END_OF_TEXT)
    found = tokenizer.eos_id if found is None else found
    if found is None:
        raise DataError(
            f"this tokenizer has neither {END_OF_TEXT} nor an eos_token, so documents could not be told apart; name an "
            "eos_token in its tokenizer_config.json"
        )
    return found


@dataclass(slots=True)
class _Spool:
    """Encoded documents in the order of reading."""

    file: BinaryIO
    offsets: "array[int]" = field(default_factory=lambda: array("q", [0]))
    prompt_lengths: "array[int]" = field(default_factory=lambda: array("i"))
    licences: Counter[str] = field(default_factory=Counter)

    def add(self, document: Document, ids: Sequence[int], prompt_length: int) -> None:
        array("I", ids).tofile(self.file)
        self.offsets.append(self.offsets[-1] + len(ids))
        self.prompt_lengths.append(prompt_length)
        self.licences[" AND ".join(document.licences) or "none"] += 1

    def document(self, i: int) -> tuple[Sequence[int], int]:
        ids = array("I")
        self.file.seek(self.offsets[i] * ids.itemsize)
        ids.frombytes(self.file.read((self.offsets[i + 1] - self.offsets[i]) * ids.itemsize))
        return ids, self.prompt_lengths[i]
