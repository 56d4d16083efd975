"""Finished parts of a sweep on disk: written whole, checked when read, found again after a kill."""

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrdyn.engine import files

Arrays = Mapping[str, np.ndarray]


class Store(NamedTuple):
    """A folder of finished parts, one file each, named by what decides its content."""

    folder: Path
    note: Callable[[str], None]
    """Called with one line about each damaged file."""

    def load(self, key: str) -> Arrays | None:
        """Read a finished part.

        Args:
            key: name of the part.

        Returns:
            Its arrays; None if it does not exist or is damaged. A damaged file is set aside.
        """
        path = self._path(key)
        try:
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(f"{broken} does not match its checksum")
            with np.load(path, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except FileNotFoundError:
            return None
        except (zipfile.BadZipFile, ValueError, EOFError, KeyError, SyntaxError) as error:
            files.set_aside(path, error, self.note)
            return None

    def save(self, key: str, arrays: Arrays) -> None:
        """Write a finished part, whole or not at all.

        Args:
            key: name of the part.
            arrays: its arrays.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        with files.replacing(self._path(key)) as path, zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


@contextlib.contextmanager
def opened(folder: Path, note: Callable[[str], None]) -> Iterator[Store]:
    """Open a folder of parts for one process alone.

    Args:
        folder: the folder; made if missing.
        note: called with one line about each damaged file.

    Yields:
        The store.

    Raises:
        files.InUse: another process has it open.
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        files.sweep_out(folder)
        yield Store(folder, note)
