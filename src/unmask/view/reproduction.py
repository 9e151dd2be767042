"""The paper's findings beside ours: as a page in Markdown, and as a table in the terminal.

The page holds no date and no machine, so that the same numbers give the same page. It says the rule of the verdicts,
which models were measured, and for each finding the numbers and the commands that make them again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from unmask.analyze.bootstrap import Mean
from unmask.analyze.findings import FEWEST, Outcome
from unmask.view.evaluation import clean

_RULE = f"""A row's numbers are means over tasks with their 95 % bootstrap intervals over tasks; where two settings are
compared, they are compared within tasks. Shares lie between 0 and 1. AR-ness is that of the answer without its end
token, one token per step, over the T - k steps that have k before them. The verdict:

- **reproduced**: the interval lies on the side of zero that the paper claims;
- **contradicted**: it lies on the other side;
- **undecided**: it holds zero, or fewer than {FEWEST} tasks have what is compared;
- **not measured**: something that it needs was not run, and the row says what.

Where a finding has several differences, one contradicted decides, and it is reproduced only if all are. The paper's
models have 7 B parameters and answered HumanEval; where other models answer other tasks, what is compared is the
direction, and not the size.
"""
_NARROW = 76
"""Columns below which the terminal has paragraphs in place of tables: words would be broken."""

_TITLE = "# DiffuCoder's findings, measured again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Which model, told so that it can be had again."""

    role: str
    name: str
    parameters: int | None
    weights: str

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "model": self.name, "parameters": self.parameters, "weights": self.weights}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the page says."""

    tasks: str
    command: str
    """The line that makes the page."""

    models: Sequence[ModelFacts]
    outcomes: Sequence[Outcome]
    commands: Mapping[str, Sequence[str]]
    """By finding."""

    notes: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    """Title → path, as the page links it."""

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return {
            "tasks": self.tasks,
            "command": self.command,
            "models": [model.to_json() for model in self.models],
            "findings": [
                {**outcome.to_json(), "commands": list(self.commands.get(outcome.finding.name, ()))}
                for outcome in self.outcomes
            ],
            "notes": list(self.notes),
        }


def page(report: Report) -> str:
    """The page in Markdown."""
    return "\n".join(_page(report)) + "\n"


@dataclass(frozen=True, slots=True)
class _Fitting:
    """A table, or the same as paragraphs where the width has no room for it."""

    table: Table
    paragraphs: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= _NARROW:
            yield self.table
            return
        for number, paragraph in enumerate(self.paragraphs):
            if number:
                yield Text()
            yield Text(paragraph)


def table(report: Report) -> RenderableType:
    """The findings in the terminal."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("finding", "verdict", "here", "the paper"):
        shown.add_column(name, overflow="fold")
    for outcome in report.outcomes:
        shown.add_row(
            outcome.finding.name, outcome.verdict, clean(here(outcome)), clean(outcome.finding.paper), end_section=True
        )
    paragraphs = [
        f"{one.finding.name}: {one.verdict}\nhere: {clean(here(one))}\nthe paper: {clean(one.finding.paper)}"
        for one in report.outcomes
    ]
    return _Fitting(shown, paragraphs)


class Cost(Protocol):
    """What an experiment takes."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def num_answers(self) -> int: ...
    @property
    def num_kept(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def serves(self) -> Sequence[str]: ...


def cost_table(costs: Sequence[Cost]) -> RenderableType:
    """A plan in the terminal."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("experiment", "model"):
        shown.add_column(name, overflow="fold")
    for name in ("answers", "kept", "minutes"):
        shown.add_column(name, justify="right")
    shown.add_column("serves", overflow="fold")
    for cost in costs:
        counts = f"{cost.num_answers:,}", f"{cost.num_kept:,}", f"{cost.seconds / 60:.1f}"
        shown.add_row(cost.name, clean(cost.model), *counts, ", ".join(cost.serves))
    paragraphs = [
        f"{cost.name} ({clean(cost.model)})\n{cost.num_answers:,} answers, {cost.num_kept:,} kept, "
        f"{cost.seconds / 60:.1f} minutes\nserves {', '.join(cost.serves)}"
        for cost in costs
    ]
    return _Fitting(shown, paragraphs)


def here(outcome: Outcome) -> str:
    """The differences that decide, in short; or why there are none.

    >>> from unmask.analyze.findings import FINDINGS, Evidence, outcome
    >>> here(outcome(FINDINGS[0], Evidence(), missing={"temperature": "no model"}))
    'no model'
    """
    decisive = [one for one in outcome.measured.differences if one.claimed]
    if not decisive:
        return outcome.measured.why
    return "; ".join(f"{one.what}: {number(one.mean)}" for one in decisive)


def number(mean: Mean) -> str:
    """A mean and its interval.

    >>> number(Mean(value=-0.25, low=-0.5, high=0.125, count=9))
    '−0.250 (−0.500 to 0.125)'
    """
    if not isfinite(mean.value):
        return "no value"
    if not isfinite(mean.low):
        return f"{_signed(mean.value)} (no interval)"
    return f"{_signed(mean.value)} ({_signed(mean.low)} to {_signed(mean.high)})"


def _page(report: Report) -> Iterator[str]:
    yield _TITLE
    yield ""
    yield f"Made by `{report.command}`; tasks: {_cell(report.tasks)}."
    yield ""
    yield _RULE
    yield "| model | which | parameters | weights |"
    yield "| --- | --- | --- | --- |"
    for model in report.models:
        size = "unknown" if model.parameters is None else f"{model.parameters:,}"
        yield f"| `{_cell(model.name)}` | {model.role} | {size} | {model.weights} |"
    yield ""
    for note in report.notes:
        yield f"Note: {_cell(note)}."
        yield ""
    yield "| finding | the paper | here | verdict |"
    yield "| --- | --- | --- | --- |"
    for outcome in report.outcomes:
        finding = outcome.finding
        yield (
            f"| [{finding.name}](#{finding.name}): {_cell(finding.claim)} | {_cell(finding.paper)} | "
            f"{_cell(here(outcome))} | {outcome.verdict} |"
        )
    for outcome in report.outcomes:
        yield ""
        yield from _section(outcome, report.commands.get(outcome.finding.name, ()))
    if report.figures:
        yield ""
        yield "## Figures"
        for title, path in report.figures.items():
            yield ""
            yield f"![{_cell(title)}]({path})"


def _section(outcome: Outcome, commands: Sequence[str]) -> Iterator[str]:
    finding, measured = outcome.finding, outcome.measured
    yield f"## {finding.name}"
    yield ""
    yield f"{finding.claim} The paper: {finding.paper}."
    yield ""
    yield f"**{outcome.verdict.capitalize()}**, by the rule: {finding.rule}."
    if measured.why:
        yield ""
        yield f"Why: {measured.why}."
    if measured.differences or measured.levels:
        yield ""
        yield "| number | mean and interval | tasks | claimed |"
        yield "| --- | --- | --- | --- |"
        for one in measured.differences:
            side = f"{one.claimed} zero: {one.verdict}" if one.claimed else ""
            yield f"| {_cell(one.what)} | {number(one.mean)} | {one.mean.count} | {side} |"
        for shown in measured.levels:
            yield f"| {_cell(shown.what)} | {number(shown.mean)} | {shown.mean.count} | |"
    for note in measured.notes:
        yield ""
        yield note
    if commands:
        yield ""
        yield "```sh"
        yield from commands
        yield "```"


def _signed(value: float) -> str:
    text = f"{value:.3f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")  # no minus before nothing


def _cell(text: str) -> str:
    return clean(text).replace("|", "\\|")
