"""Values on the wire: Python's builtins, exactly and without trust.

The format is the part of `marshal` version 2 that has no references: one tag byte per value, little-endian. Encoding
runs at C speed for values made of exact builtins. Decoding bytes that a program sent never uses `marshal.loads` (it
trusts its input): `decode` below accepts the listed tags, checks every length, and builds nothing but builtins.

    N None   T True   F False   i int32   l long (15-bit digits)   g float64   y complex128
    s bytes  u str    ( tuple   [ list    { dict, ended by 0       < set       > frozenset     . Ellipsis

What is not an exact builtin is flattened before it is encoded: a subclass to its base (a namedtuple to a tuple, a
Counter to a dict), a numpy scalar to its number. Anything else becomes `(Ellipsis, kind, ...)`, which a decoder shows
as `Extension` and which equals nothing but another extension with the same parts.
"""

from __future__ import annotations

import hashlib
import marshal
import struct
from collections.abc import Callable
from typing import Any

DIGEST_OVER = 4 << 20
"""Encoded results of more bytes than this travel as a digest."""

MAX_DEPTH = 200
_SCALARS = frozenset({int, float, complex, str, bytes, bool, type(None)})
_CONTAINERS = frozenset({list, tuple, set, frozenset})


_PARTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "builtins.range": lambda v: (v.start, v.stop, v.step),
    "datetime.date": lambda v: (v.year, v.month, v.day),
    "datetime.time": lambda v: (v.isoformat(),),
    "datetime.datetime": lambda v: (v.isoformat(),),
    "datetime.timedelta": lambda v: (v.days, v.seconds, v.microseconds),
}
"""Classes of the standard library whose values cross by their parts; a time's text tells its zone."""


STANDARD = frozenset({*_PARTS, "decimal.Decimal", "fractions.Fraction", "collections.deque"})


class WireError(ValueError):
    """Bytes that are not a value."""


class Extension:
    """A value that has no builtin form: its kind, and what else is known of it."""

    __slots__ = ("kind", "parts")

    def __init__(self, kind: str, parts: Any = ()) -> None:
        self.kind = kind
        self.parts = tuple(parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extension) and self.kind == other.kind and self.parts == other.parts

    def __hash__(self) -> int:
        return hash((self.kind, self.parts))

    def __repr__(self) -> str:
        return f"<{self.kind} {' '.join(map(str, self.parts))}>"


def encode(value: Any) -> bytes:
    """Bytes of a value made of exact builtins. Raises WireError for anything else; see `flatten`."""
    if not is_plain(value):
        raise WireError(f"a {type(value).__name__} holds something that is not an exact builtin, or is nested too deep")
    return marshal.dumps(value, 2)


def encode_any(value: Any) -> tuple[bytes, bool]:
    """(bytes, is_exact): any value, flattened if need be. `is_exact` says that its type is the builtin's own."""
    if is_plain(value):
        return marshal.dumps(value, 2), True
    flat = flatten(value)
    return marshal.dumps(flat, 2), type(flat) is type(value)


def encode_compact(value: Any) -> tuple[bytes, bool]:
    """As `encode_any`, but a long value as its digest. Equal flat lists of numbers have equal digests: [2.0] is [2]."""
    data, is_exact = encode_any(value)
    if len(data) <= DIGEST_OVER:
        return data, is_exact
    if type(value) in (list, tuple) and set(map(type, value)) <= {int, float, bool}:
        data = marshal.dumps(type(value)(int(v) if v == v and v % 1 == 0 else v for v in value), 2)
    return digest(data), is_exact


def digest(encoded: bytes) -> bytes:
    """What stands for a large encoded value: `b"D"`, its length, and a BLAKE2b hash."""
    return b"D" + struct.pack("<Q", len(encoded)) + hashlib.blake2b(encoded, digest_size=32).digest()


def compact(encoded: bytes) -> bytes:
    """The bytes themselves, or their digest where they are long. No value starts with `D`."""
    return digest(encoded) if len(encoded) > DIGEST_OVER else encoded


def is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether a value is made of exact builtins only; container contents are looked at a type set at a time."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if depth <= 0:
        return False
    if kind in _CONTAINERS:
        parts: tuple[Any, ...] = (value,)
    elif kind is dict:
        parts = (value, value.values())
    else:
        return False
    for part in parts:
        if set(map(type, part)) <= _SCALARS:
            continue
        if not all(type(item) in _SCALARS or is_plain(item, depth - 1) for item in part):
            return False
    return True


