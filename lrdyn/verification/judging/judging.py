"""Judging: claims and controls read from produced arrays, in NumPy and in float64 arithmetic.

Nothing here runs or traces anything: a verdict follows from ``results.nc`` alone, right after a run
or years later.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from lrdyn.core.checks import OutsideDomain
from lrdyn.core.linalg import ON_TRIAL
from lrdyn.system.messages import refuse_truth
from lrdyn.verification.judging import rounding
from lrdyn.verification.judging.outcomes import (
    MissingArray,
    control_group,
    controls_of,
    groups_of,
    lead_of,
    outcomes,
    precision_of_controls,
)
from lrdyn.verification.stating import claims, forms, rest
from lrdyn.verification.stating.array_types import NotNumbers
from lrdyn.verification.stating.claims import Judgement
from lrdyn.verification.stating.fields import SIZE
from lrdyn.verification.stating.flags import flag_text
from lrdyn.verification.stating.forms import Form
from lrdyn.verification.stating.mistakes import BadInput, location_of
from lrdyn.verification.stating.statement import (
    Claim,
    Control,
    Experiment,
    Finding,
    Outcome,
    Scenario,
)
from lrdyn.verification.storing import verdict_schema

if TYPE_CHECKING:
    import xarray

SHOWN = 4
"""Diverged configurations of a scenario that are printed one by one."""

Groups = Mapping[str, "xarray.Dataset"]
Legs = dict[str, "xarray.Dataset"]
"""Precision -> what :func:`residuals` found; the precision asked for comes first."""


class Verdict(NamedTuple):
    """The judged claims of a run: what :func:`judge_results` returns."""

    __bool__ = refuse_truth("[entry['holds'] for entry in verdict.claims]")

    claims: list[dict[str, Any]]
    """Entries of ``verdict.json``."""
    tests: int
    """Number of statistical tests."""
    legs: dict[str, Legs]
    """Claim or control -> precision -> residual, tolerance and whether judged, over the points."""
    diverged: list[str]
    """One line for each configuration whose step size diverged."""


def judge_results(theorem: Experiment, groups: Groups, dtype: str) -> Verdict:
    """Judge every claim and control of a theorem on the content of ``results.nc``.

    Args:
        theorem: the theorem.
        groups: content of ``results.nc``, group -> dataset.
        dtype: the precision that was asked for.

    Raises:
        MissingArray: a group, or an array that a claim reads, is not there.
        ValueError: an array has a shape that a claim cannot compare.
    """
    legs, diverged = {}, []
    # From the file, not from this machine: results may be judged again somewhere else.
    arithmetic = arithmetic_of(groups)
    everywhere = set(rounding.unfit_precisions(arithmetic))
    findings: list[dict[str, Any]] = []
    for scenario in theorem.scenarios:
        named = groups_of(theorem, scenario, dtype)
        mine = {p: _group(groups, g, f"scenario {scenario.id!r}") for p, g in named.items()}
        unfit = everywhere | {
            p for p, results in mine.items() if svds_fall_short(scenario, results, arithmetic)
        }
        for claim in scenario.claims:
            # Keys of claims and controls share this mapping, which Experiment has checked for
            # doubles.
            legs[claim.id] = {
                # What is set aside below says nothing of theory either.
                p: residuals(claim, scenario, r, p, power=p not in unfit)
                for p, r in mine.items()
            }
        first = precision_of_controls(theorem, scenario, dtype)
        for control in controls_of(scenario, first):
            legs[control.id] = _control_legs(control, scenario, groups, first, named)
        for statement in (*scenario.claims, *controls_of(scenario, first)):
            by_precision = legs[statement.id]
            by_precision |= {p: _set_aside(by_precision[p]) for p in by_precision.keys() & unfit}
        diverged += _divergence_lines(mine[dtype], scenario)
        findings += [
            _finding_entry(theorem, statement, scenario, mine[dtype], dtype)
            for statement in scenario.findings
        ]
    tests = _share_the_alarms(theorem, legs)
    entries = [
        entry
        for scenario in theorem.scenarios
        for entry in (
            *(
                claim_entry(claim, legs[claim.id]) | _rest_entry(claim, scenario, legs[claim.id])
                for claim in scenario.claims
            ),
            *(
                control_entry(c, claim_of(c, scenario), legs[c.id])
                for c in controls_of(scenario, precision_of_controls(theorem, scenario, dtype))
            ),
        )
    ]
    return Verdict(entries + findings, tests, legs, diverged)


def arithmetic_of(groups: Groups) -> dict[str, rounding.Measured]:
    """The arithmetic that the run measured, by precision; empty for runs of earlier releases.

    Raises:
        ValueError: it is not what a run writes.
    """
    measured = json.loads(groups["/"].attrs.get("arithmetic", "{}"))
    known = verdict_schema.Each(dict, verdict_schema.ARITHMETIC)
    if why := known.mismatch(measured) or ", ".join(measured.keys() - set(rounding.PRECISIONS)):
        raise ValueError(f"arithmetic: {why}")
    return measured


def svds_of(results: "xarray.Dataset") -> list[tuple[str, int, int]]:
    """Type, rows and columns of what an algorithm on trial decomposes in a group of results."""
    return [
        (str(name), int(m), int(n)) for name, m, n in json.loads(results.attrs.get(ON_TRIAL, "[]"))
    ]


def svds_fall_short(
    scenario: Scenario, results: "xarray.Dataset", arithmetic: Mapping[str, rounding.Measured]
) -> bool:
    """Whether SVDs on trial in a scenario are less exact on the device than its claims admit."""
    used = {name for name, _, _ in svds_of(results)}  # a float64 run may decompose in float32
    return any(
        rounding.shortfalls_on_trial(arithmetic.get(name, {}), blocks=scenario.blocks)
        for name in used
    )


def _set_aside(leg: "xarray.Dataset") -> "xarray.Dataset":
    """Mark all cases of a leg as left out, because of the arithmetic of the device."""
    # Too few seeds stays the reason: more of them are something the user can ask for.
    reason = np.where(leg.reason.values == TOO_FEW_SEEDS, TOO_FEW_SEEDS, rounding.REASON)
    # A hypothesis that was found broken in a bad arithmetic may not be: rounding alone can break
    # it.
    blank = np.full(leg.reason.shape, "", object)
    return leg.assign(
        reason=leg.reason.copy(data=reason.astype(object)), unmet=leg.unmet.copy(data=blank)
    )


def _share_the_alarms(theorem: Experiment, legs: Mapping[str, Legs]) -> int:
    """Share the probability of a false alarm among all statistical tests; returns their number."""
    every = [claim for s in theorem.scenarios for claim in s.claims if is_test(claim)]
    mine = [leg for claim in every for leg in legs[claim.id].values()]
    count = sum(int(np.sum(left_out_reasons(leg) == "")) for leg in mine)
    limit = claims.tolerance("statistical", "float64", tests=max(count, 1))
    # Bonferroni: each of ``count`` tests has FALSE_ALARM / count. Those that turn out blind below
    # are among them, which only makes a false alarm less likely.
    for leg in mine:
        leg.tolerance[:] = limit
        # A test under which the alternative would pass as well is no evidence.
        blind = (left_out_reasons(leg) == "") & (leg.residual <= limit) & (leg.alternative <= limit)
        leg.reason[:] = np.where(blind, forms.BELOW_SIGHT, leg.reason)
    # Counted again, without the blind ones: this is the number that the verdict reports.
    return sum(int(np.sum(left_out_reasons(leg) == "")) for leg in mine)


def is_test(claim: Claim) -> bool:
    """Whether a claim is a test, one of those that share the probability of a false alarm."""
    return claim.kind == "statistical" and claim.tolerance is None


def claim_of(control: Control, scenario: Scenario) -> Claim:
    """The claim that a control breaks."""
    return next(claim for claim in scenario.claims if claim.id == control.claim)


def _control_legs(
    control: Control,
    scenario: Scenario,
    groups: Groups,
    dtype: str,
    precisions: Mapping[str, str],
) -> Legs:
    claim, by_precision = claim_of(control, scenario), {}
    for precision, group in precisions.items():
        if not control.shows_in(precision):
            continue
        if control.swap:
            results = _group(groups, group, f"control {control.id!r}")
            for name in control.swapped.values():
                if name not in results:
                    raise MissingArray(
                        f"got no array {name!r}, wanted it for control {control.id!r}"
                    )
            # Arrays of the same run, put in the places of others.
            swapped = {name: results[other] for name, other in control.swapped.items()}
            results = results.assign(swapped)
            by_precision[precision] = residuals(claim, scenario, results, precision)
            continue
        name = control_group(control, precision)
        # In the other precision controls run only if they were asked for.
        if name in groups or precision == dtype:
            results = _group(groups, name, f"control {control.id!r}")
            by_precision[precision] = residuals(claim, scenario, results, precision)
    return by_precision


def _group(groups: Groups, name: str, whose: str) -> "xarray.Dataset":
    if name not in groups:
        raise MissingArray(f"got no group {name!r}, wanted that of {whose}")
    return groups[name]


# One claim in one precision -----------------------------------------------------------------


class Row(NamedTuple):
    """Judgement of one outcome: its residual, its tolerance, and whether it counts."""

    residual: float
    tolerance: float
    condition: float
    steps: int
    unmet: str
    """The first hypothesis of the scenario that is not met; empty if all are."""
    reason: str
    """Why the claim itself leaves the case out; empty if it does not."""
    threshold: float
    """Largest difference that passes, in the unit of what is compared."""
    alternative: float
    """Residual of a statistical claim under its alternative; NaN of others."""
    certified: bool
    """Whether the run itself showed that it had arrived."""
    two_sided: bool
    """Whether two arrays are compared, one of theory and one of the run."""
    steps_needed: float
    """Steps that would do where there were too few; infinite if not known, NaN elsewhere."""
    steps_flag: str
    """The flag that sets them; empty if none does."""


LOST = "lost"
"""Reason for leaving out a training whose loss is not finite."""

TOO_FEW_SEEDS = "too few seeds"
ILL_CONDITIONED = "ill-conditioned"
"""Reason where theory's own run amplifies rounding too much for the precision."""
OWN_HYPOTHESES = ("claim does not apply", TOO_FEW_SEEDS)
"""Reasons that are hypotheses of a claim; with any other the claim applies and is not judged."""


