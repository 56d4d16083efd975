"""What is claimed of LoRA in one step and of compressed Deep LoRA: scales, and what shows nothing.

The formulas themselves are tried on PEFT and on adapters in the tests of these.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.lora.compressed_deep_lora_claims import COMPRESSED
from lrdyn.lora.one_step_claims import LOSSES, ONE_STEP, svd_cutoff
from lrdyn.lora.statement import LORA
from lrdyn.verification.judging.judging import residuals
from tests import oracles

FLAGS = {"rows": 4, "cols": 5, "rank": 2, "learning_rate": 0.1, "rate_ratio": 4.0}
SLOPES = {
    "squares": lambda Z: Z,
    "logistic": lambda Z: (1 + np.tanh(Z / 2)) / 2,
    "sines": np.cos,
}


def power_of(scenario, found, name, dtype="float64"):
    """Why a case that passes shows nothing."""
    (claim,) = (claim for claim in scenario.claims if claim.id == name)
    leg = residuals(claim, scenario, found, dtype, power=True)
    assert np.all(leg.residual <= leg.tolerance)
    return leg.reason.values.ravel().tolist()


def terms_by_hand(case, name):
    W, s, B, A, X, Y = oracles.double(
        (case.weight, case.scale, case.B, case.A, case.inputs, case.outputs)
    )
    eta_A, eta_B = oracles.double(case.rates)
    G = SLOPES[name]((W + s * B @ A) @ X - Y) @ X.T
    of_A, of_B = -eta_A * s * B @ (s * B.T @ G), -eta_B * s * (s * G @ A.T) @ A
    return np.stack([of_A, of_B, s * (eta_B * s * G @ A.T) @ (eta_A * s * B.T @ G)])


@pytest.mark.parametrize("scale", [0.5, 1000.0])
def test_each_loss_has_the_scale_of_its_own_terms(scale):
    """Within what a sum of some 30 terms loses; and a sine of 1000 three digits."""
    swept = ("learning_rate", "rate_ratio")
    flags = {name: jnp.asarray(v) if name in swept else v for name, v in FLAGS.items()}
    case = ONE_STEP.case(jax.random.key(0), adapter_scale=jnp.asarray(scale), **flags)
    theory = jax.device_get(jax.jit(ONE_STEP.predict)(case))
    product = np.abs(oracles.double(case.scale * case.B @ case.A)).max()
    for number, name in enumerate(LOSSES):
        terms = terms_by_hand(case, name)
        total, given = terms.sum(axis=0), float(theory.step_scale[number])
        oracles.assert_close(theory.one_step[number], total, size=9, scale=given)
        own = np.abs(terms).sum(axis=0).max()
        lost = 30 * scale if name == "sines" else 30
        assert own + product < 1.1 * given < 1.1 * (lost * own + product)
        largest = np.abs(theory.dora_step[number]).max()
        assert largest <= theory.dora_scale[number] <= 30 * largest


@pytest.mark.parametrize("loss", range(len(LOSSES)))
def test_a_wrong_step_of_any_loss_is_seen_beside_the_others(loss):
    """Though at s = 1000 that of the squares is a million times as long."""
    found, legs = oracles.judged(LORA, ONE_STEP, FLAGS | {"adapter_scale": 1000.0})
    for name, scale in (("one_step", "step_scale"), ("dora_step", "dora_scale")):
        assert power_of(ONE_STEP, found, name) == [""]
        wrong, limit = found[f"{name}_measured"].copy(), legs[name].tolerance.item()
        wrong[{"loss": loss}] += 30 * limit * found[scale].isel(loss=loss)
        (claim,) = (claim for claim in ONE_STEP.claims if claim.id == name)
        moved = found.assign({f"{name}_measured": wrong})
        assert residuals(claim, ONE_STEP, moved, "float64").residual.item() > 29 * limit


def test_theory_that_leaves_the_numbers_of_a_precision_decides_nothing():
    """The third term, eta_A eta_B s^3 G A^T B^T G, is the product of six large numbers."""
    flags = {"rows": 2, "cols": 5, "rank": 1, "learning_rate": 1e12}
    flags |= {"adapter_scale": 486.1, "rate_ratio": (0.1228, 1000.0)}
    for dtype, reasons in (("float32", ["overflows", "overflows"]), ("float64", ["", ""])):
        _, legs = oracles.judged(LORA, ONE_STEP, flags, (517160124,), dtype)
        assert legs["one_step"].reason.values.ravel().tolist() == reasons
        assert legs["dora_step"].reason.values.ravel().tolist() == ["", ""]
        judged = legs["one_step"].reason == ""
        assert (legs["one_step"].residual <= legs["one_step"].tolerance).where(judged, True).all()


def test_a_product_below_rounding_shows_nothing_of_compression():
    """Of five layers of scale .001 the whole product is below the last digit of the target."""
    deep = {"dim": 12, "depth": 5, "rank": 2, "steps": 20}
    for scale, reason in ((0.001, "below what can be seen here"), (1.0, "")):
        found, _ = oracles.judged(LORA, COMPRESSED, deep | {"init_scale": scale})
        for name in ("deep_lora", "deep_lora_centred"):
            assert power_of(COMPRESSED, found, name) == [reason]


def test_the_run_that_subtracts_its_start_is_excused_by_a_theory_of_its_own(dtype):
    """From scale 1.3 the product of four layers starts at 2.9: less of it, the target is as far."""
    deep = {"dim": 14, "depth": 4, "rank": 1, "steps": 111, "learning_rate": 0.1044}
    grid = deep | {"init_scale": (0.8, 1.311)}
    found, legs = oracles.judged(LORA, COMPRESSED, grid, (1510774253,), dtype)
    assert legs["deep_lora"].reason.values.ravel().tolist() == ["", ""]
    assert legs["deep_lora_centred"].reason.values.ravel().tolist() == ["", "ill-conditioned"]
    # Two runs that are equal in exact arithmetic are far apart.
    assert np.max(np.squeeze(found.deep_lora_centred.values)[1]) > 1e-4


def test_a_start_whose_product_underflows_can_be_compressed():
    """Scale 1e-12 to the fifth power is no number of float32; its frame is one."""
    deep = {"dim": 6, "depth": 5, "rank": 1, "steps": 10, "init_scale": 1e-12}
    found, legs = oracles.judged(LORA, COMPRESSED, deep, dtype="float32")
    for field in (found.deep_lora_measured, found.deep_lora_centred):
        assert np.isfinite(field).all()
    for claim in ("deep_lora", "deep_lora_centred"):
        assert (legs[claim].residual <= legs[claim].tolerance).all()


def test_an_svd_is_that_of_a_matrix_nearby(dtype):
    """It is as near as LAPACK's criterion of convergence says, which is looser than rounding."""
    draws = np.random.default_rng(0).standard_normal((4000, 7, 8)).astype(dtype)
    left, values, right = np.linalg.svd(draws, full_matrices=False)
    again = (left.astype(float) * values[:, None, :].astype(float)) @ right.astype(float)
    apart = np.linalg.norm(again - draws.astype(float), axis=(1, 2)) / values[:, 0]
    assert np.max(apart) < 6 * svd_cutoff(dtype)
    if dtype == "float64":
        assert np.max(apart) > 0.5 * svd_cutoff(dtype)
