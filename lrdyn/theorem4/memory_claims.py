"""Theorem 4: what its methods and their relatives hold, the weights and states of Table 1."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from lrdyn.adapters import memory
from lrdyn.adapters.algorithm_1 import Method, begin
from lrdyn.adapters.methods import FULL, GALORE, LORA, OPTAX_GALORE, RELORA, RELORA_FROZEN
from lrdyn.engine.statement import Claim, Control, Scenario

METHODS: dict[str, Method] = {
    "full": FULL,
    "lora": LORA,
    "relora": RELORA,
    "relora_frozen": RELORA_FROZEN,
    "galore": GALORE,
    "galore_optax": FULL._replace(memory=OPTAX_GALORE),
}
"""The rows of Table 1.

GaLore of optax is an optimiser, by which W is trained as in full training."""


class Layer(NamedTuple):
    """Shapes alone: nothing is drawn and nothing is run."""

    weight: Array
    """m x n."""
    rank: int


def make_case(key: Array, *, rows: int, cols: int, rank: int) -> Layer:
    """One matrix in the precision of the run."""
    return Layer(jnp.zeros((rows, cols)), rank)


def predict(case: Layer) -> dict[str, Array]:
    """The formulas of each method."""
    m, n = case.weight.shape
    size, methods = case.weight.dtype.itemsize, METHODS.values()
    return {
        "weights_held": jnp.asarray([memory.weights_held(one, m, n, case.rank) for one in methods]),
        "state_held": jnp.asarray(
            [memory.state_bytes(one, m, n, case.rank, size) for one in methods]
        ),
    }


def held(method: Method, rule: optax.GradientTransformation, case: Layer) -> tuple[int, int]:
    """Entries of the weights and bytes of the state with P, counted in the arrays of a new run."""

    def start(W: Array, key: Array) -> tuple[PyTree, PyTree]:
        maps = method.choose(key, W, case.rank, method.side)
        split, inner = begin(method, rule, W, maps)
        parts = method.parts(split)
        known = parts.coordinates is not None  # then P is a factor of the network
        return (parts.weights, *(parts[1:] if known else ())), (inner, () if known else parts.maps)

    weights, state = jax.eval_shape(start, case.weight, jax.eval_shape(lambda: jax.random.key(0)))
    entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    return entries, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def measure(case: Layer, optimizer: optax.GradientTransformation | None = None) -> dict[str, Array]:
    """Count the arrays of each method, with Adam unless another optimiser is given."""
    adam = optimizer or optax.adam(1.0)
    rules = {"galore_optax": optax.contrib.galore(1.0, rank=case.rank, base_optimizer=optimizer)}
    found = [held(method, rules.get(name, adam), case) for name, method in METHODS.items()]
    weights, states = zip(*found, strict=True)
    return {"weights_held": jnp.asarray(weights), "state_held": jnp.asarray(states)}


def _without_p(case: Layer) -> dict[str, Array]:
    """One m r less: no factor in the weights, and in the state no P."""
    right, least = predict(case), case.rank * min(case.weight.shape)
    return {name: values - least * np.array([0, 1, 1, 1, 1, 1]) for name, values in right.items()}


def _wider(case: Layer) -> dict[str, Array]:
    """Factors of one column more."""
    return measure(case._replace(rank=case.rank + 1))


CLAIMS = (
    Claim("weights_held",
          "full training and GaLore hold the mn entries of W, LoRA and ReLoRA r(m + n) more",
          kind="exact", carries=False),
    Claim("state_held",
          "Adam and P hold 2mn (full), 2r(m + n) (LoRA, ReLoRA), 2nr (B frozen), mr + 2nr (GaLore) "
          "or nr + 2mr (optax's) entries for m <= n, and an int32 or two, in bytes", kind="exact",
          carries=False),
)  # fmt: skip

CONTROLS = (
    Control("factors_forgotten", "one factor, of m x r, not counted", "weights_held",
            predict=_without_p),
    Control("wider_factors", "factors of one column more", "weights_held", measure=_wider),
    Control("projector_forgotten", "m r less for all but full training", "state_held",
            predict=_without_p),
    Control[Layer](
        "state_of_momentum", "momentum in the place of Adam", "state_held",
        measure=lambda case: measure(case, optax.trace(0.9))),
)  # fmt: skip


def _first(settings: dict) -> dict:
    """The first of all values that it needs."""
    return settings | {name: settings[name][:1] for name in ("rows", "cols", "rank")}


MEMORY = Scenario(
    "memory", make_case, predict, measure, CLAIMS, CONTROLS,
    dims={"weights_held": ("method",), "state_held": ("method",)},
    narrow=_first, traced=False,
    sides="formulas in m, n, r against arrays counted",
    at={"rows": 8, "cols": 12, "rank": 2},
)  # fmt: skip
