"""How far Theorem 2 reaches into nonlinear networks: a kink or a curve of growing size.

The classification version is exact for linear layers. With a leaky slope a between the layers, or
tanh(b x) / b, the off-diagonal blocks grow like 1 - a and like b^2, and the share of an update's
energy outside of 2K directions like their squares.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.factorization import Weights
from lrdyn.core.spectra import singular_values
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem2 import classifier
from lrdyn.theorem2.classifier_claims import HYPOTHESES, Classification, make_classifier

CLASSES = 3
KINKS = np.geomspace(1e-3, 1e-2, 6)
"""1 - a: linear there with as many examples as dimensions, and well above float32's rounding."""
BENDS = np.geomspace(0.1, 0.3, 6)
"""b."""
WITHIN, WITHIN_SQUARES = 0.05, 0.15
"""Of an exponent of residuals and of energies: the next order is still seen at the larger sizes."""

Activation = Callable[[Array, Array], Array]


def leaky(x: Array, kink: Array) -> Array:
    """x, or (1 - kink) x where it is negative."""
    return jnp.where(x > 0, x, (1 - kink) * x)


def without_kink(x: Array, kink: Array) -> Array:
    """The mean slope of the same, on both sides."""
    return (1 - kink / 2) * x


def bent(x: Array, bend: Array) -> Array:
    """tanh(b x) / b."""
    return jnp.tanh(bend * x) / bend


def make_nonlinear(key: Key[Array, ""], *, reach_width: int, reach_depth: int) -> Classification:
    """A classifier with as many examples as dimensions, 100 steps from layers of scale 1/2."""
    return make_classifier(
        key, dim=reach_width, depth=reach_depth, rank=CLASSES, target_scale=1.0,
        per_class=reach_width // CLASSES, init_scale=0.5, init_spread=1.0, weight_decay=0.0,
        decay_spread=1.0, learning_rate=0.1, steps=100,
    )  # fmt: skip


def predict_nonlinear(case: Classification) -> dict[str, Array]:
    """First order in 1 - a, and in b^2 by the cubic term of tanh; energies are squares."""
    return {
        "leaky_residual": jnp.ones(()), "leaky_energy": 2 * jnp.ones(()),
        "tanh_residual": 2 * jnp.ones(()), "tanh_energy": 4 * jnp.ones(()),
    }  # fmt: skip


def measure_nonlinear(
    case: Classification, kinked: Activation = leaky, curved: Activation = bent
) -> dict[str, Array]:
    """Exponents fitted to the residual and to the energy at the end of each run."""
    found = {}
    for name, activation, sizes in (("leaky", kinked, KINKS), ("tanh", curved, BENDS)):
        amounts = jnp.asarray(sizes, case.scales.dtype)
        residual, energy = jax.vmap(lambda size, f=activation: _departure(case, f, size))(amounts)
        found |= {
            f"{name}_residual": _slope(amounts, residual), f"{name}_residuals": residual,
            f"{name}_energy": _slope(amounts, energy), f"{name}_energies": energy,
        }  # fmt: skip
    dtype = case.scales.dtype
    return found | {"kink": jnp.asarray(KINKS, dtype), "bend": jnp.asarray(BENDS, dtype)}


def _departure(case: Classification, activation: Activation, size: Array) -> tuple[Array, Array]:
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
        seen = classifier.classifier_blocks(fixed, weights, moving)
        values = singular_values(weights[-2] - case.weights[-2])
        squares = values**2
        return jnp.max(seen.off_block), jnp.sum(squares[moving:]) / jnp.sum(squares)

    residual, energy = case.descend(loss, case.weights, look).records
    return residual[-1], energy[-1]


def _slope(sizes: Float[Array, "n"], values: Float[Array, "n"]) -> Float[Array, ""]:
    """Exponent of a power law, by least squares of logarithms."""
    x, y = jnp.log(sizes), jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))
    x = x - jnp.mean(x)
    return jnp.sum(x * y) / jnp.sum(x**2)


def _apart(name: str) -> Callable[[Outcome], float]:
    return lambda one: float(np.abs(one.predicted[name] - one.measured[name]))


def _raw(case: Classification) -> dict[str, Array]:
    """Inputs whose coordinates have scales of their own."""
    factors = jnp.linspace(0.5, 1.5, len(case.inputs))[:, None]
    raw = dataclasses.replace(case, inputs=factors * case.inputs)
    return measure_nonlinear(raw)


def _straight(case: Classification) -> dict[str, Any]:
    return measure_nonlinear(case, without_kink, without_kink)


TEXTS = {
    "leaky_residual": ("off-diagonal blocks grow like 1 - a with a leaky slope a", WITHIN),
    "leaky_energy": (
        "energy of the update outside of 2K directions like (1 - a)^2",
        WITHIN_SQUARES,
    ),
    "tanh_residual": ("with tanh(b x)/b off-diagonal blocks grow like b^2", WITHIN),
    "tanh_energy": ("and that energy like b^4", WITHIN_SQUARES),
}

NONLINEAR = Scenario[Classification](
    "nonlinear", make_nonlinear, predict_nonlinear, measure_nonlinear,
    tuple(
        Claim(name, f"{text}: the exponent within {within:g}", kind="rate", tolerance=within,
              residual=_apart(name))
        for name, (text, within) in TEXTS.items()
    ),
    tuple(
        Control[Classification](f"{name}_{id}", text, name, measure=broken)
        for name in TEXTS
        for id, text, broken in (("straight", "the mean slope, without a kink", _straight),
                                 ("raw", "inputs that are not whitened", _raw))
    ),
    hypotheses=HYPOTHESES,
    dims={"leaky_residuals": ("kink",), "leaky_energies": ("kink",), "kink": ("kink",),
          "tanh_residuals": ("bend",), "tanh_energies": ("bend",), "bend": ("bend",)},
    sides="an expansion in the size of the nonlinearity against fits to trained networks",
    seeds=2,
)  # fmt: skip
