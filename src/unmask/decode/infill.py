"""Infilling: a text with any number of holes, filled without touching a byte of what was given.

A text is cut into given pieces and holes. How a hole is filled depends on how the model attends:

    full attention   all holes at once, on one canvas: given text, masks, given text, … Every hole sees everything.
    causal           hole by hole, from left to right, in the fill-in-the-middle form that the checkpoint was trained
                     on (prefix, suffix, middle; Bavarian et al., 2022), if its vocabulary has the three tokens.

A hole has a fixed number of tokens, a range, or grows. On a full-attention model a range or growth is decided before
anything is committed, by the model's first look: the length whose masks get the highest mean log-confidence (CAL, arXiv
2602.00476). A range tries at most eight lengths; growth adds a block as long as that score rises. On a causal model the
model ends the hole by itself, within the range.

The result is put together from the given strings and the decoded holes, never by decoding the given tokens again: a
tokenizer may change what it encodes (Qwen2's composes characters), the given text comes back byte for byte.
"""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from unmask.decode.canvas import Positions
from unmask.decode.loop import suppression_mask
from unmask.decode.run import Run
from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.diffusion.confidence import token_confidence
from unmask.diffusion.logits import suppress_
from unmask.errors import CanvasError, CheckpointError
from unmask.trajectory import StepEvent, Trajectory

DEFAULT_GROWTH = 8
DEFAULT_LIMIT = 64
_LENGTHS_TRIED = 8
_MARKER = re.compile(r"\[\[\?(\d+(?:-\d+)?|\+)?\]\]", re.ASCII)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # str.splitlines also breaks at U+2028, form feed and others


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """A gap of `least` to `most` tokens. `grows` tries block after block instead of lengths spread over the range; on a
    causal model such a hole may also stay empty."""

    least: int = 1
    most: int = DEFAULT_LIMIT
    grows: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise CanvasError(
                f"a hole of {self.least} to {self.most} tokens cannot be filled; it must be from 1 token up, "
                "and its first number not above its second"
            )

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most

    @classmethod
    def parse(cls, text: str, *, limit: int = DEFAULT_LIMIT) -> "Hole":
        """`12`, `4-16`, or `+` (and nothing) for a hole that grows up to `limit`.

        >>> Hole.parse("4-16")
        Hole(least=4, most=16, grows=False)
        """
        if text in ("", "+"):
            return cls(most=limit)
        if not re.fullmatch(r"\d+(-\d+)?", text, re.ASCII):
            raise CanvasError(f"{text!r} is not the length of a hole; give 12, 4-16, or + for one that grows")
        least, _, most = text.partition("-")
        return cls(least=int(least), most=int(most or least), grows=False)


Segment = str | Hole


def parse_markers(text: str, *, limit: int = DEFAULT_LIMIT) -> list[Segment]:
    """Cut a text at its hole markers: `[[?]]` or `[[?+]]` grows, `[[?12]]` is 12 tokens, `[[?4-16]]` a range.

    >>> parse_markers("a = [[?2]]\\n")
    ['a = ', Hole(least=2, most=2, grows=False), '\\n']
    """
    segments: list[Segment] = []
    at = 0
    for match in _MARKER.finditer(text):
        segments += [text[at : match.start()], Hole.parse(match[1] or "", limit=limit)]
        at = match.end()
    return [*segments, text[at:]]


