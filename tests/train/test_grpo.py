"""Reinforcement learning in small: a random network of two layers learns what a reward function asks for."""

import itertools
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.decode.session import Model
from unmask.diffusion.rl_settings import Estimator
from unmask.errors import (
    CheckpointError,
    NumericsError,
    SandboxError,
    SettingsError,
    TaskError,
    TrajectoryError,
)
from unmask.reward.settings import RewardSettings
from unmask.sandbox.job import Job as Program
from unmask.sandbox.verdict import Verdict
from unmask.text.tokenizer import Tokenizer
from unmask.train import grpo, learner, state
from unmask.train.experience import Experience
from unmask.train.grpo import _Run, train_grpo
from unmask.train.grpo_settings import GrpoStage, GuardSettings, NoSpread, PolicySettings
from unmask.train.metrics import CLOCK, read_metrics
from unmask.train.optimiser import OptimiserSettings
from unmask.train.parallel import Layout, World
from unmask.train.prompts import PromptSettings
from unmask.train.rig import Outcome
from unmask.train.rollout import LocalRollouts, Request, Rollout, RolloutSettings
from unmask.train.schedule import Schedule
from unmask.train.settings import EvaluationSettings, ModelSettings, RunSettings

from training_runs import LORA, SHAPE, assert_same_bits, kill, start, together, wait, weights

REWARDS = '''
from pathlib import Path
import torch

calls = []

def low_ids(completion_ids, **columns):
    """The share of an answer's ids below 100: about 0.4 for a random network."""
    return [sum(i < 100 for i in ids) / max(len(ids), 1) for ids in completion_ids]

def same(completions, **columns):
    return [1.0] * len(completions)

def half_known(completion_ids, **columns):
    """Every other answer cannot be judged."""
    return [float("nan") if n % 2 else reward for n, reward in enumerate(low_ids(completion_ids))]

def all_lost(completions, **columns):
    return [float("nan")] * len(completions)

def out_from_two(completion_ids, trainer_state, **columns):
    """From the second phase on nothing can be judged, as long as there is a file `down`."""
    if trainer_state.global_step >= 2 and Path(__file__).with_name("down").exists():
        return all_lost(completion_ids)
    return low_ids(completion_ids)

def falling(completion_ids, trainer_state, **columns):
    rewards = low_ids(completion_ids)
    return [reward / (1 + trainer_state.global_step) ** 2 for reward in rewards]

def same_at_first(completion_ids, trainer_state, **columns):
    rewards = low_ids(completion_ids)
    return rewards if trainer_state.global_step else [1.0] * len(rewards)

def same_at_one(completion_ids, trainer_state, **columns):
    rewards = low_ids(completion_ids)
    return [1.0] * len(rewards) if trainer_state.global_step == 1 else rewards

def metered(completion_ids, log_metric, **columns):
    log_metric("ids/mean", sum(map(len, completion_ids)) / len(completion_ids))
    return low_ids(completion_ids)

def by_column(completion_ids, level, **columns):
    assert len(level) == len(completion_ids)
    return [low + (each or 0) for low, each in zip(low_ids(completion_ids), level)]

def logged(completion_ids, log_extra, **columns):
    log_extra("sandbox", ["passed"] * len(completion_ids))
    return low_ids(completion_ids)

def flat_on_most(completion_ids, task_id, **columns):
    """Answers are all worth the same but to three tasks: which groups have spread hangs on the task alone."""
    rewards = [reward + (n % 4) / 99 for n, reward in enumerate(low_ids(completion_ids))]
    return [reward if name[-1] in "357" else 0.25 for name, reward in zip(task_id, rewards)]

class Taste(torch.nn.Module):
    """Two layers over ids; how often it was built and called is written down."""

    def __init__(self):
        super().__init__()
        self.embed, self.judge = torch.nn.Embedding(300, 4), torch.nn.Linear(4, 1)
        self.note("built")

    def note(self, what):
        with Path(__file__).with_name("notes").open("a") as file:
            file.write(what + "\\n")

    def forward(self, *, completion_ids, **columns):
        self.note(f"called {self.training} {torch.is_grad_enabled()}")
        return [self.judge(self.embed(torch.tensor(ids)).mean(0)) for ids in completion_ids]

taste = Taste() if Path(__file__).name == "models.py" else None

def breaks_at_four(completion_ids, trainer_state, **columns):
    if trainer_state.global_step >= 4:
        raise RuntimeError("no more today")
    return low_ids(completion_ids)
'''
ENDS = tuple(range(235, 256))
"""With so many end tokens a random network ends about half of its answers, and their lengths differ."""

# An untrained network is nearly as sure of each place as of the next: an order by confidence would hang on rounding.
ROLLOUT = RolloutSettings(num_generations=4, temperature=1.0, policy="random", batch_size=8)
TOLD = {"time/rollout", "time/reward", "time/score", "time/update", "time/evaluate", "step_time"}


