"""Which rates of LoRA's factors let both learn features, as the width grows: a toy.

f = (W* + b a^T) x with a ~ N(0, 1/n), b = 0; rates eta_A = n^-alpha, eta_B = n^-beta. At the second
step of descent the moves of a and of b change f by Delta_A ~ |U| n^(1 - alpha - 2 beta) and by
Delta_B ~ |U| n^-beta, U = f - y, and both are of order one for eta_A ~ 1/n, eta_B ~ 1 alone
(LoRA+). |U| itself is of order one, but for a fixed ratio of the rates, where the first step
overshoots.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.statement import Claim, Control, Scenario

WIDTHS = (64, 256, 1024, 4096)
RATES = ((1.0, 0.0), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1 / 3, 1 / 3))
"""alpha and beta."""
FIXED = 16.0
"""A fixed ratio eta_B / eta_A, of eta_A = n^(-1/2)."""
DRAWS = 4096
WITHIN = 0.06
"""Margin of an exponent: the medians of 4,096 starts leave an error of about .01."""


class WidthTheory(NamedTuple):
    """Exponents of n in what the second step's moves change f by, over |U|."""

    width_A: Float[Array, "pair_of_rates"] = ABSENT
    """1 - alpha - 2 beta, of the move of a."""
    width_B: Float[Array, "pair_of_rates"] = ABSENT
    """-beta, of the move of b."""
    ratio_A: Float[Array, ""] = ABSENT
    """Exponent of the move of a with a fixed ratio of the rates, -1/2."""
    ratio_B: Float[Array, ""] = ABSENT
    """Exponent of the move of b with a fixed ratio of the rates, -1/2."""


class WidthMeasured(NamedTuple):
    """Exponents fitted to medians over many starts, and these."""

    width_A: Float[Array, "pair_of_rates"] = ABSENT
    """Exponent of the move of a."""
    width_B: Float[Array, "pair_of_rates"] = ABSENT
    """Exponent of the move of b."""
    ratio_A: Float[Array, ""] = ABSENT
    """Exponent of the move of a with a fixed ratio of the rates."""
    ratio_B: Float[Array, ""] = ABSENT
    """Exponent of the move of b with a fixed ratio of the rates."""
    move: Float[Array, "n all_rates quantity"] = ABSENT
    """Medians of |Delta_A / U|, |Delta_B / U| and |U|; the last rates have a fixed ratio."""
    n: Int[Array, "n"] = ABSENT
    """Widths."""


class Toy(eqx.Module):
    """Starts and inputs are drawn from this key."""

    key: Key[Array, ""]


def make_toy(key: Key[Array, ""]) -> Toy:
    """Case of the toy: a random key alone, for widths and rates are those of the tables."""
    return Toy(key)


def predict_widths(case: Toy) -> WidthTheory:
    """Exponents of n in Delta_A and Delta_B; a fixed ratio has those of one rate."""
    alpha, beta = jnp.asarray(RATES).T
    return WidthTheory(
        width_A=1 - alpha - 2 * beta,
        width_B=-beta,
        ratio_A=jnp.asarray(-0.5),
        ratio_B=jnp.asarray(-0.5),
    )


Rule = Callable[[Array], Array]


def _moves(key: Key[Array, ""], rule: Rule) -> Float[Array, "widths rates 3"]:
    """|Delta_A / U|, |Delta_B / U| and |U| at the second step of one start, for widths and rates.

    A width n takes the first n of the numbers that are drawn.
    """
    x, a = jax.random.normal(key, (2, max(WIDTHS)))

    def moves_at(n: int) -> Float[Array, "rates 3"]:
        rates = np.array([*(float(n) ** -np.array(RATES)), [n**-0.5, FIXED * n**-0.5]])
        second = partial(second_step, a[:n] / np.sqrt(n), x[:n], rule)
        return jax.vmap(second)(jnp.asarray(rates, x.dtype))

    return jnp.stack([moves_at(n) for n in WIDTHS])


def second_step(
    a: Float[Array, "n"], x: Float[Array, "n"], rule: Rule, rates: Float[Array, "2"]
) -> Float[Array, "3"]:
    """|Delta_A / U|, |Delta_B / U| and |U| at the second step of descent, with b = 0 at the start.

    Args:
        a: first factor at the start.
        x: input; its label is W* x + 1.
        rule: what descent makes of a gradient.
        rates: eta_A and eta_B.
    """

    def loss(a: Array, b: Array) -> Array:
        return 0.5 * (b * jnp.dot(a, x) - 1.0) ** 2  # W* x - y = -1

    slopes = jax.grad(loss, argnums=(0, 1))
    b = jnp.zeros((), x.dtype)
    b = b - rates[1] * rule(slopes(a, b)[1])  # the gradient in a is 0
    of_a, of_b = (rule(G) for G in slopes(a, b))
    U = b * jnp.dot(a, x) - 1.0
    moved = b * jnp.dot(rates[0] * of_a, x), rates[1] * of_b * jnp.dot(a, x)
    return jnp.abs(jnp.stack([moved[0] / U, moved[1] / U, U]))


