"""Theorem 3, part A: a regression that is trained with dropout, by random masks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import gaussians, reflection, spaced_singular_values
from lrdyn.core.masking import observe
from lrdyn.theorem3 import dropout_minimum, dropout_penalties

RUNS = 256
"""Runs of stochastic training."""

SHARE = 24
"""Gradient descent takes so many times the steps of a stochastic run."""

HALVES = 2
"""The steps of a stochastic run are halved after this part of it, and end at 1/3."""

STEP = 0.5
"""First step of a stochastic run, over theta and the largest singular value of Y P, which is 1."""

DRIFT = 64
"""Steps of the runs that train both layers."""

LARGEST = 4 / 3
"""Largest singular value of X."""


class Training(eqx.Module):
    """A regression to be trained with dropout."""

    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    weights: Weights
    """Start of gradient descent."""
    fitted: Weights
    """Start of stochastic training of both layers: the minimiser without dropout."""
    keep_prob: Float[Array, ""]
    learning_rate: Float[Array, ""]
    key: Key[Array, ""]
    width: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, width: int, keep_prob: Any, learning_rate: Any,
    steps: int,
) -> Training:  # fmt: skip
    """Draw a regression on each side of the threshold, and two starts."""
    rank = min(rows, cols)
    shapes = [(2, rows), (1, cols), (1, rank), (rows, cols), (width, rows), (rows, width)]
    sides, line, turn, noise, first, second = gaussians(key, shapes)
    left, columns = jax.vmap(reflection)(sides)[:, :, :rank]
    lines = reflection(line[0])[:rank]
    turned = reflection(turn[0]) @ lines
    # Singular values of X from 4/3 to 2/3; of Y P from 1 to 1/rank, above the threshold and below.
    scales, spectrum = spaced_singular_values(rank, LARGEST), jnp.linspace(1.0, 1 / rank, rank)
    roots, rest = jnp.sqrt(spectrum[:width]), max(width - rank, 0)
    fitted, hidden = dropout_penalties.equalize(
        jnp.pad(columns[:, :width] * roots[None, :], ((0, 0), (0, rest))),
        jnp.pad(roots[:, None] * turned[:width], ((0, rest), (0, 0))),
    )
    reached = (columns * spectrum[None, :]) @ turned
    keep_prob = jnp.asarray(keep_prob, lines.dtype)
    # As small as a start must be for its curvature not to exceed that at the end by much.
    small = jnp.sqrt(0.3 / ((1 + np.sqrt(width / rows)) ** 2 + 2 * (1 - keep_prob) / keep_prob))
    return Training(
        inputs=(left * scales[None, :]) @ lines,
        target=reached + 0.1 * (noise - (noise @ lines.T) @ lines),
        weights=(small * first / np.sqrt(rows), small * second / np.sqrt(rows)),
        fitted=((hidden @ lines.T / scales[None, :]) @ left.T, fitted),
        keep_prob=keep_prob,
        learning_rate=jnp.asarray(learning_rate, lines.dtype),
        key=jax.random.fold_in(key, 1),
        width=width,
        steps=steps,
    )


def closed_form(case: Training) -> dropout_minimum.Shrinkage:
    """The minimiser."""
    return dropout_minimum.dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)


def expected_loss(case: Training, weights: PyTree) -> Float[Array, ""]:
    """Half of the loss over all masks."""
    first, second = weights
    return 0.5 * dropout_penalties.dropout_loss(
        second, first @ case.inputs, case.target, case.keep_prob
    )


def stochastic_steps(case: Training) -> Float[Array, "steps"]:
    """Size of each step of a stochastic run."""
    number, first = _schedule(case.steps)
    t = jnp.arange(number, dtype=case.inputs.dtype)
    return dropout_minimum.decreasing_step(t, STEP, case.keep_prob, first)


def _schedule(steps: int) -> tuple[int, int]:
    """Steps of a stochastic run, and after how many they are halved."""
    steps = max(1, steps // SHARE)
    return steps, max(1, steps // HALVES)


def train_last(case: Training, chance: Any) -> dict[str, Array]:
    """Train the last layer with random masks from zero, above the first one of the minimiser."""
    found, steps = closed_form(case), stochastic_steps(case)
    _, right = dropout_penalties.equalized_factors(found.product, case.width)
    first = dropout_minimum.input_layer(right, case.inputs)

    def step(t: Array, layers: Array):
        def one(mask: Array, second: Array):
            both = (first, second)
            return dropout_minimum.dropout_step(
                mask, both, case.inputs, case.target, chance, steps[t]
            )[1]

        return jax.vmap(one)(_masks(case, t, chance), layers)

    start = jnp.zeros((RUNS, len(case.target), case.width), first.dtype)
    layers = jax.lax.fori_loop(0, len(steps), step, start)
    hidden = (first @ case.inputs) @ found.right.T
    ends = jnp.einsum("mk,rmh,hk->rk", found.left, layers, hidden)
    return {"stochastic_ends": jnp.where(found.values[None, :] > 0, ends, 0.0)}


def _masks(case: Training, t: Array, chance: Any) -> Float[Array, "runs h"]:
    """Masks of a step, one for each run."""
    return observe(jax.random.fold_in(case.key, t), (RUNS, case.width), chance)


def train_both(case: Training, chance: Any) -> dict[str, Array]:
    """Train both layers with random masks: how far they move along W(0), and what pulls them there.

    The fit pulls, and the squares of the units, of which the penalty is a multiple.
    """
    # A unit that is kept weighs 1/theta and is curved by 1/theta^2.
    rate = 0.1 * case.keep_prob**2

    def along(weights: Weights):
        first, second = (
            jnp.sum(one * other) for one, other in zip(case.fitted, weights, strict=True)
        )
        return first + second

    def parts(weights: PyTree):
        """Half of the loss at the mean of the masks, and of the squares of all units."""
        first, second = weights
        hidden = first @ case.inputs
        units = jnp.sum(second**2, axis=0) * jnp.sum(hidden**2, axis=1)
        return 0.5 * jnp.stack([jnp.sum((case.target - second @ hidden) ** 2), jnp.sum(units)])

    def step(t: Array, state: tuple[PyTree, Array]):
        def one(mask: Array, weights: Weights):
            after = dropout_minimum.dropout_step(
                mask, weights, case.inputs, case.target, chance, rate
            )
            return after, jax.jvp(parts, (weights,), (case.fitted,))[1]

        weights, pulled = state
        # Other masks than those of the runs of the last layer.
        weights, pulls = jax.vmap(one)(_masks(case, -1 - t, chance), weights)
        return weights, pulled - rate * pulls

    copies = jax.tree.map(lambda W: jnp.broadcast_to(W, (RUNS, *W.shape)), case.fitted)
    start = (copies, jnp.zeros((RUNS, 2), case.inputs.dtype))
    weights, pulled = jax.lax.fori_loop(0, DRIFT, step, start)
    return {"moved": jax.vmap(along)(weights) - along(case.fitted), "pulled": pulled}
