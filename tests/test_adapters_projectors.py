"""Linear maps, and how they are chosen and drawn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn.adapters.projectors import lift_onto, project, resolve_side, signed
from tests import oracles
from tests.algorithm1 import M, N

SIDES = ("left", "right", "smaller", "larger")


@pytest.mark.parametrize("side", SIDES)
def test_a_projector_is_orthonormal_with_a_rule_for_signs(side, dtype):
    G = jnp.asarray(np.random.default_rng(3).normal(size=(M, N)), dtype)
    P = lr.adapters.top_singular_projector(G, 3, side)
    assert P.side == {"smaller": "left", "larger": "right"}.get(side, side)
    oracles.assert_close(P.basis.T @ P.basis, np.eye(3), size=N)
    left, values, right = np.linalg.svd(np.asarray(G, np.float64))
    best = left[:, :3] * values[:3] @ right[:3]
    oracles.assert_close(P.lift(P.project(G)), best, size=10 * N)
    largest = np.take_along_axis(np.asarray(P.basis), np.abs(P.basis).argmax(axis=0)[None], axis=0)
    assert (largest > 0).all()
    flipped = lr.adapters.top_singular_projector(-G, 3, side)
    oracles.assert_close(flipped.basis, P.basis, size=10 * N)


def test_entries_of_one_size_do_not_leave_the_sign_to_rounding(dtype):
    """The gradient of two classes has the left singular vector (1, -1)/sqrt 2."""
    eps = float(np.finfo(dtype).eps)
    for more in (-4 * eps, 0.0, 4 * eps):
        vectors = jnp.asarray([[1.0, -1.0], [-1.0 - more, 1.0 + more]], dtype)
        assert (jnp.sign(signed(vectors)) == jnp.array([[1, 1], [-1, -1]])).all()
    row = np.random.default_rng(0).normal(size=(1, 5))
    G = jnp.asarray(np.array([[1.0], [-1.0]]) * row, dtype)
    for factor in (1.0, -1.0):
        P = lr.adapters.top_singular_projector(factor * G, 1, "left")
        oracles.assert_close(P.basis, np.array([[1.0], [-1.0]]) / np.sqrt(2), size=2)


@pytest.mark.parametrize("side", SIDES)
def test_factors_are_gaussian_with_columns_of_length_1(side, dtype):
    weights = {
        "W": jnp.zeros((300, 500), dtype),
        "V": jnp.zeros((300, 500), dtype),
        "b": jnp.zeros(3, dtype),
    }
    found = lr.adapters.draw_projectors(jax.random.key(0), weights, 20, side)
    length, side = (300, "left") if side in ("left", "smaller") else (500, "right")
    one = lr.adapters.Projector(jnp.zeros((length, 20), dtype), side)
    expected = {"W": one, "V": one, "b": lr.adapters.Identity()}
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    entries = np.sqrt(length) * np.asarray(found["W"].basis, np.float64)
    # Mean, variance and kurtosis of 6000 numbers or more: within four standard errors.
    for power, moment, spread in ((1, 0, 1), (2, 1, np.sqrt(2)), (4, 3, np.sqrt(96))):
        assert abs(np.mean(entries**power) - moment) < 4 * spread / np.sqrt(entries.size)
    oracles.assert_apart(found["V"].basis, found["W"].basis)


def test_a_rank_beyond_the_matrix_is_all_of_it():
    G = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    chex.assert_shape(lr.adapters.top_singular_projector(G, 9, "left").basis, (3, 3))
    chex.assert_shape(lr.adapters.draw_projectors(jax.random.key(0), G, 9).basis, (4, 3))


def test_a_square_matrix_has_a_left_side():
    assert resolve_side((4, 4), "smaller") == resolve_side((4, 4), "larger") == "left"


def test_lifting_is_the_transpose_of_projecting():
    draw = np.random.default_rng(0)
    gradients = {"W": jnp.asarray(draw.normal(size=(M, N))), "b": jnp.asarray(draw.normal(size=M))}
    maps = lr.adapters.choose_projectors(gradients, 2, "right")
    R = {"W": jnp.asarray(draw.normal(size=(M, 2))), "b": jnp.asarray(draw.normal(size=M))}
    zeros = jax.tree.map(jnp.zeros_like, gradients)

    def inner(a, b):
        return sum(float(jnp.vdot(a[name], b[name])) for name in ("W", "b"))

    down = inner(project(maps, gradients), R)
    up = inner(gradients, lift_onto(zeros, maps, R))
    oracles.assert_close(jnp.asarray(down), up, size=M * N)
    found = lr.adapters.merged(lr.adapters.WeightParts(gradients, maps, R), 3.0)
    oracles.assert_close(found["b"], gradients["b"] + R["b"])  # not projected: no scale


def test_a_rank_is_looked_at_where_nothing_is_projected(unchecked):
    with pytest.raises(ValueError, match="rank: got 0, wanted at least 1"):
        lr.adapters.choose_projectors({"b": jnp.ones(3)}, 0)
