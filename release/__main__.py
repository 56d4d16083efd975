"""``make release``: ``python -m release TOOLS`` writes ``dist/``, whole or not at all.

TOOLS is the interpreter of the environment of ``requirements/release.txt``. Nothing is sent
anywhere. Exit status: 0, 2 if the tree is not one to release or what was built is wrong, 3 if a
tool fails.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from lrdyn.system import whole_files
from release import build, installed, shown, stated
from release.stated import ROOT, Refused

DIST = ROOT / "dist"


def main(words: list[str]) -> int:
    """Check, build, try, and hand out."""
    parser = argparse.ArgumentParser("python -m release", description=__doc__)
    parser.add_argument("tools", type=Path, help="interpreter with build, twine, cyclonedx-bom")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        help="interpreter to try the wheel with, repeatable",
    )
    asked = parser.parse_args(words)
    try:
        release(asked.tools, asked.python)
    except Refused as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(
            f"release: {' '.join(map(str, error.cmd[:3]))} ended with {error.returncode}; "
            "dist/ is as it was",
            file=sys.stderr,
        )
        return 3
    except OSError as error:
        print(f"release: {error}; dist/ is as it was", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    return 0


def release(tools: Path, named: list[str]) -> None:
    """Write ``dist/`` from the last commit.

    Raises:
        Refused: see :func:`main`.
        subprocess.CalledProcessError: a tool fails.
    """
    version = stated.project()["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    ready(version, changelog)
    shown.require_runs()
    pythons = installed.interpreters(named)
    epoch = build.commit_time()
    with whole_files.scratch_folder(ROOT) as work:
        made = build.built_twice(tools, work)
        subprocess.run((tools, "-m", "twine", "check", "--strict", *made), check=True)
        print(
            f"release: {', '.join(path.name for path in made)}: twice the same, metadata in order"
        )
        (wheel,) = [path for path in made if path.suffix == ".whl"]
        environments = []
        for release_of_python, path in pythons.items():
            if path is None:
                print(f"release: Python {release_of_python}: none here, not tried")
                continue
            folder = work / release_of_python
            environments.append(installed.install(path, release_of_python, wheel, folder))
            line = installed.run_a_theorem(environments[-1], version, folder / "home")
            print(f"release: Python {release_of_python}: {line}", flush=True)
        if not environments:
            raise Refused(f"Python: got none, wanted one of {', '.join(installed.PYTHONS)}")
        out = work / "dist"
        out.mkdir()
        for path in made:
            path.rename(out / path.name)
        shown.pack(version, epoch, out)
        bill = out / f"lrdyn-{version}.cdx.json"
        installed.bill_of_materials(tools, environments[0], epoch, bill)
        tag = out / f"lrdyn-{version}.tag.txt"
        tag.write_text(stated.text_of_tag(stated.newest(changelog)))
        sums = {path.name: build.checksum(path) for path in sorted(out.iterdir())}
        lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
        (out / "SHA256SUMS").write_text("".join(lines))
        out.chmod(0o755)
        hand_out(out, work / "before")
    print(f"release: dist/: {', '.join(sums)}, SHA256SUMS")
    print(f"release: next: git tag -a v{version} -F dist/{tag.name}")


def ready(version: str, changelog: str) -> None:
    """Refuse a tree that is not committed, or whose files disagree; every reason has its line.

    Raises:
        Refused: so it is.
    """
    reasons = stated.disagreements(version, stated.statements())
    if stated.unreleased(changelog):
        reasons.append(f"CHANGELOG.md: got lines under Unreleased, wanted them under {version}")
    if reasons:
        raise Refused("\nrelease: ".join(reasons))
    build.clean_tree(version)


def hand_out(new: Path, aside: Path) -> None:
    """Give a folder the name ``dist``; what had it before goes with the scratch."""
    if DIST.is_symlink():
        raise whole_files.Linked(DIST)
    if DIST.exists():
        DIST.rename(aside)
    new.rename(DIST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
