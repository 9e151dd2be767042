"""A shuffle that is computed, not stored: where place i of n goes, from (i, n, key) alone.

A balanced Feistel network permutes the numbers of an even count of bits, whatever its round function is; a number
that falls outside [0, n) is put through it again until it falls inside (cycle walking; Black and Rogaway, "Ciphers
with arbitrary finite domains", CT-RSA 2002, section 3). The domain is less than 4 n, so that takes fewer than 4
passes on average. Made for shuffling, not for secrecy: nobody attacks the order of training samples.
"""

_ROUNDS = 6
_WORD = (1 << 64) - 1


def permute(i: int, n: int, key: int) -> int:
    """The place of `i` in the permutation of [0, n) that `key` names.

    >>> sorted(permute(i, 10, key=7) for i in range(10))
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> [permute(i, 10, key=7) for i in range(10)] == [permute(i, 10, key=8) for i in range(10)]
    False
    """
    if not 0 <= i < n:
        raise IndexError(f"place {i} of a permutation of {n}")
    if n == 1:
        return 0
    half = (n - 1).bit_length() + 1 >> 1
    while True:  # ends: i lies on a cycle of the network, and i itself is inside
        i = _network(i, half, key)
        if i < n:
            return i


def _network(i: int, half: int, key: int) -> int:
    low_bits = (1 << half) - 1
    left, right = i >> half, i & low_bits
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(key ^ _mix(number))) & low_bits)
    return left << half | right


def _mix(x: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 17): spreads every bit."""
    x = x + 0x9E3779B97F4A7C15 & _WORD
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _WORD
    return x ^ x >> 31
