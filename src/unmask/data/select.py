"""Which tasks are worth training on: hard ones that can be done, by the pass rates of recorded answers.

Each task has the pass rates of some recorded answers. Their mean says how hard it is, their standard deviation (of the
population) whether answers differ, which is all that a group of rollouts learns from. DiffuCoder (arXiv 2506.20639,
section 4 and appendix) chose its tasks from AceCode so, and its paper and its released program say two things:

    paper      of all tasks the 20 % with the lowest means; of those the 40 % with the highest deviations
    as-coded   tasks whose mean is at most the 20th percentile of all means, and whose deviation is at least the 40th
               percentile of the deviations of *all* tasks, easy ones included

    mixed      tasks whose answers differ in the share of the tests that they passed: a group of rollouts on any other
               is likely to be of one kind, and teaches nothing. Ours

"Of those" is our reading of the paper's words. Both counted the answers of AceCode's models `qwen_coder_2.5` and
`llama3_instruct`. Comparisons are ≤ and ≥, so that tasks equal to a threshold stay. Percentiles are numpy's default,
linear between the two nearest ranks. Neither rule demands that any answer passed: `min_pass` does.

The file is read twice, a line at a time: once for the rates, once for the tasks that were chosen.
"""

import ast
import builtins
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from unmask.data import jsonl
from unmask.data.corpus import Document
from unmask.data.files import numbered_records
from unmask.data.filters import DEDUPS, Dedup, Filters, FilterSettings
from unmask.data.task import Task
from unmask.errors import SettingsError, TaskError, did_you_mean
from unmask.text.chat import Message

Rule = Literal["paper", "as-coded", "mixed"]
RULES: tuple[Rule, ...] = get_args(Rule)
_STD_PERCENTILE: dict[str, float] = {"paper": 60.0, "as-coded": 40.0}
Report = Callable[[str, int, float | None], None]
"""Told (step, tasks left, threshold)."""


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """What is chosen."""

    rule: Rule = "paper"

    mean_percentile: float | None = None
    """Tasks up to this percentile of the means stay; None: 20. Not for `mixed`."""

    std_percentile: float | None = None
    """Tasks from this percentile of the deviations on stay; None: 60 for `paper`, 40 for `as-coded`. Not for
    `mixed`."""

    min_pass: float = 0.0
    """What the best recorded answer has to pass at least, a share of the tests; 0 asks nothing."""

    models: tuple[str, ...] = ()
    """Whose answers count; empty: everyone's."""

    dedup: Dedup = "exact"
    """Which of the chosen questions count as the same one: of those the first stays."""

    stubs: bool = False
    """Add a copy of each question that is the stub of a function, as DiffuCoder did: where the question does not
    contain "you". AceCode only."""

    show_test: bool = False
    """Show the first test in the prompt, and do not score it. AceCode only."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise SettingsError(f"rule={self.rule!r} is not known; {did_you_mean(str(self.rule), RULES)}")
        for name in ("mean_percentile", "std_percentile"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise SettingsError(f"{name}={value:g}: a percentile lies between 0 and 100; the paper's rule has 20")
            if value is not None and self.rule == "mixed":
                raise SettingsError(
                    f"{name}={value:g} has no effect with the rule mixed, which asks only whether answers differ; "
                    "leave it out, or take the rule paper"
                )
        if not 0 <= self.min_pass <= 1:
            raise SettingsError(f"min_pass={self.min_pass:g}: give a share of the tests, between 0 and 1")
        if self.dedup not in DEDUPS:
            raise SettingsError(f"dedup={self.dedup!r}: give one of {', '.join(DEDUPS)}")

    @property
    def mean_to(self) -> float:
        """The percentile of the means up to which tasks stay."""
        return 20.0 if self.mean_percentile is None else self.mean_percentile

    @property
    def std_from(self) -> float:
        """The percentile of the deviations from which on tasks stay."""
        return _STD_PERCENTILE[self.rule] if self.std_percentile is None else self.std_percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a selection, and what it left."""

    name: str
    dropped: int
    left: int
    threshold: float | None = None
    """The percentile's value, where the step compares with one."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was chosen, and how."""

    records: tuple[dict[str, Any], ...]
    """As `data/jsonl.py` reads them."""

    steps: tuple[Step, ...]

    num_stubs: int = 0
    """Records that are copies as stubs."""

    num_unusable_tests: int = 0
    """Tests of tasks that stayed which are no asserts, or use names that nobody gives, and were left out."""

    num_never_passed: int = 0
    """Chosen tasks of which no recorded answer passed a single test."""


