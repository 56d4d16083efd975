"""Theorem 1, data version: a regularised linear autoencoder on MNIST."""

import dataclasses
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core import linalg
from lrdyn.core.descent import gradient_descent
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.initialization import gaussian_layers, gaussians
from lrdyn.core.recording import recorded_steps
from lrdyn.core.spectra import singular_values
from lrdyn.data import mnist
from lrdyn.engine.claims import on_scale, relative_difference, tolerance
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem1 import convergence, landscape, setting, shrinkage
from lrdyn.theorem2.setting import Descent

EVERY = 10
"""One image in so many is used, 50 of each digit."""

WIDEST = 6
"""Largest width that is run: the sets of leading directions are 2^(width + 2) or so."""

SPARE = 2
"""Directions beyond the width among which critical points are looked at and searched for."""

SEARCHES = 6
"""Random starts of the search for critical points."""

SEARCH_STEPS = 40
"""Steps of Newton's method."""


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
        """Lambda, of the layer with most of it."""
        return jnp.max(self.weight_decay)

    @property
    def leading(self) -> int:
        """Number of the leading directions among which critical points are looked at."""
        return min(self.width + SPARE, len(self.inputs))

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """On the images, with decay."""
        return shrinkage.autoencoder_loss(weights, self.inputs, self.decay)


def make_case(
    key: Key[Array, ""], *, rank: int, weight_decay: Any, init_scale: Any, learning_rate: Any,
    target_scale: Any, steps: int,
) -> Autoencoder:  # fmt: skip
    """Build a run from the flags: real data, a random start."""
    scaled, real = images()
    whole, rank = rank <= WIDEST, rank if rank <= WIDEST else 1
    size = jnp.sqrt(jnp.asarray(target_scale, jnp.zeros(()).dtype))
    dim = len(scaled)
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


def predict(case: Autoencoder) -> dict[str, Array]:
    """Minimiser and minimum in closed form; what decides when descent must be there."""
    left, values, _ = linalg.svd(case.factor)
    sets = landscape.index_sets(case.leading, case.width)
    return setting.start_of(case.weights, left, left.T) | {
        "autoencoder": shrinkage.autoencoder_minimiser(case.inputs, case.width, case.decay),
        "autoencoder_loss": shrinkage.autoencoder_minimum(values, case.width, case.decay),
        "input_values": values,
        "decay": case.weight_decay,
        "autoencoder_gradient": jnp.zeros(len(sets), values.dtype),
        "asymmetries": jnp.zeros(SEARCHES, values.dtype),
    }


def measure(case: Autoencoder) -> dict[str, Array]:
    """Gradient descent from a random start, gradients at the points of the family, searches."""

    def loss(weights: Weights) -> Float[Array, ""]:
        return shrinkage.autoencoder_loss(weights, case.factor, 0.0)

    # The gradient of lambda ||W||^2 is 2 lambda W.
    rule = gradient_descent(case.learning_rate, 2 * case.weight_decay)
    run = case.descend(loss, case.weights, end_to_end, rule)
    encoder, decoder = run.params
    slopes = [
        G + 2 * decay * W
        for G, decay, W in zip(
            jax.grad(loss)(run.params), case.weight_decay, run.params, strict=True
        )
    ]
    found = jax.vmap(partial(_search, case))(case.starts)
    return {
        "autoencoder": run.records[-1],
        "autoencoder_loss": case.loss(run.params),
        "asymmetry": jnp.max(jnp.abs(encoder - decoder.T)),
        "autoencoder_gradient": _gradients(case),
        "gains": singular_values(run.records[-1])[: case.width],
        "slope": jnp.sqrt(sum(jnp.sum(G**2) for G in slopes)),
        "size": jnp.sqrt(sum(jnp.sum(W**2) for W in run.params)),
        "asymmetries": jax.vmap(lambda w: jnp.max(jnp.abs(w[0] - w[1].T)))(found.weights),
        "found_gradient": found.gradient,
        "diverged_at": run.diverged_at,
    }


