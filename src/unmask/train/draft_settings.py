"""Everything that decides a stage that trains a drafter (`train/drafting.py`)."""

from dataclasses import dataclass, field
from itertools import pairwise

from unmask.model.lora import LoraSettings
from unmask.train.settings import DataSettings, Stage, require


@dataclass(frozen=True, kw_only=True)
class DraftSettings:
    """What is drafted, and what is learnt from it."""

    block_length: int = 6
    """Masks of a block, and the longest draft."""

    curriculum: tuple[tuple[float, int], ...] = ()
    """Block lengths over the run, each with the share of the run at which it begins, up to `block_length`; written
    0:2,0.2:4,0.4:8 on the command line. Empty: `block_length` throughout. It is measured at `block_length` always."""

    revealed: float = 0.25
    """Share of the blocks that show some of their tokens, as a block does that is filled in any order. They count in
    the loss, and not in what is said of drafts."""

    stride: int | None = None
    """Columns from block to block; None: the block length of the step, so that each token is predicted once."""

    words: int = 24_000
    """How many words may be drafted: the most frequent ones of the training data. 0: all."""

    inner: int = 512
    """Inner size of the draft head."""

    hard: float = 0.5
    """Weight of the cross-entropy with the text."""

    soft: float = 0.5
    """Weight of the cross-entropy with the parent's distribution."""

    blind: float = 0.2
    """Weight of the same before the head has told the masks anything: what is drafted without it."""

    decay: float = 0.8
    """What a mask weighs, relative to the one before it in its block: it is of use only if that one was right."""

    def __post_init__(self) -> None:
        for name in ("block_length", "inner"):
            require(getattr(self, name) >= 1, f"draft.{name}={getattr(self, name)} must be at least 1")
        require(self.words >= 0, f"draft.words={self.words} is not a number of words; 0 is all of them")
        for name in ("hard", "soft", "blind"):
            require(getattr(self, name) >= 0, f"draft.{name}={getattr(self, name)} is a weight; it must be at least 0")
        require(
            self.hard + self.soft > 0,
            "draft.hard and draft.soft are both 0, so that the head learns nothing; set one of them to 0.5",
        )
        require(0 < self.decay <= 1, f"draft.decay={self.decay} lies outside (0, 1]; 1 weighs all masks alike")
        require(
            self.stride is None or self.stride >= self.block_length,
            f"draft.stride={self.stride} lays blocks of {self.block_length} over each other; it must be at least that",
        )
        require(
            0 <= self.revealed < 1,
            f"draft.revealed={self.revealed:g} lies outside [0, 1): at 1 no block would be one that is drafted from; "
            "0.25 is usual, and 0 shows nothing",
        )
        _check_curriculum(self.curriculum, self.block_length)

    def length_at(self, step: int, *, steps: int) -> int:
        """The block length of a step in a run of `steps`.

        >>> draft = DraftSettings(block_length=8, curriculum=((0.0, 2), (0.2, 4), (0.4, 8)))
        >>> [draft.length_at(step, steps=10) for step in range(6)]
        [2, 2, 4, 4, 8, 8]
        """
        begun = [length for begin, length in self.curriculum if round(begin * steps) <= step]
        return begun[-1] if begun else self.block_length


@dataclass(frozen=True, kw_only=True)
class DraftStage(Stage):
    """One stage that trains a drafter; the parent is never changed, and `lora` says what the adapter is."""

    lora: LoraSettings | None = field(default_factory=lambda: LoraSettings(rank=32, alpha=64.0))
    data: DataSettings = field(default_factory=DataSettings)
    draft: DraftSettings = field(default_factory=DraftSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lora is not None, "a drafter is an adapter: give the stage a `lora`, as in lora.rank=32")
        require(
            self.lora is None or not self.lora.train_embeddings,
            "lora.train_embeddings would change the parent, which a drafter leaves as it is; set it to false",
        )
        require(
            not self.evaluation.tasks and not self.evaluation.prompt,
            "evaluation.tasks and evaluation.prompt have no effect on a drafter, which never changes what its parent "
            "writes; leave them out, and give data.heldout for the tokens of a round",
        )
        require(self.ema is None, "ema has no effect on a drafter; leave it out")

    @property
    def tokens_per_step(self) -> int:
        """Positions per optimiser step, padding included."""
        return self.data.rows * self.data.length


def _check_curriculum(curriculum: tuple[tuple[float, int], ...], block_length: int) -> None:
    if not curriculum:
        return
    given = "draft.curriculum=" + ",".join(f"{begin:g}:{length}" for begin, length in curriculum)
    begins, lengths = zip(*curriculum, strict=True)
    require(
        begins[0] == 0,
        f"{given} says nothing of the run before {begins[0]:g} of it; let the first entry begin at 0, as in 0:2,0.4:8",
    )
    require(
        all(one < other for one, other in pairwise(begins)) and begins[-1] < 1,
        f"{given}: each block length begins later than the one before it, at a share of the run below 1; write them as "
        "in 0:2,0.2:4,0.4:8",
    )
    require(
        lengths[0] >= 1 and all(one < other for one, other in pairwise(lengths)),
        f"{given}: block lengths rise from 1 or more, as in 0:2,0.2:4,0.4:8",
    )
    require(
        lengths[-1] == block_length,
        f"{given} ends at blocks of {lengths[-1]} and draft.block_length={block_length}; the last must be the same: "
        f"set draft.block_length={lengths[-1]} too, or leave the curriculum empty",
    )
