from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrdyn as lr
from lrdyn.verification.stating.claims import tolerance
from tests.oracles import Compiled, assert_apart, assert_close, double, normal, refuses

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(3)
scale = st.floats(1e-3, 1e3)

compiled = Compiled(lr.core)


@given(scale, scale, st.integers(2, 4))
def test_layer_scales_have_the_mean_and_the_spread(mean, spread, depth):
    scales = double(compiled.layer_scales(mean, spread, depth))
    # Exponentiation multiplies the relative error of its argument by |log spread|.
    size = depth * (1 + int(np.log(1000)) ** 2)
    assert_close(np.prod(scales), mean**depth, size=size)
    assert_close(scales[-1] / scales[0], spread, size=size)
    assert np.ptp(np.diff(np.log(scales))) <= size * tolerance("identity", float)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (6, 4), (4, 6)])
def test_orthogonal(rows, columns, dtype):
    Q = np.asarray(compiled.orthogonal(*normal(0, (rows, columns))))
    assert Q.shape == (rows, columns)
    gram = Q @ Q.T if rows <= columns else Q.T @ Q
    assert_close(gram, np.eye(min(rows, columns)), size=6)


def test_orthogonal_is_haar():
    """Under Haar measure on O(d), E tr Q = 0 and E (tr Q)^2 = 1; without signs E tr Q < 0."""
    draws = jax.jit(jax.vmap(compiled.orthogonal))(*normal(0, (2000, 3, 3)))
    traces = np.trace(draws, axis1=1, axis2=2)
    for sample, expected in ((traces, 0), (traces**2, 1)):
        standard_error = sample.std() / np.sqrt(len(sample))
        assert abs(sample.mean() - expected) <= 4 * standard_error


def test_orthogonal_layers_carry_their_scales(dtype):
    scales = np.array([0.5, 2.0, 3.0])
    W = jax.device_get(compiled.orthogonal_layers(KEY, (5, 5, 5, 2), scales))
    assert [layer.shape for layer in W] == [(5, 5), (5, 5), (2, 5)]
    for layer, eps in zip(W, scales, strict=True):
        assert_close(layer @ layer.T, eps**2 * np.eye(len(layer)), size=5)


@pytest.mark.parametrize("layers", [compiled.orthogonal_layers, compiled.gaussian_layers])
def test_keys_choose_the_layers_which_are_independent(layers):
    draws = [layers(jax.random.key(seed), (4, 4, 4), np.ones(2)) for seed in (0, 0, 1)]
    assert_close(draws[0], draws[1])
    assert_apart(draws[0], draws[2])
    assert_apart(*draws[0])


def test_gaussian_layers_have_the_norm_of_orthogonal_ones():
    @partial(jax.jit, static_argnums=1)
    def norms(keys, layers):
        def draw(key):
            return jnp.stack([jnp.sum(W**2) for W in layers(key, (8, 8, 3), jnp.array([0.5, 2.0]))])

        return jax.vmap(draw)(keys)

    gaussian = np.asarray(norms(jax.random.split(KEY, 500), lr.gaussian_layers))
    expected = np.asarray(norms(KEY[None], lr.orthogonal_layers)[0])
    standard_error = gaussian.std(axis=0) / np.sqrt(len(gaussian))
    limit = 4 * standard_error
    assert np.all(np.abs(gaussian.mean(axis=0) - expected) <= limit)


@pytest.mark.parametrize("shape", [(7, 7), (4, 7), (7, 4)])
def test_low_rank_target_has_the_singular_values_and_random_subspaces(shape, dtype):
    values = np.array([3.0, 1.0, 0.25])
    Phi = np.asarray(compiled.low_rank_target(KEY, shape, values))
    found = np.linalg.svd(double(Phi), compute_uv=False).astype(dtype)
    assert_close(found, np.pad(values, (0, min(shape) - 3)), size=7)
    if shape == (7, 7):
        assert_apart(Phi @ Phi.T, Phi.T @ Phi)


def test_spaced_singular_values(dtype):
    assert_close(lr.spaced_singular_values(5, 4.0), [4, 3.5, 3, 2.5, 2])
    assert_close(lr.spaced_singular_values(1), [1.0])


def test_truncated_gaussian_is_the_best_approximation(dtype):
    full = compiled.truncated_gaussian_target(KEY, (8, 6), 6)
    u, s, vt = np.linalg.svd(double(full))
    best = (u[:, :2] * s[:2]) @ vt[:2]
    assert_close(compiled.truncated_gaussian_target(KEY, (8, 6), 2), best, size=48)
    assert_close(full, jax.random.normal(KEY, (8, 6)), size=48)


ONE_LAYER = r"scales: got shape \(2,\), wanted \(1,\)"
VALUES = "singular_values: got 3, wanted at most 2"
test_initialization_refuses = refuses(
    (lambda: compiled.layer_scales(1.0, 1.0, 1), "depth: got 1, wanted at least 2"),
    (lambda: compiled.orthogonal_layers(KEY, (4, 4), np.ones(2)), ONE_LAYER),
    (lambda: compiled.gaussian_layers(KEY, (4, 4), np.ones(2)), ONE_LAYER),
    (lambda: compiled.low_rank_target(KEY, (4, 2), np.ones(3)), VALUES),
)
