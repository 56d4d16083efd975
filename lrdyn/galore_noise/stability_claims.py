"""Whether the stall is stable: what one period makes of a small Y, in bases of any direction."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.adapters.methods import GALORE
from lrdyn.core.initialization import gaussians, orthogonal
from lrdyn.galore_noise import setting, stall
from lrdyn.galore_noise.setting import NoisyExample
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.hypotheses import Extent, at_most
from lrdyn.verification.stating.statement import Claim, Control, Scenario

PERIOD = 6
"""T_0: all 64 sequences of its signs are run."""
SIGNS = np.array(list(itertools.product((1.0, -1.0), repeat=PERIOD)))


class Stalled(eqx.Module):
    """An example whose values are all below sigma, and the directions of a small Y."""

    example: NoisyExample
    left: Float[Array, "k k"]
    """u_i, left singular vectors of D."""
    values: Float[Array, "k"]
    """s_i, in the order of the columns of left."""
    beside: Float[Array, "r"]
    """w, so that Y = h u_i w^T."""


class StabilityTheory(NamedTuple):
    """Closed forms."""

    stall_factor: Float[Array, "sequence value"] = ABSENT
    """For each sequence of signs: on the left 1 - eta kappa S, on the right the same number."""
    stall_exponent: Float[Array, "value"] = ABSENT
    """Mean of ln |factor|: on the left a sum over the number of signs."""
    factor_condition: Float[Array, ""] = ABSENT
    """By how much a difference quotient amplifies rounding."""
    exponent_condition: Float[Array, ""] = ABSENT
    """The same, over the smallest factor, of which a logarithm is taken."""


class StabilityMeasured(NamedTuple):
    """Periods of Algorithm 1."""

    stall_factor: Float[Array, "sequence value"] = ABSENT
    stall_exponent: Float[Array, "value"] = ABSENT


def make_case(
    key: Key[Array, ""], *, dim: int, rank: int, side: Any, learning_rate: Any, noise: Any
) -> Stalled:
    """Draw D with values between .2 and .95 of sigma, its bases, and a direction."""
    k = dim - rank
    left, right, places, beside = gaussians(key, [(k, k), (k, k), (1, k), (1, rank)])
    noise = jnp.asarray(noise, left.dtype)
    values = noise * (0.2 + 0.75 * jax.scipy.stats.norm.cdf(places[0]))
    left = orthogonal(left)
    example = NoisyExample(
        target=(left * values[None]) @ orthogonal(right),
        start=jnp.zeros((dim, dim), left.dtype),
        signs=jnp.ones(PERIOD, left.dtype),
        noise=noise,
        learning_rate=jnp.asarray(learning_rate, left.dtype),
        rank=rank,
        period=PERIOD,
        side=side,
    )
    return Stalled(example, left, values, beside[0] / jnp.linalg.norm(beside))


def _step_size(dtype: Any) -> float:
    """What h is over sigma: what is of second order, h^2, is then as small as rounding over h."""
    return float(np.finfo(dtype).eps) ** (1 / 3)


def predict(case: Stalled) -> StabilityTheory:
    """Closed forms."""
    example = case.example
    rates, dtype = (example.noise, example.learning_rate), case.values.dtype
    if example.side == "left":
        sums = jnp.asarray(SIGNS[:, :1] * np.sum(SIGNS, axis=1, keepdims=True), dtype)
        factors = stall.stall_factor(case.values[None, :], *rates, sums)
        exponent = stall.stall_exponent(case.values, *rates, PERIOD)
    else:
        of_any_signs = stall.stall_factor_on_the_right(case.values, *rates, PERIOD)
        factors = jnp.tile(of_any_signs, (len(SIGNS), 1))
        exponent = jnp.log(jnp.abs(of_any_signs))
    # The next order is (kappa h)^2, and rounding over h is as large but for kappa^2.
    kappa = 1 / (1 - jnp.max(case.values / example.noise) ** 2)
    condition = kappa**2 / _step_size(dtype)
    return StabilityTheory(
        stall_factor=factors,
        stall_exponent=exponent,
        factor_condition=condition,
        exponent_condition=condition / jnp.min(jnp.abs(factors)),
    )


def measure(case: Stalled) -> StabilityMeasured:
    """One period of GaLore for each sequence and each direction, from a small Y."""
    return setting.one_at_a_time(_measure, case)  # pyright: ignore[reportArgumentType]


def _measure(case: Stalled) -> StabilityMeasured:
    example = case.example
    k, size = len(case.values), _step_size(case.values.dtype) * example.noise

    def factor(signs: Array, direction: Array) -> Array:
        start = example.start.at[:k, k:].set(size * jnp.outer(direction, case.beside))
        run = setting.run(dataclasses.replace(example, signs=signs, start=start), GALORE)
        return direction @ run.weights[-1, :k, k:] @ case.beside / size

    signs = jnp.asarray(SIGNS, case.values.dtype)
    factors = jax.lax.map(
        lambda one: jax.lax.map(lambda direction: factor(one, direction), case.left.T), signs
    )
    return StabilityMeasured(
        stall_factor=factors, stall_exponent=jnp.mean(jnp.log(jnp.abs(factors)), axis=0)
    )


@at_most("largest s_i over sigma")
def below_noise(case: Stalled) -> Extent:
    """All values are below the noise, by more than the digits of a difference quotient."""
    return Extent(jnp.max(case.values) / case.example.noise, 1 - _step_size(case.values.dtype))


def _raise_a_value(key: Key[Array, ""], case: Stalled, amount: Any) -> Stalled:
    old = case.values[0]
    new = old + amount * (2 * case.example.noise - old)
    # Of the first left vector alone: its row of D is stretched.
    target = case.example.target
    target = target + jnp.outer(case.left[:, 0], case.left[:, 0] @ target) * (new / old - 1)
    example = dataclasses.replace(case.example, target=target)
    return dataclasses.replace(case, example=example, values=case.values.at[0].set(new))


def _without_first_sign(case: Stalled) -> StabilityTheory:
    """S = zeta_0 + ... + zeta_{T_0 - 1}."""
    rates = case.example.noise, case.example.learning_rate
    sums = jnp.asarray(np.sum(SIGNS, axis=1, keepdims=True), case.values.dtype)
    return StabilityTheory(stall_factor=stall.stall_factor(case.values[None, :], *rates, sums))


def _of_the_other_side(case: Stalled) -> StabilityTheory:
    rates = case.example.noise, case.example.learning_rate
    factors = stall.stall_factor_on_the_right(case.values, *rates, PERIOD)
    return StabilityTheory(stall_factor=jnp.tile(factors, (len(SIGNS), 1)))


def _one_more_sign(case: Stalled) -> StabilityTheory:
    rates = case.example.noise, case.example.learning_rate
    return StabilityTheory(stall_exponent=stall.stall_exponent(case.values, *rates, PERIOD + 1))


STABILITY = Scenario[Stalled, StabilityTheory, StabilityMeasured](
    "stability",
    make_case,
    predict,
    measure,
    theory=StabilityTheory,
    measured=StabilityMeasured,
    claims=(
        Claim(
            "stall_factor",
            "with all s_i < sigma a period multiplies a small Y in the direction of s_i, to first "
            "order, by 1 - eta kappa S, S = zeta_0 (zeta_0 + ... + zeta_{T_0 - 1}), kappa = "
            "sigma^2 / (sigma^2 - s_i^2), with P on the left; on the right by 1 - kappa (1 - (1 - "
            "eta)^{T_0}), whatever the signs",
            form=lambda outcome: Equal(
                outcome.predicted.stall_factor, outcome.measured.stall_factor, null=1.0
            ),
            steps=PERIOD,
            reads=lambda theory, run: (theory.stall_factor, run.stall_factor),
            condition=lambda theory: theory.factor_condition,
            # A difference quotient of float32 keeps two digits where kappa^2 < 1.5 at most.
            precision="float64",
        ),
        Claim(
            "stall_exponent",
            "so that ln |Y| grows a period by E ln |1 - eta kappa S| over fair signs, a finite "
            "sum; on the right by the logarithm of that factor",
            steps=PERIOD,
            condition=lambda theory: theory.exponent_condition,
            precision="float64",
        ),
    ),
    controls=(
        Control(
            "first_sign_left_out",
            "S without the first sign as a factor",
            "stall_factor",
            predict=_without_first_sign,
            precision="float64",
        ),
        Control(
            "other_side",
            "the factor of P on the right, for a run on the left",
            "stall_factor",
            predict=_of_the_other_side,
            precision="float64",
        ),
        Control(
            "value_above_noise",
            "a value of twice sigma, of which kappa is negative: it is taken itself",
            "stall_factor",
            case=_raise_a_value,
            breaks="below_noise",
        ),
        Control(
            "one_step_more",
            "the exponent of T_0 + 1 steps",
            "stall_exponent",
            predict=_one_more_sign,
            precision="float64",
        ),
    ),
    hypotheses={"below_noise": below_noise},
    at={"dim": 6, "rank": 2, "side": "left", "learning_rate": 0.02},
    sides="closed forms and a sum over the number of signs, against periods of Algorithm 1 from "
    "every sequence of signs",
)
