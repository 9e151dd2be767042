"""Which of a task's tests its prompt gives away, and the task without them.

An example in a prompt is part of the task. It is a leak where a test asks the same: the very call with the very value,
however it is written (`>>> f(1)` and the value below it, `f(1) == 2`, `f(1) returns 2`), or the text of the assertion.
A program that looks its answer up passes such a test, so it is taken out of those that score. A call that is shown
without its value, or with another call's, gives nothing away.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from unmask.data.jsonl import parse
from unmask.data.task import Task
from unmask.sandbox.inside import values
from unmask.sandbox.tests import AssertTests, CallTests, Tests, num_scored

_SAYS = r"(?:should |will |would |must )?(?:returns?|gives?|equals?|outputs?|produces?|yields?|evaluates? to|be)\b"
_BETWEEN = re.compile(rf"`?\s*(?:==|=>|->|→|➞|=|#|:|is\b|{_SAYS})?\s*(?:#\s*)?`?")
_COMMENT = re.compile(r"[ \t]*#.*\n\s*")
_LONGEST = 2000
"""Characters of a call, or of a value, that are looked at."""


def leaks(task: Task, text: str) -> list[str]:
    """The tests that decide over a task and stand in a text, as they would be written.

    >>> task = Task(task_id="x", prompt="", tests={"base": CallTests.of("one", [(), (1,)], [1, 2])})
    >>> leaks(task, "def one(n=0):\\n    '''\\n    >>> one()\\n    1\\n    >>> one(1)\\n    3\\n    '''")
    ['one() == 1']
    """
    return without_leaks(task, text)[1]


def without_leaks(task: Task, text: str) -> tuple[Task, list[str]]:
    """The task without the tests that stand in a text, and what they were.

    Of tests that decide, only the rest is kept; a set with no tests left is gone. Tests that do not decide stay while
    others do: where none of those is left, the task has no tests. Tests in a `unittest` class cannot be parted: one
    that leaks takes its set with it.
    """
    kept, found = dict(task.tests), []
    for name in task.required_tests:
        rest, leaked = _without(task.tests[name], text)
        found += leaked
        if rest is None:
            del kept[name]
        else:
            kept[name] = rest
    if not found:
        return task, []
    required = tuple(name for name in task.required if name in kept)
    if task.required and not required:  # an empty `required` would let tests decide that did not
        kept = {}
    return replace(task, tests=kept, required=required), found


def num_tests(task: Task) -> int:
    """How many tests decide over a task, as a reward counts them: the assertions of one `check(candidate)` are one."""
    return sum(num_scored(task.tests[name]) for name in task.required_tests)


def claims(tests: CallTests | AssertTests) -> list[tuple[tuple[Any, ...], Any] | None]:
    """What each test says of one call with plain values: (arguments, value); None for one that says something else.

    >>> claims(AssertTests(entry_point="f", code="assert f(1) == 2\\nassert not f(3)\\nassert len(f(4)) == 2"))
    [((1,), 2), ((3,), False), None]
    """
    if isinstance(tests, AssertTests):
        return [_claim(node.test, {tests.entry_point, "candidate"}) for node in _asserts(parse(tests.code))]
    return [
        # a digest stands for a value of megabytes, which nobody writes down
        None if value.startswith(b"D") else (tuple(arguments), values.decode(value))
        for arguments, value in zip(values.decode(tests.inputs), tests.expected, strict=True)
    ]


def _without(tests: Tests, text: str) -> tuple[Tests | None, list[str]]:
    if isinstance(tests, CallTests):
        return _without_calls(tests, text)
    if isinstance(tests, AssertTests):
        return _without_asserts(tests, text)
    told = _Told.in_text(text, "")
    lines = (line.strip() for line in tests.code.splitlines())
    leaked = [line for line in lines if line.startswith(("self.assert", "assert ")) and told.holds(line)]
    return (None if leaked else tests), leaked


def _without_calls(tests: CallTests, text: str) -> tuple[CallTests | None, list[str]]:
    told = _Told.in_text(text, tests.entry_point)
    if not told.calls:
        return tests, []
    calls = values.decode(tests.inputs)
    keep, leaked = [], []
    for number, (arguments, encoded) in enumerate(zip(calls, tests.expected, strict=True)):
        # a digest stands for a value of megabytes, which no prompt shows
        expected = ... if encoded.startswith(b"D") else values.decode(encoded)
        if told.says(tuple(arguments), expected):
            leaked.append(f"{tests.entry_point}({', '.join(map(repr, arguments))}) == {expected!r}")
        else:
            keep.append(number)
    if not leaked or not keep:
        return (None if leaked else tests), leaked
    rest = replace(
        tests,
        inputs=values.encode([tuple(calls[number]) for number in keep]),
        expected=tuple(tests.expected[number] for number in keep),
        call_cpu_seconds=tuple(tests.call_cpu_seconds[number] for number in keep) if tests.call_cpu_seconds else (),
    )
    return rest, leaked


def _without_asserts(tests: AssertTests, text: str) -> tuple[AssertTests | None, list[str]]:
    told = _Told.in_text(text, tests.entry_point)
    tree = parse(tests.code)
    nodes = _asserts(tree)
    leaked = []
    for node in nodes:
        source = ast.get_source_segment(tests.code, node) or ast.unparse(node)
        claim = _claim(node.test, {tests.entry_point, "candidate"})
        if told.holds(source) or told.holds(ast.unparse(node)) or (claim is not None and told.says(*claim)):
            leaked.append((node, source))
    if not leaked:
        return tests, []
    sources = [source for _, source in leaked]
    if len(leaked) == len(nodes):
        return None, sources
    rest = ast.fix_missing_locations(_Remove({id(node) for node, _ in leaked}).visit(tree))
    return replace(tests, code=ast.unparse(rest) + "\n"), sources


def _asserts(tree: ast.AST) -> list[ast.Assert]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


class _Remove(ast.NodeTransformer):
    """Puts `pass` in the place of some assertions: a body must not be empty."""

    def __init__(self, gone: set[int]) -> None:
        self._gone = gone

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        return ast.Pass() if id(node) in self._gone else node


def _claim(test: ast.expr, names: set[str]) -> tuple[tuple[Any, ...], Any] | None:
    """What an assertion says of one call with plain values: (arguments, value)."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        arguments = _arguments(test.operand, names)
        return None if arguments is None else (arguments, False)
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq | ast.Is):
        for call, value in ((test.left, test.comparators[0]), (test.comparators[0], test.left)):
            arguments, literal = _arguments(call, names), _literal(value)
            if arguments is not None and literal is not None:
                return arguments, literal[0]
        return None
    arguments = _arguments(test, names)
    return None if arguments is None else (arguments, True)


