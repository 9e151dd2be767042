"""Analyses as tables in the terminal: AR-ness, when kinds of tokens settle, and the entropy sink.

Each group has a column; many groups have a row each, and columns of fewer k. Where there is no room for that, groups
come in parts. An interval stands in small behind its mean, as in `0.62 ±0.04`: half its width, 95 % bootstrap.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from unmask.analyze.bootstrap import Mean
from unmask.analyze.groups import Analysis
from unmask.analyze.measure import Summary
from unmask.view.evaluation import clean

_LOCAL_KS, _GLOBAL_KS = (1, 2, 4, 8), (1, 2, 4)  # of those that were measured, the ones that a table has room for
_DISTANCES = (1, 2, 3, 5, 9, 17, 33, 65)
_FEW_KS = (1, 4)
_MOST_COLUMNS = 6
"""Groups beyond which they stand in rows."""

_NO_VALUE = "–"


def report(analyses: Sequence[Analysis]) -> RenderableType:
    """All tables, and what to know beside them."""
    parts: list[RenderableType] = [_orders(analyses), Text()]
    if any(analysis.settle_times.rows for analysis in analyses):
        parts += [_syntax(analyses), Text()]
    if any(analysis.sink is not None and analysis.sink.points for analysis in analyses):
        parts += [_sinks(analyses), Text()]
    parts += [Text(note) for note in notes(analyses)]
    return Group(*parts)


def notes(analyses: Sequence[Analysis]) -> Iterator[str]:
    """What a reader must know, one sentence each."""
    conventions = analyses[0].summary.conventions
    of = {"T-k": "the steps that have k before them", "T": "all steps"}[conventions.to_json()["denominator"]]
    part = {
        "answer": "the answer, without its end token and what settled behind it",
        "end": "the end token and what settled behind it",
        "all": "everything that settled",
    }[conventions.part]
    ties = {"position": "from left to right", "confidence": "the surest first"}[conventions.ties]
    yield f"AR-ness: 1 is left to right; local is a share of {of}; within a step {ties}; of {part}."
    for analysis in analyses:
        about = clean(analysis.label)
        if analysis.summary.num_empty:
            yield f"{about}: {analysis.summary.num_empty} runs settled nothing that is measured, and are left out."
        for reason, count in sorted(analysis.settle_times.reasons.items(), key=lambda item: (-item[1], item[0]))[:3]:
            yield f"{about}: {count} answers have no syntax classes ({clean(reason)})."
        if analysis.sink is None:
            yield f"{about}: the runs do not say what the network had in its first step, so there is no entropy sink."
        elif analysis.num_narrow:
            yield (
                f"{about}: the first step of {analysis.num_narrow} runs saw only the places that it settled, and the "
                "entropy sink has no more of them."
            )


def _orders(analyses: Sequence[Analysis]) -> "_Grid":
    is_wide = len(analyses) > _MOST_COLUMNS
    local_ks, global_ks = (_FEW_KS, _FEW_KS) if is_wide else (_LOCAL_KS, _GLOBAL_KS)
    rows: list[tuple[str, Callable[[Summary], Mean | None]]] = [
        *((f"local AR-ness@{k}", lambda found, k=k: found.local.get(k)) for k in local_ks),
        *((f"global AR-ness@{k}", lambda found, k=k: found.global_.get(k)) for k in global_ks),
        ("neighbours in order", lambda found: found.pairwise_local),
        ("all pairs in order", lambda found: found.pairwise_global),
        ("end token settled at", lambda found: found.end_settled_at),
        ("tokens per forward", lambda found: found.tokens_per_forward),
    ]
    shown_rows = {name: [shown(pick(analysis.summary)) for analysis in analyses] for name, pick in rows}
    return _table("order", analyses, {"runs": [str(one.summary.num_runs) for one in analyses], **shown_rows})


def _syntax(analyses: Sequence[Analysis]) -> "_Grid":
    times = [{row.name: row.settle_time for row in analysis.settle_times.rows} for analysis in analyses]
    names = dict.fromkeys(name for found in times for name in found)
    rows: dict[str, list[str]] = {name: [shown(found.get(name)) for found in times] for name in names}
    return _table("settled after (share of the run)", analyses, rows)


def _sinks(analyses: Sequence[Analysis]) -> "_Grid":
    curves = [
        {point.distance: point.confidence for point in analysis.sink.points} if analysis.sink is not None else {}
        for analysis in analyses
    ]
    known = sorted({distance for curve in curves for distance in curve})
    distances = [distance for distance in _DISTANCES if distance in known] or known[: len(_DISTANCES)]
    rows = {str(distance): [shown(curve.get(distance)) for curve in curves] for distance in distances}
    return _table("confidence in the first step, by distance", analyses, rows)


def shown(mean: Mean | None) -> str:
    """A mean with half the width of its interval.

    >>> shown(Mean(value=0.5, low=0.4, high=0.62, count=9)), shown(None)
    ('0.500 ±0.110', '–')
    """
    if mean is None or isnan(mean.value):
        return _NO_VALUE
    value = f"{mean.value:.3f}"
    return value if isnan(mean.low) else f"{value} ±{(mean.high - mean.low) / 2:.3f}"


@dataclass(frozen=True, slots=True)
class _Grid:
    """Rows of figures with a column per group, turned over for many groups; in parts where the width has no room for
    all of them, so that no figure and no word is broken."""

    what: str
    labels: Sequence[str]
    rows: Mapping[str, Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = self._upright() if len(self.labels) <= _MOST_COLUMNS else self._turned()
        if _fits(whole, console, options):
            yield whole
            return
        for size in range(len(self.labels), 0, -1):
            parts = [self._part(at, at + size)._upright() for at in range(0, len(self.labels), size)]
            if size == 1 or all(_fits(part, console, options) for part in parts):
                for number, part in enumerate(parts):
                    yield from ((Text(), part) if number else (part,))
                return

    def _part(self, start: int, stop: int) -> "_Grid":
        rows = {name: values[start:stop] for name, values in self.rows.items()}
        return _Grid(self.what, self.labels[start:stop], rows)

    def _upright(self) -> Table:
        table = self._empty()
        for label in self.labels:
            table.add_column(Text(label), justify="right", overflow="fold")
        for name, values in self.rows.items():
            table.add_row(name, *values)
        return table

    def _turned(self) -> Table:
        table = self._empty()
        for name in self.rows:
            table.add_column(name, justify="right", overflow="fold")
        for at, label in enumerate(self.labels):
            table.add_row(Text(label), *(values[at] for values in self.rows.values()))
        return table

    def _empty(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(self.what, overflow="fold")
        return table


def _fits(table: Table, console: Console, options: ConsoleOptions) -> bool:
    """Whether a table breaks no word."""
    return Measurement.get(console, options.update(max_width=10_000), table).minimum <= options.max_width


def _table(what: str, analyses: Sequence[Analysis], rows: Mapping[str, Sequence[str]]) -> _Grid:
    return _Grid(what, [clean(analysis.label) for analysis in analyses], rows)
