"""What dropout makes of the last activations of a linear network, exactly, at a global minimiser.

The expected loss is ``||Y - W_L H||_F^2 + ((1-theta)/theta) sum_i ||w_i||^2 ||h_i||^2`` with
``H = W_{L-1} ... W_1 X``. At a global minimiser ``W_L = U S^{1/2} Q^T D^-1`` and
``H = D Q S^{1/2} V^T`` with ``Q^T Q = I``, any positive diagonal D, and ``U S V^T`` the shrunk
``Y P`` of Theorem 3: ``docs/theorems/last_activations.md`` has the proof.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.descent import gradient_descent, simulate
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.initialization import gaussians, orthogonal
from lrdyn.core.linalg import svdvals
from lrdyn.studies.dropout_spectra.activations import balance_rows
from lrdyn.theorem3 import dropout_minimum, dropout_penalties, several_dropout_layers
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

OUTPUTS, INPUTS, EXAMPLES = 6, 7, 12
SPECTRUM = (1.0, 0.8, 0.6, 0.05, 0.04, 0.03)
"""Singular values of Y P: three above the threshold at the default rate, noise below."""
FIRST, OTHERS = 1.0, 0.4
"""Scales of the layers at the start. Of one scale the layers below would balance, and what vanishes
at the minimum would do so as slowly as a power of time."""


class MinimumTheory(NamedTuple):
    """What is predicted of a global minimiser of the expected loss."""

    balanced: Float[Array, "index"] = ABSENT
    """sqrt(s_i), s the shrunk singular values of Y P: those of H with balanced rows."""
    units: Float[Array, "unit"] = ABSENT
    """||w_i|| ||h_i|| = sum(s) / h of every hidden unit."""
    condition: Float[Array, ""] = ABSENT
    """Largest singular value of Y P over its least distance from being chosen otherwise."""


class MinimumMeasured(NamedTuple):
    """What is measured at the end of descent on the expected loss."""

    balanced: Float[Array, "index"] = ABSENT
    """Singular values of H with balanced rows."""
    activations: Float[Array, "index"] = ABSENT
    """Singular values of H as it is."""
    units: Float[Array, "unit"] = ABSENT
    """||w_i|| ||h_i|| of every hidden unit."""
    gradient: Float[Array, ""] = ABSENT
    """Norm of the gradient at the end."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""


class Linear(eqx.Module):
    """A deep linear regression with dropout."""

    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    weights: tuple[Float[Array, "..."], ...]
    """The start, or several of them along the first axis."""
    keep_probs: Float[Array, "hidden"]
    """theta of every hidden layer; below the last one 1."""
    learning_rate: Float[Array, ""]
    steps: int = eqx.field(static=True)

    @property
    def keep_prob(self) -> Float[Array, ""]:
        """Keep probability theta of the last hidden layer."""
        return self.keep_probs[-1]

    @property
    def width(self) -> int:
        """Hidden units h of each layer."""
        return self.weights[-1].shape[-1]


def regression(
    key: Key[Array, ""], singular_values: Float[Array, "d"]
) -> tuple[Float[Array, "d n"], Float[Array, "m n"]]:
    """Inputs of these singular values, and a target with a part that no network reaches."""
    *frames, noise = gaussians(
        key,
        [
            (INPUTS, INPUTS),
            (INPUTS, EXAMPLES),
            (OUTPUTS, OUTPUTS),
            (OUTPUTS, INPUTS),
            (OUTPUTS, EXAMPLES),
        ],
    )
    left, rows, columns, turn = map(orthogonal, frames)
    reached = (columns * jnp.asarray(SPECTRUM, noise.dtype)[None, :]) @ turn @ rows
    # Noise that is orthogonal to the rows of the inputs: it adds to the loss of every network
    # alike, and moves no minimum.
    return (left * singular_values[None, :]) @ rows, reached + 0.1 * (noise - noise @ rows.T @ rows)


