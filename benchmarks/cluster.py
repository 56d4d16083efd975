"""Workers of Dask on this machine against its own devices, and what a part costs beside its work.

*Time.* 10,000 runs of Theorem 2 (d = 20, L = 3, 200 steps, float64) in parts of 512, once on two
devices of this process and once on two workers with a device each. Both have compiled before.

*Overhead.* Parts of four points whose function does nothing, with one worker: the time of a part is
that of describing, scheduling, computing and bringing back. Beside it an empty task of Dask's.

*Memory.* Runs of the reduced integrator, ten times as many: by how much more the memory of this
process grows while they arrive. The results are kept on disk, as those of a command are.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

import lrdyn
from benchmarks import cluster_runs
from benchmarks.common import seconds_of, table
from lrdyn.verification.running.sweep import sweep


class Sizes(NamedTuple):
    """How much is measured."""

    runs: int = 10_000
    parts: int = 500
    many: int = 100_000
    repeats: int = 3


def points(runs: int) -> Any:
    """So many runs: seeds, and ten scales of the start."""
    return lrdyn.product(seed=range(runs // 10), init_scale=np.linspace(0.1, 1.0, 10))


def against_devices(cluster: Any, runs: int, repeats: int) -> tuple[float, float, float]:
    """Best seconds on two devices, on the workers, and the largest relative difference."""
    here: Any = sweep(cluster_runs.full, points(runs))  # both compile here
    there: Any = sweep(cluster_runs.full, points(runs), client=cluster)
    apart = float(abs(there["loss"] / here["loss"] - 1).max())
    seconds: dict[str, list[float]] = {"here": [], "there": []}
    for _ in range(repeats):
        seconds["here"].append(seconds_of(lambda: sweep(cluster_runs.full, points(runs))))
        seconds["there"].append(
            seconds_of(lambda: sweep(cluster_runs.full, points(runs), client=cluster))
        )
    return min(seconds["here"]), min(seconds["there"]), apart


def overhead(cluster: Any, parts: int) -> tuple[float, float]:
    """Seconds of a part that costs nothing, and of an empty task of Dask's, one after another."""
    count = 4 * parts
    work = lrdyn.product(x=np.arange(float(count)))
    sweep(cluster_runs.nothing, work, memory=1, client=cluster)
    ours = seconds_of(lambda: sweep(cluster_runs.nothing, work, memory=1, client=cluster)) / parts
    client = cluster.client

    def empty() -> None:
        client.gather([client.submit(int, n, pure=False) for n in range(parts)])

    empty()
    return ours, seconds_of(empty) / parts


def growth(cluster: Any, runs: int) -> tuple[float, float]:
    """Megabytes by which this process grows while so many runs arrive, and seconds."""
    with tempfile.TemporaryDirectory() as store:
        with peak() as highest:
            seconds = seconds_of(
                lambda: sweep(
                    cluster_runs.reduced,
                    points(runs),
                    lanes=64,
                    memory=2**21,
                    client=cluster,
                    store=store,
                ).close()
            )
    return highest[0] / 1e6, seconds


@contextmanager
def peak() -> Iterator[list[float]]:
    """How far the memory of this process rises above where it was."""
    before, highest, ended = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            highest[0] = max(highest[0], resident() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        ended.set()
        thread.join()


def resident() -> float:
    """Bytes of memory of this process."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(sizes: Sizes | None = None) -> str:
    """Measure and lay out."""
    from lrdyn.verification.cluster import client as clusters

    sizes = Sizes() if sizes is None else sizes
    with clusters.open_cluster("local:2") as cluster:
        here, there, apart = against_devices(cluster, sizes.runs, sizes.repeats)
    with clusters.open_cluster("local:1") as cluster:
        ours, empty = overhead(cluster, sizes.parts)
        growth(cluster, sizes.many // 10)  # what is allocated once
        few, _ = growth(cluster, sizes.many // 10)
        many, seconds = growth(cluster, sizes.many)
    rows = [
        (f"{sizes.runs:,} runs on {len(jax.local_devices())} devices here", f"{here:.2f} s"),
        (f"{sizes.runs:,} runs on two workers", f"{there:.2f} s ({here / there:.2f} of that rate)"),
        ("largest relative difference", f"{apart:.1e}"),
        ("a part that costs nothing", f"{1e3 * ours:.2f} ms"),
        ("an empty task of Dask", f"{1e3 * empty:.2f} ms"),
        (f"memory for {sizes.many // 10:,} reduced runs", f"{few:.0f} MB"),
        (f"memory for {sizes.many:,} reduced runs", f"{many:.0f} MB, in {seconds:.0f} s"),
    ]
    title = (
        "workers of Dask on this machine; wanted: at least .9 of the rate of its devices, below\n"
        f"20 ms for a part, memory that does not grow with the runs; best of {sizes.repeats}"
    )
    return f"{title}\n{table(('', 'measured'), rows)}"
