"""Rollouts: the answers that a policy gives to prompts, with how it came to them, and as tensors to be scored.

A rollout is decoded by the loop that decodes everything (`decode/loop.py`) and recorded as a trajectory. Its random
numbers are named by (seed, rollout step, prompt number, generation), so neither the batch it was in, nor the others,
nor the rank that decoded it moves it. No stop string ends it: the answer goes up to and including the model's own end
token. One that never ends fills its canvas, is kept, and says so (`has_ended`).

`pack` lays rollouts out as scoring reads them, which is how decoding saw them: prompt, answer, and behind its end the
rest of the canvas, masked; positions counted from the row's start; everyone sees the whole row (or, under block
attention, his own and earlier blocks). Rows stand left in the batch, padding comes last and is seen by nobody. One
thing is not as it was: a token that decoding committed *behind* the end before the end was there. It is masked in
scoring, as the tail always is, since showing it would tell the answer's length; `wasted_tokens` counts such tokens.

Letters: B rows, L columns.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.analyze.ar_ness import global_ar_ness, local_ar_ness
from unmask.decode.settings import ADAPTIVE_POLICIES, CacheName, DecodeSettings, PolicyName, TemperatureRole
from unmask.errors import DataError, SettingsError
from unmask.seeds import derive_seed
from unmask.train.rig import StoppedError
from unmask.train.settings import require
from unmask.trajectory import Step, Trajectory, load, save

if TYPE_CHECKING:
    from unmask.decode.run import Generation
    from unmask.decode.session import Model
    from unmask.train.prompts import PromptItem, Prompts

Tail = Literal["masked", "cut"]
_KEY = "rollout"
"""In the settings of a saved trajectory: what a rollout is besides."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How answers are drawn. The defaults are those of DiffuCoder's best run (arXiv 2506.20639, section 5) but for its
    nucleus of 0.95: a cut distribution is not the one that scoring knows."""

    num_generations: int = 10
    """Answers to each prompt."""

    temperature: float = 1.2
    """Of tokens, and of the scores that order them (1.0 in the released configuration)."""

    temperature_role: TemperatureRole = "both"
    """What the temperature acts on: the tokens (`content`), their order (`order`), or both, as in the paper."""

    top_p: float | None = None
    """Nucleus in (0, 1]; None is off (0.95 in the released code)."""

    policy: PolicyName = "entropy"
    """Which positions a step commits."""

    policy_temperature: float = 0.0
    """Above 0: positions are drawn by their score, not taken in its order."""

    threshold: float | None = None
    """Of the policy `threshold`."""

    factor: float | None = None
    """Of the policy `factor`."""

    frechet: float | None = None
    """Of the policy `frechet`."""

    entropy_bound: float | None = None
    """Of the policy `entropy_bound`, nats."""

    steps: int | None = None
    """Forward passes that an answer may take; None: one per token."""

    block_length: int | None = None
    """Positions per block, filled from left to right; None: as `DecodeSettings` has it."""

    cache: CacheName | None = None
    """`prefix`: keys and values of the prompt are kept for `cache_refresh` steps; faster, and not quite what scoring
    computes."""

    cache_refresh: int | None = None
    """Steps until the prompt is computed anew; None: 16."""

    batch_size: int = 32
    """Rows decoded together on one device."""

    tail: Tail = "masked"
    """What stands behind an answer's end when it is scored: the canvas as it was, or nothing."""

    def __post_init__(self) -> None:
        for name in ("num_generations", "batch_size"):
            require(getattr(self, name) >= 1, f"rollout.{name}={getattr(self, name)} must be at least 1")
        require(self.tail in ("masked", "cut"), f"rollout.tail={self.tail} is not known; it is masked or cut")
        draws_tokens = self.temperature > 0 and self.temperature_role != "order"
        draws_order = self.policy_temperature > 0 or self.policy in ("random", "origin")
        self.decoding(max_new_tokens=1, seed=0)
        require(
            draws_tokens or draws_order or self.num_generations == 1,
            f"rollout.temperature={self.temperature} with rollout.temperature_role={self.temperature_role} draws "
            f"nothing at random, so all {self.num_generations} answers to a prompt would be the same and none better "
            "than another; give a temperature above 0 that acts on the tokens, as in rollout.temperature=1.2 and "
            "rollout.temperature_role=both",
        )

    def decoding(self, *, max_new_tokens: int, seed: int) -> DecodeSettings:
        """The settings of the loop."""
        names = ("temperature", "temperature_role", "top_p", "policy", "policy_temperature", *ADAPTIVE_POLICIES)
        given = {name: getattr(self, name) for name in (*names, "steps", "block_length", "cache", "cache_refresh")}
        try:
            return DecodeSettings(**given, max_new_tokens=max_new_tokens, seed=seed)
        except SettingsError as error:  # it speaks of the command line's options
            words = re.sub(r"--([a-z][a-z-]*)", lambda option: f"rollout.{option[1].replace('-', '_')}", str(error))
            raise SettingsError(words) from None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that is wanted."""

    item: "PromptItem"
    index: int
    """The number of the prompt in the run: of `Prompts.at`."""

    generation: int
    """Which of the answers to this prompt."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One answer, up to and including its end token."""

    item: "PromptItem"
    index: int
    generation: int
    answer_ids: tuple[int, ...]
    has_ended: bool
    text: str
    """The whole answer with its prefill, without its end token and anything behind it."""

    committed_at: tuple[int, ...]
    """The step that committed each token of the answer, from 0."""

    num_forwards: int
    wasted_tokens: int
    """Tokens that were committed behind the end."""

    max_new_tokens: int
    """Columns of the canvas behind the prompt."""

    trajectory: Trajectory

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.item.ids

    @property
    def order(self) -> list[int]:
        """Places of the answer in the order in which they were committed; within a step from left to right."""
        return sorted(range(len(self.committed_at)), key=lambda place: (self.committed_at[place], place))


