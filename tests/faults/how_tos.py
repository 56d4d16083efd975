"""Pages whose blocks need torch, transformers or flax: ``python -m tests.faults.how_tos [PYTHON]``.

PYTHON is an interpreter in which this library is installed beside some of these packages, of
whatever release; by default this one. Its blocks are run there, and what they print is compared
with the page. A package that is not there is named, and its blocks are only parsed.
"""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.pages import Wrong, blocks_of, run_python
from tests.runs import ROOT

PAGES = ("adapters.md", "logging.md", "peft.md")
PACKAGES = (
    *("torch", "transformers", "flax", "equinox"),
    *("tensorboard", "wandb", "lightning"),
)


def main(words: list[str]) -> int:
    """Run the pages with the other interpreter, or with this one; 1 if one says what is not so."""
    if words:
        command = [words[0], "-m", "tests.faults.how_tos"]
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads spin beside other work
    bad, there = 0, []
    for package in PACKAGES:
        try:
            there.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            there.append(f"no {package}: its blocks were only parsed")
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                run_python(blocks_of(ROOT / "docs" / page), Path(folder))
            except Wrong as error:
                print(error)
                bad += 1
    print(f"{len(PAGES)} pages, {bad} faults; {', '.join(there)}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
