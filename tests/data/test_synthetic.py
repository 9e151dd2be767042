"""The synthetic suite: what its operations mean, which compositions are held out, and what a task is made of."""

import ast
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, cast, get_args

import pytest

from unmask.data.jsonl import read_tasks
from unmask.data.synthetic import compositions, inputs, twins
from unmask.data.synthetic.catalogue import PRIMITIVES
from unmask.data.synthetic.code import Step, Style, write_body
from unmask.data.synthetic.compositions import SPLITS, Composition, Split, split_of, strata
from unmask.data.synthetic.drafts import LONGEST_PROMPT, NUM_TESTS, Draft, draw_task, num_tasks
from unmask.data.synthetic.primitives import Primitive, fill
from unmask.data.synthetic.tasks import answer, make_tasks
from unmask.data.synthetic.texts import PREFILL, QUESTION, as_document, as_messages
from unmask.data.synthetic.write import Format, write
from unmask.data.task import Task
from unmask.errors import SandboxError, SettingsError, TaskError
from unmask.evaluate.prompts import PRESETS
from unmask.sandbox.executor import LocalExecutor, open_executor
from unmask.sandbox.inside import values
from unmask.sandbox.job import Job
from unmask.sandbox.slot import CallRun
from unmask.sandbox.tests import CallTests
from unmask.sandbox.verdict import Limits

HELD_OUT: tuple[Split, ...] = ("val", "test", "hard-test")


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    try:
        found = open_executor(workers=1)
    except SandboxError as error:
        pytest.skip(str(error))
    with found as local:
        assert isinstance(local, LocalExecutor)
        yield local


@pytest.fixture(scope="module")
def drafts() -> list[Draft]:
    """Two hundred of each split."""
    return [draw_task(split, index, 7) for split in SPLITS for index in range(200)]


# Operations. What each means, written the slow and plain way


def digits(n: int) -> list[int]:
    return [int(mark) for mark in str(n) if mark != "-"]


def first_of_each(items: Any) -> list[Any]:
    kept: list[Any] = []
    for item in items:
        if item not in kept:
            kept.append(item)
    return kept


def prefixes(xs: list[int]) -> list[list[int]]:
    return [xs[:end] for end in range(1, len(xs) + 1)]


def only(marks: str, wanted: Callable[[str], bool]) -> str:
    kept = ""
    for mark in marks:
        kept += mark if wanted(mark) else ""
    return kept


def tally(items: Any) -> dict[str, int]:
    return dict(Counter(items))


def selected(xs: Any) -> list[Any]:
    """Sorted by selection."""
    rest, found = list(xs), []
    while rest:
        found.append(rest.pop(rest.index(min(rest))))
    return found


def alternating(xs: list[int]) -> int:
    return sum(x if place % 2 == 0 else -x for place, x in enumerate(xs))


def last_two_distinct(xs: list[int]) -> int:
    rest = [x for x in xs if x != max(xs)]
    return max(rest) if rest else 0


def is_prime(n: int) -> bool:
    return len([d for d in range(1, n + 1) if n % d == 0]) == 2


def best(table: dict[str, int]) -> str:
    for key, value in table.items():
        if value == max(table.values()):
            return key
    return ""


def longest(words: list[str]) -> str:
    for word in words:
        if len(word) == max(map(len, words)):
            return word
    return ""


def by_length(words: list[str]) -> list[str]:
    return [w for size in range(50) for w in words if len(w) == size]


def binary(n: int) -> str:
    return f"{-n if n < 0 else n:b}"


def is_vowel(mark: str) -> bool:
    return mark.lower() in set("aeiou")


