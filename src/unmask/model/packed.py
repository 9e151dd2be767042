"""Linear layers whose weights are laid out for the processor's bfloat16 kernels.

oneDNN reads a plain [out, in] weight at about two thirds of the memory bandwidth when few positions go through it, and
decoding sends few. Re-ordered once at load, the same product runs 1.4 to 2 times as fast for up to 16 positions and
gives the same bits (docs/log.md has the table). A tied head gets a packed copy of its own, since the embedding is
looked up by rows: 272 MB more for the 0.5B model. Packing is for decoding alone: a packed layer has no gradient, and
`plain_weight` gives its matrix back for saving.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.model.backbone import Backbone

_POSITIONS_IN_MIND = 16  # the layout that was fastest from 1 to 384 positions


class PackedLinear(nn.Module):
    """A bfloat16 `nn.Linear` on the CPU with a re-ordered weight."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias = plain.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), _POSITIONS_IN_MIND)

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def plain_weight(self) -> Float[Tensor, "O I"]:
        """The matrix in its ordinary layout."""
        plain: Tensor = self._packed.to_dense()
        return plain


def multiplies_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 products run in hardware: recent GPUs, and processors whose oneDNN has kernels for them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def can_pack(backbone: Backbone) -> bool:
    """True for a bfloat16 network on a CPU whose oneDNN multiplies bfloat16 natively."""
    ops = torch.ops.mkldnn
    return (
        backbone.device.type == "cpu"
        and backbone.dtype is torch.bfloat16
        and multiplies_bfloat16(backbone.device)
        and hasattr(ops, "_reorder_linear_weight")
        and hasattr(ops, "_linear_pointwise")
    )


def pack(backbone: Backbone) -> Backbone:
    """Replace every linear layer by its packed form, one at a time, so that no second copy of the network exists."""
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = backbone.get_submodule(parent)
        setattr(owner, last, PackedLinear(getattr(owner, last)))
    return backbone
