"""What a training run leaves, read by `transformers` and `peft`: the same logits as the network that was trained."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unmask
from unmask.model.attention import attention_mask
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import load_folder
from unmask.model.config import Attention
from unmask.model.lora import LoraSettings
from unmask.train.settings import ModelSettings

from training_runs import LORA, VOCAB_SIZE, alone, make_data, tiny_stage

transformers = pytest.importorskip("transformers")

IDS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(0))
TEXT = "def f(x):\n    return x  # ✓"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def causal(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`final/` of an autoregressive stage."""
    return alone(tiny_stage(data, attention="causal", steps=4), tmp_path_factory.mktemp("causal")).folder


def adapted(source: Path, data: Path, folder: Path, **changes: Any) -> Path:
    """`final/` of a diffusion stage that starts from another stage's."""
    model = ModelSettings(source=str(source), attention="full", init_mask_row=True)
    return alone(tiny_stage(data, steps=4, **{"model": model, **changes}), folder).folder


@pytest.fixture(scope="module")
def full(causal: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted(causal, data, tmp_path_factory.mktemp("full"))


def ours(folder: Path, kind: Attention) -> Tensor:
    backbone: Backbone = load_folder(folder, dtype=torch.float32, device=torch.device("cpu"))
    positions = torch.arange(IDS.shape[1]).expand(IDS.shape)
    with torch.no_grad():
        return backbone.logits(backbone(IDS, positions, attn_mask=attention_mask(kind, positions, positions)))


def theirs(network: Any, kind: Attention) -> Tensor:
    """Their logits; a mask of numbers overrides the causal one that they make."""
    visible = torch.ones(IDS.shape[1], IDS.shape[1], dtype=torch.bool)
    visible = visible if kind == "full" else visible.tril()
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        out: Tensor = network(IDS, attention_mask=mask.expand(len(IDS), 1, -1, -1)).logits
    return out


def their_network(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_an_autoregressive_stage_leaves_a_qwen2_of_transformers(causal: Path) -> None:
    network = their_network(causal)
    assert type(network) is transformers.Qwen2ForCausalLM
    with torch.no_grad():
        wanted = network(IDS).logits  # as anybody would call it
    assert wanted.shape[-1] == VOCAB_SIZE
    torch.testing.assert_close(ours(causal, "causal"), wanted, rtol=1e-4, atol=1e-4)


def test_a_diffusion_stage_is_a_qwen2_whose_mask_is_open(full: Path) -> None:
    wanted = theirs(their_network(full), "full")
    torch.testing.assert_close(ours(full, "full"), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - theirs(their_network(full), "causal")).abs().max() > 1e-3


def test_a_diffusion_stage_is_loaded_and_decodes(full: Path) -> None:
    model = unmask.load(str(full), device="cpu", dtype="float32")
    assert model.backbone.config.attention == "full"
    assert model.backbone.config.mask_id is not None
    result = model.generate("def f", max_new_tokens=6)
    assert 1 <= result.num_forwards <= 6
    assert model.backbone.config.mask_id not in result.trajectory.ids_at(len(result.trajectory.steps))


def test_the_tokenizer_is_one_of_transformers(full: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(full)
    own = unmask.load(str(full), device="cpu").tokenizer
    assert tokenizer(TEXT, add_special_tokens=False).input_ids == own.encode(TEXT)
    assert tokenizer.decode(own.encode(TEXT)) == TEXT


def test_what_transformers_saves_goes_on_being_trained(causal: Path, data: Path, tmp_path: Path) -> None:
    their_network(causal).save_pretrained(tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(causal / name, tmp_path / "theirs")
    one = adapted(causal, data, tmp_path / "one")
    two = adapted(tmp_path / "theirs", data, tmp_path / "two")
    torch.testing.assert_close(ours(one, "full"), ours(two, "full"), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["full", "causal"])
def test_an_adapter_on_its_base_is_the_merged_network(
    kind: Attention, causal: Path, data: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    lora: LoraSettings = LORA if kind == "full" else replace(LORA, train_embeddings=False)
    stage = tiny_stage(data, attention=kind, steps=4)
    model = replace(stage.model, source=str(causal), config=None, tokenizer="")
    final = alone(replace(stage, model=model, lora=lora), tmp_path / "run").folder
    base = their_network(causal)
    before = theirs(base, kind)
    adapter = tmp_path / "run" / "adapter"
    combined = peft.PeftModel.from_pretrained(base, adapter).eval()
    assert combined.peft_config["default"].base_model_name_or_path == str(causal)
    wanted = theirs(combined, kind)
    assert (wanted - before).abs().max() > 1e-3, "nothing was learnt"
    torch.testing.assert_close(theirs(their_network(final), kind), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(final, kind), wanted, rtol=1e-4, atol=1e-4)
