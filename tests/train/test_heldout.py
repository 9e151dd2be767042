"""The held-out loss: brute force, its error bar, and that nobody's layout changes it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.data.rows import Mixture, PackedRows, WindowRows
from unmask.data.shards import Shards, ShardWriter
from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import FullDenoiser
from unmask.decode.likelihood import all_masks, answer_log_likelihood
from unmask.decode.session import Model
from unmask.diffusion.settings import Corruption, Objective
from unmask.model.backbone import Backbone
from unmask.text.tokenizer import Tokenizer
from unmask.train.heldout import heldout_loss
from unmask.train.parallel import World
from unmask.train.settings import LossSettings
from unmask.train.step import Trainee

from doubles import tiny_backbone, tiny_config
from training_runs import together

DOCUMENTS = ([5, 9, 33], [7, 7, 12, 40, 2], [1, 50, 50, 3])


def mixture(folder: Path, *, length: int = 5) -> Mixture:
    """Each document in a row of its own: two of them do not fit into one."""
    with ShardWriter(folder, vocab_size=61, tokenizer="t") as writer:
        for ids in DOCUMENTS:
            writer.add(ids, prompt_length=1)
    return Mixture([PackedRows(Shards.open(folder), length, pad_id=0, end_tokens=0)])


def measure(backbone: Backbone, rows: Mixture, *, world: World | None = None, **changes: Any) -> dict[str, float]:
    given: dict[str, Any] = {
        "loss": LossSettings(),
        "num_rows": 3,
        "samples": 8,
        "micro_rows": 4,
        "precision": torch.float32,
        **changes,
    }
    return dict(heldout_loss(Trainee(backbone), rows, config=backbone.config, world=world or World(), **given))


def by_brute_force(backbone: Backbone) -> float:
    """The bound over every set of masks of every document, from what decoding says of each."""
    mask_id = backbone.config.mask_id
    assert mask_id is not None
    nats = tokens = 0.0
    for ids in DOCUMENTS:
        masks = all_masks(len(ids) - 1)
        for is_masked_L, weight in zip(masks.is_masked_NL.tolist(), masks.weight_N.tolist(), strict=True):
            row = [ids[0], *(None if hidden else id for id, hidden in zip(ids[1:], is_masked_L, strict=True))]
            canvas = Canvas.from_rows([row], mask_id=mask_id)
            places: Positions = canvas.masked()
            (logits_MV,) = FullDenoiser(backbone).logits(canvas, places)
            scores_MV = logits_MV.clone()
            scores_MV[:, mask_id] = -torch.inf
            nll_M = -scores_MV.log_softmax(-1)[torch.arange(len(places)), torch.tensor(ids)[places.columns_M]]
            nats += weight * float(nll_M.sum())
        tokens += len(ids) - 1
    return nats / tokens


def test_the_value_lies_within_its_error_of_the_bound_over_all_masks(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config(attention="full"), spread=0.15)
    exact = by_brute_force(backbone)
    found = measure(backbone, mixture(tmp_path / "data"), samples=600, micro_rows=300)
    assert 0 < found["heldout_nelbo_se"] < 0.05 * exact
    assert abs(found["heldout_nelbo"] - exact) < 4 * found["heldout_nelbo_se"]
    assert found["heldout_nelbo_document_se"] > 0


def test_the_value_of_a_block_network_lies_within_its_error_of_the_sum_over_blocks(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config(attention="block", block_length=2, vocab_size=258, mask_id=256), spread=0.15)
    model = Model(backbone, Tokenizer.byte_level(), name="tiny")
    nats = -sum(answer_log_likelihood(model, ids[:1], ids[1:]).value for ids in DOCUMENTS)
    exact = nats / sum(len(ids) - 1 for ids in DOCUMENTS)
    found = measure(backbone, mixture(tmp_path / "data"), samples=2000, micro_rows=500)
    assert abs(found["heldout_nelbo"] - exact) < max(4 * found["heldout_nelbo_se"], 0.01 * exact)


def test_an_autoregressive_network_has_its_exact_value(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config(vocab_size=258))
    model = Model(backbone, Tokenizer.byte_level(), name="tiny")
    nats = -sum(answer_log_likelihood(model, ids[:1], ids[1:]).value for ids in DOCUMENTS)
    found = measure(backbone, mixture(tmp_path / "data"), loss=LossSettings(kind="autoregressive"), samples=5)
    assert found["heldout_nelbo"] == pytest.approx(nats / sum(len(ids) - 1 for ids in DOCUMENTS), rel=1e-5)
    assert found["heldout_masked_ce"] == pytest.approx(found["heldout_nelbo"], rel=1e-6)
    assert found["heldout_nelbo_se"] == 0


@pytest.mark.parametrize("micro_rows", [1, 3, 7, 100])
def test_the_value_does_not_depend_on_how_many_rows_go_at_once(tmp_path: Path, micro_rows: int) -> None:
    backbone, rows = tiny_backbone(tiny_config(attention="full")), mixture(tmp_path / "data")
    wanted, found = measure(backbone, rows, micro_rows=4), measure(backbone, rows, micro_rows=micro_rows)
    assert found == pytest.approx(wanted, rel=1e-6)


def compare(who: World, folder: Path, wanted: dict[str, float]) -> None:
    rows = Mixture([PackedRows(Shards.open(folder), 5, pad_id=0, end_tokens=0)])
    for micro_rows in (1, 4, 50):  # with 50, all the work is the first rank's
        found = measure(tiny_backbone(tiny_config(attention="full")), rows, world=who, micro_rows=micro_rows)
        assert all(math.isclose(found[name], wanted[name], rel_tol=1e-6) for name in wanted), (found, wanted)


def test_the_value_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    wanted = measure(tiny_backbone(tiny_config(attention="full")), mixture(tmp_path / "data"))
    together(compare, tmp_path / "data", wanted, size=3)


def test_what_is_trained_on_and_how_does_not_change_how_it_is_measured(tmp_path: Path) -> None:
    backbone, rows = tiny_backbone(tiny_config(attention="full")), mixture(tmp_path / "data")
    other = LossSettings(
        corruption=Corruption(kind="bernoulli", schedule="cosine", truncate_share=1, clean_prefix_share=1),
        objective=Objective(weight="none", normaliser="pooled"),
        anneal_steps=10,
        t_warmup_steps=10,
    )
    assert measure(backbone, rows, loss=other) == measure(backbone, rows)


def test_measuring_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    backbone = tiny_backbone(tiny_config(attention="full")).requires_grad_(True)
    trainee = Trainee(backbone).train()
    rows = Mixture([WindowRows(_texts(tmp_path / "data"), 6)])
    heldout_loss(
        trainee,
        rows,
        loss=LossSettings(),
        config=backbone.config,
        num_rows=2,
        samples=1,
        micro_rows=2,
        precision=torch.float32,
        world=World(),
    )
    assert trainee.training
    assert all(parameter.grad is None for parameter in backbone.parameters())


def _texts(folder: Path) -> Shards:
    with ShardWriter(folder, vocab_size=61, tokenizer="t") as writer:
        writer.add(list(range(20)))
    return Shards.open(folder)
