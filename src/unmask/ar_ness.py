"""How near to left-to-right a run filled its positions: local and global AR-ness (DiffuCoder, arXiv 2506.20639, 4.1).

With p_t the position that step t filled, of T:

    local@k   share of the steps t > k whose position continues the k before it
    global@k  share of all steps whose position is among the k leftmost that were open

Two readings of "continues" are in the paper. `sequence` (figure 3): p_{t-k}, …, p_t rise by one each. `set` (appendix
A.2): p_{t-k}, …, p_{t-1} are the k positions left of p_t in any order. The appendix divides local by T, which gives a
left-to-right run (T - k) / T; the steps that have k predecessors are T - k, and only these are counted here, so that
such a run has 1.

The definition knows one token per step. Where a step filled several, `Trajectory.order` lists them from left to right,
which is the most left-to-right order that they could have had: with many tokens per step both numbers are upper bounds.

Worked example: the order 1, 2, 5, 6, 7, 3, 8, 4 goes on to the right after 1, 5 and 6, and takes the leftmost open
position for 1, 2, 3 and 4.

    >>> order = [1, 2, 5, 6, 7, 3, 8, 4]
    >>> round(local_ar_ness(order), 3), global_ar_ness(order)
    (0.429, 0.5)
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

from unmask.errors import SettingsError, TrajectoryError, did_you_mean

Reading = Literal["sequence", "set"]
READINGS: tuple[Reading, ...] = ("sequence", "set")


def local_ar_ness(order: Sequence[int], k: int = 1, *, reading: Reading = "sequence") -> float:
    """Local AR-ness@k of positions in the order in which they were filled; NaN where no step has k before it.

    >>> local_ar_ness([2, 1, 3, 4], 2), local_ar_ness([2, 1, 3, 4], 2, reading="set")
    (0.0, 0.5)
    """
    _check(order, k)
    if reading not in READINGS:
        raise SettingsError(f"{reading!r} is no reading of local AR-ness; {did_you_mean(str(reading), READINGS)}")
    if len(order) <= k:
        return float("nan")
    hits = 0
    for t in range(k, len(order)):
        before = list(order[t - k : t])
        hits += (before if reading == "sequence" else sorted(before)) == list(range(order[t] - k, order[t]))
    return hits / (len(order) - k)


def global_ar_ness(order: Sequence[int], k: int = 1) -> float:
    """Global AR-ness@k of positions in the order in which they were filled; NaN where there are none.

    Positions that were never filled do not count as open.

    >>> global_ar_ness([3, 2, 1]), global_ar_ness([3, 2, 1], 2)
    (0.3333333333333333, 0.6666666666666666)
    """
    _check(order, k)
    if not order:
        return float("nan")
    hits = 0
    later: list[int] = []  # filled after the position looked at: open when it was filled; sorted
    for position in reversed(order):
        left_of_it = bisect_left(later, position)
        hits += left_of_it < k
        later.insert(left_of_it, position)
    return hits / len(order)


def _check(order: Sequence[int], k: int) -> None:
    if k < 1:
        raise SettingsError(f"AR-ness@{k} was asked for; k counts positions, so it must be at least 1")
    if len(set(order)) < len(order):
        twice = next(position for at, position in enumerate(order) if position in order[:at])
        raise TrajectoryError(
            f"position {twice} is filled twice; AR-ness is of runs that fill each position once, so leave out what was "
            "masked again"
        )
