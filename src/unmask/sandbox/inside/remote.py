"""Calls from the tests' process into the program's process, by value.

A value crosses as builtins (`values.py`). What has no builtin form stays where it is and crosses as a handle: the
program's objects become `Remote` in the tests, and a function that a test hands over (`key=lambda x: x[1]`) is called
back.

A `Remote` passes on what cannot reveal an answer: calling, attributes, iteration, length, items, truth, text. It
passes on no comparison and no arithmetic, since those would hand the program the value that it is compared with and
let it decide.
"""

from __future__ import annotations

import builtins
import importlib
import json
import marshal
import socket
from collections.abc import Callable
from typing import Any

from . import values, wire

_MAX_REPLY = 256 << 20


class ProgramError(Exception):
    """An exception of a class that the program defines."""


class ProgramGone(BaseException):
    """The program's process has ended in the middle of a test."""


def describe(error: BaseException) -> bytes:
    """JSON bytes of an exception: class name, message, nearest builtin class. Never raises."""
    try:
        kind = type(error)
        text = str(error)
        builtin = next((c.__name__ for c in kind.__mro__ if getattr(builtins, c.__name__, None) is c), "Exception")
        record = {"type": str(kind.__name__)[:100], "builtin": builtin, "message": text[:2000]}
        if isinstance(error, SyntaxError) and error.lineno is not None:
            record["message"] = f"{str(error.msg)[:500]} (line {error.lineno})"
        if isinstance(error, OSError) and isinstance(error.errno, int):
            record["errno"] = error.errno
        return json.dumps(record).encode("utf-8", "replace")
    except BaseException:
        return b'{"type": "Exception", "builtin": "Exception", "message": "an exception that cannot be shown"}'


# ---------------------------------------------------------------------------------------------- the program's side


