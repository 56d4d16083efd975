"""Theorem 3, part A: where training with dropout ends."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core import linalg
from lrdyn.core.descent import gradient_descent, simulate
from lrdyn.core.factorization import end_to_end
from lrdyn.core.spectra import singular_values
from lrdyn.engine.claims import tolerance
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem3 import dropout_minimum, dropout_penalties
from lrdyn.theorem3.dropout_training_claims import (
    DRIFT,
    LARGEST,
    RUNS,
    Training,
    closed_form,
    expected_loss,
    make_case,
    stochastic_steps,
    train_both,
    train_last,
)
from lrdyn.theorem3.network import only
from lrdyn.theorem3.statistics import decides, mean_surprise

STEADY = 10.0
"""Time over which a transient must decay, in units of its own: to 5e-5."""


# Theory --------------------------------------------------------------------------------------


def _spectrum(case: Training) -> Float[Array, "k"]:
    """Singular values of Y P."""
    return singular_values(dropout_minimum.project_rows(case.target, case.inputs))


def _attained(case: Training, found: dropout_minimum.Shrinkage) -> dict[str, Array]:
    """Product, value and spectrum of a minimiser, and the mean of training on the way there."""
    strength = dropout_penalties.dropout_strength(case.keep_prob, case.width)
    fit = jnp.sum((case.target - found.product) ** 2)
    steps = stochastic_steps(case)
    left = jnp.prod(1 - steps[:, None] * _spectrum(case)[None, :], axis=0)
    return {
        "dropout_minimiser": found.product,
        "dropout_minimum": fit + strength * jnp.sum(found.values) ** 2,
        "stochastic_values": found.values * (1 - left),
    }


def predict(case: Training) -> dict[str, Array]:
    """The closed form, and what it takes to reach it."""
    found, spectrum = closed_form(case), _spectrum(case)
    steps, rare = stochastic_steps(case), jnp.minimum(case.keep_prob, 1 - case.keep_prob)
    slowest = jnp.min(jnp.where(found.values > 0, spectrum, jnp.inf))
    remembered = jnp.minimum(1 / (steps[-1] * spectrum[0]), len(steps))
    lengths = jnp.stack([remembered, jnp.full_like(remembered, DRIFT)])
    return _attained(case, found) | {
        "spectrum": spectrum,
        "threshold": found.threshold,
        "curvature": _curvature(case),
        "stochastic_drift": dropout_penalties.odds(case.keep_prob),
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
    penalty = 3 * dropout_penalties.odds(case.keep_prob) * jnp.max(units)
    return jnp.maximum(fit + penalty, _spectrum(case)[0] * (1 + LARGEST**2))


# Training ------------------------------------------------------------------------------------


def _descend(case: Training, steps: int) -> dict[str, Array]:
    """Gradient descent on the expected loss."""
    rule, ends = gradient_descent(case.learning_rate), np.asarray([0, steps])
    run = simulate(lambda W: expected_loss(case, W), case.weights, rule, ends)
    slopes = jax.grad(lambda W: expected_loss(case, W))(run.params)
    product = end_to_end(run.params) @ case.inputs
    return {
        "dropout_minimiser": product,
        "dropout_minimum": 2 * expected_loss(case, run.params),
        "singular_values": singular_values(product),
        "gradient": jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        "diverged_at": run.diverged_at,
    }


def measure(case: Training) -> dict[str, Array]:
    """Gradient descent on the expected loss, and stochastic training with dropout."""
    return {
        **_descend(case, case.steps),
        **train_last(case, case.keep_prob),
        **train_both(case, case.keep_prob),
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
    target = dropout_minimum.project_rows(case.target, case.inputs)
    return _attained(
        case,
        dropout_minimum.shrink_squared(target, dropout_penalties.odds(case.keep_prob), case.width),
    )


def _not_projected(case: Training) -> dict[str, Array]:
    strength = dropout_penalties.dropout_strength(case.keep_prob, case.width)
    return _attained(case, dropout_minimum.shrink_squared(case.target, strength, case.width))


def _soft_thresholded(case: Training) -> dict[str, Array]:
    """Minimiser of ||Y P - Z||_F^2 + c ||Z||_*: soft thresholding at c/2."""
    left, values, right = linalg.svd(dropout_minimum.project_rows(case.target, case.inputs))
    threshold = dropout_penalties.dropout_strength(case.keep_prob, case.width) / 2
    kept = jnp.maximum(values - threshold, 0.0) * (jnp.arange(len(values)) < case.width)
    product, rank = (left * kept[None, :]) @ right, jnp.sum(kept > 0)
    return _attained(case, dropout_minimum.Shrinkage(product, kept, threshold, rank, left, right))


def _other_run(case: Training) -> dict[str, Array]:
    """Descent, to its end, at a theta of theta^2; and masks drawn with it."""
    squared = case.keep_prob**2
    other = eqx.tree_at(lambda c: c.keep_prob, case, squared)
    return {
        **_descend(other, case.steps),
        **train_last(case, squared),
        **train_both(case, squared),
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
