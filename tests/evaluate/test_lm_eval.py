"""The adapter to lm-evaluation-harness: what requests become, without the harness; and one run inside it where it is
installed."""

import importlib.util
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unmask.decode.likelihood import answer_log_likelihood
from unmask.decode.settings import DecodeSettings
from unmask.errors import CanvasError, SettingsError, TextError
from unmask.evaluate import lm_eval
from unmask.evaluate.lm_eval import HarnessModel, ModelArguments, request_settings, rolling_windows

from checkpoints import END_ID, IM_END_ID, IM_START_ID, scripted, spell, tiny_model, write_checkpoint

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None


@dataclass(frozen=True)
class Request:
    """As much of the harness's `Instance` as the adapter reads."""

    args: tuple[Any, ...]


def asked(*requests: tuple[Any, ...]) -> list[Request]:
    return [Request(args) for args in requests]


def harness_model(kind: str = "full", *, chat: bool = False, seed: int = 0, limit: int = 512, **arguments: Any):
    return HarnessModel(pretrained=tiny_model(kind, chat=chat, seed=seed, max_positions=limit), **arguments)


def writes(text: str, *, prompt: str, **arguments: Any) -> HarnessModel:
    """A model that answers `prompt` with `text`."""
    return HarnessModel(pretrained=scripted(tiny_model("full"), spell(text, start=len(prompt))), **arguments)


# Settings of a request


def test_what_the_request_says_goes_before_the_model_arguments():
    settings, stops = request_settings(
        {"steps": 8, "max_new_tokens": 64, "top_p": 0.5, "temperature": 0.3},
        {"until": ["a", "b"], "max_gen_toks": 32, "do_sample": True, "temperature": 0.7, "top_p": 0.9},
    )
    assert settings == DecodeSettings(steps=8, max_new_tokens=32, top_p=0.9, temperature=0.7)
    assert stops == ("a", "b")


@pytest.mark.parametrize(
    ("decode", "gen_kwargs", "temperature"),
    [
        ({}, {}, 0.0),
        ({}, {"temperature": 0.4}, 0.4),
        ({}, {"do_sample": False, "temperature": 1.0}, 0.0),
        ({"temperature": 0.3}, {"do_sample": False}, 0.0),
        ({"temperature": 0.3}, {}, 0.3),
        ({"temperature": 0.3}, {"do_sample": True}, 0.3),
        ({}, {"do_sample": True}, 1.0),
        ({}, {"do_sample": True, "temperature": 0.0}, 0.0),
    ],
)
def test_do_sample_decides_between_greedy_and_the_temperature(decode, gen_kwargs, temperature):
    assert request_settings(decode, gen_kwargs)[0].temperature == temperature


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_every_name_of_the_answers_length_is_understood(name):
    assert request_settings({"max_new_tokens": 256}, {name: 24})[0].max_new_tokens == 24


def test_the_harness_s_own_name_of_the_length_counts_first():
    assert request_settings({}, {"max_new_tokens": 5, "max_gen_toks": 24})[0].max_new_tokens == 24


def test_decoding_settings_may_come_with_the_generation_arguments():
    settings, _ = request_settings({"policy": "entropy"}, {"policy": "threshold", "threshold": 0.8, "until": "\n"})
    assert (settings.policy, settings.threshold) == ("threshold", 0.8)


def test_one_stop_string_need_not_be_a_list():
    assert request_settings({}, {"until": "\n\n"})[1] == ("\n\n",)


def test_arguments_without_an_effect_pass_and_others_are_refused():
    assert request_settings({}, {"num_beams": 1, "repetition_penalty": 1.0, "top_k": 0})[0] == DecodeSettings()
    with pytest.raises(
        SettingsError, match=r"gen_kwargs: num_beams=4 has no meaning for this model; known: until, do_s"
    ):
        request_settings({}, {"num_beams": 4})
    with pytest.raises(SettingsError, match=r"tempratur=0\.5 has no meaning.*did you mean temperature"):
        request_settings({}, {"tempratur": 0.5})


