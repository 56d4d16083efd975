"""Theorem 3, part A: where training with dropout ends."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from lrdyn import dropout, linalg
from lrdyn.claims import tolerance
from lrdyn.descent import gradient_descent, simulate
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussians, reflection, spaced_singular_values
from lrdyn.spectra import singular_values
from lrdyn.theorem import Claim, Control, Outcome, Scenario
from lrdyn.theorems.theorem3.network import only
from lrdyn.theorems.theorem3.statistics import decides, mean_surprise

RUNS = 2048
"""Runs of stochastic training."""

SHARE = 12
"""Gradient descent takes so many times the steps of a stochastic run."""

HALVES = 4
"""The steps of a stochastic run are halved after this part of it, and end at 1/5."""

STEP = 0.5
"""First step of a stochastic run, over theta and the largest singular value of Y P, which is 1."""

DRIFT = 64
"""Steps of the runs that train both layers."""

STEADY = 10.0
"""Time over which a transient must decay, in units of its own: to 5e-5."""

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
    fitted, hidden = dropout.equalize(
        jnp.pad(columns[:, :width] * roots[None, :], ((0, 0), (0, rest))),
        jnp.pad(roots[:, None] * turned[:width], ((0, rest), (0, 0))),
    )
    reached = (columns * spectrum[None, :]) @ turned
    keep_prob = jnp.asarray(keep_prob, lines.dtype)
    # As small as a start must be for its curvature not to exceed that at the end by much.
    small = jnp.sqrt(0.5 / ((1 + np.sqrt(width / rows)) ** 2 + 2 * (1 - keep_prob) / keep_prob))
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


# Theory --------------------------------------------------------------------------------------


def _closed_form(case: Training) -> dropout.Shrinkage:
    return dropout.dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)


def _spectrum(case: Training) -> Float[Array, "k"]:
    """Singular values of Y P."""
    return singular_values(dropout.project_rows(case.target, case.inputs))


def _attained(case: Training, found: dropout.Shrinkage) -> dict[str, Array]:
    """Product, value and spectrum of a minimiser, and the mean of training on the way there."""
    strength = dropout.dropout_strength(case.keep_prob, case.width)
    fit = jnp.sum((case.target - found.product) ** 2)
    steps = _stochastic_steps(case)
    left = jnp.prod(1 - steps[:, None] * _spectrum(case)[None, :], axis=0)
    return {
        "dropout_minimiser": found.product,
        "dropout_minimum": fit + strength * jnp.sum(found.values) ** 2,
        "stochastic_values": found.values * (1 - left),
    }


def predict(case: Training) -> dict[str, Array]:
    """The closed form, and what it takes to reach it."""
    found, spectrum = _closed_form(case), _spectrum(case)
    steps, rare = _stochastic_steps(case), jnp.minimum(case.keep_prob, 1 - case.keep_prob)
    slowest = jnp.min(jnp.where(found.values > 0, spectrum, jnp.inf))
    remembered = jnp.minimum(1 / (steps[-1] * spectrum[0]), len(steps))
    lengths = jnp.stack([remembered, jnp.full_like(remembered, DRIFT)])
    return _attained(case, found) | {
        "spectrum": spectrum,
        "threshold": found.threshold,
        "curvature": jnp.maximum(_curvature(case, case.weights), spectrum[0] * (1 + LARGEST**2)),
        "transient": jnp.sum(steps) * slowest,
        "rare_masks": RUNS * case.width * rare * lengths,
    }


def _curvature(case: Training, weights: Weights) -> Float[Array, ""]:
    """Largest eigenvalue of the Hessian of the expected loss, by the power method."""
    flat, restore = ravel_pytree(weights)
    slope = jax.grad(lambda flat: _expected_loss(case, restore(flat)))

    def times(vector: Array):
        return jax.jvp(slope, (flat,), (vector,))[1]

    def power(_: Any, vector: Array):
        return times(vector) / jnp.linalg.norm(times(vector))

    start = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype) ** 2)
    return jnp.linalg.norm(times(jax.lax.fori_loop(0, 40, power, start / jnp.linalg.norm(start))))


# Training ------------------------------------------------------------------------------------


def _expected_loss(case: Training, weights: PyTree) -> Float[Array, ""]:
    """Half of the loss over all masks."""
    first, second = weights
    return 0.5 * dropout.dropout_loss(second, first @ case.inputs, case.target, case.keep_prob)


def _stochastic_steps(case: Training) -> Float[Array, "steps"]:
    """Size of each step of a stochastic run."""
    number, first = _schedule(case.steps)
    return STEP * case.keep_prob / (1 + jnp.arange(number, dtype=case.inputs.dtype) / first)


def _schedule(steps: int) -> tuple[int, int]:
    """Steps of a stochastic run, and after how many they are halved."""
    steps = max(1, steps // SHARE)
    return steps, max(1, steps // HALVES)


def _descend(case: Training, steps: int) -> dict[str, Array]:
    """Gradient descent on the expected loss."""
    rule, ends = gradient_descent(case.learning_rate), np.asarray([0, steps])
    run = simulate(lambda W: _expected_loss(case, W), case.weights, rule, ends)
    slopes = jax.grad(lambda W: _expected_loss(case, W))(run.params)
    product = end_to_end(run.params) @ case.inputs
    return {
        "dropout_minimiser": product,
        "dropout_minimum": 2 * _expected_loss(case, run.params),
        "singular_values": singular_values(product),
        "gradient": jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        "diverged_at": run.diverged_at,
    }


def _train_last(case: Training, chance: Any) -> dict[str, Array]:
    """Train the last layer with random masks from zero, above the first one of the minimiser."""
    found, steps = _closed_form(case), _stochastic_steps(case)
    _, right = dropout.equalized_factors(found.product, case.width)
    first = dropout.input_layer(right, case.inputs)

    def train(number: Array):
        key = jax.random.fold_in(case.key, number)

        def step(t: Array, second: Array):
            at = jax.random.fold_in(key, t)
            return dropout.dropout_step(
                at, (first, second), case.inputs, case.target, chance, steps[t]
            )[1]

        start = jnp.zeros((len(case.target), case.width), first.dtype)
        product = jax.lax.fori_loop(0, len(steps), step, start) @ (first @ case.inputs)
        ends = jnp.diagonal(found.left.T @ product @ found.right.T)
        return jnp.where(found.values > 0, ends, 0.0)

    return {"stochastic_ends": jax.vmap(train)(jnp.arange(RUNS))}


def _train_both(case: Training, chance: Any, penalised: Any) -> dict[str, Array]:
    """Train both layers with random masks: how far they move along W(0), and where they should."""
    # A unit that is kept weighs 1/theta and is curved by 1/theta^2.
    rate, zero = 0.1 * case.keep_prob**2, jnp.zeros((), case.inputs.dtype)

    def along(weights: Weights):
        both = zip(case.fitted, weights, strict=True)
        return sum((jnp.sum(one * other) for one, other in both), start=zero)

    def train(number: Array):
        key = jax.random.fold_in(case.key, number)

        def step(t: Array, state: tuple[Weights, Array]):
            weights, pulled = state
            pull = along(jax.grad(penalised)(weights))
            at = jax.random.fold_in(key, t)
            after = dropout.dropout_step(at, weights, case.inputs, case.target, chance, rate)
            return after, pulled - rate * pull

        start = (case.fitted, zero)
        weights, pulled = jax.lax.fori_loop(0, DRIFT, step, start)
        return along(weights) - along(case.fitted), pulled

    moved, pulled = jax.vmap(train)(RUNS + jnp.arange(RUNS))
    return {"moved": moved, "pulled": pulled}


def measure(case: Training) -> dict[str, Array]:
    """Gradient descent on the expected loss, and stochastic training with dropout."""
    return {
        **_descend(case, case.steps),
        **_train_last(case, case.keep_prob),
        **_train_both(case, case.keep_prob, lambda W: _expected_loss(case, W)),
    }


# Claims --------------------------------------------------------------------------------------

GAP = ("spectrum", "threshold")
"""What :func:`_gap` reads."""


def _gap(one: Outcome) -> float:
    """Least distance of a singular value of Y P from being chosen otherwise, over the largest."""
    spectrum, threshold = (one.predicted[name] for name in GAP)
    width = int(one.point["width"])
    gap = np.min(np.abs(spectrum[:width] - threshold))
    if width < len(spectrum) and spectrum[width - 1] > threshold:
        # A full choice can be exchanged for what was left out.
        gap = np.minimum(gap, spectrum[width - 1] - spectrum[width])
    return float(gap / spectrum[0])


def _not_at_the_end(one: Outcome) -> str:
    """Theory gives no number of steps here: the one place where the measured gradient decides."""
    if not one.point["learning_rate"] * one.predicted["curvature"] < 2:
        return "step too large"
    # A run that diverged under a stable step is judged, and lost.
    if not np.isfinite(one.measured["gradient"]):
        return ""
    # Near a minimum the distance to it is the gradient over the curvature: down to round-off.
    size = max(int(one.point["rows"]), int(one.point["cols"]))
    limit = tolerance("identity", one.dtype, size=size)
    return "" if one.measured["gradient"] <= limit * _gap(one) else "still moving"


def _skewness(one: Outcome, place: int) -> float:
    """That of a mean over the runs, at most: of its rare masks, kept or not, of unequal weights."""
    return float(2.5 / np.sqrt(one.predicted["rare_masks"][place]))


def _noisy(one: Outcome) -> bool:
    # Of a single unit the noise vanishes at the minimum.
    return int(one.point["width"]) > 1


def _too_short(one: Outcome) -> str:
    if not one.predicted["transient"] >= STEADY:
        return "too few steps"
    return "" if decides(_skewness(one, 0)) else "masks too rare"


def _too_rare(one: Outcome) -> str:
    return "" if decides(_skewness(one, 1)) else "masks too rare"


def _nuclear_norms(one: Outcome) -> np.ndarray:
    """``sum_{i<=q} u_i^T Z v_i`` at the end of each run."""
    return np.sum(one.measured["stochastic_ends"], axis=1)


STUDENT = (
    f"Student's test of {RUNS} runs, {RUNS - 1} degrees of freedom, its p times the factor by "
    "which the skewness of rare masks can falsify it"
)

CLAIMS = (
    Claim("dropout_minimiser",
          "gradient descent on the expected loss ends at Z = U (Sigma - mu_q I)_+ V^T, from Y P = "
          "U Sigma V^T and c = (1-theta)/(theta h) (undecided while the gradient is not down to "
          "rounding times the gap: no number of steps is known)",
          reads=("dropout_minimiser", "gradient", "curvature", *GAP), undecided=_not_at_the_end),
    Claim("dropout_minimum",
          "the expected loss there is the minimum of ||Y - Z||_F^2 + c ||Z||_*^2 over rank Z <= h",
          reads=("dropout_minimum", "gradient", "curvature", *GAP), undecided=_not_at_the_end),
    Claim("stochastic",
          "training the last layer with random masks, from 0 above the first layer of the "
          "minimiser, ends there: the mean of sum_{i<=q} u_i^T Z v_i is sum_{i<=q} (sigma_i - "
          "mu_q) (1 - prod_t (1 - eta_t sigma_i)), ||Z||_* if sigma_q sum_t eta_t >= "
          f"{STEADY:g} (and h > 1); {STUDENT}", kind="statistical", applies=_noisy,
          residual=lambda one: mean_surprise(
              float(np.sum(one.predicted["stochastic_values"])), _nuclear_norms(one),
              _skewness(one, 0)),
          reads=("stochastic_values", "stochastic_ends", "transient", "rare_masks"),
          undecided=_too_short),
    Claim("stochastic_drift",
          "training both layers with random masks moves them, in the mean, against the gradient of "
          "the expected loss: the mean of <W(0), W(T) - W(0) + sum_t eta_t grad(W(t))> is 0; "
          f"{STUDENT}", kind="statistical",
          residual=lambda one: mean_surprise(
              0.0, one.measured["moved"] - one.measured["pulled"], _skewness(one, 1)),
          reads=("moved", "pulled", "rare_masks"), undecided=_too_rare),
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


def _other_run(case: Training) -> dict[str, Array]:
    """Descent, to its end, at a theta of theta^2; and masks drawn with it."""
    squared = case.keep_prob**2
    other = eqx.tree_at(lambda c: c.keep_prob, case, squared)
    return {
        **_descend(other, case.steps),
        **_train_last(case, squared),
        **_train_both(case, squared, lambda W: _expected_loss(case, W)),
    }


def _without_penalty(case: Training) -> dict[str, Array]:
    def fit(weights: PyTree):
        return 0.5 * jnp.sum((case.target - end_to_end(weights) @ case.inputs) ** 2)

    return _train_both(case, case.keep_prob, fit)


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
    Control("drift_without_penalty", "the gradient of the loss of the mean prediction alone",
            "stochastic_drift", measure=_without_penalty),
    *(
        Control(f"{claim}_of_other_masks", "masks kept with probability theta^2 in the run", claim,
                measure=_other_run)
        for claim in ("dropout_minimiser", "dropout_minimum", "stochastic", "stochastic_drift")
    ),
)  # fmt: skip

MINIMISER = Scenario(
    "dropout_training", make_case, predict, measure, CLAIMS, CONTROLS,
    dims={
        "dropout_minimiser": ("row", "column"),
        "stochastic_values": ("index",),
        "stochastic_ends": ("run", "index"),
        "moved": ("run",),
        "pulled": ("run",),
        "rare_masks": ("training",),
        "singular_values": ("index",),
        "spectrum": ("index",),
    },
    narrow=only("dropout"), steps="steps", diverged="diverged_at",
    sides="closed form from the SVD of Y P against gradient descent and against stochastic "
    "training",
    at={"mask": "dropout", "keep_prob": 0.5, "rows": 6, "cols": 8, "width": 4},
)  # fmt: skip
