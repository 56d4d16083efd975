"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from lrdyn.system import printer
from lrdyn.system.memory_limit import size_of

LINE_EVERY = 10.0
"""Seconds between two lines of a log."""

SHOWN, LARGE = 10**6, 10**8
"""Bytes of results that are shown beside the progress, and that are announced."""


@runtime_checkable
class Progress(Protocol):
    """Receives the progress of a sweep; its methods may be called from several threads."""

    def expect(self, points: int) -> None:
        """Announce that this many more points will be computed."""

    def expect_bytes(self, count: int) -> None:
        """Announce that this many more bytes of results will be written."""

    def advance(self, points: int, *, saved: bool = False) -> None:
        """Report that this many points are done; ``saved`` if an earlier run did them."""

    def during(self, fraction: float, text: str) -> None:
        """Report which fraction of the present point is done, with a text about it."""

    def note(self, line: str) -> None:
        """Report an event that the user should know of."""


class Silent:
    """Progress that nobody sees; only problems are reported, as warnings."""

    def expect(self, points: int) -> None:
        """Ignore the number of points."""

    def expect_bytes(self, count: int) -> None:
        """Ignore the number of bytes."""

    def advance(self, points: int, *, saved: bool = False) -> None:
        """Ignore the points that are done."""

    def during(self, fraction: float, text: str) -> None:
        """Ignore progress within a point."""

    def note(self, line: str) -> None:
        """Issue the line as a Python warning."""
        import warnings

        warnings.warn(printer.make_printable(line), stacklevel=2)


class _Counted:
    """Counts points; the rate and the time left are of those computed by this run."""

    def __init__(self, title: str, what: str = "points"):
        self.title, self.total, self.done, self.saved, self.bytes = title, 0, 0, 0, 0
        self.what = what
        self.fraction, self.present = 0.0, ""
        self.start = time.monotonic()
        self.lock = threading.Lock()

    def expect(self, points: int) -> None:
        with self.lock:
            self.total += points
            self.show()

    def expect_bytes(self, count: int) -> None:
        with self.lock:
            before, self.bytes = self.bytes, self.bytes + count
        # Only by the job whose results pass the mark, so that it is said once.
        if before < LARGE <= self.bytes:
            self.note(f"the results will take {size_of(self.bytes)} or more on disk")

    def advance(self, points: int, *, saved: bool = False) -> None:
        with self.lock:
            self.done += points
            self.saved += points if saved else 0
            self.fraction, self.present = 0.0, ""
            self.show()

    def during(self, fraction: float, text: str) -> None:
        with self.lock:
            self.fraction, self.present = fraction, text
            self.show()

    def show(self) -> None: ...

    def note(self, line: str) -> None: ...

    def text(self) -> str:
        computed = self.done - self.saved + self.fraction
        rate = computed / max(time.monotonic() - self.start, 1e-9)
        if self.what:
            parts = [f"{self.done:,} of {self.total:,} {self.what}"]
        else:
            parts = [f"{self.done / max(self.total, 1):.0%}"]
        if self.saved:
            parts.append(f"{self.saved:,} from an earlier run")
        if computed:
            # By the points of this run: parts that an earlier run has saved come at once, and tell
            # nothing of those that are left.
            left = (self.total - self.done - self.fraction) / rate
            parts += [f"{rate:.3g} a second"] if self.what else []
            parts.append(f"{duration(left)} left")
        if self.present:
            parts.insert(0, self.present)
        if self.bytes >= SHOWN:
            parts.append(f"{size_of(self.bytes)} of results")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Write a time in seconds for a reader.

    Example:
        >>> print(duration(75.0), duration(7384.0))
        1:15 2:03:04
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Lines(_Counted):
    def __init__(self, title: str, stream: Any, what: str, first: float):
        super().__init__(title, what)
        self.stream, self.last = stream, self.start - (LINE_EVERY - first)

    def show(self) -> None:
        now = time.monotonic()
        if now - self.last >= LINE_EVERY:
            self.last = now
            self.note(self.text())

    def note(self, line: str) -> None:
        printer.write(self.stream, f"{self.title}: {line}\n")


class _Bar(_Counted):
    def __init__(self, title: str, stream: Any, what: str):
        super().__init__(title, what)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn(printer.make_printable(title), markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(file=stream),
            transient=True,
        )
        self.task = self.bar.add_task(title, total=None, text="")

    def show(self) -> None:
        text = printer.make_printable(self.text())
        self.bar.update(self.task, total=self.total, completed=self.done, text=text)

    def note(self, line: str) -> None:
        shown = printer.make_printable(f"{self.title}: {line}", lines=True)
        self.bar.console.print(shown, highlight=False, markup=False)


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class Notebook(_Counted):
    """A bar below the cell of a notebook, which needs nothing but Jupyter itself."""

    EVERY = 0.2
    """Seconds between two drawings."""

    def __init__(self, title: str, what: str = "points"):
        """Show an empty bar."""
        super().__init__(title, what)
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        self.last = 0.0
        self.handle: Any = display(self._bundle(), raw=True, display_id=True)

    def _bundle(self) -> dict[str, str]:
        bar = f'<progress max="{self.total or 1}" value="{self.done}"></progress>'
        plain = f"{self.title}: {self.text()}"
        return {"text/html": f"{bar} {plain}", "text/plain": plain}

    def show(self) -> None:
        """Redraw the bar, at most every ``EVERY`` seconds and at the end."""
        now = time.monotonic()
        if now - self.last >= self.EVERY or self.done == self.total:
            self.last = now
            self.handle.update(self._bundle(), raw=True)

    def note(self, line: str) -> None:
        """Print a line below."""
        printer.say(f"{self.title}: {line}")


@contextmanager
def shown(
    title: str,
    stream: Any = None,
    *,
    bar: bool = True,
    what: str = "points",
    first: float | None = None,
) -> Iterator[Progress]:
    r"""Show progress: a bar with points done, rate, time left; plain lines without a terminal.

    Args:
        title: name of the work.
        stream: a text file to write to; stderr by default.
        bar: whether a terminal gets a bar.
        what: what is counted; if empty, the share of the work is shown in percent, without a rate.
        first: seconds until the first line of a log; :data:`LINE_EVERY` by default.

    Yields:
        A :class:`Progress`, for the argument ``progress`` of :func:`lrdyn.sweep`.

    Example:
        >>> import io
        >>> log = io.StringIO()
        >>> with shown("sweep", log) as progress:
        ...     progress.expect(2)
        ...     progress.note("a line")
        >>> log.getvalue()
        'sweep: a line\n'
    """
    stream = stream or sys.stderr
    # Python has no stderr where it was started with that stream closed.
    if stream is None:
        yield Silent()
    elif bar and stream is sys.stderr and in_notebook():
        yield Notebook(title, what)
    elif bar and stream.isatty():
        drawn = _Bar(title, stream, what)
        with drawn.bar:
            yield drawn
    else:
        yield _Lines(title, stream, what, LINE_EVERY if first is None else first)
