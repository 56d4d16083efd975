"""Example 4.1 of Theorem 3: where training with dropout ends.

With P the projector onto the rows of X and ``Y P = U Sigma V^T``, the expected loss of two layers
is least at ``Z = U (Sigma - mu_q I)_+ V^T``: there descent and training with random masks end.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.core import linalg
from lrdyn.core.descent import gradient_descent, simulate
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.initialization import gaussians, reflection, spaced_singular_values
from lrdyn.core.masking import observe
from lrdyn.core.spectra import singular_values
from lrdyn.theorem3 import dropout_minimum, dropout_penalties
from lrdyn.theorem3.network import MaskedCase, restrict_mask
from lrdyn.theorem3.statistics import mean_decides, mean_p
from lrdyn.verification.stating.claims import MoreSteps, tolerance
from lrdyn.verification.stating.fields import ABSENT, arrays_in
from lrdyn.verification.stating.forms import Test
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

RUNS = 256
"""Runs of stochastic training."""

SHARE = 24
"""Gradient descent takes so many times the steps of a stochastic run."""

HALVES = 2
"""A stochastic run has halved its step size after 1 / HALVES of its steps; it ends at a third."""

STEP = 0.5
"""First step of a stochastic run, over theta and the largest singular value of Y P, which is 1."""

DRIFT = 64
"""Steps of the runs that train both layers."""

LARGEST = 4 / 3
"""Largest singular value of X."""

STEADY = 10.0
"""Time over which a transient must decay, in units of its own time: to exp(-10), or 5e-5."""


class DropoutRegression(MaskedCase):
    """A regression to be trained with dropout."""

    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    weights: Weights
    """Start of gradient descent."""
    fitted: Weights
    """Start of stochastic training of both layers: the minimiser without dropout."""
    learning_rate: Float[Array, ""]
    key: Key[Array, ""]
    width: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)


class MinimiserTheory(NamedTuple):
    """Minimiser and means of training from the singular values of Y P, and what they take."""

    dropout_minimiser: Float[Array, "row column"] = ABSENT
    """Z at the minimum of the expected loss."""
    dropout_minimum: Float[Array, ""] = ABSENT
    """``||Y - Z||_F^2 + c ||Z||_*^2`` there, c = (1-theta)/(theta h)."""
    stochastic_values: Float[Array, "index"] = ABSENT
    """``(sigma_i - mu_q)_+ (1 - prod_t (1 - eta_t sigma_i))``, the means of training with masks."""
    stochastic_drift: Float[Array, ""] = ABSENT
    """(1-theta)/theta, by which the squares of the units pull."""
    spectrum: Float[Array, "index"] = ABSENT
    """sigma_i, singular values of Y P."""
    threshold: Float[Array, ""] = ABSENT
    """mu_q, which the minimum subtracts from the first q of them."""
    curvature: Float[Array, ""] = ABSENT
    """Upper bound of the Hessian of the expected loss at the start and at the end."""
    transient: Float[Array, ""] = ABSENT
    """``sigma_q sum_t eta_t``, the time of training with masks in units of its slowest part."""
    rare_masks: Float[Array, "training"] = ABSENT
    """Number of rare masks (kept or not) that means over all runs remember: last layer, both."""


class MinimiserMeasured(NamedTuple):
    """Descent on the expected loss, and training with random masks."""

    dropout_minimiser: Float[Array, "row column"] = ABSENT
    """Z at the end of descent."""
    dropout_minimum: Float[Array, ""] = ABSENT
    """Expected loss there."""
    singular_values: Float[Array, "index"] = ABSENT
    """Singular values of Z there."""
    gradient: Float[Array, ""] = ABSENT
    """Norm of the gradient there."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which descent diverged, or -1."""
    stochastic_ends: Float[Array, "run index"] = ABSENT
    """u_i^T Z v_i for i <= q at the end of each run that trains the last layer, 0 beyond q."""
    moved: Float[Array, "run"] = ABSENT
    """<W(0), W(T) - W(0)> of each run that trains both layers."""
    pulled: Float[Array, "run part"] = ABSENT
    """What pulled along W(0), added over the steps: the fit, and the squares of the units."""
    products: Float[Array, "run lag power"] = ABSENT
    """Products of the noise of a step (how far it moved along W(0), less what pulled) with that of
    the same and of the next step, added over the steps: coefficients of the powers 0 to 2 of the
    odds, which are a factor of the pull of the units."""


