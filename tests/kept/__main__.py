"""``python -m tests.kept [THEOREM ...]``: run the small cases and write what they came to.

A claim that got weaker (a larger tolerance or threshold, fewer cases that are judged, more that are
left out, another kind) and a claim or control that is gone are refused unless *Numbers that moved*
in CHANGELOG.md has its id in backticks, where the reason is to be read. The status is then 1, and
nothing of that theorem is written.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lrdyn.registry import REGISTRY, theorem
from tests import kept
from tests.runs import finished


def refused(name: str, found: kept.Numbers, changelog: str) -> list[str]:
    """Why the numbers of a theorem may not be written, a line each."""
    excused = kept.excused(changelog)
    return [
        f"{name}: {id}: {'; '.join(why)}"
        for id, why in kept.weaker(found, kept.read(name)).items()
        if id not in excused
    ]


def main(argv: list[str] | None = None) -> int:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.kept", description=__doc__)
    parser.add_argument("theorems", nargs="*", choices=[*REGISTRY, []], metavar="THEOREM")
    parser.add_argument("--missing", action="store_true", help="those alone that have no file")
    status, changelog = 0, kept.CHANGELOG.read_text()
    with tempfile.TemporaryDirectory() as base:
        options = parser.parse_args(argv)
        for name in options.theorems or REGISTRY:
            if options.missing and (kept.FOLDER / f"{name}.json").exists():
                continue
            found = kept.numbers(theorem(name), finished(name, Path(base)))
            if lines := refused(name, found, changelog):
                lines.append(f"{name}: wanted these under Numbers that moved in CHANGELOG.md")
                print(*lines, sep="\n", file=sys.stderr)
                status = 1
            else:
                (kept.FOLDER / f"{name}.json").write_text(kept.written(found))
    return status


if __name__ == "__main__":
    sys.exit(main())