class NoSandbox:
    """An executor for rewards that run nothing."""

    name, guarantees, interpreter = "none", (), "Python"

    def judge(self, jobs: Iterable[Program]) -> Iterator[Verdict]:
        for _ in jobs:
            yield Verdict(status="sandbox_error", message="the jail is on fire")

    def call(self, *arguments: Any) -> Any:
        raise AssertionError("nothing is to be called")

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, tasks and rewards."""
    folder = tmp_path_factory.mktemp("rl")
    Tokenizer.byte_level().save(folder / "tokenizer")
    (folder / "rewards.py").write_text(REWARDS)
    with (folder / "tasks.jsonl").open("w") as file:
        for number in range(10):
            file.write(json.dumps(a_task(number)) + "\n")
    return folder


def a_task(number: int) -> dict[str, Any]:
    return {
        "task_id": f"add/{number}",
        "prompt": f"def f{'x' * (number % 4)}(n):\n",
        "entry_point": f"f{'x' * (number % 4)}",
        "tests": [{"input": [i], "output": i + number} for i in range(3)],
    }


def tiny_rl(
    here: Path, *, lora: bool = False, steps: int = 6, reward: str = "low_ids", lr: float = 5e-3, **changes: Any
) -> GrpoStage:
    """A stage on `here`; `changes` replace whole groups of its settings."""
    settings: dict[str, Any] = {
        "name": "rl",
        "model": ModelSettings(
            config=replace(SHAPE, end_ids=ENDS),
            tokenizer=str(here / "tokenizer"),
            attention="full",
            init_mask_row=not lora,
        ),
        "schedule": Schedule(total_steps=steps, warmup_steps=1),
        "optimiser": OptimiserSettings(lr=lr, weight_decay=0.0),
        "lora": LORA if lora else None,
        "prompts": PromptSettings(
            tasks=(str(here / "tasks.jsonl"),), preset="base", max_prompt_tokens=40, max_new_tokens=8
        ),
        "rollout": ROLLOUT,
        "reward": RewardSettings(functions=(f"{here / 'rewards.py'}:{reward}",)),
        "policy": PolicySettings(iterations=2, sync_every=2),
        "prompts_per_step": 4,
        "micro_answers": 4,
        "run": RunSettings(precision="float32", log_every=1, save_every=1, keep=99),
        "evaluation": EvaluationSettings(every=0),
    }
    return GrpoStage(**{**settings, **changes})


def run_alone(stage: GrpoStage, folder: Path, **options: Any) -> Outcome:
    return train_grpo(stage, folder, world=World(), executor=NoSandbox(), quiet=True, **options)


def started(stage: GrpoStage, folder: Path, *, world: World | None = None, **options: Any) -> _Run:
    """A run in progress, for a look inside."""
    given: dict[str, Any] = {"evaluator": None, "engine": None, "write_card": None, "quiet": True, **options}
    return _Run(stage, folder, world=world or World(), executor=NoSandbox(), **given)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock says, and without extremes over micro-batches, which are other ones elsewhere."""
    left_out = CLOCK | TOLD | {"clip_ratio/low_min", "clip_ratio/high_max"}
    return [
        {name: value for name, value in record.items() if name not in left_out}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def assert_close_logs(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = numbers(one), numbers(other)
    assert [set(record) for record in ours] == [set(record) for record in theirs]
    for mine, yours in zip(ours, theirs, strict=True):
        for name, value in mine.items():
            same = value == yours[name] or abs(value - yours[name]) <= tolerance * max(1.0, abs(value))
            assert same, f"step {mine['step']}: {name} {value} {yours[name]}"


# It learns


@pytest.mark.parametrize("name", ["coupled", "coupled_normalised", "mean_field", "espo", "trajectory", "left_to_right"])
def test_the_reward_rises(here: Path, tmp_path: Path, name: Any) -> None:
    lr = 1e-2 if name in ("left_to_right", "trajectory") else 5e-3  # the others' scores weigh or repeat tokens
    stage = tiny_rl(
        here, steps=32, lr=lr, estimator=Estimator(name=name), run=RunSettings(precision="float32", log_every=1)
    )
    assert run_alone(stage, tmp_path / "run").is_done
    rewards = [record["reward"] for record in numbers(tmp_path / "run") if "reward" in record]
    assert len(rewards) == 16
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.07


def test_it_learns_with_adapters_and_leaves_the_base_alone(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, steps=24, lora=True, lr=1e-2, run=RunSettings(precision="float32", log_every=1))
    run = started(stage, tmp_path / "run")
    base = {n: p.clone() for n, p in run.rig.trainee.named_parameters() if not p.requires_grad}
    outcome = run.go(lambda: False)
    assert all(torch.equal(base[n], p) for n, p in run.rig.trainee.named_parameters() if not p.requires_grad)
    rewards = [record["reward"] for record in numbers(tmp_path / "run") if "reward" in record]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05
    assert (outcome.folder.parent / "adapter" / "adapter_config.json").is_file()


# What is minimised


def test_the_first_loss_is_the_obvious_mean_over_all_answer_tokens(here: Path, tmp_path: Path) -> None:
    # At the first inner step every ratio is 1 and the policy is its reference: what is left are the advantages.
    run = started(tiny_rl(here), tmp_path)
    record = run.make_step(0)
    experience = run.experience
    assert experience is not None
    reward_PG = experience.reward_N.view(4, 4)
    advantage_N = (reward_PG - reward_PG.mean(1, keepdim=True)).flatten()
    lengths_N = torch.tensor([len(rollout.answer_ids) for rollout in experience.rollouts])
    assert lengths_N.unique().numel() > 1 or bool((lengths_N == 8).all())
    assert record["loss"] == pytest.approx(-float((advantage_N * lengths_N).sum() / lengths_N.sum()), abs=1e-6)
    assert record["ratio_first_error"] == 0
    assert record["kl"] == 0


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_loss_and_its_gradient_do_not_depend_on_micro_batches(here: Path, tmp_path: Path, loss_type: Any) -> None:
    policy = PolicySettings(iterations=2, sync_every=2, loss_type=loss_type)
    found = []
    for micro_answers in (1, 3, 16):
        run = started(tiny_rl(here, policy=policy, micro_answers=micro_answers), tmp_path)
        records = [run.make_step(step) for step in range(4)]
        found.append([(record["loss"], record["grad_norm"], record["kl"]) for record in records])
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert same == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_each_inner_iteration_has_masks_of_its_own_whatever_the_accumulation(here: Path, tmp_path: Path) -> None:
    # The released code takes the index of the micro-batch for that of the iteration, and so repeats the masks.
    for micro_answers in (2, 8):
        run = started(tiny_rl(here, micro_answers=micro_answers), tmp_path)
        run.experience = run.collect(0)
        masks = []
        for iteration in range(2):
            rows = {}
            for micro in run.learner.micro_batches(run.experience, iteration):
                for row, number in enumerate(micro.numbers):
                    hidden = micro.views.is_masked_KBL[1, row] & micro.packed.is_answer_BL[row]
                    rows[number] = hidden[micro.packed.is_answer_BL[row]].tolist()
            masks.append(rows)
        assert masks[0].keys() == masks[1].keys()
        assert masks[0] != masks[1]


def test_every_step_learns_under_the_masks_of_its_phase_and_iteration(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(tiny_rl(here, micro_answers=3), tmp_path)
    whole, learned_under = learner.log_probs, []

    def seen(trainee: Any, packed: Any, views: Any, **options: Any) -> Any:
        if options["keep_graph"]:
            learned_under.append(views.is_masked_KBL)
        return whole(trainee, packed, views, **options)

    monkeypatch.setattr(learner, "log_probs", seen)
    experience = None
    for step in range(4):
        learned_under.clear()
        run.make_step(step)
        experience = run.experience if step % 2 == 0 else experience  # the phase is over after its second step
        assert experience is not None
        assert experience.number == step // 2
        expected = [micro.views.is_masked_KBL for micro in run.learner.micro_batches(experience, step % 2)]
        assert all(torch.equal(a, b) for a, b in zip(learned_under, expected, strict=True))


def test_old_scores_are_those_of_the_policy_that_wrote_the_answers_under_the_masks_they_are_used_with(
    here: Path, tmp_path: Path
) -> None:
    run = started(tiny_rl(here, optimiser=OptimiserSettings(lr=1e-12, weight_decay=0.0)), tmp_path)
    run.make_step(0)
    # So small a learning rate leaves the policy what it was: the second iteration's ratios are 1 only if masks agree.
    assert run.make_step(1)["ratio_max"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["coupled", "espo"])
def test_in_bfloat16_the_first_ratio_is_exactly_one_and_later_ones_are_where_nothing_was_moved(
    here: Path, tmp_path: Path, name: Any, lora: bool
) -> None:
    stage = tiny_rl(
        here,
        lora=lora,
        estimator=Estimator(name=name),
        micro_answers=3,
        optimiser=OptimiserSettings(lr=1e-30, weight_decay=0.0),
        run=RunSettings(precision="bfloat16", log_every=1),
    )
    run = started(stage, tmp_path)
    assert run.rig.precision is torch.bfloat16
    first, second = run.make_step(0), run.make_step(1)
    assert first["ratio_first_error"] == 0
    assert first["ratio_max"] == 1
    assert second["ratio_max"] == 1, "old scores were taken without a graph, these with one"
    assert second["kl"] == 0
    assert first["grad_norm"] > 0


def test_nothing_touches_the_global_random_numbers(here: Path, tmp_path: Path) -> None:
    run = started(tiny_rl(here), tmp_path)
    torch.manual_seed(7)
    before, ours = torch.get_rng_state(), np.random.get_state()[1].copy()  # Python's own is the type checker's
    run.make_step(0)
    run.make_step(1)
    assert torch.equal(before, torch.get_rng_state())
    assert (ours == np.random.get_state()[1]).all()


def test_scores_are_at_the_temperature_that_the_answers_were_drawn_at(here: Path, tmp_path: Path) -> None:
    warm = started(tiny_rl(here, rollout=replace(ROLLOUT, temperature=2.0)), tmp_path)
    plain = started(tiny_rl(here, rollout=warm.stage.rollout, policy=PolicySettings(score_temperature=1.0)), tmp_path)
    micro = warm.learner.micro_batches(warm.collect(0), 0)[0]
    config, packed = warm.rig.config, micro.packed
    assert config.mask_id is not None
    with torch.no_grad():  # each row alone, in the view that hides the whole answer
        for row, is_answer_L in enumerate(packed.is_answer_BL):
            ids_L, place_M = packed.ids_BL[row], is_answer_L.nonzero()[:, 0]
            is_row_L = packed.document_BL[row] == 0
            hidden_L = ids_L.masked_fill(micro.views.is_masked_KBL[0, row], config.mask_id)[is_row_L]
            states_LD = warm.rig.network.backbone(hidden_L[None], torch.arange(len(hidden_L))[None])[0]
            logits_LV = states_LD @ warm.rig.network.backbone.lm_head.weight.T
            logits_LV[:, config.mask_id] = -torch.inf
            logits_MV = logits_LV[place_M - 1 if config.shift_logits else place_M]
            for run, temperature in ((warm, 2.0), (plain, 1.0)):
                expected_MV = (logits_MV / temperature).log_softmax(1)
                found_M = run.learner.log_probs(micro, keep_graph=False)[0, row, place_M]
                assert torch.allclose(found_M, expected_MV.gather(1, ids_L[place_M][:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("role", "temperature", "drawn_at"), [("both", 1.2, 1.2), ("content", 1.2, 1.2), ("order", 1.2, 1.0)]
)
def test_a_temperature_that_does_not_draw_tokens_does_not_score_them(
    here: Path, tmp_path: Path, role: Any, temperature: float, drawn_at: float
) -> None:
    rollout = replace(ROLLOUT, temperature=temperature, temperature_role=role)
    assert started(tiny_rl(here, rollout=rollout), tmp_path).learner.temperature == drawn_at


def test_an_answer_that_cannot_be_judged_leaves_its_group(here: Path, tmp_path: Path) -> None:
    run = started(tiny_rl(here, reward="half_known"), tmp_path)
    record = run.make_step(0)
    assert run.experience is not None
    assert record["dropped"] == 8
    assert run.experience.is_counted_N.view(4, 4)[:, 1::2].sum() == 0
    assert run.experience.advantage_N.view(4, 4).sum(1).abs().max() < 1e-6


def test_the_reference_follows_the_policy_at_its_own_pace(here: Path, tmp_path: Path) -> None:
    policy = PolicySettings(iterations=1, sync_every=2, sync_share=1.0, beta=0.01)
    run = started(tiny_rl(here, policy=policy), tmp_path)
    distances = [run.make_step(step)["kl"] for step in range(4)]
    assert distances[0] == 0
    assert distances[1] > 0
    assert distances[2] == 0  # synchronised after two steps
    assert distances[3] > 0


def test_the_reference_follows_at_a_step_that_has_nothing_to_learn_from(here: Path, tmp_path: Path) -> None:
    policy = PolicySettings(iterations=1, sync_every=2, sync_share=1.0)
    run = started(tiny_rl(here, policy=policy, reward="same_at_one"), tmp_path)
    run.make_step(0)
    run.step = 1
    assert "loss" not in run.make_step(1)
    run.step = 2
    assert run.make_step(2)["kl"] == 0


def test_the_reference_of_new_adapters_is_the_base(here: Path, tmp_path: Path) -> None:
    policy = PolicySettings(iterations=1, sync_every=0)
    run = started(tiny_rl(here, lora=True, policy=policy), tmp_path)
    assert run.learner.reference is not None
    before = {name: value.clone() for name, value in run.learner.reference.state_dict()["averages"].items()}
    assert all(bool((value == 0).all()) for name, value in before.items() if "lora_B" in name)
    for step in range(3):
        run.make_step(step)
    after = run.learner.reference.state_dict()["averages"]
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_answers_that_never_end_can_be_left_out(here: Path, tmp_path: Path) -> None:
    run = started(tiny_rl(here, policy=PolicySettings(mask_truncated=True)), tmp_path)
    record = run.make_step(0)
    assert run.experience is not None
    has_ended_N = torch.tensor([rollout.has_ended for rollout in run.experience.rollouts])
    assert has_ended_N.any()
    assert not has_ended_N.all()
    assert not (run.experience.is_counted_N & ~has_ended_N).any()
    assert record["completions/clipped_ratio"] == pytest.approx(1 - float(has_ended_N.double().mean()))


def test_masks_that_hide_nothing_teach_nothing_and_break_nothing(here: Path, tmp_path: Path) -> None:
    estimator = Estimator(name="elbo", t_min=1e-9, t_max=2e-9)
    run = started(tiny_rl(here, estimator=estimator, micro_answers=1), tmp_path)
    record = run.make_step(0)
    assert record["masked_fraction"] == 0
    assert record["grad_norm"] == 0


# Groups without spread


def test_groups_without_spread_are_left_out_and_nothing_is_moved(here: Path, tmp_path: Path) -> None:
    run = started(tiny_rl(here, reward="same"), tmp_path)
    before = [p.clone() for p in run.rig.trainee.parameters()]
    record = run.make_step(0)
    assert record["frac_reward_zero_std"] == 1
    assert "loss" not in record
    assert all(torch.equal(a, b) for a, b in zip(before, run.rig.trainee.parameters(), strict=True))


def test_a_run_that_has_nothing_to_learn_from_stops_and_says_so(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, reward="same", steps=40, policy=PolicySettings(iterations=2, patience=3))
    with pytest.raises(NumericsError, match=r"step 5: 3 rollouts in a row had no group with spread.*rollout.temper"):
        run_alone(stage, tmp_path / "run")
    assert state.latest(tmp_path / "run" / "checkpoints") is not None


class Stubborn(LocalRollouts):
    """Answers the first prompt of a phase always in the same way."""

    def __init__(self, stage: GrpoStage) -> None:
        super().__init__(stage.rollout, max_new_tokens=stage.prompts.max_new_tokens)
        self.asked: list[int] = []

    def answers(
        self,
        model: Model,
        requests: Sequence[Request],
        *,
        seed: int,
        step: int,
        stops: Callable[[], bool] = lambda: False,
    ) -> list[Rollout]:
        self.asked += [request.index for request in requests if request.generation == 0]
        found = super().answers(model, requests, seed=seed, step=step, stops=stops)
        first = next((one for one in found if one.index < 4), None)
        return [
            replace(one, answer_ids=first.answer_ids, committed_at=first.committed_at, text=first.text)
            if first is not None and one.index == first.index
            else one
            for one in found
        ]


def test_another_prompt_is_drawn_for_a_group_without_spread(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, policy=PolicySettings(no_spread="redraw", redraws=2))
    engine = Stubborn(stage)
    run = started(stage, tmp_path, engine=engine)
    experience = run.collect(0)
    assert engine.asked == [0, 1, 2, 3, 4]  # the place of prompt 0 is asked anew with prompt 4
    assert [experience.rollouts[place].index for place in (0, 4, 8, 12)] == [4, 1, 2, 3]
    assert bool(experience.has_spread_P.all())


def obvious_draw(run: _Run, number: int) -> list[int]:
    """Which prompts a phase ends with: each place goes through its prompts until one has spread, or none is left."""
    size, attempts = run.stage.prompts_per_step, 1 + run.stage.policy.redraws
    chosen = []
    for place in range(size):
        indices = [(number * attempts + attempt) * size + place for attempt in range(attempts)]
        found = (index for index in indices if run.prompts.at(index).task.task_id[-1] in "357")
        chosen.append(next(found, indices[-1]))
    return chosen


def phases_of(run: _Run) -> list[dict[str, Any]]:
    """What the phases of a run hold, once it is over."""
    phases: list[dict[str, Any]] = []
    whole = run.collect

    def collect(number: int) -> Experience:
        experience = whole(number)
        phases.append(
            {
                "indices": [rollout.index for rollout in experience.rollouts],
                "answers": [list(rollout.answer_ids) for rollout in experience.rollouts],
                "totals": list(experience.judged.totals),
                "advantages": experience.advantage_N.tolist(),
                "has_spread": experience.has_spread_P.tolist(),
                "is_counted": experience.is_counted_N.tolist(),
            }
        )
        return experience

    run.collect = collect  # type: ignore[method-assign]
    assert run.go(lambda: False).is_done
    return phases


def redraw_on_each(who: World, stage: GrpoStage, folder: Path) -> None:
    run = started(stage, folder / "two", world=replace(who, layout="fsdp"))
    (folder / f"{who.rank}.json").write_text(json.dumps(phases_of(run)))


def test_two_processes_redraw_the_groups_that_one_does(here: Path, tmp_path: Path) -> None:
    policy = PolicySettings(iterations=2, sync_every=2, no_spread="redraw", redraws=2)
    # so small a learning rate that rounding on two ranks leads to no other answer
    stage = tiny_rl(here, reward="flat_on_most", policy=policy, prompts_per_step=5, lr=1e-4)
    (tmp_path / "two").mkdir()
    together(redraw_on_each, stage, tmp_path)
    (tmp_path / "one").mkdir()
    run = started(stage, tmp_path / "one")
    phases = phases_of(run)
    chosen = [obvious_draw(run, number) for number in range(3)]
    assert [phase["indices"] for phase in phases] == [[i for i in indices for _ in range(4)] for indices in chosen]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [phases, phases]
    assert_close_logs(tmp_path / "one", tmp_path / "two", 5e-6)
    for first_place in (0, 1):  # of both ranks
        attempts = {index // 5 % 3 for indices in chosen for index in indices[first_place::2]}
        has_spread = {spread for phase in phases for spread in phase["has_spread"][first_place::2]}
        assert attempts == {0, 1, 2}, "some places have spread at once, some late"
        assert has_spread == {False, True}, "and some never"


def test_programs_of_groups_that_were_drawn_anew_are_counted(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, reward="logged", policy=PolicySettings(no_spread="redraw", redraws=2))
    run = started(stage, tmp_path, engine=Stubborn(stage))
    assert run.make_step(0)["sandbox/passed"] == 16 + 4


def test_what_functions_log_of_a_batch_is_logged(here: Path, tmp_path: Path) -> None:
    run_alone(tiny_rl(here, reward="metered", steps=2), tmp_path / "run")
    (record,) = (record for record in numbers(tmp_path / "run") if "ids/mean" in record)
    assert record["ids/mean"] == pytest.approx(record["completions/mean_length"])


def test_a_reward_function_gets_the_columns_of_its_tasks(here: Path, tmp_path: Path) -> None:
    tasks = [a_task(number) | ({"columns": {"level": number}} if number < 8 else {}) for number in range(10)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    prompts = replace(tiny_rl(here).prompts, tasks=(str(tmp_path / "tasks.jsonl"),))
    run = started(tiny_rl(here, reward="by_column", prompts=prompts), tmp_path / "run")
    experience = run.collect(0)
    for rollout, reward in zip(experience.rollouts, experience.judged.totals, strict=True):
        level = int(rollout.item.task.task_id.rpartition("/")[2])
        assert reward is not None
        assert level % 8 * (level < 8) <= reward <= level % 8 * (level < 8) + 1
    plain = started(tiny_rl(here), tmp_path / "plain")
    assert set(run.prompts.identity().values()).isdisjoint(plain.prompts.identity().values())


# Layouts and resumption


def train_jobs(who: World, jobs: Sequence[tuple[GrpoStage, Path, str, bool]]) -> None:
    for stage, folder, layout, resume in jobs:
        train_grpo(
            stage,
            folder,
            world=replace(who, layout=layout),  # type: ignore[arg-type]
            executor=NoSandbox(),
            resume=resume,
            quiet=True,
        )


def test_two_processes_learn_what_one_does(here: Path, tmp_path: Path) -> None:
    jobs = []
    for lora in (False, True):
        stage = tiny_rl(here, lora=lora, steps=3, micro_answers=3, lr=2e-3)
        run_alone(stage, tmp_path / f"one-{lora}")
        jobs += [(stage, tmp_path / f"{layout}-{lora}", layout, False) for layout in ("fsdp", "ddp")]
    half = tiny_rl(here, steps=3, micro_answers=3, lr=2e-3)  # two go on with what one had in the middle of a phase
    cut_to(tmp_path / "one-False", tmp_path / "from-one", step=1)
    together(train_jobs, [*jobs, (half, tmp_path / "from-one", "fsdp", True)])
    for lora in (False, True):
        one = weights(tmp_path / f"one-{lora}")
        for layout in ("fsdp", "ddp"):
            assert_close_logs(tmp_path / f"one-{lora}", tmp_path / f"{layout}-{lora}", 5e-6)
            two = weights(tmp_path / f"{layout}-{lora}")
            assert one.keys() == two.keys()
            for name, value in one.items():
                torch.testing.assert_close(value, two[name], atol=1e-5, rtol=0)
    phase = next(record for record in numbers(tmp_path / "one-False") if "completions/max_length" in record)
    assert phase["completions/min_length"] < phase["completions/max_length"], "or ranks would have as many tokens"
    assert_close_logs(tmp_path / "one-False", tmp_path / "from-one", 5e-6)
    cut_to(tmp_path / "fsdp-False", tmp_path / "from-two", step=1)
    run_alone(half, tmp_path / "from-two", resume=True)
    assert_close_logs(tmp_path / "one-False", tmp_path / "from-two", 5e-6)


def test_a_rank_without_answers_resumes_from_fewer_ranks(here: Path, tmp_path: Path) -> None:
    run = started(tiny_rl(here), tmp_path)
    run.experience = experience = run.collect(0)
    experience.is_counted_N[:] = False
    experience.is_counted_N[4:8] = True
    run.learner.score_old(experience)  # as one process saves it: of the answers that count
    run.learner.world = World(rank=6, size=8)
    (micro,) = run.learner.micro_batches(experience, 1)
    assert micro.is_real_B.tolist() == [False]
    width = micro.packed.ids_BL.shape[1]
    assert learner._old_scores(experience, micro, 1, width=width).tolist() == [[0.0] * width]


class Broken:
    """An evaluator whose sandbox is down at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, backbone: Any, tokenizer: Any, *, step: int, folder: Path) -> dict[str, float]:
        if step == self.step:
            raise SandboxError("the jail is on fire")
        return {"pass_at_1": 0.5}


def fail_on_one_rank(who: World, stage: GrpoStage, folder: Path) -> None:
    who = replace(who, layout="ddp")
    evaluator = Broken(2) if who.is_first else None
    with pytest.raises(SandboxError, match=r"on fire \(step 2 is saved"):
        train_grpo(stage, folder / "a", world=who, executor=NoSandbox(), evaluator=evaluator, quiet=True)
    whole = learner.log_probs

    calls = itertools.count()

    def noisy(*arguments: Any, **options: Any) -> Any:
        return whole(*arguments, **options) + 0.1 * next(calls)

    if not who.is_first:
        learner.log_probs = noisy
    with pytest.raises(NumericsError, match=r"step 0: at the first inner step the ratio .* must be 1"):
        train_grpo(stage, folder / "b", world=who, executor=NoSandbox(), quiet=True)


def test_what_fails_on_one_rank_ends_all(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, steps=4, evaluation=EvaluationSettings(every=2))
    together(fail_on_one_rank, stage, tmp_path)


def test_an_evaluation_that_fails_loses_no_step_and_is_made_at_the_resume(here: Path, tmp_path: Path) -> None:
    run_settings = RunSettings(precision="float32", log_every=1, save_every=50)
    stage = tiny_rl(here, steps=4, evaluation=EvaluationSettings(every=2), run=run_settings)
    with pytest.raises(SandboxError, match=r"on fire .step 2 is saved; go on with --resume"):
        run_alone(stage, tmp_path / "run", evaluator=Broken(2))
    marks = Marks(0.1, 0.5)
    assert run_alone(stage, tmp_path / "run", evaluator=marks, resume=True).is_done
    assert marks.seen == [2, 4]


def cut_to(folder: Path, copy: Path, *, step: int) -> None:
    """A copy of a run as it was after a step."""
    shutil.copytree(folder, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(copy / "final")


def train_till_killed(who: World, stage: GrpoStage, folder: Path) -> None:
    whole = _Run.make_step

    def make_step(self: _Run, step: int) -> Any:
        if step == stage.steps - 1:
            time.sleep(300)
        return whole(self, step)

    _Run.make_step = make_step  # type: ignore[method-assign]
    train_grpo(stage, folder, world=who, executor=NoSandbox(), quiet=True)


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_killed_between_inner_iterations_ends_at_the_same_bits(here: Path, tmp_path: Path, lora: bool) -> None:
    stage = tiny_rl(here, lora=lora, steps=6, policy=PolicySettings(iterations=3, sync_every=2), ema=0.9)
    run_alone(stage, tmp_path / "whole")
    processes = start(train_till_killed, stage, tmp_path / "killed")
    kill(processes, tmp_path / "killed", step=5)
    for process in processes:
        wait(process)
    checkpoint = state.latest(tmp_path / "killed" / "checkpoints")
    assert checkpoint is not None
    assert state.read_meta(checkpoint).step % 3 != 0, "the checkpoint stands between two inner iterations"
    run_alone(stage, tmp_path / "killed", resume=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert_close_logs(tmp_path / "whole", tmp_path / "killed", 0.0)


class Signalled(LocalRollouts):
    """Answers a phase with a SIGTERM at one of its forward passes."""

    def __init__(self, stage: GrpoStage, *, phase: int) -> None:
        super().__init__(stage.rollout, max_new_tokens=stage.prompts.max_new_tokens)
        self.phase = phase

    def answers(
        self,
        model: Model,
        requests: Sequence[Request],
        *,
        seed: int,
        step: int,
        stops: Callable[[], bool] = lambda: False,
    ) -> list[Rollout]:
        passes = itertools.count()

        def looked() -> bool:
            if step == self.phase:
                done = next(passes)
                assert done <= 5, "it goes on answering"
                if done == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
            return stops()

        return super().answers(model, requests, seed=seed, step=step, stops=looked)


def train_till_signalled(who: World, stage: GrpoStage, folder: Path, layout: Layout = "none") -> None:
    """The run, whose last rank is told to stop among the answers of the second phase."""
    engine = Signalled(stage, phase=1) if who.rank == who.size - 1 else None
    world = replace(who, layout=layout)
    outcome = train_grpo(stage, folder, world=world, executor=NoSandbox(), engine=engine, quiet=True)
    assert (outcome.is_done, outcome.step) == (False, 3)


def test_a_run_told_to_stop_among_its_answers_stops_there_and_ends_at_the_same_bits(here: Path, tmp_path: Path) -> None:
    run_settings = RunSettings(precision="float32", log_every=1, save_every=50)
    stage = tiny_rl(here, steps=6, policy=PolicySettings(iterations=3), run=run_settings)
    whole, told = tmp_path / "whole", tmp_path / "told"
    run_alone(stage, whole)
    train_till_signalled(World(), stage, told)
    run_alone(stage, told, resume=True)
    assert_same_bits(whole, told)
    assert_close_logs(whole, told, 0.0)


def test_all_ranks_stop_where_one_is_told_to_among_its_answers(here: Path, tmp_path: Path) -> None:
    run_settings = RunSettings(precision="float32", log_every=1, save_every=50)
    stage = tiny_rl(here, steps=6, policy=PolicySettings(iterations=3), run=run_settings)
    whole, told = tmp_path / "whole", tmp_path / "told"
    together(train_till_signalled, stage, told, "fsdp")
    together(train_jobs, [(stage, whole, "fsdp", False), (stage, told, "fsdp", True)])
    assert_same_bits(whole, told)
    assert_close_logs(whole, told, 0.0)


STUCK_IN = 2
"""The step that is never finished: the last inner iteration of the first phase."""


def train_till_stuck(who: World, stage: GrpoStage, folder: Path, layout: Layout) -> None:
    """The run, whose last rank stops for ever between two micro-batches of a step; the other waits for it."""
    whole_step, whole_loss, steps = _Run.make_step, learner.Learner._loss, [-1]
    seen = itertools.count()

    def make_step(self: _Run, step: int) -> Any:
        steps.append(step)
        return whole_step(self, step)

    def loss(self: Any, *arguments: Any) -> Any:
        if steps[-1] == STUCK_IN and who.rank == who.size - 1 and next(seen) == 1:
            (folder / "stuck").touch()
            time.sleep(300)
        return whole_loss(self, *arguments)

    _Run.make_step, learner.Learner._loss = make_step, loss  # type: ignore[method-assign]
    train_grpo(stage, folder, world=replace(who, layout=layout), executor=NoSandbox(), quiet=True)


@pytest.mark.parametrize(("layout", "lora"), [("fsdp", False), ("ddp", True)])
def test_two_processes_killed_inside_an_inner_iteration_end_at_the_same_bits(
    here: Path, tmp_path: Path, layout: Layout, lora: bool
) -> None:
    policy = PolicySettings(iterations=3, sync_every=2)
    stage = tiny_rl(here, lora=lora, steps=4, policy=policy, ema=0.9)  # after the resume, a phase begins
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes = start(train_till_stuck, stage, killed, layout, size=2)
    stop = time.monotonic() + 60
    while not (killed / "stuck").exists():
        assert time.monotonic() < stop, "the run never came to its third step"
        assert all(process.is_alive() for process in processes), "the run was over before it could be stopped"
        time.sleep(0.01)
    kill(processes, killed, step=STUCK_IN)
    assert [wait(process) for process in processes] == [-signal.SIGKILL] * 2
    checkpoint = state.latest(killed / "checkpoints")
    assert checkpoint is not None
    assert state.read_meta(checkpoint).step == STUCK_IN
    assert (checkpoint / "old_scores.safetensors").is_file(), "it stands between two inner iterations"
    together(train_jobs, [(stage, whole, layout, False), (stage, killed, layout, True)])
    assert_same_bits(whole, killed)
    assert_close_logs(whole, killed, 0.0)


# Reward models


def test_a_reward_model_is_built_once_for_a_run_and_called_in_evaluation_without_gradients(
    here: Path, tmp_path: Path
) -> None:
    (tmp_path / "models.py").write_text(REWARDS)
    stage = replace(tiny_rl(here, steps=6), reward=RewardSettings(functions=(f"{tmp_path / 'models.py'}:taste*3.0",)))
    assert run_alone(stage, tmp_path / "run").is_done
    notes = (tmp_path / "notes").read_text().splitlines()
    assert notes == ["built", *["called False False"] * 3]
    logged = [record for record in numbers(tmp_path / "run") if "reward" in record]
    assert [record["reward"] for record in logged] == pytest.approx([3 * r["rewards/taste/mean"] for r in logged])
    assert all(record["frac_reward_zero_std"] < 1 for record in logged)


# What goes wrong


def test_a_reward_function_that_raises_ends_the_run_with_its_steps_saved(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, reward="breaks_at_four", run=RunSettings(precision="float32", log_every=1, save_every=50))
    with pytest.raises(SettingsError, match=r"breaks_at_four raised RuntimeError: no more today.*step 4 is saved"):
        run_alone(stage, tmp_path / "run")
    checkpoint = state.latest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert state.read_meta(checkpoint).step == 4


def test_a_sandbox_that_is_down_ends_the_run_and_scores_nothing_as_wrong(here: Path, tmp_path: Path) -> None:
    stage = replace(tiny_rl(here), reward=RewardSettings(functions=(f"{here / 'rewards.py'}:all_lost",)))
    with pytest.raises(
        SandboxError, match=r"no answer of a phase could be judged: none of the 16 answers .*step 0 is saved"
    ):
        run_alone(stage, tmp_path / "run")


def test_an_outage_in_a_later_phase_loses_no_step(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, reward="out_from_two", run=RunSettings(precision="float32", log_every=1, save_every=50))
    run_alone(stage, tmp_path / "whole")
    (here / "down").touch()
    try:
        with pytest.raises(SandboxError, match=r"no answer of a phase could be judged: .*step 2 is saved"):
            run_alone(stage, tmp_path / "stopped")
    finally:
        (here / "down").unlink()
    assert run_alone(stage, tmp_path / "stopped", resume=True).is_done
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")


def test_tasks_without_tests_are_refused(here: Path, tmp_path: Path) -> None:
    bare = a_task(1)
    del bare["tests"]
    (tmp_path / "bare.jsonl").write_text(json.dumps(bare) + "\n")
    prompts = replace(tiny_rl(here).prompts, tasks=(str(tmp_path / "bare.jsonl"),))
    with pytest.raises(TaskError, match="no tests"):
        run_alone(tiny_rl(here, prompts=prompts), tmp_path / "run")


def test_tasks_that_are_learned_from_measure_nothing(here: Path) -> None:
    tasks = str(here / "tasks.jsonl")
    with pytest.raises(SettingsError, match=r"prompts.tasks and evaluation.tasks both name .*tasks.jsonl"):
        tiny_rl(here, evaluation=EvaluationSettings(every=1, tasks=tasks))


def test_a_part_of_them_or_the_same_with_more_tests_measures_nothing_either(here: Path) -> None:
    prompts = tiny_rl(here).prompts
    for learnt, measured in (("humaneval:100", "humaneval"), ("mbpp", "mbpp+"), ("synthetic-hard-train:5-9",) * 2):
        with pytest.raises(SettingsError, match=r"prompts.tasks and evaluation.tasks both name"):
            tiny_rl(here, prompts=replace(prompts, tasks=(learnt,)), evaluation=EvaluationSettings(tasks=measured))
    tiny_rl(here, prompts=replace(prompts, tasks=("mbpp",)), evaluation=EvaluationSettings(tasks="humaneval"))


def test_a_resume_with_other_rewards_is_refused(here: Path, tmp_path: Path) -> None:
    shutil.copy(here / "rewards.py", tmp_path / "rewards.py")
    stage = replace(tiny_rl(here, steps=2), reward=RewardSettings(functions=(f"{tmp_path / 'rewards.py'}:low_ids",)))
    run_alone(stage, tmp_path / "run")
    (tmp_path / "rewards.py").write_text(REWARDS + "# changed\n")
    with pytest.raises(CheckpointError, match=r"made with other data; the tasks or rewards of .*rewards.py have been"):
        run_alone(stage, tmp_path / "run", resume=True)


def test_groups_of_one_are_refused(here: Path) -> None:
    rollout = RolloutSettings(num_generations=1, temperature=1.0)
    with pytest.raises(SettingsError, match="leave_one_out compares each answer with the others of its group"):
        tiny_rl(here, rollout=rollout, policy=PolicySettings(baseline="leave_one_out"))


@pytest.mark.parametrize("no_spread", ["filter", "keep"])
def test_rollouts_without_spread_stop_the_run(here: Path, tmp_path: Path, no_spread: NoSpread) -> None:
    stage = tiny_rl(here, reward="same", steps=30, policy=PolicySettings(patience=2, no_spread=no_spread))
    with pytest.raises(NumericsError, match="2 rollouts in a row had no group with spread"):
        run_alone(stage, tmp_path / "run")


def test_answers_that_never_end_are_named_as_what_stops_the_run(here: Path, tmp_path: Path) -> None:
    run = started(tiny_rl(here, policy=PolicySettings(patience=1, mask_truncated=True)), tmp_path)
    collect = run.collect

    def endless(number: int) -> Experience:
        found = collect(number)
        found.is_counted_N[:] = False
        return found

    run.collect = endless
    run.make_step(0)
    assert "they never end; raise prompts.max_new_tokens" in run.trouble()


def test_a_collapse_of_the_reward_stops_the_run(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, reward="falling", steps=30, guard=GuardSettings(window=2, reward_drop=0.5))
    with pytest.raises(NumericsError, match=r"the reward fell to .* the mean of 2 rollouts.*; it is saved$"):
        run_alone(stage, tmp_path / "run")
    assert len(numbers(tmp_path / "run")) < 30


def test_an_explosion_of_the_kl_stops_the_run(here: Path, tmp_path: Path) -> None:
    policy = PolicySettings(iterations=2, sync_every=0)
    stage = tiny_rl(here, policy=policy, guard=GuardSettings(max_kl=1e-9), evaluation=EvaluationSettings(every=9))
    told = r"step 2: the KL from the reference is .* above guard.max_kl=1e-09.*the best weights are in .*run/best$"
    with pytest.raises(NumericsError, match=told):
        run_alone(stage, tmp_path / "run", evaluator=Marks(0.5))
    assert (tmp_path / "run" / "best" / "config.json").is_file()
    # Guards may be moved at a resume: they decide when a run stops, not what it learns.
    assert run_alone(replace(stage, guard=GuardSettings()), tmp_path / "run", resume=True).is_done


def test_a_network_that_answers_differently_each_time_is_found_out(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(tiny_rl(here), tmp_path)
    whole = learner.log_probs

    calls = itertools.count()

    def noisy(*arguments: Any, **options: Any) -> Any:
        return whole(*arguments, **options) + 0.1 * next(calls)

    monkeypatch.setattr(learner, "log_probs", noisy)
    with pytest.raises(NumericsError, match=r"step 0: at the first inner step the ratio .* must be 1"):
        run.make_step(0)


def test_a_loss_that_is_no_number_stops_before_the_update(here: Path, tmp_path: Path) -> None:
    run = started(tiny_rl(here), tmp_path)
    run.experience = run.collect(0)
    run.learner.score_old(run.experience)
    run.experience.advantage_N[3] = math.nan
    before = [p.clone() for p in run.rig.trainee.parameters()]
    with pytest.raises(NumericsError, match=r"step 0: the loss is nan .* no checkpoint was written yet.*add/"):
        run.make_step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, run.rig.trainee.parameters(), strict=True))


@pytest.mark.parametrize("name", ["rollouts.jsonl", "rewards.json", "old_scores.safetensors"])
def test_a_damaged_file_of_a_phase_is_told(here: Path, tmp_path: Path, name: str) -> None:
    stage = tiny_rl(here, steps=1)
    run_alone(stage, tmp_path / "run")
    checkpoint = state.latest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    (checkpoint / name).write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"is damaged .* the one before it is resumed from"):
        started(stage, tmp_path / "run").load(checkpoint)


def test_a_phase_that_cannot_be_written_leaves_the_checkpoint_before_it(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise TrajectoryError("could not write rollouts.jsonl (no space left)")

    run = started(tiny_rl(here), tmp_path)
    run.save()
    run.make_step(0)
    run.step = 1
    monkeypatch.setattr(grpo, "save_experience", full)
    with pytest.raises(CheckpointError, match=r"could not be written .*no space left.* step-00000000 before it stays"):
        run.save()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000000"]


def test_words_that_are_no_choice_are_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"policy\.loss_type=dappo is not known; did you mean dapo"):
        PolicySettings(loss_type="dappo")  # type: ignore[arg-type]


def test_a_resume_with_other_tasks_is_refused(here: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    shutil.copy(here / "tasks.jsonl", tasks)
    stage = tiny_rl(here, prompts=replace(tiny_rl(here).prompts, tasks=(str(tasks),)), steps=2)
    run_alone(stage, tmp_path / "run")
    tasks.write_text("\n".join(json.dumps(a_task(number + 1)) for number in range(10)))
    with pytest.raises(
        CheckpointError, match=r"made with other data; the tasks or rewards of .*tasks.jsonl have been built"
    ):
        run_alone(stage, tmp_path / "run", resume=True)


# What is left for a reader


def test_a_card_shows_a_group_with_masks_scores_and_advantages(here: Path, tmp_path: Path) -> None:
    cards = []
    stage = tiny_rl(here, steps=2, card_every=1)
    run_alone(stage, tmp_path / "run", write_card=lambda path, card: cards.append((path, card)))
    ((path, card),) = cards
    assert path.name == "phase-000000"
    assert len(card.answers) == 4
    assert sum(answer.advantage for answer in card.answers) == pytest.approx(0, abs=1e-6)
    for answer in card.answers:
        everything, one, other = answer.is_masked
        assert all(everything)
        assert all(a != b for a, b in zip(one, other, strict=True)), "the two masks are each other's complement"
        assert len(answer.pieces) == len(answer.scores) == len(answer.old_scores) == len(one)
        assert answer.scores != answer.old_scores
    assert (tmp_path / "run" / "rollouts" / "phase-000000.jsonl").is_file()


def test_a_card_survives_a_resume_in_the_middle_of_its_phase(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, steps=2, card_every=1)
    cards = []
    run_alone(stage, tmp_path / "run", write_card=lambda path, card: cards.append(card))
    cut_to(tmp_path / "run", tmp_path / "cut", step=1)
    run_alone(stage, tmp_path / "cut", resume=True, write_card=lambda path, card: cards.append(card))
    one, two = cards
    assert one == two


def test_a_phase_without_spread_has_a_card_of_its_own(here: Path, tmp_path: Path) -> None:
    cards = []
    stage = tiny_rl(here, steps=4, card_every=2, reward="same_at_first")
    run_alone(stage, tmp_path / "run", write_card=lambda path, card: cards.append((path.name, card)))
    ((name, card),) = cards
    assert (name, card.phase) == ("phase-000000", 0)
    assert all(answer.scores == answer.old_scores for answer in card.answers), "nothing was learned"


class Marks:
    """An evaluator whose scores are given."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.seen: list[int] = []

    def __call__(self, backbone: Any, tokenizer: Any, *, step: int, folder: Path) -> dict[str, float]:
        self.seen.append(step)
        return {"pass_at_1": self.scores.pop(0)}


def test_the_best_weights_by_heldout_score_are_kept(here: Path, tmp_path: Path) -> None:
    stage = tiny_rl(here, steps=4, evaluation=EvaluationSettings(every=2))
    marks = Marks(0.1, 0.5, 0.3)
    run_alone(stage, tmp_path / "run", evaluator=marks)
    assert marks.seen == [0, 2, 4]
    best = {name: value.clone() for name, value in weights_in(tmp_path / "run" / "best").items()}
    cut_to(tmp_path / "run", tmp_path / "cut", step=2)
    run = started(stage, tmp_path / "cut")
    checkpoint = state.latest(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None
    run.load(checkpoint)
    assert run.best == 0.5
    found = dict(run.rig.trainee.backbone.named_parameters())
    assert all(torch.equal(best[name], found[name].detach()) for name in best if name in found)
    assert any(not torch.equal(value, weights(tmp_path / "run")[name]) for name, value in best.items())


def weights_in(folder: Path) -> Any:
    from unmask.model.checkpoint import load_folder

    return load_folder(folder, dtype=torch.float32, device=torch.device("cpu")).state_dict()