class _Table:
    """Objects that the other side knows by number."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}

    def keep(self, value: Any) -> int:
        self.objects[len(self.objects)] = value
        return len(self.objects) - 1


def serve(sock: socket.socket, names: dict[str, Any]) -> None:
    """Answer requests until the tests' process hangs up. `names` are the program's globals."""
    table = _Table()
    while True:
        kind, payload = wire.receive(sock)
        if kind != b"Q":
            return
        _reply(sock, table, names, payload)


def _reply(sock: socket.socket, table: _Table, names: dict[str, Any], payload: bytes) -> None:
    def opaque(value: Any) -> Any:
        kind = type(value)
        if _is_builtin_class(value):
            return (Ellipsis, "class", value.__name__)
        return (Ellipsis, "handle", table.keep(value), f"{kind.__module__}.{kind.__qualname__}"[:200])

    def unpacked(value: Any) -> Any:
        return replace_extensions(value, lambda extension: _own_object(sock, table, names, extension, opaque))

    try:
        operation, target, positional, named, writes_back = (unpacked(v) for v in values.decode(payload))
        found = _OPERATIONS[operation](
            names[target] if isinstance(target, str) else table.objects[target], positional, named
        )
        changed = None
        if writes_back:
            changed = [values.flatten(v, opaque) if type(v) in (list, dict, set) else None for v in positional]
        answer = marshal.dumps((values.flatten(found, opaque), changed), 2)
    except BaseException as error:
        wire.send(sock, b"X", describe(error))
        return
    wire.send(sock, b"R", answer)


def _own_object(
    sock: socket.socket,
    table: _Table,
    names: dict[str, Any],
    extension: values.Extension,
    opaque: Callable[[Any], Any],
) -> Any:
    """What an argument's extension stands for on the program's side."""
    if extension.kind == "handle":
        return table.objects[extension.parts[0]]
    if extension.kind == "name":
        return names[extension.parts[0]]
    if extension.kind == "callback":
        number = extension.parts[0]

        def callback(*positional: Any, **named: Any) -> Any:
            wire.send(
                sock,
                b"B",
                marshal.dumps((number, values.flatten(positional, opaque), values.flatten(named, opaque)), 2),
            )
            while True:
                kind, payload = wire.receive(sock)
                if kind == b"b":
                    return replace_extensions(
                        values.decode(payload), lambda e: _own_object(sock, table, names, e, opaque)
                    )
                if kind != b"x":
                    raise SystemExit
                record = json.loads(payload)
                raise getattr(builtins, record["builtin"], Exception)(record["message"])

        return callback
    return builtin_extension(extension)


_OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "call": lambda found, positional, named: found(*positional, **named),
    "get": lambda found, positional, named: found,
    "attribute": lambda found, positional, named: getattr(found, positional[0]),
    "iter": lambda found, positional, named: _Iterator(found),
    "next": lambda found, positional, named: next(found),
    "len": lambda found, positional, named: len(found),
    "set": lambda found, positional, named: setattr(found, *positional),
    "item": lambda found, positional, named: found[positional[0]],
    "bool": lambda found, positional, named: bool(found),
    "str": lambda found, positional, named: str(found),
    "repr": lambda found, positional, named: repr(found),
}


class _Iterator:
    """An iterator that is never flattened into a value."""

    def __init__(self, found: Any) -> None:
        self.inner = iter(found)

    def __next__(self) -> Any:
        return next(self.inner)


# ------------------------------------------------------------------------------------------------ the tests' side


class Client:
    """The tests' end of the socket."""

    def __init__(self, sock: socket.socket, writes_back: bool = False) -> None:
        self.sock = sock
        self.writes_back = writes_back
        self.callbacks = _Table()
        self.last = ""
        """The last call of a name of the program, and what came of it, for messages."""

    def ask(self, operation: str, target: str | int, positional: Any = (), named: dict[str, Any] | None = None) -> Any:
        """One request, with callbacks served while it runs."""
        writes_back = self.writes_back and operation == "call"
        request = (operation, target, self._packed(positional), self._packed(named or {}), writes_back)
        wire.send(self.sock, b"Q", marshal.dumps(request, 2))
        while True:
            try:
                kind, payload = wire.receive(self.sock, _MAX_REPLY)
            except (OSError, wire.FrameError):
                raise ProgramGone from None
            if kind == b"R":
                return self._answer(payload, positional if writes_back else ())
            if kind == b"X":
                error = self._exception(payload)
                if isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit)) and operation != "next":
                    raise RuntimeError(f"the program raised {type(error).__name__}")  # it would end the tests' loop
                raise error
            if kind != b"B":
                raise ProgramGone
            self._call_back(payload)

    def _answer(self, payload: bytes, positional: Any) -> Any:
        try:
            answer, changed = values.decode(payload)
        except (values.WireError, TypeError, ValueError):
            raise ProgramGone from None
        if isinstance(changed, list):
            for own, new in zip(positional, changed, strict=False):
                _write_back(own, self._unpacked(new))
        return self._unpacked(answer)

    def _exception(self, payload: bytes) -> BaseException:
        try:
            record = json.loads(payload)
            name, message = str(record["type"]), str(record["message"])
            found = getattr(builtins, str(record["builtin"]), None)
        except (ValueError, KeyError, TypeError):
            raise ProgramGone from None
        if not (isinstance(found, type) and issubclass(found, BaseException)):
            return ProgramError(f"{name}: {message}")
        kind: type[BaseException] = found
        if name != found.__name__:  # a class of the program, with the builtin class that it derives from
            kind = type(name, (ProgramError, found) if issubclass(found, Exception) else (found,), {})
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and its like want more arguments
            return ProgramError(f"{name}: {message}")

    def _call_back(self, payload: bytes) -> None:
        try:
            number, positional, named = self._unpacked(values.decode(payload))
            function = self.callbacks.objects[number]
        except (values.WireError, TypeError, ValueError, KeyError):
            raise ProgramGone from None
        try:
            wire.send(self.sock, b"b", marshal.dumps(self._packed(function(*positional, **named)), 2))
        except ProgramGone:
            raise
        except BaseException as error:
            wire.send(self.sock, b"x", describe(error))

    def _packed(self, value: Any) -> Any:
        def opaque(found: Any) -> Any:
            if isinstance(found, Remote):
                return (Ellipsis, "handle", object.__getattribute__(found, "_number"))
            if _is_builtin_class(found):
                return (Ellipsis, "class", found.__name__)
            if callable(found):
                name = getattr(found, "_program_name", None)
                return (Ellipsis, "callback", self.callbacks.keep(found)) if name is None else (Ellipsis, "name", name)
            raise TypeError(f"a {type(found).__name__} of the tests cannot be handed to the program")

        return values.flatten(value, opaque)

    def _unpacked(self, value: Any) -> Any:
        return replace_extensions(value, self._own)

    def _own(self, extension: values.Extension) -> Any:
        if extension.kind == "handle" and extension.parts and type(extension.parts[0]) is int:
            return Remote(self, extension.parts[0], str(extension.parts[1]) if len(extension.parts) > 1 else "object")
        return builtin_extension(extension)


