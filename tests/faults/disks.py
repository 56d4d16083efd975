"""Full disks: ``python -m tests.faults.disks``, as root of Linux, which mounts a small tmpfs.

The disk is filled when a part, a small ``results.nc`` or one in pieces is about to be written, or
when its first piece is, after its room was found to be free.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.runs import Printed, python
from tests.verification.test_theorem import MY_THEOREM

SMALL = ["--dim", "2", "--dtype", "float32", "--seeds", "1"]
WORDS = (
    r"my_theorem: error: .*(results\.nc|\.npz): No space left on device; finished parts are kept"
)
FILLED = """
import importlib, sys
from lrdyn import cli
from lrdyn.verification.storing import files
from lrdyn.verification.stating.own_files import own_experiment
module, _, name = sys.argv[1].rpartition(".")
owner = importlib.import_module(module) if module != "lrdyn.verification.storing.parts.Store" else (
    importlib.import_module("lrdyn.verification.storing.parts").Store)
then, files.SLAB = getattr(owner, name), int(sys.argv[2])
def full(*given, **more):
    with open("filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)): pass
        except OSError: pass
    return then(*given, **more)
setattr(owner, name, full)
sys.exit(cli.run("mine", lambda: cli.main(own_experiment("mine.py"), sys.argv[3:])))
"""
CASES = {
    "a part": ("lrdyn.verification.storing.parts.Store.save", 2**26),
    "a small file": ("lrdyn.verification.storing.results_file.write", 2**26),
    "a file in pieces": ("lrdyn.verification.storing.results_file.write", 100),
    "a piece": ("lrdyn.verification.storing.files._write_group", 100),
}


@contextlib.contextmanager
def disk(size: str) -> Iterator[Path]:
    """Mount a disk of its own."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        subprocess.run(mount, check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(("umount", folder), check=True)


def faults(done: Printed, folder: Path) -> list[str]:
    """What is wrong with how a command ended."""
    last = (done.stderr.splitlines() or [""])[-1]
    left = [p.name for p in folder.rglob("*") if p.name == "results.nc" or p.name[:7] == ".lrdyn-"]
    found = [f"status {done.returncode}"] if done.returncode != 3 else []
    found += [f"said {last!r}"] if not re.fullmatch(WORDS, last) else []
    found += ["a traceback"] if "Traceback" in done.stderr else []
    return found + [f"left {name}" for name in left]


def main() -> int:
    """Try each, and say what was seen."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        print("disks: not tried, they need root on Linux")
        return 0
    bad = 0
    for name, (hook, slab) in CASES.items():
        with disk("1m") as folder:
            (folder / "mine.py").write_text(MY_THEOREM)
            (folder / "filled.py").write_text(FILLED)
            found = faults(python("filled.py", hook, str(slab), *SMALL, cwd=folder), folder)
        print(f"full when {name} is written: {'; '.join(found) or 'as expected'}", flush=True)
        bad += bool(found)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