def select(
    path: Path,
    settings: SelectSettings,
    *,
    rates: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    without: Iterable[Task] = (),
) -> Selection:
    """Choose among the tasks of a file.

    The pass rates are those of the file's own `inferences` (AceCode), or `rates`: task_id → model → rates. Tasks that
    share ten words in a row with one of `without` are dropped (`data/filters.py`). Raises TaskError for a file or a
    selection that has nothing in it, and names the step that left nothing.
    """
    answered = _answered(path, settings.models, rates)
    steps = _Steps(path, answered.num_tasks)
    steps.keep("recorded answers", len(answered.rates))
    numbers = list(answered.rates)
    chosen = {numbers[place] for place in choose(list(answered.rates.values()), settings, report=steps.keep)}
    rows = {number: row for number, row in numbered_records(path) if number in chosen}
    written = _Written(path, settings)
    for number, row in _distinct(rows, settings.dedup, without, steps).items():
        written.add(row, number)
    steps.keep("usable tests", len(written.numbers))
    return Selection(
        records=tuple(written.records.values()),
        steps=tuple(steps.done),
        num_stubs=written.num_stubs,
        num_unusable_tests=written.num_unusable_tests,
        num_never_passed=sum(max(answered.rates[number]) <= 0 for number in written.numbers),
    )


