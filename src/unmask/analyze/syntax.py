"""What kind of Python each token of an answer is, and when each kind settles.

The text is cut by Python's own tokenizer, and a token of the model has the class that most of its bytes have. Blanks
between tokens and line ends count only where a token has nothing else (it is `other` then): " return" is a keyword.
Punctuation is an operator, True and None are keywords, an f-string is a literal as a whole.

Which text is looked at:

    an answer               up to its end or its first masked place, by itself: as a program, or as the body of one
    an answer with fences   each fenced block is a program of its own, also one whose fence the prompt opened; the rest
                            of the answer, the fences too, is `text`
    an infill               the whole row, since a hole alone is no program; only what the run filled is classed

Text that Python cannot parse has no classes: the result says why. Prose that happens to parse ("Yes", "No, thanks") is
taken for the program that it is. Where an answer was cut off (it has no end token),
lines that keep it from parsing are left out at its end, up to half of them, and are `other`.
"""

import ast
import io
import keyword
import re
import token
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any, Literal, get_args

from unmask.analyze.bootstrap import Mean, means, task_of
from unmask.analyze.order import end_position, settle_time, settled
from unmask.trajectory import Trajectory

SyntaxClass = Literal[
    "keyword", "name", "literal", "operator", "bracket", "indent", "comment", "docstring", "other", "text"
]
CLASSES: tuple[SyntaxClass, ...] = get_args(SyntaxClass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Syntax:
    """The class of each place that the run filled, or the reason why there are none."""

    classes: Mapping[int, SyntaxClass]
    reason: str = ""

    @property
    def is_python(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTime:
    """When one class settles: the mean over runs of the mean over a run's tokens, as a share of the run's steps.

    Its interval is over tasks.
    """

    name: SyntaxClass
    settle_time: Mean
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleTimes:
    """Classes from the first to settle to the last. `reasons` counts why the other runs were left out."""

    rows: tuple[ClassTime, ...]
    num_runs: int
    reasons: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, keyed by class; null where there is none."""
        return {
            "num_runs": self.num_runs,
            "left_out": dict(self.reasons),
            "settle_time": {row.name: {**row.settle_time.to_json(), "num_tokens": row.num_tokens} for row in self.rows},
        }


def syntax(t: Trajectory) -> Syntax:
    """The syntax class of each place of the answer that the run filled. Takes any text.

    >>> from unmask.trajectory import Commit, Step
    >>> steps = [Step(commits=[Commit(0, place, place, 0.9, 0.1)]) for place in (1, 2, 3)]
    >>> pieces = {0: "2 plus 3?", 1: "return", 2: " a", 3: " +"}
    >>> syntax(Trajectory(initial_ids=[0, None, None, None], steps=steps[:2], pieces=pieces)).classes
    {1: 'keyword', 2: 'name'}
    >>> syntax(Trajectory(initial_ids=[0, None, None, None], steps=steps, pieces=pieces)).reason
    'not Python: line 1: invalid syntax'
    """
    found = settled(t)
    if not found:
        return Syntax(classes={}, reason="nothing was filled")
    ids = t.ids_at(len(t.steps))
    start = next(at for at, token_id in enumerate(ids) if token_id is None or at in found)
    is_infill = any(token_id is not None and at not in found for at, token_id in enumerate(ids) if at > start)
    masked = [at for at, token_id in enumerate(ids) if token_id is None]
    if is_infill and masked:
        return Syntax(classes={}, reason=f"unfinished: {len(masked)} places of the text are still masked")
    end = end_position(found, t)
    stop = min([len(ids), *masked[:1], *([] if end is None or is_infill else [end])])
    if stop == start:
        return Syntax(classes={}, reason="unfinished: its first place is masked" if masked else "the answer is empty")
    row = _Row([_piece(t, token_id) for token_id in ids[:stop]])
    if is_infill:
        lead = next(_LEAD.finditer(row.text))  # it matches the empty text too
        reason = row.read([(lead.end(), len(row.text))], may_cut=False)
    else:
        begin = row.offset(start)
        is_open = sum(high <= begin for _, high in _fences(row.text)) % 2 == 1
        reason = row.read(_blocks(row.text, begin, is_open), may_cut=stop != end)
        if reason and is_open:  # the question left a fence open, or the answer opened its own
            reason = row.read(_blocks(row.text, begin, is_open=False), may_cut=stop != end) and reason
    if reason:
        return Syntax(classes={}, reason=reason)
    return Syntax(classes={at: row.class_of(at) for at in found if at < stop})


def settle_times(runs: Sequence[Trajectory], *, seed: int = 0) -> SettleTimes:
    """The table "brackets settle at 12 %, names at 41 %", over all runs whose answers are Python."""
    measured: list[dict[SyntaxClass, list[float]]] = []
    tasks: list[str] = []
    reasons: Counter[str] = Counter()
    for run in runs:
        found = syntax(run)
        if not found.is_python:
            reasons[found.reason.partition(":")[0]] += 1
            continue
        times = settle_time(run)
        by_class: dict[SyntaxClass, list[float]] = {}
        for position, name in found.classes.items():
            by_class.setdefault(name, []).append(times[position])
        measured.append(by_class)
        tasks.append(task_of(run))
    columns = {
        name: [fmean(one[name]) if name in one else float("nan") for one in measured]
        for name in CLASSES
        if any(name in one for one in measured)
    }
    rows = [
        ClassTime(name=name, settle_time=mean, num_tokens=sum(len(one.get(name, ())) for one in measured))
        for name, mean in means(columns, clusters=tasks, seed=seed).items()
    ]
    rows.sort(key=lambda row: row.settle_time.value)
    return SettleTimes(rows=tuple(rows), num_runs=len(measured), reasons=dict(reasons))


_LEAD = re.compile(r"(?:<\|[^|\n]*\|>|<s>)?")
"""The token that every text of a model begins with; no part of a program."""

_FENCE = re.compile(r"^ {0,3}(?:```|~~~).*\n?", re.MULTILINE)
_BLANKS = re.compile(r"^[ \t]+", re.MULTILINE)
_LONE = re.compile(r"[\ud800-\udfff]")
_Place = tuple[int, int]
_BODY = "if 1:\n"
"""Put before the body of a function to make it a program."""

_FSTRING_STARTS = {getattr(token, name, None) for name in ("FSTRING_START", "TSTRING_START")} - {None}
_FSTRING_ENDS = {getattr(token, name, None) for name in ("FSTRING_END", "TSTRING_END")} - {None}
_SKIPPED = {token.NEWLINE, token.NL, token.INDENT, token.DEDENT, token.ENDMARKER}


class _Row:
    """A row's text with a mark for each character: its class, None for blanks that count for nothing."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.text = b"".join(pieces).decode("utf-8", "surrogateescape")
        self._marks: list[SyntaxClass | None] = []
        self._ends = list(accumulate(map(len, pieces)))  # of the tokens, in bytes
        sizes = [1] * len(self.text) if self.text.isascii() else [len(_bytes(character)) for character in self.text]
        self._characters = [at for at, size in enumerate(sizes) for _ in range(size)]  # that each byte belongs to

    def offset(self, position: int) -> int:
        """The character with which the token at `position` begins."""
        return self._characters[first] if (first := self._first(position)) < len(self._characters) else len(self.text)

    def class_of(self, position: int) -> SyntaxClass:
        characters = self._characters[self._first(position) : self._ends[position]]
        votes = [mark for at in characters if (mark := self._marks[at]) is not None]
        if not votes:
            return "other"
        if votes.count(votes[0]) == len(votes):  # as nearly always
            return votes[0]
        return Counter(votes).most_common(1)[0][0]  # among equals, the one that comes first

    def read(self, blocks: Sequence[tuple[int, int]], *, may_cut: bool) -> str:
        """Mark what parses of `blocks`. Returns why it was none of them, or nothing."""
        self._marks = ["text"] * len(self.text)
        reasons = []
        for low, high in blocks:
            # Signs that are no text on their own cannot be in a program but in its strings; lengths stay as they are.
            code = _LONE.sub("?", self.text[low:high]).replace("\r\n", " \n").replace("\r", "\n")
            try:
                self._marks[low:high] = _marks(code, may_cut=may_cut and high == len(self.text))
            except _NoPythonError as error:
                reasons.append(str(error))
        return reasons[0] if len(reasons) == len(blocks) else ""

    def _first(self, position: int) -> int:
        return self._ends[position - 1] if position else 0


class _NoPythonError(Exception):
    """Why a text is no program; never leaves this module."""


def _blocks(text: str, begin: int, is_open: bool) -> list[tuple[int, int]]:
    """The code in the answer that begins at `begin`: the fenced blocks, or all of it where it has no fence.

    The first block reaches back to the fence that the prompt opened, or to the blanks at the start of its line.
    """
    fences = _fences(text)
    before = [fence for fence in fences if fence[1] <= begin]
    inside = fences[len(before) :]
    line = text[:begin].rpartition("\n")[2]
    first = begin - len(line) if line.isspace() else begin
    if is_open:
        first = before[-1][1]
    if not inside and not is_open:
        return [(first, len(text))]
    edges = [first] if is_open else []
    for low, high in inside:
        edges.append(low if len(edges) % 2 else high)
    if len(edges) % 2:
        edges.append(len(text))
    return list(zip(edges[::2], edges[1::2], strict=True))


def _fences(text: str) -> list[tuple[int, int]]:
    return [fence.span() for fence in _FENCE.finditer(text)]


def _marks(code: str, *, may_cut: bool) -> list[SyntaxClass | None]:
    """A class for each character of a program. Raises _NoPythonError."""
    before, kept, tree = _parsed(code, may_cut=may_cut)
    marks: list[SyntaxClass | None] = [None if character.isspace() else "other" for character in code]
    for blanks in _BLANKS.finditer(code):
        marks[blanks.start() : blanks.end()] = ["indent"] * len(blanks.group())
    program = before + kept
    line_starts = [-len(before), *(at + 1 - len(before) for at, character in enumerate(program) if character == "\n")]
    try:
        tokens = list(_tokens(program, _docstrings(program, tree)))
    except (tokenize.TokenError, SyntaxError) as error:  # some releases' tokenizer refuses what their parser takes
        raise _NoPythonError(f"not Python: {error}") from None
    for name, (first_line, first), (last_line, last) in tokens:
        low, high = line_starts[first_line - 1] + first, line_starts[last_line - 1] + last
        if low >= 0:
            marks[low:high] = [name] * (high - low)
    return marks


def _parsed(code: str, *, may_cut: bool) -> tuple[str, str, ast.Module]:
    """(what is put before it, what is kept of `code`, the tree of both). Raises _NoPythonError."""
    if not code.strip():
        raise _NoPythonError("not Python: nothing but blanks")
    lines = code.splitlines(keepends=True)
    fewest = len(lines) // 2 + 1 if may_cut else len(lines)
    reason = ""
    for number in range(len(lines), fewest - 1, -1):
        kept = "".join(lines[:number])
        for before in ("", _BODY):
            try:
                with warnings.catch_warnings():  # of escapes in strings
                    warnings.simplefilter("ignore")
                    return before, kept, ast.parse(before + kept)
            except SyntaxError as error:
                reason = reason or f"not Python: line {error.lineno or 1}: {error.msg}"
            except (ValueError, RecursionError, MemoryError) as error:  # a null byte, or nested too deeply
                reason = reason or f"not Python: {str(error) or 'nested too deeply'}"  # a MemoryError says nothing
    raise _NoPythonError(reason)


def _docstrings(program: str, tree: ast.Module) -> list[tuple[_Place, _Place]]:
    """Where the program's docstrings begin and end; one may be several string tokens."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    firsts = (node.body[0] for node in ast.walk(tree) if isinstance(node, owners) and node.body)
    found = [
        first.value
        for first in firsts
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    ]
    lines = program.split("\n") if found else []

    def place(line: int, num_bytes: int) -> _Place:
        return line, len(lines[line - 1].encode()[:num_bytes].decode())  # the parser counts bytes, the tokenizer not

    return [
        (place(one.lineno, one.col_offset), place(one.end_lineno or one.lineno, one.end_col_offset or 0))
        for one in found
    ]


def _tokens(program: str, docstrings: Sequence[tuple[_Place, _Place]]) -> Iterator[tuple[SyntaxClass, _Place, _Place]]:
    """(class, start, end) of each token; places are (line from 1, character from 0)."""
    fstrings: list[_Place] = []
    for found in tokenize.generate_tokens(io.StringIO(program, newline="\n").readline):
        if found.type in _FSTRING_STARTS:
            fstrings.append(found.start)
        elif found.type in _FSTRING_ENDS:
            start = fstrings.pop()
            if not fstrings:
                yield "literal", start, found.end
        elif not fstrings and found.type not in _SKIPPED:
            yield _class_of(found, docstrings), found.start, found.end


def _class_of(found: tokenize.TokenInfo, docstrings: Sequence[tuple[_Place, _Place]]) -> SyntaxClass:
    if found.type == token.NAME:
        return "keyword" if keyword.iskeyword(found.string) else "name"
    if found.type == token.STRING:
        is_docstring = any(start <= found.start < end for start, end in docstrings)
        return "docstring" if is_docstring else "literal"
    if found.type == token.OP:
        return "bracket" if found.string in "()[]{}" else "operator"
    return {token.NUMBER: "literal", token.COMMENT: "comment"}.get(found.type, "other")  # type: ignore[return-value]


def _piece(t: Trajectory, token_id: int | None) -> bytes:
    assert token_id is not None, "the text ends before its first masked place"
    return _bytes(t.pieces.get(token_id, f"<{token_id}>"))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
