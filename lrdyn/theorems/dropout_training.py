"""Theorem 3, part A: where training with dropout ends."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.claims import tolerance
from lrdyn.descent import gradient_descent, simulate
from lrdyn.dropout import (
    Shrinkage,
    dropout_descent,
    dropout_loss,
    dropout_minimizer,
    dropout_strength,
    equalize,
    input_layer,
    project_rows,
    shrink_squared,
)
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussians, orthogonal, spaced_singular_values
from lrdyn.spectra import singular_values
from lrdyn.theorem import Arrays, Claim, Control, Statement
from lrdyn.theorems.dropout import only

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

RUNS = 32
"""Runs of stochastic training."""


class Training(eqx.Module):
    """A regression to be trained with dropout."""

    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    weights: Weights
    """Start of gradient descent."""
    fitted: Weights
    """Start of stochastic training: the minimiser without dropout."""
    keep_prob: Float[Array, ""]
    learning_rate: Float[Array, ""]
    key: Key[Array, ""]
    width: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)


def _training(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    learning_rate: Any,
    steps: int,
    **flags: Any,
) -> Training:
    rank = min(rows, cols)
    for_data, for_runs = jax.random.split(key)
    square, wide, thin = (rank, rank), (rank, cols), (rows, rank)
    shapes = [thin, wide, thin, square, (rows, cols), (width, rows), (rows, width)]
    *draws, noise, first, second = gaussians(for_data, shapes)
    left, lines, columns, turn = map(orthogonal, draws)
    # Singular values of X from 4/3 to 2/3; of Y P from 1 to 1/rank, above the threshold and below.
    inputs = (left * spaced_singular_values(rank, 4 / 3)[None, :]) @ lines
    spectrum = jnp.linspace(1.0, 1 / rank, rank)
    roots, rest = jnp.sqrt(spectrum[:width]), max(width - rank, 0)
    factors = equalize(
        jnp.pad(columns[:, :width] * roots[None, :], ((0, 0), (0, rest))),
        jnp.pad(roots[:, None] * (turn @ lines)[:width], ((0, rest), (0, 0))),
    )
    reached = (columns * spectrum[None, :]) @ turn @ lines
    return Training(
        inputs=inputs,
        target=reached + 0.1 * (noise - (noise @ lines.T) @ lines),
        weights=(0.5 * first / np.sqrt(rows), 0.5 * second / np.sqrt(rows)),
        fitted=(input_layer(factors[1], inputs), factors[0]),
        keep_prob=jnp.asarray(keep_prob, inputs.dtype),
        learning_rate=jnp.asarray(learning_rate, inputs.dtype),
        key=for_runs,
        width=width,
        steps=steps,
    )


def _predict_minimiser(case: Training, found: Shrinkage | None = None) -> dict[str, Array]:
    """The closed form: product, value, spectrum, and how clear the choice of q is."""
    if found is None:
        found = dropout_minimizer(case.target, case.inputs, case.keep_prob, case.width)
    rest = case.target - found.product
    strength = dropout_strength(case.keep_prob, case.width)
    return {
        "minimiser": found.product,
        "minimum": jnp.sum(rest**2) + strength * jnp.sum(found.values) ** 2,
        "stochastic": found.values,
        "rank": found.rank,
    }


def _gap(case: Training) -> Float[Array, ""]:
    """Least curvature across the minimisers, over the largest singular value of the target."""
    found = dropout_minimizer(case.target, case.inputs, case.keep_prob, case.width)
    reached = singular_values(project_rows(case.target, case.inputs))
    counted = jnp.arange(len(reached)) < case.width
    gap = jnp.min(jnp.where(counted, jnp.abs(reached - found.threshold), jnp.inf))
    if case.width < len(reached):  # a full choice can be exchanged for what was left out
        step = reached[case.width - 1] - reached[case.width]
        gap = jnp.where(found.rank == case.width, jnp.minimum(gap, step), gap)
    return gap / reached[0]


def _measure_minimiser(case: Training) -> dict[str, Array]:
    """Gradient descent on the expected loss, and stochastic training with dropout."""

    def loss(weights):
        first, second = weights
        return 0.5 * dropout_loss(second, first @ case.inputs, case.target, case.keep_prob)

    run = simulate(
        loss, case.weights, gradient_descent(case.learning_rate), np.asarray([0, case.steps])
    )
    slopes = jax.grad(loss)(run.params)
    product = end_to_end(run.params) @ case.inputs
    closed = dropout_minimizer(case.target, case.inputs, case.keep_prob, case.width)

    def train(key):
        weights = dropout_descent(
            key,
            case.fitted,
            case.inputs,
            case.target,
            case.keep_prob,
            case.learning_rate,
            case.steps,
            halve_after=max(1, case.steps // 20),
        )
        found = end_to_end(weights) @ case.inputs
        return jnp.diagonal(closed.left.T @ found @ closed.right.T)

    ends = jax.vmap(train)(jax.random.split(case.key, RUNS))
    return {
        "minimiser": product,
        "minimum": 2 * loss(run.params),
        "stochastic": jnp.mean(ends, axis=0),
        "standard_error": jnp.std(ends, axis=0, ddof=1) / np.sqrt(RUNS),
        "singular_values": singular_values(product),
        "gradient": jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        "gap": _gap(case),
        "diverged_at": run.diverged_at,
    }


def _converged(case: Training, predicted: Arrays, measured: Arrays) -> Array:
    # Near a minimum the distance to it is the gradient over the curvature.
    limit = tolerance("identity", case.target.dtype, steps=case.steps, size=max(case.target.shape))
    return measured["gradient"] <= limit * measured["gap"]


def _standard_errors(case: Training, predicted: Arrays, measured: Arrays) -> Array:
    apart = jnp.abs(predicted["stochastic"] - measured["stochastic"]) / measured["standard_error"]
    return jnp.max(jnp.where(jnp.arange(len(apart)) < predicted["rank"], apart, 0.0))


MINIMISER_CLAIMS = (
    Claim(
        "minimiser",
        "gradient descent on the expected loss ends at Z = U (Sigma - mu_q I)_+ V^T, from Y P = "
        "U Sigma V^T and c = (1-theta)/(theta h) (if it has converged)",
        applies=_converged,
    ),
    Claim(
        "minimum",
        "the expected loss there is the minimum of ||Y - Z||_F^2 + c ||Z||_*^2 over rank Z <= h",
        applies=_converged,
    ),
    Claim(
        "stochastic",
        f"training with random masks and decreasing steps ends there: mean over {RUNS} runs of "
        "u_i^T Z v_i, i <= q",
        kind="statistical",
        residual=_standard_errors,
        applies=lambda case, p, m: jnp.all(m["standard_error"] > 0),
    ),
)

MINIMISER_AT = {"mask": "dropout", "keep_prob": 0.5, "rows": 6, "cols": 8, "width": 4}


def _shrunk_by(strength: float, *, projected: bool = True) -> Callable[[Training], dict]:
    """Prediction with another strength than c, in multiples of it, or without P."""

    def wrong(case):
        c = strength * dropout_strength(case.keep_prob, case.width)
        target = project_rows(case.target, case.inputs) if projected else case.target
        return _predict_minimiser(case, shrink_squared(target, c, case.width))

    return wrong


def _soft_thresholded(case: Training) -> dict[str, Array]:
    """Minimiser of ||Y P - Z||_F^2 + c ||Z||_*: soft thresholding at c/2."""
    left, values, right = linalg.svd(project_rows(case.target, case.inputs))
    threshold = dropout_strength(case.keep_prob, case.width) / 2
    kept = jnp.maximum(values - threshold, 0.0) * (jnp.arange(len(values)) < case.width)
    rank = jnp.sum(kept > 0)
    wrong = Shrinkage((left * kept[None, :]) @ right, kept, threshold, rank, left, right)
    return _predict_minimiser(case, wrong)


MINIMISER = Statement(
    "minimiser",
    _training,
    _predict_minimiser,
    _measure_minimiser,
    MINIMISER_CLAIMS,
    controls=(
        *(
            Control(
                f"{claim}_without_width",
                "c with h dropped",
                claim,
                predict=_shrunk_by(MINIMISER_AT["width"]),
                at=MINIMISER_AT,
            )
            for claim in ("minimiser", "stochastic")
        ),
        *(
            Control(
                f"{claim}_soft_thresholded",
                "nuclear norm not squared",
                claim,
                predict=_soft_thresholded,
                at=MINIMISER_AT,
            )
            for claim in ("minimiser", "minimum", "stochastic")
        ),
        Control(
            "target_not_projected",
            "Y in place of Y P, though X has fewer rows than columns",
            "minimiser",
            predict=_shrunk_by(1.0, projected=False),
            at=MINIMISER_AT,
        ),
    ),
    dims={
        "minimiser": ("row", "column"),
        "stochastic": ("index",),
        "standard_error": ("index",),
        "singular_values": ("index",),
    },
    narrow=lambda settings: (
        only("dropout", "block_size", "patch_size")(settings) | {"steps": settings["steps"]}
    ),
)


def plot_dropout(groups: "Mapping[str, xr.Dataset]") -> "Figure | None":
    """Draw the spectra of the minimisers and the least penalty over the width."""
    return None
