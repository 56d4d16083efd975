"""One thin script for each verification: ``python -m experiments.<name>``."""

import os
import shlex
import sys
from types import TracebackType


def _interrupted(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Ctrl-C while JAX is being imported, which takes seconds: one line, as later on."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    again = shlex.join(["python", *sys.orig_argv[1:]])
    print(f"error: interrupted; to continue: {again}", file=sys.stderr, flush=True)
    os._exit(130)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _interrupted