MEANINGS: dict[str, Callable[..., Any]] = {
    "square_each": lambda xs: [x * x for x in xs],
    "cube_each": lambda xs: [x * x * x for x in xs],
    "multiply_each": lambda xs, k: [k * x for x in xs],
    "add_to_each": lambda xs, k: [k + x for x in xs],
    "subtract_from_each": lambda xs, k: [-(k - x) for x in xs],
    "negate_each": lambda xs: [0 - x for x in xs],
    "absolute_each": lambda xs: [x if x > 0 else -x for x in xs],
    "remainder_each": lambda xs, k: [divmod(x, k)[1] for x in xs],
    "divide_each": lambda xs, k: [divmod(x, k)[0] for x in xs],
    "cap_each": lambda xs, k: [k if x > k else x for x in xs],
    "raise_negatives": lambda xs: [0 if x < 0 else x for x in xs],
    "digit_sum_each": lambda xs: [sum(digits(x)) for x in xs],
    "write_each": lambda xs: [f"{x}" for x in xs],
    "keep_even": lambda xs: [x for x in xs if x / 2 == x // 2],
    "keep_odd": lambda xs: [x for x in xs if x / 2 != x // 2],
    "keep_positive": lambda xs: [x for x in xs if x >= 1],
    "keep_negative": lambda xs: [x for x in xs if x <= -1],
    "keep_above": lambda xs, k: [x for x in xs if not x <= k],
    "keep_below": lambda xs, k: [x for x in xs if not x >= k],
    "keep_multiples": lambda xs, k: [x for x in xs if x == x // k * k],
    "remove_number": lambda xs, k: [x for x in xs if x - k],
    "sort_numbers": selected,
    "sort_numbers_down": lambda xs: selected(xs)[::-1],
    "reverse_numbers": lambda xs: list(reversed(xs)),
    "unique_numbers": first_of_each,
    "running_totals": lambda xs: [sum(part) for part in prefixes(xs)],
    "running_maxima": lambda xs: [max(part) for part in prefixes(xs)],
    "differences": lambda xs: [after - before for before, after in pairwise(xs)],
    "first_numbers": lambda xs, k: [x for place, x in enumerate(xs) if place < k],
    "skip_numbers": lambda xs, k: [x for place, x in enumerate(xs) if place >= k],
    "every_second": lambda xs: [x for place, x in enumerate(xs) if place % 2 == 0],
    "rotate": lambda xs: [xs[(place + 1) % len(xs)] for place in range(len(xs))],
    "append_total": lambda xs: [*xs, sum(xs)],
    "keep_single": lambda xs: [x for x in xs if sum(x == other for other in xs) == 1],
    "add_up": lambda xs: sum(xs),
    "multiply_up": prod,
    "largest": lambda xs: sorted(xs)[-1] if xs else 0,
    "smallest": lambda xs: sorted(xs)[0] if xs else 0,
    "count_numbers": lambda xs: sum(1 for _ in xs),
    "count_distinct": lambda xs: len(first_of_each(xs)),
    "spread": lambda xs: sorted(xs)[-1] - sorted(xs)[0] if xs else 0,
    "first_number": lambda xs: next(iter(xs), 0),
    "last_number": lambda xs: next(reversed(xs), 0),
    "average": lambda xs: divmod(sum(xs), len(xs))[0] if xs else 0,
    "second_largest": last_two_distinct,
    "alternating_sum": alternating,
    "extremes": lambda xs: (sorted(xs)[0], sorted(xs)[-1]) if xs else (0, 0),
    "total_and_count": lambda xs: (sum(xs), len(xs)),
    "join_numbers": lambda xs, k: "".join(f"{x}{k}" for x in xs)[: -len(k)],
    "is_sorted": lambda xs: all(a <= b for a, b in pairwise(xs)),
    "has_duplicates": lambda xs: any(xs.count(x) > 1 for x in xs),
    "all_above": lambda xs, k: not [x for x in xs if x <= k],
    "contains_number": lambda xs, k: any(x == k for x in xs),
    "add": lambda n, k: k + n,
    "multiply": lambda n, k: sum([n] * k),
    "square": lambda n: n * n,
    "absolute": lambda n: max(n, -n),
    "remainder": lambda n, k: divmod(n, k)[1],
    "divide": lambda n, k: divmod(n, k)[0],
    "digit_sum": lambda n: sum(digits(n)),
    "count_digits": lambda n: len(digits(n)),
    "largest_digit": lambda n: max(digits(n)),
    "reverse_digits": lambda n: sum(d * 10**place for place, d in enumerate(digits(n))),
    "list_digits": digits,
    "count_up": lambda n: [i for i in range(1000) if 1 <= i <= n],
    "list_multiples": lambda n, k: [n + n * i for i in range(k)],
    "list_divisors": lambda n: [i for i in range(1, 1000) if i <= n and n % i == 0],
    "write_number": lambda n: f"{n}",
    "write_binary": binary,
    "is_even": lambda n: digits(n)[-1] in (0, 2, 4, 6, 8),
    "is_divisible": lambda n, k: n == n // k * k,
    "is_above": lambda n, k: not n <= k,
    "is_prime": is_prime,
    "upper": str.upper,
    "lower": str.lower,
    "swap_case": lambda s: "".join(c.lower() if c.isupper() else c.upper() for c in s),
    "reverse_text": lambda s: "".join(reversed(s)),
    "sort_letters": lambda s: "".join(c for code in range(128) for c in s if ord(c) == code),
    "remove_vowels": lambda s: only(s, lambda c: not is_vowel(c)),
    "keep_letters": lambda s: only(s, lambda c: "a" <= c.lower() <= "z"),
    "keep_digits": lambda s: only(s, lambda c: "0" <= c <= "9"),
    "remove_spaces": lambda s: "".join(s.split(" ")),
    "replace_spaces": lambda s, k: k.join(s.split(" ")),
    "remove_letter": lambda s, k: only(s, lambda c: c != k),
    "double_letters": lambda s: "".join(c + c for c in s),
    "repeat_text": lambda s, k: "".join([s] * k),
    "first_letters": lambda s, k: "".join(c for place, c in enumerate(s) if place < k),
    "skip_letters": lambda s, k: "".join(c for place, c in enumerate(s) if place >= k),
    "unique_letters": lambda s: "".join(first_of_each(s)),
    "count_characters": lambda s: sum(1 for _ in s),
    "count_vowels": lambda s: len(only(s, is_vowel)),
    "count_capitals": lambda s: len(only(s, lambda c: "A" <= c <= "Z")),
    "count_letter": lambda s, k: len(only(s, lambda c: c == k)),
    "split_words": lambda s: [word for word in s.split(" ") if word],
    "list_characters": lambda s: [*s],
    "count_each_character": tally,
    "is_palindrome": lambda s: list(s) == list(reversed(s)),
    "contains_letter": lambda s, k: any(c == k for c in s),
    "starts_with": lambda s, k: s[:1] == k,
    "upper_each": lambda ws: [w.upper() for w in ws],
    "capitalize_each": lambda ws: [w[:1].upper() + w[1:].lower() for w in ws],
    "reverse_each": lambda ws: ["".join(reversed(w)) for w in ws],
    "first_letter_each": lambda ws: [w[0] if w else "" for w in ws],
    "append_each": lambda ws, k: [f"{w}{k}" for w in ws],
    "lengths": lambda ws: [sum(1 for _ in w) for w in ws],
    "keep_long": lambda ws, k: [w for w in ws if w[k:]],
    "keep_short": lambda ws, k: [w for w in ws if not w[k - 1 :]],
    "keep_starting": lambda ws, k: [w for w in ws if w[:1] == k],
    "keep_containing": lambda ws, k: [w for w in ws if w.count(k)],
    "drop_containing": lambda ws, k: [w for w in ws if not w.count(k)],
    "sort_words": selected,
    "sort_by_length": by_length,
    "reverse_words": lambda ws: list(reversed(ws)),
    "unique_words": first_of_each,
    "first_words": lambda ws, k: [w for place, w in enumerate(ws) if place < k],
    "join_words": lambda ws, k: "".join(f"{w}{k}" for w in ws)[: -len(k)],
    "glue_words": lambda ws: "".join(ws),
    "longest_word": longest,
    "last_word": lambda ws: next(reversed(ws), ""),
    "count_words": lambda ws: sum(1 for _ in ws),
    "total_length": lambda ws: len("".join(ws)),
    "count_each_word": tally,
    "lengths_by_word": lambda ws: dict(zip(ws, map(len, ws), strict=True)),
    "list_keys": lambda d: [key for key, _ in d.items()],
    "list_values": lambda d: [value for _, value in d.items()],
    "keep_entries_above": lambda d, k: {key: d[key] for key in d if not d[key] <= k},
    "add_to_values": lambda d, k: {key: k + d[key] for key in d},
    "keys_above": lambda d, k: [key for key in d if not d[key] <= k],
    "sum_values": lambda d: sum(d[key] for key in d),
    "best_key": best,
    "count_keys": lambda d: len(list(d)),
    "swap_pair": lambda p: tuple(reversed(p)),
    "double_pair": lambda p: tuple(2 * n for n in p),
    "sum_pair": lambda p: p[0] + p[1],
    "pair_difference": lambda p: p[0] - p[1],
    "pair_product": lambda p: p[0] * p[1],
    "larger": lambda p: sorted(p)[-1],
    "list_pair": lambda p: [p[0], p[1]],
}


def run_form(primitive: Primitive, form: str, value: Any, choice: Any) -> Any:
    """One form of an operation, as the body of a function."""
    parts = {"x": "given", "X": "given", "g": "given", "e": "one", "k": repr(choice), "out": "filled"}
    if form == "expression":
        lines = [f"return {fill(primitive.expression, **parts)}"]
    else:
        template = primitive.blocks[form]
        lines = fill(template, **parts).splitlines() + (["return filled"] if "$out" in template else [])
    space: dict[str, Any] = {}
    exec("def run(given):\n" + "".join(f"    {line}\n" for line in lines), space)
    return space["run"](value)


def samples(primitive: Primitive) -> Iterator[Any]:
    yield from inputs.EDGES[primitive.takes]
    if not primitive.is_first:
        yield from compositions.PROBES[primitive.takes]
    rng = random.Random(primitive.name)
    for _ in range(25):
        yield inputs.draw_value(rng, primitive.takes, is_small=primitive.is_first)


def test_there_are_sixty_operations_and_more_on_every_type() -> None:
    assert len(PRIMITIVES) >= 60
    assert {primitive.takes for primitive in PRIMITIVES.values()} == set(inputs.EDGES)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_form_of_an_operation_does_what_it_means_and_leaves_its_argument_alone(name: str) -> None:
    primitive = PRIMITIVES[name]
    choices: tuple[Any, ...] = primitive.parameter.choices if primitive.parameter is not None else (None,)
    assert primitive.forms
    for number, value in enumerate(samples(primitive)):
        choice = choices[number % len(choices)]
        wanted = MEANINGS[name](value, choice) if choice is not None else MEANINGS[name](value)
        before = repr(value)
        assert primitive.apply(value, choice) == wanted if choice is not None else primitive.apply(value) == wanted
        for form in primitive.forms:
            got = run_form(primitive, form, value, choice)
            assert (got, type(got)) == (wanted, type(wanted)), (form, value, choice)
        assert repr(value) == before


def test_every_operation_has_words_and_a_parameter_is_said_exactly_where_there_is_one() -> None:
    for primitive in PRIMITIVES.values():
        templates = [primitive.expression, *primitive.blocks.values()]
        assert primitive.verbs or primitive.nouns
        for text in (*primitive.verbs, *primitive.nouns, *filter(None, templates)):
            assert ("$k" in text) == (primitive.parameter is not None), (primitive.name, text)


def test_no_two_operations_are_said_alike_of_the_same_type() -> None:
    said = Counter((p.takes, phrase) for p in PRIMITIVES.values() for phrase in (*p.verbs, *p.nouns))
    assert [phrase for phrase, times in said.items() if times > 1] == []


@pytest.mark.parametrize("style", get_args(Style))
def test_every_style_writes_what_the_operations_mean(style: Style) -> None:
    rng = random.Random(3)
    for composition in rng.sample(compositions.compositions(), 300):
        steps = [
            Step(primitive=PRIMITIVES[name], choice=compositions.probe_choice(PRIMITIVES[name])) for name in composition
        ]
        body = write_body(rng, steps, argument="given", style=style)
        space: dict[str, Any] = {}
        exec("def run(given):\n" + "".join(f"    {line}\n" for line in body), space)
        for value in compositions.PROBES[steps[0].primitive.takes]:
            wanted = value
            for step in steps:
                wanted = MEANINGS[step.primitive.name](wanted, *([] if step.choice is None else [step.choice]))
            assert space["run"](value) == wanted, (composition, value, "\n".join(body))


def test_fusing_puts_filters_a_map_and_a_fold_into_one_loop() -> None:
    steps = [Step(primitive=PRIMITIVES[name]) for name in ("keep_even", "square_each", "add_up")]
    body = write_body(random.Random(0), steps, argument="xs", style="loop")
    assert len(body) == 5
    assert body[1].startswith("for ")
    assert body[2].startswith("    if ")
    assert "** 2" in body[3]


# Compositions and splits


def test_types_fit_along_every_composition_and_no_operation_comes_twice() -> None:
    for composition in compositions.compositions():
        steps = [PRIMITIVES[name] for name in composition]
        assert all(a.gives == b.takes for a, b in pairwise(steps))
        assert len(set(composition)) == len(composition) <= compositions.MAX_DEPTH


def test_every_single_operation_is_in_train() -> None:
    assert {name for group in strata("train").values() for (name, *more) in group if not more} == set(PRIMITIVES)


def test_every_operation_occurs_in_many_compositions_of_train() -> None:
    times = Counter(name for group in strata("train").values() for composition in group for name in composition)
    for name, primitive in PRIMITIVES.items():
        if not primitive.is_first and primitive.gives != "bool":  # most of what a question can follow answers it alike
            assert times[name] >= (5 if primitive.is_rare else 15), name


def test_the_splits_share_no_composition_and_no_behaviour() -> None:
    behaviours: dict[str, Composition] = {}
    for split in SPLITS:
        for composition in (c for group in strata(split).values() for c in group):
            assert split_of(composition) == split
            value: tuple[Any, ...] = compositions.PROBES[PRIMITIVES[composition[0]].takes]
            for name in composition:
                choice = compositions.probe_choice(PRIMITIVES[name])
                value = tuple(
                    PRIMITIVES[name].apply(v, choice) if choice is not None else PRIMITIVES[name].apply(v)
                    for v in value
                )
            key = f"{PRIMITIVES[composition[0]].takes} {value}"
            assert key not in behaviours, (composition, behaviours[key])
            behaviours[key] = composition


@pytest.mark.parametrize(
    "composition",
    [("list_multiples", "last_number"), ("keys_above", "lengths"), ("lengths", "multiply_each", "square_each")],
)
def test_what_is_in_training_with_other_parameters_is_in_no_split(composition: Composition) -> None:
    assert composition in compositions.compositions()
    assert compositions.split_with_twins(composition) in HELD_OUT
    assert split_of(composition) is None


def test_the_list_of_twins_holds_held_out_compositions_alone_and_each_once() -> None:
    lines = [line for line in compositions.TWINS.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    listed = [tuple(line.split("/")) for line in lines]
    assert listed == sorted(set(listed))
    assert set(listed) <= set(compositions.compositions())
    assert {compositions.split_with_twins(composition) for composition in listed} == set(HELD_OUT)


def test_a_twin_is_found_at_any_parameter_and_constants_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    split = {
        ("multiply",): "train",
        ("list_multiples", "last_number"): "test",
        ("list_multiples", "largest"): "val",  # of a negative number the first multiple is the largest
        ("absolute_each", "keep_negative"): "train",
        ("square_each", "keep_negative"): "val",
        ("sort_numbers", "first_number"): "hard-train",
        ("smallest",): "hard-test",
        ("sort_numbers_down", "last_number"): "test",
    }
    monkeypatch.setattr(twins, "compositions", lambda: tuple(split))
    monkeypatch.setattr(twins, "split_with_twins", split.__getitem__)
    assert twins.find_twins() == [("list_multiples", "last_number"), ("smallest",)]


@pytest.mark.slow
def test_the_list_of_twins_is_what_the_operations_give() -> None:
    assert compositions.TWINS.read_text(encoding="utf-8") == twins.as_text(twins.find_twins()), (
        "the table of operations has changed: run `python -m unmask.data.synthetic.twins`"
    )


def test_a_composition_that_a_simpler_or_an_earlier_one_equals_is_in_no_split() -> None:
    every = set(compositions.compositions())
    assert ("sort_numbers", "largest") not in every
    assert ("sort_words", "count_each_word") not in every  # the order of a dictionary does not count
    assert not {("square_each", "keep_even"), ("keep_even", "square_each")} <= every
    assert ("square_each", "add_up") in every


def test_words_are_not_split_out_of_a_text_whose_spaces_are_gone() -> None:
    assert ("replace_spaces", "split_words") not in compositions.compositions()
    assert ("split_words", "reverse_words", "join_words") in compositions.compositions()


def test_no_pair_that_is_held_out_is_part_of_a_composition_of_training() -> None:
    held_out = {c for split in HELD_OUT for group in strata(split).values() for c in group}
    for group in (*strata("train").values(), *strata("hard-train").values()):
        for composition in group:
            assert held_out.isdisjoint((composition, composition[:2], composition[1:]))


def test_the_held_out_splits_have_their_parts() -> None:
    sizes = Counter((split_of(c), len(c)) for c in compositions.compositions())
    pairs = sum(sizes[split, 2] for split in ("train", "val", "test"))
    assert sizes["val", 2] / pairs == pytest.approx(compositions.HELD_OUT, abs=0.02)
    assert sizes["test", 2] / pairs == pytest.approx(compositions.HELD_OUT, abs=0.02)
    triples = sum(count for (_, depth), count in sizes.items() if depth == 3)
    assert sizes["train", 3] / triples > 0.2
    assert sizes["hard-train", 3] / triples > 0.2
    assert sizes["hard-test", 3] / (sizes["hard-test", 3] + sizes["hard-train", 3]) == pytest.approx(0.25, abs=0.03)
    assert sizes["hard-train", 2] == sizes["hard-test", 2] == 0


def test_the_hard_splits_have_three_steps_and_a_rare_one_and_the_others_never_do() -> None:
    for composition in (c for split in SPLITS for group in strata(split).values() for c in group):
        is_hard = len(composition) == 3 and any(PRIMITIVES[name].is_rare for name in composition)
        assert str(split_of(composition)).startswith("hard") == is_hard


# Drafts


def test_a_draw_depends_on_the_split_the_index_and_the_seed_alone() -> None:
    alone = draw_task("train", 5, 1)
    for index in range(5):
        draw_task("train", index, 1)
    assert draw_task("train", 5, 1) == alone
    assert draw_task("train", 5, 2) != alone
    assert draw_task("train", 6, 1) != alone


@pytest.mark.parametrize(
    ("splits", "wanted"),
    [(("train", "hard-train"), "c6845cf160d853d2"), (HELD_OUT, "42480e2e2bf923cc")],
)
def test_the_same_tasks_are_drawn_in_another_process(splits: tuple[Split, ...], wanted: str) -> None:
    """Hash randomisation and the machine may not matter. A change here is a new version of the benchmarks."""
    tasks = [draw_task(split, index, 0).task for split in splits for index in range(5)]
    text = "".join(task.prompt + task.reference for task in tasks)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == wanted


def test_a_draft_is_of_its_split(drafts: list[Draft]) -> None:
    for draft in drafts:
        assert split_of(draft.composition) == draft.task.task_id.removeprefix("synthetic-").partition("/")[0]


@pytest.mark.parametrize("split", HELD_OUT)
def test_a_held_out_split_never_repeats_a_composition(split: Split) -> None:
    drawn = [draw_task(split, index, 3).composition for index in range(300)]
    assert len(set(drawn)) == 300


@pytest.mark.parametrize("split", HELD_OUT)
def test_every_task_of_a_held_out_split_can_be_drawn_up_to_its_end(split: Split) -> None:
    count = cast(int, num_tasks(split))
    for index in (*range(0, count, 25), count - 1):
        assert draw_task(split, index, 0).inputs
    with pytest.raises(TaskError) as caught:
        draw_task(split, count, 0)
    assert f"task {count} of synthetic-{split} was asked for, which has {count}" in str(caught.value)
    assert "synthetic-train" in str(caught.value)


def test_the_training_splits_have_no_end() -> None:
    assert num_tasks("train") is num_tasks("hard-train") is None
    assert draw_task("train", 10**12, 0).inputs


def test_the_beginning_of_test_has_every_kind_of_task() -> None:
    drawn = [draw_task("test", index, 0).composition for index in range(200)]
    depths = Counter(map(len, drawn))
    assert abs(depths[2] - depths[3]) < 40
    takes = Counter(PRIMITIVES[composition[0]].takes for composition in drawn)
    assert set(takes) == set(inputs.EDGES)
    assert takes["list[int]"] < 100


def test_a_draft_has_its_edge_case_and_eight_inputs_that_differ(drafts: list[Draft]) -> None:
    for draft in drafts:
        assert len(draft.inputs) == NUM_TESTS >= 6
        assert len({repr(call) for call in draft.inputs}) == NUM_TESTS
        assert draft.inputs[0][0] in ([], {}, "", 0, (0, 0))


def test_the_inputs_tell_a_program_that_leaves_out_a_step(drafts: list[Draft]) -> None:
    missed = 0
    for draft in drafts:
        if len(draft.inputs[0]) > 1:
            continue  # the parameter comes with the call
        steps = list(zip(map(PRIMITIVES.__getitem__, draft.composition), draft.choices, strict=True))
        for at, (step, _) in enumerate(steps):
            rest = steps[:at] + steps[at + 1 :]
            after = rest[at][0].takes if at < len(rest) else step.gives
            if after != step.takes:
                continue
            outputs = []
            for value, *_ in draft.inputs:
                for primitive, choice in rest:
                    value = MEANINGS[primitive.name](value, *([] if choice is None else [choice]))
                outputs.append(value)
            missed += tuple(outputs) == draft.meant
    assert missed <= len(drafts) // 100


def test_prompts_and_programs_are_short(drafts: list[Draft]) -> None:
    prompts = sorted(len(draft.task.prompt) for draft in drafts)
    assert prompts[-1] <= LONGEST_PROMPT
    assert prompts[len(prompts) * 95 // 100] <= 400
    for draft in drafts:
        assert len(draft.task.reference) <= (420 if draft.task.task_id.startswith("synthetic-hard") else 330)
        assert 1 <= draft.task.reference_completion.count("\n") <= 15


def test_the_instruction_has_the_name_and_the_signature(drafts: list[Draft]) -> None:
    for draft in drafts:
        signature = draft.task.reference.partition("\n")[0].removeprefix("def ").removesuffix(":")
        assert f"`{signature}`" in draft.task.instruction
        assert signature.startswith(f"{draft.task.entry_point}(")


def test_a_parameter_is_in_the_words_as_a_value_or_as_an_argument(drafts: list[Draft]) -> None:
    for draft in drafts:
        for name, choice in zip(draft.composition, draft.choices, strict=True):
            if choice is not None:
                assert repr(choice) in draft.task.instruction, name
        tree = ast.parse(draft.task.reference).body[0]
        assert isinstance(tree, ast.FunctionDef)
        for argument in tree.args.args[1:]:
            assert f"`{argument.arg}`" in draft.task.instruction.replace(tree.name, "")


def test_the_prompt_goes_on_as_the_reference_and_its_examples_hold(drafts: list[Draft]) -> None:
    for draft in drafts:
        task = draft.task
        tree = ast.parse(as_document(task)).body[0]
        assert isinstance(tree, ast.FunctionDef)
        bare = ast.parse(task.reference).body[0]
        assert isinstance(bare, ast.FunctionDef)
        assert ast.unparse(tree.body[1:]) == ast.unparse(bare.body)  # type: ignore[arg-type]
        space: dict[str, Any] = {}
        exec(task.reference, space)
        lines = (ast.get_docstring(tree) or "").splitlines()
        examples = [(lines[at], lines[at + 1]) for at, line in enumerate(lines) if line.startswith(">>> ")]
        assert 1 <= len(examples) <= 2
        for call, shown in examples:
            assert repr(eval(call[4:], space)) == shown


def test_no_local_variable_of_a_reference_hides_a_builtin_that_it_calls(drafts: list[Draft]) -> None:
    for draft in drafts:
        tree = ast.parse(draft.task.reference)
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        stored |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} | {draft.task.entry_point}
        assert not called & stored, draft.task.reference


def test_training_says_and_writes_the_same_composition_in_many_ways() -> None:
    drawn = [draw_task("train", index, 0) for index in range(3000)]
    common, _ = Counter(draft.composition for draft in drawn).most_common(1)[0]
    alike = [draft.task for draft in drawn if draft.composition == common]
    assert len({task.instruction for task in alike}) == len(alike) > 3
    assert len({draft.task.reference for draft in drawn}) > 2900


@pytest.mark.parametrize(
    ("split", "index", "message"),
    [
        ("tset", 0, "'tset' is no split of the synthetic suite; did you mean test?"),
        ("train", -1, "task -1 of synthetic-train was asked for; the first one is 0"),
    ],
)
def test_a_wrong_split_or_index_is_named(split: Any, index: int, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        draw_task(split, index, 0)
    assert message in str(caught.value)


# Tasks


def test_references_pass_their_own_tests_and_wrong_programs_fail(executor: LocalExecutor) -> None:
    tasks = [task for split in SPLITS for task in make_tasks(split, 40, seed=11, executor=executor)]
    assert len(tasks) == 200
    verdicts = executor.judge(
        Job(code=task.program(task.reference_completion), tests=task.tests["base"], limits=task.limits)
        for task in tasks
    )
    assert [verdict.message for verdict in verdicts if not verdict.passed] == []
    wrong = [
        Job(
            code=f"def {task.entry_point}(*given):\n    return given[0]\n", tests=task.tests["base"], limits=task.limits
        )
        for task in tasks[:20]
    ]
    assert not any(verdict.passed for verdict in executor.judge(wrong))


def test_tasks_begin_anywhere_and_batches_change_nothing(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(make_tasks("val", 12, seed=0, executor=executor))
    monkeypatch.setattr("unmask.data.synthetic.tasks.BATCH", 5)
    assert list(make_tasks("val", 12, seed=0, executor=executor)) == whole
    assert list(make_tasks("val", 4, seed=0, executor=executor, start=8)) == whole[8:]


def test_a_reference_that_does_not_do_what_its_words_say_is_left_out(
    executor: LocalExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    good, other, failing = (draw_task("train", index, 0) for index in range(3))
    lying = replace(other, meant=(None,) * len(other.meant))
    broken = replace(failing, task=replace(failing.task, reference=f"def {failing.task.entry_point}(*_):\n    1 / 0\n"))
    assert [task.task_id for task in answer([good, lying, broken], executor=executor)] == ["synthetic-train/0"]
    assert "synthetic-train/1 is left out: its reference does not do what its words say" in caplog.text
    assert "synthetic-train/2 is left out" in caplog.text


class SilentExecutor:
    """A sandbox that answers nothing."""

    name, guarantees, interpreter = "silent", (), "Python"

    def call(self, code: str, entry_point: str, inputs: bytes, limits: Limits) -> CallRun:
        return CallRun(answers=(), cpu_seconds=(), error="the jail was lost")

    def judge(self, jobs: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


def test_a_sandbox_that_fails_is_reported_as_such() -> None:
    with pytest.raises(SandboxError) as caught:
        list(make_tasks("train", 1, seed=0, executor=SilentExecutor()))
    assert "answered 0 of 8 calls of the synthetic suite (the jail was lost); try again" in str(caught.value)


@pytest.mark.parametrize("count", [0, 10**6])
def test_a_count_that_a_split_does_not_have_is_refused_before_any_work(count: int) -> None:
    with pytest.raises(TaskError) as caught:
        list(make_tasks("test", count, seed=0, executor=SilentExecutor()))
    assert "synthetic-test" in str(caught.value)


# Texts and files


def test_the_second_question_is_asked_in_the_words_of_the_evaluation() -> None:
    assert PRESETS["diffucoder"].code == QUESTION
    assert PRESETS["diffucoder"].prefill == PREFILL


def test_messages_ask_in_three_ways_and_answer_with_the_reference(drafts: list[Draft]) -> None:
    task = drafts[0].task
    for index, asked in enumerate((task.instruction, QUESTION.replace("{}", task.prompt.strip()), "```python\ndef ")):
        *system, question, reply = as_messages(task, index)
        assert [turn["content"] for turn in system] == ([PRESETS["diffucoder"].system] if index == 1 else [])
        assert (question["role"], reply["role"]) == ("user", "assistant")
        assert question["content"].startswith(asked)
        assert reply["content"].endswith(f"```python\n{task.reference}```")
        assert '"""' not in reply["content"]
    assert as_messages(task, 3) == as_messages(task, 0)


def as_pairs(task: Task) -> list[tuple[Any, Any]]:
    tests = task.tests["base"]
    assert isinstance(tests, CallTests)
    return [(call, values.decode(want)) for call, want in zip(values.decode(tests.inputs), tests.expected, strict=True)]


def test_tasks_round_trip_through_a_file(tmp_path: Path, executor: LocalExecutor) -> None:
    path = tmp_path / "tasks.jsonl"
    assert write("test", 60, seed=0, path=path, format="tasks", executor=executor) == 60
    read = read_tasks(path)
    made = list(make_tasks("test", 60, seed=0, executor=executor))
    assert len(read) == 60
    for back, task in zip(read, made, strict=True):
        for name in ("task_id", "prompt", "instruction", "entry_point", "reference_completion"):
            assert getattr(back, name) == getattr(task, name)
        if isinstance(back.tests["base"], CallTests):
            assert as_pairs(back) == as_pairs(task)
        else:
            assert any(isinstance(v, tuple) for call, want in as_pairs(task) for v in (*call, want))
    jobs = [Job(code=task.reference, tests=task.tests["base"], limits=task.limits) for task in read]
    assert [verdict.message for verdict in executor.judge(jobs) if not verdict.passed] == []


def test_texts_and_messages_are_one_object_a_line(tmp_path: Path, executor: LocalExecutor) -> None:
    told: list[tuple[int, int]] = []
    for form in ("text", "messages"):
        path = tmp_path / f"{form}.jsonl"
        write("train", 5, seed=0, path=path, format=form, executor=executor, report=lambda *done: told.append(done))
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        tasks = [draw_task("train", index, 0).task for index in range(5)]
        wanted = [as_document(task) if form == "text" else as_messages(task, index) for index, task in enumerate(tasks)]
        assert [record[form] for record in records] == wanted
    assert told == [(done, 5) for done in (1, 2, 3, 4, 5)] * 2
    assert sorted(place.name for place in tmp_path.iterdir()) == ["messages.jsonl", "text.jsonl"]


def test_a_file_that_cannot_be_completed_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("old")
    with pytest.raises(SandboxError):
        write("train", 3, seed=0, path=path, format="tasks", executor=SilentExecutor())
    assert [(place.name, place.read_text()) for place in tmp_path.iterdir()] == [("tasks.jsonl", "old")]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        write("train", 1, seed=0, path=tmp_path / "no" / "x", format="text", executor=SilentExecutor())
    assert f"there is no folder {tmp_path / 'no'} for x; make it" in str(caught.value)


def test_what_is_no_file_is_never_renamed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="pipe is there already and is no file; give another output file"):
        write("train", 1, seed=0, path=tmp_path / "pipe", format="text", executor=None)  # type: ignore[arg-type]
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_that_would_be_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"a\.jsonl\.gz would hold plain JSON lines; give a name without \.gz"):
        write("test", 1, seed=0, path=tmp_path / "a.jsonl.gz", format="tasks", executor=SilentExecutor())


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        write("train", 1, seed=0, path=tmp_path / "x", format=cast(Format, "task"), executor=SilentExecutor())
    assert "'task' is no format of the synthetic suite; did you mean tasks?" in str(caught.value)
