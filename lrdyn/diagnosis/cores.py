"""Work on many matrices, one on each core, and the progress of it."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from lrdyn.diagnosis.spectrum import blas_threads
from lrdyn.system.progress import Progress, Silent
from lrdyn.verification.machine.process import cores

Item = TypeVar("Item")
Result = TypeVar("Result")
UNIT = 10**6
"""Multiplications of which progress counts one."""


class Told:
    """Progress by the multiplications that matrices take: a large one counts for many.

    Args:
        progress: what is told; nothing by default.
        counts: how many multiplications each matrix takes, in all that is to be done.

    Example:
        >>> Told(None, [10.0]).done(10.0)
    """

    def __init__(self, progress: Progress | None, counts: Iterable[float]):
        units = [self._units(count) for count in counts]
        self._progress = Silent() if progress is None else progress
        self._all, self._done, self._lock = len(units), 0, Lock()
        self._progress.expect(sum(units))

    @staticmethod
    def _units(count: float) -> int:
        return max(1, round(count / UNIT))

    def done(self, count: float) -> None:
        """One matrix is done, of so many multiplications."""
        with self._lock:
            self._done += 1
            self._progress.advance(self._units(count))
            self._progress.during(0.0, f"{self._done:,} of {self._all:,} matrices")


def map_on_cores(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    counts: Sequence[float],
    progress: Told,
) -> list[Result]:
    """Do the same with each, those that take longest first; results are in the order of the items.

    Args:
        work: what is done with one of them.
        items: what it is done with.
        counts: how many multiplications each takes, about.
        progress: is told of each that is done.

    Example:
        >>> map_on_cores(abs, [-1, 2], [1.0, 1.0], Told(None, [1.0, 1.0]))
        [1, 2]
    """
    workers = max(1, min(cores(), len(items)))

    def work_on(place: int) -> Result:
        result = work(items[place])
        progress.done(counts[place])
        return result

    # The longest first: else the last one could be long, and all cores but its own would wait.
    order = sorted(range(len(items)), key=lambda place: -counts[place])
    with blas_threads(max(1, cores() // workers)), ThreadPoolExecutor(workers) as pool:
        waiting = {place: pool.submit(work_on, place) for place in order}
        try:
            return [waiting[place].result() for place in range(len(items))]
        except BaseException:
            # Ctrl-C must not wait for all that is queued.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
