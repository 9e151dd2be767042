"""What a run trains, on this rank: the network in its layout, its optimiser, its moving average.

Every loop has one. It says nothing of data or of losses; it builds, saves, loads, copies and exports.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from unmask.atomic import beside
from unmask.errors import SettingsError, UnmaskError
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import save_folder
from unmask.model.lora import lora_layers, save_adapter
from unmask.model.packed import multiplies_bfloat16
from unmask.text.tokenizer import Tokenizer
from unmask.train import state
from unmask.train.ema import Ema
from unmask.train.metrics import ConsoleSink, MetricsLog, open_sinks
from unmask.train.network import Network, NetworkKind, build_network
from unmask.train.optimiser import build_optimiser, set_lr
from unmask.train.parallel import World, add_gradients, add_up, clip_gradients, raise_together, shard, wait_for_all
from unmask.train.schedule import lr_factor
from unmask.train.settings import Stage, as_record

M = TypeVar("M", bound=nn.Module)
"""What is trained: a module around the network."""


class Evaluator(Protocol):
    """Measures a plain network on the first rank: scores on tasks, a prompt's trajectory."""

    def __call__(self, backbone: Backbone, tokenizer: Tokenizer, *, step: int, folder: Path) -> Mapping[str, float]: ...


class StoppedError(Exception):
    """A step was given up half-way, because the run was told to stop."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage ended."""

    folder: Path
    """The exported weights, when the stage is done."""

    step: int
    is_done: bool
    """False when a SIGTERM ended it early; it goes on with --resume."""

    last: Mapping[str, Any] = field(default_factory=dict)
    """The last evaluation."""


