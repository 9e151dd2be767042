"""Questions as people put them to a code assistant, made from functions and from the library's public names.

Each kind has several wordings (`data/wordings.py`), and the kinds come in the proportion that everyday use has:

    chat        the library's names, programs to write, ideas of the language
    write       a function by what it does and its signature
    complete    a function by its signature and docstring
    instruct    a function by what it does, in words alone
    explain, tests, docstring, types, bug, refactor      a function that is shown; `bug` exchanges one operator in it

Everything is a function of the documents, of the seed, and of this Python's library: the same question comes out in the
same place. No answers are made here (`data/answers.py`).
"""

import builtins
import functools
import importlib
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from unmask.data import corpus, wordings
from unmask.data.corpus import Document
from unmask.data.filters import Filters, FilterSettings
from unmask.data.functions import Function, functions
from unmask.data.permutation import permute
from unmask.errors import DataError, SettingsError, did_you_mean
from unmask.seeds import derive_seed
from unmask.text.chat import Message

if TYPE_CHECKING:
    from unmask.data.task import Task

SHARES = {
    "chat": 25,
    "write": 20,
    "complete": 15,
    "instruct": 10,
    "explain": 10,
    "tests": 5,
    "bug": 5,
    "docstring": 4,
    "types": 3,
    "refactor": 3,
}
"""Parts of each kind in a hundred questions."""

KINDS = tuple(SHARES)
_LIBRARY = "the standard library"
_T = TypeVar("_T")