def flatten(value: Any, opaque: Callable[[Any], Any] | None = None, depth: int = MAX_DEPTH) -> Any:
    """A value of exact builtins that stands for any value. `opaque(value)` names what has no builtin form."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if depth <= 0:
        return (Ellipsis, "opaque", "too deep")
    for scalar in (int, float, complex, str, bytes):
        if isinstance(value, scalar):
            return _base_value(value, scalar)
    if isinstance(value, (list, tuple, set, frozenset)):
        base: Any = next(b for b in (list, tuple, set, frozenset) if isinstance(value, b))
        items = [flatten(item, opaque, depth - 1) for item in base.__iter__(value)]
        if base is tuple and items and items[0] is Ellipsis:
            return (Ellipsis, "opaque", "tuple")
        try:
            return base(items)
        except TypeError:  # a set whose items only hashed before they were flattened
            return (Ellipsis, "opaque", kind.__name__)
    if isinstance(value, dict):
        try:
            return {flatten(k, opaque, depth - 1): flatten(v, opaque, depth - 1) for k, v in dict.items(value)}
        except TypeError:
            return (Ellipsis, "opaque", kind.__name__)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if (
        kind.__module__ == "numpy"
        and hasattr(value, "dtype")
        and hasattr(value, "item")
        and not getattr(value, "shape", 1)
    ):
        return (
            flatten(value.item(), opaque, depth - 1) if type(value.item()) is not kind else (Ellipsis, "opaque", name)
        )
    if name in ("decimal.Decimal", "fractions.Fraction"):
        return (Ellipsis, name, str(value))
    if name in _PARTS:
        return (Ellipsis, name, *_PARTS[name](value))
    if name == "collections.deque":
        return (Ellipsis, name, flatten(list(value), opaque, depth - 1))
    if kind is bytearray:
        return (Ellipsis, "bytearray", bytes(value))
    return opaque(value) if opaque is not None else (Ellipsis, "opaque", name)


def _base_value(value: Any, base: type) -> Any:
    """The builtin value inside an instance of a subclass, by the base class's own methods."""
    if base is int:
        return int.__int__(value)
    if base is float:
        return float.__float__(value)
    if base is complex:
        return complex.__pos__(value)
    return str.__getitem__(value, slice(None)) if base is str else bytes.__getitem__(value, slice(None))


def decode(data: bytes, max_depth: int = MAX_DEPTH + 10) -> Any:
    """The value in untrusted bytes. Raises WireError unless they are exactly one value."""
    reader = _Reader(data)
    value = reader.value(max_depth)
    if reader.at != len(reader.data):
        raise WireError(f"{len(reader.data) - reader.at} bytes follow the value")
    return value


_NULL = object()


class _Reader:
    """A cursor over untrusted bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        self.at = 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if count < 0 or len(piece) != count:
            raise WireError("the bytes end in the middle of a value")
        self.at += count
        return piece

    def size(self) -> int:
        count: int = struct.unpack("<i", self.take(4))[0]
        if count < 0 or count > len(self.data) - self.at:
            raise WireError("a length is larger than what follows")
        return count

    def value(self, depth: int) -> Any:
        found = self.item(depth)
        if found is _NULL:
            raise WireError("a value is missing")
        return found

    def item(self, depth: int) -> Any:
        if depth <= 0:
            raise WireError("the value is nested too deep")
        tag = self.take(1)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == b"i":
            return struct.unpack("<i", self.take(4))[0]
        if tag == b"g":
            return struct.unpack("<d", self.take(8))[0]
        if tag == b"u":
            try:
                return self.take(self.size()).decode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise WireError("a text is not UTF-8") from error
        if tag == b"l":
            return self.long()
        if tag == b"y":
            return complex(*struct.unpack("<dd", self.take(16)))
        if tag == b"s":
            return self.take(self.size())
        if tag in (b"(", b"[", b"<", b">"):
            items = [self.value(depth - 1) for _ in range(self.size())]
            return self.container(tag, items)
        if tag == b"{":
            return self.mapping(depth - 1)
        raise WireError(f"the tag {tag!r} is not one of a value")

    def container(self, tag: bytes, items: list[Any]) -> Any:
        if tag == b"[":
            return items
        if tag == b"(":
            if items and items[0] is Ellipsis:
                return Extension(str(items[1]) if len(items) > 1 else "opaque", items[2:])
            return tuple(items)
        try:
            return set(items) if tag == b"<" else frozenset(items)
        except TypeError as error:
            raise WireError("a set holds something that cannot be in one") from error

    def mapping(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        while True:
            key = self.item(depth)
            if key is _NULL:
                return found
            value = self.value(depth)
            try:
                found[key] = value
            except TypeError as error:
                raise WireError("a dict has a key that cannot be one") from error

    def long(self) -> int:
        (count,) = struct.unpack("<i", self.take(4))
        raw = self.take(2 * abs(count))
        digits = struct.unpack(f"<{abs(count)}H", raw)
        if any(digit >> 15 for digit in digits):
            raise WireError("a digit of an int is too large")
        number = _join(digits)
        return -number if count < 0 else number


_CONSTANTS = {b"N": None, b"T": True, b"F": False, b".": Ellipsis, b"0": _NULL}


def _join(digits: tuple[int, ...]) -> int:
    """The int with these 15-bit digits, least significant first; halves are joined, so long ints cost less than n²."""
    if len(digits) <= 32:
        number = 0
        for digit in reversed(digits):
            number = number << 15 | digit
        return number
    half = len(digits) // 2
    return _join(digits[:half]) | _join(digits[half:]) << (15 * half)
