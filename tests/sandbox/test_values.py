"""The wire format: what goes in comes out, exactly typed, and no bytes make the reader do more than read them."""

import contextlib
import marshal
import math
import random
import struct
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.sandbox.inside import values

Point = namedtuple("Point", "a b")


class Level(IntEnum):
    LOW = 1


class Lying(int):
    """An int that equals everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __int__(self) -> int:
        return 99

    __hash__ = int.__hash__


hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(1 << 300), max_value=1 << 300)
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(exclude_categories=()))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)
plain = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=12,
)


def typed(value: Any) -> Any:
    """A value with each item's type beside it, floats by their bits, and sets as sorted lists: == is then identity."""
    kind = type(value).__name__
    if isinstance(value, float):
        return kind, struct.pack("<d", value) if not math.isnan(value) else "nan"
    if isinstance(value, complex):
        return kind, typed(value.real), typed(value.imag)
    if isinstance(value, (list, tuple)):
        return kind, [typed(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted((typed(item) for item in value), key=repr)
    if isinstance(value, dict):
        return kind, [(typed(key), typed(item)) for key, item in value.items()]
    return kind, value


@given(plain)
@settings(deadline=None)
def test_a_value_comes_back_with_the_same_types(value: Any) -> None:
    assert typed(values.decode(values.encode(value))) == typed(value)


@given(plain)
@settings(deadline=None)
def test_a_plain_value_is_encoded_as_exact_and_unchanged_by_flattening(value: Any) -> None:
    data, is_exact = values.encode_any(value)
    assert is_exact
    assert typed(values.decode(data)) == typed(values.decode(values.encode(value)))
    assert typed(values.flatten(value)) == typed(value)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_are_a_value_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(values.WireError):
        values.decode(data)


@given(plain, st.integers(min_value=0), st.integers(min_value=0, max_value=255))
@settings(deadline=None)
def test_a_changed_byte_is_a_value_or_is_refused(value: Any, at: int, byte: int) -> None:
    data = bytearray(values.encode(value))
    data[at % len(data)] = byte
    with contextlib.suppress(values.WireError):
        values.decode(bytes(data))


@pytest.mark.parametrize("cut", range(8))
def test_a_value_cut_short_is_refused(cut: int) -> None:
    data = values.encode([1, "ab"])
    assert values.decode(data) == [1, "ab"]
    with pytest.raises(values.WireError):
        values.decode(data[:cut])


def test_bytes_after_the_value_are_refused() -> None:
    with pytest.raises(values.WireError, match="1 bytes follow the value"):
        values.decode(values.encode(1) + b"N")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the bytes end"),
        (b"[" + struct.pack("<i", 1 << 30), "larger than what follows"),
        (b"s" + struct.pack("<i", -5), "larger than what follows"),
        (b"l" + struct.pack("<i", 1 << 30), "the bytes end"),
        (b"l" + struct.pack("<iH", 1, 1 << 15), "too large"),
        (b"u" + struct.pack("<i", 1) + b"\xff", "not UTF-8"),
        (b"<" + struct.pack("<i", 1) + b"[" + struct.pack("<i", 0), "cannot be in one"),
        (b"{[" + struct.pack("<i", 0) + b"N0", "cannot be one"),
        (b"0", "a value is missing"),
        (b"{N0", "a value is missing"),
        (b"c", "not one of a value"),
        (b"r" + struct.pack("<i", 0), "not one of a value"),
        ((b"(" + struct.pack("<i", 1)) * 100_000 + b"N", "too deep"),
    ],
)
def test_what_is_no_value_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(values.WireError, match=reason):
        values.decode(data)


@pytest.mark.parametrize("version", [2, 4])
def test_code_and_references_are_never_read(version: int) -> None:
    text = "a text that version 4 refers back to"
    for found in (compile("1", "", "eval"), StopIteration, [text, text] if version == 4 else compile("2", "", "exec")):
        with pytest.raises(values.WireError):
            values.decode(marshal.dumps(found, version))


