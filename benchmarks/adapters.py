"""LoRA of many seeds on one frozen model, under vmap, against a loop over the seeds.

One step of Adam on the adapters of a perceptron for each seed. Both programs are compiled once
before the clock runs; the loop calls one program a seed and step.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from benchmarks.common import table
from lrdyn import adapters

HEADER = ("seeds", "width", "vmap, steps per second and seed", "loop", "vmap / loop")


class Case(NamedTuple):
    """Sizes."""

    width: int
    rank: int
    batch: int
    seeds: int
    steps: int


def _per_second(step: Callable[[Any], Any], state: Any, steps: int, repeats: int) -> float:
    """Steps per second of the best repeat."""
    jax.block_until_ready(step(state))
    best = float("inf")
    for _ in range(repeats):
        begin, now = time.perf_counter(), state
        for _ in range(steps):
            now = step(now)
        jax.block_until_ready(now)
        best = min(best, time.perf_counter() - begin)
    return steps / best


def measured(case: Case, repeats: int) -> tuple[float, float]:
    """Steps per second and seed, batched and in a loop."""
    net = eqx.nn.MLP(case.width, case.width, case.width, 2, key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (case.batch, case.width))
    rule = optax.adam(1e-3)

    def one(key: jax.Array) -> Any:
        weights = adapters.split(adapters.init(key, net, rank=case.rank))
        return weights, rule.init(weights.trained)

    def step(held: Any) -> Any:
        split, state = held

        def loss(trained: Any) -> jax.Array:
            model = adapters.apply(net, adapters.joined(trained, split.frozen))
            return jnp.mean(jax.vmap(model)(inputs) ** 2)

        moves, state = rule.update(jax.grad(loss)(split.trained), state)
        return split._replace(trained=optax.apply_updates(split.trained, moves)), state

    every = jax.vmap(one)(jax.random.split(jax.random.key(2), case.seeds))
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], every) for i in range(case.seeds)]
    alone = jax.jit(step)
    batched = _per_second(jax.jit(jax.vmap(step)), every, case.steps, repeats)
    loop = _per_second(lambda held: [alone(x) for x in held], each, case.steps, repeats)
    return batched, loop


LARGE = Case(256, 8, 32, 20, 20)


def report(case: Case = LARGE, repeats: int = 3) -> str:
    """Measure and lay out."""
    batched, loop = measured(case, repeats)
    row = (
        str(case.seeds),
        str(case.width),
        f"{batched:.1f}",
        f"{loop:.1f}",
        f"{batched / loop:.2f}",
    )
    return table(HEADER, [row])
