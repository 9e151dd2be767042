"""The reference rule: Dream's `diffusion_generate`, token for token, with its quirks.

What it does differently from the exact rule, all of it on purpose here (docs/papers.md names the source):
the number of positions to commit is a batch mean and the same for every row, so a row with fewer masks gets settled
positions overwritten by masks; scores are kept in the network's dtype; the mask id and undefined ids may be drawn; a
mask id inside the prompt is decoded; all steps count even when nothing is left to do; one random stream serves the
whole batch; where a distribution fails torch's check the whole step silently becomes greedy. One thing is not followed:
a row with too few masks may have padding overwritten in the original, which then decodes it; here it stays padding.

The stream is `torch.Generator().manual_seed(seed)`, which on the CPU draws what `torch.manual_seed(seed)` makes the
original draw. The order of tensor operations is the original's, so that equal logits give equal bits.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import constraints

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import Denoiser
from unmask.decode.numerics import check_numbers
from unmask.decode.observe import Runners, best_others
from unmask.decode.settings import DecodeSettings
from unmask.diffusion.schedule import reference_budget, reference_share, reference_times
from unmask.errors import CheckpointError, NumericsError, SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """For each of `places`: the drawn token, its probability, the score that ranks it, the entropy (nats), and the
    runners-up if they are observed. `origin` draws for the places that it takes, the others for every masked one."""

    places: Positions
    token_M: Int[Tensor, " M"]
    confidence_M: Float[Tensor, " M"]
    score_M: Float[Tensor, " M"]
    entropy_M: Float[Tensor, " M"]
    runners: Runners | None = None


class ReferenceRule:
    """Turns a canvas's ids into the ids after one reference step."""

    def __init__(self, canvas: Canvas, denoiser: Denoiser, settings: DecodeSettings, *, runners_up: int = 0) -> None:
        if denoiser.config.mask_id is None:
            raise CheckpointError("the reference mode writes mask ids, and the model names none; give `--mask-id ID`")
        if denoiser.config.attention != "full":
            raise SettingsError(
                f"the reference mode is the sampler of models that see the whole canvas, and this one attends "
                f"{denoiser.config.attention!r}; leave `--mode reference` out"
            )
        self.mask_id = denoiser.config.mask_id
        self.num_steps = settings.steps if settings.steps is not None else settings.max_new_tokens
        self._settings = settings
        self._runners_up = runners_up
        self._times = reference_times(self.num_steps, settings.eps)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._mark(canvas, canvas.ids_BL)

    def apply(
        self, canvas: Canvas, places: Positions, denoiser: Denoiser, index: int
    ) -> tuple[Drawn, Bool[Tensor, " M"], Positions]:
        """Run step `index` on the canvas: what was drawn, which of it was committed, the places re-masked."""
        logits_MV = torch.cat([logits.cpu() for logits in denoiser.logits(canvas, places)])
        if self._settings.policy == "origin":
            ids_BL, drawn = self._origin(canvas, places, logits_MV, index)
        else:
            ids_BL, drawn = self._ranked(canvas, places, logits_MV, index)
        check_numbers(drawn.confidence_M, canvas, drawn.places, index)
        ids_BL = torch.where(_is_real(canvas), ids_BL, canvas.ids_BL)
        is_committed_BL = canvas.is_masked_BL & (ids_BL != self.mask_id)
        is_remasked_BL = ~canvas.is_masked_BL & (ids_BL == self.mask_id)
        canvas.committed_at_BL[is_committed_BL] = index
        is_kept_M = is_committed_BL[drawn.places.rows_M, drawn.places.columns_M]
        self._mark(canvas, ids_BL)
        return drawn, is_kept_M, Positions(*is_remasked_BL.nonzero(as_tuple=True))

    def _mark(self, canvas: Canvas, ids_BL: Int[Tensor, "B L"]) -> None:
        """A position is masked exactly when it holds the mask id."""
        canvas.ids_BL = ids_BL
        canvas.is_masked_BL = (ids_BL == self.mask_id) & _is_real(canvas)
        canvas.is_fixed_BL = canvas.is_fixed_BL & ~canvas.is_masked_BL

    def _origin(
        self, canvas: Canvas, places: Positions, logits_MV: Tensor, index: int
    ) -> tuple[Int[Tensor, "B L"], Drawn]:
        """Each masked position on its own, with probability 1 - s/t; tokens are drawn for those alone."""
        is_taken_M = torch.rand(len(places), generator=self._generator) < reference_share(self._times, index)
        taken = places.where(is_taken_M)
        drawn = self._draw(taken, logits_MV[is_taken_M])
        ids_BL = canvas.ids_BL.clone()
        ids_BL[taken.rows_M, taken.columns_M] = drawn.token_M
        return ids_BL, drawn

    def _ranked(
        self, canvas: Canvas, places: Positions, logits_MV: Tensor, index: int
    ) -> tuple[Int[Tensor, "B L"], Drawn]:
        """The n best of every row of the whole canvas, n from the batch's mean mask count."""
        drawn = self._draw(places, logits_MV)
        n = reference_budget(canvas.is_masked_BL.sum() / canvas.num_rows, self._times, index)
        ids_BL = canvas.ids_BL.clone()
        if n > 0:
            score_BL = torch.full(ids_BL.shape, -torch.inf, dtype=logits_MV.dtype)
            score_BL[places.rows_M, places.columns_M] = drawn.score_M
            column_BN = self._pick(score_BL, n)
            proposed_BL = torch.full_like(ids_BL, self.mask_id)
            proposed_BL[places.rows_M, places.columns_M] = drawn.token_M
            ids_BL.scatter_(1, column_BN, proposed_BL.gather(1, column_BN))
        return ids_BL, drawn

    def _pick(self, score_BL: Float[Tensor, "B L"], n: int) -> Int[Tensor, "B N"]:
        temperature = self._settings.policy_temperature
        if temperature == 0:
            return score_BL.topk(n).indices
        try:
            return torch.multinomial((score_BL / temperature).softmax(-1), n, generator=self._generator)
        except RuntimeError as error:
            raise NumericsError(
                f"the reference mode cannot draw {n} positions at policy temperature {temperature} ({error}); a row "
                "has too few masks left or its scores are not numbers; use `--mode exact`"
            ) from None

    def _draw(self, places: Positions, logits_MV: Float[Tensor, "M V"]) -> Drawn:
        """Dream's `sample_tokens`: shape, draw or take the best, and score, in the dtype of the logits."""
        settings = self._settings
        if settings.temperature > 0:
            logits_MV = logits_MV / settings.temperature
        if settings.top_p is not None and settings.top_p < 1:
            logits_MV = _reference_nucleus(logits_MV, settings.top_p)
        if settings.top_k is not None:
            kth = logits_MV.topk(min(settings.top_k, logits_MV.shape[-1])).values[..., -1, None]
            logits_MV = logits_MV.masked_fill(logits_MV < kth, torch.finfo(logits_MV.dtype).min)
        probability_MV = logits_MV.softmax(-1)
        confidence, token = probability_MV.max(-1) if len(logits_MV) else _nothing(logits_MV)
        normalised = probability_MV / probability_MV.sum(-1, keepdim=True)
        if settings.temperature > 0 and len(logits_MV) and _is_simplex(normalised):
            token = torch.multinomial(normalised, 1, True, generator=self._generator).squeeze(-1)
            confidence = probability_MV.gather(-1, token[:, None]).squeeze(-1)
        score = confidence
        if settings.policy == "topk_margin":
            falling = probability_MV.sort(-1, descending=True).values
            score = falling[:, 0] - falling[:, 1]
        elif settings.policy == "entropy":
            score = (probability_MV * (probability_MV + 1e-10).log()).sum(-1)
        spread = torch.special.entr(probability_MV.float()).sum(-1)
        runners = None
        if self._runners_up:
            others_MK, other_MK = best_others(probability_MV, token, self._runners_up)
            runners = Runners(token_MK=other_MK, probability_MK=others_MK)
        return Drawn(
            places=places, token_M=token, confidence_M=confidence, score_M=score, entropy_M=spread, runners=runners
        )


