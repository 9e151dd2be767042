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

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unmask.decode.session import Model
from unmask.diffusion.likelihood import draw_views, spread, token_scores
from unmask.diffusion.policy_gradient import (
    clip_counts,
    clip_masks,
    clipped_objective,
    kl_penalty,
    log_ratio,
    loss_counts,
    loss_weights,
)
from unmask.errors import NumericsError, UnmaskError
from unmask.model.packed import can_pack, multiplies_bfloat16
from unmask.model.packed import pack as pack_weights
from unmask.sandbox.job import Executor
from unmask.train import state
from unmask.train.card import CardWriter, make_card
from unmask.train.checks import check_data, checkpoint_to_resume
from unmask.train.ema import Ema
from unmask.train.experience import Experience, Judged, load_experience, save_experience, weigh
from unmask.train.grpo_settings import GrpoStage
from unmask.train.guard import Guard
from unmask.train.judge import RewardJudge
from unmask.train.metrics import ConsoleSink, MetricsLog, open_sinks, peak_memory
from unmask.train.parallel import World, add_up, gather_objects, loss_scale, wait_for_all
from unmask.train.prompts import open_prompts
from unmask.train.rig import Evaluator, Outcome, Rig, copied, terminated, write_json
from unmask.train.rollout import (
    LocalRollouts,
    Rollout,
    RolloutEngine,
    measure,
    pack,
    requests_of,
    save_rollouts,
    summary,
)
from unmask.train.schedule import lr_factor
from unmask.train.scoring import Micro, log_probs
from unmask.train.settings import as_record

RATIO_TOLERANCE = 1e-3
"""How far the log-ratio may be off 0 at the first inner step, where policy and old policy are one."""


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
        check_data(checkpoint, run.prompts.identity(), what="tasks")
        run.load(checkpoint)
    if world.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "settings.json", as_record(stage))
    wait_for_all(world)
    with terminated() as is_terminated:
        return run.go(is_terminated)


_SUMS = ("loss", "kl", "tokens", "low", "high", "region", "clippable", "spread", "spreads", "masked", "maskable")


