"""Presets ask in the words of the protocol that they are named after."""

import pytest

from unmask.data.task import Task
from unmask.errors import SettingsError
from unmask.evaluate.prompts import (
    PRESETS,
    BenchmarkKind,
    PromptPreset,
    Rendered,
    cut_at_stops,
    find_preset,
    preset_for,
    render,
)
from unmask.model.table import models

STUB = '\n\ndef add(a, b):\n    """Add {two} numbers."""\n'
TASK = Task(task_id="HumanEval/0", prompt=STUB, instruction="Add two numbers.\n", suffix="\n# end", entry_point="add")
OFFICIAL = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")


def asked(preset: str, benchmark: str = "humaneval", kind: BenchmarkKind = "complete") -> Rendered:
    return render(find_preset(preset), TASK, benchmark=benchmark, kind=kind)


def conversation(rendered: Rendered) -> str:
    """As ChatML, in which DiffuCoder's paper prints its templates."""
    turns = "".join(f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in rendered.messages)
    return turns + "<|im_start|>assistant\n" + rendered.prefill


def test_base_continues_the_stripped_prompt_behind_one_newline() -> None:
    rendered = asked("base")
    assert rendered.text == STUB.strip() + "\n"
    assert rendered.kind == "completion"
    assert not rendered.is_chat
    assert rendered.stop_strings == (*OFFICIAL, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
    assert rendered.max_new_tokens == 768


def test_base_continues_bigcodebench_unstripped_and_longer() -> None:
    rendered = asked("base", "bigcodebench-complete-hard")
    assert rendered.text == STUB
    assert rendered.max_new_tokens == 1280
    assert "\ndef " in rendered.stop_strings


def test_base_has_other_stop_strings_for_mbpp() -> None:
    assert asked("base", "mbpp+").stop_strings == (*OFFICIAL, '\n"""', "\nassert")


def test_evalplus_asks_for_a_script_and_opens_the_fence() -> None:
    rendered = asked("evalplus", "mbpp+")
    assert conversation(rendered) == (
        "<|im_start|>user\n"
        "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
        f"```\n{STUB.strip()}\n```\n<|im_end|>\n"
        "<|im_start|>assistant\n"
        "Below is a Python script with a self-contained function that solves the problem and passes corresponding "
        "tests:\n```python\n"
    )
    assert rendered.stop_strings == (*OFFICIAL, "\n```\n")
    assert rendered.kind == "answer"
    assert rendered.is_chat


def test_evalplus_puts_no_fence_around_words() -> None:
    rendered = asked("evalplus", "bigcodebench-instruct", "instruct")
    assert rendered.messages[0].content.endswith("markdown code block:\nAdd two numbers.\n")
    assert rendered.max_new_tokens == 1280


@pytest.mark.parametrize("benchmark", ["humaneval", "humaneval+", "bigcodebench-complete"])
def test_diffucoder_asks_as_its_table_5(benchmark: str) -> None:
    assert conversation(asked("diffucoder", benchmark)) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nPlease complete the following problem:\n```\n{STUB.strip()}\n```\n<|im_end|>\n"
        "<|im_start|>assistant\nHere is the code to solve this problem:\n```python\n"
    )


@pytest.mark.parametrize(
    ("benchmark", "kind", "text"),
    [("mbpp+", "complete", STUB.strip()), ("bigcodebench-instruct-hard", "instruct", "Add two numbers.")],
)
def test_diffucoder_asks_as_its_table_6(benchmark: str, kind: BenchmarkKind, text: str) -> None:
    assert conversation(asked("diffucoder", benchmark, kind)) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n```\n{text}\n```\n<|im_end|>\n"
        "<|im_start|>assistant\nHere is the code to solve this problem:\n```python\n"
    )
    assert asked("diffucoder", benchmark, kind).max_new_tokens == 512


def test_qwen_asks_as_its_script() -> None:
    rendered = asked("qwen")
    assert conversation(rendered) == (
        "<|im_start|>system\n"
        "You are an intelligent programming assistant to produce Python algorithmic solutions<|im_end|>\n"
        "<|im_start|>user\nCan you complete the following Python function?\n"
        f"```python\n{STUB.strip()}\n```\n<|im_end|>\n"
        "<|im_start|>assistant\n```python\n"
    )
    assert rendered.max_new_tokens == 2048
    assert rendered.stop_strings == (*OFFICIAL, "\n```", "\n#")


