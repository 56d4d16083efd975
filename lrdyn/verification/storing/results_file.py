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

from lrdyn.data import guarded, hdf5
from lrdyn.data.guarded import Refused
from lrdyn.system import whole_files
from lrdyn.verification.storing import files, netcdf, verdict_schema

if TYPE_CHECKING:
    import xarray

SCHEMA = 2
"""Version of the format of ``results.nc`` and ``verdict.json``."""

NAME = "results.nc"
SEARCH = "search.json"
"""File that a search leaves, in a folder of its own."""


class Unreadable(ValueError):
    """Saved results are missing or damaged."""


class Missing(Unreadable):
    """The file does not exist."""


class Damaged(Unreadable):
    """The content of a file is not what was written."""

    def __init__(self, path: Path, why: str):
        """Name the file, and what is wrong with it."""
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
    judges: str,
    dtype: str,
) -> None:
    """Write ``results.nc``, atomically, with what made it: every setting and the sources.

    ``judges`` is the digest of what judged it first.

    Args:
        path: of the file.
        groups: group -> dataset; ``"/"`` is the root.
        name: of the experiment.
        title: one line.
        about: a line about what was run, or an empty text.
        config: every setting.
        digest: of the sources of the experiment and of its data.
        judges: of what judged it first.
        dtype: the precision that was asked for.
    """
    machine = environment(dtype)
    record = {
        "schema": SCHEMA,
        "name": name,
        "title": title,
        "about": about,
        "config": canonical_json(config),
        "digest": digest,
        "judges": judges,
        "revision": machine["git"] or "",
        "environment": canonical_json(machine),
    }
    files.write_netcdf(path, {**groups, "/": groups["/"].assign_attrs(record)})


def read(path: Path) -> dict[str, "xarray.Dataset"]:
    """Open all groups of a ``results.nc``; arrays of a large one are read when they are used.

    The group ``"/"`` has the attributes ``name``, ``digest`` and ``judges``, and as JSON
    ``config`` and ``environment``.

    Raises:
        Missing: there is no such file.
        Damaged: it cannot be read, or asks for what results never do (:mod:`lrdyn.data.hdf5`).
        OSError: the machine could not read it.
    """
    try:
        hdf5.check(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{path}: not found") from None
    except Refused as error:
        raise Damaged(path, error.why) from None
    with _name_damage(path):
        groups = netcdf.read_groups(path)
    # HDF5 makes the groups between, ``/controls`` for example, which hold nothing themselves.
    return {group: d for group, d in groups.items() if d.variables or group == "/"}


def load(path: Path) -> dict[str, "xarray.Dataset"]:
    """Read all groups into memory, by which damage inside of an array shows, too."""
    groups = read(path)
    with _name_damage(path), contextlib.ExitStack() as opened:
        for dataset in groups.values():
            opened.enter_context(dataset)
            dataset.load()
    return groups


@contextlib.contextmanager
def _name_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ... on damaged files
        raise Damaged(path, type(error).__name__) from None


def canonical_json(values: Any) -> str:
    """Settings as JSON text that is the same for equal settings."""
    return json.dumps(values, sort_keys=True, allow_nan=False)


def checksum(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        Damaged: it is a folder, a FIFO or a device.
        OSError: there is no such file, or the machine could not read it.
    """
    try:
        with whole_files.name_in_errors(path), guarded.opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Refused as error:
        raise Damaged(path, error.why) from None


def environment(dtype: str) -> dict[str, Any]:
    """Versions, platform, BLAS and revision that results or a verdict came from."""
    return {
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device_kind": jax.local_devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "dtype": dtype,
        "git": _revision(),
        "blas": blas(),
    }


def blas() -> list[dict[str, Any]]:
    """The BLAS libraries of this process, NumPy's and SciPy's, which JAX calls on a CPU.

    Each has a ``name``, a ``version``, the ``architecture`` that its kernels are for, and its
    number of ``threads``. Another kernel rounds otherwise, and can choose other signs of singular
    vectors. The list is empty where no library is known.

    Example:
        >>> all("architecture" in library for library in blas())
        True
    """
    import scipy.linalg.lapack  # noqa: F401  (loads the one that JAX calls)
    from threadpoolctl import threadpool_info

    keys = {
        "name": "internal_api",
        "version": "version",
        "architecture": "architecture",
        "threads": "num_threads",
    }
    found = [
        {name: library.get(key) for name, key in keys.items()}
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    # Several packages can have one of their own, in an order that says nothing.
    return [json.loads(text) for text in sorted({canonical_json(library) for library in found})]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _revision() -> str | None:
    # The revision of the checkout that this code runs from; an installed package has none, also
    # within a repository of somebody else, such as that of a project whose .venv it lies in.
    file = Path(__file__).resolve()
    root = file.parents[3]
    # A hook of git has variables that name its own repository, wherever git is asked.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "-C", os.fspath(root), *words]
        how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        return subprocess.run(command, env=variables, **how).stdout.strip()

    try:
        # Its name below the top of the repository, if that keeps it.
        name = git("ls-files", "--full-name", "--error-unmatch", os.fspath(file))
        if name != file.relative_to(root).as_posix():
            return None
        # Twelve digits whatever the repository's size and git's configuration, so that texts
        # compare.
        return git("describe", "--always", "--dirty", "--abbrev=12") or None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


# Verdicts -----------------------------------------------------------------------------------------

VERDICT = 2**23
"""Bytes of a ``verdict.json``, at most; that of theorem3, the longest, has 0.1 MB."""


def read_verdict(folder: Path) -> dict[str, Any]:
    """Read ``verdict.json`` of a run, which must fit :mod:`.verdict_schema`.

    Raises:
        Missing: there is none.
        Unreadable: it is not what a run writes.
        OSError: the machine could not read it.
    """
    path = folder / "verdict.json"
    try:
        verdict = guarded.read_json(path, "a verdict", most=VERDICT)
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{path}: not found") from None
    except Refused as error:
        raise Unreadable(f"{path}: damaged ({error.why})") from None
    if why := verdict_schema.mismatch(verdict):
        raise Unreadable(f"{path}: damaged ({why})")
    return verdict
