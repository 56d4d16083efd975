"""Defaults of a sweep that depend on the device: points at a time, memory."""

from typing import Any

ON_A_CPU = 2**30
"""Bytes for the arrays of one part of a sweep."""
IN_CACHE = 3 * 2**20
"""Bytes of the arrays that the points of a batch on a CPU may make in a turn of a loop: about four
times what is in use at a time. With more of them a batch leaves the cache of a core, and one point
after another is faster: ``python -m benchmarks sweeps``."""
ON_A_CARD = 4096
"""Points at a time on an accelerator, if its memory holds them: it is as fast with one of them as
with as many as keep all of it busy."""


def usual_lanes(device: Any, on_a_cpu: int = 16) -> int:
    """Points that a device runs at a time.

    Example:
        >>> import jax
        >>> usual_lanes(jax.devices("cpu")[0])
        16
    """
    return on_a_cpu if device.platform == "cpu" else ON_A_CARD


def lanes_in_cache(nbytes: int) -> int:
    """Points of a batch on a CPU that stay in a cache.

    A power of two, so that few bytes more or less change nothing.

    Args:
        nbytes: bytes of all arrays that the largest loop of a point makes in a turn.

    Example:
        >>> lanes_in_cache(2**20), lanes_in_cache(2**30)
        (2, 1)
    """
    return 2 ** (max(1, IN_CACHE // max(1, nbytes)).bit_length() - 1)


def usual_memory(device: Any) -> int:
    """Bytes for the arrays of one part: half of the memory of an accelerator, if it says how much.

    Example:
        >>> import jax
        >>> usual_memory(jax.devices("cpu")[0]) == 2**30
        True
    """
    if device.platform == "cpu":
        return ON_A_CPU
    stats = device.memory_stats() or {}
    # Half: programs, and gaps that the allocator cannot join, need room beside the arrays.
    return stats["bytes_limit"] // 2 if "bytes_limit" in stats else ON_A_CPU


def memory_of_each(device: Any, jobs: int, most: int) -> int:
    """Bytes for the arrays of one part of each of several sweeps that run at a time.

    Args:
        device: on which they run.
        jobs: how many of them.
        most: what one may take.

    Returns:
        ``most`` on a CPU; on an accelerator, whose memory they share, no more than its share of
        :func:`usual_memory`.

    Example:
        >>> from types import SimpleNamespace
        >>> card = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 80 * 2**30})
        >>> memory_of_each(card, 16, 40 * 2**30) == 2.5 * 2**30, memory_of_each(card, 16, 1000)
        (True, 1000)
    """
    return most if device.platform == "cpu" else min(most, usual_memory(device) // max(1, jobs))
