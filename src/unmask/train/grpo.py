"""The loop of reinforcement learning: answers, rewards, and a few careful steps towards the better ones.

    for each rollout phase:   prompts (index arithmetic) ─ G answers each, by `denoise()` under the policy
                              rewards (tests run in the sandbox) ─ advantages within each group
                              the answers' scores under this, the old policy, one set of masks per inner iteration
    for each inner iteration: scores under the policy (and the reference), with that iteration's masks
                              clipped ratios, KL; gradients added over ranks; one optimiser step

Optimiser step s belongs to phase s // iterations and is its inner iteration s % iterations, whatever micro-batches and
ranks there are. What is masked is a function of (seed, phase, iteration, answer), so the old policy, the reference and
a resumed run see the same masks; a checkpoint between inner iterations holds the phase's answers, rewards and old
scores (`train/experience.py`).

The stage's folder is that of any stage (`train/loop.py`); besides, it has

    best/        the weights with the best pass@1 at an evaluation so far
    rollouts/    now and then the answers of a phase, which `unmask replay` shows, and a card of one group

and its records have TRL's names, and names of our own:

    reward, reward_std             mean and standard deviation (within groups, averaged) of the answers' rewards
    rewards/NAME/mean, …/std       the same of each reward function
    frac_reward_zero_std           groups without spread; redrawn ones are counted as what they ended as
    completions/…                  lengths of answers (tokens); clipped_ratio is the share without an end
    clip_ratio/…                   shares of tokens whose gradient the clipping stopped
    kl, entropy                    nats per token: from the reference; of the canvas where a token was committed
    num_tokens                     answer tokens so far
    ratio_max                      largest ratio of the step; ratio_first_error is how far the first inner step is off 1
    masked_fraction                share of an answer that a view hides, on average
    estimator_spread               standard deviation of a score over the draws of its estimator, nats per token
    rollout/…                      tokens_per_forward, AR-ness, end_share
    sandbox/STATUS                 programs by how they ended, in the last phase
    time/rollout, /reward, /score, /update   seconds
"""

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.decode.session import Model
from unmask.errors import SandboxError, TrajectoryError, UnmaskError
from unmask.model.packed import can_pack, multiplies_bfloat16
from unmask.model.packed import pack as pack_weights
from unmask.sandbox.job import Executor
from unmask.train import state
from unmask.train.card import CardWriter, make_card
from unmask.train.checks import check_data, checkpoint_to_resume
from unmask.train.experience import (
    CARD,
    Experience,
    Judged,
    describe,
    load_experience,
    save_experience,
    weigh,
    widest_group,
)
from unmask.train.grpo_settings import GrpoStage
from unmask.train.guard import Guard
from unmask.train.judge import RewardJudge
from unmask.train.learner import Learner
from unmask.train.metrics import MetricsLog, peak_memory
from unmask.train.parallel import World, gather_objects, raise_together, wait_for_all
from unmask.train.prompts import open_prompts
from unmask.train.rig import Evaluator, Outcome, Rig, StoppedError, copied, terminated, write_json
from unmask.train.rollout import (
    LocalRollouts,
    Rollout,
    RolloutEngine,
    requests_of,
    save_rollouts,
)
from unmask.train.scoring import Micro
from unmask.train.settings import as_record
from unmask.train.stage_run import StageRun
from unmask.train.step import Trainee

_log = logging.getLogger(__name__)


def train_grpo(
    stage: GrpoStage,
    folder: Path,
    *,
    world: World,
    executor: Executor,
    resume: bool = False,
    evaluator: Evaluator | None = None,
    engine: RolloutEngine | None = None,
    write_card: CardWriter | None = None,
    quiet: bool = False,
) -> Outcome:
    """Run a stage of reinforcement learning to its end, or go on with it. `executor` runs the answers' tests.

    Raises what `train_stage` raises, TaskError for tasks that cannot be asked or judged, SandboxError when no program
    can be judged any more, and NumericsError when reward collapses, KL explodes or nothing is left to learn from; what
    was learned up to there is saved.
    """
    checkpoint = checkpoint_to_resume(stage, folder, resume=resume)
    run = _Run(
        stage,
        folder,
        world=world,
        executor=executor,
        evaluator=evaluator,
        engine=engine,
        write_card=write_card,
        quiet=quiet,
    )
    if checkpoint is not None:
        check_data(checkpoint, run.identity(), what="tasks or rewards")
        run.load(checkpoint)
    if world.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "settings.json", as_record(stage))
    wait_for_all(world)
    with terminated() as is_terminated:
        return run.go(is_terminated)