def beyond_range(dtype: np.dtype) -> str:
    """Reason where a setting, or what theory predicts of it, is infinite in a precision."""
    return f"beyond the range of {dtype}"


def left_out_reasons(leg: "xarray.Dataset") -> np.ndarray:
    """Reason for which each case is left out, or the hypothesis it breaks; empty if judged."""
    return np.where(leg.unmet.values != "", leg.unmet.values, leg.reason.values)


def applies(leg: "xarray.Dataset") -> np.ndarray:
    """Whether each case meets all hypotheses, be it judged or not."""
    return (leg.unmet.values == "") & ~np.isin(leg.reason.values, OWN_HYPOTHESES)


def residuals(
    claim: Claim,
    scenario: Scenario,
    results: "xarray.Dataset",
    precision: str,
    *,
    power: bool = False,
) -> "xarray.Dataset":
    """Every :class:`Row` of a claim, on the arrays of its scenario or of a control.

    The columns lie over the axes of the points, for a claim over seeds without ``seed``. With
    ``power`` a case that passes is left out if it could not have failed; a control, which must
    fail, needs no such question.

    Args:
        claim: the claim.
        scenario: its scenario.
        results: arrays of the scenario, or of a control.
        precision: of the run that left them.
        power: whether a case that passes must show that it could have failed.
    """
    import xarray as xr

    lead = lead_of(results)
    if claim.seeds:
        lead.remove("seed")
    shape = tuple(results.sizes[dim] for dim in lead)
    cases = outcomes(claim, scenario, results, precision)
    rows = []
    for case in cases:
        row = row_of(claim, scenario, case, power=power)
        # Of a control theory may be wrong in any way.
        if power and np.isnan(row.residual) and not row.unmet and not row.reason:
            _refuse_lost_theory(claim, scenario, case, results)
        rows.append(row)
    columns = {
        name: (lead, np.asarray(column).reshape(shape))
        for name, column in zip(Row._fields, zip(*rows, strict=True), strict=True)
    }
    # NumPy gave the texts the length of the longest one, which would cut any that replaces them.
    columns["reason"] = (lead, columns["reason"][1].astype(object))
    coordinates = {name: c for name, c in results.coords.items() if set(c.dims) <= set(lead)}
    return xr.Dataset(columns, coordinates, results.attrs)


