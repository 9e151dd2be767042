"""`unmask train RECIPE`: run the stages of a recipe, go on with them, or say what they will cost."""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.errors import SettingsError, UnmaskError, did_you_mean

if TYPE_CHECKING:
    from unmask.model.config import ModelConfig
    from unmask.train.parallel import World
    from unmask.train.plan import Plan
    from unmask.train.rig import Evaluator, Outcome
    from unmask.train.settings import Recipe, Stage

_PATIENCE = 10.0
"""Seconds that other ranks leave to the first, and to torchrun to end them, before they tell of an error themselves."""
_SMALL = 100_000_000
"""Parameters below which a plan is made for this machine."""


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A name (none: they are listed), or a Python file of your own.", show_default=False),
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option("--stage", help="This stage alone, again for more. [all]", metavar="NAME")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting, as in optimiser.lr=1e-4; STAGE.KEY=VALUE for one stage.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the run. [runs/RECIPE]", metavar="DIR")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print what it will cost, and train nothing.")] = False,
    devices: Annotated[int, typer.Option("--devices", help="Devices to plan for.", metavar="N")] = 1,
    mfu: Annotated[float, typer.Option("--mfu", help="Share of their peak to plan with.", metavar="SHARE")] = 0.4,
    peak: Annotated[
        str | None,
        typer.Option(
            "--peak",
            help="Their peak: a100, h100, FLOP/s, or here (measured). [h100; here below 100 M parameters]",
            metavar="PEAK",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.", metavar="DEVICE")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No lines of progress.")] = False,
) -> None:
    """Train a model by a recipe.

    On several devices: torchrun --nproc-per-node 8 --no-python unmask train RECIPE

    Example: unmask train tiny --set sft.schedule.total_steps=100
    """
    from unmask import recipes

    if recipe is None:
        _list_recipes()
        return
    folder = output or Path("runs") / Path(recipe).stem
    with _first_rank_speaks():
        chosen = recipes.find(recipe, folder).with_changes(changes or [])
        stages = [chosen.stage(name) for name in stage] if stage else list(chosen.stages)
        if plan:
            _print_plans(chosen, stages, devices=devices, mfu=mfu, peak=peak, device=device)
            return
        _check_order(chosen, stages, folder)
        _check_layout(stages)
        _check_device(device)
        from unmask.train.parallel import world

        settings = stages[0].run
        with world(settings.parallel, device=device, timeout_seconds=settings.timeout_seconds) as who:
            is_interrupted = _run(chosen, stages, folder, who, resume=resume, quiet=quiet or not who.is_first)
    if is_interrupted:
        raise typer.Exit(130)


def _run(recipe: "Recipe", stages: "list[Stage]", folder: Path, world: "World", *, resume: bool, quiet: bool) -> bool:
    """Train the stages; True when Ctrl-C ended it early."""
    from unmask.evaluate.training import TrainingEvaluator
    from unmask.model.table import find
    from unmask.train.checks import is_done
    from unmask.train.parallel import after_first

    tell = _teller(quiet)
    if recipe.prepare is not None and recipe.is_prepared_for(stages):
        after_first(world, functools.partial(recipe.prepare, folder, tell))
    _check_data(stages)
    measured = [stage for stage in stages if stage.evaluation.tasks or stage.evaluation.prompt]
    evaluators = {}
    for stage in measured if world.is_first else ():
        entry = find(stage.model.source)
        own = entry.defaults.preset if entry is not None else None
        evaluators[stage.name] = TrainingEvaluator(stage.evaluation, own_preset=own)
    for evaluator in evaluators.values():
        evaluator.check()
    last = None
    with _ctrl_c_ends_in_order(tell) as is_interrupted:
        for stage in stages:
            where = folder / stage.name
            if resume and is_done(stage, where):
                tell(f"{stage.name}: done already, {where / 'final'}")
                continue
            tell(f"{stage.name}: {_size(stage)}")
            outcome = _train(stage, where, world, resume=resume, evaluator=evaluators.get(stage.name), quiet=quiet)
            if not outcome.is_done:
                tell(f"{stage.name}: stopped after step {outcome.step} of {stage.steps} and saved; go on with --resume")
                return is_interrupted()
            tell(f"{stage.name}: done, {outcome.folder}")
            last = _options_for(stage, outcome.folder)
    if last is not None:
        tell(f"try it: unmask generate {last} PROMPT")
    return False


