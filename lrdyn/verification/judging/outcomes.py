"""Groups of ``results.nc``, and the outcomes on which a claim is judged, point by point."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.verification.stating.array_types import as_compared
from lrdyn.verification.stating.fields import SIZE, Read
from lrdyn.verification.stating.statement import (
    Claim,
    Control,
    Experiment,
    Outcome,
    Scenario,
    Study,
    Theorem,
)
from lrdyn.verification.storing.files import slabs

if TYPE_CHECKING:
    import xarray


# Groups of results.nc ----------------------------------------------------------------------


PRECISIONS = {"float64": ("float64", "float32"), "float32": ("float32",)}
"""The precisions of the runs behind a verdict; the dtype asked for comes first."""


def precisions(experiment: Experiment, scenario: Scenario, dtype: str) -> tuple[str, ...]:
    """The runs of a scenario: a theorem in float64 is run in float32 as well.

    A study trains in one precision; its identities are judged in both.
    """
    if scenario.trains or not isinstance(experiment, Theorem):
        return (dtype,)
    if isinstance(experiment, Study):
        return (dtype, "float32" if dtype == "float64" else "float64")
    return PRECISIONS[dtype]


def precision_of_controls(experiment: Experiment, scenario: Scenario, dtype: str) -> str:
    """Precision in which controls must be seen to fail: that asked for, but for a study.

    Its identities are judged in both precisions, and in float64 more breaks can be told from
    rounding.
    """
    return "float64" if isinstance(experiment, Study) and not scenario.trains else dtype


def groups_of(experiment: Experiment, scenario: Scenario, dtype: str) -> dict[str, str]:
    """Precision -> group of a scenario; ``dtype`` is the precision that was asked for."""
    root = "" if scenario is experiment.scenarios[0] else f"/{scenario.id}"
    return {
        p: (root or "/") if p == dtype else f"{root}/{p}"
        for p in precisions(experiment, scenario, dtype)
    }


def controls_of(scenario: Scenario, precision: str) -> list[Control]:
    """The controls of a scenario whose failure shows in a precision."""
    return [c for c in scenario.controls if c.shows_in(precision)]


def control_group(control: Control, precision: str, *, perturb: bool = False) -> str:
    """Group of a control; with ``perturb``, of all its amounts."""
    return f"/{'perturb' if perturb else 'controls'}/{control.id}/{precision}"


# What a claim reads -------------------------------------------------------------------------


class MissingArray(ValueError):
    """Results lack an array or a group that a claim reads."""


def outcomes(
    claim: Claim, scenario: Scenario, results: "xarray.Dataset", precision: str
) -> Iterator[Outcome]:
    """Outcomes of a claim, point by point or, for a claim over seeds, setting by setting.

    The order is that of the axes of the points. Arrays are cut to their true lengths; large ones
    are read slab by slab.

    Args:
        claim: the claim.
        scenario: its scenario.
        results: arrays of the scenario, or of a control.
        precision: of the run that left them.
    """
    lead = lead_of(results)
    saved = saved_names(claim, scenario, map(str, results.variables))
    names = [name for both in saved.values() for name in both]
    names += [SIZE, *(f"met_{name}" for name in scenario.hypotheses)]
    names += [str(name) for name in results if str(name).startswith("length_")]
    arrays = {
        name: _move_lead_first(array_of(results, name), lead) for name in dict.fromkeys(names)
    }
    shape = tuple(results.sizes[dim] for dim in lead)
    # Bytes of one point over all arrays: slabs are cut so that this many fit into memory.
    each = sum(array.nbytes for array in arrays.values()) // max(1, int(np.prod(shape)))
    fixed = json.loads(results.attrs.get("fixed", "{}"))
    # All seeds, the first axis, for one setting after another.
    whole = ((slice(None), *(slice(i, i + 1) for i in place)) for place in np.ndindex(*shape[1:]))
    for slab in whole if claim.seeds else slabs(shape, each):
        every = [
            _outcome(fixed | point, values, claim, scenario, precision)
            for point, values in _points_of(results, arrays, lead, slab)
        ]
        yield from [_stack_seeds(every, scenario)] if claim.seeds else every


def saved_names(claim: Claim, scenario: Scenario, available: Iterable[str]) -> dict[str, list[str]]:
    """Array that a claim reads -> ``<name>_predicted`` and ``<name>_measured``, or the name itself.

    Only names out of ``available`` are listed; each array that the claim reads must be there.
    """
    available = set(available)
    names = {}
    # Trainings that were lost are left out by :func:`_stack_seeds`, whatever the claim reads.
    lost = scenario.diverged_name if scenario.trains else ""
    for name in (*scenario.arrays_of(claim), claim.condition_name, scenario.diverges_name, lost):
        both = [f"{name}_predicted", f"{name}_measured"]
        saved = [n for n in both if n in available] or [n for n in (name,) if n in available]
        if name and not saved:
            raise MissingArray(f"got no array {name!r}, wanted it for claim {claim.id!r}")
        names[name] = saved
    return names


def array_of(results: "xarray.Dataset", name: str) -> "xarray.DataArray":
    """An array of the results, which must have it."""
    if name not in results.variables:
        raise MissingArray(f"got no array {name!r}, wanted it for every judgement")
    return results[name]


def lead_of(results: "xarray.Dataset") -> list[str]:
    """The axes of the points."""
    return [str(dim) for dim in array_of(results, SIZE).dims]


def _move_lead_first(array: "xarray.DataArray", lead: Sequence[str]) -> "xarray.Variable":
    """The axes of the points first; a coordinate, the same at all points, has none of them."""
    missing = [dim for dim in lead if dim not in array.dims]
    if missing and missing != list(lead):
        raise MissingArray(f"{array.name}: got axes {array.dims}, wanted {missing} among them")
    return array.variable if missing else array.variable.transpose(*lead, ...)


def _points_of(
    results: "xarray.Dataset",
    arrays: Mapping[str, "xarray.Variable"],
    lead: Sequence[str],
    slab: tuple[slice, ...],
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Flags and arrays of each point of a slab."""
    varies = {n: set(lead) <= set(array.dims) for n, array in arrays.items()}
    parts = {n: array[slab].values if varies[n] else array.values for n, array in arrays.items()}
    # SIZE has the axes of the points and no other, so that its shape is that of the slab.
    inside = parts[SIZE].shape
    # Counted, not -1: NumPy cannot tell how many points an array without entries has.
    count = int(np.prod(inside))
    flat = {
        n: p.reshape(count, *p.shape[len(lead) :]) if varies[n] else p for n, p in parts.items()
    }
    axes = {n: array.dims[len(lead) :] for n, array in arrays.items() if varies[n]}
    # The flags: axes of a product, or coordinates of listed points.
    flags = {dim: results[dim].values.tolist() for dim in lead if dim in results.coords}
    flags |= {str(n): c.values.tolist() for n, c in results.coords.items() if c.dims == ("point",)}
    for index, place in enumerate(np.ndindex(*inside)):
        # ``slice(None)``, of all seeds, has no start.
        starts = (part.start or 0 for part in slab)
        at = {dim: start + i for dim, start, i in zip(lead, starts, place, strict=True)}
        point = {n: column[at[n if n in at else "point"]] for n, column in flags.items()}
        values = {n: np.asarray(v[index]) if varies[n] else v for n, v in flat.items()}
        yield point, _unpad(values, axes)


