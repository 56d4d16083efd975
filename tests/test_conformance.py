"""Every registered theorem gets the same tests, on the files that its command writes.

What a theorem claims is computed again by NumPy from the arrays in ``results.nc``, by their names
alone, and compared with what the verdict says of it.
"""

import dataclasses

import numpy as np
import pytest
import xarray as xr

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


def beyond(low, high):
    """How far something is above what bounds it."""
    return lambda d: np.maximum(low(d) - high(d), 0)


def curve(name, *, until=-np.inf):
    """Values of a run at all recorded steps, while that of the full network is above a level."""
    return lambda d: d[name].where(d["full_error"] >= until)


def at_end(name):
    return lambda d: d[name].isel(step=-1)


def above_full(d):
    return beyond(curve("spectral_error", until=1e-3), curve("full_error"))(d).max("step")


def falls(values, level):
    """Where a curve first falls to a level; linear between two records."""
    steps = values["step"].values

    def one(v, l):
        (below,) = np.nonzero(v <= l)
        if not len(below):
            return 2.0 * steps[-1]
        i = max(below[0], 1)
        return np.interp(l, v[[i, i - 1]], steps[[i, i - 1]])

    return xr.apply_ufunc(one, values, level, input_core_dims=[["step"], []], vectorize=True)


def later(d):
    return np.maximum(falls(d["spectral_error"], 1e-2) / falls(d["full_error"], 1e-2) - 1, 0)


def drop_times_apart(d):
    full, basis = (falls(d[n], 0.9 * d[n].isel(step=0)) for n in ("full_loss", "basis_loss"))
    return abs(basis / full - 1)


RECOVERY = {"recovery": above_full, "first": later, "recovered": at_end("spectral_error")}


# Theorem 1


def each_case(residual):
    """A residual of one case, for all of them."""

    def over(d):
        stacked = d.stack(case=[dim for dim in d.dims if dim in AXES])
        cases = [stacked.isel(case=index) for index in range(stacked.sizes["case"])]
        values = xr.DataArray([residual(case) for case in cases], {"case": stacked["case"]})
        return values.unstack("case")

    return over


@each_case
def from_minimisers(c):
    """Distance from the minimiser, or from all of them if sigma_r is tied and kept."""
    P, best = (c[f"product_{part}"].transpose("row", "column").values for part in
               ("measured", "predicted"))  # fmt: skip
    rank, shrunk, tied = int(c["rank"]), c["shrunk"].values, c["tied"].values == 1
    scale, size = c["target_values"].values[0], shrunk[rank - 1]
    if size == 0 or not tied[rank:].any():
        return abs(P - best).max() / scale
    U = c["left"].transpose("row", "target_index").values
    V = c["right"].transpose("column", "target_index").values
    seen, expected = U.T @ P @ V, np.zeros((len(tied), len(tied)))
    for i in range(rank):
        if not tied[i]:
            expected[i, i] = shrunk[i]
    free = np.ix_(tied, tied)
    block = seen[free].copy()
    seen[free] = 0
    errors = [
        abs(seen - expected).max(),
        abs(block - block.T).max(),
        abs(block @ block - size * block).max() / size,
        abs(np.trace(block) - size * tied[:rank].sum()),
        abs(P - U @ (U.T @ P @ V) @ V.T).max(),
    ]
    return max(errors) / scale


def on_scale(name, power=1.0):
    """Two arrays, or one that should vanish, on the scale of sigma_1 to a power."""

    def residual(d):
        measured = d.get(f"{name}_measured", d.get(name))
        return largest(measured - d.get(f"{name}_predicted", 0)) / first_value(d) ** power

    return residual


def below_bound(name):
    def residual(d):
        predicted, measured = d[f"{name}_predicted"], d[f"{name}_measured"]
        return largest(np.maximum(predicted - measured, 0) / np.maximum(predicted, measured))

    return residual


def first_value(d):
    return d["target_values"].isel(target_index=0)


def minimum(d):
    scale = (d["target_values"] ** 2).sum("target_index") / 2
    return abs(d["loss_predicted"] - d["loss_measured"]) / scale


def below_minimum(d):
    scale = (d["target_values"] ** 2).sum("target_index") / 2
    return np.maximum(d["loss_predicted"] - d["objective"].min("step"), 0) / scale


def balance(d):
    return d["imbalance"] / first_value(d) ** (2 / d["depth"].astype(d["imbalance"].dtype))


def outside_family(d):
    apart = abs(d["found"] - d["family"]).max(["row", "column"]).where(d["admissible"] == 1)
    limit = d["tolerance_search"] * first_value(d) ** 1.5
    worst = apart.min("set").where(d["found_gradient"] <= limit, 0).max("search")
    return worst * d["separation"] / first_value(d) ** 2


def encoded_loss(d):
    scale = (d["input_values"] ** 2).sum("input_index")
    return abs(d["autoencoder_loss_predicted"] - d["autoencoder_loss_measured"]) / scale


# Theorem 3


def in_standard_errors(name):
    return lambda d: abs(d[f"{name}_predicted"] - d[f"{name}_measured"]) / d["standard_error"]


def on_worst_data(name):
    """Relative difference on the data set where it is largest."""

    def residual(d):
        predicted, measured = d[f"{name}_predicted"], d[f"{name}_measured"]
        inner = [dim for dim in predicted.dims if dim not in {*AXES, "data"}]
        apart = abs(predicted - measured).max(inner)
        scale = np.maximum(abs(predicted).max(inner), abs(measured).max(inner))
        return (apart / scale.where(scale > 0, 1)).max("data")

    return residual


