"""Two layers, white inputs, a start balanced unit by unit: there the raw spectrum is known, too.

Gradient flow conserves ``||w_{2,i}||^2 - ||w_{1,i}||^2`` of every unit. With ``X X^T = c I``,
``||h_i||^2 = c ||w_{1,i}||^2``, so that from a balanced start D = c^{1/4} I, and
``sigma_i(H) = c^{1/4} sqrt(s_i)``. Descent with a step eta is off by a multiple of eta.
"""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import gaussians
from lrdyn.core.linalg import svdvals
from lrdyn.studies.dropout_spectra.minimum import (
    INPUTS,
    OUTPUTS,
    Linear,
    condition,
    descend,
    regression,
)
from lrdyn.theorem3 import dropout_minimum
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Stated
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

STARTS = 8
"""Starts of one case: from a single one the linear part of the drift can happen to be small."""
SCALE = 0.4
"""Standard deviation of the entries times sqrt(width); above 1/2 the drift is not linear in eta."""
RATES = (0.3, 0.15, 0.075)
"""eta / theta, so that the largest is well below the edge of stability whatever the dropout is."""
TIME = 600.0
"""eta / theta times the number of steps."""
WITHIN = 0.03
"""Margin of an exponent, for the order after the next and for the rounding of float32."""
SEEN = 3e-5
"""Distance from the minimum that is not seen in such an exponent: in float32 descent stops where a
step is below the last digit of the weights, some 1e-5 away."""
WHITE = 1.3
"""Singular values of the inputs, sqrt(c)."""


class RawTheory(NamedTuple):
    """What is predicted of the raw spectrum from a balanced start."""

    limit: Float[Array, "index"] = ABSENT
    """c^{1/4} sqrt(s_i), which the singular values of H approach as the step shrinks."""
    condition: Float[Array, ""] = ABSENT
    """Largest singular value of Y P over its least distance from being chosen otherwise."""


class RawMeasured(NamedTuple):
    """What is measured at the end of descent from each start with each step."""

    raw_spectrum: Float[Array, "rate start index"] = ABSENT
    """Singular values of H."""
    gradient: Float[Array, "rate start"] = ABSENT
    """Norm of the gradient."""
    diverged_at: Int[Array, "rate start"] = ABSENT
    """Step at which the run diverged, or -1."""
    rate: Float[Array, "rate"] = ABSENT
    """eta / theta."""


def make_raw(key: Key[Array, ""], *, width: int, dropout: float) -> Linear:
    """White inputs, and columns of the last layer as large as the rows of the first."""
    data_key, start_key = jax.random.split(key)
    inputs, target = regression(data_key, jnp.full(INPUTS, WHITE))
    first, last = gaussians(start_key, [(STARTS * width, INPUTS), (STARTS * OUTPUTS, width)])
    first = SCALE / np.sqrt(width) * first.reshape(STARTS, width, INPUTS)
    last = last.reshape(STARTS, OUTPUTS, width)
    last *= (jnp.linalg.norm(first, axis=2) / jnp.linalg.norm(last, axis=1))[:, None, :]
    keep_prob = jnp.asarray(1 - dropout, target.dtype)
    return Linear(inputs, target, (first, last), keep_prob[None], keep_prob, steps=0)


def predict_raw(case: Linear) -> RawTheory:
    """The spectrum that is approached, c^{1/4} sqrt(s_i), c the squared singular value of X."""
    shrinkage = dropout_minimum.dropout_minimiser(
        case.target, case.inputs, case.keep_prob, case.width
    )
    limit = jnp.sqrt(svdvals(case.inputs)[0] * shrinkage.values)
    return RawTheory(limit=limit[: case.width], condition=condition(case, shrinkage))


def measure_raw(case: Linear) -> RawMeasured:
    """Raw spectra at the end of descent with each step, over the same time."""

    def descend_at(start: Weights, rate: float) -> RawMeasured:
        end = descend(
            dataclasses.replace(
                case,
                weights=start,
                learning_rate=rate * case.keep_prob,
                steps=round(TIME / rate),
            )
        )
        return RawMeasured(
            raw_spectrum=svdvals(end.hidden)[: min(case.width, OUTPUTS)],
            gradient=end.gradient,
            diverged_at=end.diverged_at,
        )

    # Steps of different numbers are loops of different lengths: only the starts are batched.
    runs = [
        jax.vmap(lambda start, rate=rate: descend_at(start, rate))(case.weights) for rate in RATES
    ]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *runs)._replace(rate=jnp.asarray(RATES))


