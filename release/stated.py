"""What the files say of a release: its version, its date, and what changed.

``pyproject.toml`` has the version; ``CHANGELOG.md``, ``CITATION.cff`` and the conda recipe repeat
it. Nobody writes a number into four files without a slip, so a release compares them.
"""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
UNDERLINES = {"### ": "=", "#### ": "-"}
"""Heading of Markdown -> what stands below it in a text without ``#``, which git takes out."""


class Refused(Exception):
    """The tree is not one to release; the text is one line."""


class Section(NamedTuple):
    """One release of the changelog."""

    version: str
    date: str
    text: str


class Statement(NamedTuple):
    """What a file says of the version, or of the date."""

    file: str
    what: str
    said: str


def project() -> dict:
    """The table ``project`` of ``pyproject.toml``."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def unreleased(changelog: str) -> str:
    r"""What stands in a changelog under Unreleased.

    Example:
        >>> unreleased("## [Unreleased]\n\n- One.\n\n## [0.1.0] - 2026-01-02\n")
        '- One.'
    """
    found = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if found is None:
        raise Refused("CHANGELOG.md: got no heading '## [Unreleased]', wanted one")
    return found[1].strip()


def newest(changelog: str) -> Section:
    r"""The newest release of a changelog, which stands first below Unreleased.

    Example:
        >>> newest("## [Unreleased]\n\n## [0.1.0] - 2026-01-02\n\n### Added\n\n- One.\n")
        Section(version='0.1.0', date='2026-01-02', text='### Added\n\n- One.')
    """
    heading = r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)\n(.*?)(?=^## |\Z)"
    found = re.search(heading, changelog, re.M | re.S)
    if found is None:
        raise Refused(
            "CHANGELOG.md: got no release, wanted a heading like '## [0.2.0] - 2026-11-29'"
        )
    return Section(found[1], found[2], found[3].strip())


def statements(root: Path = ROOT) -> list[Statement]:
    """Every file that repeats the version or the date, with what it says."""
    section = newest((root / "CHANGELOG.md").read_text())
    citation, recipe = "CITATION.cff", "conda/recipe.yaml"
    said = {
        ("CHANGELOG.md", "version"): section.version,
        (citation, "version"): _scalar(root / citation, "version"),
        (recipe, "version"): _scalar(root / recipe, "version"),
        ("CHANGELOG.md", "date"): section.date,
        (citation, "date"): _scalar(root / citation, "date-released"),
    }
    return [Statement(file, what, text) for (file, what), text in said.items()]


def _scalar(path: Path, key: str) -> str:
    """The first scalar of this name in a file of YAML."""
    found = re.search(rf"""^ *{key}: *["']?([^"'\n]+)["']?$""", path.read_text(), re.M)
    return found[1] if found else "nothing"


def disagreements(version: str, said: list[Statement]) -> list[str]:
    """One line for each file that disagrees with ``pyproject.toml``, or with the changelog's date.

    Example:
        >>> disagreements("0.2.0", [Statement("A", "version", "0.3.0")])
        ['A: version: got 0.3.0, wanted 0.2.0, as pyproject.toml has it']
    """
    (date,) = [s.said for s in said if s.what == "date" and s.file == "CHANGELOG.md"] or [""]
    wanted = {"version": (version, "pyproject.toml"), "date": (date, "CHANGELOG.md")}
    return [
        f"{file}: {what}: got {text}, wanted {wanted[what][0]}, as {wanted[what][1]} has it"
        for file, what, text in said
        if text != wanted[what][0]
    ]


def text_of_tag(section: Section) -> str:
    r"""What ``git tag -a -F`` is given: the section of the changelog, its headings underlined.

    Example:
        >>> print(text_of_tag(Section("0.1.0", "2026-01-02", "### Added\n\n- One.")))
        lrdyn 0.1.0 (2026-01-02)
        <BLANKLINE>
        Added
        =====
        <BLANKLINE>
        - One.
        <BLANKLINE>
    """
    lines = [f"lrdyn {section.version} ({section.date})", ""]
    for line in section.text.splitlines():
        for mark, underline in UNDERLINES.items():
            if line.startswith(mark):
                title = line.removeprefix(mark)
                lines += [title, underline * len(title)]
                break
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"
