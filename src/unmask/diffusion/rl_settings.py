"""What can be chosen about the scores and losses of reinforcement learning; no tensors here, so that a settings file is
read without torch.

What the choices do is in `likelihood` and `policy_gradient`.
"""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from unmask.errors import SettingsError, did_you_mean

EstimatorName = Literal[
    "mean_field", "coupled", "coupled_normalised", "decoupled", "elbo", "espo", "left_to_right", "trajectory"
]
Level = Literal["token", "sequence"]
Baseline = Literal["group_mean", "leave_one_out"]
Scale = Literal["none", "group", "batch"]
LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
KlEstimator = Literal["k1", "k2", "k3"]

_OPTIONS: dict[str, tuple[str, ...]] = {
    "mean_field": ("samples", "prompt_mask"),
    "coupled": ("pairs", "t_min", "t_max"),
    "coupled_normalised": ("pairs", "t_min", "t_max"),
    "decoupled": ("pairs", "t_min", "t_max"),
    "elbo": ("samples", "t_min", "t_max"),
    "espo": ("samples",),
    "left_to_right": (),
    "trajectory": ("shrink",),
}
"""Which options each estimator has; all of them have `level`."""

_T_RANGES = {"elbo": (1e-3, 1.0)}
_PAIR_T_RANGE = (0.2, 0.8)
"""DiffuCoder's (2506.20639, section 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """How an answer is scored. Every default is valid; they are the paper's."""

    name: EstimatorName = "coupled"
    """The estimator; see `likelihood`."""

    pairs: int = 1
    """Pairs of masks beside the full mask, for `coupled`, `coupled_normalised` and `decoupled`."""

    samples: int = 1
    """Draws that are averaged, for `elbo`, `espo`, and `mean_field` with a prompt mask."""

    t_min: float | None = None
    """Least mask probability of a draw. None: 0.2 where masks come in pairs, 0.001 for `elbo`."""

    t_max: float | None = None
    """Greatest mask probability of a draw. None: 0.8 where masks come in pairs, 1 for `elbo`."""

    prompt_mask: float = 0.0
    """Probability with which `mean_field` masks each token of the prompt (d1: 0.15; on code it did not learn)."""

    shrink: int = 1
    """Neighbouring steps of a rollout that `trajectory` scores in one view (TraceRL: 8)."""

    level: Literal["auto", "token", "sequence"] = "auto"
    """What a ratio is made of: each token's score, or the sum over the answer. `auto` is each estimator's own."""

    def __post_init__(self) -> None:
        known = get_args(EstimatorName)
        if self.name not in known:
            raise SettingsError(f"estimator {self.name!r} is not known; {did_you_mean(str(self.name), known)}")
        levels = ("auto", *get_args(Level))
        if self.level not in levels:
            raise SettingsError(f"estimator level {self.level!r} is not known; {did_you_mean(str(self.level), levels)}")
        for name in ("pairs", "samples", "shrink"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)} is not a count; it must be at least 1")
        if not 0 <= self.prompt_mask < 1:
            raise SettingsError(
                f"prompt_mask={self.prompt_mask} is no share of the prompt that leaves some of it; it lies in 0 to "
                "below 1, such as 0.15"
            )
        self._check_effects()
        if "t_min" in _OPTIONS[self.name]:
            self._check_times()

    def _check_effects(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if field.name in ("name", "level", *_OPTIONS[self.name]) or given == field.default:
                continue
            users = [name for name, options in _OPTIONS.items() if field.name in options]
            raise SettingsError(
                f"{field.name}={given} has no effect with the estimator {self.name!r}; leave it out, or choose "
                f"{' or '.join(users)}"
            )
        if self.name == "mean_field" and self.samples > 1 and not self.prompt_mask:
            raise SettingsError(
                f"samples={self.samples} draws of mean_field are all alike without a prompt_mask; set samples=1, or "
                "prompt_mask=0.15"
            )

    def _check_times(self) -> None:
        t_min, t_max = self.t_range
        if not 0 < t_min <= t_max <= 1:
            least, greatest = _T_RANGES.get(self.name, _PAIR_T_RANGE)
            raise SettingsError(
                f"t_min={t_min} and t_max={t_max} are no range of mask probabilities; they must be "
                f"0 < t_min <= t_max <= 1, such as {least:g} and {greatest:g}"
            )
        if self.name != "elbo" and abs(t_min + t_max - 1) > 1e-9:
            raise SettingsError(
                f"t_min={t_min} and t_max={t_max} do not lie symmetrically about one half: the second mask of a pair "
                f"is at 1 - t, so the pair would speak of other mask probabilities than were asked for; set "
                f"t_max={1 - t_min:g}, or t_min={1 - t_max:g}"
            )

    @property
    def t_range(self) -> tuple[float, float]:
        """Least and greatest mask probability, the defaults filled in."""
        least, greatest = _T_RANGES.get(self.name, _PAIR_T_RANGE)
        return (least if self.t_min is None else self.t_min), (greatest if self.t_max is None else self.t_max)

    @property
    def ratio_level(self) -> Level:
        """What a ratio is made of, `auto` resolved.

        >>> Estimator().ratio_level, Estimator(name="espo").ratio_level
        ('token', 'sequence')
        """
        if self.level != "auto":
            return self.level
        return "sequence" if self.name in ("elbo", "espo") else "token"


def check_group(num_generations: int, baseline: Baseline) -> None:
    """Refuse groups in which no answer can be better than another.

    >>> check_group(2, "leave_one_out")
    """
    if num_generations >= 2:
        return
    why = (
        "leave_one_out compares each answer with the others of its group, and there is none"
        if baseline == "leave_one_out"
        else "an answer is compared with the mean of its group, which is itself"
    )
    raise SettingsError(
        f"num_generations={num_generations} leaves nothing to learn from: {why}; set at least 2, and 8 to 16 are usual"
    )


def check_clipping(epsilon: float, epsilon_high: float | None, delta: float | None) -> None:
    """Refuse bounds of the ratio that contradict each other.

    >>> check_clipping(0.2, 0.28, 4.0)
    """
    if not 0 < epsilon < 1:
        raise SettingsError(
            f"epsilon={epsilon} is no bound: the ratio is kept above 1 - epsilon, so it lies in (0, 1); 0.2 is usual, "
            "and DiffuCoder takes 0.5"
        )
    high = epsilon if epsilon_high is None else epsilon_high
    if high <= 0:
        raise SettingsError(
            f"epsilon_high={epsilon_high} is no bound: the ratio is kept below 1 + epsilon_high, so it must be above "
            "0, such as 0.28"
        )
    if delta is not None and delta <= 1 + high:
        raise SettingsError(
            f"delta={delta} lies at or below 1 + epsilon_high = {1 + high:g}, where the ratio is clipped already; set "
            "it higher, such as 4, or leave it out"
        )