def above_penalty(d):
    return np.maximum((d["nuclear_bound"] / d["penalty"] - 1).max(["data", "autoencoder"]), 0)


def absolute(name):
    return lambda d: largest(d[f"{name}_predicted"] - d[f"{name}_measured"])


# Theorem 4


def each_rule(name, rule="rule"):
    """Relative difference for the optimiser where it is largest."""

    def residual(d):
        predicted, measured = d[f"{name}_predicted"], d[f"{name}_measured"]
        inner = ["step", "parameter"]
        scale = np.maximum(abs(predicted).max(inner), abs(measured).max(inner))
        return (abs(predicted - measured).max(inner) / scale).max(rule)

    return residual


def ranks_beyond(low, high, first=0):
    """How far a stable rank is out of its bound, on the scale of what is left of the gradient."""

    def residual(d):
        beyond = np.maximum(d[low] / d[high] - 1, 0) * d["resolution"]
        return largest(beyond.isel(recursion=slice(first, None)))

    return residual


def sums_of_wrong_rank(d):
    wrong = d["sum_rank_predicted"] != d["sum_rank_measured"]
    return (wrong & (d["independence"] >= 0.1)).sum("refreshes")


RESIDUALS = {
    **RECOVERY,
    **{f"sensing_{name}": function for name, function in RECOVERY.items()},
    "same_time": drop_times_apart,
    "fixed_basis": lambda d: beyond(lambda d: d["floor"], curve("fixed_error"))(d).max("step"),
    "discrepant_rates": beyond(at_end("basis_error"), lambda d: d["floor"]),
    "basis": lambda d: largest(d["basis_predicted"] - d["basis_measured"]),
    "basis_gap": beyond(lambda d: d["basis_gap_measured"], lambda d: d["basis_gap_predicted"]),
    "minimiser": from_minimisers,
    "minimum": minimum,
    "schatten": on_scale("singular_values"),
    "balanced": balance,
    "lower_bound": below_minimum,
    "critical_gradient": on_scale("critical_gradient", 1.5),
    "critical_loss": relative("critical_loss"),
    "spectrum": relative("spectrum"),
    "smallest": lambda d: (
        largest(d["smallest_predicted"] - d["smallest_measured"])
        / d["spectrum_predicted"].max(["set", "eigenvalue"])
    ),
    "global": relative("global"),
    "search": outside_family,
    "deep_origin": on_scale("deep_origin"),
    "autoencoder": lambda d: largest(d["autoencoder_predicted"] - d["autoencoder_measured"]),
    "autoencoder_loss": encoded_loss,
    "transposed": lambda d: d["asymmetry"],
    "autoencoder_gradient": lambda d: (
        d["autoencoder_gradient"] / d["input_values"].isel(input_index=0) ** 2
    ),
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
    "dropout_minimiser": relative("dropout_minimiser"),
    "dropout_minimum": relative("dropout_minimum"),
    "stochastic": in_standard_errors("stochastic"),
    "dropblock": relative("dropblock"),
    "dropblock_bound": below_bound("dropblock_bound"),
    "dropblock_least": relative("dropblock_least"),
    "dropblock_product": relative("dropblock_product"),
    "rank": lambda d: (d["rank_predicted"] != d["rank_measured"]).sum("data"),
    "nuclear_bound": above_penalty,
    "attained": relative("attained"),
    "weights": relative("weights"),
    "training_loss": relative("training_loss"),
    "network_weights": relative("weights"),
    "network_training_loss": relative("training_loss"),
    "sum_excess": absolute("sum_excess"),
    "sum_rank": sums_of_wrong_rank,
    "policy_weights": relative("policy_weights"),
    "lifted": relative("lifted"),
    "signs": absolute("signs"),
    **{
        name: on_worst_data(name)
        for name in (
            "marginal",
            "optimum",
            "bottleneck",
            "bottleneck_value",
            "masked_marginal",
            "masked_optimum",
            "unidentified",
        )
    },
    "duality": each_rule("duality"),
    "scale_linear": each_rule("scale_linear", "linear_rule"),
    "scale_adam": each_rule("scale_adam", "adam_rule"),
    "scale_roots": each_rule("scale_roots", "root_rule"),
    "same_eps": lambda d: largest(d["same_eps_predicted"] - d["same_eps_measured"]) / d["scale"],
    "gradient_path": relative("gradient_path"),
    "stable_rank_bound": ranks_beyond("stable_rank", "stable_rank_bound"),
    "stable_rank_floor": ranks_beyond("stable_rank_floor", "stable_rank"),
    "lemma_3_3": ranks_beyond("stable_rank", "lemma_3_3", first=4),
    "optax_same": relative("optax_same"),
    "optax_precise": lambda d: relative("optax_precise")(d) / d["optax_unit"],
    "optax_shapes": relative("optax_shapes"),
    "optax_svds": relative("optax_svds"),
    "optax_decay": lambda d: (
        largest(d["optax_decay_predicted"] - d["optax_decay_measured"]) / d["update_scale"]
    ),
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
    results = ran.group("/controls/float64").sel(control=control.id)
    assert str(results.claim.item()) == control.claim
    assert (results.residual > CLEARLY * results.tolerance).all()
    # A broken hypothesis is seen by its check; a wrong formula breaks no hypothesis.
    assert results.met.all() == entry["hypotheses_met"] == (control.case is None)


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
