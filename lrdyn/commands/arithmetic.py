"""Measure a device's arithmetic against the reference: ``python -m lrdyn.commands.arithmetic``.

A number behind it is that of draws, of which the worst is shown.
"""

import sys

from lrdyn.commands.arguments import Parser, integer_reader
from lrdyn.commands.ending import run
from lrdyn.core.show import aligned
from lrdyn.system.printer import say
from lrdyn.verification.judging.rounding import REFERENCE
from lrdyn.verification.running.arithmetic_probe import measure_decompositions, measure_rounding


def table(draws: int) -> list[str]:
    """Table of the worst of several draws of every number, in both precisions."""
    rows = [("precision", "", f"worst of {draws}", "reference")]
    for precision, usual in REFERENCE.items():
        each = [
            measure_rounding(precision, draw=n) | measure_decompositions(precision, n)
            for n in range(draws)
        ]
        for name, expected in usual.items():
            worst = (min if name == "largest" else max)(draw[name] for draw in each)
            rows.append((precision, name, f"{worst:.3g}", f"{expected:.3g}"))
    return aligned(rows)


def main(argv: list[str] | None = None) -> int:
    """Print the table, and return the exit status."""

    def command() -> None:
        parser = Parser("arithmetic", "Measure the arithmetic of the device at hand.")
        parser.add_argument("draws", nargs="?", type=integer_reader("draws", 1), default=1)
        say("\n".join(table(parser.parse(sys.argv[1:] if argv is None else argv).draws)))

    return run("arithmetic", command, own_process=argv is None)


if __name__ == "__main__":
    sys.exit(main())
