"""From what a model wrote to the program that is judged, without running any of it.

A *completion* continues code: it is put behind its prompt, and lines at its end that keep it from parsing are dropped.
An *answer* is prose, fences and code in any order, cut off anywhere. `extract` finds the code in an answer:

1. Lines with a fence cut the answer into blocks. Whether a fence opens or closes does not matter, so a fence that the
   prompt opened, one that was never closed, and text between two of them are all handled alike.
2. In a block that does not parse, each top-level statement is parsed on its own. Those that parse are code, the others
   are prose; of a definition that breaks off, the longest run of lines that parses is kept.
3. The first block in which the entry point has a body is the solution: official stop strings also end an answer at its
   first block, and later ones are often examples or alternatives. Other blocks are put in front of it only when it
   uses names that they define.
4. Module-level statements that use the solution instead of being part of it go: calls of the entry point (through the
   program's own functions, too), `assert`, test runners, reading of input, and bare words, which are prose.

Everything else stays as it was written, whatever its kind: helpers without a return, decorated functions, assignments
to several names, imports in a `try`, calls such as `sys.setrecursionlimit`. The prompt is never added to an answer: one
that does not define the entry point does not count under the official rules either.

Each line is parsed a bounded number of times (log n times where a definition breaks off), so the cost is n log n in the
length of the text.
"""

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from unmask.errors import SettingsError, did_you_mean

