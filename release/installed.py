"""A wheel in environments of its own: installed from its metadata, and one theorem run there."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from release.stated import ROOT, Refused
from requirements import lock

PYTHONS = ("3.11", "3.12", "3.13")
"""The supported releases of Python, oldest first."""
THEOREM = ("verify", "corollary1", "--dim", "8", "--depth", "2", "--steps", "50")
"""What is run from the wheel: the theorem whose programs compile fastest."""
OURS = re.compile(r"(LRDYN|PYTHON|JAX|XLA|XDG|VIRTUAL_ENV|PIP_REQUIRE)")
"""Variables by which somebody's own settings would reach what is tried."""


class Environment(NamedTuple):
    """An environment that holds the wheel and what it depends on, and nothing else."""

    python: Path
    version: str


def interpreters(named: Sequence[str]) -> dict[str, str | None]:
    """Each supported release -> an interpreter of it with ``venv``, or None.

    Args:
        named: interpreters to take before those of the search path.

    Raises:
        Refused: one that is named does not run, or is not of a supported release.
    """
    found: dict[str, str | None] = dict.fromkeys(PYTHONS)
    for path in named:
        release = release_of(path)
        if release not in found:
            got = f"Python {release}" if release else "no Python with venv"
            raise Refused(f"--python: got {path}, {got}, wanted one of {', '.join(PYTHONS)}")
        found[release] = path
    for release in PYTHONS:
        places = (shutil.which(f"python{release}"), f"/usr/bin/python{release}")
        if found[release] is None:
            running = (path for path in places if path and release_of(path) == release)
            found[release] = next(running, None)
    return found


def release_of(path: str) -> str | None:
    """Which release an interpreter is, such as "3.12"; None if it does not run or has no venv."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run((path, "-c", code), capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def surroundings(home: Path) -> dict[str, str]:
    """The environment of a user who has set nothing, with an empty home."""
    kept = {name: text for name, text in os.environ.items() if not OURS.match(name)}
    return kept | {"HOME": os.fspath(home), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def install(interpreter: str, release: str, wheel: Path, folder: Path) -> Environment:
    """Install a wheel with the releases of the lock that its own metadata asks for.

    pip resolves from the wheel's metadata, kept to the releases of the lock; those are installed
    with their hashes, and ``pip check`` looks whether something is wanting.
    """
    python = folder / "bin" / "python"
    subprocess.run((interpreter, "-m", "venv", "--without-pip", folder), check=True)
    name = "lock-py311.txt" if release == "3.11" else "lock-py313.txt"
    text = (lock.FOLDER / name).read_text()
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{one}=={version}\n" for one, version in lock.releases(text).items()))
    only = ("--only-binary", ":all:")
    asked = _pip(
        interpreter,
        python,
        *("install", "--dry-run", "--quiet", "--report", "-", *only, "--constraint", pins, wheel),
    )
    wanted = {_plain(one["metadata"]["name"]) for one in json.loads(asked)["install"]}
    locked = folder / "locked.txt"
    locked.write_text(lines_of(text, wanted - {"lrdyn"}))
    quiet = ("install", "--quiet", "--no-deps")
    _pip(interpreter, python, *quiet, *only, "--require-hashes", "-r", locked)
    # By name from its folder, so that no file of metadata holds the folder's name.
    found = ("--no-index", "--find-links", wheel.parent, f"lrdyn=={wheel.name.split('-')[1]}")
    _pip(interpreter, python, *quiet, *found)
    _pip(interpreter, python, "check")
    return Environment(python, release)


def lines_of(text: str, names: set[str]) -> str:
    r"""The entries of a lock for these packages.

    Example:
        >>> lines_of("a==1 \\\n    --hash=x\nb==2 \\\n    --hash=y\n", {"b"})
        'b==2 \\\n    --hash=y\n'
    """
    entries = re.findall(r"^([a-z0-9-]+)(==(?:.*\\\n)*.*\n)", text, re.M)
    return "".join(name + rest for name, rest in entries if name in names)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(interpreter: str, python: Path, *words: str | Path) -> str:
    command = (interpreter, "-m", "pip", "--disable-pip-version-check", "--python", python, *words)
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def run_a_theorem(environment: Environment, version: str, home: Path) -> str:
    """Run one theorem where no checkout is seen; its last line.

    Raises:
        Refused: the command is of another version, or the theorem does not hold.
    """
    home.mkdir()
    settings: Mapping[str, str] = surroundings(home)
    command = environment.python.with_name("lrdyn")
    kept = {"cwd": home, "env": settings, "text": True, "check": False}
    said = subprocess.run((command, "--version"), stdout=subprocess.PIPE, **kept)
    if version not in said.stdout.split():
        got = said.stdout.strip() or f"status {said.returncode}"
        raise Refused(f"Python {environment.version}: lrdyn --version: got {got}, wanted {version}")
    done = subprocess.run((command, *THEOREM), capture_output=True, **kept)
    verdicts = [
        json.loads(path.read_text()) for path in home.glob("results/corollary1/*/verdict.json")
    ]
    if done.returncode or [one["holds"] for one in verdicts] != [True]:
        shown = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise Refused(
            f"Python {environment.version}: lrdyn {' '.join(THEOREM)}: "
            f"got status {done.returncode} ({shown}), wanted a theorem that holds"
        )
    return done.stdout.strip().splitlines()[-1]


def bill_of_materials(tools: Path, environment: Environment, epoch: str, path: Path) -> None:
    """Write what an environment holds as CycloneDX, checked against its schema.

    Args:
        tools: the interpreter of the environment that has ``cyclonedx-bom``.
        environment: what is listed.
        epoch: seconds, the time that the bill says.
        path: the file.
    """
    subprocess.run(
        (
            *(tools, "-m", "cyclonedx_py", "environment", environment.python),
            *("--pyproject", ROOT / "pyproject.toml", "--mc-type", "library"),
            *("--output-reproducible", "--validate", "--of", "JSON", "-o", path),
        ),
        env=os.environ | {"SOURCE_DATE_EPOCH": epoch},
        check=True,
    )