def make_linear(
    key: Key[Array, ""], *, depth: int, width: int, dropout: float, steps: int
) -> Linear:
    """Inputs that are not white, an orthogonal first layer and Gaussian others."""
    data_key, start_key = jax.random.split(key)
    inputs, target = regression(data_key, jnp.linspace(4 / 3, 2 / 3, INPUTS))
    sizes = [INPUTS, *[width] * (depth - 1), OUTPUTS]
    first, *others = gaussians(start_key, list(zip(sizes[1:], sizes[:-1], strict=True)))
    start = (FIRST * orthogonal(first), *(OTHERS * G / np.sqrt(G.shape[1]) for G in others))
    keep_prob = jnp.asarray(1 - dropout, target.dtype)
    return Linear(
        inputs,
        target,
        start,
        jnp.ones(depth - 1).at[-1].set(keep_prob),
        # The penalty curves by the odds of a unit; 1/theta is 1 and those.
        learning_rate=keep_prob / 4,
        steps=steps,
    )


def predict_minimum(case: Linear) -> MinimumTheory:
    """sqrt(s), and sum(s) / h for every unit; how near another rank is."""
    shrinkage = dropout_minimum.dropout_minimiser(
        case.target, case.inputs, case.keep_prob, case.width
    )
    return _spectrum_of_shrunk(case, shrinkage.values)._replace(
        condition=condition(case, shrinkage)
    )


def _spectrum_of_shrunk(case: Linear, shrunk: Float[Array, "k"]) -> MinimumTheory:
    size = min(case.width, EXAMPLES)
    roots = jnp.sqrt(shrunk)[:size]
    return MinimumTheory(
        balanced=jnp.pad(roots, (0, size - len(roots))),
        units=jnp.full(case.width, jnp.sum(shrunk) / case.width),
    )


def condition(case: Linear, shrinkage: dropout_minimum.Shrinkage) -> Float[Array, ""]:
    """Least distance of a singular value of Y P from being chosen otherwise, relative; its inverse.

    The Hessian at the minimum is of that size in the direction in which the choice would change.
    """
    values = svdvals(dropout_minimum.project_rows(case.target, case.inputs))
    gap = jnp.min(jnp.abs(values - shrinkage.threshold)[: case.width])
    if case.width < len(values):  # a full choice can be exchanged for what was left out
        apart = values[case.width - 1] - values[case.width]
        full = values[case.width - 1] > shrinkage.threshold
        gap = jnp.where(full, jnp.minimum(gap, apart), gap)
    return values[0] / gap


def expected_loss(case: Linear, weights: Weights) -> Float[Array, ""]:
    """Half of the loss over all masks, by the second moments that they leave layer by layer."""
    fit = jnp.sum((case.target - end_to_end(weights) @ case.inputs) ** 2)
    moment = case.inputs @ case.inputs.T
    return 0.5 * (fit + several_dropout_layers.layers_penalty(weights, moment, case.keep_probs))


class Descended(NamedTuple):
    """The end of gradient descent on the expected loss."""

    weights: Weights
    hidden: Float[Array, "h n"]
    """H."""
    gradient: Float[Array, ""]
    """Norm of the gradient."""
    diverged_at: Int[Array, ""]
    """Step at which the run diverged, or -1."""


def descend(case: Linear, scale: Any = 1.0) -> Descended:
    """Gradient descent on the expected loss; the last layer reads ``scale`` times what it does."""

    def loss(weights: Weights) -> Float[Array, ""]:
        *below, last = weights
        return expected_loss(case, (*below, scale * last))

    rule, ends = gradient_descent(case.learning_rate), np.asarray([0, case.steps])
    run = simulate(loss, case.weights, rule, ends)
    slopes = jax.grad(loss)(run.params)
    return Descended(
        weights=run.params,
        hidden=end_to_end(run.params[:-1]) @ case.inputs,
        gradient=jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        diverged_at=run.diverged_at,
    )


