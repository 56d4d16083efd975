"""In a clone ``python -m experiments`` is ``lrdyn list``, ``... all`` is ``lrdyn verify all``."""

import sys

from lrdyn import cli
from lrdyn.commands import pool

if __name__ == "__main__":
    sys.exit(cli.run("experiments", lambda: pool.main(sys.argv[1:]), own_process=True))
