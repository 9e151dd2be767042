"""Who sees whom: attention masks for full, causal and block attention, and the attention itself.

Decoding asks by position (`attention_mask`), training by the documents of packed rows (the `_mask` functions below it).

Letters: B batch, T query positions, S key positions, N query heads, K key-value heads, H head size.

Block attention is causal between blocks and full inside one: query q sees key k when floor(k / block_length) <=
floor(q / block_length), both counted from the row's first token. Block length 1 is causal attention. Positions of
padding are negative and are seen by nobody.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from unmask.model.config import Attention
from unmask.seeds import derive_seed

_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_mask(
    kind: Attention,
    query_positions_BT: Int[Tensor, "B T"],
    key_positions_BS: Int[Tensor, "B S"],
    *,
    block_length: int | None = None,
) -> Bool[Tensor, "B 1 T S"]:
    """True where the query may see the key. A key with a negative position is padding.

    >>> import torch
    >>> positions = torch.arange(4)[None]
    >>> attention_mask("block", positions, positions, block_length=2)[0, 0].int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    query, key = query_positions_BT[:, None, :, None], key_positions_BS[:, None, None, :]
    is_real = key >= 0
    if kind == "full":
        return is_real.expand(-1, -1, query.shape[2], -1)
    if kind == "causal":
        return is_real & (key <= query)
    assert block_length is not None
    return is_real & (key // block_length <= query // block_length)


def document_mask(document_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Everyone sees the whole of his own document. Padding (-1) sees padding, so that no query sees nothing.

    >>> document_mask(torch.tensor([[0, 0, 1]]))[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    return document_BT[:, None, :, None] == document_BT[:, None, None, :]


def causal_document_mask(document_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Everyone sees himself and what comes before him in his own document."""
    return document_mask(document_BT) & _causal(document_BT)


def annealed_mask(document_BT: Int[Tensor, "B T"], *, share: float, seed: int, step: int) -> Bool[Tensor, "B 1 T T"]:
    """Between causal and full: everyone sees what comes before him, and a random share of what comes after.

    The way from an autoregressive model to a diffusion model (DiffuLLaMA, 2410.17891): `share` 0 is causal, 1 is full.
    One random matrix for all rows of a step, drawn from (seed, step).
    """
    length = document_BT.shape[1]
    generator = torch.Generator().manual_seed(derive_seed(seed, "annealing", step))
    is_open_TT = torch.rand(length, length, generator=generator).to(document_BT.device) < share
    return document_mask(document_BT) & (_causal(document_BT) | is_open_TT)


def block_training_mask(
    document_BT: Int[Tensor, "B T"], position_BT: Int[Tensor, "B T"], *, block_length: int
) -> Bool[Tensor, "B 1 2T 2T"]:
    """For rows laid out as [noisy ; clean], 2T long: every block learns from finished blocks (BD3-LM, 2503.09573).

    A noisy token sees the noisy tokens of its own block and the clean ones of earlier blocks; a clean token sees the
    clean ones of its own and earlier blocks, and never a noisy one. Both stay in their document; blocks are counted
    from its first token, at position 0.

    >>> block_training_mask(torch.zeros(1, 2).long(), torch.tensor([[0, 1]]), block_length=1)[0, 0].int().tolist()
    [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    block_BT = position_BT // block_length
    query, key = block_BT[:, None, :, None], block_BT[:, None, None, :]
    is_own = document_mask(document_BT)
    noisy = torch.cat((is_own & (key == query), is_own & (key < query)), -1)  # B 1 T 2T
    clean = torch.cat((torch.zeros_like(is_own), is_own & (key <= query)), -1)
    return torch.cat((noisy, clean), -2)


def _causal(document_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "T T"]:
    length = document_BT.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=document_BT.device).tril()


def attend(
    query_BNTH: Float[Tensor, "B N T H"],
    key_BKSH: Float[Tensor, "B K S H"],
    value_BKSH: Float[Tensor, "B K S H"],
    attn_mask: Bool[Tensor, "B 1 T S"] | Float[Tensor, "B 1 T S"] | None,
) -> Float[Tensor, "B N T H"]:
    """Grouped-query attention; `attn_mask` None means that everything is visible, numbers are added to the scores.

    The heads that share a key-value head are laid behind each other on the query axis, so keys and values are never
    repeated in memory: softmax(q kᵀ / √H) v is independent per query.
    """
    B, N, T, H = query_BNTH.shape
    K = key_BKSH.shape[1]
    group = N // K
    if group == 1:
        return _attend(query_BNTH, key_BKSH, value_BKSH, attn_mask)
    folded = query_BNTH.reshape(B, K, group * T, H)
    if attn_mask is not None and T > 1:
        attn_mask = attn_mask.repeat(1, 1, group, 1)  # B 1 (group T) S
    return _attend(folded, key_BKSH, value_BKSH, attn_mask).reshape(B, N, T, H)


def as_bias(attn_mask: Bool[Tensor, "B 1 T S"] | None, dtype: torch.dtype) -> Float[Tensor, "B 1 T S"] | None:
    """A mask as numbers to add to the scores: 0 where the query may see the key, the least number elsewhere.

    >>> as_bias(torch.tensor([[[[True, False]]]]), torch.float32)[0, 0, 0].tolist()
    [0.0, -3.4028234663852886e+38]
    """
    if attn_mask is None:
        return None
    return torch.zeros((), dtype=dtype, device=attn_mask.device).masked_fill(~attn_mask, torch.finfo(dtype).min)


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √H) v, by the library's fused attention, or by three products where that is faster.

    On the CPU the fused attention's backward runs at a tenth of the speed of a product. In bfloat16, with the mask as
    numbers and rows of up to 512 tokens, the products train in half its time (docs/log.md), for T² numbers per head.
    On a GPU cuDNN's attention is left out: it makes a plan for every new shape, and decoding has one at every step.
    """
    if value.device.type == "cuda":
        with sdpa_kernel(_FUSED):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
    is_training = torch.is_grad_enabled() and query.requires_grad
    is_bias = attn_mask is None or attn_mask.is_floating_point()
    if not (is_training and is_bias and value.device.type == "cpu" and value.dtype is torch.bfloat16):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
    with torch.autocast("cpu", enabled=False):  # which would run the softmax in float32
        scores: Tensor = (query * query.shape[-1] ** -0.5).to(value.dtype) @ key.to(value.dtype).mT
        if attn_mask is not None:
            scores = scores + attn_mask
        out: Tensor = scores.softmax(-1) @ value
    return out