def _exponent(outcome: Outcome[RawTheory, RawMeasured]) -> Stated:
    """Compare with 1 the power of the step that the distance from the limit follows.

    The distance is a root mean square over all starts. Three distances ``C eta^p (1 + b eta)``
    give p: the next order is taken out.
    """
    offsets = np.asarray(outcome.measured.raw_spectrum - outcome.predicted.limit)
    distance = np.sqrt(np.mean(offsets**2, axis=(1, 2)))
    with np.errstate(divide="ignore", invalid="ignore"):
        basis = np.stack([np.ones(3), np.log(RATES), RATES], axis=1)
        exponent = np.linalg.solve(basis, np.log(distance))[1]
    # A distance that stays and one that goes with the square of the step are both 1 away.
    return Stated(float(np.abs(exponent - 1)), alternative=1.0)


def _still_moving(outcome: Outcome[RawTheory, RawMeasured]) -> str:
    """Why runs cannot be judged: what is left of descent would be seen beside a drift of 1e-3."""
    gradient = outcome.measured.gradient
    if not np.all(np.isfinite(gradient)):
        return ""
    return "" if np.max(gradient) * outcome.predicted.condition <= SEEN else "still moving"


def _unbalance_start(key: Key[Array, ""], case: Linear, amount: Array) -> Linear:
    """Unbalance the start: W_1 is ten times too large for its product, W_2 ten times too small.

    That start is a tenth of this one: with a larger W_1 than here no stable step arrives in time.
    """
    first, last = case.weights
    return eqx.tree_at(lambda c: c.weights, case, (first, last / 100.0**amount))


def _colour_inputs(key: Key[Array, ""], case: Linear, amount: Array) -> Linear:
    """Inputs whose directions have other sizes."""
    sizes = 1 + amount * jnp.linspace(-0.5, 0.0, INPUTS)
    return eqx.tree_at(lambda c: c.inputs, case, sizes[:, None] * case.inputs)


def _has_balanced_units(case: Linear) -> Array:
    """Whether every unit starts as large on one side as on the other."""
    first, last = case.weights
    sizes = jnp.linalg.norm(first, axis=2), jnp.linalg.norm(last, axis=1)
    error = jnp.max(jnp.abs(sizes[0] - sizes[1])) / jnp.max(sizes[0])
    return error <= tolerance("identity", first.dtype, size=max(first.shape[1:]))


def _is_white(case: Linear) -> Array:
    """Whether X X^T = c I."""
    gram = case.inputs @ case.inputs.T
    error = jnp.max(jnp.abs(gram - gram[0, 0] * jnp.eye(len(gram)))) / gram[0, 0]
    return error <= tolerance("identity", gram.dtype, size=case.inputs.shape[1])


RAW = Scenario[Linear, RawTheory, RawMeasured](
    "raw",
    make_raw,
    predict_raw,
    measure_raw,
    theory=RawTheory,
    measured=RawMeasured,
    claims=(
        Claim(
            "raw_spectrum",
            "two layers, X X^T = c I, a start balanced unit by unit: the singular values of H "
            "approach c^{1/4} sqrt(s_i) linearly in eta (exponent of the distance, less 1, at "
            f"eta = {', '.join(f'{rate:g}' for rate in RATES)} theta, the next order taken out; "
            f"{WITHIN:g} for the one after it; the alternatives: exponents 0 and 2)",
            kind="rate",
            form=_exponent,
            reads=lambda theory, run: (
                theory.limit,
                run.raw_spectrum,
                run.gradient,
                theory.condition,
            ),
            tolerance=WITHIN,
            undecided=_still_moving,
        ),
    ),
    controls=(
        Control(
            "raw_unbalanced",
            "W_1 ten times too large, W_2 ten times too small",
            "raw_spectrum",
            case=_unbalance_start,
            breaks="balanced_units",
        ),
        Control(
            "raw_coloured",
            "inputs that are not white",
            "raw_spectrum",
            case=_colour_inputs,
            breaks="white_inputs",
        ),
        Control(
            "raw_without_fourth_root",
            "sqrt(s_i) without c^{1/4}",
            "raw_spectrum",
            # As if X had orthonormal rows; its singular values are sqrt(c).
            predict=lambda case: RawTheory(
                limit=predict_raw(case).limit / jnp.sqrt(svdvals(case.inputs)[0])
            ),
        ),
    ),
    hypotheses={
        "some_dropout": lambda case: case.keep_prob < 1,
        "balanced_units": _has_balanced_units,
        "white_inputs": _is_white,
    },
    diverged=lambda run: run.diverged_at,
    sides="shrunk SVD of Y P against gradient descent at three steps",
    at={"width": 8, "dropout": 0.6},
    long=True,
)
