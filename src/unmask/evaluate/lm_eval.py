"""This project's models inside EleutherAI's lm-evaluation-harness (`pip install 'unmask[lm-eval]'`).

    python -m unmask.evaluate.lm_eval --model unmask \\
        --model_args pretrained=qwen2.5-coder-0.5b-instruct,policy=entropy,steps=128 \\
        --tasks gsm8k --apply_chat_template --batch_size 8

is the harness's own command line, which knows the model `unmask` besides its others. From Python, importing `UnmaskLM`
from here registers it, and `lm_eval.simple_evaluate(model="unmask", model_args={...}, tasks=[...])` finds it.

What decides how an answer is decoded, the first that speaks: the task's generation arguments (and `--gen_kwargs`), the
model arguments, the defaults of `DecodeSettings`. Stop strings are cut after decoding, and end it early where they
appear. Random numbers are named by the seed, the prompt and how often it was asked before; batches do not move them.
Log-likelihoods are exact for causal models and Monte-Carlo bounds (`mc_num` samples) for diffusion models; see
`decode/likelihood.py`. As in the harness's own models, special tokens written in a prompt are read as such, since a
rendered chat arrives as plain text; and a context's trailing spaces count to what follows.

The harness is imported when it is used, so that all but the registration works, and is tested, without it.
"""

import importlib
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unmask.decode.settings import DecodeSettings
from unmask.errors import CanvasError, SettingsError, UnmaskError, did_you_mean
from unmask.evaluate.prompts import cut_at_stops
from unmask.seeds import derive_seed
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.decode.session import Model

logger = logging.getLogger(__name__)

_LOAD: dict[str, type] = {
    "revision": str, "dtype": str, "device": str, "adapter": str, "drafter": str, "offline": bool, "mask_id": int,
    "attention": str,
}  # fmt: skip
_DECODE: dict[str, type] = {
    "max_new_tokens": int, "steps": int, "block_length": int, "policy": str, "policy_temperature": float,
    "threshold": float, "factor": float, "frechet": float, "entropy_bound": float, "decoder": str, "lenience": float,
    "temperature": float, "temperature_role": str, "top_p": float, "top_k": int,
    "cache": str, "cache_refresh": int, "mode": str, "eps": float, "seed": int,
}  # fmt: skip
_OWN: dict[str, type] = {"mc_num": int, "batch_size": int, "truncate": bool}
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the answer's length in generation arguments, the first of them counts."""
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1}
"""Generation arguments of other models that tasks set to the value without an effect."""


def __getattr__(name: str) -> Any:
    if name == "UnmaskLM":
        return register()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> type[Any]:
    """The class `UnmaskLM`, known to the harness as the model `unmask`."""
    try:
        registry = importlib.import_module("lm_eval.api.registry")
        base = importlib.import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise SettingsError(
            f"lm-evaluation-harness cannot be imported ({error}); install it with `pip install 'unmask[lm-eval]'`"
        ) from None
    if "UnmaskLM" not in globals():
        globals()["UnmaskLM"] = registry.register_model("unmask")(type("UnmaskLM", (HarnessModel, base), {}))
    return globals()["UnmaskLM"]  # type: ignore[no-any-return]


def main() -> None:
    """The harness's command line with the model `unmask` in it."""
    try:
        register()
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except UnmaskError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArguments:
    """What `--model_args` says besides the model's name."""

    load: Mapping[str, Any]
    """For `unmask.load`."""

    decode: Mapping[str, Any]
    """Fields of `DecodeSettings` that were given."""

    mc_num: int = 128
    """Masked copies of each answer for a Monte-Carlo log-likelihood."""

    batch_size: int = 8
    truncate: bool = False
    """Cut prompts that do not fit on the left, as the harness's own models do, instead of refusing the run."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "ModelArguments":
        """From the harness's parsed `NAME=VALUE` pairs. Raises SettingsError for names and values that are none."""
        known = {**_LOAD, **_DECODE, **_OWN}
        for name in given:
            if name not in known:
                raise SettingsError(f"model_args: {name!r} is not known; {did_you_mean(name, ['pretrained', *known])}")
        values = {k: _typed("model_args", k, v, known[k]) for k, v in given.items() if v is not None}
        for name in ("mc_num", "batch_size"):
            if values.get(name, 1) < 1:
                raise SettingsError(f"model_args: {name}={values[name]} is not a count; it must be at least 1")
        decode = {name: value for name, value in values.items() if name in _DECODE}
        DecodeSettings(**decode)
        return cls(
            load={name: value for name, value in values.items() if name in _LOAD},
            decode=decode,
            **{name: value for name, value in values.items() if name in _OWN},
        )


