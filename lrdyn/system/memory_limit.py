"""Memory that this process may use: that of the machine, or less under ``ulimit -v``.

Nothing else of the library is imported here: a command asks before it imports what needs the
memory.
"""

import errno
import math
import os
import re
import resource
from functools import cache

IMPORTING = 600_000_000
"""Address space that ``lrdyn list`` needs: 530 MB with JAX 0.10; at 520 MB an import fails."""
COMPUTING = 2_400_000_000
"""Address space for computing: 2.0 to 2.15 GB on two cores; LLVM ends the process at 2.0 GB."""
CORE = 50_000_000
"""Further address space for each core: thread stacks, 35 MB for a device and some to compile."""
WRITABLE = 1 / 3
"""Share of that which must be writable: 200 MB to import (160 MB fail), 800 MB to compute."""


def size_of(count: int) -> str:
    """Write a number of bytes for a reader.

    Example:
        >>> size_of(999), size_of(25_300_000), size_of(2**62)
        ('999 B', '25.3 MB', '4.61 EB')
    """
    size, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


SIZE = "a size such as 500MB or 2GiB"
"""What :func:`read_size` takes, in words."""
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
UNITS |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("kmgt", start=1)}


def read_size(text: str) -> int | None:
    """Read a number of bytes such as ``500MB`` or ``2GiB``; None if the text is no size.

    Example:
        >>> read_size("2kiB"), read_size("much")
        (2048, None)
    """
    number = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*([kmgt]?i?)b?", text.strip().lower())
    count = float(number[1]) * UNITS[number[2]] if number and number[2] in UNITS else 0
    return int(count) if 1 <= count < math.inf else None


@cache
def address_space() -> int | None:
    """Bytes of address space that ``ulimit -v`` leaves this process; None if it sets no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    # The soft limit is the one that the system keeps to.
    return None if soft == resource.RLIM_INFINITY else soft


@cache
def memory() -> int:
    """Bytes that the arrays of this process can take at most, read once.

    The memory of the machine or the address space of the process, whichever is less. The memory of
    an accelerator is not looked at: what is drawn or stored for it passes through this one.

    Example:
        >>> memory() > 0
        True
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, address_space() or machine)


def require(least: int) -> None:
    """Refuse to go on with less memory than is needed: JAX and LLVM end a process without it.

    Args:
        least: bytes of address space.

    Raises:
        OSError: there is less.

    Example:
        >>> require(1)
    """
    if (limit := address_space()) is not None and limit < least:
        wanted = f"got {size_of(limit)} of address space, wanted {size_of(least)} or more"
        raise OSError(errno.ENOMEM, wanted, "ulimit -v")
    data, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if data != resource.RLIM_INFINITY and data < WRITABLE * least:
        wanted = f"got {size_of(data)} of data, wanted {size_of(int(WRITABLE * least))} or more"
        raise OSError(errno.ENOMEM, wanted, "ulimit -d")
