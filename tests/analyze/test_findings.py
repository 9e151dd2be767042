"""The rule of the verdicts, on numbers that are made up."""

from math import inf, log, nan

import pytest

from unmask.analyze.bootstrap import Mean
from unmask.analyze.by_task import ByTask, by_task
from unmask.analyze.findings import (
    EXPERIMENTS,
    FEWEST,
    FINDINGS,
    Evidence,
    Outcome,
    difference,
    ends,
    find,
    judge,
    outcome,
    statistic,
)
from unmask.errors import SettingsError
from unmask.trajectory import Commit, Step, Trajectory

TASKS = [f"t{i}" for i in range(12)]


def values(level: float, *, spread: float = 0.02, count: int = 12) -> dict[str, float]:
    return {task: level + spread * (at % 3 - 1) for at, task in enumerate(TASKS[:count])}


def setting(local: float = 0.5, global_: float = 0.7, *, pass_1: float = 0.5, pass_10: float = 0.8) -> ByTask:
    return ByTask(
        local=values(local),
        global_=values(global_),
        random_local=values(0.05),
        random_global=values(0.15),
        confidence={"near": values(0.9), "between": values(0.5), "far": values(0.2)},
        passed={1: values(pass_1), 10: values(pass_10)},
    )


def whole() -> Evidence:
    """What the paper found."""
    cold, hot = setting(0.6, 0.8, pass_1=0.7, pass_10=0.72), setting(0.3, 0.5, pass_1=0.5, pass_10=0.85)
    tuned = {0.2: setting(0.5, 0.7, pass_1=0.7), 1.0: setting(0.2, 0.4, pass_1=0.8)}
    return Evidence(
        temperature={0.2: cold, 1.0: hot},
        order={0.2: cold, 1.0: hot},
        content={0.2: cold, 1.0: hot},
        steps={96: setting(pass_1=0.6), 48: setting(pass_1=0.3), 24: setting(pass_1=0.1)},
        after_temperature=tuned,
        after_steps={96: setting(pass_1=0.6), 48: setting(pass_1=0.5), 24: setting(pass_1=0.2)},
        stages={
            "adapt": setting(global_=0.5),
            "mid": setting(global_=0.6),
            "sft": setting(global_=0.8),
            "sft-2": setting(global_=0.7),
        },
        spread={"coupled": values(0.1), "decoupled": values(0.3)},
    )


def named(name: str, evidence: Evidence) -> Outcome:
    (finding,) = find([name])
    return outcome(finding, evidence)


@pytest.mark.parametrize(
    ("low", "high", "claimed", "verdict"),
    [
        (0.1, 0.3, "above", "reproduced"),
        (0.1, 0.3, "below", "contradicted"),
        (-0.3, -0.1, "below", "reproduced"),
        (-0.3, -0.1, "above", "contradicted"),
        (-0.1, 0.3, "above", "undecided"),
        (0.0, 0.3, "above", "undecided"),
        (-0.3, 0.0, "below", "undecided"),
        (0.0, 0.0, "below", "undecided"),
        (nan, nan, "above", "undecided"),
        (0.1, inf, "above", "undecided"),
    ],
)
def test_the_verdict_is_the_side_of_zero_that_the_interval_lies_on(
    low: float, high: float, claimed: str, verdict: str
) -> None:
    mean = Mean(value=(low + high) / 2, low=low, high=high, count=40)
    assert judge(mean, claimed=claimed) == verdict  # type: ignore[arg-type]


def test_fewer_than_six_tasks_decide_nothing() -> None:
    def told(count: int) -> Outcome:
        few = ByTask(local=values(0.6, count=count)), ByTask(local=values(0.2, count=count))
        return named("temperature-local", Evidence(temperature={0.2: few[0], 1.0: few[1]}))

    assert told(FEWEST).verdict == "reproduced"
    assert told(FEWEST - 1).verdict == "undecided"
    assert told(FEWEST - 1).measured.notes == (
        "Only 5 tasks have what is compared, and at least 6 are needed to decide.",
    )
    assert 2.0 ** (1 - FEWEST) < 0.05 < 2.0 ** (1 - (FEWEST - 1))


