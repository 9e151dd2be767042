"""Peak resident memory of loading a sharded bfloat16 checkpoint, against its size.

Makes a random checkpoint of about `--gigabytes` in shards, loads it in a fresh process, and reads that process's peak
resident set. The bar is 1.15 times the checkpoint plus 400 MB.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from unmask.model.backbone import Backbone
from unmask.model.checkpoint import save_folder

from side_by_side import report
from weights import QWEN_0_5B

LOAD = """
import sys, time
from pathlib import Path
import torch
from unmask.model.checkpoint import load_folder
from unmask.model.packed import can_pack, pack

def peak():
    # The high-water mark of this program alone; rusage would start from the parent's.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

base = peak()
started = time.perf_counter()
backbone = load_folder(Path(sys.argv[1]), dtype=torch.bfloat16, device=torch.device("cpu"))
seconds, loaded = time.perf_counter() - started, peak()
if sys.argv[2] == "pack" and can_pack(backbone):
    pack(backbone)
print(base, loaded, peak(), seconds)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), options.gigabytes)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        rows = []
        for how in ("plain", "pack"):
            out = subprocess.run(
                [sys.executable, "-c", LOAD, folder, how], check=True, capture_output=True, text=True
            ).stdout.split()
            base, loaded, peak, seconds = (float(word) for word in out)
            rows.append(
                {
                    "load": how,
                    "checkpoint MB": size / 1e6,
                    "before MB": base / 1e6,
                    "loaded MB": loaded / 1e6,
                    "peak MB": peak / 1e6,
                    "bar MB": 1.15 * size / 1e6 + 400,
                    "seconds": seconds,
                }
            )
    report("memory of loading", rows, to=options.json)


def _write(folder: Path, gigabytes: float) -> None:
    """A network with as many layers of a 3072-wide shape as fill the size, in shards of a gigabyte."""
    wide = dataclasses.replace(
        QWEN_0_5B,
        hidden_size=3072,
        intermediate_size=8192,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32_000,
        num_layers=1,
        tie_embeddings=False,
    )
    per_layer = sum(p.numel() for p in Backbone(wide).layers.parameters()) * 2
    config = dataclasses.replace(wide, num_layers=max(1, round((gigabytes * 1e9 - 4 * 32_000 * 3072) / per_layer)))
    with torch.device("meta"):
        backbone = Backbone(config)
    backbone = backbone.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in backbone.parameters():
        parameter.data.fill_(0.01)
    save_folder(backbone, folder, shard_bytes=10**9)


if __name__ == "__main__":
    main()
