"""Refresh ``results.md`` from the code and from verdicts: ``python -m docs.refresh [RESULTS]``.

A row of a table begins with the id of a claim. What it says is the claim's statement, the numbers
are those of the verdict; how it is predicted and measured is written by hand and stays. A claim
without a row gets one at the end, to be moved and worded.
"""

import json
import sys
from pathlib import Path

from lrdyn.theorems import theorems

PAGE = Path(__file__).with_name("results.md")
BY_HAND = 2
"""Column that says how a claim is predicted and how measured, counted from 0."""


def short(value: float | None) -> str:
    """A number with two digits."""
    if value is None:
        return "-"
    if value == 0 or 0.01 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def cells_of(line: str) -> list[str]:
    """Cells of a row, without the pipes inside them, which are written with a backslash."""
    return [c.strip() for c in line.replace("\\|", "\0").strip().strip("|").split("|")]


def row(cells: list[str]) -> str:
    """The row of these cells."""
    return f"| {' | '.join(cells)} |".replace("\0", "\\|")


def numbers(claim: dict, controls: list[dict]) -> list[str]:
    """Cells after the words: cases, residuals, tolerances, what the controls leave."""
    names = ("residual", "tolerance", "residual_float32", "tolerance_float32")
    broken = ", ".join(f"{c['id']} {short(c['residual'])}" for c in controls)
    cases = f"{claim['cases']} of {claim['cases_total']}"
    return [cases, *(short(claim.get(name)) for name in names), broken]


def found(results: Path) -> dict[str, list[str]]:
    """Claim -> what it states, and the numbers of the newest verdict of each theorem."""
    cells = {}
    for theorem in theorems():
        verdicts = sorted(results.glob(f"{theorem.name}/*/verdict.json"), key=_age)
        entries = {c["id"]: c for c in json.loads(verdicts[-1].read_text())["claims"]}
        for statement in theorem.statements:
            for claim in statement.claims:
                mine = [entries[c.id] for c in statement.controls if c.claim == claim.id]
                stated = claim.statement.replace("|", "\0")
                cells[claim.id] = [stated, *numbers(entries[claim.id], mine)]
    return cells


def _age(path: Path) -> float:
    return path.stat().st_mtime


def refreshed(page: str, cells: dict[str, list[str]]) -> str:
    """The page with new statements and numbers."""
    lines, missing = [], dict(cells)
    for line in page.splitlines():
        name = line.split("`")[1] if line.startswith("| `") else ""
        if name in cells:
            stated, *rest = missing.pop(name)
            line = row([f"`{name}`", stated, cells_of(line)[BY_HAND], *rest])
        lines.append(line)
    lines += [row([f"`{name}`", stated, "?", *rest]) for name, (stated, *rest) in missing.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    PAGE.write_text(refreshed(PAGE.read_text(), found(results)))
