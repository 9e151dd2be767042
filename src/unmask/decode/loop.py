"""`denoise`: the only loop.

    while something is open:
        which places to ask about      rule
        logits there                   denoiser
        tokens, confidences, scores    shaping (diffusion/)
        which of them to commit        policy
        commit, tell, stop             canvas, StepEvent, stop

Generation, infilling, chat, autoregressive decoding (a causal model with blocks of one), rollouts and replays of a run
from its middle are all this loop on different canvases.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import Denoiser
from unmask.decode.exact import ExactRule
from unmask.decode.numerics import check_numbers
from unmask.decode.reference import ReferenceRule
from unmask.decode.settings import DecodeSettings
from unmask.decode.stop import answer_end, open_places_BL
from unmask.trajectory import Commit, StepEvent


def denoise(
    denoiser: Denoiser,
    canvas: Canvas,
    settings: DecodeSettings,
    *,
    end_ids: Collection[int] = (),
    suppressed_ids: Collection[int] = (),
    samples: Sequence[int] | None = None,
    first_step: int = 0,
) -> Iterator[StepEvent]:
    """Fill the canvas in place, one StepEvent per step.

    `end_ids` end an answer. `suppressed_ids` are never committed (exact mode), the mask id is always among them.
    `samples` names each row's stream of random numbers; two rows with the same prompt and sample come out the same.
    `first_step` continues a run whose first steps are on the canvas already.

    The reference mode has one random stream and no stop, so of the keyword arguments it uses none.

    Raises NumericsError when the network returns NaN, SettingsError when settings and model do not go together.
    """
    if settings.mode == "reference":
        return _reference_steps(denoiser, canvas, settings)
    return _exact_steps(
        denoiser,
        canvas,
        ExactRule(
            canvas,
            denoiser,
            settings,
            is_suppressed_V=suppression_mask(denoiser, suppressed_ids),
            end_ids=end_ids,
            samples=range(canvas.num_rows) if samples is None else samples,
        ),
        end_ids,
        first_step,
    )


def _exact_steps(
    denoiser: Denoiser, canvas: Canvas, rule: ExactRule, end_ids: Collection[int], step: int
) -> Iterator[StepEvent]:
    while (places := rule.open_places(canvas, step)) is not None:
        was_open_B = open_places_BL(canvas, answer_end(canvas, end_ids)).any(-1)
        meter = _Meter(denoiser)
        commits: tuple[Commit, ...] = ()
        if len(places):
            proposal, is_kept_M = rule.decide(canvas, places, denoiser, step)
            check_numbers(proposal.confidence_M, canvas, places, step)
            kept = places.where(is_kept_M)
            token_M = proposal.token_M[is_kept_M]
            canvas.commit(kept, token_M, step=step)
            commits = _commits(canvas, kept, token_M, proposal.confidence_M[is_kept_M], proposal.entropy_M[is_kept_M])
        is_open_B = open_places_BL(canvas, answer_end(canvas, end_ids)).any(-1)
        yield StepEvent(
            step=step,
            active=tuple(was_open_B.nonzero().flatten().tolist()),
            asked=tuple(places.rows_M.unique_consecutive().tolist()),  # type: ignore[no-untyped-call]
            commits=commits,
            finished=tuple((was_open_B & ~is_open_B).nonzero().flatten().tolist()),
            num_forwards=meter.forwards,
            positions_computed=meter.positions,
        )
        step += 1


def _reference_steps(denoiser: Denoiser, canvas: Canvas, settings: DecodeSettings) -> Iterator[StepEvent]:
    rule = ReferenceRule(canvas, denoiser, settings)
    for step in range(rule.num_steps):
        places, meter = canvas.masked(), _Meter(denoiser)
        commits: tuple[Commit, ...] = ()
        remasked: tuple[tuple[int, int], ...] = ()
        if len(places):
            kept, again, drawn = rule.apply(canvas, places, denoiser, step)
            commits = _commits(canvas, kept, drawn.token_M, drawn.confidence_M, drawn.entropy_M)
            positions_M = again.columns_M - canvas.start_B[again.rows_M]
            remasked = tuple(zip(again.rows_M.tolist(), positions_M.tolist(), strict=True))
        yield StepEvent(
            step=step,
            active=tuple(range(canvas.num_rows)),
            asked=tuple(range(canvas.num_rows)) if meter.forwards else (),
            commits=commits,
            remasked=remasked,
            finished=tuple(range(canvas.num_rows)) if step == rule.num_steps - 1 else (),
            num_forwards=meter.forwards,
            positions_computed=meter.positions,
        )


class _Meter:
    """What the denoiser has done since the meter was made."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._forwards, self._positions = denoiser.num_forwards, denoiser.positions_computed

    @property
    def forwards(self) -> int:
        return self._denoiser.num_forwards - self._forwards

    @property
    def positions(self) -> int:
        return self._denoiser.positions_computed - self._positions


def suppression_mask(denoiser: Denoiser, suppressed_ids: Collection[int]) -> Tensor:
    """True at the ids that may not be committed, on the network's device."""
    is_suppressed_V = torch.zeros(denoiser.config.vocab_size, dtype=torch.bool)
    ids = set(suppressed_ids) | ({denoiser.config.mask_id} if denoiser.config.mask_id is not None else set())
    is_suppressed_V[sorted(ids)] = True
    return is_suppressed_V.to(denoiser.device)


def _commits(
    canvas: Canvas, places: Positions, token_M: Tensor, confidence_M: Tensor, entropy_M: Tensor
) -> tuple[Commit, ...]:
    positions_M = places.columns_M - canvas.start_B[places.rows_M]
    return tuple(
        Commit(*values)
        for values in zip(
            places.rows_M.tolist(),
            positions_M.tolist(),
            token_M.tolist(),
            confidence_M.tolist(),
            entropy_M.tolist(),
            strict=True,
        )
    )
