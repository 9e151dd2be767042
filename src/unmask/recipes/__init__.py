"""Recipes: a run of training is a Python function that returns its whole configuration.

`find(name, folder)` calls the function of that name for a run that will live in `folder`; a path to a Python file with
a function `recipe(folder)` is a recipe too, so a run of one's own needs no change here.
"""

import importlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import SettingsError, did_you_mean

if TYPE_CHECKING:
    from unmask.train.settings import Recipe

NAMES = (
    "tiny",
    "tiny_cpgrpo",
    "qwen_0_5b",
    "qwen_0_5b_block",
    "diffucoder_7b",
    "diffucoder_7b_cpgrpo",
    "diffucoder_7b_cpgrpo_released",
)


def find(name: str, folder: Path) -> "Recipe":
    """The recipe of a name, or of a Python file, for a run in `folder`."""
    if name.endswith(".py"):
        return _from_file(Path(name), folder)
    if name not in NAMES:
        raise SettingsError(
            f"{name!r} is no recipe; {did_you_mean(name, NAMES)}. A recipe of your own is given by its path, which "
            "ends in .py"
        )
    build: Callable[[Path], Recipe] = importlib.import_module(f"unmask.recipes.{name}").recipe
    return build(folder)


def _from_file(path: Path, folder: Path) -> "Recipe":
    from unmask.train.settings import Recipe

    if not path.is_file():
        raise SettingsError(f"{path} is not a file; give the path of a recipe, or one of {', '.join(NAMES)}")
    build = runpy.run_path(str(path)).get("recipe")
    if not callable(build):
        raise SettingsError(f"{path} defines no function `recipe(folder)`; it returns an unmask.train.settings.Recipe")
    made = build(folder)
    if not isinstance(made, Recipe):
        raise SettingsError(f"recipe() of {path} returned {type(made).__name__}; it must return a Recipe")
    names = [stage.name for stage in made.stages]
    if not names:
        raise SettingsError(f"the recipe of {path} has no stages; give it one or more")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(
            f"the recipe of {path} has two stages of the name {twice!r}, which would write into one folder; give them "
            "names of their own"
        )
    return made
