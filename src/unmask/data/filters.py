"""What does not get into a training set, and why: each document gets the name of the first rule that it breaks.

    licence          one of its licences is not allowed, or it states none
    length           too few or too many characters
    long lines       a line no person wrote
    generated        its first lines say that a program wrote it
    control tokens   it holds the text of a special token, such as the mask's
    syntax           it is no Python
    benchmark        it shares a run of ten words with a benchmark's task, or names one
    duplicate        its text was seen before, white space apart
    near duplicate   MinHash over runs of five words (Broder 1997) says that at least 70 % of them were seen together

Near duplicates are found by locality-sensitive hashing (Leskovec, Rajaraman and Ullman, "Mining of massive datasets",
section 3.4): 16 bands of 5 hashes each offer candidates, the share of all 80 hashes decides. That takes about 3 kB of
memory per document kept; exact duplicates take 100 bytes.
"""

import functools
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unmask.data.corpus import Document
from unmask.data.jsonl import parse
from unmask.data.overlap import NGRAM, ngrams, words
from unmask.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from unmask.data.task import Task

Dedup = Literal["exact", "near", "none"]
DEDUPS: tuple[Dedup, ...] = ("exact", "near", "none")

_GENERATED = re.compile(r"\b(auto-?\s?generated|generated (by|from|with)|do not edit)\b", re.IGNORECASE)
_GENERATED_LINES = 5


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Which rules hold."""

    licences: tuple[str, ...] = ()
    """SPDX ids that are allowed, in any case; empty: all, and documents that state none."""

    allow_unlicensed: bool = False
    """Keep documents that state no licence, beside those with an allowed one."""

    min_chars: int = 1
    max_chars: int = 1_000_000
    max_line: int = 1_000
    """Characters in the longest line of a text."""

    must_parse: bool = False
    """Keep only texts that are Python."""

    dedup: Dedup = "exact"

    def __post_init__(self) -> None:
        if not 0 <= self.min_chars <= self.max_chars:
            raise SettingsError(
                f"min_chars={self.min_chars} and max_chars={self.max_chars}: give 0 ≤ min_chars ≤ max_chars"
            )
        if self.max_line < 1:
            raise SettingsError(f"max_line={self.max_line}: give the characters of the longest line, 1000 is usual")
        if self.dedup not in DEDUPS:
            raise SettingsError(f"dedup={self.dedup!r}: give one of {', '.join(DEDUPS)}")
        if self.allow_unlicensed and not self.licences:
            raise SettingsError(
                "allow_unlicensed has no effect without licences: all documents are kept then; name the licences that "
                "are allowed, or leave it out"
            )


class Filters:
    """The rules, with a memory of what was kept. Ask about each document once, in order."""

    def __init__(
        self, settings: FilterSettings, *, special_texts: Iterable[str] = (), without: Iterable["Task"] = ()
    ) -> None:
        self.settings = settings
        self.dropped: Counter[str] = Counter()
        self._allowed = frozenset(licence.lower() for licence in settings.licences)
        special = sorted(special_texts)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._ngrams, self._ids = _benchmark_words(without)
        self._seen: set[bytes] = set()
        self._near = NearDuplicates()

    def keeps(self, document: Document) -> bool:
        """Whether it gets in; if not, the reason is counted in `dropped`."""
        reason = self.reason(document)
        if reason is not None:
            self.dropped[reason] += 1
        return reason is None

    def reason(self, document: Document) -> str | None:
        """The first rule that it breaks."""
        contents = document.contents
        if self._is_unlicensed(document):
            return "licence"
        if not self.settings.min_chars <= sum(map(len, contents)) <= self.settings.max_chars:
            return "length"
        lines = document.text.split("\n")  # of a text; a conversation has none
        if max(map(len, lines)) > self.settings.max_line:
            return "long lines"
        if any(map(_GENERATED.search, lines[:_GENERATED_LINES])):
            return "generated"
        if self._special is not None and any(map(self._special.search, contents)):
            return "control tokens"
        if self.settings.must_parse and not document.messages and not _is_python(document.text):
            return "syntax"
        if any(map(self._is_in_benchmark, contents)):
            return "benchmark"
        return self._repeats("\n".join(contents))

    def _is_unlicensed(self, document: Document) -> bool:
        if not self._allowed:
            return False
        if not document.licences:
            return not self.settings.allow_unlicensed
        return not all(_is_allowed(licence, self._allowed) for licence in document.licences)

    def _is_in_benchmark(self, text: str) -> bool:
        if self._ids and any(name.lower() in self._ids for name in _NAMED_ID.findall(text)):
            return True
        return bool(self._ngrams) and any(gram in self._ngrams for gram in ngrams(words(text), NGRAM))

    def _repeats(self, text: str) -> str | None:
        if self.settings.dedup == "none":
            return None
        key = hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in self._seen:
            return "duplicate"
        self._seen.add(key)
        if self.settings.dedup == "near" and not self._near.add(text):
            return "near duplicate"
        return None


_BANDS, _BAND_HASHES, _RUN, _SAME = 16, 5, 5, 0.7
_CANDIDATES = 8
"""Texts that a band keeps for a key, the first ones: a header that thousands share costs no more than that."""
_PIECE = 8192


class NearDuplicates:
    """Remembers texts and tells whether a new one is nearly one of them.

    >>> near = NearDuplicates()
    >>> text = " ".join(f"word{i}" for i in range(100))
    >>> near.add(text), near.add(text + " and more"), near.add(" ".join(f"other{i}" for i in range(100)))
    (True, False, True)
    """

    def __init__(self) -> None:
        self._bands: dict[bytes, tuple[int, ...]] = {}
        self._signatures: list[npt.NDArray[np.uint32]] = []

    def add(self, text: str) -> bool:
        """Remember the text and say True; or say False if a text like it is there."""
        signature = _signature(text)
        keys = [
            bytes([band]) + signature[band * _BAND_HASHES : (band + 1) * _BAND_HASHES].tobytes()
            for band in range(_BANDS)
        ]
        candidates = {number for key in keys for number in self._bands.get(key, ())}
        if any((self._signatures[number] == signature).mean() >= _SAME for number in candidates):
            return False
        for key in keys:
            there = self._bands.get(key, ())
            if len(there) < _CANDIDATES:
                self._bands[key] = (*there, len(self._signatures))
        self._signatures.append(signature)
        return True


def _signature(text: str) -> "npt.NDArray[np.uint32]":
    """The least value of each of 80 hash functions over all runs of words (multiply-shift, Dietzfelbinger 1996)."""
    import numpy as np

    tokens = list(words(text))
    grams = sorted({zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in ngrams(tokens, _RUN)})
    if not grams:
        grams = [zlib.crc32(text.encode("utf-8", "surrogatepass"))]  # too short for a run: only its equal is like it
    factors, offsets = _hash_functions()
    least = np.full(_BANDS * _BAND_HASHES, (1 << 32) - 1, dtype=np.uint32)
    for start in range(0, len(grams), _PIECE):
        piece = np.array(grams[start : start + _PIECE], dtype=np.uint64)
        hashes = (piece[:, None] * factors + offsets) >> np.uint64(32)
        least = np.minimum(least, hashes.min(axis=0).astype(np.uint32))
    return least


@functools.lru_cache(maxsize=1)
def _hash_functions() -> "npt.NDArray[np.uint64]":
    """Odd factors and any offsets, always the same ones."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(0, 1 << 64, size=(2, _BANDS * _BAND_HASHES), dtype=np.uint64)
    drawn[0] |= np.uint64(1)
    return drawn


_NAMED_ID = re.compile(r"\w[\w-]*/\d+")


def _benchmark_words(tasks: Iterable["Task"]) -> tuple[frozenset[str], frozenset[str]]:
    """The runs of words of all tasks, and their ids; `data/overlap.py` reports on the same ones."""
    grams: set[str] = set()
    ids: set[str] = set()
    for task in tasks:
        ids.add(task.task_id.lower())
        for text in (task.prompt, task.instruction, task.suffix, task.reference, task.reference_completion):
            grams.update(ngrams(words(text), NGRAM))
    return frozenset(grams), frozenset(ids)


def _is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """An SPDX expression: OR leaves the choice, AND asks for all. One with brackets inside is not understood."""
    bare = re.sub(r"^\s*\(([^()]*)\)\s*$", r"\1", expression.lower())
    choices = re.split(r"\s+or\s+", bare)
    return any(all(part.strip() in allowed for part in re.split(r"\s+and\s+", choice)) for choice in choices)


def _is_python(text: str) -> bool:
    try:
        parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
