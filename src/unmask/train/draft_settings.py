"""Everything that decides a stage that trains a drafter (`train/drafting.py`)."""

from dataclasses import dataclass, field

from unmask.model.lora import LoraSettings
from unmask.train.settings import DataSettings, Stage, require


@dataclass(frozen=True, kw_only=True)
class DraftSettings:
    """What is drafted, and what is learnt from it."""

    block_length: int = 6
    """Masks of a block, and the longest draft."""

    stride: int | None = None
    """Columns from block to block; None: the block length, so that each token is predicted once."""

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
