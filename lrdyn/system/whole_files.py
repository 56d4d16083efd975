"""Every change that the library makes to a file system: files replaced whole, folders of its own.

A killed process never leaves half a file. Nothing is written, moved or deleted through a symbolic
link below a folder that the user named: results come from archives and shared disks, and a link in
them may lead to somebody's thesis. What is deleted is deleted by the names that the library gives,
in folders that carry its mark.
"""

import atexit
import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

MARK = ".lrdyn"
"""File that says that a folder was made by the library, which may clear it."""

VERDICT = "verdict.json"
"""File by which a folder of results from before there were marks is known."""

SCRATCH = r"\.lrdyn-[a-z0-9_]{8,16}(\..*)?"
"""Names of scratch files and folders."""


class Linked(OSError):
    """A symbolic link stands where the library would make a file or a folder of its own."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(errno.ELOOP, "a symbolic link, wanted a file or folder", os.fspath(path))


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Let the error of what is done by a handle name its file: a path that can be looked for.

    Example:
        >>> with name_in_errors(Path("folder")):
        ...     raise OSError(errno.EIO, "Input/output error")
        Traceback (most recent call last):
        OSError: [Errno 5] Input/output error: 'folder'
    """
    try:
        yield
    except OSError as error:
        # The error of a file has no name, of an open folder its number, of a name in it that alone.
        name = error.filename if isinstance(error.filename, str) else ""
        if not os.path.dirname(name):
            error.filename = os.path.join(path, name) if name else os.fspath(path)
        raise


# Scratch ------------------------------------------------------------------------------------------

_UNDERWAY: set[Path] = set()
_LOCK = threading.Lock()


def make_scratch(folder: Path, suffix: str) -> Path:
    """Make an empty hidden file, which :func:`remove_scratch` removes if nobody else does.

    It has the permissions that the user's umask leaves, as any new file.
    """
    with _LOCK:  # never given back by a process that ends on a signal: nothing new is made then
        path = folder / f".lrdyn-{secrets.token_hex(8)}{suffix}"
        # O_EXCL refuses a name that is there, a link among them; the umask narrows the mode.
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        _UNDERWAY.add(path)
        try:
            with name_in_errors(path):
                os.close(handle)  # where a full disk may be noticed
        except OSError:
            _remove_underway(path)
            raise
    return path


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give a private folder, in the system's folder of temporary files by default, and remove it.

    A command that ends on a signal removes it, too.

    Example:
        >>> with scratch_folder() as folder:
        ...     _ = (folder / "a.txt").write_text("a")
        >>> folder.exists()
        False
    """
    with _LOCK:
        path = Path(tempfile.mkdtemp(prefix=".lrdyn-", dir=parent)).absolute()
        _UNDERWAY.add(path)
    try:
        yield path
    finally:
        with _LOCK:
            _remove_underway(path)


def lasting_folder(parent: Path | None = None) -> Path:
    """Make a private folder that goes when this process ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_folder(parent))


def remove_all_scratch() -> None:
    """Remove the scratch of this process, which must end at once: none can be made afterwards.

    A thread that misses what is removed here waits for the lock until the process has ended: its
    error, which would have a status of its own, is not one of the run.
    """
    # Not for ever: the thread that holds it may be the one that was interrupted.
    _LOCK.acquire(timeout=1.0)
    for path in [*_UNDERWAY]:
        _remove_underway(path)