def _gradients(case: Autoencoder, power: int = 2) -> Float[Array, "sets"]:
    """Largest entry of each gradient at ``W_2 = W_1^T = U_S (I - lambda Sigma_S^{-2})^{1/2}``.

    For sets S of leading directions, those that the minimiser leaves out among them.
    """
    sets = landscape.index_sets(case.leading, case.width)
    left, values, _ = linalg.svd(case.factor)
    gains = shrinkage.autoencoder_gains(values ** (power / 2), case.decay)
    encoders = (jnp.sqrt(gains)[sets] * (sets >= 0))[:, :, None] * left.T[sets]
    slopes = jax.vmap(lambda encoder: jax.grad(case.loss)((encoder, encoder.T)))(encoders)
    return jnp.maximum(*(jnp.max(jnp.abs(W), axis=(1, 2)) for W in slopes))


def _search(case: Autoencoder, start: Float[Array, "params"]) -> landscape.Found:
    """A critical point of the loss on the leading directions of the data, from a random start."""
    inputs = jnp.diag(singular_values(case.factor)[: case.leading])
    layers = start.reshape(2, case.width, -1)[:, :, : case.leading]
    return landscape.find_critical_point(
        lambda weights: shrinkage.autoencoder_loss(weights, inputs, case.decay),
        (layers[0], layers[1].T),
        steps=SEARCH_STEPS,
    )


# Claims ----------------------------------------------------------------------------------------


def _squares(one: Outcome) -> np.ndarray:
    return one.predicted["input_values"] ** 2


def _decay(one: Outcome) -> bool:
    return setting.decay_of(one) > 0


def _number(one: Outcome) -> float | None:
    """Steps after which descent must have arrived, where theory has a number."""
    return convergence.autoencoder_steps(
        setting.start(one),
        one.predicted["input_values"],
        setting.decay_of(one),
        one.point["learning_rate"],
        setting.nearness(one),
        close=setting.close(one, _squares(one)[0]),
    )


def _not_at_the_end(one: Outcome) -> str:
    """Why the end of a run cannot be judged; by the gradient where theory has no number."""
    number = _number(one)
    if number is not None:
        return setting.too_few(one, number)
    return "" if setting.at_rest(one, _distance(one), 1.0) else "still moving"


def _distance(one: Outcome) -> float:
    """Of layers and product from the minimum, to first order: the gradient over the curvature.

    With decay, and where the cost of each direction, ``(1 - w^2)^2 sigma^2 + 2 lambda w^2``, is
    convex in w: above a third of its gain, away from the saddles.
    """
    squares, decay, width = _squares(one), setting.decay_of(one), one.point["rank"]
    gains = np.maximum(1 - decay / squares[:width], 0.0)
    curvature = convergence.autoencoder_curvature(
        one.predicted["input_values"], width, decay, close=setting.close(one, squares[0])
    )
    convex = np.all(one.measured["gains"] >= gains / 3)
    if not (decay > 0 and convex and curvature.least > 0):
        return float("inf")
    return float(max(1.0, one.measured["size"]) * one.measured["slope"] / curvature.least)


def _converged(one: Outcome) -> np.ndarray:
    limit = tolerance("identity", one.dtype, size=one.size)
    return one.measured["found_gradient"] <= limit * _squares(one)[0]


def _asymmetries(one: Outcome) -> float:
    """Of what was found, times lambda / kappa_1: by so much a gradient is divided, at most."""
    share = min(1.0, setting.decay_of(one) / _squares(one)[0])
    found = np.where(_converged(one), one.measured["asymmetries"], 0.0)
    return share * relative_difference(one.predicted["asymmetries"], found, 1.0)


_END = ("gains", "slope", "size", "input_values", "decay", *setting.START)


