"""Write ``results.md`` from theorems and verdicts: ``python -m docs.refresh [RESULTS]``."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lrdyn.registry import theorems
from lrdyn.verification.stating.statement import Claim, Scenario, Theorem

PAGE = Path(__file__).with_name("results.md")
HEADER = (
    "claim",
    "states",
    "predicted against measured",
    "judged",
    "float64",
    "tolerance",
    "float32",
    "tolerance",
    "controls",
)
INTRODUCTION = """\
# Results

Every claim of `python -m experiments all` at the quick preset (JAX {jax} on a {platform}): what
predicts and what measures it, how many of its cases were judged in float64 and in float32 (in
brackets those that theory's number of steps does not decide), the worst residual over them in each,
with its tolerance ([how a verdict is reached](claims.md)), and its controls with the smallest
residual that each left in float64. A control must leave ten tolerances or more, that of a
statistical claim one. The residual of a statistical claim is `-log10 p` of its test. This page is
written by `python -m docs.refresh` from the theorems and from the verdicts of a run.
Each section names the pages that derive its claims.
"""

Verdicts = Mapping[str, Mapping[str, Any]]
"""Name of a theorem -> content of ``verdict.json``."""


def short(value: float | None) -> str:
    """A number with two digits."""
    if value is None:
        return "-"
    if value == 0 or 0.01 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def judged(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """How many cases were judged in each precision, of how many; one number if they are equal."""
    each = list(dict.fromkeys(leg["judged"] for leg in counts.values()))
    drawn = max(leg["drawn"] for leg in counts.values())
    return f"{', '.join(map(str, each))} of {drawn}"


def decided(by: Mapping[str, int]) -> str:
    """Cases that theory's number of steps does not decide, if there are any."""
    words = {"certificate": "by certificate", "trivial": "trivial", "excused": "excused"}
    said = [f"{by[name]} {text}" for name, text in words.items() if by[name]]
    return f" ({', '.join(said)})" if said else ""


def row(cells: tuple[str, ...]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def cells(claim: Claim, scenario: Scenario, entries: Mapping[str, Any]) -> tuple[str, ...]:
    """What the theorem says of a claim, and what the verdict."""
    entry = entries[claim.id]
    names = ("residual", "tolerance", "residual_float32", "tolerance_float32")
    mine = [c.id for c in scenario.controls if c.claim == claim.id]
    return (
        f"`{claim.id}`",
        claim.statement,
        claim.sides or scenario.sides,
        judged(entry["judged"]) + decided(entry["decided_by"]),
        *(short(entry.get(name)) for name in names),
        ", ".join(f"{name} {short(entries[name]['residual'])}" for name in mine),
    )


def title(theorem: Theorem) -> str:
    """Its name as words."""
    return re.sub(r"(\d)", r" \1", theorem.name).capitalize()


def derivations(name: str) -> Iterator[str]:
    """Items of a list: the pages in ``docs/theorems`` whose command is that of a theorem."""
    pages = sorted(
        (PAGE.parent / "theorems").glob("*.md"), key=lambda page: (page.stem != name, page.stem)
    )
    for page in pages:
        heading, _, command, *_ = page.read_text().splitlines()
        if command.startswith(f"`python -m experiments.{name}`"):
            yield f"- [{heading.removeprefix('# ')}](theorems/{page.name})"


def section(theorem: Theorem, verdict: Mapping[str, Any]) -> Iterator[str]:
    """Lines about one theorem."""
    entries = {entry["id"]: entry for entry in verdict["claims"]}
    yield f"## {title(theorem)}"
    yield ""
    yield f"`python -m experiments.{theorem.name}`: {theorem.summary}."
    yield ""
    yield "Derived on these pages:"
    yield ""
    yield from derivations(theorem.name)
    yield ""
    yield row(HEADER)
    yield "|" + "---|" * len(HEADER)
    for scenario in theorem.scenarios:
        for claim in scenario.claims:
            yield row(cells(claim, scenario, entries))


def written(verdicts: Verdicts) -> str:
    """The whole page."""
    environment = next(iter(verdicts.values()))["environment"]
    text = INTRODUCTION.format(jax=environment["jax"], platform=environment["platform"].upper())
    for theorem in theorems():
        text += "\n" + "\n".join(section(theorem, verdicts[theorem.name])) + "\n"
    return text


def newest(results: Path) -> Verdicts:
    """The newest verdict of each theorem in a folder of results."""
    by_theorem = {}
    for theorem in theorems():
        paths = sorted(results.glob(f"{theorem.name}/*/verdict.json"), key=_age)
        by_theorem[theorem.name] = json.loads(paths[-1].read_text())
    return by_theorem


def _age(path: Path) -> float:
    return path.stat().st_mtime


if __name__ == "__main__":
    PAGE.write_text(written(newest(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))))
