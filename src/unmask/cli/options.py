"""The options that generate, chat and infill share, and the decorator that gives them to a command.

A decorated command takes `model: ModelOptions` and `settings: dict` instead of twenty parameters; the settings hold
what the user gave and nothing else, so that `DecodeSettings` alone knows the defaults.
"""

import contextlib
import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unmask.decode.session import Model
    from unmask.model.hub import Progress, Report

DEFAULT_MODEL = "qwen2.5-coder-0.5b-instruct"
_DECODING = "Decoding"
_LOADING = "Model"


def _decoding(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=_DECODING, show_default=False)


def _loading(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=_LOADING, show_default=False)


_SETTINGS: dict[str, Any] = {
    "max_new_tokens": Annotated[
        int | None,
        _decoding("--max-new-tokens", help="Room for the answer. [256: unless the model has its own]", metavar="N"),
    ],
    "steps": Annotated[int | None, _decoding("--steps", help="Forward passes allowed. [one per token]", metavar="N")],
    "block_length": Annotated[
        int | None,
        _decoding("--block-length", help="Fill in blocks of N, left to right. [the model's own]", metavar="N"),
    ],
    "decoder": Annotated[
        str | None,
        _decoding(
            "--decoder",
            help="autoregressive, speculative or diffusion, of a model with a drafter. [the model's own]",
            metavar="NAME",
        ),
    ],
    "policy": Annotated[
        str | None,
        _decoding(
            "--policy",
            help="Which positions to commit: entropy, maskgit_plus, topk_margin, threshold, factor, frechet, "
            "entropy_bound, left_to_right, random, origin. [entropy]",
            metavar="NAME",
        ),
    ],
    "policy_temperature": Annotated[
        float | None, _decoding("--policy-temperature", help="Chance in the order. [0: best first]", metavar="T")
    ],
    "threshold": Annotated[
        float | None, _decoding("--threshold", help="Commit all above this confidence. [0.9]", metavar="P")
    ],
    "factor": Annotated[float | None, _decoding("--factor", help="Fast-dLLM's bound. [1.0]", metavar="F")],
    "frechet": Annotated[
        float | None, _decoding("--frechet", help="How far the joint bound must be above. [0.2]", metavar="D")
    ],
    "entropy_bound": Annotated[
        float | None, _decoding("--entropy-bound", help="Most entropy committed together, nats. [0.15]", metavar="H")
    ],
    "lenience": Annotated[
        float | None,
        _decoding("--lenience", help="Keep drafts with this share of the best's probability. [the best]", metavar="L"),
    ],
    "temperature": Annotated[
        float | None, _decoding("--temperature", help="Chance in the tokens. [0: greedy]", metavar="T")
    ],
    "temperature_role": Annotated[
        str | None, _decoding("--temperature-role", help="both, content or order. [both]", metavar="ROLE")
    ],
    "top_p": Annotated[float | None, _decoding("--top-p", help="Nucleus, in (0, 1]. [off]", metavar="P")],
    "top_k": Annotated[int | None, _decoding("--top-k", help="Best tokens kept. [off]", metavar="K")],
    "cache": Annotated[
        str | None,
        _decoding("--cache", help="prefix: keep the prompt's keys for some steps. [what is exact]", metavar="NAME"),
    ],
    "cache_refresh": Annotated[
        int | None, _decoding("--cache-refresh", help="Steps until the cache is made anew. [16]", metavar="N")
    ],
    "mode": Annotated[
        str | None,
        _decoding("--mode", help="exact, or reference: Dream's sampler, quirks included. [exact]", metavar="MODE"),
    ],
    "eps": Annotated[
        float | None, _decoding("--eps", help="Last time of the reference schedule. [0.001]", metavar="E")
    ],
    "seed": Annotated[int | None, _decoding("--seed", help="Same seed, same answer. [0]", metavar="N")],
}

