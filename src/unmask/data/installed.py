"""The Python files of the packages installed beside this Python, as far as their licence lets anyone use them.

A distribution counts when its metadata state a permissive licence: as an SPDX expression (PEP 639), else as trove
classifiers, else as one short line. Several classifiers must all be permissive. The classifier "BSD License" has
several texts behind it, so the licence's own text says which. What is unclear is left out, and so are tests and copies
of other people's packages (`_vendor`), which have licences of their own.
"""

import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_PERMISSIVE = (
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "HPND",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
)
_BY_ID = {name.lower(): name for name in _PERMISSIVE}
_BSD = "BSD of some kind"
_CLASSIFIER = "License :: "
_SAYS_NOTHING = frozenset({"License :: OSI Approved", "License :: DFSG approved"})
_BY_CLASSIFIER = {
    "Apache Software License": "Apache-2.0",
    "BSD License": _BSD,
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "Boost Software License 1.0 (BSL-1.0)": "BSL-1.0",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zero-Clause BSD (0BSD)": "0BSD",
    "zlib/libpng License": "Zlib",
}
_BY_LINE = {
    "mit license": "MIT",
    "the mit license": "MIT",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "bsd": _BSD,
    "bsd license": _BSD,
    "bsd 2 clause": "BSD-2-Clause",
    "bsd 2 clause license": "BSD-2-Clause",
    "2 clause bsd": "BSD-2-Clause",
    "simplified bsd": "BSD-2-Clause",
    "bsd 3 clause": "BSD-3-Clause",
    "bsd 3 clause license": "BSD-3-Clause",
    "3 clause bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause",
    "isc license": "ISC",
    "psf": "PSF-2.0",
    "psf license": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "zlib license": "Zlib",
    "the unlicense": "Unlicense",
}
_LONGEST_LINE = 80
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying)", re.IGNORECASE)
_LEFT_OUT = frozenset(
    {"test", "tests", "vendor", "_vendor", "vendored", "_vendored", "third_party", "extern", "externals"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One distribution whose files may be used."""

    name: str
    licences: tuple[str, ...]
    """SPDX ids; all of them hold."""

    files: tuple[tuple[str, Path], ...]
    """Python files, sorted: the path inside of the packages' folder, such as `networkx/algorithms/dag.py`, and the
    place."""


def folders() -> list[str]:
    """Where this Python's packages are installed."""
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def packages(*, skipped: Counter[str] | None = None) -> Iterator[Package]:
    """The permissive distributions, by name; `skipped` counts the files of the others."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions(path=folders()):
        found.setdefault(_normal(distribution.name), distribution)
    skipped = Counter() if skipped is None else skipped
    for name, distribution in sorted(found.items()):
        files = [file for file in distribution.files or () if file.suffix == ".py" and ".." not in file.parts]
        own = sorted(file for file in files if _LEFT_OUT.isdisjoint(file.parts[:-1]))
        licences = licences_of(distribution)
        if not licences:
            if own:
                skipped["licence"] += len(own)
            continue
        if own:
            places = ((file.as_posix(), Path(str(distribution.locate_file(file)))) for file in own)
            yield Package(name=name, licences=licences, files=tuple(places))


def licences_of(distribution: metadata.Distribution) -> tuple[str, ...]:
    """The SPDX ids of a permissive distribution; empty for any other, and where the metadata leave it open."""
    stated = distribution.metadata
    if expression := _first(stated, "License-Expression"):
        return of_expression(expression)
    line = " ".join(_first(stated, "License").split())
    classifiers = [text for text in stated.get_all("Classifier") or () if text.startswith(_CLASSIFIER)]
    named = [text.rpartition(" :: ")[2] for text in classifiers if text not in _SAYS_NOTHING]
    if named:
        found = [_BY_CLASSIFIER.get(name, "") for name in dict.fromkeys(named)]
        if found == [_BSD]:
            found = [one for one in _of_line(line) if one.startswith("BSD-")] or [_BSD]
    else:
        found = list(_of_line(line))
    found = [_which_bsd(distribution) if one == _BSD else one for one in found]
    return tuple(found) if all(found) else ()


def of_expression(expression: str) -> tuple[str, ...]:
    """The permissive ids of an SPDX expression: all parts of an AND, the first permissive choice of an OR.

    An exception (WITH) only adds to what is allowed. Expressions with brackets are not understood.

    >>> of_expression("MIT AND Zlib"), of_expression("GPL-2.0-only OR MIT"), of_expression("MIT AND GPL-2.0-only")
    (('MIT', 'Zlib'), ('MIT',), ())
    """
    for choice in re.split(r"\s+OR\s+", expression.strip(), flags=re.IGNORECASE):
        parts = [part.partition(" ") for part in re.split(r"\s+AND\s+", choice, flags=re.IGNORECASE)]
        if all(name.lower() in _BY_ID and (not rest or rest.startswith("WITH ")) for name, _, rest in parts):
            return tuple(f"{_BY_ID[name.lower()]}{space}{rest}" for name, space, rest in parts)
    return ()


def _of_line(line: str) -> Sequence[str]:
    """What a short line says; nothing for a long one, which is a licence's text."""
    if not line or len(line) > _LONGEST_LINE:
        return ()
    words = " ".join(re.sub(r"[-,()]", " ", line.lower()).split())
    known = _BY_LINE.get(words)
    return [known] if known else of_expression(line)


def _which_bsd(distribution: metadata.Distribution) -> str:
    """Which of the BSD licences, by its text; empty where no text says it."""
    texts = [_first(distribution.metadata, "License")]
    for file in distribution.files or ():
        if _LICENCE_FILE.search(file.name) and file.suffix != ".py" and ".dist-info" in file.as_posix():
            texts.append(distribution.read_text(file.as_posix().partition(".dist-info/")[2]) or "")
    for text in (" ".join(text.lower().split()) for text in texts):
        if "redistribution and use in source and binary forms" in text and "all advertising materials" not in text:
            return "BSD-3-Clause" if "endorse or promote" in text else "BSD-2-Clause"
    return ""


def _first(stated: metadata.PackageMetadata, name: str) -> str:
    return next(iter(stated.get_all(name) or ()), "")


def _normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