def row_of(claim: Claim, scenario: Scenario, outcome: Outcome, *, power: bool = False) -> Row:
    """Residual, tolerance and whether it counts, of one outcome.

    Args:
        claim: the claim.
        scenario: its scenario.
        outcome: what it is judged on.
        power: whether a case that passes must show that it could have failed.
    """
    limit, condition = claim.tolerance, 1.0
    # That of a statistical test is preliminary: :func:`_share_the_alarms` replaces it when all
    # tests are counted.
    if limit is None:
        limit = claims.tolerance(claim.kind, outcome.dtype, steps=outcome.steps, size=outcome.size)
    if claim.condition:
        condition = float(outcome.predicted[claim.condition_name])
        # Rounding is amplified as the twin's disturbance is, so that it may be as much larger.
        limit *= condition
    # The first one stands for all in the table; results.nc has each as an array ``met_...``.
    unmet = next((name for name, met in outcome.hypotheses.items() if not np.all(met)), "")
    threshold = alternative = float("nan")
    certified = two_sided = False
    reason, residual = "", float("nan")
    # A NaN, after a divergence for example, needs no warning of NumPy's: its case fails.
    with np.errstate(all="ignore"):
        try:
            reason = next(reasons_against(claim, scenario, outcome, limit), "")
            compared = forms_of(claim, scenario, outcome)
            residual = forms.residual_of(compared)
            # Of a control theory may be infinite because it is wrong.
            if power and not reason and np.isnan(residual) and _overflows(claim, scenario, outcome):
                reason = beyond_range(outcome.dtype)
            threshold = max(form.threshold(limit) for form in compared)
            tests = [form for form in compared if isinstance(form, forms.Test)]
            # The most surprising alternative: one of several tests that excludes it is enough.
            alternative = max((claims.surprise(test.alternative) for test in tests), default=np.nan)
            certified = bool(claim.certified and claim.certified(outcome))
            two_sided = any(isinstance(form, forms.Equal) for form in compared)
            # Of a control, which swaps arrays of the same trainings, nothing more would be seen.
            if power and not reason and callable(claim.rest):
                reason = rest.reason_to_train_on(claim.rest(outcome), outcome.point)
            # Statistical tests are asked later, by :func:`_share_the_alarms`, when their limit is
            # known.
            if power and not reason and not is_test(claim) and residual <= limit:
                reason = forms.lack_of_power(compared, limit)
        except OutsideDomain:  # no run leaves such numbers, so that they fail, too
            reason, residual = "", float("nan")
        except forms.OtherShapes as error:
            predicted, measured = error.args
            got = f"shape {predicted} of {_compared_name(claim)!r}"
            wanted = f"that of measured, {measured}"
            where = location_of(scenario.predict)
            raise BadInput(f"{where}: got {got}, wanted {wanted}") from None
        except forms.NothingCompared as error:
            if not (unmet or reason):
                got = (
                    f"shape {error.args[0]} of {_compared_name(claim)!r}, wanted an entry at least"
                )
                raise BadInput(
                    f"{location_of(claim.form or scenario.predict)}: got {got}"
                ) from None
        except forms.NegativeScale as error:
            # Of a control theory may be wrong in any way: it fails, as it must.
            if power and not (unmet or reason):
                got = f"a scale of {error.args[0]:g} for claim {claim.id!r}"
                where = location_of(claim.form or scenario.predict)
                raise BadInput(f"{where}: got {got}, wanted a size, 0 or more") from None
        except NotNumbers as error:
            raise BadInput(f"{location_of(claim.form or scenario.predict)}: {error}") from None
    needed, flag = _more_steps(reason, scenario)
    return Row(
        residual,
        limit,
        condition,
        outcome.steps,
        unmet,
        reason,
        threshold,
        alternative,
        certified,
        two_sided,
        needed,
        flag,
    )


