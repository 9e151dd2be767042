"""Speculative decoding with a drafter inside the model: the parent's own tokens, several to a forward.

    one round, one forward of a row
        columns   v          d_1 … d_K           [mask …]_0  [mask …]_1  …  [mask …]_K
        adapter   off        off                 on
        sees      what is settled, as a causal   what is settled, d_1 … d_i, and its own block
                  model sees it

The parent's scores behind v and behind each d_i say which token comes next. As long as that is the drafted one it is
accepted; the first one that differs is settled in its place, and so is the one behind a draft accepted whole. The block
behind the last accepted token is read as the next draft; the others were prepared for nothing.

With a temperature the parent's token is drawn with the random number that decoding one by one would have drawn it with.
So the answer is that of `--decoder autoregressive` token for token at every setting, and its distribution the parent's
exactly: where q puts all its weight on the drafted token, rejection sampling and this are one rule (Leviathan et al.,
2211.17192). That is so in float32. In bfloat16 a forward of many columns rounds otherwise than one of a single column,
and where two tokens lie closer than that the answers may part (docs/log.md).

With `lenience` a drafted token is also accepted that has this share of the best token's probability, and the parent
goes on from there. The answer is then not the parent's own any more (docs/log.md has what that costs).

Keys and values: those of accepted columns are the parent's and stay; all behind them is written over in the next round.

Letters: A rows asked for, T columns computed, S key columns, K drafted tokens, M checked places, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import PREFILL, check_fit, run_window, window_through
from unmask.decode.draft_plan import Plan, column_cost, plan
from unmask.decode.policy import Proposal, join, propose
from unmask.decode.settings import DecodeSettings
from unmask.diffusion.logits import suppress_
from unmask.errors import CanvasError
from unmask.model.backbone import Backbone
from unmask.model.cache import KVCache
from unmask.model.drafter import Drafter
from unmask.seeds import derive_seed

_FIRST_RATE = 0.7  # of acceptance, before anything was checked
_MEMORY = 0.9  # of the average of later checks


@dataclass(slots=True)
class _Row:
    """Where a row stands: its last settled column, and what was drafted for those behind it."""

    settled: int
    draft: list[int] = field(default_factory=list)
    surety: list[float] = field(default_factory=list)
    rate: float = _FIRST_RATE
    plan: Plan = field(default_factory=lambda: Plan(0, ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round settles: the places with the parent's tokens, and what had been drafted for which places."""

    places: Positions
    proposal: Proposal
    is_kept_M: Bool[Tensor, " M"]
    drafted: tuple[tuple[int, int, int], ...]
    """(row, position in the row, token)."""


