"""One optimiser step from the answers of a phase: scores, ratios, the loss, and what is to be said of it.

A phase's answers are shared among the ranks, each rank's in micro-batches. The first inner iteration compares the
policy with itself, so its ratios are 1; the scores that later ones compare with are taken before the first step, under
the masks that they will be used with.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
from unmask.errors import NumericsError
from unmask.train import state
from unmask.train.ema import Ema
from unmask.train.experience import Experience
from unmask.train.grpo_settings import GrpoStage
from unmask.train.parallel import add_up, gather_objects, loss_scale
from unmask.train.rig import Rig
from unmask.train.rollout import pack
from unmask.train.schedule import lr_factor
from unmask.train.scoring import Micro, log_probs
from unmask.train.step import Trainee

RATIO_TOLERANCE = 1e-3
"""How far the log-ratio may be off 0 at the first inner step, where policy and old policy are one."""

_SUMS = ("loss", "kl", "tokens", "low", "high", "region", "clippable", "spread", "spreads", "masked", "maskable")


class Learner:
    """Moves the policy of a rig."""

    def __init__(self, stage: GrpoStage, rig: Rig[Trainee]) -> None:
        self.stage, self.rig, self.world = stage, rig, rig.world
        self.temperature = stage.policy.score_temperature or _drawn_at(stage)
        self.reference = None
        if stage.policy.beta > 0:
            self.reference = Ema(rig.trainee, decay=1 - stage.policy.sync_share, is_warm=False)

    def learn(self, experience: Experience, step: int) -> dict[str, Any]:
        """One optimiser step; empty where nothing counts."""
        iteration = step % self.stage.policy.iterations
        micros = self.micro_batches(experience, iteration)
        record = self._update(experience, micros, step, iteration) if micros else {}
        every = self.stage.policy.sync_every
        if self.reference is not None and every and (step + 1) % every == 0:
            self.reference.update()
        return record

    def _update(self, experience: Experience, micros: list[Micro], step: int, iteration: int) -> dict[str, Any]:
        world = self.world
        count_3 = add_up(_sum_of(loss_counts(micro.is_counted_BL) for micro in micros).to(world.device), world).cpu()
        references = self._reference_scores(micros)
        self.rig.set_lr(step)
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        extremes = {"low_min": math.inf, "high_max": 0.0, "ratio_max": 0.0, "first": 0.0, "first_share": 0.0}
        for place, micro in enumerate(micros):
            logp_KBL = self.log_probs(micro, keep_graph=True)
            score_BL = token_scores(micro.views, logp_KBL)
            if iteration == 0:
                old_BL = score_BL.detach()
                if place == 0:
                    extremes["first"], extremes["first_share"] = self._off_one(micro, old_BL)
            else:
                old_BL = _old_scores(experience, micro, iteration, width=score_BL.shape[1])
            found, extreme, loss = self._loss(experience, micro, score_BL, old_BL, references[place], count_3)
            (loss * loss_scale(world)).backward()  # type: ignore[no-untyped-call]
            sums += found
            sums += _of_estimator(micro, logp_KBL.detach())
            extremes = _merged([extremes, extreme])
        norm = self.rig.gather_gradients()
        sums = add_up(sums.to(world.device), world).cpu()
        whole = _merged(gather_objects(extremes, world))
        record = dict(zip(_SUMS, sums.tolist(), strict=True))
        if not (math.isfinite(norm) and bool(sums.isfinite().all())):
            self._stop_at_nan(experience, step, norm, record["loss"])
        _check_first(whole, step)
        self.rig.update()
        tokens, clippable = max(record["tokens"], 1.0), max(record["clippable"], 1.0)
        return {
            "loss": record["loss"],
            "grad_norm": norm,
            "lr": lr_factor(self.stage.schedule, step) * self.stage.optimiser.lr,
            **({"kl": record["kl"] / tokens} if self.reference is not None else {}),
            "clip_ratio/low_mean": record["low"] / clippable,
            "clip_ratio/low_min": whole["low_min"] if math.isfinite(whole["low_min"]) else 0.0,
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
            self.micro(experience, numbers[at : at + every], is_real[at : at + every], iteration)
            for at in range(0, len(numbers), every)
        ]

    def micro(self, experience: Experience, numbers: list[int], is_real: list[bool], iteration: int) -> Micro:
        """Some answers under the masks of an inner iteration."""
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

    def log_probs(self, micro: Micro, *, keep_graph: bool) -> Float[Tensor, "K B L"]:
        """Of the answers' tokens in every view."""
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

    def scores(self, micro: Micro) -> Float[Tensor, "B L"]:
        """Each token's score, without a gradient."""
        return token_scores(micro.views, self.log_probs(micro, keep_graph=False))

    def score_old(self, experience: Experience) -> None:
        """The scores of the later inner iterations, while the policy is still the one that wrote the answers."""
        for iteration in range(1, self.stage.policy.iterations):
            for micro in self.micro_batches(experience, iteration):
                score_BL = self.scores(micro)
                for row, number in enumerate(micro.numbers):
                    if micro.is_real_B[row]:
                        experience.old_scores[iteration, number] = score_BL[row].clone()

    def _reference_scores(self, micros: list[Micro]) -> list[Tensor | None]:
        if self.reference is None:
            return [None] * len(micros)
        with self.reference.swapped_in():
            return [self.scores(micro) for micro in micros]

    def _loss(
        self,
        experience: Experience,
        micro: Micro,
        score_BL: Float[Tensor, "B L"],
        old_BL: Float[Tensor, "B L"],
        reference_BL: Float[Tensor, "B L"] | None,
        count_3: Tensor,
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        """Statistics, extremes, and the micro-batch's part of the loss."""
        policy, level, is_counted_BL = self.stage.policy, self.stage.estimator.ratio_level, micro.is_counted_BL
        clipping = {"epsilon": policy.epsilon, "epsilon_high": policy.epsilon_high}
        advantage_B = experience.advantage_N[list(micro.numbers)]
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
            "low_min": float(shares[0]) if clipped[3] > 0 else math.inf,
            "high_max": float(shares[1]),
            "ratio_max": float(ratio_BL.detach().max().exp()),
        }
        return found, extreme, loss

    def _off_one(self, micro: Micro, score_BL: Float[Tensor, "B L"]) -> tuple[float, float]:
        """Policy and old policy are one at the first inner step: asked twice, the network says the same. How far it is
        off that, also as a share of the largest score."""
        error = float((self.scores(micro) - score_BL).abs().max())
        return error, error / max(1.0, float(score_BL.abs().max()))

    def _stop_at_nan(self, experience: Experience, step: int, norm: float, loss: float) -> None:
        asked = sorted({rollout.item.task.task_id for rollout in experience.rollouts})
        checkpoint = state.latest(self.rig.folder / "checkpoints")
        raise NumericsError(
            f"step {step}: the loss is {loss} and the gradient norm {norm}; nothing was updated, "
            + (f"the last checkpoint is {checkpoint}" if checkpoint else "and no checkpoint was written yet")
            + f". The answers were to {', '.join(asked[:4])}{' and others' if len(asked) > 4 else ''}. "
            "Resume with a lower optimiser.lr or clip_norm"
        )


