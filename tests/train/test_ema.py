"""The moving average of the weights, against the recursion written out."""

import copy
from contextlib import suppress

import pytest
import torch

from unmask.errors import CheckpointError, SettingsError
from unmask.train.ema import Ema

from doubles import tiny_backbone, tiny_config


def test_the_average_is_that_of_the_warm_recursion() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    module.weight.data.fill_(values[0])
    ema = Ema(module, decay=0.3)
    wanted = values[0]
    for number, value in enumerate(values[1:], 1):
        module.weight.data.fill_(value)
        ema.update()
        decay = min(0.3, (1 + number) / (10 + number))
        wanted = decay * wanted + (1 - decay) * value
    with ema.swapped_in():
        assert module.weight.item() == pytest.approx(wanted)


def test_leaving_the_block_brings_back_every_bit_even_after_an_error() -> None:
    backbone = tiny_backbone(tiny_config(tie_embeddings=True)).requires_grad_(True)
    ema = Ema(backbone, decay=0.9)
    for parameter in backbone.parameters():
        parameter.data += 1.0
    ema.update()
    before = copy.deepcopy(backbone.state_dict())
    averages = copy.deepcopy(ema.state_dict()["averages"])
    with suppress(KeyboardInterrupt), ema.swapped_in():
        assert all(torch.equal(parameter, averages[name]) for name, parameter in backbone.named_parameters())
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(torch.equal(value, averages[name]) for name, value in ema.state_dict()["averages"].items())


def test_a_saved_average_goes_on_as_if_never_stopped() -> None:
    module, state = torch.nn.Linear(3, 2), None
    ema = Ema(module)
    for step in range(20):
        with torch.no_grad():
            module.weight += step
        ema.update()
        if step == 9:
            state = copy.deepcopy(ema.state_dict())
            resumed_module = copy.deepcopy(module)
    resumed = Ema(resumed_module)
    assert state is not None
    resumed.load_state_dict(state)
    for step in range(10, 20):
        with torch.no_grad():
            resumed_module.weight += step
        resumed.update()
    assert resumed.num_updates == 20
    assert torch.equal(resumed.state_dict()["averages"]["weight"], ema.state_dict()["averages"]["weight"])


def test_frozen_parameters_are_not_averaged() -> None:
    module = torch.nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert list(Ema(module).state_dict()["averages"]) == ["weight"]


def test_an_average_of_another_network_is_refused() -> None:
    state = Ema(torch.nn.Linear(3, 2)).state_dict()
    with pytest.raises(CheckpointError, match=r"of another network; mis-shaped: weight is 2×3 instead of 2×4"):
        Ema(torch.nn.Linear(4, 2)).load_state_dict(state)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(SettingsError, match=r"the EMA decay is .*; give 0 or more and less than 1, as in 0.999"):
        Ema(torch.nn.Linear(1, 1), decay=decay)