class Rig(Generic[M]):
    """The network of a stage, ready to be trained."""

    def __init__(
        self, stage: Stage, folder: Path, *, kind: NetworkKind, world: World, trainee: Callable[[Backbone], M]
    ) -> None:
        self.stage, self.folder, self.world = stage, folder, world
        self.network: Network = build_network(stage.model, kind=kind, lora=stage.lora, seed=stage.seed)
        self.config = self.network.backbone.config
        self.architecture = as_record(self.config) | {"lora": as_record(stage.lora)}
        self.precision = _precision(stage.run.precision, world.device)
        self.trainee = trainee(self.network.backbone)
        self.network.backbone.checkpoint_layers = stage.run.checkpoint_layers
        if world.layout == "fsdp":
            shard(self.trainee, self.network.backbone.layers, world)
        else:
            self.trainee.to(world.device)
        if stage.run.compile:
            for layer in self.network.backbone.layers:
                layer.compile()
        self.optimiser = build_optimiser(self.trainee, stage.optimiser)
        self.ema = Ema(self.trainee, decay=stage.ema) if stage.ema is not None else None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.network.tokenizer

    def check_length(self, length: int, *, name: str) -> None:
        """Refuse rows that are longer than the network's context."""
        if length > self.config.max_positions:
            raise SettingsError(
                f"{name}={length} is longer than the network's context of {self.config.max_positions}; "
                f"set {name}={self.config.max_positions} or less"
            )

    @contextmanager
    def log(self, *, first_step: int, quiet: bool) -> Iterator[MetricsLog | None]:
        """The file of metrics and its sinks, on the first rank; None on the others."""
        if not self.world.is_first:
            yield None
            return
        stage = self.stage
        sinks = open_sinks(
            stage.run.sinks,
            folder=self.folder,
            run=f"{self.folder.parent.name}-{stage.name}",
            settings=as_record(stage),
            first_step=first_step,
        )
        console = [] if quiet else [ConsoleSink(total_steps=stage.steps)]
        log = MetricsLog(self.folder / "metrics.jsonl", first_step=first_step, sinks=[*console, *sinks])
        try:
            yield log
        finally:
            log.close()

    def set_lr(self, step: int) -> None:
        """The learning rate that the schedule has for a step."""
        set_lr(self.optimiser, lr_factor(self.stage.schedule, step))

    def gather_gradients(self) -> float:
        """Add the gradients of all ranks up and clip them; their norm before that."""
        add_gradients(self.trainee, self.world)
        return float(clip_gradients(self.trainee, self.stage.clip_norm))

    def update(self) -> None:
        """One step of the optimiser, and of the moving average."""
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.update()

    def averaged(self) -> AbstractContextManager[None]:
        """With the weights that are evaluated and exported."""
        return self.ema.swapped_in() if self.ema is not None else nullcontext()

    def any_rank(self, value: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(add_up(torch.tensor(float(value), device=self.world.device), self.world))

    def evaluate(self, evaluator: Evaluator | None, *, step: int) -> dict[str, float]:
        """What the evaluator of the first rank finds, on the first rank; the others wait for it, and raise what it
        raises."""
        found: dict[str, float] = {}
        problem: UnmaskError | None = None
        plain = self.plain()
        if plain is not None and evaluator is not None:
            plain.to(self.world.device)
            try:
                found |= evaluator(plain, self.tokenizer, step=step, folder=self.folder)
            except UnmaskError as error:
                problem = error
        raise_together(problem, self.world)
        return found

    # What is copied and written

    def plain(self) -> Backbone | None:
        """A copy of the network in one piece with adapters merged, on the first rank; None on the others."""
        weights = state.whole_weights(self.trainee, self.world)
        return copied(self.network.backbone, weights) if self.world.is_first else None

    def trained(self, others: Mapping[str, Ema] | None = None) -> state.Trained:
        """What changes from step to step."""
        averages = {**({"ema": self.ema} if self.ema is not None else {}), **(others or {})}
        return state.Trained(module=self.trainee, optimiser=self.optimiser, averages=averages)

    def save(self, meta: state.Meta, trained: state.Trained, *, write: state.Writer | None = None) -> Path:
        """A checkpoint of this step; `write` adds files of the first rank's to it."""
        checkpoints = self.folder / "checkpoints"
        return state.save(checkpoints, meta, trained, world=self.world, keep=self.stage.run.keep, write=write)

    def load(self, checkpoint: Path, trained: state.Trained) -> state.Meta:
        """Go on from a checkpoint."""
        peaks = [group["initial_lr"] for group in self.optimiser.param_groups]
        meta = state.load(checkpoint, trained, architecture=self.architecture)
        for group, peak in zip(self.optimiser.param_groups, peaks, strict=True):
            group["initial_lr"] = peak  # the settings', which may have been changed
        return meta

    def export(self, name: str = "final") -> None:
        """Write a folder: the network, its tokenizer, and for `final` the adapter where there is one."""
        with self.averaged():
            if self.stage.lora is not None and name == "final":
                adapter = self.folder / "adapter"
                save_adapter(self.network.backbone, adapter, self.stage.lora, base_name=self.network.source)
            plain = self.plain()
        if plain is not None:
            target, partial = self.folder / name, self.folder / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self.tokenizer.save(partial)
            save_folder(plain, partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        wait_for_all(self.world)


def copied(backbone: Backbone, weights: Mapping[str, Tensor]) -> Backbone:
    """A network of its own with these weights (`Trainee` names them), adapters merged."""
    with torch.device("meta"):
        out = Backbone(backbone.config)
    adapted = {name: module.scale for name, module in lora_layers(backbone)}
    for name, _ in list(out.named_parameters()):
        values = weights[f"backbone.{name}"].detach()
        owner, _, last = name.rpartition(".")
        if owner in adapted and last == "weight":
            A, B = (weights[f"backbone.{owner}.lora_{side}.weight"].detach().float() for side in "AB")
            values = torch.add(values.float(), B @ A, alpha=adapted[owner]).to(values.dtype)
        setattr(out.get_submodule(owner), last, nn.Parameter(values.cpu().clone(), requires_grad=False))
    if backbone.config.tie_embeddings:
        out.lm_head.weight = out.embed_tokens.weight
    return out.eval()


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come: the loop then saves and ends in order."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def write_json(path: Path, record: Any) -> None:
    """Write a small JSON file, whole or not at all."""
    with beside(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