class Remote:
    """An object of the program, as the tests see it."""

    __slots__ = ("_client", "_kind", "_number")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, client: Client, number: int, kind: str) -> None:
        object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._client.ask("attribute", self._number, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.ask("set", self._number, (name, value))

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._client.ask("call", self._number, positional, named)

    def __iter__(self) -> Any:
        return self._client.ask("iter", self._number)

    def __next__(self) -> Any:
        return self._client.ask("next", self._number)

    def __len__(self) -> int:
        return int(self._client.ask("len", self._number))

    def __getitem__(self, key: Any) -> Any:
        return self._client.ask("item", self._number, (key,))

    def __bool__(self) -> bool:
        return self._client.ask("bool", self._number) is True

    def __str__(self) -> str:
        return str(self._client.ask("str", self._number))

    def __repr__(self) -> str:
        return str(self._client.ask("repr", self._number))

    def __eq__(self, other: object) -> bool:
        return self is other


def stub(client: Client, name: str) -> Callable[..., Any]:
    """A function that calls the program's function `name`."""

    def call(*positional: Any, **named: Any) -> Any:
        client.last = _shown(name, positional, named)
        answer = client.ask("call", name, positional, named)
        client.last += f" returned {short(answer)}"
        return answer

    call.__name__ = call.__qualname__ = name
    call._program_name = name  # type: ignore[attr-defined]
    return call


def replace_extensions(value: Any, own: Callable[[values.Extension], Any]) -> Any:
    """A decoded value with `own(extension)` in the place of each extension."""
    kind = type(value)
    if kind is values.Extension:
        return own(value)
    if kind in (list, tuple):
        items = [replace_extensions(item, own) for item in value]
        return items if kind is list else tuple(items)
    if kind is dict:
        return {replace_extensions(key, own): replace_extensions(item, own) for key, item in value.items()}
    if kind in (set, frozenset) and any(type(item) in (values.Extension, tuple, frozenset) for item in value):
        return kind(replace_extensions(item, own) for item in value)
    return value


def builtin_extension(extension: values.Extension) -> Any:
    """Extensions that have a class in the standard library; others stay as they are and equal nothing."""
    try:
        if extension.kind == "class" and _is_builtin_class(found := getattr(builtins, str(extension.parts[0]), None)):
            return found
        module, _, name = extension.kind.partition(".")
        if extension.kind in values.STANDARD and len(extension.parts) < 10:
            return _standard(module, name, extension.parts)
        if extension.kind == "bytearray":
            return bytearray(extension.parts[0])
    except (ValueError, TypeError, IndexError, ArithmeticError):
        pass
    return extension


def _standard(module: str, name: str, parts: tuple[Any, ...]) -> Any:
    """A value of a class of the standard library from its parts."""
    kind = getattr(importlib.import_module(module), name)
    if name in ("time", "datetime"):
        return kind.fromisoformat(parts[-1])
    return kind(*parts)


def _is_builtin_class(value: Any) -> bool:
    """Whether this is a class of the builtins (`int`, `ValueError`), which both sides have."""
    return type(value) is type and getattr(builtins, value.__name__, None) is value


def _write_back(own: Any, new: Any) -> None:
    if type(own) is list and type(new) is list:
        own[:] = new
    elif type(own) is type(new) and type(own) in (dict, set):
        own.clear()
        own.update(new)


def _shown(name: str, positional: Any, named: dict[str, Any]) -> str:
    parts = [short(value, 60) for value in positional] + [f"{key}={short(value, 60)}" for key, value in named.items()]
    return f"{name}({', '.join(parts)})"


def short(value: Any, limit: int = 200) -> str:
    if type(value) is Remote:
        return f"{object.__getattribute__(value, '_kind')} object"
    try:
        text = repr(value)
    except (ValueError, RecursionError, MemoryError):  # an int of more digits than Python writes out
        text = f"a large {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"
