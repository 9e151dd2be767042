"""Measure several callables in turn, again and again, and report medians and ratios."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def interleave(candidates: dict[str, Callable[[], Any]], *, repeats: int, warmups: int = 1) -> dict[str, list[float]]:
    """Wall seconds of each candidate, measured ABAB… after `warmups` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(warmups + repeats):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if round_ >= warmups:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """How many times faster `ours` is, by medians."""
    return statistics.median(seconds[theirs]) / statistics.median(seconds[ours])


def machine() -> dict[str, Any]:
    """What the numbers were taken on, and how busy it was."""
    import torch

    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def report(title: str, rows: list[dict[str, Any]], *, to: Path | None) -> None:
    """Print rows as a table and keep them with the machine."""
    here = machine()
    print(f"{title}\n{here['cpu']}, {here['threads']} threads, torch {here['torch']}, load {here['load']}")
    widths = {key: max(len(key), *(len(_show(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(_show(row[key]).ljust(width) for key, width in widths.items()))
    if to is not None:
        to.write_text(json.dumps({"title": title, "machine": here, "rows": rows}, indent=2) + "\n")


def _show(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