def _more_steps(reason: str, scenario: Scenario) -> tuple[float, str]:
    """How many steps a reason asks for, and the flag that sets them; as those of a row."""
    if reason == claims.TOO_FEW_STEPS and not isinstance(reason, claims.MoreSteps):
        return np.inf, scenario.steps  # the words alone
    if not isinstance(reason, claims.MoreSteps):
        return np.nan, ""
    return float("inf" if reason.needed is None else reason.needed), reason.flag


def _compared_name(claim: Claim) -> str:
    """Name of theory's array that a claim compares, or of the claim."""
    return claim.compared[0] if claim.compared else claim.id


def _overflows(claim: Claim, scenario: Scenario, outcome: Outcome) -> bool:
    """Whether both theory and the run left the range of the precision: theory says that it must.

    A theory that is infinite where the run has numbers is wrong, and a run that loses its numbers
    where theory has some, too.
    """
    read = scenario.read_by(claim)
    theory = any(np.isinf(outcome.predicted[name]).any() for on, name in read if on == "theory")
    run = any(not np.isfinite(outcome.measured[name]).all() for on, name in read if on == "run")
    return theory and run


def _refuse_lost_theory(
    claim: Claim, scenario: Scenario, outcome: Outcome, results: "xarray.Dataset"
) -> None:
    """Refuse a prediction that is NaN where the claim applies: no run can agree with it.

    Raises:
        BadInput: theory's array is, and it is not the run whose numbers were lost.
    """
    sides = {
        side: [name for on, name in scenario.read_by(claim) if on == side]
        for side in ("theory", "run")
    }
    if claim.compared is not None:
        names = [claim.compared[0]]  # compared entry by entry, whatever the run left
    elif any(np.isnan(outcome.measured[name]).any() for name in sides["run"]):
        return
    else:
        names = sides["theory"]
    for name in names:
        lost = np.argwhere(np.isnan(outcome.predicted[name]))
        if not len(lost):
            continue
        axes = ["seed"] * bool(claim.seeds) + list(scenario.axes.get(name, ()))
        if len(axes) != lost.shape[1]:
            axes = [f"axis {axis}" for axis in range(lost.shape[1])]
        place_of = {axis: int(index) for axis, index in zip(axes, lost[0], strict=True)}
        for axis in place_of.keys() & results.coords.keys() - {"seed"}:
            place_of[axis] = results[axis].values[place_of[axis]].item()
        at = " ".join(f"{axis} {index}" for axis, index in place_of.items())
        known = {name: v for name, v in outcome.point.items() if name in results.coords}
        point = " ".join(f"{n}={flag_text(v)}" for n, v in known.items() if np.ndim(v) == 0)
        got = f"{name!r} is NaN{f' at {at}' if at else ''}{f' ({point})' if point else ''}"
        raise BadInput(
            f"{location_of(scenario.predict)}: {got}, wanted a number where the claim applies "
            "(a hypothesis, 'diverges' or the domain of a flag can exclude the point)"
        )


