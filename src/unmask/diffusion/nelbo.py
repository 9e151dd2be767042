"""The bound on held-out text: the same masks at every evaluation, and how well the number is known.

Of a document with T maskable tokens, N masked copies are made: copy n masks k tokens at random, where k is drawn from
the n-th of N equal parts of 1 … T, and T/k times the NLL of what it masks is an unbiased estimate of the document's
bound in nats (LLaDA, 2502.09992, section 2.4). The masks depend on the seed and the document's number alone, never on
the step of the training, so that a curve over the training shows the model and not the masks.

Two standard errors, for two questions. How far is the number from the bound on exactly these documents: that of the
drawn masks. How far from the bound on the text that they were drawn from: that of the documents, which holds the masks'
as well.

Letters: D documents, N samples, L length.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.errors import SettingsError
from unmask.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutMasks:
    """The masked copies of one document."""

    is_masked_NL: Bool[Tensor, "N L"]

    weight_N: Float[Tensor, " N"]
    """T/k, float64: the weight of a copy's summed NLL in its estimate of the document's bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nelbo:
    """The negative evidence lower bound of held-out text."""

    nats_per_token: float

    standard_error: float
    """Of the masks, for these documents; infinite for one sample per document. It leans to the large side."""

    document_standard_error: float
    """Of the documents (and the masks), for the text that they were drawn from; infinite for one document."""

    num_documents: int

    num_samples: int
    """Masked copies per document."""


def held_out_masks(is_maskable_L: Bool[Tensor, " L"], *, num_samples: int, seed: int, document: int) -> HeldOutMasks:
    """The fixed masks of held-out document number `document`, in the order of their strata.

    >>> masks = held_out_masks(torch.tensor([False, True, True, True]), num_samples=3, seed=0, document=0)
    >>> masks.is_masked_NL.sum(1).tolist(), masks.weight_N.tolist()
    ([1, 2, 3], [3.0, 1.5, 1.0])
    """
    if num_samples < 1:
        raise SettingsError(f"num_samples={num_samples} is not a count; each held-out document needs at least 1")
    generator = torch.Generator().manual_seed(derive_seed(seed, "held-out masks", document))
    size = int(is_maskable_L.sum())
    place_N = torch.arange(num_samples) + torch.rand(num_samples, generator=generator, dtype=torch.float64)
    count_N = ((place_N / num_samples * size).long() + 1).clamp(max=size)
    uniform_NL = torch.rand(num_samples, len(is_maskable_L), generator=generator, dtype=torch.float64)
    rank_NL = uniform_NL.masked_fill(~is_maskable_L.cpu(), torch.inf).argsort(1).argsort(1)
    return HeldOutMasks(
        is_masked_NL=(rank_NL < count_N[:, None]).to(is_maskable_L.device),
        weight_N=(size / count_N.clamp(min=1).double()).to(is_maskable_L.device),
    )


def combine(terms_DN: Float[Tensor, "D N"], tokens_D: Int[Tensor, " D"]) -> Nelbo:
    """The bound per token over all documents from each copy's estimate (weight · summed NLL, in nats).

    `tokens_D` counts each document's maskable tokens.

    >>> combine(torch.tensor([[2.0, 4.0], [5.0, 5.0]]), torch.tensor([2, 2])).nats_per_token
    2.0
    """
    num_documents, num_samples = terms_DN.shape
    terms_DN, tokens = terms_DN.double(), float(tokens_D.sum())
    if not num_documents or not num_samples or not tokens:
        raise SettingsError(
            f"{num_documents} documents with {tokens:.0f} tokens and {num_samples} masked copies each leave nothing to "
            "evaluate; give at least one document with a token to predict, and one copy"
        )
    nats_D = terms_DN.mean(1)
    mean = float(nats_D.sum()) / tokens
    return Nelbo(
        nats_per_token=mean,
        standard_error=_mask_error(terms_DN) / tokens,
        document_standard_error=_document_error(nats_D - mean * tokens_D) / tokens,
        num_documents=num_documents,
        num_samples=num_samples,
    )


def _mask_error(terms_DN: Float[Tensor, "D N"]) -> float:
    """Of the sum over documents. Half the squared difference of neighbouring strata estimates a copy's variance; what
    their strata differ by comes on top."""
    num_samples = terms_DN.shape[1]
    if num_samples == 1:
        return math.inf
    variance_D = terms_DN.diff(dim=1).square().mean(1) / 2
    return math.sqrt(float(variance_D.sum()) / num_samples)


def _document_error(residual_D: Float[Tensor, " D"]) -> float:
    """Of the sum over documents as a quotient of two sums: the residuals are nats beyond the mean's (Cochran, 1977,
    chapter 6)."""
    count = len(residual_D)
    return math.inf if count == 1 else math.sqrt(float(residual_D.square().sum()) * count / (count - 1))
