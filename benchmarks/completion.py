"""Completion at d = 1000: full network, its compressed form, and observed entries only.

The target is that of Kwon et al. (r = 5, spread singular triplets, sigma_1 = 1), the loss
``1/2 sum(M * (f - Phi)^2) / sum M``, L = 3. One step is a gradient and an update. ``full`` trains
three d x d layers, ``compressed`` the 4 d r + (2 r)^2 parameters of the spectral start with a dense
residual and automatic gradients, as the authors do; ``entries`` is the same descent by
:func:`lrdyn.completion.entries_loss`, which touches observed entries only. The last column is the
largest relative difference of the two compressed networks after the steps.

The second table finds from which fraction observed whole matrices are the faster, for some sizes
and ranks: what :func:`lrdyn.completion.faster_loss` goes by.

Compilation and the listing of the entries are not timed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import lrdyn
from benchmarks.common import table, timed

DEPTH, RANK, EPS, ETA, RATIO = 3, 5, 1e-2, 10.0, 5.0
HEADER = ("observed", "full", "compressed", "entries", "full / comp.", "comp. / entries", "differ")
SCANNED = (0.02, 0.05, 0.08, 0.12, 0.2, 0.35)
"""Fractions observed, of the second table."""
OPERATIONS = 3e7
"""Of each run of the second table: its steps are this over d^2."""


class Problem(NamedTuple):
    """A target of which a part is seen, and the start of the compressed network."""

    target: Float[Array, "d d"]
    mask: Float[Array, "d d"]
    start: lrdyn.corollary1.CompressedNetwork


def problem(dim: int, rank: int, fraction: float) -> Problem:
    """The target of Kwon et al., its largest singular value 1, and the spectral start."""
    keys = jax.random.split(jax.random.key(0))
    target = lrdyn.completion.spread_target(keys[0], (dim, dim), rank)
    target /= lrdyn.singular_values(target)[0]
    mask = lrdyn.core.observe(keys[1], (dim, dim), fraction)
    seen = lrdyn.completion.surrogate(target, mask)
    return Problem(target, mask, lrdyn.completion.spectral_network(seen, 2 * rank, EPS, DEPTH))


def trained(loss: Callable, rule: optax.GradientTransformation, steps: int) -> Callable:
    """A compiled function of a start: the network after the steps."""
    last = np.array([steps])
    return jax.jit(
        lambda start: lrdyn.simulate(loss, start, rule, last, record=lambda _: ()).params
    )


def both_ways(given: Problem, steps: int) -> dict[str, Callable]:
    """Training of the compressed network by whole matrices, and by entries."""
    target, mask, start = given
    entries = lrdyn.completion.observed_entries(target, mask)
    rule = lrdyn.completion.discrepant_rates(ETA, RATIO)
    losses = {
        "dense": lambda network: lrdyn.completion.completion_loss(network, target, mask),
        "entries": lambda network: lrdyn.completion.entries_loss(network, entries),
    }
    programs = {way: trained(loss, rule, steps) for way, loss in losses.items()}
    return {way: lambda program=program: program(start) for way, program in programs.items()}


def compare(dim: int, fraction: float, steps: int, repeats: int) -> tuple[str, ...]:
    """One row of the first table."""
    given = problem(dim, RANK, fraction)
    layers = lrdyn.orthogonal_layers(jax.random.key(1), (dim,) * (DEPTH + 1), jnp.full(DEPTH, EPS))
    full = trained(
        lambda W: lrdyn.completion.observed_loss(lrdyn.end_to_end(W), given.target, given.mask),
        lrdyn.gradient_descent(ETA),
        max(1, steps // 10),
    )
    ways = both_ways(given, steps)
    times = timed({"full": lambda: full(layers), **ways}, repeats)
    taken = {"full": max(1, steps // 10), "dense": steps, "entries": steps}
    seconds = {name: times_of.best / taken[name] for name, times_of in times.items()}
    return (
        f"{fraction:.0%}",
        *(f"{1e3 * seconds[n]:.3g} ms (+{times[n].spread:.0%})" for n in seconds),
        f"{seconds['full'] / seconds['dense']:.1f}x",
        f"{seconds['dense'] / seconds['entries']:.1f}x",
        f"{difference(ways['dense'](), ways['entries']()):.1e}",
    )


def scan(dim: int, rank: int, fractions: Sequence[float], repeats: int) -> tuple[str, ...]:
    """One row of the second table: time by whole matrices over that by entries."""
    steps = max(3, int(OPERATIONS / dim**2))
    times = [timed(both_ways(problem(dim, rank, p), steps), repeats) for p in fractions]
    ratios = (f"{of['dense'].best / of['entries'].best:.2f}x" for of in times)
    return (str(dim), str(rank), *ratios)


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
    sizes: Sequence[int] = (100, 300, 1000, 2000),
    ranks: Sequence[int] = (2, 5, 20),
    scanned: Sequence[float] = SCANNED,
) -> str:
    """Measure and lay out."""
    rows = [compare(dim, fraction, steps, repeats) for fraction in fractions]
    title = (
        f"completion, time of one step: d = {dim}, r = {RANK}, L = {DEPTH}, float64\n"
        f"best of {repeats} runs without compilation; in brackets: how far the median lies above"
    )
    scans = [scan(size, rank, scanned, repeats) for size in sizes for rank in ranks]
    header = ("d", "r", *(f"{fraction:.0%}" for fraction in scanned))
    second = "whole matrices over entries, by the fraction observed"
    return f"{title}\n{table(HEADER, rows)}\n\n{second}\n{table(header, scans)}"
