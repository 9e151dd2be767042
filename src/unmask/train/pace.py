"""How fast a run goes: tokens per second, share of the peak, time left. Evaluations and checkpoints do not count."""

import time
from collections.abc import Callable


class Pace:
    """A stopwatch over steps. `peak` is the sum of the FLOP/s of all devices; without it no share of it is told."""

    def __init__(
        self,
        *,
        total_steps: int,
        tokens_per_step: int,
        flops_per_token: float = 0.0,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._total_steps, self._tokens_per_step = total_steps, tokens_per_step
        self._flops_per_token, self._peak, self._clock = flops_per_token, peak, clock
        self._steps, self._seconds, self._since = 0, 0.0, clock()

    def step_done(self) -> None:
        """One more step is done, and the clock stands still until `go_on`."""
        self._steps += 1
        self._seconds += self._clock() - self._since

    def go_on(self) -> None:
        """The next step begins."""
        self._since = self._clock()

    def read(self, step: int) -> dict[str, float]:
        """The pace of the steps since the last reading, of which `step` was the last."""
        seconds = max(self._seconds / max(self._steps, 1), 1e-9)
        self._steps, self._seconds = 0, 0.0
        rate = self._tokens_per_step / seconds
        return {
            "tokens_per_second": rate,
            **({"mfu": rate * self._flops_per_token / self._peak} if self._peak is not None else {}),
            "eta_seconds": (self._total_steps - step) * seconds,
        }
