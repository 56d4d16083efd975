"""Theorem 1, data version: a regularised linear autoencoder on MNIST.

The loss is ``||X - W_2 W_1 X||_F^2 + lambda (||W_1||_F^2 + ||W_2||_F^2)`` with ``X = U Sigma V^T``.
Its minimisers have ``W_2 W_1 = U_l (I - lambda Sigma_l^{-2}) U_l^T``, ``l = min(width,
#{sigma_i^2 > lambda})``, and for lambda > 0 all its critical points have ``W_1 = W_2^T``.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import linalg
from lrdyn.core.descent import gradient_descent
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.initialization import gaussian_layers, gaussians
from lrdyn.core.recording import recorded_steps
from lrdyn.core.spectra import singular_values
from lrdyn.data import mnist
from lrdyn.theorem1 import convergence, landscape, regularised_autoencoder, setting
from lrdyn.theorem2.setting import Descent
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT, both_sides
from lrdyn.verification.stating.forms import Equal, Form, Zero
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

EVERY = 10
"""Every so-many-th image is used, 50 of each digit."""

WIDEST = 6
"""Largest width that is run: the sets of leading directions are 2^(width + 2) or so."""

SPARE = 2
"""Directions beyond the width that critical points may use, given or searched for: some of those
that the minimiser leaves out."""

SEARCHES = 6
"""Random starts of the search for critical points."""

SEARCH_STEPS = 40
"""Steps of Newton's method, as for the critical points of a factorisation."""


@cache
def images() -> tuple[np.ndarray, bool]:
    """Images of MNIST in 25 dimensions, centred, with largest singular value 1.

    The inner 20 x 20 pixels, averaged over 4 x 4 blocks: the border is empty, and with all pixels
    the matrix is not of full rank. Without the extra ``data`` there is noise instead, and False.
    """
    try:
        pixels = mnist().inputs[:, ::EVERY]
    except ImportError:
        noise = np.random.default_rng(0).normal(size=(25, 500)) * np.arange(25, 0, -1)[:, None]
        return noise / np.linalg.norm(noise, 2), False
    inner = pixels.reshape(28, 28, -1)[4:24, 4:24]
    small = inner.reshape(5, 4, 5, 4, -1).mean(axis=(1, 3)).reshape(25, -1)
    centred = small - small.mean(axis=1, keepdims=True)
    return centred / np.linalg.norm(centred, 2), True


class Autoencoder(Descent):
    """A run of the regularised linear autoencoder; the theorem wants equal decays."""

    inputs: Float[Array, "d n"]
    factor: Float[Array, "d d"]
    """R^T of X^T = Q R: the loss on it is the loss on X."""
    starts: Float[Array, "searches params"]
    """Where searches for critical points on the leading directions begin."""
    real: bool = eqx.field(static=True)
    """Whether the inputs are MNIST."""
    whole: bool = eqx.field(static=True)
    """Whether it has the width of the flags; one of width 1 takes the place of what is too wide."""

    @property
    def width(self) -> int:
        """Width of the hidden layer."""
        return len(self.weights[0])

    @property
    def decay(self) -> Float[Array, ""]:
        """Largest decay of a layer; the theorem wants both equal."""
        return jnp.max(self.weight_decay)

    @property
    def leading(self) -> int:
        """Number of the leading directions among which critical points are looked at."""
        return min(self.width + SPARE, len(self.inputs))

    def loss(self, weights: tuple[Array, Array]) -> Float[Array, ""]:
        """Loss of layers on the images, with decay."""
        return regularised_autoencoder.autoencoder_loss(weights, self.inputs, self.decay)


class AutoencoderTheory(NamedTuple):
    """What is known of the autoencoder before it is trained."""

    autoencoder: Float[Array, "row column"] = ABSENT
    """W_2 W_1 of the minimiser, U_l (I - lambda Sigma_l^{-2}) U_l^T."""
    autoencoder_loss: Float[Array, ""] = ABSENT
    """The minimum, decay included."""
    input_values: Float[Array, "input_index"] = ABSENT
    """sigma_i, the singular values of X."""
    decay: Float[Array, "layer"] = ABSENT
    """lambda of each layer; a control makes them differ, so that the flag does not tell."""
    start_modes: Float[Array, "input_index slot"] = ABSENT
    """The modes of :class:`lrdyn.theorem1.Start`."""
    start_first: Float[Array, "slot other_slot"] = ABSENT
    """W_1 W_1^T at the start."""
    start_last: Float[Array, "slot other_slot"] = ABSENT
    """W_2^T W_2 at the start."""
    start_asymmetry: Float[Array, ""] = ABSENT
    """Largest entry of W_1 - W_2^T at the start."""
    autoencoder_gradient: Float[Array, "set"] = ABSENT
    """0 at the critical point of every set of leading directions."""
    asymmetries: Float[Array, "search"] = ABSENT
    """0 at whatever a search finds."""