def _is_real(canvas: Canvas) -> Bool[Tensor, "B L"]:
    columns = torch.arange(canvas.width)[None]
    return (columns >= canvas.start_B[:, None]) & (columns < canvas.end_B[:, None])


def _nothing(logits_MV: Tensor) -> tuple[Tensor, Tensor]:
    return logits_MV.new_zeros(0), torch.zeros(0, dtype=torch.long)


def _reference_nucleus(logits_MV: Float[Tensor, "M V"], top_p: float) -> Float[Tensor, "M V"]:
    """Dream's nucleus: sort, sum in the logits' dtype, drop what lies behind the token that crosses `top_p`."""
    falling, order = logits_MV.sort(-1, descending=True)
    is_behind = falling.softmax(-1).cumsum(-1) > top_p
    is_dropped = torch.cat((torch.zeros_like(is_behind[..., :1]), is_behind[..., :-1]), -1)
    is_dropped = torch.zeros_like(is_dropped).scatter(-1, order, is_dropped)
    return logits_MV.masked_fill(is_dropped, torch.finfo(logits_MV.dtype).min)


def _is_simplex(probability_MV: Float[Tensor, "M V"]) -> bool:
    """The check that `torch.distributions.Categorical` makes, with its tolerance."""
    return bool(constraints.simplex.check(probability_MV).all())  # type: ignore[no-untyped-call]