def _train(
    stage: "Stage", folder: Path, world: "World", *, resume: bool, evaluator: "Evaluator | None", quiet: bool
) -> "Outcome":
    """One stage, by the loop that it is for."""
    from unmask.train.draft_settings import DraftStage
    from unmask.train.grpo_settings import GrpoStage
    from unmask.train.loop import train_stage
    from unmask.train.settings import StageSettings

    if isinstance(stage, GrpoStage):
        from unmask.model.store import cache_home
        from unmask.sandbox.cache import VerdictCache
        from unmask.sandbox.executor import open_executor
        from unmask.train.grpo import train_grpo
        from unmask.view.rollout_html import write_card

        workers = max(1, len(os.sched_getaffinity(0)) // world.size)
        with open_executor(workers=workers) as jails, VerdictCache(jails, cache_home() / "verdicts.sqlite") as executor:
            return train_grpo(
                stage,
                folder,
                world=world,
                executor=executor,
                resume=resume,
                evaluator=evaluator,
                write_card=write_card,
                quiet=quiet,
            )
    if isinstance(stage, DraftStage):
        from unmask.train.draft import train_draft

        return train_draft(stage, folder, world=world, resume=resume, quiet=quiet)
    assert isinstance(stage, StageSettings)
    return train_stage(stage, folder, world=world, resume=resume, evaluator=evaluator, quiet=quiet)


def _options_for(stage: "Stage", folder: Path) -> str:
    """What `generate` is to be given of what a stage left: a model, or a drafter beside its parent."""
    from unmask.train.draft_settings import DraftStage

    if not isinstance(stage, DraftStage):
        return f"--model {folder}"
    return f"--model {stage.model.source or 'PARENT'} --drafter {folder}"


def _size(stage: "Stage") -> str:
    """What a stage will do, in a few words."""
    from unmask.train.draft_settings import DraftStage
    from unmask.train.grpo_settings import GrpoStage
    from unmask.train.settings import StageSettings

    if isinstance(stage, GrpoStage):
        return (
            f"{stage.steps:,} steps, {stage.policy.iterations} on each {stage.answers_per_step:,} answers to "
            f"{stage.prompts_per_step:,} prompts"
        )
    if isinstance(stage, DraftStage):
        tokens = f"{stage.steps:,} steps of {stage.tokens_per_step:,} tokens"
        return f"{tokens}, in blocks of {stage.draft.block_length}"
    assert isinstance(stage, StageSettings)
    return f"{stage.steps:,} steps of {stage.tokens_per_step:,} tokens"


# What is refused before any work


def _check_order(recipe: "Recipe", stages: "list[Stage]", folder: Path) -> None:
    """Each stage's source is there, or is what a stage before it will write."""
    written: set[Path] = set()
    by_result = {folder / stage.name / "final": stage.name for stage in recipe.stages}
    for stage in stages:
        source = Path(stage.model.source)
        if source in by_result and source not in written and not (source / "config.json").is_file():
            raise SettingsError(
                f"the stage {stage.name} starts from {source}, which is not there yet: the stage {by_result[source]} "
                f"writes it; run that one first, as in --stage {by_result[source]} --stage {stage.name}"
            )
        written.add(folder / stage.name / "final")


def _check_layout(stages: "list[Stage]") -> None:
    """The processes join once, for all stages."""
    for name in ("parallel", "timeout_seconds"):
        first, *others = ((stage.name, getattr(stage.run, name)) for stage in stages)
        other = next((other for other in others if other[1] != first[1]), None)
        if other is not None:
            raise SettingsError(
                f"run.{name} is {first[1]} in the stage {first[0]} and {other[1]} in {other[0]}, and one start has one "
                f"of it; set it for every stage, as in --set run.{name}={first[1]}, or run them apart with --stage"
            )


def _check_data(stages: "list[Stage]") -> None:
    """All data is there, so that no run ends for want of it after days, or after a download of weights."""
    from unmask.data.shards import Shards
    from unmask.train.draft_settings import DraftStage
    from unmask.train.grpo_settings import GrpoStage
    from unmask.train.prompts import check_sources
    from unmask.train.settings import StageSettings

    for stage in stages:
        if isinstance(stage, GrpoStage):
            check_sources(stage.prompts)
        if not isinstance(stage, (StageSettings, DraftStage)):
            continue
        for source in (*stage.data.train, *stage.data.heldout):
            Shards.open(source.path)


def _check_device(name: str) -> None:
    if name not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"--device {name} is none to train on; {did_you_mean(name, ['auto', 'cpu', 'cuda'])}")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda cannot be used here: torch finds no GPU; give cpu or auto")


# How it ends and who tells


