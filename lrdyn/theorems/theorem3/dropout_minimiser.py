"""Theorem 3, part A: where training with dropout ends."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lrdyn import dropout, linalg
from lrdyn.claims import standard_error, student_p, surprise, tolerance
from lrdyn.descent import gradient_descent, simulate
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussians, reflection, spaced_singular_values
from lrdyn.spectra import singular_values
from lrdyn.theorem import Claim, Control, Outcome, Scenario
from lrdyn.theorems.theorem3.network import only

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
    scales, spectrum = spaced_singular_values(rank, 4 / 3), jnp.linspace(1.0, 1 / rank, rank)
    roots, rest = jnp.sqrt(spectrum[:width]), max(width - rank, 0)
    fitted, hidden = dropout.equalize(
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


def _attained(case: Training, found: dropout.Shrinkage) -> dict[str, Array]:
    """Product, value and spectrum of a minimiser."""
    strength = dropout.dropout_strength(case.keep_prob, case.width)
    fit = jnp.sum((case.target - found.product) ** 2)
    return {
        "dropout_minimiser": found.product,
        "dropout_minimum": fit + strength * jnp.sum(found.values) ** 2,
        "stochastic_values": found.values,
    }


def _closed_form(case: Training) -> dropout.Shrinkage:
    return dropout.dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)


def predict(case: Training) -> dict[str, Array]:
    """The closed form."""
    return _attained(case, _closed_form(case))


def measure(case: Training) -> dict[str, Array]:
    """Gradient descent on the expected loss, and stochastic training with dropout."""

    def loss(weights: PyTree):
        first, second = weights
        return 0.5 * dropout.dropout_loss(second, first @ case.inputs, case.target, case.keep_prob)

    rule, ends = gradient_descent(case.learning_rate), np.asarray([0, case.steps])
    run = simulate(loss, case.weights, rule, ends)
    slopes = jax.grad(loss)(run.params)
    product, closed = end_to_end(run.params) @ case.inputs, _closed_form(case)
    steps, halve_after = _schedule(case.steps)

    def train(number: Array):
        weights = dropout.dropout_descent(
            jax.random.fold_in(case.key, number), case.fitted, case.inputs, case.target,
            case.keep_prob, case.learning_rate, steps, halve_after=halve_after,
        )  # fmt: skip
        found = end_to_end(weights) @ case.inputs
        ends = jnp.diagonal(closed.left.T @ found @ closed.right.T)
        return jnp.where(closed.values > 0, ends, 0.0)

    return {
        "dropout_minimiser": product,
        "dropout_minimum": 2 * loss(run.params),
        "stochastic_ends": jax.vmap(train)(jnp.arange(RUNS)),
        "singular_values": singular_values(product),
        "gradient": jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        "spectrum": singular_values(dropout.project_rows(case.target, case.inputs)),
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


CLAIMS = (
    Claim("dropout_minimiser",
          "gradient descent on the expected loss ends at Z = U (Sigma - mu_q I)_+ V^T, from Y P = "
          "U Sigma V^T and c = (1-theta)/(theta h) (if it has converged)",
          reads=("dropout_minimiser", "gradient", *GAP), applies=_converged),
    Claim("dropout_minimum",
          "the expected loss there is the minimum of ||Y - Z||_F^2 + c ||Z||_*^2 over rank Z <= h",
          reads=("dropout_minimum", "gradient", *GAP), applies=_converged),
    Claim("stochastic",
          f"training with random masks and decreasing steps ends there: mean over {RUNS} runs of "
          "sum_{i<=q} u_i^T Z v_i, which is ||Z||_* (if h > 1 and the sum of the steps exceeds "
          "1 / gap)", kind="statistical",
          residual=lambda one: surprise(student_p(
              np.sum(one.predicted["stochastic_values"]), _nuclear_norms(one))),
          reads=("stochastic_values", "stochastic_ends", *GAP), applies=_long_enough),
)  # fmt: skip

# Controls ------------------------------------------------------------------------------------


def _without_width(case: Training) -> dict[str, Array]:
    target = dropout.project_rows(case.target, case.inputs)
    return _attained(case, dropout.shrink_squared(target, dropout.odds(case.keep_prob), case.width))


def _not_projected(case: Training) -> dict[str, Array]:
    strength = dropout.dropout_strength(case.keep_prob, case.width)
    return _attained(case, dropout.shrink_squared(case.target, strength, case.width))


def _soft_thresholded(case: Training) -> dict[str, Array]:
    """Minimiser of ||Y P - Z||_F^2 + c ||Z||_*: soft thresholding at c/2."""
    left, values, right = linalg.svd(dropout.project_rows(case.target, case.inputs))
    threshold = dropout.dropout_strength(case.keep_prob, case.width) / 2
    kept = jnp.maximum(values - threshold, 0.0) * (jnp.arange(len(values)) < case.width)
    product, rank = (left * kept[None, :]) @ right, jnp.sum(kept > 0)
    return _attained(case, dropout.Shrinkage(product, kept, threshold, rank, left, right))


CONTROLS = (
    *(
        Control(f"{claim}_without_width", "c with h dropped", claim, predict=_without_width)
        for claim in ("dropout_minimiser", "stochastic")
    ),
    *(
        Control(f"{claim}_soft_thresholded", "nuclear norm not squared", claim,
                predict=_soft_thresholded)
        for claim in ("dropout_minimiser", "dropout_minimum", "stochastic")
    ),
    Control("target_not_projected", "Y in place of Y P, though X has fewer rows than columns",
            "dropout_minimiser", predict=_not_projected),
)  # fmt: skip

MINIMISER = Scenario(
    "dropout_training", make_case, predict, measure, CLAIMS, CONTROLS,
    dims={
        "dropout_minimiser": ("row", "column"),
        "stochastic_values": ("index",),
        "stochastic_ends": ("run", "index"),
        "singular_values": ("index",),
        "spectrum": ("index",),
    },
    narrow=only("dropout"), steps="steps", diverged="diverged_at",
    sides="closed form from the SVD of Y P against gradient descent and against stochastic "
    "training",
    at={"mask": "dropout", "keep_prob": 0.5, "rows": 6, "cols": 8, "width": 4},
)  # fmt: skip
