"""Who sees whom: attention masks for full, causal and block attention, and the attention itself.

Letters: B batch, T query positions, S key positions, N query heads, K key-value heads, H head size.

Block attention is causal between blocks and full inside one: query q sees key k when floor(k / block_length) <=
floor(q / block_length), both counted from the row's first token. Block length 1 is causal attention. Positions of
padding are negative and are seen by nobody.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from unmask.model.config import Attention


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


def attend(
    query_BNTH: Float[Tensor, "B N T H"],
    key_BKSH: Float[Tensor, "B K S H"],
    value_BKSH: Float[Tensor, "B K S H"],
    attn_mask: Bool[Tensor, "B 1 T S"] | None,
) -> Float[Tensor, "B N T H"]:
    """Grouped-query attention; `attn_mask` None means that everything is visible.

    The heads that share a key-value head are laid behind each other on the query axis, so keys and values are never
    repeated in memory: softmax(q kᵀ / √H) v is independent per query.
    """
    B, N, T, H = query_BNTH.shape
    K = key_BKSH.shape[1]
    group = N // K
    if group == 1:
        return F.scaled_dot_product_attention(query_BNTH, key_BKSH, value_BKSH, attn_mask=attn_mask)
    folded = query_BNTH.reshape(B, K, group * T, H)
    if attn_mask is not None and T > 1:
        attn_mask = attn_mask.repeat(1, 1, group, 1)  # B 1 (group T) S
    out = F.scaled_dot_product_attention(folded, key_BKSH, value_BKSH, attn_mask=attn_mask)
    return out.reshape(B, N, T, H)
