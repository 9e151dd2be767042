"""Objects with state as reward functions: a small network over byte ids, as a user's file would build it."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.errors import SettingsError
from unmask.reward.combine import combine
from unmask.reward.model import RewardModel
from unmask.reward.settings import RewardSettings, find_reward, open_rewards

SOURCE = '''
from pathlib import Path
import torch
from torch import nn

with (Path(__file__).parent / "loads").open("a") as file:
    file.write("once\\n")

class Taste(nn.Module):
    """Two layers over the counts of bytes."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(256, 8), nn.Dropout(0.9), nn.Linear(8, 1))
        self.seen = []

    def forward(self, *, completion_ids, **columns):
        self.seen.append((self.training, torch.is_grad_enabled(), self.layers[0].weight.device.type))
        counts = torch.stack([torch.bincount(torch.tensor(ids), minlength=256)[:256] for ids in completion_ids])
        return self.layers(counts.float())

class Lazy(Taste):
    def forward(self, **columns):
        for reward in super().forward(**columns):
            self.seen.append(("lazily", torch.is_grad_enabled()))
            yield reward

class Counter:
    """No network: an object that remembers."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *, completions, **columns):
        self.calls += 1
        return [float(self.calls)] * len(completions)

taste, other, lazy, counter = Taste(0), Taste(1), Lazy(2), Counter()
named = Taste(3)
named.__name__ = "palate"
'''
IDS = {"completion_ids": [[1, 2, 3], [200, 200], [7]]}
TEXTS = ["p"] * 3, ["a", "b", "c"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    path = tmp_path / "judges.py"
    path.write_text(SOURCE)
    return path


def model_of(function: Any) -> Any:
    assert isinstance(function, RewardModel)
    return function.model


def test_a_network_rewards_in_evaluation_mode_and_without_gradients(file: Path) -> None:
    ((function, weight),) = open_rewards(RewardSettings(functions=(f"{file}:taste*2.0",)))
    taste = model_of(function)
    first, again = (combine([(function, weight)], *TEXTS, IDS).total_N for _ in range(2))
    assert first == again, "dropout is off"
    assert taste.seen == [(False, False, "cpu")] * 2
    counts = torch.stack([torch.bincount(torch.tensor(ids), minlength=256) for ids in IDS["completion_ids"]]).float()
    inner, outer = taste.layers[0], taste.layers[2]
    wanted = 2 * ((counts @ inner.weight.T + inner.bias) @ outer.weight.T + outer.bias)[:, 0]
    assert first == pytest.approx(wanted.tolist(), abs=1e-5)
    assert torch.is_grad_enabled()
    assert not function(**IDS).requires_grad


def test_what_a_network_yields_bit_by_bit_is_made_without_gradients_too(file: Path) -> None:
    function = find_reward(f"{file}:lazy")
    assert None not in combine([(function, 1.0)], *TEXTS, IDS).total_N
    assert model_of(function).seen == [(False, False, "cpu"), *[("lazily", False)] * 3]


def test_a_network_stays_on_the_device_that_the_file_put_it_on(file: Path) -> None:
    file.write_text(SOURCE + "\nelsewhere = Taste(4).to('meta')\n")
    weights = model_of(find_reward(f"{file}:elsewhere")).parameters()
    assert {parameter.device.type for parameter in weights} == {"meta"}


def test_a_network_whose_own_eval_returns_nothing_is_called_all_the_same(file: Path) -> None:
    more = "\nclass Quiet(Taste):\n    def eval(self):\n        self.train(False)\n\nquiet = Quiet(5)\n"
    file.write_text(SOURCE + more)
    function = find_reward(f"{file}:quiet")
    assert len(list(function(**IDS))) == 3
    assert model_of(function).seen == [(False, False, "cpu")]


def test_a_bound_method_and_a_partial_see_to_evaluation_and_gradients_themselves(file: Path) -> None:
    more = "\nimport functools\nbound, part = taste.forward, functools.partial(other)\n"
    file.write_text(SOURCE + more)
    for name in ("bound", "part"):
        function = find_reward(f"{file}:{name}")
        model = model_of(function) if isinstance(function, RewardModel) else function
        function(**IDS)
        network = model.__self__ if name == "bound" else model.func
        assert network.seen == [(True, True, "cpu")]


def test_a_file_is_loaded_once_for_all_that_is_named_in_it(file: Path) -> None:
    functions = open_rewards(RewardSettings(functions=(f"{file}:taste", f"{file}:other", f"{file}:counter")))
    for _ in range(3):
        rewards = combine(functions, *TEXTS, IDS)
    assert (file.parent / "loads").read_text() == "once\n"
    assert rewards.by_function["counter"] == [3.0] * 3


def test_two_objects_of_a_class_are_logged_by_their_names_in_the_file(file: Path) -> None:
    names = ("taste", "other", "named")
    rewards = combine(open_rewards(RewardSettings(functions=tuple(f"{file}:{n}" for n in names))), *TEXTS, IDS)
    assert list(rewards.by_function) == ["taste", "other", "palate"]
    assert rewards.by_function["taste"] != rewards.by_function["other"]


def test_a_class_is_refused_since_it_would_be_built_for_every_batch(file: Path) -> None:
    told = (
        f"{file}:Taste is a class, and what judges has to be built once; write `reward = Taste(...)` in the file, and"
    )
    with pytest.raises(SettingsError, match=re.escape(f"{told} name that: {file}:reward")):
        find_reward(f"{file}:Taste")


def test_an_object_that_cannot_be_called_is_refused_as_before(file: Path) -> None:
    file.write_text(SOURCE + "\nplain = object()\n")
    with pytest.raises(SettingsError, match="plain is a object, and a reward function has to be callable"):
        find_reward(f"{file}:plain")
