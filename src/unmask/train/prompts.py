"""What reinforcement learning asks: tasks with tests, put to the model as an evaluation would put them.

A source of tasks is a benchmark's name or a file of tasks, as `unmask evaluate` knows them, with a range behind a colon
where not all are wanted: `tasks.jsonl:500` has the first 500, `synthetic-hard-train:1000-3000` those from number 1000
up to 3000. The training splits of the synthetic suite have no end, so there any range can be had.

A prompt is never cut. One that is too long is left out and counted. A test that its own prompt gives away does not
score (`data/leaks.py`); a prompt that has too few others is left out and counted.

Which prompt the number r asks is a function of (seed, r): the prompts are shuffled anew for each pass over them.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unmask.data.leaks import num_tests, without_leaks
from unmask.data.permutation import permute
from unmask.data.synthetic.compositions import SPLITS
from unmask.data.synthetic.tasks import make_tasks
from unmask.data.task import Task
from unmask.errors import SettingsError, TaskError
from unmask.evaluate.benchmarks import Benchmark, is_file, load, needed_files, synthetic
from unmask.evaluate.generate import encode_prompts
from unmask.evaluate.prompts import Rendered, find_preset, preset_for, render
from unmask.sandbox.job import Executor
from unmask.sandbox.tests import digest_of
from unmask.seeds import derive_seed
from unmask.train.settings import require

if TYPE_CHECKING:
    from unmask.decode.session import Model

_log = logging.getLogger(__name__)
_RANGE = re.compile(r"(?P<name>.+):(?:(?P<first>\d+)-)?(?P<stop>\d+)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Which tasks are asked, how, and with how much room."""

    tasks: tuple[str, ...] = ("synthetic-hard-train:2000",)
    """Benchmarks by name and files of tasks by path, each with an optional `:COUNT` or `:FIRST-STOP`."""

    preset: str = ""
    """How a task is put (`evaluate/prompts.py`); empty: as `unmask evaluate` would."""

    max_prompt_tokens: int = 512
    """Longer prompts are left out, and counted."""

    max_new_tokens: int = 256
    """Masks behind each prompt: the room for an answer and its end."""

    allow_leaks: bool = False
    """Score also on tests that stand in the prompt."""

    min_tests: int = 3
    """Tests that have to be left where leaking ones are taken out; a task with fewer is left out, and counted."""

    def __post_init__(self) -> None:
        require(
            all(name.strip() for name in self.tasks) and bool(self.tasks),
            f"prompts.tasks={','.join(self.tasks)!r} names nothing to ask; give benchmarks or files of tasks, as in "
            "prompts.tasks=synthetic-hard-train:2000",
        )
        for name in ("max_prompt_tokens", "max_new_tokens", "min_tests"):
            require(getattr(self, name) >= 1, f"prompts.{name}={getattr(self, name)} must be at least 1")
        require(
            not self.allow_leaks or self.min_tests == PromptSettings.min_tests,
            f"prompts.min_tests={self.min_tests} has no effect with prompts.allow_leaks=true, which takes no test out; "
            "leave one of them as it was",
        )
        if self.preset:
            find_preset(self.preset)


