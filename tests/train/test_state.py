"""Checkpoints of a run: what is read back, and what is said of damage."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.errors import CheckpointError
from unmask.model.backbone import Backbone
from unmask.train import state
from unmask.train.ema import Ema
from unmask.train.optimiser import OptimiserSettings, build_optimiser
from unmask.train.parallel import World
from unmask.train.state import Meta, Trained

from doubles import tiny_backbone, tiny_config


def trained(*, seed: int = 0, steps: int = 0, kind: Any = "adamw", frozen: tuple[str, ...] = ()) -> Trained:
    """A network, its optimiser and its average after some steps."""
    module: Backbone = tiny_backbone(tiny_config(), seed=seed).requires_grad_(True)
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    optimiser = build_optimiser(module, OptimiserSettings(kind=kind, lr=1e-2))
    out = Trained(module=module, optimiser=optimiser, averages={"ema": Ema(module, decay=0.9)})
    for step in range(steps):
        advance(out, step)
    return out


def advance(trained: Trained, step: int) -> None:
    ids = (torch.arange(16).view(2, 8) * 5 + step) % 61
    assert isinstance(trained.module, Backbone)
    trained.module.logits(trained.module(ids, torch.arange(8).expand(2, 8))).square().mean().backward()
    trained.optimiser.step()
    trained.optimiser.zero_grad()
    trained.averages["ema"].update()


def meta(step: int, **changes: Any) -> Meta:
    return Meta(**{"step": step, "settings": {"lr": 0.1}, "architecture": {"num_layers": 2}, **changes})


def save(folder: Path, step: int, given: Trained, *, keep: int = 9, **changes: Any) -> Path:
    return state.save(folder, meta(step, **changes), given, world=World(), keep=keep)


def load(checkpoint: Path, given: Trained) -> Meta:
    return state.load(checkpoint, given, architecture={"num_layers": 2})


def bits(given: Trained) -> list[torch.Tensor]:
    with given.averages["ema"].swapped_in():
        averages = [parameter.detach().clone() for parameter in given.module.parameters()]
    return [*(parameter.detach().clone() for parameter in given.module.parameters()), *averages]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_what_is_loaded_goes_on_as_what_was_saved(tmp_path: Path, kind: Any) -> None:
    first, second = trained(steps=3, kind=kind), trained(seed=1, kind=kind)
    checkpoint = save(tmp_path, 3, first, unlogged=[0.1, 1 / 3])
    found = load(checkpoint, second)
    assert (found.step, list(found.unlogged), found.settings) == (3, [0.1, 1 / 3], {"lr": 0.1})
    for step in (3, 4):
        advance(first, step)
        advance(second, step)
    assert all(torch.equal(one, two) for one, two in zip(bits(first), bits(second), strict=True))


def test_frozen_weights_are_not_in_a_checkpoint_and_stay_as_they_are(tmp_path: Path) -> None:
    frozen = ("embed_tokens.weight", "lm_head.weight")
    first, second = trained(steps=2, frozen=frozen), trained(seed=1, frozen=frozen)
    before = second.module.state_dict()["embed_tokens.weight"].clone()
    load(save(tmp_path, 2, first), second)
    now = second.module.state_dict()
    assert torch.equal(now["embed_tokens.weight"], before)
    assert torch.equal(now["norm.weight"], first.module.state_dict()["norm.weight"])


def test_the_oldest_beyond_keep_go_and_latest_is_the_newest(tmp_path: Path) -> None:
    given = trained(steps=1)
    assert state.latest(tmp_path / "none") is None
    for step in (2, 9, 10, 100):
        save(tmp_path, step, given, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert state.latest(tmp_path) == tmp_path / "step-00000100"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    given = trained(steps=1)
    save(tmp_path, 4, given)
    advance(given, 1)
    load(save(tmp_path, 4, given), second := trained(seed=1))
    assert torch.equal(bits(given)[0], bits(second)[0])


def test_another_architecture_is_refused_with_the_networks_untouched(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1, trained(steps=1), architecture={"num_layers": 3, "lora": None})
    second = trained(seed=1)
    before = bits(second)
    with pytest.raises(CheckpointError, match=r"different are num_layers \(3 there, 2 now\)"):
        load(checkpoint, second)
    assert all(torch.equal(one, two) for one, two in zip(before, bits(second), strict=True))


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "flipped"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    checkpoint = save(tmp_path, 1, trained(steps=1))
    (file,) = checkpoint.glob("*.distcp")
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(content[:-2000] + bytes(byte ^ 255 for byte in content[-2000:]))
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(
        CheckpointError, match=r"step-00000001 is damaged \(.*__0_0\.distcp.*\); delete it, and the one"
    ):
        load(checkpoint, trained(seed=1))


@pytest.mark.parametrize("damage", [None, b"", b"junk"])
def test_a_damaged_table_of_contents_is_told(tmp_path: Path, damage: bytes | None) -> None:
    checkpoint = save(tmp_path, 1, trained(steps=1))
    if damage is None:
        (checkpoint / ".metadata").unlink()
    else:
        (checkpoint / ".metadata").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"step-00000001 is damaged \(.+\); delete it, and the one before it is"):
        load(checkpoint, trained(seed=1))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "step": "x"}'])
def test_a_damaged_meta_file_is_told(tmp_path: Path, text: str) -> None:
    checkpoint = save(tmp_path, 1, trained(steps=1))
    (checkpoint / "meta.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"step-00000001 is damaged \(.+\); delete it, and the one before it is"):
        load(checkpoint, trained(seed=1))


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1, trained(steps=1))
    record = json.loads((checkpoint / "meta.json").read_text())
    (checkpoint / "meta.json").write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(CheckpointError, match=r"is of format 2 and this version reads 1; resume it with the version"):
        state.read_meta(checkpoint)


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    save(tmp_path, 1, trained(steps=1))
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.partial")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000003")
    (tmp_path / "step-00000003" / "meta.json").unlink()
    assert state.latest(tmp_path) == tmp_path / "step-00000001"
