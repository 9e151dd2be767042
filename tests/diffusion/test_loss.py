"""The loss without logits against the plain one, in value and in gradient, with a weight per token."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.diffusion.loss import Implementation, linear_cross_entropy
from unmask.errors import SettingsError

M, D, V = 23, 8, 37
FORBIDDEN = 11

needs_fused = pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="needs torch 2.13")
IMPLEMENTATIONS = ["auto", "loop", pytest.param("fused", marks=needs_fused)]


def plain(hidden_MD: Tensor, head_VD: Tensor, target_M: Tensor, *, forbidden_id: int | None, **_: Any) -> Tensor:
    logits_MV = F.linear(hidden_MD, head_VD).float()
    if forbidden_id is not None:
        logits_MV = logits_MV.index_fill(1, torch.tensor([forbidden_id]), -torch.inf)
    return F.cross_entropy(logits_MV, target_M, reduction="none")


def inputs(dtype: torch.dtype = torch.float32, *, count: int = M) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_MD = torch.randn(count, D, generator=generator).to(dtype).requires_grad_()
    head_VD = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    target_M = torch.randint(0, FORBIDDEN, (count,), generator=generator)
    target_M[1::2] += FORBIDDEN + 1  # on both sides of the forbidden id
    return hidden_MD, head_VD, target_M, 3 * torch.rand(count, generator=generator)


def run(function: Any, arguments: tuple[Tensor, Tensor, Tensor, Tensor], **options: Any) -> tuple[Tensor, ...]:
    hidden_MD, head_VD, target_M, weight_M = arguments
    nll_M = function(hidden_MD, head_VD, target_M, **options)
    grads = torch.autograd.grad((weight_M * nll_M).sum(), (hidden_MD, head_VD))
    return nll_M.detach(), *grads


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("forbidden_id", [None, FORBIDDEN, 0, V - 1])
@pytest.mark.parametrize("chunk", [1, 5, 16, 37, 1000])
def test_values_and_gradients_are_those_of_the_plain_loss(
    implementation: Implementation, forbidden_id: int | None, chunk: int
) -> None:
    arguments = inputs()
    arguments[2][(arguments[2] == 0) | (arguments[2] == V - 1)] = 5
    expected = run(plain, arguments, forbidden_id=forbidden_id)
    given = run(linear_cross_entropy, arguments, forbidden_id=forbidden_id, chunk=chunk, implementation=implementation)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision_gives_gradients_near_the_exact_ones(implementation: Implementation) -> None:
    arguments = inputs(torch.bfloat16)
    hidden_MD, head_VD, target_M, weight_M = arguments
    upcast = (hidden_MD.detach().float().requires_grad_(), head_VD.detach().float().requires_grad_())
    exact = run(plain, (*upcast, target_M, weight_M), forbidden_id=FORBIDDEN)
    given = run(linear_cross_entropy, arguments, forbidden_id=FORBIDDEN, chunk=8, implementation=implementation)
    assert [value.dtype for value in given] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for one, other in zip(given, exact, strict=True):
        torch.testing.assert_close(one.float(), other, atol=0.06, rtol=0.02)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_autocast_products_are_half_and_master_weights_get_full_gradients(
    implementation: Implementation,
) -> None:
    arguments = inputs()
    exact = run(plain, arguments, forbidden_id=FORBIDDEN)
    with torch.autocast("cpu", torch.bfloat16):
        given = run(linear_cross_entropy, arguments, forbidden_id=FORBIDDEN, chunk=8, implementation=implementation)
    assert {value.dtype for value in given} == {torch.float32}
    assert not torch.equal(given[0], exact[0])
    for one, other in zip(given, exact, strict=True):
        torch.testing.assert_close(one, other, atol=0.06, rtol=0.02)


def test_the_sliced_loss_keeps_full_precision_where_the_products_are_half() -> None:
    hidden_MD, head_VD, target_M, _ = inputs(torch.bfloat16)
    nll_M = linear_cross_entropy(hidden_MD, head_VD, target_M, forbidden_id=None, chunk=8)
    torch.testing.assert_close(nll_M, plain(hidden_MD, head_VD, target_M, forbidden_id=None), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_forbidden_id_gets_no_probability_and_no_gradient(implementation: Implementation) -> None:
    hidden_MD, head_VD, target_M, weight_M = inputs()
    with torch.no_grad():
        head_VD[FORBIDDEN] = 1e4 * hidden_MD[0]  # it would win
    nll_M, _, grad_VD = run(
        linear_cross_entropy,
        (hidden_MD, head_VD, target_M, weight_M),
        forbidden_id=FORBIDDEN,
        chunk=8,
        implementation=implementation,
    )
    assert bool((nll_M < 100).all())
    assert not grad_VD[FORBIDDEN].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_targets_give_an_empty_loss_and_zero_gradients(implementation: Implementation) -> None:
    arguments = inputs(count=0)
    nll_M, grad_MD, grad_VD = run(
        linear_cross_entropy, arguments, forbidden_id=FORBIDDEN, chunk=8, implementation=implementation
    )
    assert nll_M.shape == (0,)
    assert grad_MD.shape == (0, D)
    assert torch.equal(grad_VD, torch.zeros(V, D))


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_theirs() -> None:
    hidden_MD, head_VD, target_M, weight_M = inputs()
    expected = run(plain, (hidden_MD, head_VD, target_M, weight_M), forbidden_id=None)[1]
    nll_M = linear_cross_entropy(hidden_MD, head_VD.detach(), target_M, forbidden_id=None, chunk=8)
    (grad_MD,) = torch.autograd.grad((weight_M * nll_M).sum(), hidden_MD)
    torch.testing.assert_close(grad_MD, expected, atol=2e-6, rtol=2e-5)


def test_the_logits_of_all_words_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_MD, head_VD, target_M, weight_M = inputs()
    largest = 0
    real = torch.Tensor.float

    def watched(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "float", watched)
    run(linear_cross_entropy, (hidden_MD, head_VD, target_M, weight_M), forbidden_id=FORBIDDEN, chunk=5)
    assert 0 < largest <= 5 * M


def test_the_fused_loss_says_which_torch_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    hidden_MD, head_VD, target_M, _ = inputs()
    with pytest.raises(SettingsError, match=r"needs torch 2\.13 or later, and this is .*; leave it at 'auto'"):
        linear_cross_entropy(hidden_MD, head_VD, target_M, forbidden_id=None, implementation="fused")


def test_a_chunk_without_words_is_refused() -> None:
    hidden_MD, head_VD, target_M, _ = inputs()
    with pytest.raises(SettingsError, match="chunk=0 holds no word; it must be at least 1"):
        linear_cross_entropy(hidden_MD, head_VD, target_M, forbidden_id=None, chunk=0)
