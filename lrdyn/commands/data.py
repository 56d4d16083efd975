"""What ``lrdyn data`` prints: every data set, where it was found or what would do."""

from collections.abc import Iterator

from lrdyn.core.show import aligned, printable
from lrdyn.data import sets
from lrdyn.data.lookup import find, looked_in
from lrdyn.data.pairs import SPLITS, stsb_names


def table() -> list[str]:
    """Lines of the table; no file is read.

    Example:
        >>> table()[0].split()[:3]
        ['data', 'set', 'found,']
    """
    rows = [("data set", "found, or what would do"), *_images(), *_pairs()]
    return [*aligned(rows), "", printable(f"looked in {looked_in()}")]


def _images() -> Iterator[tuple[str, str]]:
    for name in sets.IMAGES:
        files = sets.image_files(name)
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        lacking = f"missing: {sets.would_do(name)}; {sets.known(name).remedy}"
        yield name, f"{files[0]}{more}" if files else lacking


def _pairs() -> Iterator[tuple[str, str]]:
    for split in SPLITS:
        names = stsb_names(split)
        found = find(names)
        yield f"stsb {split}", str(found or f"missing: {' or '.join(names)}")
