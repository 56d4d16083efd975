"""Downloads by pooch, checked against the checksum on the data set's own page."""

import contextlib
import logging
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from lrdyn.core.show import shortened
from lrdyn.data.lookup import is_file, places
from lrdyn.system import progress, whole_files

TIMEOUT = 30.0
"""Seconds without an answer."""
PIECE = 2**16
"""Bytes between two looks at how far it is."""
PARTS = ".lrdyn-download"
"""Folder of unfinished downloads."""


class Remote(NamedTuple):
    """A remote file: its address, size and published checksum."""

    address: str
    file: str
    checksum: str
    size: int


REMOTE: dict[str, Remote] = {
    # Checksums: the table of versions on www.cs.toronto.edu/~kriz/cifar.html.
    "cifar10": Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "cifar-10-binary.tar.gz",
        "md5:c32a1d4ab5d03f1284b67883e8d87530",
        170_052_171,
    ),
    # Checksum: of the same file in the source distribution of vaderSentiment 3.3.2.
    "vader": Remote(
        "https://github.com/cjhutto/vaderSentiment/raw/master/additional_resources/"
        "hutto_ICWSM_2014.tar.gz",
        "hutto_ICWSM_2014.tar.gz",
        "sha256:d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
        2_338_514,
    ),
}
"""Data sets that can be downloaded."""


class DownloadFailed(Exception):
    """A fault of the network or of the downloaded file; no file is left behind."""


def download(name: str, *, address: str | None = None, folder: str | Path | None = None) -> Path:
    """Download a data set, unless its file is there with the right checksum.

    Args:
        name: of the data set.
        address: where it is; its own page by default.
        folder: where it goes; the first of the places by default.

    Returns:
        The file.

    Raises:
        ValueError: this one cannot be downloaded.
        ImportError: the package ``pooch`` of the extra ``data`` is not installed.
        DownloadFailed: there is no connection, what came is another file, or it cannot be written.

    Example:
        >>> download("cifar10").name  # doctest: +SKIP
        'cifar-10-binary.tar.gz'
    """
    if name not in REMOTE:
        got, wanted = repr(shortened(name)), ", ".join(REMOTE)
        raise ValueError(f"download: got {got}, wanted one of {wanted}")
    try:
        import pooch
        from requests.exceptions import RequestException
    except ImportError:
        raise ImportError("a download needs the package pooch: pip install 'lrdyn[data]'") from None
    remote, target = REMOTE[name], Path(folder or places()[0])
    kind, _, checksum = remote.checksum.partition(":")
    try:
        file = target / remote.file
        if not is_file(file) or pooch.file_hash(str(file), alg=kind) != checksum:
            _fetch(remote, address or remote.address, target)
    except RequestException as error:
        answer: Any = error.response
        reason = type(error).__name__ if answer is None else f"answer {answer.status_code}"
        raise DownloadFailed(f"{remote.file}: got {reason}, wanted the file") from None
    except ValueError:  # from pooch, which has removed the file
        wanted = f"the file with {remote.checksum}"
        raise DownloadFailed(f"{remote.file}: got another checksum, wanted {wanted}") from None
    except whole_files.Linked as error:
        place = ascii(os.fspath(error.filename))[1:-1]
        raise ValueError(f"{place}: got a symbolic link, wanted a file or folder") from None
    except OSError as error:
        place = ascii(str(error.filename or target))[1:-1]
        raise DownloadFailed(f"{place}: got {error.strerror}, wanted a folder with room") from None
    return target / remote.file


def _fetch(remote: Remote, address: str, target: Path) -> None:
    """Download into a hidden folder, from which only a whole and right file comes out."""
    import pooch

    whole_files.refuse_links(target, [remote.file])
    parts = whole_files.make_folder(target / PARTS, below=target)
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        _remove_killed(parts, remote)
        with progress.shown(remote.file, what="") as shown:
            shown.expect(remote.size)
            bar: Any = _Received(remote, shown)
            get: Any = pooch.HTTPDownloader(bar, chunk_size=PIECE, timeout=TIMEOUT)
            name = f"{os.getpid()}-{remote.file}"  # others may download, too
            downloaded = pooch.retrieve(address, remote.checksum, name, parts, downloader=get)
        whole_files.move(Path(downloaded), target / remote.file)
    finally:
        whole_files.remove_empty(parts)  # another process may download, too


def _remove_killed(parts: Path, remote: Remote) -> None:
    """Remove files of killed downloads, which are older than those of one that still writes."""
    # pooch writes into a file that tempfile has named, and renames it at the end.
    names = rf"tmp[a-z0-9_]{{8}}|[0-9]+-{re.escape(remote.file)}"
    for left in (path for path in parts.iterdir() if re.fullmatch(names, path.name)):
        with contextlib.suppress(FileNotFoundError):
            # A download that still runs writes more often than its timeout.
            if time.time() - left.lstat().st_mtime > 10 * TIMEOUT:
                whole_files.remove(left)


class _Received:
    """Receives from pooch how much has come, shows it, and stops what exceeds the size."""

    def __init__(self, remote: Remote, shown: progress.Progress):
        self.remote, self.shown, self.total, self.done = remote, shown, 0, 0

    def update(self, size: int) -> None:
        """Count the bytes received; pooch counts the last piece as a full one."""
        self.done += size
        if self.done > self.remote.size + 2**20:
            raise DownloadFailed(
                f"{self.remote.file}: got more bytes than the {self.remote.size} wanted"
            )
        self.shown.advance(size)

    def reset(self) -> None:
        """Start again at 0, as pooch does once everything has arrived."""
        self.shown.advance(-self.done)
        self.done = 0

    def close(self) -> None:
        """Do nothing: what is shown is closed where it was opened."""
