"""Scores in bfloat16: what scoring says of an answer is what decoding said while it was written.

An answer is decoded by a copy of the network with bfloat16 weights, as rollouts are, and every step's confidence in
what it committed is kept. The estimator `trajectory` scores each token in the state of its own step, so its scores are
those confidences but for rounding: products are rounded elsewhere under autocast over float32 weights.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.data.task import Task
from unmask.decode.session import Model
from unmask.diffusion.likelihood import Views, draw_views
from unmask.diffusion.rl_settings import Estimator, EstimatorName
from unmask.evaluate.prompts import Rendered
from unmask.model.config import ModelConfig
from unmask.train import scoring
from unmask.train.prompts import PromptItem, Prompts
from unmask.train.rig import copied
from unmask.train.rollout import LocalRollouts, Rollout, RolloutSettings, pack, requests_of
from unmask.train.scoring import log_probs
from unmask.train.step import Sight, Trainee

from checkpoints import END_ID, MASK_ID, SPECIAL, tiny_model

ROOM = 10
MEAN, WORST = 0.06, 0.8
"""Nats by which rounding to bfloat16 may move a score, on average and at most: twice what it does here. What is wrong
moves it by 1 on average, and by 7 and more at most."""

TEXTS = ("f", "g and h", "a longer one of them", "x", "more")
CPU = torch.device("cpu")


class Setting:
    """A network in float32, the answers of its bfloat16 copy, and what that said of their tokens."""

    def __init__(self, *, shift_logits: bool) -> None:
        size = 256 + len(SPECIAL)  # no id without a token, which decoding would leave out and scoring would not
        model = tiny_model(shift_logits=shift_logits, vocab_size=size, end_ids=(END_ID, *range(250, 256)))
        self.config: ModelConfig = model.backbone.config
        self.trainee = Trainee(model.backbone).requires_grad_(True)
        weights = {name: value.to(torch.bfloat16) for name, value in self.trainee.state_dict().items()}
        server = Model(copied(model.backbone, weights), model.tokenizer, name="server")
        assert server.backbone.dtype is torch.bfloat16
        settings = RolloutSettings(num_generations=6, temperature=1.0, temperature_role="content", policy="random")
        requests = requests_of(Prompts(items=tuple(map(item_of, TEXTS)), seed=1), range(5), num_generations=6)
        rollouts = LocalRollouts(settings, max_new_tokens=ROOM).answers(server, requests, seed=3, step=0)
        self.rollouts = [one for one in rollouts if one.wasted_tokens == 0]  # the tail was masked throughout
        assert {one.has_ended for one in self.rollouts} == {True, False}
        self.packed = pack(self.rollouts, mask_id=MASK_ID)
        self.told_BL = torch.zeros(self.packed.ids_BL.shape)
        for row, one in enumerate(self.rollouts):
            for place, logp in confidences(one).items():
                self.told_BL[row, place] = logp

    def views(self, name: EstimatorName = "trajectory") -> Views:
        packed = self.packed
        return draw_views(
            Estimator(name=name),
            packed.is_answer_BL,
            packed.is_prompt_BL,
            torch.arange(len(packed.ids_BL)),
            seed=1,
            step=0,
            iteration=0,
            committed_at_BL=packed.committed_at_BL,
        )

    def scores(self, precision: torch.dtype = torch.bfloat16, **changes: Any) -> Tensor:
        """log p of each answer token in its own step's state."""
        given: dict[str, Any] = {"packed": self.packed, "views": self.views(), "config": self.config, **changes}
        with torch.no_grad():
            return log_probs(self.trainee, precision=precision, device=CPU, **given).sum(0)

    def errors(self, scores_BL: Tensor) -> tuple[float, float]:
        """How far they are off what decoding said, on average and at most."""
        off_M = (scores_BL - self.told_BL)[self.packed.is_answer_BL].abs()
        assert len(off_M) > 100
        return float(off_M.mean()), float(off_M.max())


def item_of(text: str) -> PromptItem:
    rendered = Rendered(kind="completion", text=text, messages=(), prefill="")
    task = Task(task_id=f"t/{text}", prompt=text)
    return PromptItem(source="here", task=task, rendered=rendered, ids=tuple(text.encode()))


def confidences(one: Rollout) -> dict[int, float]:
    """Position → log of the probability with which its token was committed."""
    commits = [commit for step in one.trajectory.steps for commit in step.commits]
    return {commit.position: math.log(commit.confidence) for commit in commits}


