"""The soft overlong punishment: nothing, a line, minus one."""

import pytest

from unmask.errors import SettingsError
from unmask.reward.length import Length


def by_the_paper(n: int, *, limit: int, window: int) -> float:
    if n <= limit - window:
        return 0.0
    return (limit - window - n) / window if n <= limit else -1.0


@pytest.mark.parametrize(("limit", "window"), [(256, 64), (10, 10), (5, 1), (1, 1)])
def test_the_penalty_is_dapos(limit: int, window: int) -> None:
    ids = [[7] * n for n in range(2 * limit)]
    found = Length(limit=limit, window=window)(completions=[""] * len(ids), completion_ids=ids)
    assert found == pytest.approx([by_the_paper(n, limit=limit, window=window) for n in range(2 * limit)])


@pytest.mark.parametrize(("limit", "window"), [(10, 0), (10, 11), (0, 0), (-1, 1)])
def test_a_window_outside_the_limit_is_refused(limit: int, window: int) -> None:
    with pytest.raises(SettingsError, match="the penalty grows over the last `window` tokens before `limit`"):
        Length(limit=limit, window=window)


def test_without_ids_there_is_no_length() -> None:
    with pytest.raises(SettingsError, match="length was called without `completion_ids`; it counts tokens"):
        Length(limit=10, window=5)(completions=["a"])
