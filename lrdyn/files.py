"""Writing results: atomic, so that a killed run never leaves half a file."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder that replaces ``path`` if all goes well.

    Args:
        path: the file to write.

    Yields:
        The temporary path; it has the same suffix and is removed on failure.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; a NaN is an error, since the verdict must never hold one.

    Args:
        path: the file.
        content: what ``json`` can write.

    Raises:
        ValueError: the content holds a NaN or an infinity.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def write_netcdf(path: Path, groups: Mapping[str, Any]) -> None:
    """Write ``xarray`` datasets as groups of one netCDF file, atomically.

    Args:
        path: the file.
        groups: group -> dataset; ``"/"`` is the root, which ``xarray.open_dataset(path)`` reads.
    """
    with replacing(path) as temporary:
        mode = "w"
        for group, dataset in groups.items():
            encoding = {
                name: {"zlib": True, "complevel": 1} for name, v in dataset.items() if v.ndim
            }
            dataset.to_netcdf(
                temporary, mode=mode, group=group, engine="h5netcdf", encoding=encoding
            )
            mode = "a"


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that it is kept for inspection and can be computed again.

    Args:
        path: the damaged file.

    Returns:
        Its new path, ``<name>.damaged``.
    """
    target = path.with_name(path.name + ".damaged")
    os.replace(path, target)
    return target
