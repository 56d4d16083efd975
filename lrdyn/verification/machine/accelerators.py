"""Which accelerator JAX would take, found without opening it, and how processes share one.

A process that opens a card takes memory there, by default three quarters of it, until it ends.
"""

import contextlib
import os
import pkgutil
import re
from collections.abc import Iterator
from glob import glob
from importlib.metadata import PackageNotFoundError, distributions, entry_points, version
from importlib.util import find_spec
from typing import Any

import jax

from lrdyn.core.show import shortened
from lrdyn.verification.stating.mistakes import BadInput

FILES = {
    "cuda": ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg"),
    "rocm": ("/dev/kfd",),
    "tpu": ("/dev/accel*", "/dev/vfio/[0-9]*"),
}
"""Platform -> files of its devices, on Linux; one that is not here is trusted to its plugin."""
LIBRARIES = ("nvidia-", "jax-", "libtpu")
"""How the names of their packages begin."""
DRIVER = "/proc/driver/nvidia/version"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
"""What XLA calls it; its own name for what ``--deterministic`` asks for."""


def accelerator() -> str:
    """The accelerator that JAX would take here, such as ``cuda`` or ``tpu``; empty for none.

    If ``JAX_PLATFORMS`` names platforms, the first of them decides. Else a platform counts if its
    plugin is installed (an entry point ``jax_plugins``, a module below that package, or libtpu),
    files of its devices are there, and ``CUDA_VISIBLE_DEVICES`` does not hide them. Nothing is
    opened: a plugin that then finds no device leaves JAX on the CPU.

    Example:
        >>> accelerator() != "cpu"
        True
    """
    if named := _named():
        first = named.split(",")[0]
        return "" if first == "cpu" else first
    return next(filter(_there, _installed()), "")


def _named() -> str:
    """What ``JAX_PLATFORMS`` or the configuration of JAX names."""
    # The configuration holds the variable, too, and what a program has set in its place.
    return jax.config.values.get("jax_platforms") or ""


def _installed() -> Iterator[str]:
    """Platforms of the plugins that are installed."""
    if find_spec("libtpu"):
        yield "tpu"
    names = [entry.name for entry in entry_points(group="jax_plugins")]
    if spec := find_spec("jax_plugins"):
        # The two ways in which JAX itself looks for plugins.
        names += [module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)]
    for name in dict.fromkeys(names):
        yield next((platform for platform in FILES if platform in name), name)


def _there(platform: str) -> bool:
    """Whether there are devices of a platform, as far as the file system shows it."""
    # The driver's own way to say that there are no cards, although their files are there.
    if platform == "cuda" and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return platform not in FILES or any(map(glob, FILES[platform]))


def open_devices() -> list[Any]:
    """The devices of this process, which opens them, and a CPU beside an accelerator.

    Raises:
        BadInput: ``JAX_PLATFORMS`` names a platform of which there is no plugin, or no device, or
            XLA does not know ``XLA_FLAGS``.
    """
    if os.environ.get("XLA_FLAGS"):
        _try_flags()
    named = _named()
    if named and "cpu" not in named.split(","):
        # What a program hands to the host (:mod:`lrdyn.core.linalg`) passes through JAX's CPU.
        jax.config.update("jax_platforms", f"{named},cpu")
    try:
        devices = jax.local_devices()
        # With a CPU beside it JAX goes on without a platform that it cannot open.
        assert devices[0].platform != "cpu" or "cpu" in (named or "cpu").split(",")
        return devices
    except (RuntimeError, AssertionError) as error:  # JAX only asserts that there is some device
        if not named:
            raise
        # Between "Unable to initialize backend 'NAME': " and JAX's advice, which names the variable
        # again.
        message = str(error).partition("': ")[2].partition(" (set JAX_PLATFORMS")[0]
        why = shortened(message or "no such device", 60)
        wanted = "cpu, or a platform with its plugin (lrdyn[cuda], lrdyn[tpu]) and a device"
        raise BadInput(f"JAX_PLATFORMS: got {named!r} ({why}), wanted {wanted}") from error