@contextmanager
def _ctrl_c_ends_in_order(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C does while a stage runs what SIGTERM does: save after this step and end. A second one ends at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1 or not callable(signal.getsignal(signal.SIGTERM)):  # nobody waits for the end of a step
            raise KeyboardInterrupt
        tell("stopping after this step; Ctrl-C again stops at once and loses what came after the last checkpoint")
        signal.raise_signal(signal.SIGTERM)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _first_rank_speaks() -> Iterator[None]:
    """What all ranks run into is told once; what the others alone run into is told after a while."""
    try:
        yield
    except UnmaskError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            raise
        time.sleep(_PATIENCE)
        raise type(error)(f"rank {rank}: {error}") from None


def _list_recipes() -> None:
    from unmask import recipes

    for name in recipes.NAMES:
        found = recipes.find(name, Path("runs") / name)
        print(f"{name}: {found.summary}")
        print(f"    stages: {', '.join(stage.name for stage in found.stages)}")
        print(f"    needs: {found.needs}")


def _print_plans(
    recipe: "Recipe", stages: "list[Stage]", *, devices: int, mfu: float, peak: str | None, device: str
) -> None:
    from unmask.train.network import planned_config
    from unmask.train.plan import count_parameters, render, render_sum

    if devices < 1:
        raise SettingsError(f"--devices {devices} leaves nothing to train on; give 1 or more")
    if not 0 < mfu <= 1:
        raise SettingsError(f"--mfu {mfu:g} is not a share; it lies above 0 and up to 1, and 0.4 is usual")
    config, configs = None, {}
    for stage in recipe.stages:  # all of them, for each may start from the one before
        config = configs[stage.name] = planned_config(stage.model, before=config)
    is_small = count_parameters(configs[stages[0].name]).total < _SMALL
    speed = _peak(peak or ("here" if is_small else "h100"), device)
    print(f"{recipe.name}: {recipe.summary}\nneeds: {recipe.needs}")
    plans = []
    for stage in stages:
        print(f"\n{stage.name}: {stage.note}" if stage.note else f"\n{stage.name}")
        found = _plan_of(stage, configs[stage.name], devices=devices, mfu=mfu, peak=speed)
        print(render(found))
        plans.append(found)
    if len(plans) > 1:
        print(f"\n{render_sum(plans)}")


def _plan_of(stage: "Stage", config: "ModelConfig", *, devices: int, mfu: float, peak: float) -> "Plan":
    """A stage's plan, by the loop that it is for."""
    from unmask.decode.prefix import DEFAULT_REFRESH
    from unmask.train.draft_settings import DraftStage
    from unmask.train.drafter_plan import make_draft_plan
    from unmask.train.grpo_settings import GrpoStage
    from unmask.train.plan import make_grpo_plan, make_plan
    from unmask.train.settings import StageSettings

    common: dict[str, Any] = {
        "steps": stage.steps,
        "devices": devices,
        "is_sharded": stage.run.parallel != "ddp",
        "lora": stage.lora,
        "optimiser": stage.optimiser.kind,
        "bfloat16": stage.run.precision != "float32",
        "checkpoint_layers": stage.run.checkpoint_layers,
        "mfu": mfu,
        "peak": peak,
    }
    if isinstance(stage, DraftStage):
        return make_draft_plan(
            config,
            length=stage.data.length,
            rows=stage.data.rows,
            micro_rows=stage.data.micro_rows,
            block_length=stage.draft.block_length,
            stride=stage.draft.stride,
            words=stage.draft.words,
            inner=stage.draft.inner,
            **common,
        )
    common["ema"] = stage.ema is not None
    if isinstance(stage, GrpoStage):
        return make_grpo_plan(
            config,
            prompt_tokens=stage.prompts.max_prompt_tokens,
            max_new_tokens=stage.prompts.max_new_tokens,
            forwards=stage.rollout.steps or stage.prompts.max_new_tokens,
            answers=stage.answers_per_step,
            micro_answers=stage.micro_answers,
            views=stage.most_views,
            iterations=stage.policy.iterations,
            has_reference=stage.policy.beta > 0,
            cache_refresh=(stage.rollout.cache_refresh or DEFAULT_REFRESH) if stage.rollout.cache == "prefix" else None,
            **common,
        )
    assert isinstance(stage, StageSettings)
    return make_plan(
        config,
        length=stage.data.length,
        rows=stage.data.rows,
        micro_rows=stage.data.micro_rows,
        masked_share=1.0 if stage.loss.kind == "autoregressive" else 0.5,
        **common,
    )


def _peak(text: str, device: str) -> float:
    from unmask.train.plan import PEAKS

    if text.lower() in PEAKS:
        return PEAKS[text.lower()]
    if text.lower() == "here":
        return _measured_peak(device)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SettingsError(f"--peak {text} is no speed; give {', '.join(PEAKS)}, here, or FLOP/s as in 312e12")
    return value


def _measured_peak(name: str) -> float:
    import torch

    from unmask.model.packed import multiplies_bfloat16
    from unmask.train.metrics import matmul_peak

    _check_device(name)
    has_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if has_cuda else "cpu")
    return matmul_peak(device, torch.bfloat16 if multiplies_bfloat16(device) else torch.float32)


def _teller(quiet: bool) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    return tell