class AutoencoderMeasured(NamedTuple):
    """End of training, gradients at given points, and ends of Newton's method."""

    autoencoder: Float[Array, "row column"] = ABSENT
    """W_2 W_1 at the end."""
    autoencoder_loss: Float[Array, ""] = ABSENT
    """The loss there, decay included."""
    asymmetry: Float[Array, ""] = ABSENT
    """Largest entry of W_1 - W_2^T there."""
    gains: Float[Array, "slot"] = ABSENT
    """Singular values of W_2 W_1 there, as many as the width."""
    slope: Float[Array, ""] = ABSENT
    """Norm of the gradient in both layers there, decay included."""
    size: Float[Array, ""] = ABSENT
    """Norm of both layers there."""
    autoencoder_gradient: Float[Array, "set"] = ABSENT
    """Largest entry of the gradient at the critical point of each set of leading directions."""
    asymmetries: Float[Array, "search"] = ABSENT
    """Largest entry of W_1 - W_2^T where each search ended."""
    found_gradient: Float[Array, "search"] = ABSENT
    """Norm of the gradient there."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the training diverged, or -1."""


AutoencoderOutcome = Outcome[AutoencoderTheory, AutoencoderMeasured]


def make_case(
    key: Key[Array, ""],
    *,
    rank: int,
    weight_decay: Any,
    init_scale: Any,
    learning_rate: Any,
    target_scale: Any,
    steps: int,
) -> Autoencoder:
    """Build a run from the flags: real data, a random start."""
    scaled, real = images()
    # A width that is too large is a hypothesis that fails, not bad input: a sweep goes on.
    whole, rank = rank <= WIDEST, rank if rank <= WIDEST else 1
    size = jnp.sqrt(jnp.asarray(target_scale, jnp.zeros(()).dtype))
    dim = len(scaled)
    # A key of its own: the start of descent does not depend on how many searches there are.
    (starts,) = gaussians(jax.random.fold_in(key, 1), [(SEARCHES, 2 * rank * (rank + SPARE))])
    return Autoencoder(
        inputs=size * jnp.asarray(scaled, size.dtype),
        factor=size * jnp.asarray(np.linalg.qr(scaled.T)[1].T, size.dtype),
        weights=gaussian_layers(key, (dim, rank, dim), jnp.full(2, init_scale, size.dtype)),
        weight_decay=jnp.full(2, weight_decay, size.dtype),
        learning_rate=jnp.asarray(learning_rate, size.dtype),
        steps=recorded_steps(steps, at_most=21),
        starts=starts,
        real=real,
        whole=whole,
    )


def predict(case: Autoencoder) -> AutoencoderTheory:
    """Minimiser and minimum in closed form; what tells when descent must be there."""
    left, values, _ = linalg.svd(case.factor)
    sets = landscape.index_sets(case.leading, case.width)
    modes, first, last = setting.start_fields(case.weights, left, left.T)
    return AutoencoderTheory(
        autoencoder=regularised_autoencoder.autoencoder_minimiser(
            case.inputs, case.width, case.decay
        ),
        autoencoder_loss=regularised_autoencoder.autoencoder_minimum(
            values, case.width, case.decay
        ),
        input_values=values,
        decay=case.weight_decay,
        start_modes=modes,
        start_first=first,
        start_last=last,
        start_asymmetry=_asymmetry(case.weights),
        autoencoder_gradient=jnp.zeros(len(sets), values.dtype),
        asymmetries=jnp.zeros(SEARCHES, values.dtype),
    )


def measure(case: Autoencoder) -> AutoencoderMeasured:
    """Gradient descent from a random start, gradients at the points of the family, searches."""

    def loss(weights: Weights) -> Float[Array, ""]:
        encoder, decoder = weights
        return regularised_autoencoder.autoencoder_loss((encoder, decoder), case.factor, 0.0)

    # The gradient of lambda ||W||^2 is 2 lambda W.
    rule = gradient_descent(case.learning_rate, 2 * case.weight_decay)
    run = case.descend(loss, case.weights, end_to_end, rule)
    slopes = jax.grad(loss)(run.params)
    decayed = zip(slopes, case.weight_decay, run.params, strict=True)
    gradients = [slope + 2 * decay * W for slope, decay, W in decayed]
    searches = _search_all(case)
    return AutoencoderMeasured(
        autoencoder=run.records[-1],
        autoencoder_loss=case.loss(run.params),
        asymmetry=_asymmetry(run.params),
        gains=singular_values(run.records[-1])[: case.width],
        slope=jnp.sqrt(sum(jnp.sum(G**2) for G in gradients)),
        size=jnp.sqrt(sum(jnp.sum(W**2) for W in run.params)),
        autoencoder_gradient=_gradients(case),
        asymmetries=searches.asymmetries,
        found_gradient=searches.found_gradient,
        diverged_at=run.diverged_at,
    )


