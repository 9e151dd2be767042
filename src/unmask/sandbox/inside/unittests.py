"""unittest-style tests (BigCodeBench), which mock what the program uses and so run inside its process.

This verdict is weaker than the others: the program can reach the code that judges it. What is done about it:

* the reporting socket and the unittest machinery are taken hold of before the program is loaded, and the machinery is
  compared with that hold afterwards: what was changed is reported, and such a run never passes;
* the report counts the tests that ran; the supervisor knows from the trusted source how many there are;
* a program that ends the process has not reported, so it has not passed.

A program that walks frames or memory to find the socket and forges the whole report is not stopped here.

    supervisor → program   J job (once)
    program → supervisor   S syntax error   I error while loading   U the report
"""

from __future__ import annotations

import builtins
import io
import json
import linecache
import marshal
import os
import socket
import sys
import types
import unittest
from typing import Any

from . import remote, wire

MODULE = "__test__"
_WATCHED: tuple[tuple[Any, tuple[str, ...] | None], ...] = (
    (unittest.TestCase, None),
    (unittest.TestResult, None),
    (unittest.TestSuite, None),
    (unittest.TestLoader, None),
    (unittest.case, ("_Outcome", "TestCase")),
    (unittest, ("TestCase", "TestResult", "TestSuite", "TestLoader")),
    (builtins, ("isinstance", "type", "len", "getattr", "object", "AssertionError", "BaseException")),
)


def run(conn: socket.socket, peer: socket.socket | None) -> None:
    """Serve the one job that arrives on `conn`."""
    kind, payload = wire.receive(conn)
    if kind != b"J":
        return
    job = marshal.loads(payload)  # from the supervisor
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    before = _fingerprint()
    tools = (unittest.TestLoader, _Result, remote.describe, wire.send, json.dumps, _fingerprint, os._exit)
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    vars(module).update({"__file__": f"{MODULE}.py", "__builtins__": builtins, "sys": sys, "os": os})
    source = job["code"] + "\n" + job["tests"]
    linecache.cache[f"{MODULE}.py"] = (len(source), None, source.splitlines(True), f"{MODULE}.py")
    try:
        code = compile(source, f"{MODULE}.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, UnicodeError) as error:
        wire.send(conn, b"S", remote.describe(error))
        return
    try:
        exec(code, vars(module))
        found = vars(module)[job["test_class"]]
    except BaseException as error:
        wire.send(conn, b"I", remote.describe(error))
        return
    _report(conn, found, before, tools)


def _report(
    conn: socket.socket, test_class: type[unittest.TestCase], before: dict[str, Any], tools: tuple[Any, ...]
) -> None:
    loader, result_class, _, send, dumps, fingerprint, leave = tools
    result = result_class()
    try:
        loader().loadTestsFromTestCase(test_class).run(result)
    except BaseException as error:
        result.problems.append(["the run", type(error).__name__, str(error)[:500]])
    after = fingerprint()
    changed = sorted(name for name in before if after.get(name) != before[name])
    record = {
        "ran": result.testsRun,
        "problems": result.problems[:20],
        "skipped": result.num_skipped,
        "changed": changed,
    }
    send(conn, b"U", dumps(record).encode("utf-8", "replace"))
    leave(0)


class _Result(unittest.TestResult):
    """Counts, and keeps the first lines of each failure."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[list[str]] = []
        self.num_skipped = 0

    def _keep(self, test: Any, error: Any) -> None:
        self.problems.append([str(test)[:200], error[0].__name__, str(error[1])[:500]])

    def addError(self, test: Any, err: Any) -> None:
        self._keep(test, err)

    def addFailure(self, test: Any, err: Any) -> None:
        self._keep(test, err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._keep(subtest, err)

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.problems.append([str(test)[:200], "UnexpectedSuccess", ""])

    def addSkip(self, test: Any, reason: str) -> None:
        self.num_skipped += 1


def _fingerprint() -> dict[str, tuple[int, int]]:
    """Identities of the functions that decide a test's outcome."""
    found = {}
    for owner, names in _WATCHED:
        for name in names or [name for name in vars(owner) if callable(getattr(owner, name, None))]:
            value = vars(owner).get(name)
            found[f"{owner.__name__}.{name}"] = (id(value), id(getattr(value, "__code__", None)))
    for name in vars(_Result):
        value = vars(_Result)[name]
        found[f"result.{name}"] = (id(value), id(getattr(value, "__code__", None)))
    return found
