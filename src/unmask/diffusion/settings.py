"""What can be chosen about masking and loss; no tensors here, so that a settings file is read without torch.

What the choices do is in `corrupt` and `objective`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from unmask.errors import SettingsError, did_you_mean

NoiseSchedule = Literal["linear", "cosine"]
CorruptionKind = Literal["bernoulli", "exact_k", "block"]
NOISE_SCHEDULES: tuple[str, ...] = get_args(NoiseSchedule)
CORRUPTION_KINDS: tuple[str, ...] = get_args(CorruptionKind)

Weight = Literal["elbo", "cart", "none"]
Normaliser = Literal["token", "sequence", "pooled"]
WEIGHTS: tuple[str, ...] = get_args(Weight)
NORMALISERS: tuple[str, ...] = get_args(Normaliser)

CART_P = 0.3
"""Dream's released pre-training code; Dream-Coder's fine-tuning takes 0.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """How rows are masked. Every default is valid."""

    kind: CorruptionKind = "exact_k"
    """How the masked tokens are drawn; see `corrupt`."""

    schedule: NoiseSchedule = "linear"
    """Mask probability over time: `linear` visits all evenly, `cosine` the high ones more often."""

    t_min: float = 1e-3
    """Least time in [0, t_max): a weight is at most the inverse of its mask probability."""

    t_max: float = 1.0
    """Greatest time in (t_min, 1]. Raised from near 0 over the first steps it is the corruption warm-up of
    Stable-DiffCoder."""

    block_length: int | None = None
    """Tokens per block of `block`, counted from each document's first token."""

    pairs: bool = False
    """Rows 2j and 2j + 1 are one text with complementary masks. Not for `block`."""

    truncate_share: float = 0.0
    """Share of rows cut to a random length (DiffuCoder: 0.01)."""

    clean_prefix_share: float = 0.0
    """Share of rows that keep a random prefix unmasked (DiffuCoder: 0.01)."""

    def __post_init__(self) -> None:
        for name, known in (("kind", CORRUPTION_KINDS), ("schedule", NOISE_SCHEDULES)):
            given = getattr(self, name)
            if given not in known:
                raise SettingsError(f"corruption {name} {given!r} is not known; {did_you_mean(str(given), known)}")
        if not 0 <= self.t_min < self.t_max <= 1:
            raise SettingsError(
                f"t_min={self.t_min} and t_max={self.t_max} are no range of times; they must be "
                "0 <= t_min < t_max <= 1, such as 0.001 and 1"
            )
        for name in ("truncate_share", "clean_prefix_share"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise SettingsError(f"{name}={share} is not a share of the rows; it lies in 0 to 1, such as 0.01")
        self._check_block()
        if self.pairs and self.t_max < 1:
            raise SettingsError(
                f"pairs and t_max={self.t_max} contradict each other: the complement of little noise is much; "
                "set t_max=1 or pairs=False"
            )

    def _check_block(self) -> None:
        if self.kind != "block":
            if self.block_length is not None:
                raise SettingsError(
                    f"block_length={self.block_length} has no effect with kind={self.kind!r}; set kind='block' or "
                    "leave block_length out"
                )
            return
        if self.block_length is None or self.block_length < 1:
            raise SettingsError(
                f"kind='block' needs a block_length of at least 1, and it is {self.block_length}; 4 is usual"
            )
        if self.pairs:
            raise SettingsError(
                "pairs do not go with kind='block', whose floor and forced masks leave no complement of the same kind; "
                "set pairs=False, or kind='exact_k'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Weight and normaliser of a loss. The default is the evidence lower bound, per token."""

    weight: Weight = "elbo"
    """What a masked token's NLL is multiplied with."""

    normaliser: Normaliser = "token"
    """What the sum is divided by."""

    cart_p: float = CART_P
    """Of `cart`, in (0, 1): the larger, the fewer neighbours count."""

    def __post_init__(self) -> None:
        for name, known in (("weight", WEIGHTS), ("normaliser", NORMALISERS)):
            given = getattr(self, name)
            if given not in known:
                raise SettingsError(f"objective {name} {given!r} is not known; {did_you_mean(str(given), known)}")
        if not 0 < self.cart_p < 1:
            raise SettingsError(f"cart_p={self.cart_p} lies outside (0, 1); 0.3 and 0.1 are usual")
        if self.cart_p != CART_P and self.weight != "cart":
            raise SettingsError(
                f"cart_p={self.cart_p} has no effect with weight={self.weight!r}; set weight='cart' or leave cart_p out"
            )
