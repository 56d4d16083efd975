"""Every registered theorem gets the same tests, on the files that its command writes.

What a theorem claims is computed again by NumPy from the arrays in ``results.nc``, by their names
alone, and compared with what the verdict says of it.
"""

import dataclasses

import numpy as np
import pytest

from experiments.__main__ import THEOREMS
from lrdyn.claims import CLEARLY
from lrdyn.theorems.corollary1 import COROLLARY1
from lrdyn.theorems.theorem2 import THEOREM2
from lrdyn.verify import PRECISIONS, claims_job, controls_job, verify, worst_ratio
from tests import oracles
from tests.runs import finished

DEEP = (THEOREM2, COROLLARY1)
"""The theorems about gradient descent on deep factorisation."""
AXES = {"seed", "amount"} | {flag.name for theorem in THEOREMS for flag in theorem.flags}


@pytest.fixture(params=[theorem.name for theorem in DEEP])
def ran(request, tmp_path_factory):
    return finished(request.param, tmp_path_factory.getbasetemp())


def everywhere(part, keep=lambda entry: True, theorems=THEOREMS):
    """Statements, or claims or controls with their statements, of the theorems."""
    return [
        pytest.param(theorem, statement, *entry, id="-".join([theorem.name, *ids]))
        for theorem in theorems
        for statement in theorem.statements
        for ids, entry in (
            [([x.id], (x,)) for x in getattr(statement, part)] if part else [([statement.id], ())]
        )
        if keep(*(entry or (statement,)))
    ]


def group_of(theorem, statement, precision):
    root = "/" if statement is theorem.statements[0] else f"/{statement.id}/"
    return root if precision == "float64" else f"{root}{precision}"


def entry_of(ran, name):
    (entry,) = [claim for claim in ran.verdict["claims"] if claim["id"] == name]
    return entry


# Residuals, again ---------------------------------------------------------------------------


def largest(array):
    """Largest absolute entry of each case."""
    return abs(array).max([dim for dim in array.dims if dim not in AXES])


def weights(name):
    """Two arrays of weights, on the scale of the largest singular value that occurs."""

    def residual(d):
        values = d.get("singular_values_measured", d.get("singular_values"))
        return largest(d[f"{name}_predicted"] - d[f"{name}_measured"]) / largest(values)

    return residual


def vanishing(name):
    return lambda d: (
        largest(d[name]) / largest(d.get("singular_values_measured", d.get("singular_values")))
    )


def relative(name):
    def residual(d):
        predicted, measured = d[f"{name}_predicted"], d[f"{name}_measured"]
        return largest(predicted - measured) / np.maximum(largest(predicted), largest(measured))

    return residual


def mean_loss(d):
    return np.maximum(weights("mean_rho")(d), weights("mean_reduced")(d))


def outside_interval(d):
    low, high, value = d["collapse_lower"], d["collapse_predicted"], d["collapse_measured"]
    return np.maximum(np.maximum(low - value, value - high), 0) / high


def error_identity(d):
    return largest(d["error_predicted"] - d["error_measured"]) / d["scale"]


def above_bound(d):
    excess = (d["error_measured"].max("step") - d["bound"]).max("network")
    return np.maximum(excess, 0) / np.maximum(d["bound"].max("network"), d["scale"])


def below_bound(name):
    def residual(d):
        predicted, measured = d[f"{name}_predicted"], d[f"{name}_measured"]
        return largest(np.maximum(predicted - measured, 0) / np.maximum(predicted, measured))

    return residual


def in_standard_errors(name):
    return lambda d: abs(d[f"{name}_predicted"] - d[f"{name}_measured"]) / d["standard_error"]


def absolute(name):
    return lambda d: largest(d[f"{name}_predicted"] - d[f"{name}_measured"])


