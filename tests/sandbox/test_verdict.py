"""Verdicts, limits and tests as records: what is refused, and what comes back from JSON."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import SettingsError
from unmask.sandbox import tests as kinds
from unmask.sandbox.inside import values
from unmask.sandbox.tests import AssertTests, CallTests, UnitTests
from unmask.sandbox.verdict import STATUSES, Limits, Status, Verdict


@given(
    st.builds(
        Verdict,
        status=st.sampled_from(get_args(Status)),
        message=st.text(max_size=20),
        failed_test=st.none() | st.integers(0, 5),
        num_tests=st.integers(0, 5),
        cpu_seconds=st.floats(0, 10),
        wall_seconds=st.floats(0, 10),
        backend=st.sampled_from(["", "bwrap"]),
        is_in_process=st.booleans(),
        tampering=st.text(max_size=5),
    )
)
def test_a_verdict_comes_back_from_json(verdict: Verdict) -> None:
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_json_holds_what_is_not_a_default() -> None:
    assert Verdict(status="pass").to_json() == {"status": "pass"}
    assert Verdict(status="fail", failed_test=0).to_json() == {"status": "fail", "failed_test": 0}


def test_a_verdict_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert Verdict.from_json({"status": "fail", "colour": "red"}) == Verdict(status="fail")


def test_only_a_pass_has_passed() -> None:
    assert [status for status in STATUSES if Verdict(status=status).passed] == ["pass"]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(Limits.__dataclass_fields__))
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"the sandbox limit {name}={value} must be a positive, finite number"):
        Limits(**{name: value})


def test_call_tests_hold_what_was_given() -> None:
    tests = CallTests.of("add", [(1, 2), [3, [4]]], [3, None], atol=0.5, call_cpu_seconds=[1, 2])
    assert values.decode(tests.inputs) == [(1, 2), (3, [4])]
    assert [values.decode(answer) for answer in tests.expected] == [3, None]
    assert (tests.atol, tests.call_cpu_seconds) == (0.5, (1, 2))


def test_call_tests_need_an_answer_for_each_input() -> None:
    with pytest.raises(SettingsError, match="2 inputs were given with 1 expected results; give as many"):
        CallTests.of("f", [(1,), (2,)], [1])


def test_call_tests_need_a_time_limit_for_each_input_or_none() -> None:
    with pytest.raises(SettingsError, match="1 time limits were given for 2 calls; give one for each"):
        CallTests.of("f", [(1,), (2,)], [1, 2], call_cpu_seconds=[1])


def test_an_unknown_oracle_is_told_the_nearest() -> None:
    with pytest.raises(SettingsError, match="the oracle 'equals' is not known; did you mean equal"):
        CallTests.of("f", [(1,)], [1], oracle="equals")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [object(), (1, object()), bytearray(b"a"), ...])
def test_call_tests_take_builtins_only(value: Any) -> None:
    with pytest.raises(ValueError, match="not an exact builtin"):
        CallTests.of("f", [(1,)], [value])
    with pytest.raises(ValueError, match="not an exact builtin"):
        CallTests.of("f", [(value,)], [1])


def test_the_digest_of_tests_depends_on_every_field() -> None:
    calls = CallTests.of("f", [(1,)], [1], call_cpu_seconds=[1])
    asserts = AssertTests(entry_point="f", code="assert f")
    units = UnitTests(code="pass", num_tests=1)
    different = [
        calls,
        replace(calls, entry_point="g"),
        replace(calls, inputs=values.encode([(2,)])),
        replace(calls, expected=(values.encode(2),)),
        replace(calls, oracle="set"),
        replace(calls, atol=1.0),
        replace(calls, call_cpu_seconds=(2.0,)),
        asserts,
        replace(asserts, entry_point="g"),
        replace(asserts, code="assert g"),
        replace(asserts, setup="x = 1"),
        replace(asserts, writes_back=True),
        units,
        replace(units, code="1"),
        replace(units, num_tests=2),
        replace(units, test_class="Others"),
        replace(units, environment="other"),
    ]
    assert len({kinds.digest_of(tests) for tests in different}) == len(different)
    assert kinds.digest_of(replace(calls)) == kinds.digest_of(calls)
    assert kinds.digest_of(replace(asserts, code="\ud800"))


def test_a_field_that_is_not_used_changes_no_digest() -> None:
    tests = CallTests.of("f", [(1,), (2,)], [2, 3.5], atol=0.5, call_cpu_seconds=[1, 2.0])
    assert kinds.digest_of(tests) == "88f3c788dbdd34032c9c2859b732f7cd"  # before there was `counts_all`
    counted = replace(tests, counts_all=True)
    assert kinds.digest_of(counted) != kinds.digest_of(tests)
    assert kinds.digest_of(replace(counted, call_wall_seconds=1.0)) != kinds.digest_of(counted)


@pytest.mark.parametrize(("seconds", "counts_all"), [(1.0, False), (0.0, True)])
def test_wall_limits_of_calls_that_do_nothing_are_refused(seconds: float, counts_all: bool) -> None:
    tests = kinds.CallTests.of("f", [(1,)], [2], counts_all=counts_all)
    with pytest.raises(SettingsError, match=rf"call_wall_seconds={seconds} has to be a positive, finite number, and"):
        replace(tests, call_wall_seconds=seconds)