def measure_minimum(case: Linear, scale: Any = 1.0) -> MinimumMeasured:
    """Singular values of the activations, balanced and as they are, and the sizes of all units."""
    end = descend(case, scale)
    H, last = end.hidden, end.weights[-1]
    return MinimumMeasured(
        balanced=svdvals(balance_rows(H, last)),
        activations=svdvals(H),
        units=jnp.linalg.norm(H, axis=1) * jnp.linalg.norm(last, axis=0),
        gradient=end.gradient,
        diverged_at=end.diverged_at,
    )


def _still_moving(outcome: Outcome[MinimumTheory, MinimumMeasured]) -> str:
    """Why the end of descent cannot be judged; its gradient decides, for want of a step number."""
    gradient = outcome.measured.gradient
    if not np.isfinite(gradient):
        return ""  # under a stable step a run that diverged is judged, and lost
    limit = tolerance("identity", outcome.dtype, size=outcome.size)
    return "" if gradient <= limit else "still moving"


def _both_layers(key: Key[Array, ""], case: Linear, amount: Array) -> Linear:
    """Dropout after the layers below, too."""
    below = 1 - amount * (1 - case.keep_prob)
    return eqx.tree_at(lambda c: c.keep_probs, case, case.keep_probs.at[:-1].set(below))


def _without_width(case: Linear) -> MinimumTheory:
    """The values shrunk with (1 - theta) / theta in the place of ((1 - theta) / theta) / h."""
    reached = dropout_minimum.project_rows(case.target, case.inputs)
    odds = dropout_penalties.odds(case.keep_prob)
    return _spectrum_of_shrunk(
        case, dropout_minimum.shrink_squared(reached, odds, case.width).values
    )


MINIMUM = Scenario[Linear, MinimumTheory, MinimumMeasured](
    "minimum",
    make_linear,
    predict_minimum,
    measure_minimum,
    theory=MinimumTheory,
    measured=MinimumMeasured,
    claims=(
        Claim(
            "balanced_spectrum",
            "dropout at the last hidden layer of a linear network, at a global minimiser of the "
            "expected loss: rows of H over (||h_i|| / ||w_i||)^{1/2} have the singular values "
            "sqrt(s_i), s those of Y P shrunk, whatever the inputs, the start and the depth",
            compares=lambda theory, run: (theory.balanced, run.balanced),
            reads=lambda theory, run: (run.gradient,),
            condition=lambda theory: theory.condition,
            undecided=_still_moving,
        ),
        Claim(
            "equal_units",
            "there ||w_i|| ||h_i|| = sum(s) / h for every hidden unit",
            compares=lambda theory, run: (theory.units, run.units),
            reads=lambda theory, run: (run.gradient,),
            condition=lambda theory: theory.condition,
            undecided=_still_moving,
        ),
    ),
    controls=(
        Control(
            "raw_activations",
            "singular values of H as it is",
            "balanced_spectrum",
            measure=lambda case: MinimumMeasured(balanced=measure_minimum(case).activations),
        ),
        Control(
            "not_rescaled",
            "masks of 0 and 1",
            "balanced_spectrum",
            # Not of 0 and 1/theta: the last layer reads theta times what it does.
            measure=lambda case: measure_minimum(case, case.keep_prob),
        ),
        *(
            control
            for claim in ("balanced_spectrum", "equal_units")
            for control in (
                Control(
                    f"{claim}_both_layers",
                    "dropout after both hidden layers",
                    claim,
                    case=_both_layers,
                    breaks="last_layer_only",
                ),
                Control(
                    f"{claim}_without_width",
                    "c with h dropped",
                    claim,
                    predict=_without_width,
                ),
            )
        ),
    ),
    hypotheses={
        "some_dropout": lambda case: case.keep_prob < 1,
        "last_layer_only": lambda case: jnp.all(case.keep_probs[:-1] == 1),
    },
    diverged=lambda run: run.diverged_at,
    sides="shrunk SVD of Y P against gradient descent on the moments of all masks",
    at={"depth": 3, "width": 8, "dropout": 0.6},
)