def forms_of(claim: Claim, scenario: Scenario, outcome: Outcome) -> tuple[Form, ...]:
    """The forms of a claim: what it compares of an outcome."""
    if claim.compared is not None:
        of_theory, of_run = claim.compared
        predicted = getattr(outcome.predicted, of_theory)
        measured = getattr(outcome.measured, of_run)
        if claim.kind == "exact":
            return (forms.Count(predicted, measured),)
        axes = scenario.axes.get(of_theory, ())
        if "step" not in axes:
            return (forms.Equal(predicted, measured),)
        # A claim over seeds has these as first axis, which ``scenario.axes`` does not count.
        start = forms.start_of(predicted, axes.index("step") + bool(claim.seeds))
        return (forms.Equal(predicted, measured, null=start),)
    assert claim.form is not None
    compared: Any = claim.form(outcome)
    # A form is a tuple, too; what is neither is named below.
    one = isinstance(compared, Form) or not isinstance(compared, tuple | list)
    several: tuple[Any, ...] = (compared,) if one else tuple(compared)
    wrong = [form for form in several if not isinstance(form, Form)]
    if wrong or not several:
        got = type(wrong[0]).__name__ if wrong else "nothing"
        raise BadInput(
            f"{location_of(claim.form)}: got {got}, "
            f"wanted a form: {', '.join(f'lrdyn.{kind.__name__}' for kind in get_args(Form))}"
        )
    return several


def reasons_against(
    claim: Claim, scenario: Scenario, outcome: Outcome, limit: float
) -> Iterator[str]:
    """Every reason for which a claim itself leaves a case out; the first one is reported.

    Args:
        claim: the claim.
        scenario: its scenario.
        outcome: what it is judged on.
        limit: tolerance times condition.
    """
    # Settings are known in float64: a smaller precision may have had infinity in the place of one.
    numbers = [v for v in outcome.point.values() if isinstance(v, float)]
    if any(np.finfo(outcome.dtype).max < abs(number) < np.inf for number in numbers):
        yield beyond_range(outcome.dtype)
    diverged = scenario.diverged_name if scenario.trains else ""
    # Over seeds :func:`lrdyn.verification.judging.outcomes.outcomes` has left such trainings out
    # already, unless the loss of all of them became infinite or NaN.
    if diverged and np.any(outcome.measured[diverged] >= 0):
        yield LOST
    seeds = np.ravel(outcome.point["seed"]) if claim.seeds else np.array([])
    # In a study seed 0 has set what is expected, and must not confirm it.
    if len(seeds[seeds > 0] if scenario.trains else seeds) < claim.seeds:
        yield TOO_FEW_SEEDS
    if claim.applies is not None:
        met = claim.applies(outcome)
        if isinstance(met, str):  # which would be true, whatever it says
            raise BadInput(f"{location_of(claim.applies)}: got a text, wanted true or false")
        if not met:
            yield OWN_HYPOTHESES[0]
    if scenario.diverges and np.any(outcome.predicted[scenario.diverges_name] >= 0):
        yield "diverges"
    # Not ``limit > RESOLVED``: a condition that is NaN leaves no digits either.
    if claim.condition and not limit <= claims.RESOLVED:
        yield ILL_CONDITIONED
    if claim.undecided and (why := claim.undecided(outcome)):
        if not isinstance(why, str):
            wanted = "a reason in words, or an empty text"
            got = type(why).__name__
            raise BadInput(f"{location_of(claim.undecided)}: got {got}, wanted {wanted}")
        yield why