def cut_lines(text: str, ranges: Sequence[tuple[int, int]], hole: Hole) -> list[Segment]:
    """Make a hole of each range of lines (counted from 1, both ends in); the last line's newline stays given.

    Lines end at a line feed, a carriage return, or both, as editors count them. Raises CanvasError for ranges that
    overlap, run backwards, or lie outside the text.

    >>> cut_lines("a\\nb\\nc\\n", [(2, 2)], Hole.parse("3"))
    ['a\\n', Hole(least=3, most=3, grows=False), '\\nc\\n']
    """
    lines = _LINE.findall(text)
    segments: list[Segment] = []
    done = 0  # lines already placed
    held = ""
    for first, last in sorted(ranges):
        if first > last:
            raise CanvasError(f"lines {first}-{last} run backwards; give the first line first: {last}-{first}")
        if not 1 <= first <= last <= len(lines):
            count = "1 line" if len(lines) == 1 else f"{len(lines)} lines"
            raise CanvasError(
                f"lines {first}-{last} are not in the text, which has {count} counted from 1; give FIRST-LAST within it"
            )
        if first <= done:
            raise CanvasError(f"the holes overlap at line {first}: each line can lie in one hole; merge the ranges")
        segments += [held + "".join(lines[done : first - 1]), hole]
        body = lines[last - 1].rstrip("\r\n")
        held = lines[last - 1][len(body) :]
        done = last
    return [*segments, held + "".join(lines[done:])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Infilling:
    """A filled text: the whole, the text of each hole in order, and what it took."""

    text: str
    holes: tuple[str, ...]
    num_tokens: int
    wasted_tokens: int
    num_forwards: int
    positions_computed: int
    seconds: float
    finish_reason: Literal["stop", "interrupted"]
    trajectories: tuple[Trajectory, ...]


def infill(
    model: Model, segments: Sequence[Segment], settings: DecodeSettings | None = None, *, runners_up: int = 0
) -> Infilling:
    """Fill every hole and give the result."""
    filler = start_infill(model, segments, settings or DecodeSettings(), runners_up=runners_up)
    for _ in filler:
        pass
    return filler.result()


def start_infill(
    model: Model, segments: Sequence[Segment], settings: DecodeSettings, *, runners_up: int = 0
) -> "Filler":
    """The filler that suits the model. Raises CanvasError for a text without holes or one that does not fit.

    The trajectories keep the `runners_up` next best tokens of each commit.
    """
    require_holes(segments)
    kind = CanvasFiller if model.backbone.config.attention == "full" else MiddleFiller
    return kind(model, segments, settings, runners_up=runners_up)


def require_holes(segments: Sequence[Segment]) -> None:
    """Raise CanvasError for a text without holes."""
    if not any(isinstance(segment, Hole) for segment in segments):
        raise CanvasError(
            "the text has no hole; write [[?]] where the model should fill in ([[?12]] for 12 tokens, [[?4-16]] for a "
            "range), or name lines with --lines FIRST-LAST"
        )


class Filler(ABC):
    """An iterator of step events that fills holes; `run` is the run under way, for a live view."""

    run: Run

    def __init__(
        self, model: Model, segments: Sequence[Segment], settings: DecodeSettings, *, runners_up: int = 0
    ) -> None:
        self.model, self.segments, self.settings = model, list(segments), settings
        self.runners_up = runners_up
        self.is_done = False
        self.probes = 0
        self.positions_probed = 0
        self.seconds_probing = 0.0
        self.runs: list[Run] = []
        # A control token would vanish from the text, and the hole come out shorter than it was asked for.
        scored = range(model.backbone.config.vocab_size)
        self._control_ids = sorted(id_ for id_ in {*model.tokenizer.special_ids, *model.end_ids} if id_ in scored)

    @abstractmethod
    def __iter__(self) -> Iterator[StepEvent]:
        """Fill the holes, one step event at a time."""

    @abstractmethod
    def texts(self) -> list[str]:
        """What each hole holds so far; holes that were not reached are empty."""

    def wasted(self) -> int:
        """Settled tokens that did not become part of the text."""
        return 0

    def result(self) -> Infilling:
        """The text as it stands."""
        texts = self.texts()
        left = iter(texts)
        whole = "".join(segment if isinstance(segment, str) else next(left) for segment in self.segments)
        results = [result for run in self.runs for result in run.results()]
        return Infilling(
            text=whole,
            holes=tuple(texts),
            num_tokens=sum(result.num_tokens for result in results) - self.wasted(),
            wasted_tokens=self.wasted(),
            num_forwards=self.probes + sum(result.num_forwards for result in results),
            positions_computed=self.positions_probed + sum(result.positions_computed for result in results),
            seconds=self.seconds_probing + sum(run.seconds for run in self.runs),
            finish_reason="stop" if self.is_done else "interrupted",
            trajectories=tuple(result.trajectory for result in results),
        )


class CanvasFiller(Filler):
    """All holes on one canvas; for full attention."""

    def __init__(
        self, model: Model, segments: Sequence[Segment], settings: DecodeSettings, *, runners_up: int = 0
    ) -> None:
        super().__init__(model, segments, settings, runners_up=runners_up)
        self._given = [model.tokenizer.encode(s) if isinstance(s, str) else [] for s in self.segments]
        self._lengths = {i: s.least for i, s in enumerate(self.segments) if isinstance(s, Hole)}
        self._lead = self._first_ids()
        self._check_room()

    def __iter__(self) -> Iterator[StepEvent]:
        for index, hole in enumerate(self.segments):
            if isinstance(hole, Hole) and not hole.is_fixed:
                self._choose_length(index, hole)
        self.run = self.model.run_rows(
            [self._row()],
            replace(self.settings, max_new_tokens=sum(self._lengths.values())),
            samples=[0],
            end_ids=(),
            suppressed_ids=self._control_ids,
            runners_up=self.runners_up,
        )
        self.runs.append(self.run)
        yield from self.run
        self.is_done = True

    def texts(self) -> list[str]:
        if not self.runs:
            return ["" for _ in self._lengths]
        ids = self.run.canvas.row_ids(0)
        settled = [[token for token in ids[low:high] if token is not None] for low, high in self._spans().values()]
        return [self.model.tokenizer.decode(hole) for hole in settled]

    def _first_ids(self) -> list[int]:
        """What stands before the text: the token that every text of this model begins with, if it has one.

        A model with shifted logits predicts a position from the one before it, so a hole at the very start needs
        something there; a model without such a token gets one that ends a text, as packed training data has it.
        """
        tokenizer, config = self.model.tokenizer, self.model.backbone.config
        begins_open = not self._given[0] and (isinstance(self.segments[0], Hole) or isinstance(self.segments[1], Hole))
        known = [token for token in (tokenizer.bos_id, config.bos_id, *self.model.end_ids) if token is not None]
        if tokenizer.adds_bos and tokenizer.bos_id is not None:
            return [tokenizer.bos_id]
        return known[:1] if config.shift_logits and begins_open else []

    def _check_room(self) -> None:
        needed = len(self._lead) + sum(len(ids) for ids in self._given) + sum(self._lengths.values())
        limit = self.model.backbone.config.max_positions
        if needed > limit:
            raise CanvasError(
                f"the given text and the holes take at least {needed} tokens, but the model's context holds {limit}; "
                "shorten the text around the holes"
            )

    def _row(self) -> list[int | None]:
        row: list[int | None] = list(self._lead)
        for index, ids in enumerate(self._given):
            row += [None] * self._lengths[index] if index in self._lengths else ids
        return row

    def _spans(self) -> dict[int, tuple[int, int]]:
        """Where each hole lies in the row."""
        spans, at = {}, len(self._lead)
        for index, ids in enumerate(self._given):
            length = self._lengths.get(index, len(ids))
            if index in self._lengths:
                spans[index] = (at, at + length)
            at += length
        return spans

    def _choose_length(self, index: int, hole: Hole) -> None:
        """Settle a hole's length by the model's first look, the other holes as they stand."""
        room = self.model.backbone.config.max_positions - (len(self._row()) - self._lengths[index])
        most = min(hole.most, room)
        lengths = _growing(hole.least, most) if hole.grows else _spread(hole.least, most)
        best, best_score = hole.least, -float("inf")
        for length in lengths:
            self._lengths[index] = length
            score = self._first_look(index)
            if score > best_score:
                best, best_score = length, score
            elif hole.grows:
                break
        self._lengths[index] = best

    def _first_look(self, index: int) -> float:
        """Mean log-confidence of a hole's masks when everything is still masked."""
        started = time.perf_counter()
        model, config = self.model, self.model.backbone.config
        canvas = model.canvas([self._row()])
        low, high = self._spans()[index]
        columns = torch.arange(low, high) + int(canvas.start_B[0])
        denoiser = model.exact_denoiser()
        assert config.mask_id is not None
        is_suppressed_V = suppression_mask(denoiser, [*model.undefined_ids, *self._control_ids])
        total = 0.0
        with torch.inference_mode():
            for logits_CV in denoiser.logits(canvas, Positions(torch.zeros_like(columns), columns)):
                logp = suppress_(logits_CV, is_suppressed_V).float().log_softmax(-1)
                total += float(token_confidence(logp, logp.argmax(-1)).log().sum())
        self.probes += denoiser.num_forwards
        self.positions_probed += denoiser.positions_computed
        self.seconds_probing += time.perf_counter() - started
        return total / (high - low)


class MiddleFiller(Filler):
    """Hole after hole in the fill-in-the-middle form; for causal models that know it."""

    def __init__(
        self, model: Model, segments: Sequence[Segment], settings: DecodeSettings, *, runners_up: int = 0
    ) -> None:
        super().__init__(model, segments, settings, runners_up=runners_up)
        fim = model.tokenizer.fim_ids
        if model.backbone.config.attention != "causal" or fim is None:
            what = model.backbone.config.attention
            raise CheckpointError(
                f"{model.name} attends {what!r}, so a hole would not see the text behind it, and it has no "
                "fill-in-the-middle form to make up for that; infill with a full-attention model such as "
                "diffucoder-7b-instruct, or with a Qwen2.5-Coder checkpoint"
            )
        self._fim = fim
        self._texts: list[str] = []
        for index, hole in enumerate(self.segments):
            if isinstance(hole, Hole):  # earlier holes count as empty here: what cannot fit is refused at once
                self._room(self._prompt(*self._around(index))[0], hole)

    def __iter__(self) -> Iterator[StepEvent]:
        for index, hole in enumerate(self.segments):
            if isinstance(hole, Hole):
                self._texts.append("")
                yield from self._fill(index, hole)
        self.is_done = True

    def texts(self) -> list[str]:
        count = sum(isinstance(segment, Hole) for segment in self.segments)
        return self._texts + [""] * (count - len(self._texts))

    def wasted(self) -> int:
        settled = sum(result.num_tokens for run in self.runs for result in run.results())
        kept = sum(len(self.model.tokenizer.encode(text)) for text in self._texts)
        return max(0, settled - kept)

    def _fill(self, index: int, hole: Hole) -> Iterator[StepEvent]:
        before, behind = self._around(index)
        prompt, owed = self._prompt(before, behind)
        most = self._room(prompt, hole)
        ids: list[int] = []
        if hole.least > 1 or not hole.grows:
            for event in self._go_on(prompt, ids, hole.least, may_end=False):
                self._texts[-1] = self._text(ids, owed)
                yield event
        if len(ids) >= most:
            return
        next_line, kept = _first_line(behind), len(self._text(ids, owed))
        for event in self._go_on(prompt, ids, most - len(ids), may_end=True):
            self._texts[-1], is_over = _cut(self._text(ids, owed), next_line, kept=kept)
            yield event
            if is_over:
                self.run.leave()
                return
        self._texts[-1], _ = _cut(self._text(ids, owed), next_line, kept=kept, is_done=True)

    def _go_on(self, prompt: list[int], ids: list[int], room: int, *, may_end: bool) -> Iterator[StepEvent]:
        """Decode up to `room` more tokens of the hole under way; `ids` are those it has and gains."""
        had, ends = list(ids), self._control_ids
        self.run = self.model.run_rows(
            [[*prompt, *ids, *[None] * room]],
            replace(self.settings, max_new_tokens=room),
            samples=[0],
            end_ids=ends if may_end else (),
            suppressed_ids=() if may_end else ends,
            runners_up=self.runners_up,
        )
        self.runs.append(self.run)
        for event in self.run:
            row = self.run.canvas.row_ids(0)[len(prompt) + len(had) :]
            ids[:] = had + _written(row, ends)
            yield event

    def _text(self, ids: list[int], owed: str) -> str:
        return self.model.tokenizer.decode(ids).removeprefix(owed)

    def _around(self, index: int) -> tuple[str, str]:
        """The text before a hole, earlier holes filled, and the text behind it, later holes left out."""
        fills = iter(self.texts())
        before = "".join(segment if isinstance(segment, str) else next(fills) for segment in self.segments[:index])
        return before, "".join(segment for segment in self.segments[index + 1 :] if isinstance(segment, str))

    def _prompt(self, before: str, behind: str) -> tuple[list[int], str]:
        """Prefix, suffix, middle; and the space that the answer owes.

        Byte-level vocabularies write a word with the space before it, so a prefix that ends in one space leaves the
        model in the middle of a token: the space is kept back, and taken off the answer instead.
        """
        owed = " " if re.search(r"\S \Z", before) else ""
        encode = self.model.tokenizer.encode
        before_ids, behind_ids = encode(before.removesuffix(owed)), encode(behind)
        return [self._fim.prefix, *before_ids, self._fim.suffix, *behind_ids, self._fim.middle], owed

    def _room(self, prompt: list[int], hole: Hole) -> int:
        """The most tokens that the hole may take. Raises CanvasError where its least do not fit."""
        limit = self.model.backbone.config.max_positions
        if len(prompt) + hole.least > limit:
            raise CanvasError(
                f"the given text takes {len(prompt)} tokens and the hole at least {hole.least}, but the model's "
                f"context holds {limit}; shorten the text around the hole"
            )
        return min(hole.most, limit - len(prompt))


def _written(row: Sequence[int | None], ends: Sequence[int]) -> list[int]:
    """The tokens before the first mask or end: what a drafter settled behind it is not text yet, or never."""
    ids: list[int] = []
    for token in row:
        if token is None or token in ends:
            break
        ids.append(token)
    return ids


def _cut(text: str, next_line: str, *, kept: int = 0, is_done: bool = False) -> tuple[str, bool]:
    """A fill up to where it begins to repeat the line behind the hole, and whether it does.

    A line under way could still become another one, so only whole lines count until the fill `is_done`. The first
    `kept` characters stay.

    >>> _cut("0\\n    return total\\n", "    return total")
    ('0', True)
    >>> _cut("0\\n    return total", "    return total")
    ('0\\n    return total', False)
    """
    lines = text.split("\n")
    at = -1  # of the newline before the line
    for number, line in enumerate(lines):
        is_whole = is_done or number < len(lines) - 1
        if number and is_whole and at >= kept and next_line and line.rstrip() == next_line:
            return text[:at].removesuffix("\r"), True
        at += len(line) + 1
    return text, False


def _first_line(behind: str) -> str:
    """The first line with something on it that lies wholly behind the hole, unless it is too short to tell."""
    for line in behind.split("\n")[1:]:
        if line.strip():
            return line.rstrip() if len(line.strip()) > 3 else ""
    return ""


def _growing(least: int, most: int) -> list[int]:
    """Lengths a block apart: the first block fills up to a multiple.

    >>> _growing(1, 30)
    [8, 16, 24, 30]
    """
    steps = list(range(max(least, DEFAULT_GROWTH), most, DEFAULT_GROWTH))
    return [*steps, most]


def _spread(least: int, most: int) -> list[int]:
    """At most eight lengths from `least` to `most`, closer together where they are short.

    >>> _spread(4, 16)
    [4, 5, 6, 7, 9, 11, 13, 16]
    """
    if most - least < _LENGTHS_TRIED:
        return list(range(least, most + 1))
    ratio = (most / least) ** (1 / (_LENGTHS_TRIED - 1))
    return sorted({round(least * ratio**i) for i in range(_LENGTHS_TRIED)})
