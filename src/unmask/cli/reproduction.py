"""What `unmask reproduce` runs: experiments, each an evaluation in a folder of its own, and the numbers they give.

An experiment is exactly what `command` says: that line, given to a shell, goes on in the same folder and draws the same
answers. So each can be run alone, and one that was interrupted is taken up again.
"""

import contextlib
import hashlib
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any, Literal

import typer

from unmask.analyze.by_task import ByTask, Values, by_task
from unmask.analyze.findings import FINDINGS, STAGES, Evidence, Finding, ends
from unmask.analyze.groups import path_name
from unmask.atomic import beside
from unmask.cli.evaluation import Drawing, Drawn, Judging
from unmask.cli.options import ModelOptions
from unmask.errors import SettingsError
from unmask.trajectory import Trajectory, load

if TYPE_CHECKING:
    from unmask.evaluate.result import CellResult, Result
    from unmask.train.rollout import PackedRow
    from unmask.view.reproduction import ModelFacts

TEMPERATURES = (0.2, 0.6, 1.0, 1.4)
SPREAD_ANSWERS, SPREAD_DRAWS = 32, 32
_LIMITS = {"temperature": 40, "order": 100, "content": 100, "steps": 200, "stages": 50}
_SAMPLES = 10  # of a task, where pass@10 is wanted
_WHOLE_FILE_BYTES = 1 << 30  # files of weights up to here are hashed whole
_BASE_STAGES = ("adapt", "mid")  # they know no conversations yet: the prompt is continued


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the options say. Every default is valid."""

    model: str = "tiny"
    after: str | None = None
    """The model after reinforcement learning; None: there is none."""

    stages: Path | None = None
    tasks: str = "synthetic-test"
    temperatures: tuple[float, ...] = TEMPERATURES
    n: int = _SAMPLES
    limit: int | None = None
    """Tasks of every experiment; None: each has its own number."""

    max_new_tokens: int = 96
    preset: str | None = "diffucoder"
    dtype: str | None = None
    device: str | None = None
    offline: bool = False
    sandbox: str = "auto"
    output: Path | None = None
    """Where the runs are kept; None: where those of this model go without saying."""

    quiet: bool = False

    def __post_init__(self) -> None:
        if len(set(self.temperatures)) < 2 or min(self.temperatures) <= 0:
            listed = ",".join(f"{t:g}" for t in self.temperatures)
            raise SettingsError(
                f"--temperatures {listed}: what is compared is a low temperature with a high one, so give at least two "
                "different ones above 0, as in `--temperatures 0.2,0.6,1.0,1.4`"
            )
        for option, value in (("-n", self.n), ("--limit", self.limit), ("--max-new-tokens", self.max_new_tokens)):
            if value is not None and value < 1:
                raise SettingsError(f"{option} {value} is not a count; it must be at least 1")
        if self.stages is not None and not stage_folders(self.stages):
            raise SettingsError(
                f"--stages {self.stages} holds no stage of diffusion training ({', '.join(STAGES)}, each with a "
                "checkpoint in its folder `final`); give the folder of `unmask train tiny`, or leave it out"
            )

    @property
    def folder(self) -> Path:
        return self.output if self.output is not None else usual_folder(self.model)

    @property
    def ends(self) -> tuple[float, float]:
        """The two temperatures that are compared."""
        return ends({t: ByTask() for t in self.temperatures})


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One evaluation with its trajectories; `by` is the setting that its cells differ in."""

    name: str
    evidence: str
    """The field of `Evidence` that it fills."""

    model: str
    n: int
    limit: int
    max_new_tokens: int
    preset: str | None
    axes: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    by: Literal["temperature", "steps"] = "temperature"
    stage: str = ""

    @property
    def k(self) -> str | None:
        """What `--k` must say, where the usual ones are not wanted."""
        return f"1,{self.n}" if 1 < self.n < _SAMPLES else None

    @property
    def num_cells(self) -> int:
        return len(self.axes[self.by].split(","))

    @property
    def num_answers(self) -> int:
        return self.num_cells * self.n * self.limit

    @property
    def share_of_steps(self) -> float:
        """Forwards of an average answer, as a share of one per token."""
        return fmean(int(s) for s in self.axes.get("steps", str(self.max_new_tokens)).split(",")) / self.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class Ran:
    """An experiment with what it gave, by the setting of its cells."""

    experiment: Experiment
    drawn: Drawn
    result: "Result"
    numbers: Mapping[float, ByTask]


