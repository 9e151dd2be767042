"""A loaded model: a network, its tokenizer, and the verbs generate, chat and infill.

model = unmask.load("qwen2.5-coder-0.5b-instruct")
print(model.generate("Write a function that reverses a string.").text)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from unmask.decode.canvas import Canvas
from unmask.decode.denoiser import CachedDenoiser, Denoiser, FullDenoiser
from unmask.decode.drafted import DraftedDenoiser
from unmask.decode.observe import Observe
from unmask.decode.prefix import DEFAULT_REFRESH, PrefixDenoiser
from unmask.decode.run import Generation, Run
from unmask.decode.settings import ADAPTIVE_POLICIES, DecodeSettings
from unmask.decode.speculative import Speculator
from unmask.errors import CanvasError, CheckpointError, SettingsError, TextError, TrajectoryError, did_you_mean
from unmask.model import hub
from unmask.model.adapter import merge_adapter
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import load_folder, read_json
from unmask.model.config import Override
from unmask.model.drafter import Drafter
from unmask.model.drafter_files import attach_drafter, holds_drafter
from unmask.model.gguf import GGUFFile, load_gguf
from unmask.model.packed import can_pack, multiplies_bfloat16, pack
from unmask.model.table import Defaults
from unmask.text.chat import Message, encode_chat
from unmask.text.gguf_tokenizer import tokenizer_from_gguf
from unmask.text.tokenizer import Tokenizer
from unmask.trajectory import Step, Trajectory

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_log = logging.getLogger(__name__)
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|dlm_pad|>")


def load(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    adapter: str | Path | None = None,
    drafter: str | Path | None = None,
    override: Override | None = None,
    offline: bool = False,
    report: hub.Report | None = None,
) -> "Model":
    """Load a checkpoint by table name (`unmask models list`), hub id, folder or .gguf file.

    `dtype` "auto" is bfloat16 where the device multiplies it natively and float32 elsewhere. `adapter` is a folder with
    a LoRA adapter in PEFT's format. `drafter` is a folder with a drafter for this causal model, with which it settles
    several tokens in a forward, or a name of the table whose drafter is taken; None: the table's for this model where
    it is loaded as it is, and "none": no drafter. `override` states what the checkpoint does not say (mask id,
    attention, shift). Raises UnknownModelError, DownloadError, CheckpointError, TextError.
    """
    where = device_of(device)
    precision = dtype_of(dtype, where)
    found = hub.resolve(name, revision=revision, offline=offline, report=report)
    if found.path.is_dir():
        backbone = load_folder(found.path, dtype=precision, device=where, override=override)
        tokenizer = Tokenizer.from_folder(found.path)
        if "unmask" not in read_json(found.path / "config.json"):
            _check_mask(backbone, tokenizer, name=found.name, override=override or Override())
    else:
        file = GGUFFile(found.path)
        backbone = load_gguf(file, dtype=precision, device=where, override=override)
        tokenizer = tokenizer_from_gguf(file.metadata)
    if adapter is not None:
        merge_adapter(backbone, Path(adapter))
    if drafter is not None:
        folder = hub.drafter(drafter)
    else:
        folder = None if adapter is not None else _own_drafter(found, backbone)
    drafts = None if folder is None else attach_drafter(backbone, folder)
    if can_pack(backbone):
        pack(backbone)
    return Model(
        backbone,
        tokenizer,
        name=found.name,
        source=found.source,
        defaults=found.defaults,
        drafter=drafts,
        drafter_folder=folder,
    )


def _own_drafter(found: hub.Resolved, backbone: Backbone) -> Path | None:
    """The folder of the drafter that the table has for a model; None where it has none, or that is not usable."""
    if found.defaults.drafter is None or backbone.config.attention != "causal":
        return None
    folder = hub.PACKAGE / found.defaults.drafter
    if holds_drafter(folder):
        return folder
    _log.warning("%s settles one token a forward: its drafter is not in %s; install unmask again", found.name, folder)
    return None


def _check_mask(backbone: Backbone, tokenizer: Tokenizer, *, name: str, override: Override) -> None:
    """Refuse a checkpoint whose tokenizer has a mask token while its config calls it autoregressive."""
    config = backbone.config
    if tokenizer.mask_id is not None and config.mask_id is None and override.attention is None:
        raise CheckpointError(
            f"{name} has the mask token {tokenizer.mask_id} in its tokenizer, but its config says nothing of masks or "
            f"of how positions attend; give `--mask-id {tokenizer.mask_id} --attention full` (or block:LENGTH) for a "
            "diffusion model, `--attention causal` for an autoregressive one"
        )


@dataclass(slots=True)
class Model:
    """A network with its tokenizer. Cheap to keep, and safe to use for one run at a time."""

    backbone: Backbone
    tokenizer: Tokenizer
    name: str = "model"
    source: str = ""
    defaults: Defaults = field(default_factory=Defaults)
    """What the model table says it is best used with, for settings that are not given."""

    drafter: Drafter | None = None
    """What drafts for a causal model; it shares the backbone, which has the drafter's adapter."""

    drafter_folder: Path | None = None
    """Where it was read from."""

    def generate(
        self, prompt: str, *, raw: bool = False, system: str | None = None, runners_up: int = 0, **settings: Any
    ) -> Generation:
        """One answer to one prompt.

        An instruction-tuned checkpoint gets the prompt through its chat template; `raw` (and every checkpoint without
        a template) continues the text as it stands. `settings` are the fields of `DecodeSettings`; what is not given
        is as the model's `defaults` have it. The trajectory keeps the `runners_up` next best tokens of each commit.
        """
        return self.generate_many([prompt], raw=raw, system=system, runners_up=runners_up, **settings)[0]

    def generate_many(
        self,
        prompts: Sequence[str],
        *,
        n: int = 1,
        raw: bool = False,
        system: str | None = None,
        runners_up: int = 0,
        **settings: Any,
    ) -> list[Generation]:
        """`n` answers to each prompt in one batch, prompt by prompt. A row does not depend on its neighbours."""
        checked = self.settings(settings)
        encoded = [self.encode_prompt(prompt, raw=raw, system=system) for prompt in prompts]
        return self.start(encoded, checked, n=n, runners_up=runners_up).finish() if encoded else []

    def chat(
        self, messages: Sequence[Message], *, prefill: str | None = None, runners_up: int = 0, **settings: Any
    ) -> Generation:
        """The next answer of a conversation; `prefill` is its given beginning."""
        checked = self.settings(settings)
        ids = encode_chat(self.tokenizer, messages, prefill=prefill)
        return self.start([ids], checked, runners_up=runners_up).finish()[0]

    def settings(self, given: dict[str, Any]) -> DecodeSettings:
        """`DecodeSettings` of an answer from keyword arguments, with this model's own room where none is given."""
        room = self.defaults.max_new_tokens
        return settings_from(given if room is None else {"max_new_tokens": room, **given})

    def encode_prompt(self, prompt: str, *, raw: bool = False, system: str | None = None) -> list[int]:
        """A prompt's ids: through the chat template, or as plain text."""
        require_text(prompt)
        if raw or self.tokenizer.chat_template is None:
            if system is not None:
                raise SettingsError(
                    "--system was given, but the prompt does not go through a chat template; "
                    "leave --system out, or leave --raw out with a checkpoint that has a template"
                )
            begin = [self.tokenizer.bos_id] if self.tokenizer.adds_bos and self.tokenizer.bos_id is not None else []
            return begin + self.tokenizer.encode(prompt)
        turns = [Message("user", prompt)]
        return encode_chat(self.tokenizer, [Message("system", system), *turns] if system is not None else turns)

    def start(
        self, prompts: Sequence[Sequence[int]], settings: DecodeSettings, *, n: int = 1, runners_up: int = 0
    ) -> Run:
        """Lay out a canvas with `max_new_tokens` masks behind each prompt and begin; iterate the run to decode."""
        if n < 1:
            raise SettingsError(f"-n {n} is not a number of answers; it must be at least 1")
        longest = max(len(prompt) for prompt in prompts)
        limit = self.backbone.config.max_positions
        if longest + settings.max_new_tokens > limit:
            fits = limit - longest
            raise CanvasError(
                f"the prompt has {longest} tokens and {settings.max_new_tokens} new ones were asked for, but the "
                f"model's context holds {limit}; "
                + (f"give --max-new-tokens {fits} or fewer" if fits > 0 else "shorten the prompt")
            )
        rows = [[*prompt, *[None] * settings.max_new_tokens] for prompt in prompts for _ in range(n)]
        samples = [sample for _ in prompts for sample in range(n)]
        return self.run_rows(rows, settings, samples=samples, runners_up=runners_up)

    def run_rows(
        self,
        rows: Sequence[Sequence[int | None]],
        settings: DecodeSettings,
        *,
        samples: Sequence[int],
        end_ids: Sequence[int] | None = None,
        suppressed_ids: Sequence[int] = (),
        stop_strings: Sequence[str] = (),
        runners_up: int = 0,
    ) -> Run:
        """Decode rows in which None is masked. `end_ids` None takes the model's own.

        A row whose settled beginning holds one of `stop_strings` is done; its text still has the string (exact mode).
        `runners_up` is how many of the next best tokens the record keeps for each commit.
        """
        return Run(
            self.denoiser(settings),
            self.canvas(rows),
            settings,
            tokenizer=self.tokenizer,
            model=self.name,
            end_ids=self.end_ids if end_ids is None else end_ids,
            suppressed_ids=[*self.undefined_ids, *suppressed_ids],
            samples=samples,
            stop_strings=stop_strings,
            observe=Observe(runners_up=runners_up),
        )

    def canvas(
        self, rows: Sequence[Sequence[int | None]], *, committed_at: Sequence[Sequence[int | None]] | None = None
    ) -> Canvas:
        """A canvas of this model's ids. Raises CheckpointError for ids that the network has no row for."""
        size = self.backbone.config.vocab_size
        unknown = next((token for row in rows for token in row if token is not None and not 0 <= token < size), None)
        if unknown is not None:
            raise CheckpointError(
                f"the text holds the id {unknown}, but {self.name} scores {size} ids; its tokenizer belongs to another "
                "model: take the tokenizer's files and the weights from one checkpoint"
            )
        align = self.backbone.config.block_length or 1
        return Canvas.from_rows(rows, mask_id=self.backbone.config.mask_id, align=align, committed_at=committed_at)

    def resume(self, trajectory: Trajectory, *, at: int, runners_up: int = 0, **changes: Any) -> Run:
        """Take a recorded run up again after step `at`, with other settings if wanted.

        With the same settings the run ends as it did before, unless they name a cache that is not exact: it begins
        anew. The canvas stays as it was laid out. Raises
        TrajectoryError for a step that the run does not have, or a trajectory of another vocabulary.
        """
        ids = trajectory.ids_at(at)
        settings = resumed_settings(trajectory, changes)
        if not all(0 <= token < self.backbone.config.vocab_size for token in ids if token is not None):
            raise TrajectoryError(
                f"the trajectory was made by {trajectory.model} and holds ids beyond this model's vocabulary of "
                f"{self.backbone.config.vocab_size}; load that model with `--model {trajectory.model}`"
            )
        committed_at: list[int | None] = [None] * len(ids)
        for number, step in enumerate(trajectory.steps[:at]):
            for commit in step.commits:
                committed_at[commit.position] = number
        history = replace(
            trajectory,
            model=self.name,
            steps=trajectory.steps[:at],
            settings={key: value for key, value in _as_given(settings).items() if key != "seed"},
            seed=settings.seed,
            num_forwards=num_forwards(trajectory, trajectory.steps[:at]),
            pieces=dict(trajectory.pieces),
            finish_reason=None,
        )
        return Run(
            self.denoiser(settings),
            self.canvas([ids], committed_at=[committed_at]),
            settings,
            tokenizer=self.tokenizer,
            model=self.name,
            end_ids=trajectory.end_ids,
            suppressed_ids=self.undefined_ids,
            samples=[trajectory.sample],
            first_step=at,
            history=[history],
            observe=Observe(runners_up=runners_up),
        )

    def denoiser(self, settings: DecodeSettings) -> Denoiser | Speculator:
        """A fresh denoiser as the settings ask. Raises SettingsError for a decoder that the model does not have."""
        attention, asked = self.backbone.config.attention, settings.decoder
        if attention != "causal" and asked not in (None, "diffusion"):
            raise SettingsError(
                f"--decoder {asked} is for causal models, and {self.name} has {attention} attention; leave it out, or "
                "give `--policy left_to_right` for its tokens in that order"
            )
        if attention == "causal" and self.drafter is None and asked in ("speculative", "diffusion"):
            raise SettingsError(
                f"--decoder {asked} needs a drafter, and {self.name} was loaded without one; give `--drafter DIR`, or "
                "`--decoder autoregressive`"
            )
        if settings.lenience is not None and (self.drafter is None or settings.mode != "exact"):
            raise SettingsError(
                f"--lenience {settings.lenience} is about drafts, and nothing is drafted here; leave it out, or take a "
                "model with a drafter"
            )
        if self.drafter is not None and settings.cache is not None:
            raise SettingsError(
                f"--cache {settings.cache} is for models with full attention, and a causal model's own cache is exact "
                "and always on: leave --cache out"
            )
        if self.drafter is not None and asked == "diffusion":
            return DraftedDenoiser(self.backbone, self.drafter, block_length=settings.block_length)
        if self.drafter is not None and asked != "autoregressive" and settings.mode == "exact":
            longest = None if settings.block_length is None else settings.block_length - 1
            return Speculator(self.backbone, self.drafter, longest=longest)
        if settings.cache == "prefix":
            return PrefixDenoiser(self.backbone, refresh=settings.cache_refresh or DEFAULT_REFRESH)
        return self.exact_denoiser()

    def exact_denoiser(self) -> Denoiser:
        """A fresh denoiser with the model's own logits, cached where that changes nothing."""
        return (
            FullDenoiser(self.backbone) if self.backbone.config.attention == "full" else CachedDenoiser(self.backbone)
        )

    @property
    def end_ids(self) -> list[int]:
        """Ids that end an answer: what config and tokenizer say, and the vocabulary's end-of-turn tokens."""
        named = [self.tokenizer.token_to_id(token) for token in _END_TOKENS]
        known = [*self.backbone.config.end_ids, self.tokenizer.eos_id, *named]
        return sorted({token for token in known if token is not None and token < self.backbone.config.vocab_size})

    @property
    def undefined_ids(self) -> list[int]:
        """Ids that the network scores and the tokenizer does not know."""
        return self.tokenizer.undefined_ids(self.backbone.config.vocab_size)


