"""A step of adapters in a BERT without work that changes nothing.

Layers below the first adapted one are computed once, or always; pairs of sentences share rows, or
are filled up to the longest. The numbers mean nothing: a step takes as long with any.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import table
from lrdyn import adapters
from lrdyn.data.encoder import BertConfig, blank
from lrdyn.networks import Bert, Tokens, mean_pooled
from lrdyn.networks.packing import pack, room_for

HEADER = ("saved", "steps per second", "not saved", "ratio")


class Case(NamedTuple):
    """Sizes: those of MiniLM, a batch of 16 pairs of up to 64 tokens."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    adapted: int = 2
    batch: int = 16
    length: int = 64
    steps: int = 10


def measured(case: Case, repeats: int) -> list[tuple[str, float, float]]:
    """What is saved; steps per second with it saved, and not."""
    config = BertConfig(
        100, case.width, case.layers, case.heads, 4 * case.width, case.length, 2, 1e-12
    )
    model = jax.tree.map(jnp.ones_like, blank(jax.random.key(0), config, False))
    shape = (case.batch, case.length)
    # As long as STS-B's pairs: 27 tokens in the mean, the longest cut off.
    drawn = 10 + np.random.default_rng(0).gamma(1.7, 10.0, case.batch)
    mask = np.arange(case.length) < np.minimum(drawn, case.length)[:, None]
    tokens = Tokens(np.ones(shape, np.int32), mask, np.zeros(shape, np.int32))
    first, rows = case.layers - case.adapted, -(-case.batch // 4)
    room = int(room_for(mask, rows))

    def filled_up(model: Bert, hidden: jax.Array, layer: int) -> jax.Array:
        return mean_pooled(model.above(hidden, mask, layer), mask)

    def in_rows(model: Bert, hidden: jax.Array, layer: int) -> jax.Array:
        packed = pack(hidden, mask, rows, room)
        above = model.above(packed.hidden, packed.mask(), layer)
        return packed.means(above, case.batch)

    def per_second(pooled: Callable[..., jax.Array], layer: int, layers: Sequence[int]) -> float:
        select = [f"layers.{l}.attention.*" for l in layers]
        adapted = adapters.init(jax.random.key(1), model, select=select, rank=8)
        hidden = model.below(tokens, layer)

        @eqx.filter_jit
        def step(adapted: Any, hidden: jax.Array) -> Any:
            def loss(adapted: Any) -> jax.Array:
                return jnp.mean(pooled(adapters.apply(model, adapted), hidden, layer) ** 2)

            return jax.grad(loss)(adapted)

        jax.block_until_ready(jax.tree.leaves(step(adapted, hidden)))
        best = float("inf")
        for _ in range(repeats):
            begin = time.perf_counter()
            for _ in range(case.steps):
                result = step(adapted, hidden)
            jax.block_until_ready(jax.tree.leaves(result))
            best = min(best, time.perf_counter() - begin)
        return case.steps / best

    upper, all_layers = range(first, case.layers), range(case.layers)
    below = [per_second(filled_up, layer, upper) for layer in (first, 0)]
    places = [per_second(pooled, 0, all_layers) for pooled in (in_rows, filled_up)]
    words = f"{first} of {case.layers} layers", f"{mask.size - rows * room} of {mask.size} places"
    return [(word, *rates) for word, rates in zip(words, (below, places), strict=True)]


def report(case: Case | None = None, repeats: int = 3) -> str:
    """Measure and lay out."""
    rows = measured(case or Case(), repeats)
    return table(HEADER, [(w, f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}") for w, a, b in rows])