class _Run:
    """A stage in progress."""

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
        self.stage, self.folder, self.world = stage, folder, world
        self.evaluator, self.write_card, self.quiet = evaluator, write_card, quiet
        self.judge = RewardJudge(stage.reward, executor)
        self.has_evaluator = any(gather_objects(evaluator is not None, world))
        self.rig = Rig(stage, folder, kind="diffusion", world=world)
        backbone = self.rig.network.backbone
        asked = Model(backbone, self.rig.tokenizer, name=self.rig.network.source)
        self.prompts = open_prompts(stage.prompts, asked, seed=stage.seed, executor=executor)
        self.engine = engine or LocalRollouts(stage.rollout, max_new_tokens=stage.prompts.max_new_tokens)
        self.reference = None
        if stage.policy.beta > 0:
            self.reference = Ema(self.rig.trainee, decay=1 - stage.policy.sync_share, is_warm=False)
        self.trained = self.rig.trained({"reference": self.reference} if self.reference is not None else None)
        self.guard = Guard(stage.guard, patience=stage.policy.patience)
        self.temperature = stage.policy.score_temperature or _drawn_at(stage)
        self.step = 0
        self.num_tokens = 0
        self.best = -math.inf
        self.experience: Experience | None = None
        self.card: tuple[Micro, Tensor] | None = None
        self.owes_evaluation = False
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.last: Mapping[str, Any] = {}

    # A rollout phase

    def collect(self, number: int) -> Experience:
        """Ask, judge and weigh; every rank has all of it then. Raises what judging raises, on every rank, after what
        was learned so far is saved."""
        mine: dict[int, tuple[list[Rollout], Judged]] = {}
        problem: UnmaskError | None = None
        try:
            mine = self._collect_share(number)
        except UnmaskError as error:
            problem = error
        problems = [found for found in gather_objects(problem, self.world) if found is not None]
        if problems:
            self.experience = None
            self.save()
            raise type(problems[0])(f"{problems[0]} (step {self.step} is saved; go on with --resume)") from None
        groups: dict[int, tuple[list[Rollout], Judged]] = {}
        for share in gather_objects(mine, self.world):
            groups |= share
        ordered = [groups[place] for place in sorted(groups)]
        rollouts = [rollout for group, _ in ordered for rollout in group]
        return weigh(number, rollouts, _joined([judged for _, judged in ordered]), self.stage)

    def _collect_share(self, number: int) -> dict[int, tuple[list[Rollout], Judged]]:
        """This rank's prompts of a phase: place in the phase → its answers and their rewards."""
        stage = self.stage
        size, attempts = stage.rollout.num_generations, 1 + stage.policy.redraws
        model = self._model()
        found: dict[int, tuple[list[Rollout], Judged]] = {}
        places = list(range(stage.prompts_per_step))[self.world.rank :: self.world.size]
        for attempt in range(attempts):
            indices = [(number * attempts + attempt) * stage.prompts_per_step + place for place in places]
            with self._timed("rollout"):
                requests = requests_of(self.prompts, indices, num_generations=size)
                answers = self.engine.answers(model, requests, seed=stage.seed, step=number)
            with self._timed("reward"):
                judged = self.judge(answers, step=self.step) if answers else Judged(totals=(), by_function={})
            for at, place in enumerate(places):
                here = slice(at * size, (at + 1) * size)
                found[place] = (answers[here], _part(judged, here, is_first=at == 0))
            places = [place for place in places if not _has_spread(found[place][1])]
        return found

    def _model(self) -> Model:
        """A copy of the policy for decoding, in the precision in which it will be served."""
        backbone = copied(self.rig.network.backbone, state.weights_everywhere(self.rig.trainee)).to(self.world.device)
        if multiplies_bfloat16(backbone.device):
            backbone = backbone.to(torch.bfloat16)
        return Model(
            pack_weights(backbone) if can_pack(backbone) else backbone, self.rig.tokenizer, name=self.stage.name
        )

    # One optimiser step

    def make_step(self, step: int) -> dict[str, Any]:
        """One inner iteration; what is to be said of it."""
        stage = self.stage
        number, iteration = divmod(step, stage.policy.iterations)
        record: dict[str, Any] = {}
        if self.experience is None or self.experience.number != number:
            self.experience = self.collect(number)
            with self._timed("score"):
                self._score_old(self.experience)
                self._begin_card(self.experience)
            record |= self._describe(self.experience)
            self.guard.see_reward(float(record["reward"]), has_spread=bool(self.experience.is_counted_N.any()))
        micros = self.micro_batches(self.experience, iteration)
        if not micros:
            return record
        with self._timed("update"):
            record |= self._update(micros, step, iteration)
        if iteration == stage.policy.iterations - 1:
            self._end_card(self.experience)
        return record

    def _update(self, micros: list[Micro], step: int, iteration: int) -> dict[str, Any]:
        assert self.experience is not None
        policy, world = self.stage.policy, self.world
        count_3 = add_up(sum_of(loss_counts(micro.is_counted_BL) for micro in micros).to(world.device), world).cpu()
        references = self._reference_scores(micros)
        self.rig.set_lr(step)
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        extremes = {"low_min": math.inf, "high_max": 0.0, "ratio_max": 0.0, "first": 0.0}
        for place, micro in enumerate(micros):
            logp_KBL = self._log_probs(micro, keep_graph=True)
            score_BL = token_scores(micro.views, logp_KBL)
            if iteration == 0:
                old_BL = score_BL.detach()
                if place == 0:
                    extremes["first"] = self._check_first(micro, old_BL, step)
            else:
                old_BL = self._old_scores(micro, iteration, width=score_BL.shape[1])
            found, extreme, loss = self._loss(micro, score_BL, old_BL, references[place], count_3)
            (loss * loss_scale(world)).backward()  # type: ignore[no-untyped-call]
            sums += found
            sums += self._of_estimator(micro, logp_KBL.detach())
            extremes["low_min"] = min(extremes["low_min"], extreme["low"])
            extremes["high_max"] = max(extremes["high_max"], extreme["high"])
            extremes["ratio_max"] = max(extremes["ratio_max"], extreme["ratio"])
        norm = self.rig.gather_gradients()
        sums = add_up(sums.to(world.device), world).cpu()
        whole = _merged(gather_objects(extremes, world))
        record = dict(zip(_SUMS, sums.tolist(), strict=True))
        if not (math.isfinite(norm) and bool(sums.isfinite().all())):
            self._stop_at_nan(step, norm, record["loss"])
        self.rig.update()
        if self.reference is not None and policy.sync_every and (step + 1) % policy.sync_every == 0:
            self.reference.update()
        tokens, clippable = max(record["tokens"], 1.0), max(record["clippable"], 1.0)
        self.guard.see_kl(record["kl"] / tokens)
        return {
            "loss": record["loss"],
            "grad_norm": norm,
            "lr": lr_factor(self.stage.schedule, step) * self.stage.optimiser.lr,
            **({"kl": record["kl"] / tokens} if self.reference is not None else {}),
            "clip_ratio/low_mean": record["low"] / clippable,
            "clip_ratio/low_min": whole["low_min"],
            "clip_ratio/high_mean": record["high"] / clippable,
            "clip_ratio/high_max": whole["high_max"],
            "clip_ratio/region_mean": record["region"] / clippable,
            "ratio_max": whole["ratio_max"],
            **({"ratio_first_error": whole["first"]} if iteration == 0 else {}),
            "masked_fraction": record["masked"] / max(record["maskable"], 1.0),
            "estimator_spread": record["spread"] / record["spreads"] if record["spreads"] else None,
        }

    def micro_batches(self, experience: Experience, iteration: int) -> list[Micro]:
        """This rank's answers of a phase in micro-batches, as many as every rank has."""
        mine = experience.rows_of_rank(rank=self.world.rank, size=self.world.size)
        short = experience.num_rows(size=self.world.size) - len(mine)
        numbers = [*mine, *[mine[0] if mine else 0] * short]
        is_real = [True] * len(mine) + [False] * short
        every = self.stage.micro_answers
        return [
            self._micro(experience, numbers[at : at + every], is_real[at : at + every], iteration)
            for at in range(0, len(numbers), every)
        ]

    def _micro(self, experience: Experience, numbers: list[int], is_real: list[bool], iteration: int) -> Micro:
        chosen = [experience.rollouts[number] for number in numbers]
        packed = pack(chosen, mask_id=self.rig.config.mask_id, tail=self.stage.rollout.tail)
        views = draw_views(
            self.stage.estimator,
            packed.is_answer_BL,
            packed.is_prompt_BL,
            torch.tensor(numbers),
            seed=self.stage.seed,
            step=experience.number,
            iteration=iteration,
            committed_at_BL=packed.committed_at_BL,
        )
        return Micro(numbers=tuple(numbers), is_real_B=torch.tensor(is_real), packed=packed, views=views)

    def _log_probs(self, micro: Micro, *, keep_graph: bool) -> Float[Tensor, "K B L"]:
        return log_probs(
            self.rig.trainee,
            micro.packed,
            micro.views,
            config=self.rig.config,
            precision=self.rig.precision,
            device=self.world.device,
            temperature=self.temperature,
            keep_graph=keep_graph,
        )

    def _scores(self, micro: Micro) -> Float[Tensor, "B L"]:
        return token_scores(micro.views, self._log_probs(micro, keep_graph=False))

    def _score_old(self, experience: Experience) -> None:
        """The scores of the later inner iterations, while the policy is still the one that wrote the answers."""
        for iteration in range(1, self.stage.policy.iterations):
            for micro in self.micro_batches(experience, iteration):
                score_BL = self._scores(micro)
                for row, number in enumerate(micro.numbers):
                    experience.old_scores[iteration, number] = score_BL[row].clone()

    def _old_scores(self, micro: Micro, iteration: int, *, width: int) -> Float[Tensor, "B L"]:
        assert self.experience is not None
        rows = [self.experience.old_scores[iteration, number][:width] for number in micro.numbers]
        out: Tensor = pad_sequence([*rows, torch.zeros(width)], batch_first=True)[:-1]
        return out

    def _reference_scores(self, micros: list[Micro]) -> list[Tensor | None]:
        if self.reference is None:
            return [None] * len(micros)
        with self.reference.swapped_in():
            return [self._scores(micro) for micro in micros]

    def _loss(
        self,
        micro: Micro,
        score_BL: Float[Tensor, "B L"],
        old_BL: Float[Tensor, "B L"],
        reference_BL: Float[Tensor, "B L"] | None,
        count_3: Tensor,
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        """Statistics, extremes, and the micro-batch's part of the loss."""
        assert self.experience is not None
        policy, level, is_counted_BL = self.stage.policy, self.stage.estimator.ratio_level, micro.is_counted_BL
        clipping = {"epsilon": policy.epsilon, "epsilon_high": policy.epsilon_high}
        advantage_B = self.experience.advantage_N[list(micro.numbers)]
        ratio_BL = log_ratio(score_BL, old_BL, is_counted_BL, level=level)
        objective_BL = clipped_objective(ratio_BL, advantage_B, **clipping, delta=policy.delta)  # type: ignore[arg-type]
        weight_BL = loss_weights(
            policy.loss_type, is_counted_BL, count_3, max_new_tokens=self.stage.prompts.max_new_tokens
        )
        loss = -(weight_BL * objective_BL).sum()
        kl_BL = torch.zeros_like(score_BL)
        if reference_BL is not None:
            kl_BL = kl_penalty(score_BL, reference_BL, is_counted_BL, estimator=policy.kl, level=level)
            loss = loss + policy.beta * (weight_BL * kl_BL).sum()
        low_BL, high_BL = clip_masks(ratio_BL, advantage_B, **clipping)  # type: ignore[arg-type]
        clipped = clip_counts(low_BL, high_BL, is_counted_BL, level=level).double()
        found = torch.zeros(len(_SUMS), dtype=torch.float64)
        found[: len(_SUMS) - 4] = torch.cat(
            [
                torch.stack([loss.detach().double(), (kl_BL.detach() * is_counted_BL).sum().double()]),
                is_counted_BL.sum().double()[None],
                clipped,
            ]
        )
        shares = clipped / clipped[3].clamp(min=1)
        extreme = {
            "low": float(shares[0]) if clipped[3] > 0 else math.inf,
            "high": float(shares[1]),
            "ratio": float(ratio_BL.detach().max().exp()),
        }
        return found, extreme, loss

    def _of_estimator(self, micro: Micro, logp_KBL: Float[Tensor, "K B L"]) -> Tensor:
        """Sums for the log: the spread of scores, and how much of an answer views hide."""
        spread_B = spread(micro.views, logp_KBL, micro.packed.is_answer_BL)[micro.is_real_B]
        spread_B = spread_B[spread_B.isfinite()].double()
        is_masked_KBL = micro.views.is_masked_KBL & micro.is_counted_BL
        out = torch.zeros(len(_SUMS), dtype=torch.float64)
        hidden = is_masked_KBL.sum().double()
        maskable = micro.is_counted_BL.sum().double() * len(is_masked_KBL)
        out[-4:] = torch.stack([spread_B.sum(), torch.tensor(len(spread_B)).double(), hidden, maskable])
        return out

    def _check_first(self, micro: Micro, score_BL: Float[Tensor, "B L"], step: int) -> float:
        """Policy and old policy are one at the first inner step: asked twice, the network says the same."""
        again_BL = self._scores(micro)
        error = float((again_BL - score_BL).abs().max())
        if not error <= RATIO_TOLERANCE * max(1.0, float(score_BL.abs().max())):
            raise NumericsError(
                f"step {step}: at the first inner step the ratio of policy and old policy must be 1, and a log-ratio "
                f"is {error:.3g}: the network gives different scores to the same answer, so something in it is random "
                "or changes on the way"
            )
        return error

    def _stop_at_nan(self, step: int, norm: float, loss: float) -> None:
        assert self.experience is not None
        asked = sorted({rollout.item.task.task_id for rollout in self.experience.rollouts})
        checkpoint = state.latest(self.folder / "checkpoints")
        raise NumericsError(
            f"step {step}: the loss is {loss} and the gradient norm {norm}; nothing was updated, "
            + (f"the last checkpoint is {checkpoint}" if checkpoint else "and no checkpoint was written yet")
            + f". The answers were to {', '.join(asked[:4])}{' and others' if len(asked) > 4 else ''}. "
            "Resume with a lower optimiser.lr or clip_norm"
        )

    # The loop

    def go(self, is_terminated: Callable[[], bool]) -> Outcome:
        """Every step that is left; on the first rank with a log."""
        if not self.world.is_first:
            return self._go(None, is_terminated)
        stage = self.stage
        sinks = open_sinks(
            stage.run.sinks,
            folder=self.folder,
            run=f"{self.folder.parent.name}-{stage.name}",
            settings=as_record(stage),
            first_step=self.step,
        )
        console = [] if self.quiet else [ConsoleSink(total_steps=stage.steps)]
        log = MetricsLog(self.folder / "metrics.jsonl", first_step=self.step, sinks=[*console, *sinks])
        try:
            return self._go(log, is_terminated)
        finally:
            log.close()

    def _go(self, log: MetricsLog | None, is_terminated: Callable[[], bool]) -> Outcome:
        stage = self.stage
        if self.step == 0 and stage.evaluation.every > 0:
            self._evaluate(log)  # what it is measured against
        if self.owes_evaluation:
            self._evaluate(log)
        while self.step < stage.steps:
            started = time.perf_counter()
            record = self.make_step(self.step)
            self.step += 1
            self._log(log, record, time.perf_counter() - started)
            is_last, every = self.step == stage.steps, stage.evaluation.every
            reason = self.guard.reason
            stops = self.rig.any_rank(is_terminated())
            self.owes_evaluation = is_last or (every > 0 and self.step % every == 0)
            if self.owes_evaluation and not stops:
                self._evaluate(log)
                stops = self.rig.any_rank(is_terminated())
            if is_last or stops or reason or self.step % stage.run.save_every == 0:
                self.save()
            if reason:
                raise NumericsError(
                    f"step {self.step}: {reason}; it is saved, and the best weights are in {self._best}"
                )
            if stops and not is_last:
                return Outcome(folder=self.folder, step=self.step, is_done=False, last=self.last)
        self.rig.export()
        return Outcome(folder=self.folder / "final", step=self.step, is_done=True, last=self.last)

    @property
    def _best(self) -> Path:
        return self.folder / "best"

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

    def _evaluate(self, log: MetricsLog | None) -> None:
        self.owes_evaluation = False
        if not self.has_evaluator:
            return
        with self._timed("evaluate"), self.rig.averaged():
            self.last = self.rig.evaluate(self.evaluator, step=self.step)
        score = gather_objects(self.last.get("pass_at_1", -math.inf), self.world)[0]
        if score > self.best:
            self.best = score
            self.rig.export("best")
        if log is not None and self.last:
            log.write(self.step, dict(self.last))

    def save(self) -> None:
        """A checkpoint; in the middle of the inner iterations with the phase's answers."""
        experience = self.experience
        if experience is not None and self.step % self.stage.policy.iterations == 0:
            experience = None
        whole = experience
        if experience is not None:
            scores: dict[tuple[int, int], Tensor] = {}
            for share in gather_objects(experience.old_scores, self.world):
                scores |= share
            whole = replace(experience, old_scores=scores)
        meta = state.Meta(
            step=self.step,
            settings=as_record(self.stage),
            architecture=self.rig.architecture,
            data=self.prompts.identity(),
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

    def _describe(self, experience: Experience) -> dict[str, Any]:
        """The records of a phase."""
        groups = self.stage.rollout.num_generations
        self.num_tokens += sum(len(rollout.answer_ids) for rollout in experience.rollouts)
        entropies = [
            commit.entropy
            for rollout in experience.rollouts
            for step in rollout.trajectory.steps
            for commit in step.commits
        ]
        mean, deviation = _moments(experience.judged.totals, groups)
        record: dict[str, Any] = {"reward": mean, "reward_std": deviation}
        for name, values in experience.judged.by_function.items():
            record[f"rewards/{name}/mean"], record[f"rewards/{name}/std"] = _moments(values, groups)
        record["frac_reward_zero_std"] = 1 - float(experience.has_spread_P.double().mean())
        record["dropped"] = sum(total is None for total in experience.judged.totals)
        record |= summary([measure(rollout) for rollout in experience.rollouts])
        record["entropy"] = sum(entropies) / len(entropies) if entropies else None
        return record | {f"sandbox/{status}": count for status, count in sorted(experience.judged.outcomes.items())}

    def _begin_card(self, experience: Experience) -> None:
        """Scores of the group whose rewards differ most, before the phase's first step. All ranks take part, for a
        sharded network answers none alone."""
        if not self.stage.card_every or experience.number % self.stage.card_every:
            return
        groups = experience.reward_N.nan_to_num().view(-1, self.stage.rollout.num_generations)
        size = groups.shape[1]
        first = int((groups.amax(1) - groups.amin(1)).argmax()) * size
        micro = self._micro(experience, list(range(first, first + size)), [True] * size, 0)
        self.card = (micro, self._scores(micro))

    def _end_card(self, experience: Experience) -> None:
        """The card, when the phase has moved the policy."""
        if self.card is None:
            return
        (micro, old_BL), self.card = self.card, None
        score_BL = self._scores(micro)
        if not self.world.is_first:
            return
        card = make_card(experience, micro, old_BL, score_BL, stage=self.stage, tokenizer=self.rig.tokenizer)
        folder = self.folder / "rollouts"
        folder.mkdir(exist_ok=True)
        name = f"phase-{experience.number:06d}"
        save_rollouts(folder / f"{name}.jsonl", experience.rollouts)
        write_json(folder / f"{name}-card.json", as_record(card))
        if self.write_card is not None:
            self.write_card(folder / name, card)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


def sum_of(values: Iterator[Tensor] | Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(values)).sum(0)


def _drawn_at(stage: GrpoStage) -> float:
    """The temperature of the softmax that a rollout's tokens are drawn from."""
    has_content = stage.rollout.temperature_role in ("both", "content")
    return stage.rollout.temperature if has_content and stage.rollout.temperature > 0 else 1.0


def _part(judged: Judged, here: slice, *, is_first: bool) -> Judged:
    """A slice of what was judged; the counts of outcomes, which belong to the whole, go with the first."""
    return Judged(
        totals=judged.totals[here],
        by_function={name: values[here] for name, values in judged.by_function.items()},
        outcomes=judged.outcomes if is_first else {},
    )


def _joined(parts: Sequence[Judged]) -> Judged:
    names = list(dict.fromkeys(name for part in parts for name in part.by_function))
    outcomes: Counter[str] = Counter()
    for part in parts:
        outcomes.update(part.outcomes)
    return Judged(
        totals=tuple(total for part in parts for total in part.totals),
        by_function={name: tuple(value for part in parts for value in part.by_function[name]) for name in names},
        outcomes=dict(outcomes),
    )


def _has_spread(judged: Judged) -> bool:
    return len({total for total in judged.totals if total is not None}) > 1


def _moments(values: Sequence[float | None], group: int) -> tuple[float, float]:
    """The mean of all, and the mean over groups of their standard deviations (TRL's reward_std); None is left out."""
    known = [value for value in values if value is not None]
    deviations = []
    for at in range(0, len(values), group):
        inside = torch.tensor([value for value in values[at : at + group] if value is not None], dtype=torch.float64)
        if len(inside) > 1:
            deviations.append(float(inside.std()))
    mean = sum(known) / len(known) if known else math.nan
    return mean, sum(deviations) / len(deviations) if deviations else math.nan


def _merged(extremes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    out = {name: max(one[name] for one in extremes) for name in ("high_max", "ratio_max", "first")}
    least = min(one["low_min"] for one in extremes)
    return out | {"low_min": least if math.isfinite(least) else 0.0}
