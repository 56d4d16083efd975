"""Certificates of a cluster: those of a folder, and those made for one run."""

import os
import stat
from pathlib import Path

from distributed.security import Security

from lrdyn.system.private_files import OTHERS, OTHERS_WRITE
from lrdyn.verification.running.configuration import BadInput

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"
"""Files of the authority that is trusted, of the own certificate and of its private key."""


def credentials(folder: str | os.PathLike) -> Security:
    """Read certificate and key from a folder; nothing is sent without TLS.

    Args:
        folder: it holds ``ca.pem``, ``cert.pem`` and ``key.pem``.

    Raises:
        BadInput: one is missing, open to others, or does not fit the others; or the key is
            encrypted.
    """
    authority, certificate, key = (Path(folder, name) for name in (AUTHORITY, CERTIFICATE, KEY))
    _check_permissions(authority, OTHERS_WRITE)
    _check_permissions(certificate, OTHERS_WRITE)
    _check_permissions(key, OTHERS)
    # OpenSSL would ask the terminal for its pass phrase, and wait.
    if b"ENCRYPTED" in key.read_bytes():
        got = f"{os.fspath(key)!r} (encrypted)"
        raise BadInput(f"--cluster-security: got {got}, wanted a key without a pass phrase")
    # Dask's Security takes a text with line breaks for the certificate itself, not for a path.
    roles = {f"tls_{role}_cert": str(certificate) for role in ("client", "scheduler", "worker")}
    roles |= {f"tls_{role}_key": str(key) for role in ("client", "scheduler", "worker")}
    security = Security(require_encryption=True, tls_ca_file=str(authority), **roles)
    try:
        security.get_connection_args("client")
    except OSError as error:  # every error of ssl is an OSError
        line = (str(error).splitlines() or [type(error).__name__])[0]
        wanted = f"{AUTHORITY}, {CERTIFICATE} and {KEY} that belong together"
        got = f"{os.fspath(folder)!r} ({line})"
        raise BadInput(f"--cluster-security: got {got}, wanted {wanted}") from None
    return security


def make(folder: Path) -> Security:
    """Make a key and a certificate for one run, in files that nobody else can read.

    Raises:
        BadInput: the package that makes them is not installed.
    """
    try:
        security = Security.temporary()
    except ImportError:
        wanted = "the extra 'cluster': pip install 'lrdyn[cluster]'"
        raise BadInput(f"--cluster: got no package 'cryptography', wanted {wanted}") from None
    texts = (security.tls_ca_file, security.tls_client_cert, security.tls_client_key)
    for name, text in zip((AUTHORITY, CERTIFICATE, KEY), texts, strict=True):
        # The mode with the creation: between ``open`` and ``chmod`` somebody could have opened the
        # file.
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="ascii") as file:
            file.write(text)
    return credentials(folder)


def _check_permissions(path: Path, forbidden: int) -> None:
    """Refuse a file that somebody else owns or can use; it may be reached by a link."""
    use = "read" if forbidden == OTHERS else "write"
    wanted = f"a file of yours that nobody else can {use}"
    try:
        # Without O_NONBLOCK a FIFO under this name would be waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        got = error.strerror or "not readable"
    else:
        facts = os.fstat(handle)
        os.close(handle)
        if not stat.S_ISREG(facts.st_mode):
            got = "no file"
        elif facts.st_uid not in (os.geteuid(), 0):  # root can read what it likes
            got = f"of user {facts.st_uid}"
        elif facts.st_mode & forbidden:
            got = f"mode {stat.S_IMODE(facts.st_mode):o}"
        else:
            return
    raise BadInput(f"--cluster-security: got {os.fspath(path)!r} ({got}), wanted {wanted}")
