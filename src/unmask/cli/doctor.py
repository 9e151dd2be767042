"""`unmask doctor`: what this machine and this installation can do; the first thing to paste into a bug report."""

import json
import os
import platform
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "gguf", "jinja2", "typer", "rich")


def doctor(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Also load this model and run it once.", metavar="NAME", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is installed and what this machine can do.

    With a model, also whether it is sound and how fast it is here.

    Example: unmask doctor --model smollm2-135m-instruct
    """
    report = {**_software(), **_hardware(), **_sandbox(), **_models()}
    try:
        if model is not None:
            report |= _check_model(model)
    finally:  # a model that cannot be loaded is when the rest is wanted most
        _print(report, as_json=as_json)


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    from unmask.cli.output import print_line

    if as_json:
        print_line(json.dumps(report, ensure_ascii=False))
        return
    width = max(len(key) for key in report)
    for key, value in report.items():
        print_line(f"{key:<{width}}  {value}")


def _software() -> dict[str, Any]:
    from unmask.version import __version__

    return {"unmask": __version__, "python": sys.version.split()[0]} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _hardware() -> dict[str, Any]:
    import torch

    from unmask.model.packed import multiplies_bfloat16

    has_bf16 = multiplies_bfloat16(torch.device("cpu"))
    has_amx = bool(torch.cpu._is_amx_tile_supported())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "system": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability() + (" with AMX" if has_amx else ""),
        "bfloat16 on the cpu": "native" if has_bf16 else "emulated; float32 is used",
        "memory": _memory(),
    }


def _sandbox() -> dict[str, Any]:
    """What `unmask evaluate` runs programs in, and what each back end promises or lacks here."""
    if not sys.platform.startswith("linux"):
        return {"sandbox": f"none: it needs Linux, and this is {sys.platform}"}
    from unmask.errors import SandboxError
    from unmask.sandbox import backends

    probed = {name: backends.probe(name) for name in backends.BACKENDS if name != "plain"}
    told = {
        f"sandbox {name}": ", ".join(found.guarantees) if isinstance(found, backends.Backend) else f"not here: {found}"
        for name, found in probed.items()
    }
    try:
        return {"sandbox": backends.choose().name} | told
    except SandboxError as error:
        return {"sandbox": f"none that isolates: {error}"} | told


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _models() -> dict[str, Any]:
    from unmask.model import hub, table

    here = [entry.name for entry in table.models() if hub.cached(entry.name) is not None]
    return {"model folder": str(hub.cache_home()), "models here": ", ".join(here) or "none"}


def _check_model(name: str) -> dict[str, Any]:
    """Load a model and decode a few tokens: conventions, speed, and whether the numbers are numbers."""
    from unmask.cli.options import ModelOptions
    from unmask.model.packed import PackedLinear

    loaded = ModelOptions(name=name).load()
    config = loaded.backbone.config
    answer = loaded.generate("def add(a, b):", raw=True, max_new_tokens=16)
    is_packed = isinstance(loaded.backbone.lm_head, PackedLinear)
    return {
        "model": f"{loaded.name} from {loaded.source}",
        "family": config.family,
        "attention": config.attention + (f", blocks of {config.block_length}" if config.block_length else ""),
        "logits shifted by one": config.shift_logits,
        "mask id": "none (autoregressive)" if config.mask_id is None else config.mask_id,
        "end ids": ", ".join(map(str, loaded.end_ids)),
        "vocabulary": f"{config.vocab_size} rows, {loaded.tokenizer.vocab_size} tokens",
        "precision": str(loaded.backbone.dtype).removeprefix("torch.") + (", packed" if is_packed else ""),
        "16 tokens": f"{answer.num_forwards} forwards in {answer.seconds:.2f} s: {answer.text!r}",
    }