def usual_folder(model: str) -> Path:
    """Where the runs of a model are kept, so that no model's are taken for another's."""
    return Path("evaluations") / f"reproduction{_ending(model)}"


def usual_page(model: str) -> Path:
    """Where the page of a model is written.

    >>> [usual_page(name).as_posix() for name in ("tiny", "some/Coder-7B")]
    ['docs/reproduction.md', 'docs/reproduction-Coder-7B.md']
    """
    return Path("docs") / f"reproduction{_ending(model)}.md"


def _ending(model: str) -> str:
    """What sets a model's files apart; `tiny`, which ships, needs nothing. A checkpoint of training is called by its
    run and stage."""
    if model == Asked.model:
        return ""
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
    named = parts[-3:-1] if parts[-1:] == ["final"] else parts[-1:]
    return "-" + path_name("-".join(named))


def stage_folders(folder: Path) -> dict[str, Path]:
    """The checkpoints of the stages that a training run left behind, in the order of training."""
    places = {stage: folder / stage / "final" for stage in STAGES}
    return {stage: place for stage, place in places.items() if (place / "config.json").is_file()}


def experiments(asked: Asked, findings: Sequence[Finding]) -> list[Experiment]:
    """What has to be run for some findings; nothing for one that lacks something."""
    lacking = missing(asked).keys()
    wanted = {need for finding in findings if not lacking & {*finding.needs} for need in finding.needs}
    wanted |= {"temperature"} if "spread" in wanted else set()  # it scores the answers drawn there
    room = asked.max_new_tokens
    low, high = asked.ends
    every = ",".join(f"{t:g}" for t in sorted(asked.temperatures))
    both = ",".join(f"{t:g}" for t in (low, high))
    steps = ",".join(str(s) for s in dict.fromkeys(max(1, room // part) for part in (1, 2, 4)))
    found = []

    def add(name: str, evidence: str, model: str | None, kind: str, axes: Mapping[str, str], **more: Any) -> None:
        if evidence in wanted and model is not None:
            found.append(
                Experiment(
                    name=name,
                    evidence=evidence,
                    model=model,
                    limit=asked.limit or _LIMITS[kind],
                    max_new_tokens=room,
                    axes={**axes, "max_new_tokens": str(room)},
                    **{"n": 1, "preset": asked.preset, **more},
                )
            )

    for model, before in ((asked.model, ""), (asked.after, "after_")):
        name = before.replace("_", "-")
        add(f"{name}temperature", f"{before}temperature", model, "temperature", {"temperature": every}, n=asked.n)
        if not before:
            for role in ("order", "content"):
                add(role, role, model, role, {"temperature": both}, settings={"temperature_role": role})
        axes = {"temperature": f"{low:g}", "steps": steps}
        add(f"{name}steps", f"{before}steps", model, "steps", axes, by="steps")
    for stage, place in stage_folders(asked.stages).items() if asked.stages is not None else ():
        preset = "base" if stage in _BASE_STAGES else asked.preset
        axes = {"temperature": f"{low:g}"}
        add(f"stage-{stage}", "stages", str(place), "stages", axes, preset=preset, stage=stage)
    return found


def missing(asked: Asked) -> dict[str, str]:
    """Why what is not run is not, and what would run it."""
    again = f"unmask reproduce --model {shlex.quote(asked.model)}"
    reasons: dict[str, str] = {}
    if asked.after is None:
        train = "" if asked.model != "tiny" else "`unmask train tiny_cpgrpo` makes one of tiny; "
        reasons |= dict.fromkeys(
            ("after_temperature", "after_steps"),
            f"no model after reinforcement learning was given; {train}`{again} --after FOLDER` measures it",
        )
    if asked.stages is None:
        reasons["stages"] = (
            "no training run was given; `unmask train tiny` leaves its stages in runs/tiny, and "
            f"`{again} --stages runs/tiny` measures them"
        )
    return reasons


def command(experiment: Experiment, asked: Asked) -> str:
    """The line that runs an experiment alone."""
    options: dict[str, object] = {"--model": experiment.model}
    options |= {f"--{name.replace('_', '-')}": text for name, text in experiment.axes.items()}
    options |= {f"--{name.replace('_', '-')}": value for name, value in experiment.settings.items()}
    options |= {"-n": experiment.n, "--limit": experiment.limit, "--preset": experiment.preset, "--k": experiment.k}
    options |= {"--dtype": asked.dtype, "--device": asked.device}
    words = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    place = asked.folder / experiment.name
    return shlex.join(["unmask", "evaluate", asked.tasks, *words, "--trajectories", "--output", str(place)])


def commands(finding: Finding, planned: Sequence[Experiment], asked: Asked) -> list[str]:
    """The lines that make a finding's numbers: its experiments, what measures them, and what judges them. None for one
    that was not run."""
    if not finding.needs or missing(asked).keys() & {*finding.needs}:
        return []
    needs = {*finding.needs, *(("temperature",) if "spread" in finding.needs else ())}
    serving = [experiment for experiment in planned if experiment.evidence in needs]
    lines = [command(experiment, asked) for experiment in serving]
    lines += [shlex.join(["unmask", "analyze", str(asked.folder / experiment.name)]) for experiment in serving]
    has_after = any(experiment.evidence.startswith("after_") for experiment in serving)
    has_stages = any(experiment.stage for experiment in serving)
    used = replace(asked, after=asked.after if has_after else None, stages=asked.stages if has_stages else None)
    return [*lines, whole_command(used, only=finding.name)]


def notes(ran: Sequence[Ran]) -> list[str]:
    """What a reader must know of the runs."""
    lost = [(one.experiment.name, len(one.result.not_judged)) for one in ran if one.result.not_judged]
    found = [f"{name}: {count} samples could not be judged and are left out" for name, count in lost]
    forms: dict[str, list[str]] = {}
    for one in ran:
        if one.experiment.stage:
            forms.setdefault(one.result.preset["name"], []).append(one.experiment.stage)
    if len(forms) > 1:
        how = "; ".join(f"{preset} for {', '.join(stages)}" for preset, stages in forms.items())
        found.append(f"stages were asked in the form that they know: {how}")
    return found


def whole_command(asked: Asked, *, only: str = "", more: Sequence[tuple[str, object, object]] = ()) -> str:
    """The line that measures one finding, or all; `more` are options with their values, and those that go without
    saying."""
    usual = Asked()
    temperatures = ",".join(f"{t:g}" for t in asked.temperatures)
    options: list[tuple[str, object, object]] = [
        ("--model", asked.model, None),
        ("--after", asked.after, None),
        ("--stages", asked.stages, None),
        ("--only", only or None, None),
        ("--tasks", asked.tasks, usual.tasks),
        ("--temperatures", temperatures, ",".join(f"{t:g}" for t in TEMPERATURES)),
        ("-n", asked.n, usual.n),
        ("--limit", asked.limit, None),
        ("--max-new-tokens", asked.max_new_tokens, None),
        ("--preset", asked.preset, None),
        ("--dtype", asked.dtype, None),
        ("--device", asked.device, None),
        ("--sandbox", asked.sandbox, usual.sandbox),
        ("--output", asked.folder, usual_folder(asked.model)),
        *more,
    ]
    words = [str(word) for name, value, default in options if value not in (None, default) for word in (name, value)]
    return shlex.join(["unmask", "reproduce", *words])


# Running


def run(experiment: Experiment, asked: Asked) -> Ran:
    """Draw what its folder does not hold yet, judge all, and measure."""
    judging = _judging(experiment, asked)
    drawing = _drawing(experiment, asked)
    with contextlib.ExitStack() as stack:
        drawing.check(judging)
        benchmark, executor = judging.prepare(
            asked.tasks, stack, version=None, limit=experiment.limit, is_offline=asked.offline, is_wanted=True
        )
        assert executor is not None
        place = asked.folder / experiment.name
        drawn = drawing.draw(benchmark, _loading(experiment.model, asked), stack, output=place, limit=experiment.limit)
        result = judging.judge(drawn, benchmark, executor)
    cells = {float(cell.settings[experiment.by]): cell for cell in result.cells}
    runs: dict[float, dict[str, list[Trajectory]]] = {key: {} for key in cells}
    for t in _trajectories(drawn.folder):
        runs[float(t.settings[experiment.by])].setdefault(t.label, []).append(t)
    numbers = {key: by_task(runs[key], passed=_passed(cell)) for key, cell in cells.items()}
    return Ran(experiment=experiment, drawn=drawn, result=result, numbers=numbers)


def evidence(ran: Sequence[Ran], spread: Mapping[str, Values] | None) -> Evidence:
    """The numbers of all experiments."""
    fields: dict[str, Any] = {"spread": spread}
    for one in ran:
        if one.experiment.stage:
            (numbers,) = one.numbers.values()
            fields.setdefault("stages", {})[one.experiment.stage] = numbers
        elif one.experiment.by == "steps":
            fields[one.experiment.evidence] = {int(steps): found for steps, found in one.numbers.items()}
        else:
            fields[one.experiment.evidence] = one.numbers
    return Evidence(**fields)


def _judging(experiment: Experiment, asked: Asked) -> Judging:
    return Judging(sandbox=asked.sandbox, workers=None, k=experiment.k, score_raw=False, quiet=asked.quiet)


def _drawing(experiment: Experiment, asked: Asked) -> Drawing:
    return Drawing(
        axes=experiment.axes,
        settings=experiment.settings,
        n=experiment.n,
        preset=experiment.preset,
        registered=None,
        length=None,
        batch_size=None,
        quiet=asked.quiet,
        trajectories=True,
    )


def _loading(model: str, asked: Asked) -> ModelOptions:
    return ModelOptions(name=model, dtype=asked.dtype, device=asked.device, offline=asked.offline)


def _trajectories(folder: Path) -> Iterator[Trajectory]:
    from unmask.analyze.groups import TRAJECTORIES

    for file in sorted((folder / TRAJECTORIES).glob("*/*.jsonl")):
        yield from load(file)


def _passed(cell: "CellResult") -> dict[int, dict[str, float]]:
    """pass@k of each task that has k judged samples."""
    from unmask.evaluate.pass_at_k import task_estimates

    judged = {task: [o.passed for o in outcomes if o.is_judged] for task, outcomes in cell.tasks.items()}
    found = {}
    for k in map(int, cell.pass_at_k):
        enough = {task: passed for task, passed in judged.items() if len(passed) >= k}
        found[k] = task_estimates(enough, k) if enough else {}
    return found


# How far estimators scatter

_ROWS = "spread.jsonl"


def run_spread(temperature: Ran, asked: Asked) -> dict[str, dict[str, float]]:
    """The variance over masks of the score of each answer, coupled and drawn apart; kept answer by answer."""
    from unmask.evaluate import folder as folders
    from unmask.model.lock import locked

    folder = asked.folder / "spread"
    answers = _answers(temperature, asked)
    digest = hashlib.sha256(repr([(task, one) for task, one in answers.items()]).encode()).hexdigest()
    protocol = {
        "model": temperature.drawn.model,
        "weights": temperature.drawn.protocol["weights"],
        "answers_sha256": digest,
        "draws": SPREAD_DRAWS,
    }

    def refuse() -> None:
        raise SettingsError(f"another process is at work in {folder}; wait for it, or give another --output")

    folders.check_place(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder, refuse))
        folders.enter(folder, protocol)
        found = _kept_rows(folder / _ROWS)
        todo = {task: one for task, one in answers.items() if task not in found}
        if todo:
            if not asked.quiet:
                print(f"scoring {len(todo)} answers under {SPREAD_DRAWS} draws of their masks", file=sys.stderr)
            try:
                with (folder / _ROWS).open("a", encoding="utf-8") as file:
                    for task, row in _scattered(todo, asked):
                        found[task] = row
                        file.write(json.dumps({"task_id": task, "variance": row}) + "\n")
                        file.flush()
            except KeyboardInterrupt:
                kept = f"{len(found)} of {len(answers)} answers are scored and kept in {folder}"
                print(f"interrupted; {kept}, and the same command goes on from there", file=sys.stderr)
                raise typer.Exit(130) from None
    names = ("coupled", "decoupled")
    return {name: {task: found[task][name] for task in answers} for name in names}


def _answers(temperature: Ran, asked: Asked) -> "dict[str, PackedRow]":
    """The first answer to each of the first tasks at the high temperature, as a rollout is drawn."""
    from unmask.train.estimator_spread import answer_of

    _, hot = asked.ends
    first = {sample.seed: sample.task_id for sample in temperature.drawn.samples if sample.sample == 0}
    order = list(dict.fromkeys(first.values()))
    runs = {
        first[t.sample]: t
        for t in _trajectories(temperature.drawn.folder)
        if t.sample in first and t.settings["temperature"] == hot
    }
    found = {task: answer_of(runs[task]) for task in order if task in runs}
    scored = [task for task, one in found.items() if len(one.answer_ids) > 1][:SPREAD_ANSWERS]
    return {task: found[task] for task in scored}


def _kept_rows(path: Path) -> dict[str, dict[str, float]]:
    """The rows of an earlier run; one that a kill cut short is dropped."""
    found: dict[str, dict[str, float]] = {}
    if path.exists():
        whole = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                record = json.loads(line) if line.endswith("\n") else None
                if record is not None:
                    found[record["task_id"]] = record["variance"]
                    whole.append(line)
        with beside(path) as part:
            part.write_text("".join(whole), encoding="utf-8")
    return found


def _scattered(answers: "Mapping[str, PackedRow]", asked: Asked) -> Iterator[tuple[str, dict[str, float]]]:
    import torch

    from unmask.decode.session import Model, device_of, dtype_of
    from unmask.diffusion.rl_settings import Estimator
    from unmask.seeds import derive_seed
    from unmask.train.estimator_spread import answer_means, draw_scores
    from unmask.train.network import build_network
    from unmask.train.rollout import pack_rows
    from unmask.train.settings import ModelSettings

    network = build_network(ModelSettings(source=asked.model), kind="diffusion", lora=None, seed=0)
    where = device_of(asked.device or "auto")
    backbone = network.backbone.to(where, dtype_of(asked.dtype, where) if asked.dtype is not None else torch.float32)
    model = Model(backbone, network.tokenizer, name=asked.model)
    mask_id = backbone.config.mask_id
    assert mask_id is not None, "a diffusion model has one"
    for task, answer in answers.items():
        packed = pack_rows([answer], mask_id=mask_id)
        row: dict[str, float] = {}
        for estimator in (Estimator(name="coupled"), Estimator(name="decoupled")):
            seed = derive_seed(0, f"spread of {task}")
            scores = draw_scores(model, packed, estimator, draws=range(SPREAD_DRAWS), seed=seed)
            row[estimator.name] = variance(answer_means(packed, scores)[:, 0].tolist())
        yield task, row


# What it will cost


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an experiment draws, what of it is there already, and about how long the rest takes."""

    name: str
    model: str
    num_answers: int
    num_kept: int
    seconds: float
    serves: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "model": self.model,
            "answers": self.num_answers,
            "kept": self.num_kept,
            "seconds": self.seconds,
            "serves": list(self.serves),
        }


def plan(asked: Asked, findings: Sequence[Finding], *, seconds_per_answer: float) -> list[Cost]:
    """The costs, at a rate for an answer with one forward per token."""
    costs = []
    for one in experiments(asked, findings):
        names = {one.evidence, *(("spread",) if one.evidence == "temperature" else ())}
        kept = min(one.num_answers, _num_lines(asked.folder / one.name / "samples.jsonl"))
        seconds = (one.num_answers - kept) * one.share_of_steps * seconds_per_answer
        costs.append(
            Cost(
                name=one.name,
                model=one.model,
                num_answers=one.num_answers,
                num_kept=kept,
                seconds=seconds,
                serves=tuple(finding.name for finding in findings if names & {*finding.needs}),
            )
        )
    serves = tuple(finding.name for finding in findings if "spread" in finding.needs)
    if serves:
        count = min(SPREAD_ANSWERS, asked.limit or _LIMITS["temperature"])
        kept = min(count, _num_lines(asked.folder / "spread" / _ROWS))
        forwards = (count - kept) * SPREAD_DRAWS * 2 * 3  # two estimators of three views
        seconds = forwards * seconds_per_answer / asked.max_new_tokens
        costs.append(
            Cost(name="spread", model=asked.model, num_answers=count, num_kept=kept, seconds=seconds, serves=serves)
        )
    return costs


def seconds_per_answer(asked: Asked) -> tuple[float, str]:
    """The rate of this machine, and where it is from: answers that are kept, or eight that are drawn for it."""
    rows = _whole_rows(asked.folder / "temperature" / "samples.jsonl")
    times = [float(row["seconds"]) for row in rows if row.get("seconds")]
    if times:
        return fmean(times), f"{len(times)} answers that are kept"
    (one,) = experiments(replace(asked, limit=8, n=1, temperatures=asked.ends), [FINDINGS[0]])
    one = replace(one, axes={**one.axes, "temperature": f"{asked.ends[0]:g}"})
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        judging = _judging(one, asked)
        tasks, _ = judging.prepare(asked.tasks, stack, version=None, limit=8, is_offline=asked.offline, is_wanted=False)
        loading = _loading(one.model, asked)
        drawn = _drawing(one, asked).draw(tasks, loading, stack, output=Path(folder) / "rate", limit=8)
        times = [sample.seconds for sample in drawn.samples]
    return fmean(times), f"{len(times)} answers drawn for it"


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The records of a file that a run may be writing just now, which is only read here; a torn last line is none."""
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.split(b"\n") if line.strip()]


def _num_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


# What was measured


def facts(role: str, model: str, asked: Asked) -> "ModelFacts":
    """A model by its name, its size and its weights."""
    from unmask.evaluate.folder import fingerprint
    from unmask.model import hub, table
    from unmask.view.reproduction import ModelFacts

    path = hub.resolve(model, offline=True).path  # it was loaded, so it is here
    entry = table.find(model)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    weights = f"fingerprint {fingerprint(path)}"
    if len(files) == 1 and files[0].stat().st_size <= _WHOLE_FILE_BYTES:
        with files[0].open("rb") as file:
            weights = f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    return ModelFacts(
        role=role, name=model, parameters=_num_parameters(files) if entry is None else entry.parameters, weights=weights
    )


def _num_parameters(files: Sequence[Path]) -> int | None:
    """Counted from the headers of safetensors; None for other files."""
    from math import prod

    total = 0
    for path in files:
        if path.suffix != ".safetensors":
            return None
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total
