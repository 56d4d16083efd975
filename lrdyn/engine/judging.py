"""Judging: claims and controls read from produced arrays, in NumPy and in float64 arithmetic.

Nothing here runs or traces anything: a verdict follows from ``results.nc`` alone, right after a run
or years later.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdyn.claims import (
    RESOLVED,
    Judgement,
    judge,
    judge_control,
    relative_difference,
    scales_with_epsilon,
    tolerance,
)
from lrdyn.engine.files import slabs
from lrdyn.theorem import Claim, Control, Experiment, Outcome, Statement, groups_of

if TYPE_CHECKING:
    import xarray

SHOWN = 4
"""Diverged configurations of a statement that are printed one by one."""

SIZE = "longest_axis"
"""Array of every group: the longest axis of each case, which tolerances need."""

Groups = Mapping[str, "xarray.Dataset"]
Legs = dict[str, "xarray.Dataset"]
"""Precision -> what :func:`residuals` found."""


class MissingArray(ValueError):
    """Results lack an array or a group that a claim reads."""


class Verdict(NamedTuple):
    """What :func:`judge_results` returns."""

    claims: list[dict[str, Any]]
    """Entries of ``verdict.json``."""
    legs: dict[str, Legs]
    """Claim or control -> precision -> residual, tolerance and whether judged, over the points."""
    diverged: list[str]
    """One line for each configuration whose step size diverged."""


def judge_results(theorem: Experiment, groups: Groups, dtype: str) -> Verdict:
    """Judge every claim and control of a theorem on produced arrays.

    Args:
        theorem: the theorem.
        groups: content of ``results.nc``.
        dtype: the precision that was asked for.

    Returns:
        The :class:`Verdict`.

    Raises:
        MissingArray: a group, or an array that a claim reads, is not there.
        ValueError: an array has a shape that a claim cannot compare.
    """
    claims, legs, diverged = [], {}, []
    for statement in theorem.statements:
        named = groups_of(theorem, statement, dtype)
        mine = {p: _group(groups, g, f"statement {statement.id!r}") for p, g in named.items()}
        for claim in statement.claims:
            legs[claim.id] = {p: residuals(claim, statement, r, p) for p, r in mine.items()}
            claims.append(claim_entry(claim, legs[claim.id]))
        for control in statement.controls:
            legs[control.id] = _of_control(control, statement, groups, dtype, theorem)
            claims.append(control_entry(control, legs[control.id]))
        diverged += _diverged(mine[dtype], statement)
    return Verdict(claims, legs, diverged)


def control_group(control: Control, precision: str, *, perturb: bool = False) -> str:
    """Where ``results.nc`` keeps the arrays of a control.

    Args:
        control: the control.
        precision: of its run.
        perturb: whether of all its amounts.

    Returns:
        The group.
    """
    return f"/{'perturb' if perturb else 'controls'}/{control.id}/{precision}"


def claim_of(control: Control, statement: Statement) -> Claim:
    """The claim that a control breaks."""
    return next(claim for claim in statement.claims if claim.id == control.claim)


def _of_control(control, statement, groups, dtype, theorem) -> Legs:
    claim, found = claim_of(control, statement), {}
    for precision in groups_of(theorem, statement, dtype):
        name = control_group(control, precision)
        if name in groups or precision == dtype:  # in the other one they run only if asked for
            results = _group(groups, name, f"control {control.id!r}")
            found[precision] = residuals(claim, statement, results, precision)
    return found


def _group(groups: Groups, name: str, whose: str) -> "xarray.Dataset":
    if name not in groups:
        raise MissingArray(f"got no group {name!r}, wanted that of {whose}")
    return groups[name]


# One claim in one precision -----------------------------------------------------------------


def residuals(
    claim: Claim, statement: Statement, results: "xarray.Dataset", precision: str
) -> "xarray.Dataset":
    """Residual and tolerance of a claim at every point.

    Args:
        claim: the claim.
        statement: its statement.
        results: arrays of the statement, or of a control.
        precision: of the run.

    Returns:
        ``residual``, ``tolerance`` and ``condition`` over the axes of the points, and ``reason``:
        why a case is left out, empty where it is judged. A claim over seeds has no axis ``seed``.

    Raises:
        MissingArray: an array that the claim reads is not there.
        ValueError: an array has a shape that the claim cannot compare.
    """
    import xarray as xr

    lead = [str(dim) for dim in array_of(results, SIZE).dims]
    if claim.seeds:
        lead.remove("seed")
    shape = tuple(results.sizes[dim] for dim in lead)
    rows = [row_of(claim, statement, one) for one in outcomes(claim, statement, results, precision)]
    columns = {
        name: (lead, np.asarray(column).reshape(shape))
        for name, column in zip(Row._fields, zip(*rows, strict=True), strict=True)
    }
    kept = {name: c for name, c in results.coords.items() if set(c.dims) <= set(lead)}
    return xr.Dataset(columns, kept, results.attrs)


class Row(NamedTuple):
    """What is found of one outcome."""

    residual: float
    tolerance: float
    condition: float
    reason: str


def row_of(claim: Claim, statement: Statement, one: Outcome) -> Row:
    """Residual, tolerance and whether it counts, of one outcome.

    Args:
        claim: the claim.
        statement: its statement.
        one: what was produced.

    Returns:
        The :class:`Row`.

    Raises:
        ValueError: the arrays cannot be compared.
    """
    limit, condition = claim.tolerance, 1.0
    if limit is None:
        limit = tolerance(claim.kind, one.dtype, steps=one.steps, size=one.size)
    if _rounded(claim) and statement.condition in one.predicted:
        condition = float(one.predicted[statement.condition])
        limit *= condition
    # What is no number, after a divergence for example, needs no warning: it is lost, and fails.
    with np.errstate(all="ignore"):
        reason = _reason(claim, statement, one, limit)
        return Row(residual_of(claim, one), limit, condition, reason)


def _rounded(claim: Claim) -> bool:
    """Whether the tolerance is a bound of rounding errors, which a run can amplify."""
    return claim.kind in ("identity", "bound")


def residual_of(claim: Claim, one: Outcome) -> float:
    """Residual of a claim for one outcome: a number >= 0, or NaN, which is lost and fails.

    Args:
        claim: the claim.
        one: what was produced.

    Returns:
        The residual.

    Raises:
        ValueError: the arrays cannot be compared.
    """
    if claim.residual is None:
        return relative_difference(one.predicted[claim.id], one.measured[claim.id])
    value = float(claim.residual(one))
    return value if value >= 0 else float("nan")


def _reason(claim: Claim, statement: Statement, one: Outcome, limit: float) -> str:
    """Why a case is left out."""
    unmet = [name for name, met in one.hypotheses.items() if not np.all(met)]
    if unmet:
        return unmet[0]
    if statement.diverged in one.measured and np.any(one.measured[statement.diverged] >= 0):
        return "diverged"
    if _rounded(claim) and statement.condition and not limit <= RESOLVED:
        return "ill-conditioned"
    if claim.seeds and np.size(one.point["seed"]) < claim.seeds:
        return "too few seeds"
    if claim.applies is not None and not claim.applies(one):
        return "claim does not apply"
    return ""


# Outcomes from arrays ------------------------------------------------------------------------


def saved_names(
    claim: Claim, statement: Statement, available: Iterable[str]
) -> dict[str, list[str]]:
    """Arrays that a claim reads, as they are saved.

    Args:
        claim: the claim.
        statement: its statement.
        available: names of saved arrays.

    Returns:
        Name in the claim -> ``<name>_predicted`` and ``<name>_measured``, or the name itself.

    Raises:
        MissingArray: one of them is not there.
    """
    available = set(map(str, available))
    found = {}
    for name in (*claim.arrays, statement.condition, statement.diverged):
        both = [f"{name}_predicted", f"{name}_measured"]
        saved = [n for n in both if n in available] or [n for n in (name,) if n in available]
        if name in claim.arrays and not saved:
            raise MissingArray(f"got no array {name!r}, wanted it for claim {claim.id!r}")
        found[name] = saved
    return found


def outcomes(
    claim: Claim, statement: Statement, results: "xarray.Dataset", precision: str
) -> Iterator[Outcome]:
    """What a claim reads, point by point or, for a claim over seeds, setting by setting.

    Arrays are cut to their true lengths; large ones are read slab by slab.

    Args:
        claim: the claim.
        statement: its statement.
        results: arrays of the statement, or of a control.
        precision: of the run.

    Yields:
        The outcomes, in the order of the axes of the points.

    Raises:
        MissingArray: an array that the claim reads is not there.
    """
    lead = [str(dim) for dim in array_of(results, SIZE).dims]
    names = [
        n
        for saved in saved_names(claim, statement, map(str, results.variables)).values()
        for n in saved
    ]
    names += [SIZE, *(f"met_{name}" for name in statement.hypotheses)]
    names += [str(name) for name in results if str(name).startswith("length_")]
    arrays = {name: _leading(array_of(results, name), lead) for name in dict.fromkeys(names)}
    shape = tuple(results.sizes[dim] for dim in lead)
    each = sum(array.nbytes for array in arrays.values()) // max(1, int(np.prod(shape)))
    fixed = json.loads(results.attrs.get("fixed", "{}"))
    for slab in _settings(shape) if claim.seeds else slabs(shape, each):
        found = [
            _outcome(fixed | point, one, statement, precision)
            for point, one in _blocks(results, arrays, lead, slab)
        ]
        yield from [_over_seeds(found)] if claim.seeds else found


def array_of(results: "xarray.Dataset", name: str) -> "xarray.DataArray":
    """An array of the results.

    Args:
        results: arrays.
        name: of one of them.

    Returns:
        The array.

    Raises:
        MissingArray: it is not there.
    """
    if name not in results.variables:
        raise MissingArray(f"got no array {name!r}, wanted it for every judgement")
    return results[name]


def _leading(array: "xarray.DataArray", lead: Sequence[str]) -> "xarray.Variable":
    """The axes of the points first; a coordinate, the same at all points, has none of them."""
    missing = [dim for dim in lead if dim not in array.dims]
    if missing and missing != list(lead):
        raise MissingArray(f"{array.name}: got axes {array.dims}, wanted {missing} among them")
    return array.variable if missing else array.variable.transpose(*lead, ...)


def _settings(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """All seeds, the first axis, of one setting after the other."""
    for place in np.ndindex(*shape[1:]):
        yield (slice(None), *(slice(i, i + 1) for i in place))


def _flags(results: "xarray.Dataset", lead: Sequence[str]) -> dict[str, list]:
    """Values of the flags along the axes of the points."""
    own = {dim: results[dim].values.tolist() for dim in lead if dim in results.coords}
    listed = {str(n): c.values.tolist() for n, c in results.coords.items() if c.dims == ("point",)}
    return own | listed


def _blocks(results, arrays, lead, slab) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Flags and arrays of each point of a slab."""
    varies = {n: set(lead) <= set(array.dims) for n, array in arrays.items()}
    parts = {n: array[slab].values if varies[n] else array.values for n, array in arrays.items()}
    inside = parts[SIZE].shape
    flat = {n: p.reshape(-1, *p.shape[len(lead) :]) if varies[n] else p for n, p in parts.items()}
    axes = {n: array.dims[len(lead) :] for n, array in arrays.items() if varies[n]}
    flags = _flags(results, lead)
    for index, place in enumerate(np.ndindex(*inside)):
        starts = (part.start or 0 for part in slab)
        at = {dim: start + i for dim, start, i in zip(lead, starts, place, strict=True)}
        point = {
            name: column[at[name if name in at else "point"]] for name, column in flags.items()
        }
        yield (
            point,
            _cut({n: np.asarray(v[index]) if varies[n] else v for n, v in flat.items()}, axes),
        )


