"""Random draws of a saved key again: Threefry with 20 rounds on two words of 32 bits.

Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3 (2011). How counters are
laid out and how bits become numbers is what JAX does since its release 0.5.
"""

import numpy as np

Key = np.ndarray
"""Two words; of several keys along the first axes."""

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
"""Bits by which a word is turned in each round, four rounds with the one or the other row."""
PARITY = np.uint32(0x1BD11BDA)
"""Constant of the key schedule: without it a key of zeros would have a third word of 0."""


def rotated(word: np.ndarray, bits: int) -> np.ndarray:
    """A word turned to the left."""
    return word << np.uint32(bits) | word >> np.uint32(32 - bits)


@np.errstate(over="ignore")  # addition is modulo 2^32
def threefry(key: Key, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encrypt counters of two words with a key."""
    first, second = (np.asarray(key[..., i], np.uint32) for i in (0, 1))
    schedule = (first, second, first ^ second ^ PARITY)
    x, y = high + schedule[0], low + schedule[1]
    for i in range(5):
        # Twenty rounds: five times four, and the key is added behind each four.
        for bits in ROTATIONS[i % 2]:
            x = x + y
            y = rotated(y, bits) ^ x
        x = x + schedule[(i + 1) % 3]
        y = y + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def folded(key: Key, number: int | np.ndarray) -> Key:
    """Derive the key of a number, such as that of a step."""
    # Negative numbers, too: as JAX has them, modulo 2^32.
    low = np.asarray(number, np.int64).astype(np.uint32)
    return np.stack(threefry(np.asarray(key), np.zeros_like(low), low), axis=-1)


def counters(count: int) -> np.ndarray:
    """0, 1, ..., as words."""
    return np.arange(count, dtype=np.uint32)


def split(key: Key, count: int) -> Key:
    """Derive so many keys from each."""
    low = counters(count)
    return np.stack(threefry(np.asarray(key)[..., None, :], np.zeros_like(low), low), axis=-1)


def uniform(key: Key, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [0, 1) out of 52 bits; of several keys along the first axes."""
    low = counters(int(np.prod(shape)))
    high, low = threefry(np.asarray(key)[..., None, :], np.zeros_like(low), low)
    bits = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    # JAX fills the 52 bits of a mantissa in [1, 2) and subtracts 1.
    numbers = (bits >> np.uint64(12)) * 2.0**-52
    return numbers.reshape(numbers.shape[:-1] + shape)


def kept(key: Key, shape: tuple[int, ...], keep: float) -> np.ndarray:
    """A mask of ones, each with a probability, and zeros."""
    return (uniform(key, shape) < keep).astype(float)
