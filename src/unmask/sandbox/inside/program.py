"""The process of one untrusted program: load its code, call it, and send back what it returns.

Nothing in this process is trusted once the program's first statement has run, so nothing here decides anything: it
holds the inputs and no answers, and what it sends is bytes that others decode with care.

    supervisor → program   J job (once)
    program → supervisor   S syntax error    I error while loading    K loaded, with the names that it defines
                           R result of the next call    X exception of the next call    T the call took too long
                           D all calls made    O more output than allowed

In the serving mode the calls come from the tests' process over a second socket (`remote.py` has that protocol).
"""

from __future__ import annotations

import io
import marshal
import signal
import socket
import struct
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from . import remote, values, wire

MODULE = "solution"
_RESULT = struct.Struct("<?d")


_SET_READY = frozenset({list, tuple, set, frozenset, dict, str})
"""Results that the judge can make a set of; any other iterable (an iterator, a view) is made one here."""


class OutputLimit(BaseException):
    """The program printed more than it may."""


class CallTimeout(BaseException):
    """One call used more CPU time than it may."""


class Sink(io.TextIOBase):
    """Standard output of a program: counted and dropped."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise OutputLimit
        return len(text)


def run(conn: socket.socket, peer: socket.socket | None) -> None:
    """Serve the one job that arrives on `conn`; `peer` is the socket of the tests' process, or None."""
    kind, payload = wire.receive(conn)
    if kind != b"J":
        return
    job = marshal.loads(payload)  # from the supervisor
    sys.stdout = sys.stderr = Sink(job["output_bytes"])
    module = _load(conn, job["code"])
    if module is None:
        return
    if job["mode"] == "serve" and peer is not None:
        names = [name for name in vars(module) if isinstance(name, str) and name.isidentifier() and name[:2] != "__"]
        wire.send(conn, b"K", "\n".join(names[:2000]).encode("utf-8", "replace"))
        remote.serve(peer, vars(module))
        return
    if job["entry_point"] not in vars(module):
        _send_error(conn, b"I", NameError(f"{job['entry_point']} is not defined"))
        return
    wire.send(conn, b"K")
    entry = vars(module)[job["entry_point"]]
    _call_all(conn, entry, marshal.loads(job["inputs"]), job["call_cpu_seconds"], as_set=job["as_set"])


def _load(conn: socket.socket, source: str) -> types.ModuleType | None:
    """Run the program's own statements in a fresh module; None after an error, which has been sent."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    try:
        code = compile(source, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, UnicodeError) as error:
        _send_error(conn, b"S", error)
        return None
    try:
        exec(code, vars(module))
    except BaseException as error:
        _send_error(conn, b"O" if isinstance(error, OutputLimit) else b"I", error)
        return None
    return module


def _call_all(
    conn: socket.socket,
    entry: Callable[..., Any],
    inputs: list[tuple[Any, ...]],
    cpu_limits: list[float],
    *,
    as_set: bool,
) -> None:
    pack, encode_compact, now = _RESULT.pack, values.encode_compact, time.process_time
    if cpu_limits:
        signal.signal(signal.SIGPROF, _on_timeout)
    for index, arguments in enumerate(inputs):
        started = now()
        allowed = cpu_limits[index] if cpu_limits else 0.0
        try:
            if allowed:
                signal.setitimer(signal.ITIMER_PROF, allowed)
            result = entry(*arguments)
            if allowed:
                signal.setitimer(signal.ITIMER_PROF, 0)
            spent = now() - started
            if allowed and spent > allowed:
                raise CallTimeout
            if as_set and type(result) not in _SET_READY:
                result = set(result)
            data, is_exact = encode_compact(result)
            reply = wire.frame(b"R", pack(is_exact, spent) + data)
        except CallTimeout:
            wire.send(conn, b"T")
            return
        except OutputLimit:
            wire.send(conn, b"O")
            return
        except BaseException as error:
            _send_error(conn, b"X", error)
            return
        result = None
        conn.sendall(reply)
    wire.send(conn, b"D")


def _on_timeout(signum: int, frame: types.FrameType | None) -> None:
    raise CallTimeout


def _send_error(conn: socket.socket, kind: bytes, error: BaseException) -> None:
    wire.send(conn, kind, remote.describe(error))
