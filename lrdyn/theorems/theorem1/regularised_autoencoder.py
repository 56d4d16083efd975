"""Theorem 1, data version: a regularised linear autoencoder on MNIST."""

import dataclasses
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import landscape, linalg, shrinkage
from lrdyn.claims import on_scale
from lrdyn.data import mnist
from lrdyn.descent import gradient_descent, recorded_steps
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussian_layers
from lrdyn.spectra import half_of_the_digits, singular_values
from lrdyn.theorem import Claim, Control, Outcome, Scenario
from lrdyn.theorems.deep_factorization import Descent
from lrdyn.theorems.theorem1 import setting

EVERY = 10
"""One image in so many is used, 50 of each digit."""


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
    real: bool = eqx.field(static=True)
    """Whether the inputs are MNIST."""

    @property
    def width(self) -> int:
        """Width of the hidden layer."""
        return len(self.weights[0])

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """On the images, with decay."""
        return shrinkage.autoencoder_loss(weights, self.inputs, self.weight_decay[0])


def make_case(
    key: Key[Array, ""], *, rank: int, weight_decay: Any, init_scale: Any, learning_rate: Any,
    target_scale: Any, steps: int,
) -> Autoencoder:  # fmt: skip
    """Build a run from the flags: real data, a random start."""
    scaled, real = images()
    size = jnp.sqrt(jnp.asarray(target_scale, jnp.zeros(()).dtype))
    dim = len(scaled)
    return Autoencoder(
        inputs=size * jnp.asarray(scaled, size.dtype),
        factor=size * jnp.asarray(np.linalg.qr(scaled.T)[1].T, size.dtype),
        weights=gaussian_layers(key, (dim, rank, dim), jnp.full(2, init_scale, size.dtype)),
        weight_decay=jnp.full(2, weight_decay, size.dtype),
        learning_rate=jnp.asarray(learning_rate, size.dtype),
        steps=recorded_steps(steps, at_most=21),
        real=real,
    )


def predict(case: Autoencoder) -> dict[str, Array]:
    """Minimiser and minimum in closed form."""
    decay, values = case.weight_decay[0], singular_values(case.factor)
    return {
        "autoencoder": shrinkage.autoencoder_minimiser(case.inputs, case.width, decay),
        "autoencoder_loss": shrinkage.autoencoder_minimum(values, case.width, decay),
        "input_values": values,
        "gains": shrinkage.autoencoder_gains(values, decay),
        "decay": case.weight_decay,
    }


def measure(case: Autoencoder) -> dict[str, Array]:
    """Gradient descent from a random start, and gradients at the points of the family."""

    def loss(weights: Weights) -> Float[Array, ""]:
        return shrinkage.autoencoder_loss(weights, case.factor, 0.0)

    # The gradient of lambda ||W||^2 is 2 lambda W.
    rule = gradient_descent(case.learning_rate, 2 * case.weight_decay)
    run = case.descend(loss, case.weights, end_to_end, rule)
    encoder, decoder = run.params
    return {
        "autoencoder": run.records[-1],
        "autoencoder_loss": case.loss(run.params),
        "asymmetry": jnp.max(jnp.abs(encoder - decoder.T)),
        "autoencoder_gradient": _gradient(case),
        "gains": singular_values(run.records[-1]),
        "moved": setting.moved(run.records),
        "diverged_at": run.diverged_at,
    }


def _gradient(case: Autoencoder, power: int = 2) -> Float[Array, ""]:
    """Largest entry of the gradients at ``W_2 = W_1^T = U_S (I - lambda Sigma_S^{-2})^{1/2}``.

    For sets S of leading directions, those that the minimiser leaves out among them.
    """
    sets = landscape.index_sets(min(case.width + 2, len(case.inputs)), case.width)
    left, values, _ = linalg.svd(case.factor)
    gains = shrinkage.autoencoder_gains(values ** (power / 2), case.weight_decay[0])
    encoders = (jnp.sqrt(gains)[sets] * (sets >= 0))[:, :, None] * left.T[sets]
    slopes = jax.vmap(lambda encoder: jax.grad(case.loss)((encoder, encoder.T)))(encoders)
    return jnp.maximum(*(jnp.max(jnp.abs(W)) for W in slopes))


# Claims ----------------------------------------------------------------------------------------


def _squares(one: Outcome) -> np.ndarray:
    return one.predicted["input_values"] ** 2


def _arrived(one: Outcome) -> bool:
    """Settled where the cost is convex, with a single minimiser that is not degenerate.

    A direction costs ``(1 - w^2)^2 sigma^2 + 2 lambda w^2``, convex in w above a third of its gain;
    below is the plateau of a saddle.
    """
    width = one.point["rank"]
    gains, found = one.predicted["gains"][:width], one.measured["gains"][:width]
    return setting.settled(one, 1.0) and bool(np.all(found >= gains / 3)) and _isolated(one)


