"""Functions with a docstring, taken out of Python texts: what questions about code are made from.

A function is a whole definition of 3 to 40 lines at the top of a module or of a class in it, with a docstring on lines
of its own and something below it. Its texts have no indentation in front. The same name with the same body counts once,
whatever its docstring and layout.
"""

import ast
import copy
import functools
import hashlib
import io
import re
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unmask.data.corpus import Document
from unmask.data.jsonl import parse

MIN_LINES, MAX_LINES = 3, 40
_MAX_LINE = 160
_NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
_SUMMARY_WORDS = range(3, 41)


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function or method, in the texts that a question may show."""

    name: str
    source: str
    """Where it was found: the document's name, and the name with the class's in front."""

    licence: str
    is_method: bool
    is_annotated: bool
    """Whether any argument or the result has a type."""

    text: str
    """All of it, decorators included."""

    stub: str
    """`def` up to the end of the docstring."""

    without_docstring: str
    signature: str
    """On one line, without the colon: `def add(a, b=0)`."""

    docstring: str
    body_line: int
    """The first line of `text` below the docstring, counted from 1."""

    @functools.cached_property
    def summary(self) -> str:
        """The first sentence of the docstring without markup and without its stop; empty where it is none."""
        return summary_of(self.docstring)

    @functools.cached_property
    def swaps(self) -> tuple[str, ...]:
        """The text with one operator or word below the docstring exchanged, in all ways that are known."""
        return tuple(_swapped(self.text, first_line=self.body_line))


def functions(documents: Iterable[Document], *, skipped: Counter[str] | None = None) -> Iterator[Function]:
    """The functions of some documents, each once; `skipped` counts texts that are no Python."""
    seen: set[bytes] = set()
    for document in documents:
        try:
            module = parse(document.text)
        except _NOT_PYTHON:
            if skipped is not None:
                skipped["syntax"] += 1
            continue
        lines = document.text.split("\n")
        for path, node in _definitions(module):
            found = _function(document, lines, path, node)
            if found is not None and (key := _key(node)) not in seen:
                seen.add(key)
                yield found


def summary_of(docstring: str) -> str:
    """The first sentence of a docstring, as plain words.

    >>> summary_of("Return the :class:`Path` of *name*, e.g. of a\\n    file.  More here.")
    'Return the `Path` of name, e.g. of a file'
    """
    text = " ".join(docstring.strip().partition("\n\n")[0].split())
    text = re.split(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<![ .][A-Z])[.:](?:\s|$)|:param|\s>>>", text, maxsplit=1)[0]
    text = re.sub(r":[\w:]+:`~?\.?([^`<]*?)(?:\s*<[^`]*>)?`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"\*{1,2}(\w+)\*{1,2}", r"\1", text).strip()
    return text if len(text.split()) in _SUMMARY_WORDS and text.isprintable() else ""


# One definition


def _definitions(module: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of the module and methods of its classes, with the path of names to each."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def _function(
    document: Document, all_lines: Sequence[str], path: str, node: ast.FunctionDef | ast.AsyncFunctionDef
) -> Function | None:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = node.end_lineno or first
    docstring = ast.get_docstring(node)
    if not MIN_LINES <= last - first + 1 <= MAX_LINES or not docstring or not _does_something(node):
        return None
    text = textwrap.dedent("\n".join(all_lines[first - 1 : last])) + "\n"
    lines = _lines(text)
    if max(map(len, lines)) > _MAX_LINE or "```" in text or not _is_one(text, node.name):
        return None
    opening, closing = node.body[0].lineno - first, (node.body[0].end_lineno or 0) - first + 1
    if not lines[opening].lstrip().startswith(('"', "'", "r", "R")) or node.body[1].lineno - first < closing:
        return None
    return Function(
        name=node.name,
        source=f"{document.name}: {path}",
        licence=" AND ".join(document.licences),
        is_method="." in path,
        is_annotated=_is_annotated(node),
        text=text,
        stub="".join(lines[node.lineno - first : closing]),
        without_docstring="".join(lines[:opening]) + "".join(lines[closing:]).lstrip("\n"),
        signature=_signature(node),
        docstring=docstring,
        body_line=closing + 1,
    )


def _lines(text: str) -> list[str]:
    """Lines as the parser counts them: `str.splitlines` also breaks at form feeds and others."""
    return [f"{line}\n" for line in text.removesuffix("\n").split("\n")]


def _does_something(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether there is more than a docstring and a placeholder."""
    return any(not isinstance(line, ast.Pass | ast.Raise) and not _is_constant(line) for line in node.body[1:])


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_annotated(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return node.returns is not None or any(
        argument.annotation is not None for argument in ast.walk(node.args) if isinstance(argument, ast.arg)
    )


def _is_one(text: str, name: str) -> bool:
    """Whether the dedented text is that definition still: a string that spans lines may have held it back."""
    try:
        body = parse(text).body
    except _NOT_PYTHON:
        return False
    return [getattr(node, "name", None) for node in body] == [name]


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    bare = copy.copy(node)
    bare.decorator_list, bare.body = [], [ast.Pass()]
    return ast.unparse(bare).partition("\n")[0].removesuffix(":")


def _key(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bytes:
    text = "\n".join([node.name, *map(ast.dump, node.body[1:])])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# A mistake on purpose

_SWAPS = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "+": "-",
    "-": "+",
    "//": "/",
    "+=": "-=",
    "-=": "+=",
    "and": "or",
    "or": "and",
    "True": "False",
    "False": "True",
    "min": "max",
    "max": "min",
    "break": "continue",
    "continue": "break",
    "not": "",
}


def _swapped(text: str, *, first_line: int) -> Iterator[str]:
    lines = _lines(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row, column = token.start
        if token.type in (tokenize.OP, tokenize.NAME) and token.string in _SWAPS and row >= first_line:
            line, end = lines[row - 1], token.end[1]
            behind = line[end:] if _SWAPS[token.string] else line[end:].lstrip(" ")
            changed = f"{line[:column]}{_SWAPS[token.string]}{behind}"
            yield "".join([*lines[: row - 1], changed, *lines[row:]])
