"""An evaluation in the terminal: scores and how sure they are, what they cost, how answers failed, and what to know.

`summary` and `differences` return what rich prints; nothing here knows a model. Text that a model or a file brought
along has its control characters made visible.
"""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unmask.evaluate.compare import Comparison
from unmask.evaluate.result import CellResult, Result, selection_note
from unmask.view.terminal import printable

KINDS = {
    "pass": "passed",
    "fail": "wrong answer",
    "syntax_error": "does not parse",
    "timeout": "out of time",
    "memory": "out of memory",
    "output": "too much output",
    "crash": "crashed",
    "sandbox_error": "not judged",
}
"""How a sample ended, in words."""

_SHOWN = 12  # task names in a list


def summary(result: Result) -> RenderableType:
    """The report of a run."""
    parts: list[RenderableType] = [Text(heading(result), style="bold"), scores(result), Text()]
    if any(cell.cost.num_forwards is not None for cell in result.cells):
        parts += [_costs(result), Text()]
    parts += [_endings(result), Text()]
    parts += [Text(note) for note in notes(result)]
    return Group(*parts)


def heading(result: Result) -> str:
    """What was run on what, in one line."""
    version = f" {result.version}" if result.version else ""
    samples = "1 sample" if result.n == 1 else f"{result.n} samples"
    preset = f", preset {result.preset['name']}" if result.preset.get("name") else ""
    return clean(f"{result.benchmark}{version}: {result.model}, {result.num_tasks} tasks × {samples}{preset}")


def notes(result: Result) -> Iterator[str]:
    """What a reader must know beside the figures, one sentence each."""
    main = result.main
    if len(result.cells) > 1:
        if result.registered is None:
            yield f"no cell was registered before the run; the result quotes the first one, {main.name}"
        else:
            yield f"registered before the run: {main.name}"
        yield f"best: {result.best.name} with {percent(result.best.score)} ({selection_note(result)})"
    backend = str(result.sandbox.get("backend", ""))
    if backend:
        guarantees = ", ".join(str(guarantee) for guarantee in result.sandbox.get("guarantees", ()))
        yield f"judged by {backend} on {result.sandbox.get('interpreter', 'Python')}" + (
            f": {guarantees}" if guarantees else ""
        )
    outcomes = [outcome for cell in result.cells for found in cell.tasks.values() for outcome in found]
    if any(outcome.is_in_process for outcome in outcomes):
        yield "weaker verdicts: these tests run inside the program's own process, where it could tamper with them"
    if tampered := sum(bool(outcome.tampering) for outcome in outcomes):
        yield f"{tampered} samples were caught tampering with their tests and do not pass"
    if lost := result.not_judged:
        names = _names(list(dict.fromkeys(task_id for _, task_id, _ in lost)))
        reason = clean(lost[0][2].message)
        yield f"NOT JUDGED: {len(lost)} samples are left out of the scores ({reason}); tasks: {names}"
    if raw_lost := sum(cell.raw_not_judged for cell in result.cells):
        yield f"NOT JUDGED: {raw_lost} texts as they stand are left out of the scores of the raw text"
    yield from (clean(note) for note in result.notes)


