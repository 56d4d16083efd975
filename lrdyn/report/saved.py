"""Files that a command left, read for a report: whole, of the right form, with their checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lrdyn.data import guarded
from lrdyn.verification.storing import results_file
from lrdyn.verification.storing.verdict_schema import Entries


def check_no_link(path: Path) -> None:
    """Refuse a symbolic link below a reported folder: who made the folder chose where it leads.

    A report is sent to others, and so would be whatever this user may read.

    Raises:
        results.Damaged: it is one.
    """
    if path.is_symlink():
        raise results_file.Damaged(path, "got a link, wanted what lies there itself")


def read_json(path: Path, what: str, form: Entries, most: int) -> tuple[Any, str]:
    """Read a JSON file of a known form, and its SHA-256.

    Args:
        path: of the file.
        what: it is, in the words of a refusal.
        form: what its entries must be.
        most: bytes, at most.

    Raises:
        results.Unreadable: the file is missing or damaged, or of another form.
        OSError: the machine could not read it.
    """
    try:
        written = guarded.content(path, most=most, links=False)
        content = guarded.parsed(written, path, what)
    except guarded.Refused as error:
        raise results_file.Damaged(path, error.why) from None
    if why := form.mismatch(content):
        raise results_file.Damaged(path, why)
    return content, hashlib.sha256(written).hexdigest()
