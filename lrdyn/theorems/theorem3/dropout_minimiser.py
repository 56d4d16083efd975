"""Theorem 3, part A: where training with dropout ends."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lrdyn import dropout, linalg
from lrdyn.claims import tolerance
from lrdyn.descent import gradient_descent, simulate
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussians, reflection, spaced_singular_values
from lrdyn.masking import observe
from lrdyn.spectra import singular_values
from lrdyn.theorem import Claim, Control, Outcome, Scenario
from lrdyn.theorems.theorem3.network import only
from lrdyn.theorems.theorem3.statistics import decides, mean_surprise

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
        "curvature": _curvature(case),
        "stochastic_drift": dropout.odds(case.keep_prob),
        "transient": jnp.sum(steps) * slowest,
        "rare_masks": RUNS * case.width * rare * lengths,
    }


def _curvature(case: Training) -> Float[Array, ""]:
    """Upper bound of the Hessian of the expected loss at the start, or its size at the end.

    That of the fit is ``||V||^2 + ||W_2||^2 ||X||^2 + ||Y - W_2 V|| ||X||`` at most, in spectral
    norms, and that of the penalty three times the odds times the largest ``||v_i||^2`` or
    ``||w_{2,i}||^2 ||X||^2``. At the minimum, balanced, it is ``sigma_1 (1 + ||X||^2)``.
    """
    first, second = case.weights
    hidden = first @ case.inputs
    norms = [singular_values(each)[0] for each in (hidden, second, case.target - second @ hidden)]
    fit = norms[0] ** 2 + (LARGEST * norms[1]) ** 2 + LARGEST * norms[2]
    units = jnp.append(jnp.sum(hidden**2, axis=1), LARGEST**2 * jnp.sum(second**2, axis=0))
    penalty = 3 * dropout.odds(case.keep_prob) * jnp.max(units)
    return jnp.maximum(fit + penalty, _spectrum(case)[0] * (1 + LARGEST**2))


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

    def step(t: Array, layers: Array):
        def one(mask: Array, second: Array):
            both = (first, second)
            return dropout.dropout_step(mask, both, case.inputs, case.target, chance, steps[t])[1]

        return jax.vmap(one)(_masks(case, t, chance), layers)

    start = jnp.zeros((RUNS, len(case.target), case.width), first.dtype)
    layers = jax.lax.fori_loop(0, len(steps), step, start)
    hidden = (first @ case.inputs) @ found.right.T
    ends = jnp.einsum("mk,rmh,hk->rk", found.left, layers, hidden)
    return {"stochastic_ends": jnp.where(found.values[None, :] > 0, ends, 0.0)}


def _masks(case: Training, t: Array, chance: Any) -> Float[Array, "runs h"]:
    """Masks of a step, one for each run."""
    return observe(jax.random.fold_in(case.key, t), (RUNS, case.width), chance)


def _train_both(case: Training, chance: Any) -> dict[str, Array]:
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
            after = dropout.dropout_step(mask, weights, case.inputs, case.target, chance, rate)
            return after, jax.jvp(parts, (weights,), (case.fitted,))[1]

        weights, pulled = state
        # Other masks than those of the runs of the last layer.
        weights, pulls = jax.vmap(one)(_masks(case, -1 - t, chance), weights)
        return weights, pulled - rate * pulls

    copies = jax.tree.map(lambda W: jnp.broadcast_to(W, (RUNS, *W.shape)), case.fitted)
    start = (copies, jnp.zeros((RUNS, 2), case.inputs.dtype))
    weights, pulled = jax.lax.fori_loop(0, DRIFT, step, start)
    return {"moved": jax.vmap(along)(weights) - along(case.fitted), "pulled": pulled}


def measure(case: Training) -> dict[str, Array]:
    """Gradient descent on the expected loss, and stochastic training with dropout."""
    return {
        **_descend(case, case.steps),
        **_train_last(case, case.keep_prob),
        **_train_both(case, case.keep_prob),
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


def _apart(one: Outcome) -> np.ndarray:
    """How far each run moved, less what pulled it: the fit and the odds times the units."""
    fit, units = one.measured["pulled"].T
    return one.measured["moved"] - (fit + one.predicted["stochastic_drift"] * units)


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
          residual=lambda one: mean_surprise(0.0, _apart(one), _skewness(one, 1)),
          reads=("stochastic_drift", "moved", "pulled", "rare_masks"), undecided=_too_rare),
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
        **_train_both(case, squared),
    }


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
    Control[Training]("drift_by_the_dropout_rate", "1 - theta in place of (1-theta)/theta",
            "stochastic_drift", predict=lambda case: {"stochastic_drift": 1 - case.keep_prob}),
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
        "pulled": ("run", "part"),
        "rare_masks": ("training",),
        "singular_values": ("index",),
        "spectrum": ("index",),
    },
    narrow=only("dropout"), steps="steps", diverged="diverged_at",
    sides="closed form from the SVD of Y P against gradient descent and against stochastic "
    "training",
    at={"mask": "dropout", "keep_prob": 0.5, "rows": 6, "cols": 8, "width": 4},
)  # fmt: skip