class RolloutEngine(Protocol):
    """Where answers come from."""

    def answers(
        self,
        model: "Model",
        requests: Sequence[Request],
        *,
        seed: int,
        step: int,
        stops: Callable[[], bool] = lambda: False,
    ) -> list[Rollout]:
        """The answers, in the order of the requests. `step` is the number of the rollout phase in the run. Raises
        StoppedError soon after `stops` becomes true."""
        ...


def requests_of(prompts: "Prompts", indices: Iterable[int], *, num_generations: int) -> list[Request]:
    """All answers to the prompts of some numbers, prompt by prompt."""
    return [
        Request(item=prompts.at(index), index=index, generation=generation)
        for index in indices
        for generation in range(num_generations)
    ]


def batches_of(requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """Batches of about one length, the longest first: what does not fit the memory fails at once.

    An engine that is given whole batches of a layout, in its order, decodes these very batches. So ranks that take
    every n-th batch get, to the bit, what one process would.
    """
    by_length = sorted(requests, key=lambda request: -len(request.item.ids))
    return [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]


class LocalRollouts:
    """Rollouts in this process."""

    def __init__(self, settings: RolloutSettings, *, max_new_tokens: int) -> None:
        self.settings = settings
        self.max_new_tokens = max_new_tokens

    def answers(
        self,
        model: "Model",
        requests: Sequence[Request],
        *,
        seed: int,
        step: int,
        stops: Callable[[], bool] = lambda: False,
    ) -> list[Rollout]:
        decoding = self.settings.decoding(max_new_tokens=self.max_new_tokens, seed=seed)
        found: dict[tuple[int, int], Rollout] = {}
        for batch in batches_of(requests, self.settings.batch_size):
            rows = [[*request.item.ids, *[None] * self.max_new_tokens] for request in batch]
            samples = [rollout_seed(seed, step, request.index, request.generation) for request in batch]
            run = model.run_rows(rows, decoding, samples=samples)
            for _ in run:
                if stops():
                    raise StoppedError
            for request, result in zip(batch, run.results(), strict=True):
                found[request.index, request.generation] = _rollout(request, result)
        return [found[request.index, request.generation] for request in requests]


def rollout_seed(seed: int, step: int, index: int, generation: int) -> int:
    """The name of one answer's stream of random numbers, a function of nothing else."""
    return derive_seed(seed, "rollout", step, index, generation)


def _rollout(request: Request, result: "Generation") -> Rollout:
    trajectory = _as_kept(result.trajectory)
    return _from_trajectory(
        trajectory,
        item=request.item,
        index=request.index,
        generation=request.generation,
        text=request.item.prefill + result.text,
    )


def _as_kept(trajectory: Trajectory) -> Trajectory:
    """The record as a file keeps it (six digits, no row of a batch), so that a resumed run reads the same numbers."""
    steps = [
        Step(
            commits=[
                replace(c, row=0, confidence=round(c.confidence, 6), entropy=round(c.entropy, 6)) for c in step.commits
            ]
        )
        for step in trajectory.steps
    ]
    return replace(trajectory, steps=steps)


def _from_trajectory(trajectory: Trajectory, *, item: "PromptItem", index: int, generation: int, text: str) -> Rollout:
    first = len(item.ids)
    ids = list(trajectory.initial_ids)
    committed_at: dict[int, int] = {}
    for number, step in enumerate(trajectory.steps):
        for commit in step.commits:
            ids[commit.position] = commit.token_id
            committed_at[commit.position] = number
    ends = set(trajectory.end_ids)
    stop = next((place + 1 for place in range(first, len(ids)) if ids[place] in ends), len(ids))
    answer = [token for token in ids[first:stop] if token is not None]
    assert len(answer) == stop - first, "everything before the end is settled when a row is done"
    return Rollout(
        item=item,
        index=index,
        generation=generation,
        answer_ids=tuple(answer),
        has_ended=bool(answer) and answer[-1] in ends,
        text=text,
        committed_at=tuple(committed_at[place] for place in range(first, stop)),
        num_forwards=trajectory.num_forwards,
        wasted_tokens=sum(place >= stop for place in committed_at),
        max_new_tokens=len(ids) - first,
        trajectory=trajectory,
    )


# As tensors


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rollouts side by side, one to a row: prompt, answer, tail; padding last."""

    ids_BL: Int[Tensor, "B L"]
    """The tail holds the mask id, padding 0."""

    is_prompt_BL: Bool[Tensor, "B L"]
    is_answer_BL: Bool[Tensor, "B L"]
    """Up to and including the end token."""

    document_BL: Int[Tensor, "B L"]
    """0 on the row with its tail, -1 on padding: `Sight` and `document_positions` make mask and positions of it."""

    committed_at_BL: Int[Tensor, "B L"]
    """The step that committed each token of the answer; -1 elsewhere."""


def pack(rollouts: Sequence[Rollout], *, mask_id: int | None, tail: Tail = "masked") -> Packed:
    """Rollouts as tensors. `mask_id` is what a masked position holds; None is for a causal model, which reads none."""
    return pack_rows(
        [
            PackedRow(
                prompt_ids=rollout.item.ids,
                answer_ids=rollout.answer_ids,
                room=rollout.max_new_tokens if tail == "masked" else len(rollout.answer_ids),
                committed_at=rollout.committed_at,
            )
            for rollout in rollouts
        ],
        mask_id=mask_id,
    )


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """A prompt, what was written behind it, and how many columns there are behind the prompt."""

    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    room: int
    committed_at: Sequence[int] | None = None
    """The step that committed each token of the answer; None where nobody knows."""


def pack_rows(rows: Sequence[PackedRow], *, mask_id: int | None) -> Packed:
    """Answers, wherever they come from, as `pack` lays out those of rollouts."""
    shape = (len(rows), max(len(row.prompt_ids) + row.room for row in rows))
    packed = Packed(
        ids_BL=torch.zeros(shape, dtype=torch.long),
        is_prompt_BL=torch.zeros(shape, dtype=torch.bool),
        is_answer_BL=torch.zeros(shape, dtype=torch.bool),
        document_BL=torch.full(shape, -1),
        committed_at_BL=torch.full(shape, -1),
    )
    for at, row in enumerate(rows):
        ids = [*row.prompt_ids, *row.answer_ids]
        first, stop, end = len(row.prompt_ids), len(ids), len(row.prompt_ids) + row.room
        packed.ids_BL[at, :stop] = torch.tensor(ids)
        packed.ids_BL[at, stop:end] = mask_id or 0
        packed.is_prompt_BL[at, :first] = True
        packed.is_answer_BL[at, first:stop] = True
        packed.document_BL[at, :end] = 0
        if row.committed_at is not None:
            packed.committed_at_BL[at, first:stop] = torch.tensor(row.committed_at)
    return packed


# As a file


def save_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """A trajectory file (`unmask replay` shows it) that says of each run whose answer it is. It appears when whole."""
    lines = []
    for rollout in rollouts:
        what = {"task_id": rollout.item.task.task_id, "index": rollout.index, "generation": rollout.generation}
        settings = {**rollout.trajectory.settings, _KEY: {**what, "text": rollout.text}}
        lines.append(replace(rollout.trajectory, settings=settings))
    save(path, lines)


def load_rollouts(path: Path, prompts: "Prompts") -> list[Rollout]:
    """The rollouts of a file, with their prompts. Raises DataError when it was written for other prompts."""
    return [_loaded(trajectory, path, number, prompts) for number, trajectory in enumerate(load(path), 1)]


def _loaded(trajectory: Trajectory, path: Path, number: int, prompts: "Prompts") -> Rollout:
    settings = dict(trajectory.settings)
    what = settings.pop(_KEY, None)
    if not isinstance(what, dict) or not {"task_id", "index", "generation", "text"} <= what.keys():
        raise DataError(f"{path}, line {number} is a trajectory and no rollout; give a file that the trainer wrote")
    item = prompts.at(int(what["index"]))
    given = [token for token in trajectory.initial_ids if token is not None]
    if item.task.task_id != what["task_id"] or given != list(item.ids):
        raise DataError(
            f"{path}, line {number} answers {what['task_id']}, and prompt {what['index']} of this run is "
            f"{item.task.task_id} or has other words; resume with the tasks, the preset and the seed that it was "
            "started with"
        )
    return _from_trajectory(
        replace(trajectory, settings=settings),
        item=item,
        index=int(what["index"]),
        generation=int(what["generation"]),
        text=str(what["text"]),
    )


# As numbers


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What the log says of one rollout; small, to be gathered from all ranks."""

    num_tokens: int
    has_ended: bool
    num_forwards: int
    wasted_tokens: int
    local_ar_ness: float
    global_ar_ness: float


def measure(rollout: Rollout) -> Measures:
    """The measures of a rollout. AR-ness (@1) is of the answer with its end token, not of what was wasted behind."""
    return Measures(
        num_tokens=len(rollout.answer_ids),
        has_ended=rollout.has_ended,
        num_forwards=rollout.num_forwards,
        wasted_tokens=rollout.wasted_tokens,
        local_ar_ness=local_ar_ness(rollout.order),
        global_ar_ness=global_ar_ness(rollout.order),
    )


def summary(measures: Sequence[Measures]) -> Mapping[str, float]:
    """Means over rollouts for the log; lengths (tokens, with the end token) under TRL's names. NaN where there is no
    rollout to count."""
    lengths = [one.num_tokens for one in measures]
    terminated = [one.num_tokens for one in measures if one.has_ended]
    forwards = sum(one.num_forwards for one in measures)
    local = [one.local_ar_ness for one in measures if one.num_tokens > 1]
    return {
        **{f"completions/{name}_length": value for name, value in _spread(lengths).items()},
        **{f"completions/{name}_terminated_length": value for name, value in _spread(terminated).items()},
        "completions/clipped_ratio": 1 - len(terminated) / len(lengths) if lengths else nan,
        "rollout/end_share": len(terminated) / len(lengths) if lengths else nan,
        "rollout/tokens_per_forward": sum(lengths) / forwards if forwards else nan,
        "rollout/wasted_tokens": fmean(one.wasted_tokens for one in measures) if measures else nan,
        "rollout/local_ar_ness@1": fmean(local) if local else nan,
        "rollout/global_ar_ness@1": fmean(one.global_ar_ness for one in measures) if measures else nan,
    }


def _spread(numbers: Sequence[int]) -> dict[str, float]:
    if not numbers:
        return {"mean": nan, "min": nan, "max": nan}
    return {"mean": fmean(numbers), "min": float(min(numbers)), "max": float(max(numbers))}
