"""The exact rule: the field's policies with per-row budgets, an integer schedule, float32 scores, stated ties, blocks,
an early stop, and private random numbers.

A row's outcome depends on its own content, its sample number and the settings: random numbers are drawn from generators
named by (seed, purpose, sample, step) and indexed by position, so neither the batch, nor padding, nor a resumed run
moves them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import Denoiser
from unmask.decode.drafted import DraftedDenoiser
from unmask.decode.policy import (
    Proposal,
    gumbel,
    join,
    propose,
    rank_within_rows,
    take_above,
    take_best,
    take_bounded,
    take_factor,
    take_frechet,
)
from unmask.decode.settings import DecodeSettings
from unmask.decode.stop import answer_end, open_places_BL
from unmask.diffusion.logits import suppress_
from unmask.diffusion.schedule import split_steps, step_budget
from unmask.errors import SettingsError
from unmask.seeds import derive_seed

DEFAULT_THRESHOLD = 0.9
DEFAULT_FACTOR = 1.0
DEFAULT_FRECHET = 0.2
DEFAULT_ENTROPY_BOUND = 0.15
_COUNTING = ("maskgit_plus", "topk_margin", "entropy", "left_to_right", "random")
_BLIND = ("origin", "left_to_right", "random")  # these pick places before they see logits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """The block a row stands in: its columns, its share of the steps, and how many steps it has had."""

    start: int
    stop: int
    size: int  # positions that were open when the block began
    left: int  # positions that are open now
    steps: int
    index: int


class ExactRule:
    """Says which places to ask about in a step, and which of the answers to commit."""

    def __init__(
        self,
        canvas: Canvas,
        denoiser: Denoiser,
        settings: DecodeSettings,
        *,
        is_suppressed_V: Tensor,
        end_ids: Collection[int],
        samples: Sequence[int],
        runners_up: int = 0,
    ) -> None:
        self.settings = settings
        self._runners_up = runners_up
        self._is_suppressed_V = is_suppressed_V
        self._end_ids = frozenset(end_ids)
        self._samples = samples
        self._now: dict[int, _Block] = {}
        self._length = block_length_of(denoiser, settings)
        self._window = canvas.width
        if isinstance(denoiser, DraftedDenoiser):
            self._window = denoiser.window_length
            denoiser.suppress(is_suppressed_V)
        is_aligned = denoiser.config.attention == "block"
        self._blocks = [self._row_blocks(canvas, row, is_aligned) for row in range(canvas.num_rows)]

    def open_places(self, canvas: Canvas, step: int) -> Positions | None:
        """The places to ask about: the open ones of each row's block, up to a window from the first one where the
        denoiser has such. None when every row is done.

        A policy that needs no logits picks its places here, so the network is asked about no others, and not at all in
        a step that commits nothing.
        """
        is_open_BL = open_places_BL(canvas, answer_end(canvas, self._end_ids))
        if not is_open_BL.any():
            return None
        self._now = {}
        is_asked_BL = torch.zeros_like(is_open_BL)
        for row in is_open_BL.any(-1).nonzero().flatten().tolist():
            first = int(is_open_BL[row].int().argmax())
            block = self._block_of(is_open_BL[row], canvas.committed_at_BL[row], row, first, step)
            self._now[row] = block
            asked = slice(first, min(block.stop, first + self._window))
            is_asked_BL[row, asked] = is_open_BL[row, asked]
        places = Positions(*is_asked_BL.nonzero(as_tuple=True))
        return places.where(self._pick_blind(canvas, places, step)) if self.settings.policy in _BLIND else places

    def decide(
        self, canvas: Canvas, places: Positions, denoiser: Denoiser, step: int
    ) -> tuple[Proposal, Bool[Tensor, " M"]]:
        """Ask the network about `places`: what it proposes, and which of them to commit."""
        proposal = self._propose(canvas, places, denoiser, step)
        if self.settings.policy in _BLIND:
            return proposal, torch.ones(len(places), dtype=torch.bool)
        score_M = proposal.score_M
        if self.settings.policy_temperature > 0:
            noise_M = gumbel(self._uniform(canvas, places, "order", step))
            score_M = (score_M.double() / self.settings.policy_temperature) + noise_M
        rank_M = rank_within_rows(places.rows_M, score_M, proposal.tie_M)
        budget_M = self._budget(places)
        return proposal, self._trusted(places, proposal, rank_M, budget_M)

    def _trusted(
        self, places: Positions, proposal: Proposal, rank_M: Int[Tensor, " M"], budget_M: Int[Tensor, " M"]
    ) -> Bool[Tensor, " M"]:
        """What the policy commits of ranked places: `budget_M` of a row, or as many as it trusts if those are more."""
        settings, confidence_M = self.settings, proposal.confidence_M
        if settings.policy == "threshold":
            threshold = DEFAULT_THRESHOLD if settings.threshold is None else settings.threshold
            return take_above(rank_M, confidence_M, threshold=threshold, at_least_M=budget_M)
        if settings.policy == "factor":
            factor = DEFAULT_FACTOR if settings.factor is None else settings.factor
            return take_factor(rank_M, confidence_M, factor=factor, at_least_M=budget_M)
        if settings.policy == "frechet":
            delta = DEFAULT_FRECHET if settings.frechet is None else settings.frechet
            return take_frechet(rank_M, places.rows_M, confidence_M, delta=delta, at_least_M=budget_M)
        if settings.policy == "entropy_bound":
            bound = DEFAULT_ENTROPY_BOUND if settings.entropy_bound is None else settings.entropy_bound
            return take_bounded(rank_M, places.rows_M, proposal.entropy_M, bound=bound, at_least_M=budget_M)
        return take_best(rank_M, budget_M)

    def _propose(self, canvas: Canvas, places: Positions, denoiser: Denoiser, step: int) -> Proposal:
        settings = self.settings
        uniform_M = None
        if settings.temperature > 0 and settings.temperature_role != "order":
            uniform_M = self._uniform(canvas, places, "content", step)
        parts, done = [], 0
        with torch.inference_mode():
            for logits_CV in denoiser.logits(canvas, places):
                chunk = slice(done, done + len(logits_CV))
                done = chunk.stop
                uniform_C = None if uniform_M is None else uniform_M[chunk].to(logits_CV.device)
                suppress_(logits_CV, self._is_suppressed_V)
                parts.append(propose(logits_CV, settings, uniform_C=uniform_C, runners_up=self._runners_up))
            return join(parts)

    def _pick_blind(self, canvas: Canvas, places: Positions, step: int) -> Tensor:
        if self.settings.policy == "left_to_right":
            score_M = -places.columns_M.float()
        else:
            score_M = self._uniform(canvas, places, "order", step)
        if self.settings.policy == "origin":
            left_M = torch.tensor(
                [max(1, self._now[row].steps - self._now[row].index) for row in places.rows_M.tolist()]
            )
            return score_M * left_M < 1  # each with probability 1 / steps left
        return take_best(rank_within_rows(places.rows_M, score_M, score_M), self._budget(places))

    def _budget(self, places: Positions) -> Int[Tensor, " M"]:
        """How many positions each place's row commits now: all of them, or for adaptive policies at least."""
        budgets = {}
        for row, block in self._now.items():
            masks = block.left
            if self.settings.policy in _COUNTING:
                budget = step_budget(block.size, block.steps, block.index) if block.index < block.steps else masks
            elif self.settings.steps is None:
                budget = 1
            else:
                budget = -(-masks // max(1, block.steps - block.index))
            budgets[row] = max(1, budget)
        return torch.tensor([budgets[row] for row in places.rows_M.tolist()])

    def _uniform(self, canvas: Canvas, places: Positions, purpose: str, step: int) -> Float[Tensor, " M"]:
        """One uniform number per place, indexed by its position in its row."""
        parts = []
        for row in places.rows_M.unique_consecutive().tolist():  # type: ignore[no-untyped-call]
            generator = torch.Generator().manual_seed(
                derive_seed(self.settings.seed, purpose, self._samples[row], step)
            )
            columns = places.columns_M[places.rows_M == row] - canvas.start_B[row]
            parts.append(torch.rand(int(columns.max()) + 1, generator=generator)[columns])
        return torch.cat(parts)

    def _row_blocks(self, canvas: Canvas, row: int, is_aligned: bool) -> list[tuple[int, int, int, int]]:
        """(start, stop, open positions, steps) of each block of a row that has open positions."""
        free_L = ~canvas.is_fixed_BL[row]
        if not bool(free_L.any()):
            return []
        start, first, end = int(canvas.start_B[row]), int(free_L.int().argmax()), int(canvas.end_B[row])
        length = self._length or end - first
        at = start + (first - start) // length * length if is_aligned else first
        bounds = [(low, min(low + length, end)) for low in range(at, end, length)]
        sized = [(low, high, int(free_L[low:high].sum())) for low, high in bounds]
        sized = [block for block in sized if block[2]]
        steps = sum(size for _, _, size in sized) if self.settings.steps is None else self.settings.steps
        if steps < len(sized):
            raise SettingsError(self._too_few_steps(len(sized), length))
        shares = split_steps([size for _, _, size in sized], steps)
        return [(*block, share) for block, share in zip(sized, shares, strict=True)]

    def _too_few_steps(self, blocks: int, length: int) -> str:
        if length == 1 and self.settings.block_length is None:  # the model's own way, which no setting changes
            return (
                f"--steps {self.settings.steps} is fewer than the {blocks} tokens to fill, and the model fills one per "
                f"step; give --steps {blocks} or more, or leave --steps out"
            )
        return (
            f"--steps {self.settings.steps} is fewer than the {blocks} blocks of {length} positions, and a "
            f"block takes at least one step; give --steps {blocks} or more, or a larger --block-length"
        )

    def _block_of(
        self, is_open_L: Bool[Tensor, " L"], committed_at_L: Int[Tensor, " L"], row: int, column: int, step: int
    ) -> _Block:
        start, stop, size, steps = next(block for block in self._blocks[row] if block[0] <= column < block[1])
        before = committed_at_L[:start]
        begun = int(before.max()) + 1 if len(before) else 0
        left = int(is_open_L[start:stop].sum())
        return _Block(start=start, stop=stop, size=size, left=left, steps=steps, index=step - begun)


def block_length_of(denoiser: Denoiser, settings: DecodeSettings) -> int | None:
    """The length of a block in this run; None is the whole canvas. Raises SettingsError where the model forbids it."""
    config, given = denoiser.config, settings.block_length
    if isinstance(denoiser, DraftedDenoiser):
        if settings.steps is not None:
            raise SettingsError(
                f"--steps {settings.steps} cannot be kept where a window moves over the answer; leave it out, and say "
                "how much a forward settles by `--policy threshold --threshold P`"
            )
        if settings.policy in ("origin", "random") and settings.temperature > 0:
            raise SettingsError(
                f"--policy {settings.policy} commits places without looking at them, and what a drafter is not told "
                "is drawn from all words alike; take threshold, factor, frechet or entropy_bound, or `--temperature 0`"
            )
        return None  # it has a window that moves, and its length is that
    if config.attention == "causal":
        if given not in (None, 1):
            raise SettingsError(
                f"--block-length {given} was given, but the model is autoregressive: a position sees only what is left "
                "of it, so it fills one position at a time; leave --block-length out or give 1"
            )
        return 1
    if config.attention == "block":
        own = config.block_length
        assert own is not None
        if given is not None and own % given:
            raise SettingsError(
                f"--block-length {given} does not divide the model's block length {own}; give a divisor of {own}"
            )
        return given or own
    return given