def settings_from(given: dict[str, Any]) -> DecodeSettings:
    """`DecodeSettings` from keyword arguments; an unknown name is refused with the nearest known ones."""
    known = DecodeSettings.__dataclass_fields__
    for name in given:
        if name not in known:
            raise SettingsError(f"{name!r} is not a decoding setting; {did_you_mean(name, known)}")
    return DecodeSettings(**given)


def resumed_settings(trajectory: Trajectory, changes: dict[str, Any]) -> DecodeSettings:
    """A recorded run's settings with `changes`. Raises TrajectoryError for a run that cannot be taken up half-way."""
    if "max_new_tokens" in changes:
        raise SettingsError(
            f"--max-new-tokens {changes['max_new_tokens']} has no effect on a recorded run, whose canvas is laid out "
            "already; leave it out, or run the prompt again"
        )
    recorded = {**trajectory.settings, "seed": trajectory.seed}
    if changes.get("policy", recorded.get("policy")) != recorded.get("policy"):
        for name in (*ADAPTIVE_POLICIES, "policy_temperature"):  # they belonged to the other policy
            recorded.pop(name, None)
    if changes.get("temperature") == 0:
        recorded.pop("temperature_role", None)
    if changes.get("decoder") in ("autoregressive", "speculative"):  # these belonged to the decoder before
        for name in ("policy", *ADAPTIVE_POLICIES, "policy_temperature", "steps", "block_length"):
            recorded.pop(name, None)
    if changes.get("decoder", "speculative") != "speculative":
        recorded.pop("lenience", None)
    try:
        settings = settings_from({**recorded, **changes})
    except TypeError as error:
        raise TrajectoryError(f"the settings in the trajectory are damaged ({error}); run the prompt again") from None
    if settings.mode == "reference":
        raise TrajectoryError(
            "a run in the reference mode has one random stream and cannot be taken up half-way; run it again whole"
        )
    ids = trajectory.initial_ids
    if None in ids and any(token is not None for token in ids[ids.index(None) :]):
        raise TrajectoryError(
            "an infill cannot be taken up half-way: the record does not say which tokens its holes may not hold; "
            "fill the text again"
        )
    if any(step.resized for step in trajectory.steps):
        raise TrajectoryError("a run whose canvas was resized cannot be taken up half-way; run it again whole")
    return settings


def num_forwards(trajectory: Trajectory, steps: Sequence[Step]) -> int:
    """How often the network was asked in some steps of a recorded run: once in each, but in the exact mode not in one
    that commits nothing (`origin` has such steps)."""
    asks_always = trajectory.settings.get("mode") == "reference"
    return sum(asks_always or bool(step.commits) for step in steps)


def require_text(prompt: str) -> None:
    """Raise TextError for a prompt with nothing in it."""
    if not prompt.strip():
        raise TextError('the prompt is empty; give some text, as in `unmask generate "Write hello world."`')


def _as_given(settings: DecodeSettings) -> dict[str, Any]:
    values = {name: getattr(settings, name) for name in DecodeSettings.__dataclass_fields__}
    return {name: value for name, value in values.items() if value is not None}


def device_of(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU where there is one. Raises SettingsError for one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"--device {name} cannot be used here ({reason}); give cpu, cuda or auto") from None
    return device


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The precision of a name; `auto` is bfloat16 where the device multiplies it natively. Raises SettingsError."""
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    if name not in _DTYPES:
        raise SettingsError(f"--dtype {name} is not a precision; {did_you_mean(name, ['auto', *_DTYPES])}")
    return _DTYPES[name]
