"""unittest-style tests (BigCodeBench), which mock what the program uses and so run inside its process.

This verdict is weaker than the others: the program can reach the code that judges it. What is done about it:

* the reporting socket and the unittest machinery are taken hold of before the program is loaded, and the machinery is
  compared with that hold afterwards: what is still changed then is reported, and such a run never passes;
* the report counts the tests that passed; the supervisor knows from the trusted source how many there are;
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
_TEST_CASE = unittest.TestCase
_MODULES = tuple(name for name in sys.modules if name.partition(".")[0] == "unittest" and "mock" not in name)


def run(conn: socket.socket, peer: socket.socket | None) -> None:
    """Serve the one job that arrives on `conn`."""
    kind, payload = wire.receive(conn)
    if kind != b"J":
        return
    job = marshal.loads(payload)  # from the supervisor
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    vars(unittest.case)["_ShouldStop"] = ()  # an exception that would end a test without a word; nothing needs it here
    before = _fingerprint()
    tools = (unittest.TestLoader, _Result, remote.describe, wire.send, json.dumps, _fingerprint, os._exit)
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    vars(module).update({"__file__": f"{MODULE}.py", "__builtins__": builtins, "sys": sys, "os": os})
    try:
        parts = [_compiled(job["code"], f"{MODULE}.py"), _compiled(job["tests"], "test.py")]
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, UnicodeError) as error:
        wire.send(conn, b"S", remote.describe(error))
        return
    try:
        for part in parts:
            exec(part, vars(module))
        found = vars(module)[job["test_class"]]
    except BaseException as error:
        wire.send(conn, b"I", remote.describe(error))
        return
    _report(conn, found, before, tools)


def _compiled(source: str, name: str) -> types.CodeType:
    """The code, with its lines kept for `inspect`. Program and tests apart: an open string cannot swallow the tests."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    return compile(source, name, "exec", dont_inherit=True)


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
    changed = sorted(name for name in {*before, *after} if after.get(name) != before.get(name))
    if _TEST_CASE not in test_class.__mro__:
        changed.append("TestCase")
    record = {
        "passed": result.num_passed,
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
        self.num_passed = 0

    def addSuccess(self, test: Any) -> None:
        self.num_passed += 1

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._keep(test, err)  # no test of a benchmark expects to fail, so a program has said so

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


def _fingerprint() -> dict[str, tuple[int, ...]]:
    """Identities of everything that decides a test's outcome: the builtins, and unittest with all its classes."""
    found: dict[str, tuple[int, ...]] = {
        f"builtins.{name}": (id(value),) for name, value in vars(builtins).items() if name in _BUILTINS
    }
    owners: list[Any] = [sys.modules.get(name) for name in _MODULES]
    owners += [value for owner in owners for value in vars(owner or types).values() if isinstance(value, type)]
    for number, owner in enumerate([*owners, _Result]):
        for name, value in vars(owner or types).items():
            if name not in ("__warningregistry__", "__builtins__"):
                found[f"{number}.{getattr(owner, '__name__', '')}.{name}"] = (
                    id(value),
                    id(getattr(value, "__code__", 0)),
                )
    return found


_BUILTINS = frozenset(vars(builtins)) - {"_"}