def _arguments(node: ast.expr, names: set[str]) -> tuple[Any, ...] | None:
    """The arguments of a call of one of these names; None for anything else, and where they are no plain values."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names):
        return None
    found = [_literal(argument) for argument in (*node.args, *(keyword.value for keyword in node.keywords))]
    return tuple(one[0] for one in found if one is not None) if None not in found else None


def _literal(node: ast.expr) -> tuple[Any] | None:
    """The plain value of an expression, in a tuple of one."""
    try:
        return (ast.literal_eval(node),)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


@dataclass(frozen=True, slots=True)
class _Told:
    """What a text gives away: calls of one function with their values, and its words."""

    calls: tuple[tuple[tuple[Any, ...], Any], ...]
    words: str

    @classmethod
    def in_text(cls, text: str, name: str) -> "_Told":
        return cls(tuple(_shown_calls(text, name)) if name else (), " ".join(text.split()))

    def says(self, arguments: tuple[Any, ...], value: Any) -> bool:
        return any(shown == arguments and given == value for shown, given in self.calls)

    def holds(self, source: str) -> bool:
        """Whether the words of some code stand there, and are not the beginning of a longer number or name."""
        return re.search(rf"{re.escape(' '.join(source.split()))}(?![\w.])", self.words) is not None


def _shown_calls(text: str, name: str) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for found in re.finditer(rf"\b{re.escape(name)}\(", text):
        window = text[found.start() : found.start() + _LONGEST]
        for close in re.finditer(r"\)", window):
            call = _expression(window[: close.end()])
            if call is not None:
                arguments = _arguments(call, {name})
                if arguments is not None:
                    yield from ((arguments, value) for value in _values_behind(window[close.end() :]))
                break


def _values_behind(text: str) -> Iterator[Any]:
    """The values that may be meant by what follows a call: behind a sign or a word, or below a comment."""
    for between in (_BETWEEN.match(text), _COMMENT.match(text)):
        if between is not None:
            yield from _values_at_start(text[between.end() :].partition("\n")[0])


def _values_at_start(line: str) -> Iterator[Any]:
    """The longest plain value that a line begins with. Of `3, 'message'` it may be the 3 alone."""
    for stop in (len(line.rstrip()), *(found.end() for found in reversed([*re.finditer(r"\w\b|[)\]}'\"]", line)]))):
        node = _expression(line[:stop]) if stop else None
        value = None if node is None else _literal(node)
        if node is not None and value is not None:
            yield value[0]
            if isinstance(node, ast.Tuple) and node.elts and not line.lstrip().startswith("("):
                yield ast.literal_eval(node.elts[0])
            return


def _expression(code: str) -> ast.expr | None:
    try:
        body = parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else None
