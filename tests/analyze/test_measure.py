"""The measures of a run, and their means over runs."""

import json
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.analyze.ar_ness import global_ar_ness, local_ar_ness
from unmask.analyze.measure import Conventions, Measures, MixedModels, by_model, measure, summary
from unmask.analyze.order import Part
from unmask.analyze.random_order import Shape
from unmask.errors import SettingsError, TrajectoryError
from unmask.trajectory import Commit, Step, Trajectory

END = 2
EXAMPLE = [1, 2, 5, 6, 7, 3, 8, 4]


def run(order: list[int], *, end: int | None = None, model: str = "tiny", **given: object) -> Trajectory:
    """One position per step; `end` is where the end token stands."""
    steps = [Step(commits=[Commit(0, place, END if place == end else 7, 0.5, 0.1)]) for place in order]
    return Trajectory(
        initial_ids=[5, *[None] * 20],
        steps=steps,
        model=model,
        end_ids=[END],
        num_forwards=len(order),
        settings={"temperature": 0.2},
        **given,  # type: ignore[arg-type]
    )


def test_a_run_has_the_measures_of_its_answer() -> None:
    found = measure(run([1, 2, 10, 5, 6, 7, 3, 8, 9, 4], end=9, seed=3, sample=4))
    assert found.local == {
        k: local_ar_ness(EXAMPLE, k) if k < 8 else pytest.approx(math.nan, nan_ok=True) for k in range(1, 10)
    }
    assert found.global_ == {k: global_ar_ness(EXAMPLE, k) for k in range(1, 5)}
    assert found.local_set[2] == local_ar_ness(EXAMPLE, 2, reading="set")
    assert (found.model, found.seed, found.sample, found.temperature) == ("tiny", 3, 4, 0.2)
    assert (found.num_tokens, found.num_end, found.num_measured, found.num_steps) == (8, 2, 8, 10)
    assert (found.tokens_per_forward, found.end_share, found.end_settled_at) == (0.8, 0.2, 0.9)


def test_the_conventions_decide() -> None:
    t = run([1, 3, 2, 10, 9], end=9)
    assert measure(t, conventions=Conventions(part="all")).num_measured == 5
    assert measure(t, conventions=Conventions(part="end")).global_[1] == 1 / 2
    assert measure(t, conventions=Conventions(over="all")).local[1] == measure(t).local[1] * 2 / 3
    both = Trajectory(
        initial_ids=[None, None], steps=[Step(commits=[Commit(0, 0, 7, 0.1, 0), Commit(0, 1, 7, 0.9, 0)])]
    )
    assert measure(both).local[1] == 1
    assert measure(both, conventions=Conventions(ties="confidence")).local[1] == 0
    assert math.isnan(measure(both).pairwise_local)


def test_the_k_that_are_asked_for_are_measured() -> None:
    found = measure(run(EXAMPLE), local_ks=(1, 20), global_ks=(7,))
    assert list(found.local) == [1, 20]
    assert list(found.global_) == [7]
    assert found.to_json()["local_ar_ness"]["20"] is None


def test_a_summary_is_the_mean_over_runs_with_an_interval() -> None:
    generator = random.Random(0)
    runs = [measure(run(generator.sample(range(1, 21), 20), seed=n, label=f"task {n}")) for n in range(30)]
    found = summary(runs, seed=1)
    assert found.global_[2].value == pytest.approx(sum(one.global_[2] for one in runs) / 30)
    assert found.global_[2].low < found.global_[2].value < found.global_[2].high
    assert (found.num_runs, found.num_empty, found.temperatures) == (30, 0, (0.2,))
    assert summary(runs, seed=1).to_json() == found.to_json() != summary(runs, seed=2).to_json()


def test_intervals_are_over_tasks() -> None:
    generator = random.Random(0)
    orders = [generator.sample(range(1, 21), 20) for _ in range(12)]
    unlabelled = summary([measure(run(order)) for order in orders])
    assert (unlabelled.num_runs, unlabelled.num_tasks, unlabelled.local[1].tasks) == (12, 1, 1)
    assert math.isnan(unlabelled.local[1].low)
    found = summary([measure(run(order, label=f"task {n % 3}")) for n, order in enumerate(orders)])
    assert (found.num_runs, found.num_tasks) == (12, 3)
    means = [sum(measure(run(order)).global_[1] for order in orders[n::3]) / 4 for n in range(3)]
    assert (found.global_[1].low, found.global_[1].high) == pytest.approx((min(means), max(means)))
    line = found.to_json()
    assert (line["num_tasks"], line["tasks"]["global_ar_ness"]["1"], line["tasks"]["num_tokens"]) == (3, 3, 3)


