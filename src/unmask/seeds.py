"""One seed for a run, private seeds for each random choice in it.

A choice is named by its purpose and its indices: `derive_seed(7, "content", row, step)`. The derived seed depends on
nothing else, so a batch neighbour, a worker count or a resume never moves it, and no global generator is touched.
"""

import hashlib

_SEED_BITS = 63


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that is a pure function of (seed, purpose, indices).

    >>> derive_seed(0, "content", 1, 2) == derive_seed(0, "content", 1, 2)
    True
    >>> derive_seed(0, "content", 1, 2) == derive_seed(0, "order", 1, 2)
    False
    """
    name = "\x1f".join([str(seed), purpose, *(str(index) for index in indices)])
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)
