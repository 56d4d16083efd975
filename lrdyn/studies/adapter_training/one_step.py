"""The identity that carries the verdict: one step of LoRA on a pretrained encoder's value matrix.

:mod:`lrdyn.lora.one_step_claims` has it for a matrix and a loss of its own; here the loss is that
of the training, through all layers above the matrix.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from lrdyn import adapters
from lrdyn.adapters import Factors
from lrdyn.core.initialization import gaussians
from lrdyn.studies.adapter_training import sentences, tasks
from lrdyn.studies.adapter_training.sentences import Examples
from lrdyn.studies.adapter_training.tuning import (
    BATCH,
    CrossEncoder,
    draw_cross_encoder,
    squared_error,
    value_matrix,
    value_of,
    value_slope,
)
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.statement import Claim, Control, Scenario

SCALE, RATIO = 2.0, 4.0
"""s, and eta_B over eta_A."""


class EncoderStepTheory(NamedTuple):
    """What is predicted of one step."""

    real_step: Float[Array, "row column"] = ABSENT
    """Change of s B A."""
    real_scale: Float[Array, ""] = ABSENT
    """Largest sum of the sizes of the three terms and of s B A itself, of which the change is a
    difference: the scale of its rounding."""


class EncoderStepMeasured(NamedTuple):
    """What is measured of one step."""

    real_step: Float[Array, "row column"] = ABSENT
    """Change of s B A."""


class EncoderStep(eqx.Module):
    """A cross-encoder from the layer of the matrix on, an adapter away from its start, a batch."""

    net: CrossEncoder
    batch: Examples
    adapter: Factors
    rates: Float[Array, "2"]
    path: str = eqx.field(static=True)

    @property
    def weight(self) -> Float[Array, "m n"]:
        """Pretrained value matrix W_0."""
        return value_of(self.net)


def make_step(
    key: Key[Array, ""],
    *,
    encoder: str,
    text_file: str,
    train_file: str,
    data_dir: str = "",
    length: int,
    pool: str,
    rank: int,
) -> EncoderStep:
    """Draw a batch and factors away from 0, with rates of the size of 1 / ||G||.

    With such rates none of the three terms of the step is negligible.
    """
    path, layer = value_matrix(sentences.read(sentences.folder_of(encoder)).model)
    data_key, head_key, key = jax.random.split(key, 3)
    net, batch = draw_cross_encoder(
        jnp.stack([data_key, head_key]),
        tasks.any_texts(text_file, train_file, data_dir),
        BATCH,
        encoder=encoder,
        length=length,
        pool=pool,
        layer=layer,
    )
    m, n = value_of(net).shape
    B, A = gaussians(key, [(m, rank), (rank, n)])
    adapter = Factors(B / np.sqrt(m), A / np.sqrt(n), jnp.asarray(SCALE, B.dtype))
    case = EncoderStep(net, batch, adapter, jnp.ones(2), path)
    size = 1 / jnp.linalg.norm(slope(case, merged_matrix(case)))
    return eqx.tree_at(lambda case: case.rates, case, size * jnp.array([1.0, RATIO], B.dtype))


def merged_matrix(case: EncoderStep) -> Float[Array, "m n"]:
    """Adapted value matrix, W_0 + s B A."""
    return case.adapter.onto(case.weight)


def slope(case: EncoderStep, W: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """G, the gradient of the loss in the value matrix."""
    return value_slope(case.net, W, case.batch)


def terms(case: EncoderStep, G: Float[Array, "m n"]) -> Float[Array, "3 m n"]:
    """The three terms of the change of s B A."""
    eta_A, eta_B = case.rates
    s, B, A = case.adapter.scale, case.adapter.B, case.adapter.A
    return jnp.stack(
        [
            -eta_A * s**2 * B @ (B.T @ G),
            -eta_B * s**2 * G @ A.T @ A,
            eta_A * eta_B * s**3 * (G @ A.T) @ (B.T @ G),
        ]
    )


def predict_step(case: EncoderStep) -> EncoderStepTheory:
    """The formula, from the gradient in the whole matrix."""
    parts = terms(case, slope(case, merged_matrix(case)))
    product = case.adapter.scale * case.adapter.B @ case.adapter.A
    scale = jnp.max(jnp.sum(jnp.abs(parts), axis=0) + jnp.abs(product))
    return EncoderStepTheory(real_step=jnp.sum(parts, axis=0), real_scale=scale)


@eqx.filter_jit
def _step_change(case: EncoderStep, rates: Float[Array, "2"]) -> Float[Array, "m n"]:
    before: Any = {case.path: case.adapter}
    rule = adapters.lora_plus(optax.sgd, rates[0], rates[1] / rates[0], before)

    def loss(adapter: Any) -> Float[Array, ""]:
        return squared_error(case.net, adapter, None, case.batch, None)[0]

    moves, _ = rule.update(jax.grad(loss)(before), rule.init(before), before)
    after: Any = optax.apply_updates(before, moves)
    # Onto zeros: a difference of two sums with W_0 would lose the digits of the step.
    zero = jnp.zeros_like(case.weight)
    return after[case.path].onto(zero) - case.adapter.onto(zero)


def measure_step(case: EncoderStep) -> EncoderStepMeasured:
    """One step of SGD on the adapter."""
    return EncoderStepMeasured(real_step=_step_change(case, case.rates))


REAL_STEP = Scenario[EncoderStep, EncoderStepTheory, EncoderStepMeasured](
    "real_step",
    make_step,
    predict_step,
    measure_step,
    theory=EncoderStepTheory,
    measured=EncoderStepMeasured,
    claims=(
        Claim(
            "real_step",
            "a step of SGD on LoRA of the value matrix of the encoder's second-last layer "
            "changes s B A by - eta_A s^2 B B^T G - eta_B s^2 G A^T A + eta_A eta_B s^3 G A^T "
            "B^T G, G the gradient of the real loss in the matrix, B not 0",
            form=lambda outcome: Equal(
                outcome.predicted.real_step,
                outcome.measured.real_step,
                outcome.predicted.real_scale,
            ),
            reads=lambda theory, run: (theory.real_step, run.real_step, theory.real_scale),
        ),
    ),
    controls=(
        Control(
            "real_step_first_order",
            "without the third term",
            "real_step",
            predict=lambda case: EncoderStepTheory(
                real_step=jnp.sum(terms(case, slope(case, merged_matrix(case)))[:2], axis=0)
            ),
        ),
        Control(
            "real_step_at_the_base",
            "the gradient at W_0, without the adapter",
            "real_step",
            predict=lambda case: EncoderStepTheory(
                real_step=jnp.sum(terms(case, slope(case, case.weight)), axis=0)
            ),
        ),
        Control(
            "real_step_as_at_zero",
            "the terms that B = 0 leaves",
            "real_step",
            # One of the three: the others have the factor B^T.
            predict=lambda case: EncoderStepTheory(
                real_step=terms(case, slope(case, merged_matrix(case)))[1]
            ),
        ),
        Control(
            "real_step_swapped",
            "the rates of A and B exchanged",
            "real_step",
            measure=lambda case: EncoderStepMeasured(
                real_step=_step_change(case, case.rates[::-1])
            ),
        ),
    ),
    narrow=lambda settings: settings | {"rank": settings["rank"][:1]},
    sides="the formula in the gradient through the merged model against a step through the adapter",
    traced=False,
)