def test_what_the_paper_found_is_reproduced_and_its_opposite_contradicted() -> None:
    evidence = whole()
    verdicts = {finding.name: outcome(finding, evidence).verdict for finding in FINDINGS}
    assert verdicts.pop("code-and-math") == "not measured"
    assert set(verdicts.values()) == {"reproduced"}, verdicts
    assert evidence.temperature is not None
    turned = {0.2: evidence.temperature[1.0], 1.0: evidence.temperature[0.2]}
    for name in ("temperature-local", "temperature-global", "pass-at-1", "pass-at-10"):
        assert named(name, Evidence(temperature=turned)).verdict == "contradicted"


def test_one_difference_of_several_is_enough_to_contradict_and_all_are_needed_to_reproduce() -> None:
    evidence = whole()
    assert evidence.stages is not None
    for last, verdict in ((0.7, "reproduced"), (0.8, "undecided"), (0.9, "contradicted")):
        stages = {**evidence.stages, "sft-2": setting(global_=last)}
        assert named("stages", Evidence(stages=stages)).verdict == verdict


def test_a_stage_that_is_not_there_is_left_out_and_named() -> None:
    evidence = whole()
    assert evidence.stages is not None
    some = {name: found for name, found in evidence.stages.items() if name != "sft"}
    found = named("stages", Evidence(stages=some))
    assert (found.verdict, len(found.measured.differences)) == ("reproduced", 1)
    assert "There is no model of sft" in found.measured.notes[0]
    alone = named("stages", Evidence(stages={"adapt": setting()}))
    assert (alone.verdict, alone.measured.why) == ("not measured", "no two stages that follow each other are there")


def test_what_was_not_run_is_not_measured_and_says_what_would_run_it() -> None:
    for finding in FINDINGS:
        assert set(finding.needs) <= set(EXPERIMENTS)
        found = outcome(finding, Evidence(), missing=dict.fromkeys(EXPERIMENTS, "run it with `this`"))
        assert found.verdict == "not measured"
        assert found.measured.why == ("run it with `this`" if finding.needs else found.measured.why)
        assert found.measured.why


def test_one_sample_of_a_task_has_no_pass_at_10() -> None:
    few = ByTask(passed={1: values(0.5)})
    found = named("pass-at-10", Evidence(temperature={0.2: few, 1.0: few}))
    assert (found.verdict, found.measured.why) == (
        "not measured",
        "it needs several samples of each task; give -n 10",
    )
    three = ByTask(passed={1: values(0.5), 3: values(0.6)})
    assert "pass@3" in named("pass-at-10", Evidence(temperature={0.2: three, 1.0: three})).measured.notes[0]


def test_the_best_temperature_of_two_models_is_drawn_together() -> None:
    (compared,) = named("rl-temperature", whole()).measured.differences
    assert (compared.mean.value, compared.mean.low, compared.mean.high) == (0.8, 0.8, 0.8)
    even = {t: setting(pass_1=0.5) for t in (0.2, 1.0)}
    assert named("rl-temperature", Evidence(temperature=even, after_temperature=even)).verdict == "undecided"


def test_a_model_that_solves_nothing_has_no_relative_drop() -> None:
    none = {96: ByTask(passed={1: values(0.0, spread=0)}), 48: ByTask(passed={1: values(0.0, spread=0)})}
    found = named("rl-steps", Evidence(steps=none, after_steps=none))
    assert found.verdict == "undecided"
    assert "solves nothing" in found.measured.notes[0]


