"""What a network says of given answers: the log-probability of each token in the views of an estimator.

A view hides some tokens of an answer (`diffusion/likelihood.py`). All views of a few answers go through the network as
rows of one batch; what a view does not score is not predicted, and a row of which nothing is scored is left out.

Letters: K views, B answers, L columns, N rows (views of answers), M predicted tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.diffusion.likelihood import Views
from unmask.model.config import ModelConfig
from unmask.train.rollout import Packed
from unmask.train.step import Sight, Trainee, autocast, lay_out, mask_of


@dataclass(frozen=True, kw_only=True)
class Micro:
    """A few answers of a phase, and the views of one inner iteration."""

    numbers: tuple[int, ...]
    """Of the answers in their phase."""

    is_real_B: Bool[Tensor, " B"]
    """False for answers that only fill the batch."""

    packed: Packed
    views: Views

    @property
    def is_counted_BL(self) -> Bool[Tensor, "B L"]:
        """The tokens that are in the loss."""
        return self.packed.is_answer_BL & self.is_real_B[:, None]


def log_probs(
    trainee: Trainee,
    packed: Packed,
    views: Views,
    *,
    config: ModelConfig,
    precision: torch.dtype,
    device: torch.device,
    temperature: float = 1.0,
    keep_graph: bool = True,
) -> Float[Tensor, "K B L"]:
    """log p of the true token wherever a view scores it, in nats, float32, on the CPU; 0 elsewhere.

    Without `keep_graph` there is no gradient. On a CPU the forward is the same nevertheless: in bfloat16 training has
    an attention of its own (`model/attention.py`), and what two kernels round differently would stand in the ratio.
    `temperature` divides the logits: a rollout at temperature T draws from softmax(logits / T), and its policy is
    scored as it was drawn from, but for ids without a token, which decoding never draws and which keep here what the
    network gives them: next to nothing, old scores and new alike.
    """
    is_scored_KBL = views.weight_KBL != 0
    is_needed_KB = is_scored_KBL.any(-1)
    if not is_needed_KB.any():  # few masks may hide nothing; the forward is made all the same, for other ranks wait
        is_needed_KB[0, 0] = True
    view_N, answer_N = is_needed_KB.nonzero(as_tuple=True)
    ids_NL, document_NL = packed.ids_BL[answer_N], packed.document_BL[answer_N]
    is_scored_NL = is_scored_KBL[view_N, answer_N]
    inputs = lay_out(ids_NL, document_NL, views.is_masked_KBL[view_N, answer_N], is_scored_NL, config=config)
    sight = sight_of(config, document_NL).to(device)
    with autocast(device, precision), torch.set_grad_enabled(keep_graph or device.type == "cpu"):
        nll_M: Tensor = trainee(
            inputs.ids_BT.to(device),
            inputs.positions_BT.to(device),
            mask_of(sight, precision),
            inputs.row_M.to(device),
            inputs.column_M.to(device),
            inputs.target_M.to(device),
            temperature,
        )
    logp_M = -nll_M.float().cpu()
    places = (view_N[inputs.row_M], answer_N[inputs.row_M], inputs.place_M)
    return torch.zeros(is_scored_KBL.shape).index_put(places, logp_M if keep_graph else logp_M.detach())


def sight_of(config: ModelConfig, document_BL: Tensor) -> Sight:
    """Who sees whom when answers are scored: as when they were decoded."""
    if config.attention == "block":
        assert config.block_length is not None
        return Sight(kind="block", document_BL=document_BL, block_length=config.block_length)
    return Sight(kind="full", document_BL=document_BL)