MinimiserOutcome = Outcome[MinimiserTheory, MinimiserMeasured]


def make_case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    learning_rate: Any,
    steps: int,
) -> DropoutRegression:
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
    return DropoutRegression(
        inputs=(left * scales[None, :]) @ lines,
        # A part that no network can reach, outside of the rows of X.
        target=reached + 0.1 * (noise - (noise @ lines.T) @ lines),
        weights=(small * first / np.sqrt(rows), small * second / np.sqrt(rows)),
        fitted=((hidden @ lines.T / scales[None, :]) @ left.T, fitted),
        keep_prob=keep_prob,
        learning_rate=jnp.asarray(learning_rate, lines.dtype),
        key=jax.random.fold_in(key, 1),
        width=width,
        steps=steps,
    )


def closed_form(case: DropoutRegression) -> dropout_minimum.Shrinkage:
    """Minimiser of the expected loss of dropout, from the SVD of Y P."""
    return dropout_minimum.dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)


def expected_loss(case: DropoutRegression, weights: PyTree) -> Float[Array, ""]:
    """Half of the loss over all masks."""
    first, second = weights
    return 0.5 * dropout_penalties.dropout_loss(
        second, first @ case.inputs, case.target, case.keep_prob
    )


def stochastic_steps(case: DropoutRegression) -> Float[Array, "steps"]:
    """Size of each step of a stochastic run of the last layer."""
    count = max(1, case.steps // SHARE)
    t = jnp.arange(count, dtype=case.inputs.dtype)
    return dropout_minimum.decreasing_step(t, STEP, case.keep_prob, max(1, count // HALVES))


# Theory --------------------------------------------------------------------------------------


def _spectrum(case: DropoutRegression) -> Float[Array, "k"]:
    """Singular values of Y P."""
    return singular_values(dropout_minimum.project_rows(case.target, case.inputs))


def _minimiser_theory(
    case: DropoutRegression, minimiser: dropout_minimum.Shrinkage
) -> MinimiserTheory:
    """Product, value and spectrum of a minimiser, and the mean of training on the way there."""
    strength = dropout_penalties.dropout_strength(case.keep_prob, case.width)
    fit = jnp.sum((case.target - minimiser.product) ** 2)
    steps = stochastic_steps(case)
    # What is left of each direction: the mean of the last layer follows descent on the expected
    # loss (dropout.md, Why 7).
    left = jnp.prod(1 - steps[:, None] * _spectrum(case)[None, :], axis=0)
    return MinimiserTheory(
        dropout_minimiser=minimiser.product,
        dropout_minimum=fit + strength * jnp.sum(minimiser.values) ** 2,
        stochastic_values=minimiser.values * (1 - left),
    )


def predict(case: DropoutRegression) -> MinimiserTheory:
    """The closed form, and what it takes to reach it."""
    minimiser, spectrum = closed_form(case), _spectrum(case)
    steps, rare = stochastic_steps(case), jnp.minimum(case.keep_prob, 1 - case.keep_prob)
    slowest = jnp.min(jnp.where(minimiser.values > 0, spectrum, jnp.inf))
    # The last layer forgets masks at the rate eta_T sigma_1; both layers remember all of them.
    remembered = jnp.minimum(1 / (steps[-1] * spectrum[0]), len(steps))
    lengths = jnp.stack([remembered, jnp.full_like(remembered, DRIFT)])
    return MinimiserTheory(
        **arrays_in(_minimiser_theory(case, minimiser)),
        stochastic_drift=dropout_penalties.odds(case.keep_prob),
        spectrum=spectrum,
        threshold=minimiser.threshold,
        curvature=_curvature(case),
        transient=jnp.sum(steps) * slowest,
        rare_masks=RUNS * case.width * rare * lengths,
    )


def _curvature(case: DropoutRegression) -> Float[Array, ""]:
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


def descend(case: DropoutRegression) -> MinimiserMeasured:
    """Gradient descent on the expected loss, which knows the penalty by its formula."""
    rule, ends = gradient_descent(case.learning_rate), np.asarray([0, case.steps])
    run = simulate(lambda W: expected_loss(case, W), case.weights, rule, ends)
    slopes = jax.grad(lambda W: expected_loss(case, W))(run.params)
    product = end_to_end(run.params) @ case.inputs
    return MinimiserMeasured(
        dropout_minimiser=product,
        dropout_minimum=2 * expected_loss(case, run.params),
        singular_values=singular_values(product),
        gradient=jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        diverged_at=run.diverged_at,
    )


def _masks(case: DropoutRegression, t: Array, keep_prob: Array) -> Float[Array, "runs h"]:
    """Masks of a step, one for each run."""
    return observe(jax.random.fold_in(case.key, t), (RUNS, case.width), keep_prob)


def train_last(case: DropoutRegression, keep_prob: Array) -> Float[Array, "runs k"]:
    """Train the last layer with random masks from zero, above the first one of the minimiser.

    Args:
        case: its theta decides where training starts and its steps.
        keep_prob: theta of the masks.

    Returns:
        u_i^T Z v_i at the end of each run, 0 where the minimiser has no such direction.
    """
    minimiser, steps = closed_form(case), stochastic_steps(case)
    # The first layer of a minimiser: equalised factors, of which the right one is W_1 X.
    _, right = dropout_penalties.equalized_factors(minimiser.product, case.width)
    first = dropout_minimum.input_layer(right, case.inputs)

    def step(t: Array, layers: Array) -> Array:
        def step_run(mask: Array, second: Array) -> Array:
            after = dropout_minimum.dropout_step(
                mask, (first, second), case.inputs, case.target, keep_prob, steps[t]
            )
            return after[1]

        return jax.vmap(step_run)(_masks(case, t, keep_prob), layers)

    start = jnp.zeros((RUNS, len(case.target), case.width), first.dtype)
    layers = jax.lax.fori_loop(0, len(steps), step, start)
    hidden = (first @ case.inputs) @ minimiser.right.T
    ends = jnp.einsum("mk,rmh,hk->rk", minimiser.left, layers, hidden)
    return jnp.where(minimiser.values[None, :] > 0, ends, 0.0)


def train_both(case: DropoutRegression, keep_prob: Array, *, uses: int = 1) -> MinimiserMeasured:
    """Train both layers with random masks: how far they move along W(0), and what pulls them there.

    Args:
        case: its theta decides the step.
        keep_prob: theta of the masks.
        uses: for how many steps each mask is used.

    Returns:
        How far, the pull of the fit and that of the squares of the units, of which the penalty is a
        multiple, and products of what neither of them explains.
    """
    # A unit that is kept weighs 1/theta and is curved by 1/theta^2.
    rate = 0.1 * case.keep_prob**2

    def loss_parts(weights: PyTree) -> Array:
        """Half of the loss at the mean of the masks, and of the squares of all units."""
        first, second = weights
        hidden = first @ case.inputs
        units = jnp.sum(second**2, axis=0) * jnp.sum(hidden**2, axis=1)
        return 0.5 * jnp.stack([jnp.sum((case.target - second @ hidden) ** 2), jnp.sum(units)])

    def step_run(mask: Array, weights: PyTree) -> tuple[PyTree, Array]:
        """Weights after a step, how far it went along W(0), and the two pulls."""
        after = dropout_minimum.dropout_step(
            mask, weights, case.inputs, case.target, keep_prob, rate
        )
        layers = zip(case.fitted, after, weights, strict=True)
        along = sum(jnp.sum(start * (new - old)) for start, new, old in layers)
        pulls = -rate * jax.jvp(loss_parts, (weights,), (case.fitted,))[1]
        return after, jnp.append(along, pulls)

    def step(
        t: Array, state: tuple[PyTree, Array, Array, Array]
    ) -> tuple[PyTree, Array, Array, Array]:
        weights, moved, before, products = state
        # Other masks than those of the runs of the last layer.
        weights, now = jax.vmap(step_run)(_masks(case, -1 - t // uses, keep_prob), weights)
        return weights, moved + now, now, products + _noise_products(now, before)

    copies = jax.tree.map(lambda W: jnp.broadcast_to(W, (RUNS, *W.shape)), case.fitted)
    nothing = jnp.zeros((RUNS, 3), case.inputs.dtype)
    start = (copies, nothing, nothing, jnp.zeros((RUNS, 2, 3), nothing.dtype))
    _, moved, _, products = jax.lax.fori_loop(0, DRIFT, step, start)
    return MinimiserMeasured(moved=moved[:, 0], pulled=moved[:, 1:], products=products)


def _noise_products(
    now: Float[Array, "runs 3"], before: Float[Array, "runs 3"]
) -> Float[Array, "runs lag power"]:
    """Products of the noise ``m - f - o u`` of steps, by the powers of the odds o.

    Args:
        now: how far a step moved, m, and the pulls of the fit, f, and of the units, u.
        before: those of the step before it.
    """
    rest, units = now[:, 0] - now[:, 1], now[:, 2]

    def multiply(other: Array) -> Array:
        its_rest, its_units = other[:, 0] - other[:, 1], other[:, 2]
        mixed = rest * its_units + units * its_rest
        return jnp.stack([rest * its_rest, -mixed, units * its_units], axis=-1)

    return jnp.stack([multiply(now), multiply(before)], axis=1)


def _measure_training(
    case: DropoutRegression, descent: MinimiserMeasured, keep_prob: Array
) -> MinimiserMeasured:
    return MinimiserMeasured(
        **arrays_in(descent),
        **arrays_in(train_both(case, keep_prob)),
        stochastic_ends=train_last(case, keep_prob),
    )


def measure(case: DropoutRegression) -> MinimiserMeasured:
    """Gradient descent on the expected loss, and stochastic training with dropout."""
    return _measure_training(case, descend(case), case.keep_prob)


# Judges --------------------------------------------------------------------------------------


def gap(outcome: MinimiserOutcome) -> float:
    """Least distance of a singular value of Y P from being chosen otherwise, over the largest."""
    spectrum, threshold = outcome.predicted.spectrum, outcome.predicted.threshold
    width = int(outcome.point["width"])
    # A value at the threshold is kept or not by rounding.
    distance = np.min(np.abs(spectrum[:width] - threshold))
    if width < len(spectrum) and spectrum[width - 1] > threshold:
        # A full choice can be exchanged for what was left out.
        distance = np.minimum(distance, spectrum[width - 1] - spectrum[width])
    return float(distance / spectrum[0])


def not_at_the_end(outcome: MinimiserOutcome) -> str:
    """Why the end of descent cannot be judged; its gradient decides, for want of a step number."""
    # Descent is stable below 2 over the curvature.
    if not outcome.point["learning_rate"] * outcome.predicted.curvature < 2:
        return "step too large"
    gradient = outcome.measured.gradient
    # A run that diverged under a stable step is judged, and lost.
    if not np.isfinite(gradient):
        return ""
    # Near a minimum the distance to it is the gradient over the curvature: down to round-off.
    size = max(int(outcome.point["rows"]), int(outcome.point["cols"]))
    limit = tolerance("identity", outcome.dtype, size=size)
    return "" if gradient <= limit * gap(outcome) else "still moving"


LAST, BOTH = 0, 1
"""Trainings of the last layer, and of both."""


def _skewness(outcome: MinimiserOutcome, training: int) -> float:
    """Bound of the skewness of a mean over the runs, whose rare masks have unequal weights.

    2.2 over the root of their number was the most seen in 8,192 runs at each of theta from 0.1 to
    0.99 and h from 2 to 24.
    """
    return float(2.5 / np.sqrt(outcome.predicted.rare_masks[training]))


def _skewness_of_products(outcome: MinimiserOutcome) -> float:
    """Bound of the skewness of the mean product of successive noises: the square of that of one."""
    # A mean of n independent terms is n^{1/2} times less skewed than one of them.
    of_one = _skewness(outcome, BOTH) ** 2 * RUNS * DRIFT
    return float(of_one / np.sqrt(RUNS * DRIFT))


def is_noisy(outcome: MinimiserOutcome) -> bool:
    """Whether masks move the weights at the minimum: of a single unit the noise vanishes there."""
    return int(outcome.point["width"]) > 1


def _steps_to_forget(outcome: MinimiserOutcome) -> float:
    """Steps of descent that give a stochastic run the time over which a transient must decay.

    With k steps, halved after h = k / HALVES of them, that time is ``sum_t 1 / (1 + t / h)`` times
    the first step, and at least ``h log(1 + HALVES)`` times it.
    """
    count = max(1, outcome.steps // SHARE)
    time = np.sum(1 / (1 + np.arange(count) / max(1, count // HALVES)))
    halved_after = STEADY / outcome.predicted.transient * time / np.log(1 + HALVES)
    # One more each: k / HALVES is rounded down, as k is.
    return SHARE * np.ceil(HALVES * (halved_after + 1))


def too_short(outcome: MinimiserOutcome) -> str:
    """Why training of the last layer cannot be judged; nothing if it can."""
    if not outcome.predicted.transient >= STEADY:
        return MoreSteps(_steps_to_forget(outcome), flag="steps")
    return "" if mean_decides(_skewness(outcome, LAST)) else "masks too rare"


def too_rare(outcome: MinimiserOutcome) -> str:
    """Why training of both layers cannot be judged; nothing if it can."""
    return "" if mean_decides(_skewness(outcome, BOTH)) else "masks too rare"


def too_rare_for_products(outcome: MinimiserOutcome) -> str:
    """Why the noise of both layers cannot be judged; nothing if it can."""
    return "" if mean_decides(_skewness_of_products(outcome)) else "masks too rare"


def _end_test(outcome: MinimiserOutcome) -> Test:
    """Test of the nuclear norms ``sum_{i<=q} u_i^T Z v_i`` at the end of each run."""
    expected = float(np.sum(outcome.predicted.stochastic_values))
    # Their sum: directions of one run are not independent, and one test has one alarm.
    ends, skewness = np.sum(outcome.measured.stochastic_ends, axis=1), _skewness(outcome, LAST)
    off = max(mean_p(factor * expected, ends, skewness) for factor in (0.9, 1.1))
    return Test(mean_p(expected, ends, skewness), off)


def _drift_test(outcome: MinimiserOutcome) -> Test:
    """Test of how far each run moved, less the pulls of the fit and of the odds times the units."""
    # The odds come in here, so that other odds are judged from the same runs: the alternative.
    fit, units = np.asarray(outcome.measured.pulled).T

    def p_if_odds(odds: Any) -> float:
        unexplained = np.asarray(outcome.measured.moved - fit - odds * units)
        return mean_p(0.0, unexplained, _skewness(outcome, BOTH))

    odds = outcome.predicted.stochastic_drift
    return Test(p_if_odds(odds), max(p_if_odds(factor * odds) for factor in (0.75, 1.25)))


def _independence_test(outcome: MinimiserOutcome) -> Test:
    """Test of the products of successive noises, and of what they were with masks used twice.

    Every second product would then be a square: half of the sum of the squares, in the mean.
    """
    powers = float(outcome.predicted.stochastic_drift) ** np.arange(3)
    squares, products = np.moveaxis(np.asarray(outcome.measured.products) @ powers, 1, 0)
    skewness = _skewness_of_products(outcome)
    return Test(
        mean_p(0.0, products, skewness),
        mean_p(float(np.mean(squares)) / 2, products, skewness),
    )


# What is broken ------------------------------------------------------------------------------


def _without_width(case: DropoutRegression) -> MinimiserTheory:
    """Minimiser with (1-theta)/theta for c, without the width."""
    target = dropout_minimum.project_rows(case.target, case.inputs)
    strength = dropout_penalties.odds(case.keep_prob)
    return _minimiser_theory(case, dropout_minimum.shrink_squared(target, strength, case.width))


def _without_projection(case: DropoutRegression) -> MinimiserTheory:
    """Minimiser for Y itself, of which the rows of X reach a part only."""
    strength = dropout_penalties.dropout_strength(case.keep_prob, case.width)
    return _minimiser_theory(
        case, dropout_minimum.shrink_squared(case.target, strength, case.width)
    )


def _soft_threshold(case: DropoutRegression) -> MinimiserTheory:
    """Minimiser of ||Y P - Z||_F^2 + c ||Z||_*: soft thresholding at c/2."""
    left, values, right = linalg.svd(dropout_minimum.project_rows(case.target, case.inputs))
    threshold = dropout_penalties.dropout_strength(case.keep_prob, case.width) / 2
    shrunk = jnp.maximum(values - threshold, 0.0) * (jnp.arange(len(values)) < case.width)
    product, rank = (left * shrunk[None, :]) @ right, jnp.sum(shrunk > 0)
    return _minimiser_theory(
        case, dropout_minimum.Shrinkage(product, shrunk, threshold, rank, left, right)
    )


def _other_run(case: DropoutRegression) -> MinimiserMeasured:
    """Runs of several controls: descent and masks at theta^2 for theta, and masks used twice."""
    squared = case.keep_prob**2
    run = _measure_training(
        case, descend(eqx.tree_at(lambda c: c.keep_prob, case, squared)), squared
    )
    return run._replace(products=train_both(case, case.keep_prob, uses=2).products)


# The scenario --------------------------------------------------------------------------------

_STUDENT = (
    f"Student's test of {RUNS} runs, its p times the factor by which the skewness of rare masks "
    "can falsify it"
)

MINIMISER = Scenario[DropoutRegression, MinimiserTheory, MinimiserMeasured](
    "dropout_training",
    make_case,
    predict,
    measure,
    theory=MinimiserTheory,
    measured=MinimiserMeasured,
    claims=(
        Claim(
            "dropout_minimiser",
            "gradient descent on the expected loss of dropout ends at Z = U (Sigma - mu_q I)_+ "
            "V^T with Y P = U Sigma V^T, mu_q = c/(1 + c q) sum_{i<=q} sigma_i, c = "
            "(1-theta)/(theta h) (undecided while the gradient is above rounding times the gap: "
            "no number of steps is known)",
            reads=lambda theory, run: (
                run.gradient,
                theory.curvature,
                theory.spectrum,
                theory.threshold,
            ),
            undecided=not_at_the_end,
            certified=lambda outcome: True,  # that is what its gradient says
        ),
        Claim(
            "dropout_minimum",
            "gradient descent on the expected loss of dropout ends at the minimum of ||Y - "
            "Z||_F^2 + c ||Z||_*^2 over all Z of rank h or less with rows in the row space of X, "
            "c = (1-theta)/(theta h)",
            reads=lambda theory, run: (
                run.gradient,
                theory.curvature,
                theory.spectrum,
                theory.threshold,
            ),
            undecided=not_at_the_end,
            certified=lambda outcome: True,  # that is what its gradient says
        ),
        Claim(
            "stochastic",
            "training the last layer with random masks, from 0 above the first layer of the "
            "minimiser, ends at the minimiser: the mean of sum_{i<=q} u_i^T Z v_i is sum_{i<=q} "
            "(sigma_i - mu_q) (1 - prod_t (1 - eta_t sigma_i)), which is ||Z||_* but for a share "
            f"of at most e^{{-{STEADY:g}}} if sigma_q sum_t eta_t >= {STEADY:g} (and h > 1); "
            f"{_STUDENT}; alternative: ends larger or smaller by a tenth",
            kind="statistical",
            form=_end_test,
            reads=lambda theory, run: (
                theory.stochastic_values,
                run.stochastic_ends,
                theory.transient,
                theory.rare_masks,
            ),
            applies=is_noisy,
            undecided=too_short,
        ),
        Claim(
            "stochastic_drift",
            "training both layers with random masks moves them, in the mean, against the "
            "gradient of the expected loss: <W(0), W(T) - W(0) + sum_t eta_t grad(W(t))> has the "
            f"mean 0; {_STUDENT}; alternative: odds (1-theta)/theta larger or smaller by a "
            "quarter",
            kind="statistical",
            form=_drift_test,
            reads=lambda theory, run: (
                theory.stochastic_drift,
                run.moved,
                run.pulled,
                theory.rare_masks,
            ),
            undecided=too_rare,
        ),
        Claim(
            "stochastic_noise",
            "the masks of successive steps are independent: sum_t n_t n_{t+1} has the mean 0, "
            "n_t the part of step t along W(0) that the gradient of the expected loss does not "
            f"explain; {_STUDENT}; alternative: every mask used for two steps, for which the mean "
            "is that of sum_t n_t^2 / 2",
            kind="statistical",
            form=_independence_test,
            reads=lambda theory, run: (
                theory.stochastic_drift,
                run.products,
                theory.rare_masks,
            ),
            undecided=too_rare_for_products,
        ),
    ),
    controls=(
        *(
            Control(f"{claim}_without_width", "c with h dropped", claim, predict=_without_width)
            for claim in ("dropout_minimiser", "stochastic")
        ),
        *(
            Control(
                f"{claim}_soft_thresholded",
                "the minimiser of ||Y P - Z||_F^2 + c ||Z||_*, the nuclear norm not squared",
                claim,
                predict=_soft_threshold,
            )
            for claim in ("dropout_minimiser", "dropout_minimum", "stochastic")
        ),
        Control(
            "target_not_projected",
            "Y in place of Y P, though X has fewer rows than columns",
            "dropout_minimiser",
            predict=_without_projection,
        ),
        Control(
            "drift_by_the_dropout_rate",
            "1 - theta in place of (1-theta)/theta",
            "stochastic_drift",
            predict=lambda case: MinimiserTheory(stochastic_drift=1 - case.keep_prob),
        ),
        *(
            Control(
                f"{claim}_of_other_masks",
                "masks kept with probability theta^2 in the run",
                claim,
                measure=_other_run,
            )
            for claim in ("dropout_minimiser", "dropout_minimum", "stochastic", "stochastic_drift")
        ),
        Control(
            "masks_used_twice",
            "every mask used for two steps, in the run",
            "stochastic_noise",
            measure=_other_run,
        ),
    ),
    narrow=restrict_mask("dropout"),
    summed=lambda case: (case.inputs, case.target, case.weights),
    steps="steps",
    diverged=lambda run: run.diverged_at,
    sides="closed form from the SVD of Y P against gradient descent and against stochastic "
    "training",
    at={"mask": "dropout", "keep_prob": 0.5, "rows": 6, "cols": 8, "width": 4},
)
