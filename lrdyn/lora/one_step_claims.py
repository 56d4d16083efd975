"""One step of LoRA, of DoRA and the start of PiSSA, by hand and by the adapters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from lrdyn import adapters
from lrdyn.adapters import DirectedFactors, Factors
from lrdyn.core import linalg
from lrdyn.core.initialization import gaussians
from lrdyn.engine.claims import on_scale
from lrdyn.engine.statement import Claim, Control, Scenario

LOSSES = {
    "squares": lambda Z: 0.5 * jnp.sum(Z**2),
    "logistic": lambda Z: jnp.sum(jax.nn.softplus(Z)),
    "sines": lambda Z: jnp.sum(jnp.sin(Z)),
}
"""Losses of W X - Y, in the order of the axis ``loss``."""


class Step(eqx.Module):
    """A matrix with adapters away from their start, and data."""

    weight: Float[Array, "m n"]
    B: Float[Array, "m r"]
    A: Float[Array, "r n"]
    magnitude: Float[Array, "m"]
    scale: Float[Array, ""]
    rates: Float[Array, "2"]
    """eta_A and eta_B."""
    inputs: Float[Array, "n examples"]
    outputs: Float[Array, "m examples"]

    def loss(self, name: str, net: dict) -> Float[Array, ""]:
        """A loss of anything that multiplies as a matrix."""
        return LOSSES[name](net["W"] @ self.inputs - self.outputs)

    def slope(self, name: str, W: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """G, the gradient in the whole matrix."""
        return jax.grad(lambda W: self.loss(name, {"W": W}))(W)


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, rank: int, adapter_scale: Array,
    learning_rate: Array, rate_ratio: Array,
) -> Step:  # fmt: skip
    """Draw it: B and A are not 0."""
    shapes = [(rows, cols), (rows, rank), (rank, cols), (cols, 7), (rows, 7), (1, rows)]
    W, B, A, X, Y, m = gaussians(key, shapes)
    root = np.sqrt(cols)
    rates = jnp.stack([learning_rate, rate_ratio * learning_rate]).astype(W.dtype)
    return Step(
        W / root, B / np.sqrt(rank), A / root, 1 + m[0] ** 2, jnp.asarray(adapter_scale, W.dtype),
        rates, X / np.sqrt(7), Y,
    )  # fmt: skip


# Theory and measurement --------------------------------------------------------------------------


def _terms(case: Step, name: str) -> list[Array]:
    """The three terms of the change of s B A."""
    (eta_A, eta_B), s, B, A = case.rates, case.scale, case.B, case.A
    G = case.slope(name, case.weight + s * B @ A)
    return [
        -eta_A * s**2 * B @ (B.T @ G),
        -eta_B * s**2 * G @ A.T @ A,
        eta_A * eta_B * s**3 * G @ A.T @ (B.T @ G),
    ]


def _dora_by_hand(case: Step, name: str) -> Array:
    """The gradients in B, A and m where the norms are constants."""
    V = case.weight + case.scale * case.B @ case.A
    norms = jnp.linalg.norm(V, axis=1)[:, None]
    G = case.slope(name, case.magnitude[:, None] / norms * V)
    of_V = case.magnitude[:, None] / norms * G
    of_m = jnp.sum(G * V / norms, axis=1)
    return _flat(case.scale * of_V @ case.A.T, case.scale * case.B.T @ of_V, of_m)


def _flat(*arrays: Array) -> Array:
    return jnp.concatenate([jnp.ravel(array) for array in arrays])


def predict(case: Step) -> dict[str, Array]:
    """The formulas, from the gradient in the whole matrix."""
    terms = [jnp.stack(_terms(case, name)) for name in LOSSES]
    product = jnp.abs(case.scale * case.B @ case.A)
    values = linalg.svdvals(case.weight)
    hands = jnp.stack([_dora_by_hand(case, name) for name in LOSSES])
    return {
        "one_step": jnp.stack([jnp.sum(each, axis=0) for each in terms]),
        "step_scale": jnp.max(jnp.sum(jnp.abs(jnp.stack(terms)), axis=1) + product[None]),
        "pissa_residual": _tail(values, case.A.shape[0]),
        "largest": values[0],
        "dora_step": hands,
        "dora_scale": jnp.max(jnp.abs(hands)),
        "zero_factors": jnp.zeros((), jnp.int32),
    }


def _tail(values: Array, rank: int) -> Array:
    return jnp.pad(values[rank:], (0, len(values[:rank])))


def _stepped(case: Step, name: str, rates: Array) -> Array:
    """The change of s B A by one step of SGD on the adapters."""
    before: Any = {"W": Factors(case.B, case.A, case.scale)}
    rule = adapters.lora_plus(optax.sgd, rates[0], rates[1] / rates[0], before)
    net = {"W": case.weight}
    slope = jax.grad(lambda a: case.loss(name, adapters.apply(net, a)))(before)
    moves, _ = rule.update(slope, rule.init(before), before)
    after: Any = optax.apply_updates(before, moves)
    zero = {"W": jnp.zeros_like(case.weight)}
    return adapters.merge(zero, after)["W"] - adapters.merge(zero, before)["W"]


def _dora_gradient(case: Step, name: str) -> Array:
    adapter = DirectedFactors(case.B, case.A, case.scale, magnitude=case.magnitude)
    net = {"W": case.weight}
    slope = jax.grad(lambda a: case.loss(name, adapters.apply(net, a)))({"W": adapter})["W"]
    return _flat(slope.B, slope.A, slope.magnitude)


def _moving_entries(case: Step, B: Array) -> Array:
    """Entries of the gradient that are not 0, of A = 0 and this B."""
    adapter = {"W": Factors(B, jnp.zeros_like(case.A), case.scale)}
    net = {"W": case.weight}
    slope = jax.grad(lambda a: case.loss("sines", adapters.apply(net, a)))(adapter)["W"]
    return jnp.sum(_flat(slope.B, slope.A) != 0).astype(jnp.int32)


def measure(case: Step, rates: Array | None = None) -> dict[str, Array]:
    """What the adapters do."""
    rates = case.rates if rates is None else rates
    rank = case.A.shape[0]
    made = adapters.init(
        jax.random.key(0), {"W": case.weight}, rank=rank, method=adapters.PISSA, scale=case.scale
    )
    base, _ = adapters.rebase({"W": case.weight}, made)
    return {
        "one_step": jnp.stack([_stepped(case, name, rates) for name in LOSSES]),
        "pissa_residual": linalg.svdvals(base["W"]),
        "dora_step": jnp.stack([_dora_gradient(case, name) for name in LOSSES]),
        "zero_factors": _moving_entries(case, jnp.zeros_like(case.B)),
    }


# Claims and controls -----------------------------------------------------------------------------


CLAIMS = (
    Claim("one_step",
          "a step of SGD changes s B A by - eta_A s^2 B B^T G - eta_B s^2 G A^T A + eta_A eta_B "
          "s^3 G A^T B^T G for any loss, G its gradient in W; LoRA+ has two rates",
          residual=on_scale("one_step", lambda one: one.predicted["step_scale"]),
          reads=("one_step", "step_scale")),
    Claim("pissa_residual", "the residual of PiSSA has the singular values of W beyond the r-th",
          residual=on_scale("pissa_residual", lambda one: one.predicted["largest"]),
          reads=("pissa_residual", "largest"),
          sides="the singular values of W against those of the base of the adapters"),
    Claim("dora_step",
          "gradients of DoRA with constant norms: dB = s D G A^T, dA = s B^T D G, dm = diag(G V^T) "
          "/ norms, V = W + s B A, D = diag(m / norms)",
          residual=on_scale("dora_step", lambda one: one.predicted["dora_scale"]),
          reads=("dora_step", "dora_scale")),
    Claim("zero_factors", "both factors 0: every entry of the gradient is exactly 0", kind="exact",
          carries=False, sides="0 against the entries that are not, counted"),
)  # fmt: skip


def _without_third(case: Step) -> dict[str, Array]:
    return {"one_step": jnp.stack([sum(_terms(case, name)[:2]) for name in LOSSES])}


def _norms_differentiated(case: Step) -> dict[str, Array]:
    def gradient(name: str) -> Array:
        def loss(B: Array, A: Array, m: Array) -> Array:
            V = case.weight + case.scale * B @ A
            return case.loss(name, {"W": m[:, None] / jnp.linalg.norm(V, axis=1)[:, None] * V})

        return _flat(*jax.grad(loss, argnums=(0, 1, 2))(case.B, case.A, case.magnitude))

    return {"dora_step": jnp.stack([gradient(name) for name in LOSSES])}


CONTROLS = (
    Control[Step]("rates_swapped", "the rates of A and B exchanged", "one_step",
                  measure=lambda case: measure(case, case.rates[::-1])),
    Control[Step]("ratio_one", "one rate for both where there are two", "one_step",
                  measure=lambda case: measure(case, jnp.stack([case.rates[0]] * 2))),
    Control("without_the_third_term", "the change to first order", "one_step",
            predict=_without_third),
    Control[Step]("nothing_subtracted", "W in the place of the residual", "pissa_residual",
                  measure=lambda case: {"pissa_residual": linalg.svdvals(case.weight)}),
    Control[Step]("another_rank", "the tail beyond r + 1", "pissa_residual",
                  predict=lambda case: {"pissa_residual":
                      _tail(linalg.svdvals(case.weight), case.A.shape[0] + 1)}),
    Control("norms_differentiated", "a gradient through the norms", "dora_step",
            measure=_norms_differentiated),
    Control[Step]("one_factor_zero", "A = 0 alone", "zero_factors",
                  measure=lambda case: {"zero_factors": _moving_entries(case, case.B)}),
)  # fmt: skip

ONE_STEP = Scenario(
    "one_step", make_case, predict, measure, CLAIMS, CONTROLS,
    dims={
        "one_step": ("loss", "row", "column"),
        "pissa_residual": ("index",),
        "dora_step": ("loss", "entry"),
    },
    sides="formulas in the gradient of the whole matrix against adapters, differentiated in "
    "factors",
    at={"rows": 6, "cols": 9, "rank": 2, "learning_rate": 0.1, "rate_ratio": 4.0,
        "adapter_scale": 2.0},
)  # fmt: skip
