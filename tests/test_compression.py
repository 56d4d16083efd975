from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn.core import masking
from lrdyn.corollary1 import compression
from lrdyn.corollary1.statement import COMPRESSION, CompressionMeasured, CompressionTheory
from lrdyn.verification.judging.judging import forms_of
from lrdyn.verification.stating import forms
from lrdyn.verification.stating.statement import Outcome
from tests import oracles
from tests.oracles import Compiled, assert_apart, assert_close, double, problem

pytestmark = pytest.mark.usefixtures("strict")

ETA = 0.1
STEPS = np.array([0, 1, 10, 60])
DECAY = np.array([0.0, 0.05, 0.1])

compiled, theorem2 = Compiled(compression), Compiled(lr.theorem2)


@partial(jax.jit, static_argnames="half")
def compressed_run(weights, target, scales, eta, decay, steps, half):
    frame = lr.frame(weights, target, half)
    small = lr.reduced_target(frame, target, 2 * half)

    def product(inner):
        return compression.compressed_product(compression.compress(frame, inner))

    return lr.reduced_dynamics(small, scales, eta, decay, steps, record=product).records


def full_and_compressed(chosen, half, *, eta=ETA, decay=DECAY, steps=STEPS):
    """Products of the NumPy loop and of the compressed network at each recorded step."""
    W, Phi, scales = chosen
    compressed = compressed_run(W, Phi, scales, eta, decay, steps, half)
    run = oracles.descend(W, oracles.sum_slope(double(Phi)), eta, decay, steps)
    full = [oracles.product(layers, len(Phi)) for layers in zip(*run, strict=True)]
    return np.stack(full), double(compressed)


def distance(*both, **how):
    return np.linalg.norm(np.subtract(*full_and_compressed(*both, **how)), axis=(1, 2))


@pytest.mark.parametrize("half", [2, 3, 4])
def test_the_error_is_the_bulk_and_nothing_else(half, dtype):
    """f - f_C has d - 2 r^ equal singular values, prod |rho_l|, for every r^ >= r with room."""
    chosen = problem(spread=2.0)
    product = np.prod(oracles.rho(chosen.scales, ETA, DECAY, STEPS), axis=1)
    found = np.linalg.svd(np.subtract(*full_and_compressed(chosen, half)), compute_uv=False)
    assert_close(found, product[:, None] * (np.arange(9) < 9 - 2 * half), steps=60, size=9)
    bulk = theorem2.rho(chosen.scales, ETA, DECAY, STEPS)
    norm = np.sqrt(9 - 2 * half) * product
    assert_close(compiled.compression_error(bulk, 9, half), norm, steps=60)


def test_narrower_than_the_target_the_identity_fails(dtype):
    """r^ = 1 < r = 2: part of the target has no place, and the error does not fade with rho."""
    chosen, steps = problem(), np.array([0, 10, 100, 1000])
    first, *_, last = distance(chosen, 1, decay=np.zeros(3), steps=steps)
    bulk = theorem2.rho(chosen.scales, ETA, np.zeros(3), steps)
    predicted = np.asarray(compiled.compression_error(bulk, 9, 1))
    assert_close(first, predicted[0], size=9)
    assert_apart(last, predicted[-1])
    assert float(last) > float(predicted[-1])


def test_an_error_is_a_norm_whatever_the_sign_of_the_bulk():
    """A large step takes rho_l through 0: the product of an odd number of them is negative."""
    bulk = jnp.array([[0.9, -0.5, 1.2], [-0.9, -0.5, 1.2]])
    wanted = np.sqrt(11 - 2 * 2) * np.array([0.54, 0.54])
    assert_close(compression.compression_error(bulk, 11, 2), wanted)


@pytest.mark.parametrize(
    ("scales", "eta", "decay", "contracts", "exceeds"),
    [
        ((0.6, 0.8, 1.1), ETA, DECAY, True, False),
        # eta eps_1^2 > 2: the second layer grows, and its product with the first may or may not.
        ((2.0, 0.1), 0.6, np.zeros(2), False, True),
        ((2.0, 1.0), 0.55, np.zeros(2), False, False),
    ],
    ids=["contracts", "permits failure", "does not force it"],
)
def test_the_bound_holds_while_the_bulk_contracts(scales, eta, decay, contracts, exceeds):
    scales = np.array(scales)
    steps = 200 if contracts else 30
    bulk = theorem2.rho(scales, eta, decay, np.arange(steps))
    assert (float(compiled.bulk_contracts(scales, eta, decay, steps)) <= 1) == contracts
    largest = np.max(compiled.compression_error(bulk, 9, 2))
    assert (float(largest) > float(compiled.compression_bound(scales, 9, 2))) == exceeds


