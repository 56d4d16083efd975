"""A step of adapters in the upper layers of a BERT, with the layers below computed once or always.

The numbers in the encoder mean nothing: a step takes as long with any.
"""

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import table
from lrdyn import adapters
from lrdyn.data.encoder import Config, blank
from lrdyn.networks import Tokens, mean_pooled

HEADER = ("layers", "adapted", "below once, steps per second", "always", "once / always")


class Case(NamedTuple):
    """Sizes: those of MiniLM, a batch of 16 pairs of 32 tokens."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    adapted: int = 2
    batch: int = 16
    length: int = 32
    steps: int = 10


def measured(case: Case, repeats: int) -> tuple[float, float]:
    """Steps per second, from the first adapted layer on and from the first."""
    config = Config(100, case.width, case.layers, case.heads, 4 * case.width, case.length, 2, 1e-12)
    model = jax.tree.map(jnp.ones_like, blank(jax.random.key(0), config, False))
    shape = (case.batch, case.length)
    tokens = Tokens(np.ones(shape, np.int32), np.ones(shape, bool), np.zeros(shape, np.int32))
    first = case.layers - case.adapted
    select = [f"layers.{l}.attention.*" for l in range(first, case.layers)]
    made = adapters.init(jax.random.key(1), model, select=select, rank=8)

    def per_second(layer: int) -> float:
        hidden = model.below(tokens, layer)

        @eqx.filter_jit
        def step(made: Any, hidden: jax.Array) -> Any:
            def loss(made: Any) -> jax.Array:
                above = adapters.apply(model, made).above(hidden, tokens.mask, layer)
                return jnp.mean(mean_pooled(above, tokens.mask) ** 2)

            return jax.grad(loss)(made)

        found = step(made, hidden)
        jax.block_until_ready(jax.tree.leaves(found))
        best = float("inf")
        for _ in range(repeats):
            begin = time.perf_counter()
            for _ in range(case.steps):
                found = step(made, hidden)
            jax.block_until_ready(jax.tree.leaves(found))
            best = min(best, time.perf_counter() - begin)
        return case.steps / best

    return per_second(first), per_second(0)


def report(case: Case | None = None, repeats: int = 3) -> str:
    """Measure and lay out."""
    case = case or Case()
    once, always = measured(case, repeats)
    rates = f"{once:.1f}", f"{always:.1f}", f"{once / always:.2f}"
    return table(HEADER, [(str(case.layers), str(case.adapted), *rates)])