def _asymmetry(weights: Weights) -> Float[Array, ""]:
    encoder, decoder = weights
    return jnp.max(jnp.abs(encoder - decoder.T))


def _gradients(case: Autoencoder, power: int = 2) -> Float[Array, "sets"]:
    """Largest entry of each gradient at ``W_2 = W_1^T = U_S (I - lambda Sigma_S^{-2})^{1/2}``.

    S are all sets of leading directions, which include some that the minimiser leaves out. The
    power of the singular values in the gains is 2; 1 is a mistake, for a control.
    """
    sets = landscape.index_sets(case.leading, case.width)
    left, values, _ = linalg.svd(case.factor)
    gains = regularised_autoencoder.autoencoder_gains(values ** (power / 2), case.decay)
    encoders = (jnp.sqrt(gains)[sets] * (sets >= 0))[:, :, None] * left.T[sets]
    slopes = jax.vmap(lambda encoder: jax.grad(case.loss)((encoder, encoder.T)))(encoders)
    return jnp.maximum(*(jnp.max(jnp.abs(W), axis=(1, 2)) for W in slopes))


def _search_all(case: Autoencoder) -> AutoencoderMeasured:
    """Critical points of the loss on the leading directions of the data, from random starts."""
    # On the axes, since the loss knows X by its singular values alone; few, for Hessians are dense.
    inputs = jnp.diag(singular_values(case.factor)[: case.leading])

    def search(start: Float[Array, "params"]) -> landscape.CriticalPoint:
        layers = start.reshape(2, case.width, -1)[:, :, : case.leading]
        return landscape.find_critical_point(
            lambda weights: regularised_autoencoder.autoencoder_loss(weights, inputs, case.decay),
            (layers[0], layers[1].T),
            steps=SEARCH_STEPS,
        )

    ends = jax.vmap(search)(case.starts)
    return AutoencoderMeasured(
        asymmetries=jax.vmap(_asymmetry)(ends.weights), found_gradient=ends.gradient
    )


# Claims ----------------------------------------------------------------------------------------


def _decay(outcome: AutoencoderOutcome) -> float:
    """Largest decay of a layer."""
    return float(np.max(outcome.predicted.decay))


def _squared_values(outcome: AutoencoderOutcome) -> np.ndarray:
    """sigma_i^2, which decay is compared with; the first is the scale of the gradients."""
    return np.asarray(outcome.predicted.input_values**2)


def _steps_needed(outcome: AutoencoderOutcome) -> float | None:
    """Steps after which training must have arrived, where theory has a number."""
    theory = outcome.predicted
    return convergence.autoencoder_steps(
        convergence.Start(
            modes=np.asarray(theory.start_modes),
            first=np.asarray(theory.start_first),
            last=np.asarray(theory.start_last),
        ),
        np.asarray(theory.input_values),
        _decay(outcome),
        outcome.point["learning_rate"],
        setting.nearness(outcome),
        close=setting.tie_distance(outcome, _squared_values(outcome)[0]),
        rounding=float(np.finfo(outcome.dtype).eps),
    )


def _not_at_the_end(outcome: AutoencoderOutcome) -> str:
    """Why the end of a run cannot be judged; by the gradient where theory has no number."""
    number = _steps_needed(outcome)
    if number is not None:
        return setting.too_few_steps(outcome, number)
    # 1 is the scale of the product, whose gains are at most 1.
    if setting.is_at_rest(outcome, _distance(outcome), 1.0):
        return ""
    run = outcome.measured
    moves = not setting.is_at_rest(
        outcome, run.slope, _squared_values(outcome)[0] * float(run.size)
    )
    return "still moving" if moves else "no bound"