def _old_scores(experience: Experience, micro: Micro, iteration: int, *, width: int) -> Float[Tensor, "B L"]:
    rows = [  # what only fills the batch is never read, and may be an answer of another rank
        experience.old_scores[iteration, number][:width] if is_real else torch.zeros(width)
        for number, is_real in zip(micro.numbers, micro.is_real_B.tolist(), strict=True)
    ]
    out: Tensor = pad_sequence([*rows, torch.zeros(width)], batch_first=True)[:-1]
    return out


def _of_estimator(micro: Micro, logp_KBL: Float[Tensor, "K B L"]) -> Tensor:
    """Sums for the log: the spread of scores, and how much of an answer the views hide that score it."""
    spread_B = spread(micro.views, logp_KBL, micro.packed.is_answer_BL)[micro.is_real_B]
    spread_B = spread_B[spread_B.isfinite()].double()
    is_asked_KB1 = (micro.views.weight_KBL != 0).any(-1, keepdim=True)
    is_maskable_KBL = is_asked_KB1 & micro.is_counted_BL
    hidden = (micro.views.is_masked_KBL & is_maskable_KBL).sum().double()
    out = torch.zeros(len(_SUMS), dtype=torch.float64)
    out[-4:] = torch.stack(
        [spread_B.sum(), torch.tensor(len(spread_B)).double(), hidden, is_maskable_KBL.sum().double()]
    )
    return out


def _check_first(extremes: Mapping[str, float], step: int) -> None:
    """On what all ranks found, so that all of them stop."""
    if not extremes["first_share"] <= RATIO_TOLERANCE:
        raise NumericsError(
            f"step {step}: at the first inner step the ratio of policy and old policy must be 1, and a log-ratio is "
            f"{extremes['first']:.3g}: the network gives different scores to the same answer, so something in it is "
            "random or changes on the way"
        )


def _sum_of(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum(0)


def _drawn_at(stage: GrpoStage) -> float:
    """The temperature of the softmax that a rollout's tokens are drawn from."""
    has_content = stage.rollout.temperature_role in ("both", "content")
    return stage.rollout.temperature if has_content and stage.rollout.temperature > 0 else 1.0


def _merged(extremes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The most of each, the least of what ends in min."""
    names = {name for one in extremes for name in one}
    return {
        name: (min if name.endswith("_min") else max)(one[name] for one in extremes if name in one) for name in names
    }