def request_settings(
    decode: Mapping[str, Any], gen_kwargs: Mapping[str, Any]
) -> tuple[DecodeSettings, tuple[str, ...]]:
    """How one request is decoded, and the strings that end its answer.

    `do_sample: false` is greedy whatever the temperature says; `do_sample: true` without a temperature means 1.

    >>> settings, stops = request_settings({"steps": 8}, {"until": ["\\n\\n"], "max_gen_toks": 16, "do_sample": False})
    >>> settings.max_new_tokens, settings.steps, settings.temperature, stops
    (16, 8, 0.0, ('\\n\\n',))
    """
    asked = {name: value for name, value in gen_kwargs.items() if value is not None}
    until = asked.pop("until", ())
    stops = (until,) if isinstance(until, str) else tuple(until)
    do_sample = asked.pop("do_sample", None)
    lengths = [asked.pop(name) for name in _LENGTHS if name in asked]
    for name, value in asked.items():
        if name in _NEUTRAL and value == _NEUTRAL[name]:
            continue
        if name not in _DECODE:
            known = ["until", "do_sample", *_LENGTHS, *(known for known in _DECODE if known not in _LENGTHS)]
            raise SettingsError(
                f"gen_kwargs: {name}={value!r} has no meaning for this model; {did_you_mean(name, known)}"
            )
    chosen = dict(decode)
    chosen |= {k: _typed("gen_kwargs", k, v, _DECODE[k]) for k, v in asked.items() if k in _DECODE}
    if lengths:
        chosen["max_new_tokens"] = _typed("gen_kwargs", "max_gen_toks", lengths[0], int)
    if do_sample is False:
        chosen["temperature"] = 0.0
    elif do_sample and "temperature" not in chosen:
        chosen["temperature"] = 1.0
    if not chosen.get("temperature"):
        chosen.pop("temperature_role", None)
    if chosen.get("top_k") == 0:  # "off" in the harness
        del chosen["top_k"]
    return DecodeSettings(**chosen), stops


