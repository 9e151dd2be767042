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
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import Denoiser
from unmask.decode.exact import ExactRule
from unmask.decode.numerics import check_numbers
from unmask.decode.observe import Observe
from unmask.decode.policy import Proposal
from unmask.decode.reference import Drawn, ReferenceRule
from unmask.decode.settings import DecodeSettings
from unmask.decode.speculative import Speculator
from unmask.decode.stop import answer_end, open_places_BL
from unmask.errors import SettingsError
from unmask.trajectory import Commit, Seen, StepEvent


def denoise(
    denoiser: Denoiser | Speculator,
    canvas: Canvas,
    settings: DecodeSettings,
    *,
    end_ids: Collection[int] = (),
    suppressed_ids: Collection[int] = (),
    samples: Sequence[int] | None = None,
    first_step: int = 0,
    observe: Observe | None = None,
) -> Iterator[StepEvent]:
    """Fill the canvas in place, one StepEvent per step.

    `end_ids` end an answer. `suppressed_ids` are never committed (exact mode), the mask id is always among them.
    `samples` names each row's stream of random numbers; two rows with the same prompt and sample come out the same.
    `first_step` continues a run whose first steps are on the canvas already. `observe` says what the events tell beside
    the commits; it changes nothing that is decoded.

    The reference mode has one random stream and no stop, so of the other keyword arguments it uses none.

    Raises NumericsError when the network returns NaN, SettingsError when settings and model do not go together.
    """
    observe = Observe() if observe is None else observe
    if isinstance(denoiser, Speculator):
        if settings.mode == "reference":
            raise SettingsError("the reference mode is Dream's sampler, and drafts nothing; leave `--mode` out")
        return _speculative_steps(
            denoiser,
            canvas,
            settings,
            suppression_mask(denoiser, suppressed_ids),
            end_ids,
            range(canvas.num_rows) if samples is None else samples,
            first_step,
            observe,
        )
    if settings.mode == "reference":
        return _reference_steps(denoiser, canvas, settings, observe)
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
            runners_up=observe.runners_up,
        ),
        end_ids,
        first_step,
        observe,
    )


def _exact_steps(
    denoiser: Denoiser, canvas: Canvas, rule: ExactRule, end_ids: Collection[int], step: int, observe: Observe
) -> Iterator[StepEvent]:
    while (places := rule.open_places(canvas, step)) is not None:
        was_open_B = open_places_BL(canvas, answer_end(canvas, end_ids)).any(-1)
        meter = _Meter(denoiser)
        commits: tuple[Commit, ...] = ()
        seen: dict[int, list[Seen]] = {}
        if len(places):
            proposal, is_kept_M = rule.decide(canvas, places, denoiser, step)
            check_numbers(proposal.confidence_M, canvas, places, step)
            canvas.commit(places.where(is_kept_M), proposal.token_M[is_kept_M], step=step)
            commits = _commits(canvas, places, proposal, is_kept_M)
            seen = _seen(canvas, places, proposal) if observe.first_step and step == 0 else {}
        is_open_B = open_places_BL(canvas, answer_end(canvas, end_ids)).any(-1)
        yield StepEvent(
            step=step,
            active=tuple(was_open_B.nonzero().flatten().tolist()),
            asked=tuple(places.rows_M.unique_consecutive().tolist()),  # type: ignore[no-untyped-call]
            commits=commits,
            finished=tuple((was_open_B & ~is_open_B).nonzero().flatten().tolist()),
            num_forwards=meter.forwards,
            positions_computed=meter.positions,
            seen=seen,
        )
        step += 1