RESIDUALS = {
    "off_block": vanishing("off_block"),
    "bulk": vanishing("bulk_deviation"),
    "rho": weights("rho"),
    "reduced": weights("reduced"),
    "spectra": weights("singular_values"),
    "loss": relative("loss"),
    "mean_loss": mean_loss,
    "class_off_block": vanishing("class_off_block"),
    "class_rho": weights("class_rho"),
    "class_product": relative("class_product"),
    "collapse": relative("collapse"),
    "collapse_interval": outside_interval,
    "error_identity": error_identity,
    "error_bound": above_bound,
    "parameters": relative("parameters"),
    "mask_identity": relative("mask_identity"),
    "any_masks": relative("any_masks"),
    "monte_carlo": in_standard_errors("monte_carlo"),
    "monte_carlo_rate": absolute("monte_carlo_rate"),
    "penalty": relative("penalty"),
    "unscaled_masks": relative("unscaled_masks"),
    "factorisations": below_bound("factorisations"),
    "equalised": relative("equalised"),
    "equalised_product": relative("equalised_product"),
    "equalised_penalty": relative("equalised_penalty"),
    "width_free": relative("width_free"),
    "fixed_keep_prob": relative("fixed_keep_prob"),
    "layers": relative("layers"),
    "layers_bound": below_bound("layers_bound"),
    "layers_rank_one": relative("layers_rank_one"),
    "dropconnect_input": relative("dropconnect_input"),
    "dropconnect_output": relative("dropconnect_output"),
    "minimiser": relative("minimiser"),
    "minimum": relative("minimum"),
    "stochastic": in_standard_errors("stochastic"),
    "dropblock": relative("dropblock"),
    "dropblock_bound": below_bound("dropblock_bound"),
    "dropblock_least": relative("dropblock_least"),
    "dropblock_product": relative("dropblock_product"),
}


@pytest.mark.parametrize("precision", PRECISIONS["float64"])
@pytest.mark.parametrize(("theorem", "statement", "claim"), everywhere("claims"))
def test_a_residual_can_be_recomputed_from_the_results(
    theorem, statement, claim, precision, tmp_path_factory
):
    ran = finished(theorem.name, tmp_path_factory.getbasetemp())
    results = ran.group(group_of(theorem, statement, precision))
    again = RESIDUALS[claim.id](results)
    saved = results[f"residual_{claim.id}"]
    # Inside a program the last bit of an entry can differ from the one that is saved.
    assert float(abs(again - saved).max()) <= np.finfo(precision).eps
    applies = results[f"applies_{claim.id}"].values
    assert applies.any()
    assert float(again.where(applies).max()) <= float(results[f"tolerance_{claim.id}"].max())


@pytest.mark.parametrize("precision", PRECISIONS["float64"])
@pytest.mark.parametrize(("theorem", "statement", "claim"), everywhere("claims"))
def test_a_verdict_names_the_worst_case(theorem, statement, claim, precision, tmp_path_factory):
    ran = finished(theorem.name, tmp_path_factory.getbasetemp())
    results, entry = ran.group(group_of(theorem, statement, precision)), entry_of(ran, claim.id)
    met = [results[f"met_{name}"].values for name in statement.hypotheses]
    cases = np.logical_and.reduce([*met, results[f"applies_{claim.id}"].values])
    suffix = "" if precision == "float64" else "_float32"
    residual, limit = (results[f"{part}_{claim.id}"] for part in ("residual", "tolerance"))
    at = np.argmax((residual / limit.where(limit > 0, 1)).values[cases])
    assert entry[f"residual{suffix}"] == residual.values[cases][at]
    assert entry[f"tolerance{suffix}"] == limit.values[cases][at]
    assert (entry["holds"], entry["kind"], entry["hypotheses_met"]) == (True, claim.kind, True)
    if not suffix:
        assert entry["cases"] == cases.sum()
        assert residual.sel(entry["worst_case"]) == entry["residual"]


# Start, end and the recursion, by an oracle --------------------------------------------------


def cases(results):
    """Each case with the scales and decays of its layers."""
    stacked = results.stack(case=[dim for dim in results.dims if dim in AXES])
    for index in range(stacked.sizes["case"]):
        case = stacked.isel(case=index)
        spread = np.linspace(-0.5, 0.5, int(case["depth"]))
        scales = float(case["init_scale"]) * float(case["init_spread"]) ** spread
        decays = float(case["weight_decay"]) * float(case["decay_spread"]) ** spread
        yield case, scales, decays


def test_the_start_is_orthogonal(ran):
    """At t = 0 every singular value of layer l is eps_l, and so is rho_l."""
    for case, scales, _ in cases(ran.group("/").sel(step=0)):
        values = case.get("singular_values_measured", case.get("singular_values"))
        values = values.transpose("index", "layer").values
        oracles.assert_close(values, np.broadcast_to(scales, values.shape), size=9)
        oracles.assert_close(case["rho_measured"].values, scales, size=9)
        oracles.assert_close(case["rho_predicted"].values, scales)


