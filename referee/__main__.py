"""``python -m referee FOLDER ...``: both sides of every claim again, by NumPy, from results.nc.

A folder holds one run (``results.nc`` and ``verdict.json``), or runs below it. The status is 0 if
every claim agrees with its verdict, or has a reason why it is not computed again; 1 if one does
not agree, or lacks both; and 2 for what is no run.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from referee import (
    completion,
    compression,
    critical_points,
    dropblock,
    dropout,
    dropout_training,
    galore,
    gradient_rank,
    lora,
    masked_autoencoder,
    masks,
    memory,
    minimisers,
    optimizers,
    several_layers,
    theorem2,
    trajectories,
)
from referee.redone import Claim, Redone
from referee.results import SavedScenario, scenarios

MODULES = (
    minimisers,
    critical_points,
    theorem2,
    compression,
    completion,
    masks,
    dropout,
    several_layers,
    dropout_training,
    dropblock,
    masked_autoencoder,
    trajectories,
    memory,
    optimizers,
    gradient_rank,
    galore,
    lora,
)
"""In the order of the pages in docs/theory.md; a scenario can be divided among several."""

CLAIMS: dict[str, dict[str, Claim]] = {}
"""Scenario -> claim -> both of its sides."""
for module in MODULES:
    for scenario, claims in module.CLAIMS.items():
        CLAIMS.setdefault(scenario, {}).update(claims)

STUDY = "a study, no theorem: what it trains is not trained again"
NOT_REDONE = {
    "adapters": STUDY,  # a transformer, among others
    "dropout_spectra": STUDY,
    "real_updates": STUDY,
    "weight_updates": STUDY,
}
"""Command or claim -> why it is not computed again. There is no other without a referee."""

ROOM = 4.0
"""Largest distance of two computations of one side, in units of the rounding of one: both are
rounded, and its amplification is measured by a few disturbances alone."""


class Line(NamedTuple):
    """Line of the table: a claim, its verdict, and what was computed here."""

    claim: str
    theirs: float | None
    """The residual in the verdict."""
    mine: float | None
    """The largest residual here."""
    apart: float
    """The largest distance of a saved side from the one computed here, over its rounding."""
    points: int
    said: str
    """The last cell: in capital letters where something is wrong."""
    agrees: bool | None
    """None: not computed again."""


class ClaimAtPoint(NamedTuple):
    """A claim at a point whose hypotheses are met."""

    parts: list[Redone]
    steps: int

    @property
    def worst(self) -> Redone:
        """The part that is furthest from being true, over what rounding explains."""
        # A count has no rounding: there the residual itself is compared.
        return max(self.parts, key=lambda part: part.residual / (part.limit(self.steps) or 1))

    @property
    def holds(self) -> bool:
        """Whether rounding explains all of it."""
        return all(part.residual <= part.limit(self.steps) for part in self.parts)

    @property
    def apart(self) -> float:
        """How far saved sides are from these, over their rounding."""
        return max(part.apart() / (part.rounding(self.steps) or 1e-300) for part in self.parts)


def redone(claim: Claim, scenario: SavedScenario) -> list[ClaimAtPoint]:
    """Compute a claim at every point whose hypotheses are met."""
    computed = []
    for point in scenario.points:
        # Where theory's own run diverges lrdyn judges nothing either.
        if int(point.found.get("diverges", -1)) >= 0:
            continue
        both = claim(point)
        steps = max(point.times) if "steps" in point.case else 0
        parts = [both] if isinstance(both, Redone) else list(both or ())
        if parts:
            computed.append(ClaimAtPoint(parts, steps))
    return computed


def line(entry: Mapping[str, Any], claim: Claim, scenario: SavedScenario) -> Line:
    """Compare a claim of a verdict with both of its sides computed here."""
    name, theirs = entry["id"], entry["residual"]
    if scenario.left_out:
        return Line(name, theirs, None, 0, 0, f"not saved: {', '.join(scenario.left_out)}", None)
    # A side that overflows has a residual that is no number, and no claim holds with it.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        computed = redone(claim, scenario)
        if not computed:
            return Line(name, theirs, None, 0, 0, "no point meets the hypotheses", None)
        worst = max(computed, key=lambda at: at.worst.residual / (at.worst.limit(at.steps) or 1))
        mine, apart = worst.worst.residual, max(at.apart for at in computed)
        holds = all(at.holds for at in computed)
    if entry["holds"] is None:
        remark, agrees = "the verdict is open", None
    elif holds != entry["holds"]:
        remark, agrees = "HOLDS HERE" if holds else "DOES NOT HOLD HERE", False
    elif not apart <= ROOM:  # a number that was lost is another, too
        remark, agrees = "A SAVED SIDE IS ANOTHER", False
    else:
        remark, agrees = "agrees", True
    return Line(name, theirs, mine, apart, len(computed), remark, agrees)


def not_redone(command: str, entry: Mapping[str, Any]) -> Line:
    """Line of a claim that no function here computes again."""
    reason = NOT_REDONE.get(entry["id"]) or NOT_REDONE.get(command)
    remark, agrees = (reason, None) if reason else ("NO REFEREE OF THIS CLAIM", False)
    return Line(entry["id"], entry["residual"], None, 0, 0, remark, agrees)


def lines(folder: Path) -> list[Line]:
    """Every claim of one run that is no control."""
    verdict = json.loads((folder / "verdict.json").read_text())
    saved = scenarios(folder / "results.nc")
    where = {claim: name for name in saved for claim in CLAIMS.get(name, ())}
    compared = []
    for entry in verdict["claims"]:
        if entry["kind"] in ("control", "finding"):
            continue
        # A claim id belongs to one scenario of a theorem.
        name = where.get(entry["id"])
        if name is None:
            compared.append(not_redone(verdict["name"], entry))
        else:
            compared.append(line(entry, CLAIMS[name][entry["id"]], saved[name]))
    return compared


def folders(given: Sequence[str]) -> list[Path]:
    """Find the runs in or below these folders."""
    runs = []
    for word in given:
        below = sorted(path.parent for path in Path(word).glob("**/verdict.json"))
        # A run that was stopped has no results yet.
        below = [path for path in below if (path / "results.nc").exists()]
        if not below:
            raise ValueError(
                f"{word}: got no run, wanted a folder with verdict.json and results.nc"
            )
        runs += below
    return runs


def printed(line: Line) -> tuple[str, ...]:
    """Cells of a line of the table."""
    theirs = "" if line.theirs is None else f"{line.theirs:.1e}"
    mine = "" if line.mine is None else f"{line.mine:.1e}"
    apart = f"{line.apart:.2g}" if line.points else ""
    return line.claim, theirs, mine, apart, str(line.points or ""), line.said


def main(words: Sequence[str] | None = None) -> int:
    """Print one table a run."""
    parser = argparse.ArgumentParser(prog="python -m referee", description=__doc__)
    parser.add_argument("folder", nargs="+", help="of a run, or of several")
    try:
        runs = folders(parser.parse_args(words).folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    status = 0
    for run in runs:
        compared = lines(run)
        head = ("claim", "residual", "here", "apart", "points", "")
        rows = [head, *map(printed, compared)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(run)
        for row in rows:
            print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
        agree = sum(entry.agrees is True for entry in compared)
        other = [entry.claim for entry in compared if entry.agrees is False]
        print(f"{agree} of {len(compared)} claims computed again and agreed", end="")
        print(f"; DIFFERENT: {', '.join(other)}" if other else "")
        status = max(status, 1 if other else 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
