import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrdyn as lr
from lrdyn.claims import tolerance
from lrdyn.initialization import orthogonal
from tests.oracles import assert_apart, assert_close, double

KEY = jax.random.key(3)
scale = st.floats(1e-3, 1e3)


@given(scale, scale, st.integers(2, 4))
def test_layer_scales_have_the_mean_and_the_spread(mean, spread, depth):
    scales = double(lr.initialization.layer_scales(mean, spread, depth))
    # Exponentiation multiplies the relative error of its argument by |log spread|.
    size = depth * (1 + int(np.log(1000)) ** 2)
    assert_close(jnp.asarray(np.prod(scales)), mean**depth, size=size)
    assert_close(jnp.asarray(scales[-1] / scales[0]), spread, size=size)
    assert np.ptp(np.diff(np.log(scales))) <= size * tolerance("identity", float)


def test_one_layer_has_no_scales():
    with pytest.raises(ValueError, match=r"depth: got 1, wanted at least 2"):
        lr.initialization.layer_scales(1.0, 1.0, 1)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (6, 4), (4, 6)])
def test_orthogonal(rows, columns, dtype):
    Q = orthogonal(jax.random.normal(KEY, (rows, columns)))
    assert Q.shape == (rows, columns)
    gram = Q @ Q.T if rows <= columns else Q.T @ Q
    assert_close(gram, np.eye(min(rows, columns)), size=6)


def test_orthogonal_is_haar():
    """Under Haar measure on O(d), E tr Q = 0 and E (tr Q)^2 = 1; without signs E tr Q < 0."""
    draws = jax.vmap(orthogonal)(jax.random.normal(KEY, (2000, 3, 3)))
    traces = np.trace(draws, axis1=1, axis2=2)
    for sample, expected in ((traces, 0), (traces**2, 1)):
        standard_error = sample.std() / np.sqrt(len(sample))
        assert abs(sample.mean() - expected) <= tolerance("statistical", float) * standard_error


def test_orthogonal_layers_carry_their_scales(dtype):
    scales = jnp.array([0.5, 2.0, 3.0])
    W = lr.orthogonal_layers(KEY, (5, 5, 5, 2), scales)
    assert [layer.shape for layer in W] == [(5, 5), (5, 5), (2, 5)]
    for layer, eps in zip(W, scales, strict=True):
        assert_close(layer @ layer.T, eps**2 * np.eye(len(layer)), size=5)


def test_layers_are_independent():
    first, second = lr.orthogonal_layers(KEY, (5, 5, 5), jnp.ones(2))
    assert_apart(first, second)


@pytest.mark.parametrize("layers", [lr.orthogonal_layers, lr.gaussian_layers])
def test_keys_choose_the_layers(layers):
    draws = [layers(jax.random.key(seed), (4, 4, 4), jnp.ones(2)) for seed in (0, 0, 1)]
    assert_close(draws[0], draws[1])
    assert_apart(draws[0], draws[2])


def test_gaussian_layers_have_the_norm_of_orthogonal_ones():
    widths, scales = (8, 8, 3), jnp.array([0.5, 2.0])

    def draw(layers):
        return lambda key: jnp.stack([jnp.sum(W**2) for W in layers(key, widths, scales)])

    keys = jax.random.split(KEY, 500)
    gaussian = np.asarray(jax.vmap(draw(lr.gaussian_layers))(keys))
    expected = np.asarray(draw(lr.orthogonal_layers)(KEY))
    standard_error = gaussian.std(axis=0) / np.sqrt(len(keys))
    assert np.all(
        np.abs(gaussian.mean(axis=0) - expected) <= tolerance("statistical", float) * standard_error
    )


@pytest.mark.parametrize("shape", [(7, 7), (4, 7), (7, 4)])
def test_low_rank_target_has_the_singular_values(shape, dtype):
    values = jnp.array([3.0, 1.0, 0.25])
    found = np.linalg.svd(double(lr.low_rank_target(KEY, shape, values)), compute_uv=False)
    assert_close(jnp.asarray(found), [*double(values)] + [0.0] * (min(shape) - 3), size=7)


def test_low_rank_target_has_random_subspaces():
    Phi = lr.low_rank_target(KEY, (6, 6), jnp.ones(2))
    assert_apart(Phi @ Phi.T, Phi.T @ Phi)


def test_spaced_singular_values(dtype):
    assert_close(lr.spaced_singular_values(5, 4.0), [4, 3.5, 3, 2.5, 2])
    assert_close(lr.spaced_singular_values(1), [1.0])


def test_truncated_gaussian_is_the_best_approximation(dtype):
    full = lr.truncated_gaussian_target(KEY, (8, 6), 6)
    u, s, vt = np.linalg.svd(double(full))
    assert_close(lr.truncated_gaussian_target(KEY, (8, 6), 2), (u[:, :2] * s[:2]) @ vt[:2], size=48)
    assert_close(full, jax.random.normal(KEY, (8, 6)), size=48)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lr.orthogonal_layers(KEY, (4, 4), jnp.ones(2)),
            r"scales: got shape \(2,\), wanted one for each of 1 layers",
        ),
        (
            lambda: lr.gaussian_layers(KEY, (4, 4), jnp.ones(2)),
            r"scales: got shape \(2,\), wanted one for each of 1 layers",
        ),
        (
            lambda: lr.low_rank_target(KEY, (4, 2), jnp.ones(3)),
            r"singular_values: got 3, wanted at most 2",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
