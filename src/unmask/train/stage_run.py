"""A stage in progress, whatever it trains: steps to its end, evaluations and checkpoints when they are due.

    before the first      an evaluation, where one is owed
    for each step         the loop's own (`advance`), with its line of metrics
                          an evaluation, where one is due
                          a checkpoint: every few steps, at the end, and where the run is told to stop

Nothing is lost: a stop, an evaluation that fails and a run that stops by itself leave a checkpoint of the last step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from unmask.errors import NumericsError, UnmaskError
from unmask.train.metrics import MetricsLog
from unmask.train.rig import Outcome, Rig, StoppedError


class StageRun(ABC):
    """A stage in progress. `rig` says which, and where."""

    rig: Rig[Any]

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.step = 0
        self.owes_evaluation = False
        self.last: Mapping[str, Any] = {}
        self.stops: Callable[[], bool] = lambda: False
        """Whether this process was told to stop."""

    @abstractmethod
    def advance(self, log: MetricsLog | None) -> None:
        """Make one step and count it; the log is there on the first rank alone. Raises StoppedError, on every rank,
        where the step was given up."""

    @abstractmethod
    def evaluate(self) -> Mapping[str, Any]:
        """What is measured now and then, on the first rank; nothing on the others, or where nothing is asked for."""

    @abstractmethod
    def save(self) -> None:
        """Write a checkpoint."""

    def trouble(self) -> str:
        """Why the run should stop by itself; nothing as a rule."""
        return ""

    def go(self, is_terminated: Callable[[], bool]) -> Outcome:
        """Every step that is left. Raises NumericsError where there is trouble, and what a step raises."""
        self.stops = is_terminated
        with self.rig.log(first_step=self.step, quiet=self.quiet) as log:
            if not self._go(log):
                return Outcome(folder=self.rig.folder, step=self.step, is_done=False, last=self.last)
        self.rig.export()
        return Outcome(folder=self.rig.folder / "final", step=self.step, is_done=True, last=self.last)

    def _go(self, log: MetricsLog | None) -> bool:
        """Whether it came to the end."""
        stage = self.rig.stage
        every = stage.evaluation.every
        if self.owes_evaluation:
            self._evaluate(log)
        while self.step < stage.steps:
            try:
                self.advance(log)
            except StoppedError:  # what was done of the step is given up, and done again in the same way
                self.save()
                return False
            is_last, trouble = self.step == stage.steps, self.trouble()
            stops = self.rig.any_rank(self.stops())
            self.owes_evaluation = is_last or (every > 0 and self.step % every == 0)
            if self.owes_evaluation and not stops:
                self._evaluate(log)
                stops = self.rig.any_rank(self.stops())
            if is_last or stops or trouble or self.step % stage.run.save_every == 0:
                self.save()
            if trouble:
                raise NumericsError(f"step {self.step}: {trouble}")
            if stops and not is_last:
                return False
        return True

    def _evaluate(self, log: MetricsLog | None) -> None:
        self.owes_evaluation = True
        try:
            self.last = self.evaluate()
        except UnmaskError as error:  # on every rank
            raise self.saved(error) from None
        self.owes_evaluation = False
        if log is not None and self.last:
            log.write(self.step, dict(self.last))

    def saved(self, error: UnmaskError) -> UnmaskError:
        """An error that all ranks have, told with where to go on, after what was learned so far is saved."""
        self.save()
        return type(error)(f"{error} (step {self.step} is saved; go on with --resume)")
