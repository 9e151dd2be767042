"""The speed card: how fast a run was, told so that it cannot flatter.

One tokens-per-second number hides much in diffusion decoding: tokens committed behind the answer's end count as
output, a forward may settle many tokens or one, and every forward computes positions that it does not settle. The card
puts these side by side. It is plain arithmetic on counts; it knows neither torch nor a terminal.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedCard:
    """What a run of `rows` rows settled and what it spent.

    `settled_tokens` counts every position made final in all rows, `wasted_tokens` those of them that lie behind the
    end of their answer, `num_forwards` the network calls (one call serves the whole batch), `positions_computed` the
    token positions that went through the network, `seconds` the wall time of the loop.

    >>> card = SpeedCard(
    ...     settled_tokens=120, num_forwards=40, positions_computed=9600, wasted_tokens=30, seconds=4.0, rows=1
    ... )
    >>> print(card.format())
    22.5 settled tokens/s: 90 tokens in 4.0 s, 25% wasted after the end
    40 forwards, 2.2 tokens per forward, 9,600 positions computed

    A run that drafted (`drafted_tokens` above 0) has a third line with the share that was accepted.
    """

    settled_tokens: int
    num_forwards: int
    positions_computed: int
    wasted_tokens: int
    seconds: float
    rows: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def answer_tokens(self) -> int:
        """Settled tokens that are part of an answer; both rates count these alone."""
        return self.settled_tokens - self.wasted_tokens

    @property
    def settled_tokens_per_second(self) -> float:
        return _ratio(self.answer_tokens, self.seconds)

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens per network call, over all rows of the batch."""
        return _ratio(self.answer_tokens, self.num_forwards)

    @property
    def wasted_share(self) -> float:
        """The part of the settled tokens, from 0 to 1, that lies behind the end of an answer."""
        return _ratio(self.wasted_tokens, self.settled_tokens)

    def format(self) -> str:
        """Two short lines; the second says what the first one cost."""
        rate, took = f"{self.settled_tokens_per_second:.1f}", f"{self.seconds:.1f} s"
        return (
            f"{rate} settled tokens/s: {_counted(self.answer_tokens, 'token')} in {took}, {self._wasted()}\n"
            f"{_counted(self.num_forwards, 'forward')}, {self._per_forward()}, "
            f"{_counted(self.positions_computed, 'position')} computed{self._drafted()}"
        )

    def _drafted(self) -> str:
        if not self.drafted_tokens:
            return ""
        share = _ratio(self.accepted_tokens, self.drafted_tokens)
        return f"\n{_counted(self.drafted_tokens, 'token')} drafted and checked, {share:.0%} accepted"

    def _per_forward(self) -> str:
        one_row = f" ({self.tokens_per_forward / self.rows:.1f} a row)" if self.rows > 1 else ""
        return f"{self.tokens_per_forward:.1f} tokens per forward{one_row}"

    def _wasted(self) -> str:
        if self.wasted_tokens == 0:
            return "nothing wasted after the end"
        share = f"{self.wasted_share:.0%}" if self.wasted_share >= 0.005 else "under 1%"
        return f"{share} wasted after the end"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