def test_answers_of_one_token_have_no_half_of_the_steps() -> None:
    one = {1: ByTask(passed={1: values(0.5)})}
    found = named("rl-steps", Evidence(steps=one, after_steps=one))
    assert found.verdict == "not measured"
    assert "more --max-new-tokens" in found.measured.why


def test_relative_drops_are_those_of_the_means() -> None:
    found = named("rl-steps", whole())
    (compared,) = found.measured.differences
    assert compared.mean.value == pytest.approx((0.5 / 0.6 - 1) - (0.3 / 0.6 - 1))
    assert [level.mean.value for level in found.measured.levels[:2]] == pytest.approx([-0.5, -1 / 6])


def test_variances_are_compared_within_answers() -> None:
    spread = {"coupled": {"a": 0.1, "b": 0.4, "c": 0.0}, "decoupled": {"a": 0.2, "b": 0.8, "c": 0.1, "d": 1.0}}
    found = named("coupled-masks", Evidence(spread=spread))
    assert found.measured.differences[0].mean.value == pytest.approx(log(0.5))
    assert found.measured.differences[0].mean.count == 2
    assert found.measured.levels[0].mean.value == pytest.approx(0.5)


def test_a_difference_is_of_the_tasks_that_both_have() -> None:
    found = difference("d", {"a": 1.0, "b": 5.0}, {"a": 2.0, "c": 9.0}, claimed="above")
    assert (found.mean.value, found.mean.count) == (1.0, 1)
    assert difference("d", {}, {"a": 1.0}, claimed="above").verdict == "undecided"


def test_a_statistic_without_a_value_in_many_draws_has_no_interval() -> None:
    columns = [{"a": 0.0, "b": 1.0}]
    found = statistic(columns, lambda means: 1 / means[0] if means[0] else nan)
    assert found.value == 2.0
    assert found.low != found.low  # NaN: a quarter of the draws have a mean of 0


def test_a_statistic_of_differences_has_the_interval_of_the_mean() -> None:
    first, second = values(0.5, spread=0.2), values(0.6, spread=0.1)
    plain = difference("d", first, second, claimed=None).mean
    found = statistic([first, second], lambda means: means[1] - means[0])
    assert found.value == pytest.approx(plain.value)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.02)


def test_the_hot_end_is_1_where_it_was_run() -> None:
    assert ends(dict.fromkeys((0.2, 1.0, 1.4), ByTask())) == (0.2, 1.0)
    assert ends(dict.fromkeys((0.3, 0.9), ByTask())) == (0.3, 0.9)
    assert ends(dict.fromkeys((1.0, 1.4), ByTask())) == (1.0, 1.4)  # and not 1 with itself


def test_an_unknown_finding_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="'entropy-sinc' is no finding; did you mean entropy-sink"):
        find(["entropy-sinc"])
    assert find([]) == FINDINGS
    assert len({finding.name for finding in FINDINGS}) == len(FINDINGS) == 13


def test_runs_of_a_task_are_averaged_and_empty_ones_are_in_no_mean() -> None:
    def run(places: list[int], *, end: bool = False) -> Trajectory:
        steps = [Step(commits=[Commit(0, place, 9 if end else 5, 0.9, 0.1)]) for place in places]
        steps[0].seen = [(place, 1 / place, 0.1) for place in range(1, 22)]
        return Trajectory(initial_ids=[0, *[None] * 21], steps=steps, end_ids=[9])

    found = by_task({"a": [run([1, 2]), run([2, 1]), run([1], end=True)], "b": [run([1], end=True)]})
    assert found.local == {"a": 0.5}
    assert found.global_ == {"a": 0.75}
    assert found.random_local == {"a": pytest.approx(1 / 21)}, "of 21 open places"
    assert found.random_global == {"a": pytest.approx((1 / 21 + 1 / 20) / 2)}
    assert found.confidence["near"]["b"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert found.confidence["far"]["b"] == pytest.approx(sum(1 / d for d in range(17, 22)) / 5)
