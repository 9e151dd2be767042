"""What AR-ness an order drawn at random has on average: the measure of "no order at all", in closed form.

A random order of a run takes the same number of places in each step as the run did, any of them alike. Within a step
its places count from left to right, as a run's do (`ar_ness`), so that a run which settles many tokens per step has
more of both measures by chance alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, factorial, nan, perm, prod

from unmask.analyze.ar_ness import Over, Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How many of its `num_open` places each step of a run settled."""

    sizes: tuple[int, ...]
    num_open: int

    @property
    def num_settled(self) -> int:
        return sum(self.sizes)


def random_local(
    runs: Sequence[Shape | int], k: int, *, reading: Reading = "sequence", over: Over = "defined"
) -> float:
    """Expected local AR-ness@k of runs in random order, over runs that settle k + 1 places; n is n steps of one place.

    k + 1 tokens that follow each other lie in some steps of a, …, b places, of which the first has i among them and the
    last j, the others all. They go on to the right if they fill a block of k + 1 places, with the a - i others of the
    first step left of it and the b - j others of the last right of it:

        sequence   C(N - k, a - i + b - j + 1) / (N! / (a! … b! (N - a - … - b)!))
        set        k! / (i! … (j - 1)!) times as many

    With one place per step and nothing left open that is (N - k)! / N!, and 1 / C(N, k) as sets.

    >>> random_local([4], 1), random_local([4], 2), random_local([4], 2, reading="set")
    (0.25, 0.08333333333333333, 0.16666666666666666)
    >>> random_local([Shape(sizes=(4,), num_open=4)], 1)
    1.0
    """
    counts = Counter(map(_shape, runs))
    found = {
        shape: _expected_hits(shape, k, reading) / (shape.num_settled - (k if over == "defined" else 0))
        for shape in counts
        if shape.num_settled > k
    }
    return _mean(found, counts)


def random_global(runs: Sequence[Shape | int], k: int) -> float:
    """Expected global AR-ness@k of runs in random order; a number n is a run of n steps of one place.

    With m places open and s of them taken, the one with l taken places left of it is among the k leftmost if fewer than
    k are left of it that are not taken. With one place per step that has probability min(1, k / m).

    >>> random_global([2], 1), random_global([4], 4), random_global([Shape(sizes=(2,), num_open=2)], 1)
    (0.75, 1.0, 1.0)
    """
    found: dict[Shape, float] = {}
    counts = Counter(map(_shape, runs))
    for shape in counts:
        num_open, hits = shape.num_open, 0.0
        for size in shape.sizes:
            hits += _leftmost(num_open, size, k)
            num_open -= size
        if shape.num_settled:
            found[shape] = hits / shape.num_settled
    return _mean(found, counts)


def _shape(run: Shape | int) -> Shape:
    return Shape(sizes=(1,) * run, num_open=run) if isinstance(run, int) else run


def _expected_hits(shape: Shape, k: int, reading: Reading) -> float:
    """How many tokens continue the k before them, on average."""
    step_of = [number for number, size in enumerate(shape.sizes) for _ in range(size)]
    starts = [step_of.index(number) for number in range(len(shape.sizes))]
    expected = 0.0
    for last in range(k, len(step_of)):
        first = last - k
        steps = shape.sizes[step_of[first] : step_of[last] + 1]
        left = first - starts[step_of[first]]
        right = starts[step_of[last]] + steps[-1] - 1 - last
        expected += _continues(shape.num_open, steps, left, right, reading)
    return expected


@lru_cache(maxsize=1 << 14)
def _continues(num_open: int, steps: tuple[int, ...], left: int, right: int, reading: Reading) -> float:
    """Whether all tokens of `steps` but the first `left` and the last `right` go on to the right, in order."""
    num_taken = sum(steps)
    k = num_taken - left - right - 1
    ways = comb(num_open - k, left + right + 1)
    if reading == "set":
        inside = list(steps)
        inside[0] -= left
        inside[-1] -= right + 1  # the token that goes on is the rightmost in any case
        ways *= factorial(k) // prod(map(factorial, inside))
    return ways * prod(map(factorial, steps)) / perm(num_open, num_taken)


@lru_cache(maxsize=1 << 14)
def _leftmost(num_open: int, size: int, k: int) -> float:
    """How many of `size` places, drawn from the open ones, have fewer than k left of them that are not drawn."""
    ways = sum(
        comb(drawn_left + others_left, drawn_left)
        * comb(num_open - 1 - drawn_left - others_left, size - 1 - drawn_left)
        for drawn_left in range(size)
        for others_left in range(min(k, num_open - size + 1))
    )
    return ways / comb(num_open, size)


def _mean(values: Mapping[Shape, float], counts: Mapping[Shape, int]) -> float:
    """Over runs, each shape computed once."""
    num_runs = sum(counts[shape] for shape in values)
    return sum(value * counts[shape] for shape, value in values.items()) / num_runs if values else nan
