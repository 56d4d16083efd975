"""Completion at d = 1000: full network, its compressed form, and observed entries only.

The target is that of Kwon et al. (r = 5, spread singular triplets, sigma_1 = 1), the loss
``1/2 sum(M * (f - Phi)^2) / sum M``, L = 3. One step is a gradient and an update. ``full`` trains
three d x d layers, ``compressed`` the 4 d r + (2 r)^2 parameters of the spectral start with a dense
residual and automatic gradients, as the authors do; ``entries`` is the same descent by
:func:`lrdyn.completion.entries_loss`, which touches observed entries only. The last column is the
largest relative difference of the two compressed networks after the steps.

Compilation and the listing of the entries are not timed.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrdyn
from benchmarks.common import table, timed

DEPTH, RANK, EPS, ETA, RATIO = 3, 5, 1e-2, 10.0, 5.0
HEADER = ("observed", "full", "compressed", "entries", "full / comp.", "comp. / entries", "differ")


def trained(loss: Callable, rule: optax.GradientTransformation, steps: int) -> Callable:
    """A compiled function of a start: the network after the steps."""
    last = np.array([steps])
    return jax.jit(
        lambda start: lrdyn.simulate(loss, start, rule, last, record=lambda _: ()).params
    )


def compare(dim: int, fraction: float, steps: int, repeats: int) -> tuple[str, ...]:
    """One row of the table."""
    keys = jax.random.split(jax.random.key(0), 3)
    target = lrdyn.completion.spread_target(keys[0], (dim, dim), RANK)
    target /= lrdyn.singular_values(target)[0]
    mask = lrdyn.core.observe(keys[1], (dim, dim), fraction)
    entries = lrdyn.completion.observed_entries(target, mask)
    layers = lrdyn.orthogonal_layers(keys[2], (dim,) * (DEPTH + 1), jnp.full(DEPTH, EPS))
    small = lrdyn.completion.spectral_network(
        lrdyn.completion.surrogate(target, mask), 2 * RANK, EPS, DEPTH
    )
    rule = lrdyn.completion.discrepant_rates(ETA, RATIO)
    full = trained(
        lambda W: lrdyn.completion.observed_loss(lrdyn.end_to_end(W), target, mask),
        lrdyn.gradient_descent(ETA),
        max(1, steps // 10),
    )
    dense = trained(lambda net: lrdyn.completion.completion_loss(net, target, mask), rule, steps)
    sparse = trained(lambda net: lrdyn.completion.entries_loss(net, entries), rule, steps)
    times = timed(
        {
            "full": lambda: full(layers),
            "dense": lambda: dense(small),
            "sparse": lambda: sparse(small),
        },
        repeats,
    )
    taken = {"full": max(1, steps // 10), "dense": steps, "sparse": steps}
    seconds = {name: times_of.best / taken[name] for name, times_of in times.items()}
    return (
        f"{fraction:.0%}",
        *(f"{1e3 * seconds[n]:.3g} ms (+{times[n].spread:.0%})" for n in seconds),
        f"{seconds['full'] / seconds['dense']:.1f}x",
        f"{seconds['dense'] / seconds['sparse']:.1f}x",
        f"{difference(dense(small), sparse(small)):.1e}",
    )


def difference(
    first: lrdyn.corollary1.CompressedNetwork, second: lrdyn.corollary1.CompressedNetwork
) -> float:
    """Largest relative difference of two networks of the same shape."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in pairs)


def report(
    dim: int = 1000,
    fractions: Sequence[float] = (0.2, 0.05, 0.01),
    *,
    steps: int = 200,
    repeats: int = 3,
) -> str:
    """Measure and lay out."""
    rows = [compare(dim, fraction, steps, repeats) for fraction in fractions]
    title = (
        f"completion, time of one step: d = {dim}, r = {RANK}, L = {DEPTH}, float64\n"
        f"best of {repeats} runs without compilation; in brackets: how far the median lies above"
    )
    return f"{title}\n{table(HEADER, rows)}"