def rolling_windows(
    ids: Sequence[int], *, prefix: Sequence[int], limit: int
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """A long text as (context, piece) pairs within `limit` tokens, each token in one piece.

    The first piece follows `prefix`, the next ones the token before them, and the last, which is shorter, as much of
    the text as fits.

    >>> [(list(context), list(piece)) for context, piece in rolling_windows(range(8), prefix=[9], limit=4)]
    [([9], [0, 1, 2]), ([2], [3, 4, 5]), ([4, 5], [6, 7])]
    """
    done = 0
    while done < len(ids):
        end = min(len(ids), done + limit - 1)
        yield (ids[max(0, end - limit) : done] if done else prefix), ids[done:end]
        done = end


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A `generate_until` request, ready to be decoded."""

    number: int
    """Where its answer goes."""
    ids: tuple[int, ...]
    settings: DecodeSettings
    stops: tuple[str, ...]
    seed: int


class HarnessModel:
    """What the harness asks of a model, without the harness. Requests have `args`, as its `Instance` has.

    `pretrained` is a name for `unmask.load`, or a loaded model; the rest are the names in `ModelArguments`.
    """

    cache_hook: Any = None

    def __init__(self, pretrained: "str | Model | None" = None, **model_args: Any) -> None:
        super().__init__()
        self.arguments = ModelArguments.parse(model_args)
        self.model = _load(pretrained, self.arguments.load)
        self._warned: set[str] = set()

    # Generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers to (context, generation arguments) requests, cut at the first stop string."""
        questions = self._questions(requests)
        groups: dict[Any, list[_Question]] = defaultdict(list)
        for question in questions:
            groups[question.settings, question.stops].append(question)
        texts = [""] * len(requests)
        done = 0
        for group in groups.values():
            group.sort(key=lambda question: -len(question.ids))
            size = 1 if group[0].settings.mode == "reference" else self.arguments.batch_size
            for at in range(0, len(group), size):
                for question, text in zip(group[at : at + size], self._decode(group[at : at + size]), strict=True):
                    texts[question.number] = text
                    self._keep("generate_until", requests[question.number].args, text)
                done += len(group[at : at + size])
                logger.info("generate_until: %d of %d", done, len(requests))
        return texts

    def _questions(self, requests: Sequence[Any]) -> list[_Question]:
        times: Counter[str] = Counter()
        questions = []
        for number, request in enumerate(requests):
            context, gen_kwargs = request.args
            settings, stops = request_settings(self.arguments.decode, gen_kwargs)
            if self.arguments.decode.get("temperature") and not settings.temperature:
                self._warn_once(
                    f"temperature={self.arguments.decode['temperature']} of model_args has no effect: the task asks "
                    "for greedy answers; give `--gen_kwargs do_sample=true,temperature=T` to sample"
                )
            seed = derive_seed(settings.seed, f"answer to {context}", times[context])
            times[context] += 1
            ids = tuple(self.context_ids(context))
            questions.append(_Question(number=number, ids=ids, settings=settings, stops=stops, seed=seed))
        fitted = self._fitted([(question.ids, question.settings.max_new_tokens) for question in questions])
        return [replace(question, ids=tuple(ids)) for question, ids in zip(questions, fitted, strict=True)]

    def _decode(self, batch: Sequence[_Question]) -> list[str]:
        settings = batch[0].settings
        if settings.mode == "reference":  # its one random stream is seeded as a whole
            settings = replace(settings, seed=batch[0].seed)
        rows = [[*question.ids, *[None] * settings.max_new_tokens] for question in batch]
        run = self.model.run_rows(
            rows, settings, samples=[question.seed for question in batch], stop_strings=batch[0].stops
        )
        return [cut_at_stops(result.text, batch[0].stops)[0] for result in run.finish()]

    # Log-likelihoods

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy answer) of (context, continuation) requests."""
        pairs = [self.encode_pair(*request.args) for request in requests]
        contexts = self._fitted([(context, len(answer)) for context, answer in pairs])
        found = []
        for request, context, (_, answer) in zip(requests, contexts, pairs, strict=True):
            found.append(self._likelihood(context, answer))
            self._keep("loglikelihood", request.args, found[-1])
            logger.info("loglikelihood: %d of %d", len(found), len(requests))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, those longer than the context in pieces."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = rolling_windows(
                self.model.tokenizer.encode(text, special=True),
                prefix=self.context_ids(""),
                limit=self.model.backbone.config.max_positions,
            )
            found.append(sum((self._likelihood(context, piece)[0] for context, piece in windows), 0.0))
            self._keep("loglikelihood_rolling", request.args, found[-1])
            logger.info("loglikelihood_rolling: %d of %d", len(found), len(requests))
        return found

    def _likelihood(self, context: Sequence[int], answer: Sequence[int]) -> tuple[float, bool]:
        from unmask.decode.likelihood import answer_log_likelihood

        if not answer:  # an empty text follows everything
            return 0.0, True
        found = answer_log_likelihood(
            self.model,
            context,
            answer,
            num_samples=self.arguments.mc_num,
            seed=self.arguments.decode.get("seed", 0),
            batch_size=self.arguments.batch_size,
        )
        return found.value, found.is_greedy

    # Text to ids

    def context_ids(self, context: str) -> list[int]:
        """A prompt's ids, with the beginning-of-text token where the checkpoint wants one and the text has none.

        A causal model needs something to begin with: for an empty prompt its beginning-of-text or end token.
        """
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(context, special=True)
        if tokenizer.adds_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
        if not ids and self.model.backbone.config.attention == "causal":
            ids = [token for token in (tokenizer.bos_id, tokenizer.eos_id) if token is not None][:1]
        return ids

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of a context and of what follows it, cut where the context's own ids end.

        A token across the border belongs to the continuation, unless that would leave it without any.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before, alone = self.context_ids(bare), self._plain_ids(continuation)
        if not bare:
            return before, alone
        return before, self.context_ids(bare + continuation)[len(before) :] or alone

    def _plain_ids(self, text: str) -> list[int]:
        return self.model.tokenizer.encode(text, special=True)

    def _fitted(self, sizes: Sequence[tuple[Sequence[int], int]]) -> list[Sequence[int]]:
        """The prompts, cut on the left where that is allowed. Raises CanvasError for what does not fit."""
        limit = self.model.backbone.config.max_positions
        long = [(ids, length) for ids, length in sizes if len(ids) + length > limit]
        if long:
            ids, length = max(long, key=lambda pair: len(pair[0]) + pair[1])
            most = max(length for _, length in long)
            if not self.arguments.truncate or most >= limit:
                raise CanvasError(
                    f"{len(long)} of {len(sizes)} requests do not fit the model's context of {limit}: the longest has "
                    f"{len(ids)} tokens of prompt and {length} of answer; give fewer examples (`--num_fewshot`), "
                    "shorter answers (`--gen_kwargs max_gen_toks=N`), or `truncate=True` in model_args, which "
                    "cuts prompts on the left"
                )
            self._warn_once(f"{len(long)} of {len(sizes)} prompts were cut on the left to fit the context of {limit}")
        return [ids if len(ids) + length <= limit else ids[len(ids) + length - limit :] for ids, length in sizes]

    # Conversations

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; without the generation prompt, the last message is an answer to go on with."""
        from unmask.text.chat import Message, render_chat

        tokenizer = self.model.tokenizer
        if tokenizer.chat_template is None:
            raise SettingsError(
                f"{self.model.name} has no chat template; leave --apply_chat_template out, or take an instruct model"
            )
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        prefill = None
        if not add_generation_prompt and messages and messages[-1].role == "assistant":
            prefill = messages.pop().content
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        return render_chat(
            tokenizer.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt or prefill is not None,
            prefill=prefill,
            **{name: tokenizer.piece(id_) for name, id_ in ids.items() if id_ is not None},
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The checkpoint's one template, for the harness's record; empty where none is applied."""
        return (self.model.tokenizer.chat_template or "") if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Names the harness's cache of requests."""
        return self.model.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "unmask_version": __version__,
            "unmask_model": self.model.name,
            "unmask_source": self.model.source,
            "unmask_attention": self.model.backbone.config.attention,
            "unmask_decode": dict(self.arguments.decode),
            "unmask_mc_num": self.arguments.mc_num,
            "unmask_truncate": self.arguments.truncate,
        }

    def _keep(self, kind: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Into the harness's cache (`--use_cache`) at once, so that an interrupted run goes on where it was."""
        if self.cache_hook is not None:
            self.cache_hook.add_partial(kind, arguments, result)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text)