def _finding_entry(
    theorem: Experiment,
    finding: Finding,
    scenario: Scenario,
    results: "xarray.Dataset",
    precision: str,
) -> dict[str, Any]:
    """Entry of ``verdict.json`` of a finding: mean, standard deviation and interval over seeds."""
    claim = Claim(
        finding.id,
        finding.statement,
        "limit",
        form=lambda outcome: forms.Stated(0.0, 1.0),
        reads=finding.reads,
        tolerance=0.0,
        seeds=1,
    )
    every = outcomes(claim, scenario, results, precision)
    judged = [o for o in every if not any(reasons_against(claim, scenario, o, 0.0))]
    # An empty array first, since nothing can be concatenated to nothing.
    values = np.concatenate(
        [np.array([]), *(np.ravel(finding.value(outcome)) for outcome in judged)]
    )
    came = theorem.outcome_entry(finding.id, values)
    if scenario.trains and came["outcome"]:
        came["rest"] = str(_rest_of_finding(finding, judged))
        if came["rest"] == claims.STILL_MOVING:
            came["outcome"] = claims.STILL_MOVING
    known = bool(np.all(np.isfinite(values))) and len(values) > 0
    several = known and len(values) > 1
    finding_entry = {
        "value": float(np.mean(values)) if known else None,
        "spread": float(np.std(values, ddof=1)) if several else None,
        "seeds": len(values),
        **came,
    }
    drawn = {"drawn": int(np.size(results[SIZE])), "judged": len(values), "left_out": {}}
    return {
        "id": finding.id,
        "kind": "finding",
        "statement": finding.statement,
        "hypotheses_met": known,
        "residual": None,
        "tolerance": None,
        "holds": None,
        "cases": len(values),
        "cases_total": drawn["drawn"],
        "judged": {precision: drawn},
        "worst_case": {},
        "finding": finding_entry,
    }


def _rest_entry(claim: Claim, scenario: Scenario, legs: Legs) -> dict[str, str]:
    """Whether what a training left was at rest, or the budget at which it is compared."""
    if not scenario.trains:
        return {}
    if isinstance(claim.rest, str):
        return {"rest": claim.rest or rest.NOT_TESTED}
    reasons = [left_out_reasons(leg) for leg in legs.values()]
    if any(np.any(of_leg == claims.STILL_MOVING) for of_leg in reasons):
        return {"rest": claims.STILL_MOVING}
    return {"rest": rest.AT_REST} if any(np.any(of_leg == "") for of_leg in reasons) else {}


def _rest_of_finding(finding: Finding, judged: Sequence[Outcome]) -> str:
    """The same of a finding."""
    if isinstance(finding.rest, str):
        return finding.rest or rest.NOT_TESTED
    # At the start of a training there is no update yet, so that its share is 0 over 0.
    with np.errstate(all="ignore"):
        moving = [rest.reason_to_train_on(finding.rest(o), o.point) for o in judged]
    return next(filter(None, moving), rest.AT_REST)


# Over all precisions -------------------------------------------------------------------------


