"""Packing changes how weights lie in memory and not one bit of what they compute."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import load_folder, save_folder
from unmask.model.packed import PackedLinear, can_pack, pack

from doubles import tiny_backbone, tiny_config

BF16, CPU = torch.bfloat16, torch.device("cpu")

native = pytest.mark.skipif(
    not can_pack(tiny_backbone(tiny_config()).to(BF16)),
    reason="this processor has no native bfloat16 product, so nothing is packed",
)


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=BF16).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / inputs**0.5)
    return layer


def hidden(backbone: Backbone, length: int) -> torch.Tensor:
    ids = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(1))
    places = torch.arange(length).expand(2, length)
    with torch.inference_mode():
        states = backbone(ids, places, attn_mask=attention_mask("causal", places, places))
        return torch.cat((states, backbone.logits(states)), -1)


@native
@pytest.mark.parametrize("positions", [1, 7, 16, 130])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (896, 128), (64, 151)])
def test_a_packed_layer_computes_the_same_bits(positions: int, bias: bool, inputs: int, outputs: int) -> None:
    plain = linear(inputs, outputs, bias=bias)
    x = torch.randn(positions, inputs, generator=torch.Generator().manual_seed(2)).to(BF16)
    with torch.inference_mode():
        wanted, packed = plain(x), PackedLinear(plain)(x)
    assert packed.shape == wanted.shape
    assert torch.equal(packed, wanted)
    assert wanted.abs().max() > 0.5, "the product must be more than its bias"


@native
def test_a_packed_layer_takes_a_batch_of_rows() -> None:
    plain = linear(32, 48, bias=True)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2)).to(BF16)
    with torch.inference_mode():
        assert torch.equal(PackedLinear(plain)(x), plain(x))


@native
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (896, 128), (64, 151)])
def test_the_plain_matrix_comes_back_bit_for_bit(inputs: int, outputs: int) -> None:
    plain = linear(inputs, outputs, bias=True)
    again = PackedLinear(plain).plain_weight()
    assert again.shape == plain.weight.shape
    assert torch.equal(again, plain.weight)


@native
@pytest.mark.parametrize("length", [1, 7, 65])
@pytest.mark.parametrize("tie", [False, True])
def test_a_packed_network_computes_the_same_bits(length: int, tie: bool) -> None:
    backbone = tiny_backbone(tiny_config(tie_embeddings=tie)).to(BF16)
    wanted = hidden(backbone, length)
    packed = pack(backbone)
    assert packed is backbone
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 2 * 7 + 1
    assert torch.equal(hidden(packed, length), wanted)


def stored(folder: Path) -> set[str]:
    """The names of the parameters in a folder's files."""
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return {name.removeprefix("model.") for name in names}


@native
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"family": "llama", "qkv_bias": False}])
def test_a_packed_network_saves_the_weights_it_was_packed_from(changes: dict[str, object], tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config(**changes)).to(BF16)
    save_folder(backbone, tmp_path / "plain")
    save_folder(pack(backbone), tmp_path / "packed", shard_bytes=9000)
    plain, packed = (
        dict(load_folder(tmp_path / name, dtype=BF16, device=CPU).named_parameters()) for name in ("plain", "packed")
    )
    assert plain.keys() == packed.keys() == stored(tmp_path / "packed")
    assert all(torch.equal(plain[name], packed[name]) for name in plain)


def test_only_bfloat16_on_the_processor_is_packed() -> None:
    assert not can_pack(tiny_backbone(tiny_config()))
    assert not can_pack(tiny_backbone(tiny_config()).to(torch.float16))
    with torch.device("meta"):
        assert not can_pack(Backbone(tiny_config()).to(BF16))