class _Run(StageRun):
    """A stage in progress."""

    rig: Rig[Trainee]

    def __init__(
        self,
        stage: GrpoStage,
        folder: Path,
        *,
        world: World,
        executor: Executor,
        evaluator: Evaluator | None,
        engine: RolloutEngine | None,
        write_card: CardWriter | None,
        quiet: bool,
    ) -> None:
        super().__init__(quiet=quiet)
        self.stage, self.folder, self.world = stage, folder, world
        self.evaluator, self.write_card = evaluator, write_card
        self.judge = RewardJudge(stage.reward, executor)
        self.has_evaluator = any(gather_objects(evaluator is not None, world))
        self.rig = Rig(stage, folder, kind="diffusion", world=world, trainee=Trainee)
        network = self.rig.network
        asked = Model(network.backbone, network.tokenizer, name=network.source, defaults=network.defaults)
        self.prompts = open_prompts(stage.prompts, asked, seed=stage.seed, executor=executor)
        self.engine = engine or LocalRollouts(stage.rollout, max_new_tokens=stage.prompts.max_new_tokens)
        self.learner = Learner(stage, self.rig)
        reference = self.learner.reference
        self.trained = self.rig.trained({"reference": reference} if reference is not None else None)
        self.guard = Guard(stage.guard, patience=stage.policy.patience)
        self.owes_evaluation = stage.evaluation.every > 0  # what it is measured against
        self.num_tokens = 0
        self.best = -math.inf
        self.experience: Experience | None = None
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def identity(self) -> dict[str, str]:
        """Hashes of what is asked and of what judges it."""
        return {**self.prompts.identity(), **self.judge.identity()}

    # A rollout phase

    def collect(self, number: int) -> Experience:
        """Ask, judge and weigh; every rank has all of it then. Raises what judging raises, on every rank, after what
        was learned so far is saved; and StoppedError on every rank when one was told to stop."""
        mine: dict[int, tuple[list[Rollout], Judged]] = {}
        outcomes: Counter[str] = Counter()
        logged: list[tuple[int, Mapping[str, float]]] = []
        problem: UnmaskError | None = None
        is_stopped = False
        try:
            mine, outcomes, logged = self._collect_share(number)
        except UnmaskError as error:
            problem = error
        except StoppedError:
            is_stopped = True
        if self.rig.any_rank(is_stopped):
            raise StoppedError
        try:
            raise_together(problem, self.world)
        except UnmaskError as error:
            self.experience = None
            raise self.saved(error) from None
        groups: dict[int, tuple[list[Rollout], Judged]] = {}
        for share in gather_objects(mine, self.world):
            groups |= share
        ordered = [groups[place] for place in sorted(groups)]
        if all(total is None for _, judged in ordered for total in judged.totals):
            why = next((judged.problem for _, judged in ordered if judged.problem), "no reward function judged any")
            raise self.saved(SandboxError(f"no answer of a phase could be judged: {why}"))
        rollouts = [rollout for group, _ in ordered for rollout in group]
        everywhere = sum(gather_objects(outcomes, self.world), Counter[str]())
        metrics = _averaged([batch for share in gather_objects(logged, self.world) for batch in share])
        return weigh(number, rollouts, _joined([judged for _, judged in ordered], everywhere, metrics), self.stage)

    def _collect_share(
        self, number: int
    ) -> tuple[dict[int, tuple[list[Rollout], Judged]], Counter[str], list[tuple[int, Mapping[str, float]]]]:
        """This rank's prompts of a phase: place in the phase → its answers and their rewards. And of all batches, those
        of groups that were drawn anew with them, how the programs ended, and what functions logged of how many."""
        stage = self.stage
        size, attempts = stage.rollout.num_generations, 1 + stage.policy.redraws
        model = self._model()
        found: dict[int, tuple[list[Rollout], Judged]] = {}
        outcomes: Counter[str] = Counter()
        logged: list[tuple[int, Mapping[str, float]]] = []
        places = list(range(stage.prompts_per_step))[self.world.rank :: self.world.size]
        for attempt in range(attempts):
            indices = [(number * attempts + attempt) * stage.prompts_per_step + place for place in places]
            with self._timed("rollout"):
                requests = requests_of(self.prompts, indices, num_generations=size)
                answers = self.engine.answers(model, requests, seed=stage.seed, step=number, stops=self.stops)
            with self._timed("reward"):
                judged = self.judge(answers, step=self.step) if answers else Judged(totals=(), by_function={})
            for at, place in enumerate(places):
                here = slice(at * size, (at + 1) * size)
                found[place] = (answers[here], _part(judged, here))
            outcomes.update(judged.outcomes)
            logged.append((len(answers), judged.metrics))
            places = [place for place in places if not _has_spread(found[place][1])]
        return found, outcomes, logged

    def _model(self) -> Model:
        """A copy of the policy for decoding, in the precision in which it will be served."""
        device = self.world.device
        dtype = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
        weights = state.weights_everywhere(self.rig.trainee, dtype=dtype)
        backbone = copied(self.rig.network.backbone, weights).to(device)
        backbone = pack_weights(backbone) if can_pack(backbone) else backbone
        return Model(backbone, self.rig.tokenizer, name=self.stage.name)

    # One optimiser step

    def make_step(self, step: int) -> dict[str, Any]:
        """One inner iteration; what is to be said of it."""
        stage = self.stage
        number, iteration = divmod(step, stage.policy.iterations)
        record: dict[str, Any] = {}
        if self.experience is None or self.experience.number != number:
            self.experience = self.collect(number)
            with self._timed("score"):
                self.learner.score_old(self.experience)
                self._begin_card(self.experience)
            record |= describe(self.experience, group=stage.rollout.num_generations)
            self.num_tokens += sum(len(rollout.answer_ids) for rollout in self.experience.rollouts)
            self.guard.see_reward(
                float(record["reward"]),
                has_spread=bool(self.experience.has_spread_P.any()),
                is_counted=bool(self.experience.is_counted_N.any()),
            )
        with self._timed("update"):
            record |= self.learner.learn(self.experience, step)
        self.guard.see_kl(record.get("kl", 0.0))
        if iteration == stage.policy.iterations - 1:
            self._end_card(self.experience)
            self.experience = None
        return record

    # The loop

    def advance(self, log: MetricsLog | None) -> None:
        started = time.perf_counter()
        record = self.make_step(self.step)
        self.step += 1
        self._log(log, record, time.perf_counter() - started)

    def trouble(self) -> str:
        reason = self.guard.reason
        best = f", and the best weights are in {self.folder / 'best'}" if math.isfinite(self.best) else ""
        return f"{reason}; it is saved{best}" if reason else ""

    def _log(self, log: MetricsLog | None, record: dict[str, Any], seconds: float) -> None:
        record |= {f"time/{name}": value for name, value in self.seconds.items()}
        self.seconds.clear()
        if log is None:
            return
        steps_left = self.stage.steps - self.step
        log.write(
            self.step,
            record
            | {
                "num_tokens": self.num_tokens,
                "step_time": seconds,
                "memory_bytes": peak_memory(self.world.device),
                "eta_seconds": steps_left * seconds,
            },
        )

    def evaluate(self) -> Mapping[str, Any]:
        """pass@1 on the held-out tasks; where it is the best so far, the weights are kept."""
        if not self.has_evaluator:
            return {}
        with self._timed("evaluate"), self.rig.averaged():
            found = self.rig.evaluate(self.evaluator, step=self.step)
        score = gather_objects(found.get("pass_at_1", -math.inf), self.world)[0]
        if score > self.best:
            self.best = score
            self.rig.export("best")
        return found

    def save(self) -> None:
        """A checkpoint; in the middle of the inner iterations with the phase's answers."""
        experience = whole = self.experience
        if experience is not None:
            scores: dict[tuple[int, int], Tensor] = {}
            for share in gather_objects(experience.old_scores, self.world):
                scores |= share
            whole = replace(experience, old_scores=scores)
        meta = state.Meta(
            step=self.step,
            settings=as_record(self.stage),
            architecture=self.rig.architecture,
            data=self.identity(),
            owes_evaluation=self.owes_evaluation,
            notes={"num_tokens": self.num_tokens, "best": self.best if math.isfinite(self.best) else None}
            | {"guard": self.guard.to_json()},
        )
        self.rig.save(
            meta, self.trained, write=None if whole is None else lambda folder: save_experience(folder, whole)
        )

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        meta = self.rig.load(checkpoint, self.trained)
        self.step, self.owes_evaluation = meta.step, meta.owes_evaluation
        self.num_tokens = int(meta.notes["num_tokens"])
        self.best = -math.inf if meta.notes["best"] is None else float(meta.notes["best"])
        self.guard.from_json(meta.notes["guard"])
        self.experience = load_experience(checkpoint, self.prompts, self.stage)

    # What is said and shown

    def _begin_card(self, experience: Experience) -> None:
        """Scores of the group whose rewards differ most, before the phase's first step. All ranks take part, for a
        sharded network answers none alone."""
        if not self.stage.card_every or experience.number % self.stage.card_every:
            return
        first, size = widest_group(experience.reward_N, size=self.stage.rollout.num_generations)
        micro = self._card_micro(experience, range(first, first + size))
        for number, score_L in zip(micro.numbers, self.learner.scores(micro), strict=True):
            experience.old_scores[CARD, number] = score_L.clone()

    def _end_card(self, experience: Experience) -> None:
        """The card, when the phase is over; a resume in the middle of it has the scores of its beginning."""
        numbers = sorted(number for iteration, number in experience.old_scores if iteration == CARD)
        if not numbers:
            return
        micro = self._card_micro(experience, numbers)
        old_BL = torch.stack([experience.old_scores[CARD, number] for number in numbers])
        score_BL = self.learner.scores(micro)
        if not self.world.is_first:
            return
        card = make_card(experience, micro, old_BL, score_BL, stage=self.stage, tokenizer=self.rig.tokenizer)
        folder, name = self.folder / "rollouts", f"phase-{experience.number:06d}"
        try:
            folder.mkdir(exist_ok=True)
            save_rollouts(folder / f"{name}.jsonl", experience.rollouts)
            write_json(folder / f"{name}-card.json", as_record(card))
            if self.write_card is not None:
                self.write_card(folder / name, card)
        except (OSError, TrajectoryError) as error:  # a card is worth no run
            _log.warning("the card of phase %d could not be written: %s", experience.number, error)

    def _card_micro(self, experience: Experience, numbers: Sequence[int]) -> Micro:
        return self.learner.micro(experience, list(numbers), [True] * len(numbers), 0)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