def differences(comparison: Comparison) -> RenderableType:
    """The report of two runs beside each other, B against A."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "model", "cell", "pass@1"):
        table.add_column(column, justify="right" if column == "pass@1" else "left")
    sides = (
        ("A", comparison.model_a, comparison.cell_a, comparison.pass_at_1_a),
        ("B", comparison.model_b, comparison.cell_b, comparison.pass_at_1_b),
    )
    for side, model, cell, score in sides:
        table.add_row(side, Text(clean(model)), Text(clean(cell)), percent(score))
    low, high = comparison.interval
    lines = [
        f"B − A: {100 * comparison.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), "
        f"p = {comparison.p_value:.3g} ({comparison.test}, {comparison.num_tasks} tasks)",
        f"both whole: {comparison.both}; neither: {comparison.neither}",
        f"better in A ({len(comparison.better_a)}): {_names(comparison.better_a, shown=None)}",
        f"better in B ({len(comparison.better_b)}): {_names(comparison.better_b, shown=None)}",
    ]
    if comparison.not_compared:
        lines.append(f"not compared, as only one of them has it: {_names(comparison.not_compared)}")
    return Group(Text(f"{comparison.benchmark}, task by task", style="bold"), table, *(Text(line) for line in lines))


def clean(text: str) -> str:
    """Text of unknown origin, made fit to be printed: control characters visible, lone surrogates replaced.

    >>> clean("a\\x1b\\ud800")
    'a␛?'
    """
    return printable(text.encode("utf-8", "replace").decode("utf-8"))


def percent(share: float | None) -> str:
    """A share in per cent, a dash where it is unknown.

    >>> percent(0.7317)
    '73.2 %'
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """A figure in three digits, or whole; a dash where it is unknown.

    >>> number(1234.5), number(2.345), number(None)
    ('1,234', '2.35', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def mark(result: Result, cell: CellResult) -> str:
    """What a cell of a grid is beside its figures."""
    if len(result.cells) == 1:
        return ""
    marks = ["registered"] if cell.name == result.registered else []
    marks += ["best, selected"] if cell.name == result.best.name else []
    return ", ".join(marks)


def scores(result: Result) -> Table:
    main = result.main
    table = _table("cell", *_score_columns(main))
    for cell in result.cells:
        name = cell.name + (f" ({mark(result, cell)})" if mark(result, cell) else "")
        values = []
        for k, score in cell.pass_at_k.items():
            low, high = cell.intervals[k]
            values.append(f"{percent(score)} ({100 * low:.1f} to {100 * high:.1f})")
        if len(main.sets) > 1:
            values += [percent(scores[k]) for scores in cell.sets.values() for k in scores]
        if cell.raw_pass_at_k is not None:
            values += [percent(score) for score in cell.raw_pass_at_k.values()]
        table.add_row(Text(name), *values)
    return table


def _score_columns(main: CellResult) -> list[str]:
    columns = [f"pass@{k}" for k in main.pass_at_k]
    if len(main.sets) > 1:
        columns += [f"{name} alone @{k}" for name, scores in main.sets.items() for k in scores]
    if main.raw_pass_at_k is not None:
        columns += [f"raw text @{k}" for k in main.raw_pass_at_k]
    return columns


def _costs(result: Result) -> Table:
    columns = (
        "forwards",
        "tokens per forward",
        "tokens",
        "wasted",
        "s per sample",
        "tokens/s",
        "empty",
        "truncated",
        "ended",
        "at stop string",
    )
    table = _table("cost per sample", *columns)
    for cell in result.cells:
        cost, times = cell.cost, result.timing.get(cell.name, {})
        figures = [cost.num_forwards, cost.tokens_per_forward, cost.num_tokens, cost.wasted_tokens]
        seconds = times["seconds"] / cell.num_samples if "seconds" in times else None
        shares = [cost.empty_share, cost.truncated_share, cost.ended_share, cost.cut_share]
        values = [*map(number, [*figures, seconds, times.get("tokens_per_second")]), *map(percent, shares)]
        table.add_row(Text(cell.name), *values)
    return table


def _endings(result: Result) -> Table:
    kinds = [kind for kind in KINDS if any(kind in cell.statuses for cell in result.cells)]
    table = _table("how samples ended", *(KINDS[kind] for kind in kinds))
    for cell in result.cells:
        table.add_row(Text(cell.name), *(str(cell.statuses.get(kind, 0)) for kind in kinds))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _names(names: "list[str] | tuple[str, ...]", *, shown: int | None = _SHOWN) -> str:
    listing = ", ".join(clean(name) for name in names[:shown]) or "none"
    return listing if shown is None or len(names) <= shown else f"{listing} and {len(names) - shown} more"
