"""What the last run of each notebook left: ``build/notebooks/NAME.ipynb``.

The site and a release show a notebook as it was run. Its outputs are those of its code cells: a
change of the text around them leaves them as they are.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jupytext
import nbformat

from lrdyn.system import whole_files
from lrdyn.verification.stating.sources import library_digest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
KEPT = ROOT / "build" / "notebooks"


class RanWith(NamedTuple):
    """What decides the outputs of a notebook, as SHA-256."""

    code: str
    """Of its code cells."""
    library: str
    """Of the sources of lrdyn."""


def names() -> list[str]:
    """Names of the notebooks."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def code_digest(notebook: Any) -> str:
    r"""SHA-256 of the code cells of a notebook.

    Example:
        >>> one, two = (jupytext.reads(f"# {title}\n\n# %%\n1 + 1", "py:percent")
        ...             for title in ("One", "Two"))
        >>> code_digest(one) == code_digest(two)
        True
    """
    code = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256("\n# %%\n".join(code).encode()).hexdigest()


def keep(notebook: Any, name: str, library: str, *, whole: bool) -> None:
    """Write a notebook that was run, atomically; of one that failed nothing is left.

    Args:
        notebook: with its outputs.
        name: its name.
        library: :func:`lrdyn.verification.stating.sources.library_digest` before the run.
        whole: whether all its cells were run.
    """
    path = KEPT / f"{name}.ipynb"
    if not whole:
        path.unlink(missing_ok=True)
        return
    notebook.metadata["lrdyn"] = RanWith(code_digest(notebook), library)._asdict()
    whole_files.make_folder(KEPT, below=ROOT)
    with whole_files.replace_file(path) as temporary:
        nbformat.write(notebook, temporary)


def load() -> Iterator[tuple[str, RanWith, Any]]:
    """What is there: name, what it ran with, and the notebook."""
    for name in names():
        path = KEPT / f"{name}.ipynb"
        if path.is_file():
            notebook = nbformat.read(path, as_version=4)
            yield name, RanWith(**notebook.metadata["lrdyn"]), notebook


def missing(*, same_library: bool) -> list[str]:
    """Notebooks of which there is no run of their present code.

    Args:
        same_library: whether a run with other sources of the library is none.
    """
    library, there = library_digest(), {}
    for name, ran, _ in load():
        if not same_library or ran.library == library:
            there[name] = ran.code
    return [name for name in names() if there.get(name) != code_digest(read(name))]


def read(name: str) -> Any:
    """A notebook, without outputs."""
    return jupytext.read(FOLDER / f"{name}.py")
