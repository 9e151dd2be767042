"""MBPP (Austin et al. 2021), whole and sanitized, and MBPP+ (EvalPlus): short functions from a sentence and asserts.

All three write a task's id as `Mbpp/2`, as MBPP+ does: the same number is the same task. The prompt is MBPP+'s, a
docstring with the sentence and one assert, which is the only place where the function's name stands. MBPP's challenge
tests are not part of its score.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unmask.data.files import read_json, read_jsonl
from unmask.data.jsonl import LIMITS, assert_tests, called_function, imports_of_tests
from unmask.data.task import Task
from unmask.evaluate.benchmarks.answers import Calls, Unanswered
from unmask.evaluate.benchmarks.definition import Definition, Version
from unmask.sandbox.tests import Oracle


def _mbpp(paths: tuple[Path, ...]) -> Iterator[Task]:
    for row in read_jsonl(paths[0]):
        yield _task(row, text=row["text"], opening=row["test_setup_code"])


def _mbpp_sanitized(paths: tuple[Path, ...]) -> Iterator[Task]:
    for row in read_json(paths[0]):
        yield _task(row, text=row["prompt"], imports=row["test_imports"])


def _task(row: dict[str, Any], *, text: str, opening: str = "", imports: Sequence[str] = ()) -> Task:
    """`opening` are statements before the asserts that use the program's own classes, so they are part of the tests."""
    code = row["code"].replace("\r\n", "\n")
    test_list = [*opening.replace("\r\n", "\n").splitlines(), *row["test_list"]]
    entry_point = called_function(row["test_list"], code)
    setup = "".join(f"{line}\n" for line in dict.fromkeys([*imports, *imports_of_tests(code, row["test_list"])]))
    return Task(
        task_id=f"Mbpp/{row['task_id']}",
        prompt=f'"""\n{text}\n{row["test_list"][0]}\n"""\n',
        instruction=text,
        entry_point=entry_point,
        reference=code,
        reference_completion=code,
        tests={"base": assert_tests(test_list, entry_point=entry_point, setup=setup)},
        limits=LIMITS,
    )


# MBPP+


def _mbpp_plus(paths: tuple[Path, ...]) -> Iterator[Unanswered]:
    for row in read_jsonl(paths[0]):
        task = Task(
            task_id=row["task_id"],
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            reference=row["prompt"] + row["canonical_solution"],
            reference_completion=row["canonical_solution"],
        )
        oracle = _ORACLES.get(task.entry_point, "equal")
        calls = {}
        for which in ("base", "plus"):
            inputs = restored_inputs(task.task_id, row[f"{which}_input"])
            calls[which] = Calls.of(inputs, oracle=oracle, atol=row["atol"])
        yield Unanswered(task=task, calls=calls)


_ORACLES: dict[str, Oracle] = {  # evalplus 0.3.1, eval/_special_oracle.py: by the name of the function
    **dict.fromkeys(("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"), "set"),
    **dict.fromkeys(("larg_nnum", "intersection_array", "find_dissimilar", "Diff"), "set"),
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "not_none"),
    "are_equivalent": "anything",
    "sum_div": "zero_or_equal",
    "surface_Area": "surface_area",
    "digit_distance_nums": "digit_distance",
}

_Convert = Callable[[Any], Any]
_Restore = Callable[[Sequence[Any]], tuple[Any, ...]]


def restored_inputs(task_id: str, inputs: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The argument tuples of a task of MBPP+, with the tuples, sets and complex numbers that JSON has lost.

    >>> restored_inputs("Mbpp/2", [[[3, 4], [5]]])
    [((3, 4), (5,))]
    """
    restore = _RESTORE.get(int(task_id.rpartition("/")[2]), tuple)
    return [restore(arguments) for arguments in inputs]


def _every(convert: _Convert) -> _Restore:
    return lambda arguments: tuple(convert(argument) for argument in arguments)


def _at(index: int, convert: _Convert) -> _Restore:
    return lambda arguments: tuple(convert(a) if i == index else a for i, a in enumerate(arguments))


def _list_of(convert: _Convert) -> _Convert:
    return lambda items: [convert(item) for item in items]


def _tuple_of(convert: _Convert) -> _Convert:
    return lambda items: tuple(convert(item) for item in items)


def _tuple_if_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _deep_tuple(value: Any) -> Any:
    return tuple(_deep_tuple(item) for item in value) if isinstance(value, list) else value


def _set_or_dict(value: Any) -> Any:
    """Task 115: a list stands for a set; what is not one, or is empty, for an empty dict."""
    return set(value) if isinstance(value, list) and value else {}


def _tuple_values(value: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) for key, item in value.items()}


_EVERY_A_TUPLE = (
    2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809,
)  # fmt: skip
_EVERY_A_LIST_OF_TUPLES = (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)
_RESTORE: dict[int, _Restore] = {  # evalplus 0.3.1, data/mbpp.py: which task takes what
    **dict.fromkeys(_EVERY_A_TUPLE, _every(tuple)),
    **dict.fromkeys(_EVERY_A_LIST_OF_TUPLES, _every(_list_of(tuple))),
    **dict.fromkeys((259, 401, 445), _every(_tuple_of(tuple))),
    **dict.fromkeys((580, 615, 791), _every(_deep_tuple)),
    **dict.fromkeys((250, 307, 405, 446, 617, 720, 763, 808), _at(0, tuple)),
    **dict.fromkeys((75, 413, 444, 753), _at(0, _list_of(tuple))),
    **dict.fromkeys((106, 750), _at(1, tuple)),
    115: _at(0, _list_of(_set_or_dict)),
    124: lambda arguments: (float(arguments[0]), complex(arguments[1])),
    252: _at(0, complex),
    278: _at(0, _tuple_of(_tuple_if_list)),
    722: _at(0, _tuple_values),
}


def _overlap(train: int, validation: int, prompt: int) -> str:
    return (
        f"shares {train + validation + prompt} tasks with splits of MBPP that models are trained on "
        f"({train} train, {validation} validation, {prompt} prompt)"
    )


_NODE = "the tests of Mbpp/367 and Mbpp/927 build trees of a class Node that no prompt names"
DEFINITIONS = {
    "mbpp": Definition(
        kind="complete",
        build=_mbpp,
        versions={
            "30c8c57": Version(
                files=("mbpp/mbpp.jsonl",),
                notes=("all 974 tasks; MBPP's own test split is Mbpp/11 to Mbpp/510", _NODE),
            )
        },
    ),
    "mbpp-sanitized": Definition(
        kind="complete",
        build=_mbpp_sanitized,
        versions={"30c8c57": Version(files=("mbpp/sanitized-mbpp.json",), notes=(_overlap(120, 43, 7),))},
    ),
    "mbpp+": Definition(
        kind="complete",
        build=_mbpp_plus,
        versions={
            "v0.2.0": Version(files=("mbppplus/MbppPlus.jsonl.gz",), notes=(_overlap(108, 39, 7),)),
            "v0.1.0": Version(files=("mbppplus/v0.1.0/MbppPlus.jsonl.gz",), notes=(_overlap(111, 42, 7),)),
        },
    ),
}
