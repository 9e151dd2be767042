"""What is measured of a network while it is being trained: pass@1 on some tasks, and one prompt's trajectory."""

import ast
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.errors import SettingsError
from unmask.evaluate.benchmarks import Benchmark, load
from unmask.evaluate.generate import encode_prompts, generate
from unmask.evaluate.grid import Cell
from unmask.evaluate.prompts import find_preset, preset_for, render
from unmask.evaluate.samples import Sample
from unmask.evaluate.score import score
from unmask.model.packed import can_pack, multiplies_bfloat16, pack
from unmask.sandbox.executor import open_executor
from unmask.trajectory import save

if TYPE_CHECKING:
    from unmask.model.backbone import Backbone
    from unmask.text.tokenizer import Tokenizer

_BATCH = 16


class Measured(Protocol):
    """The settings of an evaluation while training (`train/settings.py` has them, with their meaning)."""

    @property
    def tasks(self) -> str: ...
    @property
    def num_tasks(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def preset(self) -> str: ...
    @property
    def prompt(self) -> str: ...


class TrainingEvaluator:
    """Called with a plain network after some step; opens what it needs at the first call, or at `check`."""

    def __init__(self, settings: Measured, *, own_preset: str | None = None) -> None:
        """`own_preset` is how the model is asked where the settings name no preset."""
        self.settings = settings
        self.own_preset = own_preset

    def check(self) -> None:
        """Refuse tasks that cannot be had, asked or judged here: better now than after the first hours of training."""
        if self.settings.tasks:
            _ = self._benchmark
            if self.settings.preset:
                find_preset(self.settings.preset)
            with open_executor():
                pass

    def __call__(self, backbone: "Backbone", tokenizer: "Tokenizer", *, step: int, folder: Path) -> Mapping[str, float]:
        """`pass_at_1` and `parses` (the share of answers that are Python); the trajectory goes to a file.

        The network is the evaluator's to keep: it is cast and packed for decoding.
        """
        if multiplies_bfloat16(backbone.device):
            backbone = backbone.to(torch.bfloat16)  # a copy that is ours
        model = Model(pack(backbone) if can_pack(backbone) else backbone, tokenizer, name=folder.name)
        if self.settings.prompt:
            self._keep_trajectory(model, folder / "trajectories" / f"step-{step:08d}.jsonl")
        return self._score(model) if self.settings.tasks else {}

    @cached_property
    def _benchmark(self) -> Benchmark:
        found = load(self.settings.tasks, limit=self.settings.num_tasks)
        if found.kind == "infill":
            raise SettingsError(
                f"evaluation.tasks={self.settings.tasks} are holes to fill, which is not measured while training; take "
                "tasks with a prompt, as in humaneval or synthetic-val"
            )
        return found

    def _score(self, model: Model) -> Mapping[str, float]:
        benchmark = self._benchmark
        is_chat = model.tokenizer.chat_template is not None
        name = self.settings.preset
        own = self.own_preset
        preset = find_preset(name) if name else preset_for(is_chat=is_chat, kind=benchmark.kind, own=own)
        forms = [render(preset, task, benchmark=benchmark.name, kind=benchmark.kind) for task in benchmark.tasks]
        cell = Cell(name="training", settings=self._decoding())
        samples: list[Sample] = []
        for batch in generate(model, encode_prompts(model, benchmark.tasks, forms), [cell], n=1, batch_size=_BATCH):
            samples += batch
        with open_executor() as executor:
            outcomes = score(samples, benchmark.tasks, executor)
        return {
            "pass_at_1": sum(outcome.passed for outcome in outcomes) / len(outcomes),
            "parses": sum(_parses(sample.program) for sample in samples) / len(samples),
        }

    def _decoding(self) -> DecodeSettings:
        return DecodeSettings(max_new_tokens=self.settings.max_new_tokens, temperature=self.settings.temperature)

    def _keep_trajectory(self, model: Model, path: Path) -> None:
        ids = model.encode_prompt(self.settings.prompt)
        result = model.start([ids], self._decoding()).finish()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, [result.trajectory])


def _parses(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
