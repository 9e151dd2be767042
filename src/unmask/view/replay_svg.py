"""A recorded run as an SVG figure for a paper: the canvas at some steps, one under the other, on white.

It says nothing by colour. A mask is `░`; what is new in a step stands white on black; a doubtful token is underlined,
an unlikely one bold as well; given text and the end are grey. The text stays text, set in the reader's monospace font;
each stretch states its width, so that columns stand whatever that font is.
"""

import re
from collections.abc import Iterator, Sequence
from html import escape

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from unmask.errors import SettingsError
from unmask.trajectory import Frame, Trajectory
from unmask.view.terminal import legend, printable, render

PANELS = 5
"""Steps that a figure shows, unless it is told which."""

_WIDTH, _HEIGHT, _BASELINE = 8.0, 18.0, 13.5  # of a character cell, in user units
_MARGIN, _GAP = 12.0, 12.0
_STYLE = (
    "text { font: 13px ui-monospace, 'SFMono-Regular', Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #111; "
    "white-space: pre; } .title { font-weight: bold; } .dim { fill: #6b6b6b; } .reverse { fill: #fff; } "
    ".bold { font-weight: bold; } .underline { text-decoration: underline; } .back { fill: #222; } "
    ".page { fill: #fff; } .rule { stroke: #b0b0b0; stroke-width: 1; }"
)
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def spread(last: int, *, panels: int = PANELS) -> list[int]:
    """Steps from 0 to `last`, evenly spread, each once.

    >>> spread(10), spread(2)
    ([0, 2, 5, 8, 10], [0, 1, 2])
    """
    return sorted({round(last * part / (panels - 1)) for part in range(panels)})


def figure(run: Trajectory, *, steps: Sequence[int] | None = None, columns: int = 80) -> str:
    """The whole file; `columns` are the characters after which a line is broken.

    Raises TrajectoryError for a step that the run does not have.
    """
    if columns < 1:
        raise SettingsError(f"{columns} columns were asked for; a line holds at least 1 character")
    last = len(run.steps)
    chosen = spread(last) if steps is None else list(steps)
    for step in chosen:
        run.ids_at(step)
    frames = {frame.step: frame for frame in run.frames() if frame.step in chosen}
    panels = [(f"step {step} of {last}", _lines(frames[step], run, columns)) for step in chosen]
    explained = _wrapped_legend(columns, with_end=bool(run.end_ids))
    return _document(panels, explained, title=f"{run.model or 'a model'}, {last} steps")


def _lines(frame: Frame, run: Trajectory, columns: int) -> list[Text]:
    text = render(frame, run.pieces, width=columns, end_ids=run.end_ids, colour=False)
    return list(text.split("\n", allow_blank=True))


def _wrapped_legend(columns: int, *, with_end: bool) -> list[Text]:
    """The legend on as many lines as it needs: each of its spans is an entry."""
    lines: list[Text] = []
    whole = legend(colour=False, with_end=with_end)
    for entry in (whole[span.start : span.end] for span in whole.spans):
        if lines and lines[-1].cell_len + 3 + entry.cell_len <= max(columns, 40):
            lines[-1].append("   ").append_text(entry)
        else:
            lines.append(entry.copy())
    return lines


def _document(panels: Sequence[tuple[str, Sequence[Text]]], explained: Sequence[Text], *, title: str) -> str:
    body: list[str] = []
    top = _MARGIN
    for number, (heading, lines) in enumerate(panels):
        if number:
            body.append(f'<line class="rule" x1="{_MARGIN:g}" x2="100%" y1="{top:g}" y2="{top:g}"/>')
            top += _GAP
        body.extend(_line(Text(heading), top, kind="title"))
        for row, line in enumerate(lines, start=1):
            body.extend(_line(line, top + row * _HEIGHT))
        top += (len(lines) + 1) * _HEIGHT + _GAP
    for row, line in enumerate(explained):
        body.extend(_line(line, top + row * _HEIGHT))
    height = top + len(explained) * _HEIGHT + _MARGIN
    drawn = [line for _, lines in panels for line in lines] + list(explained) + [Text(head) for head, _ in panels]
    width = 2 * _MARGIN + _WIDTH * max(line.cell_len for line in drawn)
    said = escape(_NO_XML.sub("\ufffd", printable(title)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img">\n<title>{said}</title>\n<style>{_STYLE}</style>\n'
        '<rect class="page" width="100%" height="100%"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _line(line: Text, top: float, *, kind: str = "") -> Iterator[str]:
    """The stretches of one line that look alike."""
    column = 0
    for chunk, style in _stretches(line):
        size = cell_len(chunk)
        x, width = _MARGIN + column * _WIDTH, size * _WIDTH
        column += size
        if style.reverse and size:
            yield f'<rect class="back" x="{x:g}" y="{top:g}" width="{width:g}" height="{_HEIGHT:g}"/>'
        if not chunk.strip(" "):
            continue
        looks = [name for name in ("bold", "dim", "reverse", "underline") if getattr(style, name)]
        look = " ".join([kind] * bool(kind) + looks)
        yield (
            f'<text{f" class={chr(34)}{look}{chr(34)}" if look else ""} x="{x:g}" y="{top + _BASELINE:g}" '
            f'textLength="{width:g}" lengthAdjust="spacingAndGlyphs" xml:space="preserve">'
            f"{escape(_NO_XML.sub(chr(0xFFFD), chunk), quote=False)}</text>"
        )


def _stretches(line: Text) -> Iterator[tuple[str, Style]]:
    """The text in pieces of one style; the spans of `render` do not overlap."""
    place = 0
    for span in sorted(line.spans):
        if place < span.start:
            yield line.plain[place : span.start], Style()
        yield line.plain[span.start : span.end], Style.parse(str(span.style))
        place = span.end
    if place < len(line.plain):
        yield line.plain[place:], Style()