def _cut(found: Mapping[str, np.ndarray], axes) -> dict[str, np.ndarray]:
    """Arrays of one point without padding, floating-point numbers as float64."""
    ends = {n.removeprefix("length_"): int(v) for n, v in found.items() if n.startswith("length_")}
    cut = {
        name: np.asarray(values[tuple(slice(ends.get(axis)) for axis in axes.get(name, ()))])
        for name, values in found.items()
    }
    return {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in cut.items()}


class _Reads(dict):
    """Arrays of a claim; another one is a mistake of the claim or a gap in the results."""

    def __missing__(self, name: str):
        raise MissingArray(f"got no array {name!r} to read, wanted it saved and among 'reads'")


def _outcome(point, found: Mapping[str, np.ndarray], statement, precision: str) -> Outcome:
    sides = {"predicted": _Reads(), "measured": _Reads()}
    for name, array in found.items():
        base, _, side = name.rpartition("_")
        if side in sides and base:
            sides[side][base] = array
        else:
            for other in sides.values():
                other.setdefault(name, array)
    met = {name: found[f"met_{name}"] for name in statement.hypotheses}
    steps = int(point.get(statement.steps, 1)) if statement.steps else 1
    return Outcome(
        point,
        **sides,
        hypotheses=met,
        dtype=np.dtype(precision),
        size=int(found[SIZE]),
        steps=steps,
    )