def _speculative_steps(
    speculator: Speculator,
    canvas: Canvas,
    settings: DecodeSettings,
    is_suppressed_V: Tensor,
    end_ids: Collection[int],
    samples: Sequence[int],
    step: int,
    observe: Observe,
) -> Iterator[StepEvent]:
    meter = _Meter(speculator)  # of the first step, with the prompt
    speculator.begin(canvas)
    ends = torch.tensor(sorted(end_ids), dtype=torch.long)
    while len(places := Positions(*open_places_BL(canvas, answer_end(canvas, end_ids)).nonzero(as_tuple=True))):
        was_open_B = torch.zeros(canvas.num_rows, dtype=torch.bool).index_fill(0, places.rows_M, True)
        found = speculator.round(
            canvas,
            places,
            settings,
            is_suppressed_V=is_suppressed_V,
            samples=samples,
            runners_up=observe.runners_up,
        )
        check_numbers(found.proposal.confidence_M, canvas, found.places, step)
        is_end_M = torch.isin(found.proposal.token_M, ends)
        is_kept_M = found.is_kept_M & ~_behind_first(found.places.rows_M, is_end_M)
        canvas.commit(found.places.where(is_kept_M), found.proposal.token_M[is_kept_M], step=step)
        is_open_B = open_places_BL(canvas, answer_end(canvas, end_ids)).any(-1)
        yield StepEvent(
            step=step,
            active=tuple(was_open_B.nonzero().flatten().tolist()),
            asked=tuple(was_open_B.nonzero().flatten().tolist()),
            commits=_commits(canvas, found.places, found.proposal, is_kept_M),
            drafted=found.drafted,
            finished=tuple((was_open_B & ~is_open_B).nonzero().flatten().tolist()),
            num_forwards=meter.forwards,
            positions_computed=meter.positions,
        )
        step, meter = step + 1, _Meter(speculator)


def _behind_first(rows_M: Int[Tensor, " M"], is_end_M: Bool[Tensor, " M"]) -> Bool[Tensor, " M"]:
    """True at the places of a row that come after its first True one."""
    count_M = is_end_M.long().cumsum(0) - is_end_M.long()  # before each place, all rows together
    first_of_row_M = torch.searchsorted(rows_M, rows_M)
    return count_M > count_M[first_of_row_M]


def _reference_steps(
    denoiser: Denoiser, canvas: Canvas, settings: DecodeSettings, observe: Observe
) -> Iterator[StepEvent]:
    rule = ReferenceRule(canvas, denoiser, settings, runners_up=observe.runners_up)
    for step in range(rule.num_steps):
        places, meter = canvas.masked(), _Meter(denoiser)
        commits: tuple[Commit, ...] = ()
        remasked: tuple[tuple[int, int], ...] = ()
        seen: dict[int, list[Seen]] = {}
        if len(places):
            drawn, is_kept_M, again = rule.apply(canvas, places, denoiser, step)
            commits = _commits(canvas, drawn.places, drawn, is_kept_M)
            seen = _seen(canvas, drawn.places, drawn) if observe.first_step and step == 0 else {}
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
            seen=seen,
        )


class _Meter:
    """What the denoiser has done since the meter was made."""

    def __init__(self, denoiser: Denoiser | Speculator) -> None:
        self._denoiser = denoiser
        self._forwards, self._positions = denoiser.num_forwards, denoiser.positions_computed

    @property
    def forwards(self) -> int:
        return self._denoiser.num_forwards - self._forwards

    @property
    def positions(self) -> int:
        return self._denoiser.positions_computed - self._positions


def suppression_mask(denoiser: Denoiser | Speculator, suppressed_ids: Collection[int]) -> Tensor:
    """True at the ids that may not be committed, on the network's device."""
    is_suppressed_V = torch.zeros(denoiser.config.vocab_size, dtype=torch.bool)
    ids = set(suppressed_ids) | ({denoiser.config.mask_id} if denoiser.config.mask_id is not None else set())
    is_suppressed_V[sorted(ids)] = True
    return is_suppressed_V.to(denoiser.device)


def _commits(
    canvas: Canvas, places: Positions, drawn: Proposal | Drawn, is_kept_M: Bool[Tensor, " M"]
) -> tuple[Commit, ...]:
    kept = places.where(is_kept_M)
    none: list[tuple[tuple[int, float], ...]] = [()] * len(kept)
    return tuple(
        Commit(*values)
        for values in zip(
            kept.rows_M.tolist(),
            (kept.columns_M - canvas.start_B[kept.rows_M]).tolist(),
            drawn.token_M[is_kept_M].tolist(),
            drawn.confidence_M[is_kept_M].tolist(),
            drawn.entropy_M[is_kept_M].tolist(),
            none if drawn.runners is None else drawn.runners.of(is_kept_M),
            strict=True,
        )
    )


def _seen(canvas: Canvas, places: Positions, drawn: Proposal | Drawn) -> dict[int, list[Seen]]:
    """What the network had for every place, by row."""
    out: dict[int, list[Seen]] = {}
    for row, position, confidence, spread in zip(
        places.rows_M.tolist(),
        (places.columns_M - canvas.start_B[places.rows_M]).tolist(),
        drawn.confidence_M.tolist(),
        drawn.entropy_M.tolist(),
        strict=True,
    ):
        out.setdefault(row, []).append((position, confidence, spread))
    return out
