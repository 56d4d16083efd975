"""A scheduler and workers on this machine, for ``local:N``."""

import contextlib
import logging
import threading
from collections.abc import Iterator

import dask.config
from distributed import LocalCluster

from lrdyn import interrupts

DEATHS = 10
"""Workers that may be lost under a part: preemption is not its fault, but a part can kill, too."""


@contextlib.contextmanager
def started(count: int) -> Iterator[str]:
    """Start a scheduler and so many workers, which listen on this machine alone; its address."""
    quiet = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.comm.timeouts.connect": "10s",
        "distributed.deploy.lost-worker-timeout": "5s",
    }
    with dask.config.set(quiet), interrupts.starting_workers():
        local = LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
        )  # fmt: skip
    ended = threading.Event()
    threading.Thread(target=_replace, args=(local, count, ended), daemon=True).start()
    try:
        yield local.scheduler_address
    finally:
        ended.set()
        with contextlib.suppress(Exception):  # what does not end by itself is killed
            local.close(timeout=5)


def _replace(local: LocalCluster, count: int, ended: threading.Event) -> None:
    """Start a worker for one that ended while it began, which Dask gives up."""
    while not ended.wait(2.0):
        if len(local.scheduler_info["workers"]) < count:
            local.scale(count)