def _isolated(one: Outcome) -> bool:
    """No sigma_i^2 of the first equals lambda, and the last of them not the one after."""
    squares, decay = _squares(one), setting.decay_of(one)
    width, least = min(one.point["rank"], len(squares)), half_of_the_digits(one.dtype) * squares[0]
    last, following = squares[width - 1], np.append(squares, 0.0)[width]
    apart = np.all(np.abs(squares[:width] - decay) > least)
    return bool(apart and (last - following > least or last < decay))


def _symmetric(one: Outcome) -> bool:
    """Decay multiplies W_1 - W_2^T along the flat directions by 1 - 2 eta lambda or less."""
    decay = setting.decay_of(one)
    factor = 1 - 2 * one.point["learning_rate"] * decay
    return _arrived(one) and decay > 0 and setting.vanished(one, factor)


_ARRIVED = ("moved", "gains", "input_values", "decay")


CLAIMS = (
    Claim("autoencoder",
          "||X - W_2 W_1 X||^2 + lambda (||W_1||^2 + ||W_2||^2) on MNIST: descent ends at W_2 W_1 "
          "= U_l (I - lambda Sigma_l^{-2}) U_l^T, l = min(width, #{sigma_i^2 > lambda})",
          residual=on_scale("autoencoder", lambda one: 1.0), reads=("autoencoder", *_ARRIVED),
          applies=_arrived),
    Claim("autoencoder_loss",
          "at the value sum_{i<=l} (2 lambda - lambda^2 / sigma_i^2) + sum_rest sigma_i^2",
          residual=on_scale("autoencoder_loss", lambda one: np.sum(_squares(one))),
          reads=("autoencoder_loss", *_ARRIVED), applies=_arrived),
    Claim("transposed", "lambda > 0: there W_1 = W_2^T",
          residual=lambda one: float(one.measured["asymmetry"]), reads=("asymmetry", *_ARRIVED),
          applies=_symmetric),
    Claim("autoencoder_gradient",
          "the gradient is 0 at W_1 = W_2^T = (I - lambda Sigma_S^{-2})^{1/2} U_S^T for sets S of "
          "leading directions",
          residual=lambda one: float(one.measured["autoencoder_gradient"] / _squares(one)[0]),
          reads=("autoencoder_gradient", "input_values")),
)  # fmt: skip


def _inverse_not_squared(case: Autoencoder) -> dict[str, Array]:
    left, values, _ = linalg.svd(case.factor)
    gains = shrinkage.autoencoder_gains(jnp.sqrt(values), case.weight_decay[0])[: case.width]
    return {"autoencoder": (left[:, : case.width] * gains[None, :]) @ left[:, : case.width].T}


def _unregularised(case: Autoencoder) -> dict[str, Array]:
    return {"autoencoder_loss": jnp.sum(singular_values(case.factor)[case.width :] ** 2)}


def _decay_decoder(key: Key[Array, ""], case: Autoencoder, amount: Array) -> Autoencoder:
    """Take the decay from the encoder."""
    decays = case.weight_decay * (1 - amount * jnp.array([1.0, 0.0], case.weight_decay.dtype))
    return dataclasses.replace(case, weight_decay=decays)


CONTROLS = (
    Control("inverse_not_squared", "I - lambda Sigma^{-1}", "autoencoder",
            predict=_inverse_not_squared),
    Control("unregularised_value", "the value of lambda = 0", "autoencoder_loss",
            predict=_unregularised),
    Control("decay_on_the_decoder", "decay on the decoder alone", "transposed",
            case=_decay_decoder, breaks="equal_decays"),
    Control[Autoencoder](
        "gradient_not_squared", "points with I - lambda Sigma^{-1}", "autoencoder_gradient",
        measure=lambda case: {"autoencoder_gradient": _gradient(case, power=1)}),
)  # fmt: skip

AUTOENCODER = Scenario[Autoencoder](
    "autoencoder", make_case, predict, measure, CLAIMS, CONTROLS,
    hypotheses={
        "mnist_installed": lambda case: jnp.asarray(case.real),
        "equal_decays": lambda case: case.weight_decay[0] == case.weight_decay[1],
    },
    dims={
        "autoencoder": ("row", "column"),
        "input_values": ("input_index",),
        "gains": ("input_index",),
        "decay": ("layer",),
    },
    steps="steps", diverged="diverged_at", sides="SVD of X against gradient descent, on MNIST",
    # Where sigma and sigma^2 are well apart, and the step as large as such data allows.
    at={"weight_decay": 0.1, "init_scale": 1.0, "target_scale": 0.25, "learning_rate": 0.8},
)  # fmt: skip