def _part(judged: Judged, here: slice) -> Judged:
    """A slice of what was judged, without the counts of outcomes, which belong to the whole."""
    return Judged(
        totals=judged.totals[here],
        by_function={name: values[here] for name, values in judged.by_function.items()},
        problem=judged.problem,
    )


def _averaged(batches: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Each metric's mean over the answers of the batches that have it.

    >>> _averaged([(3, {"seconds": 1.0}), (1, {"seconds": 5.0, "other": 2.0})])
    {'seconds': 2.0, 'other': 2.0}
    """
    names = dict.fromkeys(name for count, metrics in batches if count for name in metrics)
    having = {
        name: [(count, metrics[name]) for count, metrics in batches if count and name in metrics] for name in names
    }
    return {name: sum(n * v for n, v in pairs) / sum(n for n, _ in pairs) for name, pairs in having.items()}


def _joined(parts: Sequence[Judged], outcomes: Mapping[str, int], metrics: Mapping[str, float]) -> Judged:
    names = list(dict.fromkeys(name for part in parts for name in part.by_function))
    return Judged(
        totals=tuple(total for part in parts for total in part.totals),
        by_function={name: tuple(value for part in parts for value in part.by_function[name]) for name in names},
        outcomes=dict(outcomes),
        metrics=metrics,
    )


def _has_spread(judged: Judged) -> bool:
    return len({total for total in judged.totals if total is not None}) > 1
