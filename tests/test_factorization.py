import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from tests import oracles
from tests.oracles import assert_apart, assert_close, double

WIDTHS = (4, 6, 5, 3)
"""Input, two hidden layers and output, all different."""


@pytest.fixture
def layers(dtype):
    return lr.gaussian_layers(jax.random.key(0), WIDTHS, jnp.ones(3))


@pytest.fixture
def target(dtype):
    return jax.random.normal(jax.random.key(1), (3, 4))


def test_end_to_end_applies_the_first_layer_first(layers):
    expected = np.linalg.multi_dot(double(layers)[::-1])
    assert_close(lr.end_to_end(layers), expected, size=max(WIDTHS))


def test_end_to_end_of_one_layer_is_the_layer(layers):
    assert_close(lr.end_to_end(layers[:1]), layers[0])


@pytest.mark.parametrize(
    ("loss", "slope", "weight"),
    [
        (lr.factorization_loss, oracles.sum_slope, 1),
        (lr.factorization.mean_factorization_loss, oracles.mean_slope, 1 / 12),
    ],
    ids=["sum", "mean"],
)
def test_loss_and_gradient(loss, slope, weight, layers, target):
    value, gradient = jax.value_and_grad(loss)(layers, target)
    W, Phi = double(layers), double(target)
    error = oracles.product(W, 4) - Phi
    assert_close(value, 0.5 * weight * np.sum(error**2), size=12)
    assert_close(gradient, tuple(oracles.gradients(W, slope(Phi))), size=12)


def test_regression_loss_and_gradient(layers, dtype):
    X, Y = (jax.random.normal(jax.random.key(k), (n, 7)) for k, n in ((2, 4), (3, 3)))
    value, gradient = jax.value_and_grad(lr.factorization.regression_loss)(layers, X, Y)
    W, X, Y = double((layers, X, Y))
    assert_close(value, 0.5 * np.sum((oracles.product(W, 4) @ X - Y) ** 2), size=21)
    assert_close(gradient, tuple(oracles.gradients(W, oracles.regression_slope(X, Y))), size=21)


def test_regression_on_whitened_data_is_factorisation_of_the_correlation(dtype):
    W, X, Y, _, _ = oracles.classification()
    on_data = jax.grad(lr.factorization.regression_loss)(W, X, Y)
    on_correlation = jax.grad(lr.factorization_loss)(W, Y @ X.T)
    assert_close(on_data, on_correlation, size=len(X))
    assert_apart(jax.grad(lr.factorization.regression_loss)(W, 2 * X, Y), on_correlation)


def test_gradient_vanishes_at_an_exact_factorisation(dtype):
    W = oracles.problem().weights
    assert_close(
        jax.grad(lr.factorization_loss)(W, lr.end_to_end(W)),
        jax.tree.map(jnp.zeros_like, W),
        scale=1,
    )


@pytest.mark.parametrize("shapes", [((3, 4), (4, 2)), ((1, 1), (1, 5)), ((6, 6), (6, 6))])
def test_small_matmul_and_its_gradient_are_those_of_matmul(shapes, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    A, B = (jax.random.normal(key, shape) for key, shape in zip(keys[:2], shapes, strict=True))
    weight = jax.random.normal(keys[2], (shapes[0][0], shapes[1][1]))
    size = shapes[0][1]
    assert_close(lr.factorization.small_matmul(A, B), double(A) @ double(B), size=size)

    def through(multiply):
        return jax.grad(lambda pair: jnp.sum(weight * multiply(*pair)))((A, B))

    expected = (double(weight) @ double(B).T, double(A).T @ double(weight))
    assert_close(through(lr.factorization.small_matmul), expected, size=max(weight.shape))
