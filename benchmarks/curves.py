"""The curves of a training run as one SVG file: held-out loss over tokens, a panel for each stage.

    python benchmarks/curves.py runs/tiny --output curves.svg

Reads the `metrics.jsonl` of every stage; draws what the held-out evaluations found, and the training loss behind it as
dots. Dashes tell the twin from the model in greyscale too. Nothing but the standard library.
"""

import argparse
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 300, 200, 42


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One stage: (tokens in millions, nats) of training records and of held-out evaluations, and pass@1."""

    name: str
    training: list[tuple[float, float]]
    heldout: list[tuple[float, float]]
    solved: list[tuple[float, float]]


def read_curve(folder: Path) -> Curve:
    """The curve of a stage's folder."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]  # what has no line break is torn
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    per_step = settings["data"]["rows"] * settings["data"]["length"] / 1e6

    def points(name: str) -> list[tuple[float, float]]:
        return [(record["step"] * per_step, record[name]) for record in records if record.get(name) is not None]

    return Curve(
        name=folder.name, training=points("masked_ce"), heldout=points("heldout_nelbo"), solved=points("pass_at_1")
    )


def panel(curve: Curve, *, left: int, top: int) -> str:
    """One stage's axes, dots and line."""
    shown = [*curve.training[1:], *curve.heldout]  # the first record is the fall from chance
    if not shown:
        return ""
    last = max(x for x, _ in shown)
    low, high = min(y for _, y in shown), max(y for _, y in shown)
    span = max(high - low, 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        inner_width, inner_height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
        return left + MARGIN + x / last * inner_width, top + HEIGHT - MARGIN - (y - low) / span * inner_height

    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.4" class="dot"/>'
        for x, y in (place(*point) for point in curve.training[1:])
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve.heldout))
    final = f", held-out {curve.heldout[-1][1]:.3f}" if curve.heldout else ""
    solved = f", pass@1 {curve.solved[-1][1]:.0%}" if curve.solved else ""
    x0, y0 = left + MARGIN, top + HEIGHT - MARGIN
    return (
        f'<text x="{left + MARGIN}" y="{top + 18}" class="title">{html.escape(curve.name + final + solved)}</text>'
        f'<path d="M{x0} {top + MARGIN}V{y0}H{left + WIDTH - MARGIN}" class="axis"/>'
        f'<text x="{x0 - 4}" y="{top + MARGIN + 4}" class="tick" text-anchor="end">{high:.2f}</text>'
        f'<text x="{x0 - 4}" y="{y0}" class="tick" text-anchor="end">{low:.2f}</text>'
        f'<text x="{left + WIDTH - MARGIN}" y="{y0 + 14}" class="tick" text-anchor="end">{last:.1f} M tokens</text>'
        f'{dots}<polyline points="{line}" class="{"twin" if curve.name.startswith("twin") else "line"}"/>'
    )


def draw(curves: Sequence[Curve], *, columns: int = 2) -> str:
    """All stages in a grid."""
    rows = -(-len(curves) // columns)
    panels = "\n".join(
        panel(curve, left=number % columns * WIDTH, top=number // columns * HEIGHT)
        for number, curve in enumerate(curves)
    )
    style = (
        "text{font-family:sans-serif;font-size:10px;fill:#555}.title{font-size:12px;fill:#222}"
        ".axis{fill:none;stroke:#999}.dot{fill:#bbb}.line,.twin{fill:none;stroke:#222;stroke-width:1.8}"
        ".twin{stroke-dasharray:5 3}"
    )
    size = f'width="{columns * WIDTH}" height="{rows * HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect {size} fill="#fff"/>\n{panels}\n</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a run, with a folder for each stage")
    parser.add_argument("--output", type=Path, default=Path("curves.svg"))
    given = parser.parse_args()
    folders = [path.parent for path in given.run.glob("*/metrics.jsonl")]
    if not folders:
        parser.error(f"{given.run} holds no stage with a metrics.jsonl; give the folder of a run, as in runs/tiny")
    folders.sort(key=lambda folder: (folder / "metrics.jsonl").stat().st_ctime)
    given.output.write_text(draw([read_curve(folder) for folder in folders]), encoding="utf-8")


if __name__ == "__main__":
    main()
