"""The process that judges: it runs trusted test code against the program, or compares results with what was expected.

It stands in a jail of its own, apart from the program's. The supervisor hands it the answers; from the program come
only bytes, which are decoded with `values.decode`.

    supervisor → judge   J job (once)    C one comparison judge → supervisor   P passed    F failed, with the reason
    G the program is gone    Y equal    N not equal, with both
"""

from __future__ import annotations

import builtins
import json
import marshal
import math
import socket
import struct
import sys
import types
from typing import Any

from . import remote, values, wire

_RTOL = 1e-7
_DEFAULT_ATOL = 1e-6


def run(conn: socket.socket, peer: socket.socket | None) -> None:
    """Serve the one job that arrives on `conn`; `peer` is the program's socket, or None."""
    kind, payload = wire.receive(conn)
    if kind != b"J":
        return
    job = marshal.loads(payload)  # from the supervisor
    if job["mode"] == "assert" and peer is not None:
        _run_tests(conn, peer, job)
    else:
        _compare_all(conn, job)


# ------------------------------------------------------------------------------------------------------ assertions


def _run_tests(conn: socket.socket, peer: socket.socket, job: dict[str, Any]) -> None:
    client = remote.Client(peer, writes_back=job["writes_back"])
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    names = vars(module)
    try:
        if job["setup"]:
            exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), names)
        code = compile(job["code"], "<test>", "exec", dont_inherit=True)
        for name in _program_names(code, names, job["names"]):
            names[name] = remote.stub(client, name) if _is_callable(client, name) else client.ask("get", name)
        if job["entry_point"] not in job["names"]:
            raise NameError(f"{job['entry_point']} is not defined")
        names[job["entry_point"]] = remote.stub(client, job["entry_point"])
        exec(code, names)
    except remote.ProgramGone:
        wire.send(conn, b"G")
    except BaseException as error:
        wire.send(conn, b"F", json.dumps(_explain(error, job["code"], client.last)).encode("utf-8", "replace"))
    else:
        wire.send(conn, b"P")


def _program_names(code: types.CodeType, defined: dict[str, Any], offered: list[str]) -> list[str]:
    """The program's names that the test code uses and nothing else defines."""
    used: set[str] = set()
    stack = [code]
    while stack:
        found = stack.pop()
        used.update(found.co_names)
        stack.extend(const for const in found.co_consts if isinstance(const, types.CodeType))
    return [name for name in offered if name in used and name not in defined and not hasattr(builtins, name)]


def _is_callable(client: remote.Client, name: str) -> bool:
    found = client.ask("get", name)
    return type(found) is remote.Remote


def _explain(error: BaseException, source: str, last: str) -> dict[str, Any]:
    """Which line of the tests failed and why."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<test>":
            line = trace.tb_lineno
        trace = trace.tb_next
    lines = source.split("\n")
    text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    if isinstance(error, AssertionError):
        what = f"{text or 'an assertion'} failed"
        if str(error):
            what += f": {str(error)[:300]}"
    else:
        what = f"{type(error).__name__}: {str(error)[:300]}" + (f" in {text}" if text else "")
    return {"message": what[:1000], "last": last[:500], "type": type(error).__name__, "line": line}


# ------------------------------------------------------------------------------------------------------ comparison

_SIZES = struct.Struct("<?QQQ")


def pack_comparison(is_exact: bool, result: bytes, expected: bytes, arguments: bytes = b"") -> bytes:
    """The payload of a C frame."""
    return _SIZES.pack(is_exact, len(result), len(expected), len(arguments)) + result + expected + arguments


def _compare_all(conn: socket.socket, job: dict[str, Any]) -> None:
    while True:
        kind, payload = wire.receive(conn)
        if kind != b"C":
            return
        is_exact, *sizes = _SIZES.unpack_from(payload)
        at, parts = _SIZES.size, []
        for size in sizes:
            parts.append(payload[at : at + size])
            at += size
        got = "bytes that are not a value"
        expected = marshal.loads(parts[1])
        arguments = marshal.loads(parts[2]) if parts[2] else ()
        try:
            result = remote.replace_extensions(values.decode(parts[0]), remote.builtin_extension)
            got = remote.short(result)  # never raises
            same = accepts(job["oracle"], result, expected, arguments, atol=job["atol"], is_exact=is_exact)
        except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, MemoryError):
            same = False
        if same:
            wire.send(conn, b"Y")
        else:
            shown = json.dumps([got, remote.short(expected)])
            wire.send(conn, b"N", shown.encode("utf-8", "replace"))


def accepts(
    oracle: str, result: Any, expected: Any, arguments: Any = (), atol: float = 0.0, is_exact: bool = True
) -> bool:
    """EvalPlus's rule (0.3.1, `eval/__init__.py`): `==`, or one of its special oracles, or close within a tolerance.

    `is_exact` says that the result's type was the builtin itself; a subclass may equal what is expected, but is not
    compared with a tolerance. Tolerance: |a - b| <= atol + 1e-7 |b| item by item. Unlike there, the shapes must be the
    same at every depth (numpy would stretch the smaller one), and the 1e-6 for floats holds for its own call only.

    >>> accepts("equal", [1.0000001], [1.0]), accepts("equal", (1,), [1]), accepts("set", (2, 1, 1), [1, 2])
    (True, False, True)
    """
    if oracle == "find_zero":
        return bool(abs(_polynomial(arguments[0], result)) <= atol)
    same = result == expected
    if oracle == "anything":
        same = True
    elif oracle == "zero_or_equal":
        same = same or result == 0
    elif oracle == "surface_area":
        same = same or abs(result - _surface_area(*arguments)) <= atol
    elif oracle == "digit_distance":
        same = same or result == _digit_distance(*arguments)
    elif oracle == "set":
        same = set(result) == set(expected)
    elif oracle == "not_none":
        same = result == expected if isinstance(result, bool) else expected == (result is not None)
    if same:
        return True
    tolerance = atol or (_DEFAULT_ATOL if _is_floats(expected) else 0.0)
    return bool(tolerance) and is_exact and type(result) is type(expected) and _is_close(result, expected, tolerance)


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _is_close(a: Any, b: Any, atol: float) -> bool:
    if isinstance(b, (list, tuple)):
        return (
            isinstance(a, (list, tuple))
            and len(a) == len(b)
            and all(_is_close(x, y, atol) for x, y in zip(a, b, strict=True))
        )
    if not isinstance(a, (int, float, complex)) or not isinstance(b, (int, float, complex)):
        return False
    if a == b:
        return True
    if any(math.isinf(part) for number in (a, b) for part in (complex(number).real, complex(number).imag)):
        return False
    return bool(abs(a - b) <= atol + _RTOL * abs(b))


def _polynomial(coefficients: Any, x: Any) -> Any:
    return sum(coefficient * math.pow(x, power) for power, coefficient in enumerate(coefficients))


def _surface_area(base_edge: Any, height: Any) -> Any:
    """MBPP 581 read the other way: `height` is the pyramid's own, and the slant height follows from it."""
    return round(base_edge**2 + 2 * base_edge * math.sqrt((base_edge / 2) ** 2 + height**2))


def _digit_distance(a: Any, b: Any) -> Any:
    """MBPP 558 read digit by digit, the shorter number filled with zeros on the left."""
    width = max(len(str(a)), len(str(b)))
    return sum(abs(int(x) - int(y)) for x, y in zip(str(a).zfill(width), str(b).zfill(width), strict=True))