def test_a_temperature_role_is_left_out_where_the_request_is_greedy():
    decode = {"temperature": 0.5, "temperature_role": "content"}
    assert request_settings(decode, {"do_sample": False})[0] == DecodeSettings()
    assert request_settings(decode, {})[0].temperature_role == "content"


# Model arguments


def test_model_arguments_are_sorted_into_loading_decoding_and_the_rest():
    arguments = ModelArguments.parse(
        {"dtype": "float32", "steps": 64.0, "temperature": 1, "mc_num": 32, "batch_size": "4", "device": None}
    )
    assert arguments.load == {"dtype": "float32"}
    assert arguments.decode == {"steps": 64, "temperature": 1.0}
    assert (arguments.mc_num, arguments.batch_size, arguments.truncate) == (32, 4, False)


def test_every_decoding_setting_is_a_model_argument():
    assert set(lm_eval._DECODE) == set(DecodeSettings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"polcy": "entropy"}, r"model_args: 'polcy' is not known; did you mean policy\?"),
        ({"steps": "many"}, r"model_args: steps='many' is not a whole number; give one, as in `steps=8`"),
        ({"steps": 1.5}, r"steps=1\.5 is not a whole number"),
        ({"steps": True}, r"steps=True is not a whole number"),
        ({"batch_size": "auto"}, r"batch_size='auto' is not a whole number"),
        ({"temperature": "hot"}, r"temperature='hot' is not a number; give one, as in `temperature=0\.5`"),
        ({"offline": "maybe"}, r"offline='maybe' is not True or False"),
        ({"mc_num": 0}, r"mc_num=0 is not a count; it must be at least 1"),
        ({"policy": "maskgit"}, r"--policy 'maskgit' is not known; did you mean maskgit_plus"),
        ({"threshold": 0.5}, r"--threshold 0\.5 has no effect with the policy 'entropy'"),
    ],
)
def test_wrong_model_arguments_are_refused_before_anything_is_loaded(given, message):
    with pytest.raises(SettingsError, match=message):
        HarnessModel(pretrained="no/such-model", **given)


def test_a_model_has_to_be_named():
    with pytest.raises(SettingsError, match=r"no model was named; give one with `--model_args pretrained=NAME`"):
        HarnessModel(steps=8)


def test_loading_arguments_are_refused_with_a_loaded_model():
    with pytest.raises(SettingsError, match=r"dtype has no effect on a model that is loaded already"):
        harness_model(dtype="float32")


def test_a_checkpoint_is_loaded_by_its_folder(tmp_path):
    model = HarnessModel(pretrained=str(write_checkpoint(tmp_path / "tiny")), dtype="float32", max_new_tokens=4)
    (text,) = model.generate_until(asked(("hi", {})))
    assert text == model.model.generate("hi", raw=True, max_new_tokens=4).text
    assert model.get_model_info()["unmask_decode"] == {"max_new_tokens": 4}
    assert json.loads(json.dumps(model.get_model_info()))["unmask_attention"] == "full"


def test_the_harness_s_default_device_is_no_choice(tmp_path):
    folder = str(write_checkpoint(tmp_path / "tiny"))
    assert HarnessModel(pretrained=folder, device="cuda:0").model.backbone.device.type in ("cpu", "cuda")


def test_what_the_checkpoint_does_not_say_can_be_stated(tmp_path):
    folder = str(write_checkpoint(tmp_path / "tiny", "causal"))
    model = HarnessModel(pretrained=folder, dtype="float32", mask_id=256, attention="block:4")
    config = model.model.backbone.config
    assert (config.attention, config.block_length, config.mask_id) == ("block", 4, 256)


# Generation


def test_answers_are_cut_at_the_first_stop_string():
    model = writes("one\ntwo\n\nthree", prompt="ask:")
    stops = ({"until": until, "max_gen_toks": 24} for until in ([], ["\n\n"], ["\n\n", "\n"], ["absent"]))
    texts = model.generate_until(asked(*(("ask:", gen_kwargs) for gen_kwargs in stops)))
    assert texts == ["one\ntwo\n\nthree", "one\ntwo", "one", "one\ntwo\n\nthree"]