def claim_entry(claim: Claim, legs: Legs) -> dict[str, Any]:
    """Entry of ``verdict.json``: one claim over the runs in all precisions.

    A precision in which no case could be judged says nothing. If it is the one asked for, the claim
    has no verdict.
    """
    judged = {
        p: claims.judge(leg.residual.values, leg.tolerance.values, left_out_reasons(leg) == "")
        for p, leg in legs.items()
    }
    first, *others = [j.holds for j in judged.values()]
    # The precision asked for must have judged a case, but a failure in any precision is one.
    holds = None if first is None and False not in others else False not in (first, *others)
    scaling = None
    if claim.kind == "identity" and len(judged) == 2 and None not in (first, *others):
        # The worst cases of two legs can be different runs, which amplify rounding differently.
        each = {
            p: j.residual / float(legs[p].condition.values.flat[j.worst])
            for p, j in judged.items()
            if j.residual is not None  # of what was judged it never is
        }
        steps = int(legs["float64"].steps.values.flat[judged["float64"].worst])
        scaling = claims.scales_with_epsilon(each["float64"], each["float32"], steps)
        holds = holds and scaling
    met = bool(np.any(applies(next(iter(legs.values())))))
    entry = _entry(claim.id, claim.kind, claim.statement, met, judged, holds, legs)
    # Counts of the precision asked for; those of the other one stand under ``judged``.
    first = next(iter(legs.values()))
    entry["decided_by"] = _count_by_decider(first)
    entry["equal_to_the_bit"] = _is_equal_to_the_bit(claim, first)
    if claim.kind == "statistical":
        # The residual is ``-log10 p``; with a tolerance of its own it is what the claim computed,
        # and there is no p-value.
        residual = entry["residual"]
        entry["p"] = 10**-residual if residual is not None and is_test(claim) else residual
    return entry | {"scales_with_epsilon": scaling}


def _count_by_decider(leg: "xarray.Dataset") -> dict[str, int]:
    """Count the cases by what decided them: theory's steps or a certificate; trivial; excused."""
    reasons, certified = left_out_reasons(leg), leg.certified.values
    open_ones = applies(leg) & ~np.isin(reasons, ["", forms.TRIVIAL])
    return {
        "steps": int(np.sum((reasons == "") & ~certified)),
        "certificate": int(np.sum((reasons == "") & certified)),
        "trivial": int(np.sum(reasons == forms.TRIVIAL)),
        "excused": int(np.sum(open_ones)),
    }


MANY_STEPS = 10
"""After this many steps, two computations that round differently differ in some last bit."""


def _is_equal_to_the_bit(claim: Claim, leg: "xarray.Dataset") -> bool:
    """Whether long runs left a residual of exactly 0, as a side compared with itself would."""
    judged = (left_out_reasons(leg) == "") & (leg.steps.values >= MANY_STEPS) & leg.two_sided.values
    return bool(claim.kind == "identity" and judged.any() and not leg.residual.values[judged].any())


def control_entry(control: Control, claim: Claim, legs: Legs) -> dict[str, Any]:
    """Entry of ``verdict.json`` of a control: its claim is judged everywhere and fails clearly.

    The check of a hypothesis that it breaks must notice, and no other reason may leave a case out,
    but that theory calls it ill-conditioned: then another case must show it.

    Args:
        control: the control.
        claim: the claim that it breaks.
        legs: precision -> what :func:`residuals` gives of it.
    """
    fit = {p: leg for p, leg in legs.items() if not np.all(leg.reason == rounding.REASON)}
    if next(iter(legs)) not in fit or all(map(_says_nothing, legs.values())):
        return _open_control_entry(control, legs)
    legs = fit
    # Theory says of these that rounding may hide anything, before the run: the other seeds decide.
    shown = {p: leg.reason.values != ILL_CONDITIONED for p, leg in legs.items()}
    # The limit of a test is a p-value of 1e-6: to pass it is clear by itself.
    clearly = 1.0 if claim.kind == "statistical" else claims.CLEARLY
    judged = {
        p: claims.judge_control(leg.residual.values, leg.tolerance.values, clearly, shown[p])
        for p, leg in legs.items()
    }
    # Where a hypothesis is broken, its check must have noticed in every other case; where the
    # formula or the algorithm is, every other case must be judged.
    own = control.breaks == "applies"
    unmet, reason = ("", OWN_HYPOTHESES[0]) if own else (control.breaks, "")
    as_broken = all(
        bool(np.all(leg.unmet.values == unmet) and np.all(leg.reason.values[shown[p]] == reason))
        for p, leg in legs.items()
    )
    met = all(bool(np.any(applies(leg))) for leg in legs.values())
    holds = as_broken and all(j.holds for j in judged.values())
    text = f"{control.statement}: {control.claim} fails"
    entry = _entry(control.id, "control", text, met, judged, holds, legs)
    settings = json.loads(next(iter(legs.values())).attrs["fixed"])
    return entry | {"claim": control.claim, "worst_case": settings | entry["worst_case"]}


def _says_nothing(leg: "xarray.Dataset") -> bool:
    """Whether no case of a control can show anything, since its claim would be open there, too."""
    reasons = leg.reason.values.ravel().tolist()
    return all(r in (TOO_FEW_SEEDS, LOST) or r.startswith(claims.UNSEEN_RELEASE) for r in reasons)


