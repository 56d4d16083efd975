"""Run notebooks from clean kernels: ``python -m notebooks [NAME ...]``.

Two run at a time, one on a GPU or TPU.

Their outputs are thrown away. An error names the notebook, the cell and the line; the status is 1.
A kernel ends by itself when it sees that this process has ended.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from lrdyn.commands.ending import Sameness, run
from lrdyn.system import whole_files
from lrdyn.system.printer import say
from lrdyn.verification.machine import accelerators
from lrdyn.verification.running.configuration import BadInput

FOLDER = Path(__file__).parent
AT_A_TIME = 2
LONGEST = 300
"""Seconds that a cell may take, on a busy machine too."""


def names() -> list[str]:
    """Names of the notebooks."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def failure(path: Path) -> str:
    """Run a notebook in an empty folder; where it fails and how, empty if it does not."""
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
        client = NotebookClient(notebook, km=kernel, timeout=LONGEST, resources=where)
        try:
            # What cells print comes as messages. A kernel that outlives Ctrl-C for a moment would
            # complain on the stderr of this command.
            client.execute(cleanup_kc=True, stderr=subprocess.DEVNULL)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            return f"{path.name}: {_place(notebook, path, error)}"
    return ""


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
    if unknown := sorted(set(words) - set(names())):
        raise BadInput(f"notebook: got {unknown[0]!r}, wanted {', '.join(names())}")

    def ended(name: str) -> str:
        begin = time.perf_counter()
        problem = failure(FOLDER / f"{name}.py")
        say(problem or f"{name}: {time.perf_counter() - begin:.1f} s")
        return problem

    begin = time.perf_counter()
    accelerators.share_memory()
    with ThreadPoolExecutor(1 if accelerators.accelerator() else AT_A_TIME) as pool:
        failures = [*filter(None, pool.map(ended, words or names()))]
    say(f"notebooks: {len(failures)} failed, {time.perf_counter() - begin:.0f} s")
    return Sameness(same=not failures)


if __name__ == "__main__":
    sys.exit(run("notebooks", lambda: main(sys.argv[1:]), own_process=True))