def measure_widths(case: Toy, rule: Rule = lambda G: G) -> WidthMeasured:
    """Powers of n fitted to medians over many starts, by automatic gradients."""
    keys = jax.random.split(case.key, DRAWS)
    medians = jnp.median(jax.lax.map(lambda k: _moves(k, rule), keys, batch_size=64), axis=0)
    x = jnp.log(jnp.asarray(WIDTHS, medians.dtype))
    x = x - jnp.mean(x)
    # Least squares of logarithms, over the widths.
    exponents = jnp.tensordot(x, jnp.log(medians), 1) / jnp.sum(x**2)
    return WidthMeasured(
        width_A=exponents[:-1, 0],
        width_B=exponents[:-1, 1],
        ratio_A=exponents[-1, 0],
        ratio_B=exponents[-1, 1],
        move=medians,
        n=jnp.asarray(WIDTHS),
    )


def _exponents(predicted: Array | np.ndarray, measured: Array | np.ndarray) -> Equal:
    """Exponents, as they are; who knows nothing sees no dependence on the width: 0."""
    return Equal(predicted, measured, scale=1.0)


def _other_rates(case: Toy) -> WidthTheory:
    """Predict by the table of rates shifted by one row."""
    theory = predict_widths(case)
    return WidthTheory(width_A=jnp.roll(theory.width_A, 1), width_B=jnp.roll(theory.width_B, 1))


def _rates_of_signs(case: Toy) -> WidthTheory:
    """Predict what holds of sign descent, as Adam begins: n^(1 - alpha - beta)."""
    alpha, beta = jnp.asarray(RATES).T
    return WidthTheory(width_A=1 - alpha - beta)


WIDTH_SWEEP = Scenario[Toy, WidthTheory, WidthMeasured](
    "widths",
    make_toy,
    predict_widths,
    measure_widths,
    theory=WidthTheory,
    measured=WidthMeasured,
    claims=(
        Claim(
            "width_A",
            "toy, n = 64 to 4096: at the second step the move of a changes f by |U| n^(1 - alpha - "
            f"2 beta) within {WITHIN:g}, for eta_A = n^-alpha, eta_B = n^-beta, (alpha, beta) = "
            f"{', '.join(f'({alpha:.2g}, {beta:.2g})' for alpha, beta in RATES)}",
            kind="rate",
            form=lambda outcome: _exponents(outcome.predicted.width_A, outcome.measured.width_A),
            tolerance=WITHIN,
        ),
        Claim(
            "width_B",
            f"and the move of b by |U| n^-beta within {WITHIN:g}",
            kind="rate",
            form=lambda outcome: _exponents(outcome.predicted.width_B, outcome.measured.width_B),
            tolerance=WITHIN,
        ),
        Claim(
            "width_ratio",
            "a fixed ratio eta_B / eta_A = 16 with eta_A = n^(-1/2) keeps the exponents -1/2 of "
            f"one rate within {WITHIN:g}",
            kind="rate",
            form=lambda outcome: (
                _exponents(outcome.predicted.ratio_A, outcome.measured.ratio_A),
                _exponents(outcome.predicted.ratio_B, outcome.measured.ratio_B),
            ),
            reads=lambda theory, run: (
                theory.ratio_A,
                run.ratio_A,
                theory.ratio_B,
                run.ratio_B,
            ),
            tolerance=WITHIN,
        ),
    ),
    controls=(
        Control(
            "width_other_rates_A",
            "the exponents of other rates",
            "width_A",
            predict=_other_rates,
        ),
        Control(
            "width_other_rates_B",
            "the exponents of other rates",
            "width_B",
            predict=_other_rates,
        ),
        Control(
            "width_rates_of_signs",
            "the exponents of sign descent",
            "width_A",
            predict=_rates_of_signs,
        ),
        Control(
            "width_by_signs",
            "sign descent",
            "width_A",
            measure=lambda case: measure_widths(case, jnp.sign),
        ),
        Control(
            "width_of_one_over_n",
            "the exponents of the rate 1/n",
            "width_ratio",
            # Of alpha = beta = 1 in the place of 1/2.
            predict=lambda case: WidthTheory(ratio_A=jnp.asarray(-2.0), ratio_B=jnp.asarray(-1.0)),
        ),
    ),
    sides="powers of n by hand against fits to two steps of descent",
    seeds=1,
    long=True,
)
