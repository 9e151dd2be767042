"""`ModelConfig` is read from the checkpoint's own files; what they leave open is asked for, never guessed."""

import json
from typing import Any

import pytest

from unmask.errors import CheckpointError, SettingsError
from unmask.model.config import ModelConfig, Override, RopeScaling

from doubles import tiny_config

QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}
DREAM = QWEN2 | {
    "model_type": "Dream",
    "mask_token_id": 151_666,
    "pad_token_id": 151_643,
    "tie_word_embeddings": False,
    "eos_token_id": 151_643,
}
LLAMA = {key: value for key, value in QWEN2.items() if key != "rope_theta"} | {"model_type": "llama", "head_dim": 64}
LLADA: dict[str, Any] = {
    "model_type": "llada",
    "d_model": 4096,
    "mlp_hidden_size": 12_288,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "vocab_size": 126_349,
    "embedding_size": 126_464,
    "max_sequence_length": 4096,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "mask_token_id": 126_336,
    "eos_token_id": 126_081,
    "weight_tying": False,
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "include_bias": False,
    "include_qkv_bias": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(config: dict[str, Any], **changes: Any) -> ModelConfig:
    return ModelConfig.from_hf(config | changes)


# --- what a config says -----------------------------------------------------------------------------------------------


def test_a_qwen2_config_is_a_causal_network_with_biases_and_a_shift() -> None:
    assert read(QWEN2) == ModelConfig(
        family="qwen2",
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        max_positions=32_768,
        tie_embeddings=True,
        qkv_bias=True,
        attention="causal",
        shift_logits=True,
        end_ids=(151_645,),
        bos_id=151_643,
    )


def test_a_dream_config_is_qwen2_with_full_attention_and_a_mask_id() -> None:
    config = read(DREAM)
    assert (config.family, config.attention, config.shift_logits, config.qkv_bias) == ("dream", "full", True, True)
    assert (config.mask_id, config.pad_id, config.is_diffusion) == (151_666, 151_643, True)


def test_a_llama_config_is_causal_without_biases() -> None:
    config = read(LLAMA)
    assert (config.family, config.attention, config.qkv_bias, config.rope_theta) == ("llama", "causal", False, 10_000.0)


def test_a_llada_config_is_full_attention_without_a_shift() -> None:
    config = read(LLADA)
    assert (config.family, config.attention, config.shift_logits, config.qkv_bias) == ("llada", "full", False, False)
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (4096, 12_288, 32)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 32, 128)
    assert (config.vocab_size, config.max_positions, config.rope_theta) == (126_464, 4096, 500_000.0)
    assert (config.mask_id, config.end_ids, config.rms_norm_eps) == (126_336, (126_081,), 1e-5)


def test_a_head_size_other_than_width_by_heads_is_read() -> None:
    assert read(QWEN2, head_dim=128).head_dim == 128
    assert read(QWEN2, head_dim=None).head_dim == 64


def test_without_key_value_heads_every_head_has_its_own() -> None:
    assert read(QWEN2, num_key_value_heads=None).num_kv_heads == 14


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500_000.0, "rope_scaling": LLAMA3},
        {"rope_parameters": LLAMA3 | {"rope_theta": 500_000.0}},
        {"rope_theta": 500_000.0, "rope_scaling": {"type" if k == "rope_type" else k: v for k, v in LLAMA3.items()}},
    ],
)
def test_llama3_scaling_is_read_in_every_spelling(changes: dict[str, Any]) -> None:
    config = read(LLAMA, **changes)
    assert config.rope_theta == 500_000.0
    assert config.rope_scaling == RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )


@pytest.mark.parametrize("scaling", [None, {}, {"rope_type": "default"}])
def test_default_rotary_positions_are_unscaled(scaling: dict[str, Any] | None) -> None:
    assert read(LLAMA, rope_scaling=scaling).rope_scaling is None
    assert read(LLAMA, rope_parameters=scaling).rope_scaling is None


