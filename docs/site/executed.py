"""Notebooks of the site as they were run: scripts whose cells get the outputs of that run.

``make notebooks`` leaves them (:mod:`notebooks._kept`). Sphinx reads the scripts, so that words and
links of a page are those of now; code that was not run since it was changed has no outputs.
"""

from functools import cache
from typing import Any

import jupytext

from notebooks import _kept


@cache
def outputs() -> dict[str, list[list[Any]]]:
    """Digest of the code of a notebook -> outputs of each of its code cells."""
    return {
        ran.code: [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
        for _, ran, notebook in _kept.load()
    }


def read(text: str) -> Any:
    """A notebook from the text of its script, with the outputs of its run."""
    notebook = jupytext.reads(text, fmt="py:percent")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, shown in zip(cells, outputs().get(_kept.code_digest(notebook), ()), strict=False):
        cell.outputs = shown
    return notebook
