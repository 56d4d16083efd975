"""Linear maps, and how they are chosen and drawn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.adapters.projectors import Identity, fix_signs, lift_onto, project, resolve_side
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
        assert (jnp.sign(fix_signs(vectors)) == jnp.array([[1, 1], [-1, -1]])).all()
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
    oracles.assert_close(found["b"], R["b"])  # trained as it is: the parameter itself


@pytest.mark.parametrize("method", [lr.GALORE, lr.RELORA_FROZEN, lr.RELORA])
def test_stacked_matrices_are_adapted_each_by_itself(method):
    """The layers of a scan take the paths of four matrices that are apart."""
    draw = np.random.default_rng(0)
    stack, goals = (jnp.asarray(draw.normal(size=(2, 2, M, N))) for _ in range(2))

    def descend(W, goal, choose, **how):
        return lr.low_rank_descent(
            method,
            lambda net: jnp.sum((net["W"] - goal) ** 4),
            {"W": W, "b": jnp.ones(2)},
            optax.adam(0.05),
            choose=choose,
            period=4,
            steps=(0, 3, 9),
            **how,
        ).records["W"]

    def first_axes(key, net):  # a random factor, too, must be that of each matrix alone
        return {"W": lr.adapters.Projector(net["W"][..., :2] / 9, "left"), "b": Identity()}

    by_svd = lr.adapters.choose_by_path(method, rank=2, stacks="W", extra="b")
    by_svd_alone = lr.adapters.choose_by_path(method, rank=2, extra="b")
    both = (first_axes, first_axes) if method is lr.RELORA else (by_svd, by_svd_alone)
    found = descend(stack, goals, both[0])
    for at in np.ndindex(2, 2):
        alone = descend(stack[at], goals[at], both[1])
        oracles.assert_close(found[:, *at], alone, steps=9, size=100 * N)
    oracles.assert_apart(found[1], found[0])
    # In layers too, where a stack is merged.
    again = descend(stack, goals, both[0], network=lr.adapters.layered)
    oracles.assert_close(again, found, steps=9, size=100 * N)
    drawn = lr.adapters.choose_by_path(lr.LORA, rank=2, stacks="W", extra="b")
    P = drawn(jax.random.key(0), {"W": stack, "b": jnp.ones(2)})["W"].basis
    assert P.shape == (2, 2, N, 2)
    assert len(np.unique(P)) == P.size  # each is drawn by itself


BLOCKS = {"blocks": jnp.ones((4, 3, 3)), "head": jnp.ones((3, 3))}


def descend_blocks(method, params=BLOCKS, **how):
    how = {"rank": 1, "period": 0 if method.once else 1, "key": jax.random.key(0)} | how
    loss = lambda net: optax.tree.norm(net, squared=True)  # noqa: E731
    return lr.low_rank_descent(method, loss, params, optax.adam(0.1), steps=(1,), **how)


METHODS = {
    name: getattr(lr.adapters, name)
    for name in ("GALORE", "RELORA_FROZEN", "RELORA", "LORA", "LORA_FA", "PISSA", "DORA")
} | {"deep": lr.adapters.deep_lora(), "compressed": lr.adapters.compressed_deep_lora()}


@pytest.mark.parametrize("name", METHODS)
def test_an_array_of_three_axes_is_never_trained_as_it_is_without_a_word(name):
    method = METHODS[name]
    with pytest.raises(ValueError, match=r"params: got blocks of shape \(4, 3, 3\), wanted mat"):
        descend_blocks(method, rank=2)
    choose = lr.adapters.choose_by_path(method, select="*", rank=2)
    with pytest.raises(ValueError, match='extra="blocks" trains it as it is'):
        descend_blocks(method, choose=choose)
    said = lr.adapters.choose_by_path(method, select="head", rank=2, extra="blocks")
    assert descend_blocks(method, choose=said).params["blocks"].shape == (4, 3, 3)
    # Full training asks nothing.
    descend_blocks(lr.FULL, period=0)


def test_galore_by_path_leaves_nothing_frozen():
    params = {"W": jnp.ones((3, 3)), "head": jnp.ones((3, 3))}
    choose = lr.adapters.choose_by_path(lr.GALORE, select="W", rank=1)
    with pytest.raises(ValueError, match=r"extra: got .*, wanted one that fits head, too"):
        descend_blocks(lr.GALORE, params, choose=choose)
    said = lr.adapters.choose_by_path(lr.GALORE, select="W", rank=1, extra="*")
    moved = descend_blocks(lr.GALORE, params, choose=said).params["head"]
    assert (moved != params["head"]).all()


def test_what_is_stacked_for_an_adapter_of_single_matrices_is_refused():
    for method in (lr.adapters.deep_lora(), lr.adapters.PISSA):
        choose = lr.adapters.choose_by_path(method, rank=1, stacks="blocks")
        with pytest.raises(ValueError, match=r"stacks: got a method that|weight: got"):
            descend_blocks(method, choose=choose)


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_is_decomposed_in_float32_and_stays(name):
    W = jax.random.normal(jax.random.key(1), (6, 6)).astype(jnp.bfloat16)
    found = descend_blocks(METHODS[name], {"W": W}, rank=2)
    assert found.params["W"].dtype == W.dtype
    assert jnp.isfinite(found.params["W"]).all()
    assert (found.params["W"] != W).any()


def test_p_of_a_narrow_gradient_is_that_of_float32_rounded():
    G = jax.random.normal(jax.random.key(1), (6, 8)).astype(jnp.bfloat16)
    wide = lr.adapters.top_singular_projector(G.astype(jnp.float32), 2)
    narrow = lr.adapters.top_singular_projector(G, 2)
    assert (narrow.basis == wide.basis.astype(jnp.bfloat16)).all()


def test_a_rank_is_looked_at_where_nothing_is_projected(unchecked):
    with pytest.raises(ValueError, match="rank: got 0, wanted at least 1"):
        lr.adapters.choose_projectors({"b": jnp.ones(3)}, 0)
