"""Gradient descent on x^2 / 2 is at (1 - eta)^t x(0) after t steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import lrdyn as lr


class Path(NamedTuple):
    x: Float[Array, "step"] = lr.ABSENT
    """x(0), x(1), ..., x(t)."""


def make_case(key, *, eta, steps):
    return eta, jax.random.normal(key), jnp.arange(steps + 1)


def predict(case):
    eta, start, t = case
    return Path((1 - eta) ** t * start)


def measure(case):
    eta, start, t = case
    slope = jax.grad(lambda x: x**2 / 2)
    return Path(jax.lax.scan(lambda x, _: (x - eta * slope(x), x), start, t)[1])


def predict_flow(case):  # a wrong formula, which must be seen to fail
    eta, start, t = case
    return Path(jnp.exp(-eta * t) * start)


CLAIMS = (lr.Claim("x", "x(t) = (1 - eta)^t x(0)"),)
CONTROLS = (lr.Control("flow", "the path of gradient flow", "x", predict=predict_flow),)
FLAGS = (
    lr.Flag("eta", (0.1, 0.5), lr.between(0, 1), float, "eta", "step size"),
    lr.Flag("steps", (30,), lr.at_least(1), int, "t", "steps of descent", swept=False),
)
DESCENT = lr.Scenario(
    "descent",
    make_case,
    predict,
    measure,
    theory=Path,
    measured=Path,
    claims=CLAIMS,
    controls=CONTROLS,
    steps="steps",
)
SMALLEST = lr.Theorem("smallest", "descent on x^2 / 2 decays geometrically", FLAGS, (DESCENT,))