def _unpad(
    arrays: Mapping[str, np.ndarray], axes: Mapping[str, Sequence[Any]]
) -> dict[str, np.ndarray]:
    """Arrays of one point without padding, in the types in which they are compared.

    Raises:
        NotNumbers: one is of a type that is not.
    """
    ends = {n.removeprefix("length_"): int(v) for n, v in arrays.items() if n.startswith("length_")}
    cut = {
        name: np.asarray(values[tuple(slice(ends.get(axis)) for axis in axes.get(name, ()))])
        for name, values in arrays.items()
    }
    return {name: as_compared(values, name) for name, values in cut.items()}


def _missing_array(side: str, name: str) -> MissingArray:
    return MissingArray(f"got no array {name!r} of {side}, wanted it returned and among 'reads'")


def _outcome(
    point: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    claim: Claim,
    scenario: Scenario,
    precision: str,
) -> Outcome:
    sides: dict[str, dict[str, np.ndarray]] = {"predicted": {}, "measured": {}}
    for name, array in arrays.items():
        # A field may end in these words itself; it is one of two sides only if something stands
        # before.
        base, _, side = name.rpartition("_")
        if side in sides and base:
            sides[side][base] = array
            continue
        on = [side for side in ("theory", "run") if name in scenario.fields(side)]
        if {("theory", name), ("run", name)} <= set(scenario.read_by(claim)):
            # The one that is there must not stand in for the other side's.
            why = f"got array {name!r} of one side alone, wanted it of theory and of the run"
            raise MissingArray(f"{why} for claim {claim.id!r}")
        for side in on:
            sides["predicted" if side == "theory" else "measured"][name] = array
    answers = {name: arrays[f"met_{name}"] for name in scenario.hypotheses}
    # Of several shapes, answers are numbers. A NaN is no yes, and neither is no answer.
    met = {name: np.asarray(a == 1 if a.size else False) for name, a in answers.items()}
    of_run = int(point.get(scenario.steps, 1)) if scenario.steps else 1
    steps = of_run if claim.steps is None else claim.steps
    return Outcome(
        point,
        predicted=Read(sides["predicted"], partial(_missing_array, "theory")),
        measured=Read(sides["measured"], partial(_missing_array, "the run")),
        hypotheses=met,
        dtype=np.dtype(precision),
        size=int(arrays[SIZE]),
        steps=steps,
    )


def _stack_seeds(each: list[Outcome], scenario: Scenario) -> Outcome:
    """One outcome of a setting, whose arrays have the seeds as first axis.

    Seeds that do not meet the hypotheses are no evidence; if none does, all stay to show it. So it
    is with trainings that were lost, and with seed 0 of a study, which set what is expected.
    """
    # In this order: hypotheses, then divergence, then seed 0. Where nothing is left, the step
    # before stands, so that the judge can name the reason.
    met = [outcome for outcome in each if all(map(np.all, outcome.hypotheses.values()))] or each
    name = scenario.diverged_name
    ended = [
        outcome for outcome in met if not (scenario.trains and name and outcome.measured[name] >= 0)
    ]
    judged = [outcome for outcome in ended if not (scenario.trains and outcome.point["seed"] == 0)]
    judged = judged or ended or met

    def stack(side: str) -> Read:
        sides = [getattr(outcome, side) for outcome in judged]
        arrays = {n: np.stack([arrays_of[n] for arrays_of in sides]) for n in sides[0]}
        return Read(arrays, partial(_missing_array, "theory" if side == "predicted" else "the run"))

    return replace(
        judged[0],
        point={**judged[0].point, "seed": np.array([outcome.point["seed"] for outcome in judged])},
        predicted=stack("predicted"),
        measured=stack("measured"),
        hypotheses={
            n: np.stack([outcome.hypotheses[n] for outcome in judged]) for n in judged[0].hypotheses
        },
    )
