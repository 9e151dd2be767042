"""The weights of a training checkpoint as a folder that every command reads.

    python benchmarks/step_weights.py runs/tiny_cpgrpo/cpgrpo/checkpoints/step-00000020 step-20

Config and tokenizer are those of `best/` or `final/` beside the checkpoints, whichever is there.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, help="folder of a step, in a stage's `checkpoints`")
    parser.add_argument("output", type=Path, help="a new folder")
    given = parser.parse_args()
    stage = given.checkpoint.resolve().parent.parent
    like = next((stage / name for name in ("best", "final") if (stage / name / "config.json").is_file()), None)
    if like is None:
        parser.error(f"{stage} has neither best/ nor final/, whose config and tokenizer are needed")
    if given.output.exists():
        parser.error(f"{given.output} is there already; give a new folder")
    with tempfile.TemporaryDirectory() as place:
        dcp_to_torch_save(given.checkpoint, f"{place}/step.pt")
        trained = torch.load(f"{place}/step.pt", weights_only=False)["model"]
    with safe_open(like / "model.safetensors", "pt") as file:
        names = list(file.keys())
    weights = {name: trained[name.replace("model.", "backbone.", 1)].contiguous() for name in names}
    shutil.copytree(like, given.output, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(weights, given.output / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