def _distance(outcome: AutoencoderOutcome) -> float:
    """Distance of layers and product from the minimum, to first order: gradient over curvature.

    With decay, and where the cost of each direction, ``(1 - w^2)^2 sigma^2 + 2 lambda w^2``, is
    convex in w: above a third of its gain, away from the saddles.
    """
    squares, decay, width = _squared_values(outcome), _decay(outcome), outcome.point["rank"]
    run, gains = outcome.measured, np.maximum(1 - decay / squares[:width], 0.0)
    curvature = convergence.autoencoder_curvature(
        np.asarray(outcome.predicted.input_values),
        width,
        decay,
        close=setting.tie_distance(outcome, squares[0]),
    )
    convex = np.all(run.gains >= gains / 3)
    if not (decay > 0 and convex and curvature.least > 0):
        return float("inf")
    # A distance of the layers moves the product by up to their norm times it.
    return max(1.0, float(run.size)) * float(run.slope) / curvature.least


def _converged_searches(outcome: AutoencoderOutcome) -> np.ndarray:
    """Which searches ended at a critical point, by the scale of a gradient, sigma_1^2."""
    limit = tolerance("identity", outcome.dtype, size=outcome.size)
    return np.asarray(outcome.measured.found_gradient <= limit * _squared_values(outcome)[0])


def _kept_gain(outcome: AutoencoderOutcome) -> float:
    """Gain (1 - lambda / sigma_1^2)_+ of the first direction."""
    return max(1 - _decay(outcome) / _squared_values(outcome)[0], 0.0)


def _asymmetries(outcome: AutoencoderOutcome) -> Zero:
    """W_1 - W_2^T of the critical points that were found, on the scale of sigma_1^2 / lambda.

    A gradient g leaves an asymmetry of g / lambda at most, and is known on the scale of sigma_1^2.
    """
    converged = _converged_searches(outcome)
    apart = outcome.measured.asymmetries[converged] - outcome.predicted.asymmetries[converged]
    scale = max(1.0, _squared_values(outcome)[0] / _decay(outcome))
    # Without decay W_1 and W_2^T differ by as much as they are large, 1 or so.
    return Zero(apart, scale, alternative=1.0)


def _claim_of_the_end(
    id: str,
    statement: str,
    form: Callable[[AutoencoderOutcome], Form],
    reads: Callable[[AutoencoderTheory, AutoencoderMeasured], tuple[Any, ...]],
    applies: Callable[[AutoencoderOutcome], bool] | None = None,
) -> Claim[AutoencoderTheory, AutoencoderMeasured]:
    """Claim about the end of training; it also reads what decides whether a run is there."""
    return Claim(
        id,
        statement,
        form=form,
        reads=lambda theory, run: (
            *reads(theory, run),
            run.gains,
            run.slope,
            run.size,
            theory.input_values,
            theory.decay,
            theory.start_modes,
            theory.start_first,
            theory.start_last,
        ),
        applies=applies,
        undecided=_not_at_the_end,
        certified=lambda outcome: _steps_needed(outcome) is None,
    )


CLAIMS: tuple[Claim[AutoencoderTheory, AutoencoderMeasured], ...] = (
    _claim_of_the_end(
        "autoencoder",
        "descent on ||X - W_2 W_1 X||^2 + lambda (||W_1||^2 + ||W_2||^2), X of MNIST, ends at "
        "W_2 W_1 = U_l (I - lambda Sigma_l^{-2}) U_l^T, l = min(width, #{sigma_i^2 > lambda})",
        # The gains are at most 1, whatever the scale of the data.
        form=lambda outcome: Equal(
            outcome.predicted.autoencoder, outcome.measured.autoencoder, scale=1.0
        ),
        reads=both_sides("autoencoder"),
    ),
    _claim_of_the_end(
        "autoencoder_loss",
        "descent on the regularised linear autoencoder ends at the loss sum_{i<=l} (2 lambda - "
        "lambda^2 / sigma_i^2) + sum_rest sigma_i^2, l = min(width, #{sigma_i^2 > lambda})",
        form=lambda outcome: Equal(
            outcome.predicted.autoencoder_loss,
            outcome.measured.autoencoder_loss,
            scale=np.sum(_squared_values(outcome)),
        ),
        reads=both_sides("autoencoder_loss"),
    ),
    _claim_of_the_end(
        "transposed",
        "if lambda > 0, descent on the regularised linear autoencoder ends where W_1 = W_2^T, "
        "which are apart at the start",
        form=lambda outcome: Zero(
            outcome.measured.asymmetry, scale=1.0, alternative=outcome.predicted.start_asymmetry
        ),
        reads=lambda theory, run: (run.asymmetry, theory.start_asymmetry),
        applies=lambda outcome: _decay(outcome) > 0,
    ),
    Claim(
        "autoencoder_gradient",
        "the gradient of the regularised linear autoencoder is 0 at W_1 = W_2^T = (I - lambda "
        "Sigma_S^{-2})^{1/2} U_S^T for every set S of leading directions (at half of these "
        "layers it would be 3/4 sigma_i^2 (1 - lambda sigma_i^{-2})^{3/2})",
        form=lambda outcome: Zero(
            outcome.measured.autoencoder_gradient - outcome.predicted.autoencoder_gradient,
            scale=_squared_values(outcome)[0],
            alternative=3 / 4 * _squared_values(outcome)[0] * _kept_gain(outcome) ** 1.5,
        ),
        reads=lambda theory, run: (
            theory.autoencoder_gradient,
            run.autoencoder_gradient,
            theory.input_values,
            theory.decay,
        ),
        # Else there is the origin alone, where the gradient is 0 whatever is claimed.
        applies=lambda outcome: _kept_gain(outcome) > 0,
    ),
    Claim(
        "all_transposed",
        "if lambda > 0, every critical point of the regularised linear autoencoder that Newton's "
        "method finds from random starts, of any kind, has W_1 = W_2^T (on the leading "
        "directions of the images)",
        form=_asymmetries,
        reads=lambda theory, run: (
            theory.asymmetries,
            run.asymmetries,
            run.found_gradient,
            theory.input_values,
            theory.decay,
        ),
        applies=lambda outcome: _decay(outcome) > 0,
        undecided=lambda outcome: (
            "" if np.any(_converged_searches(outcome)) else "no search converged"
        ),
    ),
)


