"""Names and weights of reward functions, and where they are loaded from."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import SettingsError
from unmask.reward.code_format import CodeFormat
from unmask.reward.combine import combine
from unmask.reward.length import Length
from unmask.reward.pass_fraction import PassFraction
from unmask.reward.settings import RewardSettings, find_reward, open_rewards

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Record:
    value: float

def brevity(completions, **kwargs):
    return [Record(1.0 / (1 + len(text))).value for text in completions]

async def later(completions, **kwargs):
    return [1.0 for _ in completions]

NUMBER = 3
"""


class NoSandbox:
    def judge(self, jobs: Any, /) -> Any:
        raise AssertionError("nothing is judged here")


def test_the_default_is_the_papers() -> None:
    functions = open_rewards(RewardSettings(), NoSandbox())
    assert [(type(function), weight) for function, weight in functions] == [(PassFraction, 2.0), (CodeFormat, 0.5)]


def test_a_weight_is_read_behind_the_last_star_and_is_one_without() -> None:
    settings = RewardSettings(functions=("code_format", " pass_fraction * 1e-1 ", "a.py:f*-2", "b.c:g"))
    assert settings.weighted == (("code_format", 1.0), ("pass_fraction", 0.1), ("a.py:f", -2.0), ("b.c:g", 1.0))


def test_settings_reach_the_functions() -> None:
    settings = RewardSettings(
        functions=("pass_fraction", "length*0.5"),
        all_or_nothing=True,
        test_cpu_seconds=0.5,
        test_wall_seconds=5.0,
        length_limit=80,
    )
    (tested, _), (length, _) = open_rewards(settings, NoSandbox())
    assert isinstance(length, Length)
    assert (length.limit, length.window) == (80, 20)
    assert isinstance(tested, PassFraction)
    assert vars(tested)["_all_or_nothing"] is True
    assert vars(tested)["_test_cpu_seconds"] == 0.5
    assert vars(tested)["_test_wall_seconds"] == 5.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"functions": ()}, "reward.functions is empty, so no answer would be worth anything"),
        ({"functions": ("pass_fractoin",)}, "'pass_fractoin' is no reward function; did you mean pass_fraction?"),
        ({"functions": ("mine",)}, "your own is file.py:function or package.module:function"),
        ({"functions": ("a.py:",)}, "'a.py:' is no reward function"),
        ({"functions": ("code_format*much",)}, "has the weight 'much', which is no finite number"),
        ({"functions": ("code_format*nan",)}, "has the weight 'nan', which is no finite number"),
        ({"functions": ("code_format", "code_format*2")}, "names code_format twice; name it once"),
        ({"functions": ("code_format",), "all_or_nothing": True}, "are of the function pass_fraction, which is not"),
        ({"functions": ("code_format",), "test_wall_seconds": 5.0}, "are of the function pass_fraction, which is not"),
        ({"test_cpu_seconds": 0.0}, "reward.test_cpu_seconds=0.0 must be a positive, finite number"),
        ({"test_wall_seconds": -1.0}, "reward.test_wall_seconds=-1.0 must be a positive, finite number"),
        ({"length_limit": 9}, "are of the function length, which is not among pass_fraction, code_format"),
        ({"functions": ("length",)}, "the reward function length needs a limit; set reward.length_limit"),
        ({"functions": ("length",), "length_limit": 9, "length_window": 10}, "a window between 1 and 9"),
    ],
)
def test_settings_that_break_a_rule_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        RewardSettings(**given)


def test_tests_need_a_sandbox() -> None:
    with pytest.raises(SettingsError, match="pass_fraction runs programs and was given no sandbox; pass an executor"):
        open_rewards(RewardSettings())


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    path = tmp_path / "my_rewards.py"
    path.write_text(SOURCE)
    return path


def test_a_users_function_is_loaded_from_a_file(file: Path) -> None:
    settings = RewardSettings(functions=(f"{file}:brevity*2.0",))
    assert combine(open_rewards(settings), ["p", "p"], ["", "abc"], {}).total_N == [2.0, 0.5]


def test_a_users_function_is_loaded_from_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    assert find_reward("my_rewards:brevity")(prompts=["p"], completions=["a"]) == [0.5]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("brevty", "names no function: did you mean brevity?"),
        ("NUMBER", "is a int, and a reward function has to be callable"),
        ("later", "is an async function, which is not awaited here; wrap it"),
    ],
)
def test_what_is_no_function_in_a_file_is_told(file: Path, function: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        find_reward(f"{file}:{function}")


def test_a_place_without_functions_is_told(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no file .*my_reward.py .* did you mean my_rewards.py"):
        find_reward(f"{file.with_name('my_reward.py')}:brevity")
    with pytest.raises(SettingsError, match=r"there is no module no_such_module.inside to take a reward function from"):
        find_reward("no_such_module.inside:f")


def test_a_file_that_does_not_load_is_told(file: Path) -> None:
    file.write_text("import no_such_library\n")
    with pytest.raises(SettingsError, match=r"my_rewards.py raised ModuleNotFoundError: No module named 'no_such_lib"):
        find_reward(f"{file}:brevity")
    file.write_text("def f(:\n")
    with pytest.raises(SettingsError, match=r"my_rewards.py raised SyntaxError"):
        find_reward(f"{file}:brevity")
