"""How far Theorem 2 reaches into nonlinear networks: a kink or a curve of growing size.

The classification version is exact for linear layers. With a leaky slope a between the layers, or
tanh(b x) / b, the off-diagonal blocks grow like 1 - a and like b^2, and the share of an update's
energy outside of 2K directions like their squares.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.factorization import Weights
from lrdyn.core.spectra import singular_values
from lrdyn.theorem2 import classifier
from lrdyn.theorem2.classifier_claims import HYPOTHESES, Classification, make_classifier
from lrdyn.verification.stating.fields import ABSENT, both_sides
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.statement import Claim, Control, Scenario

CLASSES = 3
KINKS = np.geomspace(1e-3, 1e-2, 6)
"""1 - a: linear there with as many examples as dimensions, and well above float32's rounding."""
BENDS = np.geomspace(0.1, 0.3, 6)
"""Sizes of b, the coefficient of the curved activation."""
WITHIN, WITHIN_SQUARES = 0.05, 0.15
"""Margins of an exponent, of residuals and of energies: the larger sizes show the next order."""

Activation = Callable[[Array, Array], Array]


class ReachTheory(NamedTuple):
    """Exponents of what grows with the size of the nonlinearity."""

    leaky_residual: Float[Array, ""] = ABSENT
    """Exponent of 1 - a in the largest off-diagonal block, 1."""
    leaky_energy: Float[Array, ""] = ABSENT
    """Exponent of 1 - a in the share of the update's energy outside of 2K directions, 2."""
    tanh_residual: Float[Array, ""] = ABSENT
    """Exponent of b in the largest off-diagonal block, 2 by the cubic term of tanh."""
    tanh_energy: Float[Array, ""] = ABSENT
    """Exponent of b in the share of the energy, 4."""


class ReachMeasured(NamedTuple):
    """What is measured at the end of descent for each size of the nonlinearity."""

    leaky_residual: Float[Array, ""] = ABSENT
    """Exponent that is fitted to ``leaky_residuals``."""
    leaky_energy: Float[Array, ""] = ABSENT
    """Exponent that is fitted to ``leaky_energies``."""
    tanh_residual: Float[Array, ""] = ABSENT
    """Exponent that is fitted to ``tanh_residuals``."""
    tanh_energy: Float[Array, ""] = ABSENT
    """Exponent that is fitted to ``tanh_energies``."""
    leaky_residuals: Float[Array, "kink"] = ABSENT
    """Largest off-diagonal block with a leaky slope."""
    leaky_energies: Float[Array, "kink"] = ABSENT
    """Share of the energy of the penultimate update outside of 2K directions."""
    tanh_residuals: Float[Array, "bend"] = ABSENT
    """Largest off-diagonal block with tanh(b x) / b."""
    tanh_energies: Float[Array, "bend"] = ABSENT
    """Share of the energy outside of 2K directions."""
    kink: Float[Array, "kink"] = ABSENT
    """1 - a."""
    bend: Float[Array, "bend"] = ABSENT
    """b."""


def leaky_relu(x: Array, kink: Array) -> Array:
    """Leaky slope: x, or (1 - kink) x where it is negative."""
    return jnp.where(x > 0, x, (1 - kink) * x)


def mean_slope(x: Array, kink: Array) -> Array:
    """Straight line of the mean of the two slopes, (1 - kink / 2) x."""
    return (1 - kink / 2) * x


def scaled_tanh(x: Array, bend: Array) -> Array:
    """Curve tanh(b x) / b, which is x for b = 0."""
    return jnp.tanh(bend * x) / bend


def make_nonlinear(key: Key[Array, ""], *, reach_width: int, reach_depth: int) -> Classification:
    """A classifier with as many examples as dimensions, 100 steps from layers of scale 1/2."""
    return make_classifier(
        key,
        dim=reach_width,
        depth=reach_depth,
        rank=CLASSES,
        target_scale=1.0,
        per_class=reach_width // CLASSES,
        init_scale=0.5,
        init_spread=1.0,
        weight_decay=0.0,
        decay_spread=1.0,
        learning_rate=0.1,
        steps=100,
    )


def predict_nonlinear(case: Classification) -> ReachTheory:
    """Exponents of first order in 1 - a, and in b^2 by tanh's cubic term; energies are squares."""
    return ReachTheory(
        leaky_residual=jnp.ones(()),
        leaky_energy=2 * jnp.ones(()),
        tanh_residual=2 * jnp.ones(()),
        tanh_energy=4 * jnp.ones(()),
    )