def _try_flags() -> None:
    """Let another process read ``XLA_FLAGS``, for a flag that XLA does not know ends it.

    It would end this one with status 1, which says that a claim is false.

    Raises:
        BadInput: XLA does not know them; its reason is given.
    """
    try:  # JAX has no public way to have the flags read, nor to ask whether they were
        from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError:
        return
    if backends_are_initialized():  # they were read
        return
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(theirs, 2)
        with contextlib.suppress(AttributeError):  # a release of JAX that moved it
            xla_client.CompileOptions()
        os._exit(0)
    os.close(theirs)
    with open(ours, errors="replace") as said:
        reason = said.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        # After the time and the place in XLA's own source.
        lines = reason.partition("] ")[2].splitlines() or ["it ends the process"]
        got = f"{shortened(os.environ['XLA_FLAGS'])!r} ({shortened(lines[0], 80)})"
        raise BadInput(f"XLA_FLAGS: got {got}, wanted flags that XLA knows")


DOUBLE_RATE = {
    **dict.fromkeys(("5.0", "5.2", "5.3", "6.1", "6.2", "7.5"), 32),
    **dict.fromkeys(("8.6", "8.9", "12.0", "12.1"), 64),
}
"""NVIDIA's compute capability -> how many operations of float32 take as long as one of float64, for
cards that are not built for it: CUDA C++ Programming Guide, throughput of native arithmetic."""


def slow_doubles(device: Any) -> str:
    """Say that float64 is slow on a card, with what to do; empty on others.

    Args:
        device: an open device of JAX.

    Example:
        >>> slow_doubles(jax.devices("cpu")[0])
        ''
    """
    times = DOUBLE_RATE.get(str(getattr(device, "compute_capability", "")))
    if times is None:
        return ""
    return (
        f"{device.device_kind} computes float64 at 1/{times} of the rate of float32; for a first "
        "look: --dtype float32"
    )


def share_memory() -> None:
    """Let JAX allocate the memory of a card as it needs it, here and in processes started here.

    Without effect once JAX has opened the card. What somebody set about that memory stays.
    """
    # Releases of JAX differ in the prefix of these names.
    if not any("MEM_FRACTION" in name or "CLIENT_ALLOCATOR" in name for name in os.environ):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def host_devices_asked() -> int | None:
    """CPU devices that ``JAX_NUM_CPU_DEVICES`` or ``XLA_FLAGS`` ask for; None if neither does.

    Example:
        >>> host_devices_asked() in (0, -1)
        False
    """
    given = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    flag = r"--xla_force_host_platform_device_count=([0-9]+)"
    # XLA takes the last of several.
    given = given or next(iter(re.findall(flag, os.environ.get("XLA_FLAGS", ""))[-1:]), "")
    return int(given) if given.isdecimal() and int(given) else None


def run_deterministically() -> str:
    """Let XLA use only kernels that give the same bits each time; returns a line that says so.

    It must be called before JAX opens a device, and holds for processes started from here.
    """
    if (platform := accelerator()) in ("", "tpu"):
        return f"--deterministic: nothing to do on a {platform.upper() or 'CPU'}"
    flags = os.environ.get("XLA_FLAGS", "").split()
    # At the end, where it overrides one that says false.
    os.environ["XLA_FLAGS"] = " ".join([*(f for f in flags if f != DETERMINISTIC), DETERMINISTIC])
    return f"--deterministic: {DETERMINISTIC} on {platform}"


def releases(device: Any) -> tuple[str, ...]:
    """Releases of the plugins, libraries and driver behind a device; none for a CPU.

    They are of the plugins, of the libraries of the card's maker, and of the driver: a program that
    one release compiled must not be given to another.

    Args:
        device: an open device of JAX.
    """
    if device.platform == "cpu":
        return ()
    plugins = {entry.dist.name for entry in entry_points(group="jax_plugins") if entry.dist}
    libraries = {d.name for d in distributions() if d.name.startswith(LIBRARIES)}
    return (
        *(f"{name} {_version(name)}" for name in sorted(plugins | libraries)),
        device.client.platform_version,
        _driver(),
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _driver() -> str:
    """The line in which the kernel names NVIDIA's driver; empty if there is none."""
    try:
        with open(DRIVER, encoding="utf-8") as lines:
            return lines.readline().strip()
    except OSError:
        return ""
