"""How to decode: every knob of the loop, checked once and then trusted."""

from dataclasses import dataclass
from typing import Literal, get_args

from unmask.errors import SettingsError, did_you_mean

DecoderName = Literal["autoregressive", "speculative", "diffusion"]
PolicyName = Literal[
    "origin",
    "maskgit_plus",
    "topk_margin",
    "entropy",
    "threshold",
    "factor",
    "frechet",
    "entropy_bound",
    "left_to_right",
    "random",
]
Mode = Literal["exact", "reference"]
TemperatureRole = Literal["both", "content", "order"]
CacheName = Literal["prefix"]

POLICIES: tuple[str, ...] = get_args(PolicyName)
ADAPTIVE_POLICIES = ("threshold", "factor", "frechet", "entropy_bound")
"""Those that commit as many positions as they trust; each has a setting of its own name."""

REFERENCE_POLICIES = ("origin", "maskgit_plus", "topk_margin", "entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """Settings of one decoding run. Every default is valid."""

    max_new_tokens: int = 256
    """Tokens that an answer may have; the number of masks that are laid out behind the prompt."""

    decoder: DecoderName | None = None
    """How a causal model with a drafter writes: one token a step (`autoregressive`), drafting and checking in the same
    forward (`speculative`, the same tokens), or taking the drafter's tokens as the policy says (`diffusion`). None:
    `speculative` where there is a drafter, else what the model's attention is made for."""

    steps: int | None = None
    """Forward passes that an answer may take. None: one per position for the counting policies, as many as needed for
    the adaptive ones."""

    block_length: int | None = None
    """Positions per block; blocks are filled from left to right. None: the model's own block length, 1 for a causal
    model, the whole canvas for a full-attention model."""

    policy: PolicyName = "entropy"
    """Which open positions a step commits: those with the best score (`maskgit_plus`, `topk_margin`, `entropy`), all
    above `threshold`, as many as `factor`, `frechet` or `entropy_bound` allow, the leftmost, random ones, or each with
    the schedule's probability (`origin`)."""

    policy_temperature: float = 0.0
    """0 takes the best-scored positions; above 0 they are drawn without replacement from
    softmax(score / temperature)."""

    threshold: float | None = None
    """Confidence in (0, 1] from which `threshold` commits; 0.9 when None (Fast-dLLM, arXiv 2505.22618)."""

    factor: float | None = None
    """`factor` commits the n best with (n + 1)(1 - confidence of the n-th) < factor; 1.0 when None (the same
    paper)."""

    frechet: float | None = None
    """`frechet` commits the n best while (sum of their confidences - (n - 1)) - (1 - the n-th one) > frechet; 0.2 when
    None (Fast-dLLM++, arXiv 2606.02955)."""

    entropy_bound: float | None = None
    """`entropy_bound` commits positions of least entropy while the entropies of all but the last sum to at most this,
    in nats; 0.15 when None (EB-sampler, arXiv 2505.24857)."""

    lenience: float | None = None
    """`speculative` keeps a drafted token that has at least this share of the best token's probability, in (0, 1]: more
    tokens to a forward, and not the model's own answer any more. None: only the best token is kept (Leviathan et al.,
    arXiv 2211.17192, the appendix on lenience)."""

    temperature: float = 0.0
    """0 is greedy. Acts before the score, so it moves the order as well as the tokens; see `temperature_role`."""

    temperature_role: TemperatureRole = "both"
    """What the temperature acts on: the tokens (`content`), the scores that order them (`order`), or both, as in the
    paper."""

    top_p: float | None = None
    """Nucleus in (0, 1]; None is off."""

    top_k: int | None = None
    """Best tokens kept, at least 1; None is off."""

    cache: CacheName | None = None
    """None: what is exact (nothing under full attention). `prefix` keeps keys and values of a row's beginning for some
    steps under full attention, which is faster and changes the output (`decode/prefix.py`)."""

    cache_refresh: int | None = None
    """Steps after which `prefix` computes a row whole again; 16 when None. 1 does so at every step, as without it."""

    mode: Mode = "exact"
    """`reference` does what Dream's `diffusion_generate` does, token for token and quirk for quirk."""

    eps: float = 1e-3
    """Last time of the reference schedule."""

    seed: int = 0
    """Seed of every random choice."""

    def __post_init__(self) -> None:
        for name, known in (
            ("decoder", (None, *get_args(DecoderName))),
            ("policy", POLICIES),
            ("mode", get_args(Mode)),
            ("temperature_role", get_args(TemperatureRole)),
            ("cache", (None, *get_args(CacheName))),
        ):
            given = getattr(self, name)
            if given not in known:
                raise SettingsError(
                    f"{_flag(name)} {given!r} is not known; {did_you_mean(str(given), [n for n in known if n])}"
                )
        for name in ("max_new_tokens", "steps", "block_length", "top_k", "cache_refresh"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{_flag(name)} {value} is not a count; it must be at least 1")
        for name in ("temperature", "policy_temperature"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise SettingsError(f"{_flag(name)} {value} is not a temperature; it must be 0 (greedy) or more")
        for name in ("top_p", "threshold", "eps", "lenience"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise SettingsError(f"{_flag(name)} {value} lies outside (0, 1]; {_NEAREST[name]}")
        if self.factor is not None and not 0 < self.factor < float("inf"):
            raise SettingsError(f"--factor {self.factor} is not positive; 1.0 is the bound of Fast-dLLM's theorem")
        if self.frechet is not None and not 0 <= self.frechet < 1:
            raise SettingsError(f"--frechet {self.frechet} lies outside [0, 1); 0.2 is usual, 0 commits most")
        if self.entropy_bound is not None and not 0 <= self.entropy_bound < float("inf"):
            raise SettingsError(
                f"--entropy-bound {self.entropy_bound} is no sum of entropies; it must be 0 or more, and 0.15 is usual"
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        for name in ADAPTIVE_POLICIES:
            if getattr(self, name) is not None and self.policy != name:
                raise SettingsError(
                    f"{_flag(name)} {getattr(self, name)} has no effect with the policy {self.policy!r}; "
                    f"give `--policy {name}` or leave {_flag(name)} out"
                )
        if self.policy_temperature > 0 and self.policy in (*ADAPTIVE_POLICIES, "origin", "left_to_right", "random"):
            raise SettingsError(
                f"--policy-temperature {self.policy_temperature} has no effect with the policy {self.policy!r}, which "
                "does not rank positions by a score; use it with maskgit_plus, topk_margin or entropy"
            )
        if self.temperature_role != "both" and self.temperature == 0:
            raise SettingsError(
                f"--temperature-role {self.temperature_role} has no effect at temperature 0; give a --temperature "
                "above 0"
            )
        if self.cache_refresh is not None and self.cache is None:
            raise SettingsError(
                f"--cache-refresh {self.cache_refresh} has no effect without a cache; give `--cache prefix` with it"
            )
        if self.cache is not None and self.policy == "origin":
            raise SettingsError(
                f"--cache {self.cache} counts the steps of a row, and the policy origin passes over rows in some; "
                "leave --cache out, or take another policy"
            )
        if self.lenience is not None and self.temperature > 0:
            raise SettingsError(
                f"--lenience {self.lenience} is for greedy decoding: at a temperature the tokens keep the model's "
                "distribution; leave it out, or give `--temperature 0`"
            )
        self._check_decoder()
        if self.mode == "reference":
            self._check_reference()
        elif self.eps != 1e-3:
            raise SettingsError("--eps belongs to the reference schedule; give `--mode reference` with it")

    def _check_decoder(self) -> None:
        """What a decoder would pass over is refused; `policy` has a default, so its default cannot be told from it."""
        if self.lenience is not None and self.decoder not in (None, "speculative"):
            raise SettingsError(
                f"--lenience {self.lenience} is for `--decoder speculative`, which checks what was drafted, and "
                f"{self.decoder} does not; leave one of them out"
            )
        if self.decoder in (None, "diffusion"):
            return
        idle = {
            "policy": self.policy not in ("entropy", "left_to_right"),
            "policy_temperature": self.policy_temperature > 0,
            "steps": self.steps is not None,
            "cache": self.cache is not None,
            "block_length": self.decoder == "autoregressive" and self.block_length not in (None, 1),
            "mode": self.mode != "exact",
        }
        for name, is_given in idle.items():
            if is_given:
                raise SettingsError(
                    f"{_flag(name)} {getattr(self, name)} has no effect with `--decoder {self.decoder}`, which settles "
                    f"tokens from left to right; leave {_flag(name)} out, or give `--decoder diffusion`"
                )

    def _check_reference(self) -> None:
        if self.policy not in REFERENCE_POLICIES:
            raise SettingsError(
                f"the reference mode has no policy {self.policy!r}; it has {', '.join(REFERENCE_POLICIES)}. "
                "Leave `--mode reference` out to use the others"
            )
        if self.block_length is not None:
            raise SettingsError(
                f"the reference mode has no blocks, and --block-length {self.block_length} was given; leave one out"
            )
        if self.cache is not None:
            raise SettingsError(
                f"--cache {self.cache} changes the output, and the reference mode is there to be compared with; leave "
                "one out"
            )
        if self.temperature_role != "both":
            raise SettingsError(
                "in the reference mode the temperature acts on content and order both; leave --temperature-role out"
            )


_NEAREST = {
    "top_p": "1 keeps everything",
    "threshold": "0.9 is usual, 1 waits until the model is certain",
    "eps": "0.001 is usual",
    "lenience": "0.5 keeps what is half as likely as the best, 1 the best alone",
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
