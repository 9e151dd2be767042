"""The optimiser: what decays, that Muon is Muon, that a saved state goes on, and that sharding changes nothing."""

import copy
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unmask.errors import SettingsError
from unmask.model.backbone import Backbone
from unmask.train.ema import Ema
from unmask.train.optimiser import OptimiserSettings, build_optimiser, orthogonal, set_lr

from doubles import tiny_backbone, tiny_config

MUON = OptimiserSettings(kind="muon", lr=1e-2, weight_decay=0.1)


def trainable(**changes: Any) -> Backbone:
    return tiny_backbone(tiny_config(**changes)).requires_grad_(True)


def loss_of(backbone: Backbone, step: int = 0) -> Tensor:
    ids = (torch.arange(24).view(2, 12) * 7 + step) % 61
    hidden = backbone(ids, torch.arange(12).expand(2, 12))
    return nn.functional.cross_entropy(backbone.logits(hidden).flatten(0, 1), ids.flatten())


def train(backbone: Backbone, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        loss_of(backbone, step).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()


def decays(optimiser: torch.optim.Optimizer, backbone: Backbone) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("tie", [True, False])
def test_matrices_decay_and_norms_biases_and_embeddings_do_not(kind: Any, tie: bool) -> None:
    backbone = trainable(tie_embeddings=tie)
    found = decays(build_optimiser(backbone, OptimiserSettings(kind=kind, weight_decay=0.3)), backbone)
    assert found.keys() == {name for name, _ in backbone.named_parameters()}, "every parameter is trained once"
    for name, decay in found.items():
        assert decay == (0.3 if "proj.weight" in name or name == "lm_head.weight" else 0.0), name


def test_adamw_takes_the_step_of_its_formula() -> None:
    backbone = trainable()
    settings = OptimiserSettings(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5)
    optimiser = build_optimiser(backbone, settings)
    loss_of(backbone).backward()  # type: ignore[no-untyped-call]
    weight = backbone.lm_head.weight
    wanted = weight.detach() * (1 - 0.01 * 0.5) - 0.01 * weight.grad / (weight.grad.abs() + 1e-6)  # type: ignore[union-attr,operator]
    optimiser.step()
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_muon_moves_the_hidden_matrices_as_torchs_own_and_the_rest_as_adamw() -> None:
    ours, theirs = trainable(), trainable()
    optimiser = build_optimiser(ours, MUON)
    hidden = [p for name, p in theirs.named_parameters() if "proj.weight" in name]
    rest = [p for name, p in theirs.named_parameters() if p.ndim == 1 or "embed" in name]
    muon = torch.optim.Muon(hidden, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": [theirs.lm_head.weight]}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )
    for step in range(4):
        loss_of(theirs, step).backward()  # type: ignore[no-untyped-call]
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = two.grad.clone()  # type: ignore[union-attr]
        for any_of_them in (muon, adamw, optimiser):
            any_of_them.step()
            any_of_them.zero_grad()
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=name)


def test_an_orthogonalised_matrix_keeps_its_directions_and_levels_their_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(24, 10, generator=generator)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    core = left.T @ orthogonal(matrix).float() @ right.T
    sizes = core.diagonal()
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3
    assert (core - sizes.diag()).abs().max() < 0.05


def test_muon_has_a_learning_rate_of_its_own_where_one_is_given() -> None:
    optimiser = build_optimiser(trainable(), OptimiserSettings(kind="muon", lr=1e-3, muon_lr=2e-2))
    set_lr(optimiser, 0.5)
    assert {group["lr"] for group in optimiser.param_groups if "momentum" in group} == {1e-2}
    assert {group["lr"] for group in optimiser.param_groups if "momentum" not in group} == {5e-4}
    set_lr(optimiser, 1.0)
    assert {group["lr"] for group in optimiser.param_groups} == {2e-2, 1e-3}, "factors do not pile up"


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("by", ["torch", "distributed_checkpoint"])
def test_a_saved_state_goes_on_bit_for_bit(kind: Any, by: str) -> None:
    settings = OptimiserSettings(kind=kind, lr=1e-2)
    straight = trainable()
    first = build_optimiser(straight, settings)
    train(straight, first, range(3))

    resumed = copy.deepcopy(straight)
    second = build_optimiser(resumed, settings)
    if by == "torch":
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    else:
        state = get_optimizer_state_dict(straight, first)
        set_optimizer_state_dict(resumed, second, copy.deepcopy(state))
    train(straight, first, range(3, 6))
    train(resumed, second, range(3, 6))

    assert all(torch.equal(one, two) for one, two in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_frozen_parameters_are_left_alone() -> None:
    backbone = trainable()
    backbone.embed_tokens.requires_grad_(False)
    optimiser = build_optimiser(backbone, OptimiserSettings())
    assert "embed_tokens.weight" not in decays(optimiser, backbone)


def test_a_frozen_network_is_refused() -> None:
    with pytest.raises(SettingsError, match="no parameter asks for a gradient"):
        build_optimiser(trainable().requires_grad_(False), OptimiserSettings())


def test_a_bfloat16_parameter_is_refused() -> None:
    backbone = trainable().to(torch.bfloat16)
    with pytest.raises(SettingsError, match=r"embed_tokens.weight is bfloat16; .* must be float32: load the network"):
        build_optimiser(backbone, OptimiserSettings())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "adam"}, "the optimiser 'adam' is not one; did you mean adamw?"),
        ({"lr": 0}, "lr is 0; it must be above 0"),
        ({"kind": "muon", "muon_lr": -1.0}, "muon_lr is -1.0; it must be above 0"),
        ({"betas": (0.9, 1.0)}, "betas holds 1.0; give 0 or more and less than 1"),
        ({"muon_momentum": 1.0}, "muon_momentum is 1.0; give 0 or more and less than 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be 0 or more"),
        ({"muon_lr": 0.1}, "muon_lr is 0.1 and the optimiser is 'adamw'; set kind to 'muon'"),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        OptimiserSettings(**settings)
    assert words in str(caught.value)


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_sharded_muon_and_its_average_are_those_of_one_process(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_rank, args=(port, str(tmp_path)), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"], "both ranks came to their end"


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    plain, sharded = trainable(), trainable()
    for layer in sharded.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    optimisers = [build_optimiser(module, MUON) for module in (plain, sharded)]
    averages = [Ema(module, decay=0.5) for module in (plain, sharded)]
    for step in range(3):
        for module, optimiser, average in zip((plain, sharded), optimisers, averages, strict=True):
            train(module, optimiser, range(step, step + 1))
            average.update()
    # The plain product U Uᵀ of shards departs by more than 1e-2 here.
    for (name, one), two in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(two.full_tensor(), one, rtol=1e-4, atol=1e-5, msg=name)  # type: ignore[attr-defined]

    state = get_optimizer_state_dict(sharded, optimisers[1])
    again = build_optimiser(sharded, MUON)
    set_optimizer_state_dict(sharded, again, state)
    assert again.state.keys() == optimisers[1].state.keys()

    with torch.no_grad():
        before = loss_of(sharded)  # the root stays gathered after a forward
        with averages[0].swapped_in(), averages[1].swapped_in():
            averaged, wanted = loss_of(sharded), loss_of(plain)
        after = loss_of(sharded)
    torch.testing.assert_close(averaged, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(before, after)
    assert (averaged - before).abs() > 1e-3

    distributed.destroy_process_group()
    (Path(folder) / str(rank)).touch()