def test_the_bulk_follows_the_recursion_in_python_scalars(ran):
    steps = ran.group("/")["step"].values.tolist()
    assert (steps[0], steps[-1]) == (0, 1000)
    assert len(steps) <= 50
    for case, scales, decays in cases(ran.group("/")):
        expected = oracles.rho(scales, float(case["learning_rate"]), decays, steps)
        found = case["rho_measured"].transpose("step", "layer").values
        oracles.assert_close(found, expected, steps=1000, size=9)


def test_the_bulk_decays_like_a_power_of_time(ran):
    """Without decay, L = 3 equal layers: rho^-4 grows by 4 eta a step, or a little more."""
    plain = ran.group("/").sel(weight_decay=0.0, init_spread=1.0, decay_spread=1.0)
    eta, eps, t = plain["learning_rate"], plain["init_scale"], plain["step"]
    inverse = plain["rho_measured"] ** -4.0
    assert (inverse.isel(step=-1) >= eps**-4.0 + 4 * eta * t[-1]).all()
    assert (inverse.isel(step=-1) <= eps**-4.0 + 4 * eta * t[-1] / (1 - eta * eps**4) ** 5).all()


# Controls ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theorem", "statement", "control"), everywhere("controls"))
def test_a_control_is_seen_to_fail(theorem, statement, control, tmp_path_factory):
    ran = finished(theorem.name, tmp_path_factory.getbasetemp())
    entry = entry_of(ran, control.id)
    assert (entry["kind"], entry["holds"]) == ("control", True)
    results = ran.group(f"/controls/{control.id}/float64")
    limit = results[f"tolerance_{control.claim}"]
    assert (results[f"residual_{control.claim}"] > CLEARLY * limit).all()
    checks = [results[f"met_{name}"].all() for name in statement.hypotheses]
    checks.append(results[f"applies_{control.claim}"].all())
    # A broken hypothesis is seen by its check; a wrong formula breaks no hypothesis.
    assert all(checks) == entry["hypotheses_met"] == (control.case is None)


@pytest.mark.parametrize(
    ("theorem", "statement", "control"),
    everywhere("controls", lambda control: control.amounts),
)
def test_without_a_move_the_claim_is_restored(theorem, statement, control):
    job = controls_job(theorem, statement, (control,), (0,), "float64", amounts=(0.0,))
    (results,) = job.run().values()
    assert all(results[f"met_{name}"].all() for name in statement.hypotheses)
    assert (results[f"residual_{control.claim}"] <= results[f"tolerance_{control.claim}"]).all()


# One step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theorem", "statement"),
    # Collapse is a claim about the end.
    everywhere(None, lambda statement: statement.id != "collapse", DEEP),
)
def test_one_step_is_enough(theorem, statement):
    bare = dataclasses.replace(statement, controls=())
    alone = dataclasses.replace(theorem, statements=(bare,))
    settings = {
        flag.name: flag.quick[:1] if flag.swept else (flag.quick or (None,))[0]
        for flag in theorem.flags
    }
    settings |= {"dim": (5,), "depth": (2,), "rank": (1,), "steps": 1}
    found = verify(alone, settings, dtype="float32", seeds=(0,), thorough=False)
    assert found.verdict["holds"] is True
    assert all(claim["holds"] for claim in found.verdict["claims"])
    assert found.groups["/"]["step"].values.tolist() == [0, 1]


def test_the_table_of_residuals_is_complete():
    claims = {c.id for theorem in THEOREMS for s in theorem.statements for c in s.claims}
    assert set(RESIDUALS) == claims


# Long waits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("theorem", DEEP, ids=lambda theorem: theorem.name)
def test_rounding_that_repeats_at_a_saddle_is_tolerated(theorem):
    """From small starts the same update is rounded in the same way thousands of times."""
    statement = theorem.statements[0]
    settings = {flag.name: flag.quick[:1] for flag in theorem.flags if flag.swept}
    settings |= {"dim": (8,), "depth": (4,), "rank": (1,), "steps": 30_000, "target": None}
    settings["init_scale"] = (0.003, 0.01, 0.03)
    job = claims_job(theorem, statement, settings, (0,), "/", "float64", optimize=False)
    found = job.run()["/"]
    ratio = worst_ratio(found, statement)
    assert float(ratio.max()) < 1
    # A random walk alone would not allow it.
    worst = {c.id: found[f"residual_{c.id}"] / found[f"tolerance_{c.id}"] for c in statement.claims}
    walk = np.sqrt(8 * 30_001) / (np.sqrt(8 * 30_001) + 15_000)
    assert max(float(r.max()) for r in worst.values() if np.isfinite(r.max())) > walk
