"""What a step does with the scores of its open places, in pieces that a cache holds against all at once."""

import argparse
from pathlib import Path

import torch

from unmask.decode import policy
from unmask.decode.settings import DecodeSettings

from side_by_side import interleave, ratio, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for vocabulary, counts in ((152_000, (1, 8, 32, 128)), (4096, (32, 128, 768))):
        for count in counts:
            for temperature in (0.0, 0.7):
                settings = DecodeSettings(temperature=temperature)
                logits, uniform = torch.randn(count, vocabulary).bfloat16(), torch.rand(count)

                def pieces(logits=logits, uniform=uniform, settings=settings):
                    return policy.propose(logits, settings, uniform_C=uniform)

                def whole(logits=logits, uniform=uniform, settings=settings):
                    return policy._propose(logits, settings, uniform_C=uniform, runners_up=0)

                seconds = interleave({"pieces": pieces, "whole": whole}, repeats=options.repeats)
                rows.append(
                    {
                        "vocabulary": vocabulary,
                        "places": count,
                        "temperature": temperature,
                        "pieces ms": 1000 * min(seconds["pieces"]),
                        "whole ms": 1000 * min(seconds["whole"]),
                        "ratio of medians": ratio(seconds, "pieces", "whole"),
                        "same bits": all(
                            torch.equal(getattr(pieces(), name), getattr(whole(), name))
                            for name in ("token_M", "confidence_M", "entropy_M", "tie_M")
                        ),
                    }
                )
    report("proposals", rows, to=options.json)


if __name__ == "__main__":
    main()
