"""``python -m referee FOLDER ...``: both sides of every claim again, by NumPy, from results.nc.

A folder holds one run (``results.nc`` and ``verdict.json``), or runs below it. The status is 0 if
every claim agrees with its verdict, or is of a study, whose file here says why nothing of it is
computed again, and if verdict.json says what its own numbers and ``results.nc`` do. It is 1 if a
claim does not agree, or is called true and could not be computed again; 2 for what is no run.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from referee.machine import another_blas
from referee.redone import Claim, Redone, largest
from referee.results import Point, SavedScenario, scenarios
from referee.words import contradictions

ROOM = 4.0
"""Largest distance of two computations of one side, in units of the rounding of one: both are
rounded, and its amplification is measured by a few disturbances alone."""
UNITS = 100.0
"""By how much the units of a residual may differ between lrdyn and the referee."""
ANOTHER = "A SAVED SIDE IS ANOTHER"
DIVERGED = ("diverges", "galore_diverges_at", "full_diverged_at")
"""Saved steps at which theory's own run diverges, after which lrdyn judges nothing; or -1."""
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
)
"""What reading or computing raises where files are not what a run saves, as by a NaN in an SVD."""


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


class Referee(NamedTuple):
    """What computes the claims of a theorem again."""

    claims: Mapping[str, Mapping[str, Claim]]
    """Scenario -> claim -> both of its sides."""
    diverges: Mapping[str, Callable[[Point], bool]]
    """Scenario -> whether the run of a point diverges, where it can."""
    reason: str = ""
    """Why nothing is computed again, of what trains."""

    def where(self, claim: str, scenarios: Iterable[str]) -> str | None:
        """The scenario of a claim, whose id belongs to one scenario of a theorem."""
        return next((name for name in scenarios if claim in self.claims.get(name, {})), None)


@cache
def referee_of(command: str) -> Referee:
    """The referee of a theorem or a study: ``referee/NAME.py``, if there is one.

    Example:
        >>> "loss" in referee_of("theorem2").claims["factorization"]
        True
        >>> referee_of("my_theorem").claims
        {}
    """
    name = f"referee.{command}"
    if not command.isidentifier() or find_spec(name) is None:
        return Referee({}, {})
    module = import_module(name)
    claims, diverges = (getattr(module, part, {}) for part in ("CLAIMS", "DIVERGES"))
    return Referee(claims, diverges, getattr(module, "NOT_REDONE", ""))


def never(point: Point) -> bool:
    """Whether a run that cannot diverge does."""
    return False


class ClaimAtPoint(NamedTuple):
    """A claim at a point whose hypotheses are met."""

    parts: list[Redone]
    steps: int
    excuse: str = ""
    """Why nothing is claimed at this point, by the file; empty if something is."""

    @property
    def worst(self) -> Redone:
        """The part that is furthest from being true, over what rounding explains."""
        # ``argmax`` stops at a NaN, which is further than any number.
        return self.parts[int(np.argmax([self._excess(part) for part in self.parts]))]

    @property
    def excess(self) -> float:
        """The largest residual, over what rounding explains."""
        return largest(map(self._excess, self.parts))

    def _excess(self, part: Redone) -> float:
        # A count has no rounding: there the residual itself is compared.
        return part.residual / (part.limit(self.steps) or 1)

    @property
    def holds(self) -> bool:
        """Whether rounding explains all of it."""
        return all(part.residual <= part.limit(self.steps) for part in self.parts)

    @property
    def apart(self) -> float:
        """How far saved sides are from these, over their rounding."""
        return largest(part.apart() / (part.rounding(self.steps) or 1e-300) for part in self.parts)

    @property
    def saved_residual(self) -> float:
        """The largest residual of the saved sides."""
        return largest(part.saved_residual for part in self.parts)


def redone(
    claim: Claim, scenario: SavedScenario, diverges: Callable[[Point], bool] = never
) -> list[ClaimAtPoint]:
    """Compute a claim at every point whose hypotheses are met, and whose run does not diverge."""
    computed = []
    for point in scenario.points:
        # Computed here: a file that says so of a run that does not would excuse any number.
        if diverges(point):
            continue
        both = claim(point)
        steps = max(point.times) if "steps" in point.case else 0
        parts = [both] if isinstance(both, Redone) else list(both or ())
        if parts:
            computed.append(ClaimAtPoint(parts, steps, excuse(point)))
    return computed


def excuse(point: Point) -> str:
    """Why nothing is claimed at a point, by the file: a hypothesis, or a run that diverges."""
    unmet = (n for n, met in point.found.items() if n.startswith("met_") and not np.all(met))
    if (name := next(unmet, None)) is not None:
        return name.removeprefix("met_")
    return next((n for n in DIVERGED if n in point.found and np.any(point.found[n] >= 0)), "")


def owed(entry: Mapping[str, Any], points: int) -> int:
    """The least number of points that the verdict has judged at the seed of the cases."""
    judged = next(iter(entry["judged"].values()))
    # All that were left out may be of that seed.
    return max(0, points - (judged["drawn"] - judged["judged"]))


