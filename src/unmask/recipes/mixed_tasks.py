"""Tasks to learn from by rewards: those that the model sometimes solves.

A group of answers that are all right or all wrong teaches nothing. So each task of a set is asked some times, as the
rollouts will be, and only tasks with right and wrong answers are kept (`data/select.py`, the rule `mixed`). The answers
are kept on the way, and a run that is stopped goes on with them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.train.grpo_settings import GrpoStage

if TYPE_CHECKING:
    from unmask.data.synthetic.compositions import Split
    from unmask.data.task import Task
    from unmask.evaluate.samples import Sample

Tell = Callable[[str], None]


def prepare(
    folder: Path, tell: Tell, *, stage: GrpoStage, split: "Split", count: int, answers: int, output: Path, seed: int = 0
) -> None:
    """Write the mixed ones of the first `count` tasks of a synthetic split to `output`, by `answers` of each.

    The stage says which model is asked, how its answers are drawn, and in which wording. What is there already stays.
    """
    from unmask.data.jsonl import read_tasks, write_records
    from unmask.data.select import SelectSettings, select
    from unmask.data.synthetic.write import write
    from unmask.evaluate.score import score
    from unmask.model.store import cache_home
    from unmask.sandbox.cache import VerdictCache
    from unmask.sandbox.executor import open_executor

    if output.is_file():
        return
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    asked = raw / "asked.jsonl"
    with open_executor() as executor:
        if not asked.is_file():
            tell(f"{stage.name}: making {count:,} tasks of synthetic-{split}")
            write(split, count, seed=seed, path=asked, format="tasks", executor=executor)
        tasks = read_tasks(asked)
        samples = _samples(raw, tasks, stage, answers, tell)
        with VerdictCache(executor, cache_home() / "verdicts.sqlite") as judge:
            outcomes = score(samples, tasks, judge)
    rates: dict[str, list[float]] = {}
    for sample, outcome in zip(samples, outcomes, strict=True):
        if outcome.is_judged:
            rates.setdefault(sample.task_id, []).append(float(outcome.passed))
    by_model: dict[str, Mapping[str, Sequence[float]]] = {name: {"": passed} for name, passed in rates.items()}
    found = select(asked, SelectSettings(rule="mixed", dedup="none"), rates=by_model)
    tell(f"{stage.name}: {len(found.records):,} of {len(tasks):,} tasks have right and wrong answers")
    write_records(found.records, output)


def _samples(folder: Path, tasks: "Sequence[Task]", stage: GrpoStage, n: int, tell: Tell) -> "list[Sample]":
    """`n` answers to each task, drawn as the stage's rollouts are. Raises SettingsError where the folder holds answers
    of another model, or drawn in another way."""
    from unmask.decode.session import load
    from unmask.evaluate.folder import SAMPLES, enter, fingerprint
    from unmask.evaluate.generate import encode_prompts, generate
    from unmask.evaluate.grid import ONLY, Cell
    from unmask.evaluate.prompts import find_preset, render
    from unmask.evaluate.samples import SampleLog
    from unmask.model import hub

    model, preset = load(stage.model.source), find_preset(stage.prompts.preset)
    prompts = encode_prompts(model, tasks, [render(preset, task, benchmark="", kind="complete") for task in tasks])
    settings = stage.rollout.decoding(max_new_tokens=stage.prompts.max_new_tokens, seed=stage.seed)
    wanted = n * len(prompts)
    weights = fingerprint(hub.resolve(stage.model.source, offline=True).path)  # it was loaded, so it is here
    tests = {"tasks": fingerprint(folder / "asked.jsonl"), "preset": preset.name}
    enter(folder, {"weights": weights, **tests, "n": n, "settings": asdict(settings)})
    with SampleLog(folder / SAMPLES) as log:
        samples = list(log.samples)
        tell(f"{stage.name}: drawing {wanted:,} answers, {len(samples):,} of them are there")
        for batch in generate(
            model,
            prompts,
            [Cell(name=ONLY, settings=settings)],
            n=n,
            batch_size=stage.rollout.batch_size,
            done={sample.key for sample in samples},
        ):
            log.append(batch)
            before = len(samples)
            samples += batch
            if 10 * len(samples) // wanted != 10 * before // wanted:
                tell(f"{stage.name}: {len(samples):,} of {wanted:,} answers")
    return samples