def test_a_task_is_a_label_or_else_the_row_that_a_run_began_with() -> None:
    one, other = run([1]), run([1])
    other.initial_ids[0] = 6
    assert measure(one).task == measure(run([2, 1], seed=1)).task != measure(other).task
    assert measure(run([1], label="HumanEval/0")).task == measure(run([1], label="HumanEval/0")).to_json()["task"]


# Open places and holes


def test_what_is_masked_in_the_end_was_open_all_along() -> None:
    t = Trajectory(initial_ids=[5, *[None] * 4], steps=[Step(commits=[Commit(0, p, 7, 0.5, 0.1)]) for p in (3, 4)])
    assert measure(t).global_ == {1: 0, 2: 0, 3: 1, 4: 1}
    ended = Trajectory(initial_ids=[*[None] * 5], end_ids=[END], steps=t.steps[:])
    ended.steps.append(Step(commits=[Commit(0, 2, END, 0.5, 0.1)]))
    assert measure(ended, conventions=Conventions(part="end")).global_[1] == 1 / 3
    assert measure(ended, conventions=Conventions(part="all")).global_[1] == 0


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(["answer", "end", "all"]))
def test_global_ar_ness_is_that_of_the_masked_sets_also_of_unfinished_runs(seed: int, k: int, part: Part) -> None:
    """M_{t-1} written out: what the replay shows masked, of the part, less what of the step stands further left."""
    chance = random.Random(seed)
    ids = chance.choices([5, None], [1, 3], k=chance.randint(1, 9))
    is_open = {place for place, token in enumerate(ids) if token is None}
    t = Trajectory(initial_ids=list(ids), end_ids=[END])
    for _ in range(chance.randint(0, 5)):
        places = chance.sample(sorted(is_open), min(len(is_open), chance.randint(0, 3)))
        is_open -= set(places)
        t.steps.append(Step(commits=[Commit(0, place, chance.choice([END, 7, 7, 7]), 0.5, 0.1) for place in places]))
    *_, last = t.frames()
    ends = [place for place, token in enumerate(last.ids) if token == END]
    end = min(ends, default=len(ids))
    parts = {"answer": range(end), "end": range(end, len(ids)), "all": range(len(ids))}
    hits = []
    for before, after in pairwise(t.frames()):
        masked = [place for place in parts[part] if before.ids[place] is None]
        for place in sorted(after.new & set(masked)):
            hits.append(place in masked[:k])
            masked.remove(place)
    found = measure(t, global_ks=(k,), conventions=Conventions(part=part))
    assert found.global_[k] == pytest.approx(sum(hits) / len(hits) if hits else math.nan, nan_ok=True)
    assert found.shape.num_open == sum(ids[place] is None for place in parts[part])


def test_holes_filled_one_after_the_other_from_left_to_right_have_one() -> None:
    holes = [5, None, None, None, 5, 5, None, None, None]
    steps = [Step(commits=[Commit(0, place, 7, 0.5, 0.1)]) for place in (1, 2, 3, 6, 7, 8)]
    found = measure(Trajectory(initial_ids=holes, steps=steps))
    assert found.local == {k: 1 if k < 6 else pytest.approx(math.nan, nan_ok=True) for k in range(1, 10)}
    assert (found.global_[1], found.pairwise_local, found.pairwise_global) == (1, 1, 1)
    unfinished = measure(Trajectory(initial_ids=holes, steps=[*steps[:2], *steps[3:]]))
    assert unfinished.local[1] == 3 / 4, "a place that is still open parts its neighbours"


@given(st.permutations(range(1, 8)))
def test_the_ranks_of_one_answer_change_nothing(order: list[int]) -> None:
    t = Trajectory(initial_ids=[5, *[None] * 7], steps=[Step(commits=[Commit(0, p, 7, 0.5, 0.1)]) for p in order])
    assert measure(t).local[1] == local_ar_ness(order)