def _over_seeds(each: list[Outcome]) -> Outcome:
    """One outcome of a setting, whose arrays have the seeds as first axis.

    Seeds that do not meet the hypotheses are no evidence; if none does, all stay to show it.
    """
    kept = [one for one in each if all(map(np.all, one.hypotheses.values()))] or each

    def stack(side: str) -> _Reads:
        names = getattr(kept[0], side)
        return _Reads(
            {name: np.stack([getattr(one, side)[name] for one in kept]) for name in names}
        )

    return kept[0]._replace(
        point={**kept[0].point, "seed": np.array([one.point["seed"] for one in kept])},
        predicted=stack("predicted"),
        measured=stack("measured"),
        hypotheses={n: np.stack([one.hypotheses[n] for one in kept]) for n in kept[0].hypotheses},
    )


# Over all precisions -------------------------------------------------------------------------


def claim_entry(claim: Claim, legs: Legs) -> dict[str, Any]:
    """Judge one claim over the runs in all precisions.

    Args:
        claim: the claim.
        legs: precision -> what :func:`residuals` found, the precision asked for first.

    Returns:
        The entry of ``verdict.json``.
    """
    judged = {
        p: judge(leg.residual.values, leg.tolerance.values, leg.reason.values == "")
        for p, leg in legs.items()
    }
    holds = _both([j.holds for j in judged.values()])
    scaling = None
    if claim.kind == "identity" and len(judged) == 2 and holds is not None:
        # The worst cases of two legs can be different runs, which amplify rounding differently.
        each = {p: _unamplified(legs[p], j) for p, j in judged.items()}
        scaling = scales_with_epsilon(each["float64"], each["float32"])
        holds = holds and scaling
    first = next(iter(judged))
    entry = _entry(
        claim.id, claim.kind, claim.statement, judged[first].cases > 0, judged, holds, legs
    )
    return entry | {"scales_with_epsilon": scaling}


