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
        """Read a finished part; None if there is none or it is damaged, and then set aside."""
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
        """Write a finished part, whole or not at all."""
        with files.replacing(self._path(key)) as path, zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


@contextlib.contextmanager
def opened(folder: Path, note: Callable[[str], None]) -> Iterator[Store]:
    """Open a folder of parts, made if missing, for one process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        files.remove_scratch(folder)
        yield Store(folder, note)
