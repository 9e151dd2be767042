"""A random drafter in front of a tiny causal network, in memory."""

from functools import cache

import torch

from unmask.model.drafter import Drafter, DraftHead
from unmask.model.gate import GatedLinear

from doubles import tiny_backbone, tiny_config

MASK = 60
CONFIG = tiny_config(mask_id=MASK)


@cache
def gated():
    """The same network with a random adapter on every linear layer, and a random row for the mask."""
    backbone = tiny_backbone(CONFIG)
    generator = torch.Generator().manual_seed(3)
    for name, module in list(backbone.named_modules()):
        if isinstance(module, torch.nn.Linear) and name.startswith("layers"):
            owner, _, last = name.rpartition(".")
            A = torch.randn(2, module.in_features, generator=generator)
            B = 0.3 * torch.randn(module.out_features, 2, generator=generator)
            setattr(backbone.get_submodule(owner), last, GatedLinear(module, A, B))
    backbone.mask_row = torch.nn.Parameter(torch.randn(32, generator=generator), requires_grad=False)
    return backbone


def drafter_of(block_length=4):
    return Drafter(DraftHead(32, 8), *embeddings(), torch.arange(60), block_length=block_length)


def embeddings():
    """Embedding of all tokens, and the vocabulary head's rows of the sixty that may be drafted."""
    return gated().embed_tokens.weight.detach(), gated().lm_head.weight.detach()[:60]
