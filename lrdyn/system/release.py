"""Which release of the library this is."""

import tomllib
from importlib import metadata
from pathlib import Path


def library_version() -> str:
    """The version that is installed, or that of the source tree where nothing is.

    Example:
        >>> library_version().split(".")[0].isdecimal()
        True
    """
    try:
        return metadata.version("lrdyn")
    except metadata.PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        if not project.is_file():
            return "of no release"
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
