"""Finished parts of a sweep on disk: written whole, checked when read, found again after a kill."""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.data import guarded
from lrdyn.data.arrays import check_members
from lrdyn.system import whole_files
from lrdyn.verification.storing import files

Arrays = Mapping[str, np.ndarray]
FOLDER = "parts"
"""Folder of the finished parts of a run that has not ended; each of its sweeps has one in it."""
MANIFEST = "part.json"


class Store(NamedTuple):
    """A folder of finished parts, one file each, named by what decides its content."""

    folder: Path
    note: Callable[[str], None]
    """Called with one line about each damaged file."""

    def load(self, key: str) -> Arrays | None:
        """Read a finished part; None if there is none or it is damaged, and then set aside."""
        path = self._path(key)
        try:
            with (
                whole_files.name_in_errors(path),
                guarded.opened(path, links=False) as file,
                guarded.reading(path, "a part"),
                zipfile.ZipFile(file) as archive,
            ):
                check_members(archive, file, path)
                # The checksums of the archive first: they are cheaper than SHA-256, and name the
                # member.
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(f"{broken} does not match its checksum")
                manifest = guarded.parsed(
                    archive.read(MANIFEST), path, "what a part says of itself"
                )
                arrays = {name: _read_array(archive, name) for name in manifest["arrays"]}
                # A file that was renamed, or changed together with its archive's checksums, fails
                # here.
                if manifest != _manifest(key, arrays):
                    raise ValueError(
                        f"it holds part {manifest['key']!r}, or other arrays than it says"
                    )
                return arrays
        except FileNotFoundError:
            return None
        except OSError:
            raise
        except Exception as error:  # a damaged archive raises whatever its reader runs into
            whole_files.set_aside(path, error, self.note)
            return None

    def set_aside(self, key: str, why: str) -> None:
        """Put a part aside that is none, and say why."""
        whole_files.set_aside(self._path(key), why, self.note)

    def save(self, key: str, arrays: Arrays) -> None:
        """Write a finished part, whole or not at all."""
        with (
            whole_files.replace_file(self._path(key)) as path,
            zipfile.ZipFile(path, "w") as archive,
        ):
            archive.writestr(MANIFEST, json.dumps(_manifest(key, arrays)))
            for name, array in arrays.items():
                # The size is not known when the member is opened, and may pass 2 GiB.
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    # Not pickled, and stored as it is: reading it back can run no code, and costs
                    # no time.
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


def _manifest(key: str, arrays: Arrays) -> dict[str, Any]:
    """The manifest of a part, by which changes of its names or arrays from outside show."""
    entries = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        # A view of the bytes: a copy would double the memory of the largest array.
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(content).hexdigest()
        entries[name] = [str(array.dtype), list(array.shape), digest]
    return {"key": key, "arrays": entries}


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def clear(run: Path) -> None:
    """Remove the parts of a run, by their names."""
    # Names that this library gives, lest a store in somebody's own folder takes their files with
    # it.
    part = r"[0-9]+-[0-9a-f]{20}\.npz(\.damaged)?"
    whole_files.clear(run, FOLDER, "[0-9a-f]{12}", f"{part}|{whole_files.SCRATCH}")


@contextlib.contextmanager
def open_store(folder: Path, note: Callable[[str], None]) -> Iterator[Store]:
    """Open a folder of parts, made if missing, for one process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder):
        whole_files.remove_scratch(folder)
        yield Store(folder, note)
