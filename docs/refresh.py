"""Refresh the numbers in ``results.md`` from verdicts: ``python docs/refresh.py [RESULTS]``.

A row of a table begins with the id of a claim; the words in its first three columns stay, the
numbers after them are replaced. A claim without a row gets one at the end, to be moved and worded.
"""

import json
import sys
from pathlib import Path

from experiments.__main__ import THEOREMS

PAGE = Path(__file__).with_name("results.md")
WORDS = 3
"""Columns that are written by hand: id, claim, how it is predicted and how measured."""


def short(value: float | None) -> str:
    """A number with two digits."""
    if value is None:
        return "-"
    if value == 0 or 0.01 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def numbers(claim: dict, controls: list[dict]) -> list[str]:
    """Cells after the words: cases, residuals, tolerances, what the controls leave."""
    names = ("residual", "tolerance", "residual_float32", "tolerance_float32")
    broken = ", ".join(f"{c['id']} {short(c['residual'])}" for c in controls)
    cases = f"{claim['cases']} of {claim['cases_total']}"
    return [cases, *(short(claim.get(name)) for name in names), broken]


def found(results: Path) -> dict[str, list[str]]:
    """Claim -> cells, from the newest verdict of each theorem."""
    cells = {}
    for theorem in THEOREMS:
        verdicts = sorted(results.glob(f"{theorem.name}/*/verdict.json"), key=_age)
        entries = {c["id"]: c for c in json.loads(verdicts[-1].read_text())["claims"]}
        for statement in theorem.statements:
            for claim in statement.claims:
                mine = [entries[c.id] for c in statement.controls if c.claim == claim.id]
                cells[claim.id] = numbers(entries[claim.id], mine)
    return cells


def _age(path: Path) -> float:
    return path.stat().st_mtime


def refreshed(page: str, cells: dict[str, list[str]]) -> str:
    """The page with new numbers."""
    lines = []
    missing = dict(cells)
    for line in page.splitlines():
        name = line.split("`")[1] if line.startswith("| `") else ""
        if name in cells:
            # A pipe inside a cell is written \\|.
            words = line.replace("\\|", "\0").split("|")[1 : WORDS + 1]
            line = "|".join(["", *words, *(f" {cell} " for cell in missing.pop(name)), ""])
        lines.append(line.replace("\0", "\\|"))
    lines += [f"| `{name}` | ? | ? | {' | '.join(row)} |" for name, row in missing.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    PAGE.write_text(refreshed(PAGE.read_text(), found(results)))
