"""Commands that tests start, in processes forked from one that has imported what they import.

A command takes one to two seconds of a core to import JAX, optax, xarray and matplotlib, before it
does anything, and the tests start some two hundred. A server imports them once, and forks: the
command then has a process, a working directory, an environment and streams of its own, as always.
"""

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT = Path(__file__).with_name("client.py")
BEGUN = dict(os.environ)
"""The environment before any test changes it: whichever test starts the server finds this one."""


def interpreter() -> list[str]:
    """Words that stand for ``python`` in a command line that needs no interpreter of its own.

    The command runs in a new interpreter after all if what libraries read of the environment when
    they are imported is another than it was.
    """
    watched = any(name.startswith("COVERAGE_") for name in os.environ)  # each process by itself
    if watched or not hasattr(os, "pidfd_open"):  # which is Linux's alone
        return [sys.executable]
    return [sys.executable, "-I", "-S", os.fspath(CLIENT), _server()]


@functools.cache
def _server() -> str:
    """Start the server of this process, and return where it listens."""
    place = os.path.join(tempfile.mkdtemp(prefix="lrdyn-"), "socket")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked.server", place],
        cwd=ROOT,
        # XLA reads the level when JAX is imported; a command of ours would set it before.
        env=BEGUN | {"PYTHONPATH": os.fspath(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE,  # its end, with this process, ends the server
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tests
    )
    assert process.stdin is not None
    assert process.stdout is not None
    atexit.register(process.wait)
    atexit.register(process.stdin.close)
    if not process.stdout.readline():
        raise RuntimeError("the server of commands did not start: python -m tests.forked.server")
    return place