def _open_control_entry(control: Control, legs: Legs) -> dict[str, Any]:
    """Entry of a control whose claim wants more seeds, or another release or device."""
    nothing = {
        p: Judgement(None, None, None, 0, leg.residual.size, None) for p, leg in legs.items()
    }
    text = f"{control.statement}: {control.claim} fails"
    entry = _entry(control.id, "control", text, False, nothing, None, legs)
    return entry | {"claim": control.claim}


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
        "residual": finite_or_none(judged[first].residual),
        "tolerance": finite_or_none(judged[first].tolerance),
        "holds": holds,
        "cases": judged[first].cases,
        "cases_total": judged[first].total,
        "judged": {p: _counts(leg) for p, leg in legs.items()},
        "worst_case": point_of(legs[first], judged[first].worst),
    }
    for other in others:
        entry[f"residual_{other}"] = finite_or_none(judged[other].residual)
        entry[f"tolerance_{other}"] = finite_or_none(judged[other].tolerance)
    return entry


def _counts(leg: "xarray.Dataset") -> dict[str, Any]:
    reasons = left_out_reasons(leg).ravel().tolist()
    counts = {name: reasons.count(name) for name in sorted(set(reasons) - {""})}
    entry = {"drawn": len(reasons), "judged": reasons.count(""), "left_out": counts}
    # A theorem's own "still moving" has no number of steps: it says so in words alone.
    asks = np.isin(left_out_reasons(leg), claims.MORE_STEPS_HELP)
    short = asks & ~np.isnan(leg.steps_needed.values)
    if not np.any(short):
        return entry
    # The largest: so many would do for all of these cases.
    needed = float(np.max(leg.steps_needed.values[short]))
    flag = str(leg.steps_flag.values[short].flat[0])
    return entry | {
        "more_steps": {"needed": int(needed) if np.isfinite(needed) else None, "flag": flag or None}
    }


def finite_or_none(value: float | None) -> float | None:
    """A number as a JSON file holds it: neither NaN nor infinity."""
    return value if value is not None and np.isfinite(value) else None


def point_of(leg: "xarray.Dataset", index: int | None) -> dict[str, Any]:
    """The values of the axes at the case with an index; empty for None."""
    if index is None:
        return {}
    place = np.unravel_index(index, leg.residual.shape)
    where = dict(zip(map(str, leg.residual.dims), place, strict=True))
    return {name: leg[name].values[i].item() for name, i in where.items()}


def _divergence_lines(results: "xarray.Dataset", scenario: Scenario) -> list[str]:
    if scenario.diverged_name not in results:
        return []
    steps = results[scenario.diverged_name]
    # -1 says that a run did not diverge.
    (lost,) = np.nonzero(steps.values.ravel() >= 0)
    lines = []
    for index in lost[:SHOWN]:
        point = point_of(results.assign(residual=steps), int(index))
        where = " ".join(f"{name}={flag_text(value)}" for name, value in point.items())
        lines.append(f"{scenario.id}: diverged at step {steps.values.flat[index]}: {where}")
    if len(lost) > SHOWN:
        lines.append(f"{scenario.id}: {len(lost)} of {steps.size} diverged, see results.nc")
    return lines


# Residual over tolerance, for figures -------------------------------------------------------


def worst_ratio(
    several: Sequence[Claim], legs: Mapping[str, Legs], precision: str
) -> "xarray.DataArray":
    """Largest :func:`ratio_of` over the claims about single cases, at each point of a sweep."""
    ratios = [
        ratio_of(legs[claim.id][precision], precision) for claim in several if not claim.seeds
    ]
    # A NaN, which stands for a claim that was not judged, gives way to a number.
    return reduce(lambda a, b: a.copy(data=np.fmax(a.values, b.values)), ratios)


def ratio_of(
    leg: "xarray.Dataset", precision: str, *, everything: bool = False
) -> "xarray.DataArray":
    """Residual / tolerance at each point; tolerance 0 counts as one rounding.

    It is infinite where the residual is lost, and NaN where the case is left out unless
    ``everything`` is asked for.

    Args:
        leg: what :func:`residuals` gives.
        precision: of the run.
        everything: whether cases that are left out count, too.
    """
    limit = leg.tolerance.values
    ratio = leg.residual.values / np.where(limit > 0, limit, np.finfo(precision).eps)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    # In NumPy: xarray takes ten times as long for arrays as small as these.
    judged = everything | (left_out_reasons(leg) == "")
    return leg.residual.copy(data=np.where(judged, ratio, np.nan))
