"""Keys: 64-bit integers from which every random number is derived, never drawn in sequence.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on Python integers.
`noise.py` holds the same function on tensors; the tests hold both to Random123's known answers.
"""

from hashlib import blake2b

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF

FOLD = 0x464F4C44  # the stream of `fold_in`; noise.py lists the streams of noise


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit words, a pure function of four counter words and two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & WORD, (p0 >> 32) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def words(key: int) -> tuple[int, int]:
    """The low and the high 32-bit word of a 64-bit key."""
    return key & WORD, (key >> 32) & WORD


def fold_in(key: int, data: int) -> int:
    """A new key that depends on `key` and on the integer `data` (0 <= data < 2**64)."""
    low, high, _, _ = philox((*words(data), FOLD, 0), words(key))
    return low | (high << 32)


def root_key(seed: int) -> int:
    """The key of a run, from the user's seed (any integer)."""
    return fold_in(seed & 0xFFFFFFFFFFFFFFFF, 0)


def name_key(name: str) -> int:
    """64 bits that stand for a name, so that adding or removing a tensor leaves every other tensor's noise alone."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def direction_keys(step_key: int, count: int) -> tuple[int, ...]:
    """The keys of a step's directions; a journal stores coefficients only, so this may never change."""
    return tuple(fold_in(step_key, index) for index in range(count))
