"""Write figures and tables, ``check`` them, save a ``baseline``: see its ``--help``."""

import sys

from lrdyn import cli
from lrdyn.commands import figures
from lrdyn.commands.ending import Sameness
from paper_figs import BASELINES, EXHIBITS


def main(argv: list[str] | None = None) -> int:
    """Run the command on these arguments, or on those of the process; its exit status."""

    def command() -> Sameness | None:
        machine = figures.begin(argv, "paper_figs")
        how = {"prog": "python -m paper_figs", "machine": machine}
        return figures.main(EXHIBITS, BASELINES, argv, **how)

    return cli.run("paper_figs", command, own_process=argv is None)


if __name__ == "__main__":
    sys.exit(main())
