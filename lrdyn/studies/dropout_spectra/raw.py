"""Two layers, white inputs, a start balanced unit by unit: there the raw spectrum is known, too.

Gradient flow conserves ``||w_{2,i}||^2 - ||w_{1,i}||^2`` of every unit. With ``X X^T = c I``,
``||h_i||^2 = c ||w_{1,i}||^2``, so that from a balanced start D = c^{1/4} I, and
``sigma_i(H) = c^{1/4} sqrt(s_i)``. Descent with a step eta is off by a multiple of eta.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import gaussians
from lrdyn.core.linalg import svdvals
from lrdyn.engine.claims import tolerance
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.studies.dropout_spectra.minimum import (  # fmt: skip
    INPUTS,
    OUTPUTS,
    Linear,
    descended,
    gap,
    hidden,
    regression,
)
from lrdyn.theorem3 import dropout_minimum

STARTS = 8
"""Of one case: from a single start the linear part of the drift can happen to be small."""
SCALE = 0.4
"""Standard deviation of the entries times sqrt(width); above 1/2 the drift is not linear in eta."""
RATES = (0.3, 0.15, 0.075)
"""eta theta, so that the largest is well below the edge of stability whatever the dropout is."""
TIME = 600.0
"""eta theta times the number of steps."""
WITHIN = 0.03
"""Of an exponent: for the order after the next, and for what float32 leaves of such distances."""
SEEN = 3e-5
"""Distance from the minimum that is not seen in such an exponent: in float32 descent stops where a
step is below the last digit of the weights, some 1e-5 away."""
WHITE = 1.3
"""Singular values of the inputs, sqrt(c)."""


def make_raw(key: Key[Array, ""], *, width: int, dropout: float) -> Linear:
    """White inputs, and columns of the last layer as large as the rows of the first."""
    data_key, start_key = jax.random.split(key)
    inputs, target = regression(data_key, jnp.full(INPUTS, WHITE))
    first, last = gaussians(start_key, [(STARTS * width, INPUTS), (STARTS * OUTPUTS, width)])
    first = SCALE / np.sqrt(width) * first.reshape(STARTS, width, INPUTS)
    last = last.reshape(STARTS, OUTPUTS, width)
    last *= (jnp.linalg.norm(first, axis=2) / jnp.linalg.norm(last, axis=1))[:, None, :]
    kept = jnp.asarray(1 - dropout, target.dtype)
    return Linear(inputs, target, (first, last), kept[None], kept, steps=0)


def predict_raw(case: Linear) -> dict[str, Array]:
    """The spectrum that is approached, c^{1/4} sqrt(s_i), c the squared singular value of X."""
    found = dropout_minimum.dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)
    limit = jnp.sqrt(svdvals(case.inputs)[0] * found.values)
    return {"limit": limit[: case.width]} | gap(case, found)


def measure_raw(case: Linear) -> dict[str, Array]:
    """Raw spectra at the end of descent with each step, over the same time."""
    runs = [_descend(case, rate) for rate in RATES]
    return {name: jnp.stack([run[name] for run in runs]) for name in runs[0]} | {
        "rate": jnp.asarray(RATES)
    }


def _descend(case: Linear, rate: float) -> dict[str, Array]:
    def one(start: Weights) -> dict[str, Array]:
        kept, steps = rate * case.keep_prob, round(TIME / rate)
        weights, how = descended(
            dataclasses.replace(case, weights=start, learning_rate=kept, steps=steps)
        )
        return how | {"raw_spectrum": svdvals(hidden(case, weights))[: min(case.width, OUTPUTS)]}

    return jax.vmap(one)(case.weights)


def _exponent(one: Outcome) -> float:
    """That of the distance from the limit over all starts, in powers of the step, less 1.

    Three distances ``C eta^p (1 + b eta)`` give p: the next order is taken out.
    """
    limit, found = one.predicted["limit"], one.measured["raw_spectrum"]
    distance = np.sqrt(np.mean((found - limit) ** 2, axis=(1, 2)))
    with np.errstate(divide="ignore", invalid="ignore"):
        basis = np.stack([np.ones(3), np.log(RATES), RATES], axis=1)
        return float(np.abs(np.linalg.solve(basis, np.log(distance))[1] - 1))


def _still_moving(one: Outcome) -> str:
    """What descent still has to go must not be seen beside a drift of about 1e-3."""
    gradient = one.measured["gradient"]
    if not np.all(np.isfinite(gradient)):
        return ""
    return "" if np.max(gradient) * one.predicted["condition"] <= SEEN else "still moving"


def _unbalanced(key: Key[Array, ""], case: Linear, amount: Array) -> Linear:
    """Beside the balanced start of its product: W_1 ten times too large, W_2 ten times too small.

    That start is a tenth of this one: with a larger W_1 than here no stable step arrives in time.
    """
    first, last = case.weights
    return eqx.tree_at(lambda c: c.weights, case, (first, last / 100.0**amount))


def _coloured(key: Key[Array, ""], case: Linear, amount: Array) -> Linear:
    """Inputs whose directions have other sizes."""
    sizes = 1 + amount * jnp.linspace(-0.5, 0.0, INPUTS)
    return eqx.tree_at(lambda c: c.inputs, case, sizes[:, None] * case.inputs)


def _without_fourth_root(case: Linear) -> dict[str, Array]:
    """sqrt(s_i), as if X had orthonormal rows."""
    return {"limit": predict_raw(case)["limit"] / jnp.sqrt(svdvals(case.inputs)[0])}


def _units(case: Linear) -> Array:
    """Whether every unit starts as large on one side as on the other."""
    first, last = case.weights
    sizes = jnp.linalg.norm(first, axis=2), jnp.linalg.norm(last, axis=1)
    error = jnp.max(jnp.abs(sizes[0] - sizes[1])) / jnp.max(sizes[0])
    return error <= tolerance("identity", first.dtype, size=max(first.shape[1:]))


def _white(case: Linear) -> Array:
    """Whether X X^T = c I."""
    gram = case.inputs @ case.inputs.T
    error = jnp.max(jnp.abs(gram - gram[0, 0] * jnp.eye(len(gram)))) / gram[0, 0]
    return error <= tolerance("identity", gram.dtype, size=case.inputs.shape[1])


RAW = Scenario[Linear](
    "raw", make_raw, predict_raw, measure_raw,
    (
        Claim("raw_spectrum",
              "two layers, X X^T = c I, a start balanced unit by unit: the singular values of H "
              "approach c^{1/4} sqrt(s_i) linearly in eta (exponent of the distance, less 1, at "
              f"eta = {', '.join(f'{rate:g}' for rate in RATES)} theta, the next order taken out; "
              f"{WITHIN:g} for the one after it)",
              kind="rate", residual=_exponent, tolerance=WITHIN,
              reads=("limit", "raw_spectrum", "gradient", "condition"), undecided=_still_moving),
    ),
    (
        Control("raw_unbalanced", "W_1 ten times too large, W_2 ten times too small",
                "raw_spectrum", case=_unbalanced, breaks="balanced_units"),
        Control("raw_coloured", "inputs that are not white", "raw_spectrum", case=_coloured,
                breaks="white_inputs"),
        Control[Linear]("raw_without_fourth_root", "sqrt(s_i) without c^{1/4}", "raw_spectrum",
                        predict=_without_fourth_root),
    ),
    hypotheses={
        "some_dropout": lambda case: case.keep_prob < 1,
        "balanced_units": _units,
        "white_inputs": _white,
    },
    dims={"raw_spectrum": ("rate", "start", "index"), "limit": ("index",),
          "gradient": ("rate", "start"), "diverged_at": ("rate", "start"), "rate": ("rate",)},
    sides="shrunk SVD of Y P against gradient descent at three steps",
    at={"width": 8, "dropout": 0.6}, long=True,
)  # fmt: skip
