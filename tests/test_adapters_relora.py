"""ReLoRA with both factors, and LoRA, against NumPy loops written from their text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.adapters.projectors import Side
from tests import oracles
from tests.algorithm1 import (
    ETA,
    HOW,
    KEY,
    OPTIMIZERS,
    RANK,
    M,
    N,
    adapters_by_hand,
    problem,
    regression,
    run,
    runs,
)


@functools.cache
def by_svd(side: Side):
    """GaLore's P, for a method of other habits."""
    return lambda key, G: lr.adapters.choose_projectors(G, RANK, side)


def drawn(t, G, side: Any = "right"):
    """The factor that is drawn at step t for the matrix alone."""
    key = jax.random.fold_in(KEY, t)
    return np.array(lr.adapters.draw_projectors(key, jnp.zeros((M, N)), RANK, side).basis)


@pytest.mark.parametrize("state", ["reset", "keep"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_relora_from_the_projector_is_the_loop_of_the_text(side, state, dtype):
    found = runs(lr.RELORA, dtype=dtype, choose=by_svd(side), period=4, state=state)
    for kind, path in found.items():
        expected, _ = adapters_by_hand(kind, period=4, side=side, state=state)
        oracles.assert_close(path, expected, **HOW)


@pytest.mark.parametrize("side", ["left", "right"])
def test_relora_as_published_draws_a_factor_at_each_refresh(side):
    # As published it is on the right.
    how: Any = {"period": 4, "scale": 0.5} | ({"side": "left"} if side == "left" else {})
    start = functools.partial(drawn, side=side)
    for kind, path in runs(lr.RELORA, **how).items():
        expected, _ = adapters_by_hand(kind, start, period=4, side=side, scale=0.5)
        oracles.assert_close(path, expected, **HOW)


def test_lora_never_merges(dtype):
    for kind, path in runs(lr.LORA, dtype=dtype).items():
        expected, _ = adapters_by_hand(kind, drawn, period=100, side="right")
        oracles.assert_close(path, expected, **HOW)


def test_lora_and_lora_fa_agree_for_one_step():
    """The gradient of the random factor is 0 while the other is 0."""
    how: Any = {"choose": lambda key, G: lr.adapters.draw_projectors(KEY, G, RANK, "right")}
    both, one = run(lr.LORA, "sgd", **how), run(lr.RELORA_FROZEN, "sgd", period=99, **how)
    oracles.assert_close(both[1], one[1])
    oracles.assert_apart(both[2], one[2])


@pytest.mark.parametrize("method", [lr.RELORA, lr.LORA])
def test_two_matrices_and_their_biases_are_trained_each_by_itself(method):
    X, Y, W = problem()
    biases = np.linspace(-1, 1, M), np.linspace(2, 0, M)
    start = [{"W": jnp.asarray(W), "b": jnp.asarray(bias)} for bias in biases]

    def loss_of(net):
        errors = [one["W"] @ jnp.asarray(X) + one["b"][:, None] - jnp.asarray(Y) for one in net]
        return 0.5 * jnp.sum(jnp.stack(errors) ** 2)

    @jax.jit
    def trained(net):
        return {
            kind: lr.low_rank_descent(
                method,
                loss_of,
                net,
                OPTIMIZERS[kind],
                choose=by_svd("right"),
                scale=0.5,
                period=0 if method.once else 4,
                steps=tuple(range(14)),
            ).records
            for kind in ("momentum", "adam")
        }

    for kind, found in trained(start).items():
        for one, bias in zip(found, biases, strict=True):
            path, shifts = adapters_by_hand(
                kind, period=100 if method.once else 4, side="right", scale=0.5, bias=bias
            )
            oracles.assert_close(one["W"], path, **HOW)
            oracles.assert_close(one["b"], shifts, **HOW)


def test_draws_depend_on_the_step_and_not_on_what_is_recorded():
    how: Any = {"period": 4, "scale": 0.5}
    every, some = runs(lr.RELORA, **how)["sgd"], (3, 4, 6, 13)
    oracles.assert_close(run(lr.RELORA, "sgd", **how, steps=some), every[np.array(some)])


def test_the_recipe_resets_moments_keeps_the_count_and_falls_to_zero_at_each_merge():
    """Full training first, then a rate that comes back over three steps after each refresh."""
    rate = lr.adapters.jagged(optax.constant_schedule(ETA), period=4, warmup=3)
    X, Y, W = problem()

    def train(W):
        def loss_of(W):
            return 0.5 * jnp.sum((W @ X - Y) ** 2)

        warm = lr.low_rank_descent(lr.FULL, loss_of, W, optax.adam(ETA), rank=RANK, steps=(5,))
        return warm.params, {
            name: lr.low_rank_descent(
                lr.RELORA,
                loss_of,
                warm.params,
                optax.adam(rate),
                rank=RANK,
                period=4,
                key=KEY,
                steps=tuple(range(14)),
                state=state,
            ).records
            for name, state in RESETS.items()
        }

    warm, found = jax.jit(train)(jnp.asarray(W))
    oracles.assert_close(warm, oracles.optimise("adam", W, slope_of(X, Y), ETA, 5), **HOW)
    task = regression()._replace(start=np.asarray(warm))

    def by_hand(t):
        return ETA * (1 if t < 4 else min(t % 4 / 3, 1))

    how: Any = {"period": 4, "side": "right", "task": task, "rate": by_hand}
    paths = {name: adapters_by_hand("adam", drawn, state=name, **how)[0] for name in RESETS}
    oracles.assert_close(found["moments"], paths["moments"], **HOW)
    oracles.assert_close(found["keep"], paths["keep"], **HOW)
    oracles.assert_apart(found["moments"], found["keep"])
    oracles.assert_close(found["moments"][5], found["moments"][4])  # the rate is 0


@pytest.mark.parametrize("method", [lr.RELORA_FROZEN, lr.RELORA])
def test_as_published_adam_counts_anew_and_a_schedule_goes_on(method):
    rate: Any = optax.cosine_decay_schedule(ETA, 13)
    X, Y, W = map(jnp.asarray, problem())
    frozen = method is lr.RELORA_FROZEN
    for rule in (optax.adam(rate), optax.inject_hyperparams(optax.adam)(rate)):
        found = lr.low_rank_descent(
            method,
            lambda W: 0.5 * jnp.sum((W @ X - Y) ** 2),
            W,
            rule,
            choose=by_svd("left"),
            period=4,
            steps=tuple(range(14)),
        ).records
        how: Any = {"period": 4, "side": "left", "frozen": frozen}
        path, _ = adapters_by_hand("adam", **how, rate=lambda t: float(rate(t)))
        oracles.assert_close(found, path, **HOW)
        # With the count of a run that goes on it is another algorithm.
        other, _ = adapters_by_hand("adam", **how, state="keep", rate=lambda t: float(rate(t)))
        oracles.assert_apart(found, other)


RESETS = {
    "moments": lr.adapters.reset(count=False),
    "keep": lr.adapters.reset(moments=False, count=False),
}


def slope_of(X, Y):
    return lambda W: (W @ X - Y) @ X.T
