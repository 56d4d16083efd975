"""ReLoRA with both factors, LoRA and full training, against NumPy loops written from their text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.adapters.maps import resolve_side
from lrdyn.networks import mlp
from tests import oracles
from tests.test_adapters import (
    ETA,
    OPTIMIZERS,
    RANK,
    M,
    N,
    Optimizer,
    fast,
    loss,
    problem,
    slope,
    vectors,
)

KEY = 3
HOW = {"steps": 13, "size": 10 * N}
"""Of the tolerance: thirteen steps, and refreshes of condition 10 at most."""


# The oracle: W + s B A + b 1^T --------------------------------------------------------------------


def drawn(t, shape, side: Any = "right"):
    """The factor that is drawn at step t for the matrix alone."""
    key = jax.random.fold_in(jax.random.key(KEY), t)
    return np.array(lr.adapters.draw_projectors(key, jnp.zeros(shape), RANK, side).basis)


def by_hand(W, X, Y, kind, *, period, side, start, scale=1.0, bias=None, state="reset"):
    """Train both factors; ``start(t, G)`` is the one that is not 0. Weights and b at every step."""
    shift = np.zeros(M) if bias is None else np.array(bias)
    B, A = np.zeros((M, RANK)), np.zeros((RANK, N))
    rules: list[Any] = []
    path = []
    for t in range(13):
        if t % period == 0:
            W = W + scale * B @ A
            factor = start(t, slope(W, X, Y - shift[:, None]))
            zeros = np.zeros((RANK, N) if side == "left" else (M, RANK))
            B, A = (factor, zeros) if side == "left" else (zeros, factor.T)
            if t == 0 or state == "reset":
                rules = [Optimizer(kind) for _ in range(3)]
        path.append((W + scale * B @ A, shift))
        G = slope(W + scale * B @ A, X, Y - shift[:, None])
        residual = (W + scale * B @ A) @ X + shift[:, None] - Y
        moves = scale * G @ A.T, scale * B.T @ G, residual.sum(axis=1, keepdims=True)
        B_move, A_move, b_move = (rule.update(g) for rule, g in zip(rules, moves, strict=True))
        B, A = B + B_move, A + A_move
        if bias is not None:
            shift = shift + b_move[:, 0]
    path.append((W + scale * B @ A, shift))
    return [np.array(part) for part in zip(*path, strict=True)]


def run(method, kind, dtype="float64", **how: Any):
    X, Y, W = (jnp.asarray(array, dtype) for array in problem())
    how = {"steps": tuple(range(14))} | how
    return fast(lambda W: lr.low_rank_descent(
        method, lambda W: loss(W, X, Y), W, OPTIMIZERS[kind], **how
    ).records)(W)  # fmt: skip


def by_svd(side):
    return lambda key, G: lr.adapters.choose_projectors(G, RANK, side)


# Both factors ---------------------------------------------------------------------------------


@pytest.mark.float32
@pytest.mark.parametrize("state", ["reset", "keep"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_relora_from_the_projector_is_the_loop_of_the_text(kind, side, state, dtype):
    X, Y, W = problem()
    path, _ = by_hand(
        W, X, Y, kind, period=4, side=side, state=state, start=lambda t, G: vectors(G, RANK, side)
    )
    found = run(lr.RELORA, kind, dtype, choose=by_svd(side), period=4, state=state)
    oracles.assert_close(found, path, **HOW)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_relora_as_published_draws_a_factor_at_each_refresh(kind, side):
    X, Y, W = problem()
    path, _ = by_hand(
        W, X, Y, kind, period=4, side=side, scale=0.5,
        start=lambda t, G: drawn(t, (M, N), side),
    )  # fmt: skip
    how: Any = {"rank": RANK, "period": 4, "side": side, "scale": 0.5, "key": jax.random.key(KEY)}
    found = run(lr.RELORA, kind, **how)
    oracles.assert_close(found, path, **HOW)
    # A factor that is drawn once and for all, or with one trained, is another path.
    once = run(lr.RELORA, kind, **how | {"choose": lambda key, G: lr.adapters.draw_projectors(
        jax.random.fold_in(jax.random.key(KEY), 0), G, RANK, side)})  # fmt: skip
    oracles.assert_close(once[:5], found[:5])
    oracles.assert_apart(once[6:], found[6:])
    draw = lr.RELORA_FROZEN._replace(choose=lr.RELORA.choose)
    oracles.assert_apart(run(draw, kind, **how)[3:], found[3:])


def test_as_published_the_random_factor_is_on_the_right():
    how: Any = {"rank": RANK, "period": 4, "key": jax.random.key(KEY)}
    published = run(lr.RELORA, "adam", **how)
    oracles.assert_close(published, run(lr.RELORA, "adam", **how, side="right"))
    oracles.assert_apart(published[2:], run(lr.RELORA, "adam", **how, side="left")[2:])


@pytest.mark.float32
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_lora_never_merges(kind, dtype):
    X, Y, W = problem()
    path, _ = by_hand(
        W, X, Y, kind, period=100, side="right", start=lambda t, G: drawn(t, (M, N))
    )  # fmt: skip
    found = run(lr.LORA, kind, dtype, rank=RANK, key=jax.random.key(KEY))
    oracles.assert_close(found, path, **HOW)
    ranks = np.linalg.svd(np.asarray(found[-1] - found[0], np.float64), compute_uv=False)
    assert ranks[RANK] < 1e-5 < ranks[RANK - 1]


@pytest.mark.parametrize("method", [lr.RELORA, lr.LORA])
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_a_bias_is_trained_as_it_is(method, kind):
    X, Y, W = problem()
    bias = np.linspace(-1, 1, M)
    period = 100 if method.once else 4

    def start(t, G):
        return vectors(G, RANK, "right")

    path, shifts = by_hand(
        W, X, Y, kind, period=period, side="right", start=start, scale=0.5, bias=bias
    )

    def loss_of(net):
        return 0.5 * jnp.sum((net["W"] @ jnp.asarray(X) + net["b"][:, None] - jnp.asarray(Y)) ** 2)

    found = fast(lambda net: lr.low_rank_descent(
        method, loss_of, net, OPTIMIZERS[kind], choose=by_svd("right"),
        period=0 if method.once else period, steps=tuple(range(14)), scale=0.5,
    ).records)({"W": jnp.asarray(W), "b": jnp.asarray(bias)})  # fmt: skip
    oracles.assert_close(found["W"], path, **HOW)
    oracles.assert_close(found["b"], shifts, **HOW)


@pytest.mark.parametrize("method", [lr.GALORE, lr.RELORA_FROZEN, lr.RELORA])
def test_in_layers_a_network_takes_the_same_path(method):
    X, Y, _ = map(jnp.asarray, problem())
    network: Any = mlp(jax.random.key(0), (N, M, M))

    def path(view):
        def loss_of(net):
            return 0.5 * jnp.sum((net(X) - Y) ** 2)

        return fast(lambda network: lr.low_rank_descent(
            method, loss_of, network, OPTIMIZERS["adam"], rank=2, period=3, steps=(0, 1, 8),
            scale=0.5, key=jax.random.key(KEY), network=view,
        ).records)(network)  # fmt: skip

    oracles.assert_close(path(lr.adapters.layered), path(lr.adapters.merged), steps=8, size=100)


# What is drawn --------------------------------------------------------------------------------


def test_draws_depend_on_the_step_and_not_on_what_is_recorded():
    how: Any = {"rank": RANK, "period": 4, "key": jax.random.key(KEY)}
    every = run(lr.RELORA, "sgd", **how)
    for steps in ((13,), (3, 4, 6, 13)):
        oracles.assert_close(run(lr.RELORA, "sgd", **how, steps=steps), every[np.array(steps)])
    others = run(lr.RELORA, "sgd", **how | {"key": jax.random.key(KEY + 1)})
    oracles.assert_apart(others[2:], every[2:])


def test_keys_may_be_batched():
    keys = jax.random.split(jax.random.key(0), 2)
    X, Y, W = map(jnp.asarray, problem())

    def one(key):
        return lr.low_rank_descent(lr.RELORA, lambda W: loss(W, X, Y), W, optax.adam(ETA),
                                   rank=RANK, period=4, key=key, steps=(0, 9)).records  # fmt: skip

    together, alone = fast(jax.vmap(one))(keys), fast(one)
    oracles.assert_close(together, jnp.stack([alone(key) for key in keys]), **HOW)


@pytest.mark.float32
@pytest.mark.parametrize("side", ["left", "right", "smaller", "larger"])
def test_factors_are_gaussian_with_columns_of_length_1(side, dtype):
    weights = {"W": jnp.zeros((300, 500), dtype), "V": jnp.zeros((300, 500), dtype),
               "b": jnp.zeros(3, dtype)}  # fmt: skip
    found = lr.adapters.draw_projectors(jax.random.key(0), weights, 20, side)
    assert found["b"] == lr.adapters.Identity()
    P = found["W"]
    length = 300 if P.side == "left" else 500
    assert P.side == resolve_side((300, 500), side)
    assert P.basis.shape == (length, 20)
    assert P.basis.dtype == dtype
    entries = np.sqrt(length) * np.asarray(P.basis, np.float64)
    # Mean, variance and kurtosis of 6000 numbers or more: within four standard errors.
    for power, moment, spread in ((1, 0, 1), (2, 1, np.sqrt(2)), (4, 3, np.sqrt(96))):
        assert abs(np.mean(entries**power) - moment) < 4 * spread / np.sqrt(entries.size)
    oracles.assert_apart(found["V"].basis, P.basis)


def test_a_drawn_factor_has_at_most_the_rank_of_the_matrix():
    assert lr.adapters.draw_projectors(jax.random.key(0), jnp.zeros((3, 4)), 9).basis.shape == (
        4,
        3,
    )


# Full training, and optimisers that look at the parameters ---------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_full_training_is_the_optimiser_alone(kind):
    X, Y, W = problem()
    expected = oracles.optimise(kind, W, lambda W: slope(W, X, Y), ETA, 13)
    found = run(lr.FULL, kind, scale=7.0)  # nothing is projected, so there is no scale
    oracles.assert_close(found[-1], expected, **HOW)


def test_decay_sees_what_is_trained():
    """W in full training, both factors in LoRA: with no gradient all shrinks by 1 - eta lambda."""
    X, Y, W = map(jnp.asarray, problem())
    rule = optax.adamw(0.1, weight_decay=0.5)

    def last(method, **how):
        return lr.low_rank_descent(method, lambda W: 0 * loss(W, X, Y), W, rule,
                                   steps=(4,), **how).params  # fmt: skip

    oracles.assert_close(last(lr.FULL), 0.95**4 * W, steps=4)
    key = jax.random.key(KEY)
    oracles.assert_close(last(lr.LORA, rank=RANK, key=key), W)  # W stays, B A is 0
    P = lr.adapters.choose_projectors(W, RANK, "left")
    found = last(lr.GALORE, choose=lambda key, G: P, period=9)
    oracles.assert_close(found, W - (1 - 0.95**4) * P.lift(P.project(W)), steps=4, size=N)


# Refusals -------------------------------------------------------------------------------------


def small(method, optimizer=None, **how: Any):
    how = {"rank": 1, "steps": (1,)} | how
    rule = optimizer or optax.sgd(0.1)
    return lr.low_rank_descent(method, lambda W: jnp.sum(W**2), jnp.ones((2, 3)), rule, **how)


def transported(optimizer):
    return small(lr.RELORA, optimizer, period=1, state="transport", key=jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(lr.LORA, period=3), "period: got 3, wanted none for a method without a"),
        (lambda: small(lr.FULL, period=3), "period: got 3, wanted none"),
        (lambda: small(lr.RELORA), "period: got 0, wanted at least 1"),
        (lambda: small(lr.RELORA, period=1), "key: got None, wanted a random key"),
        (lambda: small(lr.LORA, rank=0), "rank: got 0, wanted an integer >= 1"),
        (
            lambda: small(lr.LORA, side="up", key=jax.random.key(0)),
            "side: got 'up', wanted one of left, right",
        ),
        (lambda: transported(optax.sgd(0.1, 0.9)), "got 'transport' and moments of maps that are"),
    ],
)
def test_refusals(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
