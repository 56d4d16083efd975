"""Table of ``lrdyn data``: every data set, where it was found, or which files would do."""

from collections.abc import Iterator

from lrdyn.core.show import aligned, make_printable
from lrdyn.data import sets
from lrdyn.data.lookup import find, looked_in
from lrdyn.data.pairs import SPLITS, stsb_names
from lrdyn.data.sentiment import names_of


def table(data_dir: str = "") -> list[str]:
    """Lines of the table; no file is read.

    Args:
        data_dir: where sets are looked for first.

    Example:
        >>> table()[0].split()[:3]
        ['data', 'set', 'found,']
    """
    rows = [("data set", "found, or what would do"), *_image_rows(data_dir), *_pair_rows(data_dir)]
    return [*aligned(rows), "", make_printable(f"looked in {looked_in(data_dir)}")]


def _image_rows(data_dir: str) -> Iterator[tuple[str, str]]:
    for name in sets.IMAGES:
        files = sets.image_files(name, data_dir)
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        lacking = f"missing: {sets.would_do(name)}; {sets.known(name).remedy}"
        yield name, f"{files[0]}{more}" if files else lacking


def _pair_rows(data_dir: str) -> Iterator[tuple[str, str]]:
    for split in SPLITS:
        names = stsb_names(split)
        path = find(names, data_dir)
        yield f"stsb {split}", str(path or f"missing: {' or '.join(names)}")
    names = names_of()
    lacking = f"missing: {' or '.join(names)}; lrdyn data download vader"
    yield "vader", str(find(names, data_dir) or lacking)
