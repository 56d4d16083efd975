"""Theorem 3, part A: where training with dropout ends."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.claims import in_standard_errors, standard_error, tolerance
from lrdyn.descent import gradient_descent, simulate
from lrdyn.dropout import (
    Shrinkage,
    dropout_descent,
    dropout_loss,
    dropout_minimiser,
    dropout_strength,
    equalize,
    project_rows,
    shrink_squared,
)
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussians, spaced_singular_values
from lrdyn.spectra import singular_values
from lrdyn.theorem import Claim, Control, Outcome, Statement
from lrdyn.theorems.theorem3.dropout_penalty import only, reflection

RUNS = 24
"""Runs of stochastic training."""

SHARE = 2
"""Gradient descent takes so many times the steps of a stochastic run."""

HALVES = 40
"""The steps of a stochastic run are halved after this part of it, and end at 1/41."""


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
) -> Training:
    rank = min(rows, cols)
    shapes = [(2, rows), (1, cols), (1, rank), (rows, cols), (width, rows), (rows, width)]
    sides, line, turn, noise, first, second = gaussians(key, shapes)
    left, columns = jax.vmap(reflection)(sides)[:, :, :rank]
    lines = reflection(line[0])[:rank]
    turned = reflection(turn[0]) @ lines
    # Singular values of X from 4/3 to 2/3; of Y P from 1 to 1/rank, above the threshold and below.
    scales, spectrum = spaced_singular_values(rank, 4 / 3), jnp.linspace(1.0, 1 / rank, rank)
    roots, rest = jnp.sqrt(spectrum[:width]), max(width - rank, 0)
    fitted, hidden = equalize(
        jnp.pad(columns[:, :width] * roots[None, :], ((0, 0), (0, rest))),
        jnp.pad(roots[:, None] * turned[:width], ((0, rest), (0, 0))),
    )
    reached = (columns * spectrum[None, :]) @ turned
    return Training(
        inputs=(left * scales[None, :]) @ lines,
        target=reached + 0.1 * (noise - (noise @ lines.T) @ lines),
        weights=(0.5 * first / np.sqrt(rows), 0.5 * second / np.sqrt(rows)),
        fitted=((hidden @ lines.T / scales[None, :]) @ left.T, fitted),
        keep_prob=jnp.asarray(keep_prob, lines.dtype),
        learning_rate=jnp.asarray(learning_rate, lines.dtype),
        key=jax.random.fold_in(key, 1),
        width=width,
        steps=steps,
    )


def _predict_minimiser(case: Training, found: Shrinkage | None = None) -> dict[str, Array]:
    """The closed form: product, value and spectrum."""
    if found is None:
        found = dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)
    rest = case.target - found.product
    strength = dropout_strength(case.keep_prob, case.width)
    return {
        "dropout_minimiser": found.product,
        "dropout_minimum": jnp.sum(rest**2) + strength * jnp.sum(found.values) ** 2,
        "stochastic_values": found.values,
    }


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
    closed = dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)
    steps, halve_after = _schedule(case.steps)

    def train(number):
        weights = dropout_descent(
            jax.random.fold_in(case.key, number),
            case.fitted,
            case.inputs,
            case.target,
            case.keep_prob,
            case.learning_rate,
            steps,
            halve_after=halve_after,
        )
        found = end_to_end(weights) @ case.inputs
        ends = jnp.diagonal(closed.left.T @ found @ closed.right.T)
        return jnp.where(closed.values > 0, ends, 0.0)

    return {
        "dropout_minimiser": product,
        "dropout_minimum": 2 * loss(run.params),
        "stochastic_ends": jax.vmap(train)(jnp.arange(RUNS)),
        "singular_values": singular_values(product),
        "gradient": jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        "spectrum": singular_values(project_rows(case.target, case.inputs)),
        "threshold": closed.threshold,
        "diverged_at": run.diverged_at,
    }


def _schedule(steps: int) -> tuple[int, int]:
    """Steps of a stochastic run, and after how many they are halved."""
    steps = max(1, steps // SHARE)
    return steps, max(1, steps // HALVES)


# Claims --------------------------------------------------------------------------------------

GAP = ("spectrum", "threshold")
"""What :func:`_gap` reads."""


def _gap(one: Outcome) -> float:
    """Least distance of a singular value of Y P from being chosen otherwise, over the largest."""
    spectrum, threshold = (one.measured[name] for name in GAP)
    width = int(one.point["width"])
    gap = np.min(np.abs(spectrum[:width] - threshold))
    if width < len(spectrum) and spectrum[width - 1] > threshold:
        # A full choice can be exchanged for what was left out.
        gap = np.minimum(gap, spectrum[width - 1] - spectrum[width])
    return float(gap / spectrum[0])


def _converged(one: Outcome) -> bool:
    # Near a minimum the distance to it is the gradient over the curvature: down to round-off.
    size = max(int(one.point["rows"]), int(one.point["cols"]))
    limit = tolerance("identity", one.dtype, size=size)
    return bool(one.measured["gradient"] <= limit * _gap(one))


def _long_enough(one: Outcome) -> bool:
    # What is decided at the rate of the gap needs a time of 1 / gap: the sum of all steps.
    steps, first = _schedule(one.steps)
    rate = one.point["learning_rate"] * one.point["keep_prob"]
    time = rate * first * np.log1p(steps / first)
    # A single unit has no noise at the minimum: its runs agree better than they have converged.
    noisy = one.point["width"] > 1 and standard_error(_nuclear_norms(one)) > 0
    return bool(time * _gap(one) >= 1 and noisy)


def _nuclear_norms(one: Outcome) -> np.ndarray:
    """``sum_{i<=q} u_i^T Z v_i`` at the end of each run."""
    return np.sum(one.measured["stochastic_ends"], axis=1)


MINIMISER_CLAIMS = (
    Claim(
        "dropout_minimiser",
        "gradient descent on the expected loss ends at Z = U (Sigma - mu_q I)_+ V^T, from Y P = "
        "U Sigma V^T and c = (1-theta)/(theta h) (if it has converged)",
        reads=("dropout_minimiser", "gradient", *GAP),
        applies=_converged,
    ),
    Claim(
        "dropout_minimum",
        "the expected loss there is the minimum of ||Y - Z||_F^2 + c ||Z||_*^2 over rank Z <= h",
        reads=("dropout_minimum", "gradient", *GAP),
        applies=_converged,
    ),
    Claim(
        "stochastic",
        f"training with random masks and decreasing steps ends there: mean over {RUNS} runs of "
        "sum_{i<=q} u_i^T Z v_i, which is ||Z||_* (if h > 1 and the sum of the steps exceeds "
        "1 / gap)",
        kind="statistical",
        residual=lambda one: in_standard_errors(
            np.sum(one.predicted["stochastic_values"]), _nuclear_norms(one)
        ),
        reads=("stochastic_values", "stochastic_ends", *GAP),
        applies=_long_enough,
    ),
)

AT_WIDTH = 4
MINIMISER_AT = {"mask": "dropout", "keep_prob": 0.5, "rows": 6, "cols": 8, "width": AT_WIDTH}


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
    "dropout_training",
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
                predict=_shrunk_by(1.0 * AT_WIDTH),
                at=MINIMISER_AT,
            )
            for claim in ("dropout_minimiser", "stochastic")
        ),
        *(
            Control(
                f"{claim}_soft_thresholded",
                "nuclear norm not squared",
                claim,
                predict=_soft_thresholded,
                at=MINIMISER_AT,
            )
            for claim in ("dropout_minimiser", "dropout_minimum", "stochastic")
        ),
        Control(
            "target_not_projected",
            "Y in place of Y P, though X has fewer rows than columns",
            "dropout_minimiser",
            predict=_shrunk_by(1.0, projected=False),
            at=MINIMISER_AT,
        ),
    ),
    dims={
        "dropout_minimiser": ("row", "column"),
        "stochastic_values": ("index",),
        "stochastic_ends": ("run", "index"),
        "singular_values": ("index",),
        "spectrum": ("index",),
    },
    narrow=only("dropout"),
    steps="steps",
    diverged="diverged_at",
    sides="closed form from the SVD of Y P against gradient descent and against stochastic "
    "training",
)
