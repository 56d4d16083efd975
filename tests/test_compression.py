from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from tests import oracles
from tests.oracles import assert_apart, assert_close, double, problem

ETA = 0.1
STEPS = np.array([0, 1, 10, 60])
DECAY = (0.0, 0.05, 0.1)


@partial(jax.jit, static_argnames="half")
def compressed_run(weights, target, scales, eta, decay, steps, half):
    frame = lr.frame(weights, target, half)
    small = lr.reduced_target(frame, target, 2 * half)

    def product(inner):
        return lr.compression.compressed_product(lr.compression.compress(frame, inner))

    return lr.reduced_dynamics(small, scales, eta, decay, steps, record=product).records


def full_and_compressed(chosen, half, *, eta=ETA, decay=DECAY, steps=STEPS):
    """Products of the NumPy loop and of the compressed network at each recorded step."""
    W, Phi, scales = chosen
    decay = jnp.asarray(decay, Phi.dtype)
    compressed = compressed_run(W, Phi, scales, eta, decay, steps, half)
    run = oracles.descend(W, oracles.sum_slope(double(Phi)), eta, double(decay), steps)
    full = [oracles.product(layers, len(Phi)) for layers in zip(*run, strict=True)]
    return np.stack(full), compressed


def distance(full, compressed):
    return jnp.asarray(np.linalg.norm(full - double(compressed), axis=(1, 2)), compressed.dtype)


@pytest.mark.parametrize("half", [2, 3, 4])
def test_error_identity(half, dtype):
    """||f - f_C||_F = sqrt(d - 2 r^) prod |rho_l| for every r^ >= r that has room."""
    chosen = problem(spread=2.0)
    predicted = np.sqrt(9 - 2 * half) * np.prod(
        oracles.rho(chosen.scales, ETA, DECAY, STEPS), axis=1
    )
    assert_close(distance(*full_and_compressed(chosen, half)), predicted, steps=60, size=9)
    bulk = lr.rho(chosen.scales, ETA, jnp.asarray(DECAY), STEPS)
    assert_close(lr.compression.compression_error(bulk, 9, half), predicted, steps=60)


def test_error_is_the_bulk_and_nothing_else(dtype):
    """f - f_C has d - 2 r^ equal singular values, prod rho, and no others."""
    chosen = problem()
    full, compressed = full_and_compressed(chosen, 2)
    found = np.linalg.svd(full - double(compressed), compute_uv=False)
    bulk = np.prod(oracles.rho(chosen.scales, ETA, DECAY, STEPS), axis=1)
    expected = np.concatenate([np.tile(bulk[:, None], 5), np.zeros((4, 4))], axis=1)
    assert_close(jnp.asarray(found, dtype), expected, steps=60, size=9)


def test_narrower_than_the_target_the_identity_fails(dtype):
    """r^ = 1 < r = 2: part of the target has no place, and the error does not fade with rho."""
    chosen = problem()
    steps = np.array([0, 1000])
    error = distance(*full_and_compressed(chosen, 1, decay=(0.0,) * 3, steps=steps))
    predicted = lr.compression.compression_error(lr.rho(chosen.scales, ETA, 0.0, steps), 9, 1)
    assert_close(error[0], predicted[0], size=9)
    assert_apart(error[1], predicted[1])
    assert float(error[1]) > float(predicted[1])


def test_bound_holds_while_the_bulk_contracts():
    chosen = problem(spread=2.0)
    steps = np.arange(200)
    bulk = lr.rho(chosen.scales, ETA, jnp.asarray(DECAY), steps)
    assert float(lr.compression.bulk_contracts(bulk, ETA, jnp.asarray(DECAY))) <= 1
    errors = lr.compression.compression_error(bulk, 9, 2)
    assert np.all(
        np.asarray(errors) <= float(lr.compression.compression_bound(chosen.scales, 9, 2))
    )


@pytest.mark.parametrize(
    ("scales", "eta", "exceeds"),
    [((2.0, 0.1), 0.6, True), ((2.0, 1.0), 0.55, False)],
    ids=["permits failure", "does not force it"],
)
def test_without_contraction(scales, eta, exceeds):
    """eta eps_1^2 > 2: the second layer grows, and its product with the first may or may not."""
    scales, steps = jnp.array(scales), np.arange(30)
    bulk = lr.rho(scales, eta, 0.0, steps)
    assert float(lr.compression.bulk_contracts(bulk, eta, 0.0)) > 1
    errors = np.asarray(lr.compression.compression_error(bulk, 9, 2))
    assert bool(np.any(errors > float(lr.compression.compression_bound(scales, 9, 2)))) == exceeds


def test_the_failure_is_seen_in_the_weights():
    W, Phi, scales = problem(depth=2)
    W, scales = (
        tuple(w / 0.8 * s for w, s in zip(W, (2.0, 0.1), strict=True)),
        jnp.array([2.0, 0.1]),
    )
    chosen = oracles.Problem(W, Phi, scales)
    steps = np.array([0, 1])
    before, after = distance(
        *full_and_compressed(chosen, 2, eta=0.6, decay=(0.0, 0.0), steps=steps)
    )
    bound = lr.compression.compression_bound(scales, 9, 2)
    assert_close(before, bound, size=9)
    assert float(after) > float(bound)


