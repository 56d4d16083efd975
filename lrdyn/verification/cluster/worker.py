"""What a worker does before its first task: set up the process, take a device, report facts."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lrdyn.system.release import library_version
from lrdyn.verification.machine.accelerators import share_memory
from lrdyn.verification.machine.process import setup
from lrdyn.verification.stating.sources import library_digest


class Release(NamedTuple):
    """The releases that a worker must have in common with the client."""

    lrdyn: str
    jax: str
    digest: str
    """Digest of the source files of the library."""

    def __str__(self) -> str:
        """The releases in words, for a message."""
        return f"lrdyn {self.lrdyn} ({self.digest[:12]}) with JAX {self.jax}"

    @property
    def label(self) -> str:
        """Name of a resource that a worker of this release has once, so that it takes one task."""
        return f"lrdyn {self.lrdyn} {self.digest[:12]} jax {self.jax}"


def release() -> Release:
    """The releases in this process."""
    return Release(library_version(), jax.__version__, library_digest())


async def begin(wanted: tuple[str, ...], dask_worker: Any) -> dict[str, Any]:
    """Prepare a worker, which calls this, for tasks of a release; its facts, or why it is refused.

    It waits for no computation: it runs in the thread that answers the scheduler.
    """
    mine = release()
    if mine != Release(*wanted):
        return {"refused": f"got {mine}, wanted {Release(*wanted)}"}
    # A second client of the same release finds a worker that is set up already.
    if mine.label not in dask_worker.state.total_resources:
        take_one_card(dask_worker.name)
        share_memory()
        setup("float64", host_devices=1)
        await dask_worker.set_resources(**{mine.label: 1})
    return process_facts()


def take_one_card(name: Any) -> None:
    """Leave one card visible to a numbered worker; without effect once JAX has opened devices.

    A worker that somebody gave one card keeps it.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*"))
    cards = [str(card) for card in numbers] if given is None else [c for c in given.split(",") if c]
    if len(cards) > 1 and isinstance(name, int):
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[name % len(cards)]


def process_facts() -> dict[str, Any]:
    """Hardware and versions of this process."""
    device = jax.local_devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": processor(),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "lrdyn": library_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """Model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                line.partition(":")[2].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
