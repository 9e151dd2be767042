"""Grids of settings: every combination once, named by what sets it apart, and refused with the flag that is wrong."""

import pytest

from unmask.decode.settings import DecodeSettings
from unmask.errors import SettingsError
from unmask.evaluate.grid import ONLY, Cell, find_cell, make_grid, parse_axis

GRID = make_grid({"temperature": [0.0, 0.2], "steps": [8, 16], "policy": ["entropy"]}, {"max_new_tokens": 32})


def message(error: pytest.ExceptionInfo[SettingsError]) -> str:
    return str(error.value)


def test_a_run_without_lists_is_one_cell() -> None:
    assert make_grid({"temperature": [0.2]}, {"top_p": 0.95}) == (
        Cell(name=ONLY, settings=DecodeSettings(temperature=0.2, top_p=0.95)),
    )


def test_lists_make_every_combination_once() -> None:
    assert [cell.name for cell in GRID] == [
        "temperature=0.0,steps=8",
        "temperature=0.0,steps=16",
        "temperature=0.2,steps=8",
        "temperature=0.2,steps=16",
    ]
    assert {(cell.settings.temperature, cell.settings.steps) for cell in GRID} == {
        (temperature, steps) for temperature in (0.0, 0.2) for steps in (8, 16)
    }
    assert {cell.settings.max_new_tokens for cell in GRID} == {32}


def test_a_setting_of_one_policy_goes_to_the_cells_that_have_it() -> None:
    cells = make_grid({"policy": ["entropy", "threshold"]}, {"threshold": 0.8})
    assert [cell.settings.threshold for cell in cells] == [None, 0.8]


def test_a_role_of_the_temperature_goes_to_the_cells_that_have_one() -> None:
    cells = make_grid({"temperature": [0.0, 0.5]}, {"temperature_role": "content"})
    assert [cell.settings.temperature_role for cell in cells] == ["both", "content"]


def test_a_setting_without_effect_in_any_cell_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--threshold 0.8 has no effect with the policy 'entropy'"):
        make_grid({"policy": ["entropy", "random"]}, {"threshold": 0.8})


def test_a_wrong_cell_is_named() -> None:
    with pytest.raises(SettingsError, match=r"the cell temperature=-1.0 of the grid: --temperature -1.0 is not"):
        make_grid({"temperature": [0.2, -1.0]}, {})


def test_an_axis_is_a_comma_list() -> None:
    assert parse_axis("steps", "8, 16") == [8, 16]
    assert parse_axis("policy", "entropy") == ["entropy"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("temperature", "warm", "--temperature: 'warm' is not a number; give one, or several with commas between"),
        ("steps", "8,", "--steps: '' is not a whole number"),
        ("max_new_tokens", "1.5", "`--max-new-tokens 256,512`"),
        ("steps", "8,16,8", "--steps 8,16,8 has 8 twice"),
    ],
)
def test_what_is_no_list_is_refused(name: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_axis(name, text)
    assert said in message(error)


def test_a_cell_is_found_by_what_sets_it_apart() -> None:
    assert find_cell(GRID, "temperature=0.2,steps=16") is GRID[3]
    assert find_cell(GRID, "steps=8, temperature=0") is GRID[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temperature=0.2", "names 2 cells of the grid, and one is wanted"),
        ("temperature=0.3,steps=8", "is not in the grid; name one of its cells: temperature=0.0,steps=8;"),
        ("temprature=0.2", "'temprature=0.2' is not NAME=VALUE of a grid; did you mean temperature?"),
        ("steps", "'steps' is not NAME=VALUE"),
        ("steps=many", "--steps: 'many' is not a whole number"),
    ],
)
def test_what_is_no_cell_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        find_cell(GRID, text)
    assert said in message(error)
