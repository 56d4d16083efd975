"""GaLore and ReLoRA in optax's idiom, against NumPy loops and against Algorithm 1."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.adapters.state import POLICIES
from tests import algorithm1, oracles
from tests.algorithm1 import ETA, HOW, KEY, OPTIMIZERS, RANK, STEPS, M, N, problem


def path_of(rule, loss, params, steps=STEPS):
    """The parameters at every step of a loop as a user writes it."""

    def step(carry, _):
        params, state = carry
        updates, state = rule.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), params

    (last, _), path = jax.lax.scan(step, (params, rule.init(params)), length=steps)
    return jax.tree.map(lambda path, last: jnp.concatenate([path, last[None]]), path, last)


def regression_path(make, dtype="float64"):
    X, Y, W = (jnp.asarray(array, dtype) for array in problem())
    return {
        kind: jax.jit(
            lambda W, rule=rule: path_of(make(rule), lambda W: algorithm1.loss(W, X, Y), W)
        )(W)
        for kind, rule in OPTIMIZERS.items()
    }


@pytest.mark.parametrize("state", POLICIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_both_are_the_loops_of_the_text(side, state, dtype):
    how: Any = {"rank": RANK, "refresh_every": 4, "side": side, "state": state}
    galore = regression_path(lambda rule: lr.adapters.galore(rule, **how), dtype)
    frozen = regression_path(lambda rule: lr.adapters.relora(rule, frozen=True, **how), dtype)
    for kind in OPTIMIZERS:
        path = algorithm1.galore_by_hand(kind, period=4, side=side, state=state)
        oracles.assert_close(galore[kind], path, **HOW)
        oracles.assert_close(frozen[kind], path, **HOW)
        late = algorithm1.galore_by_hand(kind, period=5, side=side, state=state)
        oracles.assert_apart(galore[kind], late)