def choose(rates: Sequence[Sequence[float]], settings: SelectSettings, *, report: Report | None = None) -> list[int]:
    """Places of the tasks that a rule keeps, given each task's pass rates; `report` is told of each step.

    >>> rates = [[0.0, 0.0], [0.0, 0.2], [0.0, 0.4], [0.9, 1.0], [1.0, 1.0]]
    >>> choose(rates, SelectSettings(mean_percentile=50))
    [2]
    >>> choose(rates, SelectSettings(mean_percentile=50, rule="as-coded"))
    [1, 2]
    >>> choose(rates, SelectSettings(rule="mixed"))
    [1, 2, 3]
    """
    if not rates:
        return []
    means, stds = zip(*map(_mean_and_std, rates), strict=True)
    told = report or (lambda *_: None)
    if settings.rule == "mixed":
        left = [place for place, std in enumerate(stds) if std > 0]
        told("answers that differ", len(left), None)
    else:
        highest = percentile(means, settings.mean_to)
        left = [place for place, mean in enumerate(means) if mean <= highest]
        told(f"mean up to percentile {settings.mean_to:g}", len(left), highest)
        compared = stds if settings.rule == "as-coded" else [stds[place] for place in left]
        lowest = percentile(compared, settings.std_from)
        left = [place for place in left if stds[place] >= lowest]
        of = "all" if settings.rule == "as-coded" else "these"
        told(f"deviation from percentile {settings.std_from:g} of {of}", len(left), lowest)
    if settings.min_pass:
        left = [place for place in left if max(rates[place]) >= settings.min_pass]
        told("best answer", len(left), settings.min_pass)
    return left


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` % of the values lie: numpy's default, linear between the nearest ranks.

    >>> percentile([1.0, 2.0, 4.0], 75)
    3.0
    """
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Rounded: noise in the last digit must not part tasks that are equal at a threshold."""
    mean = math.fsum(values) / len(values)
    return round(mean, 12), round(math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)), 12)


# Stubs


def stub_of(question: str, entry_point: str, programs: Iterable[str]) -> str | None:
    """A function without its body, and the question as its docstring.

    The head is that of the first program which defines `entry_point` at its top level, and whose head means something
    without the rest of that program: its imports are kept, its decorators are not. None where there is no such program.

    >>> print(stub_of("Double it.", "f", ["def f(x: int) -> int: return x * 2"]))
    def f(x: int) -> int:
        \"\"\"
        Double it.
        \"\"\"
    <BLANKLINE>
    """
    for program in programs:
        try:
            head = _head_of(jsonl.parse(program), entry_point)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if head is not None:
            text = jsonl.docstring_of(question)
            return head + "".join(f"    {line}".rstrip() + "\n" for line in text.rstrip("\n").split("\n"))
    return None


def _head_of(module: ast.Module, entry_point: str) -> str | None:
    """Imports and the `def` line; of functions with the same name Python keeps the last, and so does this."""
    found = None
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == entry_point:
            found = node
        elif isinstance(node, ast.Assign) and any(_binds(target, entry_point) for target in node.targets):
            found = None
    if not isinstance(found, ast.FunctionDef):
        return None
    signature = [found.args, *([found.returns] if found.returns else [])]
    used = {node.id for part in signature for node in ast.walk(part) if isinstance(node, ast.Name)}
    imports = [
        node
        for node in module.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and used & {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    ]
    given = {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
    if any(name not in given and not hasattr(builtins, name) for name in used):
        return None
    above = "".join(f"{ast.unparse(node)}\n" for node in imports) + ("\n\n" if imports else "")
    returns = f" -> {ast.unparse(found.returns)}" if found.returns else ""
    return f"{above}def {entry_point}({ast.unparse(found.args)}){returns}:\n"


def _binds(target: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(target))


def _stub_record(row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any] | None:
    if "you" in row["question"].lower():
        return None
    best_first = sorted(_inferences(row), key=lambda inference: -_rate(inference))
    programs = (jsonl.unfenced(str(inference.get("completion"))) for inference in best_first)
    stub = stub_of(row["question"].strip(), record["entry_point"], programs)
    if stub is None:
        return None
    instruction = f"Complete this function.\n\n```python\n{stub}```"
    return {**record, "task_id": f"{record['task_id']}/stub", "prompt": stub, "instruction": instruction}


# Reading


@dataclass(kw_only=True)
class _Answered:
    num_tasks: int = 0
    rates: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """By the task's line; tasks without rates are not there."""


def _answered(
    path: Path, models: Sequence[str], rates: Mapping[str, Mapping[str, Sequence[float]]] | None
) -> _Answered:
    """The pass rates of each task that has any."""
    found = _Answered()
    seen: dict[str, None] = {}
    for number, row in numbered_records(path):
        found.num_tasks += 1
        by_model = _own_rates(row, f"{path}, line {number}") if rates is None else rates.get(_id_of(row), {})
        seen |= dict.fromkeys(by_model)
        if kept := tuple(rate for model in by_model if not models or model in models for rate in by_model[model]):
            found.rates[number] = kept
    if not found.num_tasks:
        raise TaskError(f"{path} holds no tasks; give JSON lines, one task each (AceCode's rows, or tasks of ours)")
    if not seen:
        raise TaskError(
            f"{path}: no task has recorded answers, so nothing says which are hard; give a file with AceCode's "
            "'inferences' (model_name, pass_rate, completion), or an evaluation of these tasks (--results FOLDER)"
        )
    for model in models:
        if model not in seen:
            raise TaskError(f"{path} has no answers of the model {model!r}; {did_you_mean(model, seen)}")
    return found


def _own_rates(row: Mapping[str, Any], where: str) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    for inference in _inferences(row):
        rate = inference.get("pass_rate")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise TaskError(f"{where}: the pass_rate {rate!r:.40} is no share of tests between 0 and 1; mend that line")
        rates.setdefault(str(inference.get("model_name", "")), []).append(float(rate))
    return rates


def _inferences(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = row.get("inferences")
    return [inference for inference in found if isinstance(inference, dict)] if isinstance(found, list) else []


def _rate(inference: Mapping[str, Any]) -> float:
    rate = inference.get("pass_rate")
    return float(rate) if isinstance(rate, int | float) else 0.0


def _id_of(row: Mapping[str, Any]) -> str:
    return str(row.get("task_id", row.get("id", "")))


# Steps


class _Steps:
    """The count after each step; a step that leaves nothing ends the selection."""

    def __init__(self, path: Path, num_tasks: int) -> None:
        self.path = path
        self.done = [Step(name="tasks", dropped=0, left=num_tasks)]

    def keep(self, name: str, left: int, threshold: float | None = None) -> None:
        before = self.done[-1].left
        self.done.append(Step(name=name, dropped=before - left, left=left, threshold=threshold))
        if not left:
            at = "" if threshold is None else f" ({threshold:.4g})"
            raise TaskError(
                f"{self.path}: nothing is left after the step {name!r}{at}, which dropped the last {before} of "
                f"{self.done[0].left} tasks; loosen that rule, or give more tasks"
            )


def _distinct(
    rows: dict[int, dict[str, Any]], dedup: Dedup, without: Iterable[Task], steps: _Steps
) -> dict[int, dict[str, Any]]:
    """Without questions that are asked twice, and without those of benchmarks."""
    tasks = list(without)
    filters = Filters(FilterSettings(min_chars=0, max_chars=1 << 62, dedup=dedup), without=tasks)
    left = {
        number: row
        for number, row in rows.items()
        # as a conversation: the rules about lines are about files of code
        if filters.keeps(Document(name="", messages=(Message("user", _question_of(row)),)))
    }
    count = len(rows)
    asked = {"exact": ("duplicate",), "near": ("duplicate", "near duplicate"), "none": ()}[dedup]
    for reason in (*(("benchmark",) if tasks else ()), *asked):
        count -= filters.dropped[reason]
        steps.keep(reason, count)
    return left


def _question_of(row: Mapping[str, Any]) -> str:
    return str(row.get("question") or row.get("instruction") or row.get("prompt") or "")


class _Written:
    """The chosen rows as records of ours."""

    def __init__(self, path: Path, settings: SelectSettings) -> None:
        self.path = path
        self.settings = settings
        self.records: dict[str, dict[str, Any]] = {}
        self.numbers: list[int] = []
        self.num_stubs = 0
        self.num_unusable_tests = 0

    def add(self, row: dict[str, Any], number: int) -> None:
        where = f"{self.path}, line {number}"
        if jsonl.is_acecode(row):
            self._add_acecode(row, number, where)
            return
        for name in ("stubs", "show_test"):
            if getattr(self.settings, name):
                raise SettingsError(
                    f"{where}: {name} rewrites the questions of AceCode, and this task has a prompt of its own; leave "
                    "it out"
                )
        jsonl.task_of(row, where)
        self._keep(row, number, where)

    def _add_acecode(self, row: dict[str, Any], number: int, where: str) -> None:
        tests = jsonl.acecode_tests(row, where)
        usable = [test for test in tests if _asserts(test)]
        try:
            record = jsonl.from_acecode({**row, "test_cases": usable}, where, show_test=self.settings.show_test)
            jsonl.task_of(record, where)
        except TaskError:  # no test is left, or they call nothing: counted by its step
            return
        if "reference" not in record:
            usable = jsonl.self_contained(usable, record["entry_point"])
        self.num_unusable_tests += len(tests) - len(usable)
        self._keep(record, number, where)
        if self.settings.stubs and (stub := _stub_record(row, record)) is not None:
            self.records[stub["task_id"]] = stub
            self.num_stubs += 1

    def _keep(self, record: dict[str, Any], number: int, where: str) -> None:
        if record["task_id"] in self.records:
            raise TaskError(f"{where}: the id {record['task_id']!r} stands on a line above; give each task its own")
        self.records[record["task_id"]] = record
        self.numbers.append(number)


def _asserts(test: str) -> bool:
    try:
        return any(isinstance(node, ast.Assert) for node in ast.walk(jsonl.parse(test)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