def test_bulk_contracts_agrees_with_loops(dtype):
    bulk, decay = double(lr.rho(jnp.array([0.5, 1.5, 1.0]), ETA, 0.1, STEPS)), (0.0, 4.0, 25.0)
    factors = [
        abs(1 - ETA * decay[l] - ETA * np.prod(np.delete(row, l)) ** 2)
        for row in bulk
        for l in range(3)
    ]
    found = lr.compression.bulk_contracts(jnp.asarray(bulk, dtype), ETA, jnp.asarray(decay, dtype))
    assert_close(found, max(factors), size=3)


@pytest.mark.parametrize("half", [2, 4])
def test_parameter_counts_are_those_of_the_arrays(half):
    W, Phi, _ = problem()
    frame = lr.frame(W, Phi, half)
    network = lr.compression.compress(frame, tuple(lr.subspace.blocks(frame, W, 2 * half).inner))
    expected = {
        "full": lr.compression.count(W),
        "compressed": lr.compression.count(network),
        "inner": lr.compression.count(network.inner),
    }
    assert lr.compression.parameter_counts(9, 3, half) == expected


def test_parameters_of_the_paper():
    counts = lr.compression.parameter_counts(1000, 3, 5)
    assert counts == {"full": 3_000_000, "compressed": 20_300, "inner": 300}
    assert round(counts["full"] / counts["compressed"]) == 148


def test_count_takes_shapes_and_scalars():
    tree = {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": [jnp.array(1.0)]}
    assert lr.compression.count(tree) == 13


# The basis of the gradient ---------------------------------------------------------------------


def first_gradient(W, Phi, mask):
    """G of 1/2 ||M * (W_L ... W_1 - Phi)||^2, by hand."""
    layers = [double(w) for w in W]
    behind = oracles.product(layers[1:], len(Phi))
    return behind.T @ (double(mask) * (behind @ layers[0] - double(Phi)))


def projector(columns):
    return double(columns) @ double(columns).T


def test_the_gradient_shows_the_moving_subspace(dtype):
    W, Phi, _ = problem()
    gradient = first_gradient(W, Phi, jnp.ones_like(Phi))
    basis = lr.compression.gradient_basis(W, jnp.asarray(gradient, dtype), 2)
    exact = lr.frame(W, Phi, 2).right[0, :, :4]
    found = jnp.asarray(projector(basis.columns), dtype)
    assert_close(found, projector(exact), size=9, scale=float(1 / basis.gap))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_basis_is_two_decompositions(seed, dtype):
    """Also where entries are hidden: the top-r right singular vectors of G, and of G^T W_1."""
    W, Phi, _ = problem(seed)
    mask = lr.masking.observe(jax.random.key(seed), (9, 9), 0.7)
    gradient = first_gradient(W, Phi, mask)
    _, values, one = np.linalg.svd(gradient)
    _, _, two = np.linalg.svd(gradient.T @ double(W[0]))
    columns, _ = np.linalg.qr(np.concatenate([one[:2], two[:2]]).T)
    basis = lr.compression.gradient_basis(W, jnp.asarray(gradient, dtype), 2)
    scale = float(1 / (1 - basis.gap))
    assert_close(
        jnp.asarray(projector(basis.columns), dtype), projector(columns), size=9, scale=scale
    )
    assert_close(basis.gap, values[2] / values[1], size=9)
    assert_close(basis.columns.T @ basis.columns, np.eye(4), size=9)


@pytest.mark.parametrize("scale", [0.01, 0.3, 0.6])
def test_the_gap_of_a_gradient_is_bounded(scale):
    W, Phi, scales = problem(scale=scale)
    gradient = first_gradient(W, Phi, jnp.ones_like(Phi))
    values = np.linalg.svd(gradient, compute_uv=False)
    smallest = np.linalg.svd(double(Phi), compute_uv=False)[1]
    bound = float(lr.compression.gradient_gap_bound(scales, jnp.asarray(smallest)))
    assert 0 < values[2] / values[1] <= bound


def test_the_gap_is_not_bounded_once_the_start_hides_the_target():
    assert np.isinf(lr.compression.gradient_gap_bound(jnp.ones(2), jnp.array(0.5)))


def test_a_gradient_network_is_the_full_one_on_its_basis(dtype):
    W, Phi, scales = problem(spread=2.0)
    columns = lr.frame(W, Phi, 2).right[0, :, :4]
    network = lr.compression.gradient_network(W, columns)
    full = oracles.product([double(w) for w in W], 9)
    assert_close(lr.compression.compressed_product(network), full @ projector(columns), size=9)
    for layer, scale in zip(network.inner, scales, strict=True):
        assert_close(layer, float(scale) * np.eye(4), size=9)
