"""``python -m referee FOLDER ...``: both sides of every claim again, by NumPy, from results.nc.

A folder holds one run (``results.nc`` and ``verdict.json``), or runs below it. The status is 0 if
every claim that could be computed again agrees with its verdict, 1 if one does not, and 2 for what
is no run.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from referee import (
    critical_points,
    dropout,
    galore,
    gradient_rank,
    lora,
    memory,
    minimisers,
    optimizers,
    theorem2,
    trajectories,
)
from referee.redone import Claim, Redone
from referee.results import Scenario, scenarios

CLAIMS: dict[str, dict[str, Claim]] = {
    **minimisers.CLAIMS,
    **critical_points.CLAIMS,
    **theorem2.CLAIMS,
    **dropout.CLAIMS,
    **trajectories.CLAIMS,
    **memory.CLAIMS,
    **optimizers.CLAIMS,
    **gradient_rank.CLAIMS,
    **galore.CLAIMS,
    **lora.CLAIMS,
}
"""Scenario -> claim -> both of its sides."""

ROOM = 4.0
"""How many times the rounding of one side two computations of it may be apart."""


class Line(NamedTuple):
    """What is said of one claim."""

    claim: str
    theirs: float | None
    """The residual of the verdict."""
    mine: float | None
    """The largest residual here."""
    apart: float
    """The largest distance of a saved side from the one computed here, over its rounding."""
    points: int
    said: str
    agrees: bool | None
    """None: not computed again."""


def redone(claim: Claim, scenario: Scenario) -> list[tuple[Redone, int]]:
    """A claim at every point whose hypotheses are met, with the number of steps."""
    found = []
    for point in scenario.points:
        if int(point.found.get("diverges", -1)) >= 0:
            continue
        both = claim(point)
        steps = max(point.times) if "steps" in point.case else 0
        several: Iterable[Redone] = [both] if isinstance(both, Redone) else both or ()
        found += [(one, steps) for one in several]
    return found


def line(entry: Mapping[str, Any], claim: Claim | None, scenario: Scenario | None) -> Line:
    """Compare a claim of a verdict with both of its sides computed here."""
    name, theirs = entry["id"], entry["residual"]
    if claim is None or scenario is None:
        return Line(name, theirs, None, 0, 0, "no referee of this claim", None)
    if scenario.left_out:
        return Line(name, theirs, None, 0, 0, f"not saved: {', '.join(scenario.left_out)}", None)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = redone(claim, scenario)
    if not found:
        return Line(name, theirs, None, 0, 0, "no point meets the hypotheses", None)
    worst = max(found, key=lambda pair: pair[0].residual / (pair[0].limit(pair[1]) or 1))
    mine = worst[0].residual
    holds = all(one.residual <= one.limit(steps) for one, steps in found)
    apart = max(one.apart() / (one.limit(steps) or 1e-300) for one, steps in found)
    if entry["holds"] is None:
        return Line(name, theirs, mine, apart, len(found), "the verdict is open", None)
    if holds != entry["holds"]:
        said = "HOLDS HERE" if holds else "DOES NOT HOLD HERE"
        return Line(name, theirs, mine, apart, len(found), said, False)
    if apart > ROOM:
        return Line(name, theirs, mine, apart, len(found), "A SAVED SIDE IS ANOTHER", False)
    return Line(name, theirs, mine, apart, len(found), "agrees", True)


def lines(folder: Path) -> list[Line]:
    """Every claim of one run that is no control."""
    verdict = json.loads((folder / "verdict.json").read_text())
    saved = scenarios(folder / "results.nc")
    where = {claim: name for name in saved for claim in CLAIMS.get(name, ())}
    found = []
    for entry in verdict["claims"]:
        if entry["kind"] in ("control", "finding"):
            continue
        name = where.get(entry["id"])
        if name is None:
            found.append(line(entry, None, None))
        else:
            found.append(line(entry, CLAIMS[name][entry["id"]], saved[name]))
    return found


def folders(given: Sequence[str]) -> list[Path]:
    """The runs in or below these folders."""
    found = []
    for word in given:
        below = sorted(path.parent for path in Path(word).glob("**/verdict.json"))
        below = [path for path in below if (path / "results.nc").exists()]
        if not below:
            raise ValueError(
                f"{word}: got no run, wanted a folder with verdict.json and results.nc"
            )
        found += below
    return found


def printed(line: Line) -> tuple[str, ...]:
    """The cells of a line."""
    theirs = "" if line.theirs is None else f"{line.theirs:.1e}"
    mine = "" if line.mine is None else f"{line.mine:.1e}"
    apart = "" if line.agrees is None else f"{line.apart:.2g}"
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
        found = lines(run)
        head = ("claim", "residual", "here", "apart", "points", "")
        rows = [head, *map(printed, found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(run)
        for row in rows:
            print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
        agree = sum(one.agrees is True for one in found)
        other = [one.claim for one in found if one.agrees is False]
        print(f"{agree} of {len(found)} claims computed again and agreed", end="")
        print(f"; DIFFERENT: {', '.join(other)}" if other else "")
        status = max(status, 1 if other else 0)
    return status


if __name__ == "__main__":
    sys.exit(main())