def _unamplified(leg: "xarray.Dataset", judgement: Judgement) -> float:
    assert judgement.residual is not None
    return judgement.residual / float(leg.condition.values.flat[judgement.worst])


def control_entry(control: Control, legs: Legs) -> dict[str, Any]:
    """Judge a control: its claim fails clearly, and a broken hypothesis is seen by its check.

    Args:
        control: the control.
        legs: precision -> what :func:`residuals` found for the claim that it breaks.

    Returns:
        The entry of ``verdict.json``.
    """
    judged = {
        p: judge_control(leg.residual.values, leg.tolerance.values) for p, leg in legs.items()
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
    name, kind, statement, met, judged: Mapping[str, Judgement], holds, legs
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
    """Settings of one case.

    Args:
        leg: what :func:`residuals` found.
        index: of the case, in the order of the axes; None for no case.

    Returns:
        Axis -> value.
    """
    if index is None:
        return {}
    place = np.unravel_index(index, leg.residual.shape)
    where = dict(zip(map(str, leg.residual.dims), place, strict=True))
    return {name: leg[name].values[i].item() for name, i in where.items()}


def worst_ratio(
    claims: Sequence[Claim], legs: Mapping[str, Legs], precision: str
) -> "xarray.DataArray":
    """Largest residual / tolerance over claims, at each point of a sweep.

    Args:
        claims: claims about single cases, of one statement.
        legs: claim -> precision -> what :func:`residuals` found.
        precision: which run.

    Returns:
        The ratio; NaN where no claim was judged. Tolerance 0 counts as one rounding.
    """
    ratios = [ratio_of(legs[claim.id][precision], precision) for claim in claims if not claim.seeds]
    # NaN, a claim that was not judged, gives way to a number.
    return reduce(lambda a, b: a.where(~(b > a.fillna(-1)), b), ratios)


def ratio_of(
    leg: "xarray.Dataset", precision: str, *, everything: bool = False
) -> "xarray.DataArray":
    """Residual / tolerance at each point.

    Args:
        leg: what :func:`residuals` found.
        precision: of the run.
        everything: cases that are left out too.

    Returns:
        The ratio; infinite where the residual is lost, NaN where the case is left out. Tolerance 0
        counts as one rounding.
    """
    ratio = leg.residual / leg.tolerance.where(leg.tolerance > 0, np.finfo(precision).eps)
    ratio = ratio.fillna(np.inf)
    return ratio if everything else ratio.where(leg.reason == "")


def _diverged(results: "xarray.Dataset", statement: Statement) -> list[str]:
    if statement.diverged not in results:
        return []
    steps = results[statement.diverged]
    (lost,) = np.nonzero(steps.values.ravel() >= 0)
    lines = []
    for index in lost[:SHOWN]:
        point = point_of(results.assign(residual=steps), int(index))
        where = " ".join(f"{name}={shown(value)}" for name, value in point.items())
        lines.append(f"{statement.id}: diverged at step {steps.values.flat[index]}: {where}")
    if len(lost) > SHOWN:
        lines.append(f"{statement.id}: {len(lost)} of {steps.size} diverged, see results.nc")
    return lines


def shown(value: Any) -> str:
    """Write a value of a flag for a reader.

    Args:
        value: a word or a number.

    Returns:
        The text.
    """
    return value if isinstance(value, str) else f"{value:g}"
