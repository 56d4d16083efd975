"""Theorem 2 as an integrator: full gradient descent against the reduced dynamics.

Both sides start from the same orthogonal layers (L = 3, eps = .3) and the same target (rank 10, a
truncated Gaussian matrix, as in Figure 3) and take 200 steps in float64. The full run is
:func:`lrdyn.simulate` on the mean loss with step eta; the reduced one is
:func:`lrdyn.reduced_dynamics` with :func:`lrdyn.rho` and step eta / d^2, the same descent on
``1/2 ||.||_F^2``. At d = 1000, eta = 500. The singular values of the target grow like sqrt(d), and
the pace of the run at small weights is eta / d^2 times the largest of them:
eta = 500 (d / 1000)^1.5 keeps it, which makes eta = 15.8 at d = 100.

Both programs are compiled and run once before the clock starts, so no time holds compilation. The
frame is needed once for a run, however many steps it takes; its time is a column of its own. The
last two columns compare the final weights (largest relative Frobenius distance over the layers)
and the final loss.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import table, timed
from lrdyn.core.factorization import Weights

DEPTH, EPS = 3, 0.3
HEADER = ("d", "eta", "full", "reduced", "ratio", "frame, once", "weights differ", "loss differs")


class Problem(NamedTuple):
    """One comparison."""

    weights: Weights
    target: jax.Array
    rank: int
    learning_rate: float
    steps: int


def learning_rate(dim: int) -> float:
    """Step for the mean loss."""
    return 500 * (dim / 1000) ** 1.5


def problem(dim: int, rank: int, steps: int) -> Problem:
    """Start and target."""
    for_weights, for_target = jax.random.split(jax.random.key(0))
    scales = jnp.full(DEPTH, EPS)
    weights = lrdyn.orthogonal_layers(for_weights, (dim,) * (DEPTH + 1), scales)
    target = lrdyn.truncated_gaussian_target(for_target, (dim, dim), rank)
    return Problem(weights, target, rank, learning_rate(dim), steps)


def full_run(case: Problem):
    """A compiled function of weights and target: the final weights of the d x d run."""

    @jax.jit
    def run(weights: Weights, target: jax.Array) -> Weights:
        loss = partial(lrdyn.core.mean_factorization_loss, target=target)
        rule = lrdyn.gradient_descent(case.learning_rate)
        last = np.array([case.steps])
        return lrdyn.simulate(loss, weights, rule, last, record=lambda weights: ()).params

    return run


def reduced_run(case: Problem):
    """A compiled function of reduced target and scales: the final blocks and rho."""
    eta = case.learning_rate / case.target.size

    @jax.jit
    def run(target: jax.Array, scales: jax.Array) -> tuple[Weights, jax.Array]:
        last = np.array([case.steps])
        moving = lrdyn.reduced_dynamics(target, scales, eta, 0.0, last, record=lambda weights: ())
        return moving.params, lrdyn.rho(scales, eta, 0.0, last)[-1]

    return run


def reduced_loss(blocks: Weights, bulk: jax.Array, target: jax.Array, dim: int) -> jax.Array:
    """The loss ``1/2 ||.||_F^2`` of the full run, from the reduced one alone."""
    still = dim - target.shape[0]
    return lrdyn.factorization_loss(blocks, target) + 0.5 * still * jnp.prod(bulk) ** 2


def compare(case: Problem, repeats: int) -> tuple[str, ...]:
    """One row of the table."""
    dim, size = case.target.shape[0], 2 * case.rank
    make_frame = jax.jit(lrdyn.frame, static_argnames="rank")
    frame = make_frame(case.weights, case.target, rank=case.rank)
    small, scales = lrdyn.reduced_target(frame, case.target, size), jnp.full(DEPTH, EPS)
    full, reduced = full_run(case), reduced_run(case)
    times = timed(
        {
            "full": lambda: full(case.weights, case.target),
            "reduced": lambda: reduced(small, scales),
            "frame": lambda: make_frame(case.weights, case.target, rank=case.rank),
        },
        repeats,
    )
    weights, (blocks, bulk) = full(case.weights, case.target), reduced(small, scales)
    loss = lrdyn.factorization_loss(weights, case.target)
    seconds = {name: times_of.best / case.steps for name, times_of in times.items()}
    return (
        str(dim),
        f"{case.learning_rate:.3g}",
        f"{1e3 * seconds['full']:.3g} ms/step (+{times['full'].spread:.0%})",
        f"{1e6 * seconds['reduced']:.3g} us/step (+{times['reduced'].spread:.0%})",
        f"{seconds['full'] / seconds['reduced']:.0f}x",
        f"{times['frame'].best:.2g} s",
        f"{distance(weights, lrdyn.expand(frame, blocks, bulk)):.1e}",
        f"{abs(float(reduced_loss(blocks, bulk, small, dim) / loss) - 1):.1e}",
    )


def distance(full: Weights, other: Weights) -> float:
    """Largest relative distance of two layers."""
    pairs = zip(full, other, strict=True)
    return max(float(jnp.linalg.norm(W - V) / jnp.linalg.norm(W)) for W, V in pairs)


def report(
    dims: Sequence[int] = (100, 1000), *, rank: int = 10, steps: int = 200, repeats: int = 3
) -> str:
    """Measure and lay out."""
    rows = [compare(problem(dim, rank, steps), repeats) for dim in dims]
    title = (
        f"full against reduced gradient descent: L = {DEPTH}, r = {rank}, eps = {EPS}, mean loss, "
        f"{steps} steps, float64\n"
        f"best of {repeats} runs without compilation; in brackets: how far the median lies above"
    )
    return f"{title}\n{table(HEADER, rows)}"
