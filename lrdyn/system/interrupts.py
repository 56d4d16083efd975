"""How a command ends on Ctrl-C or SIGTERM: at once, in one line, with its workers.

A Python signal handler runs in the main thread between two instructions of Python, and what it
raises can be lost: in a callback of the garbage collector, in a thread of a pool. In commands a
thread waits for signals instead, which ends the process wherever it is. That is safe: files are
replaced as a whole, locks end with the process, finished parts stay.
"""

# A command imports this before anything else: every import here is time in which Python's own
# handler would print a traceback.
import atexit
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from lrdyn.system.printer import complain, make_printable, silence_xla

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
COMMANDS = ("lrdyn", "experiments", "paper_figs", "notebooks", "benchmarks")
"""Packages that are commands: ``python -m NAME``."""
PARENT = "LRDYN_PARENT"
"""Environment variable with the process number of a command that starts workers; :func:`_parent`
says who obeys it."""


def guard_process() -> None:
    """Guard this process from its first line on, where it is a command or a worker.

    That ``python -m`` starts a command can be told while its package is imported: only then is
    ``-m`` in the place of the file.
    """
    parent = _parent(os.environ.pop(PARENT, ""))
    if parent:
        threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    elif _is_command():
        silence_xla()
        end_at_once()
        sys.excepthook = _end_over_import


def _end_over_import(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What Python calls with an exception that nobody caught: a command catches its own."""
    if isinstance(error, Exception):  # a broken installation, or a variable that JAX refuses
        _refuse_import(error)
    sys.__excepthook__(kind, error, trace)


@contextmanager
def guard_import() -> Iterator[None]:
    """Guard what takes seconds to import, where the process is a command or a script.

    A script is its own master again afterwards.
    """
    # ``python script.py``: elsewhere, in pytest or a notebook, a signal belongs to that program.
    script = sys.orig_argv[1:2] == sys.argv[:1] and "".join(sys.argv[:1]).endswith(".py")
    # With JAX there already, nothing takes seconds.
    undo = end_at_once() if script and "jax" not in sys.modules else None
    try:
        yield
    except Exception as error:
        if sys.excepthook is not _end_over_import:
            raise
        _refuse_import(error)
    finally:
        if undo:
            undo()


def _parent(text: str) -> int | None:
    """The process that a worker belongs to; None where this is no worker of that process.

    Anybody can set a variable. Only what :mod:`multiprocessing` has started is a worker, and its
    parent is the process named, or has ended before the worker came to its first line.
    """
    if not text.isdecimal() or "--multiprocessing-fork" not in sys.orig_argv:
        return None
    parent = int(text)
    return parent if parent == os.getppid() or not _is_alive(parent) else None


def _is_alive(process: int) -> bool:
    with suppress(OSError), open(f"/proc/{process}/stat", "rb") as facts:  # not on macOS
        # A process that has ended stays as a zombie until its parent has waited for it.
        return facts.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    try:
        os.kill(process, 0)
    except PermissionError:  # the process of another user
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _refuse_import(error: Exception) -> NoReturn:
    """End a command whose modules cannot be imported: Python's own status would be a verdict."""
    import traceback

    from lrdyn.system.messages import bring

    if os.environ.get("LRDYN_DEBUG"):
        traceback.print_exc()
    lines = "".join(traceback.format_exception_only(error)).splitlines() or [""]
    line = f"got {lines[-1]} from an import, wanted an installation that can be imported"
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        line = bring(error.name)
    if isinstance(error, OSError) and error.filename and error.errno == errno.ENOMEM:
        line = f"{error.filename}: {error.strerror}"  # a limit that leaves too little to import
    complain(f"error: {line}")
    # Not ``sys.exit``: handlers of half-imported modules could fail and change the status.
    os._exit(3)


def _is_command() -> bool:
    words = sys.orig_argv
    if sys.argv[:1] == ["-m"] and "-m" in words:
        return words[words.index("-m") + 1].partition(".")[0] in COMMANDS
    return [os.path.basename(word) for word in sys.argv[:1]] == ["lrdyn"]


def end_at_once() -> Callable[[], None] | None:
    """Let SIGINT and SIGTERM end this process from now on, with the status of the contract.

    It belongs to a process that is a command; in any other thread than the main one, or the second
    time, it does nothing. A signal that is ignored stays so: a shell put it into the background.

    Returns:
        What makes it undone; None if nothing was done.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    heard = {n: h for n, h in handlers.items() if h not in (_ignore, signal.SIG_IGN)}
    if not heard:
        return None
    read, write = os.pipe()
    # The C handler must never wait, be it that the pipe is full of signals.
    os.set_blocking(write, False)
    # The C handler writes the number of the signal here, whatever Python is doing.
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, _ignore)
    waiting = threading.Thread(target=_wait, args=(read,), name="signals", daemon=True)
    waiting.start()

    def over() -> None:
        for number in heard:
            signal.signal(number, signal.SIG_IGN)

    # After its last function Python goes back to the handlers of the system, while it tidies up
    # for seconds: a signal would take a run's own status away. What is ignored stays ignored.
    atexit.register(over)

    def undo() -> None:
        atexit.unregister(over)
        for number, handler in heard.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(write)  # by which the thread ends
        waiting.join(1.0)

    return undo


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the waiting thread handles the signal."""


def _wait(read: int) -> None:
    while numbers := os.read(read, 1):
        if numbers[0] in SIGNALS:
            leave(signal.Signals(numbers[0]))
    os.close(read)


def leave(number: signal.Signals) -> None:
    """Print in one line why the process ends, and end it."""
    try:
        import shlex

        again = make_printable(shlex.join(["python", *sys.orig_argv[1:]]))
        shown = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides the cursor
        line = f"{shown}error: {SIGNALS[number]}; finished parts are kept, to continue: {again}\n"
        os.write(2, line.encode(errors="replace"))
    finally:
        # What a shell says of a process that a signal ended.
        end_now(128 + number)


def end_now(status: int) -> NoReturn:
    """End the process at once from any thread, without the scratch files that it was writing."""
    try:
        # Not imported here: if the module was never loaded, there are no scratch files.
        whole_files = sys.modules.get("lrdyn.system.whole_files")
        if whole_files is not None:
            whole_files.remove_all_scratch()
    finally:
        os._exit(status)


@contextmanager
def guard_workers() -> Iterator[None]:
    """Start processes that end with this one, and to which Ctrl-C is no matter of theirs.

    A terminal sends Ctrl-C to all of them.
    """
    from multiprocessing import resource_tracker

    # It removes semaphores and warns of it; and it unblocks Ctrl-C.
    with _set_variable("PYTHONWARNINGS", "ignore"):
        resource_tracker.ensure_running()
    with _set_variable(PARENT, str(os.getpid())):
        # Children inherit the mask; they end when this process does (:func:`_end_with_parent`).
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _set_variable(name: str, value: str) -> Iterator[None]:
    """Set a variable for the processes that are started inside."""
    with restore_variables(name):
        os.environ[name] = value
        yield


@contextmanager
def restore_variables(*names: str) -> Iterator[None]:
    """Give variables of the environment, at the end, the values that they have now."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _end_with_parent(parent: int) -> None:
    """End this worker when its parent has ended, which shows as a changed parent process."""
    while os.getppid() == parent:
        # Asked and not told: macOS has no signal for the end of a parent.
        time.sleep(0.2)
    end_now(128 + signal.SIGKILL)