class Speculator:
    """Decodes the rows of a canvas behind their prompts, a round at a time.

    `longest` is the most tokens of a draft; None: as many as the drafter was trained for.
    """

    def __init__(self, backbone: Backbone, drafter: Drafter, *, longest: int | None = None) -> None:
        self.backbone, self.drafter = backbone, drafter
        self.longest = drafter.block_length if longest is None else longest
        self.config, self.device = backbone.config, backbone.device
        self.num_forwards = 0
        self.positions_computed = 0
        self._cache: KVCache | None = None
        self._rows: dict[int, _Row] = {}
        self._held: list[int] = []  # the canvas rows in the cache, in its order

    def begin(self, canvas: Canvas) -> None:
        """Lay the rows out; the prompts are computed with the first round. Raises CanvasError for a row that is not a
        prompt with masks behind it."""
        check_fit(self.config, canvas)
        self._rows, self._held = {}, list(range(canvas.num_rows))
        for row in self._held:
            start, end = int(canvas.start_B[row]), int(canvas.end_B[row])
            is_masked_L = canvas.is_masked_BL[row, start:end]
            first = int(is_masked_L.int().argmax()) if bool(is_masked_L.any()) else end - start
            if first == 0 or not bool(is_masked_L[first:].all()):
                raise CanvasError(
                    "speculative decoding writes behind a prompt, and here is given text behind a hole or none before "
                    "it; give `--decoder autoregressive`"
                )
            self._rows[row] = _Row(settled=start + first - 1)
        most = self._most_columns()
        self._cache = KVCache(
            self.config,
            rows=canvas.num_rows,
            length=canvas.width + most,
            dtype=self.backbone.dtype,
            device=self.device,
        )
        self._prefill(canvas)

    def round(
        self,
        canvas: Canvas,
        places: Positions,
        settings: DecodeSettings,
        *,
        is_suppressed_V: Tensor,
        samples: Sequence[int],
        runners_up: int = 0,
    ) -> Round:
        """One forward for the rows that have open places."""
        rows = places.rows_M.unique_consecutive().tolist()  # type: ignore[no-untyped-call]
        self._keep(rows)
        states = [self._rows[row] for row in rows]
        cost = column_cost(len(rows))
        for row, state in zip(rows, states, strict=True):
            room = int((places.rows_M == row).sum())
            state.plan = plan(state.surety, rate=state.rate, longest=self.longest, cost=cost, room=room)
        hidden_ATD, block_at = self._forward(canvas, rows, states)
        checked = [(place, slot) for place, state in enumerate(states) for slot in _slots(state)]
        place_M, slot_M = (torch.tensor(values) for values in zip(*checked, strict=True))
        row_M = torch.tensor(rows)[place_M]
        column_M = torch.tensor([state.settled for state in states])[place_M] + slot_M + 1
        asked = Positions(row_M, column_M)
        with torch.inference_mode():
            logits_MV = self.backbone.logits(hidden_ATD[place_M.to(self.device), slot_M.to(self.device)])
            suppress_(logits_MV, is_suppressed_V)
            uniform_M = self._uniform(canvas, asked, settings, samples)
            token_M = None
            if settings.lenience is not None:
                drafts = [state.draft[k] if k < state.plan.checked else -1 for state in states for k in _slots(state)]
                token_M = accepted_or_best(logits_MV, torch.tensor(drafts), lenience=settings.lenience)
            proposal = join([propose(logits_MV, settings, uniform_C=uniform_M, runners_up=runners_up, token_C=token_M)])
        drafted = tuple(
            (row, state.settled + 1 + k - int(canvas.start_B[row]), token)
            for row, state in zip(rows, states, strict=True)
            for k, token in enumerate(state.draft[: state.plan.checked])
        )
        tokens = proposal.token_M.tolist()
        is_kept_M = torch.zeros(len(asked), dtype=torch.bool)
        accepted: list[int] = []
        at = 0
        for state in states:
            count = state.plan.checked
            said = tokens[at : at + count + 1]
            right = next((k for k in range(count) if said[k] != state.draft[k]), count)
            is_kept_M[at : at + right + 1] = True
            accepted.append(right)
            at += count + 1
        self._redraft(hidden_ATD, states, accepted, tokens, block_at)
        return Round(places=asked, proposal=proposal, is_kept_M=is_kept_M, drafted=drafted)

    # The forward

    def _most_columns(self) -> int:
        """Columns that the widest round may take beside those that it settles."""
        return 1 + self.longest + (self.longest + 1) * self.longest

    def _forward(
        self, canvas: Canvas, rows: list[int], states: list[_Row]
    ) -> tuple[Float[Tensor, "A T D"], list[list[int]]]:
        """Hidden states of the rows' rounds, and for each row the slot at which each of its blocks begins.

        All rows have the same slots: the clean ones first, so that the gate is one number. A row's unused slots are the
        scratch column.
        """
        cache = self._cache
        assert cache is not None
        clean = 1 + max(state.plan.checked for state in states)
        noisy = max(sum(state.plan.masks) for state in states)
        T, A, scratch = clean + noisy, len(rows), cache.scratch_column
        ids_AT = torch.zeros(A, T, dtype=torch.long)
        column_AT = torch.full((A, T), scratch)
        position_AT = torch.zeros(A, T, dtype=torch.long)
        sees_AT = torch.zeros(A, T, dtype=torch.long)  # the last clean column that a slot sees
        own_AT2 = torch.zeros(A, T, 2, dtype=torch.long)  # the columns of its block, first and one past the last
        block_at: list[list[int]] = []
        mask_id = self.config.mask_id
        assert mask_id is not None
        for a, (row, state) in enumerate(zip(rows, states, strict=True)):
            start, v, count = int(canvas.start_B[row]), state.settled, state.plan.checked
            ids_AT[a, : count + 1] = torch.tensor([int(canvas.ids_BL[row, v]), *state.draft[:count]])
            column_AT[a, : count + 1] = sees_AT[a, : count + 1] = torch.arange(v, v + count + 1)
            position_AT[a, : count + 1] = torch.arange(v - start, v - start + count + 1)
            sees_AT[a, count + 1 :] = v
            slot, column = clean, v + count + 1
            begins = []
            for i, masks in enumerate(state.plan.masks):
                begins.append(slot)
                here = slice(slot, slot + masks)
                ids_AT[a, here] = mask_id
                column_AT[a, here] = torch.arange(column, column + masks)
                position_AT[a, here] = torch.arange(v - start + i + 1, v - start + i + 1 + masks)
                sees_AT[a, here] = v + i
                own_AT2[a, here] = torch.tensor([column, column + masks])
                slot, column = slot + masks, column + masks
            block_at.append(begins)
        window, stop = window_through(column_AT, scratch)
        key_S = torch.arange(stop)
        start_A11 = canvas.start_B[rows][:, None, None]
        is_before_ATS = (key_S >= start_A11) & (key_S <= sees_AT[..., None])
        is_own_ATS = (key_S >= own_AT2[..., :1]) & (key_S < own_AT2[..., 1:])
        with torch.inference_mode():
            hidden_ATD = run_window(
                self.backbone,
                ids_AT,
                position_AT,
                attn_mask=(is_before_ATS | is_own_ATS)[:, None],
                cache=cache,
                window=window,
                gate=clean,
            )
        self.num_forwards += 1
        self.positions_computed += sum(state.plan.num_columns for state in states)
        return hidden_ATD, block_at

    def _prefill(self, canvas: Canvas) -> None:
        """The prompts but for their last token, in pieces, with the parent alone."""
        cache = self._cache
        assert cache is not None
        done_A = canvas.start_B.clone()
        limit_A = torch.tensor([self._rows[row].settled for row in self._held])
        while bool((done_A < limit_A).any()):
            stop_A = (done_A + PREFILL).minimum(limit_A)
            T = int((stop_A - done_A).max())
            column_AT = done_A[:, None] + torch.arange(T)
            column_AT = torch.where(column_AT < stop_A[:, None], column_AT, cache.scratch_column)
            window, stop = window_through(column_AT, cache.scratch_column)
            is_real_AT = column_AT < cache.scratch_column
            inside_AT = column_AT.clamp(max=canvas.width - 1)
            ids_AT = torch.where(is_real_AT, canvas.ids_BL.gather(1, inside_AT), 0)
            position_AT = torch.where(is_real_AT, column_AT - canvas.start_B[:, None], 0)
            sees_AT = torch.where(is_real_AT, column_AT, canvas.start_B[:, None])
            key_S = torch.arange(stop)
            mask_ATS = (key_S >= canvas.start_B[:, None, None]) & (key_S <= sees_AT[..., None])
            with torch.inference_mode():
                run_window(self.backbone, ids_AT, position_AT, attn_mask=mask_ATS[:, None], cache=cache, window=window)
            self.num_forwards += 1
            self.positions_computed += int((stop_A - done_A).sum())
            done_A = stop_A

    def _keep(self, rows: list[int]) -> None:
        if rows != self._held:
            assert self._cache is not None
            self._cache.keep_rows([self._held.index(row) for row in rows])
            self._held = rows

    # Tokens

    def _uniform(
        self, canvas: Canvas, asked: Positions, settings: DecodeSettings, samples: Sequence[int]
    ) -> Float[Tensor, " M"] | None:
        """The numbers that decoding one token a step would draw these places with (`exact`): a place's step is the
        number of free places before it."""
        if settings.temperature == 0 or settings.temperature_role == "order":
            return None
        numbers = []
        for row, column in zip(asked.rows_M.tolist(), asked.columns_M.tolist(), strict=True):
            start = int(canvas.start_B[row])
            step = int((~canvas.is_fixed_BL[row, start:column]).sum())
            generator = torch.Generator().manual_seed(derive_seed(settings.seed, "content", samples[row], step))
            numbers.append(torch.rand(column - start + 1, generator=generator)[-1])
        return torch.stack(numbers).to(self.device)

    def _redraft(
        self,
        hidden_ATD: Float[Tensor, "A T D"],
        states: list[_Row],
        accepted: list[int],
        tokens: list[int],
        block_at: list[list[int]],
    ) -> None:
        """Move the rows behind what they settled, and read the blocks that stand there."""
        longest = max(state.plan.masks[i] for state, i in zip(states, accepted, strict=True))
        blocks, known, at = [], [], 0
        for a, (state, i) in enumerate(zip(states, accepted, strict=True)):
            begin, masks = block_at[a][i], state.plan.masks[i]
            block_JD = hidden_ATD[a, begin : begin + masks]
            blocks.append(torch.nn.functional.pad(block_JD, (0, 0, 0, longest - masks)))
            known.append(tokens[at + i])
            at += state.plan.checked + 1
        with torch.inference_mode():
            token_AJ, surety_AJ = self.drafter.read(torch.stack(blocks), torch.tensor(known, device=self.device))
        drafts, sureties = token_AJ.tolist(), surety_AJ.tolist()
        for a, (state, i) in enumerate(zip(states, accepted, strict=True)):
            if state.plan.checked:
                for right in [1.0] * i + [0.0] * (i < state.plan.checked):
                    state.rate = _MEMORY * state.rate + (1 - _MEMORY) * right
            masks = state.plan.masks[i]
            state.settled += i + 1
            state.draft, state.surety = drafts[a][:masks], sureties[a][:masks]


def _slots(state: _Row) -> range:
    """The checked places of a row: one for each token of its draft, and the one behind."""
    return range(state.plan.checked + 1)


def accepted_or_best(
    logits_MV: Float[Tensor, "M V"], draft_M: Int[Tensor, " M"], *, lenience: float
) -> Int[Tensor, " M"]:
    """The drafted token where its probability is at least `lenience` times the best one's, else the best; a draft below
    0 is none.

    >>> accepted_or_best(torch.tensor([[0.0, 1.0]] * 3), torch.tensor([0, 0, -1]), lenience=0.3).tolist()
    [0, 0, 1]
    >>> accepted_or_best(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), lenience=0.4).tolist()
    [1]
    """
    draft_M = draft_M.to(logits_MV.device)
    best = logits_MV.float().max(-1)
    drafted_M = logits_MV.gather(1, draft_M.clamp(min=0)[:, None]).squeeze(1).float()
    is_fine_M = (draft_M >= 0) & (drafted_M >= best.values + math.log(lenience))
    return torch.where(is_fine_M, draft_M, best.indices)
