"""When an answer is accepted: EvalPlus's rule (0.3.1), written again slowly with numpy, and where ours is stricter."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.sandbox.inside import judge, values
from unmask.sandbox.inside.judge import accepts

numbers = st.integers(-5, 5) | st.floats(-5, 5) | st.booleans()
nearby = st.builds(
    lambda base, off: base + off, st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([0.0, 1e-8, 9e-7, 3e-6, 1e-3])
)
answers = st.one_of(
    numbers,
    nearby,
    st.text("ab", max_size=2),
    st.none(),
    st.lists(nearby | numbers, max_size=3),
    st.lists(nearby, max_size=3).map(tuple),
    st.lists(st.lists(nearby, max_size=2), max_size=2),
)


def official(result: Any, expected: Any, atol: float) -> bool:
    """EvalPlus: `==`, else close with numpy where a tolerance applies and the types are the same."""
    import numpy

    if result == expected:
        return True
    is_floats = isinstance(expected, float) or (
        isinstance(expected, (list, tuple)) and len(expected) > 0 and all(isinstance(item, float) for item in expected)
    )
    if atol == 0 and is_floats:
        atol = 1e-6
    if atol == 0 or type(result) is not type(expected):
        return False
    try:
        return bool(numpy.allclose(result, expected, rtol=1e-7, atol=atol))
    except (TypeError, ValueError):  # a text, or lists of several lengths: these fail there
        return False


def is_ragged(value: Any) -> bool:
    lists = [item for item in value if isinstance(item, list)] if isinstance(value, (list, tuple)) else []
    return len({len(item) for item in lists}) > 1 or 0 < len(lists) < len(value)


def shape(value: Any) -> Any:
    return [shape(item) for item in value] if isinstance(value, (list, tuple)) else None


@given(answers, answers, st.sampled_from([0.0, 1e-6, 1e-2]))
@settings(deadline=None, max_examples=200)
def test_the_rule_is_evalplus_s_where_the_shapes_are_the_same(result: Any, expected: Any, atol: float) -> None:
    pytest.importorskip("numpy")
    if shape(result) == shape(expected) and not is_ragged(expected):
        assert accepts("equal", result, expected, atol=atol) == official(result, expected, atol)


@given(answers, answers, st.sampled_from([0.0, 1e-6, 1e-2]))
@settings(deadline=None, max_examples=200)
def test_the_rule_accepts_nothing_that_evalplus_refuses(result: Any, expected: Any, atol: float) -> None:
    pytest.importorskip("numpy")
    if accepts("equal", result, expected, atol=atol) and not is_ragged(expected):
        assert official(result, expected, atol)


def test_lists_of_several_lengths_are_compared_item_by_item() -> None:
    assert not official([[], [1.0]], [[], [1.00000001]], 1e-6)
    assert accepts("equal", [[], [1.0]], [[], [1.00000001]], atol=1e-6)


def test_a_shorter_list_is_not_stretched_to_the_longer_one() -> None:
    assert official([1.0], [1.0, 1.0], 0)
    assert not accepts("equal", [1.0], [1.0, 1.0])
    assert not accepts("equal", [[1.0], [1.0]], [[1.0, 1.0], [1.0, 1.0]], atol=1e-6)


@pytest.mark.parametrize(
    ("result", "expected", "atol", "is_accepted"),
    [
        (1.0, 1.0 + 9e-7, 0, True),
        (1.0, 1.0 + 2e-6, 0, False),
        (1.0, 1.0 + 2e-6, 1e-5, True),
        (1, 1.0000001, 0, False),  # the types differ
        ((1.0000001,), [1.0], 0, False),
        ([1, 1.0000001], [1, 1.0], 0, False),  # not floats throughout, and no tolerance of the task's own
        ([1, 1.0000001], [1, 1.0], 1e-6, True),
        (float("nan"), float("nan"), 0, False),
        (float("inf"), float("inf"), 0, True),
        (float("inf"), 1e308, 1e308, False),
        (1e308, float("inf"), 1e308, False),
        (complex(1, 1e-9), complex(1, 0), 1e-6, True),
        ("a", "b", 1.0, False),
        ("ab", 1.0, 1.0, False),
        (None, 0.0, 1.0, False),
        ({"a": 1.0000001}, {"a": 1.0}, 1e-6, False),
        ([], [], 0, True),
        ([], [1.0], 0, False),
        (True, 1, 0, True),
    ],
)
def test_tolerances_by_hand(result: Any, expected: Any, atol: float, is_accepted: bool) -> None:
    assert accepts("equal", result, expected, atol=atol) is is_accepted


def test_a_subclass_may_be_equal_but_not_merely_close() -> None:
    assert accepts("equal", 1.0, 1.0, is_exact=False)
    assert not accepts("equal", 1.0000001, 1.0, is_exact=False)


@pytest.mark.parametrize(
    ("oracle", "result", "expected", "arguments", "is_accepted"),
    [
        ("set", [2, 1, 1], [1, 2], (), True),
        ("set", (1,), [1, 2], (), False),
        ("not_none", "anything", True, (), True),
        ("not_none", None, True, (), False),
        ("not_none", None, False, (), True),
        ("not_none", False, True, (), False),
        ("not_none", True, True, (), True),
        ("anything", None, 5, (), True),
        ("zero_or_equal", 0, 7, (), True),
        ("zero_or_equal", 6, 7, (), False),
        ("surface_area", 33, 21, (3, 4), True),  # 9 + 2·3·sqrt(1.5² + 4²) = 34.6… is not 33
        ("digit_distance", 3, 0, (12, 45), False),
        ("digit_distance", 6, 0, (12, 45), True),
    ],
)
def test_special_oracles(oracle: str, result: Any, expected: Any, arguments: Any, is_accepted: bool) -> None:
    if oracle == "surface_area":  # by hand: the second formula, rounded
        second = round(9 + 6 * math.sqrt(1.5**2 + 16))
        assert accepts(oracle, second, expected, arguments, atol=0.1)
        assert not accepts(oracle, second + 1, expected, arguments, atol=0.1)
        return
    assert accepts(oracle, result, expected, arguments) is is_accepted


def test_a_root_is_judged_by_its_polynomial_and_not_by_the_root_expected() -> None:
    coefficients = ([-6, 11, -6, 1],)  # (x - 1)(x - 2)(x - 3)
    for root in (1, 2.0, 3 + 1e-7):
        assert accepts("find_zero", root, 1.0, coefficients, atol=1e-4)
    assert not accepts("find_zero", 1.5, 1.0, coefficients, atol=1e-4)
    assert not accepts("find_zero", float("nan"), 1.0, coefficients, atol=1e-4)


@pytest.mark.parametrize("oracle", ["equal", "set", "not_none", "zero_or_equal", "digit_distance"])
def test_an_extension_is_never_the_answer(oracle: str) -> None:
    opaque = values.Extension("opaque", ("solution.Same",))
    expected: Any = False if oracle == "not_none" else 2
    try:
        assert not accepts(oracle, opaque, expected, (1, 2))
    except TypeError:
        assert oracle == "set"


def test_a_comparison_crosses_the_wire_whole() -> None:
    payload = judge.pack_comparison(True, b"abc", b"de", b"f")
    head = judge._SIZES
    assert head.unpack_from(payload) == (True, 3, 2, 1)
    assert payload[head.size :] == b"abcdef"
