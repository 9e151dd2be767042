"""DiffuCoder's findings (arXiv 2506.20639), each with what it claims, what decides it, and the verdict on numbers.

Numbers in, verdicts out: where they come from is not known here. What is compared is compared within tasks; the
interval is the 95 % bootstrap over tasks. A claim says on which side of zero a difference lies:

    reproduced     the interval lies on that side
    contradicted   it lies on the other
    undecided      it holds zero, or there are fewer than six tasks: five that all fall on one side do so by chance in
                   2^(1-5) = 6 % of cases
    not measured   something that it needs was not run

Of several differences one contradicted decides, and a finding is reproduced only if all are.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, nan, sqrt
from statistics import fmean
from typing import Any, Literal

from unmask.analyze.bootstrap import LEVEL, RESAMPLES, Mean, means
from unmask.analyze.by_task import BETWEEN, FAR, NEAR, ByTask, Values
from unmask.errors import SettingsError, did_you_mean
from unmask.seeds import derive_seed

Side = Literal["above", "below"]
Verdict = Literal["reproduced", "contradicted", "undecided", "not measured"]

FEWEST = 6
"""Tasks below which nothing is decided."""

STAGES = ("adapt", "mid", "sft", "sft-2")
"""Diffusion stages of training, in order: stage 1, stage 2, and two passes of stage 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that was measured; what was not run is None."""

    temperature: Mapping[float, ByTask] | None = None
    """By temperature, acting on tokens and order both."""

    order: Mapping[float, ByTask] | None = None
    """By temperature of the order alone; tokens are greedy."""

    content: Mapping[float, ByTask] | None = None
    """By temperature of the tokens alone; ordered by the untempered scores."""

    steps: Mapping[int, ByTask] | None = None
    """By steps."""

    after_temperature: Mapping[float, ByTask] | None = None
    """As `temperature`, of the model after reinforcement learning."""

    after_steps: Mapping[int, ByTask] | None = None
    stages: Mapping[str, ByTask] | None = None
    """By training stage."""

    spread: Mapping[str, Values] | None = None
    """Estimator → answer → variance over its masks of the mean score of a token."""


EXPERIMENTS = ("temperature", "order", "content", "steps", "after_temperature", "after_steps", "stages", "spread")


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A number that is shown and decides nothing."""

    what: str
    mean: Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A number that a claim puts on one side of zero; with `claimed` None it only stands beside."""

    what: str
    mean: Mean
    claimed: Side | None

    @property
    def verdict(self) -> Verdict:
        """By the rule of this module."""
        return judge(self.mean, claimed=self.claimed) if self.claimed else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a finding's numbers are; without any difference that decides, `why` says what is missing."""

    differences: tuple[Difference, ...] = ()
    levels: tuple[Level, ...] = ()
    notes: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One claim of the paper."""

    name: str
    claim: str
    paper: str
    """Where, and with which figures."""

    rule: str
    """What decides it here."""

    needs: tuple[str, ...]
    """Experiments."""

    measure: Callable[[Evidence], Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finding with its verdict."""

    finding: Finding
    verdict: Verdict
    measured: Measured

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; null where there is none."""
        return {
            "name": self.finding.name,
            "claim": self.finding.claim,
            "paper": self.finding.paper,
            "rule": self.finding.rule,
            "verdict": self.verdict,
            "differences": [
                {"what": one.what, **_numbers(one.mean), "claimed": one.claimed} for one in self.measured.differences
            ],
            "levels": [{"what": one.what, **_numbers(one.mean)} for one in self.measured.levels],
            "notes": list(self.measured.notes),
            "why": self.measured.why,
        }


def judge(mean: Mean, *, claimed: Side) -> Verdict:
    """The verdict on one difference.

    >>> judge(Mean(value=-0.2, low=-0.3, high=-0.1, count=40), claimed="below")
    'reproduced'
    >>> judge(Mean(value=-0.2, low=-0.4, high=0.0, count=40), claimed="below")
    'undecided'
    """
    if mean.count < FEWEST or not (isfinite(mean.low) and isfinite(mean.high)):
        return "undecided"
    if mean.low > 0:
        return "reproduced" if claimed == "above" else "contradicted"
    if mean.high < 0:
        return "reproduced" if claimed == "below" else "contradicted"
    return "undecided"


def outcome(finding: Finding, evidence: Evidence, *, missing: Mapping[str, str] | None = None) -> Outcome:
    """The verdict on one finding. `missing` says of experiments that were not run why, and what would run them."""
    absent = [name for name in finding.needs if getattr(evidence, name) is None]
    if absent:
        reasons = dict.fromkeys((missing or {}).get(name, f"the experiment {name} was not run") for name in absent)
        return Outcome(finding=finding, verdict="not measured", measured=Measured(why="; ".join(reasons)))
    measured = finding.measure(evidence)
    verdicts = [one.verdict for one in measured.differences if one.claimed]
    verdict: Verdict = "undecided"
    if not verdicts:
        verdict = "not measured"
    elif "contradicted" in verdicts:
        verdict = "contradicted"
    elif all(one == "reproduced" for one in verdicts):
        verdict = "reproduced"
    few = [one.mean.count for one in measured.differences if one.claimed and one.mean.count < FEWEST]
    if few:
        note = f"Only {min(few)} tasks have what is compared, and at least {FEWEST} are needed to decide."
        measured = Measured(
            differences=measured.differences, levels=measured.levels, notes=(*measured.notes, note), why=measured.why
        )
    return Outcome(finding=finding, verdict=verdict, measured=measured)


def find(names: Sequence[str]) -> tuple[Finding, ...]:
    """The findings of those names, in the order of the list; all where none is named."""
    known = [finding.name for finding in FINDINGS]
    for name in names:
        if name not in known:
            raise SettingsError(f"--only {name}: {name!r} is no finding; {did_you_mean(name, known)}")
    return tuple(finding for finding in FINDINGS if not names or finding.name in names)


# Numbers


def level(what: str, values: Values) -> Level:
    """A mean over tasks."""
    return Level(what=what, mean=means({0: list(values.values())})[0])


def difference(what: str, first: Values, second: Values, *, claimed: Side | None) -> Difference:
    """`second` less `first`, on the tasks that both have.

    >>> difference("b less a", {"x": 0.5, "y": 0.5}, {"x": 0.75, "z": 1.0}, claimed="above").mean.value
    0.25
    """
    pairs = [second[task] - first[task] for task in first if task in second]
    return Difference(what=what, mean=means({0: pairs})[0], claimed=claimed)


def statistic(columns: Sequence[Values], function: Callable[[Sequence[float]], float], *, seed: int = 0) -> Mean:
    """A function of the columns' means, on the tasks that all have, with its bootstrap interval over tasks.

    Draws for which the function has no value are left out; where more than one in twenty is, there is no interval.

    >>> statistic([{"a": 2.0, "b": 2.0}, {"a": 1.0, "b": 1.0}], lambda means: means[1] / means[0])
    Mean(value=0.5, low=0.5, high=0.5, count=2, num_tasks=None)
    """
    tasks = [task for task in columns[0] if all(task in column for column in columns)]
    rows = [[column[task] for column in columns] for task in tasks]
    if not rows:
        return Mean(value=nan, low=nan, high=nan, count=0)
    value = function([fmean(column) for column in zip(*rows, strict=True)])
    chance = random.Random(derive_seed(seed, "bootstrap of a statistic over tasks"))
    drawn = (chance.choices(rows, k=len(rows)) for _ in range(RESAMPLES))
    found = sorted(filter(isfinite, (function([fmean(column) for column in zip(*d, strict=True)]) for d in drawn)))
    low = high = nan
    if isfinite(value) and len(rows) > 1 and len(found) > 0.95 * RESAMPLES:
        tail = (1 - LEVEL) / 2
        low, high = found[int(tail * (len(found) - 1))], found[int((1 - tail) * (len(found) - 1))]
    return Mean(value=value, low=low, high=high, count=len(rows))


def ends(settings: Mapping[float, ByTask]) -> tuple[float, float]:
    """The two temperatures that are compared: the lowest, and 1.0 or, where it was not run or is the lowest, the
    highest."""
    low = min(settings)
    return low, 1.0 if low < 1.0 in settings else max(settings)


# What each finding is measured by


def _neither(evidence: Evidence) -> Measured:
    assert evidence.temperature is not None
    cold, _ = ends(evidence.temperature)
    found = evidence.temperature[cold]
    ones = dict.fromkeys(found.local, 1.0)
    return Measured(
        differences=(
            difference(
                "global AR-ness less that of a random order", found.random_global, found.global_, claimed="above"
            ),
            difference("global AR-ness less 1", dict.fromkeys(found.global_, 1.0), found.global_, claimed="below"),
            difference("local AR-ness less that of a random order", found.random_local, found.local, claimed="above"),
            difference("local AR-ness less 1", ones, found.local, claimed="below"),
        ),
        levels=(
            level(f"global AR-ness@1 at T {cold:g}", found.global_),
            level("of a random order in steps of the same sizes", found.random_global),
            level(f"local AR-ness@1 at T {cold:g}", found.local),
            level("of a random order in steps of the same sizes", found.random_local),
        ),
    )


def _local(evidence: Evidence) -> Measured:
    assert evidence.temperature is not None
    return _over_temperature(evidence.temperature, "local AR-ness@1", lambda found: found.local, claimed="below")


def _global(evidence: Evidence) -> Measured:
    assert evidence.temperature is not None
    return _over_temperature(evidence.temperature, "global AR-ness@1", lambda found: found.global_, claimed="below")


def _order_alone(evidence: Evidence) -> Measured:
    assert evidence.temperature is not None
    assert evidence.order is not None
    assert evidence.content is not None
    differences, levels = [], []
    for role, settings in (
        ("order only", evidence.order),
        ("content only", evidence.content),
        ("both", evidence.temperature),
    ):
        cold, hot = ends(settings)
        for name, pick in _AR_NESS:
            first, second = pick(settings[cold]), pick(settings[hot])
            claimed: Side | None = "below" if role == "order only" else None
            differences.append(
                difference(f"{role}: {name} at T {hot:g} less T {cold:g}", first, second, claimed=claimed)
            )
            levels += [level(f"{role}: {name} at T {t:g}", pick(settings[t])) for t in (cold, hot)]
    return Measured(
        differences=tuple(differences),
        levels=tuple(levels),
        notes=(
            "At T 1 the scores that order are the network's own, so there order only is greedy decoding, and content "
            "only is the same as both: what is compared is one temperature with another, not with none.",
        ),
    )


def _pass_at_many(evidence: Evidence) -> Measured:
    assert evidence.temperature is not None
    k = max(min(found.passed, key=lambda k: (abs(k - 10), k), default=1) for found in evidence.temperature.values())
    if k < 2:
        return Measured(why="it needs several samples of each task; give -n 10")
    notes = () if k == 10 else (f"With so few samples it is pass@{k} that is compared.",)
    measured = _over_temperature(
        evidence.temperature, f"pass@{k}", lambda found: found.passed.get(k, {}), claimed="above"
    )
    return Measured(differences=measured.differences, levels=measured.levels, notes=notes)


def _pass_at_one(evidence: Evidence) -> Measured:
    assert evidence.temperature is not None
    return _over_temperature(evidence.temperature, "pass@1", _pass_1, claimed="below")


def _sink(evidence: Evidence) -> Measured:
    assert evidence.order is not None
    _, hot = ends(evidence.order)
    zones = evidence.order[hot].confidence
    near, far = zones.get(NEAR, {}), zones.get(FAR, {})
    notes = () if far else ("No answer has room for more than 16 tokens, so there is no far.",)
    return Measured(
        differences=(difference("confidence at distances 1 to 4 less beyond 16", far, near, claimed="above"),),
        levels=(
            level("confidence at distances 1 to 4", near),
            level("at 5 to 16", zones.get(BETWEEN, {})),
            level("beyond 16", far),
        ),
        notes=notes,
    )


def _rl_order(evidence: Evidence) -> Measured:
    assert evidence.temperature is not None
    assert evidence.after_temperature is not None
    before, after = evidence.temperature, evidence.after_temperature
    cold = min(set(before) & set(after))
    best = _best(before), _best(after)
    differences = [
        difference(
            f"global AR-ness@1 at T {cold:g}, after less before",
            before[cold].global_,
            after[cold].global_,
            claimed="below",
        ),
        difference(
            f"after at its best T {best[1]:g} less before at its best T {best[0]:g}",
            before[best[0]].global_,
            after[best[1]].global_,
            claimed=None,
        ),
    ]
    levels = [
        level(f"{when}, global AR-ness@1 at T {t:g}", settings[t].global_)
        for when, settings in (("before", before), ("after", after))
        for t in sorted(settings)
    ]
    return Measured(
        differences=tuple(differences),
        levels=tuple(levels),
        notes=("The paper compares each model at its best temperature, where temperature and training act together.",),
    )


def _rl_temperature(evidence: Evidence) -> Measured:
    assert evidence.temperature is not None
    assert evidence.after_temperature is not None
    before, after = evidence.temperature, evidence.after_temperature
    grid = sorted(set(before) & set(after))
    columns = [_pass_1(settings[t]) for settings in (before, after) for t in grid]

    def moved(means: Sequence[float]) -> float:
        first, second = means[: len(grid)], means[len(grid) :]
        return grid[second.index(max(second))] - grid[first.index(max(first))]

    return Measured(
        differences=(Difference(what="best T after less before", mean=statistic(columns, moved), claimed="above"),),
        levels=tuple(
            level(f"{when}, pass@1 at T {t:g}", _pass_1(settings[t]))
            for when, settings in (("before", before), ("after", after))
            for t in grid
        ),
        notes=(
            f"The best of T {', '.join(f'{t:g}' for t in grid)}; of equal ones the lowest. A move between two of them "
            "is not seen.",
        ),
    )


def _rl_steps(evidence: Evidence) -> Measured:
    assert evidence.steps is not None
    assert evidence.after_steps is not None
    common = set(evidence.steps) & set(evidence.after_steps)
    if len(common) < 2:
        return Measured(why="answers of so few tokens have no half as many steps; give more --max-new-tokens")
    whole = max(common)
    half = _half(evidence.steps, whole)
    columns = [_pass_1(settings[s]) for settings in (evidence.steps, evidence.after_steps) for s in (whole, half)]

    def drop(means: Sequence[float]) -> float:
        return means[1] / means[0] - 1 if means[0] else nan

    def less_lost(means: Sequence[float]) -> float:
        return drop(means[2:]) - drop(means[:2])

    rates = [
        Level(what=f"{when}, pass@1 with {half} steps against {whole}, relative", mean=statistic(pair, drop))
        for when, pair in (("before", columns[:2]), ("after", columns[2:]))
    ]
    shown = [
        level(f"{when}, pass@1 with {s} steps", _pass_1(settings[s]))
        for when, settings in (("before", evidence.steps), ("after", evidence.after_steps))
        for s in sorted(settings, reverse=True)
    ]
    mean = statistic(columns, less_lost)
    return Measured(
        differences=(Difference(what="relative drop after less before", mean=mean, claimed="above"),),
        levels=(*rates, *shown),
        notes=() if isfinite(mean.value) else ("A model that solves nothing has no relative drop.",),
    )


def _coupled(evidence: Evidence) -> Measured:
    assert evidence.spread is not None
    coupled, apart = evidence.spread["coupled"], evidence.spread["decoupled"]
    both = [task for task in coupled if coupled[task] > 0 and apart.get(task, 0.0) > 0]
    ratios = {task: log(coupled[task] / apart[task]) for task in both}
    found = level("", ratios).mean
    share = Mean(value=exp(found.value), low=exp(found.low), high=exp(found.high), count=found.count)
    return Measured(
        differences=(
            Difference(what="logarithm of the variance with the complement over without", mean=found, claimed="below"),
        ),
        levels=(
            Level(what="variance with the complement as a share of that without", mean=share),
            level("standard deviation with the complement, nats", {task: sqrt(coupled[task]) for task in both}),
            level("and of masks drawn apart", {task: sqrt(apart[task]) for task in both}),
        ),
    )


def _stages(evidence: Evidence) -> Measured:
    assert evidence.stages is not None
    claims: tuple[tuple[str, str, Side], ...] = (
        ("adapt", "mid", "above"),
        ("mid", "sft", "above"),
        ("sft", "sft-2", "below"),
    )
    there = [name for name in STAGES if name in evidence.stages]
    absent = [name for name in STAGES if name not in there]
    differences = [
        difference(
            f"global AR-ness@1 after {second} less after {first}",
            evidence.stages[first].global_,
            evidence.stages[second].global_,
            claimed=side,
        )
        for first, second, side in claims
        if first in there and second in there
    ]
    levels = [
        level(f"{name} AR-ness@1 after {stage}", pick(evidence.stages[stage]))
        for name, pick in (("global", _AR_NESS[1][1]), ("local", _AR_NESS[0][1]))
        for stage in there
    ]
    notes = [f"There is no model of {', '.join(absent)}, so what needs it is left out."] if absent else []
    why = "" if differences else "no two stages that follow each other are there"
    return Measured(differences=tuple(differences), levels=tuple(levels), notes=tuple(notes), why=why)


def _not_here(evidence: Evidence) -> Measured:
    return Measured(
        why="it compares code with mathematics (GSM8K), and no model here answers that; `unmask evaluate` has no such "
        "benchmark"
    )


def _over_temperature(
    settings: Mapping[float, ByTask], name: str, pick: Callable[[ByTask], Values], *, claimed: Side
) -> Measured:
    cold, hot = ends(settings)
    compared = difference(
        f"{name} at T {hot:g} less T {cold:g}", pick(settings[cold]), pick(settings[hot]), claimed=claimed
    )
    levels = tuple(level(f"{name} at T {t:g}", pick(settings[t])) for t in sorted(settings))
    return Measured(differences=(compared,), levels=levels)


_AR_NESS: tuple[tuple[str, Callable[[ByTask], Values]], ...] = (
    ("local AR-ness@1", lambda found: found.local),
    ("global AR-ness@1", lambda found: found.global_),
)


def _pass_1(found: ByTask) -> Values:
    return found.passed.get(1, {})


def _best(settings: Mapping[float, ByTask]) -> float:
    """The temperature with the highest pass@1; of equal ones the lowest."""
    return max(sorted(settings), key=lambda t: fmean(_pass_1(settings[t]).values() or [0.0]))


def _half(settings: Mapping[int, ByTask], whole: int) -> int:
    return min((s for s in settings if s != whole), key=lambda s: abs(s - whole / 2))


def _numbers(mean: Mean) -> dict[str, float | int | None]:
    numbers = {"value": mean.value, "low": mean.low, "high": mean.high}
    return {**{name: value if isfinite(value) else None for name, value in numbers.items()}, "tasks": mean.count}


FINDINGS: tuple[Finding, ...] = (
    Finding(
        name="neither-order",
        claim="Decoding is neither left-to-right nor random: a good share of tokens are neither the next nor the "
        "leftmost open one.",
        paper="sections 4.2 and 4.3, figure 3 (curves)",
        rule="at the lowest temperature, local and global AR-ness@1 lie above those of a random order in steps of the "
        "same sizes and below 1",
        needs=("temperature",),
        measure=_neither,
    ),
    Finding(
        name="temperature-local",
        claim="A higher temperature lowers local AR-ness.",
        paper="sections 4.2 and 4.3: from T 0.2 to 1.0 it falls, base and instruct (curves)",
        rule="local AR-ness@1 at the high temperature less at the low one is below zero",
        needs=("temperature",),
        measure=_local,
    ),
    Finding(
        name="temperature-global",
        claim="A higher temperature lowers global AR-ness.",
        paper="sections 4.2 and 4.3: from T 0.2 to 1.0 it falls, base and instruct (curves)",
        rule="global AR-ness@1 at the high temperature less at the low one is below zero",
        needs=("temperature",),
        measure=_global,
    ),
    Finding(
        name="order-alone",
        claim="Temperature changes not only what is written but where: the order loosens even with the choice of "
        "tokens fixed.",
        paper="sections 4.2 and 4.3 say so of temperature as a whole; taking the two apart is ours",
        rule="with greedy tokens, local and global AR-ness@1 ordered at the high temperature less at the low one are "
        "below zero",
        needs=("temperature", "order", "content"),
        measure=_order_alone,
    ),
    Finding(
        name="pass-at-10",
        claim="pass@10 rises with the temperature.",
        paper="figure 6: pass@10 of 77.4 to 87.8 % at T 1.0 and 1.2, and flat over k at T 0.2 (HumanEval)",
        rule="pass@10 at the high temperature less at the low one is above zero",
        needs=("temperature",),
        measure=_pass_at_many,
    ),
    Finding(
        name="pass-at-1",
        claim="pass@1 falls with the temperature.",
        paper="figure 6: 67.1 % (base) and 72.0 % (instruct) at T 0.2, 43.7 to 55.2 % at T 1.0 and 1.2 "
        "(HumanEval and HumanEval+)",
        rule="pass@1 at the high temperature less at the low one is below zero",
        needs=("temperature",),
        measure=_pass_at_one,
    ),
    Finding(
        name="entropy-sink",
        claim="With everything masked, confidence is very high right behind the prompt and falls to a low, flat floor.",
        paper="section 4.2; heat maps in appendix C.1",
        rule="in the first step of greedy runs, confidence at distances 1 to 4 less beyond 16 is above zero",
        needs=("order",),
        measure=_sink,
    ),
    Finding(
        name="rl-order",
        claim="Coupled-GRPO lowers global AR-ness.",
        paper="sections 4.2 and 4.3 (curves, at the new best temperature)",
        rule="global AR-ness@1 after less before, at the lowest temperature, is below zero",
        needs=("temperature", "after_temperature"),
        measure=_rl_order,
    ),
    Finding(
        name="rl-temperature",
        claim="Coupled-GRPO raises the best temperature.",
        paper="from 0.2 to between 0.3 and 0.4 (text beside table 2)",
        rule="the temperature with the best pass@1 after less before is above zero",
        needs=("temperature", "after_temperature"),
        measure=_rl_temperature,
    ),
    Finding(
        name="rl-steps",
        claim="Halving the steps costs less after coupled-GRPO.",
        paper="figure 1c: pass@1 drops by 16.7 % after and by 30.6 % before (HumanEval)",
        rule="the relative drop of pass@1 after less before is above zero",
        needs=("steps", "after_steps"),
        measure=_rl_steps,
    ),
    Finding(
        name="coupled-masks",
        claim="A mask and its complement score an answer with less variance than two masks drawn apart.",
        paper="appendix A.4 (theorem: less by v²/2N)",
        rule="the logarithm of the ratio of variances, coupled over drawn apart with as many forwards, is below "
        "zero in the mean over answers",
        needs=("spread",),
        measure=_coupled,
    ),
    Finding(
        name="stages",
        claim="The first epoch of mid-training and of instruction tuning raises AR-ness, and more epochs lower it.",
        paper="sections 4.2 and 4.3 (curves of all stages)",
        rule="global AR-ness@1 of mid less adapt and of sft less mid are above zero, of sft-2 less sft below",
        needs=("stages",),
        measure=_stages,
    ),
    Finding(
        name="code-and-math",
        claim="Code has a lower mean and a higher variance of global AR-ness than mathematics.",
        paper="sections 4.2 and 4.3 (curves)",
        rule="not measured here",
        needs=(),
        measure=_not_here,
    ),
)
