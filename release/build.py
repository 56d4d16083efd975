"""The source distribution and the wheel of a commit, each built twice, the same to the byte."""

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from release.stated import ROOT, Refused


class Surroundings(NamedTuple):
    """What must not be seen in what is built."""

    folder: str
    umask: int
    environment: dict[str, str]


BUILDS = (
    Surroundings("one", 0o022, {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}),
    # Another folder, umask, time zone, language and order of sets: what usually slips in.
    Surroundings("the-other", 0o077, {"TZ": "Asia/Kolkata", "LC_ALL": "C", "PYTHONHASHSEED": "1"}),
)


def output(*words: str | Path) -> str:
    """What a command prints.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def clean_tree(version: str) -> None:
    """Refuse a tree that is not its commit, or a tag that names another commit.

    Raises:
        Refused: something is changed or new, or the tag of this version is elsewhere.
    """
    if changed := output("git", "status", "--porcelain").splitlines():
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Refused(f"git: got {changed[0][3:]}{more} not as committed, wanted a clean tree")
    head = output("git", "rev-parse", "HEAD").strip()
    if output("git", "tag", "--list", f"v{version}"):
        tagged = output("git", "rev-parse", f"v{version}^{{commit}}").strip()
        if tagged != head:
            raise Refused(f"git: got a tag v{version} of {tagged[:12]}, wanted a new version")


def commit_time() -> str:
    """When the last commit was made, in seconds: the time of every file that is built."""
    return output("git", "log", "-1", "--format=%ct").strip()


def built_twice(tools: Path, work: Path) -> list[Path]:
    """Build the last commit in two surroundings; the files of the first.

    The wheel is built from the source distribution, which so is seen to be whole.

    Args:
        tools: the interpreter of the environment that has ``build`` and hatchling.
        work: an empty folder.

    Raises:
        Refused: two builds of a file differ.
    """
    archive = work / "commit.tar"
    # git keeps no ignored and no new file, so neither does what is built.
    output("git", "archive", "--output", archive, "HEAD")
    made = [_built(tools, archive, work / one.folder, one) for one in BUILDS]
    first, second = ({path.name: checksum(path) for path in paths} for paths in made)
    if different := sorted(name for name, _ in first.items() ^ second.items()):
        raise Refused(f"{different[0]}: got other bytes from a second build, wanted the same")
    return made[0]


def _built(tools: Path, archive: Path, folder: Path, one: Surroundings) -> list[Path]:
    source, target = folder / f"lrdyn-{one.folder}", folder / "built"
    source.mkdir(parents=True)
    with tarfile.open(archive) as members:
        members.extractall(source, filter="data")
    subprocess.run(
        (tools, "-m", "build", "--no-isolation", "--outdir", target, source),
        env=os.environ | {"SOURCE_DATE_EPOCH": commit_time(), **one.environment},
        umask=one.umask,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return sorted(target.iterdir())


def checksum(path: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
