"""Judging: claims and controls read from produced arrays, in NumPy and in float64 arithmetic.

Nothing here runs or traces anything: a verdict follows from ``results.nc`` alone, right after a run
or years later.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdyn import claims
from lrdyn.claims import Judgement
from lrdyn.engine.groups import control_group, groups_of
from lrdyn.engine.outcomes import MissingArray, lead_of, outcomes
from lrdyn.theorem import Claim, Control, Experiment, Outcome, Scenario

if TYPE_CHECKING:
    import xarray

SHOWN = 4
"""Diverged configurations of a scenario that are printed one by one."""

Groups = Mapping[str, "xarray.Dataset"]
Legs = dict[str, "xarray.Dataset"]
"""Precision -> what :func:`residuals` found; the precision asked for comes first."""


class Verdict(NamedTuple):
    """What :func:`judge_results` returns."""

    claims: list[dict[str, Any]]
    """Entries of ``verdict.json``."""
    legs: dict[str, Legs]
    """Claim or control -> precision -> residual, tolerance and whether judged, over the points."""
    diverged: list[str]
    """One line for each configuration whose step size diverged."""


def judge_results(theorem: Experiment, groups: Groups, dtype: str) -> Verdict:
    """Judge every claim and control of a theorem on the content of ``results.nc``.

    Raises:
        MissingArray: a group, or an array that a claim reads, is not there.
        ValueError: an array has a shape that a claim cannot compare.
    """
    entries, legs, diverged = [], {}, []
    for scenario in theorem.scenarios:
        named = groups_of(theorem, scenario, dtype)
        mine = {p: _group(groups, g, f"scenario {scenario.id!r}") for p, g in named.items()}
        for claim in scenario.claims:
            legs[claim.id] = {p: residuals(claim, scenario, r, p) for p, r in mine.items()}
            entries.append(claim_entry(claim, legs[claim.id]))
        for control in scenario.controls:
            legs[control.id] = _of_control(control, scenario, groups, dtype, named)
            entries.append(control_entry(control, legs[control.id]))
        diverged += _diverged(mine[dtype], scenario)
    return Verdict(entries, legs, diverged)


def claim_of(control: Control, scenario: Scenario) -> Claim:
    """The claim that a control breaks."""
    return next(claim for claim in scenario.claims if claim.id == control.claim)


def _of_control(
    control: Control, scenario: Scenario, groups: Groups, dtype: str, precisions: Iterable[str]
) -> Legs:
    claim, found = claim_of(control, scenario), {}
    for precision in precisions:
        name = control_group(control, precision)
        if name in groups or precision == dtype:  # in the other one they run only if asked for
            results = _group(groups, name, f"control {control.id!r}")
            found[precision] = residuals(claim, scenario, results, precision)
    return found


def _group(groups: Groups, name: str, whose: str) -> "xarray.Dataset":
    if name not in groups:
        raise MissingArray(f"got no group {name!r}, wanted that of {whose}")
    return groups[name]


# One claim in one precision -----------------------------------------------------------------


class Row(NamedTuple):
    """What is found of one outcome."""

    residual: float
    tolerance: float
    condition: float
    reason: str
    """Why the case is left out; empty where it is judged."""


def residuals(
    claim: Claim, scenario: Scenario, results: "xarray.Dataset", precision: str
) -> "xarray.Dataset":
    """Every :class:`Row` of a claim, on the arrays of its scenario or of a control.

    The columns lie over the axes of the points, for a claim over seeds without ``seed``.
    """
    import xarray as xr

    lead = lead_of(results)
    if claim.seeds:
        lead.remove("seed")
    shape = tuple(results.sizes[dim] for dim in lead)
    rows = [row_of(claim, scenario, one) for one in outcomes(claim, scenario, results, precision)]
    columns = {
        name: (lead, np.asarray(column).reshape(shape))
        for name, column in zip(Row._fields, zip(*rows, strict=True), strict=True)
    }
    kept = {name: c for name, c in results.coords.items() if set(c.dims) <= set(lead)}
    return xr.Dataset(columns, kept, results.attrs)


def row_of(claim: Claim, scenario: Scenario, one: Outcome) -> Row:
    """Residual, tolerance and whether it counts, of one outcome."""
    limit, condition = claim.tolerance, 1.0
    if limit is None:
        limit = claims.tolerance(claim.kind, one.dtype, steps=one.steps, size=one.size)
    if _rounded(claim) and scenario.condition in one.predicted:
        condition = float(one.predicted[scenario.condition])
        limit *= condition
    # What is no number, after a divergence for example, needs no warning: it is lost, and fails.
    with np.errstate(all="ignore"):
        reason = _reason(claim, scenario, one, limit)
        return Row(residual_of(claim, one), limit, condition, reason)


def _rounded(claim: Claim) -> bool:
    """Whether the tolerance is a bound of rounding errors, which a run can amplify."""
    return claim.kind in ("identity", "bound")


def residual_of(claim: Claim, one: Outcome) -> float:
    """Residual of a claim for one outcome: a number >= 0, or NaN, which is lost and fails."""
    if claim.residual is None:
        return claims.relative_difference(one.predicted[claim.id], one.measured[claim.id])
    value = float(claim.residual(one))
    return value if value >= 0 else float("nan")


def _reason(claim: Claim, scenario: Scenario, one: Outcome, limit: float) -> str:
    unmet = [name for name, met in one.hypotheses.items() if not np.all(met)]
    if unmet:
        return unmet[0]
    if scenario.diverged in one.measured and np.any(one.measured[scenario.diverged] >= 0):
        return "diverged"
    if _rounded(claim) and scenario.condition and not limit <= claims.RESOLVED:
        return "ill-conditioned"
    if claim.seeds and np.size(one.point["seed"]) < claim.seeds:
        return "too few seeds"
    if claim.applies is not None and not claim.applies(one):
        return "claim does not apply"
    return ""


# Over all precisions -------------------------------------------------------------------------


def claim_entry(claim: Claim, legs: Legs) -> dict[str, Any]:
    """Entry of ``verdict.json``: one claim over the runs in all precisions."""
    judged = {
        p: claims.judge(leg.residual.values, leg.tolerance.values, leg.reason.values == "")
        for p, leg in legs.items()
    }
    holds = _both([j.holds for j in judged.values()])
    scaling = None
    if claim.kind == "identity" and len(judged) == 2 and holds is not None:
        # The worst cases of two legs can be different runs, which amplify rounding differently.
        each = {p: _unamplified(legs[p], j) for p, j in judged.items()}
        scaling = claims.scales_with_epsilon(each["float64"], each["float32"])
        holds = holds and scaling
    met = next(iter(judged.values())).cases > 0
    entry = _entry(claim.id, claim.kind, claim.statement, met, judged, holds, legs)
    return entry | {"scales_with_epsilon": scaling}


def _unamplified(leg: "xarray.Dataset", judgement: Judgement) -> float:
    assert judgement.residual is not None
    return judgement.residual / float(leg.condition.values.flat[judgement.worst])


def control_entry(control: Control, legs: Legs) -> dict[str, Any]:
    """The same of a control: its claim fails clearly, and its check sees a broken hypothesis."""
    judged = {
        p: claims.judge_control(leg.residual.values, leg.tolerance.values)
        for p, leg in legs.items()
    }
    met = all(bool(np.any(np.isin(leg.reason.values, ("", "diverged")))) for leg in legs.values())
    seen = control.case is None or not met
    holds = bool(_both([j.holds for j in judged.values()])) and seen
    text = f"{control.statement}: {control.claim} fails"
    entry = _entry(control.id, "control", text, met, judged, holds, legs)
    settings = json.loads(next(iter(legs.values())).attrs["fixed"])
    return entry | {"worst_case": settings | entry["worst_case"]}


def _both(holds: list[bool | None]) -> bool | None:
    if any(h is False for h in holds):
        return False
    return None if any(h is None for h in holds) else True


def _entry(
    name: str,
    kind: str,
    statement: str,
    met: bool,
    judged: Mapping[str, Judgement],
    holds: bool | None,
    legs: Legs,
) -> dict[str, Any]:
    first, *others = judged
    entry = {
        "id": name,
        "kind": kind,
        "statement": statement,
        "hypotheses_met": met,
        "residual": _finite(judged[first].residual),
        "tolerance": judged[first].tolerance,
        "holds": holds,
        "cases": judged[first].cases,
        "cases_total": judged[first].total,
        "judged": {p: _counts(leg) for p, leg in legs.items()},
        "worst_case": point_of(legs[first], judged[first].worst),
    }
    for other in others:
        entry[f"residual_{other}"] = _finite(judged[other].residual)
        entry[f"tolerance_{other}"] = judged[other].tolerance
    return entry


def _counts(leg: "xarray.Dataset") -> dict[str, Any]:
    reasons = leg.reason.values.ravel().tolist()
    left_out = {name: reasons.count(name) for name in sorted(set(reasons) - {""})}
    return {"drawn": len(reasons), "judged": reasons.count(""), "left_out": left_out}


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def point_of(leg: "xarray.Dataset", index: int | None) -> dict[str, Any]:
    """Axis -> value of the case of an index, in the order of the axes; nothing for None."""
    if index is None:
        return {}
    place = np.unravel_index(index, leg.residual.shape)
    where = dict(zip(map(str, leg.residual.dims), place, strict=True))
    return {name: leg[name].values[i].item() for name, i in where.items()}


def worst_ratio(
    several: Sequence[Claim], legs: Mapping[str, Legs], precision: str
) -> "xarray.DataArray":
    """Largest :func:`ratio_of` over the claims about single cases, at each point of a sweep."""
    ratios = [
        ratio_of(legs[claim.id][precision], precision) for claim in several if not claim.seeds
    ]
    # NaN, a claim that was not judged, gives way to a number.
    return reduce(lambda a, b: a.where(~(b > a.fillna(-1)), b), ratios)


def ratio_of(
    leg: "xarray.Dataset", precision: str, *, everything: bool = False
) -> "xarray.DataArray":
    """Residual / tolerance at each point; tolerance 0 counts as one rounding.

    It is infinite where the residual is lost, and NaN where the case is left out unless
    ``everything`` is asked for.
    """
    limit, reason = leg.tolerance.values, leg.reason.values
    ratio = leg.residual.values / np.where(limit > 0, limit, np.finfo(precision).eps)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    # In NumPy: xarray takes ten times as long for arrays as small as these.
    return leg.residual.copy(data=ratio if everything else np.where(reason == "", ratio, np.nan))


def _diverged(results: "xarray.Dataset", scenario: Scenario) -> list[str]:
    if scenario.diverged not in results:
        return []
    steps = results[scenario.diverged]
    (lost,) = np.nonzero(steps.values.ravel() >= 0)
    lines = []
    for index in lost[:SHOWN]:
        point = point_of(results.assign(residual=steps), int(index))
        where = " ".join(f"{name}={flag_text(value)}" for name, value in point.items())
        lines.append(f"{scenario.id}: diverged at step {steps.values.flat[index]}: {where}")
    if len(lost) > SHOWN:
        lines.append(f"{scenario.id}: {len(lost)} of {steps.size} diverged, see results.nc")
    return lines


def flag_text(value: Any) -> str:
    """Write a value of a flag, a word or a number, for a reader."""
    return value if isinstance(value, str) else f"{value:g}"
