"""The lowest releases of ``pyproject.toml``: ``python -m tests.faults.lowest``; needs the network.

An environment of the running Python gets the lowest release of each direct requirement that has a
wheel for it, and the newest one of everything else; lrdyn is built and installed there. What a user
installs is tried with a theorem. All extras, whose packages need newer releases of some others, are
tried with tests and imports. The versions are printed.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from lrdyn.core.show import aligned
from requirements import lock
from tests.runs import ROOT, small_words


class Tried(NamedTuple):
    """An environment and what runs in it."""

    owners: tuple[str, ...]
    """Whose requirements it gets."""
    commands: tuple[tuple[str, ...], ...]
    """Arguments of Python."""


TRIED = {
    "user": Tried(
        ("lrdyn", "adapters", "cluster", "build"),
        (
            ("-m", "lrdyn", "verify", "lora", *small_words("lora")),
            ("-c", "import distributed; distributed.Security.temporary()"),
            ("-c", "import lrdyn.data.tensors, safetensors.numpy, tokenizers"),
        ),
    ),
    "developer": Tried(
        ("lrdyn", *lock.EXTRAS, "build"),
        (
            (
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-n",
                "0",
                "--rootdir",
                str(ROOT),
                str(ROOT / "tests" / "test_spectra.py"),
            ),
            ("-c", "import ipykernel, jupytext, mlxtend.data, mpmath, nbclient, pooch"),
            ("-m", "ruff", "--version"),
            ("-m", "basedpyright", "--version"),
        ),
    ),
}


def installed(tools: lock.Resolver, folder: Path, tried: Tried) -> tuple[Path, dict[str, str]]:
    """Make the environment; its interpreter, and the version of each direct requirement."""
    stated = lock.requirements()
    wanted = [requirement for owner in tried.owners for requirement in stated[owner]]
    folder.mkdir()
    (folder / "wanted.in").write_text("\n".join(wanted))
    text = tools.uv(
        "compile",
        *("--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:"),
        *("--resolution", "lowest-direct", "--python", sys.executable, folder / "wanted.in"),
    )
    (folder / "lowest.txt").write_text(text)
    subprocess.run((sys.executable, "-m", "venv", folder / "environment"), check=True)
    python = folder / "environment" / "bin" / "python"
    install = (
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    )
    subprocess.run((*install, "--only-binary", ":all:", "-r", folder / "lowest.txt"), check=True)
    subprocess.run((*install, "--no-build-isolation", ROOT), check=True)
    direct = {re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in wanted}
    return python, {n: v for n, v in lock.releases(text).items() if n in direct}


def main() -> int:
    """Make each environment and use it; 1 if a command failed, 3 if one was not made."""
    versions: dict[str, dict[str, str]] = {}
    lines, bad = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            tools = lock.resolver(Path(scratch, "tools"))
            for name, tried in TRIED.items():
                folder = Path(scratch, name)
                python, versions[name] = installed(tools, folder, tried)
                for command in tried.commands:
                    done = subprocess.run(
                        (python, *command),
                        cwd=folder,
                        env=os.environ | {"LRDYN_CACHE": ""},
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                        check=False,
                    )
                    bad += done.returncode != 0
                    last = (done.stdout.splitlines() or ["nothing printed"])[-1]
                    lines.append(f"{name}: {' '.join(command)[:60]}: {done.returncode}, {last}")
        except subprocess.CalledProcessError as error:
            print(f"lowest: {Path(error.cmd[0]).name} ended with {error.returncode}, see above")
            return 3
    names = sorted(set().union(*versions.values()))
    rows = [(name, *(found.get(name, "") for found in versions.values())) for name in names]
    print("\n".join(aligned([("requirement", *versions), *rows])))
    print("\n".join(lines))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