def _load(pretrained: "str | Model | None", options: Mapping[str, Any]) -> "Model":
    from unmask.decode.session import Model, load
    from unmask.model.config import Override

    if isinstance(pretrained, Model):
        if options:
            raise SettingsError(f"{', '.join(options)} has no effect on a model that is loaded already; leave it out")
        return pretrained
    if not pretrained:
        raise SettingsError(
            "no model was named; give one with `--model_args pretrained=NAME` (`unmask models list` names some)"
        )
    rest = dict(options)
    if rest.get("device") == "cuda:0":  # what the harness's command line says where nobody chose
        rest["device"] = "auto"
    attention, block_length = Override.parse_attention(rest.pop("attention", None))
    override = Override(mask_id=rest.pop("mask_id", None), attention=attention, block_length=block_length)
    return load(pretrained, override=override, **rest)


def _typed(where: str, name: str, value: Any, kind: type) -> Any:
    """The value as its setting's type; the harness guesses types from the text."""
    convert: dict[type, Callable[[Any], Any]] = {
        str: str,
        float: lambda v: float(v) if not isinstance(v, bool) else None,
        int: lambda v: int(v) if not isinstance(v, bool) and float(v) == int(v) else None,
        bool: lambda v: v if isinstance(v, bool) else None,
    }
    try:
        found = convert[kind](value)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None:
        what = {float: "a number", int: "a whole number", bool: "True or False"}[kind]
        raise SettingsError(f"{where}: {name}={value!r} is not {what}; give one, as in `{name}={_EXAMPLES[kind]}`")
    return found


_EXAMPLES: dict[type, str] = {float: "0.5", int: "8", bool: "True"}

if __name__ == "__main__":
    main()