@dataclass(frozen=True, kw_only=True)
class PromptItem:
    """One prompt: the task with the tests that score, the words, and their ids."""

    source: str
    """Which of `PromptSettings.tasks` it is from."""

    task: Task
    rendered: Rendered
    ids: tuple[int, ...]

    @property
    def prefill(self) -> str:
        """The beginning of the answer that the model was given."""
        return self.rendered.prefill

    @property
    def text(self) -> str:
        """Everything that the model is told, for a reader and for the search for leaks."""
        return _words(self.rendered)

    @property
    def prompt(self) -> list[dict[str, str]] | str:
        """As a reward function gets it (TRL): a conversation, or a text to continue. Without the prefill, which is the
        answer's."""
        if not self.rendered.is_chat:
            return self.rendered.text
        return [{"role": message.role, "content": message.content} for message in self.rendered.messages]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a run in an order without end, and what was left out of them."""

    items: tuple[PromptItem, ...]
    seed: int
    num_too_long: int = 0
    """Prompts left out because they are longer than there is room."""

    num_leaking: int = 0
    """Prompts left out because they give too many of their tests away."""

    num_tests_taken: int = 0
    """Tests of the prompts here that do not score, because the prompt gives them away."""

    def __len__(self) -> int:
        return len(self.items)

    def at(self, index: int) -> PromptItem:
        """The prompt that number `index` asks: each once in every `len(self)` numbers, in another order each time."""
        epoch, place = divmod(index, len(self.items))
        return self.items[permute(place, len(self.items), derive_seed(self.seed, "prompts", epoch))]

    def identity(self) -> Mapping[str, str]:
        """A hash for each source of all that is asked and scored: other prompts or tests, another hash."""
        digests: dict[str, hashlib._Hash] = {}
        for item in self.items:
            tests = [(name, digest_of(item.task.tests[name])) for name in item.task.required_tests]
            columns = [sorted(item.task.columns.items())] if item.task.columns else []
            what = (item.task.task_id, item.ids, item.task.preamble, item.task.limits, tests, *columns)
            digests.setdefault(item.source, hashlib.sha256()).update(repr(what).encode("utf-8", "surrogatepass"))
        return {name: digest.hexdigest() for name, digest in digests.items()}


def open_prompts(settings: PromptSettings, model: "Model", *, seed: int, executor: Executor) -> Prompts:
    """The prompts of a run, with what does not fit left out.

    `executor` runs the references of suites whose tests need that. Raises TaskError for tasks without tests, of a kind
    that is not answered with a program, or twice in the mixture, and where nothing is left.
    """
    room = _room(settings, model)
    items: list[PromptItem] = []
    for source in settings.tasks:
        benchmark = load_tasks(source, executor=executor)
        _check_kind(source, benchmark)
        forms = _render(settings, model, benchmark)
        for prompt in encode_prompts(model, benchmark.tasks, forms):
            items.append(PromptItem(source=source, task=prompt.task, rendered=prompt.rendered, ids=prompt.ids))
    _check_tasks(items)
    short = [item for item in items if len(item.ids) <= room]
    fair = short if settings.allow_leaks else [_fair(item) for item in short]
    kept = [
        (before, after)
        for before, after in zip(short, fair, strict=True)
        if after is before or num_tests(after.task) >= settings.min_tests
    ]
    prompts = Prompts(
        items=tuple(after for _, after in kept),
        seed=seed,
        num_too_long=len(items) - len(short),
        num_leaking=len(short) - len(kept),
        num_tests_taken=sum(num_tests(before.task) - num_tests(after.task) for before, after in kept),
    )
    _tell(prompts, of=items, room=room, settings=settings)
    return prompts


def check_sources(settings: PromptSettings) -> None:
    """Refuse names of no source and files that are not there or hold no task, before there is a model to ask."""
    for source in settings.tasks:
        found = _RANGE.fullmatch(source)
        name = found["name"] if found else source
        if is_file(name):
            load(name, limit=1)
        else:
            needed_files(name)


def name_of(source: str) -> str:
    """The tasks that a source is a part of. HumanEval+ and MBPP+ are HumanEval and MBPP with more tests.

    >>> [name_of(source) for source in ("humaneval:100", "humaneval+", "synthetic-hard-train:10-20", "tasks.jsonl")]
    ['humaneval', 'humaneval', 'synthetic-hard-train', 'tasks.jsonl']
    """
    found = _RANGE.fullmatch(source)
    return (found["name"] if found else source).removesuffix("+")


def load_tasks(source: str, *, executor: Executor) -> Benchmark:
    """The tasks of one source, in its range. A hash of them is in `Prompts.identity`."""
    found = _RANGE.fullmatch(source)
    if found is None:
        return load(source, executor=executor)
    name, first, stop = found["name"], int(found["first"] or 0), int(found["stop"])
    if not first < stop:
        raise TaskError(
            f"{source} asks for the tasks from {first} up to {stop}, which are none; give {name}:COUNT or "
            f"{name}:FIRST-STOP"
        )
    split = next((split for split in SPLITS if name == f"synthetic-{split}"), None)
    if split is not None:
        drawn = make_tasks(split, stop - first, start=first, seed=synthetic.SEED, executor=executor)
        kind = synthetic.DEFINITIONS[name].kind
        return Benchmark(name=name, version=synthetic.VERSION, kind=kind, tasks=tuple(drawn), data_sha256={})
    benchmark = load(name, limit=stop, executor=executor)
    if len(benchmark.tasks) <= first:
        raise TaskError(f"{source} begins at task {first}, and {name} has {len(benchmark.tasks)}; begin earlier")
    return replace(benchmark, tasks=benchmark.tasks[first:])


def _render(settings: PromptSettings, model: "Model", benchmark: Benchmark) -> list[Rendered]:
    is_chat = model.tokenizer.chat_template is not None
    own = model.defaults.preset
    preset = (
        find_preset(settings.preset) if settings.preset else preset_for(is_chat=is_chat, kind=benchmark.kind, own=own)
    )
    if preset.is_chat and not is_chat:
        raise SettingsError(
            f"the preset {preset.name} holds a conversation, and {model.name} has no chat template; give "
            "prompts.preset=base"
        )
    return [render(preset, task, benchmark=benchmark.name, kind=benchmark.kind) for task in benchmark.tasks]


def _room(settings: PromptSettings, model: "Model") -> int:
    """Tokens that a prompt may have."""
    limit = model.backbone.config.max_positions
    require(
        settings.max_new_tokens < limit,
        f"prompts.max_new_tokens={settings.max_new_tokens} leaves no room for a prompt in the model's context of "
        f"{limit}; give less",
    )
    return min(settings.max_prompt_tokens, limit - settings.max_new_tokens)


def _fair(item: PromptItem) -> PromptItem:
    """The item without the tests that its own prompt gives away."""
    task, leaked = without_leaks(item.task, item.text)
    return replace(item, task=task) if leaked else item


def _words(form: Rendered) -> str:
    if not form.is_chat:
        return form.text
    return "\n\n".join([*(message.content for message in form.messages), form.prefill])


def _check_kind(source: str, benchmark: Benchmark) -> None:
    if benchmark.kind in ("infill", "predict"):
        what = "holes to fill" if benchmark.kind == "infill" else "inputs or outputs to predict"
        raise TaskError(
            f"the tasks of {source} are {what}, and a rollout is a program that answers a prompt; take tasks with a "
            "prompt, as in synthetic-hard-train:2000"
        )


def _check_tasks(items: Sequence[PromptItem]) -> None:
    bare = [item.task.task_id for item in items if not item.task.required_tests or not num_tests(item.task)]
    if bare:
        raise TaskError(
            f"{len(bare)} of {len(items)} tasks have no tests: {_some(bare)}; a reward is what tests say, so give them "
            "tests or leave them out"
        )
    sources: dict[str, str] = {}
    for item in items:
        task_id = item.task.task_id
        if task_id in sources:
            where = f"{sources[task_id]} and in {item.source}" if sources[task_id] != item.source else item.source
            raise TaskError(
                f"the task {task_id} is in {where}, so it would be asked twice as often as others; give each task once "
                "(ranges of one source may not overlap)"
            )
        sources[task_id] = item.source


def _tell(prompts: Prompts, *, of: Sequence[PromptItem], room: int, settings: PromptSettings) -> None:
    total = f"{len(of):,}"
    long = f"{prompts.num_too_long:,} of {total} prompts have more than {room:,} tokens"
    told = (
        f"{prompts.num_leaking:,} of {total} prompts show so many of their tests that fewer than {settings.min_tests} "
        "are left"
    )
    if not prompts.items:
        reasons = [text for text, count in ((long, prompts.num_too_long), (told, prompts.num_leaking)) if count]
        raise TaskError(
            f"no prompt remains: {' and '.join(reasons)}; raise prompts.max_prompt_tokens (prompts are never cut), "
            "give tasks with more tests, or set prompts.allow_leaks=true"
        )
    if prompts.num_too_long:
        _log.warning("%s and are left out", long)
    if prompts.num_leaking:
        _log.warning("%s and are left out", told)
    if prompts.num_tests_taken:
        _log.info("%s tests do not score: their prompts show them", f"{prompts.num_tests_taken:,}")
    _log.info("%s prompts are asked", f"{len(prompts):,}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
