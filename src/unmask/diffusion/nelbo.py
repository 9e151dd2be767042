"""The bound on held-out text from the estimates of masked copies, and how well the number is known.

Each document has N masked copies, whose noise levels are the n-th of N equal parts (`diffusion/corrupt.py` draws them,
`train/heldout.py` says with which fixed masks); the weighted NLL of what a copy masks is an unbiased estimate of the
document's bound in nats (LLaDA, 2502.09992, section 2.4).

Two standard errors, for two questions. How far is the number from the bound on exactly these documents: that of the
drawn masks. How far from the bound on the text that they were drawn from: that of the documents, which holds the masks'
as well.

Letters: D documents, N samples.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from unmask.errors import SettingsError


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


def combine(terms_DN: Float[Tensor, "D N"], tokens_D: Int[Tensor, " D"]) -> Nelbo:
    """The bound per token over all documents from each copy's estimate (weight · summed NLL, in nats).

    `tokens_D` counts each document's maskable tokens.

    >>> import torch
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