def test_the_failure_is_seen_in_the_weights():
    scales = np.array([2.0, 0.1])
    W, Phi, _ = problem(depth=2)
    W = tuple(w / 0.8 * s for w, s in zip(W, scales, strict=True))
    how = {"eta": 0.6, "decay": np.zeros(2), "steps": np.array([0, 1])}
    before, after = distance(oracles.Problem(W, Phi, jnp.asarray(scales)), 2, **how)
    bound = compiled.compression_bound(scales, 9, 2)
    assert_close(before, bound, size=9)
    assert float(after) > float(bound)


def test_bulk_contracts_agrees_with_loops(dtype):
    for scales, decay in (((0.5, 1.5, 1.0), [0.0, 4.0, 25.0]), ((2.0, 0.1, 1.0), [0.0, 0.0, 0.1])):
        bulk = oracles.rho(scales, ETA, decay, np.arange(6))
        others = np.array([[np.prod(np.delete(row, l)) for l in range(3)] for row in bulk])
        factors = np.abs(1 - ETA * np.array(decay) - ETA * others**2)
        found = compiled.bulk_contracts(jnp.array(scales), ETA, jnp.array(decay), 6)
        assert_close(found, factors.max(), size=3, steps=6)


@pytest.mark.parametrize("half", [2, 4])
def test_parameter_counts_are_those_of_the_arrays(half):
    W, Phi, _ = problem()
    frame = theorem2.frame(W, Phi, half)
    network = compression.compress(frame, (jnp.zeros((2 * half, 2 * half)),) * 3)
    arrays = {"full": W, "compressed": network, "inner": network.inner}
    expected = {name: compression.count(tree) for name, tree in arrays.items()}
    assert compression.parameter_counts(9, 3, half) == expected


def test_parameters_of_the_paper():
    counts = compression.parameter_counts(1000, 3, 5)
    assert counts == {"full": 3_000_000, "compressed": 20_300, "inner": 300}
    assert round(counts["full"] / counts["compressed"]) == 148