def measure_nonlinear(
    case: Classification, kinked: Activation = leaky_relu, curved: Activation = scaled_tanh
) -> ReachMeasured:
    """Exponents fitted to the residual and to the energy at the end of each run."""
    kinks, bends = (jnp.asarray(sizes, case.scales.dtype) for sizes in (KINKS, BENDS))
    of_kinks, kink_energies = jax.vmap(lambda size: departure(case, kinked, size))(kinks)
    of_bends, bend_energies = jax.vmap(lambda size: departure(case, curved, size))(bends)
    return ReachMeasured(
        leaky_residual=_exponent(kinks, of_kinks),
        leaky_energy=_exponent(kinks, kink_energies),
        tanh_residual=_exponent(bends, of_bends),
        tanh_energy=_exponent(bends, bend_energies),
        leaky_residuals=of_kinks,
        leaky_energies=kink_energies,
        tanh_residuals=of_bends,
        tanh_energies=bend_energies,
        kink=kinks,
        bend=bends,
    )


def departure(case: Classification, activation: Activation, size: Array) -> tuple[Array, Array]:
    """Largest off-diagonal block, and energy of the penultimate update outside of 2K directions."""
    fixed = classifier.classifier_frame(case.weights, case.target)
    moving = 2 * len(case.outputs)

    def loss(weights: Weights) -> Float[Array, ""]:
        *before, last = weights
        hidden = case.inputs
        for W in before:
            hidden = activation(W @ hidden, size)
        return jnp.sum((last @ hidden - case.outputs) ** 2) / 2

    def look(weights: Weights) -> tuple[Array, Array]:
        blocks = classifier.classifier_blocks(fixed, weights, moving)
        squares = singular_values(weights[-2] - case.weights[-2]) ** 2
        return jnp.max(blocks.off_block), jnp.sum(squares[moving:]) / jnp.sum(squares)

    residual, energy = case.descend(loss, case.weights, look).records
    return residual[-1], energy[-1]


def _exponent(sizes: Float[Array, "n"], values: Float[Array, "n"]) -> Float[Array, ""]:
    """Exponent of a power law, by least squares of logarithms."""
    # Without a kink, as in a control, a value may be 0, whose logarithm no fit survives.
    x, y = jnp.log(sizes), jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))
    x = x - jnp.mean(x)
    return jnp.sum(x * y) / jnp.sum(x**2)


def _exponent_claim(id: str, text: str, within: float) -> Claim[ReachTheory, ReachMeasured]:
    compares = both_sides(id)
    return Claim(
        id,
        f"{text}: the exponent within {within:g}",
        kind="rate",
        tolerance=within,
        # Who knows nothing sees no dependence: the exponent 0.
        form=lambda outcome: Equal(*compares(outcome.predicted, outcome.measured), scale=1.0),
    )


CLAIMS = (
    _exponent_claim(
        "leaky_residual",
        "off-diagonal blocks grow like 1 - a with a leaky slope a",
        WITHIN,
    ),
    _exponent_claim(
        "leaky_energy",
        "energy of the update outside of 2K directions like (1 - a)^2",
        WITHIN_SQUARES,
    ),
    _exponent_claim(
        "tanh_residual",
        "with tanh(b x)/b off-diagonal blocks grow like b^2",
        WITHIN,
    ),
    _exponent_claim(
        "tanh_energy",
        "and that energy like b^4",
        WITHIN_SQUARES,
    ),
)


def _straight(case: Classification) -> ReachMeasured:
    return measure_nonlinear(case, mean_slope, mean_slope)


def _raw_inputs(case: Classification) -> ReachMeasured:
    """Inputs whose coordinates have scales of their own."""
    factors = jnp.linspace(0.5, 1.5, len(case.inputs))[:, None]
    return measure_nonlinear(dataclasses.replace(case, inputs=factors * case.inputs))


NONLINEAR = Scenario[Classification, ReachTheory, ReachMeasured](
    "nonlinear",
    make_nonlinear,
    predict_nonlinear,
    measure_nonlinear,
    theory=ReachTheory,
    measured=ReachMeasured,
    claims=CLAIMS,
    controls=tuple(
        Control(f"{claim.id}_{name}", text, claim.id, measure=broken)
        for claim in CLAIMS
        for name, text, broken in (
            ("straight", "the mean slope, without a kink", _straight),
            ("raw", "inputs that are not whitened", _raw_inputs),
        )
    ),
    hypotheses=HYPOTHESES,
    sides="an expansion in the size of the nonlinearity against fits to trained networks",
    seeds=2,
)
