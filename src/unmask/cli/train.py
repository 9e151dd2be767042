"""`unmask train RECIPE`: run the stages of a recipe, go on with them, or say what they will cost."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.errors import SettingsError

if TYPE_CHECKING:
    from unmask.train.parallel import World
    from unmask.train.settings import Recipe, StageSettings


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="tiny, qwen_0_5b, diffucoder_7b, or a Python file of your own.", show_default=False),
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
    peak: Annotated[str, typer.Option("--peak", help="Their peak: a100, h100, or FLOP/s.", metavar="PEAK")] = "h100",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.", metavar="DEVICE")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No lines of progress.")] = False,
) -> None:
    """Train a model by a recipe; `torchrun -m unmask.cli.main train RECIPE` does it on several devices.

    Example: unmask train tiny --set sft.schedule.total_steps=100
    """
    from unmask import recipes

    if recipe is None:
        _list_recipes()
        return
    folder = output or Path("runs") / Path(recipe).stem
    chosen = recipes.find(recipe, folder).with_changes(changes or [])
    stages = [chosen.stage(name) for name in stage] if stage else list(chosen.stages)
    if plan:
        _print_plans(chosen, stages, devices=devices, mfu=mfu, peak=_peak(peak))
        return
    from unmask.train.parallel import world

    settings = stages[0].run
    with world(settings.parallel, device=device, timeout_seconds=settings.timeout_seconds) as who:
        _run(chosen, stages, folder, who, resume=resume, quiet=quiet or not who.is_first)


def _run(
    recipe: "Recipe", stages: "list[StageSettings]", folder: Path, world: "World", *, resume: bool, quiet: bool
) -> None:
    from unmask.evaluate.training import TrainingEvaluator
    from unmask.train.loop import is_done, train_stage
    from unmask.train.parallel import wait_for_all

    tell = _teller(quiet)
    if recipe.prepare is not None:
        if world.is_first:
            recipe.prepare(folder, tell)
        wait_for_all(world)
    for stage in stages:
        where = folder / stage.name
        if resume and is_done(where):
            tell(f"{stage.name}: done already, {where / 'final'}")
            continue
        tell(f"{stage.name}: {stage.steps:,} steps of {stage.tokens_per_step:,} tokens")
        evaluator = TrainingEvaluator(stage.evaluation) if world.is_first else None
        outcome = train_stage(stage, where, world=world, resume=resume, evaluator=evaluator, quiet=quiet)
        if not outcome.is_done:
            tell(f"{stage.name}: stopped after step {outcome.step} of {stage.steps} and saved; go on with --resume")
            return
        tell(f"{stage.name}: done, {outcome.folder}")


def _list_recipes() -> None:
    from unmask import recipes

    for name in recipes.NAMES:
        found = recipes.find(name, Path("runs") / name)
        print(f"{name}: {found.summary}")
        print(f"    stages: {', '.join(stage.name for stage in found.stages)}")
        print(f"    needs: {found.needs}")


def _print_plans(recipe: "Recipe", stages: "list[StageSettings]", *, devices: int, mfu: float, peak: float) -> None:
    from unmask.train.network import planned_config
    from unmask.train.plan import make_plan, render

    print(f"{recipe.name}: {recipe.summary}\nneeds: {recipe.needs}")
    config = None
    for stage in stages:
        config = planned_config(stage.model, before=config)
        print(f"\n{stage.name}: {stage.note}")
        found = make_plan(
            config,
            length=stage.data.length,
            rows=stage.data.rows,
            micro_rows=stage.data.micro_rows,
            steps=stage.steps,
            devices=devices,
            is_sharded=stage.run.parallel != "ddp",
            lora=stage.lora,
            optimiser=stage.optimiser.kind,
            ema=stage.ema is not None,
            bfloat16=stage.run.precision != "float32",
            checkpoint_layers=stage.run.checkpoint_layers,
            masked_share=1.0 if stage.loss.kind == "autoregressive" else 0.5,
            mfu=mfu,
            peak=peak,
        )
        print(render(found))


def _peak(text: str) -> float:
    from unmask.train.plan import PEAKS

    if text.lower() in PEAKS:
        return PEAKS[text.lower()]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise SettingsError(f"--peak {text} is no speed; give {', '.join(PEAKS)}, or FLOP/s as in 312e12")
    return value


def _teller(quiet: bool) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    return tell