def line(
    entry: Mapping[str, Any],
    claim: Claim,
    scenario: SavedScenario,
    diverges: Callable[[Point], bool] = never,
) -> Line:
    """Compare a claim of a verdict with both of its sides computed here."""
    name, theirs, holds = entry["id"], entry["residual"], entry["holds"]
    # A claim that is called true must be computed, whatever the file says of why it cannot be.
    nothing = Line(name, theirs, None, 0, 0, "", False if holds else None)
    if scenario.left_out:
        return nothing._replace(said=f"NOT SAVED: {', '.join(scenario.left_out)}")
    # A side that overflows has a residual that is no number, and no claim holds with it.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            computed = redone(claim, scenario, diverges)
        except DAMAGE as error:
            return nothing._replace(
                said=f"CANNOT BE COMPUTED: {type(error).__name__}", agrees=False
            )
        if not computed:
            said = "NO POINT MEETS THE HYPOTHESES" if holds else "no point meets the hypotheses"
            return nothing._replace(said=said)
        worst = computed[int(np.argmax([at.excess for at in computed]))]
        found = nothing._replace(
            mine=worst.worst.residual,
            apart=largest(at.apart for at in computed),
            points=len(computed),
        )
        said = difference(entry, computed, found.apart, len(scenario.points))
    if not said and holds is None:
        return found._replace(said="the verdict is open", agrees=None)
    return found._replace(said=said or "agrees", agrees=not said)


def difference(
    entry: Mapping[str, Any], computed: Sequence[ClaimAtPoint], apart: float, points: int
) -> str:
    """In what a claim of a verdict differs from what was computed here; empty if in nothing.

    Args:
        entry: of the verdict.
        computed: the claim at the points whose hypotheses are met.
        apart: the largest distance of a saved side from the one computed here.
        points: how many there are.
    """
    # Counts of parameters need no hypothesis.
    excuses = [
        at.excuse
        for at in computed
        if at.excuse and not all(part.kind == "count" for part in at.parts)
    ]
    if excuses:
        return f"EXCUSED WITHOUT A REASON: {', '.join(dict.fromkeys(excuses))}"
    if entry["holds"] is None:
        return ""
    holds = all(at.holds for at in computed)
    if holds != entry["holds"]:
        return "HOLDS HERE" if holds else "DOES NOT HOLD HERE"
    if not apart <= ROOM:  # a number that was lost is another, too
        return ANOTHER
    if len(computed) < (all_of := owed(entry, points)):
        return f"NOT COMPUTED AGAIN AT {all_of - len(computed)} OF {all_of} POINTS"
    saved = largest(at.saved_residual for at in computed)
    # Both are of the same numbers, but for the unit, in which lrdyn and the referee can differ.
    if not saved <= UNITS * (entry["residual"] or 0.0) and entry["holds"]:
        return "THE SAVED SIDES ARE FURTHER APART THAN THE VERDICT SAYS"
    return ""


def not_redone(entry: Mapping[str, Any], reason: str) -> Line:
    """Line of a claim that no function here computes again, for this reason or for none."""
    remark, agrees = (reason, None) if reason else ("NO REFEREE OF THIS CLAIM", False)
    return Line(entry["id"], entry["residual"], None, 0, 0, remark, agrees)


def read_verdict(folder: Path) -> dict[str, Any]:
    """The verdict of a run."""
    return json.loads((folder / "verdict.json").read_text())


def lines(folder: Path) -> list[Line]:
    """Every claim of one run that is no control, those that its verdict does not mention, too."""
    verdict, saved = read_verdict(folder), scenarios(folder / "results.nc")
    mine = referee_of(verdict["name"])
    compared = []
    for entry in verdict["claims"]:
        if entry["kind"] in ("control", "finding"):
            continue
        name = mine.where(entry["id"], saved)
        if name is None:
            compared.append(not_redone(entry, mine.reason))
        else:
            claim, diverges = mine.claims[name][entry["id"]], mine.diverges.get(name, never)
            compared.append(line(entry, claim, saved[name], diverges))
    if another_blas(verdict.get("environment", {})):
        # It turns and flips singular vectors.
        compared = [
            line._replace(said=f"{ANOTHER} UNDER ANOTHER BLAS") if line.said == ANOTHER else line
            for line in compared
        ]
    known = {entry["id"] for entry in verdict["claims"]}
    return compared + [
        Line(claim, None, None, 0, 0, "NOT IN THE VERDICT", False)
        for name in saved
        for claim in mine.claims.get(name, ())
        if claim not in known
    ]


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
    return str(line.claim), theirs, mine, apart, str(line.points or ""), line.said


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
        try:
            verdict = read_verdict(run)
            compared, wrong = lines(run), contradictions(verdict, run)
        except DAMAGE as error:
            print(f"{run}: damaged ({type(error).__name__}: {error})")
            status = 1
            continue
        head = ("claim", "residual", "here", "apart", "points", "")
        rows = [head, *map(printed, compared)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(run)
        for row in rows:
            print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
        for text in wrong:
            print(f"  verdict.json: {text}")
        if why := another_blas(verdict.get("environment", {})):
            print(f"  {why}")
        agree = sum(entry.agrees is True for entry in compared)
        other = [entry.claim for entry in compared if entry.agrees is False]
        other += ["verdict.json"] if wrong else []
        print(f"{agree} of {len(compared)} claims computed again and agreed", end="")
        print(f"; DIFFERENT: {', '.join(map(str, other))}" if other else "")
        status = max(status, 1 if other else 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
