"""Where compiled programs are kept on disk: those of each kind of machine apart, in bounds.

A home that many machines share must never hand the code of one to another: XLA compiles for the
features of the processor at hand, and JAX names what it keeps without them.

Compiled programs are executed, so all lie in a folder of this user alone
(:mod:`lrdyn.system.private_files`). JAX's own cache writes a file in its place, where a killed
process leaves half of it for good, and another one may read it meanwhile: JAX reads and writes
through :class:`PrivateCache`. It offers no public place for that; where its releases change the
private one, it keeps nothing.
"""

import contextlib
import hashlib
import os
import platform
import re
import stat
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from lrdyn.core.show import shortened
from lrdyn.system import whole_files
from lrdyn.system.memory_limit import SIZE, read_size
from lrdyn.system.private_files import NotPrivate, PrivateFolder
from lrdyn.verification.machine import accelerators, kept_programs
from lrdyn.verification.machine.kept_programs import OURS
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.stating.sources import library_digest

try:  # JAX has no public way to plug in a cache
    from jax._src import compilation_cache as jax_cache

    _PLAIN: Any = jax_cache.get_file_cache
except (ImportError, AttributeError):  # a release of JAX that moved it
    jax_cache, _PLAIN = None, None

MOST = 2 * 10**9
"""Default bytes of programs that are kept; ``LRDYN_CACHE_MAX`` sets another limit."""


def keep(base: str | os.PathLike) -> kept_programs.KeptPrograms | None:
    """Keep compiled programs below a folder, ours and JAX's; it starts the devices, to name them.

    Nothing is kept, and one line says why, if somebody else may have written what lies there.

    Returns:
        Where ours are kept; None if they are not.

    Raises:
        BadInput: ``LRDYN_CACHE_MAX`` says no size.
    """
    most_bytes = most()
    folder: PrivateFolder | None = PrivateFolder(Path(base, kind()))
    try:
        os.fspath(folder.path).encode()  # JAX takes no name that is no text
        with folder.opened(make=True):
            prune(folder.path.parent, most_bytes)
    except NotPrivate as error:
        kept_programs.warn_once(folder, f"{error}; no program is taken from there or kept")
        folder = None
    # Without a cache everything still runs, only more slowly: no reason to stop or to warn.
    except (OSError, UnicodeEncodeError):  # a file system that is full, or read only
        folder = None
    _let_jax_keep(folder)
    # JAX's default is a second, and most programs here compile faster than that.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return None if folder is None else kept_programs.KeptPrograms(folder, library_digest())


class PrivateCache:
    """JAX's cache of what it compiles, in a folder of this user, under the names that JAX gives.

    Programs that the library keeps itself do not pass through it (:data:`OURS`).

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: PrivateFolder):
        self.folder, self._path = folder, folder.path

    def get(self, key: str) -> bytes | None:
        """The content of an entry; None if missing, damaged or not this user's."""
        with contextlib.suppress(OSError, zlib.error):
            if not key.startswith(f"jit_{OURS}-"):
                content = kept_programs.read(self.folder, f"{key}-cache")
                return None if content is None else zlib.decompress(content)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Write an entry, if there is room."""
        if not key.startswith(f"jit_{OURS}-"):
            # JAX has packed it: this is for the checksum alone, since JAX's packing may have none.
            kept_programs.write(self.folder, f"{key}-cache", zlib.compress(value, 0))


_PRIVATE: dict[str, PrivateFolder] = {}
"""Folders that are checked, and stay so when JAX is sent elsewhere and back."""


def _of_path(path: str) -> Any:
    """The cache object in which JAX keeps programs in a folder."""
    # JAX expects a cache and its path, as its own function returns them.
    return (PrivateCache(_PRIVATE[path]), path) if path in _PRIVATE else _PLAIN(path)


def _let_jax_keep(folder: PrivateFolder | None) -> None:
    """Let JAX keep what it compiles in a folder of this user; nowhere without one.

    A folder that somebody named to JAX before, for another cache, stays JAX's own affair.
    """
    if jax_cache is None:
        folder = None
    elif folder is not None:
        _PRIVATE[os.fspath(folder.path)] = folder
        jax_cache.get_file_cache = _of_path
    kept_programs.let_jax_keep(None if folder is None else os.fspath(folder.path))


def kind() -> str:
    """Name of the folder of this kind of machine."""
    device = jax.local_devices()[0]
    # The last word tells these folders from those of releases that wrote other files.
    parts = (version("jaxlib"), features(), device.platform, device.device_kind, "private")
    words = "\n".join([*parts, *accelerators.releases(device)])
    digest = hashlib.sha256(words.encode()).hexdigest()[:12]
    return f"jaxlib-{parts[0]}-{device.platform}-{digest}"


def features() -> str:
    """Features of this machine's processor, as its kernel lists them."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:  # the first core stands for all
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {line.partition(':')[2].strip()}"
    return f"{platform.machine()} {platform.processor()}"


def most() -> int:
    """Bytes of programs that may be kept: ``LRDYN_CACHE_MAX``, such as ``500MB``.

    Raises:
        BadInput: it says no size.
    """
    text = os.environ.get("LRDYN_CACHE_MAX", "")
    count = read_size(text) if text else MOST
    if count is None:
        raise BadInput(f"LRDYN_CACHE_MAX: got {shortened(text)!r}, wanted {SIZE}")
    return count


FOLDERS = re.compile(r"jaxlib-[\w.+-]+-[0-9a-f]{12}")
PROGRAMS = re.compile(
    r"lrdyn-[0-9a-f]{32}\.(zip|json|program|record)|.+-[0-9a-f]{64}-(cache|atime)|\.lrdyn-[0-9a-f]{16}"
)
"""Names that the library and JAX give: nothing else is removed."""


def prune(base: Path, most: int) -> None:
    """Remove the files that were used longest ago, until no more bytes are kept.

    Another process may do the same, or read one: what is gone is compiled again. No link is
    followed below the base folder.
    """
    files: list[tuple[float, int, str, int]] = []
    with contextlib.ExitStack() as stack:
        handle = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, handle)
        folders = [handle]  # releases that told no machines apart kept theirs in the base folder
        with os.scandir(handle) as entries:
            names = [entry.name for entry in entries if FOLDERS.fullmatch(entry.name)]
        for name in names:
            with contextlib.suppress(OSError):  # a link, or removed meanwhile
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                folders.append(os.open(name, flags, dir_fd=handle))
                stack.callback(os.close, folders[-1])
        for folder in folders:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    facts = entry.stat(follow_symlinks=False)
                    # The folder around may hold other files, and those of other users.
                    ours = PROGRAMS.fullmatch(entry.name) and facts.st_uid == os.geteuid()
                    if ours and stat.S_ISREG(facts.st_mode):
                        # Many file systems are mounted so that reading does not update the time of
                        # access.
                        used = max(facts.st_atime, facts.st_mtime)
                        files.append((used, facts.st_size, entry.name, folder))
        total = sum(count for _, count, _, _ in files)
        for _, count, name, folder in sorted(files):
            if total <= most:
                return
            with contextlib.suppress(OSError):
                whole_files.remove_within(folder, name)
            total -= count
