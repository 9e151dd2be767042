"""`unmask doctor`: what it reports, and that a model it cannot load does not cost the report."""

import json
from pathlib import Path

import pytest

from unmask.model import hub
from unmask.version import __version__

from checkpoints import write_checkpoint
from command_line import unmask

KEYS = ["unmask", "python", "torch", "gguf", "system", "device", "threads", "memory", "model folder", "models here"]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"UNMASK_OFFLINE": "1", "UNMASK_HOME": tmp_path / "home", "HF_HOME": tmp_path}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(hub, "PACKAGE", tmp_path / "package")


def report(text: str) -> dict[str, str]:
    lines = [line.split("  ", 1) for line in text.splitlines()]
    return {key.strip(): value.strip() for key, value in lines}


def test_it_says_what_is_installed_and_where_models_are(tmp_path: Path) -> None:
    outcome = unmask("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    told = report(outcome.text)
    assert set(KEYS) <= told.keys()
    assert told["unmask"] == __version__
    assert "missing" not in told.values()
    assert told["model folder"] == str(tmp_path / "home")
    assert told["models here"] == "none"


def test_a_model_on_this_machine_is_listed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "home" / "models" / "smollm2-135m")
    assert report(unmask("doctor").text)["models here"] == "smollm2-135m"


def test_json_is_one_object_with_the_same_keys() -> None:
    record = json.loads(unmask("doctor", "--json").text)
    assert set(KEYS) <= record.keys()
    assert record["threads"] > 0


@pytest.mark.parametrize(
    ("kind", "attention", "mask"),
    [("full", "full", 256), ("block", "block, blocks of 8", 256), ("causal", "causal", "none (autoregressive)")],
)
def test_a_model_is_loaded_and_run_once(tmp_path: Path, kind: str, attention: str, mask: object) -> None:
    folder = write_checkpoint(tmp_path / "tiny", kind)
    record = json.loads(unmask("doctor", "-m", folder, "--json").text)
    assert set(KEYS) <= record.keys()
    assert record["model"] == f"{folder} from local folder"
    assert record["attention"] == attention
    assert record["mask id"] == mask
    assert record["end ids"] == "257, 259"
    assert record["vocabulary"] == "280 rows, 263 tokens"
    assert record["16 tokens"].startswith("16 forwards in ")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_model_that_cannot_be_loaded_does_not_cost_the_report(tmp_path: Path, more: tuple[str, ...]) -> None:
    outcome = unmask("doctor", "-m", tmp_path, *more)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {tmp_path} holds no config.json")
    told = json.loads(outcome.text) if more else report(outcome.text)
    assert set(KEYS) <= told.keys()
    assert "model" not in told
