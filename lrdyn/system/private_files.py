"""Files that only this user can have written, for content that is executed when it is loaded.

A file counts only if it and its folder belong to this user, nobody else can write them, no symbolic
link stands on the way, and its HMAC was made with this user's key. Everything below the base folder
is opened from the handle of a folder that was checked, so that nothing can be exchanged between a
check and its use.
"""

import contextlib
import errno
import hmac
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lrdyn.system import whole_files

KEY = "key"
"""File in the base folder with the bytes by which this user signs."""

LENGTH = 32
"""Bytes of a key, and of an HMAC with SHA-256."""

OTHERS = 0o077
"""Any permission of group or others."""

OTHERS_WRITE = 0o022
"""Permission of group or others to write, or of anybody in an access control list."""


class NotPrivate(Exception):
    """Somebody else may have written a file or a folder; the message says what was wanted."""

    def __init__(self, path: Path, got: str, wanted: str):
        super().__init__(f"got {os.fspath(path)!r} ({got}), wanted {wanted}")


class SignedFolder(NamedTuple):
    """A folder of files that carry the HMAC of their name and content.

    Args:
        base: the folder with the key, made if missing; it may be reached by a symbolic link.
        name: the folder in it, made with mode 0700.

    Example:
        >>> import tempfile
        >>> folder = SignedFolder(Path(tempfile.mkdtemp()), "programs")
        >>> folder.write("a", b"content")
        >>> folder.read("a")
        b'content'
        >>> folder.read("b") is None
        True
        >>> _ = folder.path.joinpath("a").rename(folder.path / "b")
        >>> folder.read("b")
        Traceback (most recent call last):
        lrdyn.system.private_files.NotPrivate: got ... (its HMAC does not fit), wanted ...
    """

    base: Path
    name: str

    @property
    def path(self) -> Path:
        """Path of the folder."""
        return self.base / self.name

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none.

        Raises:
            NotPrivate: somebody else may have written it.
            OSError: it cannot be read.
        """
        with contextlib.suppress(FileNotFoundError), self.opened() as (base, folder):
            signed = _read(folder, name, self.path, OTHERS_WRITE, touch=True)
            tag, content = signed[:LENGTH], signed[LENGTH:]
            # In constant time, as always with signatures.
            if not hmac.compare_digest(tag, self._hmac(base, name, content)):
                wanted = "a file that you signed"
                raise NotPrivate(self.path / name, "its HMAC does not fit", wanted)
            return content
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file, as a whole or not at all.

        Raises:
            NotPrivate: the folder or the key is open to somebody else.
            OSError: it cannot be written.
        """
        with self.opened(make=True) as (base, folder):
            tag = self._hmac(base, name, content)
            whole_files.write_within(folder, name, tag + content)

    @contextlib.contextmanager
    def opened(self, *, make: bool = False) -> Iterator[tuple[int, int]]:
        """Handles of the base folder and of this one, both checked.

        Raises:
            NotPrivate: somebody else may have written in one of them.
            FileNotFoundError: one is missing and not to be made.
        """
        if make:
            # Nobody else may write there, nor learn from the names what this user runs.
            self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _handle(os.open(self.base, os.O_RDONLY | os.O_DIRECTORY)) as base:
            _check(base, self.base, OTHERS_WRITE, folder=True)
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.name, 0o700, dir_fd=base)
            with _open(base, self.name, self.base, os.O_RDONLY | os.O_DIRECTORY) as folder:
                _check(folder, self.path, OTHERS, folder=True)
                yield base, folder

    def key(self) -> bytes:
        """This user's signing key, made at first use.

        Raises:
            NotPrivate: somebody else may know it, or may have written in one of the folders.
        """
        with self.opened(make=True) as (base, _):
            return self._key(base)

    def _key(self, base: int) -> bytes:
        try:
            key = _read(base, KEY, self.base, OTHERS)
        except FileNotFoundError:
            # Two processes may come here at once: the first key stays, and both read that one.
            whole_files.write_within(base, KEY, secrets.token_bytes(LENGTH), new=True)
            key = _read(base, KEY, self.base, OTHERS)
        if len(key) != LENGTH:
            raise NotPrivate(self.base / KEY, f"{len(key)} bytes", f"a key of {LENGTH} bytes")
        return key

    def _hmac(self, base: int, name: str, content: bytes) -> bytes:
        # A name holds no zero byte, so that no other name and content give the same bytes.
        signed = hmac.new(self._key(base), os.fsencode(name) + b"\0", "sha256")
        signed.update(content)
        return signed.digest()


def _read(folder: int, name: str, path: Path, forbidden: int, *, touch: bool = False) -> bytes:
    with _open(folder, name, path, os.O_RDONLY | os.O_NONBLOCK) as handle:
        _check(handle, path / name, forbidden)
        if touch:
            # Programs that were used longest ago are removed first, and reading alone may leave no
            # trace.
            os.utime(handle)
        with open(handle, "rb", closefd=False) as file:
            return file.read()


@contextlib.contextmanager
def _open(folder: int, name: str, path: Path, flags: int) -> Iterator[int]:
    """Open an entry of a folder by its name, without following a link."""
    try:
        handle = os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        # Where a folder is wanted, systems differ in which of the two a link gives.
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            got = "a link, or of another kind"
        elif isinstance(error, PermissionError):
            got = "not readable"
        else:
            raise
        kind = "folder" if flags & os.O_DIRECTORY else "file"
        raise NotPrivate(path / name, got, f"a {kind} of yours") from None
    with _handle(handle):
        yield handle


@contextlib.contextmanager
def _handle(handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        os.close(handle)


def _check(handle: int, path: Path, forbidden: int, *, folder: bool = False) -> None:
    """Refuse what is of another kind, belongs to another user or is open to others."""
    facts = os.fstat(handle)
    kind, is_kind = ("folder", stat.S_ISDIR) if folder else ("file", stat.S_ISREG)
    use = "use" if forbidden == OTHERS else "write"
    wanted = f"a {kind} of yours that nobody else can {use}"
    if not is_kind(facts.st_mode):
        raise NotPrivate(path, f"no {kind}", wanted)
    if facts.st_uid != os.geteuid():
        raise NotPrivate(path, f"of user {facts.st_uid}", wanted)
    if facts.st_mode & forbidden:
        raise NotPrivate(path, f"mode {stat.S_IMODE(facts.st_mode):o}", wanted)
