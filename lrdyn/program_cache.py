"""Where compiled programs are kept on disk: those of each kind of machine apart, in bounds.

A home that many machines share must never hand the code of one to another: XLA compiles for the
features of the processor at hand, and JAX names what it keeps without them.
"""

import argparse
import contextlib
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax

from lrdyn.arguments import size
from lrdyn.engine.configuration import BadInput

MOST = 2 * 10**9
"""Bytes that are kept, unless ``LRDYN_CACHE_MAX`` says how many."""


def keep(base: str | os.PathLike) -> None:
    """Let JAX keep what it compiles below a folder; it looks at the devices, and so starts them."""
    kept = Path(base, kind())
    prune(Path(base), most())
    jax.config.update("jax_compilation_cache_dir", os.fspath(kept))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def kind() -> str:
    """Name of the folder of this kind of machine."""
    device = jax.local_devices()[0]
    parts = (version("jaxlib"), features(), device.platform, device.device_kind)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"jaxlib-{parts[0]}-{device.platform}-{digest}"


def features() -> str:
    """What the processor of this machine can do, in the words of its kernel."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:  # of the first core
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {line.partition(':')[2].strip()}"
    return f"{platform.machine()} {platform.processor()}"


def most() -> int:
    """Bytes that may be kept; what ``LRDYN_CACHE_MAX`` says, such as ``500MB``.

    Raises:
        BadInput: it says no size.
    """
    text = os.environ.get("LRDYN_CACHE_MAX", "")
    try:
        return size(text) if text else MOST
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"LRDYN_CACHE_MAX: {error}") from None


def prune(base: Path, most: int) -> None:
    """Remove the files that were used longest ago, until no more bytes are kept.

    Another process may do the same, or read one: what is gone is compiled again.
    """
    found = []
    with contextlib.suppress(OSError):  # nothing is kept yet, or a folder vanishes meanwhile
        # Those beside the folders are of releases that told no machines apart.
        for path in [*base.glob("jaxlib-*/*"), *base.glob("jit_*")]:
            facts = path.stat()
            found.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    kept = sum(count for _, count, _ in found)
    for _, count, path in sorted(found):
        if kept <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        kept -= count
