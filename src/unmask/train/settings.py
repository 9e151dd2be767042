"""Everything that decides a stage of training, as one frozen record; and `--set a.b=3` on it.

A recipe (`unmask/recipes`) is a function that returns a `Recipe`: stages in order, each a `StageSettings`. What a
stage's result depends on is all in here, so a checkpoint that carries the record says how it was made, and a resume
with another record is refused with the names of what differs.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from unmask.diffusion.settings import Corruption, Objective
from unmask.errors import SettingsError, did_you_mean
from unmask.model.config import Attention, ModelConfig
from unmask.model.lora import LoraSettings
from unmask.train.optimiser import OptimiserSettings
from unmask.train.schedule import Schedule

Kind = Literal["diffusion", "autoregressive"]
Parallel = Literal["auto", "none", "ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Where the network comes from, and what it is turned into."""

    source: str = ""
    """A table name, hub id or folder to start from; empty: from nothing, with the shape of `config`."""

    config: ModelConfig | None = None
    """The shape of a network that is trained from nothing. Beside a source: what `--plan` counts with."""

    adapter: str = ""
    """Folder of a LoRA adapter in PEFT's format: trained on with `lora`, merged at the start without."""

    tokenizer: str = ""
    """Folder of the tokenizer; empty: the source's."""

    attention: Attention | None = None
    """What the network is to attend like from now on; None leaves it as the source says."""

    block_length: int | None = None
    """Of block attention."""

    mask_token: str = "<|mask|>"
    """Used when the source names no mask id: the token, or a reserved row of the vocabulary as `#151666`."""

    init_mask_row: bool = False
    """Give the mask token's embedding row a fresh start (its norm is that of a usual row): for the first adaptation."""

    def __post_init__(self) -> None:
        require(
            (self.attention == "block") == (self.block_length is not None),
            f"model.attention={self.attention} and model.block_length={self.block_length}: block attention, and only "
            "it, has a block length; set both, as in model.attention=block and model.block_length=4, or neither",
        )
        require(
            self.block_length is None or self.block_length >= 1,
            f"model.block_length={self.block_length} is not a length; it must be at least 1",
        )


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One folder of shards and how its rows are cut."""

    path: str
    rows: Literal["windows", "pairs"] = "windows"
    """`windows`: the stream of documents, cut at the row length; `pairs`: whole prompts with answers, packed."""

    parts: int = 1
    """Share in the mixture, relative to the other sources."""

    end_tokens: int = 4
    """Pairs: pad tokens behind an answer that are trained. A longer run of them weighs as much as this many."""

    canvas: tuple[int, int] | None = None
    """Pairs: the answer's region gets a random length between these two (tokens), filled with pad tokens."""

    on_long: Literal["refuse", "drop", "cut"] = "refuse"
    """Pairs: what happens to one that is longer than a row."""

    def __post_init__(self) -> None:
        require(self.parts >= 1, f"parts={self.parts} of {self.path} is not a share; it must be at least 1")
        require(self.end_tokens >= 0, f"end_tokens={self.end_tokens} is not a count; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained on, and what the held-out loss is measured on."""

    train: tuple[SourceSettings, ...] = ()
    heldout: tuple[SourceSettings, ...] = ()
    length: int = 512
    """Tokens per row."""

    rows: int = 32
    """Rows per optimiser step, over all devices and accumulation steps."""

    micro_rows: int = 8
    """Rows per forward on one device."""

    def __post_init__(self) -> None:
        for name in ("length", "rows", "micro_rows"):
            require(getattr(self, name) >= 1, f"data.{name}={getattr(self, name)} must be at least 1")
        require(self.length >= 2, "data.length=1 leaves nothing to predict; it must be at least 2")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What is predicted from what."""

    kind: Kind = "diffusion"
    corruption: Corruption = field(default_factory=Corruption)
    objective: Objective = field(default_factory=Objective)
    anneal_steps: int = 0
    """Steps over which the causal mask opens to full attention (DiffuLLaMA; DiffuCoder: 10,000)."""

    t_warmup_steps: int = 0
    """Steps over which the highest noise level rises from nearly 0 to `corruption.t_max`, without loss weights
    meanwhile (Stable-DiffCoder)."""

    def __post_init__(self) -> None:
        for name in ("anneal_steps", "t_warmup_steps"):
            steps = getattr(self, name)
            require(steps >= 0, f"loss.{name}={steps} is not a number of steps; it must be at least 0")
            require(
                steps == 0 or self.kind == "diffusion",
                f"loss.{name}={steps} has no effect on an autoregressive loss; set it to 0, or loss.kind=diffusion",
            )
        is_autoregressive = self.kind == "autoregressive"
        require(
            not (is_autoregressive and self.corruption.pairs),
            "loss.corruption.pairs masks a row in two complementary ways, and an autoregressive loss masks nothing: it "
            "would read each row twice; set it to false, or loss.kind=diffusion",
        )
        require(
            not (is_autoregressive and self.objective.weight == "cart"),
            "loss.objective.weight=cart counts visible neighbours, and an autoregressive loss predicts every token; "
            "set it to none, or loss.kind=diffusion",
        )
        require(
            not (self.corruption.pairs and self.t_warmup_steps),
            "loss.corruption.pairs and loss.t_warmup_steps contradict each other: the complement of little noise is "
            "much; set one of them to false or 0",
        )


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How the work is laid out on devices. None of it changes what is learnt, up to rounding."""

    parallel: Parallel = "auto"
    """`auto`: fsdp under torchrun with more than one process, else none."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products; weights, gradients and optimiser stay in float32. `auto`: bfloat16 where it is native."""

    checkpoint_layers: bool = False
    """Recompute each layer's activations in the backward pass: less memory, a third more work."""

    compile: bool = False
    """torch.compile each layer (needs a C++ compiler on the CPU)."""

    save_every: int = 500
    """Steps between checkpoints."""

    keep: int = 2
    """Checkpoints that stay."""

    log_every: int = 10
    """Steps between lines in the metrics file."""

    timeout_seconds: int = 600
    """How long a rank waits for the others: at the start, and while the first evaluates on tasks or writes."""

    sinks: tuple[str, ...] = ()
    """Also log to `tensorboard`, or to a module with wandb's functions (`wandb`, `trackio`)."""

    def __post_init__(self) -> None:
        for name in ("save_every", "keep", "log_every", "timeout_seconds"):
            require(getattr(self, name) >= 1, f"run.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured while training, and how often."""

    every: int = 500
    """Steps between evaluations; 0: never. One is made at the end in any case."""

    documents: int = 256
    """Held-out rows for the NELBO."""

    samples: int = 8
    """Noise levels per held-out row, stratified, with masks that never change."""

    tasks: str = ""
    """A benchmark or a file of tasks (`synthetic-val`) to score pass@1 on; empty: none."""

    num_tasks: int = 64
    max_new_tokens: int = 96
    temperature: float = 0.2
    preset: str = ""
    """Prompt preset of the tasks; empty: the model's own."""

    prompt: str = ""
    """A prompt whose trajectory is kept at each evaluation; empty: none."""

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("documents", 0), ("samples", 1), ("num_tasks", 1), ("max_new_tokens", 1)):
            given = getattr(self, name)
            require(given >= least, f"evaluation.{name}={given} must be at least {least}")
        require(self.temperature >= 0, f"evaluation.temperature={self.temperature} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every stage has, whatever its loop."""

    name: str
    note: str = ""
    """What the stage is for, and what to expect of its loss."""

    seed: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    schedule: Schedule = field(default_factory=Schedule)
    lora: LoraSettings | None = None
    clip_norm: float = 1.0
    ema: float | None = None
    """Decay of the moving average that is evaluated and exported; None: the weights themselves."""

    run: RunSettings = field(default_factory=RunSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        require(self.clip_norm > 0, f"clip_norm={self.clip_norm} would stop all learning; it must be above 0")
        if self.ema is not None:
            require(0 < self.ema < 1, f"ema={self.ema} is not a decay; it lies between 0 and 1, as in 0.999")

    @property
    def steps(self) -> int:
        """Optimiser steps of the stage."""
        return self.schedule.total_steps


@dataclass(frozen=True, kw_only=True)
class StageSettings(Stage):
    """One stage that learns from texts: adaptation, mid-training, instruction tuning."""

    data: DataSettings = field(default_factory=DataSettings)
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.loss.corruption.pairs and self.data.rows % 2),
            f"loss.corruption.pairs needs an even data.rows, and it is {self.data.rows}; set {self.data.rows + 1}",
        )

    @property
    def tokens_per_step(self) -> int:
        """Positions per optimiser step, padding included."""
        return self.data.rows * self.data.length


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: its stages in order, and how its data comes to be."""

    name: str
    summary: str
    needs: str
    """Hardware, data and time, for a reader who decides whether to start."""

    stages: tuple[Stage, ...]
    prepare: Callable[[Path, Callable[[str], None]], None] | None = None
    """Makes the data under the run's folder where it is absent; None: the data is the user's to bring."""

    makes: tuple[str, ...] = ()
    """What `prepare` makes, as stages name it. It is called if a stage to run reads some of it; (): in any case."""

    def is_prepared_for(self, stages: "Sequence[Stage]") -> bool:
        """Whether `prepare` has something to make for these stages, which `--set` may have given other data."""
        if self.prepare is None:
            return False
        read = [json.dumps(as_record(stage)) for stage in stages]
        return not self.makes or any(json.dumps(made)[1:-1] in record for record in read for made in self.makes)

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = did_you_mean(name, [stage.name for stage in self.stages])
        raise SettingsError(f"{name!r} is no stage of the recipe {self.name}; {known}")

    def with_changes(self, changes: Sequence[str]) -> "Recipe":
        """The recipe after `--set` changes: `optimiser.lr=1e-4` for every stage, `sft.optimiser.lr=1e-4` for one."""
        names = [stage.name for stage in self.stages]
        given: dict[str, dict[str, str]] = {name: {} for name in names}
        for change in changes:
            path, equals, value = change.partition("=")
            path = path.strip()
            if not equals or not path:
                raise SettingsError(f"--set {change} is not of the form key=value, as in --set optimiser.lr=1e-4")
            first, _, rest = path.partition(".")
            for name in [first] if first in names and rest else names:
                given[name][rest if first in names and rest else path] = value
        stages = tuple(with_values(stage, given[stage.name], also_known=names) for stage in self.stages)
        return dataclasses.replace(self, stages=stages)


def with_values(settings: Any, values: Mapping[str, str], *, also_known: Sequence[str] = (), _at: str = "") -> Any:
    """`settings` with fields at dotted paths set from text, all at once; each text is read by its field's type.

    >>> changed = with_values(StageSettings(name="sft"), {"data.rows": "64", "schedule.total_steps": "10"})
    >>> changed.data.rows, changed.steps
    (64, 10)
    """
    if not values:
        return settings
    if isinstance(settings, tuple):
        return _with_items(settings, values, at=_at)
    known = [field.name for field in dataclasses.fields(settings)]
    kinds = typing.get_type_hints(type(settings))
    replaced: dict[str, Any] = {}
    for name, inner in _by_first(values).items():
        here = f"{_at}.{name}" if _at else name
        if name in also_known:
            raise SettingsError(f"{name} is a stage; name one of its settings, as in {name}.optimiser.lr")
        if name not in known:
            where = f" of {_at}" if _at else ""
            raise SettingsError(f"{name!r} is not a setting{where}; {did_you_mean(name, [*known, *also_known])}")
        if "" in inner:
            replaced[name] = _parsed(kinds[name], inner.pop(""), at=here)
        if inner:
            group = replaced.get(name, getattr(settings, name))
            group = _default(kinds[name]) if group is None else group
            if not dataclasses.is_dataclass(group) and not isinstance(group, tuple):
                raise SettingsError(
                    f"{here} is a plain value and has no setting {next(iter(inner))!r}; set it as --set {here}=VALUE"
                )
            replaced[name] = with_values(group, inner, _at=here)
    return dataclasses.replace(settings, **replaced)


def parse_value(kind: Any, text: str, *, _separator: str = ",") -> Any:
    """Text as a value of an annotation: numbers, booleans, words of a Literal, `none`, comma-separated tuples, with
    colons in a tuple of tuples.

    >>> parse_value(int | None, "none"), parse_value(tuple[int, int] | None, "16,96"), parse_value(float, "1e-3")
    (None, (16, 96), 0.001)
    >>> parse_value(tuple[tuple[float, int], ...], "0:2,0.2:4")
    ((0.0, 2), (0.2, 4))
    """
    origin, args = typing.get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and text.lower() == "none":
            return None
        return parse_value(next(arg for arg in args if arg is not type(None)), text)
    if origin is Literal:
        if text not in args:
            raise ValueError(did_you_mean(text, [str(arg) for arg in args]))
        return text
    if origin is tuple:
        pieces = [piece.strip() for piece in text.split(_separator) if piece.strip()]
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(parse_value(args[0], piece, _separator=":") for piece in pieces)
        if len(pieces) != len(args):
            where, how = ("", "commas") if _separator == "," else (f"{text!r} ", "a colon, as in 0.2:4")
            raise ValueError(f"{where}needs {len(args)} values separated by {how}")
        return tuple(parse_value(arg, piece) for arg, piece in zip(args, pieces, strict=True))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("needs true or false")
        return text.lower() == "true"
    if kind is int:
        number = _number(text.replace("_", ""))
        if number != int(number):
            raise ValueError("needs a whole number")
        return int(number)
    if kind is float:
        return _number(text)
    if kind is str:
        return text
    if dataclasses.is_dataclass(kind):
        raise ValueError(f"has settings of its own: {', '.join(field.name for field in dataclasses.fields(kind))}")
    raise ValueError("cannot be set from the command line; change the recipe")


def as_record(settings: Any) -> Any:
    """Settings as plain JSON values.

    >>> as_record(DataSettings(train=(SourceSettings(path="a"),)))["train"][0]["path"]
    'a'
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {field.name: as_record(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, (tuple, list)):
        return [as_record(item) for item in settings]
    if isinstance(settings, Mapping):
        return {str(key): as_record(value) for key, value in settings.items()}
    return settings if isinstance(settings, (int, float, str, bool, type(None))) else str(settings)


def differences(one: Any, other: Any, *, _at: str = "") -> list[str]:
    """The dotted keys in which two records differ.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c (2 there, 3 now)']
    """
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(dict.fromkeys([*one, *other]))
        return [
            found
            for key in keys
            for found in differences(one.get(key), other.get(key), _at=f"{_at}.{key}" if _at else key)
        ]
    return [] if one == other else [f"{_at} ({one} there, {other} now)"]


def _with_items(items: tuple[Any, ...], values: Mapping[str, str], *, at: str) -> tuple[Any, ...]:
    changed = list(items)
    for name, inner in _by_first(values).items():
        if not name.isdecimal() or int(name) >= len(items):
            raise SettingsError(f"{at} has {len(items)} entries, numbered from 0; there is no {at}.{name}")
        if "" in inner:
            raise SettingsError(f"{at}.{name} has settings of its own; name one, as in {at}.{name}.path")
        changed[int(name)] = with_values(items[int(name)], inner, _at=f"{at}.{name}")
    return tuple(changed)


def _by_first(values: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Paths grouped by their first part; the rest of a path that has none is empty."""
    groups: dict[str, dict[str, str]] = {}
    for path, value in values.items():
        first, _, rest = path.partition(".")
        groups.setdefault(first, {})[rest] = value
    return groups


def _parsed(kind: Any, text: str, *, at: str) -> Any:
    try:
        return parse_value(kind, text)
    except (ValueError, TypeError, OverflowError) as error:
        raise SettingsError(f"--set {at}={text}: {error}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("needs a number") from None


def with_defaults(record: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A record of settings in which those that it does not have yet stand at their defaults.

    >>> with_defaults({"a": {"b": 1}}, {"a": {"b": 0, "c": 2}, "d": 3})
    {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    filled = {**defaults, **record}
    for key, value in record.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping):
            filled[key] = with_defaults(value, defaults[key])
    return filled


def _default(kind: Any) -> Any:
    """An optional group of settings that is not there yet, with its defaults."""
    inner = next((arg for arg in get_args(kind) if dataclasses.is_dataclass(arg)), None)
    try:
        return inner() if inner is not None else None  # type: ignore[operator]
    except TypeError:
        return None


def require(holds: bool, message: str) -> None:
    """Raise SettingsError with the message unless the condition holds."""
    if not holds:
        raise SettingsError(message)
