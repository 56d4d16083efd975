"""Matrix completion by compressed networks, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import lrdyn as lr
from lrdyn.engine.verify import verify
from lrdyn.theorems.completion import COMPLETION, first_below
from lrdyn.theorems.completion.figures import plot_recovery
from tests import oracles


@pytest.mark.float32
@pytest.mark.parametrize(("shape", "rank"), [((12, 12), 3), ((9, 14), 2), ((20, 6), 3)])
def test_a_spread_target_keeps_every_nth_triplet(shape, rank, dtype):
    key = jax.random.key(0)
    (gaussian,) = lr.initialization.gaussians(key, [shape])
    left, values, right = np.linalg.svd(np.asarray(gaussian, np.float64))
    side = min(shape)
    kept = np.arange(0, side / 2, side / (2 * rank))[:rank].astype(int)
    expected = sum(values[i] * np.outer(left[:, i], right[i]) for i in kept)
    oracles.assert_close(lr.recovery.spread_target(key, shape, rank), expected, size=max(shape))


def problem(seed=0, dim=16, rank=2, fraction=0.6):
    for_target, for_mask = jax.random.split(jax.random.key(seed))
    target = lr.recovery.spread_target(for_target, (dim, dim), rank)
    return target, lr.masking.observe(for_mask, (dim, dim), fraction)


def test_the_surrogate_is_unbiased():
    target, _ = problem()
    keys = jax.random.split(jax.random.key(1), 4000)
    masks = jax.vmap(lambda k: lr.masking.observe(k, (16, 16), 0.6))(keys)
    draws = np.asarray(jax.vmap(lambda mask: lr.recovery.surrogate(target, mask))(masks))
    error = draws.std(0) / np.sqrt(len(draws))
    # 256 entries, each within 4 standard errors; dividing by the realised fraction adds 1/n.
    assert (
        np.abs((draws.mean(0) - np.asarray(target)) / error).max()
        < lr.tolerance("statistical", "float64") + 1
    )


def test_a_spectral_network_spans_the_leading_subspaces():
    matrix = jax.random.normal(jax.random.key(0), (7, 9))
    network = lr.recovery.spectral_network(matrix, 3, 0.1, depth=4)
    left, _, right = np.linalg.svd(np.asarray(matrix))
    product = lr.compression.compressed_product(network)
    oracles.assert_close(product, 0.1**4 * left[:, :3] @ right[:3], size=9)
    assert len(network.inner) == 2


def test_losses_see_what_they_should():
    target, mask = problem()
    product = jax.random.normal(jax.random.key(3), target.shape)
    gap = np.asarray(product - target)
    seen = gap[np.asarray(mask) == 1]
    oracles.assert_close(
        lr.recovery.observed_loss(product, target, mask), (seen**2).mean() / 2, size=256
    )
    expected = np.linalg.norm(gap) / np.linalg.norm(np.asarray(target))
    oracles.assert_close(lr.recovery.recovery_error(product, target), expected, size=256)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 5.0])
def test_discrepant_rates_are_gradient_descent_by_hand(ratio):
    target, mask = problem()
    network = lr.recovery.spectral_network(lr.recovery.surrogate(target, mask), 4, 0.3)
    U, (C,), V = (
        np.asarray(network.left),
        tuple(map(np.asarray, network.inner)),
        np.asarray(network.right),
    )
    Phi, M, eta = np.asarray(target), np.asarray(mask), 0.7
    for _ in range(25):
        E = M * (U @ C @ V.T - Phi) / M.sum()
        U, C, V = (
            U - ratio * eta * E @ V @ C.T,
            C - eta * U.T @ E @ V,
            V - ratio * eta * E.T @ U @ C,
        )
    rule = lr.recovery.discrepant_rates(eta, ratio)
    run = lr.simulate(
        lambda n: lr.recovery.completion_loss(n, target, mask), network, rule, np.array([25])
    )
    for found, expected in zip(jax.tree.leaves(run.params), (U, C, V), strict=True):
        oracles.assert_close(found, expected, steps=25, size=16)


def test_compressed_completion_recovers_the_target():
    target, mask = problem(dim=60, rank=2, fraction=0.4)
    network = lr.recovery.spectral_network(lr.recovery.surrogate(target, mask), 4, 1e-2)
    run = lr.descent.simulate_until(
        lambda n: lr.recovery.completion_loss(n, target, mask),
        network,
        lr.recovery.discrepant_rates(10.0, 5.0),
        1e-10,
        check_every=500,
        max_steps=100_000,
    )
    assert bool(run.converged)
    assert (
        float(lr.recovery.recovery_error(lr.compression.compressed_product(run.params), target))
        < 1e-3
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lr.recovery.spread_target(jax.random.key(0), (6, 6), 4),
            "rank: got 4, wanted 1 to 3",
        ),
        (lambda: lr.recovery.spectral_network(jnp.eye(4), 5, 1.0), "size: got 5, wanted 1 to 4"),
        (
            lambda: lr.recovery.spectral_network(jnp.eye(4), 2, 1.0, 2),
            "depth: got 2, wanted at least 3",
        ),
    ],
)
def test_completion_refuses(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


# Sensing -------------------------------------------------------------------------------------


@pytest.mark.float32
def test_measurements_are_inner_products(dtype):
    matrices = jax.random.normal(jax.random.key(0), (5, 3, 4))
    target, product = jax.random.normal(jax.random.key(1), (2, 3, 4))
    values = lr.recovery.sense(matrices, target)
    pairs = [(np.vdot(A, target), np.vdot(A, product)) for A in np.asarray(matrices, np.float64)]
    oracles.assert_close(values, [y for y, _ in pairs], size=12)
    expected = np.mean([(z - y) ** 2 for y, z in pairs]) / 2
    oracles.assert_close(lr.recovery.sensing_loss(product, matrices, values), expected, size=60)
    surrogate = sum(y * A for (y, _), A in zip(pairs, np.asarray(matrices), strict=True)) / 5
    oracles.assert_close(lr.recovery.sensing_surrogate(matrices, values), surrogate, size=12)


def test_sensing_is_unbiased():
    """The loss estimates 1/2 ||f - Phi||_F^2, (1/m) sum y_i A_i estimates Phi."""
    target, product = jax.random.normal(jax.random.key(1), (2, 3, 4))

    def draw(key):
        matrices = jax.random.normal(key, (6, 3, 4))
        values = lr.recovery.sense(matrices, target)
        loss = lr.recovery.sensing_loss(product, matrices, values)
        return jnp.append(lr.recovery.sensing_surrogate(matrices, values).ravel(), loss)

    draws = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(2), 4000)))
    expected = np.append(np.ravel(target), 0.5 * np.sum(np.square(product - target)))
    error = np.abs(draws.mean(0) - expected) / (draws.std(0) / np.sqrt(len(draws)))
    assert error.max() < lr.tolerance("statistical", "float64")


# Times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        ([4.0, 2.0, 1.0], 3.0, 5.0),
        ([4.0, 2.0, 1.0], 2.0, 10.0),
        ([4.0, 2.0, 1.0], 1.5, 20.0),
        ([4.0, 2.0, 1.0], 0.5, 60.0),
        ([4.0, 2.0, 1.0], 4.0, 0.0),
        ([4.0, 5.0, 1.0], 4.5, 0.0),
        ([2.0, 2.0, 2.0], 1.0, 60.0),
    ],
)
def test_the_time_at_which_a_curve_first_falls(values, level, expected):
    found = first_below(np.array([0, 10, 30]), np.array(values), level)
    oracles.assert_close(found, expected, scale=60.0)


# The theorem ---------------------------------------------------------------------------------


def test_too_few_measurements_are_not_judged(tmp_path, unchecked, capsys, monkeypatch):
    """Where the full network does not find the target there is nothing to be compared with."""
    monkeypatch.setenv("LRDYN_CACHE", "")
    settings = {flag.name: flag.quick for flag in COMPLETION.flags}
    settings |= {"observed": (0.05,), "dim": (12,), "steps": 600}
    bare = [dataclasses.replace(s, controls=()) for s in COMPLETION.statements]
    theorem = dataclasses.replace(COMPLETION, statements=tuple(bare))
    found = verify(theorem, settings, dtype="float32", seeds=(0,), thorough=False)
    held = {claim["id"]: claim["holds"] for claim in found.verdict["claims"]}
    assert (held["recovery"], held["recovered"], held["sensing_recovery"]) == (None,) * 3
    assert held["basis"] is True


def test_the_plot_shows_every_network():
    steps = np.array([0, 1, 2])
    names = ("full_error", "spectral_error", "basis_error", "fixed_error")
    curves = {n: (("seed", "dim", "step"), i + np.ones((2, 1, 3))) for i, n in enumerate(names)}
    entries = xr.Dataset(curves, {"step": steps})
    figure = plot_recovery({"/": entries, "/sensing": entries[list(names[:2])]})
    shown = [[np.asarray(line.get_ydata())[0] for line in ax.lines] for ax in figure.axes]
    assert shown == [[1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 2, 2]]
