"""How a task is put to a model: named presets, each with its wording, its prefilled answer and its stop strings.

A preset says what a published protocol did, so that a score can be compared with its numbers. A text is cut before its
first stop string when it is decoded. In the exact mode a row is also done as soon as its settled beginning holds one,
which changes the cost and not the text; the reference mode, as the released samplers, decodes the whole canvas.

    base        EvalPlus and BigCodeBench for base models: the prompt is continued
    evalplus    EvalPlus and BigCodeBench for chat models: an instruction, and an answer begun up to an opened fence
    diffucoder  DiffuCoder's paper (arXiv 2506.20639, tables 5 and 6)
    qwen        Qwen2.5-Coder's own EvalPlus script for instruct models
    plain       EvalPlus's instruction alone, the whole answer left to the model
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from unmask.data.task import Task
from unmask.errors import SettingsError, did_you_mean

if TYPE_CHECKING:
    from unmask.text.chat import Message

BenchmarkKind = Literal["complete", "instruct", "infill", "predict"]
BENCHMARK_KINDS: tuple[str, ...] = get_args(BenchmarkKind)
RenderedKind = Literal["completion", "answer", "infill", "predict"]

_END_MARKERS = ("<|endoftext|>", "<|endofmask|>", "</s>")
_SCRIPT_STARTS = ("\nif __name__", "\ndef main(", "\nprint(")
_OFFICIAL_STOPS = (*_END_MARKERS, *_SCRIPT_STARTS)
_FUNCTION_STOPS = ("\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
_MBPP_STOPS = ('\n"""', "\nassert")
_PREDICT_STOPS = ("[/ANSWER]",)

_EVALPLUS_INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
_EVALPLUS_ANSWER = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPreset:
    """One way of asking. `{}` in a template stands for the task's text; an empty template: the preset cannot ask it."""

    name: str
    source: str
    """Whose protocol this is."""

    is_chat: bool = True
    system: str = ""
    """System message; empty: the chat template's own."""

    code: str = ""
    """For a prompt of code (HumanEval, MBPP, BigCodeBench Complete, files of tasks)."""

    mbpp: str = ""
    """For MBPP's prompt, where that is asked in another way."""

    words: str = ""
    """For a task in words (BigCodeBench Instruct). A chat preset without it has no wording for BigCodeBench at all."""

    prefill: str = ""
    """How the answer begins, given to the model."""

    stop_strings: tuple[str, ...] = _OFFICIAL_STOPS
    max_new_tokens: int = 768
    """The protocol's answer length; EvalPlus's unless it has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A task as one preset asks it: `text` to continue, or `messages` to answer behind `prefill`."""

    kind: RenderedKind
    """What comes back: goes to `extract(kind=…)`; a prediction goes to the benchmark's own `answer_program`."""

    text: str = ""
    """What a raw continuation follows, exactly: the prompt for `extract`. For a hole, what stands before it."""

    suffix: str = ""
    """What stands behind the hole."""

    messages: "tuple[Message, ...]" = ()
    prefill: str = ""
    stop_strings: tuple[str, ...] = ()
    max_new_tokens: int = 768

    @property
    def is_chat(self) -> bool:
        """Whether the task is put as a conversation, not as text to continue."""
        return bool(self.messages)


PRESETS: dict[str, PromptPreset] = {
    preset.name: preset
    for preset in (
        PromptPreset(
            name="base",
            source="EvalPlus 0.3.1 and BigCodeBench 0.2, direct completion",
            is_chat=False,
            code="{}",
        ),
        PromptPreset(
            name="evalplus",
            source="EvalPlus 0.3.1 and BigCodeBench 0.2, chat with a prefilled answer",
            code=f"{_EVALPLUS_INSTRUCTION}\n```\n{{}}\n```\n",
            words=f"{_EVALPLUS_INSTRUCTION}\n{{}}\n",
            prefill=f"{_EVALPLUS_ANSWER}\n```python\n",
            stop_strings=(*_OFFICIAL_STOPS, "\n```\n"),
        ),
        PromptPreset(
            name="diffucoder",
            source="DiffuCoder, arXiv 2506.20639, tables 5 and 6; stop strings of the suite that it names",
            system="You are a helpful assistant.",
            code="Please complete the following problem:\n```\n{}\n```\n",
            mbpp="```\n{}\n```\n",
            words="```\n{}\n```\n",
            prefill="Here is the code to solve this problem:\n```python\n",
            stop_strings=(*_OFFICIAL_STOPS, "\n```"),
            max_new_tokens=512,
        ),
        PromptPreset(
            name="qwen",
            source="Qwen2.5-Coder, its EvalPlus script for instruct models",
            system="You are an intelligent programming assistant to produce Python algorithmic solutions",
            code="Can you complete the following Python function?\n```python\n{}\n```\n",
            prefill="```python\n",
            stop_strings=(*_OFFICIAL_STOPS, "\n```", "\n#"),
            max_new_tokens=2048,
        ),
        PromptPreset(
            name="plain",
            source="EvalPlus's instruction without its prefilled answer",
            code=f"{_EVALPLUS_INSTRUCTION}\n```\n{{}}\n```\n",
            words=f"{_EVALPLUS_INSTRUCTION}\n{{}}\n",
            stop_strings=_END_MARKERS,  # the others would cut prose and example code before the solution
        ),
    )
}


