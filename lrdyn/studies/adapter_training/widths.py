"""Which rates of LoRA's factors let both learn features, as the width grows: a toy.

f = (W* + b a^T) x with a ~ N(0, 1/n), b = 0; rates eta_A = n^-alpha, eta_B = n^-beta. At the second
step of descent the moves of a and of b change f by Delta_A ~ |U| n^(1 - alpha - 2 beta) and by
Delta_B ~ |U| n^-beta, U = f - y, and both are of order one for eta_A ~ 1/n, eta_B ~ 1 alone
(LoRA+). |U| itself is of order one, but for a fixed ratio of the rates, where the first step
overshoots.
"""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.engine.statement import Claim, Control, Outcome, Scenario

WIDTHS = (64, 256, 1024, 4096)
RATES = ((1.0, 0.0), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1 / 3, 1 / 3))
"""alpha and beta."""
FIXED = 16.0
"""A fixed ratio eta_B / eta_A, of eta_A = n^(-1/2)."""
DRAWS = 4096
WITHIN = 0.06
"""Of an exponent: the medians of 4,096 starts leave about .01."""


class Toy(eqx.Module):
    """Starts and inputs are drawn from this key."""

    key: Key[Array, ""]


def make_toy(key: Key[Array, ""]) -> Toy:
    """Nothing to choose: widths and rates are those of the table."""
    return Toy(key)


def predict_widths(case: Toy) -> dict[str, Array]:
    """Exponents of n in Delta_A and Delta_B; a fixed ratio has those of one rate."""
    alpha, beta = jnp.asarray(RATES).T
    return {
        "width_A": 1 - alpha - 2 * beta, "width_B": -beta,
        "ratio_A": jnp.asarray(-0.5), "ratio_B": jnp.asarray(-0.5),
    }  # fmt: skip


Rule = Callable[[Array], Array]


def _moves(key: Key[Array, ""], rule: Rule) -> Float[Array, "widths rates 3"]:
    """|Delta_A / U|, |Delta_B / U| and |U| at the second step of one start, for widths and rates.

    A width n takes the first n of the numbers that are drawn.
    """
    x, a = jax.random.normal(key, (2, max(WIDTHS)))

    def of_width(n: int) -> Float[Array, "rates 3"]:
        rates = np.array([*(float(n) ** -np.array(RATES)), [n**-0.5, FIXED * n**-0.5]])
        second = partial(_second_step, a[:n] / np.sqrt(n), x[:n], rule)
        return jax.vmap(second)(jnp.asarray(rates, x.dtype))

    return jnp.stack([of_width(n) for n in WIDTHS])


def _second_step(
    a: Float[Array, "n"], x: Float[Array, "n"], rule: Rule, rates: Float[Array, "2"]
) -> Float[Array, "3"]:
    def loss(a: Array, b: Array) -> Array:
        return 0.5 * (b * jnp.dot(a, x) - 1.0) ** 2  # W* x - y = -1

    slopes = jax.grad(loss, argnums=(0, 1))
    b = jnp.zeros((), x.dtype)
    b = b - rates[1] * rule(slopes(a, b)[1])  # the gradient in a is 0
    of_a, of_b = (rule(G) for G in slopes(a, b))
    U = b * jnp.dot(a, x) - 1.0
    moved = b * jnp.dot(rates[0] * of_a, x), rates[1] * of_b * jnp.dot(a, x)
    return jnp.abs(jnp.stack([moved[0] / U, moved[1] / U, U]))


def measure_widths(case: Toy, rule: Rule = lambda G: G) -> dict[str, Array]:
    """Powers of n fitted to medians over many starts, by automatic gradients."""
    keys = jax.random.split(case.key, DRAWS)
    found = jnp.median(jax.lax.map(lambda k: _moves(k, rule), keys, batch_size=64), axis=0)
    slopes = _slope(jnp.log(found))
    return {
        "width_A": slopes[:-1, 0], "width_B": slopes[:-1, 1],
        "ratio_A": slopes[-1, 0], "ratio_B": slopes[-1, 1],
        "move": found, "n": jnp.asarray(WIDTHS),
    }  # fmt: skip


def _slope(logs: Float[Array, "widths rates 3"]) -> Float[Array, "rates 3"]:
    x = jnp.log(jnp.asarray(WIDTHS, logs.dtype))
    x = x - jnp.mean(x)
    return jnp.tensordot(x, logs, 1) / jnp.sum(x**2)


def _apart(*names: str) -> Callable[[Outcome], float]:
    def residual(one: Outcome) -> float:
        return max(float(np.max(np.abs(one.predicted[n] - one.measured[n]))) for n in names)

    return residual


def _other_rates(case: Toy) -> dict[str, Array]:
    """The table one row further."""
    found = predict_widths(case)
    return {name: jnp.roll(found[name], 1) for name in ("width_A", "width_B")}


def _rates_of_signs(case: Toy) -> dict[str, Array]:
    """What holds of sign descent, as Adam begins: n^(1 - alpha - beta)."""
    alpha, beta = jnp.asarray(RATES).T
    return {"width_A": 1 - alpha - beta}


def _signs(case: Toy) -> dict[str, Array]:
    return measure_widths(case, jnp.sign)


def _of_one_over_n(case: Toy) -> dict[str, Array]:
    """Of alpha = beta = 1 in the place of 1/2."""
    return {"ratio_A": jnp.asarray(-2.0), "ratio_B": jnp.asarray(-1.0)}


def _table(exponents: str) -> str:
    rates = ", ".join(f"({a:.2g}, {b:.2g})" for a, b in RATES)
    return f"{exponents}, for eta_A = n^-alpha, eta_B = n^-beta, (alpha, beta) = {rates}"


WIDTH_SWEEP = Scenario[Toy](
    "widths", make_toy, predict_widths, measure_widths,
    (
        Claim("width_A", _table("toy, n = 64 to 4096: at the second step the move of a changes f "
                                f"by |U| n^(1 - alpha - 2 beta) within {WITHIN:g}"),
              kind="rate", tolerance=WITHIN, residual=_apart("width_A")),
        Claim("width_B", f"and the move of b by |U| n^-beta within {WITHIN:g}",
              kind="rate", tolerance=WITHIN, residual=_apart("width_B")),
        Claim("width_ratio", "a fixed ratio eta_B / eta_A = 16 with eta_A = n^(-1/2) keeps the "
                             f"exponents -1/2 of one rate within {WITHIN:g}",
              kind="rate", tolerance=WITHIN, residual=_apart("ratio_A", "ratio_B"),
              reads=("ratio_A", "ratio_B")),
    ),
    (
        Control[Toy]("width_other_rates_A", "the exponents of other rates", "width_A",
                     predict=_other_rates),
        Control[Toy]("width_other_rates_B", "the exponents of other rates", "width_B",
                     predict=_other_rates),
        Control[Toy]("width_rates_of_signs", "the exponents of sign descent", "width_A",
                     predict=_rates_of_signs),
        Control[Toy]("width_by_signs", "sign descent", "width_A", measure=_signs),
        Control[Toy]("width_of_one_over_n", "the exponents of the rate 1/n", "width_ratio",
                     predict=_of_one_over_n),
    ),
    dims={"width_A": ("pair_of_rates",), "width_B": ("pair_of_rates",),
          "move": ("n", "all_rates", "quantity"), "n": ("n",)},
    sides="powers of n by hand against fits to two steps of descent",
    seeds=1, long=True,
)  # fmt: skip
