"""A loaded model: where it comes from, what its verbs give, how a run is counted, and taking one up half-way."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import unmask
from unmask.decode.infill import Hole, infill
from unmask.decode.run import Generation, Run
from unmask.decode.session import Model, load
from unmask.decode.settings import DecodeSettings
from unmask.errors import CanvasError, CheckpointError, SettingsError, TextError, TrajectoryError, UnknownModelError
from unmask.model import hub
from unmask.model.config import Override
from unmask.model.table import Defaults
from unmask.text.chat import Message
from unmask.text.tokenizer import Tokenizer
from unmask.trajectory import Commit, Step, Trajectory, first_difference, save
from unmask.trajectory import load as load_trajectories

from checkpoints import (
    CHATML,
    END,
    END_ID,
    IM_END_ID,
    IM_START_ID,
    MASK_ID,
    SPECIAL,
    VOCAB_SIZE,
    scripted,
    spell,
    tiny_model,
    write_checkpoint,
    write_gguf,
)

KINDS = ("full", "causal", "block")
PROMPT = "def add(a, b):"
UNDEFINED = range(256 + len(SPECIAL), VOCAB_SIZE)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {kind: tiny_model(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def chatty() -> Model:
    return tiny_model("causal", chat=True)


def run_of(model: Model, prompt: str = PROMPT, **how: Any) -> Run:
    return model.start([model.encode_prompt(prompt, raw=True)], DecodeSettings(**how))


def tokens_of(result: Generation) -> list[int]:
    return [commit.token_id for step in result.trajectory.steps for commit in step.commits]


def message(kind: type[Exception], action: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(kind) as caught:
        action(*arguments, **named)
    return str(caught.value)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_package_offers_the_session() -> None:
    assert unmask.load is load
    assert unmask.Model is Model


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_as_the_model_that_was_saved(tmp_path: Path, models: dict[str, Model], kind: str) -> None:
    loaded = load(str(write_checkpoint(tmp_path / "tiny", kind)), dtype="float32")
    assert (loaded.name, loaded.source) == (str(tmp_path / "tiny"), "local folder")
    assert loaded.backbone.config == models[kind].backbone.config
    answer = loaded.generate(PROMPT, max_new_tokens=24)
    assert tokens_of(answer) == tokens_of(models[kind].generate(PROMPT, max_new_tokens=24))
    assert answer.model == str(tmp_path / "tiny")


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_a_gguf_file_loads_with_its_tokenizer(tmp_path: Path, models: dict[str, Model], kind: str) -> None:
    loaded = load(str(write_gguf(tmp_path / "tiny.gguf", kind, chat=True)), dtype="float32")
    assert loaded.source == "local file"
    assert loaded.backbone.config.attention == kind
    assert loaded.tokenizer.chat_template == CHATML
    assert loaded.undefined_ids == [*range(264, VOCAB_SIZE)]
    expected = Model(models[kind].backbone, loaded.tokenizer).generate("a\n\n", max_new_tokens=24)
    answer = loaded.generate("a\n\n", max_new_tokens=24)
    assert 263 in answer.trajectory.initial_ids  # the pair of newlines
    assert tokens_of(answer) == tokens_of(expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_precision_is_the_one_asked_for(tmp_path: Path, dtype: str) -> None:
    loaded = load(str(write_checkpoint(tmp_path)), dtype=dtype)
    assert loaded.backbone.dtype is getattr(torch, dtype)
    assert loaded.generate(PROMPT, max_new_tokens=2).num_forwards == 2


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_precision_is_bfloat16_where_the_processor_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    monkeypatch.setattr("unmask.decode.session.can_pack", lambda _: False)  # which the machine might not be able to
    assert load(str(write_checkpoint(tmp_path))).backbone.embed_tokens.weight.dtype is dtype


def test_a_precision_or_device_that_is_none_is_refused(tmp_path: Path) -> None:
    assert message(SettingsError, load, str(tmp_path), dtype="bf16") == (
        "--dtype bf16 is not a precision; did you mean bfloat16 or float16? (known: auto, float32, bfloat16, float16)"
    )
    told = message(SettingsError, load, str(tmp_path), device="gpu")
    assert told.startswith("--device gpu cannot be used here (")
    assert told.endswith("); give cpu, cuda or auto")
    assert "\n" not in told


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    assert "did you mean smollm2-135m-instruct" in message(UnknownModelError, load, "smollm2-135m-instrct")
    assert "holds no config.json" in message(CheckpointError, load, str(tmp_path))
    folder = write_checkpoint(tmp_path / "a")
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer" in message(TextError, load, str(folder))


def test_an_override_says_what_the_checkpoint_does_not(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path, "causal"))
    full = load(folder, dtype="float32", override=Override(attention="full", mask_id=MASK_ID))
    assert full.backbone.config.attention == "full"
    assert full.generate(PROMPT, max_new_tokens=6, steps=2).num_forwards == 2
    told = message(CheckpointError, load, folder, override=Override(attention="full"))
    assert "it names no mask id; give it with `--mask-id ID`" in told


def write_adapter(folder: Path, scale: float) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    names = [f"base_model.model.model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    pairs = {f"{name}.lora_A.weight": torch.ones(1, 32) for name in names}
    pairs |= {f"{name}.lora_B.weight": torch.full((32, 1), scale) for name in names}
    save_file(pairs, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_merged_before_the_first_token(tmp_path: Path, models: dict[str, Model]) -> None:
    folder = str(write_checkpoint(tmp_path / "tiny"))
    adapter = write_adapter(tmp_path / "lora", 0.5)
    plain = models["full"].backbone.layers[0].self_attn.q_proj.weight  # type: ignore[union-attr]
    for given_as in (adapter, str(adapter)):
        loaded = load(folder, dtype="float32", adapter=given_as)
        merged = loaded.backbone.layers[0].self_attn.q_proj.weight  # type: ignore[union-attr]
        assert torch.allclose(merged, plain + 0.5)  # type: ignore[arg-type, operator]
    assert "holds no adapter_config.json" in message(CheckpointError, load, folder, adapter=tmp_path)


# --- the prompt -------------------------------------------------------------------------------------------------------


def test_a_chat_template_is_used_where_there_is_one(chatty: Model, models: dict[str, Model]) -> None:
    ids = chatty.encode_prompt("hi", system="be brief")
    assert chatty.tokenizer.decode(ids, skip_special=False) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(IM_START_ID) == 3
    assert chatty.encode_prompt("hi", raw=True) == [*b"hi"]
    assert models["causal"].encode_prompt("hi") == [*b"hi"]


def test_a_prompt_cannot_smuggle_control_tokens_in(chatty: Model) -> None:
    ids = chatty.encode_prompt("<|im_end|><|mask|><|endoftext|>")
    assert ids.count(IM_END_ID) == 1
    assert not {MASK_ID, END_ID} & set(ids)


def test_raw_text_begins_with_the_token_that_the_checkpoint_begins_with(models: dict[str, Model]) -> None:
    tokenizer = Tokenizer.byte_level(["<|beginoftext|>"])
    tokenizer.bos_id, tokenizer.adds_bos = 256, True
    assert Model(models["causal"].backbone, tokenizer).encode_prompt("hi") == [256, *b"hi"]


@pytest.mark.parametrize("prompt", ["", " ", "\n\t \r\n"])
def test_an_empty_prompt_is_refused(models: dict[str, Model], prompt: str) -> None:
    assert message(TextError, models["full"].generate, prompt) == (
        'the prompt is empty; give some text, as in `unmask generate "Write hello world."`'
    )


def test_a_system_message_without_a_template_is_refused(chatty: Model, models: dict[str, Model]) -> None:
    for model, raw in ((chatty, True), (models["full"], False)):
        assert message(SettingsError, model.generate, "hi", raw=raw, system="be brief") == (
            "--system was given, but the prompt does not go through a chat template; leave --system out, or leave "
            "--raw out with a checkpoint that has a template"
        )


def test_a_prompt_longer_than_the_context_is_refused(models: dict[str, Model]) -> None:
    full = models["full"]
    assert message(CanvasError, full.generate, "x" * 500, max_new_tokens=13) == (
        "the prompt has 500 tokens and 13 new ones were asked for, but the model's context holds 512; "
        "give --max-new-tokens 12 or fewer"
    )
    assert message(CanvasError, full.generate, "x" * 512, max_new_tokens=1).endswith("; shorten the prompt")
    assert full.generate("x" * 500, max_new_tokens=12, steps=1).num_tokens <= 12


def test_an_unknown_setting_is_refused_with_the_nearest(models: dict[str, Model], chatty: Model) -> None:
    told = message(SettingsError, models["full"].generate, "hi", temprature=0.5)
    assert told.startswith("'temprature' is not a decoding setting; did you mean temperature")
    for action in (models["full"].generate_many, chatty.chat):
        assert "did you mean max_new_tokens" in message(SettingsError, action, [], max_tokens=5)


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_many_answers_come_prompt_by_prompt_each_as_if_alone(models: dict[str, Model], kind: str) -> None:
    model = models[kind]
    how: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5}
    many = model.generate_many(["ab", "a longer prompt"], n=3, **how)
    assert [result.sample for result in many] == [0, 1, 2, 0, 1, 2]
    assert len({tuple(tokens_of(result)) for result in many}) == 6
    for prompt, result in (("ab", many[0]), ("a longer prompt", many[3])):
        alone = model.generate(prompt, **how)
        assert tokens_of(result) == tokens_of(alone)
        assert (result.text, result.num_tokens, result.finish_reason) == (
            alone.text,
            alone.num_tokens,
            alone.finish_reason,
        )


def test_no_prompts_give_no_answers_and_no_answers_are_refused(models: dict[str, Model]) -> None:
    assert models["full"].generate_many([]) == []
    told = message(SettingsError, models["full"].generate_many, ["hi"], n=0)
    assert told == "-n 0 is not a number of answers; it must be at least 1"


def test_a_conversation_goes_through_the_template_with_its_prefill(chatty: Model, models: dict[str, Model]) -> None:
    turns = [Message("user", "hi"), Message("assistant", "hello"), Message("user", "more")]
    answer = chatty.chat(turns, prefill="Well,", max_new_tokens=3)
    prompt = answer.trajectory.text(token for token in answer.trajectory.initial_ids if token is not None)
    assert prompt.endswith("hello<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\nWell,")
    assert not answer.text.startswith("Well,")
    assert "no chat template" in message(TextError, models["full"].chat, turns)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    folder = str(write_checkpoint(tmp_path, kind))
    texts = []
    for seed in (1, 1, 2):
        answers = load(folder).generate_many([PROMPT], n=2, max_new_tokens=16, temperature=1.2, seed=seed)
        texts.append([answer.text.encode() for answer in answers])
    assert texts[0] == texts[1] != texts[2]


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    policy=st.sampled_from(["entropy", "random", "left_to_right"]),
)
def test_ends_and_ids_without_a_token_are_never_in_the_text(
    models: dict[str, Model], kind: str, seed: int, policy: str
) -> None:
    result = models[kind].generate(PROMPT, max_new_tokens=24, temperature=3.0, seed=seed, policy=policy)
    settled = tokens_of(result)
    assert not set(settled) & {models[kind].backbone.config.mask_id, *UNDEFINED}
    assert not any(special in result.text for special in SPECIAL)
    places = {c.position: c.token_id for step in result.trajectory.steps for c in step.commits}
    row = [places[position] for position in sorted(places)]
    ends = [at for at, token in enumerate(row) if token in models[kind].end_ids]
    answer = row[: ends[0]] if ends else row
    assert result.text == bytes(token for token in answer if token < 256).decode("utf-8", "replace")
    assert (result.finish_reason == "stop") == bool(ends)


def test_the_ends_are_those_of_config_tokenizer_and_vocabulary() -> None:
    assert tiny_model("causal", end_ids=(7,)).end_ids == [7, END_ID, IM_END_ID]
    assert tiny_model("causal", vocab_size=257, end_ids=()).end_ids == []


def test_an_end_inside_the_prompt_ends_nothing(chatty: Model) -> None:
    result = scripted(chatty, spell("ok", start=len(chatty.encode_prompt("hi")))).generate("hi", max_new_tokens=5)
    assert IM_END_ID in chatty.end_ids
    assert (result.text, result.finish_reason) == ("ok", "stop")


# --- counting ---------------------------------------------------------------------------------------------------------


def writer(models: dict[str, Model], text: str) -> Model:
    """Writes `text` behind the two bytes of a prompt, then ends, equally sure of everything."""
    return scripted(models["full"], spell(text, start=2))


def counts(result: Generation) -> tuple[str, str, int, int, int]:
    return (result.text, result.finish_reason, result.num_tokens, result.wasted_tokens, result.num_forwards)


def test_an_answer_that_ends_by_itself_stops(models: dict[str, Model]) -> None:
    result = writer(models, "abc").generate("hi", max_new_tokens=10, policy="left_to_right")
    assert counts(result) == ("abc", "stop", 3, 0, 4)
    assert result.trajectory.finish_reason == "stop"


def test_what_is_settled_behind_the_end_is_wasted_and_the_end_itself_is_not(models: dict[str, Model]) -> None:
    result = writer(models, "abc").generate("hi", max_new_tokens=10, policy="left_to_right", steps=2)
    assert counts(result) == ("abc", "stop", 3, 1, 1)  # five in one step: a, b, c, the end, and one more
    result = writer(models, "abc").generate("hi", max_new_tokens=10, policy="left_to_right", steps=1)
    assert counts(result) == ("abc", "stop", 3, 6, 1)


def test_an_answer_that_fills_its_room_ends_by_length(models: dict[str, Model]) -> None:
    assert counts(writer(models, "abcdef").generate("hi", max_new_tokens=4)) == ("abcd", "length", 4, 0, 4)
    assert counts(writer(models, "abcd").generate("hi", max_new_tokens=4)) == ("abcd", "length", 4, 0, 4)
    assert counts(writer(models, "abc").generate("hi", max_new_tokens=4)) == ("abc", "stop", 3, 0, 4)


def test_an_answer_may_be_empty(models: dict[str, Model]) -> None:
    assert counts(writer(models, "").generate("hi", max_new_tokens=4, policy="left_to_right")) == ("", "stop", 0, 0, 1)


def test_a_run_that_is_left_half_way_gives_what_it_has(models: dict[str, Model]) -> None:
    run = run_of(writer(models, "abcdef"), "hi", max_new_tokens=6, policy="left_to_right")
    assert counts(run.results()[0]) == ("", "interrupted", 0, 0, 0)
    list(itertools.islice(run, 2))
    assert counts(run.results()[0]) == ("ab", "interrupted", 2, 0, 2)
    assert counts(run.finish()[0]) == ("abcdef", "length", 6, 0, 6)


def test_a_run_that_is_left_on_purpose_stops(models: dict[str, Model]) -> None:
    run = run_of(writer(models, "abcdef"), "hi", max_new_tokens=6, policy="left_to_right")
    list(itertools.islice(run, 2))
    run.leave()
    assert counts(run.results()[0]) == ("ab", "stop", 2, 0, 2)


def test_half_way_an_end_with_masks_before_it_is_neither_token_nor_waste(models: dict[str, Model]) -> None:
    def end_first(row: list[int], position: int) -> Tensor:
        out = torch.zeros(VOCAB_SIZE)
        out[END_ID if position >= 5 else ord("x")] = float(10 + position)
        return out

    run = run_of(scripted(models["full"], end_first), "hi", max_new_tokens=4, policy="maskgit_plus")
    list(itertools.islice(run, 1))
    assert counts(run.results()[0]) == ("", "interrupted", 0, 0, 1)
    assert counts(run.finish()[0]) == ("xxx", "stop", 3, 0, 4)


def test_a_row_that_is_done_no_longer_counts_forwards(models: dict[str, Model]) -> None:
    def scores(row: list[int], position: int) -> Tensor:
        return spell("ab" if row[0] == ord("x") else "abcdef", start=2)(row, position)

    short, long = scripted(models["full"], scores).generate_many(["xx", "yy"], max_new_tokens=8, policy="left_to_right")
    assert counts(short) == ("ab", "stop", 2, 0, 3)
    assert counts(long) == ("abcdef", "stop", 6, 0, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_share_every_position_that_was_computed(models: dict[str, Model], kind: str) -> None:
    model = models[kind]
    prompts = [model.encode_prompt(prompt) for prompt in ("a", "bcd", "efghijk")]
    run = model.start(prompts, DecodeSettings(max_new_tokens=10))
    total = sum(event.positions_computed for event in run)
    assert sum(result.positions_computed for result in run.results()) == total > 0


def test_the_clock_runs_inside_the_loop_alone(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    run = run_of(models["full"], max_new_tokens=3)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    for _ in run:
        next(ticks)  # the caller draws
    assert run.seconds == 3.0


def test_the_record_as_json_leaves_out_the_trajectory_alone(models: dict[str, Model]) -> None:
    result = models["full"].generate(PROMPT, max_new_tokens=4, temperature=0.5, seed=9)
    record = json.loads(json.dumps(result.to_json()))
    needed = {"text", "model", "num_tokens", "num_forwards", "seconds", "seed", "settings", "finish_reason"}
    assert needed <= record.keys()
    assert "trajectory" not in record
    assert record["seed"] == 9
    assert record["settings"]["temperature"] == 0.5
    assert "seed" not in record["settings"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_live_frame_is_the_frame_that_the_record_replays(models: dict[str, Model], kind: str) -> None:
    run = run_of(models[kind], max_new_tokens=12, steps=12, temperature=1.0)
    live = [copy.deepcopy(run.frame())]  # its confidences are those of the run, which go on growing
    live += [copy.deepcopy(run.frame()) for _ in run]
    assert live == list(run.trajectories[0].frames())
    assert set(run.pieces()) == {token for frame in live for token in frame.ids if token is not None}


# --- taking a run up again --------------------------------------------------------------------------------------------

WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 4},
    {"policy": "random", "temperature": 1.0},
    {"policy": "origin", "steps": 20},
    {"policy": "maskgit_plus", "policy_temperature": 0.5, "steps": 5},
    {"policy": "threshold", "threshold": 0.05},
    {"policy": "factor", "factor": 3.0},
    {"block_length": 5, "steps": 9},
]


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_resumed_run_ends_as_the_unbroken_one(models: dict[str, Model], tmp_path: Path, how: dict[str, Any]) -> None:
    whole = models["full"].generate(PROMPT, max_new_tokens=14, **how)
    save(tmp_path / "run.jsonl", [whole.trajectory])
    (recorded,) = load_trajectories(tmp_path / "run.jsonl")
    for at in range(len(recorded.steps) + 1):
        again = models["full"].resume(recorded, at=at).finish()[0]
        assert first_difference(again.trajectory, whole.trajectory) is None
        assert counts(again) == counts(whole)
        assert again.settings == whole.settings
        assert again.seed == whole.seed


@pytest.mark.parametrize("kind", ["causal", "block"])
def test_a_resumed_run_with_a_cache_ends_as_the_unbroken_one(models: dict[str, Model], kind: str) -> None:
    for sample, whole in enumerate(models[kind].generate_many([PROMPT], n=2, max_new_tokens=20, temperature=1.0)):
        for at in range(len(whole.trajectory.steps) + 1):
            again = models[kind].resume(whole.trajectory, at=at).finish()[0]
            assert again.sample == sample
            assert tokens_of(again) == tokens_of(whole)


def test_another_temperature_changes_what_comes_after_and_nothing_before(models: dict[str, Model]) -> None:
    whole = models["full"].generate(PROMPT, max_new_tokens=14)
    before, pieces = json.dumps(whole.to_json()), dict(whole.trajectory.pieces)
    again = models["full"].resume(whole.trajectory, at=5, temperature=3.0, seed=1).finish()[0]
    assert again.trajectory.steps[:5] == whole.trajectory.steps[:5]
    assert first_difference(again.trajectory, whole.trajectory) is not None
    assert again.settings["temperature"] == 3.0
    assert again.seed == again.trajectory.seed == 1
    assert json.dumps(whole.to_json()) == before
    assert whole.trajectory.pieces == pieces != again.trajectory.pieces
    assert len(whole.trajectory.steps) == 14


def test_a_setting_that_needs_the_recorded_policy_can_be_changed(models: dict[str, Model]) -> None:
    whole = models["full"].generate(PROMPT, max_new_tokens=14, policy="threshold", threshold=1.0)
    assert models["full"].resume(whole.trajectory, at=2, threshold=0.01).finish()[0].num_forwards == 3


def test_a_resumed_run_says_what_was_given_and_what_was_settled_before(models: dict[str, Model]) -> None:
    whole = models["full"].generate(PROMPT, max_new_tokens=6)
    run = models["full"].resume(whole.trajectory, at=3)
    *_, recorded = Trajectory.frames(run.trajectories[0])
    assert run.frame() == recorded
    assert recorded.given == frozenset(range(len(PROMPT)))
    assert len(recorded.confidence) == 3


def refused(model: Model, trajectory: Trajectory, kind: type[Exception] = TrajectoryError, **how: Any) -> str:
    return message(kind, model.resume, trajectory, **{"at": 1, **how})


def test_what_cannot_be_taken_up_half_way_is_refused(models: dict[str, Model]) -> None:
    full = models["full"]
    reference = full.generate(PROMPT, max_new_tokens=6, steps=6, mode="reference").trajectory
    assert refused(full, reference) == (
        "a run in the reference mode has one random stream and cannot be taken up half-way; run it again whole"
    )
    whole = full.generate(PROMPT, max_new_tokens=6).trajectory
    assert "one random stream" in refused(full, whole, mode="reference")
    assert "step 7 was asked for, but this trajectory has 6 steps" in refused(full, whole, at=7)
    assert "step -1 was asked for" in refused(full, whole, at=-1)
    assert refused(full, whole, SettingsError, max_new_tokens=9) == (
        "--max-new-tokens 9 has no effect on a recorded run, whose canvas is laid out already; leave it out, or run "
        "the prompt again"
    )
    assert "did you mean temperature" in refused(full, whole, SettingsError, temprature=1.0)
    resized = Trajectory(initial_ids=[1, None], steps=[Step(resized=[(1, 1)], commits=[Commit(0, 1, 5, 0.5, 0.5)])])
    assert "a run whose canvas was resized" in refused(full, resized)


@pytest.mark.parametrize("token", [VOCAB_SIZE, -1])
def test_a_record_of_another_vocabulary_is_refused(models: dict[str, Model], token: int) -> None:
    other = Trajectory(initial_ids=[token, None], steps=[Step()], model="big-model")
    assert refused(models["full"], other) == (
        "the trajectory was made by big-model and holds ids beyond this model's vocabulary of 280; "
        "load that model with `--model big-model`"
    )


def test_a_record_with_damaged_settings_is_refused(models: dict[str, Model]) -> None:
    damaged = Trajectory(initial_ids=[1, None], steps=[Step()], settings={"steps": "many"})
    assert refused(models["full"], damaged).startswith("the settings in the trajectory are damaged (")


def test_a_reference_run_can_go_on_in_the_exact_mode(models: dict[str, Model]) -> None:
    whole = models["full"].generate(PROMPT, max_new_tokens=6, steps=6, mode="reference")
    again = models["full"].resume(whole.trajectory, at=3, mode="exact").finish()[0]
    assert again.num_forwards == 3 + len(again.trajectory.steps[3:])
    assert again.trajectory.steps[:3] == whole.trajectory.steps[:3]


def test_an_end_of_a_checkpoint_without_a_name_for_it_ends_the_answer(models: dict[str, Model]) -> None:
    model = tiny_model("full", end_ids=(ord("!"),))
    result = scripted(model, spell("ab!cd", start=2)).generate("hi", max_new_tokens=8, policy="left_to_right")
    assert counts(result) == ("ab", "stop", 2, 0, 3)
    assert END not in result.text


def test_an_infill_record_is_not_taken_up() -> None:
    record = infill(tiny_model("full"), ["a", Hole(least=3, most=3, grows=False), "b"]).trajectories[0]
    with pytest.raises(TrajectoryError, match="an infill cannot be taken up half-way"):
        tiny_model("full").resume(record, at=1)


def test_another_policy_drops_what_belonged_to_the_recorded_one() -> None:
    model = tiny_model("full")
    run = model.start([[1, 2]], DecodeSettings(max_new_tokens=4, policy="threshold", threshold=0.5))
    run.finish()
    again = model.resume(run.trajectories[0], at=0, policy="entropy")
    assert (again.settings.policy, again.settings.threshold) == ("entropy", None)
    assert again.finish()[0].model == model.name


def test_a_mask_token_that_the_config_does_not_know_is_pointed_out(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "causal")
    config = json.loads((folder / "config.json").read_text())
    del config["unmask"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"--mask-id 256 --attention full"):
        load(str(folder))
    assert load(str(folder), override=Override(attention="causal")).backbone.config.mask_id is None


def test_the_models_own_room_serves_where_none_is_given(chatty: Model) -> None:
    model = Model(chatty.backbone, chatty.tokenizer, defaults=Defaults(max_new_tokens=5))
    assert model.generate(PROMPT).trajectory.settings["max_new_tokens"] == 5
    assert model.generate(PROMPT, max_new_tokens=3).trajectory.settings["max_new_tokens"] == 3
    assert model.chat([Message("user", PROMPT)]).trajectory.settings["max_new_tokens"] == 5
    assert chatty.settings({}) == DecodeSettings()


def test_load_brings_the_defaults_of_the_model_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "PACKAGE", tmp_path / "package")
    folder = write_checkpoint(tmp_path / "package" / "weights" / "tiny", "full", chat=True)
    assert load("tiny").defaults == Defaults(max_new_tokens=96, preset="diffucoder")
    assert load(str(folder)).defaults == Defaults()