Report = Callable[[str, int, int | None], None]
"""Told what goes on, how many of it are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a user."""

    content: str
    kind: str
    source: str
    """The function, or the name, that it is about."""

    licence: str
    """Of the code that it shows; empty where its source states none."""

    def record(self) -> dict[str, Any]:
        """One line of a file: what `unmask data answers` reads."""
        message = {"role": "user", "content": self.content}
        return {"messages": [message], "kind": self.kind, "source": self.source, "licence": self.licence}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Questions, and what was left out on the way, by reason."""

    questions: tuple[Question, ...]
    dropped: Mapping[str, int]


def make(
    sources: Sequence[str],
    *,
    count: int,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    without: Iterable["Task"] = (),
    report: Report = lambda what, done, total: None,
) -> Made:
    """Questions from the functions of some sources (`data/corpus.py`) and from the library's names.

    `without` are tasks: a question that shares ten words with one is dropped, and so is a function, since a wording may
    change one of the ten. Raises DataError, SettingsError.
    """
    check(sources, kinds)
    sieve = Filters(FilterSettings(dedup="none"), without=without)
    found: list[Function] = []
    for source in sources if set(kinds) != {"chat"} else ():
        documents = _told(source, corpus.read(source, skipped=sieve.dropped), report)
        for function in functions(documents, skipped=sieve.dropped):
            if sieve.keeps(Document(name=function.source, text=function.text)):
                found.append(function)
    if not found and set(kinds) != {"chat"}:
        raise DataError(
            f"there is no function to ask about in {', '.join(sources)}, with a docstring and of 3 to 40 lines; add a "
            f"source such as {corpus.STDLIB} or {corpus.INSTALLED}, or give `--kinds chat`"
        )

    def keeps(question: Question) -> bool:
        return sieve.keeps(Document(name=question.source, messages=(Message("user", question.content),)))

    made = draw(found, count=count, seed=seed, kinds=kinds, keeps=keeps, report=report)
    return Made(questions=tuple(made), dropped=dict(sorted(sieve.dropped.items())))


def check(sources: Sequence[str], kinds: Sequence[str]) -> None:
    """Raise SettingsError for kinds that are not known, or that need sources where there are none."""
    if not kinds:
        raise SettingsError(f"no kind of question was named; known: {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in SHARES:
            raise SettingsError(f"{kind!r} is no kind of question; {did_you_mean(kind, KINDS)}")
    if not sources and set(kinds) != {"chat"}:
        raise SettingsError(
            f"questions about code need code to ask about; give a source such as {corpus.STDLIB} or "
            f"{corpus.INSTALLED}, or `--kinds chat`"
        )


def draw(
    found: Sequence[Function],
    *,
    count: int,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    keeps: Callable[[Question], bool] = lambda question: True,
    report: Report = lambda what, done, total: None,
) -> list[Question]:
    """`count` questions in a random order, or as many as there are.

    A function is asked about once in each kind. Where a kind has too few, the others fill in, by their shares.
    """
    asked: set[str] = set()

    def is_wanted(question: Question) -> bool:
        if question.content in asked or not keeps(question):
            return False
        asked.add(question.content)
        return True

    streams = {kind: filter(is_wanted, _of_kind(kind, found, seed)) for kind in dict.fromkeys(kinds)}
    questions: list[Question] = []
    while streams and len(questions) < count:
        for kind, wanted in _quotas(count - len(questions), list(streams)).items():
            taken = list(itertools.islice(streams[kind], wanted))
            questions += taken
            report("making questions", len(questions), count)
            if len(taken) < wanted:
                del streams[kind]
    return _shuffled(questions, seed, "order of questions")


def _told(source: str, documents: Iterable[Document], report: Report) -> Iterator[Document]:
    for number, document in enumerate(documents, 1):
        report(f"reading {source}", number, None)
        yield document


def _quotas(count: int, kinds: Sequence[str]) -> dict[str, int]:
    """Whole numbers that sum to `count`, in the proportion of the shares; the largest remainders are rounded up."""
    whole = sum(SHARES[kind] for kind in kinds)
    quotas = {kind: count * SHARES[kind] // whole for kind in kinds}
    rest = sorted(kinds, key=lambda kind: -(count * SHARES[kind] % whole))
    for kind in rest[: count - sum(quotas.values())]:
        quotas[kind] += 1
    return quotas


def _shuffled(items: Sequence[_T], seed: int, purpose: str) -> list[_T]:
    key = derive_seed(seed, purpose)
    return [items[permute(i, len(items), key)] for i in range(len(items))]


def _pick(items: Sequence[_T], seed: int, purpose: str, index: int) -> _T:
    return items[derive_seed(seed, purpose, index) % len(items)]


def _of_kind(kind: str, found: Sequence[Function], seed: int) -> Iterator[Question]:
    if kind == "chat":
        yield from _chat(seed)
        return
    for number, function in enumerate(_shuffled(found, seed, f"functions to {kind}")):
        parts = _parts(kind, function, seed, number)
        if parts is not None:
            yield Question(
                content=_pick(wordings.CODE[kind], seed, f"wording of {kind}", number).format(**parts).strip(),
                kind=kind,
                source=function.source,
                licence=function.licence,
            )


# About a function


def _parts(kind: str, function: Function, seed: int, number: int) -> dict[str, str] | None:
    """What the wordings of a kind may show of a function; None where it does not suit the kind."""
    parts = {"name": function.name, "signature": function.signature}
    if kind in ("write", "instruct"):
        does = _does(function.summary)
        if does is None or function.is_method or function.name.startswith("_"):
            return None
        return {**parts, "that": does[0], "to": does[1]}
    if kind == "complete":
        return None if function.is_method else {"stub": _fenced(function.stub), "bare": function.stub}
    if kind == "docstring":
        return {"undocumented": _fenced(function.without_docstring)}
    if kind == "bug":
        return {**parts, "buggy": _fenced(_pick(function.swaps, seed, "bug", number))} if function.swaps else None
    if kind == "types" and function.is_annotated:
        return None
    return {**parts, "code": _fenced(function.text)}


def _fenced(code: str) -> str:
    return f"```python\n{code}```"


_NEEDS_CONTEXT = frozenset(
    {"this", "self", "above", "below", "see", "deprecated", "internal", "subclass", "subclasses"}
)


def _does(summary: str) -> tuple[str, str] | None:
    """What a function does, behind "that" and behind "to"; None where its summary does not begin with a verb.

    >>> _does("Parse a date and return its day")
    ('parses a date and returns its day', 'parse a date and return its day')
    """
    words = summary.split()
    if not words or not _NEEDS_CONTEXT.isdisjoint(word.strip(",;()").lower() for word in words):
        return None
    bases = [_base(word) if i == 0 or words[i - 1] == "and" else None for i, word in enumerate(words)]
    if bases[0] is None:
        return None
    that = " ".join(_third_person(base) if base else word for base, word in zip(bases, words, strict=True))
    to = " ".join(base or word for base, word in zip(bases, words, strict=True))
    return that, to


def _base(word: str) -> str | None:
    """The verb in a word, which may be in the third person; None for any other."""
    return _forms().get(word.lower())


@functools.lru_cache(maxsize=1)
def _forms() -> dict[str, str]:
    return {form: verb for verb in wordings.VERBS for form in (verb, _third_person(verb))}


def _third_person(verb: str) -> str:
    """
    >>> [_third_person(verb) for verb in ("copy", "display", "match", "get")]
    ['copies', 'displays', 'matches', 'gets']
    """
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}es" if verb.endswith(("ch", "sh", "s", "x", "z", "o")) else f"{verb}s"


# About the library


def _chat(seed: int) -> Iterator[Question]:
    """Questions without code, each kind of subject in its share, until there are no more."""
    streams = {name: iter(_shuffled(list(talk()), seed, name)) for name, (_, talk) in _TALK.items()}
    for number in itertools.count():
        lots = [name for name in streams for _ in range(_TALK[name][0])]
        if not lots:
            return
        name = _pick(lots, seed, "subject", number)
        content, source = next(streams[name], ("", ""))
        if content:
            yield Question(content=content, kind="chat", source=source, licence=wordings.LICENCE)
        else:
            del streams[name]


Talk = Iterator[tuple[str, str]]
"""Questions, and what each is about."""


def _about_builtins() -> Talk:
    names = public_names()
    return _about({home: names[home] for home in ("builtins", *wordings.TYPES)})


def _about_modules() -> Talk:
    names = public_names()
    return _about({home: names[home] for home in wordings.MODULES})


def _about(names: Mapping[str, Sequence[str]]) -> Talk:
    for home, inside in names.items():
        for name in inside:
            for wording in wordings.EXCEPTIONS if _is_exception(home, name) else wordings.NAMES:
                yield wording.format(subject=name), f"{_LIBRARY}: {name}"


def _about_familiar_pairs() -> Talk:
    return _about_pairs(wordings.FAMILIAR_PAIRS)


def _about_neighbours() -> Talk:
    return _about_pairs(pair for names in public_names().values() for pair in itertools.pairwise(names))


def _about_pairs(pairs: Iterable[tuple[str, str]]) -> Talk:
    for (first, second), wording in itertools.product(pairs, wordings.PAIRS):
        yield wording.format(first=_code(first), second=_code(second)), f"{_LIBRARY}: {first}, {second}"


def _about_programs() -> Talk:
    asked = set()
    for number, (task, wording, _) in enumerate(itertools.product(wordings.TASKS, wordings.SCRIPTS, range(_TURNS))):
        blanks = {"kind": wordings.KINDS_OF_FILES, "number": wordings.NUMBERS}
        filled = {name: _pick(values, 0, f"{name} in a task", number) for name, values in blanks.items()}
        asked.add(wording.format(task=task.format(**filled)))
    return ((content, "a program to write") for content in sorted(asked))


def _about_ideas() -> Talk:
    for task, wording in itertools.product(wordings.CONCEPTS, wordings.IDEAS):
        yield wording.format(task=task), f"an idea of the language: {task}"


_TURNS = 4
"""How often a program is asked for in one wording, with other numbers and files."""

_TALK: dict[str, tuple[int, Callable[[], Talk]]] = {
    "builtins": (6, _about_builtins),
    "modules": (14, _about_modules),
    "programs": (10, _about_programs),
    "familiar pairs": (3, _about_familiar_pairs),
    "neighbours": (3, _about_neighbours),
    "ideas": (4, _about_ideas),
}
"""Subjects: how many in forty questions are about each, and all its questions."""


def _code(name: str) -> str:
    return name if name.startswith(("a ", "an ")) else f"`{name}`"


@functools.lru_cache(maxsize=1)
def public_names() -> Mapping[str, tuple[str, ...]]:
    """Public functions and classes of everyday modules, and methods of the built-in types, by where they live.

    >>> "itertools.groupby" in public_names()["itertools"], "str.split" in public_names()["str"]
    (True, True)
    """
    found = {"builtins": tuple(_callables(builtins, sorted(vars(builtins))))}
    for name in wordings.TYPES:
        found[name] = tuple(f"{name}.{method}" for method in _callables(getattr(builtins, name)))
    for name in wordings.MODULES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [one for one in dir(module) if _is_own(module, one)]
        found[name] = tuple(f"{name}.{one}" for one in _callables(module, sorted(public)))
    return found


def _callables(owner: object, names: Iterable[str] | None = None) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name on its way out says so when it is looked up
        for name in dir(owner) if names is None else names:
            if not name.startswith("_") and callable(getattr(owner, name, None)):
                yield name


def _is_own(module: object, name: str) -> bool:
    """Whether a name of a module without `__all__` is not only imported there."""
    home = getattr(getattr(module, name, None), "__module__", None)
    own = getattr(module, "__name__", "")
    return home in (own, f"_{own}")


def _is_exception(module: str, name: str) -> bool:
    if module in wordings.TYPES:
        return False
    found = getattr(importlib.import_module(module), name.rpartition(".")[2], None)
    return inspect.isclass(found) and issubclass(found, BaseException)