AnswerKind = Literal["completion", "answer", "infill"]
ANSWER_KINDS: tuple[str, ...] = get_args(AnswerKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """A program, and what kept it from being a whole one."""

    program: str
    problem: str = ""
    """Why the program cannot be right: nothing parses, or the entry point is missing or empty. Empty: nothing seen."""


def extract(
    text: str, *, entry_point: str = "", prompt: str = "", suffix: str = "", kind: AnswerKind = "answer"
) -> Extraction:
    """The whole program in a model's text. Takes any text; the program of one without code is the text itself.

    >>> answer = "Sure!\\n```python\\ndef add(a, b):\\n    return a + b\\n```\\nThis adds them."
    >>> print(extract(answer, entry_point="add").program)
    def add(a, b):
        return a + b
    """
    if kind == "answer":
        if not text.strip():
            return Extraction(program=text, problem="the answer is empty")
        with _quiet():
            return _from_answer(text, entry_point)
    if kind == "completion":
        program = close_completion(prompt, text, entry_point=entry_point)
        with _quiet():
            return Extraction(program=program, problem=_problem_of(program, entry_point))
    return Extraction(program=raw_program(text, prompt=prompt, suffix=suffix, kind=kind))


def raw_program(text: str, *, prompt: str = "", suffix: str = "", kind: AnswerKind = "answer") -> str:
    """The program without any extraction: the text, with what was given around it.

    >>> raw_program("    return 1", prompt="def one():\\n", kind="completion")
    'def one():\\n    return 1'
    """
    if kind not in ANSWER_KINDS:
        raise SettingsError(f"{kind!r} is no kind of model text; {did_you_mean(str(kind), ANSWER_KINDS)}")
    return {"answer": text, "completion": prompt + text, "infill": prompt + text + suffix}[kind]


def close_completion(prompt: str, completion: str, *, entry_point: str = "") -> str:
    """`prompt + completion` without the last lines of the completion that keep it from parsing.

    Both as they are when no shorter completion parses (and defines the entry point) either.

    >>> close_completion("def one():\\n", "    return 1\\n    # and then\\n    for i in ran")
    'def one():\\n    return 1\\n    # and then\\n'
    """
    with _quiet():
        kept = _longest_prefix(_split(completion), before=prompt)
        program = prompt + "".join(kept)
        if not kept or (entry_point and entry_point not in _defined(_parse_or_none(program))):
            return prompt + completion
        return program


# --- Answers ---


def _from_answer(text: str, entry_point: str) -> Extraction:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # A fence that is indented may belong to a docstring, so such fences count only when nothing is found without them.
    codes, trees = _parsed_blocks(_blocks(lines, _FENCE))
    if any(map(_INDENTED_FENCE.fullmatch, lines)) and _choose(trees, entry_point) is None:
        codes, trees = _parsed_blocks(_blocks(lines, _INDENTED_FENCE))
    if not codes:
        return Extraction(program=text, problem="no line of the answer is Python code")
    chosen = _choose(trees, entry_point)
    if chosen is None:
        chosen = max(range(len(codes)), key=lambda i: len(codes[i]))
    program = _solution(codes, trees, chosen, entry_point)
    if entry_point and _has_body(trees[chosen], entry_point) is False:
        return Extraction(program=program, problem=f"the definition of {entry_point} has no body")
    return Extraction(program=program, problem=_problem_of(program, entry_point))


_FENCE = re.compile(r"(?:`{3,}|~{3,})[^`\n]*")
_INDENTED_FENCE = re.compile(r"[ \t]*(?:(?:[-*>]|\d+[.)])[ \t]*)?(?:`{3,}|~{3,})[^`\n]*")

_CLOSED_LINE = re.compile(r"\s*[\w#\"')\]}][^`]*```\s*")  # code, and the fence behind it


def _blocks(lines: Sequence[str], fence: re.Pattern[str]) -> Iterator[str]:
    """The text between fences, each piece free of the indentation that all its lines share."""
    block: list[str] = []
    for line in lines:
        if fence.fullmatch(line):
            yield _dedent(block)
            block = []
        elif _CLOSED_LINE.fullmatch(line):
            yield _dedent([*block, line.rstrip()[:-3]])
            block = []
        else:
            block.append(line)
    yield _dedent(block)


def _dedent(lines: Sequence[str]) -> str:
    """Only where the first line is indented: `textwrap.dedent` also empties blank lines, those in strings as well."""
    text = "\n".join(lines)
    first = next((line for line in lines if line.strip()), "")
    return textwrap.dedent(text) if first[:1].isspace() else text


def _parsed_blocks(blocks: Iterable[str]) -> tuple[list[str], list[ast.Module | None]]:
    codes = [code for code in map(_code_of, blocks) if code.strip()]
    return codes, [_parse_or_none(code) for code in codes]


def _code_of(block: str) -> str:
    """The block if it parses, else those of its top-level statements that do."""
    block = block.strip("\n").rstrip()
    if not block or _parse_or_none(block) is not None:
        return block
    return "\n".join(code for code in map(_code_of_statement, _statements(block)) if code).rstrip()


def _code_of_statement(statement: str) -> str:
    if _parse_or_none(statement) is not None:
        return statement
    if _DEFINITION.match(statement):
        return "".join(_longest_prefix(_split(statement))).rstrip("\n")
    # Prose may open a bracket and never close it: what that took along gets one more chance.
    pieces = _statements(statement, follow_brackets=False)
    return "\n".join(piece for piece in pieces[1:] if _parse_or_none(piece) is not None)


_DEFINITION = re.compile(r"@|(?:async[ \t]+def|def|class)[ \t]+\w")
_CONTINUATION = re.compile(r"(?:else|elif|except|finally)\b|[)\]}#]")
_NEVER_INSIDE = re.compile(r"(?:async[ \t]+def|def|class)[ \t]+\w|import[ \t]+\w|from[ \t]+[\w.]+[ \t]+import\b")


def _statements(code: str, *, follow_brackets: bool = True) -> list[str]:
    """The top-level statements, by a scan that also gets through prose; joined by newlines they are the code again."""
    lines = code.split("\n")
    open_at = _open_lines(code, follow_brackets=follow_brackets)
    statements: list[list[str]] = [[]]
    is_decorated = False
    for line, is_open in zip(lines, open_at, strict=True):
        is_start = bool(line) and not line[0].isspace() and not is_open and not _CONTINUATION.match(line)
        if is_start and not is_decorated and statements[-1]:
            statements.append([])
        statements[-1].append(line)
        if is_start:
            is_decorated = line.startswith("@")
    return ["\n".join(statement) for statement in statements]


_TOKEN = re.compile(r"""\#[^\n]*|\"{3}|'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\\\n|\\.|[()\[\]{}]|\n""")
_STRING_END = {quotes: re.compile(rf"(?:\\.|[^\\])*?{quotes}", re.DOTALL) for quotes in ('"' * 3, "'" * 3)}


def _open_lines(code: str, *, follow_brackets: bool) -> list[bool]:
    """For each line, whether it begins inside a string, a bracket, or behind a backslash.

    A string that is never closed is none. A bracket ends at a line that no bracket can hold, such as `def f():`.
    """
    is_open = [False]
    string_end = dict(_STRING_END)
    depth = position = 0
    while match := _TOKEN.search(code, position):
        token, position = match[0], match.end()
        if token in string_end:
            if end := string_end[token].match(code, position):
                is_open += [True] * end[0].count("\n")
                position = end.end()
            else:
                del string_end[token]  # nor will any later one be closed
        elif token in ("(", "[", "{"):
            depth += follow_brackets
        elif token in (")", "]", "}"):
            depth = max(depth - 1, 0)
        elif token.endswith("\n"):
            depth = 0 if depth and _NEVER_INSIDE.match(code, position) else depth
            is_open.append(depth > 0 or token != "\n")
    return is_open


# --- The longest program at the beginning of some lines ---

_GUIDED_STEPS = 8


def _longest_prefix(lines: Sequence[str], *, before: str = "") -> Sequence[str]:
    """The most first lines that parse behind `before`; none when not even one does.

    The parser says at which line it stopped, and no prefix that reaches further parses. After eight such steps back the
    steps double, so the number of attempts is logarithmic.
    """
    given = before.count("\n")
    count, step, attempts = len(lines), 1, 0
    while count > 0:
        try:
            _parse(before + "".join(lines[:count]))
        except _UNREADABLE as error:
            attempts += 1
            if attempts > _GUIDED_STEPS:
                step *= 2
            at = _line_of(error)
            count = count - step if at is None else min(count - step, max(at - 1 - given, 0))
        else:
            return lines[:count]
    return []


def _line_of(error: BaseException) -> int | None:
    """The line at which a parser stopped. Inside an f-string it counts from that string on, which helps nobody."""
    if not isinstance(error, SyntaxError) or error.filename == "<fstring>":
        return None
    return error.lineno


def _split(text: str) -> list[str]:
    """Lines with their ends. `str.splitlines` also splits at characters that end no line of Python."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


# --- Which block, and what of it ---


def _choose(trees: Sequence[ast.Module | None], entry_point: str) -> int | None:
    """The first block in which the entry point has a body, else the first that names it at all."""
    if not entry_point:
        return None
    has_body = [_has_body(tree, entry_point) for tree in trees]
    for wanted in (True, False):
        if wanted in has_body:
            return has_body.index(wanted)
    return None


def _has_body(tree: ast.Module | None, name: str) -> bool | None:
    """Whether a definition of the name does anything; None when there is no definition."""
    found = None
    for statement in _flat(tree.body if tree else []):
        if name not in _bound(statement):
            continue
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return True
        found = found or not all(_is_idle(part) or isinstance(part, ast.Pass) for part in statement.body)
    return found


def _solution(codes: Sequence[str], trees: Sequence[ast.Module | None], chosen: int, entry_point: str) -> str:
    """The chosen block behind those that define what it lacks, without statements that only use it."""
    missing = _used(trees[chosen]) - _bound_anywhere(trees[chosen]) - _BUILTINS
    helpers = [
        code
        for i, (code, tree) in enumerate(zip(codes, trees, strict=True))
        if i != chosen and missing & _defined(tree) and entry_point not in _defined(tree)
    ]
    code = "\n\n".join([*helpers, codes[chosen]])
    return _without_uses(code, entry_point) if entry_point else code


_BUILTINS = frozenset(dir(builtins))
_RUNNERS = frozenset({"unittest", "doctest", "pytest"})


def _without_uses(code: str, entry_point: str) -> str:
    """The code without module-level statements that only use it. Unchanged, byte for byte, when there are none."""
    tree = _parse_or_none(code)
    if tree is None:
        return code
    running = _names_that_run(tree, {entry_point, "input"})
    kept: set[int] = set()
    dropped: set[int] = set()
    lost: set[str] = set()  # names that only dropped statements bind: what needs them goes too
    for statement in tree.body:
        lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        bound = {name for inner in _flat([statement]) for name in _bound(inner)}
        if entry_point not in bound and _is_use(statement, running, lost):
            dropped.update(lines)
            lost |= bound
        else:
            kept.update(lines)
            lost -= bound
    dropped -= kept  # what shares a line with a statement that stays, stays
    if not dropped:
        return code
    return "\n".join(line for number, line in enumerate(code.split("\n"), 1) if number not in dropped).rstrip("\n")


def _is_use(statement: ast.stmt, running: set[str], lost: set[str]) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return False
    if isinstance(statement, ast.Assert) or _is_prose(statement):
        return True
    nodes = list(_run_on_loading(statement))
    return any(isinstance(node, ast.Call) and _is_run(node, running) for node in nodes) or any(
        isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in lost for node in nodes
    )


def _is_run(call: ast.Call, running: set[str]) -> bool:
    match call.func:
        case ast.Name(id=name):
            return name in running
        case ast.Attribute(value=ast.Name(id=module)):
            return module in _RUNNERS
        case _:
            return False


def _is_prose(statement: ast.stmt) -> bool:
    """`Explanation`, `Output: 5`, `- fast`: parses, but does nothing except fail."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    if not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Constant):
        return False
    acting = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
    return not any(isinstance(node, acting) for node in ast.walk(statement))


def _is_idle(statement: ast.stmt) -> bool:
    """A docstring or an ellipsis."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _names_that_run(tree: ast.Module, names: set[str]) -> set[str]:
    """The names, and the program's functions that call one of them, directly or through each other."""
    callers: dict[str, set[str]] = {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(statement):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    callers.setdefault(node.func.id, set()).add(statement.name)
    running, new = set(names), list(names)
    while new:
        found = callers.get(new.pop(), set()) - running
        running |= found
        new += found
    return running


def _run_on_loading(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes that run when the module is loaded: not those in the bodies of functions."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            waiting += ast.iter_child_nodes(node)


# --- What a piece of code defines and uses ---


def _problem_of(program: str, entry_point: str) -> str:
    tree = _parse_or_none(program)
    if tree is None:
        return "the program does not parse"
    if entry_point and entry_point not in _defined(tree):
        return f"the program does not define {entry_point}"
    return ""


def _defined(tree: ast.Module | None) -> set[str]:
    """Names that are bound when the module has been loaded."""
    return {name for statement in _flat(tree.body if tree else []) for name in _bound(statement)}


def _flat(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, and those inside their blocks (`if`, `try`, `with`, loops); not those in functions and classes."""
    waiting = list(statements)[::-1]
    while waiting:
        statement = waiting.pop()
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        inner: list[ast.stmt] = []
        for part in ast.iter_child_nodes(statement):
            if isinstance(part, ast.stmt):
                inner.append(part)
            elif isinstance(part, ast.ExceptHandler | ast.match_case):
                inner += part.body
        waiting += inner[::-1]


def _bound(statement: ast.stmt) -> set[str]:
    """Names that this one statement binds, without those in its inner statements."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    names: set[str] = set()
    waiting = [part for part in ast.iter_child_nodes(statement) if isinstance(part, ast.expr | ast.withitem)]
    for part in waiting:
        names |= {node.id for node in ast.walk(part) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names


def _bound_anywhere(tree: ast.Module | None) -> set[str]:
    """Names bound in any scope: an approximation that asks for too few other blocks rather than too many."""
    names: set[str] = set()
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.stmt):
            names |= _bound(node)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


def _used(tree: ast.Module | None) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} if tree else set()


# --- Parsing what anybody may have written ---

_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


def _parse(code: str) -> ast.Module:
    return ast.parse(code)


def _parse_or_none(code: str) -> ast.Module | None:
    try:
        return _parse(code)
    except _UNREADABLE:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about a model's escapes: they would be shown as ours, or be errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