def test_the_requests_length_bounds_the_answer():
    model = writes("abcdefgh", prompt="ask:", max_new_tokens=64)
    assert model.generate_until(asked(("ask:", {"max_gen_toks": 3}), ("ask:", {}))) == ["abc", "abcdefgh"]


def test_answers_come_in_the_order_of_the_requests_and_do_not_depend_on_the_batch():
    requests = asked(*((prompt, {"max_gen_toks": 6}) for prompt in ("a", "bbbbbbbb", "cc", "dddd")))
    alone = [harness_model(batch_size=1).generate_until([request])[0] for request in requests]
    assert harness_model(batch_size=3).generate_until(requests) == alone
    assert len(set(alone)) == 4


def test_sampled_answers_differ_between_repeats_and_are_the_same_in_every_run():
    gen_kwargs = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    requests = asked(("a", gen_kwargs), ("b", gen_kwargs), ("a", gen_kwargs))
    first = harness_model(batch_size=2).generate_until(requests)
    assert first[0] != first[2]
    assert harness_model(batch_size=1).generate_until(requests) == first
    assert harness_model().generate_until(requests[1:])[0] == first[1]
    assert harness_model(seed=0, batch_size=2).generate_until(requests[2:]) == [first[0]]


def test_the_seed_moves_sampled_answers():
    request = asked(("a", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}))
    model = tiny_model()
    texts = {HarnessModel(pretrained=model, seed=seed).generate_until(request)[0] for seed in range(3)}
    assert len(texts) == 3


def test_the_reference_mode_answers_each_request_alone():
    gen_kwargs = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 6}
    requests = asked(("a", gen_kwargs), ("bb", gen_kwargs))
    together = harness_model(mode="reference", policy="entropy", steps=6).generate_until(requests)
    assert harness_model(mode="reference", policy="entropy", steps=6).generate_until(requests[1:]) == together[1:]


def test_a_temperature_that_a_greedy_task_overrules_is_said_once(caplog):
    model = writes("x", prompt="ask:", temperature=0.5)
    with caplog.at_level(logging.WARNING, logger="unmask.evaluate.lm_eval"):
        model.generate_until(asked(*[("ask:", {"do_sample": False, "max_gen_toks": 2})] * 3))
    (record,) = caplog.records
    assert "temperature=0.5 of model_args has no effect: the task asks for greedy answers" in record.getMessage()


def test_results_reach_the_harness_s_cache_as_they_come():
    kept = []

    class Hook:
        def add_partial(self, *record: Any) -> None:
            kept.append(record)

    model = harness_model(mc_num=2)
    model.cache_hook = Hook()
    (text,) = model.generate_until(asked(("a", {"max_gen_toks": 2})))
    (pair,) = model.loglikelihood(asked(("a", "b")))
    (value,) = model.loglikelihood_rolling(asked(("ab",)))
    assert kept == [
        ("generate_until", ("a", {"max_gen_toks": 2}), text),
        ("loglikelihood", ("a", "b"), pair),
        ("loglikelihood_rolling", ("ab",), value),
    ]


def test_prompts_that_do_not_fit_are_refused_before_anything_is_decoded():
    model = harness_model(limit=32)
    requests = asked(("short", {"max_gen_toks": 8}), ("x" * 30, {"max_gen_toks": 8}))
    with pytest.raises(
        CanvasError, match=r"1 of 2 requests do not fit.*context of 32: the longest has 30 tokens of pro"
    ):
        model.generate_until(requests)
    with pytest.raises(CanvasError, match=r"`truncate=True` in model_args, which cuts prompts on the left"):
        model.loglikelihood(asked(("x" * 30, "abc")))