_MODEL: dict[str, Any] = {
    "name": Annotated[
        str | None,
        _loading("--model", "-m", help=f"Table name, hub id, folder or .gguf file. [{DEFAULT_MODEL}]", metavar="NAME"),
    ],
    "revision": Annotated[str | None, _loading("--revision", help="Branch, tag or commit on the hub.", metavar="REV")],
    "dtype": Annotated[
        str | None, _loading("--dtype", help="auto, bfloat16, float16 or float32. [auto]", metavar="DTYPE")
    ],
    "device": Annotated[str | None, _loading("--device", help="auto, cpu, cuda, … [auto]", metavar="DEVICE")],
    "adapter": Annotated[Path | None, _loading("--adapter", help="Folder of a LoRA adapter (PEFT).", metavar="DIR")],
    "drafter": Annotated[
        str | None,
        _loading(
            "--drafter", help="Folder of a drafter, a model that has one, or none. [the model's own]", metavar="DIR"
        ),
    ],
    "mask_id": Annotated[
        int | None, _loading("--mask-id", help="Mask id, where the checkpoint does not say.", metavar="ID")
    ],
    "attention": Annotated[
        str | None, _loading("--attention", help="full, causal or block:LENGTH, where it does not say.", metavar="KIND")
    ],
    "shift_logits": Annotated[
        bool | None,
        typer.Option(
            "--shift-logits/--no-shift-logits",
            help="Hidden state i predicts token i+1, where it does not say.",
            rich_help_panel=_LOADING,
            show_default=False,
        ),
    ],
    "offline": Annotated[bool, _loading("--offline", help="Never ask the network.")],
}
_MODEL_DEFAULTS: dict[str, Any] = {"offline": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model to load and what to state about it; see the options of the same names."""

    name: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    adapter: Path | None = None
    drafter: str | None = None
    mask_id: int | None = None
    attention: str | None = None
    shift_logits: bool | None = None
    offline: bool = False

    def load(self, *, quiet: bool = False, default: str = DEFAULT_MODEL) -> "Model":
        """Load the model that was named, or `default`; stderr shows what is downloaded, and on a terminal what is
        loaded."""
        from unmask.decode.session import load
        from unmask.model.config import Override

        attention, block_length = Override.parse_attention(self.attention)
        override = Override(
            attention=attention, block_length=block_length, shift_logits=self.shift_logits, mask_id=self.mask_id
        )
        name = self.name or default
        with _telling(name, quiet=quiet) as report:
            return load(
                name,
                revision=self.revision,
                dtype=self.dtype or "auto",
                device=self.device or "auto",
                adapter=self.adapter,
                drafter=self.drafter,
                override=override,
                offline=self.offline,
                report=report,
            )

    def facts(self, loaded: "Model") -> dict[str, Any]:
        """Which weights, read how, for records that are gone on with later. They are named by their content: training
        overwrites checkpoints, and branches of the hub move."""
        from unmask.evaluate.folder import fingerprint
        from unmask.model import hub

        found = hub.resolve(loaded.name, revision=self.revision, offline=True)  # it was loaded, so it is here
        stated = {"mask_id": self.mask_id, "attention": self.attention, "shift_logits": self.shift_logits}
        return {
            "model": loaded.name,
            "revision": self.revision,
            "weights": fingerprint(found.path),
            "adapter": fingerprint(self.adapter) if self.adapter is not None else None,
            **({"drafter": fingerprint(loaded.drafter_folder)} if loaded.drafter_folder is not None else {}),
            "stated": {name: value for name, value in stated.items() if value is not None},
            "dtype": str(loaded.backbone.dtype).removeprefix("torch."),
        }


@contextlib.contextmanager
def _telling(name: str, *, quiet: bool) -> "Iterator[Report | None]":
    """Say on a terminal that a model is being loaded; a bar takes over when something must be downloaded first."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.status import Status

    from unmask.cli.models import progress

    bars: list[Report] = []
    with contextlib.ExitStack() as stack:
        status = Status(f"loading {name}", console=Console(stderr=True))
        if status.console.is_terminal and not status.console.is_dumb_terminal:
            stack.enter_context(status)

        def report(done: "Progress") -> None:
            if not bars:
                status.stop()
                bars.append(stack.enter_context(progress()))
            bars[0](done)

        yield report


def with_decoding(*leave_out: str, default: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the decoding and model options, less the settings named in `leave_out`.

    `default` is what the help says of every setting and of the model's name, where a command has other defaults.
    """
    names = [name for name in _SETTINGS if name not in leave_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.name not in ("model", "settings")]
        options = {**_MODEL, **{name: _SETTINGS[name] for name in names}}
        if default is not None:
            options |= {name: _with_default(options[name], default) for name in ("name", *names)}
        shared = [_parameter(name, option, _MODEL_DEFAULTS.get(name)) for name, option in options.items()]

        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            model = ModelOptions(**{name: given.pop(name) for name in _MODEL})
            settings = {name: given.pop(name) for name in names}
            command(**given, model=model, settings={k: v for k, v in settings.items() if v is not None})

        wrapped.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
        return wrapped

    return decorate


def _with_default(annotation: Any, default: str) -> Any:
    """The same option, whose help ends with another default in brackets."""
    option = copy.copy(annotation.__metadata__[0])
    option.help = re.sub(r" \[[^]]*\]$", "", option.help) + f" [{default}]"
    return Annotated[annotation.__origin__, option]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