def find_preset(name: str) -> PromptPreset:
    """The preset of that name.

    >>> find_preset("diffucoder").max_new_tokens
    512
    """
    if name not in PRESETS:
        raise SettingsError(f"{name!r} is no prompt preset; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def preset_for(*, is_chat: bool, kind: BenchmarkKind, own: str | None = None) -> PromptPreset:
    """The preset that is used when none is asked for: the model's `own`, or by whether it holds conversations.

    Holes are filled in the raw text, by any model.

    >>> preset_for(is_chat=True, kind="complete").name, preset_for(is_chat=True, kind="infill", own="qwen").name
    ('evalplus', 'base')
    >>> preset_for(is_chat=True, kind="complete", own="qwen").name
    'qwen'
    """
    if kind == "infill":
        return PRESETS["base"]
    return find_preset(own or ("evalplus" if is_chat else "base"))


def render(preset: PromptPreset, task: Task, *, benchmark: str, kind: BenchmarkKind) -> Rendered:
    """One task as the preset asks it. MBPP and BigCodeBench, known by the benchmark's name, have their own wording.

    >>> task = Task(task_id="x/0", prompt="def one():\\n", entry_point="one")
    >>> render(find_preset("qwen"), task, benchmark="humaneval", kind="complete").prefill
    '```python\\n'
    """
    if kind not in BENCHMARK_KINDS:
        raise SettingsError(f"{kind!r} is no kind of benchmark; {did_you_mean(str(kind), BENCHMARK_KINDS)}")
    if kind == "infill":
        return _hole(preset, task, is_one_line=benchmark == "infilling-single-line")
    if kind == "predict":
        return _prediction(preset, task)
    is_mbpp, is_bigcodebench = benchmark.startswith("mbpp"), benchmark.startswith("bigcodebench")
    max_new_tokens = 1280 if is_bigcodebench and preset.max_new_tokens == 768 else preset.max_new_tokens
    if kind == "instruct":
        template, text = preset.words, task.instruction or task.prompt
    else:
        template, text = (preset.mbpp if is_mbpp else "") or preset.code, task.prompt or task.instruction
    if not template or (is_bigcodebench and preset.is_chat and not preset.words):
        raise SettingsError(_cannot_ask(preset, benchmark))
    if not preset.is_chat:
        # BigCodeBench continues its prompt as it is; EvalPlus strips it and ends it with one newline.
        return Rendered(
            kind="completion",
            text=text if is_bigcodebench else text.strip() + "\n",
            stop_strings=(*preset.stop_strings, *(_MBPP_STOPS if is_mbpp else _FUNCTION_STOPS)),
            max_new_tokens=max_new_tokens,
        )
    return Rendered(
        kind="answer",
        messages=_messages(preset.system, template.replace("{}", text.strip(), 1)),
        prefill=preset.prefill,
        stop_strings=preset.stop_strings,
        max_new_tokens=max_new_tokens,
    )


def cut_at_stops(text: str, stops: Iterable[str]) -> tuple[str, str | None]:
    """The text before the first stop string in it, and which one that was.

    >>> cut_at_stops("    return 1\\n\\nprint(1)", ["\\nprint(", "\\nclass "])
    ('    return 1\\n', '\\nprint(')
    >>> cut_at_stops("    return 1", ["\\nprint("])
    ('    return 1', None)
    """
    found = [(text.find(stop), stop) for stop in stops if stop and stop in text]
    if not found:
        return text, None
    at, stop = min(found)
    return text[:at], stop


def _hole(preset: PromptPreset, task: Task, *, is_one_line: bool) -> Rendered:
    if preset.is_chat:
        raise SettingsError(
            f"the preset {preset.name} asks in a conversation, which has no place for the text behind a hole; use the "
            "preset base for infilling"
        )
    # what stands behind a missing line begins on a line of its own: the gap ends with its first newline
    stops = ("\n",) if is_one_line else ()
    return Rendered(kind="infill", text=task.prompt, suffix=task.suffix, stop_strings=stops)


def _prediction(preset: PromptPreset, task: Task) -> Rendered:
    """The benchmark's prompt says everything, examples included; no preset adds words to it."""
    stops = (*_END_MARKERS, *_PREDICT_STOPS)
    if not preset.is_chat:
        return Rendered(kind="predict", text=task.prompt, stop_strings=stops)
    return Rendered(kind="predict", messages=_messages(preset.system, task.prompt), stop_strings=stops)


def _messages(system: str, content: str) -> "tuple[Message, ...]":
    from unmask.text.chat import Message

    user = Message("user", content)
    return (Message("system", system), user) if system else (user,)


def _cannot_ask(preset: PromptPreset, benchmark: str) -> str:
    able = [other.name for other in PRESETS.values() if other.words]
    if preset.is_chat:
        return f"the preset {preset.name} has no wording for {benchmark}; use {', '.join(able[:-1])} or {able[-1]}"
    return (
        f"{benchmark} puts its tasks in words, and the preset {preset.name} continues code; use a chat model with "
        f"{', '.join(able[:-1])} or {able[-1]}, or bigcodebench-complete"
    )
