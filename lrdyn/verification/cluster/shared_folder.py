"""A folder of parts that both sides see: workers write there, and only names come back."""

import contextlib
import os
import time
from collections.abc import Iterator

from lrdyn.system import whole_files
from lrdyn.verification.storing.parts import Arrays, Store

PATIENCE = 30.0
"""Seconds to wait until a file that a worker wrote appears on this machine."""


@contextlib.contextmanager
def make_token(store: Store) -> Iterator[str]:
    """Make a file by which a worker recognises that it sees this folder."""
    path = whole_files.make_scratch(store.folder, ".seen")
    try:
        yield path.name
    finally:
        whole_files.remove(path)


def await_part(store: Store, key: str) -> Arrays | None:
    """Load a part that a worker has written, as soon as this machine sees it."""
    waited, pause = 0.0, 0.01
    while (arrays := store.load(key)) is None and waited < PATIENCE:
        os.listdir(store.folder)  # listing a folder makes a network file system refresh it
        time.sleep(pause)
        waited, pause = waited + pause, min(2 * pause, 2.0)
    return arrays


def sees(folder: str, token: str) -> bool:
    """Whether this process sees the folder of a token."""
    return bool(token) and os.path.exists(os.path.join(folder, token))
