"""``python -m benchmarks [NAME]``: all of them, or the one named."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

from benchmarks import (
    adapters,
    cached,
    cells,
    cluster,
    completion,
    convolutions,
    costs,
    diagnosis,
    early_stopping,
    galore,
    kept,
    lanes,
    many,
    pages,
    reduced,
    streamed,
    sums,
    sweeps,
    training,
)
from benchmarks.common import HOST_DEVICES, machine
from lrdyn import cli
from lrdyn.commands.arguments import Parser

FULL: dict[str, Callable[[], str]] = {
    "reduced": reduced.report,
    "sweeps": sweeps.report,
    "many": many.report,
    "lanes": lanes.report,
    "cells": cells.report,
    "sums": sums.report,
    "streamed": streamed.report,
    "early": early_stopping.report,
    "completion": completion.report,
    "galore": galore.report,
    "training": training.report,
    "adapters": adapters.report,
    "pages": pages.report,
    "convolutions": convolutions.report,
    "diagnosis": diagnosis.report,
    "cached": cached.report,
    "kept": kept.report,
    "cluster": cluster.report,
    "costs": costs.report,
}
TINY: dict[str, Callable[[], str]] = {
    "reduced": lambda: reduced.report((24,), rank=3, steps=20, repeats=1),
    "sweeps": lambda: sweeps.report((sweeps.Case(8, 20, 20),), repeats=1, gemm_size=64),
    "many": lambda: many.report(40, 10, 20, rival_runs=1),
    "lanes": lambda: lanes.report(((8, 5), (100, 5)), repeats=1),
    "cells": lambda: cells.report(
        (cells.Cell(1, 2, "float64"), cells.Cell(2, 2, "float64")), threads=(1,), steps=3, repeats=1
    ),
    "sums": lambda: sums.report((6,), repeats=1),
    "streamed": lambda: streamed.report((2000,), 10),
    "early": lambda: early_stopping.report(20, (1.0, 2.0, 4.0), 10, 50, repeats=1),
    "completion": lambda: completion.report(
        20, (0.5,), steps=10, repeats=1, sizes=(20,), ranks=(2,), scanned=(0.5,)
    ),
    "galore": lambda: galore.report(galore.Case(6, 5, 2, 3, 10, 2), repeats=1),
    "training": lambda: training.report(training.Case(6, 5, 4, 10, 7, 4000), repeats=1),
    "adapters": lambda: adapters.report(adapters.Case(8, 2, 4, 3, 2), repeats=1),
    "pages": lambda: pages.report(
        pages.Case((1, 8, 2, 2, 4, 2), (2,), (8, 4), 2, 16),
        turns=1,
        repeats=1,
        pages_of={"2 MiB": pages.PAGES["2 MiB"]},
    ),
    "convolutions": lambda: convolutions.report(
        (1, 2), 2, 2, layers=(2, "pool"), side=2, repeats=1
    ),
    "diagnosis": lambda: diagnosis.report(diagnosis.Case((6, 5, 2), 4, 1, 2, (6, 9), 1, (100, 90))),
    "cached": lambda: cached.report(cached.Case(2, 8, 2, 1, 2, 6, 1), repeats=1),
    "kept": lambda: kept.report(tiny=True),
    "cluster": lambda: cluster.report(cluster.Sizes(40, 4, 200, 1)),
    "costs": lambda: costs.report(
        costs.Sizes(
            (4, 5, 6), (2, 3, 4), (1, 2, 3), (2, 4, 6), (32, 48, 64), (128, 192, 256), 4, 10**6, 10
        )
    ),
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line."""
    parser = Parser("benchmarks", "Ratios against rivals, measured in one run.")
    parser.add_argument("name", nargs="?", default="all", choices=("all", *FULL))
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    return parser.parse(argv)


def main(argv: Sequence[str]) -> None:
    """Parse, measure and print."""
    options = parse(argv)
    cli.setup("float64", host_devices=HOST_DEVICES)
    print(f"$ {shlex.join(['python', '-m', 'benchmarks', *argv])}\n{machine()}", flush=True)
    for name in FULL if options.name == "all" else (options.name,):
        print(f"\n{(TINY if options.tiny else FULL)[name]()}", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run("benchmarks", lambda: main(sys.argv[1:])))