def test_end_ids_are_those_of_config_and_generation_config_each_once() -> None:
    config = ModelConfig.from_hf(QWEN2 | {"eos_token_id": 7}, generation={"eos_token_id": [9, 7, 11]})
    assert config.end_ids == (7, 9, 11)
    assert ModelConfig.from_hf(QWEN2 | {"eos_token_id": None}, generation={}).end_ids == ()


def test_the_unmask_section_states_what_departs_from_the_family() -> None:
    section = {"attention": "block", "block_length": 8, "shift_logits": False, "mask_token_id": 151_660}
    config = read(QWEN2, unmask=section, mask_token_id=5)
    assert (config.attention, config.block_length, config.shift_logits, config.mask_id) == ("block", 8, False, 151_660)


# --- overrides --------------------------------------------------------------------------------------------------------


def test_what_the_caller_states_stands_above_the_checkpoint() -> None:
    override = Override(attention="block", block_length=4, shift_logits=False, mask_id=3)
    for config in (ModelConfig.from_hf(DREAM, override=override), read(DREAM).with_override(override)):
        assert (config.attention, config.block_length, config.shift_logits, config.mask_id) == ("block", 4, False, 3)


def test_an_empty_override_changes_nothing() -> None:
    assert read(DREAM).with_override(Override()) == read(DREAM) == ModelConfig.from_hf(DREAM, override=Override())


def test_a_false_shift_is_a_statement_and_not_an_absence() -> None:
    assert ModelConfig.from_hf(DREAM, override=Override(shift_logits=False)).shift_logits is False
    assert ModelConfig.from_hf(LLADA, override=Override(shift_logits=True)).shift_logits is True
    assert ModelConfig.from_hf(QWEN2 | {"vocab_size": 9}, override=Override(attention="full", mask_id=0)).mask_id == 0


@pytest.mark.parametrize(
    ("text", "parsed"),
    [(None, (None, None)), ("full", ("full", None)), ("causal", ("causal", None)), ("block:32", ("block", 32))],
)
def test_the_attention_flag_is_parsed(text: str | None, parsed: tuple[str | None, int | None]) -> None:
    assert Override.parse_attention(text) == parsed


@pytest.mark.parametrize("text", ["", "block", "block:", "block:0", "block:-1", "block:x", "full:2", "causal:1", "ful"])
def test_an_attention_flag_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=f"`--attention {text}` is not a kind of attention; give full, causal"):
        Override.parse_attention(text)


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True, "end_ids": (2, 5), "bos_id": 1, "pad_id": 0},
        {"end_ids": ()},
        {"family": "llama", "qkv_bias": False, "head_dim": 16, "rope_theta": 5e5},
        {
            "family": "llama",
            "qkv_bias": False,
            "rope_scaling": RopeScaling(
                factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_positions=64
            ),
        },
        {"family": "dream", "attention": "full"},
        {"attention": "full", "shift_logits": False, "mask_id": 0},
        {"attention": "block", "block_length": 8},
        {"mask_id": 4},
        {"family": "llada", "attention": "full", "shift_logits": False, "qkv_bias": False, "rms_norm_eps": 1e-5},
        {"family": "llada", "attention": "full", "qkv_bias": True, "tie_embeddings": True, "num_kv_heads": 4},
        {"family": "llada", "attention": "block", "block_length": 4, "shift_logits": False, "qkv_bias": False},
    ],
)
def test_a_written_config_reads_back_the_same(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


# --- refusals ---------------------------------------------------------------------------------------------------------


def refuses(config: dict[str, Any], *words: str, **changes: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(config, **changes)
    for word in words:
        assert word in str(caught.value)


def test_a_diffusion_checkpoint_without_a_mask_id_asks_for_the_flag() -> None:
    for config in (DREAM, LLADA):
        refuses(config, "attends 'full'", "names no mask id", "`--mask-id ID`", mask_token_id=None)
    assert ModelConfig.from_hf(DREAM | {"mask_token_id": None}, override=Override(mask_id=8)).mask_id == 8


def test_an_autoregressive_type_with_a_mask_id_asks_how_it_attends() -> None:
    words = ("autoregressive type 'qwen2'", "mask id 151660", "`--attention full`", "`--attention block:LENGTH`")
    refuses(QWEN2, *words, mask_token_id=151_660)
    stated = ModelConfig.from_hf(QWEN2 | {"mask_token_id": 151_660}, override=Override(attention="full"))
    assert (stated.attention, stated.mask_id) == ("full", 151_660)


def test_a_mask_id_outside_the_vocabulary_is_refused() -> None:
    for mask_id in (151_936, -1):
        refuses(DREAM, f"mask id {mask_id} lies outside the vocabulary of 151936", mask_token_id=mask_id)


def test_an_unknown_architecture_names_the_known_ones() -> None:
    known = "qwen2, llama, Dream, llada are read here, so this checkpoint cannot be used"
    with pytest.raises(CheckpointError) as caught:
        read(QWEN2, model_type="qwen3")
    assert "of the architecture 'qwen3'" in str(caught.value)
    assert known in str(caught.value)
    assert "did you mean" not in str(caught.value)  # a config edited to say qwen2 would be read, and wrongly
    refuses(QWEN2, "does not give 'model_type'", "download the config again", model_type=None)


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
)
def test_a_config_without_a_size_names_the_key(key: str) -> None:
    refuses(QWEN2, f"the config does not give '{key}'", "download the config again", **{key: None})


@pytest.mark.parametrize("key", ["d_model", "n_layers", "n_heads"])
def test_a_llada_config_without_a_size_names_the_key(key: str) -> None:
    refuses(LLADA, f"the config does not give '{key}'", **{key: None})


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (QWEN2, {"use_sliding_window": True}, "sliding-window attention"),
        (QWEN2, {"hidden_act": "gelu"}, "activation 'gelu'; only silu"),
        (LLAMA, {"attention_bias": True}, "biases (mlp_bias or attention_bias)"),
        (LLAMA, {"mlp_bias": True}, "biases (mlp_bias or attention_bias)"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'; only 'llama3'"),
        (LLAMA, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0}}, "'linear'; only 'llama3'"),
        (LLADA, {"activation_type": "swiglu"}, "activation_type 'swiglu'; only 'silu'"),
        (LLADA, {"layer_norm_type": "default"}, "layer_norm_type 'default'"),
        (LLADA, {"block_type": "sequential"}, "block_type 'sequential'"),
        (LLADA, {"include_bias": True}, "asks for biases (include_bias)"),
    ],
)
def test_an_architecture_that_differs_from_the_network_is_refused(
    config: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    refuses(config, words, "so this checkpoint cannot be used: take another one", **changes)


def test_incomplete_llama3_scaling_names_the_key() -> None:
    refuses(LLAMA, "does not give 'low_freq_factor'", rope_scaling={**LLAMA3, "low_freq_factor": None})


def test_heads_that_do_not_share_evenly_are_refused() -> None:
    refuses(
        QWEN2, "14 attention heads cannot share 4 key-value heads evenly", "download it again", num_key_value_heads=4
    )


def test_an_unknown_key_in_the_unmask_section_names_the_nearest() -> None:
    refuses(QWEN2, "unknown key 'block_lenght'", "did you mean block_length", unmask={"block_lenght": 8})


def test_an_unknown_attention_in_the_unmask_section_is_refused() -> None:
    refuses(DREAM, "attention 'fulll' is not a kind of attention", "did you mean full", unmask={"attention": "fulll"})


def test_block_attention_and_block_length_go_together() -> None:
    words = "block attention, and only it, has a block length; give `--attention block:LENGTH`"
    refuses(DREAM, "attention is 'block' and block_length is None", words, unmask={"attention": "block"})
    refuses(DREAM, "block_length is 4", words, unmask={"attention": "full", "block_length": 4})
    refuses(DREAM, "block_length 0 is not a length", unmask={"attention": "block", "block_length": 0})


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": [14]},
        {"num_attention_heads": 0},
        {"eos_token_id": "</s>"},
        {"mask_token_id": "<mask>"},
        {"rope_parameters": 3},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(changes: dict[str, Any]) -> None:
    refuses(DREAM, "the config", **changes)
