"""What AR-ness an order drawn at random has on average: the measure of "no order at all", in closed form.

Both are means over runs that settle n positions, one per step, for several n.
"""

from collections.abc import Sequence
from math import comb, nan, perm

from unmask.analyze.ar_ness import Over, Reading


def random_local(lengths: Sequence[int], k: int, *, reading: Reading = "sequence", over: Over = "defined") -> float:
    """Expected local AR-ness@k of runs that settle n positions in random order, over runs that have k + 1 of them.

    Of the n! / (n - k - 1)! ways in which k + 1 steps go, n - k go on to the right; as sets, k! times as many.

        sequence   (n - k)! / n!        set   1 / C(n, k)

    >>> random_local([4], 1), random_local([4], 2), random_local([4], 2, reading="set")
    (0.25, 0.08333333333333333, 0.16666666666666666)
    """
    found = [
        (1 / perm(n, k) if reading == "sequence" else 1 / comb(n, k)) * (1 if over == "defined" else (n - k) / n)
        for n in lengths
        if n > k
    ]
    return _mean(found)


def random_global(lengths: Sequence[int], k: int) -> float:
    """Expected global AR-ness@k of runs that settle n positions in random order.

    With m positions open, one of the k leftmost is taken with probability min(1, k / m); the mean over m = 1 … n.

    >>> random_global([2], 1), random_global([4], 4)
    (0.75, 1.0)
    """
    found = [sum(min(1.0, k / m) for m in range(1, n + 1)) / n for n in lengths if n]
    return _mean(found)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan
