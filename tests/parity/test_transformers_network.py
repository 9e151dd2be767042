"""The network and its checkpoints against `transformers`, in both directions, on random tiny configs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import load_folder, save_folder
from unmask.model.config import Attention, RopeScaling

from doubles import tiny_backbone, tiny_config

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen2_one_key_head": ("Qwen2", {"num_key_value_heads": 1, "num_attention_heads": 8}),
    "qwen2_no_sharing": ("Qwen2", {"num_key_value_heads": 4, "num_hidden_layers": 3}),
    "llama": ("Llama", {}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "llama_wide_heads": ("Llama", {"head_dim": 16}),
    "llama3": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 5e5}),
    "llama3_tied": ("Llama", {"rope_scaling": LLAMA3 | {"factor": 4.0}, "tie_word_embeddings": True, "head_dim": 32}),
}


def their_network(name: str) -> Any:
    """A seeded network of `transformers` whose every parameter, norms and biases included, is away from its start."""
    kind, changes = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**(SHAPE | changes))
    network = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(len(name))
    for label, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if "norm" in label else 0.3 * noise
    network.tie_weights()
    return network


def load(folder: Path) -> Backbone:
    return load_folder(folder, dtype=torch.float32, device=CPU)


def our_logits(backbone: Backbone, ids_BL: Tensor, kind: Attention) -> Tensor:
    positions_BL = torch.arange(ids_BL.shape[1]).expand(ids_BL.shape)
    with torch.inference_mode():
        hidden = backbone(ids_BL, positions_BL, attn_mask=attention_mask(kind, positions_BL, positions_BL))
        return backbone.logits(hidden)


def random_ids(rows: int, length: int, *, seed: int = 0) -> Tensor:
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(seed))


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 40])
def test_causal_logits_are_those_of_transformers(name: str, length: int, tmp_path: Path) -> None:
    theirs, ids = their_network(name), random_ids(2, length)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = theirs(ids).logits
    assert wanted.std() > 0.3, "logits that are all alike would show nothing"
    torch.testing.assert_close(our_logits(load(tmp_path), ids, "causal"), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_full_attention_logits_are_those_of_the_same_weights_with_everything_visible(name: str, tmp_path: Path) -> None:
    theirs, ids = their_network(name), random_ids(2, 40)
    theirs.save_pretrained(tmp_path)
    everything = torch.zeros(2, 1, 40, 40)  # added to the scores
    with torch.no_grad():
        wanted, causal = theirs(ids, attention_mask=everything).logits, theirs(ids).logits
    assert (wanted - causal)[:, 0].abs().max() > 0.1, "the first position must see what comes after it"
    torch.testing.assert_close(our_logits(load(tmp_path), ids, "full"), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_left_padded_batch_gives_transformers_logits_of_each_row_alone(name: str, tmp_path: Path) -> None:
    theirs = their_network(name)
    theirs.save_pretrained(tmp_path)
    ours, rows, width = load(tmp_path), [random_ids(1, length, seed=length) for length in (4, 11, 7)], 11
    ids_BL = torch.full((3, width), 17)
    positions_BL = torch.arange(width)[None] - torch.tensor([[width - row.shape[1]] for row in rows])
    for number, row in enumerate(rows):
        ids_BL[number, width - row.shape[1] :] = row[0]
    attn_mask = attention_mask("causal", positions_BL, positions_BL)
    with torch.inference_mode():
        got = ours.logits(ours(ids_BL, positions_BL.clamp(min=0), attn_mask=attn_mask))
    for number, row in enumerate(rows):
        with torch.no_grad():
            wanted = theirs(row).logits[0]
        torch.testing.assert_close(got[number, width - row.shape[1] :], wanted, rtol=0, atol=1e-4)


# --- their folders, read here -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_transformers_loads_in_one_file_and_in_shards(name: str, tmp_path: Path) -> None:
    theirs = their_network(name)
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="15KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    wanted = theirs.state_dict()
    for folder in ("one", "shards"):
        ours = load(tmp_path / folder)
        for label, parameter in ours.named_parameters(remove_duplicate=False):
            stored = label if label.startswith("lm_head") else f"model.{label}"
            assert torch.equal(parameter.detach(), wanted[stored]), stored
        assert (ours.lm_head.weight is ours.embed_tokens.weight) == bool(theirs.config.tie_word_embeddings)


def test_both_generations_of_rope_settings_are_read_alike(tmp_path: Path) -> None:
    """transformers 5 keeps theta and scaling together in `rope_parameters`; 4 wrote `rope_theta` and `rope_scaling`."""
    their_network("llama3").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    either = load(tmp_path).config
    rope = written.pop("rope_parameters", None) or {
        **written.pop("rope_scaling"),
        "rope_theta": written.pop("rope_theta"),
    }
    theta = rope.pop("rope_theta")
    path.write_text(json.dumps(written | {"rope_theta": theta, "rope_scaling": rope}))
    old = load(tmp_path).config
    path.write_text(json.dumps(written | {"rope_parameters": rope | {"rope_theta": theta}}))
    new = load(tmp_path).config
    assert either == old == new
    assert old.rope_theta == 5e5
    assert old.rope_scaling == RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32
    )


def test_end_ids_of_the_generation_config_are_read(tmp_path: Path) -> None:
    theirs = their_network("qwen2")
    theirs.config.eos_token_id = 5
    theirs.generation_config.eos_token_id = [5, 9]
    theirs.save_pretrained(tmp_path)
    assert load(tmp_path).config.end_ids == (5, 9)


# --- our folders, read there ------------------------------------------------------------------------------------------

OURS: dict[str, dict[str, Any]] = {
    "qwen2": {"end_ids": (2, 7), "bos_id": 1, "pad_id": 0},
    "qwen2_tied": {"tie_embeddings": True, "rope_theta": 1e6},
    "qwen2_wide_heads": {"head_dim": 16},
    "llama": {"family": "llama", "qkv_bias": False, "rms_norm_eps": 1e-5},
    "llama3_tied": {
        "family": "llama",
        "qkv_bias": False,
        "tie_embeddings": True,
        "rope_theta": 5e5,
        "rope_scaling": RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32),
    },
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shard_bytes", [5 * 1000**3, 15_000])
def test_transformers_reads_what_is_saved_here(name: str, shard_bytes: int, tmp_path: Path) -> None:
    ours, ids = tiny_backbone(tiny_config(**OURS[name])), random_ids(2, 40)
    save_folder(ours, tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes == 15_000)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == ("LlamaForCausalLM" if "llama" in name else "Qwen2ForCausalLM")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == ours.config.tie_embeddings
    with torch.no_grad():
        wanted = theirs.eval()(ids).logits
    torch.testing.assert_close(our_logits(ours, ids, "causal"), wanted, rtol=0, atol=1e-4)


def test_transformers_reads_ids_and_dtype_of_a_saved_folder(tmp_path: Path) -> None:
    save_folder(tiny_backbone(tiny_config(**OURS["qwen2"])).to(torch.bfloat16), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert theirs.dtype is torch.bfloat16
    assert (theirs.config.eos_token_id, theirs.config.bos_token_id, theirs.config.pad_token_id) == ([2, 7], 1, 0)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_and_there_again_changes_no_bit(name: str, tmp_path: Path) -> None:
    theirs = their_network(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    save_folder(ours, tmp_path / "ours")
    assert load(tmp_path / "ours").config == ours.config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    for label, tensor in theirs.state_dict().items():
        assert torch.equal(again[label], tensor), label