def test_count_takes_shapes_and_scalars():
    tree = {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": [jnp.array(1.0)]}
    assert compression.count(tree) == 13


def first_gradient(W, Phi, mask=1.0):
    """G of 1/2 ||M * (W_L ... W_1 - Phi)||^2, by hand."""
    first, *rest = double(W)
    behind = oracles.product(rest, len(Phi))
    return behind.T @ (mask * (behind @ first - double(Phi)))


def projector(columns):
    return np.asarray(columns) @ np.asarray(columns).T


def test_the_gradient_shows_the_moving_subspace(dtype):
    W, Phi, _ = problem()
    basis = compiled.gradient_basis(W, first_gradient(W, Phi), 2)
    exact = projector(np.asarray(theorem2.frame(W, Phi, 2).right)[0, :, :4])
    assert_close(projector(basis.columns), exact, size=9, scale=float(1 / basis.gap))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_basis_is_two_decompositions(seed, dtype):
    """Also where entries are hidden: the top-r right singular vectors of G, and of G^T W_1."""
    W, Phi, _ = problem(seed)
    mask = double(masking.observe(jax.random.key(seed), (9, 9), 0.7))
    gradient = first_gradient(W, Phi, mask)
    _, values, one = np.linalg.svd(gradient)
    _, _, two = np.linalg.svd(gradient.T @ double(W[0]))
    columns, _ = np.linalg.qr(np.concatenate([one[:2], two[:2]]).T)
    basis = jax.device_get(compiled.gradient_basis(W, gradient, 2))
    scale = float(1 / (1 - basis.gap))
    assert_close(projector(basis.columns), projector(columns), size=9, scale=scale)
    assert_close(basis.gap, values[2] / values[1], size=9)
    assert_close(basis.columns.T @ basis.columns, np.eye(4), size=9)


def test_the_basis_is_as_exact_as_its_gradient():
    """LAPACK stops at 50 eps where the other singular values are small: seen in G, in G^T W_1."""
    W = (jnp.asarray(oracles.rotated(1, (4, 4), np.ones(4))),) * 2
    for seed in (10, 192, 215):
        right, left = (np.linalg.qr(draw)[0] for draw in oracles.normal(seed, (4, 4), (4, 4)))
        G = (left * [1.0, 1e-7, 1e-7, 6e-8]) @ right.T
        found = compiled.gradient_basis(W, G, 1).columns
        exact = np.linalg.qr(np.stack([right[:, 0], double(W[0]).T @ left[:, 0]], axis=1))[0]
        assert_close(projector(found), projector(exact), size=4)


@pytest.mark.parametrize("scale", [0.01, 0.3, 0.6])
def test_the_gap_of_a_gradient_is_bounded(scale):
    W, Phi, scales = problem(scale=scale)
    values = np.linalg.svd(first_gradient(W, Phi), compute_uv=False)
    smallest = np.linalg.svd(double(Phi), compute_uv=False)[1]
    bound = compression.gradient_gap_bound(scales, jnp.asarray(smallest))
    assert 0 < values[2] / values[1] <= float(bound)


def test_the_gap_is_not_bounded_once_the_start_hides_the_target():
    assert np.isinf(compression.gradient_gap_bound(jnp.ones(2), jnp.array(0.5)))


def test_a_gradient_network_is_the_full_one_on_its_basis(dtype):
    W, Phi, scales = problem(spread=2.0)
    columns = np.asarray(theorem2.frame(W, Phi, 2).right)[0, :, :4]
    network = compiled.gradient_network(W, columns)
    full = oracles.product(double(W), 9)
    assert_close(compiled.compressed_product(network), full @ projector(double(columns)), size=9)
    for layer, scale in zip(network.inner, scales, strict=True):
        assert_close(layer, float(scale) * np.eye(4), size=9)


# What the claims compare -------------------------------------------------------------------------


@pytest.mark.parametrize("network", [0, 1])
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("name", ["error_identity", "error_bound"])
def test_a_wrong_error_of_any_network_at_any_step_is_seen(name, network, step):
    """On the scale of the products, here 3; the bound is that of each network."""
    bound = np.array([0.5, 0.25])
    error = np.broadcast_to(bound[:, None], (2, 3)).copy()
    theory: dict[str, Any] = {"error": error.copy(), "bound": bound}
    theory["last_compared"] = np.array(20)
    error[network, step] += 3e-6
    run: dict[str, Any] = {"error": error, "scale": np.array(3.0), "step": np.arange(0, 30, 10)}
    predicted, measured = CompressionTheory(**theory), CompressionMeasured(**run)
    outcome = Outcome({}, predicted, measured, {}, np.dtype("float64"), 1, 1)
    (claim,) = (claim for claim in COMPRESSION.claims if claim.id == name)
    (form,) = forms_of(claim, COMPRESSION, outcome)
    assert_close(form.residual(), 1e-6, scale=1e-6, steps=10**9)
    assert form.threshold(1e-12) == pytest.approx(3e-12)
    assert forms.lack_of_power([form], 1e-12) == ""


@pytest.mark.parametrize("rank", [0, 2, 5])
@pytest.mark.parametrize("dim", [10, 11])
def test_the_error_is_the_norm_of_a_bulk_of_equal_values(rank, dim):
    """An identity of size d - 2 r^ times the product of rho: at r^ = 0 it is the whole network."""
    rho = jnp.array([0.9, -0.5, 1.2])
    bulk = np.prod(rho) * np.eye(dim - 2 * rank)
    for formula in (compression.compression_error, compression.compression_bound):
        assert_close(formula(rho, dim, rank), np.linalg.norm(bulk))


@pytest.mark.parametrize(("dim", "depth", "half"), [(31, 4, 3), (12, 2, 1)])
def test_parameters_are_counted_factor_by_factor(dim, depth, half):
    inner = depth * (2 * half) ** 2
    expected = {"full": depth * dim**2, "compressed": 2 * dim * 2 * half + inner, "inner": inner}
    assert compression.parameter_counts(dim, depth, half) == expected
