"""A scheduler and workers on this machine, for ``local:N``.

Any user of the machine can connect to 127.0.0.1. So they speak TLS with a certificate that is made
for the run, and answer nobody without it. What they need on disk lies in one folder of mode 0700,
which goes when they end.
"""

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dask.config
from distributed import LocalCluster

from lrdyn.system import interrupts, whole_files
from lrdyn.verification.cluster import credentials

DEATHS = 10
"""Workers that may end during one part before the part counts as failed.

A preempted worker is not the fault of the part, but a part can kill its worker, too.
"""

LOCK = "cluster.lock"
"""File in a folder of local workers, locked for as long as the process that made it lives."""


class Local(NamedTuple):
    """Address of a scheduler on this machine, and its certificates."""

    address: str
    security: str
    """Folder with the certificate that the scheduler demands."""


@contextlib.contextmanager
def start_workers(count: int) -> Iterator[Local]:
    """Start a scheduler and so many workers, which listen on this machine alone.

    Raises:
        BadInput: the package that makes certificates is not installed.
    """
    settings: dict[str, object] = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.comm.timeouts.connect": "10s",
        "distributed.deploy.lost-worker-timeout": "5s",
        "distributed.scheduler.http.routes": [],  # Dask's pages ask for no key
    }
    # Dask sets them here for the interpreters of its workers, and leaves them behind: what this
    # process starts after them would have one thread and hashes that do not vary.
    variables = [*dask.config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED"]
    remove_left_behind()
    with interrupts.restore_variables(*variables), _scratch_folder() as folder:
        security = credentials.make(folder)
        settings["temporary-directory"] = os.fspath(folder)  # that of the scheduler
        with dask.config.set(settings), interrupts.guard_workers():
            local = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                security=security,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                local_directory=os.fspath(folder),
                # Not through dask.config.set, which has ended when a worker is replaced.
                config={"distributed.worker.http.routes": []},
                silence_logs=logging.CRITICAL,
            )
        # Dask opens a dashboard port in any case. It shows nothing here, so its link is dropped.
        assert local.scheduler is not None
        local.scheduler.services.pop("dashboard", None)
        ended = threading.Event()
        replacing = threading.Thread(
            target=_replace_workers, args=(local, count, ended), daemon=True
        )
        replacing.start()
        try:
            yield Local(local.scheduler_address, os.fspath(folder))
        finally:
            ended.set()
            replacing.join(timeout=5)  # a worker that starts now would set its variables once more
            with contextlib.suppress(Exception):  # workers that do not end by themselves are killed
                local.close(timeout=5)


def _replace_workers(local: LocalCluster, count: int, ended: threading.Event) -> None:
    """Replace a worker that ended while it started, which Dask itself gives up on."""
    while not ended.wait(2.0):
        if len(local.scheduler_info["workers"]) < count:
            local.scale(count)


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder of mode 0700 for what local workers write, removed at the end."""
    with whole_files.scratch_folder() as folder:
        handle = os.open(folder / "new.lock", os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Named only when locked: without the lock the folder would seem left behind.
            whole_files.rename_new(folder / "new.lock", folder / LOCK)
            yield folder
        finally:
            os.close(handle)


def remove_left_behind() -> None:
    """Remove the folders of local workers whose process was killed: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(".lrdyn-*"):
        with contextlib.suppress(OSError):  # it vanishes meanwhile
            if _is_left_behind(folder):
                whole_files.remove_tree(folder)


def _is_left_behind(folder: Path) -> bool:
    facts = folder.lstat()
    # ``lstat``, and only folders of this user: what is left behind is removed with all that is in
    # it.
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        return False
    try:
        # Anybody can put a link or a FIFO under such a name into a temporary folder.
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        # A worker that outlived its command for a moment wrote while the folder was removed. Where
        # a command lives, the lock is there before anything of Dask.
        return (folder / "dask-scratch-space").is_dir()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