def _remove_underway(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
    _UNDERWAY.discard(path)


def remove_scratch(folder: Path) -> None:
    """Remove the hidden files that a killed run left in a folder to which no process writes.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = make_scratch(folder, ".txt")
        >>> remove_scratch(folder)
        >>> list(folder.iterdir())
        []
    """
    folder = folder.resolve()  # the name that the caller gave may itself be a link
    with name_in_errors(folder), _open_folder(folder) as handle:
        _remove_files(handle, SCRATCH)


# Files that are replaced --------------------------------------------------------------------------


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary path of the same folder and suffix; it replaces ``path`` if all goes well.

    Raises:
        Linked: ``path`` is a symbolic link.
        OSError: it cannot be written; the error names ``path``.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replace_file(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    if path.is_symlink():
        raise Linked(path)
    try:
        temporary = make_scratch(path.parent, path.suffix)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # A failed write names no file, a failed replacement the hidden one.
        if error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(path)
        raise
    finally:
        with _LOCK, contextlib.suppress(OSError):  # the earlier error says more
            temporary.unlink(missing_ok=True)
        _UNDERWAY.discard(temporary)


def open_to_append(path: Path) -> IO[str]:
    """Open a text file to write behind its end.

    Raises:
        Linked: it is a symbolic link.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    try:
        return open(path, "a", newline="", opener=opener)
    except OSError as error:
        raise Linked(path) if error.errno == errno.ELOOP else error from None


def move(source: Path, target: Path) -> None:
    """Give a new file of this process the place of another and the permissions of a new file.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_text("a")
        >>> move(folder / "a", folder / "b")
        >>> (folder / "b").read_text()
        'a'
    """
    with replace_file(target) as temporary:
        # A file of ``tempfile`` has mode 0600, and a new one of this user has what the umask
        # leaves.
        os.chmod(source, stat.S_IMODE(temporary.stat().st_mode))
        os.replace(source, temporary)


def rename_new(source: Path, target: Path) -> None:
    """Give a new file or folder of this process its name, where nothing stands.

    Raises:
        FileExistsError: something stands there.
    """
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
    os.rename(source, target)


def set_aside(
    path: Path, why: object, note: Callable[[str], None], then: str = "computed again"
) -> Path:
    """Rename a damaged file to ``<name>.damaged``, so that it is kept for inspection, and say so.

    Args:
        path: the damaged file.
        why: what is wrong with it.
        note: is given the line about it.
        then: what becomes of its content, for that line.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "a.nc"
        >>> _ = path.write_text("half")
        >>> set_aside(path, "not netCDF", lambda line: print(line.rpartition("/")[2])).name
        a.nc: damaged (not netCDF), kept as a.nc.damaged and computed again
        'a.nc.damaged'
    """
    target = path.with_name(path.name + ".damaged")
    os.replace(path, target)
    note(f"{path}: damaged ({why}), kept as {target.name} and {then}")
    return target


def remove(path: Path) -> None:
    """Remove one file by its name; nothing happens where there is none.

    Example:
        >>> remove(Path("no such file"))
    """
    path.unlink(missing_ok=True)
    _UNDERWAY.discard(path)


def remove_tree(folder: Path) -> None:
    """Remove a folder that this process made for itself, with all it holds; no link is followed."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder if nothing is in it.

    Example:
        >>> remove_empty(Path("no such folder"))
    """
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_within(handle: int, name: str, content: bytes) -> None:
    """Write a private file in an open folder, whole or not at all.

    Args:
        handle: of the folder.
        name: of the file in it.
        content: what it holds.

    Raises:
        OSError: it cannot be written.
    """
    temporary = f".lrdyn-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600, dir_fd=handle), "wb") as file:
        try:
            file.write(content)
            file.flush()
            os.rename(temporary, name, src_dir_fd=handle, dst_dir_fd=handle)
        finally:
            remove_within(handle, temporary)


def remove_within(handle: int, name: str) -> None:
    """Remove a file of an open folder; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=handle)


# Folders of the library ---------------------------------------------------------------------------


def make_folder(path: Path, *, below: Path) -> Path:
    """Make a folder, and those on the way to it, ``below`` one that the user named.

    That one may be a symbolic link, to a larger disk for example; what follows may not.

    Raises:
        Linked: a link stands on the way.
        OSError: one of the folders cannot be made.

    Example:
        >>> results = Path(tempfile.mkdtemp())
        >>> (results / "a").symlink_to(results)
        >>> make_folder(results / "a" / "b", below=results)
        Traceback (most recent call last):
        lrdyn.system.whole_files.Linked: ...
    """
    way = [below]
    for name in path.relative_to(below).parts:
        way.append(way[-1] / name)
    for step in way:
        # Before ``mkdir``, which takes a link to a folder for the folder.
        if step != below and step.is_symlink():
            raise Linked(step)
        try:
            step.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(
                errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(step)
            ) from None
    return path


def refuse_links(folder: Path, names: Iterable[str] | None = None) -> None:
    """Refuse symbolic links among what is written: these names in a folder, or all it holds.

    Raises:
        Linked: there is one.

    Example:
        >>> refuse_links(Path(tempfile.mkdtemp()))
    """
    if names is not None:
        for path in (folder / name for name in names):
            if path.is_symlink():
                raise Linked(path)
        return
    with name_in_errors(folder), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise Linked(entry.path)
            if entry.is_dir(follow_symlinks=False):
                refuse_links(Path(entry.path))


def mark_folder(folder: Path) -> bool:
    """Mark a folder as the library's, if it is empty, marked or holds a verdict.

    Returns:
        Whether it is marked: only then :func:`clear` removes anything in it.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> mark_folder(folder), [path.name for path in folder.iterdir()]
        (True, ['.lrdyn'])
    """
    there = set(os.listdir(folder))
    if there and not there & {MARK, VERDICT}:
        return False
    if MARK not in there:
        with replace_file(folder / MARK) as temporary:
            temporary.write_text(
                "lrdyn made this folder, and may remove the files it wrote here.\n"
            )
    return True


def unmark_folder(folder: Path) -> None:
    """Take the mark off a folder, and remove it if nothing else is left."""
    if set(os.listdir(folder)) <= {MARK}:
        remove(folder / MARK)
        remove_empty(folder)


def clear(folder: Path, *names: str, unless: str = "") -> None:
    """Remove files of a marked folder by their names, then its subfolders that became empty.

    Args:
        folder: below it nothing is followed, or removed whose name is another one.
        names: regular expressions, one for each level below the folder: of subfolders, and at last
            of the files in them.
        unless: name of a file that keeps the subfolder that holds it as it is.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("parts/12.npz", "parts/thesis.tex"):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     _ = (folder / name).write_text("")
        >>> _ = (folder / MARK).write_text("")
        >>> clear(folder, "parts", "[0-9]+[.]npz")
        >>> [path.name for path in (folder / "parts").iterdir()]
        ['thesis.tex']
    """
    if not (folder / MARK).is_file():
        return
    with name_in_errors(folder), _open_folder(folder) as handle:
        _clear(handle, names, unless)


def _clear(handle: int, names: tuple[str, ...], unless: str) -> None:
    first, *rest = names
    if not rest:
        _remove_files(handle, first)
        return
    for name in _entries(handle, first, stat.S_ISDIR):
        with _open_folder(name, handle) as inner:
            if unless and unless in os.listdir(inner):
                continue
            _clear(inner, tuple(rest), unless)
        with contextlib.suppress(OSError):  # not empty: it holds files of the user
            os.rmdir(name, dir_fd=handle)


def _remove_files(handle: int, pattern: str) -> None:
    for name in _entries(handle, pattern, stat.S_ISREG):
        remove_within(handle, name)


def _entries(handle: int, pattern: str, kind: Callable[[int], bool]) -> list[str]:
    """Names in an open folder that match and are of a kind; a link is of neither."""
    names = [name for name in os.listdir(handle) if re.fullmatch(pattern, name)]
    modes = [(n, os.stat(n, dir_fd=handle, follow_symlinks=False).st_mode) for n in names]
    return [name for name, mode in modes if kind(mode)]


@contextlib.contextmanager
def _open_folder(folder: str | Path, within: int | None = None) -> Iterator[int]:
    """Hold a folder open: what is done by this handle is done there, whatever its name becomes."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(folder, flags, dir_fd=within)
    try:
        yield handle
    finally:
        os.close(handle)
