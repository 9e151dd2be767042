"""The prefix cache against a network without one: where it must agree, where it may not, and what it saves."""

from functools import cache

import pytest
import torch

from unmask.decode.canvas import Canvas
from unmask.decode.denoiser import FullDenoiser
from unmask.decode.loop import denoise
from unmask.decode.prefix import PrefixDenoiser
from unmask.decode.settings import DecodeSettings
from unmask.errors import SettingsError

from checkpoints import tiny_model
from doubles import tiny_backbone, tiny_config

MASK = 60
CONFIG = tiny_config(family="dream", attention="full", mask_id=MASK)
ROWS = [
    [3, 4, 5, *[None] * 7],
    [7, 7, 1, 9, 12, *[None] * 6],
    [41, 5, None, 7, 8, *[None] * 3, 9],
    [None, 20, *[None] * 5],
]
POLICIES = ["entropy", "maskgit_plus", "topk_margin", "threshold", "factor", "left_to_right", "random"]

backbone_of = cache(tiny_backbone)


def run(denoiser, rows, settings, **options):
    canvas = Canvas.from_rows(rows, mask_id=MASK)
    return canvas, list(denoise(denoiser, canvas, settings, **options))


def same(canvas, other):
    return torch.equal(canvas.ids_BL, other.ids_BL) and torch.equal(canvas.committed_at_BL, other.committed_at_BL)


class Compared:
    """Yields the cache's logits and keeps how far they lie from those of the whole canvas, call by call."""

    def __init__(self, backbone, *, refresh):
        self.full, self.prefix = FullDenoiser(backbone), PrefixDenoiser(backbone, refresh=refresh)
        self.config, self.device = backbone.config, backbone.device
        self.errors = []

    def logits(self, canvas, places):
        expected = torch.cat(list(self.full.logits(canvas, places)))
        found = torch.cat(list(self.prefix.logits(canvas, places)))
        self.errors.append(float((found - expected).abs().max()))
        yield found

    @property
    def num_forwards(self):
        return self.prefix.num_forwards

    @property
    def positions_computed(self):
        return self.prefix.positions_computed


# --- where it agrees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shift", [True, False])
def test_refreshed_at_every_step_it_is_no_cache(policy, shift):
    backbone = backbone_of(tiny_config(family="dream", attention="full", mask_id=MASK, shift_logits=shift))
    settings = DecodeSettings(policy=policy, temperature=0.7)
    compared = Compared(backbone, refresh=1)
    canvas, _ = run(compared, ROWS, settings)
    assert max(compared.errors) < 2e-4
    assert same(canvas, run(FullDenoiser(backbone), ROWS, settings)[0])


def test_keys_of_one_layer_depend_on_no_neighbour_so_the_cache_is_exact_there():
    """In a single layer, keys and values are those of the token alone; later ones have seen the canvas."""
    backbone = backbone_of(tiny_config(family="dream", attention="full", mask_id=MASK, num_layers=1))
    compared = Compared(backbone, refresh=100)
    run(compared, ROWS, DecodeSettings(temperature=0.7))
    assert len(compared.errors) > 5
    assert max(compared.errors) < 2e-4


def test_it_is_exact_at_a_refresh_and_only_there():
    compared = Compared(backbone_of(CONFIG), refresh=3)
    run(compared, [ROWS[0]], DecodeSettings())
    exact = [error < 2e-4 for error in compared.errors]
    assert exact == [True, False, False, True, False, False, True]


# --- what it saves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [True, False])
def test_between_refreshes_only_what_stands_behind_the_prefix_is_computed(shift):
    config = tiny_config(family="dream", attention="full", mask_id=MASK, shift_logits=shift)
    _, events = run(PrefixDenoiser(backbone_of(config), refresh=100), [[*range(1, 21), *[None] * 5]], DecodeSettings())
    assert [event.positions_computed for event in events] == [25, *[5 + shift] * 4]


def test_a_refresh_moves_the_prefix_up_to_the_first_open_place():
    settings = DecodeSettings(policy="left_to_right")
    _, events = run(PrefixDenoiser(backbone_of(CONFIG), refresh=2), [[1, 2, 3, 4, *[None] * 4]], settings)
    assert [event.positions_computed for event in events] == [8, 5, 8, 3]


# --- rows are their own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["entropy", "threshold"])
@pytest.mark.parametrize("refresh", [2, 3, 100])
def test_neighbours_change_nothing(policy, refresh):
    settings = DecodeSettings(policy=policy, temperature=0.7, threshold=0.05 if policy == "threshold" else None)
    ends = (2, 17, 33, 50)
    together, _ = run(
        PrefixDenoiser(backbone_of(CONFIG), refresh=refresh), ROWS, settings, samples=[5, 6, 7, 8], end_ids=ends
    )
    for number, row in enumerate(ROWS):
        alone, _ = run(
            PrefixDenoiser(backbone_of(CONFIG), refresh=refresh), [row], settings, samples=[5 + number], end_ids=ends
        )
        assert together.row_ids(number) == alone.row_ids(0)


def test_a_second_canvas_starts_anew():
    denoiser = PrefixDenoiser(backbone_of(CONFIG), refresh=100)
    run(denoiser, ROWS, DecodeSettings())
    again, _ = run(denoiser, ROWS[:2], DecodeSettings())
    assert same(again, run(PrefixDenoiser(backbone_of(CONFIG), refresh=100), ROWS[:2], DecodeSettings())[0])


# --- through the model, and refusals ------------------------------------------------------------------------------


def test_a_model_takes_it_from_the_settings():
    model = tiny_model("full")
    plain = model.generate("def add(a, b):", max_new_tokens=8)
    every = model.generate("def add(a, b):", max_new_tokens=8, cache="prefix", cache_refresh=1)
    seldom = model.generate("def add(a, b):", max_new_tokens=8, cache="prefix")
    assert every.text == plain.text
    assert seldom.positions_computed < plain.positions_computed == every.positions_computed
    assert seldom.settings["cache"] == "prefix"
    assert "cache" not in plain.settings


def test_a_model_with_a_cache_of_its_own_refuses_it():
    model = tiny_model("causal")
    with pytest.raises(SettingsError, match="causal attention, whose own cache is exact"):
        model.generate("def add(a, b):", max_new_tokens=8, cache="prefix")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache": "prefx"}, "--cache 'prefx' is not known; did you mean prefix"),
        ({"cache_refresh": 4}, "--cache-refresh 4 has no effect without a cache"),
        ({"cache": "prefix", "cache_refresh": 0}, "--cache-refresh 0 is not a count"),
        ({"cache": "prefix", "policy": "origin"}, "passes over rows"),
        ({"cache": "prefix", "mode": "reference"}, "the reference mode is there to be compared with"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        DecodeSettings(**given)