def test_plain_begins_nothing_and_cuts_only_at_end_markers() -> None:
    rendered = asked("plain")
    assert rendered.prefill == ""
    assert rendered.stop_strings == OFFICIAL[:3]
    assert rendered.messages == asked("evalplus").messages


def test_holes_are_filled_in_the_given_text() -> None:
    rendered = asked("base", "infilling-single-line", "infill")
    assert (rendered.kind, rendered.text, rendered.suffix) == ("infill", STUB, "\n# end")
    assert rendered.stop_strings == ("\n",)
    assert asked("base", "infilling-multi-line", "infill").stop_strings == ()


def test_predictions_are_asked_in_the_benchmarks_own_words() -> None:
    raw, chat = asked("base", "cruxeval-output", "predict"), asked("evalplus", "cruxeval-output", "predict")
    assert (raw.kind, raw.text) == ("predict", STUB)
    assert "[/ANSWER]" in raw.stop_strings
    assert [message.content for message in chat.messages] == [STUB]
    assert chat.prefill == ""


def test_chat_models_get_evalplus_and_base_models_base() -> None:
    assert preset_for(is_chat=True, kind="complete").name == "evalplus"
    assert preset_for(is_chat=True, kind="instruct").name == "evalplus"
    assert preset_for(is_chat=False, kind="complete").name == "base"
    assert preset_for(is_chat=True, kind="infill").name == "base"


def test_a_models_own_preset_goes_before_these_but_for_holes() -> None:
    assert preset_for(is_chat=True, kind="complete", own="diffucoder").name == "diffucoder"
    assert preset_for(is_chat=True, kind="infill", own="diffucoder").name == "base"


def test_every_preset_that_the_model_table_names_is_one() -> None:
    named = [entry.defaults.preset for entry in models() if entry.defaults.preset is not None]
    assert set(named) == {"diffucoder"}
    assert set(named) <= set(PRESETS)


def test_every_preset_says_whose_it_is() -> None:
    assert list(PRESETS) == ["base", "evalplus", "diffucoder", "qwen", "plain"]
    assert all(preset.source and preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize(
    ("preset", "benchmark", "kind", "message"),
    [
        (
            "base",
            "bigcodebench-instruct",
            "instruct",
            "bigcodebench-instruct puts its tasks in words, and the preset base",
        ),
        (
            "qwen",
            "bigcodebench-complete",
            "complete",
            "the preset qwen has no wording for bigcodebench-complete; use eval",
        ),
        ("qwen", "bigcodebench-instruct", "instruct", "use evalplus, diffucoder or plain"),
        ("evalplus", "infilling-multi-line", "infill", "no place for the text behind a hole; use the preset base"),
        ("base", "humaneval", "completion", "'completion' is no kind of benchmark; did you mean complete"),
    ],
)
def test_what_a_preset_cannot_ask_is_refused(preset: str, benchmark: str, kind: BenchmarkKind, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        asked(preset, benchmark, kind)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="'difucoder' is no prompt preset; did you mean diffucoder"):
        find_preset("difucoder")


def test_braces_in_a_task_are_left_alone() -> None:
    task = Task(task_id="x/0", prompt="def f():\n    return {}, '{}'", entry_point="f")
    preset = PromptPreset(name="x", source="x", code="Do {}.")
    content = render(preset, task, benchmark="humaneval", kind="complete").messages[0].content
    assert content == "Do def f():\n    return {}, '{}'."


def test_the_earliest_stop_string_cuts() -> None:
    assert cut_at_stops("a\nclass B\ndef c", ["\ndef ", "\nclass "]) == ("a", "\nclass ")
    assert cut_at_stops("a", ["\ndef "]) == ("a", None)
    assert cut_at_stops("\n```\nx", ["\n```", "\n```\n"]) == ("", "\n```")
    assert cut_at_stops("a", ()) == ("a", None)
