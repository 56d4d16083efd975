"""Defaults of a sweep that depend on the device: points at a time, and memory."""

from typing import Any

ON_A_CPU = 2**30
"""Bytes for the arrays of one part of a sweep."""
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