# Controls --------------------------------------------------------------------------------------


def _gains_not_squared(case: Autoencoder) -> AutoencoderTheory:
    """Minimiser with lambda / sigma in place of lambda / sigma^2."""
    left, values, _ = linalg.svd(case.factor)
    gains = regularised_autoencoder.autoencoder_gains(jnp.sqrt(values), case.decay)[: case.width]
    product = (left[:, : case.width] * gains[None, :]) @ left[:, : case.width].T
    return AutoencoderTheory(autoencoder=product)


def _decay_decoder(key: Key[Array, ""], case: Autoencoder, amount: Array) -> Autoencoder:
    """Take the decay from the encoder."""
    decays = case.weight_decay * (1 - amount * jnp.array([1.0, 0.0], case.weight_decay.dtype))
    return dataclasses.replace(case, weight_decay=decays)


CONTROLS: tuple[Control[Autoencoder, AutoencoderTheory, AutoencoderMeasured], ...] = (
    Control(
        "inverse_not_squared",
        "I - lambda Sigma^{-1}",
        "autoencoder",
        predict=_gains_not_squared,
    ),
    Control(
        "unregularised_value",
        "the least loss without decay",
        "autoencoder_loss",
        predict=lambda case: AutoencoderTheory(
            autoencoder_loss=jnp.sum(singular_values(case.factor)[case.width :] ** 2)
        ),
    ),
    Control(
        "decay_on_the_decoder",
        "decay on the decoder alone (autoencoder and autoencoder_loss fail, too)",
        "transposed",
        case=_decay_decoder,
        breaks="equal_decays",
    ),
    Control(
        "gradient_not_squared",
        "points with I - lambda Sigma^{-1}",
        "autoencoder_gradient",
        measure=lambda case: AutoencoderMeasured(autoencoder_gradient=_gradients(case, power=1)),
    ),
    Control(
        "searches_without_decay",
        "searches for critical points without decay",
        "all_transposed",
        # Where W_1 and W_2^T need not be equal.
        measure=lambda case: _search_all(
            dataclasses.replace(case, weight_decay=0 * case.weight_decay)
        ),
    ),
)


AUTOENCODER = Scenario[Autoencoder, AutoencoderTheory, AutoencoderMeasured](
    "autoencoder",
    make_case,
    predict,
    measure,
    theory=AutoencoderTheory,
    measured=AutoencoderMeasured,
    claims=CLAIMS,
    controls=CONTROLS,
    hypotheses={
        "mnist_installed": lambda case: jnp.asarray(case.real),
        "width_at_most_6": lambda case: jnp.asarray(case.whole),
        "equal_decays": lambda case: case.weight_decay[0] == case.weight_decay[1],
    },
    steps="steps",
    diverged=lambda run: run.diverged_at,
    sides="SVD of X against gradient descent and Newton's method, on MNIST",
    # Where sigma and sigma^2 are well apart, and the step as large as theory allows there.
    at={"weight_decay": 0.1, "init_scale": 0.3, "target_scale": 0.25, "learning_rate": 0.8},
)