def test_prompts_are_cut_on_the_left_where_that_is_allowed(caplog):
    with caplog.at_level(logging.WARNING, logger="unmask.evaluate.lm_eval"):
        model = harness_model(limit=32, truncate=True, mc_num=7)
        assert model.generate_until(asked(("y" * 40 + "x" * 24, {"max_gen_toks": 8}))) == harness_model(
            limit=32
        ).generate_until(asked(("x" * 24, {"max_gen_toks": 8})))
        assert model.loglikelihood(asked(("y" * 9 + "x" * 29, "abc"))) == model.loglikelihood(asked(("x" * 29, "abc")))
    assert "1 of 1 prompts were cut on the left to fit the context of 32" in caplog.text
    with pytest.raises(CanvasError, match=r"the longest has 1 tokens of prompt and 40 of answer"):
        model.generate_until(asked(("x", {"max_gen_toks": 40})))


# Log-likelihoods


@pytest.mark.parametrize("kind", ["full", "causal", "block"])
def test_log_likelihoods_are_those_of_the_decoder(kind):
    model = harness_model(kind, mc_num=9, seed=3)
    found = model.loglikelihood(asked(("what is", " it?"), ("what is ", "it?")))
    expected = answer_log_likelihood(model.model, [*b"what is"], [*b" it?"], num_samples=9)
    assert found == [(expected.value, expected.is_greedy)] * 2  # the space at the end goes to the answer


def test_the_greedy_answer_is_reported_as_such():
    model = writes("yes", prompt="ask:")
    assert [is_greedy for _, is_greedy in model.loglikelihood(asked(("ask:", "yes"), ("ask:", "no!")))] == [True, False]


def test_an_empty_continuation_is_certain():
    assert harness_model().loglikelihood(asked(("what", ""))) == [(0.0, True)]


def test_an_empty_context_is_nothing_for_diffusion_and_the_end_token_for_a_causal_model():
    assert harness_model("full").encode_pair("", "ab") == ([], [97, 98])
    assert harness_model("causal").encode_pair("", "ab") == ([END_ID], [97, 98])
    assert harness_model("causal").loglikelihood(asked(("", "ab")))[0][0] < 0


def test_a_token_across_the_border_belongs_to_the_continuation():
    class Pairs:  # "a" and "b" next to each other are one token
        adds_bos, bos_id = False, None

        def encode(self, text: str, *, special: bool) -> list[int]:
            return [ord(character) for character in text.replace("ab", "\u00ff")]

    model = harness_model()
    model.model.tokenizer = Pairs()
    assert model.encode_pair("xa", "bc") == ([120, 97], [99])  # as the harness cuts it
    assert model.encode_pair("xa", "b") == ([120, 97], [98])  # and not without any token


def test_rolling_windows_cover_each_token_once_and_fit():
    for length in (1, 9, 10, 11, 35):
        windows = list(rolling_windows(range(length), prefix=[-1], limit=10))
        assert [token for _, piece in windows for token in piece] == list(range(length))
        assert all(len(context) + len(piece) <= 10 for context, piece in windows)
        assert [list(context) for context, _ in windows[:1]] == [[-1]]
        for context, piece in windows[1:]:
            assert [*context, *piece] == list(range(context[0], piece[-1] + 1))
        if len(windows) > 1:
            assert len(windows[-1][0]) + len(windows[-1][1]) == 10


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_the_rolling_likelihood_is_the_sum_over_the_windows(kind):
    model = harness_model(kind, limit=16, mc_num=4)
    (found,) = model.loglikelihood_rolling(asked(("twenty-two characters!",)))
    ids, prefix = [*b"twenty-two characters!"], [END_ID] if kind == "causal" else []
    parts = [(prefix, ids[:15]), (ids[6:15], ids[15:])]
    expected = sum(answer_log_likelihood(model.model, given, piece, num_samples=4).value for given, piece in parts)
    assert found == pytest.approx(expected)


# Conversations

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]


def test_a_conversation_becomes_the_checkpoints_text_and_its_control_tokens():
    model = harness_model(chat=True)
    text = model.apply_chat_template(TURNS[:1])
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = model.context_ids(text)
    assert ids[0] == IM_START_ID
    assert ids == model.model.encode_prompt("hi")


