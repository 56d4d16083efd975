"""``results.nc``: what was produced, from which settings and sources, and on which machine."""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lrdyn.engine import files

if TYPE_CHECKING:
    import xarray

SCHEMA = 2
"""Of ``results.nc`` and ``verdict.json``."""

NAME = "results.nc"


class Unreadable(ValueError):
    """Saved results are missing or damaged."""


class Missing(Unreadable):
    """There is no such file."""


class Damaged(Unreadable):
    """A file is not what was written."""

    def __init__(self, path: Path, why: str):
        """Say what is wrong with a file."""
        super().__init__(f"{path}: damaged ({why})")
        self.why = why


def write(
    path: Path,
    groups: Mapping[str, "xarray.Dataset"],
    *,
    name: str,
    title: str,
    about: str,
    config: Mapping[str, Any],
    digest: str,
    dtype: str,
) -> None:
    """Write ``results.nc``, atomically, with what made it: every setting and the sources."""
    machine = environment(dtype)
    record = {
        "schema": SCHEMA,
        "name": name,
        "title": title,
        "about": about,
        "config": canonical(config),
        "digest": digest,
        "revision": machine["git"] or "",
        "environment": canonical(machine),
    }
    files.write_netcdf(path, {**groups, "/": groups["/"].assign_attrs(record)})


def read(path: Path) -> dict[str, "xarray.Dataset"]:
    """Open all groups of a ``results.nc``; their arrays are read when they are used.

    The group ``"/"`` has the attributes ``name`` and ``digest``, and as JSON ``config`` and
    ``environment``.

    Raises:
        Missing: there is no such file.
        Damaged: it cannot be read.
    """
    import xarray

    if not path.is_file():
        raise Missing(f"{path}: not found")
    with _damage_named(path):
        found = xarray.open_groups(path, engine="h5netcdf")
    return {group: d for group, d in found.items() if d.variables or group == "/"}


WHOLE = {
    "name": str, "config": dict, "claims": list, "environment": dict, "results_sha256": str,
    "holds": bool | None,
}  # fmt: skip
"""What every ``verdict.json`` has."""


def read_verdict(folder: Path) -> dict[str, Any]:
    """Read ``verdict.json`` of a run.

    Raises:
        Missing: there is none.
        Unreadable: it is not what was written.
    """
    path = folder / "verdict.json"
    try:
        found = json.loads(path.read_text())
        if all(isinstance(found[name], kind) for name, kind in WHOLE.items()):
            return found
    except FileNotFoundError:
        raise Missing(f"{path}: not found") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise Unreadable(f"{path}: damaged")


def load(path: Path) -> dict[str, "xarray.Dataset"]:
    """The same read whole, into memory: what is damaged inside is found too."""
    found = read(path)
    with _damage_named(path), contextlib.ExitStack() as opened:
        for dataset in found.values():
            opened.enter_context(dataset)
            dataset.load()
    return found


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ... on damaged files
        raise Damaged(path, type(error).__name__) from None


def canonical(values: Any) -> str:
    """JSON of settings, equal for equal settings."""
    return json.dumps(values, sort_keys=True, allow_nan=False)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        error.filename = os.fspath(path)  # a failed read names none
        raise


def environment(dtype: str) -> dict[str, Any]:
    """Versions, platform and revision that results or a verdict came from."""
    return {
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
        "dtype": dtype,
        "git": _revision(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _revision() -> str | None:
    # Of the checkout that this code is run from; an installed package has none.
    here = Path(__file__).resolve().parent
    command = ["git", "-C", os.fspath(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