def test_a_shape_is_how_many_each_step_settled_or_one_by_one_where_the_surest_comes_first() -> None:
    both = [Commit(0, 1, 7, 0.1, 0), Commit(0, 2, 7, 0.9, 0)]
    t = Trajectory(
        initial_ids=[5, *[None] * 4], steps=[Step(commits=both), Step(), Step(commits=[Commit(0, 4, 7, 1, 0)])]
    )
    assert measure(t).shape == Shape(sizes=(2, 1), num_open=4)
    assert measure(t, conventions=Conventions(ties="confidence")).shape == Shape(sizes=(1, 1, 1), num_open=4)


# Means


def test_runs_too_short_for_a_k_are_left_out_of_its_mean_and_counted() -> None:
    found = summary([measure(run([1, 2, 3, 4])), measure(run([1, 2]))])
    assert (found.local[1].value, found.local[1].count) == (1, 2)
    assert (found.local[3].value, found.local[3].count) == (1, 1)
    line = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (line["local_ar_ness"]["3"], line["runs"]["local_ar_ness"]["3"]) == (1, 1)
    assert line["local_ar_ness"]["9"] is None
    assert line["intervals"]["local_ar_ness"]["3"] == [None, None]


def test_json_has_both_curves_keyed_by_k_and_names_its_conventions() -> None:
    line = summary([measure(run(EXAMPLE))]).to_json()
    assert list(line["local_ar_ness"]) == [str(k) for k in range(1, 10)]
    assert line["global_ar_ness"] == {"1": 0.5, "2": 0.625, "3": 1.0, "4": 1.0}
    assert line["conventions"] == {
        "reading": "sequence",
        "denominator": "T-k",
        "ties": "position",
        "part": "answer",
    }
    one = measure(run(EXAMPLE), conventions=Conventions(over="all", ties="confidence", part="all")).to_json()
    assert one["conventions"] == {
        "reading": "sequence",
        "denominator": "T",
        "ties": "confidence",
        "part": "all",
    }
    assert one["global_ar_ness"] == line["global_ar_ness"]


def test_empty_runs_are_counted_apart() -> None:
    found = summary([measure(run([1, 2])), measure(run([])), measure(run([1], end=1))])
    assert (found.num_runs, found.num_empty) == (1, 2)
    assert found.num_tokens.value == 2


@pytest.mark.parametrize(
    ("runs", "conventions", "message"),
    [
        ([], Conventions(), "no run was given; measures are of at least one"),
        ([run([])], Conventions(), "nothing was settled in the run; .*run them again"),
        ([run([1], end=1)] * 2, Conventions(), "any of the 2 runs before an end token; .*or look at part `end`"),
        ([run([1])], Conventions(part="end"), "no run came to one; look at part `answer`"),
    ],
)
def test_nothing_to_measure_at_all_is_an_error_that_says_why(
    runs: list[Trajectory], conventions: Conventions, message: str
) -> None:
    with pytest.raises(TrajectoryError, match=message):
        summary([measure(t, conventions=conventions) for t in runs])


def test_runs_of_several_models_are_grouped_and_not_averaged() -> None:
    runs = [measure(run(EXAMPLE, model=model)) for model in ("b", "a", "b")]
    with pytest.raises(MixedModels, match=r"the runs are of 2 models \('a', 'b'\).*take the models one by one"):
        summary(runs)
    groups = by_model(runs)
    assert [(model, len(found)) for model, found in groups.items()] == [("b", 2), ("a", 1)]
    assert summary(groups["b"]).model == "b"


def test_runs_measured_in_different_ways_are_not_averaged() -> None:
    t = run(EXAMPLE)
    other: list[Measures] = [measure(t, conventions=Conventions(part="all")), measure(t, local_ks=(1,))]
    for one in other:
        with pytest.raises(TrajectoryError, match=r"by different conventions or k; measure all of them alike"):
            summary([measure(t), one])


def test_conventions_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"'tokens' is no part of a run; known: answer, end, all"):
        Conventions(part="tokens")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"'T-k' is no denominator of local AR-ness; known: defined, all"):
        Conventions(over="T-k")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"'pairwise' is no order within a step"):
        Conventions(ties="pairwise")  # type: ignore[arg-type]


def test_settings_without_a_temperature_have_none() -> None:
    t = run(EXAMPLE)
    t.settings = {}
    assert measure(t).temperature is None
    assert summary([measure(t), measure(run(EXAMPLE))]).temperatures == (0.2, None)
