"""One full-canvas denoising step: `FullDenoiser` against the same forward in `transformers`.

The twin runs the same weights with an all-visible mask and gives logits at every position, as the released samplers do;
`unmask` gives them where the canvas is masked. "half masked" is a step in the middle of a run.
"""

import argparse
from pathlib import Path

import torch

from unmask.decode.canvas import Canvas
from unmask.decode.denoiser import FullDenoiser
from unmask.model.config import Override

from side_by_side import interleave, ratio, report
from weights import both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--random", action="store_true", help="random weights of the same shape")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    ours, theirs = both(random=options.random, dtype=getattr(torch, options.dtype))
    mask_id = ours.config.vocab_size - 1
    ours.config = ours.config.with_override(Override(attention="full", mask_id=mask_id))
    length = options.prompt + options.new
    visible = torch.zeros(1, 1, length, length, dtype=getattr(torch, options.dtype))
    rows = []
    for batch in options.batches:
        for state, masked in (("all masked", options.new), ("half masked", options.new // 2)):
            known = list(range(1000, 1000 + length - masked))
            canvas = Canvas.from_rows([[*known, *[None] * masked]] * batch, mask_id=mask_id)

            def run_ours() -> None:
                for _ in FullDenoiser(ours).logits(canvas, canvas.masked()):
                    pass

            def run_theirs() -> None:
                with torch.inference_mode():
                    theirs(canvas.ids_BL, attention_mask=visible.expand(batch, -1, -1, -1), use_cache=False)

            seconds = interleave({"unmask": run_ours, "transformers": run_theirs}, repeats=options.repeats)
            rows.append(
                {
                    "batch": batch,
                    "canvas": state,
                    "unmask s": min(seconds["unmask"]),
                    "transformers s": min(seconds["transformers"]),
                    "ratio of medians": ratio(seconds, "unmask", "transformers"),
                }
            )
    report(f"full-canvas step, {options.prompt} + {options.new} positions, {options.dtype}", rows, to=options.json)


if __name__ == "__main__":
    main()