def test_reading_costs_no_more_than_its_bytes() -> None:
    """A long int is not read in the square of its length, and lengths that lie allocate nothing."""
    number = 1 << 4_000_000
    started = time.process_time()
    assert values.decode(values.encode(number)) == number
    for _ in range(1000):
        with pytest.raises(values.WireError):
            values.decode(b"(" + struct.pack("<i", 2**31 - 1) + b"N" * 10)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (Level.LOW, 1),
        (Lying(7), 7),
        (Point(1, [Lying(2)]), (1, [2])),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        ([Lying(7), {"a": Level.LOW}], [7, {"a": 1}]),
        ({Lying(7)}, {7}),
    ],
)
def test_a_subclass_becomes_the_builtin_that_it_is(value: Any, expected: Any) -> None:
    data, is_exact = values.encode_any(value)
    assert typed(values.decode(data)) == typed(expected)
    assert is_exact == (type(value) is type(expected))


def test_what_has_no_builtin_form_becomes_an_extension_that_equals_no_value() -> None:
    class Same:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    for value in (Same(), Same, iter([1]), (i for i in ()), lambda: 0, ...):
        data, is_exact = values.encode_any(value)
        decoded = values.decode(data)
        assert type(decoded) is values.Extension, value
        assert not is_exact
        assert not any(decoded == other for other in (1, "a", None, (..., "opaque")))


def test_a_tuple_cannot_pretend_to_be_an_extension() -> None:
    """On the wire an extension is a tuple that starts with an ellipsis; a value that does so is told from it."""
    decoded = values.decode(values.encode_any((..., "handle", 3))[0])
    assert type(decoded) is tuple or decoded.kind == "opaque"
    assert decoded != values.Extension("handle", (3,))


def test_numbers_of_the_standard_library_and_numpy_keep_their_value() -> None:
    numpy = pytest.importorskip("numpy")
    assert values.decode(values.encode_any(Decimal("1.50"))[0]).parts == ("1.50",)
    assert values.decode(values.encode_any(Fraction(1, 3))[0]).parts == ("1/3",)
    assert typed(values.decode(values.encode_any([numpy.int64(3), numpy.float64(0.5), numpy.bool_(True)])[0])) == typed(
        [3, 0.5, True]
    )


def test_depth_ends_a_value_that_holds_itself() -> None:
    own: list[Any] = []
    own.append(own)
    data, _ = values.encode_any(own)
    depth, found = 0, values.decode(data)
    while type(found) is list:
        depth, (found,) = depth + 1, found
    assert type(found) is values.Extension
    assert 0 < depth <= values.MAX_DEPTH


def test_what_is_encoded_as_plain_is_made_of_builtins_only() -> None:
    for value in (Lying(1), [Lying(1)], {1: Lying(1)}, {Lying(1): 1}, (1, [Decimal(1)]), bytearray(b"a"), ...):
        assert not values.is_plain(value)
        with pytest.raises(values.WireError, match="not an exact builtin"):
            values.encode(value)


def test_a_large_value_is_told_by_its_digest_alone() -> None:
    numbers = list(range(2_000_000))
    data = values.encode(numbers)
    assert len(data) > values.DIGEST_OVER
    assert values.compact(data) == values.digest(data)
    assert values.compact(data)[:1] == b"D"
    assert values.compact(data) != values.digest(values.encode([*numbers[:-1], 0]))
    assert values.compact(values.encode([1])) == values.encode([1])
    with pytest.raises(values.WireError):
        values.decode(values.compact(data))


def test_equal_sets_of_another_order_are_equal_when_decoded() -> None:
    names = [str(number) for number in range(100)]
    shuffled = random.Random(0).sample(names, 100)
    assert values.decode(values.encode(set(names))) == values.decode(values.encode(set(shuffled)))
