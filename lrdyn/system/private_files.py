"""A folder of this user alone, for content that is executed when it is loaded.

What lies in a folder that belongs to this user and has mode 0700 was put there by this user, and is
trusted as that of ``~/.ssh`` is. A folder that anybody else can write to, or own, is not used.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lrdyn.system import whole_files

OTHERS = 0o077
"""Any permission of group or others, or of anybody in an access control list."""

OTHERS_WRITE = 0o022
"""Permission of group or others to write."""


class NotPrivate(Exception):
    """Somebody else may have written what a folder holds; the message says what was wanted."""

    def __init__(self, path: Path, got: str):
        wanted = "a folder of yours with mode 700"
        super().__init__(f"got {os.fspath(path)!r} ({got}), wanted {wanted}")


class PrivateFolder(NamedTuple):
    """A folder that this user alone can use; files are written as a whole or not at all.

    Args:
        path: of the folder, which is made with mode 0700 at the first write. Folders on the way
            may be symbolic links, and may be open to others.

    Example:
        >>> import tempfile
        >>> folder = PrivateFolder(Path(tempfile.mkdtemp()) / "programs")
        >>> folder.write("a", b"content")
        >>> folder.read("a")
        b'content'
        >>> folder.read("b") is None
        True
        >>> folder.path.chmod(0o770)
        >>> folder.read("a")
        Traceback (most recent call last):
        lrdyn.system.private_files.NotPrivate: got ... (mode 770), wanted a folder of yours with ...
    """

    path: Path

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none.

        Raises:
            NotPrivate: somebody else may have written it.
            OSError: it cannot be read.
        """
        with contextlib.suppress(FileNotFoundError), self.opened() as folder:

            def opener(name: str, flags: int) -> int:
                return os.open(name, flags, dir_fd=folder)

            with open(name, "rb", opener=opener) as file:
                # What was used longest ago is removed first, and reading alone may leave no trace.
                os.utime(file.fileno())
                return file.read()
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file.

        Raises:
            NotPrivate: the folder is open to somebody else.
            OSError: it cannot be written.
        """
        with self.opened(make=True) as folder:
            whole_files.write_within(folder, name, content)

    @contextlib.contextmanager
    def opened(self, *, make: bool = False) -> Iterator[int]:
        """Handle of the folder, which was checked: its name may lead elsewhere by now.

        Args:
            make: whether to make the folder if it is missing.

        Raises:
            NotPrivate: somebody else may have written in it.
            FileNotFoundError: it is missing and not to be made.
        """
        if make:
            # Nobody else needs to learn from the names what this user runs.
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            # Systems differ in which of the first two a link gives.
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise NotPrivate(self.path, "a link, or no folder") from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise NotPrivate(self.path, "not readable") from None
            raise
        try:
            facts = os.fstat(handle)
            if facts.st_uid != os.geteuid():
                raise NotPrivate(self.path, f"of user {facts.st_uid}")
            if facts.st_mode & OTHERS:
                raise NotPrivate(self.path, f"mode {stat.S_IMODE(facts.st_mode):o}")
            yield handle
        finally:
            os.close(handle)
