"""Figure 9 (ours): GaLore is ReLoRA with a frozen factor; rank, state policies and memory."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import lrdyn
from lrdyn import memory, plotting
from lrdyn.figures import Figure
from lrdyn.projection import POLICIES, merged
from paper_figs import table1_memory

QUICK = {
    "rows": 16, "columns": 24, "rank": 4, "examples": 60, "period": 25, "steps": 300,
    "rates": {"sgd": 0.5, "momentum": 0.1, "adam": 0.01}, "seed": 0,
    "memory_rows": 1024, "memory_columns": 4096, "memory_batch": 64,
    "memory_ranks": [16, 64, 256],
}  # fmt: skip
OPTIMIZERS = ("sgd", "momentum", "adam")


def data(key: jax.Array, m: int, n: int, examples: int, dtype: str):
    """W_0, X and Y of a regression with one nonlinear layer, ||tanh(W X) - Y||_F^2 / 2N."""
    keys = jax.random.split(key, 4)
    scales = jnp.linspace(1.0, 0.2, n)[:, None]
    X = scales * jax.random.normal(keys[0], (n, examples))
    target, start = (jax.random.normal(k, (m, n)) / jnp.sqrt(n) for k in keys[1:3])
    Y = jnp.tanh(2 * target @ X) + 0.1 * jax.random.normal(keys[3], (m, examples))
    return jax.tree.map(lambda a: a.astype(dtype), (0.3 * start, X, Y))


def loss_of(inputs, outputs):
    def loss(W):
        return jnp.sum((jnp.tanh(W @ inputs) - outputs) ** 2) / (2 * inputs.shape[1])
    return loss


def one_of(kind, rates):
    rules = (optax.sgd(rates["sgd"]), optax.sgd(rates["momentum"], 0.9), optax.adam(rates["adam"]))

    def init(params):
        return tuple(rule.init(params) for rule in rules)

    def update(gradients, state, params=None):
        found = [rule.update(gradients, s) for rule, s in zip(rules, state, strict=True)]
        updates = jax.tree.map(lambda *u: jnp.stack(u)[kind], *[u for u, _ in found])
        return updates, tuple(s for _, s in found)

    return optax.GradientTransformation(init, update)


def policy_of(number):
    def policy(*states):
        found = [rule(*states) for rule in POLICIES.values()]
        return jax.tree.map(lambda *s: jnp.stack(s)[number], *found)
    return policy
