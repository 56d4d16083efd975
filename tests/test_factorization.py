import jax
import numpy as np
import pytest

import lrdyn as lr
from lrdyn.core import factorization
from tests import oracles
from tests.oracles import assert_close, normal

pytestmark = pytest.mark.usefixtures("strict")

# Input, two hidden layers and output, all different.
*LAYERS, TARGET = normal(0, (6, 4), (5, 6), (3, 5), (3, 4))
LAYERS = tuple(LAYERS)

end_to_end = jax.jit(lr.end_to_end)
regression = jax.jit(jax.value_and_grad(factorization.regression_loss))
factorized = jax.jit(jax.value_and_grad(lr.factorization_loss))
mean_factorized = jax.jit(jax.value_and_grad(factorization.mean_factorization_loss))


def test_end_to_end_applies_the_first_layer_first(dtype):
    assert_close(end_to_end(LAYERS), np.linalg.multi_dot(LAYERS[::-1]), size=6)
    assert_close(end_to_end(LAYERS[:1]), LAYERS[0])


@pytest.mark.parametrize(
    ("loss", "slope", "weight"),
    [(factorized, oracles.sum_slope, 1), (mean_factorized, oracles.mean_slope, 1 / 12)],
    ids=["sum", "mean"],
)
def test_loss_and_gradient(loss, slope, weight, dtype):
    value, gradient = loss(LAYERS, TARGET)
    error = oracles.product(LAYERS, 4) - TARGET
    assert_close(value, 0.5 * weight * np.sum(error**2), size=12)
    assert_close(gradient, tuple(oracles.gradients(LAYERS, slope(TARGET))), size=12)


def test_regression_loss_and_gradient(dtype):
    X, Y = normal(2, (4, 7), (3, 7))
    value, gradient = regression(LAYERS, X, Y)
    assert_close(value, 0.5 * np.sum((oracles.product(LAYERS, 4) @ X - Y) ** 2), size=21)
    expected = oracles.gradients(LAYERS, oracles.regression_slope(X, Y))
    assert_close(gradient, tuple(expected), size=21)


@pytest.mark.parametrize("shapes", [((3, 4), (4, 2)), ((1, 1), (1, 5)), ((6, 6), (6, 6))])
def test_small_matmul_and_its_gradient_are_those_of_matmul(shapes, dtype):
    A, B, weight = normal(0, *shapes, (shapes[0][0], shapes[1][1]))

    @jax.jit
    def product_and_slopes(A, B, weight):
        product, back = jax.vjp(factorization.small_matmul, A, B)
        return product, back(weight)

    product, slopes = product_and_slopes(A, B, weight)
    assert_close(product, A @ B, size=shapes[0][1])
    assert_close(slopes, (weight @ B.T, A.T @ weight), size=max(weight.shape))
