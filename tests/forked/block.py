"""A script on standard input whose programs are kept, as those of the tests are.

``python -m tests.forked.block``. JAX begins before the script: one that chooses its devices is run
by ``python -``.
"""

import sys

from tests import programs

if __name__ == "__main__":
    programs.keep()
    exec(compile(sys.stdin.read(), "<stdin>", "exec"))
