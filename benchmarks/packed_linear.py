"""Plain against packed bfloat16 weights (`unmask.model.packed`), for the shapes of the 0.5B model."""

import argparse
from pathlib import Path

import torch
from torch import nn

from unmask.model.packed import PackedLinear

from side_by_side import interleave, ratio, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for in_features, out_features, copies in ((896, 896, 24), (896, 4864, 24), (4864, 896, 24), (896, 151936, 1)):
        plain = [nn.Linear(in_features, out_features, bias=False, dtype=torch.bfloat16) for _ in range(copies)]
        packed = [PackedLinear(layer) for layer in plain]
        for positions in (1, 4, 16, 128, 384):
            x = torch.randn(positions, in_features, dtype=torch.bfloat16)
            with torch.inference_mode():
                seconds = interleave(
                    {"packed": lambda: [f(x) for f in packed], "plain": lambda: [f(x) for f in plain]},
                    repeats=options.repeats,
                )
                same = torch.equal(packed[0](x), plain[0](x))
            rows.append(
                {
                    "shape": f"{in_features} -> {out_features}",
                    "positions": positions,
                    "packed ms": 1000 * min(seconds["packed"]) / copies,
                    "plain ms": 1000 * min(seconds["plain"]) / copies,
                    "ratio of medians": ratio(seconds, "packed", "plain"),
                    "same bits": same,
                }
            )
    report("packed linear layers, bfloat16", rows, to=options.json)


if __name__ == "__main__":
    main()
