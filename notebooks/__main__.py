"""Run notebooks from clean kernels: ``python -m notebooks [--missing] [NAME ...]``.

Two run at a time, one on a GPU or TPU. ``--missing`` runs those of which there is no run of their
present code.

What was run lies in ``build/notebooks``, from where the site and a release have it. An error names
the notebook, the cell and the line; the status is 1. A kernel ends by itself when it sees that this
process has ended.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jupytext
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from lrdyn.commands.ending import Sameness, run
from lrdyn.system import whole_files
from lrdyn.system.printer import say
from lrdyn.verification.machine import accelerators
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.stating.sources import library_digest
from notebooks import _kept

MISSING = "--missing"
AT_A_TIME = 2
LONGEST = 300
"""Seconds that a cell may take, on a busy machine too."""


class Ran(NamedTuple):
    """A notebook that was run."""

    notebook: Any
    """With its outputs."""
    problem: str
    """Where it failed and how; empty if it did not."""


def execute(path: Path) -> Ran:
    """Run a notebook in an empty folder."""
    notebook = jupytext.read(path)
    with whole_files.scratch_folder() as folder:
        # Spoken to through files, the kernel needs no port.
        kernel = AsyncKernelManager(
            kernel_name="python3",
            transport="ipc",
            ip=str(folder / "kernel"),
            connection_file=str(folder / "kernel.json"),
        )
        where = {"metadata": {"path": str(folder)}}
        # Times of day would make two runs differ.
        how = {"timeout": LONGEST, "record_timing": False}
        client = NotebookClient(notebook, km=kernel, resources=where, **how)
        try:
            # What cells print comes as messages. A kernel that outlives Ctrl-C for a moment would
            # complain on the stderr of this command.
            client.execute(cleanup_kc=True, stderr=subprocess.DEVNULL)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            return Ran(notebook, f"{path.name}: {_place(notebook, path, error)}")
    return Ran(notebook, "")


def _place(notebook: Any, path: Path, error: Exception) -> str:
    """Cell and line of what went wrong, and what it was."""
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                match = re.search(rf"Cell In\[{cell.execution_count}\], line (\d+)", plain)
                line = int(match[1]) if match else 1
                begin = path.read_text().partition(cell.source)[0].count("\n")
                where = f"cell {number}, line {line} (line {begin + line} of the file)"
                return f"{where}: {output.ename}: {output.evalue}"
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def main(words: Sequence[str]) -> Sameness:
    """Run the notebooks named, or all, and compare how they end with how they should."""
    known, chosen = _kept.names(), [word for word in words if word != MISSING]
    if unknown := sorted(set(chosen) - set(known)):
        raise BadInput(f"notebook: got {unknown[0]!r}, wanted {', '.join(known)}")
    chosen = chosen or known
    if MISSING in words:
        missing = _kept.missing(same_library=False)
        chosen = [name for name in chosen if name in missing]
        if older := sorted({*_kept.missing(same_library=True)} - {*missing}):
            say(f"notebooks: of another lrdyn than this: {', '.join(older)}")

    def ended(name: str) -> str:
        begin = time.perf_counter()
        library = library_digest()
        notebook, problem = execute(_kept.FOLDER / f"{name}.py")
        _kept.keep(notebook, name, library, whole=not problem)
        say(problem or f"{name}: {time.perf_counter() - begin:.1f} s")
        return problem

    begin = time.perf_counter()
    accelerators.share_memory()
    with ThreadPoolExecutor(1 if accelerators.accelerator() else AT_A_TIME) as pool:
        failures = [*filter(None, pool.map(ended, chosen))]
    say(f"notebooks: {len(failures)} failed, {time.perf_counter() - begin:.0f} s")
    return Sameness(same=not failures)


if __name__ == "__main__":
    sys.exit(run("notebooks", lambda: main(sys.argv[1:]), own_process=True))
