"""How near to left-to-right a run filled its positions: local and global AR-ness (DiffuCoder, arXiv 2506.20639, 4.1).

With p_t the position that step t filled, of T:

    local@k   share of the steps t > k whose position continues the k before it
    global@k  share of all steps whose position is among the k leftmost that were open (M_{t-1})

A place that is open to the end belongs to every M_{t-1}: an unfinished run has filled what is right of it out of turn.
Neighbours are meant among the places that a run had to fill. Where the given text leaves several holes, number them by
rank first (`order.ranked`), and a run that fills hole after hole from left to right has 1.

Two readings of "continues" are in the paper. `sequence` (figure 3): p_{t-k}, …, p_t rise by one each. `set` (appendix
A.2): p_{t-k}, …, p_{t-1} are the k positions left of p_t in any order. Two denominators are in use. `defined`: the
T - k steps that have k predecessors, so that a left-to-right run has 1. `all`: all T steps, as the appendix writes it;
such a run then has (T - k) / T.

The definition knows one token per step. Where a step filled several, an order among them has to be chosen
(`order.commit_steps`). From left to right, global AR-ness is an upper bound, and local AR-ness nearly one: each step
can lose a single continuation, that of the step before it. `pairwise_ar_ness` needs no such choice.

Worked example: the order 1, 2, 5, 6, 7, 3, 8, 4 goes on to the right after 1, 5 and 6, and takes the leftmost open
position for 1, 2, 3 and 4.

    >>> order = [1, 2, 5, 6, 7, 3, 8, 4]
    >>> round(local_ar_ness(order), 3), local_ar_ness(order, over="all"), global_ar_ness(order)
    (0.429, 0.375, 0.5)
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

from unmask.errors import SettingsError, TrajectoryError, did_you_mean

Reading = Literal["sequence", "set"]
READINGS: tuple[Reading, ...] = ("sequence", "set")
Over = Literal["defined", "all"]
OVERS: tuple[Over, ...] = ("defined", "all")

_NAN = float("nan")


def local_ar_ness(order: Sequence[int], k: int = 1, *, reading: Reading = "sequence", over: Over = "defined") -> float:
    """Local AR-ness@k of positions in the order in which they were filled; NaN where no step has k before it.

    >>> local_ar_ness([2, 1, 3, 4], 2), local_ar_ness([2, 1, 3, 4], 2, reading="set")
    (0.0, 0.5)
    """
    return local_curve(order, (k,), reading=reading, over=over)[k]


def global_ar_ness(order: Sequence[int], k: int = 1, *, still_open: Iterable[int] = ()) -> float:
    """Global AR-ness@k of positions in the order in which they were filled; NaN where there are none.

    `still_open` are the positions that an unfinished run left masked: they were open at every step.

    >>> global_ar_ness([3, 2, 1]), global_ar_ness([3, 2, 1], 2)
    (0.3333333333333333, 0.6666666666666666)
    >>> global_ar_ness([3, 4], still_open=[1, 2])
    0.0
    """
    return global_curve(order, (k,), still_open=still_open)[k]


def local_curve(
    order: Sequence[int], ks: Sequence[int], *, reading: Reading = "sequence", over: Over = "defined"
) -> dict[int, float]:
    """`local_ar_ness` for several k in one pass."""
    _check(order, ks)
    require_known("reading of local AR-ness", reading, READINGS)
    require_known("denominator of local AR-ness", over, OVERS)
    counts = _runs_before(order) if reading == "sequence" else _sets_before(order, max(ks, default=0))
    return {k: _share(_hits(counts, k, reading), len(order), k, over) for k in ks}


def global_curve(order: Sequence[int], ks: Sequence[int], *, still_open: Iterable[int] = ()) -> dict[int, float]:
    """`global_ar_ness` for several k in one pass."""
    later = sorted(set(still_open))  # open when the position looked at was filled; sorted
    _check(order, ks, still_open=later)
    ranks: Counter[int] = Counter()
    for position in reversed(order):
        left_of_it = bisect_left(later, position)
        ranks[left_of_it] += 1
        later.insert(left_of_it, position)
    return {k: sum(ranks[rank] for rank in range(k)) / len(order) if order else _NAN for k in ks}


def pairwise_ar_ness(steps: Iterable[Sequence[int]]) -> tuple[float, float]:
    """Shares of pairs of positions that were filled from left to right: (of neighbours p and p + 1, of all pairs).

    `steps` are the positions of each step; pairs within a step say nothing and are left out. NaN where no pair is left.
    (ALR and AGR of arXiv 2609.20751.)

    Worked example: of the neighbours (1, 2) and (2, 3), the second is in order; of all pairs, (1, 3) is too.

    >>> pairwise_ar_ness([[2], [1, 3]])
    (0.5, 0.5)
    """
    steps = list(steps)
    _check(list(chain.from_iterable(steps)), ())
    at = {position: number for number, step in enumerate(steps) for position in step}
    pairs = [(number, at[position + 1]) for position, number in at.items() if position + 1 in at]
    adjacent = [first < second for first, second in pairs if first != second]
    before: list[int] = []  # filled in earlier steps; sorted
    in_order = num_pairs = 0
    for step in steps:
        in_order += sum(bisect_left(before, position) for position in step)
        num_pairs += len(before) * len(step)
        for position in step:
            insort(before, position)
    return sum(adjacent) / len(adjacent) if adjacent else _NAN, in_order / num_pairs if num_pairs else _NAN


class ArNessMeter:
    """AR-ness of a run that is still going on, from what each step filled (local: sequence, over T - k).

    `open_positions` are those masked at the start. A step's positions count from left to right, and neighbours are
    meant among the open positions: of two holes, the first place of one continues the last of the other. A position
    that was masked again is open again, and filling it again counts as one more; a given one counts as a place from
    then on. As long as nothing is masked again, the numbers are those of `measure` for the steps so far.

    >>> meter = ArNessMeter(range(4))
    >>> meter.add([1])
    >>> meter.add([2, 0])
    >>> meter.local(), round(meter.global_(), 3)
    (0.0, 0.667)
    """

    def __init__(self, open_positions: Iterable[int]) -> None:
        self._open = sorted(set(open_positions))
        self._places = list(self._open)  # all that were ever open; sorted
        self._run_lengths: Counter[int] = Counter()  # how many before it each position continues
        self._ranks: Counter[int] = Counter()  # how many open positions were left of each
        self._length = 0
        self._last: int | None = None
        self.num_filled = 0

    def add(self, positions: Iterable[int], *, remasked: Iterable[int] = ()) -> None:
        """One step: first `remasked` are open again, then `positions` are filled."""
        for position in set(remasked) - set(self._open):
            insort(self._open, position)
            at = bisect_left(self._places, position)
            if self._places[at : at + 1] != [position]:
                self._places.insert(at, position)
        for position in sorted(positions):
            rank = bisect_left(self._open, position)
            if self._open[rank : rank + 1] != [position]:
                raise TrajectoryError(
                    f"position {position} was filled but is not open; give the meter every position that is masked "
                    "at the start, and each one once"
                )
            del self._open[rank]
            self._ranks[rank] += 1
            at = bisect_left(self._places, position)
            self._length = self._length + 1 if at and self._places[at - 1] == self._last else 0
            self._run_lengths[self._length] += 1
            self._last = position
            self.num_filled += 1

    def local(self, k: int = 1) -> float:
        """Local AR-ness@k so far; NaN before k + 1 positions are filled."""
        _check((), (k,))
        return _share(_hits(self._run_lengths, k, "sequence"), self.num_filled, k, "defined")

    def global_(self, k: int = 1) -> float:
        """Global AR-ness@k so far; NaN before anything is filled."""
        _check((), (k,))
        return sum(self._ranks[rank] for rank in range(k)) / self.num_filled if self.num_filled else _NAN


def require_known(what: str, given: str, known: Sequence[str]) -> None:
    """Raise SettingsError for a word that is none of `known`."""
    if given not in known:
        raise SettingsError(f"{given!r} is no {what}; {did_you_mean(str(given), known)}")


def _runs_before(order: Sequence[int]) -> Counter[int]:
    """How many positions have just n before them that rise by one each up to it."""
    lengths: Counter[int] = Counter()
    length, last = 0, None
    for position in order:
        length = length + 1 if last is not None and position == last + 1 else 0
        lengths[length] += 1
        last = position
    return lengths


def _sets_before(order: Sequence[int], most: int) -> Counter[int]:
    """For n = 1 … most, how many positions come right after the n left of them in any order."""
    hits: Counter[int] = Counter()
    for t, position in enumerate(order):
        leftmost = position
        for n in range(1, min(most, t) + 1):
            before = order[t - n]
            if not position - most <= before < position:
                break  # it stays among the last n for every larger n
            leftmost = min(leftmost, before)
            hits[n] += leftmost == position - n  # n different positions in [p - n, p - 1] are all of them
    return hits


def _hits(counts: Counter[int], k: int, reading: Reading) -> int:
    if reading == "set":
        return counts[k]
    return sum(number for length, number in counts.items() if length >= k)


def _share(hits: int, num_filled: int, k: int, over: Over) -> float:
    if num_filled <= k:
        return _NAN
    return hits / (num_filled - k if over == "defined" else num_filled)


def _check(order: Sequence[int], ks: Sequence[int], *, still_open: Sequence[int] = ()) -> None:
    for k in ks:
        if k < 1:
            raise SettingsError(f"AR-ness@{k} was asked for; k counts positions, so it must be at least 1")
    if len(set(order)) < len(order):
        twice = next(position for at, position in enumerate(order) if position in order[:at])
        raise TrajectoryError(
            f"position {twice} is filled twice; AR-ness is of runs that fill each position once, so leave out what was "
            "masked again"
        )
    if both := set(order) & set(still_open):
        raise TrajectoryError(
            f"position {min(both)} is filled and still open; `still_open` are the positions that are masked in the end"
        )
