"""An evaluation as one HTML file: protocol, scores, failures by kind, the prompt, and samples beside their errors.

The file needs no network and no script, reads in dark and in light, and never says a thing by colour alone. Everything
in it that comes from a model, a file or a program is hostile text: it is escaped, its control characters are made
visible, and the page forbids scripts and requests in its own policy. Long texts and long lists are cut, and say so.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from unmask.evaluate.result import CellResult, Result
from unmask.evaluate.samples import Sample
from unmask.evaluate.score import Outcome
from unmask.view.evaluation import KINDS, clean, heading, mark, notes, number, percent

MAX_TEXT = 8_000
"""Characters of one program or output."""

MAX_MESSAGE = 2_000
MAX_FAILURES = 500
"""Failing samples shown for each cell."""


def page(result: Result, samples: Sequence[Sample] = ()) -> str:
    """The whole file. `samples` are those of the result; a failing sample that is not among them is shown without its
    program."""
    title = text(heading(result))
    by_key = {(sample.cell, sample.task_id, sample.sample): sample for sample in samples}
    body = "\n".join(
        [
            f"<header><h1>{title}</h1>{_headline(result)}</header>",
            f"<section><h2>Scores</h2>{_scores(result)}{_notes(result)}</section>",
            f"<section><h2>How samples ended</h2>{_endings(result)}</section>",
            f"<section><h2>Cost</h2>{_costs(result)}</section>",
            f"<section><h2>Protocol</h2>{_protocol(result)}</section>",
            f"<section><h2>First prompt and first raw outputs</h2>{_first(result)}</section>",
            *(
                f"<section><h2>{_failures_title(result, cell)}</h2>{_failures(cell, by_key)}</section>"
                for cell in result.cells
            ),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def text(given: object, *, limit: int = MAX_TEXT) -> str:
    """Hostile text as HTML text.

    >>> text("<b>\\x1b")
    '&lt;b&gt;␛'
    """
    whole = clean(str(given))
    left = len(whole) - limit
    shown = whole if left <= 0 else f"{whole[:limit]}\n… {left:,} more characters"
    return escape(shown)


def _headline(result: Result) -> str:
    main = result.main
    low, high = main.interval
    k = next(iter(main.pass_at_k))
    label = f"pass@{k}" + (f", {mark(result, main)}" if mark(result, main) else "")
    return (
        f'<p class="score"><strong>{percent(main.score)}</strong> {text(label)} '
        f"<span>95 % interval {100 * low:.1f} to {100 * high:.1f}</span></p>"
    )


def _scores(result: Result) -> str:
    main = result.main
    head = ["cell", *(f"pass@{k}" for k in main.pass_at_k), ""]
    if len(main.sets) > 1:
        head += [f"{name} alone @{k}" for name, scores in main.sets.items() for k in scores]
    if main.raw_pass_at_k is not None:
        head += [f"raw text @{k}" for k in main.raw_pass_at_k]
    rows = []
    for cell in result.cells:
        said = mark(result, cell)
        row = [text(cell.name) + (f" <em>{text(said)}</em>" if said else "")]
        for k, score in cell.pass_at_k.items():
            low, high = cell.intervals[k]
            row.append(f"{percent(score)} <small>{100 * low:.1f} to {100 * high:.1f}</small>")
        row.append(_bar(cell))
        if len(main.sets) > 1:
            row += [percent(scores[k]) for scores in cell.sets.values() for k in scores]
        if cell.raw_pass_at_k is not None:
            row += [percent(score) for score in cell.raw_pass_at_k.values()]
        rows.append(row)
    return _table(head, rows)


def _bar(cell: CellResult) -> str:
    """Score and interval on a line from 0 to 100 %."""
    low, high = (100 * end for end in cell.interval)
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="score and interval">'
        '<rect class="track" width="100" height="8"/>'
        f'<rect class="spread" x="{low:.1f}" width="{max(0.5, high - low):.1f}" height="8"/>'
        f'<rect class="point" x="{min(99.0, 100 * cell.score):.1f}" width="1" height="8"/></svg>'
    )


def _notes(result: Result) -> str:
    return "<ul>" + "".join(f"<li>{text(note)}</li>" for note in notes(result)) + "</ul>"


def _endings(result: Result) -> str:
    kinds = [kind for kind in KINDS if any(kind in cell.statuses for cell in result.cells)]
    rows = []
    for cell in result.cells:
        counts = [cell.statuses.get(kind, 0) for kind in kinds]
        rows.append([text(cell.name), *(f"{n} <small>{percent(n / cell.num_samples)}</small>" for n in counts)])
    return _table(["cell", *(KINDS[kind] for kind in kinds)], rows)


def _costs(result: Result) -> str:
    head = ["cell", "forwards per sample", "tokens per forward", "tokens per sample", "wasted per sample"]
    head += ["seconds", "tokens/s", "empty", "truncated", "ended by the model", "cut at a stop string"]
    rows = []
    for cell in result.cells:
        cost, times = cell.cost, result.timing.get(cell.name, {})
        figures = [cost.num_forwards, cost.tokens_per_forward, cost.num_tokens, cost.wasted_tokens]
        figures += [times.get("seconds"), times.get("tokens_per_second")]
        shares = [cost.empty_share, cost.truncated_share, cost.ended_share, cost.cut_share]
        rows.append([text(cell.name), *map(number, figures), *map(percent, shares)])
    return _table(head, rows)


def _protocol(result: Result) -> str:
    facts: dict[str, Any] = {
        "benchmark": f"{result.benchmark} {result.version}",
        "data": "\n".join(f"{file}  sha256 {digest}" for file, digest in result.data_sha256.items()),
        "model": result.model,
        "preset": _listing(result.preset),
        "seed": result.seed,
        "samples per task": result.n,
        "sandbox": _listing(result.sandbox),
        "versions": _listing(result.versions),
        "everything that the samples depend on": _listing(result.protocol),
    }
    facts |= {f"settings of {cell.name}": _listing(cell.settings) for cell in result.cells}
    rows = [[f"<b>{text(name)}</b>", f"<pre>{text(value)}</pre>"] for name, value in facts.items() if value != ""]
    return _table([], rows, kind="facts")


def _listing(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {_plain(value)}" for name, value in facts.items() if value not in (None, "", [], {}, ()))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_plain(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _first(result: Result) -> str:
    if not result.first_prompt and not result.first_outputs:
        return "<p>The samples were given; what the model was asked is not known.</p>"
    parts = [f"<h3>Prompt</h3><pre>{text(result.first_prompt)}</pre>"] if result.first_prompt else []
    for index, output in enumerate(result.first_outputs, 1):
        parts.append(f"<h3>Output {index}</h3><pre>{text(output) or '(empty)'}</pre>")
    return "".join(parts)


def _failures_title(result: Result, cell: CellResult) -> str:
    where = f", {text(cell.name)}" if len(result.cells) > 1 else ""
    return f"Samples that do not pass{where}"


def _failures(cell: CellResult, samples: Mapping[tuple[str, str, int], Sample]) -> str:
    failed = [(task_id, o) for task_id, found in cell.tasks.items() for o in found if not o.passed]
    if not failed:
        return "<p>None.</p>"
    shown = failed[:MAX_FAILURES]
    parts = list(_failure_entries(shown, cell, samples))
    if len(failed) > len(shown):
        parts.append(f"<p>… {len(failed) - len(shown):,} more are in result.json.</p>")
    return "".join(parts)


def _failure_entries(
    failed: Sequence[tuple[str, Outcome]], cell: CellResult, samples: Mapping[tuple[str, str, int], Sample]
) -> Iterator[str]:
    for task_id, outcome in failed:
        sample = samples.get((cell.name, task_id, outcome.sample))
        name = f"{task_id} #{outcome.sample}" if len(cell.tasks[task_id]) > 1 else task_id
        message = text(outcome.message, limit=MAX_MESSAGE)
        first_line = message.partition("\n")[0][:160]
        program = f"<pre>{text(sample.program)}</pre>" if sample else "<p>The program is not at hand.</p>"
        raw = f"<details><summary>raw output</summary><pre>{text(sample.raw)}</pre></details>" if sample else ""
        yield (
            f'<details class="sample"><summary><b>{text(name)}</b> <i>{KINDS[outcome.status]}</i> '
            f'<code>{first_line}</code></summary><div class="pair"><div><h4>Program</h4>{program}</div>'
            f"<div><h4>Error</h4><pre>{message or '(no message)'}</pre></div></div>{raw}</details>\n"
        )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "figures") -> str:
    """Cells are HTML already."""
    top = "<thead><tr>" + "".join(f"<th>{text(name)}</th>" for name in head) + "</tr></thead>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


POLICY = "default-src 'none'; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #595959; --page: #fff; --panel: #f3f3f3; --line: #c8c8c8;
  --spread: #9a9a9a; --point: #111; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a8a8a8; --page: #161616; --panel: #222;
  --line: #444; --spread: #777; --point: #fff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.5rem; color: var(--ink); background: var(--page);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3, h4 { font-size: .95rem; margin: .8rem 0 .3rem; }
.score strong { font-size: 2rem; } .score span, small, em { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); }
.figures td:not(:first-child), .figures th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.facts pre { margin: 0; padding: 0; background: none; border: 0; }
.bar { width: 9rem; height: .7rem; } .track { fill: var(--panel); } .spread { fill: var(--spread); }
.point { fill: var(--point); }
pre { margin: 0; padding: .6rem .8rem; background: var(--panel); border: 1px solid var(--line); border-radius: 4px;
  overflow: auto; max-height: 32rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.45 ui-monospace, monospace; }
code { font: 13px ui-monospace, monospace; color: var(--soft); overflow-wrap: anywhere; }
details.sample { border-bottom: 1px solid var(--line); padding: .25rem 0; } summary { cursor: pointer; }
.pair { display: grid; grid-template-columns: 3fr 2fr; gap: 1rem; margin: .4rem 0 .6rem; }
.pair > div { min-width: 0; }
@media (max-width: 50rem) { .pair { grid-template-columns: 1fr; } }
"""
