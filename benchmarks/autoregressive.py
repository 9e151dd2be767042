"""Greedy autoregressive decoding with a cache: `denoise` on a causal model against `transformers`' `generate`.

Both decode the same number of tokens from the same prompts with the same weights; nobody stops early. The floor at
batch 1 is the time to read the weights once per token.
"""

import argparse
import random
from pathlib import Path

import torch

from unmask.decode.canvas import Canvas
from unmask.decode.denoiser import CachedDenoiser
from unmask.decode.loop import denoise
from unmask.decode.settings import DecodeSettings

from side_by_side import interleave, ratio, report
from weights import both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--new", type=int, default=64, help="new tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--random", action="store_true", help="random weights of the same shape")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    ours, theirs = both(random=options.random, dtype=getattr(torch, options.dtype))
    rows = []
    for batch in options.batches:
        chance = random.Random(batch)
        prompts = [[chance.randrange(1000, 50_000) for _ in range(options.prompt)] for _ in range(batch)]
        found: dict[str, list[list[int]]] = {}

        def run_ours() -> None:
            canvas = Canvas.from_rows([[*prompt, *[None] * options.new] for prompt in prompts], mask_id=None)
            for _ in denoise(CachedDenoiser(ours), canvas, DecodeSettings()):
                pass
            found["unmask"] = canvas.ids_BL[:, options.prompt :].tolist()

        def run_theirs() -> None:
            ids = torch.tensor(prompts)
            with torch.inference_mode():
                out = theirs.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=options.new,
                    min_new_tokens=options.new,
                    pad_token_id=0,
                )
            found["transformers"] = out[:, options.prompt :].tolist()

        seconds = interleave({"unmask": run_ours, "transformers": run_theirs}, repeats=options.repeats)
        agree = sum(
            one == two
            for row_one, row_two in zip(found["unmask"], found["transformers"], strict=True)
            for one, two in zip(row_one, row_two, strict=True)
        )
        rows.append(
            {
                "batch": batch,
                "unmask tok/s": batch * options.new / min(seconds["unmask"]),
                "transformers tok/s": batch * options.new / min(seconds["transformers"]),
                "ratio of medians": ratio(seconds, "unmask", "transformers"),
                "equal tokens": f"{agree}/{batch * options.new}",
            }
        )
    report(f"greedy decoding, {options.prompt} + {options.new} tokens, {options.dtype}", rows, to=options.json)


if __name__ == "__main__":
    main()