@pytest.fixture(scope="module", params=[True, False], ids=["shifted", "unshifted"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(shift_logits=request.param)


def test_scoring_in_bfloat16_says_what_decoding_in_bfloat16_said(setting: Setting) -> None:
    mean, worst = setting.errors(setting.scores())
    assert mean < MEAN
    assert worst < WORST


def without_mask(config: ModelConfig, document_BL: Tensor) -> Sight:
    """Padding is seen."""
    return Sight(kind="full", document_BL=torch.zeros_like(document_BL))


def causal(config: ModelConfig, document_BL: Tensor) -> Sight:
    return Sight(kind="causal", document_BL=document_BL)


@pytest.mark.parametrize("sight_of", [without_mask, causal])
def test_a_wrong_mask_is_far_outside_that_tolerance(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, sight_of: Callable[..., Sight]
) -> None:
    monkeypatch.setattr(scoring, "sight_of", sight_of)
    mean, worst = setting.errors(setting.scores())
    assert mean > 10 * MEAN
    assert worst > 5 * WORST


def one_to_the_left(inputs: Any) -> Any:
    """The answer's tokens are predicted from the state of the position before."""
    return replace(inputs, column_M=(inputs.column_M - 1).clamp(min=0))


def what_is_hidden_one_to_the_right(inputs: Any) -> Any:
    """Hidden tokens have the position of the next one (were all of them moved, nothing would change)."""
    return replace(inputs, positions_BT=inputs.positions_BT + (inputs.ids_BT == MASK_ID).long())


@pytest.mark.parametrize("change", [one_to_the_left, what_is_hidden_one_to_the_right])
def test_a_shifted_position_is_far_outside_that_tolerance(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]
) -> None:
    whole = scoring.lay_out
    monkeypatch.setattr(scoring, "lay_out", lambda *a, **k: change(whole(*a, **k)))
    mean, worst = setting.errors(setting.scores())
    assert mean > 10 * MEAN
    assert worst > 5 * WORST


def test_the_precision_that_is_asked_for_is_the_one_that_scores(setting: Setting) -> None:
    exact_BL, rounded_BL = setting.scores(torch.float32), setting.scores()
    with torch.no_grad():
        setting.trainee.double()
        reference_BL = setting.scores(torch.float32)
        setting.trainee.float()
    assert float((exact_BL - reference_BL).abs().max()) < 1e-4
    off_M = (rounded_BL - reference_BL)[setting.packed.is_answer_BL].abs()
    assert float(off_M.max()) > 1e-2, "products are rounded"
    assert float(off_M.mean()) < MEAN
    assert exact_BL.dtype is rounded_BL.dtype is torch.float32


def test_logits_of_bfloat16_are_normalised_in_float32(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(module: Any, arguments: Any, hidden: Tensor) -> None:
        kept.append((hidden, arguments[0]))

    whole, columns = scoring.lay_out, []
    monkeypatch.setattr(scoring, "lay_out", lambda *a, **k: columns.append(whole(*a, **k)) or columns[-1])
    handle = setting.trainee.backbone.register_forward_hook(keep)
    scores_KBL = log_probs(
        setting.trainee,
        setting.packed,
        setting.views(),
        config=setting.config,
        precision=torch.bfloat16,
        device=CPU,
        keep_graph=False,
    )
    handle.remove()
    ((hidden, _),), (inputs,) = kept, columns
    states_MD = hidden[inputs.row_M, inputs.column_M].bfloat16()
    logits_MV = (states_MD @ setting.trainee.backbone.lm_head.weight.bfloat16().T).double()
    logits_MV[:, MASK_ID] = -torch.inf
    wanted_M = logits_MV.log_softmax(1).gather(1, inputs.target_M[:, None])[:, 0]
    found_M = scores_KBL[scores_KBL != 0]
    assert sorted(found_M.tolist()) == pytest.approx(sorted(wanted_M.tolist()), abs=1e-5)
    assert float((found_M - found_M.bfloat16()).abs().max()) > 1e-3, "a softmax in bfloat16 would be told apart"


@pytest.mark.parametrize("name", ["coupled", "espo", "mean_field", "trajectory", "left_to_right"])
def test_under_autocast_a_forward_with_a_graph_has_the_bits_of_one_without(setting: Setting, name: Any) -> None:
    views = setting.views(name)
    given: dict[str, Any] = {"config": setting.config, "precision": torch.bfloat16, "device": CPU}
    learned, scored = (log_probs(setting.trainee, setting.packed, views, keep_graph=k, **given) for k in (True, False))
    assert learned.requires_grad
    assert not scored.requires_grad
    assert torch.equal(learned.detach(), scored), "so the ratio of the first inner step is exactly 1"