def test_an_answer_that_was_begun_is_left_open():
    model = harness_model(chat=True)
    text = model.apply_chat_template(TURNS, add_generation_prompt=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nwell"
    assert model.context_ids(text).count(IM_END_ID) == 1


def test_a_base_model_has_no_conversations():
    with pytest.raises(SettingsError, match=r"tiny-full has no chat template; leave --apply_chat_template out"):
        harness_model().apply_chat_template(TURNS)
    with pytest.raises(TextError, match="'tool' is no role"):
        harness_model(chat=True).apply_chat_template([{"role": "tool", "content": "x"}])


def test_the_record_names_template_and_tokenizer():
    model = harness_model(chat=True)
    model.model.name = "org/model"
    assert model.tokenizer_name == "org__model"
    assert "im_start" in model.chat_template(True)
    assert (model.chat_template(False), harness_model().chat_template(True)) == ("", "")


# With and without the harness


@pytest.mark.skipif(HAS_HARNESS, reason="lm-evaluation-harness is installed")
def test_a_missing_harness_says_how_to_get_it():
    with pytest.raises(SettingsError, match=r"cannot be imported.*install it with `pip install 'unmask\[lm-eval\]'`"):
        from unmask.evaluate.lm_eval import UnmaskLM  # noqa: F401
    done = subprocess.run([sys.executable, "-m", "unmask.evaluate.lm_eval"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: lm-evaluation-harness cannot be imported")


def test_nothing_else_is_promised_by_the_module():
    with pytest.raises(AttributeError, match="has no attribute 'LM'"):
        _ = lm_eval.LM


TASKS = {
    "generate": """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["!"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "sample": """
output_type: generate_until
doc_to_target: "{{answer}}"
repeats: 2
generation_kwargs: {until: ["!"], max_gen_toks: 6, do_sample: true, temperature: 1.0, top_p: 0.9}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "choose": """
output_type: multiple_choice
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "roll": """
output_type: loglikelihood_rolling
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
""",
}

RUN = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
from unmask.evaluate.lm_eval import UnmaskLM
folder, checkpoint, chat = sys.argv[1:]
tasks = TaskManager(include_path=folder, include_defaults=False)
results = lm_eval.simple_evaluate(
    model="unmask", model_args=f"pretrained={checkpoint},steps=6,mc_num=3,dtype=float32", batch_size=2,
    tasks=["generate", "sample", "choose", "roll"], task_manager=tasks, log_samples=True, bootstrap_iters=0,
    apply_chat_template=chat == "chat",
)
print("RESULT" + json.dumps({
    "scores": results["results"], "config": results["config"],
    "answers": {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()},
}, default=str))
"""


@pytest.mark.skipif(not HAS_HARNESS, reason="lm-evaluation-harness is not installed")
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_the_harness_runs_its_four_kinds_of_requests(tmp_path: Path, style: str):
    checkpoint = write_checkpoint(tmp_path / "tiny", chat=True)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"is {n} odd?", "answer": "x"}) + "\n" for n in range(3)))
    for name, body in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        question = 'doc_to_text: ""\n' if name == "roll" else 'doc_to_text: "{{question}}"\n'
        (tmp_path / f"{name}.yaml").write_text(head + question + body)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), str(checkpoint), style],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("RESULT")[1])
    own = HarnessModel(pretrained=str(checkpoint), dtype="float32", steps=6)
    prompt = "is 0 odd?"
    if style == "chat":
        prompt = own.apply_chat_template([{"role": "user", "content": prompt}])
    (expected,) = own.generate_until(asked((prompt, {"until": ["!"], "max_gen_toks": 6, "do_sample": False})))
    assert found["answers"]["generate"][0] == [[expected]]
    (repeats,) = found["answers"]["sample"][0]
    assert len(set(repeats)) == 2
    assert found["scores"]["choose"]["acc,none"] in (0, 1 / 3, 2 / 3, 1)
    assert float(found["scores"]["roll"]["word_perplexity,none"]) > 1
    assert found["config"]["unmask_decode"] == {"steps": 6}
