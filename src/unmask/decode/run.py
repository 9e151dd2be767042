"""A decoding run: the loop, what it has recorded so far, and the results it ends in.

A run is an iterator of step events. It can be left half-way (Ctrl-C, a closed browser tab) and still gives the
trajectories and texts up to there.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from unmask.decode.canvas import Canvas
from unmask.decode.denoiser import Denoiser
from unmask.decode.loop import denoise
from unmask.decode.observe import Observe
from unmask.decode.settings import DecodeSettings
from unmask.decode.speculative import Speculator
from unmask.decode.stop import StopFinder, answer_end
from unmask.errors import TextError
from unmask.text.tokenizer import Tokenizer
from unmask.trajectory import Frame, StepEvent, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer and what it took.

    `num_tokens` are the settled tokens of the text, `wasted_tokens` those settled behind its end; the end token itself
    is neither. `finish_reason` is "stop" (the model, or the caller on purpose, ended the answer), "length" (the canvas
    is full) or "interrupted". `seconds` is the wall time of the run, which all rows of a batch share.
    """

    text: str
    model: str
    num_tokens: int
    wasted_tokens: int
    num_forwards: int
    positions_computed: int
    seconds: float
    seed: int
    sample: int
    settings: Mapping[str, Any]
    finish_reason: str
    trajectory: Trajectory

    def to_json(self) -> dict[str, Any]:
        """Everything but the trajectory, for `--json`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "trajectory"}


class Run:
    """An iterator over the step events of one batch; `results()` at any time."""

    def __init__(
        self,
        denoiser: Denoiser | Speculator,
        canvas: Canvas,
        settings: DecodeSettings,
        *,
        tokenizer: Tokenizer,
        model: str,
        end_ids: Collection[int],
        suppressed_ids: Collection[int],
        samples: Sequence[int],
        stop_strings: Sequence[str] = (),
        first_step: int = 0,
        history: Sequence[Trajectory] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.canvas = canvas
        self.settings = settings
        self.seconds = 0.0
        self.positions_computed = [0] * canvas.num_rows
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self._stops = (
            StopFinder(canvas, stop_strings, tokenizer.decode) if stop_strings and settings.mode == "exact" else None
        )
        self._finished = [False] * canvas.num_rows
        self._is_left = False
        self.trajectories = list(history) if history is not None else self._fresh_trajectories(model, samples)
        self._confidence = [dict(list(trajectory.frames())[-1].confidence) for trajectory in self.trajectories]
        self._events = denoise(
            denoiser,
            canvas,
            settings,
            end_ids=end_ids,
            suppressed_ids=suppressed_ids,
            samples=samples,
            first_step=first_step,
            observe=observe,
        )

    def __iter__(self) -> Iterator[StepEvent]:
        started = time.perf_counter()
        for event in self._events:
            self.seconds += time.perf_counter() - started
            self._record(event)
            if self._stops is not None:
                self._stops.look(self.canvas)
            yield event
            started = time.perf_counter()
        self._finished = [True] * self.canvas.num_rows

    def leave(self) -> None:
        """End the run here on purpose: what has settled is the answer, not a part of one."""
        self._is_left = True

    def finish(self) -> list[Generation]:
        """Run to the end and give the results."""
        for _ in self:
            pass
        return self.results()

    def frame(self, row: int = 0) -> Frame:
        """One row as it stands, for a live view."""
        trajectory = self.trajectories[row]
        new = trajectory.steps[-1].commits if trajectory.steps else []
        is_fixed_L = self.canvas.is_fixed_BL[row, int(self.canvas.start_B[row]) : int(self.canvas.end_B[row])]
        return Frame(
            step=len(trajectory.steps),
            ids=tuple(self.canvas.row_ids(row)),
            given=frozenset(is_fixed_L.nonzero().flatten().tolist()),
            new=frozenset(commit.position for commit in new),
            confidence=self._confidence[row],
        )

    def pieces(self, row: int = 0) -> dict[int, str]:
        """The texts of the tokens that the row has so far."""
        return self.trajectories[row].pieces

    def results(self) -> list[Generation]:
        """What every row has come to; also half-way."""
        end_B = answer_end(self.canvas, self._end_ids).tolist()
        return [self._result(row, end) for row, end in enumerate(end_B)]

    def _result(self, row: int, end: int) -> Generation:
        canvas, trajectory = self.canvas, self.trajectories[row]
        is_settled_L = ~canvas.is_masked_BL[row] & ~canvas.is_fixed_BL[row]
        is_answer_L = ~canvas.is_fixed_BL[row]
        first = int(is_answer_L.int().argmax()) if bool(is_answer_L.any()) else int(canvas.end_B[row])
        start = int(canvas.start_B[row])
        ids = canvas.row_ids(row)[first - start : end - start]
        has_ended = end < int(canvas.end_B[row])
        is_cut = has_ended and end == int(canvas.stop_B[row])
        reason = "interrupted"
        if self._finished[row] or self._is_left:
            reason = "stop" if has_ended or self._is_left else "length"
        trajectory.finish_reason = reason
        return Generation(
            text=self._text(ids),
            model=trajectory.model,
            num_tokens=int(is_settled_L[:end].sum()),
            wasted_tokens=int(is_settled_L[end:].sum()) - (has_ended and not is_cut),
            num_forwards=trajectory.num_forwards,
            positions_computed=self.positions_computed[row],
            seconds=self.seconds,
            seed=trajectory.seed,
            sample=trajectory.sample,
            settings=trajectory.settings,
            finish_reason=reason,
            trajectory=trajectory,
        )

    def _text(self, ids: Sequence[int | None]) -> str:
        """Decode what is settled; a run left half-way may have masks between, which are dropped."""
        return self._tokenizer.decode([token for token in ids if token is not None])

    def _record(self, event: StepEvent) -> None:
        share, rest = divmod(event.positions_computed, len(event.active))
        for number, row in enumerate(event.active):
            self.trajectories[row].record(event, row=row)
            self.positions_computed[row] += share + (number < rest)
        for commit in event.commits:
            self._confidence[commit.row][commit.position] = commit.confidence
            for token in (commit.token_id, *(token for token, _ in commit.runners_up)):
                self._name(self.trajectories[commit.row], token)
        for row in event.finished:
            self._finished[row] = True

    def _fresh_trajectories(self, model: str, samples: Sequence[int]) -> list[Trajectory]:
        settings = {key: value for key, value in asdict(self.settings).items() if value is not None and key != "seed"}
        out = []
        for row, sample in enumerate(samples):
            trajectory = Trajectory(
                initial_ids=self.canvas.row_ids(row),
                model=model,
                settings=settings,
                seed=self.settings.seed,
                sample=sample,
                end_ids=sorted(self._end_ids),
            )
            for token in trajectory.initial_ids:
                if token is not None:
                    self._name(trajectory, token)
            out.append(trajectory)
        return out

    def _name(self, trajectory: Trajectory, token: int) -> None:
        if token not in trajectory.pieces:
            try:
                trajectory.pieces[token] = self._tokenizer.piece(token)
            except TextError:  # the reference mode may settle ids without a token; the record shows them as <id>
                trajectory.pieces[token] = f"<{token}>"
