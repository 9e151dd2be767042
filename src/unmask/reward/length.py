"""The length of an answer: DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), for answers that never end.

0                                 up to limit - window tokens
(limit - window - n) / window     between them: falls to -1 along a line
-1                                from the limit on
"""

from collections.abc import Sequence
from typing import Any

from unmask.errors import SettingsError


class Length:
    """Between -1 and 0, from the number of an answer's tokens (`completion_ids`).

    >>> Length(limit=100, window=20)(completions=["", ""], completion_ids=[range(80), range(90)])
    [0.0, -0.5]
    """

    __name__ = "length"

    def __init__(self, *, limit: int, window: int) -> None:
        if not 1 <= window <= limit:
            raise SettingsError(
                f"an overlong window of {window} tokens below the limit of {limit} is none: the penalty grows over the "
                f"last `window` tokens before `limit`; give a window between 1 and {limit}, as in {max(limit // 4, 1)}"
            )
        self.limit, self.window = limit, window

    def __call__(
        self,
        *,
        prompts: Any = None,
        completions: Any,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if completion_ids is None:
            raise SettingsError(
                "the reward function length was called without `completion_ids`; it counts tokens, so pass each "
                "answer's ids as that column"
            )
        free = self.limit - self.window
        return [0.0 - min(max(len(ids) - free, 0) / self.window, 1.0) for ids in completion_ids]
