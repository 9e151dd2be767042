"""How long a draft is checked, and how far the next ones are prepared: a column is computed where it is worth its time.

A round checks a draft d_1 … d_K and prepares, for every number i of its tokens that may be accepted, the block of masks
behind d_i that the next draft would be read from. With s_j the probability that d_j is accepted when those before it
were, the chance of exactly i is s_1 … s_i (1 - s_{i+1}). A column saves a forward with some probability and costs a
share of one: `column_cost`. Where the weights are read once for few columns that share is small; in a batch it is not.
A mask saves nothing by itself: what is read there has to be checked in the next round, and that is paid too.

>>> plan([0.9, 0.8], rate=0.7, longest=4, cost=0.05).masks
(1, 2, 4)
"""

from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS_FOR_WEIGHTS = 64
"""Columns that take as long to compute as the weights take to read (docs/log.md)."""


CHECK = 2.0
"""What a column that is checked costs, in columns of masks: its scores of the whole vocabulary come on top."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many tokens of the draft are checked, and how many masks stand behind each accepted number, from 0."""

    checked: int
    masks: tuple[int, ...]

    @property
    def num_columns(self) -> int:
        """Columns of the round: the last settled token, the draft, the masks."""
        return 1 + self.checked + sum(self.masks)


def column_cost(num_rows: int) -> float:
    """What one more column of a row costs, as a share of what the row's forward costs without it.

    >>> round(column_cost(1), 3), round(column_cost(32), 3)
    (0.015, 0.333)
    """
    return 1 / (1 + COLUMNS_FOR_WEIGHTS / num_rows)


def plan(surety: Sequence[float], *, rate: float, longest: int, cost: float, room: int | None = None) -> Plan:
    """The plan of a round.

    `surety` are the probabilities that the draft's tokens are accepted one after the other, `rate` that of a token not
    drafted yet, `longest` the masks that a block may have. `room` is how many columns of the row are still open: a
    round settles at least one of them, and nothing is drafted beyond the end.
    """
    room = len(surety) + longest + 1 if room is None else room
    reached = [1.0]
    for chance in surety[: max(room - 1, 0)]:
        if reached[-1] * chance < CHECK * cost:
            break
        reached.append(reached[-1] * chance)
    checked = len(reached) - 1
    masks = []
    for i, chance in enumerate(reached):
        is_last = i == checked
        here = chance if is_last else chance - reached[i + 1]
        count, chance = 0, rate
        while count < min(longest, room - i - 1) and here * (chance - CHECK * cost) >= cost:
            count, chance = count + 1, chance * rate
        masks.append(count)
    return Plan(checked, tuple(masks))
