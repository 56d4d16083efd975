"""The notebooks of a release, as they were run with it: one archive of ``.ipynb``."""

import zipfile
from datetime import UTC, datetime
from pathlib import Path

from notebooks import _kept
from release.stated import Refused


def require_runs() -> None:
    """Refuse a release whose notebooks were not run with these sources.

    Raises:
        Refused: so it is.
    """
    if missing := _kept.missing(same_library=True):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Refused(
            f"notebooks: got no run of {missing[0]}{more} with these sources, wanted "
            "`make notebooks` before"
        )


def pack(version: str, epoch: str, folder: Path) -> Path:
    """Write ``lrdyn-VERSION-notebooks.zip``: equal runs give equal bytes.

    Args:
        version: of the release.
        epoch: seconds, the time of every file in it.
        folder: where it is written.
    """
    path = folder / f"lrdyn-{version}-notebooks.zip"
    made = datetime.fromtimestamp(int(epoch), UTC).timetuple()[:6]
    with zipfile.ZipFile(path, "w") as archive:
        for name in _kept.names():
            entry = zipfile.ZipInfo(f"{path.stem}/{name}.ipynb", made)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, (_kept.KEPT / f"{name}.ipynb").read_bytes())
    return path
