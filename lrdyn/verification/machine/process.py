"""Settings of the whole process: precision, devices, threads, the cache of programs."""

import contextlib
import os

import jax

from lrdyn.system import memory_limit
from lrdyn.verification.machine import accelerators, program_cache
from lrdyn.verification.machine.kept_programs import KeptPrograms


def setup(
    dtype: str = "float64", *, host_devices: int | None = None, host_only: bool = False
) -> KeptPrograms | None:
    """Set what belongs to the whole process; call it before the first JAX computation.

    Double precision (unless float32 is asked for), the highest matmul precision (no TF32), one
    CPU device for each core, one BLAS and LAPACK thread for each device, a compilation cache in
    ``$XDG_CACHE_HOME/lrdyn`` (or ``~/.cache/lrdyn``; ``LRDYN_CACHE=`` turns it off), apart for each
    jaxlib, processor and kind of device, and of at most ``LRDYN_CACHE_MAX`` bytes (2GB).

    Args:
        dtype: ``float64`` or ``float32``.
        host_devices: CPU devices; the number of usable cores by default. ``JAX_NUM_CPU_DEVICES``
            and ``XLA_FLAGS=--xla_force_host_platform_device_count`` come first. Without effect once
            the backend has started, and on a GPU or TPU.
        host_only: leave a GPU or TPU to other processes, which compute in the place of this one.
            Without effect once the backend has started.

    Returns:
        Where the library keeps the compiled programs of its theorems; None if it keeps none.

    Raises:
        ValueError: the dtype is unknown.
        BadInput: ``JAX_PLATFORMS`` names a platform of which there is no plugin, or no device.
        OSError: ``ulimit -v`` leaves less address space than JAX and LLVM need, which would end the
            process.

    Example:
        >>> programs = setup("float64")
    """
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype: got {dtype!r}, wanted 'float64' or 'float32'")
    # First of all: LLVM ends the process without a word when it gets no memory.
    memory_limit.require(memory_limit.COMPUTING + memory_limit.CORE * cores())
    jax.config.update("jax_enable_x64", dtype == "float64")
    # A GPU would multiply float32 as TF32, with three correct digits.
    jax.config.update("jax_default_matmul_precision", "highest")
    # Each device has a core of its own; more LAPACK threads make an SVD several times slower.
    import scipy.linalg.lapack  # noqa: F401  (loads the LAPACK that JAX calls on a CPU)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")
    count = accelerators.host_devices_asked() or host_devices or cores()
    with contextlib.suppress(RuntimeError):  # the backend has started: keep its devices
        jax.config.update("jax_num_cpu_devices", count)
    # Before the devices are opened: a card that was opened is held until the process ends.
    if host_only and accelerators.accelerator():
        jax.config.update("jax_platforms", "cpu")
    accelerators.open_devices()
    cache = os.environ.get("LRDYN_CACHE")
    if cache is None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        cache = os.path.join(base, "lrdyn")
    return program_cache.keep(cache) if cache else None


def cores() -> int:
    """Count the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