CLAIMS = (
    Claim("autoencoder",
          "||X - W_2 W_1 X||^2 + lambda (||W_1||^2 + ||W_2||^2) on MNIST: descent ends at W_2 W_1 "
          "= U_l (I - lambda Sigma_l^{-2}) U_l^T, l = min(width, #{sigma_i^2 > lambda})",
          residual=on_scale("autoencoder", lambda one: 1.0), reads=("autoencoder", *_END),
          undecided=_not_at_the_end),
    Claim("autoencoder_loss",
          "at the value sum_{i<=l} (2 lambda - lambda^2 / sigma_i^2) + sum_rest sigma_i^2",
          residual=on_scale("autoencoder_loss", lambda one: np.sum(_squares(one))),
          reads=("autoencoder_loss", *_END), undecided=_not_at_the_end),
    Claim("transposed",
          "lambda > 0: there W_1 = W_2^T (both sides are measured: no formula to break)",
          residual=lambda one: float(one.measured["asymmetry"]), reads=("asymmetry", *_END),
          applies=_decay, undecided=_not_at_the_end),
    Claim("autoencoder_gradient",
          "the gradient is 0 at W_1 = W_2^T = (I - lambda Sigma_S^{-2})^{1/2} U_S^T for all sets S "
          "of leading directions (the formula is that of the points: the other side is 0)",
          residual=on_scale("autoencoder_gradient", lambda one: _squares(one)[0]),
          reads=("autoencoder_gradient", "input_values")),
    Claim("all_transposed",
          "lambda > 0: Newton's method from random starts finds no critical point, of any kind, "
          "but with W_1 = W_2^T, on the leading directions of the images (no formula to break)",
          residual=_asymmetries, applies=_decay,
          undecided=lambda one: "" if np.any(_converged(one)) else "no search converged",
          reads=("asymmetries", "found_gradient", "input_values", "decay")),
)  # fmt: skip


def _inverse_not_squared(case: Autoencoder) -> dict[str, Array]:
    left, values, _ = linalg.svd(case.factor)
    gains = shrinkage.autoencoder_gains(jnp.sqrt(values), case.decay)[: case.width]
    return {"autoencoder": (left[:, : case.width] * gains[None, :]) @ left[:, : case.width].T}


def _unregularised(case: Autoencoder) -> dict[str, Array]:
    return {"autoencoder_loss": jnp.sum(singular_values(case.factor)[case.width :] ** 2)}


def _decay_decoder(key: Key[Array, ""], case: Autoencoder, amount: Array) -> Autoencoder:
    """Take the decay from the encoder."""
    decays = case.weight_decay * (1 - amount * jnp.array([1.0, 0.0], case.weight_decay.dtype))
    return dataclasses.replace(case, weight_decay=decays)


def _without_decay(case: Autoencoder) -> dict[str, Array]:
    """Search where W_1 and W_2^T need not be equal."""
    free = dataclasses.replace(case, weight_decay=0 * case.weight_decay)
    found = jax.vmap(partial(_search, free))(case.starts)
    apart = jax.vmap(lambda w: jnp.max(jnp.abs(w[0] - w[1].T)))(found.weights)
    return {"asymmetries": apart, "found_gradient": found.gradient}


CONTROLS = (
    Control("inverse_not_squared", "I - lambda Sigma^{-1}", "autoencoder",
            predict=_inverse_not_squared),
    Control("unregularised_value", "the value of lambda = 0", "autoencoder_loss",
            predict=_unregularised),
    Control("decay_on_the_decoder", "decay on the decoder alone (there autoencoder and "
            "autoencoder_loss fail too)", "transposed",
            case=_decay_decoder, breaks="equal_decays"),
    Control[Autoencoder](
        "gradient_not_squared", "points with I - lambda Sigma^{-1}", "autoencoder_gradient",
        measure=lambda case: {"autoencoder_gradient": _gradients(case, power=1)}),
    Control("searches_without_decay", "critical points of lambda = 0", "all_transposed",
            measure=_without_decay),
)  # fmt: skip


AUTOENCODER = Scenario[Autoencoder](
    "autoencoder", make_case, predict, measure, CLAIMS, CONTROLS,
    hypotheses={
        "mnist_installed": lambda case: jnp.asarray(case.real),
        "width_at_most_6": lambda case: jnp.asarray(case.whole),
        "equal_decays": lambda case: case.weight_decay[0] == case.weight_decay[1],
    },
    dims={
        "autoencoder": ("row", "column"),
        "input_values": ("input_index",),
        "gains": ("slot",),
        "decay": ("layer",),
        "autoencoder_gradient": ("set",),
        "asymmetries": ("search",),
        "found_gradient": ("search",),
        **setting.START_DIMS,
        "start_modes": ("input_index", "slot"),
    },
    steps="steps", diverged="diverged_at",
    sides="SVD of X against gradient descent and Newton's method, on MNIST",
    # Where sigma and sigma^2 are well apart, and the step as large as theory allows there.
    at={"weight_decay": 0.1, "init_scale": 0.3, "target_scale": 0.25, "learning_rate": 0.8},
)  # fmt: skip
