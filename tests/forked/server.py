"""The process that forks commands: ``python -m tests.forked.server SOCKET``."""

import atexit
import contextlib
import functools
import gc
import importlib
import os
import re
import runpy
import select
import signal
import socket
import sys
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

BEGUN = dict(os.environ)
"""The environment, before libraries add to it."""

from tests import contexts  # noqa: E402  (after the environment)

LIBRARIES = (
    *("jax.numpy", "jax.scipy.linalg", "optax", "equinox", "h5netcdf", "xarray"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_pdf", "rich.progress", "scipy.stats"),
)
OURS = ("lrdyn.cli", "lrdyn.commands.pool", "lrdyn.commands.diagnose", "lrdyn.commands.merge")
READ_EARLY = re.compile(
    "((JAX|JAXTYPING|EQX|XLA|CUDA|OMP|OPENBLAS|MKL|GLIBC|LD|LC)_|MPL|PYTHON).+|LANG|TZ|NPROC"
)
"""Variables that an interpreter or a library reads when it starts or is imported."""


class Order(NamedTuple):
    """A command that a client asks for."""

    folder: str
    words: list[str]
    """What follows ``python``."""
    environment: dict[str, str]
    streams: list[int]
    """Descriptors of its standard streams."""


def order(client: socket.socket) -> Order:
    """What a client asks for."""
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    left, told = int.from_bytes(size, "big"), b""
    while len(told) < left:
        told += client.recv(left - len(told))
    folder, count, *rest = map(os.fsdecode, told.split(b"\0"))
    words, variables = rest[: int(count)], rest[int(count) :]
    return Order(folder, words, dict(v.split("=", 1) for v in variables), streams)


def of_import(environment: dict[str, str]) -> dict[str, str]:
    """What was read of an environment before a command begins."""
    return {name: value for name, value in environment.items() if READ_EARLY.fullmatch(name)}


def become(asked: Order) -> None:
    """Take over the folder, environment, words and streams of a command."""
    for number, stream in enumerate(asked.streams):
        os.dup2(stream, number)
        os.close(stream)
    # New ones: those of this process have been used, and remember it.
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, how, buffering, old.encoding, old.errors, closefd=False)
        for number, how, buffering, old in (
            (0, "r", -1, sys.stdin),
            (1, "w", -1, sys.stdout),
            (2, "w", 1, sys.stderr),
        )
    )
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update(asked.environment)
    sys.orig_argv = [sys.executable, *asked.words]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def run(words: Sequence[str]) -> None:
    """Run what follows ``python``: ``-m MODULE``, a script, or ``-`` for one on standard input."""
    match words:
        case ["-m", module, *rest]:
            sys.argv[:] = [module, *rest]
            sys.path[0] = os.getcwd()
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-", *rest]:
            sys.argv[:] = ["-", *rest]
            sys.path[0] = ""
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(sys.stdin.read(), "<stdin>", "exec"), vars(main))
        case [script, *rest]:
            sys.argv[:] = [script, *rest]
            sys.path[0] = os.path.dirname(os.path.abspath(script))
            runpy.run_path(script, run_name="__main__")


def end(command: Callable[[], None]) -> NoReturn:
    """Run a command and end as an interpreter does.

    Except that it does not take leave of each of a million objects, which takes .3 s.
    """
    try:
        command()
        status = 0
    except SystemExit as ended:
        status = ended.code
        if status is None or isinstance(status, int):
            status = status or 0
        else:
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def fork() -> int:
    """Fork this process, whose only thread this is."""
    assert threading.active_count() == 1
    with warnings.catch_warnings():
        # Python warns of the threads of BLAS, which it ends at a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def attend(client: socket.socket) -> Order | None:
    """Have a command run and say how it ended; in the process that is to run it, return it."""
    asked = order(client)
    plain = bool(asked.words) and (asked.words[0] in ("-m", "-") or asked.words[0][0] != "-")
    if not plain or of_import(asked.environment) != of_import(BEGUN):
        client.sendall(b"new")
        return None
    command = fork()
    if not command:
        client.close()
        return asked
    ended = os.pidfd_open(command)
    ready, _, _ = select.select([client, ended], [], [])
    if ended not in ready:  # the client is gone: it was killed
        os.kill(command, signal.SIGKILL)
    _, status = os.waitpid(command, 0)
    with contextlib.suppress(BrokenPipeError):
        client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    return None


def serve(place: str) -> Order | None:
    """Listen until standard input ends; in a process that is to run a command, return it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(place)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                os.remove(place)
                os.rmdir(os.path.dirname(place))
                return None
            client, _ = listener.accept()
            if fork():
                client.close()
                continue
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with client:
                asked = attend(client)
            if asked is None:
                os._exit(0)
            return asked


if __name__ == "__main__":
    for name in (*LIBRARIES, *OURS):
        importlib.import_module(name)
    sources = importlib.import_module("lrdyn.verification.stating.sources")
    contexts.share()
    for file in sources.PACKAGE.rglob("*.py"):
        sources.code_of(file.read_bytes())  # kept for each content: commands need not parse it
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that attend
    found = serve(sys.argv[1])
    if found is not None:
        become(found)
        end(functools.partial(run, found.words))
